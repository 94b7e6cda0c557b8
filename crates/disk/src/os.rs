//! The operating system's files.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

use crate::{
    DirEntry, DirLock, Disk, DiskError, DiskFile, DiskOp, FileSystem, LockError, OpenHow,
    file_system,
};

/// The operating system's disk. Linux is the platform; other Unixes work, with plainer calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn open(&self, path: &Path, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true);
        match how {
            OpenHow::Read => {}
            OpenHow::Write => {
                options.write(true);
            }
            OpenHow::CreateNew => {
                options.write(true).create_new(true);
            }
            OpenHow::Create => {
                options.write(true).create(true).truncate(false);
            }
        }
        let file = options
            .open(path)
            .map_err(|e| DiskError::new(DiskOp::Open, path, e))?;
        Ok(Arc::new(OsFile {
            file,
            path: path.to_owned(),
            frozen: AtomicU64::new(0),
            map: OnceLock::new(),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        std::fs::create_dir_all(path).map_err(|e| DiskError::new(DiskOp::CreateDir, path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        std::fs::rename(from, to).map_err(|e| DiskError::new(DiskOp::Rename, from, e))
    }

    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        std::fs::remove_file(path).map_err(|e| DiskError::new(DiskOp::Remove, path, e))
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        std::fs::remove_dir_all(path).map_err(|e| DiskError::new(DiskOp::Remove, path, e))
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        let failed = |e| DiskError::new(DiskOp::List, dir, e);
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_dir = entry.file_type().map_err(failed)?.is_dir();
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(DirEntry { name, is_dir });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskError> {
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| DiskError::new(DiskOp::SyncDir, dir, e))
    }

    fn free_bytes(&self, dir: &Path) -> Result<u64, DiskError> {
        let stat =
            rustix::fs::statvfs(dir).map_err(|e| DiskError::new(DiskOp::Stat, dir, e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn file_system(&self, dir: &Path) -> Result<Option<Box<dyn FileSystem>>, DiskError> {
        file_system::open(dir)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| DiskError::new(DiskOp::Lock, path, e))?;
        // The file alone would be no lock once somebody removes it: the next one to come would make
        // another. The directory cannot be removed with what is in it.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = File::open(dir.unwrap_or(Path::new(".")))
            .map_err(|e| DiskError::new(DiskOp::Lock, path, e))?;
        for locked in [&file, &dir] {
            match rustix::fs::flock(locked, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(LockError::Held {
                        path: path.to_owned(),
                    });
                }
                Err(e) => return Err(DiskError::new(DiskOp::Lock, path, e.into()).into()),
            }
        }
        Ok(Box::new(OsLock {
            _file: file,
            _dir: dir,
        }))
    }
}

/// Holds the lock as long as its files are open.
#[derive(Debug)]
struct OsLock {
    _file: File,
    _dir: File,
}

impl DirLock for OsLock {}

#[derive(Debug)]
struct OsFile {
    file: File,
    path: PathBuf,
    /// No byte below this changes again: what makes it sound to read through the map.
    frozen: AtomicU64,
    map: OnceLock<Arc<MmapRaw>>,
}

impl OsFile {
    fn failed(&self, op: DiskOp, source: impl Into<io::Error>) -> DiskError {
        DiskError::new(op, &self.path, source.into())
    }
}

impl DiskFile for OsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64, DiskError> {
        Ok(self
            .file
            .metadata()
            .map_err(|e| self.failed(DiskOp::Stat, e))?
            .len())
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        let mut read = 0;
        while read < buf.len() {
            match self.file.read_at(&mut buf[read..], at + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(DiskOp::Read, e)),
            }
        }
        Ok(read)
    }

    fn read_nothing_ahead(&self) {
        #[cfg(target_os = "linux")]
        {
            // A hint: where it is not taken, more is read than was asked for, and that is all.
            rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Random).ok();
        }
    }

    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> Result<(), DiskError> {
        let frozen = self.frozen();
        assert!(
            at >= frozen,
            "write at {at} below the frozen {frozen} of {:?}",
            self.path
        );
        write_all_vectored(&self.file, at, parts).map_err(|e| self.failed(DiskOp::Write, e))
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        self.file
            .sync_data()
            .map_err(|e| self.failed(DiskOp::Sync, e))
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        let frozen = self.frozen();
        assert!(
            len >= frozen,
            "cut to {len} below the frozen {frozen} of {:?}",
            self.path
        );
        self.file
            .set_len(len)
            .map_err(|e| self.failed(DiskOp::SetLen, e))
    }

    fn reserve(&self, len: u64) -> Result<(), DiskError> {
        if len == 0 {
            return Ok(());
        }
        reserve(&self.file, len).map_err(|e| self.failed(DiskOp::Reserve, e))
    }

    fn freeze(&self, len: u64) {
        self.frozen.fetch_max(len, Ordering::AcqRel);
    }

    fn frozen(&self) -> u64 {
        self.frozen.load(Ordering::Acquire)
    }

    fn map(&self, len: u64) -> Result<(), DiskError> {
        if self.map.get().is_some() {
            return Ok(());
        }
        let len = usize::try_from(len)
            .map_err(|_| self.failed(DiskOp::Map, io::ErrorKind::FileTooLarge))?;
        let map = MmapOptions::new()
            .len(len)
            .map_raw_read_only(&self.file)
            .map_err(|e| self.failed(DiskOp::Map, e))?;
        // Two threads may get here at once; the map that loses is unmapped, never having been read.
        self.map.get_or_init(|| Arc::new(map));
        Ok(())
    }

    fn slice(&self, at: u64, len: usize) -> Option<Bytes> {
        let map = self.map.get()?;
        let end = at.checked_add(len as u64)?;
        if end > self.frozen() || end > map.len() as u64 {
            return None;
        }
        let start = usize::try_from(at).ok()?;
        Some(Bytes::from_owner(MapSlice {
            map: map.clone(),
            start,
            len,
        }))
    }
}

/// A range of a map, all of it below the file's frozen length when this was made. No write or cut
/// through the file's handle passes the checks of `write_at` and `set_len` there, so the bytes never
/// change. That the file has no second writing handle, and that no other program rewrites it, is
/// what the crate's docs ask for; brokers keep each other off by the data directory's lock.
struct MapSlice {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl AsRef<[u8]> for MapSlice {
    #[allow(unsafe_code, reason = "reading a map is what this crate is for")]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `slice` made this only for a range inside the map, so the addition stays within
        // the mapping.
        let start = unsafe { self.map.as_ptr().add(self.start) };
        // SAFETY: The pointer and length lie inside the mapping, which `self.map` keeps alive for
        // as long as the borrow; the bytes are frozen, see `MapSlice`, and do not change meanwhile.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    // From the start, because the file may have holes below its present length.
    loop {
        return match fallocate(file, FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::INTR) => continue,
            // The file system cannot reserve.
            Err(rustix::io::Errno::OPNOTSUPP) => extend(file, len),
            other => Ok(other?),
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    extend(file, len)
}

/// Extends the length alone: a full disk shows only at the write.
fn extend(file: &File, len: u64) -> io::Result<()> {
    if file.metadata()?.len() < len {
        file.set_len(len)
    } else {
        Ok(())
    }
}

/// The most slices one `pwritev` takes (Linux's UIO_MAXIOV).
const PARTS_PER_CALL_MAX: usize = 1024;

#[cfg(target_os = "linux")]
fn write_all_vectored(file: &File, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
    write_all_by(at, parts, |window, at| {
        Ok(rustix::io::pwritev(file, window, at)?)
    })
}

#[cfg(not(target_os = "linux"))]
fn write_all_vectored(file: &File, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
    write_all_by(at, parts, |window, at| match window {
        [first, ..] => file.write_at(first, at),
        [] => Ok(0),
    })
}

/// Calls `pwritev` until all of `parts` is written: each call may write less than it was given, and
/// may be interrupted.
fn write_all_by(
    mut at: u64,
    parts: &[IoSlice<'_>],
    mut pwritev: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut next = 0;
    // So many bytes of `parts[next]` are written.
    let mut done = 0;
    loop {
        // Empty parts too, which the call would answer with a 0 that says nothing.
        while next < parts.len() && done >= parts[next].len() {
            done -= parts[next].len();
            next += 1;
        }
        if next == parts.len() {
            return Ok(());
        }
        let written = if done > 0 {
            // A short write inside a part: the rest of that part goes alone, which is rare.
            pwritev(&[IoSlice::new(&parts[next][done..])], at)
        } else {
            pwritev(&parts[next..parts.len().min(next + PARTS_PER_CALL_MAX)], at)
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                done += written;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// A device that takes at most `most` bytes a call, and is interrupted every third time.
    fn write_in_pieces(parts: &[&[u8]], most: usize) -> Vec<u8> {
        let mut device = vec![0xee; 7];
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut calls = 0;
        write_all_by(7, &slices, |window, at| {
            calls += 1;
            assert!(window.len() <= PARTS_PER_CALL_MAX);
            if calls % 3 == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            assert_eq!(
                at,
                device.len() as u64,
                "nothing is left out or written twice"
            );
            let given: Vec<u8> = window
                .iter()
                .flat_map(|part| part.iter().copied())
                .collect();
            device.extend_from_slice(&given[..given.len().min(most)]);
            Ok(given.len().min(most))
        })
        .unwrap();
        device.split_off(7)
    }

    #[test]
    fn short_writes_are_gone_on_with_where_they_ended() {
        let parts: &[&[u8]] = &[b"", b"abc", b"", b"", b"defghij", b"k", b""];
        for most in 1..=12 {
            assert_eq!(
                write_in_pieces(parts, most),
                b"abcdefghijk",
                "{most} a call"
            );
        }
        let many: Vec<&[u8]> = vec![b"xy"; 3 * PARTS_PER_CALL_MAX + 1];
        for most in [1, 2, 3, 2047, 2048, 2049, 1 << 20] {
            assert_eq!(write_in_pieces(&many, most), many.concat(), "{most} a call");
        }
    }

    #[test]
    fn a_device_that_takes_nothing_more_is_an_error_and_not_a_loop() {
        let parts = [IoSlice::new(b"abc"), IoSlice::new(b"def")];
        let mut answers = vec![Ok(0), Ok(2)];
        let failed = write_all_by(0, &parts, |_, _| answers.pop().unwrap()).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::WriteZero);
        let mut answers = vec![Err(io::Error::from_raw_os_error(28)), Ok(4)];
        let failed = write_all_by(0, &parts, |_, _| answers.pop().unwrap()).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(28));
        // Nothing at all is no error.
        write_all_by(0, &[IoSlice::new(b"")], |_, _| Ok(0)).unwrap();
    }
}
