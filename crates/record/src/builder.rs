//! Making batches.

use bytes::Bytes;

use crate::varint::{put_varint, put_varlong, varint_len, varlong_len};
use crate::{
    Attributes, BATCH_HEADER_LEN, BATCH_PREFIX_LEN, BatchHeader, Compression, Timestamp,
    compression,
};

/// A batch in the making.
///
/// Records lie encoded behind room for the header from the first on, so that building a plain
/// batch copies nothing.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    record_count: i32,
    /// 61 bytes of room, then the records, plain.
    bytes: Vec<u8>,
}

/// Why a record cannot be added or a batch not be built. The batch is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The batch would take more bytes than its length field can say.
    #[error("the record batch would take {len} bytes; a batch has at most {max}")]
    TooLarge {
        /// Bytes of the batch with this record.
        len: usize,
        /// The most a batch can have.
        max: usize,
    },
    /// The batch has as many records as its count field can say.
    #[error("the record batch has {max} records already, the most a batch can have")]
    TooManyRecords {
        /// The most a batch can have.
        max: i32,
    },
    /// A timestamp is more than 64 bits away from the first.
    #[error("timestamp {timestamp} is too far from the first of the batch, {base}")]
    TimestampOverflow {
        /// Of this record.
        timestamp: Timestamp,
        /// Of the first record.
        base: Timestamp,
    },
    /// There are no records to build a batch of.
    #[error("a record batch needs at least one record")]
    Empty,
    /// Producer id, epoch and sequence do not go together.
    #[error(
        "producer id {producer_id}, epoch {producer_epoch} and base sequence {base_sequence} do \
         not go together; allowed are all three from 0 up, or all three -1"
    )]
    Producer {
        /// The producer id.
        producer_id: i64,
        /// The producer epoch.
        producer_epoch: i16,
        /// The base sequence.
        base_sequence: i32,
    },
    /// The compression library had no memory.
    #[error("the records could not be compressed with {compression}")]
    Compress {
        /// What was asked for.
        compression: Compression,
    },
}

impl BatchBuilder {
    /// An empty batch whose records [`build`](Self::build) compresses like this.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            base_timestamp: 0,
            max_timestamp: 0,
            record_count: 0,
            bytes: vec![0; BATCH_HEADER_LEN],
        }
    }

    /// The same batch of an idempotent producer: its id, epoch, and the sequence number of the
    /// first record.
    #[must_use]
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = base_sequence;
        self
    }

    /// Adds a record and gives its index, from 0: its offset minus the batch's base offset.
    ///
    /// # Errors
    /// [`BuildError::TooLarge`], [`BuildError::TooManyRecords`],
    /// [`BuildError::TimestampOverflow`]: the record was not added.
    pub fn push(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<u32, BuildError> {
        let index = self.record_count;
        let base_timestamp = if index == 0 {
            timestamp.millis()
        } else {
            self.base_timestamp
        };
        let timestamp_delta = timestamp.millis().checked_sub(base_timestamp).ok_or(
            BuildError::TimestampOverflow {
                timestamp,
                base: Timestamp::from_millis(base_timestamp),
            },
        )?;
        if index == i32::MAX {
            return Err(BuildError::TooManyRecords { max: i32::MAX });
        }
        let fields_len = fields_len(timestamp_delta, index, key, value, headers);
        let length = self.checked_length(fields_len)?;

        let out = &mut self.bytes;
        out.reserve(varint_len(length) + fields_len);
        put_varint(out, length);
        put_fields(
            out,
            timestamp_delta,
            index,
            key,
            value,
            headers.iter().copied(),
        );

        let is_first = index == 0;
        self.base_timestamp = base_timestamp;
        self.max_timestamp = if is_first {
            timestamp.millis()
        } else {
            self.max_timestamp.max(timestamp.millis())
        };
        self.record_count += 1;
        Ok(index.unsigned_abs())
    }

    /// Bytes that [`len_bytes`](Self::len_bytes) would grow by with this record: for closing a
    /// batch before it gets too large.
    pub fn record_len(
        &self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> usize {
        let base = if self.is_empty() {
            timestamp.millis()
        } else {
            self.base_timestamp
        };
        let delta = timestamp.millis().wrapping_sub(base);
        let fields_len = fields_len(delta, self.record_count, key, value, headers);
        fields_len.saturating_add(i32::try_from(fields_len).map_or(5, varint_len))
    }

    /// Bytes of the batch so far, header included, before compression.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How many records there are so far.
    pub fn record_count(&self) -> u32 {
        self.record_count.unsigned_abs()
    }

    /// Whether there are no records yet.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// The batch: base offset 0, leader epoch -1, create time. Compressed as asked even where
    /// that makes it larger.
    ///
    /// # Errors
    /// [`BuildError::Empty`], [`BuildError::Producer`], [`BuildError::Compress`], and
    /// [`BuildError::TooLarge`] when compression makes a huge batch larger still.
    pub fn build(self) -> Result<Bytes, BuildError> {
        self.check_whole()?;
        let compression = self.compression;
        let (producer_id, producer_epoch) = (self.producer_id, self.producer_epoch);
        let mut header = BatchHeader {
            base_offset: 0,
            batch_length: 0,
            leader_epoch: -1,
            crc: 0,
            attributes: Attributes::default().with_compression(compression),
            last_offset_delta: self.record_count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id,
            producer_epoch,
            base_sequence: self.base_sequence,
            record_count: self.record_count,
        };
        let bytes = match compression {
            Compression::None => self.bytes,
            _ => compressed(compression, &self.bytes[BATCH_HEADER_LEN..])?,
        };
        seal(&mut header, bytes)
    }

    fn check_whole(&self) -> Result<(), BuildError> {
        if self.is_empty() {
            return Err(BuildError::Empty);
        }
        let &Self {
            producer_id,
            producer_epoch,
            base_sequence,
            ..
        } = self;
        let has_none = producer_id == -1 && producer_epoch == -1 && base_sequence == -1;
        let has_all = producer_id >= 0 && producer_epoch >= 0 && base_sequence >= 0;
        if !has_none && !has_all {
            return Err(BuildError::Producer {
                producer_id,
                producer_epoch,
                base_sequence,
            });
        }
        Ok(())
    }

    /// The length field of a record whose fields take `fields_len` bytes, once it is known that
    /// the batch stays within its own length field.
    fn checked_length(&self, fields_len: usize) -> Result<i32, BuildError> {
        let too_large = |len| BuildError::TooLarge {
            len,
            max: BATCH_LEN_MAX,
        };
        let length = i32::try_from(fields_len).map_err(|_| too_large(fields_len))?;
        let len = self
            .bytes
            .len()
            .saturating_add(varint_len(length))
            .saturating_add(fields_len);
        if len > BATCH_LEN_MAX {
            return Err(too_large(len));
        }
        Ok(length)
    }
}

/// Room for a header, and the compressed records behind it.
pub(crate) fn compressed(compression: Compression, plain: &[u8]) -> Result<Vec<u8>, BuildError> {
    let mut out = Vec::with_capacity(BATCH_HEADER_LEN + plain.len() / 2);
    out.resize(BATCH_HEADER_LEN, 0);
    compression::compress(compression, plain, &mut out)
        .map_err(|_| BuildError::Compress { compression })?;
    Ok(out)
}

/// Puts the length and the CRC into `header`, and that into the room at the front of `bytes`.
pub(crate) fn seal(header: &mut BatchHeader, mut bytes: Vec<u8>) -> Result<Bytes, BuildError> {
    header.batch_length =
        i32::try_from(bytes.len() - BATCH_PREFIX_LEN).map_err(|_| BuildError::TooLarge {
            len: bytes.len(),
            max: BATCH_LEN_MAX,
        })?;
    header.crc = header.compute_crc(&bytes[BATCH_HEADER_LEN..]);
    bytes[..BATCH_HEADER_LEN].copy_from_slice(&header.encode());
    Ok(Bytes::from(bytes))
}

/// Writes a record behind its length field.
pub(crate) fn put_fields<'a>(
    out: &mut Vec<u8>,
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl ExactSizeIterator<Item = (&'a str, Option<&'a [u8]>)>,
) {
    out.push(0);
    put_varlong(out, timestamp_delta);
    put_varint(out, offset_delta);
    put_nullable(out, key);
    put_nullable(out, value);
    put_len(out, headers.len());
    for (key, value) in headers {
        put_nullable(out, Some(key.as_bytes()));
        put_nullable(out, value);
    }
}

/// The most bytes whose length the length field can say, on machines of 32 bits too.
const BATCH_LEN_MAX: usize = i32::MAX.unsigned_abs() as usize;

/// Bytes of a record after its length field.
fn fields_len(
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[(&str, Option<&[u8]>)],
) -> usize {
    let start = 1
        + varlong_len(timestamp_delta)
        + varint_len(offset_delta)
        + nullable_len(key)
        + len_len(headers.len());
    headers.iter().fold(
        start.saturating_add(nullable_len(value)),
        |sum, (key, value)| {
            sum.saturating_add(nullable_len(Some(key.as_bytes())))
                .saturating_add(nullable_len(*value))
        },
    )
}

fn nullable_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| len_len(bytes.len()).saturating_add(bytes.len()))
}

/// Bytes of a length field. A length that does not fit one makes the record too large anyway.
fn len_len(len: usize) -> usize {
    i32::try_from(len).map_or(5, varint_len)
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_len(out, bytes.len());
            out.extend_from_slice(bytes);
        }
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    put_varint(
        out,
        i32::try_from(len).expect("a record that fits a batch has no longer field"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn counts_what_it_holds() {
        let mut builder = BatchBuilder::new(Compression::None);
        assert!(builder.is_empty());
        assert_eq!(builder.len_bytes(), BATCH_HEADER_LEN);
        assert_eq!(builder.push(NOW, None, Some(b"value"), &[]), Ok(0));
        assert_eq!(builder.push(NOW, Some(b"key"), None, &[("h", None)]), Ok(1));
        assert_eq!(builder.record_count(), 2);
        let len = builder.len_bytes();
        assert_eq!(builder.build().map(|bytes| bytes.len()), Ok(len));
    }

    #[test]
    fn refuses_what_no_broker_would_take() {
        assert_eq!(
            BatchBuilder::new(Compression::None).build(),
            Err(BuildError::Empty)
        );
        for (producer_id, producer_epoch, base_sequence) in [(1, -1, -1), (-1, 0, 0), (1, 0, -1)] {
            let mut builder = BatchBuilder::new(Compression::None).producer(
                producer_id,
                producer_epoch,
                base_sequence,
            );
            builder.push(NOW, None, None, &[]).unwrap();
            assert_eq!(
                builder.build(),
                Err(BuildError::Producer {
                    producer_id,
                    producer_epoch,
                    base_sequence
                })
            );
        }
    }

    #[test]
    fn a_refused_record_leaves_the_batch_as_it_was() {
        let mut builder = BatchBuilder::new(Compression::None);
        let base = Timestamp::from_millis(i64::MAX);
        builder.push(base, None, None, &[]).unwrap();
        let len = builder.len_bytes();
        assert_eq!(
            builder.push(Timestamp::MIN, None, None, &[]),
            Err(BuildError::TimestampOverflow {
                timestamp: Timestamp::MIN,
                base
            })
        );
        assert_eq!((builder.record_count(), builder.len_bytes()), (1, len));
        builder.build().unwrap();
    }

    #[test]
    fn lengths_stay_within_their_fields() {
        // Through the length arithmetic alone: the real thing would take 2 GiB.
        let builder = BatchBuilder::new(Compression::None);
        let fits = BATCH_LEN_MAX - BATCH_HEADER_LEN - 5;
        assert!(builder.checked_length(fits).is_ok());
        assert_eq!(
            builder.checked_length(fits + 1),
            Err(BuildError::TooLarge {
                len: BATCH_LEN_MAX + 1,
                max: BATCH_LEN_MAX
            })
        );
        assert_eq!(
            builder.checked_length(usize::MAX),
            Err(BuildError::TooLarge {
                len: usize::MAX,
                max: BATCH_LEN_MAX
            })
        );
    }
}
