//! The values of consumer groups (KIP-848), where the broker assigns. All have version 0, which is
//! flexible.

use bytes::Bytes;
use tidelog_record::Timestamp;

use super::record::Value;
use super::wire::{Reader, Writer};
use super::{AssignedPartitions, FormatError, MemberState, TopicPartitions};

/// The epoch of a consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupMetadata {
    /// Grows with every change of members, of what they subscribe to, or of those topics.
    pub epoch: i32,
    /// A hash of all topics that the group subscribes to; 0 where there is none.
    pub metadata_hash: i64,
}

/// A member of a consumer group, and what it subscribes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupMemberMetadata {
    /// Under which name it comes back, if it is a static member.
    pub instance_id: Option<String>,
    /// In which rack it is, if it told.
    pub rack_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it connected from.
    pub client_host: String,
    /// Names of the topics that it subscribes to.
    pub subscribed_topic_names: Vec<String>,
    /// The regular expression that it subscribes to.
    pub subscribed_topic_regex: Option<String>,
    /// How long it can take to give up partitions, in milliseconds; -1 where it did not tell.
    pub rebalance_timeout_ms: i32,
    /// The assignor of the broker that it asks for.
    pub server_assignor: Option<String>,
    /// What it told in the classic protocol; `None` where it speaks that of consumer groups.
    pub classic_member_metadata: Option<ClassicMemberMetadata>,
}

/// What a member of a consumer group that speaks the classic protocol told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassicMemberMetadata {
    /// How long it can be silent before it is taken for dead, in milliseconds.
    pub session_timeout_ms: i32,
    /// The protocols that it offers, the one it likes best first.
    pub supported_protocols: Vec<ClassicProtocol>,
}

/// A protocol that a member offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicProtocol {
    /// Its name.
    pub name: String,
    /// What the member tells for it, in the protocol's own format.
    pub metadata: Bytes,
}

/// For which epoch of a consumer group its target assignment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupTargetAssignmentMetadata {
    /// The epoch of the group.
    pub assignment_epoch: i32,
    /// When the assignment was made; 0 where it is not known.
    pub assignment_timestamp: Timestamp,
}

/// What a member of a consumer group is to have in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupTargetAssignmentMember {
    /// The partitions, by topic.
    pub topic_partitions: Vec<TopicPartitions>,
}

/// What a member of a consumer group has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupCurrentMemberAssignment {
    /// The epoch that its next heartbeat is to have.
    pub member_epoch: i32,
    /// The epoch before, which a heartbeat can have where the answer with the new one was lost.
    pub previous_member_epoch: i32,
    /// How far it is.
    pub state: MemberState,
    /// What it has.
    pub assigned_partitions: Vec<AssignedPartitions>,
    /// What it had and is still to give up.
    pub partitions_pending_revocation: Vec<AssignedPartitions>,
}

impl Value for ConsumerGroupMetadata {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let epoch = r.i32("epoch")?;
        let metadata_hash = read_i64_tag_0(r, "metadata_hash")?;
        Ok(Self {
            epoch,
            metadata_hash,
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i32(self.epoch);
        write_i64_tag_0(w, "metadata_hash", self.metadata_hash)
    }
}

impl Value for ConsumerGroupMemberMetadata {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let mut value = Self {
            instance_id: r.nullable_string("instance_id")?,
            rack_id: r.nullable_string("rack_id")?,
            client_id: r.string("client_id")?,
            client_host: r.string("client_host")?,
            subscribed_topic_names: r.array(TOPIC_NAMES, |r| r.string(TOPIC_NAMES))?,
            subscribed_topic_regex: r.nullable_string("subscribed_topic_regex")?,
            rebalance_timeout_ms: r.i32("rebalance_timeout_ms")?,
            server_assignor: r.nullable_string("server_assignor")?,
            // Without the tag it is there, with nothing in it: null has to be said.
            classic_member_metadata: Some(ClassicMemberMetadata::default()),
        };
        r.tagged_fields(|tag, content| {
            if tag == 0 {
                value.classic_member_metadata = if content.presence(CLASSIC)? {
                    Some(ClassicMemberMetadata::read(content)?)
                } else {
                    None
                };
            }
            Ok(tag == 0)
        })?;
        Ok(value)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.nullable_string("instance_id", self.instance_id.as_deref())?;
        w.nullable_string("rack_id", self.rack_id.as_deref())?;
        w.string("client_id", &self.client_id)?;
        w.string("client_host", &self.client_host)?;
        w.array(TOPIC_NAMES, &self.subscribed_topic_names, |w, name| {
            w.string(TOPIC_NAMES, name)
        })?;
        let regex = self.subscribed_topic_regex.as_deref();
        w.nullable_string("subscribed_topic_regex", regex)?;
        w.i32(self.rebalance_timeout_ms);
        w.nullable_string("server_assignor", self.server_assignor.as_deref())?;
        if self.classic_member_metadata == Some(ClassicMemberMetadata::default()) {
            w.no_tagged_fields();
            return Ok(());
        }
        w.tagged_field_0(CLASSIC, |w| {
            w.presence(self.classic_member_metadata.is_some());
            match &self.classic_member_metadata {
                Some(classic) => classic.write(w),
                None => Ok(()),
            }
        })
    }
}

const TOPIC_NAMES: &str = "subscribed_topic_names";
const CLASSIC: &str = "classic_member_metadata";
const PROTOCOLS: &str = "classic_member_metadata.supported_protocols";

impl ClassicMemberMetadata {
    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let metadata = Self {
            session_timeout_ms: r.i32("classic_member_metadata.session_timeout_ms")?,
            supported_protocols: r.array(PROTOCOLS, |r| {
                let protocol = ClassicProtocol {
                    name: r.string(PROTOCOLS)?,
                    metadata: r.bytes(PROTOCOLS)?,
                };
                r.no_tagged_fields()?;
                Ok(protocol)
            })?,
        };
        r.no_tagged_fields()?;
        Ok(metadata)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i32(self.session_timeout_ms);
        w.array(PROTOCOLS, &self.supported_protocols, |w, protocol| {
            w.string(PROTOCOLS, &protocol.name)?;
            w.bytes(PROTOCOLS, &protocol.metadata)?;
            w.no_tagged_fields();
            Ok(())
        })?;
        w.no_tagged_fields();
        Ok(())
    }
}

impl Value for ConsumerGroupTargetAssignmentMetadata {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let assignment_epoch = r.i32("assignment_epoch")?;
        let assigned_at = read_i64_tag_0(r, "assignment_timestamp")?;
        Ok(Self {
            assignment_epoch,
            assignment_timestamp: Timestamp::from_millis(assigned_at),
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i32(self.assignment_epoch);
        write_i64_tag_0(
            w,
            "assignment_timestamp",
            self.assignment_timestamp.millis(),
        )
    }
}

impl Value for ConsumerGroupTargetAssignmentMember {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let topic_partitions = r.array("topic_partitions", TopicPartitions::read)?;
        r.no_tagged_fields()?;
        Ok(Self { topic_partitions })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.array("topic_partitions", &self.topic_partitions, |w, topic| {
            topic.write(w)
        })?;
        w.no_tagged_fields();
        Ok(())
    }
}

impl Value for ConsumerGroupCurrentMemberAssignment {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let value = Self {
            member_epoch: r.i32("member_epoch")?,
            previous_member_epoch: r.i32("previous_member_epoch")?,
            state: MemberState::read(r)?,
            assigned_partitions: r.array(ASSIGNED, AssignedPartitions::read)?,
            partitions_pending_revocation: r.array(PENDING, AssignedPartitions::read)?,
        };
        r.no_tagged_fields()?;
        Ok(value)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i32(self.member_epoch);
        w.i32(self.previous_member_epoch);
        self.state.write(w);
        w.array(ASSIGNED, &self.assigned_partitions, |w, t| t.write(w))?;
        w.array(PENDING, &self.partitions_pending_revocation, |w, t| {
            t.write(w)
        })?;
        w.no_tagged_fields();
        Ok(())
    }
}

const ASSIGNED: &str = "assigned_partitions";
const PENDING: &str = "partitions_pending_revocation";

/// The tagged fields of a structure whose only one is a number with tag 0, which is 0 where it is not
/// there.
pub(super) fn read_i64_tag_0(r: &mut Reader<'_>, field: &'static str) -> Result<i64, FormatError> {
    let mut value = 0;
    r.tagged_fields(|tag, content| {
        if tag == 0 {
            value = content.i64(field)?;
        }
        Ok(tag == 0)
    })?;
    Ok(value)
}

/// Writes what [`read_i64_tag_0`] reads.
pub(super) fn write_i64_tag_0(
    w: &mut Writer,
    field: &'static str,
    value: i64,
) -> Result<(), FormatError> {
    if value == 0 {
        w.no_tagged_fields();
        return Ok(());
    }
    w.tagged_field_0(field, |w| {
        w.i64(value);
        Ok(())
    })
}
