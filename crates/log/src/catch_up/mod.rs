//! Catching up by files: a replica that lacks entries which are nowhere any more, one by one, copies
//! the segment files of another one.
//!
//! At the other replica, a [`CatchUpSource`] (`source.rs`) stands for its log up to the commit. Its
//! [`Manifest`] (`manifest.rs`) lists the files, and what to check them against. Here, a [`Staging`]
//! (`staging.rs`) says what comes next, takes the bytes, and checks each file when it is all there
//! (`check.rs`), and then all of them together (`together.rs`). What it found good on the disk after a
//! stop is not asked for again. [`Staged::adopt`] (`adopt.rs`) puts the copy into the place of the log.
//! Who carries the bytes, how fast, and from whom, is the caller's matter: nothing here waits but for
//! the disk.
//!
//! # What is where, while the log is replaced
//!
//! | directories | a crash leaves that | [`recover_swap`] |
//! |---|---|---|
//! | the log, and `.catch-up` | before the swap | lets all be; the copy may go on |
//! | `.replaced`, and `.catch-up` with its manifest | between the renames | renames the copy, and goes on as below |
//! | the copy with its manifest, perhaps `.replaced` | before the checkpoint is known to be recorded | has it recorded, then removes the manifest and `.replaced` |
//! | the copy, and `.replaced` | behind that | removes `.replaced` |
//!
//! The checkpoint that is recorded is that of the old log until the copy has its name durably; from
//! then on the manifest in the copy's directory says what it is, until it is recorded. So no log is
//! ever opened with the checkpoint of the other.

mod adopt;
mod check;
#[cfg(test)]
mod golden;
mod manifest;
mod part;
mod source;
mod staging;
mod together;

use std::path::{Path, PathBuf};

pub use adopt::{AdoptError, Old, Staged, Swap, recover_swap};
pub use check::Flaw;
pub use manifest::{
    MANIFEST_BYTES_MAX, MANIFEST_SEGMENTS_MAX, Manifest, ManifestError, NOTE_BYTES_MAX,
};
pub use source::{CATCH_UP_READ_MAX, CatchUpSource, SourceError};
pub use staging::{Staging, StagingError, Wanted};

/// The manifest of a copy that is complete, in its directory: the log that comes to be there ends as
/// it says, whatever the checkpoint says that is recorded.
pub const ADOPTED: &str = "adopted";

/// What the name of the partition's directory gets for that of its copy.
pub(crate) const CATCH_UP: &str = ".catch-up";
/// And for that of the log that is being replaced.
pub(crate) const REPLACED: &str = ".replaced";

/// Where the copy for the log in `dir` gathers. Goes when the partition is deleted.
pub fn catch_up_dir(dir: &Path) -> PathBuf {
    beside(dir, CATCH_UP)
}

/// Where the log in `dir` lies while it is being replaced. Goes when the partition is deleted.
pub fn replaced_dir(dir: &Path) -> PathBuf {
    beside(dir, REPLACED)
}

/// The longest name of a file or directory that file systems take, in bytes.
const NAME_LEN_MAX: usize = 255;

/// The directory's name with the ending; a name that would be too long ends in a checksum of it instead.
fn beside(dir: &Path, ending: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    if name.len() + ending.len() <= NAME_LEN_MAX {
        return dir.with_file_name(format!("{name}{ending}"));
    }
    let sum = crc32fast::hash(name.as_bytes());
    // Names of topics are ASCII.
    let kept: String = name.chars().take(NAME_LEN_MAX / 2).collect();
    dir.with_file_name(format!("{kept}~{sum:08x}{ending}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_beside_a_log_is_longer_than_file_systems_take() {
        let dir = |len: usize, number: u32| {
            let name = format!("{}-{number}", "t".repeat(len));
            Path::new("/data").join(name)
        };
        assert_eq!(catch_up_dir(&dir(1, 0)), Path::new("/data/t-0.catch-up"));
        let mut names = std::collections::BTreeSet::new();
        for number in 0..1000 {
            for path in [
                catch_up_dir(&dir(249, number)),
                replaced_dir(&dir(249, number)),
            ] {
                assert_eq!(path.parent(), Some(Path::new("/data")));
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                assert!(name.len() <= NAME_LEN_MAX);
                assert!(names.insert(name));
            }
        }
    }
}
