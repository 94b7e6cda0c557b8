//! Errors of appends.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use tidelog_log::ProducerError;
use tidelog_record::{ProduceError, TopicName};

use super::{ErrorKind, Facts, LookupError, retry_after};

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
    /// The partition takes no more appends until the broker is started again. Nothing was written.
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

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Lookup(e) => e.retry_after(),
            _ => retry_after(self.kind()),
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
