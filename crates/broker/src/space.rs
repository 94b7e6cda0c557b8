//! The space that is kept free on the disk, for what the broker writes for itself.
//!
//! Without it a full disk could not be helped: deleting topics and records, and recording how far
//! the logs are durable, all need a little space of their own.

use std::path::PathBuf;
use std::sync::Arc;

use tidelog_disk::Disk;

use crate::error::AppendError;

/// With less than this above the reserve a broker is of little use.
const USEFUL_BYTES: u64 = 1 << 20;

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

    /// What is to be said at the start when there is little space, or none to take appends with.
    pub(crate) fn warning(&self) -> Option<String> {
        let free = self.disk.free_bytes(&self.dir).ok()?;
        if free >= self.bytes_min.saturating_add(USEFUL_BYTES) {
            return None;
        }
        let refused = if free < self.bytes_min {
            "appends and new topics are refused"
        } else {
            "appends and new topics will soon be refused"
        };
        let needed = self.bytes_min.saturating_add(USEFUL_BYTES) - free;
        Some(format!(
            "the disk that holds {} has {free} bytes free, and the last {} are kept for the broker \
             itself: {refused}, reads and deletes go on; free at least {needed} bytes more, lower \
             retention.ms or retention.bytes, or use a larger file system",
            self.dir.display(),
            self.bytes_min
        ))
    }

    /// Whether clients get nothing more onto the disk. Once it is so, it is until there is space for more
    /// than a batch or two: leaderships are not to come and go with it.
    pub(crate) fn is_short(&self, was_short: bool) -> bool {
        let beside = if was_short { USEFUL_BYTES } else { 0 };
        let needed = self.bytes_min.saturating_add(beside);
        let free = self.disk.free_bytes(&self.dir);
        free.is_ok_and(|free| free < needed)
    }

    /// Whether clients may put more on the disk. Blocks, though not for long.
    ///
    /// # Errors
    /// [`Shortage`]
    pub(crate) fn check(&self) -> Result<(), Shortage> {
        match self.disk.free_bytes(&self.dir) {
            Ok(free) if free < self.bytes_min => Err(Shortage {
                dir: self.dir.clone(),
                free,
                bytes_min: self.bytes_min,
            }),
            Ok(_) => Ok(()),
            Err(e) => {
                // Writes find out by themselves.
                tracing::warn!(error = %e, "it is not known how much space is free");
                Ok(())
            }
        }
    }
}

/// There is less space than what is kept for the broker itself.
#[derive(Clone, Debug)]
pub(crate) struct Shortage {
    dir: PathBuf,
    free: u64,
    bytes_min: u64,
}

impl Shortage {
    /// The refusal of something that takes `len` bytes.
    pub(crate) fn refusal_of(&self, len: u64) -> AppendError {
        let Self {
            dir,
            free,
            bytes_min,
        } = self;
        let needed = (bytes_min - free).saturating_add(len);
        AppendError::Full {
            what: format!(
                "the disk that holds {} has {free} bytes free, and the last {bytes_min} are kept \
                 for the broker itself: {needed} bytes more are needed",
                dir.display(),
            ),
            dir: dir.clone(),
            needed,
        }
    }
}

#[cfg(test)]
mod tests {
    use tidelog_sim::SimDisk;

    use super::*;

    #[test]
    fn a_disk_that_was_short_of_space_is_so_until_there_is_more_than_the_reserve() {
        let disk = SimDisk::new(1);
        let space = Space::new(Arc::new(disk.clone()), PathBuf::from("/"), 64 << 20);
        let steps = [
            (64 << 20, false),
            ((64 << 20) - 1, true),
            ((65 << 20) - 1, true),
            (65 << 20, false),
            (64 << 20, false),
        ];
        let mut is_short = false;
        for (free, expected) in steps {
            disk.set_free_bytes(Some(free));
            is_short = space.is_short(is_short);
            assert_eq!(is_short, expected, "{free} bytes are free");
        }
    }

    #[test]
    fn too_little_space_is_said_with_the_numbers_and_the_remedy() {
        let disk = SimDisk::new(1);
        let space = Space::new(Arc::new(disk.clone()), PathBuf::from("/"), 64 << 20);
        disk.set_free_bytes(Some(65 << 20));
        assert_eq!(space.warning(), None);
        for (free, what) in [
            ((65 << 20) - 1, "will soon be refused"),
            (64 << 20, "will soon be refused"),
            (5000, "are refused"),
            (0, "are refused"),
        ] {
            disk.set_free_bytes(Some(free));
            let said = space.warning().expect("it is too little");
            let needed = (65 << 20) - free;
            for part in [
                format!(" {free} bytes free"),
                "the last 67108864".to_owned(),
                what.to_owned(),
                format!("free at least {needed} bytes more"),
            ] {
                assert!(said.contains(&part), "{said:?} lacks {part:?}");
            }
        }
    }
}
