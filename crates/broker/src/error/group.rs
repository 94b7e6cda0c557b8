//! Errors of what is asked of groups.

use std::time::Duration;

use thiserror::Error;
use tidelog_group::{GroupError, NameError, OffsetError};

use super::{AppendError, ErrorKind, Facts, LookupError, NotLeader, TopicError, retry_after};

/// Why a group was not asked, or nobody knows what came of it.
#[derive(Clone, Debug, Error)]
pub enum CoordinatorError {
    /// Another broker coordinates the group, or none that is known here. Nothing was done.
    #[error("this broker does not coordinate the group: {0}")]
    NotCoordinator(NotLeader),
    /// The coordinator has just begun to lead, and does not know the groups yet. Nothing was done.
    #[error("the groups of partition {partition} of __consumer_offsets are being loaded")]
    Loading {
        /// The partition.
        partition: u32,
    },
    /// The topic of groups is being made, which takes a while. Nothing was done.
    #[error("the topic of groups, __consumer_offsets, is being made")]
    Making,
    /// Nobody leads the partition that the group belongs to. Nothing was done.
    #[error(
        "the group belongs to partition {partition} of __consumer_offsets, which nobody is known to lead"
    )]
    NoLeader {
        /// The partition.
        partition: u32,
    },
    /// What was decided surely was not written.
    #[error("the group's decision could not be written: {0}")]
    Write(AppendError),
    /// It may have been done, or may still be.
    #[error("it is not known what became of it: {cause}")]
    Unknown {
        /// What happened.
        cause: String,
    },
    /// There is no topic for groups, and none could be made.
    #[error(transparent)]
    Topic(Box<TopicError>),
    /// The group refuses it. Nothing was done.
    #[error(transparent)]
    Refused(#[from] GroupError),
    /// The broker is stopping. Nothing was done.
    #[error("the broker is stopping")]
    Stopping,
}

impl CoordinatorError {
    /// Who is to be asked instead, if another broker is.
    pub fn not_leader(&self) -> Option<&NotLeader> {
        match self {
            Self::NotCoordinator(e) => Some(e),
            Self::Topic(e) => e.not_leader(),
            _ => None,
        }
    }
}

impl From<LookupError> for CoordinatorError {
    fn from(e: LookupError) -> Self {
        match e {
            LookupError::NotLeader(e) => Self::NotCoordinator(e),
            e => Self::Topic(Box::new(TopicError::Append(e.into()))),
        }
    }
}

impl From<NotLeader> for CoordinatorError {
    fn from(e: NotLeader) -> Self {
        Self::NotCoordinator(e)
    }
}

impl Facts for CoordinatorError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotCoordinator(_)
            | Self::Loading { .. }
            | Self::NoLeader { .. }
            | Self::Making
            | Self::Stopping => ErrorKind::Unavailable,
            Self::Write(e) => e.kind(),
            Self::Unknown { .. } => ErrorKind::Unknown,
            Self::Topic(e) => e.kind(),
            Self::Refused(e) => e.kind(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotCoordinator(_) => "NOT_COORDINATOR",
            Self::Loading { .. } => "COORDINATOR_LOADING",
            Self::NoLeader { .. } | Self::Making => "COORDINATOR_NOT_AVAILABLE",
            Self::Write(e) => e.reason(),
            Self::Unknown { .. } => "OUTCOME_UNKNOWN",
            Self::Topic(e) => e.reason(),
            Self::Refused(e) => e.reason(),
            Self::Stopping => "SHUTTING_DOWN",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotCoordinator(e) => Some(e.retry_after()),
            Self::Write(e) => e.retry_after(),
            Self::Topic(e) => e.retry_after(),
            _ => retry_after(self.kind()),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotCoordinator(e) => e.facts(),
            Self::Loading { partition } | Self::NoLeader { partition } => {
                vec![("partition", partition.to_string())]
            }
            Self::Write(e) => e.facts(),
            Self::Topic(e) => e.facts(),
            Self::Refused(e) => e.facts(),
            Self::Unknown { .. } | Self::Making | Self::Stopping => Vec::new(),
        }
    }
}

impl Facts for GroupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::NotEmpty { .. }
            | Self::MembersOnly { .. }
            | Self::UnknownMember { .. }
            | Self::StaleGeneration { .. }
            | Self::WrongKind { .. } => ErrorKind::Precondition,
            Self::TooManyGroups { .. } => ErrorKind::Exhausted,
            Self::TooLarge { .. } => ErrorKind::Invalid,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "GROUP_NOT_FOUND",
            Self::NotEmpty { .. } => "GROUP_NOT_EMPTY",
            Self::MembersOnly { .. } => "GROUP_HAS_MEMBERS",
            Self::UnknownMember { .. } => "UNKNOWN_MEMBER",
            Self::StaleGeneration { .. } => "STALE_GENERATION",
            Self::WrongKind { .. } => "WRONG_GROUP_KIND",
            Self::TooManyGroups { .. } => "LIMIT_REACHED",
            Self::TooLarge { .. } => "REQUEST_TOO_LARGE",
        }
    }

    /// Neither a limit is passed by waiting, nor does anything else here change by itself.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotFound { group } => vec![("group", group.to_string())],
            Self::NotEmpty { group, members } | Self::MembersOnly { group, members } => vec![
                ("group", group.to_string()),
                ("members", members.to_string()),
            ],
            Self::UnknownMember { group, member } => {
                vec![("group", group.to_string()), ("member", member.to_string())]
            }
            Self::StaleGeneration {
                group,
                member,
                generation,
                current,
            } => vec![
                ("group", group.to_string()),
                ("member", member.to_string()),
                ("generation", generation.to_string()),
                ("current_generation", current.to_string()),
            ],
            Self::WrongKind { group, kind, asked } => vec![
                ("group", group.to_string()),
                ("kind", kind.to_string()),
                ("asked", asked.to_string()),
            ],
            Self::TooManyGroups { max } => {
                vec![("limit", "groups_max".to_owned()), ("max", max.to_string())]
            }
            Self::TooLarge { len, max } => {
                vec![("len", len.to_string()), ("max", max.to_string())]
            }
        }
    }
}

impl Facts for OffsetError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TopicNotFound { .. } | Self::PartitionNotFound { .. } => ErrorKind::NotFound,
            Self::TopicReplaced { .. } | Self::Behind { .. } | Self::NotOwned { .. } => {
                ErrorKind::Precondition
            }
            Self::MetadataTooLong { .. } => ErrorKind::Invalid,
            Self::BeyondEnd { .. } => ErrorKind::OutOfRange,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::TopicNotFound { .. } => "TOPIC_NOT_FOUND",
            Self::TopicReplaced { .. } => "TOPIC_REPLACED",
            Self::PartitionNotFound { .. } => "PARTITION_NOT_FOUND",
            Self::MetadataTooLong { .. } => "OFFSET_METADATA_TOO_LONG",
            Self::Behind { .. } => "OFFSET_BEHIND",
            Self::BeyondEnd { .. } => "OFFSET_OUT_OF_RANGE",
            Self::NotOwned { .. } => "PARTITION_NOT_OWNED",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        None
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::TopicNotFound { topic } | Self::TopicReplaced { topic } => {
                vec![("topic", topic.to_string())]
            }
            Self::PartitionNotFound {
                topic,
                partition,
                partitions,
            } => vec![
                ("topic", topic.to_string()),
                ("partition", partition.to_string()),
                ("partitions", partitions.to_string()),
            ],
            Self::MetadataTooLong { len, max } => {
                vec![("len", len.to_string()), ("max", max.to_string())]
            }
            Self::Behind { offset, committed } => vec![
                ("offset", offset.to_string()),
                ("committed", committed.to_string()),
            ],
            Self::BeyondEnd { offset, end } => vec![
                ("requested", offset.to_string()),
                ("high_watermark", end.to_string()),
            ],
            Self::NotOwned {
                topic,
                partition,
                member,
            } => vec![
                ("topic", topic.to_string()),
                ("partition", partition.to_string()),
                ("member", member.to_string()),
            ],
        }
    }
}

impl Facts for NameError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    fn reason(&self) -> &'static str {
        "INVALID_NAME"
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::TooLong { len, .. } => vec![("len", len.to_string())],
            Self::Empty { .. } | Self::Control { .. } => Vec::new(),
        }
    }
}
