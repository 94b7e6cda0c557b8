//! The messages. What they mean is told by the documentation of `raft`.

use bytes::Bytes;
use prost::{Enumeration, Message as Prost};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum EntryType {
    /// Data of the state machine, or nothing: what a new leader writes.
    EntryNormal = 0,
    /// A [`ConfChange`].
    EntryConfChange = 1,
    /// A [`ConfChangeV2`].
    EntryConfChangeV2 = 2,
}

/// An entry of the replicated log.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct Entry {
    /// An [`EntryType`].
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    /// The term of the leader that wrote it.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Its place in the log.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// What it says.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// What whoever proposed it adds.
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
    /// Not used any more.
    #[prost(bool, tag = "5")]
    pub sync_log: bool,
}

/// What a snapshot stands for.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct SnapshotMetadata {
    /// The configuration at `index`.
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    /// The last entry it covers.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// That entry's term.
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// The state machine at an index.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct Snapshot {
    /// The state.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// What it stands for.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

impl Snapshot {
    /// Whether it stands for nothing.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}

/// What a message asks or tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
#[allow(missing_docs, reason = "the raft crate tells what each is for")]
#[allow(
    clippy::enum_variant_names,
    reason = "the names are those the raft crate uses"
)]
pub enum MessageType {
    MsgHup = 0,
    MsgBeat = 1,
    MsgPropose = 2,
    MsgAppend = 3,
    MsgAppendResponse = 4,
    MsgRequestVote = 5,
    MsgRequestVoteResponse = 6,
    MsgSnapshot = 7,
    MsgHeartbeat = 8,
    MsgHeartbeatResponse = 9,
    MsgUnreachable = 10,
    MsgSnapStatus = 11,
    MsgCheckQuorum = 12,
    MsgTransferLeader = 13,
    MsgTimeoutNow = 14,
    MsgReadIndex = 15,
    MsgReadIndexResp = 16,
    MsgRequestPreVote = 17,
    MsgRequestPreVoteResponse = 18,
}

/// What members of a group send each other, and a member itself.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct Message {
    /// A [`MessageType`].
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    /// The member it is for.
    #[prost(uint64, tag = "2")]
    pub to: u64,
    /// The member that sent it.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// That member's term.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// The term of the entry at `index`.
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    /// The entry before `entries`.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// Entries to be appended.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    /// The last entry known to be committed.
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    /// That entry's term.
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    /// With [`MessageType::MsgSnapshot`].
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    /// The index a snapshot is asked for.
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    /// Whether the answer is no.
    #[prost(bool, tag = "10")]
    pub reject: bool,
    /// Where the two logs may agree.
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    /// What comes back with the answer.
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    /// `priority` of older versions.
    #[prost(uint64, tag = "14")]
    pub deprecated_priority: u64,
    /// The sender's priority in an election.
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

/// What a member must remember before it answers.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct HardState {
    /// The newest term it knows of.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    /// The last entry known to be committed.
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// How a joint configuration is entered and left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ConfChangeTransition {
    /// The simple way if possible, otherwise as `Implicit`.
    Auto = 0,
    /// Joint, and left without being asked.
    Implicit = 1,
    /// Joint, and left when an empty change is proposed.
    Explicit = 2,
}

/// The members of a group.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct ConfState {
    /// Members that vote.
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    /// Members that only listen.
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    /// Those who voted before, while the configuration is joint.
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// Those of them who will be learners.
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    /// Whether the joint configuration is left without being asked.
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

/// What happens to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    /// It becomes a voter.
    AddNode = 0,
    /// It leaves.
    RemoveNode = 1,
    /// It becomes a learner.
    AddLearnerNode = 2,
}

/// A change of one member, the older form.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct ConfChange {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    /// The member.
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    /// What whoever proposed it adds.
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// A change of one member.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Prost)]
pub struct ConfChangeSingle {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "1")]
    pub change_type: i32,
    /// The member.
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

/// A change of any number of members.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct ConfChangeV2 {
    /// A [`ConfChangeTransition`].
    #[prost(enumeration = "ConfChangeTransition", tag = "1")]
    pub transition: i32,
    /// The members; none to leave a joint configuration.
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    /// What whoever proposed it adds.
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// The accessors that `raft` calls, named as the compiler of the other package names them.
macro_rules! accessors {
    ($message:ident { $($kind:tt $field:ident: $ty:ty, $get:ident, $set:ident, $mut:ident, $take:ident;)* }) => {
        #[allow(missing_docs, reason = "each gets, sets, lends or takes the field of its name")]
        impl $message {
            pub fn default_ref() -> &'static Self {
                static DEFAULT: std::sync::LazyLock<$message> =
                    std::sync::LazyLock::new($message::default);
                &DEFAULT
            }

            $(accessors!(@ $kind $field: $ty, $get, $set, $mut, $take);)*
        }
    };
    (@ copy $field:ident: $ty:ty, $get:ident, $set:ident, $mut:ident, $take:ident) => {
        pub fn $get(&self) -> $ty {
            self.$field
        }

        accessors!(@ owned $field: $ty, $set, $mut, $take);
    };
    (@ plain $field:ident: $ty:ty, $get:ident, $set:ident, $mut:ident, $take:ident) => {
        pub fn $get(&self) -> &$ty {
            &self.$field
        }

        accessors!(@ owned $field: $ty, $set, $mut, $take);
    };
    (@ owned $field:ident: $ty:ty, $set:ident, $mut:ident, $take:ident) => {
        pub fn $set(&mut self, value: $ty) {
            self.$field = value;
        }

        pub fn $mut(&mut self) -> &mut $ty {
            &mut self.$field
        }

        pub fn $take(&mut self) -> $ty {
            std::mem::take(&mut self.$field)
        }
    };
    (@ message $field:ident: $ty:ty, $get:ident, $set:ident, $mut:ident, $take:ident) => {
        pub fn $get(&self) -> &$ty {
            self.$field.as_ref().unwrap_or_else(|| <$ty>::default_ref())
        }

        pub fn $set(&mut self, value: $ty) {
            self.$field = Some(value);
        }

        pub fn $mut(&mut self) -> &mut $ty {
            self.$field.get_or_insert_default()
        }

        pub fn $take(&mut self) -> $ty {
            self.$field.take().unwrap_or_default()
        }
    };
}

accessors!(Entry {
    copy term: u64, get_term, set_term, mut_term, take_term;
    copy index: u64, get_index, set_index, mut_index, take_index;
    plain data: Bytes, get_data, set_data, mut_data, take_data;
    plain context: Bytes, get_context, set_context, mut_context, take_context;
});
accessors!(SnapshotMetadata {
    message conf_state: ConfState, get_conf_state, set_conf_state, mut_conf_state, take_conf_state;
    copy index: u64, get_index, set_index, mut_index, take_index;
    copy term: u64, get_term, set_term, mut_term, take_term;
});
accessors!(Snapshot {
    plain data: Bytes, get_data, set_data, mut_data, take_data;
    message metadata: SnapshotMetadata, get_metadata, set_metadata, mut_metadata, take_metadata;
});
accessors!(Message {
    copy to: u64, get_to, set_to, mut_to, take_to;
    copy from: u64, get_from, set_from, mut_from, take_from;
    copy term: u64, get_term, set_term, mut_term, take_term;
    copy log_term: u64, get_log_term, set_log_term, mut_log_term, take_log_term;
    copy index: u64, get_index, set_index, mut_index, take_index;
    plain entries: Vec<Entry>, get_entries, set_entries, mut_entries, take_entries;
    copy commit: u64, get_commit, set_commit, mut_commit, take_commit;
    message snapshot: Snapshot, get_snapshot, set_snapshot, mut_snapshot, take_snapshot;
    copy reject: bool, get_reject, set_reject, mut_reject, take_reject;
    plain context: Bytes, get_context, set_context, mut_context, take_context;
    copy priority: i64, get_priority, set_priority, mut_priority, take_priority;
});
accessors!(HardState {
    copy term: u64, get_term, set_term, mut_term, take_term;
    copy vote: u64, get_vote, set_vote, mut_vote, take_vote;
    copy commit: u64, get_commit, set_commit, mut_commit, take_commit;
});
accessors!(ConfState {
    plain voters: Vec<u64>, get_voters, set_voters, mut_voters, take_voters;
    plain learners: Vec<u64>, get_learners, set_learners, mut_learners, take_learners;
    plain voters_outgoing: Vec<u64>,
        get_voters_outgoing, set_voters_outgoing, mut_voters_outgoing, take_voters_outgoing;
    plain learners_next: Vec<u64>,
        get_learners_next, set_learners_next, mut_learners_next, take_learners_next;
    copy auto_leave: bool, get_auto_leave, set_auto_leave, mut_auto_leave, take_auto_leave;
});
accessors!(ConfChange {
    copy node_id: u64, get_node_id, set_node_id, mut_node_id, take_node_id;
    plain context: Bytes, get_context, set_context, mut_context, take_context;
});
accessors!(ConfChangeSingle {
    copy node_id: u64, get_node_id, set_node_id, mut_node_id, take_node_id;
});
accessors!(ConfChangeV2 {
    plain changes: Vec<ConfChangeSingle>, get_changes, set_changes, mut_changes, take_changes;
    plain context: Bytes, get_context, set_context, mut_context, take_context;
});

/// `raft` reads enumerations where only its own code has written them; what comes from elsewhere is
/// checked before.
macro_rules! enum_accessors {
    ($($message:ident, $field:ident: $ty:ident, $get:ident;)*) => {
        $(impl $message {
            #[doc = concat!("The [`", stringify!($ty), "`].")]
            ///
            /// # Panics
            /// When the number is none of them.
            pub fn $get(&self) -> $ty {
                $ty::try_from(self.$field).expect("checked where it came in")
            }
        })*
    };
}

enum_accessors! {
    Entry, entry_type: EntryType, get_entry_type;
    Message, msg_type: MessageType, get_msg_type;
    ConfChange, change_type: ConfChangeType, get_change_type;
    ConfChangeSingle, change_type: ConfChangeType, get_change_type;
    ConfChangeV2, transition: ConfChangeTransition, get_transition;
}
