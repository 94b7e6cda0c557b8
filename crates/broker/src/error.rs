//! Why a request was not done, in terms any listener can pass on.

use std::time::Duration;

use thiserror::Error;
use tidelog_record::{Offset, TopicName};

mod append;
mod group;
mod leader;
mod topic;

pub use append::AppendError;
pub use group::CoordinatorError;
pub use leader::NotLeader;
pub use topic::TopicError;

/// What an error means for the caller, whatever the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was named does not exist. Nothing changed.
    NotFound,
    /// What was to be made exists. Nothing changed.
    AlreadyExists,
    /// The request is wrong whatever the state. Nothing changed.
    Invalid,
    /// The request is not allowed. Nothing changed.
    Denied,
    /// The state is not the one the request needs. Nothing changed.
    Precondition,
    /// The offset is outside of the log. Nothing changed.
    OutOfRange,
    /// Too much at once, no space, or a limit was met. Surely nothing changed: try again later, if
    /// [`Facts::retry_after`] says when.
    Exhausted,
    /// Not now. Surely nothing changed: try again.
    Unavailable,
    /// It may have been done, or may still be.
    Unknown,
    /// Stored data is damaged, or no longer to be trusted.
    DataLoss,
}

/// The facts of an error, for listeners to put into their protocol's form.
pub trait Facts: std::error::Error {
    /// What it means for the caller.
    fn kind(&self) -> ErrorKind;
    /// Its name in the catalogue of errors: stable, in capitals.
    fn reason(&self) -> &'static str;
    /// The values it is about, by name.
    fn facts(&self) -> Vec<(&'static str, String)>;
    /// When trying again makes sense, if it does.
    fn retry_after(&self) -> Option<Duration> {
        retry_after(self.kind())
    }
}

/// When trying again makes sense after an error of this kind.
fn retry_after(kind: ErrorKind) -> Option<Duration> {
    match kind {
        ErrorKind::Unavailable => Some(Duration::from_millis(200)),
        ErrorKind::Exhausted => Some(Duration::from_millis(500)),
        _ => None,
    }
}

/// A topic or partition that is not there, or not here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LookupError {
    /// No such topic.
    #[error("topic {topic:?} does not exist")]
    TopicNotFound {
        /// The name asked for.
        topic: String,
    },
    /// The topic has no such partition.
    #[error("topic {topic:?} has no partition {partition}: it has {partitions}, counted from 0")]
    PartitionNotFound {
        /// The topic.
        topic: TopicName,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The partition is there, but its log could not be opened.
    #[error("partition {partition} of topic {topic:?} does not serve: {fault}")]
    Faulted {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// Why.
        fault: String,
    },
    /// Another broker leads the partition, or none that is known here.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
}

impl Facts for LookupError {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotLeader(e) => Some(e.retry_after()),
            _ => retry_after(self.kind()),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotLeader(_) => ErrorKind::Unavailable,
            Self::TopicNotFound { .. } | Self::PartitionNotFound { .. } => ErrorKind::NotFound,
            Self::Faulted { .. } => ErrorKind::DataLoss,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::TopicNotFound { .. } => "TOPIC_NOT_FOUND",
            Self::PartitionNotFound { .. } => "PARTITION_NOT_FOUND",
            Self::Faulted { .. } => "PARTITION_FAULTED",
            Self::NotLeader(_) => "NOT_LEADER",
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotLeader(e) => e.facts(),
            Self::TopicNotFound { topic } => vec![("topic", topic.clone())],
            Self::PartitionNotFound {
                topic,
                partition,
                partitions,
            } => vec![
                ("topic", topic.to_string()),
                ("partition", partition.to_string()),
                ("partitions", partitions.to_string()),
            ],
            Self::Faulted {
                topic, partition, ..
            } => {
                vec![
                    ("topic", topic.to_string()),
                    ("partition", partition.to_string()),
                ]
            }
        }
    }
}

/// Why nothing was read.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// The topic or partition is not there.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The offset is below the log start or above the high watermark.
    #[error(
        "offset {requested} is out of range: the log starts at {log_start} and the high watermark is {high_watermark}"
    )]
    OutOfRange {
        /// The offset asked for.
        requested: u64,
        /// The first offset that can be read.
        log_start: Offset,
        /// Reading from here waits for the next record.
        high_watermark: Offset,
    },
    /// A leader that has just been elected does not know yet how far the log is committed.
    #[error("it is not known yet how far partition {partition} of topic {topic:?} can be read")]
    NotYet {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
    },
    /// The stored bytes are damaged; they are not served.
    #[error("{0}")]
    Damaged(String),
    /// The disk refused, this time.
    #[error("{0}")]
    Disk(String),
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Stopping,
}

impl Facts for ReadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Lookup(e) => e.kind(),
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::Damaged(_) => ErrorKind::DataLoss,
            Self::NotYet { .. } | Self::Disk(_) | Self::Stopping => ErrorKind::Unavailable,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Lookup(e) => e.retry_after(),
            _ => retry_after(self.kind()),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Lookup(e) => e.reason(),
            Self::NotYet { .. } => "OFFSET_NOT_AVAILABLE",
            Self::OutOfRange { .. } => "OFFSET_OUT_OF_RANGE",
            Self::Damaged(_) => "DATA_DAMAGED",
            Self::Disk(_) => "STORAGE_ERROR",
            Self::Stopping => "SHUTTING_DOWN",
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Lookup(e) => e.facts(),
            Self::OutOfRange {
                requested,
                log_start,
                high_watermark,
            } => range_facts(*requested, *log_start, *high_watermark),
            Self::NotYet { topic, partition } => vec![
                ("topic", topic.to_string()),
                ("partition", partition.to_string()),
            ],
            Self::Damaged(_) | Self::Disk(_) | Self::Stopping => Vec::new(),
        }
    }
}

/// The offset asked for, and which there are.
fn range_facts(
    requested: u64,
    log_start: Offset,
    high_watermark: Offset,
) -> Vec<(&'static str, String)> {
    vec![
        ("requested", requested.to_string()),
        ("log_start_offset", log_start.to_string()),
        ("high_watermark", high_watermark.to_string()),
    ]
}

/// Why records were not deleted.
#[derive(Clone, Debug, Error)]
pub enum DeleteError {
    /// The offset could not be looked up.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The offset is below the log start or above the high watermark.
    #[error(
        "records before offset {requested} cannot be deleted: allowed is an offset from the log \
         start, {log_start}, to the high watermark, {high_watermark}"
    )]
    OutOfRange {
        /// The offset asked for.
        requested: Offset,
        /// What is below is deleted already.
        log_start: Offset,
        /// What is above is not acknowledged yet.
        high_watermark: Offset,
    },
    /// The topic's records are not to be deleted.
    #[error(
        "records of topic {topic} cannot be deleted: its cleanup.policy is compact; allowed are \
         delete and compact,delete"
    )]
    Policy {
        /// The topic.
        topic: TopicName,
    },
    /// The new log start could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl Facts for DeleteError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(e) => e.kind(),
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::Policy { .. } => ErrorKind::Invalid,
            Self::Append(e) => e.kind(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Read(e) => e.retry_after(),
            Self::Append(e) => e.retry_after(),
            _ => retry_after(self.kind()),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Read(e) => e.reason(),
            Self::OutOfRange { .. } => "OFFSET_OUT_OF_RANGE",
            Self::Policy { .. } => "POLICY_VIOLATION",
            Self::Append(e) => e.reason(),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Read(e) => e.facts(),
            Self::OutOfRange {
                requested,
                log_start,
                high_watermark,
            } => range_facts(requested.get(), *log_start, *high_watermark),
            Self::Policy { topic } => vec![("topic", topic.to_string())],
            Self::Append(e) => e.facts(),
        }
    }
}

#[cfg(test)]
mod tests;
