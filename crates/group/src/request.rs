//! What a coordinator is asked for, and what it answers.

use std::fmt;

use tidelog_record::{LeaderEpoch, Offset, TopicId, TopicName};

use crate::error::{GroupError, OffsetError};
use crate::names::{GroupId, InstanceId, MemberId};
use crate::offsets::CommittedOffset;

/// How a group is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKind {
    /// Offsets are committed, and who reads what is not decided by the group.
    Offsets,
    /// Members share the partitions of topics.
    Stream,
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Offsets => "offsets",
            Self::Stream => "stream",
        })
    }
}

/// A request to the coordinator of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Commit offsets.
    Commit(CommitOffsets),
    /// Look committed offsets up.
    Committed(FetchOffsets),
    /// Forget committed offsets.
    DeleteOffsets(DeleteOffsets),
    /// Forget the group.
    DeleteGroup(GroupId),
    /// The groups that are coordinated here.
    List {
        /// Only those whose names come after this one.
        after: String,
        /// At most so many, the first ones by name.
        max: usize,
    },
    /// One group in full.
    Describe(GroupId),
}

/// What became of a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of each offset of [`CommitOffsets`], in its order.
    Committed(Vec<Result<(), OffsetError>>),
    /// What [`FetchOffsets`] asked for; without an entry for what is not committed where all were asked for.
    Offsets(Vec<PartitionOffset>),
    /// Of each partition of [`DeleteOffsets`], in its order: whether one was committed.
    Deleted(Vec<bool>),
    /// The group is forgotten.
    GroupDeleted,
    /// Groups, by name.
    Groups(Vec<GroupSummary>),
    /// The group.
    Group(GroupDescription),
    /// Nothing was done.
    Refused(GroupError),
}

/// Who commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committer {
    /// Somebody who decides alone what to read: the group may have no members.
    Alone,
    /// A member, for what it has in this generation.
    Member {
        /// Who.
        id: MemberId,
        /// The name under which it comes back, if it has one.
        instance: Option<InstanceId>,
        /// What it was told last.
        generation: u32,
    },
}

/// Commits offsets for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitOffsets {
    /// The group.
    pub group: GroupId,
    /// Who commits.
    pub committer: Committer,
    /// Offsets that are lower than what is committed are taken too: they are meant, and no request that
    /// arrives late.
    pub allow_backwards: bool,
    /// What to commit, each by itself.
    pub offsets: Vec<NewOffset>,
}

/// An offset to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOffset {
    /// The topic.
    pub topic: TopicName,
    /// Which one of that name was read, where whoever commits knows.
    pub topic_id: Option<TopicId>,
    /// The partition.
    pub partition: u32,
    /// The next offset to be read.
    pub offset: Offset,
    /// The leadership that wrote the record before.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Anything that is to be found with it.
    pub metadata: String,
    /// The high watermark of the partition, as far as the broker of the coordinator knows.
    pub end: Option<Offset>,
}

/// Looks committed offsets up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOffsets {
    /// The group.
    pub group: GroupId,
    /// Of which partitions; `None`: of all that have one.
    pub partitions: Option<Vec<(TopicName, u32)>>,
}

/// What is committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionOffset {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: u32,
    /// What is committed, if anything is.
    pub committed: Option<CommittedOffset>,
}

/// Forgets committed offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteOffsets {
    /// The group, which has no members.
    pub group: GroupId,
    /// Of which partitions.
    pub partitions: Vec<(TopicName, u32)>,
}

/// A group in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub group: GroupId,
    /// How it is used.
    pub kind: GroupKind,
    /// How many members it has.
    pub members: usize,
    /// For how many partitions offsets are committed.
    pub offsets: usize,
}

/// A group in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// The group in short.
    pub summary: GroupSummary,
    /// Every committed offset, by topic and partition.
    pub offsets: Vec<PartitionOffset>,
}
