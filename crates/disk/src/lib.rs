//! Files, maps and syncs behind two small traits, [`Disk`] and [`DiskFile`].
//!
//! Everything Tidelog keeps goes through here, so that the same log, recovery and broker code runs
//! on the operating system ([`OsDisk`]) and on the simulated disk of the `sim` crate, which loses
//! unsynced writes, tears them, and fails calls on demand.
//!
//! How data flows: an append is one [`DiskFile::write_at`] of several slices (no copy here), made
//! to survive power loss by [`DiskFile::sync_data`]; then [`DiskFile::freeze`] promises that the
//! bytes will never change, and [`DiskFile::slice`] hands them out as slices of a map, without a
//! copy. New names survive only after [`Disk::sync_dir`].
//!
//! This is the only crate with `unsafe` code: one function, in `os.rs`, that reads frozen bytes
//! through the map. The promise it needs is checked at run time for each open file: its handle
//! refuses to write or cut below what was frozen. A file must therefore not be opened a second time
//! for writing while slices of it may be held.
//!
//! What cannot be checked: another program that shortens or rewrites a file below us. Shortening a
//! mapped file makes the kernel end the process with SIGBUS at the next read there. Nothing
//! acknowledged is lost by that, and the directory lock keeps other brokers away.

mod error;
mod file_system;
mod os;

use std::fmt::Debug;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use error::{DiskError, DiskOp, LockError};
pub use os::OsDisk;

/// A file system, or what stands in for one.
///
/// Shared by all threads. Every call blocks; none may be made on an async worker thread.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Opens or creates the file at `path`.
    ///
    /// A file made here survives power loss only once it was synced itself and its directory was
    /// synced with [`Disk::sync_dir`].
    fn open(&self, path: &Path, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError>;

    /// Creates a directory and all its missing parents. One that exists is fine.
    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError>;

    /// Renames a file or directory within one file system, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError>;

    /// Removes a file's name. Slices of the file that are still held stay readable.
    fn remove_file(&self, path: &Path) -> Result<(), DiskError>;

    /// Removes a directory and all it holds.
    fn remove_dir_all(&self, path: &Path) -> Result<(), DiskError>;

    /// What is in a directory, sorted by name.
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>, DiskError>;

    /// Makes the names in `dir` survive power loss: creations, renames and removals.
    fn sync_dir(&self, dir: &Path) -> Result<(), DiskError>;

    /// Bytes that an ordinary user can still write to the file system that holds `dir`.
    fn free_bytes(&self, dir: &Path) -> Result<u64, DiskError>;

    /// The file system that holds `dir`, to be synced as a whole; `None` where a sync of everything
    /// is no promise, or does not tell of failures. It tells of what fails from now on: ask for it
    /// before anything is written that it shall make durable.
    fn file_system(&self, dir: &Path) -> Result<Option<Box<dyn FileSystem>>, DiskError> {
        let _ = dir;
        Ok(None)
    }

    /// Takes the exclusive lock of the directory that holds `path`, by the file at `path`, which is
    /// created if need be: as long as it is held, no lock is given for a file of that directory,
    /// nor when the file is removed. It is given back when the returned guard is dropped or the
    /// process ends, however it ends.
    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError>;
}

/// A file system that can be synced with one call.
pub trait FileSystem: Debug + Send + Sync + 'static {
    /// Whether the files in `dir` are its own: another may be mounted there, or `dir` be a link.
    fn holds(&self, dir: &Path) -> Result<bool, DiskError>;

    /// Makes every byte written to any of its files before this call, and the files' lengths,
    /// survive power loss: also those that other programs wrote, which it waits for.
    ///
    /// An error is about any file, and comes once: it says that nothing is known of what was written
    /// to any of them since the last call that went well, and a later call says nothing about
    /// that. Each file's own [`DiskFile::sync_data`] still tells of its own failures.
    fn sync(&self) -> Result<(), DiskError>;
}

/// Holds a lock taken with [`Disk::lock`]; dropping it gives the lock back.
pub trait DirLock: Debug + Send + Sync {}

/// One open file.
///
/// Reads and writes may come from any thread. Positions are bytes from the start of the file.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// The path it was opened at, for messages.
    fn path(&self) -> &Path;

    /// The file's length in bytes, reserved space included.
    fn len(&self) -> Result<u64, DiskError>;

    /// Whether the file has no bytes at all.
    fn is_empty(&self) -> Result<bool, DiskError> {
        Ok(self.len()? == 0)
    }

    /// Reads into `buf` from `at` on; returns how many bytes there were, less than `buf.len()` only
    /// at the end of the file.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<usize, DiskError>;

    /// Asks the system to read no more from this handle than what is asked for. It may not comply.
    fn read_nothing_ahead(&self) {}

    /// Writes all of `parts`, one after the other, from `at` on, extending the file if need be.
    ///
    /// On an error any part of the range may have been written. The bytes survive the end of this
    /// process, but power loss only after [`DiskFile::sync_data`].
    ///
    /// # Panics
    /// When `at` lies below what was frozen.
    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> Result<(), DiskError>;

    /// Makes every byte written before this call, and the file's length, survive power loss.
    ///
    /// After an error nothing is known about those bytes: the kernel may have dropped them and
    /// marked the pages clean, so calling again proves nothing.
    fn sync_data(&self) -> Result<(), DiskError>;

    /// Cuts the file to `len` bytes, or extends it with zeros.
    ///
    /// # Panics
    /// When `len` lies below what was frozen.
    fn set_len(&self, len: u64) -> Result<(), DiskError>;

    /// Takes space for all bytes below `len` and extends the file to it with zeros, so that later
    /// writes there cannot fail for want of space.
    fn reserve(&self, len: u64) -> Result<(), DiskError>;

    /// Promises that no byte below `len` changes again. Never goes back.
    fn freeze(&self, len: u64);

    /// What was promised with [`DiskFile::freeze`].
    fn frozen(&self) -> u64;

    /// Makes the one map of this file for [`DiskFile::slice`], `len` bytes long, which may be past
    /// the present end: the file grows beneath it. A second call does nothing.
    fn map(&self, len: u64) -> Result<(), DiskError>;

    /// The frozen bytes `at..at + len` as a slice of the map, without a copy; `None` when they are
    /// not all frozen and mapped. The slice keeps the map alive, whatever happens to the name.
    ///
    /// Reading the slice may wait for the device when the page is not cached.
    fn slice(&self, at: u64, len: usize) -> Option<Bytes>;
}

/// Reads exactly `len` bytes at `at`, or fewer when the file ends before.
///
/// Allocates `len` bytes: check it first.
pub fn read_up_to(file: &dyn DiskFile, at: u64, len: usize) -> Result<Vec<u8>, DiskError> {
    let mut buf = vec![0; len];
    let read = file.read_at(at, &mut buf)?;
    buf.truncate(read);
    Ok(buf)
}

/// How [`Disk::open`] treats a file that exists, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHow {
    /// For reading; the file must exist.
    Read,
    /// For reading and writing; the file must exist.
    Write,
    /// For reading and writing; the file must not exist.
    CreateNew,
    /// For reading and writing; the file is created if it does not exist.
    Create,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name without its directory. Names that are not UTF-8 are not ours and not listed.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}
