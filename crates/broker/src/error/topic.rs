//! Errors of changes to topics.

use std::time::Duration;

use thiserror::Error;
use tidelog_controller::{BrokerError, MoveError, PlaceError};

use super::{AppendError, ErrorKind, Facts, LookupError, NotLeader, retry_after};

/// Why topics were not changed or described.
#[derive(Clone, Debug, Error)]
pub enum TopicError {
    /// The change is refused.
    #[error(transparent)]
    Refused(#[from] tidelog_controller::TopicError),
    /// The replicas of its partitions cannot be so.
    #[error(transparent)]
    Place(PlaceError),
    /// A change of replicas is refused.
    #[error(transparent)]
    Move(MoveError),
    /// A change of brokers is refused.
    #[error(transparent)]
    Broker(BrokerError),
    /// It is not gone on without brokers.
    #[error("{0}")]
    Recovery(String),
    /// The decision could not be written to the metadata log.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The files of new partitions could not be made. The change was taken back.
    #[error("the partitions could not be made: {0}")]
    Storage(String),
    /// The system has no more open files to give: each partition takes some. The change was taken
    /// back.
    #[error(
        "the partitions could not be made: {0}; raise the limit of open files, or delete topics"
    )]
    OutOfFiles(String),
    /// There are as many topics or partitions as the broker takes.
    #[error("too many {what}: {asked} asked for, {count} there, at most {max} allowed ({setting})")]
    LimitReached {
        /// Topics or partitions.
        what: &'static str,
        /// The name of the limit.
        setting: &'static str,
        /// The limit.
        max: usize,
        /// How many there are.
        count: usize,
        /// How many more are wanted.
        asked: usize,
    },
}

impl TopicError {
    /// Who is to be asked instead, if another broker decides.
    pub fn not_leader(&self) -> Option<&NotLeader> {
        match self {
            Self::Append(AppendError::Lookup(LookupError::NotLeader(e))) => Some(e),
            _ => None,
        }
    }
}

impl From<PlaceError> for TopicError {
    fn from(e: PlaceError) -> Self {
        match e {
            PlaceError::Topic(e) => Self::Refused(e),
            e => Self::Place(e),
        }
    }
}

impl From<MoveError> for TopicError {
    fn from(e: MoveError) -> Self {
        use MoveError as Move;
        match e {
            Move::Topic(e) => Self::Refused(e),
            Move::Place(e) => e.into(),
            e => Self::Move(e),
        }
    }
}

impl From<BrokerError> for TopicError {
    fn from(e: BrokerError) -> Self {
        Self::Broker(e)
    }
}

impl Facts for TopicError {
    fn kind(&self) -> ErrorKind {
        use tidelog_controller::TopicError as Refused;
        match self {
            Self::Refused(Refused::Exists { .. }) => ErrorKind::AlreadyExists,
            Self::Refused(Refused::NotFound { .. }) => ErrorKind::NotFound,
            Self::Refused(Refused::Internal { .. }) => ErrorKind::Denied,
            Self::Refused(Refused::Name(_) | Refused::Setting(_) | Refused::Partitions { .. }) => {
                ErrorKind::Invalid
            }
            Self::Place(
                PlaceError::TooFewBrokers { .. }
                | PlaceError::NotFounded
                | PlaceError::Unusable { .. },
            ) => ErrorKind::Precondition,
            Self::Place(_) => ErrorKind::Invalid,
            Self::Move(MoveError::NoPartition { .. }) => ErrorKind::NotFound,
            Self::Move(MoveError::Count { .. }) => ErrorKind::Invalid,
            Self::Move(_) => ErrorKind::Precondition,
            Self::Broker(BrokerError::NotFound { .. }) => ErrorKind::NotFound,
            Self::Broker(_) | Self::Recovery(_) => ErrorKind::Precondition,
            Self::Append(e) => e.kind(),
            Self::Storage(_) => ErrorKind::Unavailable,
            Self::OutOfFiles(_) | Self::LimitReached { .. } => ErrorKind::Exhausted,
        }
    }

    fn reason(&self) -> &'static str {
        use tidelog_controller::TopicError as Refused;
        match self {
            Self::Refused(Refused::Exists { .. }) => "TOPIC_EXISTS",
            Self::Refused(Refused::NotFound { .. }) => "TOPIC_NOT_FOUND",
            Self::Refused(Refused::Internal { .. }) => "INTERNAL_TOPIC",
            Self::Refused(Refused::Name(_)) => "INVALID_TOPIC_NAME",
            Self::Refused(Refused::Setting(_)) => "INVALID_SETTING",
            Self::Refused(Refused::Partitions { .. }) => "INVALID_PARTITIONS",
            Self::Place(PlaceError::TooFewBrokers { .. } | PlaceError::NotFounded) => {
                "TOO_FEW_BROKERS"
            }
            Self::Place(PlaceError::Unusable { .. }) => "BROKER_UNAVAILABLE",
            Self::Place(_) => "INVALID_REPLICAS",
            Self::Move(MoveError::NoPartition { .. }) => "PARTITION_NOT_FOUND",
            Self::Move(MoveError::Count { .. }) => "INVALID_REPLICAS",
            Self::Move(_) => "REASSIGNMENT_REFUSED",
            Self::Broker(BrokerError::NotFound { .. }) => "BROKER_NOT_FOUND",
            Self::Broker(_) => "BROKER_REFUSED",
            Self::Recovery(_) => "RECOVERY_REFUSED",
            Self::Append(e) => e.reason(),
            Self::Storage(_) | Self::OutOfFiles(_) => "STORAGE_ERROR",
            Self::LimitReached { .. } => "LIMIT_REACHED",
        }
    }

    /// A limit is not passed by waiting.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::LimitReached { .. } => None,
            Self::Append(e) => e.retry_after(),
            _ => retry_after(self.kind()),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        use tidelog_controller::TopicError as Refused;
        match self {
            Self::Refused(Refused::Exists { name } | Refused::Internal { name }) => {
                vec![("topic", name.to_string())]
            }
            Self::Refused(Refused::NotFound { name }) => vec![("topic", name.clone())],
            Self::Refused(Refused::Partitions { asked, min }) => vec![
                ("asked", asked.to_string()),
                ("min", min.to_string()),
                ("max", tidelog_controller::PARTITIONS_MAX.to_string()),
            ],
            Self::LimitReached {
                setting,
                max,
                count,
                asked,
                ..
            } => vec![
                ("limit", (*setting).to_owned()),
                ("max", max.to_string()),
                ("count", count.to_string()),
                ("asked", asked.to_string()),
            ],
            Self::Refused(Refused::Name(_) | Refused::Setting(_))
            | Self::Place(_)
            | Self::Move(_)
            | Self::Broker(_)
            | Self::Recovery(_)
            | Self::Storage(_)
            | Self::OutOfFiles(_) => Vec::new(),
            Self::Append(e) => e.facts(),
        }
    }
}
