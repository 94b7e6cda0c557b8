//! What the records of consumer groups and of share groups have in common: which partitions are whose.

use tidelog_record::{PartitionId, TopicId};

use super::FormatError;
use super::wire::{Reader, Writer};

/// Partitions of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPartitions {
    /// The topic.
    pub topic_id: TopicId,
    /// The partitions of it; each at most 2^31 - 1.
    pub partitions: Vec<PartitionId>,
}

/// Partitions of a topic, and since when they are a member's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedPartitions {
    /// The topic.
    pub topic_id: TopicId,
    /// The partitions of it; each at most 2^31 - 1.
    pub partitions: Vec<PartitionId>,
    /// The epochs of the member in which it got them, one for each; none at all where they are not
    /// known, as in what older brokers wrote.
    pub assignment_epochs: Vec<i32>,
}

/// How far a member is on its way from what it has to what it is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// 0: it has all that it is to have in its epoch.
    Stable,
    /// 1: it still has partitions that it is to give up.
    UnrevokedPartitions,
    /// 2: it waits for partitions that others are to give up.
    UnreleasedPartitions,
    /// 127, and what every other number is read as.
    Unknown,
}

impl MemberState {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(match r.i8("state")? {
            0 => Self::Stable,
            1 => Self::UnrevokedPartitions,
            2 => Self::UnreleasedPartitions,
            _ => Self::Unknown,
        })
    }

    pub(super) fn write(self, w: &mut Writer) {
        w.i8(match self {
            Self::Stable => 0,
            Self::UnrevokedPartitions => 1,
            Self::UnreleasedPartitions => 2,
            Self::Unknown => 127,
        });
    }
}

const PARTITIONS: &str = "topics.partitions";
const EPOCHS: &str = "topics.assignment_epochs";
const ONE_FOR_EACH: &str = "one for each partition, or none";

pub(super) fn read_partitions(r: &mut Reader<'_>) -> Result<Vec<PartitionId>, FormatError> {
    r.array(PARTITIONS, |r| r.partition(PARTITIONS))
}

pub(super) fn write_partitions(
    w: &mut Writer,
    partitions: &[PartitionId],
) -> Result<(), FormatError> {
    w.array(PARTITIONS, partitions, |w, &partition| {
        w.partition(PARTITIONS, partition)
    })
}

impl TopicPartitions {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let topic = Self {
            topic_id: r.topic_id("topics.topic_id")?,
            partitions: read_partitions(r)?,
        };
        r.no_tagged_fields()?;
        Ok(topic)
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.topic_id(self.topic_id);
        write_partitions(w, &self.partitions)?;
        w.no_tagged_fields();
        Ok(())
    }
}

impl AssignedPartitions {
    /// Whether there are as many epochs as there are to be.
    fn is_complete(&self) -> bool {
        self.assignment_epochs.is_empty() || self.assignment_epochs.len() == self.partitions.len()
    }

    /// How many epochs there are, for an error.
    fn epoch_count(&self) -> i64 {
        i64::try_from(self.assignment_epochs.len()).unwrap_or(i64::MAX)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let topic_id = r.topic_id("topics.topic_id")?;
        let partitions = read_partitions(r)?;
        let mut assignment_epochs = Vec::new();
        r.tagged_fields(|tag, content| {
            if tag == 0 {
                // Null says the same as none.
                assignment_epochs = content
                    .nullable_array(EPOCHS, |r| r.i32(EPOCHS))?
                    .unwrap_or_default();
            }
            Ok(tag == 0)
        })?;
        let topic = Self {
            topic_id,
            partitions,
            assignment_epochs,
        };
        if !topic.is_complete() {
            return Err(r.out_of_range(EPOCHS, topic.epoch_count(), ONE_FOR_EACH));
        }
        Ok(topic)
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        if !self.is_complete() {
            return Err(FormatError::OutOfRange {
                kind: w.kind(),
                field: EPOCHS,
                found: self.epoch_count(),
                allowed: ONE_FOR_EACH,
            });
        }
        w.topic_id(self.topic_id);
        write_partitions(w, &self.partitions)?;
        if self.assignment_epochs.is_empty() {
            w.no_tagged_fields();
            return Ok(());
        }
        w.tagged_field_0(EPOCHS, |w| {
            w.array(EPOCHS, &self.assignment_epochs, |w, &epoch| {
                w.i32(epoch);
                Ok(())
            })
        })
    }
}
