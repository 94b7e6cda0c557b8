//! How a command fails: an exit code, a message, and what to do next.

use std::fmt::Write as _;
use std::process::ExitCode;

use tidelog_client::{ClientError, ErrorClass, TopicName};

/// Stands in a hint for the topic until it is known. No topic can have this in its name.
pub(crate) const TOPIC: &str = "<topic>";

/// The exit codes, which scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Anything that has no code of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// What was named does not exist, or was refused.
    Refused = 3,
    /// No broker answered, or not in time.
    Unavailable = 4,
    /// Stored data is damaged.
    Damaged = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        let code = match exit {
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::Unavailable => 4,
            Exit::Damaged => 5,
        };
        Self::from(code)
    }
}

/// Why a command did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    /// The next step.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// A failure without a code of its own.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, with what it was about in front.
    #[must_use]
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same, with the topic's name where the next step left it out: not every error names it.
    #[must_use]
    pub(crate) fn of_topic(mut self, topic: &TopicName) -> Self {
        self.hint = self.hint.map(|hint| hint.replace(TOPIC, topic.as_str()));
        self
    }

    /// What is printed.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}\n", self.message);
        if let Some(hint) = &self.hint {
            writeln!(text, "  {hint}").expect("writing to a String does not fail");
        }
        text
    }

    pub(crate) fn print(&self) {
        let text = self.text();
        say!("{}", text.trim_end_matches('\n'));
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match error.class() {
            ErrorClass::Refused => Exit::Refused,
            ErrorClass::Unavailable => Exit::Unavailable,
            ErrorClass::Damaged => Exit::Damaged,
            ErrorClass::Failed => Exit::Failed,
        };
        Self {
            exit,
            message: error.to_string(),
            hint: next_step(&error),
        }
    }
}

/// What to do about an error.
fn next_step(error: &ClientError) -> Option<String> {
    if let ClientError::Unreachable { .. } = error {
        return Some(
            "start one with: tidelog serve, three with: tidelog dev; or name others with --broker \
             or TIDELOG_BROKER"
                .into(),
        );
    }
    if let ClientError::NotGrpc { .. } = error {
        return Some(
            "is this the gRPC address (grpc_addr, 9400 by default), not the HTTP one (http_addr, \
             9401)?"
                .into(),
        );
    }
    if let ClientError::ClusterPort { .. } = error {
        return Some(
            "give the broker's gRPC address: grpc_addr, port 9400 by default; cluster_addr is for \
             other brokers"
                .into(),
        );
    }
    if let ClientError::Disconnected { .. } | ClientError::TimedOut { .. } = error {
        return Some(
            "see whether the broker runs, and whether --broker names its gRPC address (grpc_addr, \
             9400 by default)"
                .into(),
        );
    }
    if let ClientError::OutcomeUnknown { .. } = error {
        return Some("look whether it is there before sending it again".into());
    }
    if let ClientError::RecordTooLarge { limit_name, .. } = error
        && limit_name.contains("max.message.bytes")
    {
        return Some(format!(
            "raise it with: tidelog topic alter {TOPIC} -c max.message.bytes=N; or try --compression"
        ));
    }
    if let ClientError::Damaged { .. } = error {
        return Some("the broker's log and disk tell more; read on behind it with --from".into());
    }
    if let ClientError::NotDelivered {
        last: Some(last), ..
    } = error
        && last.broker().is_none()
    {
        return next_step(last);
    }
    let broker = error.broker()?;
    let topic = broker.facts.get("topic").map_or(TOPIC, String::as_str);
    match broker.reason.as_str() {
        "TOPIC_NOT_FOUND" => Some(format!("create it with: tidelog topic create {topic}")),
        "TOPIC_EXISTS" => Some(format!("look at it with: tidelog topic describe {topic}")),
        "PARTITION_NOT_FOUND" => Some(format!(
            "add some with: tidelog topic add-partitions {topic} --partitions N"
        )),
        "LIMIT_REACHED" => {
            let limit = broker.facts.get("limit").map_or("it", String::as_str);
            Some(format!(
                "delete topics that are not needed, or start the broker with a larger {limit}"
            ))
        }
        "TOO_FEW_BROKERS" => Some(
            "see which there are with: tidelog cluster brokers; or ask for fewer with --replicas N"
                .into(),
        ),
        "BROKER_NOT_FOUND" | "BROKER_UNAVAILABLE" | "INVALID_REPLICAS" => {
            Some("see which there are with: tidelog cluster brokers".into())
        }
        "RECOVERY_REFUSED" => Some(
            "see which brokers are heard with: tidelog cluster status; at each that runs".into(),
        ),
        "BROKER_REFUSED" => Some("see how it is with: tidelog cluster status".into()),
        "REASSIGNMENT_REFUSED" => Some(format!(
            "see where it is with: tidelog cluster partitions {topic}"
        )),
        "FOUNDING" => Some(
            "start those brokers with the same --peers, or see why they are not reached".into(),
        ),
        "NOT_LEADER" => Some("see what is wrong with: tidelog cluster status".into()),
        "INTERNAL_TOPIC" => Some("use another topic; if this one is there, it can be read".into()),
        "OFFSET_OUT_OF_RANGE" => Some(format!("see what there is with: tidelog offsets {topic}")),
        // One of several faults with this reason, and the only one that the command line can mend.
        "INVALID_BATCH" if broker.message.contains("it has no key") => {
            Some("give records keys with --key-delimiter, --key-field or --key".into())
        }
        "BATCH_TOO_LARGE" => Some(format!(
            "raise the limit with: tidelog topic alter {topic} -c max.message.bytes=N"
        )),
        "PARTITION_FAULTED" | "DATA_DAMAGED" => Some(format!(
            "see which with: tidelog topic describe {topic}; and the broker's log"
        )),
        _ => {
            let (description, url) = broker.help.first()?;
            Some(format!("{description}: {url}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_what_to_do_next() {
        let unreachable = ClientError::Unreachable {
            brokers: "127.0.0.1:9400".to_owned(),
            cause: "refused".to_owned(),
        };
        let failure = Failure::from(unreachable);
        assert_eq!(failure.exit, Exit::Unavailable);
        assert_eq!(
            failure.text(),
            "error: no broker can be reached at 127.0.0.1:9400: refused\n  start one with: tidelog \
             serve, three with: tidelog dev; or name others with --broker or TIDELOG_BROKER\n"
        );
        // A topic may be called like whatever a hint says.
        let failure = Failure::failed("it broke")
            .hint(format!("TOPIC: see {TOPIC}"))
            .about("line 3")
            .of_topic(&TopicName::new("MY_TOPIC").unwrap());
        assert_eq!(
            failure.text(),
            "error: line 3: it broke\n  TOPIC: see MY_TOPIC\n"
        );
    }

    #[test]
    fn limits_are_refusals() {
        let error = ClientError::RecordTooLarge {
            size: 2000,
            limit: 1000,
            limit_name: "the topic's max.message.bytes",
        };
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.message.contains("2000 bytes") && failure.message.contains("1000"));
        assert!(failure.hint.unwrap().contains("topic alter"));
    }
}
