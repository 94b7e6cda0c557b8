//! What a broker does to a batch from a client before it may be appended.

use bytes::Bytes;

use crate::record::{record_count, skim_produced};
use crate::{
    BATCH_HEADER_LEN, Batch, BatchError, BatchHeader, BatchLimits, LeaderEpoch, Offset, Timestamp,
    TimestampType, compression,
};

/// Why a batch from a client may not be appended. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// It is no readable batch, or not within the limits.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// It has the control bit: only a broker writes such batches.
    #[error("record batch has the control bit, which only a broker may set")]
    Control,
    /// It belongs to a transaction.
    #[error("record batch is transactional; transactions are not supported")]
    Transactional,
    /// It has attribute bits that a client may not set.
    #[error("record batch has attribute bits {bits:#06x}; a client may set only bits 0 to 4")]
    Attributes {
        /// The bits, in their places: the delete horizon (6) and those without meaning (7 to 15).
        bits: u16,
    },
    /// Producer id, epoch and sequence do not go together.
    #[error(
        "record batch has producer id {producer_id}, epoch {producer_epoch} and base sequence \
         {base_sequence}; allowed are all three from 0 up, or all three -1"
    )]
    Producer {
        /// The producer id field.
        producer_id: i64,
        /// The producer epoch field.
        producer_epoch: i16,
        /// The base sequence field.
        base_sequence: i32,
    },
    /// It has no records.
    #[error("record batch has no records")]
    Empty,
    /// Its last offset delta and its count of records disagree.
    #[error(
        "record batch has last offset delta {last_offset_delta} and {record_count} records; the \
         first must be one below the second"
    )]
    LastOffsetDelta {
        /// The last offset delta field.
        last_offset_delta: i32,
        /// The record count field.
        record_count: i32,
    },
}

/// A batch from a client that was checked down to each record, and is to be appended.
///
/// To append it is to stamp it and to write its two [`parts`](Self::parts) back to back in one
/// vectored write. Only the 61 bytes of the header are ever copied: the body stays the slice of
/// the request it came in. Base offset and leader epoch are not under the CRC, so stamping them
/// costs nothing more; [`set_log_append_time`](Self::set_log_append_time) reads the body once for
/// a new CRC.
#[derive(Clone, Debug)]
pub struct ProducedBatch {
    header: BatchHeader,
    body: Bytes,
}

impl ProducedBatch {
    /// The header, as it will be written.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The (compressed) records, as they came.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// How many records there are: at least 1.
    pub fn record_count(&self) -> u32 {
        self.header.record_count.unsigned_abs()
    }

    /// The largest timestamp of the records: computed from them, not the client's claim, or the
    /// log append time.
    pub fn max_timestamp(&self) -> Timestamp {
        Timestamp::from_millis(self.header.max_timestamp)
    }

    /// Bytes that it takes in a log.
    pub fn total_len(&self) -> usize {
        BATCH_HEADER_LEN + self.body.len()
    }

    /// Gives it its place: the offset of its first record and the leadership that appends it.
    pub fn stamp(&mut self, base_offset: Offset, epoch: LeaderEpoch) {
        self.header.base_offset = base_offset.to_wire();
        self.header.leader_epoch = epoch.to_wire();
    }

    /// Makes `now` the timestamp of all its records, for topics that keep log append time.
    pub fn set_log_append_time(&mut self, now: Timestamp) {
        self.set_times(TimestampType::LogAppendTime, now);
    }

    /// The 61 bytes of the header and what follows them.
    pub fn parts(&self) -> ([u8; BATCH_HEADER_LEN], Bytes) {
        (self.header.encode(), self.body.clone())
    }

    fn set_times(&mut self, timestamp_type: TimestampType, max_timestamp: Timestamp) {
        let attributes = self.header.attributes.with_timestamp_type(timestamp_type);
        if attributes != self.header.attributes
            || max_timestamp.millis() != self.header.max_timestamp
        {
            self.header.attributes = attributes;
            self.header.max_timestamp = max_timestamp.millis();
            self.header.crc = self.header.compute_crc(&self.body);
        }
    }
}

/// Checks that `bytes` are one batch that a client may append, down to each record.
///
/// Plain records are walked in place, compressed ones in a buffer of the thread that is used
/// again; no record is made and nothing is allocated that a length in the batch asks for.
///
/// Two claims of a client are put right, under a new CRC, instead of refused: a wrong max
/// timestamp becomes the largest of the records, and the log-append-time bit is cleared.
///
/// # Errors
/// The first fault, in this order: framing and CRC (as [`Batch::check`]), compression and other
/// attributes, producer fields, record count, last offset delta, decompression, records.
pub fn validate_produced(
    bytes: Bytes,
    limits: &BatchLimits,
) -> Result<ProducedBatch, ProduceError> {
    let batch = Batch::check(bytes, limits.batch_bytes_max)?;
    check_header(batch.header(), limits)?;

    let header = batch.header();
    let body = batch.body();
    let skimmed = compression::with_decompressed(
        header.attributes.compression()?,
        &body,
        limits.decompressed_bytes_max,
        |plain| skim_produced(plain, header, limits),
    )?;

    let mut produced = ProducedBatch {
        header: batch.into_header(),
        body,
    };
    produced.set_times(
        TimestampType::CreateTime,
        Timestamp::from_millis(skimmed.max_timestamp),
    );
    Ok(produced)
}

fn check_header(header: &BatchHeader, limits: &BatchLimits) -> Result<(), ProduceError> {
    let attributes = header.attributes;
    attributes.compression()?;
    if attributes.is_control() {
        return Err(ProduceError::Control);
    }
    if attributes.is_transactional() {
        return Err(ProduceError::Transactional);
    }
    let allowed = attributes.with_delete_horizon(false).bits() & !attributes.unknown_bits();
    if attributes.bits() != allowed {
        return Err(ProduceError::Attributes {
            bits: attributes.bits() & !allowed,
        });
    }

    let &BatchHeader {
        producer_id,
        producer_epoch,
        base_sequence,
        ..
    } = header;
    let has_none = producer_id == -1 && producer_epoch == -1 && base_sequence == -1;
    let has_all = producer_id >= 0 && producer_epoch >= 0 && base_sequence >= 0;
    if !has_none && !has_all {
        return Err(ProduceError::Producer {
            producer_id,
            producer_epoch,
            base_sequence,
        });
    }

    if record_count(header, limits.records_max)? == 0 {
        return Err(ProduceError::Empty);
    }
    let &BatchHeader {
        last_offset_delta,
        record_count,
        ..
    } = header;
    if last_offset_delta != record_count - 1 {
        return Err(ProduceError::LastOffsetDelta {
            last_offset_delta,
            record_count,
        });
    }
    Ok(())
}
