//! A record with key and value, and its way into bytes and out of them.

use bytes::Bytes;

use super::keys::Key;
use super::wire::{Reader, Writer};
use super::{
    ConsumerGroupCurrentMemberAssignment, ConsumerGroupMemberMetadata, ConsumerGroupMetadata,
    ConsumerGroupTargetAssignmentMember, ConsumerGroupTargetAssignmentMetadata, FormatError,
    GroupKey, GroupMetadata, MemberKey, OffsetCommit, OffsetKey, RecordKind,
    ShareGroupCurrentMemberAssignment, ShareGroupMemberMetadata, ShareGroupMetadata,
    ShareGroupStatePartitionMetadata, ShareGroupTargetAssignmentMember,
    ShareGroupTargetAssignmentMetadata,
};

/// A record: what it is about, and what is said of that from now on. Without a value it deletes what
/// was said before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRecord {
    /// An offset that a group has committed.
    OffsetCommit(OffsetKey, Option<OffsetCommit>),
    /// A group of the classic protocol with its members.
    GroupMetadata(GroupKey, Option<GroupMetadata>),
    /// The epoch of a consumer group.
    ConsumerGroupMetadata(GroupKey, Option<ConsumerGroupMetadata>),
    /// A member of a consumer group, and what it subscribes to.
    ConsumerGroupMemberMetadata(MemberKey, Option<ConsumerGroupMemberMetadata>),
    /// For which epoch of a consumer group its target assignment is.
    ConsumerGroupTargetAssignmentMetadata(GroupKey, Option<ConsumerGroupTargetAssignmentMetadata>),
    /// What a member of a consumer group is to have in the end.
    ConsumerGroupTargetAssignmentMember(MemberKey, Option<ConsumerGroupTargetAssignmentMember>),
    /// What a member of a consumer group has now.
    ConsumerGroupCurrentMemberAssignment(MemberKey, Option<ConsumerGroupCurrentMemberAssignment>),
    /// A member of a share group, and what it subscribes to.
    ShareGroupMemberMetadata(MemberKey, Option<ShareGroupMemberMetadata>),
    /// The epoch of a share group.
    ShareGroupMetadata(GroupKey, Option<ShareGroupMetadata>),
    /// For which epoch of a share group its target assignment is.
    ShareGroupTargetAssignmentMetadata(GroupKey, Option<ShareGroupTargetAssignmentMetadata>),
    /// What a member of a share group is to have in the end.
    ShareGroupTargetAssignmentMember(MemberKey, Option<ShareGroupTargetAssignmentMember>),
    /// What a member of a share group has now.
    ShareGroupCurrentMemberAssignment(MemberKey, Option<ShareGroupCurrentMemberAssignment>),
    /// For which partitions a share group has state.
    ShareGroupStatePartitionMetadata(GroupKey, Option<ShareGroupStatePartitionMetadata>),
}

/// What [`GroupRecord::decode`] made of a record.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is made, and nearly always the large one"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A record with all that it says.
    Record(GroupRecord),
    /// A record whose kind has a name here, but whose contents nobody needs; they were not looked at.
    NotRead(RecordKind),
    /// A record of a kind that is not known here; it was not looked at.
    Unknown {
        /// The number of its kind.
        kind: i16,
    },
}

impl GroupRecord {
    /// Its kind.
    pub fn kind(&self) -> RecordKind {
        match self {
            Self::OffsetCommit(..) => RecordKind::OffsetCommit,
            Self::GroupMetadata(..) => RecordKind::GroupMetadata,
            Self::ConsumerGroupMetadata(..) => RecordKind::ConsumerGroupMetadata,
            Self::ConsumerGroupMemberMetadata(..) => RecordKind::ConsumerGroupMemberMetadata,
            Self::ConsumerGroupTargetAssignmentMetadata(..) => {
                RecordKind::ConsumerGroupTargetAssignmentMetadata
            }
            Self::ConsumerGroupTargetAssignmentMember(..) => {
                RecordKind::ConsumerGroupTargetAssignmentMember
            }
            Self::ConsumerGroupCurrentMemberAssignment(..) => {
                RecordKind::ConsumerGroupCurrentMemberAssignment
            }
            Self::ShareGroupMemberMetadata(..) => RecordKind::ShareGroupMemberMetadata,
            Self::ShareGroupMetadata(..) => RecordKind::ShareGroupMetadata,
            Self::ShareGroupTargetAssignmentMetadata(..) => {
                RecordKind::ShareGroupTargetAssignmentMetadata
            }
            Self::ShareGroupTargetAssignmentMember(..) => {
                RecordKind::ShareGroupTargetAssignmentMember
            }
            Self::ShareGroupCurrentMemberAssignment(..) => {
                RecordKind::ShareGroupCurrentMemberAssignment
            }
            Self::ShareGroupStatePartitionMetadata(..) => {
                RecordKind::ShareGroupStatePartitionMetadata
            }
        }
    }

    /// The key and the value as Kafka writes them; no value where it deletes.
    ///
    /// # Errors
    /// Texts longer than 32,767 bytes, partitions above 2^31 - 1, and epochs that are not as many as
    /// their partitions cannot be written.
    pub fn encode(&self) -> Result<(Bytes, Option<Bytes>), FormatError> {
        let kind = self.kind();
        match self {
            Self::OffsetCommit(key, value) => write(kind, key, value),
            Self::GroupMetadata(key, value) => write(kind, key, value),
            Self::ConsumerGroupMetadata(key, value) => write(kind, key, value),
            Self::ConsumerGroupMemberMetadata(key, value) => write(kind, key, value),
            Self::ConsumerGroupTargetAssignmentMetadata(key, value) => write(kind, key, value),
            Self::ConsumerGroupTargetAssignmentMember(key, value) => write(kind, key, value),
            Self::ConsumerGroupCurrentMemberAssignment(key, value) => write(kind, key, value),
            Self::ShareGroupMemberMetadata(key, value) => write(kind, key, value),
            Self::ShareGroupMetadata(key, value) => write(kind, key, value),
            Self::ShareGroupTargetAssignmentMetadata(key, value) => write(kind, key, value),
            Self::ShareGroupTargetAssignmentMember(key, value) => write(kind, key, value),
            Self::ShareGroupCurrentMemberAssignment(key, value) => write(kind, key, value),
            Self::ShareGroupStatePartitionMetadata(key, value) => write(kind, key, value),
        }
    }

    /// What the record of `key` and `value` says.
    ///
    /// # Errors
    /// The key has no kind, or a record of a kind that is read is not as its format has it, down to the
    /// last byte.
    pub fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Decoded, FormatError> {
        let Some((number, key)) = key.split_first_chunk() else {
            return Err(FormatError::NoKind { len: key.len() });
        };
        let number = i16::from_be_bytes(*number);
        let Some(kind) = RecordKind::from_number(number) else {
            return Ok(Decoded::Unknown { kind: number });
        };
        let bytes = EncodedRecord { kind, key, value };
        let record = match kind {
            RecordKind::OffsetCommit => bytes.read(Self::OffsetCommit),
            RecordKind::GroupMetadata => bytes.read(Self::GroupMetadata),
            RecordKind::ConsumerGroupMetadata => bytes.read(Self::ConsumerGroupMetadata),
            RecordKind::ConsumerGroupMemberMetadata => {
                bytes.read(Self::ConsumerGroupMemberMetadata)
            }
            RecordKind::ConsumerGroupTargetAssignmentMetadata => {
                bytes.read(Self::ConsumerGroupTargetAssignmentMetadata)
            }
            RecordKind::ConsumerGroupTargetAssignmentMember => {
                bytes.read(Self::ConsumerGroupTargetAssignmentMember)
            }
            RecordKind::ConsumerGroupCurrentMemberAssignment => {
                bytes.read(Self::ConsumerGroupCurrentMemberAssignment)
            }
            RecordKind::ShareGroupMemberMetadata => bytes.read(Self::ShareGroupMemberMetadata),
            RecordKind::ShareGroupMetadata => bytes.read(Self::ShareGroupMetadata),
            RecordKind::ShareGroupTargetAssignmentMetadata => {
                bytes.read(Self::ShareGroupTargetAssignmentMetadata)
            }
            RecordKind::ShareGroupTargetAssignmentMember => {
                bytes.read(Self::ShareGroupTargetAssignmentMember)
            }
            RecordKind::ShareGroupCurrentMemberAssignment => {
                bytes.read(Self::ShareGroupCurrentMemberAssignment)
            }
            RecordKind::ShareGroupStatePartitionMetadata => {
                bytes.read(Self::ShareGroupStatePartitionMetadata)
            }
            RecordKind::ConsumerGroupPartitionMetadata
            | RecordKind::ConsumerGroupRegularExpression => return Ok(Decoded::NotRead(kind)),
        };
        record.map(Decoded::Record)
    }
}

/// A value, without the number of its version.
pub(super) trait Value: Sized {
    /// The highest version that can be read; all below can too.
    const VERSION_MAX: i16 = 0;
    /// The first flexible version.
    const FLEXIBLE_FROM: i16 = 0;

    /// The version that it is written in.
    fn version(&self) -> i16 {
        0
    }

    /// Reads a value of `version`, up to the end of its tagged fields.
    fn read(r: &mut Reader<'_>, version: i16) -> Result<Self, FormatError>;

    /// Writes it in [`Value::version`].
    fn write(&self, w: &mut Writer) -> Result<(), FormatError>;
}

/// A record whose kind is known, still as bytes.
struct EncodedRecord<'a> {
    kind: RecordKind,
    /// What follows after the number of the kind.
    key: &'a [u8],
    value: Option<&'a [u8]>,
}

impl EncodedRecord<'_> {
    fn read<K: Key, V: Value>(
        &self,
        record: fn(K, Option<V>) -> GroupRecord,
    ) -> Result<GroupRecord, FormatError> {
        let mut r = Reader::new(self.kind, self.key);
        let key = K::read(&mut r)?;
        r.finish("key")?;
        let value = self.value.map(|bytes| self.read_value(bytes)).transpose()?;
        Ok(record(key, value))
    }

    fn read_value<V: Value>(&self, bytes: &[u8]) -> Result<V, FormatError> {
        let mut r = Reader::new(self.kind, bytes);
        let version = r.i16("version")?;
        if !(0..=V::VERSION_MAX).contains(&version) {
            return Err(FormatError::UnknownVersion {
                kind: self.kind,
                found: version,
                highest: V::VERSION_MAX,
            });
        }
        r.set_flexible(version >= V::FLEXIBLE_FROM);
        let value = V::read(&mut r, version)?;
        r.finish("value")?;
        Ok(value)
    }
}

fn write<K: Key, V: Value>(
    kind: RecordKind,
    key: &K,
    value: &Option<V>,
) -> Result<(Bytes, Option<Bytes>), FormatError> {
    let mut w = Writer::new(kind);
    w.i16(kind.number());
    key.write(&mut w)?;
    let value = value.as_ref().map(|value| write_value(kind, value));
    Ok((w.finish(), value.transpose()?))
}

fn write_value<V: Value>(kind: RecordKind, value: &V) -> Result<Bytes, FormatError> {
    let mut w = Writer::new(kind);
    let version = value.version();
    w.i16(version);
    w.set_flexible(version >= V::FLEXIBLE_FROM);
    value.write(&mut w)?;
    Ok(w.finish())
}
