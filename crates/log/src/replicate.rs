//! What Raft does to a log beside reading it: append what a leader decided, take back what was never
//! committed, and say how far it is committed.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;
use tidelog_disk::{Disk, OpenHow};
use tidelog_record::{LeaderEpoch, Offset, ProducedBatch, RaftIndex, Timestamp};

use crate::append::next_index;
use crate::entry::{EntryKind, LogEntry};
use crate::epochs::EpochStart;
use crate::error::{AppendError, CreateError, Damage, OpenError, Poisoned, ReadError};
use crate::header::{LogIdentity, SEGMENT_HEADER_LEN};
use crate::internal::{InternalEntry, InternalKind};
use crate::log::{Log, remove_if_there};
use crate::lookup::{index_while_walking, start_walk};
use crate::open::Recovery;
use crate::options::LogOptions;
use crate::producers::rebuild;
use crate::roll::map_or_go_without;
use crate::segment::{LogEnd, Segment, index_path};
use crate::tail::Tail;
use crate::walk::{WalkError, pass};

/// Why entries were not appended.
#[derive(Debug, Error)]
pub enum ReplicateError {
    /// The first of them does not follow on the end of the log. Nothing happened.
    #[error("an entry does not follow on the log: {0}")]
    NotNext(Damage),
    /// As for [`Log::append`].
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why entries were not taken back.
#[derive(Debug, Error)]
pub enum TruncateError {
    /// They are committed, or not there. Nothing happened.
    #[error("entries from {from} on cannot be taken back: those from {committed} to {end} can")]
    OutOfRange {
        /// The first entry to be taken back.
        from: RaftIndex,
        /// The first one that is not committed.
        committed: RaftIndex,
        /// After the last one.
        end: RaftIndex,
    },
    /// A write failed; the log takes no more until it is opened again.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

impl Log {
    /// As [`Log::create`], for a log of which others tell how far it is committed.
    ///
    /// # Errors
    /// As for [`Log::create`].
    pub fn create_replica(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        now: Timestamp,
    ) -> Result<Self, CreateError> {
        let mut log = Self::create_how(disk, dir, identity, options, now, true)?;
        log.tail = Some(Tail::new(log.end));
        Ok(log)
    }

    /// As [`Log::open`], for a log of which others tell how far it is committed: `commit` is the last
    /// entry that was known to be, at the time of the stop.
    ///
    /// # Errors
    /// As for [`Log::open`].
    pub fn open_replica(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        checkpoint: Option<LogEnd>,
        commit: RaftIndex,
    ) -> Result<(Self, Recovery), OpenError> {
        let opened = Self::open_how(disk, dir, identity, options, checkpoint, false, true)?;
        Self::with_tail(opened, commit)
    }

    /// As [`Log::open_closed`] and [`Log::open_replica`] both: a log that was closed at `end`.
    ///
    /// # Errors
    /// As for [`Log::open`].
    pub fn open_closed_replica(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        end: LogEnd,
        commit: RaftIndex,
    ) -> Result<(Self, Recovery), OpenError> {
        let opened = Self::open_how(disk, dir, identity, options, Some(end), true, true)?;
        Self::with_tail(opened, commit)
    }

    fn with_tail(
        (mut log, recovery): (Self, Recovery),
        commit: RaftIndex,
    ) -> Result<(Self, Recovery), OpenError> {
        let tail = log.find_tail(commit.checked_add(1).unwrap_or(commit));
        let tail = tail.map_err(|e| match e {
            ReadError::Corrupt(corruption) => OpenError::Corrupt(corruption),
            ReadError::Disk(e) => OpenError::Disk(e),
            ReadError::OutOfRange { .. } => unreachable!("no offset was asked for"),
        })?;
        // What the end says of it may be taken back.
        log.shared.set_log_start(tail.committed().log_start);
        log.shared.set_committed(tail.committed());
        log.tail = Some(tail);
        log.remove_below_start();
        Ok((log, recovery))
    }

    /// The last entry that is known to be committed.
    pub fn commit(&self) -> RaftIndex {
        let committed = self.shared.committed();
        RaftIndex::new(committed.index.get().saturating_sub(1))
    }

    /// The place behind that entry.
    pub fn committed_end(&self) -> LogEnd {
        self.shared.committed()
    }

    /// Appends entries that a leader decided on, from the front of `entries`: as many as fit the
    /// active segment and at least one, rolling first when it is full or old. Gives how many; call
    /// again for the rest.
    ///
    /// Each entry must follow on the one before it, by its offset and epoch, and by its Raft index
    /// where it has one. Copies nothing. The bytes are then the operating system's; they are durable
    /// after a sync, and readable once committed.
    ///
    /// # Errors
    /// [`ReplicateError::NotNext`] when the first entry does not follow; the errors of
    /// [`Log::append`].
    ///
    /// # Panics
    /// When there are no entries, or the log is no replica.
    pub fn append_entries(
        &mut self,
        entries: &[LogEntry],
        now: Timestamp,
    ) -> Result<usize, ReplicateError> {
        assert!(self.tail.is_some(), "the log is told of no commits");
        self.shared.check().map_err(AppendError::from)?;
        let first = &entries[0];
        pass(
            &mut self.end.clone(),
            &first.header,
            Some(&first.body),
            None,
        )
        .map_err(ReplicateError::NotNext)?;
        if first.kind() == EntryKind::Batch {
            // One that is longer than a segment is to be, as it was allowed to be once, gets its own.
            self.roll_if_due(first.len_bytes() as u64, now)?;
        }
        self.write_durable_epochs();

        let max = u64::from(self.options.segment_bytes_max());
        let mut ends = Vec::with_capacity(entries.len());
        let mut end = self.end;
        let mut slices = Vec::with_capacity(entries.len() * 2);
        for entry in entries {
            let len = u64::from(end.position) + entry.len_bytes() as u64;
            let begins_next = entry.kind() == EntryKind::Batch && len > max;
            if !ends.is_empty() && begins_next {
                break;
            }
            // What does not follow is told by the next call, when it is the first one.
            if pass(&mut end, &entry.header, Some(&entry.body), None).is_err() {
                break;
            }
            ends.push(end);
            slices.extend([IoSlice::new(&entry.encoded), IoSlice::new(&entry.body)]);
        }
        let len = u64::from(end.position - self.end.position);
        // What was decided on was let in before, and may use what is left.
        self.reserve_to_write(len, true)?;
        self.write(&slices).map_err(AppendError::from)?;

        let mut before = self.end;
        for (entry, end) in entries.iter().zip(&ends) {
            self.note_in_index(&before);
            if end.epoch > before.epoch {
                self.shared.epochs.write().push(EpochStart {
                    epoch: end.epoch,
                    offset: before.offset,
                    index: before.index,
                });
                self.epochs_unwritten = true;
            }
            if entry.is_noted {
                self.noted = self.noted.saturating_sub(1);
            } else if entry.kind() == EntryKind::Batch {
                self.producers.note(&entry.header, before.offset, Some(now));
            }
            let tail = self.tail.as_mut().expect("checked above");
            tail.push(entry.kind(), end.position - before.position, *end);
            before = *end;
        }
        self.since_snapshot += len;
        self.advance(end);
        self.write_index_if_due();
        if self.noted == 0 && self.owes_snapshot {
            self.write_producers_durably();
        }
        self.write_producers_if_due();
        Ok(ends.len())
    }

    /// Takes space for entries of `len` bytes together, `staged` of which somebody has taken space for
    /// before: as far as they fit the active segment. Rolls before the first of them, of `first` bytes,
    /// when that segment is full or old. What was not refused here finds its space later.
    ///
    /// # Errors
    /// Those of [`Log::append`].
    pub fn make_room(
        &mut self,
        staged: u64,
        first: u64,
        len: u64,
        now: Timestamp,
    ) -> Result<(), AppendError> {
        self.shared.check()?;
        if staged == 0 {
            self.roll_if_due(first, now)?;
        }
        let wanted = (staged + len).min(self.room_in_segment(first));
        self.reserve(wanted, self.options.appends_use_room)
    }

    /// How many bytes of entries go into one segment, the first of them being so long: the rest of the
    /// active one, or the next one.
    pub fn room_in_segment(&self, first: u64) -> u64 {
        let max = u64::from(self.options.segment_bytes_max());
        let left = max.saturating_sub(u64::from(self.end.position));
        if first <= left {
            return left;
        }
        max.saturating_sub(SEGMENT_HEADER_LEN as u64).max(first)
    }

    /// As [`Log::make_room`], for internal entries: they may take the last of the log's space, and
    /// never cause a roll.
    ///
    /// # Errors
    /// Those of [`Log::append`].
    pub fn make_internal_room(&mut self, len: u64) -> Result<(), AppendError> {
        self.shared.check()?;
        self.reserve(len, true)
    }

    /// Whether a change of members lies past the commit.
    pub fn has_uncommitted_change(&self) -> bool {
        self.uncommitted_change_after(RaftIndex::ZERO).is_some()
    }

    /// The first change of members past the commit, and past the entry `after`.
    pub fn uncommitted_change_after(&self, after: RaftIndex) -> Option<RaftIndex> {
        let committed = self.shared.committed().index;
        let mut infos = self.tail.as_ref()?.infos(committed);
        let change = infos.find(|info| info.kind == EntryKind::ConfChange && info.index > after);
        change.map(|info| info.index)
    }

    /// A batch that is about to be proposed at `base`: what its producer sends next is measured by it
    /// from now on.
    ///
    /// It must go in, or [`Log::forget_noted`] be called.
    pub fn note_proposed(
        &mut self,
        batch: &ProducedBatch,
        base: Offset,
        now: Timestamp,
    ) -> LogEntry {
        self.producers.note(batch.header(), base, Some(now));
        self.noted += 1;
        let mut entry = LogEntry::batch(batch);
        entry.is_noted = true;
        entry
    }

    /// Forgets the batches that were noted and did not go in: what is known of producers is found out
    /// again from the log.
    ///
    /// # Errors
    /// When it cannot be read: the log takes no more, since a batch that is there might be taken for a new
    /// one.
    pub fn forget_noted(&mut self) -> Result<(), Poisoned> {
        self.noted = 0;
        let segments = self.shared.segments();
        let known = rebuild(self.disk(), self.dir(), &segments, &self.end);
        if let Some(e) = known.failed {
            return Err(self.shared.poison(e));
        }
        self.producers = known.producers;
        self.since_snapshot = known.walked_bytes;
        Ok(())
    }

    /// An internal entry that follows on the end of the log when `ahead` entries with as many
    /// records have gone in before it.
    ///
    /// # Errors
    /// [`AppendError::Exhausted`] when there are no more indexes.
    pub fn next_internal(
        &self,
        kind: InternalKind,
        epoch: LeaderEpoch,
        ahead: u64,
        records: u64,
    ) -> Result<InternalEntry, AppendError> {
        let next_offset = self.end.offset.checked_add(records);
        Ok(InternalEntry {
            index: next_index(self.end.index, ahead)?,
            epoch,
            next_offset: next_offset.ok_or(AppendError::Exhausted)?,
            kind,
        })
    }

    /// Everything up to the entry `index` is committed, as far as it is here: it is readable from now
    /// on, never changes, and a log start in it is in force. Gives the place behind it.
    ///
    /// Removes segments below a new log start. Whoever keeps the commit must have made it durable
    /// before one that raises the log start, or an open after power loss would not know of it.
    ///
    /// # Panics
    /// When the log is no replica.
    pub fn commit_to(&mut self, index: RaftIndex) -> LogEnd {
        let tail = self.tail.as_mut().expect("the log is told of commits");
        let next = index.checked_add(1).unwrap_or(index);
        let committed = tail.commit(next);
        self.take_commit(committed);
        committed
    }

    fn take_commit(&mut self, committed: LogEnd) {
        self.shared.set_committed(committed);
        if committed.log_start > self.shared.log_start() {
            self.shared.set_log_start(committed.log_start);
            self.remove_below_start();
        }
    }

    /// The place that becomes the end of the log when the entry `from` and all behind it are taken
    /// back.
    ///
    /// # Errors
    /// [`TruncateError::OutOfRange`] when they cannot be.
    pub fn end_before(&self, from: RaftIndex) -> Result<LogEnd, TruncateError> {
        let place = self.tail.as_ref().and_then(|tail| tail.before(from));
        place.ok_or_else(|| TruncateError::OutOfRange {
            from,
            committed: self.shared.committed().index,
            end: self.end.index,
        })
    }

    /// Takes back the entry `from` and all behind it, which were never committed. When this returns,
    /// power loss does not bring them back.
    ///
    /// Before anything is cut, `set_back` makes the new end durable as the log's checkpoint: one past
    /// the end makes the next open refuse the log as damaged. No sync round that is under way records an
    /// older end after that. Waits for one that has begun.
    ///
    /// # Errors
    /// [`TruncateError::OutOfRange`] when the entries are committed or not there;
    /// [`TruncateError::Poisoned`] when this, or `set_back`, failed.
    pub fn truncate(
        &mut self,
        from: RaftIndex,
        set_back: impl FnOnce(LogEnd) -> Result<(), Poisoned>,
    ) -> Result<LogEnd, TruncateError> {
        let end = self.end_before(from)?;
        if end.index == self.end.index {
            return Ok(end);
        }
        self.shared.check()?;
        let shared = self.shared.clone();
        // Nobody makes durable meanwhile what is being taken back.
        let syncing = shared.hold_syncs();
        let taken = {
            let mut cuts = shared.cuts();
            *cuts += 1;
            set_back(end)
        };
        let taken = taken.and_then(|()| self.take_back(&end));
        taken.map_err(|e| self.shared.poison_with(e))?;
        self.shared.set_back(end, &self.file);
        drop(syncing);

        self.end = end;
        self.shared.epochs.write().cut(end.index);
        if let Some(tail) = &mut self.tail {
            tail.cut(end.index);
        }
        self.forget_noted()?;
        self.recent_snapshots.clear();
        self.durable_snapshots.retain(|_, at| at.index <= end.index);
        // Before others come to lie behind those of what was taken back.
        self.remove_stale_producers();
        tracing::info!(dir = %self.dir().display(), index = %end.index, offset = %end.offset,
            "entries that were never committed were taken back");
        Ok(end)
    }

    /// Removes the segments behind the one that `end` lies in, and cuts that one.
    ///
    /// In this order: a crash leaves the entries there, or some of them, one behind the other.
    fn take_back(&mut self, end: &LogEnd) -> Result<(), Poisoned> {
        let poisoned = |e| Poisoned { cause: Arc::new(e) };
        let mut segments = self.shared.segments().to_vec();
        while let Some(newest) = segments.last()
            && newest.header.sequence > end.sequence
        {
            remove_if_there(self.disk(), &newest.path).map_err(poisoned)?;
            // Before the one in front of it is cut: what follows on an end that is not there any
            // more is damage.
            self.disk().sync_dir(self.dir()).map_err(poisoned)?;
            let index = index_path(self.dir(), newest.header.base_offset);
            if let Err(e) = remove_if_there(self.disk(), &index) {
                tracing::warn!(error = %e, "the index of a segment that is gone was not removed");
            }
            segments.pop();
        }
        let segment = segments
            .pop()
            .expect("a place in the tail lies in a segment");
        if segment.sealed_end().is_some() {
            self.active = self.unseal(&segment, end).map_err(poisoned)?;
            let file = self.active.open_file();
            self.file = file.expect("an active segment is open");
        } else if let Some(index) = &mut *self.active.index.write() {
            index.cut(end.position);
        }
        segments.push(self.active.clone());
        let len = u64::from(end.position);
        self.file.set_len(len).map_err(poisoned)?;
        self.file.sync_data().map_err(poisoned)?;
        self.reserved = len;
        self.shared.set_segments(segments);
        self.write_index(false);
        Ok(())
    }

    /// A sealed segment as the active one again, up to `end`.
    fn unseal(
        &self,
        segment: &Segment,
        end: &LogEnd,
    ) -> Result<Arc<Segment>, tidelog_disk::DiskError> {
        let file = match segment.open_file() {
            Some(file) => file,
            None => self.disk().open(&segment.path, OpenHow::Write)?,
        };
        let committed = self.shared.committed();
        if committed.sequence == segment.header.sequence {
            file.freeze(u64::from(committed.position));
        }
        let path = index_path(self.dir(), segment.header.base_offset);
        let base = Segment::index_base(&segment.header);
        let limit = u64::from(end.position);
        let mut index = crate::index::SegmentIndex::load(self.disk(), &path, base, limit);
        loop {
            let is_empty = index.entries().is_empty();
            let epoch = |entry: &_| Some(self.shared.epoch_before(segment, entry));
            let mut walk = start_walk(&*file, segment, &mut index, epoch);
            let interval = self.options.index_interval_bytes;
            match index_while_walking(&mut walk, &mut index, segment, limit, interval) {
                Ok(()) if walk.end.chain == end.chain => break,
                Err(WalkError::Disk(e)) => return Err(e),
                // Of another history.
                _ if !is_empty => index.clear(),
                // Its bytes are damaged: whoever reads them is told.
                _ => break,
            }
        }
        let map_len = map_or_go_without(&*file, &self.options);
        Ok(Arc::new(Segment::active(
            segment.path.clone(),
            segment.header.clone(),
            segment.header_len,
            file,
            index,
            end.position,
            map_len,
        )))
    }
}
