//! Commands about topics.

use prost::Message;
use thiserror::Error;
use tidelog_proto::internal::v1 as wire;
use tidelog_record::TopicId;

use crate::command::ClusterCommand;
use crate::settings::TopicSettings;
use crate::topics::{Command, PARTITIONS_MAX};

/// Bytes of the metadata log that are no command this version can apply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Not a command at all, or one of a newer version.
    #[error("a record of the metadata log is no command this version knows")]
    Unknown,
    /// A field of a command is out of range.
    #[error("a command of the metadata log has a bad {0}")]
    Field(&'static str),
}

impl Command {
    /// The command as the value of a record.
    pub fn encode(&self) -> Vec<u8> {
        wire::MetadataCommand {
            command: Some(self.to_kind()),
        }
        .encode_to_vec()
    }

    pub(super) fn to_kind(&self) -> wire::metadata_command::Command {
        use wire::metadata_command::Command as Kind;
        match self {
            Self::Create(topic) => Kind::CreateTopic(wire::CreateTopic {
                name: topic.name.to_string(),
                topic_id: topic.id.to_bytes().to_vec().into(),
                partitions: topic.partitions,
                settings: topic.settings.set().clone(),
                replication_factor: 0,
                placement: Vec::new(),
            }),
            Self::Alter { id, settings } => Kind::AlterTopic(wire::AlterTopic {
                topic_id: id.to_bytes().to_vec().into(),
                settings: settings.set().clone(),
            }),
            Self::AddPartitions { id, total } => Kind::AddPartitions(wire::AddPartitions {
                topic_id: id.to_bytes().to_vec().into(),
                total: *total,
                placement: Vec::new(),
            }),
            Self::Delete { id } => Kind::DeleteTopic(wire::DeleteTopic {
                topic_id: id.to_bytes().to_vec().into(),
            }),
            Self::ReserveProducerIds { next } => {
                Kind::ReserveProducerIds(wire::ReserveProducerIds {
                    next: next.cast_unsigned(),
                })
            }
        }
    }

    /// The command in a record's value.
    ///
    /// # Errors
    /// [`CommandError`]: the log was damaged, or written by a newer version, or is that of a cluster.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        match ClusterCommand::decode(bytes)? {
            ClusterCommand::Topics(command) => Ok(command),
            _ => Err(CommandError::Unknown),
        }
    }
}

pub(super) fn topic_id(bytes: &[u8]) -> Result<TopicId, CommandError> {
    bytes
        .try_into()
        .map(TopicId::from_bytes)
        .map_err(|_| CommandError::Field("topic id"))
}

pub(super) fn partitions(count: u32) -> Result<u32, CommandError> {
    if (1..=PARTITIONS_MAX).contains(&count) {
        Ok(count)
    } else {
        Err(CommandError::Field("number of partitions"))
    }
}

pub(super) fn settings(
    set: std::collections::BTreeMap<String, String>,
) -> Result<TopicSettings, CommandError> {
    TopicSettings::new(set).map_err(|_| CommandError::Field("setting"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidelog_record::TopicName;

    use super::*;
    use crate::Topic;

    fn all() -> Vec<Command> {
        let id = TopicId::from_bytes(*b"0123456789abcdef");
        let set = [("retention.ms".to_owned(), "5".to_owned())].into();
        let settings = TopicSettings::new(set).unwrap();
        let topic = Topic {
            name: TopicName::new("quakes").unwrap(),
            id,
            partitions: 6,
            settings: settings.clone(),
        };
        vec![
            Command::Create(topic),
            Command::Alter { id, settings },
            Command::AddPartitions { id, total: 9 },
            Command::Delete { id },
            Command::ReserveProducerIds { next: 1000 },
        ]
    }

    #[test]
    fn the_bytes_never_change() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let id = hex(b"0123456789abcdef");
        let setting = format!("0a0c{}120135", hex(b"retention.ms"));
        let name = hex(b"quakes");
        let golden = [
            format!("0a2f0a06{name}1210{id}18062211{setting}"),
            format!("12250a10{id}1211{setting}"),
            format!("1a140a10{id}1009"),
            format!("22120a10{id}"),
            "2a0308e807".to_owned(),
        ];
        for (command, golden) in all().iter().zip(golden) {
            assert_eq!(hex(&command.encode()), golden);
            assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(command));
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        assert_eq!(Command::decode(b""), Err(CommandError::Unknown));
        assert_eq!(Command::decode(b"\xff\xff"), Err(CommandError::Unknown));
        let no_id = [0x22, 0x02, 0x0a, 0x00];
        assert_eq!(
            Command::decode(&no_id),
            Err(CommandError::Field("topic id"))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Command::decode(&bytes));
        }
    }
}
