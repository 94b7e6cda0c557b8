//! The sparse index of a segment: where to start looking for an offset or a time.
//!
//! An entry stands for a batch border: which offset, Raft index and position come next, and the
//! largest timestamp and the chain checksum of all that lies *before* it. Both grow along the file,
//! so a binary search finds the last place that is surely not too late.
//!
//! The file beside the segment is derived and never synced: a missing entry only costs a longer
//! walk, and a broken file is built again from the segment. Since it is not synced, power loss can
//! bring back what it held before, in parts; and a tail of the segment may have been cut and
//! written anew since. So the checksum of an entry continues that of the entry before: all entries
//! that pass were written in one history of the segment. Whether that history is the present one
//! only the segment's own chain checksum tells, at the sync checkpoint or at the seal.

use std::path::Path;

use tidelog_disk::{Disk, DiskError};
use tidelog_record::{Offset, RaftIndex, Timestamp};

use crate::segment::LogEnd;
use crate::sidecar;
use crate::wire::Fields;

const MAGIC: [u8; 4] = *b"TIDX";
const VERSION: u16 = 1;
/// The file's header and each entry are this long, so that entries never straddle a sector.
pub(crate) const ENTRY_LEN: usize = 32;
/// A file longer than this is not one of ours: 2 GiB of segment with an entry every 1 KiB.
pub(crate) const FILE_LEN_MAX: u64 = 64 << 20;
const FLAG_END: u32 = 1;

/// A batch border within a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The offset the next record has.
    pub offset: Offset,
    /// The Raft index the next entry has.
    pub index: RaftIndex,
    /// The position of the next batch in the file, in bytes.
    pub position: u32,
    /// CRC-32 over the batch headers before, in order.
    pub chain: u32,
    /// The largest record timestamp before; [`Timestamp::MIN`] when there is no record.
    pub max_timestamp: Timestamp,
    /// Whether the segment ended here when this was written.
    pub is_end: bool,
}

impl IndexEntry {
    /// The border at `end`.
    pub(crate) fn at(end: &LogEnd) -> Self {
        Self {
            offset: end.offset,
            index: end.index,
            position: end.position,
            chain: end.chain,
            max_timestamp: end.max_timestamp,
            is_end: false,
        }
    }
}

/// Which segment an index file belongs to; a file of another one is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexBase {
    pub(crate) sequence: u64,
    pub(crate) offset: Offset,
    pub(crate) index: RaftIndex,
}

impl IndexBase {
    fn encode_file_header(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.get().to_be_bytes());
        let crc = file_header_crc(&bytes);
        bytes[28..32].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// `None` when the entry lies too far from the base.
    fn encode_entry(&self, entry: &IndexEntry, before: u32) -> Option<([u8; ENTRY_LEN], u32)> {
        let offset_delta = u32::try_from(entry.offset.records_since(self.offset)).ok()?;
        let index_delta = entry.index.get().checked_sub(self.index.get())?;
        let index_delta = u32::try_from(index_delta).ok()?;
        let mut bytes = [0; ENTRY_LEN];
        bytes[0..4].copy_from_slice(&offset_delta.to_be_bytes());
        bytes[4..8].copy_from_slice(&index_delta.to_be_bytes());
        bytes[8..12].copy_from_slice(&entry.position.to_be_bytes());
        bytes[12..16].copy_from_slice(&entry.chain.to_be_bytes());
        bytes[16..24].copy_from_slice(&entry.max_timestamp.millis().to_be_bytes());
        bytes[24..28].copy_from_slice(&(if entry.is_end { FLAG_END } else { 0 }).to_be_bytes());
        let crc = entry_crc(before, &bytes);
        bytes[28..32].copy_from_slice(&crc.to_be_bytes());
        Some((bytes, crc))
    }

    fn decode_entry(&self, bytes: &[u8; ENTRY_LEN], before: u32) -> Option<(IndexEntry, u32)> {
        let mut fields = Fields::new(bytes);
        let entry = IndexEntry {
            offset: self.offset.checked_add(u64::from(fields.u32()?))?,
            index: self.index.checked_add(u64::from(fields.u32()?))?,
            position: fields.u32()?,
            chain: fields.u32()?,
            max_timestamp: Timestamp::from_millis(fields.i64()?),
            is_end: match fields.u32()? {
                0 => false,
                FLAG_END => true,
                _ => return None,
            },
        };
        let crc = fields.u32()?;
        (crc == entry_crc(before, bytes)).then_some((entry, crc))
    }
}

fn file_header_crc(bytes: &[u8; ENTRY_LEN]) -> u32 {
    crc32fast::hash(&bytes[..ENTRY_LEN - 4])
}

/// Continues `before`, the checksum of the entry before or, at first, of the file header.
fn entry_crc(before: u32, bytes: &[u8; ENTRY_LEN]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(before);
    crc.update(&bytes[..ENTRY_LEN - 4]);
    crc.finalize()
}

/// The index of one segment in memory, with what of it is not yet in the file.
#[derive(Debug)]
pub(crate) struct SegmentIndex {
    base: IndexBase,
    entries: Vec<IndexEntry>,
    /// The checksums of the entries that the file holds: the first ones of `entries`.
    in_file: Vec<u32>,
    /// Whether the file holds more behind them, of another history perhaps.
    is_stale: bool,
}

/// What an index file lacks, to be written by [`write_pending`] without a lock on the index.
#[derive(Debug)]
pub(crate) struct PendingIndex {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
    crcs: Vec<u32>,
}

impl SegmentIndex {
    pub(crate) fn new(base: IndexBase) -> Self {
        Self {
            base,
            entries: Vec::new(),
            in_file: Vec::new(),
            is_stale: false,
        }
    }

    pub(crate) fn last(&self) -> Option<&IndexEntry> {
        self.entries.last()
    }

    /// Entries must come in the order of their positions; a second one for a position is dropped.
    pub(crate) fn push(&mut self, entry: IndexEntry) {
        if self
            .entries
            .last()
            .is_none_or(|last| last.position < entry.position)
        {
            self.entries.push(entry);
        }
    }

    /// Adds an entry for the border at `end` when it is `interval` bytes or more behind the last one,
    /// or behind the segment's header.
    pub(crate) fn push_if_due(&mut self, end: &LogEnd, header_len: u32, interval: u32) {
        let last = self.last().map_or(header_len, |entry| entry.position);
        if end.position.saturating_sub(last) >= interval {
            self.push(IndexEntry::at(end));
        }
    }

    /// Marks the end of the segment, in place of an entry at the same position.
    pub(crate) fn push_end(&mut self, entry: IndexEntry) {
        if self
            .entries
            .last()
            .is_some_and(|last| last.position == entry.position)
        {
            self.entries.pop();
            self.forget_in_file();
        }
        self.entries.push(IndexEntry {
            is_end: true,
            ..entry
        });
    }

    /// The entries, in the order of their positions.
    pub(crate) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// The last entry at or before `offset`.
    pub(crate) fn before_offset(&self, offset: Offset) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        after.checked_sub(1).map(|at| self.entries[at])
    }

    /// The last entry at or before the Raft entry `index`.
    pub(crate) fn before_index(&self, index: RaftIndex) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.index <= index);
        after.checked_sub(1).map(|at| self.entries[at])
    }

    /// The first entry at or after a position, else the last.
    pub(crate) fn at_or_after(&self, position: u64) -> Option<IndexEntry> {
        let at = self
            .entries
            .partition_point(|entry| u64::from(entry.position) < position);
        self.entries.get(at).or(self.entries.last()).copied()
    }

    /// The last entry with no record of `timestamp` or later before it.
    pub(crate) fn before_timestamp(&self, timestamp: Timestamp) -> Option<IndexEntry> {
        let after = self
            .entries
            .partition_point(|entry| entry.max_timestamp < timestamp);
        after.checked_sub(1).map(|at| self.entries[at])
    }

    /// Forgets entries past `position`, as after a cut.
    pub(crate) fn cut(&mut self, position: u32) {
        self.entries.retain(|entry| entry.position <= position);
        self.forget_in_file();
    }

    /// Forgets all entries: they are of another history.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.forget_in_file();
    }

    /// What the file holds past the present entries is to be overwritten.
    fn forget_in_file(&mut self) {
        self.is_stale |= self.in_file.len() > self.entries.len();
        self.in_file.truncate(self.entries.len());
    }

    pub(crate) fn unwritten(&self) -> usize {
        self.entries.len() - self.in_file.len()
    }

    /// The bytes that the file lacks; `None` when it is as it should be.
    pub(crate) fn pending(&self) -> Option<PendingIndex> {
        if self.unwritten() == 0 && !self.is_stale {
            return None;
        }
        let file_header = self.base.encode_file_header();
        let mut crc = self
            .in_file
            .last()
            .copied()
            .unwrap_or_else(|| file_header_crc(&file_header));
        let mut bytes = Vec::with_capacity((self.unwritten() + 1) * ENTRY_LEN);
        let mut at = (self.in_file.len() + 1) * ENTRY_LEN;
        if self.in_file.is_empty() {
            bytes.extend_from_slice(&file_header);
            at = 0;
        }
        let mut crcs = Vec::with_capacity(self.unwritten());
        for entry in &self.entries[self.in_file.len()..] {
            // An offset too far from the base for the field ends the index early, which is allowed.
            let Some((entry, next)) = self.base.encode_entry(entry, crc) else {
                break;
            };
            crc = next;
            crcs.push(crc);
            bytes.extend_from_slice(&entry);
        }
        Some(PendingIndex {
            at: at as u64,
            bytes,
            crcs,
        })
    }

    /// Notes that `pending` is in the file now.
    pub(crate) fn written(&mut self, pending: PendingIndex) {
        self.in_file.extend(pending.crcs);
        self.is_stale = false;
    }

    /// Adds to the file at `path` what it lacks. Not synced: see the module's docs.
    pub(crate) fn write(&mut self, disk: &dyn Disk, path: &Path) -> Result<(), DiskError> {
        if let Some(pending) = self.pending() {
            write_pending(disk, path, &pending)?;
            self.written(pending);
        }
        Ok(())
    }

    /// Reads the file at `path` up to the first entry that does not verify or that lies past
    /// `position_max`. A missing or unreadable file, or one of another segment, gives an empty
    /// index.
    pub(crate) fn load(disk: &dyn Disk, path: &Path, base: IndexBase, position_max: u64) -> Self {
        match sidecar::read(disk, path, FILE_LEN_MAX) {
            Ok(bytes) => Self::parse(&bytes, base, position_max),
            Err(e) => {
                if !e.is_not_found() {
                    tracing::warn!(error = %e, "an index cannot be read; it is built again");
                }
                Self {
                    is_stale: !e.is_not_found(),
                    ..Self::new(base)
                }
            }
        }
    }

    /// The index in the bytes of a file.
    pub(crate) fn parse(bytes: &[u8], base: IndexBase, position_max: u64) -> Self {
        let mut index = Self {
            is_stale: !bytes.is_empty(),
            ..Self::new(base)
        };
        let (chunks, torn) = bytes.as_chunks::<ENTRY_LEN>();
        let Some((file_header, chunks)) = chunks.split_first() else {
            return index;
        };
        if *file_header != base.encode_file_header() {
            return index;
        }
        let mut crc = file_header_crc(file_header);
        for chunk in chunks {
            let Some((entry, next)) = base.decode_entry(chunk, crc) else {
                break;
            };
            let grows = index.last().is_none_or(|last| {
                last.position < entry.position
                    && last.offset <= entry.offset
                    && last.index <= entry.index
                    && last.max_timestamp <= entry.max_timestamp
            });
            if !grows || u64::from(entry.position) > position_max {
                break;
            }
            crc = next;
            index.entries.push(entry);
            index.in_file.push(crc);
        }
        index.is_stale = index.entries.len() < chunks.len() || !torn.is_empty();
        index
    }
}

/// Writes what was pending to the index file at `path`, and cuts off what lies behind.
pub(crate) fn write_pending(
    disk: &dyn Disk,
    path: &Path,
    pending: &PendingIndex,
) -> Result<(), DiskError> {
    sidecar::write(disk, path, pending.at, &pending.bytes)
}
