//! The value of a committed offset.

use tidelog_record::{LeaderEpoch, Offset, Timestamp, TopicId};

use super::FormatError;
use super::record::Value;
use super::wire::{Reader, Writer};

/// What an offset without a topic id has in its place.
const NO_TOPIC_ID: TopicId = TopicId::from_bytes([0; 16]);

/// An offset that a group has committed for a partition.
///
/// Written as Kafka does: version 4, or version 1 where it expires at a time of its own. Version 1 has
/// neither leader epoch nor topic id, so that those are lost then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommit {
    /// The next offset that the group reads.
    pub offset: Offset,
    /// The leader epoch of the last record that the group has read, if it told. Versions 3 and 4.
    pub leader_epoch: Option<LeaderEpoch>,
    /// What the client wants to have kept with it; at most 32,767 bytes.
    pub metadata: String,
    /// When it was committed.
    pub commit_timestamp: Timestamp,
    /// When it expires, if the client that committed it said so; [`Timestamp::NONE`] is read back as
    /// `None`. Version 1.
    pub expire_timestamp: Option<Timestamp>,
    /// The topic, if it was known by its id; 16 zeros are read back as `None`. Version 4.
    pub topic_id: Option<TopicId>,
}

impl Value for OffsetCommit {
    const VERSION_MAX: i16 = 4;
    const FLEXIBLE_FROM: i16 = 4;

    fn version(&self) -> i16 {
        if self.expire_timestamp.is_some() {
            1
        } else {
            4
        }
    }

    fn read(r: &mut Reader<'_>, version: i16) -> Result<Self, FormatError> {
        let offset = r.i64("offset")?;
        let offset = Offset::from_wire(offset)
            .ok_or_else(|| r.out_of_range("offset", offset, "0 to 2^63 - 1"))?;
        let leader_epoch = if version >= 3 {
            read_leader_epoch(r)?
        } else {
            None
        };
        let metadata = r.string("metadata")?;
        let commit_timestamp = Timestamp::from_millis(r.i64("commit_timestamp")?);
        let expire_timestamp = if version == 1 {
            Some(Timestamp::from_millis(r.i64("expire_timestamp")?))
                .filter(|&expires| expires != Timestamp::NONE)
        } else {
            None
        };
        let mut topic_id = None;
        r.tagged_fields(|tag, content| {
            if tag == 0 {
                topic_id = Some(content.topic_id("topic_id")?).filter(|&id| id != NO_TOPIC_ID);
            }
            Ok(tag == 0)
        })?;
        Ok(Self {
            offset,
            leader_epoch,
            metadata,
            commit_timestamp,
            expire_timestamp,
            topic_id,
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i64(self.offset.to_wire());
        if let Some(expires) = self.expire_timestamp {
            w.string("metadata", &self.metadata)?;
            w.i64(self.commit_timestamp.millis());
            w.i64(expires.millis());
            return Ok(());
        }
        w.i32(self.leader_epoch.map_or(-1, LeaderEpoch::to_wire));
        w.string("metadata", &self.metadata)?;
        w.i64(self.commit_timestamp.millis());
        match self.topic_id.filter(|&id| id != NO_TOPIC_ID) {
            Some(id) => w.tagged_field_0("topic_id", |w| {
                w.topic_id(id);
                Ok(())
            }),
            None => {
                w.no_tagged_fields();
                Ok(())
            }
        }
    }
}

fn read_leader_epoch(r: &mut Reader<'_>) -> Result<Option<LeaderEpoch>, FormatError> {
    let found = r.i32("leader_epoch")?;
    match LeaderEpoch::from_wire(found) {
        None if found != -1 => {
            Err(r.out_of_range("leader_epoch", found.into(), "-1 for none to 2^31 - 1"))
        }
        epoch => Ok(epoch),
    }
}
