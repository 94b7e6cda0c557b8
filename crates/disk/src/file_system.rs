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
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use rustix::fs::{Mode, OFlags};

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
        // Without such a file there is no flush to be relied on.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let Ok(nameless) = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) else {
            return Ok(None);
        };
        let device = device_of(dir)?;
        Ok(Some(Box::new(OsFileSystem {
            handle,
            nameless: nameless.into(),
            device,
            path: dir.to_owned(),
        })))
    }

    fn device_of(dir: &Path) -> Result<u64, DiskError> {
        let metadata = std::fs::metadata(dir);
        let metadata = metadata.map_err(|e| DiskError::new(DiskOp::Stat, dir, e))?;
        Ok(metadata.dev())
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
        /// A file of it without a name, which nobody writes to: see [`FileSystem::sync`].
        nameless: File,
        device: u64,
        path: PathBuf,
    }

    impl FileSystem for OsFileSystem {
        fn holds(&self, dir: &Path) -> Result<bool, DiskError> {
            Ok(device_of(dir)? == self.device)
        }

        fn sync(&self) -> Result<(), DiskError> {
            let failed = |e| DiskError::new(DiskOp::SyncAll, &self.path, e);
            rustix::fs::syncfs(&self.handle).map_err(|e| failed(e.into()))?;
            // All is on its way to the device, but it may be in the device's cache yet: XFS flushes
            // that only where it had something to log, and ext4 without a journal before it has
            // written the last of its own blocks. The sync of a file always does; of a directory
            // XFS does not.
            self.nameless.sync_data().map_err(failed)
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
