//! One segment file of a log, as readers and the writer share it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use tidelog_disk::{Disk, DiskError, DiskFile, DiskOp, OpenHow, read_up_to};
use tidelog_record::{BATCH_HEADER_LEN, LeaderEpoch, Offset, RaftIndex, Timestamp, check_batch};

use crate::header::{COMPACTED_HEADER_LEN, CompactedSegment, PreviousSegment, SegmentHeader};
use crate::index::{IndexBase, SegmentIndex};
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry, InternalKind};
use crate::wire::Fields;

/// The longest segment file, in bytes: positions fit 31 bits, as in Kafka.
pub const SEGMENT_BYTES_LIMIT: u32 = i32::MAX as u32;

/// A place between two batches of a log, and what is known of everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// The sequence number of the segment.
    pub sequence: u64,
    /// The position in the segment's file, in bytes.
    pub position: u32,
    /// The offset the next record has.
    pub offset: Offset,
    /// The Raft index the next entry has.
    pub index: RaftIndex,
    /// The leader epoch of the last entry.
    pub epoch: LeaderEpoch,
    /// CRC-32 over the segment's batch headers so far.
    pub chain: u32,
    /// The largest record timestamp in the segment so far.
    pub max_timestamp: Timestamp,
    /// The log start offset, as the log's own entries up to here say.
    pub log_start: Offset,
}

impl LogEnd {
    /// How many bytes it takes in the state file and in snapshots of producers.
    pub(crate) const WIRE_LEN: usize = 52;

    /// Appends its fields, as `FORMAT.md` lists them for a checkpoint.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.position.to_be_bytes());
        out.extend_from_slice(&self.offset.get().to_be_bytes());
        out.extend_from_slice(&self.index.get().to_be_bytes());
        out.extend_from_slice(&self.epoch.get().to_be_bytes());
        out.extend_from_slice(&self.chain.to_be_bytes());
        out.extend_from_slice(&self.max_timestamp.millis().to_be_bytes());
        out.extend_from_slice(&self.log_start.get().to_be_bytes());
    }

    /// Takes what [`LogEnd::put`] wrote off the front of `fields`.
    pub(crate) fn take(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            sequence: fields.u64()?,
            position: fields.u32()?,
            offset: Offset::new(fields.u64()?)?,
            index: RaftIndex::new(fields.u64()?),
            epoch: LeaderEpoch::new(fields.u32()?)?,
            chain: fields.u32()?,
            max_timestamp: Timestamp::from_millis(fields.i64()?),
            log_start: Offset::new(fields.u64()?)?,
        })
    }

    /// The place after the header of a new segment.
    pub(crate) fn after_header(header: &SegmentHeader, encoded: &[u8]) -> Self {
        let mut end = Self {
            sequence: header.sequence,
            position: u32::try_from(encoded.len())
                .expect("a segment header is a few hundred bytes"),
            offset: header.base_offset,
            index: header.base_index,
            epoch: header.epoch,
            chain: match header.compacted {
                None => crc32fast::hash(&encoded[..BATCH_HEADER_LEN]),
                // The header of a compacted segment holds the chain, so it is no part of it.
                Some(_) => 0,
            },
            max_timestamp: Timestamp::MIN,
            log_start: header.log_start,
        };
        end.settle(header.compacted.as_ref());
        end
    }

    /// At the end of a compacted segment come the offset and the index that the segments it stands
    /// for led up to, whatever was left out before.
    pub(crate) fn settle(&mut self, compacted: Option<&CompactedSegment>) {
        if let Some(compacted) = compacted
            && u64::from(self.position) == compacted.len
        {
            self.offset = self.offset.max(compacted.end_offset);
            self.index = self.index.max(compacted.end_index);
        }
    }

    /// Whether this lies before `other` in the same log.
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        (self.sequence, self.position) < (other.sequence, other.position)
    }
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// Where the first batch after the header lies.
    pub(crate) header_len: u32,
    /// `None` once the segment is cold: then each read opens the file, so that history costs no
    /// open files.
    file: RwLock<Option<Arc<dyn DiskFile>>>,
    /// `None` once the segment is cold: then the file beside it is read when needed.
    pub(crate) index: RwLock<Option<SegmentIndex>>,
    /// Bytes at or past this were written or verified by this process and are probably cached, so
    /// they are read through the map; what lies before is read with checks. `u32::MAX`: nothing.
    hot_from: AtomicU32,
    /// The length of the map: entries that are never rolled may pass it.
    pub(crate) map_len: u64,
    /// Set once, when the segment is complete.
    sealed: OnceLock<SealedEnd>,
}

/// The end of a complete segment, as the header of the next one has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealedEnd {
    /// The length of the file, in bytes.
    pub(crate) len: u32,
    /// The offset after its last record.
    pub(crate) offset: Offset,
    /// The Raft index after its last entry.
    pub(crate) index: RaftIndex,
    /// CRC-32 over its batch headers.
    pub(crate) chain: u32,
}

impl SealedEnd {
    /// The end of the segment before the one with this description of it.
    pub(crate) fn of_previous(previous: &PreviousSegment, len: u32) -> Self {
        Self {
            len,
            offset: previous.end_offset,
            index: previous.end_index,
            chain: previous.chain,
        }
    }

    /// The end of a compacted segment.
    pub(crate) fn of_compacted(compacted: &CompactedSegment, len: u32) -> Self {
        Self {
            len,
            offset: compacted.end_offset,
            index: compacted.end_index,
            chain: compacted.chain,
        }
    }

    pub(crate) fn of(end: &LogEnd) -> Self {
        Self {
            len: end.position,
            offset: end.offset,
            index: end.index,
            chain: end.chain,
        }
    }
}

impl Segment {
    /// A segment that is only looked at.
    pub(crate) fn unopened(path: PathBuf, header: SegmentHeader, header_len: u32) -> Self {
        Self {
            path,
            header,
            header_len,
            file: RwLock::new(None),
            index: RwLock::new(None),
            hot_from: AtomicU32::new(u32::MAX),
            map_len: 0,
            sealed: OnceLock::new(),
        }
    }

    pub(crate) fn sealed(
        path: PathBuf,
        header: SegmentHeader,
        header_len: u32,
        end: SealedEnd,
    ) -> Self {
        Self {
            sealed: OnceLock::from(end),
            ..Self::unopened(path, header, header_len)
        }
    }

    pub(crate) fn active(
        path: PathBuf,
        header: SegmentHeader,
        header_len: u32,
        file: Arc<dyn DiskFile>,
        index: SegmentIndex,
        hot_from: u32,
        map_len: u64,
    ) -> Self {
        Self {
            file: RwLock::new(Some(file)),
            index: RwLock::new(Some(index)),
            hot_from: AtomicU32::new(hot_from),
            map_len,
            ..Self::unopened(path, header, header_len)
        }
    }

    pub(crate) fn index_base(header: &SegmentHeader) -> IndexBase {
        IndexBase {
            sequence: header.sequence,
            offset: header.base_offset,
            index: header.base_index,
        }
    }

    /// The file, opened for reading if it is not open: not kept open then, see the field.
    ///
    /// # Errors
    /// As if there were no file, when it is another log's: that of a topic of the same name, made
    /// after this one was deleted; or when it is the compacted one that took this one's place.
    pub(crate) fn file(&self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>, DiskError> {
        self.file_how(disk, true)
    }

    /// As [`Segment::file`]. Unless `reads_ahead`, the system is asked to read no more from a file
    /// that has to be opened than what is wanted.
    pub(crate) fn file_how(
        &self,
        disk: &dyn Disk,
        reads_ahead: bool,
    ) -> Result<Arc<dyn DiskFile>, DiskError> {
        if let Some(file) = self.open_file() {
            return Ok(file);
        }
        let file = disk.open(&self.path, OpenHow::Read)?;
        if !reads_ahead {
            // Before anything is read: a sequence once begun is gone on with.
            file.read_nothing_ahead();
        }
        let bytes = read_up_to(&*file, 0, COMPACTED_HEADER_LEN)?;
        // What is no header at all is damage, which is found where it is looked for.
        let found = check_batch(&bytes, INTERNAL_LEN_MAX).ok();
        let found = found.and_then(|header| {
            InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..header.total_len()]).ok()
        });
        match found.map(|entry| entry.kind) {
            Some(InternalKind::SegmentHeader(found)) if *found != self.header => {
                let why = if found.identity == self.header.identity {
                    "the segment was compacted, and another file stands in its place"
                } else {
                    "the log was deleted, and another stands in its place"
                };
                let source = io::Error::new(io::ErrorKind::NotFound, why);
                Err(DiskError::new(DiskOp::Open, &self.path, source))
            }
            _ => Ok(file),
        }
    }

    /// The file if it is open: never waits for the disk.
    pub(crate) fn open_file(&self) -> Option<Arc<dyn DiskFile>> {
        self.file.read().clone()
    }

    /// The end of a sealed segment; `None` for the active one.
    pub(crate) fn sealed_end(&self) -> Option<SealedEnd> {
        self.sealed.get().copied()
    }

    pub(crate) fn seal(&self, end: SealedEnd) {
        self.sealed.get_or_init(|| end);
    }

    pub(crate) fn is_hot_at(&self, position: u32) -> bool {
        position >= self.hot_from.load(Ordering::Acquire)
    }

    /// Keeps `file` open for readers.
    pub(crate) fn hold(&self, file: Arc<dyn DiskFile>) {
        *self.file.write() = Some(file);
    }

    /// Lets go of the index and the file; both come back when somebody reads.
    pub(crate) fn cool(&self) {
        self.hot_from.store(u32::MAX, Ordering::Release);
        *self.index.write() = None;
        *self.file.write() = None;
    }
}

/// `<base offset, 20 digits>.log`
pub(crate) fn segment_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}.log", base.get()))
}

/// `<base offset, 20 digits>.index`
pub(crate) fn index_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}.index", base.get()))
}

/// The extension of a compacted segment in the making.
pub(crate) const CLEANED: &str = "cleaned";

/// `<base offset, 20 digits>.cleaned`
pub(crate) fn cleaned_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}.{CLEANED}", base.get()))
}

/// `<base offset, 20 digits>.torn`: what a torn tail held, kept for a look.
pub(crate) fn torn_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}.torn", base.get()))
}

/// `leader-epochs`
pub(crate) fn epochs_path(dir: &Path) -> PathBuf {
    dir.join("leader-epochs")
}

/// The base offset in a file name with this extension, when it is one of ours.
pub(crate) fn base_offset_of(name: &str, extension: &str) -> Option<Offset> {
    let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
    let ours = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    ours.then(|| digits.parse().ok().and_then(Offset::new))
        .flatten()
}
