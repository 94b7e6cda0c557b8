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

fn beside(dir: &Path, ending: &str) -> PathBuf {
    let mut path = dir.to_owned().into_os_string();
    path.push(ending);
    path.into()
}
