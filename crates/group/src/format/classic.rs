//! The value of a group of the classic protocol, where members choose among themselves who assigns.

use bytes::Bytes;
use tidelog_record::Timestamp;

use super::FormatError;
use super::record::Value;
use super::wire::{Reader, Writer};

/// A group of the classic protocol after a rebalance, with its members; an empty one has none.
///
/// Written in version 3, as Kafka does, which can read 4 too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetadata {
    /// What its members speak among themselves, such as `consumer`; empty where none ever joined.
    pub protocol_type: String,
    /// How many rebalances there were.
    pub generation: i32,
    /// The protocol that was chosen, which names the assignor of consumers; `None` in an empty group.
    pub protocol: Option<String>,
    /// Name of the member that assigns; `None` in an empty group.
    pub leader: Option<String>,
    /// When the group came into its state; -1 on the wire where it is not known. From version 2 on.
    pub current_state_timestamp: Option<Timestamp>,
    /// Its members.
    pub members: Vec<ClassicMember>,
}

/// A member of a group of the classic protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicMember {
    /// Its name.
    pub member_id: String,
    /// Under which name it comes back, if it is a static member. From version 3 on.
    pub group_instance_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it connected from.
    pub client_host: String,
    /// How long it can take to join again in a rebalance, in milliseconds. Version 0 has none; there
    /// the session timeout is read in its place, as Kafka does.
    pub rebalance_timeout_ms: i32,
    /// How long it can be silent before it is taken for dead, in milliseconds.
    pub session_timeout_ms: i32,
    /// What it told about itself for the protocol that was chosen, in that protocol's own format.
    pub subscription: Bytes,
    /// What it was assigned, in that protocol's own format.
    pub assignment: Bytes,
}

const VERSION_WRITTEN: i16 = 3;

impl Value for GroupMetadata {
    const VERSION_MAX: i16 = 4;
    const FLEXIBLE_FROM: i16 = 4;

    fn version(&self) -> i16 {
        VERSION_WRITTEN
    }

    fn read(r: &mut Reader<'_>, version: i16) -> Result<Self, FormatError> {
        let value = Self {
            protocol_type: r.string("protocol_type")?,
            generation: r.i32("generation")?,
            protocol: r.nullable_string("protocol")?,
            leader: r.nullable_string("leader")?,
            current_state_timestamp: if version >= 2 {
                Some(Timestamp::from_millis(r.i64("current_state_timestamp")?))
                    .filter(|&since| since != Timestamp::NONE)
            } else {
                None
            },
            members: r.array("members", |r| ClassicMember::read(r, version))?,
        };
        r.no_tagged_fields()?;
        Ok(value)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        let since = self.current_state_timestamp.unwrap_or(Timestamp::NONE);
        w.string("protocol_type", &self.protocol_type)?;
        w.i32(self.generation);
        w.nullable_string("protocol", self.protocol.as_deref())?;
        w.nullable_string("leader", self.leader.as_deref())?;
        w.i64(since.millis());
        w.array("members", &self.members, |w, member| member.write(w))
    }
}

impl ClassicMember {
    fn read(r: &mut Reader<'_>, version: i16) -> Result<Self, FormatError> {
        let member_id = r.string("members.member_id")?;
        let group_instance_id = if version >= 3 {
            r.nullable_string("members.group_instance_id")?
        } else {
            None
        };
        let client_id = r.string("members.client_id")?;
        let client_host = r.string("members.client_host")?;
        let rebalance_timeout_ms = if version >= 1 {
            Some(r.i32("members.rebalance_timeout_ms")?).filter(|&timeout| timeout != -1)
        } else {
            None
        };
        let session_timeout_ms = r.i32("members.session_timeout_ms")?;
        let member = Self {
            member_id,
            group_instance_id,
            client_id,
            client_host,
            rebalance_timeout_ms: rebalance_timeout_ms.unwrap_or(session_timeout_ms),
            session_timeout_ms,
            subscription: r.bytes("members.subscription")?,
            assignment: r.bytes("members.assignment")?,
        };
        r.no_tagged_fields()?;
        Ok(member)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.string("members.member_id", &self.member_id)?;
        w.nullable_string(
            "members.group_instance_id",
            self.group_instance_id.as_deref(),
        )?;
        w.string("members.client_id", &self.client_id)?;
        w.string("members.client_host", &self.client_host)?;
        w.i32(self.rebalance_timeout_ms);
        w.i32(self.session_timeout_ms);
        w.bytes("members.subscription", &self.subscription)?;
        w.bytes("members.assignment", &self.assignment)
    }
}
