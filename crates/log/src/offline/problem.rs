//! What can be wrong with the files of a log, and how bad it is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidelog_disk::DiskError;
use tidelog_record::{BatchError, Offset};

use crate::error::{Corruption, Damage};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be after a stop of some kind, or none of a log's business.
    Note,
    /// A derived file is broken: it is built again, and nothing is lost.
    Derived,
    /// Bytes that were durable are not what was written.
    Damage,
}

impl Severity {
    /// In one word: `note`, `warning` or `damage`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Derived => "warning",
            Self::Damage => "damage",
        }
    }
}

/// One problem: where, and what.
#[derive(Debug)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file, or the directory where one is missing.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub position: u64,
    /// The offset that was expected there, where that means something.
    pub offset: Option<Offset>,
    /// What is wrong.
    pub what: What,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, position {}", self.path.display(), self.position)?;
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What is wrong.
#[derive(Debug, Error)]
pub enum What {
    /// What a broker would refuse, or not serve.
    #[error("{0}")]
    Damaged(Damage),
    /// A segment's first batch is no header that this log can use.
    #[error("{}", .0.what)]
    Header(Arc<Corruption>),
    /// A batch whose checksum holds has records that do not go together.
    #[error("record {record} of the batch has offset delta {delta}, which does not follow")]
    RecordOrder {
        /// Which record, from 0.
        record: u32,
        /// Its offset delta.
        delta: i32,
    },
    /// What follows could not be made out up to a later position.
    #[error("{bytes} bytes are skipped up to the next batch that can be read")]
    Skipped {
        /// How many.
        bytes: u64,
    },
    /// Nothing that follows in the file can be made out.
    #[error("nothing can be read in the {bytes} bytes up to the end of the file")]
    Unreadable {
        /// How many bytes there are.
        bytes: u64,
    },
    /// The system could not read.
    #[error("it cannot be read: {0}")]
    Disk(DiskError),
    /// What a place in the log is said to be is not what was found there.
    #[error("{what} names a place that is not in the log as it says")]
    WrongPlace {
        /// Who says it.
        what: &'static str,
    },
    /// What was appended and not known to be durable, and was not written whole.
    #[error(
        "{bytes} bytes of a torn tail, above what is known to be durable; the next start cuts them"
    )]
    TornTail {
        /// How many, without zeros at the end.
        bytes: u64,
    },
    /// A segment file that a roll did not come to an end with.
    #[error("a segment that was never finished; the next start removes it")]
    Unfinished,
    /// A derived file, or a part of it, does not hold.
    #[error("{0}; it is built again")]
    Derived(&'static str),
    /// The state file.
    #[error("{0}")]
    State(String),
    /// A file that stays for somebody to look at, or that a crash left behind.
    #[error("{0}")]
    Left(&'static str),
}

impl Problem {
    pub(super) fn damage(path: &Path, position: u64, offset: Option<Offset>, what: Damage) -> Self {
        Self {
            severity: Severity::Damage,
            path: path.to_owned(),
            position,
            offset,
            what: What::Damaged(what),
        }
    }

    pub(super) fn derived(path: &Path, position: u64, what: &'static str) -> Self {
        Self {
            severity: Severity::Derived,
            path: path.to_owned(),
            position,
            offset: None,
            what: What::Derived(what),
        }
    }

    pub(super) fn note(path: &Path, position: u64, what: What) -> Self {
        Self {
            severity: Severity::Note,
            path: path.to_owned(),
            position,
            offset: None,
            what,
        }
    }

    /// A read that failed: damage where the device says so, else the caller's trouble.
    pub(super) fn reading(error: DiskError, offset: Option<Offset>) -> Result<Self, DiskError> {
        // EIO has no `ErrorKind`; the number is the same on Linux and macOS.
        if error.source.raw_os_error() != Some(5) {
            return Err(error);
        }
        Ok(Self {
            severity: Severity::Damage,
            path: error.path.clone(),
            position: 0,
            offset,
            what: What::Disk(error),
        })
    }
}

impl From<Corruption> for Problem {
    fn from(corruption: Corruption) -> Self {
        Self::damage(
            &corruption.path,
            corruption.position,
            Some(corruption.offset),
            corruption.what,
        )
    }
}

impl From<BatchError> for What {
    fn from(error: BatchError) -> Self {
        Self::Damaged(error.into())
    }
}
