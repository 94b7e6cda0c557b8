//! Keys of records: what they are about. All are of plain versions.

use tidelog_record::PartitionId;

use super::FormatError;
use super::wire::{Reader, Writer};

/// A key, without the number of its kind.
pub(super) trait Key: Sized {
    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError>;
    fn write(&self, w: &mut Writer) -> Result<(), FormatError>;
}

/// What a committed offset is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetKey {
    /// Name of the group.
    pub group: String,
    /// Name of the topic.
    pub topic: String,
    /// The partition of it; at most 2^31 - 1.
    pub partition: PartitionId,
}

impl Key for OffsetKey {
    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            group: r.string("group")?,
            topic: r.string("topic")?,
            partition: r.partition("partition")?,
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.string("group", &self.group)?;
        w.string("topic", &self.topic)?;
        w.partition("partition", self.partition)
    }
}

/// What a record of a whole group is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// Name of the group.
    pub group: String,
}

impl Key for GroupKey {
    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let group = r.string("group")?;
        Ok(Self { group })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.string("group", &self.group)
    }
}

/// What a record of one member is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    /// Name of the group.
    pub group: String,
    /// Name of the member.
    pub member: String,
}

impl Key for MemberKey {
    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            group: r.string("group")?,
            member: r.string("member")?,
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.string("group", &self.group)?;
        w.string("member", &self.member)
    }
}
