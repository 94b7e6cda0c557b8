//! Looking up the first record at or after a time.

use bytes::Bytes;
use tidelog_disk::read_up_to;
use tidelog_record::{Batch, BatchLimits, Offset, Timestamp};

use crate::error::{Damage, ReadError};
use crate::lookup::{start_at, start_of};
use crate::reader::LogReader;
use crate::segment::Segment;
use crate::walk::{BATCH_BYTES_LIMIT, Look, Walk, corruption};

impl LogReader {
    /// The first record below `end` whose timestamp is `timestamp` or later: its offset and its
    /// timestamp. `None` when there is none.
    ///
    /// Records need not be in the order of their timestamps: "first" is by offset. Waits for the
    /// disk: call it where that is allowed. Decompresses at most one batch.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when a batch on the way is damaged, [`ReadError::Disk`] when the
    /// disk refused.
    pub fn find_timestamp(
        &self,
        timestamp: Timestamp,
        end: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, ReadError> {
        let end = end.min(self.durable_offset());
        let segments = self.shared().segments();
        for segment in segments.iter() {
            if segment.header.base_offset >= end {
                break;
            }
            match self.find_in_segment(segment, timestamp, end) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(e) => {
                    // The file of a segment that was trimmed meanwhile is gone, with all records
                    // that could have been found there.
                    let start = self.log_start();
                    if segment
                        .sealed_end()
                        .is_none_or(|sealed| sealed.offset > start)
                    {
                        return Err(e);
                    }
                }
            }
        }
        Ok(None)
    }

    fn find_in_segment(
        &self,
        segment: &Segment,
        timestamp: Timestamp,
        end: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, ReadError> {
        let shared = self.shared();
        let start = self.log_start();
        if segment.sealed_end().is_some() && shared.sealed_max_timestamp(segment)? < timestamp {
            return Ok(None);
        }
        let entry = shared.with_index(segment, |index| {
            let by_time = index.before_timestamp(timestamp);
            let by_start = index.before_offset(start);
            // Entries are in order: the one further on is the better start.
            match (by_time, by_start) {
                (Some(a), Some(b)) if a.position < b.position => Some(b),
                (a, b) => a.or(b),
            }
        })?;
        let file = segment.file(&*shared.disk)?;
        let limit = u64::from(shared.readable_len(segment));
        let start_of_walk = entry.map_or_else(
            || start_of(segment),
            |entry| start_at(segment, &entry, shared.epoch_before(segment, &entry)),
        );
        let mut walk = Walk::new(&*file, start_of_walk);
        while u64::from(walk.end.position) < limit && walk.end.offset < end {
            // The walk keeps the largest timestamp so far; this batch's own is wanted.
            let before = walk.end;
            walk.end.max_timestamp = Timestamp::MIN;
            // From an index entry it is not far, and a damaged header must not hide a record.
            let passed = walk.step(limit, Look::Everything);
            passed.map_err(|e| e.at::<ReadError>(&segment.path, &before))?;
            let has_records = walk.end.offset > before.offset;
            if !has_records || walk.end.max_timestamp < timestamp || walk.end.offset <= start {
                continue;
            }
            let at = u64::from(before.position);
            let len = usize::try_from(walk.end.position - before.position).expect("32 bits");
            let bytes = Bytes::from(read_up_to(&*file, at, len)?);
            let found = first_at_or_after(bytes, timestamp, start, before.offset)
                .map_err(|what| corruption(&segment.path, &before, what))?;
            match found {
                Some((offset, _)) if offset >= end => return Ok(None),
                Some(found) => return Ok(Some(found)),
                // Only records below the log start are late enough.
                None => {}
            }
        }
        Ok(None)
    }
}

/// What was taken in once was within the limits of its day, which may have been others.
pub(crate) const STORED_LIMITS: BatchLimits = BatchLimits {
    batch_bytes_max: BATCH_BYTES_LIMIT,
    decompressed_bytes_max: 1 << 30,
    records_max: usize::MAX,
    record_headers_max: usize::MAX,
};

/// The first record of the batch at `start` or later with a late enough timestamp.
fn first_at_or_after(
    bytes: Bytes,
    timestamp: Timestamp,
    start: Offset,
    base: Offset,
) -> Result<Option<(Offset, Timestamp)>, Damage> {
    let batch = Batch::check(bytes, BATCH_BYTES_LIMIT)?;
    for record in batch.records(&STORED_LIMITS)? {
        let record = record?;
        let delta = u64::try_from(record.offset_delta).unwrap_or(0);
        let Some(offset) = base.checked_add(delta) else {
            break;
        };
        if offset >= start && record.timestamp >= timestamp {
            return Ok(Some((offset, record.timestamp)));
        }
    }
    Ok(None)
}
