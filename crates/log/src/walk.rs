//! Walking a segment file batch by batch, with the checks that make its bytes believable.
//!
//! What the CRC of a batch leaves out (base offset, length, epoch) is held by continuity: each
//! batch must carry exactly the offset and the leader epoch that come next. In a compacted segment
//! offsets only rise; there the chain in the segment header holds them.

use std::path::Path;

use tidelog_disk::{DiskError, DiskFile, read_up_to};
use tidelog_record::{
    BATCH_HEADER_LEN, BatchError, BatchHeader, LeaderEpoch, Offset, RaftIndex, check_batch,
};

use crate::epochs::EpochStart;
use crate::error::{Corruption, Damage};
use crate::header::CompactedSegment;
use crate::internal::{InternalEntry, InternalError, InternalKind};
use crate::segment::{LogEnd, Segment};

/// The longest batch any file is believed to hold, in bytes. A topic's `max.message.bytes` is
/// below it; it may have been higher when the batch was written.
pub const BATCH_BYTES_LIMIT: usize = 128 << 20;

/// Moves `end` past the batch with this header, when it is the one that must come next; in a
/// compacted segment, when it may come next: what is left of a log has gaps.
///
/// `body` is what follows the header, its CRC checked; it is needed for internal entries only.
pub(crate) fn pass(
    end: &mut LogEnd,
    header: &BatchHeader,
    body: Option<&[u8]>,
    compacted: Option<&CompactedSegment>,
) -> Result<(), Damage> {
    let offset_max = compacted.map_or(end.offset, |compacted| compacted.end_offset);
    let base = Offset::from_wire(header.base_offset)
        .filter(|base| (end.offset..=offset_max).contains(base))
        .ok_or(Damage::WrongOffset {
            found: header.base_offset,
        })?;
    let len = u32::try_from(header.total_len()).ok();
    let position =
        len.and_then(|len| end.position.checked_add(len))
            .ok_or(BatchError::TooLarge {
                len: header.total_len(),
                max: BATCH_BYTES_LIMIT,
            })?;
    let mut next = LogEnd {
        position,
        chain: chain(end.chain, &header.encode()),
        ..*end
    };

    if header.attributes.is_control() {
        let entry = InternalEntry::decode(header, body.unwrap_or_default())?;
        let index_max = compacted.map_or(end.index, |compacted| compacted.end_index);
        if !(end.index..=index_max).contains(&entry.index) {
            return Err(InternalError::Malformed("its Raft index is not the next one").into());
        }
        next.offset = base;
        next.index = index_after(entry.index)?;
        match entry.kind {
            InternalKind::SegmentHeader(_) => {
                return Err(InternalError::Malformed("a second segment header").into());
            }
            InternalKind::RaftEmpty if entry.epoch > end.epoch => next.epoch = entry.epoch,
            _ if entry.epoch == end.epoch => {}
            _ => return Err(wrong_epoch(header, end.epoch)),
        }
        if let InternalKind::LogStart(offset) = entry.kind {
            next.log_start = next.log_start.max(offset);
        }
    } else {
        if header.leader_epoch != end.epoch.to_wire() {
            return Err(wrong_epoch(header, end.epoch));
        }
        let offsets = u64::try_from(i64::from(header.last_offset_delta) + 1).unwrap_or(0);
        let wrong_count = Damage::WrongCount {
            records: header.record_count,
            last_offset_delta: header.last_offset_delta,
        };
        let count = i64::from(header.record_count);
        let fits = match compacted {
            None => i64::from(header.last_offset_delta) == count - 1,
            Some(_) => i64::from(header.last_offset_delta) >= count - 1,
        };
        if count < 1 || !fits {
            return Err(wrong_count);
        }
        next.offset = base.checked_add(offsets).ok_or(wrong_count)?;
        if compacted.is_some_and(|compacted| next.offset > compacted.end_offset) {
            return Err(Damage::WrongOffset {
                found: header.base_offset,
            });
        }
        // How many entries were left out before it is not known.
        if compacted.is_none() {
            next.index = index_after(end.index)?;
        }
        next.max_timestamp = next
            .max_timestamp
            .max(tidelog_record::Timestamp::from_millis(header.max_timestamp));
    }
    next.settle(compacted);
    *end = next;
    Ok(())
}

fn index_after(index: RaftIndex) -> Result<RaftIndex, InternalError> {
    let after = index.checked_add(1);
    after.ok_or(InternalError::Malformed("there is no Raft index after it"))
}

fn wrong_epoch(header: &BatchHeader, expected: LeaderEpoch) -> Damage {
    Damage::WrongEpoch {
        found: header.leader_epoch,
        expected: expected.get(),
    }
}

/// The chain checksum `chain`, continued over one more batch header.
pub(crate) fn chain(chain: u32, header: &[u8; BATCH_HEADER_LEN]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(chain);
    crc.update(header);
    crc.finalize()
}

/// How closely a walk looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// At batch headers and internal entries.
    Headers,
    /// At every byte.
    Everything,
}

/// Why a walk ended before its end.
#[derive(Debug)]
pub(crate) enum WalkError {
    Damage(Damage),
    Disk(DiskError),
}

impl From<DiskError> for WalkError {
    fn from(e: DiskError) -> Self {
        Self::Disk(e)
    }
}

impl WalkError {
    /// Whether this is a good entry that only a newer version understands.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Damage(Damage::Internal(InternalError::Unknown { .. }))
        )
    }

    /// Names the place: `end` is where the walk stood.
    pub(crate) fn at<E: From<Corruption> + From<DiskError>>(self, path: &Path, end: &LogEnd) -> E {
        match self {
            Self::Disk(e) => e.into(),
            Self::Damage(what) => corruption(path, end, what).into(),
        }
    }
}

/// Damage at `end`.
pub(crate) fn corruption(path: &Path, end: &LogEnd, what: Damage) -> Corruption {
    Corruption {
        path: path.to_owned(),
        position: u64::from(end.position),
        offset: end.offset,
        what,
    }
}

/// Walks a file from a batch border on.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    file: &'a dyn DiskFile,
    compacted: Option<CompactedSegment>,
    /// Where it began.
    pub(crate) start: LogEnd,
    /// Where the walk stands, and what it has seen so far.
    pub(crate) end: LogEnd,
    /// Leader epochs that began on the way.
    pub(crate) epochs: Vec<EpochStart>,
    window: Vec<u8>,
    window_at: u64,
    /// How long the next window is.
    window_len: usize,
}

/// Most steps find their bytes in the window that a step before read. The first is short, since most
/// walks are, and each is twice as long as the one before, up to the second number, unless what is wanted lies
/// past what would have been read along.
const WINDOW_LENS: [usize; 2] = [4 << 10, 256 << 10];

impl<'a> Walk<'a> {
    pub(crate) fn new(file: &'a dyn DiskFile, segment: &Segment, start: LogEnd) -> Self {
        Self {
            file,
            compacted: segment.header.compacted,
            start,
            end: start,
            epochs: Vec::new(),
            window: Vec::new(),
            window_at: 0,
            window_len: WINDOW_LENS[0],
        }
    }

    /// Passes one batch that must lie wholly below `limit`; gives its header.
    pub(crate) fn step(&mut self, limit: u64, look: Look) -> Result<BatchHeader, WalkError> {
        let at = u64::from(self.end.position);
        let room = limit.saturating_sub(at);
        let room_len = usize::try_from(room).unwrap_or(usize::MAX);
        let available = self.bytes(at, room_len.min(BATCH_HEADER_LEN), room_len)?;
        let header = BatchHeader::decode(available, BATCH_BYTES_LIMIT)
            .map_err(|e| WalkError::Damage(e.into()))?;
        let len = header.total_len();
        if len > room_len {
            let short = BatchError::Truncated {
                needed: len,
                have: room_len,
            };
            return Err(WalkError::Damage(short.into()));
        }
        let before = self.end;
        let body = if look == Look::Everything || header.attributes.is_control() {
            let batch = self.bytes(at, len, room_len)?;
            check_batch(batch, BATCH_BYTES_LIMIT).map_err(|e| WalkError::Damage(e.into()))?;
            // Internal entries are small; other bodies are not needed.
            header
                .attributes
                .is_control()
                .then(|| batch[BATCH_HEADER_LEN..].to_vec())
        } else {
            None
        };
        let compacted = self.compacted.as_ref();
        pass(&mut self.end, &header, body.as_deref(), compacted).map_err(WalkError::Damage)?;
        if self.end.epoch > before.epoch {
            // In a compacted segment these may lie before where it stands, and `settle` may have
            // moved that on.
            let began = match (&self.compacted, body) {
                (Some(_), Some(body)) => InternalEntry::decode(&header, &body).ok(),
                _ => None,
            };
            self.epochs.push(EpochStart {
                epoch: self.end.epoch,
                offset: began
                    .as_ref()
                    .map_or(before.offset, |entry| entry.next_offset),
                index: began.as_ref().map_or(before.index, |entry| entry.index),
            });
        }
        Ok(header)
    }

    /// The batch at `at`, past whose `header` the walk went: read into a buffer of its own, and checked.
    pub(crate) fn batch_at(&self, at: u64, header: &BatchHeader) -> Result<Vec<u8>, WalkError> {
        let bytes = read_up_to(self.file, at, header.total_len())?;
        check_batch(&bytes, BATCH_BYTES_LIMIT).map_err(|e| WalkError::Damage(e.into()))?;
        // What no checksum of the batch covers is what was compared with the place.
        if bytes[..BATCH_HEADER_LEN] != header.encode() {
            let what = Damage::NotContinued("a batch changed while it was read");
            return Err(WalkError::Damage(what));
        }
        Ok(bytes)
    }

    /// The bytes `at..at + len`, or fewer when the file ends before; of what follows, up to `room`
    /// bytes may be read along.
    pub(crate) fn bytes(&mut self, at: u64, len: usize, room: usize) -> Result<&[u8], DiskError> {
        let inside =
            at >= self.window_at && at + len as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let longer = (self.window_len * 2).min(WINDOW_LENS[1]);
            let reached = self.window_at + longer as u64;
            if !self.window.is_empty() && (self.window_at..reached).contains(&at) {
                self.window_len = longer;
            }
            self.window.resize(len.max(self.window_len.min(room)), 0);
            let read = self.file.read_at(at, &mut self.window)?;
            self.window.truncate(read);
            self.window_at = at;
        }
        let start = usize::try_from(at - self.window_at).expect("inside the window");
        let rest = &self.window[start..];
        Ok(&rest[..rest.len().min(len)])
    }
}
