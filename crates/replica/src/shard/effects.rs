//! What a shard is asked for, and what comes of its turns.

use bytes::Bytes;
use raft::eraftpb::Message;
use tidelog_log::state::GroupKey;
use tidelog_log::{AppendError, LogEnd, Poisoned};
use tidelog_record::{Offset, ProducedBatch, Timestamp};

use crate::catch_up::CatchUpLetter;
use crate::config::ReplicaId;
use crate::error::{GroupError, ProposeError};
use crate::group::Role;
use crate::message::{Payload, push_lean};
use crate::recover::RecoverError;
use crate::storage::Members;

/// The number of a broker in its cluster.
pub type NodeId = u32;

/// The broker that has a replica: the lower half of the replica's number. The upper half tells apart
/// the replicas that a broker has had of one partition, one after the other; it is 0 for the first.
pub const fn node_of(replica: ReplicaId) -> NodeId {
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let node = replica as NodeId;
    node
}

/// The number of the replica that a broker has of a partition after it has lost so many others.
pub const fn replica_of(node: NodeId, lost: u32) -> ReplicaId {
    (lost as ReplicaId) << 32 | node as ReplicaId
}

/// How far an append has come when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It is written at the leader, and may be lost (`acks=1`).
    Written,
    /// It is written on a majority, and may be durable nowhere yet (`acks=all` where `write.caching` is on): see
    /// `receipts.rs`.
    Received,
    /// It is committed: durable on a majority (`acks=all`).
    Committed,
}

/// A batch for a group, and who waits for what becomes of it.
#[derive(Debug)]
pub struct Proposal<W> {
    /// The batch.
    pub batch: ProducedBatch,
    /// When to answer.
    pub until: Until,
    /// It is refused where the group is in another term by now.
    pub term: Option<u64>,
    /// Whom to answer.
    pub waiter: W,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// A batch is stored.
    Stored {
        /// The offset of its first record.
        base_offset: Offset,
        /// The timestamp its records got, where that is the broker's.
        log_append_time: Option<Timestamp>,
        /// It was there before.
        is_duplicate: bool,
    },
    /// The log starts here now.
    LogStart(Offset),
    /// Whoever asked leads, and everything before the entry after this one was committed when it
    /// asked.
    ReadIndex(u64),
    /// The group goes on in the incarnation that was asked for.
    Recovered,
}

/// How a replica goes on where a majority of its group is lost for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It leads, and is the only one: see [`Group::begin_recovery`](crate::Group::begin_recovery).
    Alone,
    /// Another one does, which will take this one in again.
    Follows,
}

/// How far a replica's log is: of two, the later term has more, and in the same one the higher index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The group.
    pub key: GroupKey,
    /// See [`Letter::incarnation`].
    pub incarnation: u32,
    /// The replica.
    pub replica: ReplicaId,
    /// The term that it is in.
    pub term: u64,
    /// The term of its last entry.
    pub last_term: u64,
    /// The index of its last entry.
    pub last_index: u64,
    /// Where its records end.
    pub end: Offset,
    /// Everything before this is known here to be committed.
    pub committed: Offset,
    /// It leads, and a majority hears it.
    pub leads: bool,
    /// It could go on alone: see [`Group::could_go_on_alone`](crate::Group::could_go_on_alone).
    pub is_able: bool,
    /// Who votes, as it knows, before and after a change that is under way.
    pub voters: [Vec<ReplicaId>; 2],
}

/// Why something was not done.
#[derive(Debug)]
pub enum Refusal {
    /// Surely nothing was.
    Refused(ProposeError),
    /// Surely nothing was: there is no such group here.
    Gone,
    /// Surely nothing was: the group had failed before.
    Down(GroupError),
    /// It cannot go on alone.
    NotRecovered(RecoverError),
    /// It was begun, and it is not known what becomes of it: another replica leads now.
    Lost {
        /// The leader, if it is known.
        leader: Option<ReplicaId>,
    },
    /// It was begun, and waits for space, which is not known to come.
    Stalled(AppendError),
    /// It was begun, and the group has failed since.
    Failed(GroupError),
}

/// What becomes of something that somebody waits for.
#[derive(Debug)]
pub struct Answer<W> {
    /// Which group was asked.
    pub key: GroupKey,
    /// Who waits.
    pub waiter: W,
    /// What it is told.
    pub result: Result<Done, Refusal>,
}

/// A message to the replica of a group at another broker.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The group.
    pub key: GroupKey,
    /// Its incarnation: replicas of others do not talk to it.
    pub incarnation: u32,
    /// What Raft says.
    pub message: Message,
    /// What its stubs stand for.
    pub payloads: Vec<Payload>,
    /// See [`Outgoing::receipt`](crate::Outgoing::receipt).
    pub receipt: bool,
}

/// A letter as it arrives.
#[derive(Clone, Debug)]
pub struct Received {
    /// The group.
    pub key: GroupKey,
    /// Its incarnation at the sender.
    pub incarnation: u32,
    /// What Raft says.
    pub message: Message,
    /// What its stubs stand for.
    pub payloads: Vec<Bytes>,
    /// See [`Outgoing::receipt`](crate::Outgoing::receipt).
    pub receipt: bool,
}

impl From<Letter> for Received {
    /// As it arrives; copies batches that lie in two parts.
    fn from(letter: Letter) -> Self {
        let Letter {
            key,
            incarnation,
            message,
            payloads,
            receipt,
        } = letter;
        Self {
            key,
            incarnation,
            message,
            payloads: payloads.iter().map(Payload::to_bytes).collect(),
            receipt,
        }
    }
}

/// What one broker has for another, to be said in this order.
#[derive(Debug, Default)]
pub struct Post {
    /// Of Raft.
    pub raft: Vec<Letter>,
    /// Of replicas that catch up by files.
    pub files: Vec<CatchUpLetter>,
    /// Of the brokers themselves. Nothing here knows what they mean.
    pub notes: Vec<Bytes>,
}

/// What came of another broker.
#[derive(Debug)]
pub struct Delivery {
    /// Which.
    pub from: NodeId,
    /// Of Raft.
    pub raft: Vec<Received>,
    /// Of replicas that catch up by files.
    pub files: Vec<CatchUpLetter>,
    /// Of the broker itself.
    pub notes: Vec<Bytes>,
}

/// What came of a turn, to be done in the order of the fields.
#[derive(Debug)]
pub struct Effects<W> {
    /// What replicas are now.
    pub roles: Vec<(GroupKey, Role)>,
    /// Who is in groups now.
    pub members: Vec<(GroupKey, Members)>,
    /// Groups that do no more until they are opened again.
    pub failed: Vec<(GroupKey, GroupError)>,
    /// Everything before is committed now.
    pub committed: Vec<(GroupKey, LogEnd)>,
    /// What those who waited are told, once the commit is: they find what they wrote.
    pub answers: Vec<Answer<W>>,
    /// What each broker is to be sent: all that there is for it, once. After the answers, since sending takes a
    /// while, and before anything is synced, since that takes longer, and others can do the same meanwhile.
    pub posts: Vec<(NodeId, Post)>,
    /// State was recorded that others wait for: once it is synced, this is to be told to
    /// [`Shard::state_synced`](super::Shard::state_synced).
    pub state_to_sync: Vec<(GroupKey, u64)>,
    /// Logs to be synced, and then told to [`Shard::log_synced`](super::Shard::log_synced).
    pub logs_to_sync: Vec<GroupKey>,
    /// Whether anybody waits for that.
    pub is_sync_awaited: bool,
}

impl<W> Default for Effects<W> {
    fn default() -> Self {
        Self {
            roles: Vec::new(),
            members: Vec::new(),
            failed: Vec::new(),
            committed: Vec::new(),
            answers: Vec::new(),
            posts: Vec::new(),
            state_to_sync: Vec::new(),
            logs_to_sync: Vec::new(),
            is_sync_awaited: false,
        }
    }
}

impl<W> Effects<W> {
    /// What there is for the broker that has a replica.
    pub(super) fn post_to(&mut self, replica: ReplicaId) -> &mut Post {
        let node = node_of(replica);
        let known = self.posts.iter().position(|(to, _)| *to == node);
        let at = known.unwrap_or_else(|| {
            push_lean(&mut self.posts, (node, Post::default()));
            self.posts.len() - 1
        });
        &mut self.posts[at].1
    }

    pub(super) fn answer(&mut self, key: GroupKey, waiter: W, result: Result<Done, Refusal>) {
        let answer = Answer {
            key,
            waiter,
            result,
        };
        push_lean(&mut self.answers, answer);
    }
}

impl From<Poisoned> for Refusal {
    fn from(poisoned: Poisoned) -> Self {
        Self::Failed(poisoned.into())
    }
}
