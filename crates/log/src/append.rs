//! Appending: stamp, reserve, write, note in the index.

use std::io::IoSlice;

use bytes::Bytes;
use tidelog_record::{BATCH_HEADER_LEN, LeaderEpoch, Offset, ProducedBatch, RaftIndex, Timestamp};

use crate::error::{AppendError, Poisoned};
use crate::header::SEGMENT_HEADER_LEN;
use crate::index::SegmentIndex;
use crate::internal::InternalKind;
use crate::log::Log;
use crate::producers::{StoredBatch, Verdict};
use crate::segment::{LogEnd, SEGMENT_BYTES_LIMIT};
use crate::walk::chain;

/// What one call of [`Log::append`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// How many batches were taken, from the front.
    pub batches: usize,
    /// The offset of the first record of the first batch; the others follow without a gap.
    pub base_offset: Offset,
    /// The first batch was stored before, at `base_offset`: it is the only one taken, and nothing
    /// was written. It may not be durable yet.
    pub duplicate: Option<StoredBatch>,
}

/// How many index entries wait in memory before the file gets them.
const INDEX_ENTRIES_PER_WRITE: usize = 256;
/// A snapshot of the producers is written after so many bytes, or eight times its own length: what
/// an open after a kill has to walk.
const SNAPSHOT_INTERVAL: u64 = 8 << 20;

impl Log {
    /// Appends batches from the front of `batches`, as many as fit the active segment and at least
    /// one, rolling first when it is full or old. Call again for the rest.
    ///
    /// A batch of an idempotent producer is taken only if it is its next one, and told to be a
    /// duplicate if it was stored before.
    ///
    /// The batches get the next offsets and the present leader epoch, in their headers. The bytes
    /// are then the operating system's; they are durable after a sync. Copies 61 bytes a batch,
    /// the stamped headers; bodies go to the file as they are.
    ///
    /// # Errors
    /// With [`AppendError::WriteFailed`] it is not known whether the batches will be there after the
    /// next open. With all others they surely will not: nothing of them was written, though an epoch
    /// that waited for space may have begun and a segment been sealed. After
    /// [`AppendError::Full`] and [`AppendError::OutOfFiles`] the log takes more once there is space or
    /// a file; [`AppendError::Producer`] and [`AppendError::TooLarge`] are about the first batch
    /// alone; [`AppendError::Exhausted`] stays, and so does [`AppendError::Poisoned`] until the next
    /// open.
    ///
    /// # Panics
    /// When `batches` is empty, or the log is a replica.
    pub fn append(
        &mut self,
        batches: &mut [ProducedBatch],
        now: Timestamp,
    ) -> Result<Appended, AppendError> {
        assert!(self.tail.is_none(), "a replica takes entries");
        self.shared.check()?;
        if let Verdict::Stored(stored) = self.producers.check(batches[0].header())? {
            return Ok(Appended {
                batches: 1,
                base_offset: stored.base_offset,
                duplicate: Some(stored),
            });
        }
        self.check_len(batches[0].total_len() as u64)?;
        self.begin_pending_epoch()?;
        self.roll_if_due(batches[0].total_len() as u64, now)?;
        self.write_durable_epochs();
        let (count, len) = self.fitting(batches);
        self.reserve_to_write(len, self.options.appends_use_room)?;

        // Nothing may fail between the write and its note in `end`.
        next_index(self.end.index, count as u64)?;
        let base_offset = self.end.offset;
        let mut stamped: Vec<([u8; BATCH_HEADER_LEN], Bytes)> = Vec::with_capacity(count);
        let mut next = base_offset;
        for (at, batch) in batches[..count].iter_mut().enumerate() {
            // The first was checked above. What ends the run is answered by the next call.
            if at > 0 && self.producers.check(batch.header()) != Ok(Verdict::Next) {
                break;
            }
            batch.stamp(next, self.end.epoch);
            next = match next.checked_add(u64::from(batch.record_count())) {
                Some(next) => next,
                None if at == 0 => return Err(AppendError::Exhausted),
                None => break,
            };
            stamped.push(batch.parts());
            // Before the write, since the batches behind are checked against it. If the write
            // fails, nothing is ever appended again.
            let offset = Offset::from_wire(batch.header().base_offset).expect("it was just given");
            self.producers.note(batch.header(), offset, Some(now));
        }
        let count = stamped.len();
        let mut slices = Vec::with_capacity(count * 2);
        for (header, body) in &stamped {
            slices.extend([IoSlice::new(header), IoSlice::new(body)]);
        }
        self.write(&slices).map_err(AppendError::WriteFailed)?;

        let mut end = self.end;
        for (batch, (header, body)) in batches[..count].iter().zip(&stamped) {
            self.note_in_index(&end);
            end.position += u32_len(BATCH_HEADER_LEN + body.len());
            end.offset = end
                .offset
                .checked_add(u64::from(batch.record_count()))
                .expect("checked before the write");
            end.index = next_index(end.index, 1).expect("checked before the write");
            end.chain = chain(end.chain, header);
            end.max_timestamp = end.max_timestamp.max(batch.max_timestamp());
        }
        self.since_snapshot += u64::from(end.position - self.end.position);
        self.advance(end);
        self.write_index_if_due();
        self.write_producers_if_due();
        Ok(Appended {
            batches: count,
            base_offset,
            duplicate: None,
        })
    }

    /// Writes one internal entry. It never causes a roll.
    pub(crate) fn append_internal(
        &mut self,
        kind: InternalKind,
        epoch: LeaderEpoch,
    ) -> Result<(), AppendError> {
        self.shared.check()?;
        let log_start = match kind {
            InternalKind::LogStart(offset) => offset,
            _ => self.end.log_start,
        };
        let entry = self.internal_entry(kind, epoch).encode();
        let len = u32_len(entry.len());
        let position = self
            .end
            .position
            .checked_add(len)
            .filter(|position| *position <= SEGMENT_BYTES_LIMIT)
            .ok_or(AppendError::Exhausted)?;
        let index = next_index(self.end.index, 1)?;
        self.reserve_to_write(u64::from(len), true)?;
        self.write(&[IoSlice::new(&entry)])?;
        let before = self.end;
        self.note_in_index(&before);
        let header = entry
            .first_chunk()
            .expect("an entry begins with a batch header");
        self.advance(LogEnd {
            position,
            index,
            epoch,
            chain: chain(self.end.chain, header),
            log_start,
            ..self.end
        });
        Ok(())
    }

    /// Checks that a batch of `len` bytes fits a segment behind its header.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`] when it does not.
    pub fn check_len(&self, len: u64) -> Result<(), AppendError> {
        let max = u64::from(self.options.segment_bytes_max());
        if len + SEGMENT_HEADER_LEN as u64 > max {
            return Err(AppendError::TooLarge {
                len,
                segment_bytes: max,
            });
        }
        Ok(())
    }

    /// How many batches from the front go into the active segment, and their bytes.
    ///
    /// The first one always does: after `roll_if_due` it fits, or the segment has no records and so
    /// cannot be rolled, however many internal entries have filled it.
    fn fitting(&self, batches: &[ProducedBatch]) -> (usize, u64) {
        let max = u64::from(self.options.segment_bytes_max());
        let room = max.saturating_sub(u64::from(self.end.position));
        let mut len = batches[0].total_len() as u64;
        let mut count = 1;
        for batch in &batches[1..] {
            let more = len + batch.total_len() as u64;
            if more > room {
                break;
            }
            len = more;
            count += 1;
        }
        (count, len)
    }

    pub(crate) fn write_producers_if_due(&mut self) {
        if self.since_snapshot >= SNAPSHOT_INTERVAL.max(8 * self.snapshot_len) {
            self.write_producers_between();
        }
    }

    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>]) -> Result<(), Poisoned> {
        // After a failure any part may be on disk, to be found valid by the next open: only not
        // writing on keeps "failed" from turning into "acknowledged as something else".
        self.file
            .write_at(u64::from(self.end.position), slices)
            .map_err(|e| self.shared.poison(e))
    }

    pub(crate) fn advance(&mut self, end: LogEnd) {
        self.end = end;
        self.shared.set_written(end, &self.file);
    }

    /// Adds an index entry for the border at `end` when the last one is far enough behind.
    pub(crate) fn note_in_index(&mut self, end: &LogEnd) {
        let mut index = self.active.index.write();
        let Some(index) = &mut *index else { return };
        let interval = self.options.index_interval_bytes;
        index.push_if_due(end, self.active.header_len, interval);
    }

    pub(crate) fn write_index_if_due(&mut self) {
        let unwritten = self
            .active
            .index
            .read()
            .as_ref()
            .map_or(0, SegmentIndex::unwritten);
        if unwritten >= INDEX_ENTRIES_PER_WRITE {
            self.write_index(false);
        }
    }
}

pub(crate) fn next_index(index: RaftIndex, entries: u64) -> Result<RaftIndex, AppendError> {
    index.checked_add(entries).ok_or(AppendError::Exhausted)
}

fn u32_len(len: usize) -> u32 {
    u32::try_from(len).expect("segments, and so entries, are below 2 GiB")
}
