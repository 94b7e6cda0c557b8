//! Open files and held locks.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tidelog_disk::{DirLock, DiskError, DiskFile, DiskOp, FileSystem};

use crate::SimDisk;
use crate::faults::{Astray, Call};
use crate::names::Ino;
use crate::state::State;

/// EBADF: what a write through a handle opened for reading gets.
const BAD_HANDLE: i32 = 9;

/// A file opened in one life of the simulated process.
pub(crate) struct SimFile {
    disk: SimDisk,
    incarnation: u64,
    ino: Ino,
    /// Keeps the nameless file.
    _opened: Arc<()>,
    path: PathBuf,
    is_writable: bool,
    frozen: AtomicU64,
    map_len: OnceLock<u64>,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile")
            .field("path", &self.path)
            .field("incarnation", &self.incarnation)
            .field("frozen", &self.frozen())
            .field("map_len", &self.map_len.get())
            .finish_non_exhaustive()
    }
}

impl SimFile {
    pub(crate) fn new(
        disk: SimDisk,
        incarnation: u64,
        ino: Ino,
        opened: Arc<()>,
        path: &Path,
        is_writable: bool,
    ) -> Self {
        Self {
            disk,
            incarnation,
            ino,
            _opened: opened,
            path: path.to_owned(),
            is_writable,
            frozen: AtomicU64::new(0),
            map_len: OnceLock::new(),
        }
    }

    /// Counts the call and makes it; `act` is told the error to fail with, if any.
    fn call<T>(
        &self,
        op: DiskOp,
        act: impl FnOnce(&mut State, Option<io::Error>) -> io::Result<T>,
    ) -> Result<T, DiskError> {
        self.call_or_stray(op, |state, failed, _| act(state, failed))
    }

    /// As [`SimFile::call`]; `act` is also told where the call goes astray to, if it does.
    fn call_or_stray<T>(
        &self,
        op: DiskOp,
        act: impl FnOnce(&mut State, Option<io::Error>, Option<Astray>) -> io::Result<T>,
    ) -> Result<T, DiskError> {
        let call = Call {
            op,
            path: &self.path,
            mutates: matches!(
                op,
                DiskOp::Write | DiskOp::Sync | DiskOp::SetLen | DiskOp::Reserve
            ),
        };
        self.disk.holds.pass(&call);
        let mut state = self.disk.state();
        let result = if state.incarnation == self.incarnation {
            let failed = state.faults.count(&call);
            if matches!(op, DiskOp::Write | DiskOp::SetLen | DiskOp::Reserve) && !self.is_writable {
                Err(io::Error::from_raw_os_error(BAD_HANDLE))
            } else {
                let stray = match failed {
                    None if matches!(op, DiskOp::Read | DiskOp::Write) => state.faults.stray(&call),
                    _ => None,
                };
                act(&mut state, failed, stray)
            }
        } else {
            Err(io::Error::other(
                "the simulated process that opened this file is gone",
            ))
        };
        result.map_err(|e| DiskError::new(op, &self.path, e))
    }

    /// A call that changes nothing when it fails.
    fn read<T>(&self, op: DiskOp, act: impl FnOnce(&mut State) -> T) -> Result<T, DiskError> {
        self.call(op, |state, failed| {
            failed.map_or_else(|| Ok(act(state)), Err)
        })
    }
}

impl DiskFile for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64, DiskError> {
        self.read(DiskOp::Stat, |state| state.file(self.ino).cache().len())
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        self.call_or_stray(DiskOp::Read, |state, failed, stray| match (failed, stray) {
            (Some(failed), _) => Err(failed),
            (None, Some(to)) => Ok(state.read_astray(self.ino, at, buf, to)),
            (None, None) => Ok(state.file(self.ino).cache().read(at, buf)),
        })
    }

    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> Result<(), DiskError> {
        let frozen = self.frozen();
        assert!(
            at >= frozen,
            "write at {at} below the frozen {frozen} of {:?}",
            self.path
        );
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        let bytes = parts.concat();
        self.call_or_stray(DiskOp::Write, |state, failed, stray| {
            check_len(at.saturating_add(bytes.len() as u64))?;
            match stray {
                Some(to) => state.write_astray(self.ino, at, &bytes, to),
                None => state.write(self.ino, at, &bytes, failed),
            }
        })
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        self.call(DiskOp::Sync, |state, failed| {
            state.sync_file(self.ino, failed)
        })
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        let frozen = self.frozen();
        assert!(
            len >= frozen,
            "cut to {len} below the frozen {frozen} of {:?}",
            self.path
        );
        self.call(DiskOp::SetLen, |state, failed| {
            check_len(len)?;
            state.set_len(self.ino, len, failed)
        })
    }

    fn reserve(&self, len: u64) -> Result<(), DiskError> {
        self.call(DiskOp::Reserve, |state, failed| {
            check_len(len)?;
            state.reserve(self.ino, len, failed)
        })
    }

    fn freeze(&self, len: u64) {
        self.frozen.fetch_max(len, Ordering::AcqRel);
    }

    fn frozen(&self) -> u64 {
        self.frozen.load(Ordering::Acquire)
    }

    fn map(&self, len: u64) -> Result<(), DiskError> {
        if self.map_len.get().is_none() {
            let mapped = self.read(DiskOp::Map, |_| len)?;
            self.map_len.get_or_init(|| mapped);
        }
        Ok(())
    }

    /// # Panics
    /// When the range reaches beyond the end of the file, where a real map raises SIGBUS.
    fn slice(&self, at: u64, len: usize) -> Option<Bytes> {
        let end = at.checked_add(len as u64)?;
        if end > self.frozen() || end > *self.map_len.get()? {
            return None;
        }
        let mut state = self.disk.state();
        if state.incarnation != self.incarnation {
            return None;
        }
        let mut bytes = vec![0; len];
        let file_len = state.file(self.ino).cache().len();
        let read = state.file(self.ino).cache().read(at, &mut bytes);
        drop(state);
        assert!(
            read == len,
            "SIGBUS: {at}..{end} of the map reaches beyond the {file_len} bytes of {:?}",
            self.path
        );
        Some(bytes.into())
    }
}

/// The whole disk, as one life of the simulated process syncs it. Names stay pending, though a real
/// file system takes them along.
#[derive(Debug)]
pub(crate) struct SimFileSystem {
    disk: SimDisk,
    incarnation: u64,
    path: PathBuf,
}

impl SimFileSystem {
    pub(crate) fn new(disk: SimDisk, incarnation: u64, path: &Path) -> Self {
        Self {
            disk,
            incarnation,
            path: path.to_owned(),
        }
    }
}

impl FileSystem for SimFileSystem {
    fn holds(&self, dir: &Path) -> Result<bool, DiskError> {
        let state = self.disk.state();
        Ok(state.is_elsewhere(dir) == state.is_elsewhere(&self.path))
    }

    fn sync(&self) -> Result<(), DiskError> {
        let call = Call {
            op: DiskOp::SyncAll,
            path: &self.path,
            mutates: true,
        };
        self.disk.holds.pass(&call);
        let mut state = self.disk.state();
        let result = if state.incarnation == self.incarnation {
            let failed = state.faults.count(&call);
            state.sync_all(&self.path, failed)
        } else {
            Err(io::Error::other(
                "the simulated process that opened this file system is gone",
            ))
        };
        result.map_err(|e| DiskError::new(DiskOp::SyncAll, &self.path, e))
    }
}

/// No file is longer than a signed 64-bit number says.
fn check_len(len: u64) -> io::Result<()> {
    if i64::try_from(len).is_ok() {
        Ok(())
    } else {
        Err(io::ErrorKind::FileTooLarge.into())
    }
}

/// A lock held in one life of the simulated process.
#[derive(Debug)]
pub(crate) struct SimLock {
    disk: SimDisk,
    incarnation: u64,
    ino: Ino,
}

impl SimLock {
    /// `None` when somebody holds it.
    pub(crate) fn take(disk: SimDisk, incarnation: u64, ino: Ino) -> Option<Self> {
        let is_taken = disk.state().locks.insert(ino);
        is_taken.then_some(Self {
            disk,
            incarnation,
            ino,
        })
    }
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        // A dead process's lock went with it, and may be another's by now.
        if state.incarnation == self.incarnation {
            state.locks.remove(&self.ino);
        }
    }
}
