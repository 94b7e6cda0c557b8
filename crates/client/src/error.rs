//! Errors, sorted by what the caller can do about them.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tidelog_record::{BatchError, BuildError, PartitionId, TopicName};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::BrokerAddressesError;

/// The reason with which a broker refuses what only the leader of a partition can do.
const NOT_LEADER: &str = "NOT_LEADER";
const NOT_COORDINATOR: &str = "NOT_COORDINATOR";
const COORDINATOR_LOADING: &str = "COORDINATOR_LOADING";

/// The reason with which a broker says that it does not know whether it stored something.
const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";

/// The reason with which the cluster port of a broker answers to clients.
const CLUSTER_PORT: &str = "CLUSTER_PORT";

/// Why something was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The list of brokers cannot be read.
    #[error(transparent)]
    Addresses(#[from] BrokerAddressesError),
    /// No broker could be connected to.
    #[error("no broker can be reached at {brokers}: {cause}")]
    Unreachable {
        /// The addresses that were tried.
        brokers: String,
        /// What happened with the last of them.
        cause: String,
    },
    /// What listens at the address is not the gRPC of a broker. Nothing was done.
    #[error("what listens at {address} does not speak gRPC, but {found}")]
    NotGrpc {
        /// The address.
        address: String,
        /// What it speaks.
        found: &'static str,
    },
    /// What listens at the address is the port over which brokers speak to each other. Nothing was done.
    #[error("what listens at {address} is the cluster port of a broker, and not its gRPC port")]
    ClusterPort {
        /// The address.
        address: String,
    },
    /// The connection broke, or something between here and the broker answered for it. What was
    /// asked may have been done.
    #[error("the connection to the broker broke: {cause}")]
    Disconnected {
        /// What the transport said.
        cause: String,
    },
    /// No answer in time. What was asked may have been done.
    #[error("no answer to {operation} within {after:?}")]
    TimedOut {
        /// What was asked.
        operation: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The broker refused or failed.
    #[error("{0}")]
    Broker(Box<BrokerError>),
    /// The record was not acknowledged in time, although it was sent: it may be stored or not.
    #[error(
        "OUTCOME UNKNOWN: a record for partition {partition} of topic {topic} was sent {attempts} \
         times, but not acknowledged within {after:?}; it may be stored or not{}",
        Last(last)
    )]
    OutcomeUnknown {
        /// Of the record.
        topic: TopicName,
        /// Of the record.
        partition: PartitionId,
        /// The delivery timeout.
        after: Duration,
        /// How often its batch was sent.
        attempts: u32,
        /// The last error met.
        last: Option<Box<ClientError>>,
    },
    /// The record was not stored: it could not be sent in time, or each time it was refused for
    /// the moment.
    #[error(
        "a record for partition {partition} of topic {topic} could not be delivered within \
         {after:?} and is not stored{}",
        Last(last)
    )]
    NotDelivered {
        /// Of the record.
        topic: TopicName,
        /// Of the record.
        partition: PartitionId,
        /// The delivery timeout.
        after: Duration,
        /// The last error met.
        last: Option<Box<ClientError>>,
    },
    /// The producer's buffer stayed full: records come faster than the broker takes them.
    #[error(
        "the producer's buffer of {buffer_bytes_max} bytes had no room for the record within \
         {after:?}"
    )]
    BufferFull {
        /// The bound of the buffer.
        buffer_bytes_max: usize,
        /// The delivery timeout.
        after: Duration,
    },
    /// The record is larger than what can be stored.
    #[error("record of {size} bytes is above the limit of {limit} ({limit_name})")]
    RecordTooLarge {
        /// Bytes of the record in a batch of its own.
        size: usize,
        /// The most there may be.
        limit: usize,
        /// Whose limit it is.
        limit_name: &'static str,
    },
    /// The record cannot be encoded.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// What was read cannot be decoded: it was damaged on disk or on its way.
    #[error("damaged data in partition {partition} of topic {topic} at offset {offset}: {source}")]
    Damaged {
        /// Of the batch.
        topic: TopicName,
        /// Of the batch.
        partition: PartitionId,
        /// The next offset that was wanted.
        offset: u64,
        /// What is wrong.
        source: BatchError,
    },
    /// A partition cannot be read on; the others of the reader go on.
    #[error("partition {partition} cannot be read on from offset {next_offset}: {source}")]
    Partition {
        /// The partition.
        partition: PartitionId,
        /// Where reading stopped.
        next_offset: u64,
        /// Why.
        source: Box<ClientError>,
    },
    /// No offset was looked up in a partition.
    #[error("cannot look up offsets of partition {partition}: {source}")]
    NotLookedUp {
        /// The partition.
        partition: PartitionId,
        /// Why.
        source: Box<ClientError>,
    },
    /// No records of a partition were deleted.
    #[error("cannot delete records of partition {partition}: {source}")]
    NotDeleted {
        /// The partition.
        partition: PartitionId,
        /// Why.
        source: Box<ClientError>,
    },
    /// The broker answered something that the API does not allow.
    #[error("the broker's answer breaks the protocol: {what}")]
    Protocol {
        /// What is wrong with it.
        what: String,
    },
    /// The producer was closed before.
    #[error("the producer is closed")]
    Closed,
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// What was named does not exist, or was refused: ask for something else.
    Refused,
    /// Nobody answered, or not in time: look at the network and the broker.
    Unavailable,
    /// Data is damaged: look at the disk.
    Damaged,
    /// Anything else.
    Failed,
}

/// An error as the broker told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    /// The gRPC code.
    pub code: Code,
    /// The reason of the catalogue in `docs/errors.md`; empty when there was none.
    pub reason: String,
    /// What happened, in English.
    pub message: String,
    /// The facts of the error by name, such as `requested` and `limit`.
    pub facts: BTreeMap<String, String>,
    /// After how long to try again; only with errors that may pass by themselves, of which it is
    /// sure that nothing was done.
    pub retry_after: Option<Duration>,
    /// Where to read on: descriptions and links.
    pub help: Vec<(String, String)>,
}

/// Who leads a partition instead of the broker that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotLeader {
    /// `None` when the broker does not know.
    pub(crate) leader: Option<u32>,
    /// Where that one is reached.
    pub(crate) address: Option<String>,
    pub(crate) epoch: u32,
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        Ok(())
    }
}

impl ClientError {
    /// What the caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Broker(error) => class_of(error.code),
            Self::RecordTooLarge { .. } | Self::Build(_) => ErrorClass::Refused,
            Self::Unreachable { .. }
            | Self::NotGrpc { .. }
            | Self::ClusterPort { .. }
            | Self::Disconnected { .. }
            | Self::TimedOut { .. }
            | Self::NotDelivered { .. }
            | Self::BufferFull { .. } => ErrorClass::Unavailable,
            Self::OutcomeUnknown { last, .. } => match last.as_ref().map(|last| last.class()) {
                Some(ErrorClass::Damaged) => ErrorClass::Damaged,
                _ => ErrorClass::Unavailable,
            },
            Self::Damaged { .. } => ErrorClass::Damaged,
            Self::Partition { source, .. }
            | Self::NotLookedUp { source, .. }
            | Self::NotDeleted { source, .. } => source.class(),
            Self::Addresses(_) | Self::Protocol { .. } | Self::Closed => ErrorClass::Failed,
        }
    }

    /// Whether the same may succeed when tried again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Broker(error) => {
                error.retry_after.is_some()
                    || error.reason == OUTCOME_UNKNOWN
                    || matches!(error.code, Code::Unavailable | Code::DeadlineExceeded)
            }
            Self::Unreachable { .. } | Self::Disconnected { .. } | Self::TimedOut { .. } => true,
            Self::Partition { source, .. }
            | Self::NotLookedUp { source, .. }
            | Self::NotDeleted { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    /// Whether what was asked may have been done in spite of the error.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Disconnected { .. } | Self::TimedOut { .. } | Self::OutcomeUnknown { .. } => true,
            Self::Broker(error) => {
                let is_open = matches!(
                    error.code,
                    Code::DeadlineExceeded | Code::Unknown | Code::Internal | Code::Cancelled
                );
                error.reason == OUTCOME_UNKNOWN || (is_open && error.retry_after.is_none())
            }
            _ => false,
        }
    }

    /// Whether the broker says that what was named does not exist.
    pub fn is_not_found(&self) -> bool {
        self.broker()
            .is_some_and(|error| error.code == Code::NotFound)
    }

    /// The broker's own words, where it spoke.
    pub fn broker(&self) -> Option<&BrokerError> {
        match self {
            Self::Broker(error) => Some(error),
            Self::Partition { source, .. }
            | Self::NotLookedUp { source, .. }
            | Self::NotDeleted { source, .. } => source.broker(),
            Self::OutcomeUnknown {
                last: Some(last), ..
            }
            | Self::NotDelivered {
                last: Some(last), ..
            } => last.broker(),
            _ => None,
        }
    }

    /// What a broker said that does not lead the partition.
    pub(crate) fn not_leader(&self) -> Option<NotLeader> {
        let says_so =
            |error: &&BrokerError| [NOT_LEADER, NOT_COORDINATOR].contains(&error.reason.as_str());
        let error = self.broker().filter(says_so)?;
        let number = |name| error.facts.get(name).and_then(|fact| fact.parse().ok());
        Some(NotLeader {
            leader: number("leader"),
            address: error.facts.get("leader_address").cloned(),
            epoch: number("leader_epoch").unwrap_or(0),
        })
    }

    /// Whether the coordinator of a group has just begun to lead, and does not know the group yet.
    pub(crate) fn is_loading(&self) -> bool {
        self.broker()
            .is_some_and(|error| error.reason == COORDINATOR_LOADING)
    }

    /// Whether no broker that serves clients is at the address, so that nothing was done.
    pub(crate) fn is_wrong_address(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::NotGrpc { .. } | Self::ClusterPort { .. }
        )
    }

    /// Whether the cluster port of a broker has answered.
    pub(crate) fn is_of_cluster_port(&self) -> bool {
        self.broker()
            .is_some_and(|error| error.reason == CLUSTER_PORT)
    }

    /// How long the broker asked to wait before the next try.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.broker().and_then(|error| error.retry_after)
    }

    /// The error that a call or a stream ended with.
    pub(crate) fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        if details.error_info().is_none() {
            if let Some(cause) = transport_cause(status) {
                return Self::Disconnected { cause };
            }
            if status.code() == Code::Cancelled && status.message() == "Timeout expired" {
                return Self::Disconnected {
                    cause: "the deadline passed".to_owned(),
                };
            }
        }
        Self::from_parts(status.code(), status.message(), &details)
    }

    /// An error that came as a message inside a stream or an answer.
    pub(crate) fn from_message(error: &tonic_types::Status) -> Self {
        use tonic_types::RpcStatusExt as _;
        let code = Code::from_i32(error.code);
        Self::from_parts(code, &error.message, &error.get_error_details())
    }

    fn from_parts(code: Code, message: &str, details: &ErrorDetails) -> Self {
        let info = details.error_info();
        let message = if message.is_empty() {
            code.description()
        } else {
            message
        };
        Self::Broker(Box::new(BrokerError {
            code,
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            message: message.to_owned(),
            facts: info
                .map(|info| info.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            help: details
                .help()
                .map(|help| {
                    help.links
                        .iter()
                        .map(|link| (link.description.clone(), link.url.clone()))
                        .collect()
                })
                .unwrap_or_default(),
        }))
    }
}

fn class_of(code: Code) -> ErrorClass {
    match code {
        Code::NotFound
        | Code::AlreadyExists
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::ResourceExhausted
        | Code::Aborted => ErrorClass::Refused,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => ErrorClass::Unavailable,
        Code::DataLoss => ErrorClass::Damaged,
        Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal => ErrorClass::Failed,
    }
}

/// What the transport says, when the status was made here and not by a broker.
fn transport_cause(status: &Status) -> Option<String> {
    let broke = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted
    );
    let mut source = status.source()?;
    if !broke {
        return None;
    }
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    Some(source.to_string())
}

/// Whether the status says that there was no connection to send the request over: surely nothing
/// was done.
pub(crate) fn is_connect_failure(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The innermost cause of an error of the transport: the others say only "transport error".
pub(crate) fn root_cause(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The last error, as the end of a sentence.
struct Last<'a>(&'a Option<Box<ClientError>>);

impl fmt::Display for Last<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(last) => write!(f, " (last error: {last})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn status(code: Code, reason: &str, retry: Option<Duration>) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "tidelog", [("limit".to_owned(), "10".to_owned())]);
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        details.add_help_link("what to do", "docs/errors.md");
        Status::with_error_details(code, "went wrong", details)
    }

    #[test]
    fn statuses_and_messages_decode_alike() {
        let retry = Some(Duration::from_millis(250));
        let status = status(Code::ResourceExhausted, "OVERLOADED", retry);
        let message = tonic_types::Status::decode(status.details()).expect("it was encoded");
        for error in [
            ClientError::from_status(&status),
            ClientError::from_message(&message),
        ] {
            let broker = error.broker().expect("the broker spoke");
            assert_eq!(broker.reason, "OVERLOADED");
            assert_eq!(broker.facts["limit"], "10");
            assert_eq!(broker.retry_after, retry);
            assert_eq!(
                broker.help,
                [("what to do".to_owned(), "docs/errors.md".to_owned())]
            );
            assert!(error.is_retryable() && !error.is_outcome_unknown());
            assert_eq!(error.to_string(), "went wrong (OVERLOADED)");
        }
    }

    #[test]
    fn codes_are_sorted() {
        let class = |code| ClientError::from_status(&status(code, "X", None)).class();
        assert_eq!(class(Code::NotFound), ErrorClass::Refused);
        assert_eq!(class(Code::OutOfRange), ErrorClass::Refused);
        assert_eq!(class(Code::Unavailable), ErrorClass::Unavailable);
        assert_eq!(class(Code::DeadlineExceeded), ErrorClass::Unavailable);
        assert_eq!(class(Code::DataLoss), ErrorClass::Damaged);
        assert_eq!(class(Code::Internal), ErrorClass::Failed);
    }

    #[test]
    fn refusals_are_final_unless_the_broker_says_when_to_retry() {
        let refused = ClientError::from_status(&status(Code::ResourceExhausted, "X", None));
        assert!(!refused.is_retryable());
        let unavailable = ClientError::from_status(&status(Code::Unavailable, "X", None));
        assert!(unavailable.is_retryable());
    }
}
