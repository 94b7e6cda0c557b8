//! What a log does with its producers.

use tidelog_record::{ProducedBatch, Timestamp};

use super::{ProducerError, StoredBatch, Verdict, snapshot};
use crate::log::Log;

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
        // Also when it fails: the next interval tries again.
        self.since_snapshot = 0;
        match snapshot::write(self.disk(), self.dir(), &self.end, &self.producers) {
            Ok(len) => self.snapshot_len = len,
            Err(error) => tracing::warn!(%error, "a snapshot of producers was not written"),
        }
        self.remove_stale_producers();
    }

    pub(crate) fn remove_stale_producers(&self) {
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
