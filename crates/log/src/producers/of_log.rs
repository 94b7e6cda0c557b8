//! What a log does with its producers.

use std::sync::Arc;

use tidelog_disk::DiskError;
use tidelog_record::{Offset, ProducedBatch, Timestamp};

use super::{ProducerError, Snapshot, StoredBatch, Verdict, leads_on, load_all, rebuild, snapshot};
use crate::log::{Log, remove_if_there};
use crate::roll::encode_header;
use crate::segment::{LogEnd, Segment};

/// So many are kept beside those of the segments' beginnings: a start falls back to the one before
/// when the newest is broken or ahead of what became durable.
const SNAPSHOTS_KEPT: usize = 2;

impl Log {
    /// Where the batch was stored before, or `None` if it is one to be stored.
    ///
    /// # Errors
    /// Why an append of it would be refused.
    pub fn check_producer(
        &self,
        batch: &ProducedBatch,
    ) -> Result<Option<StoredBatch>, ProducerError> {
        self.producers
            .check(batch.header())
            .map(|verdict| match verdict {
                Verdict::Stored(stored) => Some(stored),
                Verdict::Next => None,
            })
    }

    /// How many producers the log knows.
    pub fn producer_count(&self) -> usize {
        self.producers.len()
    }

    /// The largest id of a producer that the log knows.
    pub fn largest_producer_id(&self) -> Option<i64> {
        self.producers.largest_id()
    }

    /// Forgets producers that were last heard of before `before`; returns how many. `now` is the
    /// time that those found at the open count as heard of.
    pub fn expire_producers(&mut self, before: Timestamp, now: Timestamp) -> usize {
        self.producers.expire(before, now)
    }

    /// Writes a snapshot of the producers as they are now. Without one the next open reads more.
    pub(crate) fn write_producers(&mut self) {
        self.write_snapshot(false);
    }

    /// As [`Log::write_producers`]; the snapshot survives power loss, where it could be written.
    pub(crate) fn write_producers_durably(&mut self) {
        self.write_snapshot(true);
    }

    fn write_snapshot(&mut self, durably: bool) {
        if self.noted > 0 {
            // It would tell of batches that power loss may still take, or a leader refuse.
            self.owes_snapshot = true;
            return;
        }
        self.owes_snapshot = false;
        // Also when it fails: the next interval tries again.
        self.since_snapshot = 0;
        let (disk, end) = (self.disk(), self.end);
        let written = if durably {
            snapshot::write_durably(disk, self.dir(), &end, &self.producers)
        } else {
            snapshot::write(disk, self.dir(), &end, &self.producers)
        };
        self.recent_snapshots.push_back(end.offset);
        match written {
            Ok(len) => self.snapshot_len = len,
            Err(ref error) => tracing::warn!(%error, "a snapshot of producers was not written"),
        }
        if durably && written.is_ok() {
            self.note_durable(end);
        }
    }

    /// Writes what [`Log::keep_producers`] had no space for, now that there is some.
    pub(crate) fn write_unkept(&mut self, unkept: Option<Snapshot>) {
        if let Some(snapshot) = unkept
            && let Err(error) = self.write_durably(&snapshot)
        {
            tracing::warn!(%error, "producers of removed segments may be forgotten");
        }
    }

    /// Writes a snapshot of another place than the end.
    fn write_durably(&mut self, known: &Snapshot) -> Result<(), DiskError> {
        let Snapshot { end, producers } = known;
        snapshot::write_durably(self.disk(), self.dir(), end, producers)?;
        self.note_durable(*end);
        Ok(())
    }

    /// The first one in a segment is the one that serves for the longest time.
    fn note_durable(&mut self, at: LogEnd) {
        self.durable_snapshots.entry(at.sequence).or_insert(at);
    }

    /// Makes what all of `segments` before the one at `first_kept` tell of their producers outlive
    /// them, by a durable snapshot that stands in that one or behind it, and that no truncation takes back. The
    /// roll has written it, unless a stop came in between, batches were noted that had not gone in, or the
    /// log is a copy; then this reads as much as an open does.
    ///
    /// Gives the snapshot where there is no space to write it.
    ///
    /// # Errors
    /// When it can neither be found out nor written.
    pub(crate) fn keep_producers(
        &mut self,
        segments: &[Arc<Segment>],
        first_kept: usize,
    ) -> Result<Option<Snapshot>, DiskError> {
        let (before, after) = segments.split_at(first_kept);
        let first_kept = &after[0].header;
        let committed = self.shared.committed().index;
        let durable = self.durable_snapshots.get(&first_kept.sequence);
        if before.is_empty() || durable.is_some_and(|at| at.index <= committed) {
            return Ok(None);
        }
        let mut unread = None;
        let mut snapshots = load_all(self.disk(), self.dir())?;
        let there = snapshots.find_map(|snapshot| {
            let snapshot = snapshot.map_err(|e| unread = Some(e)).ok()?;
            let is_fit = snapshot.end.sequence >= first_kept.sequence
                && snapshot.end.index <= committed
                && leads_on(self.disk(), after, &snapshot, &self.end);
            is_fit.then_some(snapshot.end)
        });
        drop(snapshots);
        if let Some(at) = there {
            snapshot::sync(self.disk(), self.dir(), at.offset)?;
            self.note_durable(at);
            return Ok(None);
        }
        if let Some(error) = unread {
            return Err(error);
        }
        let start = LogEnd::after_header(first_kept, &encode_header(first_kept));
        let known = rebuild(self.disk(), self.dir(), before, &start);
        if let Some(error) = known.failed {
            return Err(error);
        }
        if !known.is_whole {
            tracing::warn!(dir = %self.dir().display(),
                "no snapshot of producers holds: those that were silent for long may be forgotten");
        }
        let snapshot = Snapshot {
            end: start,
            producers: known.producers,
        };
        match self.write_durably(&snapshot) {
            Ok(()) => Ok(None),
            Err(e) if e.is_full() => Ok(Some(snapshot)),
            Err(e) => Err(e),
        }
    }

    /// As [`Log::write_producers`] between two rolls. What no start will want any more goes at once,
    /// without a look at the directory.
    pub(crate) fn write_producers_between(&mut self) {
        self.write_producers();
        while self.recent_snapshots.len() > SNAPSHOTS_KEPT {
            let Some(oldest) = self.recent_snapshots.pop_front() else {
                return;
            };
            let mut durable = self.durable_snapshots.values();
            let is_base = oldest == self.active.header.base_offset;
            if is_base || durable.any(|at| at.offset == oldest) {
                continue;
            }
            let path = snapshot::snapshot_path(self.dir(), oldest);
            if let Err(error) = remove_if_there(self.disk(), &path) {
                tracing::warn!(%error, "an old snapshot of producers was not removed");
            }
        }
    }

    /// Removes the snapshots that no start will want, whoever wrote them.
    pub(crate) fn remove_stale_producers(&mut self) {
        self.recent_snapshots.clear();
        let segments = self.shared.segments();
        let tells = |segment: &Arc<Segment>| segment.header.compacted.is_none();
        self.durable_snapshots.retain(|sequence, _| {
            let mut there = segments.iter();
            there.any(|segment| segment.header.sequence == *sequence && tells(segment))
        });
        let segment_of = |offset: Offset| {
            let after = segments.partition_point(|segment| segment.header.base_offset <= offset);
            let segment = segments.get(after.checked_sub(1)?)?;
            tells(segment).then_some(segment.header.base_offset)
        };
        let kept: Vec<Offset> = self
            .durable_snapshots
            .values()
            .map(|at| at.offset)
            .collect();
        let (disk, dir) = (self.disk(), self.dir());
        let removed = snapshot::remove_stale(disk, dir, self.end.offset, segment_of, &kept);
        if let Err(error) = removed {
            tracing::warn!(%error, "old snapshots of producers were not removed");
        }
    }
}
