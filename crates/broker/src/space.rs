//! The space that is kept free on the disk, for what the broker writes for itself.
//!
//! Without it a full disk could not be helped: deleting topics and records, and recording how far
//! the logs are durable, all need a little space of their own.

use std::path::PathBuf;
use std::sync::Arc;

use tidelog_disk::Disk;

use crate::error::AppendError;

#[derive(Clone, Debug)]
pub(crate) struct Space {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes_min: u64,
}

impl Space {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, bytes_min: u64) -> Self {
        Self {
            disk,
            dir,
            bytes_min,
        }
    }

    /// Whether clients may put more on the disk. Blocks, though not for long.
    ///
    /// # Errors
    /// [`AppendError::Full`]
    pub(crate) fn check(&self) -> Result<(), AppendError> {
        match self.disk.free_bytes(&self.dir) {
            Ok(free) if free < self.bytes_min => Err(AppendError::Full(format!(
                "the disk that holds {} has {free} bytes free, and the last {} are kept for the broker itself",
                self.dir.display(),
                self.bytes_min
            ))),
            Ok(_) => Ok(()),
            Err(e) => {
                // Writes find out by themselves.
                tracing::warn!(error = %e, "it is not known how much space is free");
                Ok(())
            }
        }
    }
}
