//! The epoch table: which leader epoch began at which offset and Raft index.
//!
//! Kept in memory and in the file `leader-epochs` of the partition, which is derived like an index:
//! appended without a sync, each entry with its own checksum, completed from the segments where it
//! does not fit them. An entry is written only once the epoch's beginning is durable in the log, so
//! that whatever power loss leaves of the file, all of it is true.

use std::path::Path;

use tidelog_disk::{Disk, DiskError};
use tidelog_record::{LeaderEpoch, Offset, RaftIndex};

use crate::open::INITIAL_EPOCH;
use crate::sidecar;
use crate::wire::Fields;

pub(crate) const FILE_HEADER: [u8; 8] = *b"TEPO\0\x01\0\0";
const ENTRY_LEN: usize = 24;
/// A file longer than this is not ours: two million leaderships.
pub(crate) const FILE_LEN_MAX: u64 = 48 << 20;

/// How long the file is with so many entries.
pub(crate) fn file_len(entries: usize) -> u64 {
    (FILE_HEADER.len() + entries * ENTRY_LEN) as u64
}

/// The start of a leader epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// The offset of its first record, when it gets one.
    pub offset: Offset,
    /// The Raft index of its first entry.
    pub index: RaftIndex,
}

/// The epochs of a log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochTable {
    entries: Vec<EpochStart>,
    in_file: usize,
}

impl EpochTable {
    /// All epochs known, oldest first.
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// The epoch that wrote the record at `offset`, or would write it next; `None` before the first
    /// known epoch.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        after.checked_sub(1).map(|at| self.entries[at].epoch)
    }

    /// The epoch of the newest leadership.
    pub fn last(&self) -> Option<EpochStart> {
        self.entries.last().copied()
    }

    /// The epoch in force just before the Raft entry `index`; `None` before the first known epoch.
    pub(crate) fn before_index(&self, index: RaftIndex) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|entry| entry.index < index);
        after.checked_sub(1).map(|at| self.entries[at].epoch)
    }

    /// Adds the start of an epoch; one that is not newer than the last is known already.
    pub(crate) fn push(&mut self, start: EpochStart) {
        if self
            .entries
            .last()
            .is_none_or(|last| last.epoch < start.epoch)
        {
            self.entries.push(start);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets what starts at or past the entry `index`, as after a cut.
    pub(crate) fn cut(&mut self, index: RaftIndex) {
        self.entries.retain(|entry| entry.index < index);
        if self.in_file > self.entries.len() {
            self.in_file = 0;
        }
    }

    /// The bytes that the file lacks of the epochs that began before `durable`.
    pub(crate) fn pending(&self, durable: RaftIndex) -> Option<PendingEpochs> {
        let known = self.entries.partition_point(|entry| entry.index < durable);
        let lacking = self
            .entries
            .get(self.in_file..known)
            .filter(|lacking| !lacking.is_empty())?;
        let bytes = encode(lacking, self.in_file == 0);
        let at = match self.in_file {
            0 => 0,
            in_file => FILE_HEADER.len() + in_file * ENTRY_LEN,
        };
        Some(PendingEpochs {
            at: at as u64,
            bytes,
            in_file: known,
        })
    }

    /// The bytes of a file with the epochs that began before the entry `index`; none where there are
    /// none.
    pub(crate) fn file_before(&self, index: RaftIndex) -> Vec<u8> {
        let known = self.entries.partition_point(|entry| entry.index < index);
        if known == 0 {
            return Vec::new();
        }
        encode(&self.entries[..known], true)
    }

    /// Whether the table has `epoch` in force just before the Raft entry `index`.
    pub(crate) fn knows(&self, index: RaftIndex, epoch: LeaderEpoch) -> bool {
        self.before_index(index).unwrap_or(INITIAL_EPOCH) == epoch
            // Where the segments that held its beginning are gone.
            || self.entries.first().is_some_and(|e| (e.index, e.epoch) == (index, epoch))
    }

    /// Notes that `pending` is in the file now.
    pub(crate) fn written(&mut self, pending: &PendingEpochs) {
        self.in_file = pending.in_file;
    }

    pub(crate) fn has_unwritten(&self) -> bool {
        self.in_file < self.entries.len()
    }

    /// Reads the file at `path`, up to the first entry that does not verify. A missing or
    /// unreadable file gives an empty table.
    pub(crate) fn load(disk: &dyn Disk, path: &Path) -> Self {
        match sidecar::read(disk, path, FILE_LEN_MAX) {
            Ok(bytes) => Self::parse(&bytes),
            Err(e) => {
                if !e.is_not_found() {
                    tracing::warn!(error = %e, "the epoch table cannot be read; it is built again");
                }
                Self::default()
            }
        }
    }

    /// The table in the bytes of a file.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut table = Self::default();
        let Some(entries) = bytes.strip_prefix(&FILE_HEADER) else {
            return table;
        };
        for chunk in entries.as_chunks::<ENTRY_LEN>().0 {
            let Some(entry) = decode(chunk) else { break };
            // The first may be known by a segment's header alone: its beginning is gone, and the next one
            // may begin with that segment.
            let is_second = table.entries.len() == 1;
            let grows = table.last().is_none_or(|last| {
                let follows = last.index < entry.index || is_second && last.index == entry.index;
                last.epoch < entry.epoch && last.offset <= entry.offset && follows
            });
            if !grows {
                break;
            }
            table.entries.push(entry);
        }
        table.in_file = table.entries.len();
        table
    }
}

/// What the file of an epoch table lacks.
#[derive(Debug)]
pub(crate) struct PendingEpochs {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
    in_file: usize,
}

/// Writes what was pending to the file at `path`, and cuts off what lies behind. Not synced.
pub(crate) fn write_pending(
    disk: &dyn Disk,
    path: &Path,
    pending: &PendingEpochs,
) -> Result<(), DiskError> {
    sidecar::write(disk, path, pending.at, &pending.bytes)
}

fn encode(entries: &[EpochStart], with_header: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((entries.len() + 1) * ENTRY_LEN);
    if with_header {
        bytes.extend_from_slice(&FILE_HEADER);
    }
    for entry in entries {
        let start = bytes.len();
        bytes.extend_from_slice(&entry.epoch.get().to_be_bytes());
        bytes.extend_from_slice(&entry.offset.get().to_be_bytes());
        bytes.extend_from_slice(&entry.index.get().to_be_bytes());
        let crc = crc32fast::hash(&bytes[start..]);
        bytes.extend_from_slice(&crc.to_be_bytes());
    }
    bytes
}

fn decode(bytes: &[u8; ENTRY_LEN]) -> Option<EpochStart> {
    let mut fields = Fields::new(bytes);
    let entry = EpochStart {
        epoch: LeaderEpoch::new(fields.u32()?)?,
        offset: Offset::new(fields.u64()?)?,
        index: RaftIndex::new(fields.u64()?),
    };
    (fields.u32()? == crc32fast::hash(&bytes[..20])).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(epoch: u32, offset: u64, index: u64) -> EpochStart {
        EpochStart {
            epoch: LeaderEpoch::new(epoch).unwrap(),
            offset: Offset::new(offset).unwrap(),
            index: RaftIndex::new(index),
        }
    }

    /// The oldest segment's header tells of an epoch whose beginning was trimmed, and the next epoch begins
    /// with that segment: both are there after the file was read, and so in a copy of it.
    #[test]
    fn an_epoch_may_begin_where_the_oldest_known_one_is_told_of() {
        let mut table = EpochTable::default();
        for one in [
            start(7, 1846, 640),
            start(8, 1846, 640),
            start(10, 1873, 651),
        ] {
            table.push(one);
        }
        let read = EpochTable::parse(&table.file_before(RaftIndex::new(700)));
        assert_eq!(read.entries(), table.entries());
        let epoch = |epoch| LeaderEpoch::new(epoch).unwrap();
        assert!(read.knows(RaftIndex::new(640), epoch(7)));
        assert!(read.knows(RaftIndex::new(641), epoch(8)));
        // Later ones each have an entry of their own.
        table.push(start(11, 1873, 651));
        let read = EpochTable::parse(&table.file_before(RaftIndex::new(700)));
        assert_eq!(read.entries().len(), 3);
    }
}
