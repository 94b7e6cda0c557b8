//! Why a request was not done, in terms any listener can pass on.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use tidelog_log::ProducerError;
use tidelog_record::{Offset, ProduceError, TopicName};

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

/// A topic or partition that is not there.
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
}

impl Facts for LookupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TopicNotFound { .. } | Self::PartitionNotFound { .. } => ErrorKind::NotFound,
            Self::Faulted { .. } => ErrorKind::DataLoss,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::TopicNotFound { .. } => "TOPIC_NOT_FOUND",
            Self::PartitionNotFound { .. } => "PARTITION_NOT_FOUND",
            Self::Faulted { .. } => "PARTITION_FAULTED",
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
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

/// Why nothing was appended, or why it is not known whether something was.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// The topic or partition is not there.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The topic belongs to the cluster itself.
    #[error("topic {topic:?} is internal: clients cannot write to it")]
    InternalTopic {
        /// The topic.
        topic: TopicName,
    },
    /// The request has nothing to append, or asks for something impossible.
    #[error("{0}")]
    Request(String),
    /// The batch is not acceptable.
    #[error(transparent)]
    Batch(#[from] ProduceError),
    /// The batch is above the topic's limit.
    #[error(
        "record batch of {len} bytes is above max.message.bytes of topic {topic:?}, which is {max}"
    )]
    TooLarge {
        /// The topic.
        topic: TopicName,
        /// The batch's length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Too many bytes wait to be appended. Nothing was written.
    #[error(
        "the broker has no room for {len} bytes within {waited_ms} ms: it holds at most {max} bytes of appends at a time"
    )]
    Overloaded {
        /// The request's length in bytes.
        len: usize,
        /// What the broker holds at most.
        max: usize,
        /// How long it waited for room.
        waited_ms: u64,
    },
    /// The batch is of an idempotent producer, and is not its next one. Nothing was written.
    #[error("partition {partition} of topic {topic:?}: {error}")]
    Producer {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// What is wrong.
        error: ProducerError,
    },
    /// The batch has a producer id that nobody was given. Nothing was written.
    #[error(
        "producer id {producer_id} was never given out; a producer gets its id by InitProducer"
    )]
    ForeignProducer {
        /// The batch's.
        producer_id: i64,
    },
    /// The disk is full. Nothing was written.
    #[error(
        "{what}; free space, or lower retention.ms or retention.bytes; appends go on by themselves when there is space"
    )]
    Full {
        /// What there is no space for.
        what: String,
        /// The directory whose disk is full.
        dir: PathBuf,
        /// How many bytes more are needed, at least.
        needed: u64,
    },
    /// The process has no more open files to give, and a new segment needs one. Nothing was written.
    #[error(
        "{0}; raise the limit of open files, or use fewer topics and connections; appends go on by themselves when there are some"
    )]
    OutOfFiles(String),
    /// The partition takes no more appends until the broker is started again.
    #[error("partition {partition} of topic {topic:?} takes no appends: {fault}")]
    Poisoned {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// Why.
        fault: String,
    },
    /// The broker is stopping. Nothing was written.
    #[error("the broker is stopping")]
    Stopping,
    /// It may have been written, or may still be: the sync failed or took too long.
    #[error("it is not known whether the records were stored: {cause}")]
    OutcomeUnknown {
        /// What happened.
        cause: String,
    },
}

/// The numbers a [`ProducerError`] is about.
fn producer_facts(error: &ProducerError) -> Vec<(&'static str, String)> {
    match error {
        ProducerError::Fenced {
            producer_id,
            epoch,
            current,
        } => vec![
            ("producer_id", producer_id.to_string()),
            ("epoch", epoch.to_string()),
            ("current_epoch", current.to_string()),
        ],
        ProducerError::OutOfOrder {
            producer_id,
            epoch,
            expected,
            found,
        }
        | ProducerError::Duplicate {
            producer_id,
            epoch,
            expected,
            found,
        } => vec![
            ("producer_id", producer_id.to_string()),
            ("epoch", epoch.to_string()),
            ("expected_sequence", expected.to_string()),
            ("sequence", found.to_string()),
        ],
        ProducerError::Unknown {
            producer_id,
            epoch,
            found,
        } => vec![
            ("producer_id", producer_id.to_string()),
            ("epoch", epoch.to_string()),
            ("sequence", found.to_string()),
        ],
    }
}

impl Facts for AppendError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Lookup(e) => e.kind(),
            Self::InternalTopic { .. } => ErrorKind::Denied,
            Self::Request(_) | Self::Batch(_) | Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::Producer {
                error: ProducerError::Duplicate { .. },
                ..
            } => ErrorKind::AlreadyExists,
            Self::Producer { .. } | Self::ForeignProducer { .. } => ErrorKind::Precondition,
            Self::Overloaded { .. } | Self::Full { .. } | Self::OutOfFiles(_) => {
                ErrorKind::Exhausted
            }
            Self::Poisoned { .. } => ErrorKind::DataLoss,
            Self::Stopping => ErrorKind::Unavailable,
            Self::OutcomeUnknown { .. } => ErrorKind::Unknown,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Lookup(e) => e.reason(),
            Self::InternalTopic { .. } => "INTERNAL_TOPIC",
            Self::Request(_) => "INVALID_REQUEST",
            Self::Batch(_) => "INVALID_BATCH",
            Self::TooLarge { .. } => "BATCH_TOO_LARGE",
            Self::Producer { error, .. } => match error {
                ProducerError::Fenced { .. } => "PRODUCER_FENCED",
                ProducerError::OutOfOrder { .. } => "OUT_OF_ORDER_SEQUENCE",
                ProducerError::Duplicate { .. } => "DUPLICATE_SEQUENCE",
                ProducerError::Unknown { .. } => "UNKNOWN_PRODUCER",
            },
            Self::ForeignProducer { .. } => "UNKNOWN_PRODUCER",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::Full { .. } => "STORAGE_FULL",
            Self::OutOfFiles(_) => "STORAGE_ERROR",
            Self::Poisoned { .. } => "PARTITION_FAULTED",
            Self::Stopping => "SHUTTING_DOWN",
            Self::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Lookup(e) => e.facts(),
            Self::InternalTopic { topic } => vec![("topic", topic.to_string())],
            Self::TooLarge { topic, len, max } => vec![
                ("topic", topic.to_string()),
                ("len", len.to_string()),
                ("max", max.to_string()),
            ],
            Self::Producer {
                topic,
                partition,
                error,
            } => {
                let mut facts = vec![
                    ("topic", topic.to_string()),
                    ("partition", partition.to_string()),
                ];
                facts.extend(producer_facts(error));
                facts
            }
            Self::ForeignProducer { producer_id } => {
                vec![("producer_id", producer_id.to_string())]
            }
            Self::Overloaded { len, max, .. } => {
                vec![("len", len.to_string()), ("max", max.to_string())]
            }
            Self::Full { dir, needed, .. } => vec![
                ("dir", dir.display().to_string()),
                ("needed", needed.to_string()),
            ],
            Self::Poisoned {
                topic, partition, ..
            } => {
                vec![
                    ("topic", topic.to_string()),
                    ("partition", partition.to_string()),
                ]
            }
            Self::Request(_)
            | Self::Batch(_)
            | Self::OutOfFiles(_)
            | Self::Stopping
            | Self::OutcomeUnknown { .. } => Vec::new(),
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
            Self::Disk(_) | Self::Stopping => ErrorKind::Unavailable,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Lookup(e) => e.reason(),
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

/// Why topics were not changed or described.
#[derive(Clone, Debug, Error)]
pub enum TopicError {
    /// The change is refused.
    #[error(transparent)]
    Refused(#[from] tidelog_controller::TopicError),
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
            Self::Append(e) => e.reason(),
            Self::Storage(_) | Self::OutOfFiles(_) => "STORAGE_ERROR",
            Self::LimitReached { .. } => "LIMIT_REACHED",
        }
    }

    /// A limit is not passed by waiting.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::LimitReached { .. } => None,
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
            | Self::Storage(_)
            | Self::OutOfFiles(_) => Vec::new(),
            Self::Append(e) => e.facts(),
        }
    }
}

#[cfg(test)]
mod tests;
