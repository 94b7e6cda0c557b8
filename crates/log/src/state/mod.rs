//! The broker's state file: what a broker must know before it may trust its logs.
//!
//! Small records with a checksum each, appended to a journal and folded into [`BrokerState`].
//! Most important are the sync checkpoints: after every sync round the new durable ends are
//! written here, *without* a sync of their own. After `kill -9` they are exact, since the page cache
//! survives; after power loss they may be older than the truth, never newer, because each is
//! written after the sync it describes. What must not be forgotten, such as a term, is synced.
//!
//! Two generations are kept, each a snapshot and the journal that follows it, so that a damaged
//! newest snapshot costs nothing: the older one and its complete journal say the same. The layout
//! is in `FORMAT.md`.

mod file;
mod generations;
mod look;
mod records;

use std::collections::BTreeMap;

use tidelog_record::{PartitionId, TopicId};

use crate::segment::LogEnd;

#[cfg(feature = "fuzzing")]
pub(crate) use self::{file::FILE_HEADER, records::frame_any};
pub use file::{StateError, StateFile};
pub(crate) use look::look;
pub use records::StateRecord;

/// Which partition log: a topic's id and the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// The topic.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: PartitionId,
}

/// What the state file knows of one partition's Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Rises when the group goes on without a majority of its replicas, which are lost. Its log, which has
    /// the [one it began with](crate::LogIdentity), stays the same.
    pub incarnation: u32,
    /// This replica's number in the group; never used again once its disk is lost.
    pub replica_id: u64,
    /// Raft's term.
    pub term: u64,
    /// Whom this replica voted for in that term; 0 for nobody.
    pub vote: u64,
    /// Raft's commit index. What counts is the smaller one of this and the durable end.
    pub commit: u64,
    /// The last recorded durable end of the log.
    pub checkpoint: Option<LogEnd>,
}

impl GroupState {
    /// Raises the term to that of the last entry of the log, where it is less. Nobody has a vote in it.
    pub fn raise_term(&mut self, end: &LogEnd) {
        let newest = u64::from(end.epoch.get());
        if newest > self.term {
            (self.term, self.vote) = (newest, 0);
        }
    }
}

/// Who is in one partition's Raft group, as Raft has it: numbers of replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMembers {
    /// The entry that made them so; 0 for those who founded the group.
    pub index: u64,
    /// Those who vote.
    pub voters: Vec<u64>,
    /// Those who only listen.
    pub learners: Vec<u64>,
    /// Those who voted before, while the configuration is joint.
    pub voters_outgoing: Vec<u64>,
    /// Those of them who will only listen.
    pub learners_next: Vec<u64>,
    /// Whether the joint configuration is left without being asked.
    pub auto_leave: bool,
}

impl GroupMembers {
    /// How many numbers all lists have together.
    pub fn count(&self) -> usize {
        self.voters.len()
            + self.learners.len()
            + self.voters_outgoing.len()
            + self.learners_next.len()
    }
}

/// So many numbers all lists of a group's members have together at most: they fit one record.
pub const GROUP_MEMBERS_MAX: usize = 24;

/// Who a data directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryIdentity {
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The broker's number in the cluster.
    pub node_id: u32,
    /// This directory, whatever broker opens it.
    pub directory_id: [u8; 16],
}

/// Everything the state file says, folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerState {
    /// Who the directory belongs to.
    pub identity: DirectoryIdentity,
    /// How many times a broker was started on it.
    pub boots: u64,
    /// Whether the last stop was clean: then every log ends at its checkpoint.
    pub clean: bool,
    /// The partitions that have a log here.
    pub groups: BTreeMap<GroupKey, GroupState>,
    /// The members of those groups that others are in too. They may be known before the group is: where
    /// only one of the two survives, a group must not be taken for one without others.
    pub members: BTreeMap<GroupKey, GroupMembers>,
}

impl BrokerState {
    pub(crate) fn apply(&mut self, record: &StateRecord) {
        match record {
            StateRecord::Identity(identity) => self.identity = *identity,
            StateRecord::Boot(boots) => {
                self.boots = *boots;
                self.clean = false;
            }
            StateRecord::Clean => self.clean = true,
            StateRecord::Group(key, group) => {
                // A group record says nothing of the checkpoint, which has records of its own.
                let checkpoint = self.groups.get(key).and_then(|known| known.checkpoint);
                self.groups.insert(
                    *key,
                    GroupState {
                        checkpoint,
                        ..*group
                    },
                );
            }
            StateRecord::Checkpoint(key, end) => {
                if let Some(group) = self.groups.get_mut(key) {
                    group.checkpoint = Some(*end);
                }
            }
            StateRecord::Members(key, members) => {
                self.members.insert(*key, members.clone());
            }
            StateRecord::GroupRemoved(key) => {
                self.groups.remove(key);
                self.members.remove(key);
            }
        }
    }

    pub(crate) fn to_records(&self) -> Vec<StateRecord> {
        let mut records = vec![
            StateRecord::Identity(self.identity),
            StateRecord::Boot(self.boots),
        ];
        for (key, group) in &self.groups {
            records.push(StateRecord::Group(*key, *group));
            if let Some(end) = group.checkpoint {
                records.push(StateRecord::Checkpoint(*key, end));
            }
        }
        for (key, members) in &self.members {
            records.push(StateRecord::Members(*key, members.clone()));
        }
        if self.clean {
            records.push(StateRecord::Clean);
        }
        records
    }
}
