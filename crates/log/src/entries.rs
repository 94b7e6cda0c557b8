//! Reading a log as Raft sees it: entry by entry, by Raft index.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tidelog_record::{BATCH_HEADER_LEN, BatchHeader, LeaderEpoch, RaftIndex};

use crate::entry::{EntryInfo, EntryKind, kind_of};
use crate::error::ReadError;
use crate::internal::{InternalEntry, InternalKind};
use crate::log::Log;
use crate::lookup::start_of;
use crate::open::INITIAL_EPOCH;
use crate::segment::{LogEnd, Segment};
use crate::tail::Tail;
use crate::walk::{Look, Walk, WalkError, corruption};

/// Why entries cannot be told or read.
#[derive(Debug, Error)]
pub enum EntriesError {
    /// They are not there any more, one by one: trimmed or compacted. What is left is there as files.
    #[error("the entry {index} is gone; the first one is {first}")]
    Gone {
        /// The one asked for.
        index: RaftIndex,
        /// The first one there is.
        first: RaftIndex,
    },
    /// They are not there yet.
    #[error("there is no entry {index} yet; the next one is {end}")]
    NotYet {
        /// The one asked for.
        index: RaftIndex,
        /// After the last one.
        end: RaftIndex,
    },
    /// The files are damaged, or the disk failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// An entry on its way, and its place.
struct Passed<'a, 'f> {
    info: EntryInfo,
    header: BatchHeader,
    /// Before it.
    before: LogEnd,
    walk: &'a Walk<'f>,
    segment: &'a Segment,
}

impl Passed<'_, '_> {
    /// All of its bytes, checked: in a buffer of their own, into which they are read off the disk or its cache.
    fn read(&self) -> Result<Bytes, ReadError> {
        let at = u64::from(self.before.position);
        let read = self.walk.batch_at(at, &self.header);
        let read = read.map_err(|e| e.at::<ReadError>(&self.segment.path, &self.before))?;
        Ok(read.into())
    }
}

impl Log {
    /// The first entry that is there by itself. What came before was trimmed or compacted.
    pub fn first_index(&self) -> RaftIndex {
        self.shared.first_index()
    }

    /// After the last entry.
    pub fn end_index(&self) -> RaftIndex {
        self.end.index
    }

    /// The leader epoch that wrote the entry `index`, or the last one before the first that is there.
    ///
    /// # Errors
    /// [`EntriesError::Gone`] and [`EntriesError::NotYet`].
    pub fn epoch_of(&self, index: RaftIndex) -> Result<LeaderEpoch, EntriesError> {
        let (first, end) = (self.first_index(), self.end.index);
        let after = index.checked_add(1).unwrap_or(index);
        if after < first {
            return Err(EntriesError::Gone { index, first });
        }
        if after > end {
            return Err(EntriesError::NotYet { index, end });
        }
        let known = self.shared.epochs.read().before_index(after);
        Ok(known.unwrap_or_else(|| {
            let segments = self.shared.segments();
            segments[0].header.epoch.max(INITIAL_EPOCH)
        }))
    }

    /// What the entries `from..to` are, from the front and at least one, until their lengths pass
    /// `bytes_max`. Those that are not committed are known; the headers of others are read.
    ///
    /// # Errors
    /// When not all of them are there, or cannot be read.
    pub fn entries(
        &self,
        from: RaftIndex,
        to: RaftIndex,
        bytes_max: u64,
    ) -> Result<Vec<EntryInfo>, EntriesError> {
        self.check_range(from, to)?;
        let mut room = Room::new(bytes_max);
        let committed = self.shared.committed().index;
        if let Some(tail) = &self.tail
            && from >= committed
        {
            let below = |info: &EntryInfo| info.index < to && room.takes(info.len);
            return Ok(tail.infos(from).take_while(below).collect());
        }
        let mut infos = Vec::new();
        self.walk_entries(from, to, |passed| {
            let is_taken = room.takes(passed.info.len);
            if is_taken {
                infos.push(passed.info);
            }
            Ok(is_taken)
        })?;
        Ok(infos)
    }

    /// The entries `from..to` as they stand in the log, checked, from the front and at least one,
    /// until their lengths pass `bytes_max`. Copies them off the disk, or its cache, once.
    ///
    /// # Errors
    /// As for [`Log::entries`].
    pub fn read_entries(
        &self,
        from: RaftIndex,
        to: RaftIndex,
        bytes_max: u64,
    ) -> Result<Vec<(EntryInfo, Bytes)>, EntriesError> {
        self.check_range(from, to)?;
        let mut room = Room::new(bytes_max);
        let mut entries = Vec::new();
        self.walk_entries(from, to, |passed| {
            let is_taken = room.takes(passed.info.len);
            if is_taken {
                entries.push((passed.info, passed.read()?));
            }
            Ok(is_taken)
        })?;
        Ok(entries)
    }

    /// The content of the configuration change at `index`; `None` where another entry is.
    ///
    /// # Errors
    /// As for [`Log::entries`].
    pub fn conf_change(&self, index: RaftIndex) -> Result<Option<Bytes>, EntriesError> {
        let next = index.checked_add(1).unwrap_or(index);
        let entries = self.read_entries(index, next, 0)?;
        Ok(entries.into_iter().next().and_then(|(_, bytes)| {
            let header = BatchHeader::decode(&bytes, bytes.len()).ok()?;
            let entry = InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..]).ok()?;
            match entry.kind {
                InternalKind::RaftConfChange(change) => Some(change),
                _ => None,
            }
        }))
    }

    fn check_range(&self, from: RaftIndex, to: RaftIndex) -> Result<(), EntriesError> {
        let (first, end) = (self.first_index(), self.end.index);
        if from < first {
            return Err(EntriesError::Gone { index: from, first });
        }
        if to > end || from >= to {
            return Err(EntriesError::NotYet {
                index: from.max(to),
                end,
            });
        }
        Ok(())
    }

    /// Passes the entries `from..to`, for as long as `pass` says yes.
    fn walk_entries(
        &self,
        from: RaftIndex,
        to: RaftIndex,
        mut pass: impl FnMut(Passed<'_, '_>) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let segments = self.shared.segments();
        let mut next = from;
        while next < to {
            let segment = segment_of(&segments, next);
            let start = self.start_before(segment, next, true)?;
            let file = segment.file(self.disk())?;
            let limit = segment
                .sealed_end()
                .map_or(self.end.position, |end| end.len);
            let mut walk = Walk::new(&*file, segment, start);
            while next < to && walk.end.position < limit {
                let before = walk.end;
                let (info, header) = step(&mut walk, segment, limit)?;
                if before.index >= next {
                    next = walk.end.index;
                    let passed = Passed {
                        info,
                        header,
                        before,
                        walk: &walk,
                        segment,
                    };
                    if !pass(passed)? {
                        return Ok(());
                    }
                }
            }
            let is_stuck = walk.end.index < next || walk.end.position < limit;
            if is_stuck && next < to {
                let what = crate::Damage::NotContinued("entries are missing at its end");
                return Err(corruption(&segment.path, &walk.end, what).into());
            }
        }
        Ok(())
    }

    /// A place in `segment` before the entry `index`: by its index, or its beginning.
    fn start_before(
        &self,
        segment: &Segment,
        index: RaftIndex,
        by_index: bool,
    ) -> Result<LogEnd, ReadError> {
        if !by_index {
            return Ok(start_of(segment));
        }
        let entry = self
            .shared
            .with_index(segment, |entries| entries.before_index(index))?;
        Ok(self.shared.start_of_walk(segment, entry))
    }

    /// The tail of a log that was just opened: what lies behind the place before the entry `next`.
    pub(crate) fn find_tail(&self, next: RaftIndex) -> Result<Tail, ReadError> {
        let next = next.clamp(self.first_index(), self.end.index);
        let mut tail = self.walk_tail(next, true)?;
        let begun = tail.committed().log_start;
        if tail
            .infos(next)
            .any(|info| info.kind == EntryKind::Internal)
        {
            // Index entries do not tell the log start that was in force before the tail.
            tail = self.walk_tail(next, false)?;
        } else {
            tail.raise_log_start(begun.max(self.end.log_start));
        }
        Ok(tail)
    }

    fn walk_tail(&self, next: RaftIndex, by_index: bool) -> Result<Tail, ReadError> {
        let segments = self.shared.segments();
        let first = segment_of(&segments, next);
        let at = segments.iter().position(|s| Arc::ptr_eq(s, first));
        let mut tail = None;
        for segment in &segments[at.unwrap_or_default()..] {
            let begin = match &mut tail {
                None => self.start_before(segment, next, by_index)?,
                Some(tail) => {
                    let begin = start_of(segment);
                    Tail::rolled(tail, begin);
                    begin
                }
            };
            let file = segment.file(self.disk())?;
            let limit = segment
                .sealed_end()
                .map_or(self.end.position, |end| end.len);
            let mut walk = Walk::new(&*file, segment, begin);
            loop {
                if tail.is_none() && walk.end.index >= next {
                    tail = Some(Tail::new(walk.end));
                }
                if walk.end.position >= limit {
                    break;
                }
                let (info, _) = step(&mut walk, segment, limit)?;
                if let Some(tail) = &mut tail {
                    tail.push(info.kind, info.len, walk.end);
                }
            }
        }
        Ok(tail.unwrap_or_else(|| Tail::new(self.end)))
    }
}

/// The newest segment that begins at or before the entry `index`.
fn segment_of(segments: &[Arc<Segment>], index: RaftIndex) -> &Arc<Segment> {
    let after = segments.partition_point(|segment| segment.header.base_index <= index);
    &segments[after.saturating_sub(1)]
}

/// Passes one entry.
fn step(
    walk: &mut Walk<'_>,
    segment: &Segment,
    limit: u32,
) -> Result<(EntryInfo, BatchHeader), ReadError> {
    let before = walk.end;
    let stepped = walk.step(u64::from(limit), Look::Headers);
    let header = stepped.map_err(|e| e.at::<ReadError>(&segment.path, &before))?;
    let len = walk.end.position - before.position;
    let kind = if header.attributes.is_control() {
        let at = u64::from(before.position) + BATCH_HEADER_LEN as u64;
        let body_len = len as usize - BATCH_HEADER_LEN;
        let body = walk.bytes(at, body_len, body_len).map_err(WalkError::Disk);
        let body = body.map_err(|e| e.at::<ReadError>(&segment.path, &before))?;
        kind_of(&header, body).map_err(|e| corruption(&segment.path, &before, e.into()))?
    } else {
        EntryKind::Batch
    };
    let info = EntryInfo {
        index: before.index,
        epoch: walk.end.epoch,
        kind,
        len,
    };
    Ok((info, header))
}

/// How much more fits an answer, whose first entry always does.
struct Room {
    left: Option<u64>,
    bytes_max: u64,
}

impl Room {
    fn new(bytes_max: u64) -> Self {
        Self {
            left: None,
            bytes_max,
        }
    }

    fn takes(&mut self, len: u32) -> bool {
        let len = u64::from(len);
        match self.left {
            None => self.left = Some(self.bytes_max.saturating_sub(len)),
            Some(left) if left >= len => self.left = Some(left - len),
            Some(_) => return false,
        }
        true
    }
}
