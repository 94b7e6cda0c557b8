//! What can be wrong with a batch.

use crate::{BATCH_HEADER_LEN, Compression};

/// Why bytes are not a readable record batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end inside the batch. At the end of a fetch or of an unclean log that is no fault.
    #[error("record batch needs {needed} bytes, but only {have} are there")]
    Truncated {
        /// Bytes of the header, or of the whole batch once the header is known.
        needed: usize,
        /// Bytes given.
        have: usize,
    },
    /// The bytes go on after the one batch they should hold.
    #[error("one record batch of {batch_len} bytes was expected, but {have} bytes are there")]
    NotOneBatch {
        /// Bytes of the first batch.
        batch_len: usize,
        /// Bytes given.
        have: usize,
    },
    /// The format is older or newer than the one stored here.
    #[error("record batch has magic {found}; only magic 2 (Kafka 0.11 and later) is supported")]
    WrongMagic {
        /// The magic byte; 0 and 1 are Kafka's old message sets.
        found: i8,
    },
    /// The length field is too small for a header.
    #[error(
        "record batch gives its length as {batch_length}, below the 49 bytes of its own header"
    )]
    TooShort {
        /// The length field: bytes after it.
        batch_length: i32,
    },
    /// The batch is above the limit.
    #[error("record batch of {len} bytes is above the limit of {max}")]
    TooLarge {
        /// Bytes of the whole batch.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The checksum does not hold: the bytes were changed on their way or on disk.
    #[error("record batch has CRC-32C {computed:#010x}, but its header says {stored:#010x}")]
    WrongCrc {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Bits 0 to 2 of the attributes hold a number without meaning.
    #[error(
        "record batch has unknown compression {id}; known are 0 to 4 (none, gzip, snappy, lz4, zstd)"
    )]
    UnknownCompression {
        /// 5 to 7.
        id: u8,
    },
    /// The compressed records cannot be decompressed: they are damaged or cut off.
    #[error("the {compression} data of the record batch is malformed")]
    Malformed {
        /// How the records are compressed.
        compression: Compression,
    },
    /// Bytes follow after the end of the compressed records. Readers that stop at the end would
    /// never see them, others would.
    #[error("{len} bytes follow after the end of the {compression} data of the record batch")]
    AfterCompressed {
        /// How the records are compressed.
        compression: Compression,
        /// Bytes that follow.
        len: usize,
    },
    /// The records decompress to more than the limit.
    #[error("the records of the batch decompress to more than the limit of {max} bytes")]
    DecompressedTooLarge {
        /// The limit.
        max: usize,
    },
    /// The count of records is negative or above the limit.
    #[error("record batch counts {found} records; allowed are at most {max}")]
    RecordCount {
        /// The count field.
        found: i32,
        /// The limit.
        max: usize,
    },
    /// One record is malformed.
    #[error("record {index} of the batch: {fault}")]
    Record {
        /// Which record, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// Bytes follow after the last record.
    #[error("{len} bytes follow after the last of {record_count} records of the batch")]
    AfterRecords {
        /// Bytes that follow.
        len: usize,
        /// Records in the batch.
        record_count: i32,
    },
}

/// What is wrong with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// A field passes the end of the record, or the record passes the end of the batch.
    #[error("it ends before its fields do")]
    Truncated,
    /// A variable-length number is longer than its type allows.
    #[error("a number in it is too long")]
    NumberTooLong,
    /// A length is negative where no null is allowed, or below -1.
    #[error("it has a length of {found}")]
    NegativeLength {
        /// The length.
        found: i32,
    },
    /// The record's length and its fields disagree.
    #[error("it gives its length as {length} bytes, but its fields take {used}")]
    WrongLength {
        /// The record's length field.
        length: usize,
        /// What its fields take.
        used: usize,
    },
    /// The key of a header is not UTF-8.
    #[error("the key of a header is not UTF-8")]
    HeaderKeyNotUtf8,
    /// Too many headers.
    #[error("it has {found} headers; allowed are at most {max}")]
    TooManyHeaders {
        /// The count field.
        found: i32,
        /// The limit.
        max: usize,
    },
    /// It has no key where each record must have one.
    #[error(
        "it has no key; a compacted topic keeps the last record of each key, so each needs one"
    )]
    NoKey,
    /// Its timestamp does not fit 64 bits.
    #[error("its timestamp, {base} and {delta} ms, does not fit 64 bits")]
    TimestampOverflow {
        /// The batch's base timestamp.
        base: i64,
        /// The record's timestamp delta.
        delta: i64,
    },
    /// Its offset is outside of its batch, or not the expected one.
    #[error("it has offset delta {found}; allowed are {min} to {max}")]
    OffsetDelta {
        /// The record's offset delta.
        found: i32,
        /// The smallest allowed.
        min: i32,
        /// The largest allowed.
        max: i32,
    },
}

impl BatchError {
    pub(crate) fn header_truncated(have: usize) -> Self {
        Self::Truncated {
            needed: BATCH_HEADER_LEN,
            have,
        }
    }
}
