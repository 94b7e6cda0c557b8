//! The segment header: the content of the first entry of every segment file.

use tidelog_record::{
    BATCH_HEADER_LEN, LeaderEpoch, Offset, PartitionId, RaftIndex, Timestamp, TopicId,
};

use crate::internal::INTERNAL_PREFIX_LEN;
use crate::wire::Fields;

/// The version of the whole on-disk format that this build writes.
pub const FORMAT_VERSION: u16 = 1;
const LEN: usize = 162;
/// What a compacted segment adds.
const COMPACTED_LEN: usize = LEN + 28;
const FLAGS_AT: usize = 102;
const FLAG_COMPACTED: u32 = 1;
/// The length of the first entry of a segment file that is appended to: the segment header as a
/// record batch.
pub(crate) const SEGMENT_HEADER_LEN: usize = BATCH_HEADER_LEN + INTERNAL_PREFIX_LEN + LEN;

/// Whose log this is: what a file must carry to belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster that made it.
    pub cluster_id: [u8; 16],
    /// The topic, for as long as it exists.
    pub topic_id: TopicId,
    /// Which of the topic's partitions.
    pub partition: PartitionId,
    /// Raised when a group is founded anew after a loss; fences what came before.
    pub incarnation: u32,
}

/// What is known of the segment before this one, as it was when it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreviousSegment {
    /// Its sequence number.
    pub sequence: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// The Raft index after its last entry.
    pub end_index: RaftIndex,
    /// The leader epoch of its last entry.
    pub last_epoch: LeaderEpoch,
    /// CRC-32 over its batch headers, in order: see `FORMAT.md`, "Chain".
    pub chain: u32,
}

/// What a compacted segment says of itself: nothing behind it vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactedSegment {
    /// The sequence number of the last of the segments that it stands for; its own is that of the
    /// first.
    pub last_sequence: u64,
    /// The length of its file, in bytes.
    pub len: u64,
    /// CRC-32 over the batch headers behind the segment header, in order.
    pub chain: u32,
    /// The offset after the last record that the segments had.
    pub end_offset: Offset,
    /// The Raft index after the last entry that the segments had.
    pub end_index: RaftIndex,
    /// Below it no key has two records here or in the segments before.
    pub clean_end: Offset,
}

/// The first entry of a segment: what the file is, and what it follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Feature bits that a version which does not know them may ignore.
    pub compatible_features: u64,
    /// Feature bits that a version which does not know them must refuse.
    pub incompatible_features: u64,
    /// Whose log it is.
    pub identity: LogIdentity,
    /// Counts the segments of the log, from 1, without a gap.
    pub sequence: u64,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The Raft index of its first entry after this header.
    pub base_index: RaftIndex,
    /// The leader epoch in force at its start.
    pub epoch: LeaderEpoch,
    /// The log start offset when the segment was made.
    pub log_start: Offset,
    /// When it was made, by the broker's clock.
    pub created_at: Timestamp,
    /// The segment before; `None` for the first of a log.
    pub previous: Option<PreviousSegment>,
    /// `None` for a segment as it was appended.
    pub compacted: Option<CompactedSegment>,
}

/// The length of the first entry of a compacted segment file.
pub(crate) const COMPACTED_HEADER_LEN: usize =
    BATCH_HEADER_LEN + INTERNAL_PREFIX_LEN + COMPACTED_LEN;

/// Where the flags stand in the file of a segment, that of "compacted" among them.
pub(crate) const COMPACTED_FLAGS_AT: usize = BATCH_HEADER_LEN + INTERNAL_PREFIX_LEN + FLAGS_AT;

impl SegmentHeader {
    /// The sequence number of the last segment that it stands for: its own, unless it is compacted.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.compacted
            .map_or(self.sequence, |compacted| compacted.last_sequence)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(COMPACTED_LEN);
        bytes.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.compatible_features.to_be_bytes());
        bytes.extend_from_slice(&self.incompatible_features.to_be_bytes());
        bytes.extend_from_slice(&self.identity.cluster_id);
        bytes.extend_from_slice(&self.identity.topic_id.to_bytes());
        bytes.extend_from_slice(&self.identity.partition.get().to_be_bytes());
        bytes.extend_from_slice(&self.identity.incarnation.to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.base_offset.get().to_be_bytes());
        bytes.extend_from_slice(&self.base_index.get().to_be_bytes());
        bytes.extend_from_slice(&self.epoch.get().to_be_bytes());
        bytes.extend_from_slice(&self.log_start.get().to_be_bytes());
        bytes.extend_from_slice(&self.created_at.millis().to_be_bytes());
        match &self.compacted {
            None => bytes.extend_from_slice(&[0; 4 + 8 + 8]),
            Some(compacted) => {
                bytes.extend_from_slice(&FLAG_COMPACTED.to_be_bytes());
                bytes.extend_from_slice(&compacted.end_offset.get().to_be_bytes());
                bytes.extend_from_slice(&compacted.end_index.get().to_be_bytes());
            }
        }
        let previous = self.previous.unwrap_or(PreviousSegment {
            sequence: 0,
            len: 0,
            end_offset: Offset::ZERO,
            end_index: RaftIndex::ZERO,
            last_epoch: LeaderEpoch::ZERO,
            chain: 0,
        });
        bytes.extend_from_slice(&previous.sequence.to_be_bytes());
        bytes.extend_from_slice(&previous.len.to_be_bytes());
        bytes.extend_from_slice(&previous.end_offset.get().to_be_bytes());
        bytes.extend_from_slice(&previous.end_index.get().to_be_bytes());
        bytes.extend_from_slice(&previous.last_epoch.get().to_be_bytes());
        bytes.extend_from_slice(&previous.chain.to_be_bytes());
        debug_assert_eq!(bytes.len(), LEN);
        if let Some(compacted) = &self.compacted {
            bytes.extend_from_slice(&compacted.last_sequence.to_be_bytes());
            bytes.extend_from_slice(&compacted.len.to_be_bytes());
            bytes.extend_from_slice(&compacted.chain.to_be_bytes());
            bytes.extend_from_slice(&compacted.clean_end.get().to_be_bytes());
        }
        bytes
    }

    pub(crate) fn decode(content: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Fields::new(content);
        let version = fields.u16().ok_or("segment header is too short")?;
        if version != FORMAT_VERSION {
            return Err("segment header has a format version this build does not know");
        }
        let flags = content.get(FLAGS_AT..FLAGS_AT + 4);
        let len = match flags {
            Some(flags) if flags == FLAG_COMPACTED.to_be_bytes() => COMPACTED_LEN,
            _ => LEN,
        };
        if content.len() != len {
            return Err("segment header has a wrong length");
        }
        Self::decode_fields(&mut fields)
            .ok_or("segment header has a field out of range")
            .and_then(|header| match header.incompatible_features {
                0 => Ok(header),
                _ => Err("segment header names features this build does not know"),
            })
    }

    fn decode_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let compatible_features = fields.u64()?;
        let incompatible_features = fields.u64()?;
        let identity = LogIdentity {
            cluster_id: fields.array()?,
            topic_id: TopicId::from_bytes(fields.array()?),
            partition: PartitionId::new(fields.u32()?),
            incarnation: fields.u32()?,
        };
        let sequence = fields.u64().filter(|sequence| *sequence > 0)?;
        let base_offset = Offset::new(fields.u64()?)?;
        let base_index = RaftIndex::new(fields.u64()?);
        let epoch = LeaderEpoch::new(fields.u32()?)?;
        let log_start = Offset::new(fields.u64()?)?;
        let created_at = Timestamp::from_millis(fields.i64()?);
        let flags = fields.u32()?;
        let (end_offset, end_index) = (Offset::new(fields.u64()?)?, RaftIndex::new(fields.u64()?));
        let previous = PreviousSegment {
            sequence: fields.u64()?,
            len: fields.u64()?,
            end_offset: Offset::new(fields.u64()?)?,
            end_index: RaftIndex::new(fields.u64()?),
            last_epoch: LeaderEpoch::new(fields.u32()?)?,
            chain: fields.u32()?,
        };
        let compacted = match flags {
            0 if (end_offset, end_index) == (Offset::ZERO, RaftIndex::ZERO) => None,
            FLAG_COMPACTED => Some(CompactedSegment {
                last_sequence: fields.u64()?,
                len: fields.u64()?,
                chain: fields.u32()?,
                end_offset,
                end_index,
                clean_end: Offset::new(fields.u64()?)?,
            }),
            _ => return None,
        };
        let in_order = compacted.is_none_or(|compacted| {
            compacted.last_sequence >= sequence
                && compacted.end_offset >= base_offset
                && compacted.end_index >= base_index
                && compacted.clean_end <= end_offset
        });
        let follows = previous.sequence == sequence - 1;
        (in_order && follows).then_some(Self {
            compatible_features,
            incompatible_features,
            identity,
            sequence,
            base_offset,
            base_index,
            epoch,
            log_start,
            created_at,
            previous: (previous.sequence > 0).then_some(previous),
            compacted,
        })
    }
}
