//! Making of a stored batch one that holds fewer of its records, as compaction does.

use bytes::Bytes;

use crate::builder::{compressed, put_fields, seal};
use crate::varint::{put_varint, varint_len};
use crate::{
    BATCH_HEADER_LEN, BatchHeader, BuildError, Compression, Record, Timestamp, TimestampType,
};

/// The batch with this header when only `records` are left of it, in the order of their offsets.
///
/// Everything but the records, the count and what follows from these stays: base offset and last
/// offset delta, so that the batch stands for the same offsets, and each record's offset delta;
/// compression; the producer's id, epoch and sequence; the leader epoch. As Kafka does it.
///
/// With a `delete_horizon` the batch says until when its tombstones are to be kept: the base
/// timestamp is that time then (attribute bit 6), and the records' timestamp deltas count from
/// there. Without one, a horizon that is there stays. Under log append time, where the header has the
/// timestamp of all records, the deltas are 0.
///
/// Copies the records that are left.
///
/// # Errors
/// [`BuildError::Empty`] without records; [`BuildError::TimestampOverflow`] when a record's
/// timestamp is more than 64 bits away from the horizon; [`BuildError::TooLarge`] and
/// [`BuildError::Compress`].
pub fn retain_records(
    header: &BatchHeader,
    records: &[Record],
    delete_horizon: Option<Timestamp>,
) -> Result<Bytes, BuildError> {
    let Some(max_timestamp) = records.iter().map(|record| record.timestamp).max() else {
        return Err(BuildError::Empty);
    };
    let base = delete_horizon.map_or(header.base_timestamp, Timestamp::millis);
    let is_appended = header.attributes.timestamp_type() == TimestampType::LogAppendTime;
    let mut plain = vec![0; BATCH_HEADER_LEN];
    let mut fields = Vec::new();
    for record in records {
        let delta = match is_appended {
            true => Some(0),
            false => record.timestamp.millis().checked_sub(base),
        };
        let timestamp_delta = delta.ok_or(BuildError::TimestampOverflow {
            timestamp: record.timestamp,
            base: Timestamp::from_millis(base),
        })?;
        fields.clear();
        let headers = record.headers.iter();
        put_fields(
            &mut fields,
            timestamp_delta,
            record.offset_delta,
            record.key.as_deref(),
            record.value.as_deref(),
            headers.map(|header| (header.key.as_str(), header.value.as_deref())),
        );
        let too_large = BuildError::TooLarge {
            len: plain.len().saturating_add(fields.len()),
            max: i32::MAX.unsigned_abs() as usize,
        };
        let length = i32::try_from(fields.len()).map_err(|_| too_large)?;
        plain.reserve(varint_len(length) + fields.len());
        put_varint(&mut plain, length);
        plain.extend_from_slice(&fields);
    }

    // A header that names no known compression has no records that could have been read.
    let compression = header.attributes.compression().unwrap_or(Compression::None);
    let has_horizon = header.attributes.has_delete_horizon() || delete_horizon.is_some();
    let mut header = BatchHeader {
        attributes: header.attributes.with_delete_horizon(has_horizon),
        base_timestamp: base,
        // Under log append time all records have the one that the header gives.
        max_timestamp: max_timestamp.millis(),
        record_count: i32::try_from(records.len())
            .map_err(|_| BuildError::TooManyRecords { max: i32::MAX })?,
        ..*header
    };
    let bytes = match compression {
        Compression::None => plain,
        _ => compressed(compression, &plain[BATCH_HEADER_LEN..])?,
    };
    seal(&mut header, bytes)
}
