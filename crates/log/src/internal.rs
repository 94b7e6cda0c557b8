//! Internal entries: what Raft and the log itself write between record batches.
//!
//! Each is a valid record batch with the control bit, no records and a last offset delta of -1, so
//! one parser walks a segment. It takes a Raft index (the segment header does not) but no offset;
//! reads skip it. The layout is in `FORMAT.md`.

use bytes::Bytes;
use thiserror::Error;
use tidelog_record::{
    Attributes, BATCH_HEADER_LEN, BATCH_PREFIX_LEN, BatchHeader, LeaderEpoch, Offset, RaftIndex,
    crc32c,
};

use crate::header::SegmentHeader;
use crate::wire::Fields;

/// The length of what comes before the content, from the end of the batch header.
pub(crate) const INTERNAL_PREFIX_LEN: usize = 28;
/// The longest content this version writes or reads.
pub(crate) const INTERNAL_CONTENT_MAX: usize = 4096;
/// The longest internal entry.
pub(crate) const INTERNAL_LEN_MAX: usize =
    BATCH_HEADER_LEN + INTERNAL_PREFIX_LEN + INTERNAL_CONTENT_MAX;

const VERSION: u8 = 1;
const FLAG_MUST_UNDERSTAND: u8 = 1;

/// What an internal entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InternalKind {
    /// The first entry of every segment file.
    SegmentHeader(Box<SegmentHeader>),
    /// The empty entry a new leader writes; it begins a leader epoch.
    RaftEmpty,
    /// A change of the group's members, as Raft encodes it.
    RaftConfChange(Bytes),
    /// Nothing below this offset is read again.
    LogStart(Offset),
    /// A kind this version does not know, and need not.
    Skippable(u8),
}

/// One internal entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalEntry {
    /// Its place among the Raft entries; zero for a segment header, which takes none.
    pub index: RaftIndex,
    /// The leader epoch that wrote it.
    pub epoch: LeaderEpoch,
    /// The offset that the next record will get.
    pub next_offset: Offset,
    /// What it says.
    pub kind: InternalKind,
}

/// Why bytes are not an internal entry this version can use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InternalError {
    /// The body is too short or too long for its kind, or reserved bits are set.
    #[error("internal entry is malformed: {0}")]
    Malformed(&'static str),
    /// It must be understood and is not: the data was written by a newer version.
    #[error(
        "internal entry of kind {kind}, version {version}, must be understood and is not known; a newer version of Tidelog wrote it"
    )]
    Unknown {
        /// The kind's number.
        kind: u8,
        /// The version of the kind.
        version: u8,
    },
}

impl InternalEntry {
    /// The entry as a record batch.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, must_understand, content) = match &self.kind {
            InternalKind::SegmentHeader(header) => (1, true, header.encode()),
            InternalKind::RaftEmpty => (2, true, Vec::new()),
            InternalKind::RaftConfChange(change) => (3, true, change.to_vec()),
            InternalKind::LogStart(offset) => (4, true, offset.get().to_be_bytes().to_vec()),
            InternalKind::Skippable(kind) => (*kind, false, Vec::new()),
        };
        assert!(
            content.len() <= INTERNAL_CONTENT_MAX,
            "content of {} bytes",
            content.len()
        );

        let len = BATCH_HEADER_LEN + INTERNAL_PREFIX_LEN + content.len();
        let mut header = BatchHeader {
            base_offset: self.next_offset.to_wire(),
            batch_length: i32::try_from(len - BATCH_PREFIX_LEN).expect("at most a few KiB"),
            leader_epoch: self.epoch.to_wire(),
            crc: 0,
            attributes: Attributes::default().with_control(true),
            last_offset_delta: -1,
            base_timestamp: -1,
            max_timestamp: -1,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: 0,
        };
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&[
            kind,
            VERSION,
            if must_understand {
                FLAG_MUST_UNDERSTAND
            } else {
                0
            },
            0,
        ]);
        bytes.extend_from_slice(&self.index.get().to_be_bytes());
        bytes.extend_from_slice(&u64::from(self.epoch.get()).to_be_bytes());
        bytes.extend_from_slice(&self.next_offset.get().to_be_bytes());
        bytes.extend_from_slice(&content);
        header.crc = crc32c(&[&bytes[21..]]);
        bytes[..BATCH_HEADER_LEN].copy_from_slice(&header.encode());
        bytes
    }

    /// The entry in `body`, which follows the batch header `header`, whose CRC was checked.
    pub fn decode(header: &BatchHeader, body: &[u8]) -> Result<Self, InternalError> {
        use InternalError::Malformed;
        if header.record_count != 0 || header.last_offset_delta != -1 {
            return Err(Malformed("it has records"));
        }
        let mut fields = Fields::new(body);
        let short = Malformed("it is too short");
        let kind = fields.u8().ok_or(short.clone())?;
        let version = fields.u8().ok_or(short.clone())?;
        let flags = fields.u8().ok_or(short.clone())?;
        let reserved = fields.u8().ok_or(short.clone())?;
        let index = RaftIndex::new(fields.u64().ok_or(short.clone())?);
        let term = fields.u64().ok_or(short.clone())?;
        let next_offset = fields.u64().ok_or(short)?;
        if flags & !FLAG_MUST_UNDERSTAND != 0 || reserved != 0 {
            return Err(Malformed("reserved bits are set"));
        }
        let epoch = LeaderEpoch::from_wire(header.leader_epoch)
            .filter(|epoch| u64::from(epoch.get()) == term)
            .ok_or(Malformed("its term and its leader epoch differ"))?;
        let next_offset = Offset::new(next_offset)
            .filter(|offset| offset.to_wire() == header.base_offset)
            .ok_or(Malformed("its next offset and its base offset differ"))?;

        let content = fields.rest();
        let known = match (kind, version) {
            (1, VERSION) => {
                let header = SegmentHeader::decode(content).map_err(Malformed)?;
                Some(InternalKind::SegmentHeader(Box::new(header)))
            }
            (2, VERSION) if content.is_empty() => Some(InternalKind::RaftEmpty),
            (2, VERSION) => return Err(Malformed("an empty entry has content")),
            (3, VERSION) => Some(InternalKind::RaftConfChange(Bytes::copy_from_slice(
                content,
            ))),
            (4, VERSION) => {
                let offset = content
                    .try_into()
                    .ok()
                    .map(u64::from_be_bytes)
                    .and_then(Offset::new);
                Some(InternalKind::LogStart(
                    offset.ok_or(Malformed("a log start is 8 bytes"))?,
                ))
            }
            _ => None,
        };
        let kind = match known {
            Some(kind) => kind,
            None if flags & FLAG_MUST_UNDERSTAND != 0 => {
                return Err(InternalError::Unknown { kind, version });
            }
            None => InternalKind::Skippable(kind),
        };
        Ok(Self {
            index,
            epoch,
            next_offset,
            kind,
        })
    }
}
