//! The readers' half of a log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidelog_disk::DiskFile;
use tidelog_record::{BATCH_HEADER_LEN, BatchHeader, LeaderEpoch, Offset};

use crate::cold::ColdRead;
use crate::epochs::EpochStart;
use crate::error::{Poisoned, ReadError};
use crate::segment::{LogEnd, Segment};
use crate::shared::Shared;
use crate::walk::BATCH_BYTES_LIMIT;

/// Reads one log, from any thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
}

/// Whole record batches of a log, in order, without internal entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Slices of one or more whole batches each. The first batch may begin below the offset asked
    /// for.
    pub parts: Vec<Bytes>,
    /// The offset after the last record here: where to read on.
    pub next_offset: Offset,
}

impl Batches {
    /// No batches; reading goes on at `next_offset`.
    pub fn empty(next_offset: Offset) -> Self {
        Self {
            parts: Vec::new(),
            next_offset,
        }
    }

    /// The length of all parts, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether there are no batches.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

/// What [`LogReader::read`] found.
#[derive(Debug)]
pub enum Found {
    /// The batches, most likely still in memory.
    Ready(Batches),
    /// They must be fetched from the disk, on a thread that may wait.
    Cold(ColdRead),
}

/// A segment, as `describe` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its file.
    pub path: PathBuf,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// The length of its durable entries, in bytes; the file may be longer.
    pub len: u64,
    /// Whether it is complete.
    pub sealed: bool,
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The first offset that can be read.
    pub fn log_start(&self) -> Offset {
        self.shared.log_start()
    }

    /// The next offset to be assigned: what lies below was given to the operating system.
    pub fn end_offset(&self) -> Offset {
        self.shared.end_offset()
    }

    /// Everything below survives power loss on this machine.
    pub fn durable_offset(&self) -> Offset {
        self.shared.durable_offset()
    }

    /// Everything below is never taken back: what can be read.
    pub fn committed_offset(&self) -> Offset {
        self.shared.committed_offset()
    }

    /// The place up to which the log survives power loss on this machine.
    pub fn durable(&self) -> LogEnd {
        self.shared.durable()
    }

    /// Why the log takes no more writes, if so.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.shared.poisoned()
    }

    /// The leader epochs known, oldest first.
    pub fn epochs(&self) -> Vec<EpochStart> {
        self.shared.epochs.read().entries().to_vec()
    }

    /// The leader epoch that wrote the record at `offset`, or would write it next.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.shared.epochs.read().epoch_at(offset)
    }

    /// The segments, oldest first; the last one is active.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let segments = self.shared.segments();
        let ends = segments.iter().skip(1).map(|next| next.header.base_offset);
        let ends = ends.chain([self.shared.end_offset()]);
        segments
            .iter()
            .zip(ends)
            .map(|(segment, end_offset)| SegmentInfo {
                path: segment.path.clone(),
                base_offset: segment.header.base_offset,
                end_offset,
                len: u64::from(self.shared.readable_len(segment)),
                sealed: segment.sealed_end().is_some(),
            })
            .collect()
    }

    /// Reads whole batches from the one that holds `from` on, all of them below `end`, which is
    /// the high watermark and at most [`LogReader::committed_offset`].
    ///
    /// Stops before `bytes_max` is passed, except that the first batch is always given; stops at
    /// the end of a segment, so call again from `next_offset`. `from == end` gives no batches; nor
    /// does a compacted segment that has nothing left from `from` on, where `next_offset` is its
    /// end.
    ///
    /// Copies no payload: recent batches come as slices of the segment's map; older ones as a
    /// [`ColdRead`] to be run on a thread that may wait. Recent batches are most likely in memory;
    /// where the system has dropped such a page, this, or whoever reads the slice, waits for the
    /// disk after all.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] when `from` is below the log start or above `end`.
    pub fn read(&self, from: Offset, end: Offset, bytes_max: usize) -> Result<Found, ReadError> {
        let start = self.log_start();
        if from < start || from > end {
            return Err(ReadError::OutOfRange {
                requested: from,
                start,
                end,
            });
        }
        // What is not committed may still change.
        let end = end.min(self.committed_offset());
        if from >= end {
            return Ok(Found::Ready(Batches::empty(from)));
        }
        let Some(segment) = self.shared.segment_at(from) else {
            // Trimmed since the check above.
            let start = self.log_start();
            return Err(ReadError::OutOfRange {
                requested: from,
                start,
                end,
            });
        };
        match read_hot(&segment, from, end, bytes_max) {
            Some(batches) => Ok(Found::Ready(batches)),
            None => Ok(Found::Cold(ColdRead::new(
                self.shared.clone(),
                segment,
                from,
                end,
                bytes_max,
            ))),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// Reads through the map when everything needed is probably cached and surely frozen.
fn read_hot(segment: &Segment, from: Offset, end: Offset, bytes_max: usize) -> Option<Batches> {
    let position = {
        let index = segment.index.read();
        index
            .as_ref()?
            .before_offset(from)
            .map_or(segment.header_len, |entry| entry.position)
    };
    if !segment.is_hot_at(position) {
        return None;
    }
    let file: Arc<dyn DiskFile> = segment.open_file()?;
    let limit = file.frozen().min(segment.map_len);
    let len = limit.checked_sub(u64::from(position))?;
    let window = file.slice(u64::from(position), usize::try_from(len).ok()?)?;
    // Not verified, but for that: where batches do not follow on each other the page was dropped and
    // read anew from a place that holds something else. The cold read finds out what.
    let offsets = Offsets::Dense;
    collect_where(&window, from, end, bytes_max, offsets)
}

/// The batches of `window` that hold offsets in `from..end`. `window` begins at a batch border and
/// was verified or written by us.
///
/// In a compacted segment, where no batch may hold `from`, the first one behind it counts.
///
/// No batches when the one that holds `from` passes `end`. `None` when the window ends before that
/// batch does, or does not read as batches.
pub(crate) fn collect(
    window: &Bytes,
    from: Offset,
    end: Offset,
    bytes_max: usize,
) -> Option<Batches> {
    collect_where(window, from, end, bytes_max, Offsets::Verified)
}

/// What is known of the offsets of batches that stand one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offsets {
    /// They were checked.
    Verified,
    /// Each batch must begin where the one before ended; `None` where one does not.
    Dense,
}

fn collect_where(
    window: &Bytes,
    from: Offset,
    end: Offset,
    bytes_max: usize,
    offsets: Offsets,
) -> Option<Batches> {
    let mut batches = Batches::empty(from);
    let mut expected = None;
    let mut run_start = None;
    let mut taken = 0_usize;
    let mut at = 0;
    let mut is_reached = false;
    while window.len() - at >= BATCH_HEADER_LEN {
        let header = BatchHeader::decode(&window[at..], BATCH_BYTES_LIMIT).ok()?;
        let len = header.total_len();
        if len > window.len() - at {
            break;
        }
        let next = next_offset(&header)?;
        if offsets == Offsets::Dense {
            let base = Offset::from_wire(header.base_offset)?;
            if base != expected.unwrap_or(base.min(from)) {
                return None;
            }
            expected = Some(next);
        }
        if !header.attributes.is_control() && next > from {
            is_reached = true;
            if next > end || (taken > 0 && taken.saturating_add(len) > bytes_max) {
                break;
            }
            run_start.get_or_insert(at);
            taken += len;
            batches.next_offset = next;
        } else if let Some(start) = run_start.take() {
            batches.parts.push(window.slice(start..at));
        }
        at += len;
    }
    if let Some(start) = run_start {
        batches.parts.push(window.slice(start..at));
    }
    is_reached.then_some(batches)
}

/// The offset after a batch with this header.
pub(crate) fn next_offset(header: &BatchHeader) -> Option<Offset> {
    let count = u64::try_from(i64::from(header.last_offset_delta) + 1).ok()?;
    Offset::from_wire(header.base_offset)?.checked_add(count)
}
