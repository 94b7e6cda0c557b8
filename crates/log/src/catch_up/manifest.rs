//! What a replica has to fetch: the list of files, and what each is checked against.
//!
//! The layout is in `FORMAT.md`, "Manifest of a copy".

use bytes::Bytes;
use thiserror::Error;
use tidelog_record::{Offset, PartitionId, RaftIndex, TopicId};

use crate::epochs;
use crate::header::{LogIdentity, SEGMENT_HEADER_LEN};
use crate::open::INITIAL_INDEX;
use crate::producers::SNAPSHOT_LEN_MAX;
use crate::segment::{LogEnd, SEGMENT_BYTES_LIMIT, SealedEnd};
use crate::wire::Fields;

const MAGIC: [u8; 4] = *b"TCUM";
const VERSION: u16 = 1;
const HEAD_LEN: usize = 124;
const SEGMENT_LEN: usize = 52;
const CRC_LEN: usize = 4;

/// So many segments a manifest has at most.
pub const MANIFEST_SEGMENTS_MAX: usize = 1 << 17;
/// The longest note that a manifest carries, in bytes.
pub const NOTE_BYTES_MAX: usize = 4096;
/// The longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize =
    HEAD_LEN + MANIFEST_SEGMENTS_MAX * SEGMENT_LEN + NOTE_BYTES_MAX + CRC_LEN;

/// Why bytes are no manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Too short, or longer than is believed.
    #[error("a manifest of {len} bytes is not believed")]
    Length {
        /// Their number.
        len: usize,
    },
    /// Something else, or of another version.
    #[error("it is no manifest of a version that is known here")]
    Version,
    /// They are not what was sent.
    #[error("the manifest fails its checksum")]
    Checksum,
    /// What they say cannot be.
    #[error("the manifest makes no sense: {0}")]
    Senseless(&'static str),
}

/// A segment to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentCopy {
    pub(crate) sequence: u64,
    pub(crate) base_offset: Offset,
    pub(crate) base_index: RaftIndex,
    /// Of what is copied.
    pub(crate) end: SealedEnd,
    /// CRC-32 of the entry that the segment header is.
    pub(crate) header_crc: u32,
}

/// A file beside the segments to be copied: how long it is, and its CRC-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SideFile {
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

impl SideFile {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            len: u32::try_from(bytes.len()).expect("files beside segments are some MiB"),
            crc: crc32fast::hash(bytes),
        }
    }
}

/// What a copy of a log consists of.
///
/// Its files have numbers: first come the segments, oldest first, then the leader epochs, then the
/// producers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub(crate) identity: LogIdentity,
    pub(crate) end: LogEnd,
    /// Oldest first; never empty.
    pub(crate) segments: Vec<SegmentCopy>,
    pub(crate) epochs: SideFile,
    pub(crate) producers: SideFile,
    pub(crate) note: Bytes,
}

impl Manifest {
    /// Whose log it is.
    pub fn identity(&self) -> LogIdentity {
        self.identity
    }

    /// Where the copy ends: the checkpoint to open it with.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// The last entry of the copy, which is committed, as all before it.
    pub fn commit(&self) -> RaftIndex {
        RaftIndex::new(self.end.index.get() - 1)
    }

    /// What the maker of the source put in, unchanged: what belongs to this end and is not in the
    /// log, as the members of the group there.
    pub fn note(&self) -> &Bytes {
        &self.note
    }

    /// How many files there are.
    pub fn files(&self) -> u32 {
        u32::try_from(self.segments.len() + 2).expect("their number is bounded")
    }

    /// The length of the file with this number, in bytes; 0 where there is none.
    pub fn file_len(&self, file: u32) -> u64 {
        let file = usize::try_from(file).unwrap_or(usize::MAX);
        let len = match self.segments.get(file) {
            Some(segment) => segment.end.len,
            None if file == self.segments.len() => self.epochs.len,
            None if file == self.segments.len() + 1 => self.producers.len,
            None => 0,
        };
        u64::from(len)
    }

    /// The length of all files, in bytes: so much space the copy takes.
    pub fn len_bytes(&self) -> u64 {
        (0..self.files()).map(|file| self.file_len(file)).sum()
    }

    /// The bytes to be sent, and to be kept.
    pub fn encode(&self) -> Vec<u8> {
        let len = HEAD_LEN + self.segments.len() * SEGMENT_LEN + self.note.len() + CRC_LEN;
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.identity.cluster_id);
        out.extend_from_slice(&self.identity.topic_id.to_bytes());
        out.extend_from_slice(&self.identity.partition.get().to_be_bytes());
        out.extend_from_slice(&self.identity.incarnation.to_be_bytes());
        self.end.put(&mut out);
        for side in [self.epochs, self.producers] {
            out.extend_from_slice(&side.len.to_be_bytes());
            out.extend_from_slice(&side.crc.to_be_bytes());
        }
        for count in [self.note.len(), self.segments.len()] {
            let count = u32::try_from(count).expect("both are bounded");
            out.extend_from_slice(&count.to_be_bytes());
        }
        for segment in &self.segments {
            out.extend_from_slice(&segment.sequence.to_be_bytes());
            out.extend_from_slice(&segment.base_offset.get().to_be_bytes());
            out.extend_from_slice(&segment.base_index.get().to_be_bytes());
            out.extend_from_slice(&segment.end.len.to_be_bytes());
            out.extend_from_slice(&segment.end.offset.get().to_be_bytes());
            out.extend_from_slice(&segment.end.index.get().to_be_bytes());
            out.extend_from_slice(&segment.end.chain.to_be_bytes());
            out.extend_from_slice(&segment.header_crc.to_be_bytes());
        }
        out.extend_from_slice(&self.note);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_be_bytes());
        debug_assert_eq!(out.len(), len);
        out
    }

    /// The manifest in bytes from elsewhere. What it says is checked as far as it can be without the
    /// files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let len = bytes.len();
        if !(HEAD_LEN + SEGMENT_LEN + CRC_LEN..=MANIFEST_BYTES_MAX).contains(&len) {
            return Err(ManifestError::Length { len });
        }
        if bytes[..4] != MAGIC || bytes[4..6] != VERSION.to_be_bytes() {
            return Err(ManifestError::Version);
        }
        let (content, crc) = bytes
            .split_last_chunk::<CRC_LEN>()
            .ok_or(ManifestError::Length { len })?;
        if u32::from_be_bytes(*crc) != crc32fast::hash(content) {
            return Err(ManifestError::Checksum);
        }
        let manifest = Self::take(&content[6..])
            .ok_or(ManifestError::Senseless("a field is out of its range"))?;
        manifest.check().map_err(ManifestError::Senseless)?;
        Ok(manifest)
    }

    fn take(content: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(content);
        if fields.u16()? != 0 {
            return None;
        }
        let identity = LogIdentity {
            cluster_id: fields.array()?,
            topic_id: TopicId::from_bytes(fields.array()?),
            partition: PartitionId::new(fields.u32()?),
            incarnation: fields.u32()?,
        };
        let end = LogEnd::take(&mut fields)?;
        let side = |fields: &mut Fields<'_>| {
            let (len, crc) = (fields.u32()?, fields.u32()?);
            Some(SideFile { len, crc })
        };
        let (epochs, producers) = (side(&mut fields)?, side(&mut fields)?);
        let note_len = usize::try_from(fields.u32()?).ok()?;
        let count = usize::try_from(fields.u32()?).ok()?;
        // Before anything is taken for them: they are there, and nothing else is.
        let rest = fields.rest();
        let is_bounded = note_len <= NOTE_BYTES_MAX && count <= MANIFEST_SEGMENTS_MAX;
        if !is_bounded || rest.len() != count * SEGMENT_LEN + note_len {
            return None;
        }
        let (segments, note) = rest.split_at(count * SEGMENT_LEN);
        let chunks = segments.as_chunks::<SEGMENT_LEN>().0;
        Some(Self {
            identity,
            end,
            segments: chunks.iter().map(take_segment).collect::<Option<_>>()?,
            epochs,
            producers,
            note: Bytes::copy_from_slice(note),
        })
    }

    fn check(&self) -> Result<(), &'static str> {
        let [Some(first), Some(last)] = [self.segments.first(), self.segments.last()] else {
            return Err("there are no segments");
        };
        if first.base_offset > self.end.log_start || self.end.log_start > self.end.offset {
            return Err("the log start lies elsewhere");
        }
        let end = SealedEnd::of(&self.end);
        if (last.sequence, last.end) != (self.end.sequence, end) || self.end.index <= INITIAL_INDEX
        {
            return Err("the last segment does not end at the end");
        }
        for segment in &self.segments {
            let is_last = segment.sequence == last.sequence;
            let has_records = segment.end.offset > segment.base_offset;
            let is_empty = segment.end.offset == segment.base_offset;
            let in_order = segment.sequence > 0
                && (has_records || (is_last && is_empty))
                && segment.end.index >= segment.base_index;
            let len = SEGMENT_HEADER_LEN as u64..=u64::from(SEGMENT_BYTES_LIMIT);
            if !in_order || !len.contains(&u64::from(segment.end.len)) {
                return Err("a segment cannot be");
            }
        }
        let meet = self.segments.windows(2).all(|pair| {
            pair[0].sequence < pair[1].sequence
                && pair[0].end.offset == pair[1].base_offset
                && pair[0].end.index == pair[1].base_index
        });
        if !meet {
            return Err("segments do not follow on each other");
        }
        let no_epochs = self.epochs.len == 0 && self.epochs.crc != 0;
        if no_epochs || u64::from(self.epochs.len) > epochs::FILE_LEN_MAX {
            return Err("the leader epochs cannot be");
        }
        if self.producers.len == 0 || self.producers.len as usize > SNAPSHOT_LEN_MAX {
            return Err("the producers cannot be");
        }
        Ok(())
    }
}

fn take_segment(bytes: &[u8; SEGMENT_LEN]) -> Option<SegmentCopy> {
    let mut fields = Fields::new(bytes);
    Some(SegmentCopy {
        sequence: fields.u64()?,
        base_offset: Offset::new(fields.u64()?)?,
        base_index: RaftIndex::new(fields.u64()?),
        end: SealedEnd {
            len: fields.u32()?,
            offset: Offset::new(fields.u64()?)?,
            index: RaftIndex::new(fields.u64()?),
            chain: fields.u32()?,
        },
        header_crc: fields.u32()?,
    })
}
