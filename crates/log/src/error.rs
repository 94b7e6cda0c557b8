//! What can go wrong with a log, sorted by what the caller can do about it.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tidelog_disk::DiskError;
use tidelog_record::{BatchError, Offset};

use crate::internal::InternalError;
use crate::producers::ProducerError;

/// Damage found in a log's files: bytes that were durable and are not what was written.
#[derive(Debug, Error)]
#[error("{} is damaged at position {position}, offset {offset}: {what}", path.display())]
pub struct Corruption {
    /// The damaged file.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub position: u64,
    /// The offset that was expected there.
    pub offset: Offset,
    /// What is wrong.
    pub what: Damage,
}

/// What is wrong with damaged bytes.
#[derive(Debug, Error)]
pub enum Damage {
    /// Not a record batch, or one that fails its checksum.
    #[error("{0}")]
    Batch(#[from] BatchError),
    /// An internal entry that makes no sense, or that a newer version wrote.
    #[error("{0}")]
    Internal(#[from] InternalError),
    /// A batch stands where another offset must come.
    #[error("a batch with base offset {found} stands there")]
    WrongOffset {
        /// The base offset in the batch.
        found: i64,
    },
    /// A batch has another leader epoch than the entries around it.
    #[error("a batch of leader epoch {found} stands among those of epoch {expected}")]
    WrongEpoch {
        /// The epoch in the batch.
        found: i32,
        /// The epoch in force.
        expected: u32,
    },
    /// A batch of records has a number of records that cannot be.
    #[error("a batch claims {records} records and a last offset delta of {last_offset_delta}")]
    WrongCount {
        /// The count in the batch.
        records: i32,
        /// The delta in the batch.
        last_offset_delta: i32,
    },
    /// The file ends before what is known to have been durable.
    #[error("the file has {len} bytes where {durable} were durable")]
    Short {
        /// The file's length.
        len: u64,
        /// What must be there.
        durable: u64,
    },
    /// The batch headers do not add up to the checksum kept elsewhere.
    #[error("its batch headers have the checksum {found:08x}, not {expected:08x}")]
    WrongChain {
        /// What the headers give.
        found: u32,
        /// What was recorded.
        expected: u32,
    },
    /// The first entry is not a segment header.
    #[error("it does not begin with a segment header")]
    NoHeader,
    /// The segment belongs to another log.
    #[error("its header belongs to another log: {0}")]
    Foreign(&'static str),
    /// A segment between others, or the first or last one, is not there.
    #[error("the segment with sequence number {sequence} is missing")]
    MissingSegment {
        /// Its number.
        sequence: u64,
    },
    /// The segment does not follow the one before.
    #[error("it does not continue the segment before it: {0}")]
    NotContinued(&'static str),
}

/// Why a log was not created.
#[derive(Debug, Error)]
pub enum CreateError {
    /// There is a log in the directory.
    #[error("{} holds a log already", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a log was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Files are damaged or missing; they are left as they are.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The directory holds no log, or only the torn beginning of one that never held a record.
    #[error("{} holds no log", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why nothing was appended, or, with [`AppendError::WriteFailed`] alone, perhaps nothing.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// The disk is full. Nothing was written; appends work again once there is space.
    #[error("no space for {needed} bytes in {}", dir.display())]
    Full {
        /// The log's directory.
        dir: PathBuf,
        /// How many bytes the append needs.
        needed: u64,
    },
    /// The process has no more open files, and a new segment needs one. Nothing was written; appends
    /// work again once there are some.
    #[error("no open file is left for a new segment in {}", dir.display())]
    OutOfFiles {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The batch can never fit a segment.
    #[error("a batch of {len} bytes does not fit a segment of {segment_bytes} bytes")]
    TooLarge {
        /// The batch's length in bytes.
        len: u64,
        /// The longest a segment may be.
        segment_bytes: u64,
    },
    /// The first batch is of an idempotent producer, and is not its next one.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The log has no more offsets, Raft indexes or epochs to give.
    #[error("the log has no more offsets to give")]
    Exhausted,
    /// A write or sync failed, earlier or on the way: the log takes no more until it is opened again.
    /// Nothing of the batches was written.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// The write of the batches failed: it is not known whether they will be there after the next
    /// open. The log takes no more until then.
    #[error("{0}")]
    WriteFailed(Poisoned),
}

/// A write or sync failed, and the log takes no more writes until it is opened again.
///
/// Whether what was being written is durable is unknown. What was durable before is still read.
#[derive(Clone, Debug, Error)]
#[error("the log stopped taking writes: {cause}")]
pub struct Poisoned {
    /// The first failure.
    pub cause: Arc<DiskError>,
}

/// Why nothing was trimmed.
#[derive(Debug, Error)]
pub enum TrimError {
    /// The new log start is not between the present one and the end.
    #[error("offset {requested} is not between the log start {start} and the end {end}")]
    OutOfRange {
        /// What was asked for.
        requested: Offset,
        /// The log start offset.
        start: Offset,
        /// The high watermark, or the log's end.
        end: Offset,
    },
    /// The new log start could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why nothing was read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The offset is below the log start or past the end.
    #[error("offset {requested} is out of range: the log has {start} to {end}")]
    OutOfRange {
        /// What was asked for.
        requested: Offset,
        /// The log start offset: the first that can be read.
        start: Offset,
        /// The end of what may be read, exclusive: reading from there waits for the next record.
        end: Offset,
    },
    /// The bytes there are damaged.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
