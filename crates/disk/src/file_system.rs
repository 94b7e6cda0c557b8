//! Syncing all of a file system with one call, where that can be relied on.

#[cfg(target_os = "linux")]
pub(crate) use linux::open;

/// Elsewhere a sync of everything does not tell of failures.
#[cfg(not(target_os = "linux"))]
pub(crate) fn open(
    _dir: &std::path::Path,
) -> Result<Option<Box<dyn crate::FileSystem>>, crate::DiskError> {
    Ok(None)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::path::{Path, PathBuf};

    use crate::{DiskError, DiskOp, FileSystem};

    /// `f_type` of ext4, XFS and Btrfs: their `syncfs` waits until everything is on the device.
    const KNOWN_TYPES: [u64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];
    /// Since this version `syncfs` tells of failed write-backs.
    const KERNEL_MIN: (u32, u32) = (5, 8);

    pub(crate) fn open(dir: &Path) -> Result<Option<Box<dyn FileSystem>>, DiskError> {
        let handle = File::open(dir).map_err(|e| DiskError::new(DiskOp::Open, dir, e))?;
        let stat = rustix::fs::fstatfs(&handle)
            .map_err(|e| DiskError::new(DiskOp::Stat, dir, e.into()))?;
        let is_known = u64::try_from(stat.f_type).is_ok_and(|kind| KNOWN_TYPES.contains(&kind));
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if !is_known || version_of(&release).is_none_or(|version| version < KERNEL_MIN) {
            return Ok(None);
        }
        let path = dir.to_owned();
        Ok(Some(Box::new(OsFileSystem { handle, path })))
    }

    fn version_of(release: &str) -> Option<(u32, u32)> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let (major, minor) = (numbers.next()?, numbers.next()?);
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// Has a directory open from the beginning on: the kernel tells each open file once of the
    /// write-backs that failed since it was opened.
    #[derive(Debug)]
    struct OsFileSystem {
        handle: File,
        path: PathBuf,
    }

    impl FileSystem for OsFileSystem {
        fn sync(&self) -> Result<(), DiskError> {
            let failed = |e| DiskError::new(DiskOp::SyncAll, &self.path, e);
            rustix::fs::syncfs(&self.handle).map_err(|e| failed(e.into()))?;
            // ext4 without a journal flushes the device's cache before it has written the last of
            // its own blocks; an fsync flushes once more.
            self.handle.sync_all().map_err(failed)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn kernel_versions_are_compared_as_numbers() {
            assert_eq!(version_of("6.18.44-custom\n"), Some((6, 18)));
            assert_eq!(version_of("5.8.0"), Some((5, 8)));
            assert!(version_of("5.10.1") > Some(KERNEL_MIN));
            assert!(version_of("4.19.0-27") < Some(KERNEL_MIN));
            assert_eq!(version_of("unknown"), None);
        }
    }
}
