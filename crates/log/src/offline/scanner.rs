//! A walk over one segment file that goes on behind damage.

use std::sync::Arc;

use tidelog_disk::{DiskError, DiskFile};
use tidelog_record::{BATCH_HEADER_LEN, BatchError, BatchHeader, LeaderEpoch, Offset, check_batch};

use super::Depth;
use crate::epochs::EpochStart;
use crate::header::CompactedSegment;
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry};
use crate::segment::LogEnd;
use crate::walk::{BATCH_BYTES_LIMIT, WalkError, chain, pass};

/// How much is read at a time.
const WINDOW_LEN: usize = 256 << 10;

/// Reads a file through a window, so that small batches cost few calls.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    bytes: Vec<u8>,
    at: u64,
}

impl Window {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self {
            file,
            bytes: Vec::new(),
            at: 0,
        }
    }

    /// The bytes `at..at + len`, or fewer when the file ends before.
    pub(super) fn bytes(&mut self, at: u64, len: usize) -> Result<&[u8], DiskError> {
        let inside = at >= self.at && at + len as u64 <= self.at + self.bytes.len() as u64;
        if !inside {
            self.bytes.resize(len.max(WINDOW_LEN), 0);
            // A window that was made for a large batch is not kept for small ones.
            self.bytes.shrink_to(len.max(WINDOW_LEN));
            let read = self.file.read_at(at, &mut self.bytes)?;
            self.bytes.truncate(read);
            self.at = at;
        }
        let start = usize::try_from(at - self.at).expect("inside the window");
        let rest = &self.bytes[start..];
        Ok(&rest[..rest.len().min(len)])
    }

    /// How many bytes from `at` to `limit` are there up to the last that is not zero.
    pub(super) fn used(&mut self, at: u64, limit: u64) -> Result<u64, DiskError> {
        let mut used = 0;
        let mut from = at;
        while from < limit {
            let step = usize::try_from((limit - from).min(WINDOW_LEN as u64)).expect("small");
            let bytes = self.bytes(from, step)?;
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                used = from - at + last as u64 + 1;
            }
            if bytes.len() < step {
                break;
            }
            from += step as u64;
        }
        Ok(used)
    }
}

/// One batch that was passed.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) header: BatchHeader,
    /// Where it begins.
    pub(super) before: LogEnd,
    /// Its base offset: in a compacted segment it may lie behind the one that comes next.
    pub(super) base: Offset,
    /// Set for an internal entry.
    pub(super) internal: Option<InternalEntry>,
}

/// The walk.
#[derive(Debug)]
pub(super) struct Scanner {
    pub(super) window: Window,
    /// Where it stands, and what was seen so far.
    pub(super) end: LogEnd,
    /// Leader epochs that began on the way.
    pub(super) epochs: Vec<EpochStart>,
    /// Whether everything since the start was as it should be: else the chain and the Raft index
    /// are not to be compared with anything.
    pub(super) is_whole: bool,
    compacted: Option<CompactedSegment>,
    limit: u64,
    depth: Depth,
}

impl Scanner {
    pub(super) fn new(
        file: Arc<dyn DiskFile>,
        start: LogEnd,
        compacted: Option<CompactedSegment>,
        limit: u64,
        depth: Depth,
    ) -> Self {
        Self {
            window: Window::new(file),
            end: start,
            epochs: Vec::new(),
            is_whole: true,
            compacted,
            limit,
            depth,
        }
    }

    pub(super) fn is_compacted(&self) -> bool {
        self.compacted.is_some()
    }

    pub(super) fn position(&self) -> u64 {
        u64::from(self.end.position)
    }

    pub(super) fn is_at_limit(&self) -> bool {
        self.position() >= self.limit
    }

    /// How many bytes there are from here on, up to the last that is not zero.
    pub(super) fn used_behind(&mut self) -> Result<u64, DiskError> {
        self.window.used(self.position(), self.limit)
    }

    /// Passes the batch that must come next. After an error it stands where it stood.
    pub(super) fn step(&mut self) -> Result<Passed, WalkError> {
        let at = self.position();
        let header = self.header_at(at)?;
        let is_internal = header.attributes.is_control();
        let mut internal = None;
        let mut body = None;
        if self.depth == Depth::Everything || is_internal {
            let batch = self.window.bytes(at, header.total_len())?;
            check_batch(batch, BATCH_BYTES_LIMIT).map_err(|e| WalkError::Damage(e.into()))?;
            // Only internal entries are looked into, and those are small.
            if is_internal && batch.len() <= INTERNAL_LEN_MAX {
                body = Some(batch[BATCH_HEADER_LEN..].to_vec());
            }
        }
        if let Some(body) = &body {
            let entry = InternalEntry::decode(&header, body);
            let entry = entry.map_err(|e| WalkError::Damage(e.into()))?;
            if !self.is_whole {
                // How many entries were skipped is not known; from here on it is again.
                self.end.index = entry.index;
            }
            internal = Some(entry);
        }
        let before = self.end;
        let compacted = self.compacted.as_ref();
        pass(&mut self.end, &header, body.as_deref(), compacted).map_err(WalkError::Damage)?;
        if self.end.epoch > before.epoch {
            // In a compacted segment it may begin behind where the walk stood.
            let began = internal.as_ref();
            self.epochs.push(EpochStart {
                epoch: self.end.epoch,
                offset: began.map_or(before.offset, |entry| entry.next_offset),
                index: began.map_or(before.index, |entry| entry.index),
            });
        }
        Ok(Passed {
            base: Offset::from_wire(header.base_offset).unwrap_or(before.offset),
            header,
            before,
            internal,
        })
    }

    /// The header of the batch at `at`, which must lie wholly below the limit.
    fn header_at(&mut self, at: u64) -> Result<BatchHeader, WalkError> {
        let room = usize::try_from(self.limit.saturating_sub(at)).unwrap_or(usize::MAX);
        let bytes = self.window.bytes(at, room.min(BATCH_HEADER_LEN))?;
        let header = BatchHeader::decode(bytes, BATCH_BYTES_LIMIT)
            .map_err(|e| WalkError::Damage(e.into()))?;
        let needed = header.total_len();
        if needed > room {
            let short = BatchError::Truncated { needed, have: room };
            return Err(WalkError::Damage(short.into()));
        }
        Ok(header)
    }

    /// After a problem: goes to the next place from which it can go on. Gives how many bytes were
    /// passed over beyond the damaged batch itself, or `None` when nothing more can be made out.
    pub(super) fn go_on(&mut self) -> Result<Option<u64>, DiskError> {
        self.is_whole = false;
        let at = self.position();
        if let Some(header) = ok_or_disk(self.header_at(at))?
            && self.continues_behind(&header)?
        {
            self.pass_anyway(&header);
            return Ok(Some(0));
        }
        // It may be a good one that only comes too early.
        if let Some(header) = self.believable_at(at)?
            && header.base_offset > self.end.offset.to_wire()
        {
            self.adopt(&header);
            return Ok(Some(0));
        }
        let mut next = at + 1;
        while next < self.limit {
            let Some(found) = self.find_magic(next)? else {
                return Ok(None);
            };
            if let Some(header) = self.believable_at(found)? {
                self.end.position = u32::try_from(found).unwrap_or(u32::MAX);
                self.adopt(&header);
                return Ok(Some(found - at));
            }
            next = found + 1;
        }
        Ok(None)
    }

    /// Whether the damaged batch is followed by what would follow it if its header were right.
    fn continues_behind(&mut self, header: &BatchHeader) -> Result<bool, DiskError> {
        let behind = self.position() + header.total_len() as u64;
        if behind >= self.limit {
            return Ok(behind == self.limit);
        }
        let next_offset = self.offset_behind(header);
        let Some(next) = ok_or_disk(self.header_at(behind))? else {
            // The last one, with reserved space behind it.
            return Ok(self.window.used(behind, self.limit)? == 0);
        };
        if self.compacted.is_some() {
            // Where any later offset may come next, the next batch's checksum has to speak for it.
            let batch = self.window.bytes(behind, next.total_len())?;
            return Ok(check_batch(batch, BATCH_BYTES_LIMIT).is_ok());
        }
        Ok(next_offset.is_some_and(|offset| offset.to_wire() == next.base_offset))
    }

    /// The offset after the batch with this header, standing where it is expected.
    fn offset_behind(&self, header: &BatchHeader) -> Option<Offset> {
        if let Some(compacted) = &self.compacted {
            let base = Offset::from_wire(header.base_offset)?;
            let offsets = u64::try_from(i64::from(header.last_offset_delta) + 1).ok()?;
            let behind = base.checked_add(offsets)?;
            return (behind <= compacted.end_offset).then_some(behind);
        }
        let records = u64::try_from(header.record_count).ok()?;
        self.end.offset.checked_add(records)
    }

    fn pass_anyway(&mut self, header: &BatchHeader) {
        let len = u32::try_from(header.total_len()).unwrap_or(u32::MAX);
        self.end.position = self.end.position.saturating_add(len);
        self.end.chain = chain(self.end.chain, &header.encode());
        self.end.offset = self.offset_behind(header).unwrap_or(self.end.offset);
        if self.compacted.is_none() {
            self.end.index = self.end.index.checked_add(1).unwrap_or(self.end.index);
        }
        // The next batch tells whether an epoch began here, and where the offsets go on.
        let behind = self.position();
        if let Ok(next) = self.header_at(behind) {
            self.adopt_epoch(&next);
            if let (Some(_), Some(next)) = (&self.compacted, Offset::from_wire(next.base_offset)) {
                self.end.offset = self.end.offset.min(next);
            }
        }
        self.end.settle(self.compacted.as_ref());
    }

    /// The next position from `from` on where the magic of a batch stands in its place.
    fn find_magic(&mut self, from: u64) -> Result<Option<u64>, DiskError> {
        const MAGIC_AT: usize = 16;
        let mut at = from;
        while at + (BATCH_HEADER_LEN as u64) <= self.limit {
            let room = usize::try_from(self.limit - at).unwrap_or(usize::MAX);
            let bytes = self.window.bytes(at, room.min(WINDOW_LEN / 2))?;
            if bytes.len() < BATCH_HEADER_LEN {
                return Ok(None);
            }
            let magics = &bytes[MAGIC_AT..];
            if let Some(found) = magics.iter().position(|byte| *byte == 2) {
                return Ok(Some(at + found as u64));
            }
            at += magics.len() as u64;
        }
        Ok(None)
    }

    /// The header of a whole batch at `at` whose checksum holds and that may come later in this
    /// segment.
    fn believable_at(&mut self, at: u64) -> Result<Option<BatchHeader>, DiskError> {
        let Some(header) = ok_or_disk(self.header_at(at))? else {
            return Ok(None);
        };
        let last = self.compacted.map_or(i64::MAX, |c| c.end_offset.to_wire());
        let is_later = (self.end.offset.to_wire()..=last).contains(&header.base_offset);
        let epoch = LeaderEpoch::from_wire(header.leader_epoch);
        let is_of_an_epoch = epoch.is_some_and(|epoch| epoch >= self.end.epoch);
        if !is_later || !is_of_an_epoch || header.record_count < 0 {
            return Ok(None);
        }
        let batch = self.window.bytes(at, header.total_len())?;
        Ok(check_batch(batch, BATCH_BYTES_LIMIT).ok())
    }

    fn adopt(&mut self, header: &BatchHeader) {
        self.end.offset = Offset::from_wire(header.base_offset).unwrap_or(self.end.offset);
        self.adopt_epoch(header);
    }

    fn adopt_epoch(&mut self, header: &BatchHeader) {
        let epoch = LeaderEpoch::from_wire(header.leader_epoch);
        // An internal entry may begin its own.
        if let Some(epoch) = epoch.filter(|_| !header.attributes.is_control()) {
            self.end.epoch = self.end.epoch.max(epoch);
        }
    }
}

fn ok_or_disk<T>(result: Result<T, WalkError>) -> Result<Option<T>, DiskError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(WalkError::Damage(_)) => Ok(None),
        Err(WalkError::Disk(e)) => Err(e),
    }
}
