//! What a log does with its producers.

use tidelog_record::{ProducedBatch, Timestamp};

use super::{ProducerError, StoredBatch, Verdict, snapshot};
use crate::log::{Log, remove_if_there};

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
        if self.noted > 0 {
            // It would tell of batches that power loss may still take, or a leader refuse.
            self.lacks_snapshot = true;
            self.owes_snapshot = true;
            return;
        }
        self.owes_snapshot = false;
        // Also when it fails: the next interval tries again.
        self.since_snapshot = 0;
        let written = snapshot::write(self.disk(), self.dir(), &self.end, &self.producers);
        self.lacks_snapshot = written.is_err();
        match written {
            Ok(len) => self.snapshot_len = len,
            Err(error) => tracing::warn!(%error, "a snapshot of producers was not written"),
        }
        self.recent_snapshots.push_back(self.end.offset);
    }

    /// As [`Log::write_producers`]; the snapshot survives power loss, where it could be written.
    pub(crate) fn write_producers_durably(&mut self) {
        self.write_producers();
        if self.noted > 0 {
            return;
        }
        if let Err(error) = snapshot::sync(self.disk(), self.dir(), self.end.offset) {
            tracing::warn!(%error, "power loss may make producers of removed segments forgotten");
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
            if oldest == self.active.header.base_offset {
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
        let is_segment = |offset| {
            segments.iter().any(|segment| {
                segment.header.base_offset == offset && segment.header.compacted.is_none()
            })
        };
        let removed = snapshot::remove_stale(self.disk(), self.dir(), self.end.offset, is_segment);
        if let Err(error) = removed {
            tracing::warn!(%error, "old snapshots of producers were not removed");
        }
    }
}
