//! The 61 bytes in front of every batch.

use crate::{Attributes, BatchError};

/// Bytes of a batch header: everything in front of the records.
pub const BATCH_HEADER_LEN: usize = 61;

/// Bytes of base offset and length, which the length does not count.
pub const BATCH_PREFIX_LEN: usize = 12;

/// Where the CRC field is.
const CRC_AT: usize = 17;

/// Where the bytes under the CRC begin: at the attributes.
pub(crate) const CRC_COVERS_FROM: usize = 21;

const MAGIC_AT: usize = 16;
const MAGIC: i8 = 2;
const BATCH_LENGTH_MIN: i32 = 49;

const _: () = assert!(CRC_AT + 4 == CRC_COVERS_FROM);
const _: () = assert!(BATCH_PREFIX_LEN + 49 == BATCH_HEADER_LEN);

/// The header of a batch, each number as the wire holds it. The magic is 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the batch's first record. A producer writes 0, the broker assigns it. Not under
    /// the CRC.
    pub base_offset: i64,
    /// Bytes of the batch after this field. Not under the CRC.
    pub batch_length: i32,
    /// Leadership that appended the batch; -1 from producers. Not under the CRC.
    pub leader_epoch: i32,
    /// CRC-32C of everything from the attributes to the end of the batch.
    pub crc: u32,
    /// Compression, meaning of timestamps, and whose batch this is.
    pub attributes: Attributes,
    /// Offset of the last record minus the base offset; -1 in an internal entry.
    pub last_offset_delta: i32,
    /// Timestamp that the deltas of the records count from, in milliseconds since the Unix epoch.
    pub base_timestamp: i64,
    /// Largest timestamp of the records, in milliseconds since the Unix epoch.
    pub max_timestamp: i64,
    /// Who produced the batch, or -1 for a producer without an id.
    pub producer_id: i64,
    /// Fence of the producer id, or -1.
    pub producer_epoch: i16,
    /// Sequence number of the first record, or -1.
    pub base_sequence: i32,
    /// How many records follow.
    pub record_count: i32,
}

impl BatchHeader {
    /// The header at the start of `bytes`. Looks at nothing past its 61 bytes: neither at the CRC
    /// nor at whether the rest of the batch is there.
    ///
    /// # Errors
    /// * [`BatchError::WrongMagic`], also for what is shorter than a header but long enough to
    ///   show its magic: an old message can be.
    /// * [`BatchError::Truncated`] below 61 bytes.
    /// * [`BatchError::TooShort`] and [`BatchError::TooLarge`] unless the whole batch takes 61 to
    ///   `batch_bytes_max` bytes.
    pub fn decode(bytes: &[u8], batch_bytes_max: usize) -> Result<Self, BatchError> {
        if let Some(&magic) = bytes.get(MAGIC_AT) {
            let found = magic.cast_signed();
            if found != MAGIC {
                return Err(BatchError::WrongMagic { found });
            }
        }
        let Some(raw) = bytes.first_chunk::<BATCH_HEADER_LEN>() else {
            return Err(BatchError::header_truncated(bytes.len()));
        };
        let header = Self {
            base_offset: i64::from_be_bytes(field(raw, 0)),
            batch_length: i32::from_be_bytes(field(raw, 8)),
            leader_epoch: i32::from_be_bytes(field(raw, 12)),
            crc: u32::from_be_bytes(field(raw, CRC_AT)),
            attributes: Attributes::from_bits(u16::from_be_bytes(field(raw, 21))),
            last_offset_delta: i32::from_be_bytes(field(raw, 23)),
            base_timestamp: i64::from_be_bytes(field(raw, 27)),
            max_timestamp: i64::from_be_bytes(field(raw, 35)),
            producer_id: i64::from_be_bytes(field(raw, 43)),
            producer_epoch: i16::from_be_bytes(field(raw, 51)),
            base_sequence: i32::from_be_bytes(field(raw, 53)),
            record_count: i32::from_be_bytes(field(raw, 57)),
        };
        if header.batch_length < BATCH_LENGTH_MIN {
            return Err(BatchError::TooShort {
                batch_length: header.batch_length,
            });
        }
        let len = header.total_len();
        if len > batch_bytes_max {
            return Err(BatchError::TooLarge {
                len,
                max: batch_bytes_max,
            });
        }
        Ok(header)
    }

    /// The 61 bytes of this header.
    pub fn encode(&self) -> [u8; BATCH_HEADER_LEN] {
        let mut raw = [0; BATCH_HEADER_LEN];
        set_field(&mut raw, 0, self.base_offset.to_be_bytes());
        set_field(&mut raw, 8, self.batch_length.to_be_bytes());
        set_field(&mut raw, 12, self.leader_epoch.to_be_bytes());
        set_field(&mut raw, MAGIC_AT, MAGIC.to_be_bytes());
        set_field(&mut raw, CRC_AT, self.crc.to_be_bytes());
        set_field(&mut raw, 21, self.attributes.bits().to_be_bytes());
        set_field(&mut raw, 23, self.last_offset_delta.to_be_bytes());
        set_field(&mut raw, 27, self.base_timestamp.to_be_bytes());
        set_field(&mut raw, 35, self.max_timestamp.to_be_bytes());
        set_field(&mut raw, 43, self.producer_id.to_be_bytes());
        set_field(&mut raw, 51, self.producer_epoch.to_be_bytes());
        set_field(&mut raw, 53, self.base_sequence.to_be_bytes());
        set_field(&mut raw, 57, self.record_count.to_be_bytes());
        raw
    }

    /// Bytes of the whole batch, prefix and header included. At least 61 in a decoded header; in
    /// one made by hand a negative length counts as 0.
    pub fn total_len(&self) -> usize {
        BATCH_PREFIX_LEN.saturating_add(usize::try_from(self.batch_length).unwrap_or(0))
    }

    /// The CRC-32C that belongs in this header when `body` follows it.
    pub fn compute_crc(&self, body: &[u8]) -> u32 {
        crate::crc32c(&[&self.encode()[CRC_COVERS_FROM..], body])
    }
}

fn field<const LEN: usize>(raw: &[u8; BATCH_HEADER_LEN], at: usize) -> [u8; LEN] {
    *raw[at..]
        .first_chunk()
        .expect("the field lies inside of the header")
}

fn set_field<const LEN: usize>(raw: &mut [u8; BATCH_HEADER_LEN], at: usize, value: [u8; LEN]) {
    raw[at..at + LEN].copy_from_slice(&value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 20;

    fn header() -> BatchHeader {
        BatchHeader {
            base_offset: 0x0102_0304_0506_0708,
            batch_length: 0x000b_0c0d,
            leader_epoch: 0x1112_1314,
            crc: 0x2122_2324,
            attributes: Attributes::from_bits(0x3132),
            last_offset_delta: 0x4142_4344,
            base_timestamp: 0x5152_5354_5556_5758,
            max_timestamp: 0x6162_6364_6566_6768,
            producer_id: 0x7172_7374_7576_7778,
            producer_epoch: 0x0a0b,
            base_sequence: 0x1a1b_1c1d,
            record_count: 0x2a2b_2c2d,
        }
    }

    #[test]
    fn each_field_is_where_the_format_says() {
        let mut expected = Vec::new();
        expected.extend([
            1, 2, 3, 4, 5, 6, 7, 8, 0, 0x0b, 0x0c, 0x0d, 0x11, 0x12, 0x13, 0x14, 2,
        ]);
        expected.extend([0x21, 0x22, 0x23, 0x24, 0x31, 0x32, 0x41, 0x42, 0x43, 0x44]);
        expected.extend(0x51..=0x58);
        expected.extend(0x61..=0x68);
        expected.extend(0x71..=0x78);
        expected.extend([0x0a, 0x0b, 0x1a, 0x1b, 0x1c, 0x1d, 0x2a, 0x2b, 0x2c, 0x2d]);
        assert_eq!(header().encode().as_slice(), expected);
        assert_eq!(BatchHeader::decode(&expected, MAX), Ok(header()));
    }

    #[test]
    fn length_limits_are_inclusive() {
        let with = |batch_length| {
            BatchHeader {
                batch_length,
                ..header()
            }
            .encode()
        };
        assert_eq!(
            BatchHeader::decode(&with(48), MAX),
            Err(BatchError::TooShort { batch_length: 48 })
        );
        assert!(BatchHeader::decode(&with(49), 61).is_ok());
        assert_eq!(
            BatchHeader::decode(&with(50), 61),
            Err(BatchError::TooLarge { len: 62, max: 61 })
        );
        assert_eq!(
            BatchHeader::decode(&with(-1), MAX),
            Err(BatchError::TooShort { batch_length: -1 })
        );
        let error = BatchHeader::decode(&with(1_999_988), 1_048_588).unwrap_err();
        assert_eq!(
            error.to_string(),
            "record batch of 2000000 bytes is above the limit of 1048588"
        );
    }

    #[test]
    fn old_formats_are_named_even_when_short() {
        for (magic, len) in [(0, 17), (1, 30), (1, 61), (3, 61), (-1, 61)] {
            let mut raw = header().encode();
            raw[16] = i8::to_be_bytes(magic)[0];
            assert_eq!(
                BatchHeader::decode(&raw[..len], MAX),
                Err(BatchError::WrongMagic { found: magic })
            );
        }
        assert_eq!(
            BatchHeader::decode(&[0; 100], MAX),
            Err(BatchError::WrongMagic { found: 0 }),
            "the zeros after the end of a log"
        );
    }

    #[test]
    fn every_truncation_is_refused() {
        let raw = header().encode();
        for have in 0..raw.len() {
            assert_eq!(
                BatchHeader::decode(&raw[..have], MAX),
                Err(BatchError::Truncated { needed: 61, have })
            );
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(mut raw: [u8; 32], tail: [u8; 29]) {
            raw[16] = 2;
            let bytes: Vec<u8> = raw.into_iter().chain(tail).collect();
            match BatchHeader::decode(&bytes, usize::MAX) {
                Ok(header) => prop_assert_eq!(header.encode().to_vec(), bytes),
                Err(error) => {
                    let is_too_short = matches!(error, BatchError::TooShort { .. });
                    prop_assert!(is_too_short, "{}", error);
                }
            }
        }
    }
}
