//! Looking up the first record at or after a time.

use bytes::Bytes;
use tidelog_record::{Batch, BatchLimits, Offset, Timestamp};

use crate::error::{Damage, ReadError};
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
        let end = end.min(self.committed_offset());
        let mut from = self.log_start();
        let mut next = self.shared().segment_at(from);
        while let Some(segment) = next.filter(|segment| segment.header.base_offset < end) {
            match self.find_in_segment(&segment, timestamp, end) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => match segment.sealed_end() {
                    // Segments behind it may be trimmed by now.
                    Some(sealed) => from = sealed.offset.max(self.log_start()),
                    None => break,
                },
                // The file of a segment that was trimmed meanwhile is gone, with all records that
                // could have been found there; and that of one that was compacted is replaced.
                Err(e) if self.shared().is_current(&segment) => return Err(e),
                Err(_) => from = from.max(self.log_start()),
            }
            next = self.shared().segment_at(from);
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
        let mut walk = Walk::new(&*file, segment, shared.start_of_walk(segment, entry));
        let found = walk_to(&mut walk, segment, limit, timestamp, start, end)?;
        shared.check_passed(segment, walk)?;
        Ok(found.filter(|(offset, _)| *offset < end))
    }
}

/// The first record from `start` on that is late enough, if it lies below `limit` and no batch that
/// begins at `end` or behind has to be looked at.
fn walk_to(
    walk: &mut Walk<'_>,
    segment: &Segment,
    limit: u64,
    timestamp: Timestamp,
    start: Offset,
    end: Offset,
) -> Result<Option<(Offset, Timestamp)>, ReadError> {
    while u64::from(walk.end.position) < limit && walk.end.offset < end {
        // The walk keeps the largest timestamp so far; this batch's own is wanted.
        let before = walk.end;
        walk.end.max_timestamp = Timestamp::MIN;
        // From an index entry it is not far, and a damaged header must not hide a record.
        let header = walk
            .step(limit, Look::Everything)
            .map_err(|e| e.at::<ReadError>(&segment.path, &before))?;
        let has_records = !header.attributes.is_control();
        if !has_records || walk.end.max_timestamp < timestamp || walk.end.offset <= start {
            continue;
        }
        let base = Offset::from_wire(header.base_offset).unwrap_or(before.offset);
        let len = header.total_len();
        let bytes = walk.bytes(u64::from(before.position), len, len)?;
        let bytes = Bytes::copy_from_slice(bytes);
        let found = first_at_or_after(bytes, timestamp, start, base)
            .map_err(|what| corruption(&segment.path, &before, what))?;
        // Else only records below the log start are late enough.
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What was taken in once was within the limits of its day, which may have been others.
pub(crate) const STORED_LIMITS: BatchLimits = BatchLimits {
    batch_bytes_max: BATCH_BYTES_LIMIT,
    decompressed_bytes_max: 1 << 30,
    records_max: usize::MAX,
    record_headers_max: usize::MAX,
    keys_required: false,
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
