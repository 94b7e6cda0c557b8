use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A call to the disk failed; says which, on what, and why.
#[derive(Debug, Error)]
#[error("{op} {}: {source}", path.display())]
pub struct DiskError {
    /// What was tried.
    pub op: DiskOp,
    /// On which file or directory.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl DiskError {
    /// The error `source` of `op` on `path`.
    pub fn new(op: DiskOp, path: &Path, source: io::Error) -> Self {
        Self {
            op,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the file or directory does not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether something of that name was there already.
    pub fn is_already_there(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }

    /// Whether the file system, the user's quota on it, or what the process may write, is full.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }

    /// Whether this process or system has no more open files or maps to give.
    pub fn is_out_of_files(&self) -> bool {
        // EMFILE and ENFILE have no `ErrorKind`; both numbers are the same on Linux and macOS.
        matches!(self.source.raw_os_error(), Some(23 | 24))
    }
}

/// What was tried when a [`DiskError`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Opening or creating a file.
    Open,
    /// Creating a directory.
    CreateDir,
    /// Renaming a file or directory.
    Rename,
    /// Removing a file or directory.
    Remove,
    /// Listing a directory.
    List,
    /// Asking for a file's length or a file system's free space.
    Stat,
    /// Reading a file.
    Read,
    /// Writing a file.
    Write,
    /// Making a file's bytes survive power loss.
    Sync,
    /// Making a directory's names survive power loss.
    SyncDir,
    /// Making all of a file system survive power loss.
    SyncAll,
    /// Changing a file's length.
    SetLen,
    /// Taking space for a file ahead of writing.
    Reserve,
    /// Mapping a file into memory.
    Map,
    /// Taking a lock.
    Lock,
}

impl fmt::Display for DiskOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::CreateDir => "create directory",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::List => "list",
            Self::Stat => "stat",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::SyncDir => "sync directory",
            Self::SyncAll => "sync the file system of",
            Self::SetLen => "set length of",
            Self::Reserve => "reserve space for",
            Self::Map => "map",
            Self::Lock => "lock",
        })
    }
}

/// Why [`Disk::lock`](crate::Disk::lock) gave no lock.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else, in this process or another, holds it.
    #[error("{} is locked by another process", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// The lock file could not be made or locked.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
