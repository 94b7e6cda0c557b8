//! The one place where errors become `google.rpc.Status`, for calls and inside of streams alike.
//!
//! Every status carries `ErrorInfo{reason, domain: "tidelog", metadata: the facts}`; one that may
//! pass by itself carries `RetryInfo`, one about a field `BadRequest`, one about a limit of the
//! broker `QuotaFailure`. The catalogue of reasons is `docs/errors.md`.

use std::time::Duration;

use prost::Message;
use tidelog_broker::{ErrorKind, Facts, Metrics};
use tidelog_proto::ERROR_DOMAIN;
use tidelog_proto::codec::TOO_MANY_ENTRIES;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// An error as gRPC tells it, not yet in its final form.
#[derive(Clone, Debug)]
pub(crate) struct Failure(Box<Parts>);

/// In a box, since results carry it around.
#[derive(Clone, Debug)]
struct Parts {
    code: Code,
    reason: &'static str,
    message: String,
    facts: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    /// The field of the request that is wrong.
    field: Option<String>,
    /// Which limit was met.
    quota: Option<String>,
}

/// What is wrong with a request, or with its moment, as only the listener sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// A field that must be there is not.
    #[error("{field} is missing: {what}")]
    Missing {
        /// Its path in the request.
        field: &'static str,
        /// What must be there.
        what: &'static str,
    },
    /// A field has a value that is not allowed.
    #[error("{field} cannot be {value}: allowed is {allowed}")]
    Value {
        /// Its path in the request.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A list has too many entries.
    #[error("{field} has {found} entries; allowed are at most {max}")]
    TooMany {
        /// Its path in the request.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// All lists of the request together have too many entries.
    #[error(
        "the request has {found} entries or more: records, headers, settings and partitions \
         together; allowed are at most {max}. Send fewer in one request"
    )]
    TooManyEntries {
        /// How many were found when counting ended.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// The bytes are not the message they should be.
    #[error("the request is not a valid message: {what}")]
    Malformed {
        /// What the decoder says.
        what: String,
    },
    /// The request is larger than the limit.
    #[error(
        "the request of {size} bytes is above the broker's limit of {limit} (request_bytes_max)"
    )]
    TooLarge {
        /// Its size in bytes, as its frame gives it.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// All connections together are sending too much at once.
    #[error(
        "the broker is receiving as much as it may at a time: {limit} bytes of requests that are \
         incomplete, or wait decoded for room (receiving_bytes_max)"
    )]
    Receiving {
        /// The limit.
        limit: usize,
    },
    /// One connection is sending too much at once.
    #[error(
        "the connection is sending as much as it may at a time: {limit} bytes of requests that are \
         incomplete, or wait decoded for room (connection_receiving_bytes_max)"
    )]
    ConnectionReceiving {
        /// The limit.
        limit: usize,
    },
    /// Reads and look-ups of many partitions hold too much.
    #[error(
        "reads and look-ups of many partitions hold as much as they may at a time: {limit} bytes of \
         one connection (connection_unsent_bytes_max), half of unsent_bytes_max of all. Name fewer \
         partitions in one call, or make fewer calls at a time"
    )]
    Asked {
        /// The limit of one connection.
        limit: usize,
    },
    /// A message was begun, and then nothing came.
    #[error(
        "the request is incomplete, and nothing of it came for {timeout_ms} ms \
         (receive_timeout_ms)"
    )]
    Stalled {
        /// How long was waited.
        timeout_ms: u64,
    },
    /// A call with one request was sent another.
    #[error("the call takes one message, and there is a second")]
    SecondMessage,
    /// The caller's deadline passed.
    #[error("the deadline of {timeout_ms} ms passed before there was an answer")]
    DeadlinePassed {
        /// What the caller gave.
        timeout_ms: u64,
    },
    /// There is no such service or method.
    #[error("there is no method {path:?}")]
    UnknownMethod {
        /// What was called.
        path: String,
    },
    /// A client called at the cluster port.
    #[error(
        "this is the cluster port of a broker, for other brokers; clients call its gRPC port \
         (grpc_addr)"
    )]
    ClusterPort,
    /// The broker is not open, as it does not know yet to which cluster it belongs.
    #[error(
        "broker {node_id} waits for other brokers, without which there is no cluster: {waits_for}"
    )]
    Founding {
        /// The broker.
        node_id: u32,
        /// Whom it waits for, and why.
        waits_for: String,
    },
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Stopping,
}

impl RequestError {
    /// The status of one that is met where no broker is open that would count it.
    pub(crate) fn uncounted(self) -> Status {
        Failure::from(self).uncounted_status()
    }
}

/// When to try again a broker that waits for others, which asks them once a second.
const RETRY_FOUNDED: Duration = Duration::from_secs(1);
/// When to try again a broker that is stopping: a restart is on its way, or another broker.
const RETRY_STOPPED: Duration = Duration::from_secs(1);
const RETRY_RECEIVING: Duration = Duration::from_millis(200);

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        let mut failure = Parts {
            code: Code::InvalidArgument,
            reason: "INVALID_REQUEST",
            message,
            facts: Vec::new(),
            retry_after: None,
            field: None,
            quota: None,
        };
        match error {
            RequestError::Missing { field, .. } => failure.field = Some(field.to_owned()),
            RequestError::Value {
                field,
                value,
                allowed,
            } => {
                failure.field = Some(field.to_owned());
                failure.facts = vec![("value", value), ("allowed", allowed.to_owned())];
            }
            RequestError::TooMany { field, found, max } => {
                failure.field = Some(field.to_owned());
                failure.facts = vec![("found", found.to_string()), ("max", max.to_string())];
            }
            RequestError::TooManyEntries { found, max } => {
                failure.facts = vec![("found", found.to_string()), ("max", max.to_string())];
            }
            RequestError::Malformed { .. } | RequestError::SecondMessage => {}
            RequestError::TooLarge { size, limit } => {
                failure.code = Code::ResourceExhausted;
                failure.reason = "REQUEST_TOO_LARGE";
                failure.facts = vec![("size", size.to_string()), ("limit", limit.to_string())];
                failure.quota = Some("request_bytes_max".to_owned());
            }
            RequestError::Receiving { limit } => {
                failure.code = Code::ResourceExhausted;
                failure.reason = "OVERLOADED";
                failure.facts = vec![("limit", limit.to_string())];
                failure.retry_after = Some(RETRY_RECEIVING);
                failure.quota = Some("receiving_bytes_max".to_owned());
            }
            RequestError::ConnectionReceiving { limit } => {
                failure.code = Code::ResourceExhausted;
                failure.reason = "OVERLOADED";
                failure.facts = vec![("limit", limit.to_string())];
                failure.retry_after = Some(RETRY_RECEIVING);
                failure.quota = Some("connection_receiving_bytes_max".to_owned());
            }
            RequestError::Asked { limit } => {
                failure.code = Code::ResourceExhausted;
                failure.reason = "OVERLOADED";
                failure.facts = vec![("limit", limit.to_string())];
                failure.retry_after = Some(RETRY_RECEIVING);
                failure.quota = Some("connection_unsent_bytes_max".to_owned());
            }
            RequestError::DeadlinePassed { timeout_ms } | RequestError::Stalled { timeout_ms } => {
                failure.code = Code::DeadlineExceeded;
                failure.reason = "DEADLINE_EXCEEDED";
                failure.facts = vec![("timeout_ms", timeout_ms.to_string())];
            }
            RequestError::UnknownMethod { path } => {
                failure.code = Code::Unimplemented;
                failure.reason = "UNKNOWN_METHOD";
                failure.facts = vec![("method", path)];
            }
            RequestError::ClusterPort => {
                failure.code = Code::Unimplemented;
                failure.reason = "CLUSTER_PORT";
            }
            RequestError::Founding { .. } => {
                failure.code = Code::Unavailable;
                failure.reason = "FOUNDING";
                failure.retry_after = Some(RETRY_FOUNDED);
            }
            RequestError::Stopping => {
                failure.code = Code::Unavailable;
                failure.reason = "SHUTTING_DOWN";
                failure.retry_after = Some(RETRY_STOPPED);
            }
        }
        Self(Box::new(failure))
    }
}

/// The failure that an error of the broker is.
pub(crate) fn failure(error: &impl Facts) -> Failure {
    let kind = error.kind();
    let reason = error.reason();
    let facts = error.facts();
    Failure(Box::new(Parts {
        code: code(kind),
        reason,
        message: error.to_string(),
        quota: (kind == ErrorKind::Exhausted).then(|| quota(reason, &facts)),
        facts,
        retry_after: error.retry_after(),
        field: (kind == ErrorKind::Invalid)
            .then(|| field(reason))
            .flatten()
            .map(str::to_owned),
    }))
}

/// What each kind of error is in gRPC.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Precondition => Code::FailedPrecondition,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unknown => Code::Unknown,
        ErrorKind::DataLoss => Code::DataLoss,
    }
}

/// Which field of a request a reason is about, where all requests that meet it have the same.
fn field(reason: &str) -> Option<&'static str> {
    match reason {
        "INVALID_TOPIC_NAME" | "INVALID_NAME" => Some("name"),
        "INVALID_SETTING" => Some("settings"),
        "INVALID_PARTITIONS" => Some("partitions"),
        "INVALID_BATCH" | "BATCH_TOO_LARGE" => Some("batch"),
        _ => None,
    }
}

/// Which limit a reason is about: the setting's name where it has one.
fn quota(reason: &str, facts: &[(&'static str, String)]) -> String {
    let named = facts.iter().find(|(name, _)| *name == "limit");
    match (reason, named) {
        ("LIMIT_REACHED", Some((_, setting))) => setting.clone(),
        ("OVERLOADED", _) => "in_flight_bytes_max".to_owned(),
        ("STORAGE_FULL" | "STORAGE_ERROR", _) => "disk".to_owned(),
        _ => "broker".to_owned(),
    }
}

impl Failure {
    /// The stable name of the error.
    pub(crate) fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// The same, about this field of the request.
    pub(crate) fn in_field(mut self, field: impl Into<String>) -> Self {
        if let Some(old) = &mut self.0.field {
            let field = field.into();
            // What is wrong begins with the field's name where it was found here.
            if let Some(rest) = self.0.message.strip_prefix(old.as_str())
                && (rest.starts_with(" is missing: ") || rest.starts_with(" cannot be "))
            {
                self.0.message = format!("{field}{rest}");
            }
            *old = field;
        }
        self
    }

    /// The same, with the field it is about inside of `outer`, a field of a larger request.
    pub(crate) fn inside(mut self, outer: &str) -> Self {
        if let Some(field) = &mut self.0.field {
            *field = format!("{outer}.{field}");
        }
        self
    }

    /// The status a call ends with. Counts it.
    pub(crate) fn status(&self, metrics: &Metrics) -> Status {
        metrics.count_error(self.0.reason);
        self.uncounted_status()
    }

    /// The status inside of an answer or a stream. Counts it.
    pub(crate) fn message(&self, metrics: &Metrics) -> tonic_types::Status {
        let status = self.status(metrics);
        // The details of a status are the encoded message.
        tonic_types::Status::decode(status.details()).expect("it was encoded a moment ago")
    }

    fn uncounted_status(&self) -> Status {
        let mut details = ErrorDetails::new();
        let facts = self
            .0
            .facts
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        details.set_error_info(
            self.0.reason,
            ERROR_DOMAIN,
            facts.collect::<std::collections::HashMap<_, _>>(),
        );
        if self.0.retry_after.is_some() {
            details.set_retry_info(self.0.retry_after);
        }
        if let Some(field) = &self.0.field {
            details.add_bad_request_violation(field.clone(), self.0.message.clone());
        }
        if let Some(quota) = &self.0.quota {
            details.add_quota_failure_violation(quota.clone(), self.0.message.clone());
        }
        Status::with_error_details(self.0.code, self.0.message.clone(), details)
    }
}

/// What a status that did not come from here means: the transport's own words, sorted.
///
/// tonic answers a frame above the limit, a message it cannot decode and an unknown method with
/// statuses of its own, which have no reason. `None` when there is nothing to put better.
pub(crate) fn sort_foreign(status: &Status, path: &str) -> Option<Failure> {
    if !status.details().is_empty() {
        return None;
    }
    let message = status.message();
    match status.code() {
        Code::InvalidArgument if message.starts_with(TOO_MANY_ENTRIES) => {
            let [found, max] = numbers(message)?;
            Some(RequestError::TooManyEntries { found, max }.into())
        }
        Code::OutOfRange => {
            let [size, limit] = numbers(message)?;
            Some(RequestError::TooLarge { size, limit }.into())
        }
        Code::Unimplemented if message.is_empty() => Some(
            RequestError::UnknownMethod {
                path: path.to_owned(),
            }
            .into(),
        ),
        Code::Internal | Code::Unimplemented => Some(
            RequestError::Malformed {
                what: message.to_owned(),
            }
            .into(),
        ),
        _ => None,
    }
}

/// The two numbers in tonic's words about a message that is too long.
fn numbers(message: &str) -> Option<[usize; 2]> {
    let mut numbers = message
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(size)), Some(Ok(limit)), None) => Some([size, limit]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tidelog_broker::LookupError;

    use super::*;

    #[test]
    fn a_status_tells_reason_facts_and_what_to_do() {
        let error = LookupError::TopicNotFound {
            topic: "t".to_owned(),
        };
        let status = failure(&error).uncounted_status();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), error.to_string());
        let info = status.get_details_error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("TOPIC_NOT_FOUND", "tidelog")
        );
        assert_eq!(info.metadata["topic"], "t");
        assert!(status.get_details_retry_info().is_none());

        let status = Failure::from(RequestError::Stopping).uncounted_status();
        assert_eq!(
            status.get_details_retry_info().unwrap().retry_delay,
            Some(RETRY_STOPPED)
        );

        let missing = RequestError::Missing {
            field: "batch",
            what: "a batch",
        };
        let violations = Failure::from(missing)
            .inside("append")
            .uncounted_status()
            .get_details_bad_request()
            .unwrap()
            .field_violations;
        assert_eq!(violations[0].field, "append.batch");

        let status = Failure::from(RequestError::Receiving { limit: 7 }).uncounted_status();
        let quota = status.get_details_quota_failure().unwrap();
        assert_eq!(quota.violations[0].subject, "receiving_bytes_max");
    }

    #[test]
    fn the_transports_own_words_are_sorted() {
        let sorted =
            |status: &Status| sort_foreign(status, "/a/b").map(|f| (f.0.reason, f.0.facts));
        let long = Status::out_of_range(
            "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes",
        );
        assert_eq!(
            sorted(&long),
            Some((
                "REQUEST_TOO_LARGE",
                vec![("size", "9".into()), ("limit", "8".into())]
            ))
        );
        let many = Status::invalid_argument(format!("{TOO_MANY_ENTRIES}: 9, allowed are 8"));
        assert_eq!(
            sorted(&many),
            Some((
                "INVALID_REQUEST",
                vec![("found", "9".into()), ("max", "8".into())]
            ))
        );
        let unknown = Status::unimplemented("");
        assert_eq!(
            sorted(&unknown),
            Some(("UNKNOWN_METHOD", vec![("method", "/a/b".into())]))
        );
        assert_eq!(
            sorted(&Status::internal("bad")),
            Some(("INVALID_REQUEST", Vec::new()))
        );
        let own = Failure::from(RequestError::Stopping).uncounted_status();
        assert_eq!(sorted(&own), None);
        assert_eq!(sorted(&Status::out_of_range("other")), None);
    }
}
