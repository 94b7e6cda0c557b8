//! Why a group does not do what it is asked to.

use thiserror::Error;
use tidelog_record::{Offset, TopicName};

use crate::names::{GroupId, MemberId};
use crate::request::GroupKind;

/// Why a request about a group is refused as a whole. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GroupError {
    /// There is no such group: nobody has joined it, and nothing is committed.
    #[error("group {group:?} does not exist; it begins with its first member or commit")]
    NotFound {
        /// The group.
        group: GroupId,
    },
    /// It has members, and what is asked for is for groups without.
    #[error(
        "group {group:?} has {members} members; stop them first, or have them fenced where the request offers that"
    )]
    NotEmpty {
        /// The group.
        group: GroupId,
        /// How many.
        members: usize,
    },
    /// Only members commit in a group that has some.
    #[error(
        "group {group:?} has {members} members, and only these commit: join it, or commit with another group"
    )]
    MembersOnly {
        /// The group.
        group: GroupId,
        /// How many there are.
        members: usize,
    },
    /// It is not a member, or not any more: it was silent for too long, or has left.
    #[error("{member:?} is no member of group {group:?}, or not any more: it has to join again")]
    UnknownMember {
        /// The group.
        group: GroupId,
        /// Who.
        member: MemberId,
    },
    /// The member speaks of an assignment that is not in force any more.
    #[error(
        "generation {generation} of member {member:?} of group {group:?} is over; it is at {current} now"
    )]
    StaleGeneration {
        /// The group.
        group: GroupId,
        /// Who.
        member: MemberId,
        /// What it speaks of.
        generation: u32,
        /// What is in force for it.
        current: u32,
    },
    /// A group of one kind is used as one of another.
    #[error("group {group:?} is a {kind} group; it cannot be used as a {asked} group")]
    WrongKind {
        /// The group.
        group: GroupId,
        /// What it is.
        kind: GroupKind,
        /// As what it was used.
        asked: GroupKind,
    },
    /// There are as many groups as the coordinator takes.
    #[error(
        "there are {max} groups already, the most that this broker coordinates (groups_max); delete some"
    )]
    TooManyGroups {
        /// The limit.
        max: usize,
    },
    /// A request asks for more than is written at once.
    #[error(
        "the request takes {len} bytes in the log of the group; at most {max} are written at once: split it"
    )]
    TooLarge {
        /// What it takes.
        len: usize,
        /// The limit.
        max: usize,
    },
}

/// Why the offset of one partition is not committed. It stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OffsetError {
    /// No such topic.
    #[error("topic {topic:?} does not exist")]
    TopicNotFound {
        /// Its name.
        topic: TopicName,
    },
    /// Whoever commits has read another topic of the same name.
    #[error("topic {topic:?} was deleted and made again since it was read; begin it anew")]
    TopicReplaced {
        /// Its name.
        topic: TopicName,
    },
    /// The topic has no such partition.
    #[error("topic {topic:?} has no partition {partition}: it has {partitions}, counted from 0")]
    PartitionNotFound {
        /// Its name.
        topic: TopicName,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The text beside the offset is too long.
    #[error("metadata of {len} bytes is too long; at most {max} are kept with an offset")]
    MetadataTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A higher offset is committed already, and committed offsets do not go back by themselves.
    #[error(
        "offset {offset} is behind {committed}, which is committed already; to go back on purpose, say so (allow_backwards)"
    )]
    Behind {
        /// What was to be committed.
        offset: Offset,
        /// What is.
        committed: Offset,
    },
    /// Nobody can have read up to there.
    #[error("offset {offset} is beyond the end of the partition, which is {end}")]
    BeyondEnd {
        /// What was to be committed.
        offset: Offset,
        /// The high watermark.
        end: Offset,
    },
    /// Another member reads it, or none.
    #[error(
        "member {member:?} does not have partition {partition} of topic {topic:?}; only who has it commits for it"
    )]
    NotOwned {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// Who was to commit.
        member: MemberId,
    },
}
