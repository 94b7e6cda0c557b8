//! Putting a copy into the place of a log: by renames, so that a crash leaves the one or the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidelog_disk::{Disk, DiskError};
use tidelog_record::RaftIndex;

use super::manifest::{MANIFEST_BYTES_MAX, Manifest};
use super::{ADOPTED, catch_up_dir, replaced_dir};
use crate::error::Poisoned;
use crate::header::LogIdentity;
use crate::log::{Log, parents, remove_if_there};
use crate::segment::{LogEnd, base_offset_of};
use crate::sidecar;

/// The log that a copy is to replace.
#[derive(Debug)]
pub enum Old<'a> {
    /// It is open. It takes no more writes from the moment that files change; then it is to be dropped.
    Open(&'a mut Log),
    /// It is not open, or cannot be: where it ends, or last was known to end.
    Closed(LogEnd),
    /// There is none.
    Nothing,
}

/// Why a copy was not put into the place of the log.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// The log has all that the copy has, or is longer. Nothing happened.
    #[error("the copy ends before index {end}, and the log before index {old}")]
    Behind {
        /// The Raft index after the copy's last entry.
        end: RaftIndex,
        /// That after the log's.
        old: RaftIndex,
    },
    /// There is a log where none was said to be. Nothing happened.
    #[error("{} holds a log", dir.display())]
    Exists {
        /// The partition's directory.
        dir: PathBuf,
    },
    /// What tells where an adopted copy ends is damaged: the log is to be copied again.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The disk refused, at any point of the way: [`recover_swap`] comes before all else now.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The checkpoint could not be recorded: [`recover_swap`] comes before all else now.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// A copy that is complete, checked and durable.
#[derive(Debug)]
pub struct Staged {
    disk: Arc<dyn Disk>,
    /// The partition's.
    dir: PathBuf,
    manifest: Arc<Manifest>,
}

impl Staged {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, manifest: Arc<Manifest>) -> Self {
        Self {
            disk,
            dir,
            manifest,
        }
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Puts the copy into the place of the log. When this returns, power loss does not undo it. Then
    /// [`Log::open_replica`] opens it, with [`Manifest::end`] as checkpoint and [`Manifest::commit`].
    ///
    /// `record` makes the end of the copy durable as the log's checkpoint, its commit as that of the
    /// group, and whatever the manifest's note is for. It is called once the copy's name is durable,
    /// and nothing was appended to it; after a crash [`recover_swap`] calls it again.
    ///
    /// # Errors
    /// See [`AdoptError`].
    ///
    /// # Panics
    /// When the log that is to be replaced is another one.
    pub fn adopt(
        self,
        old: Old<'_>,
        record: impl FnOnce(&Manifest) -> Result<(), Poisoned>,
    ) -> Result<Arc<Manifest>, AdoptError> {
        let disk = &*self.disk;
        let replaced = replaced_dir(&self.dir);
        let old_end = match &old {
            Old::Open(log) => {
                let is_same = log.dir() == self.dir && log.identity() == self.manifest.identity;
                assert!(is_same, "the copy of one log replaces another");
                Some(log.end().index)
            }
            Old::Closed(end) => Some(end.index),
            Old::Nothing if holds_log(disk, &self.dir)? => {
                let dir = self.dir.clone();
                return Err(AdoptError::Exists { dir });
            }
            Old::Nothing => None,
        };
        let end = self.manifest.end.index;
        // Where the log has another entry than what was committed there, what lies behind it never was.
        let is_other = match &old {
            Old::Open(log) => {
                let epoch = log.epoch_of(self.manifest.commit());
                epoch.is_ok_and(|epoch| epoch != self.manifest.end.epoch)
            }
            Old::Closed(_) | Old::Nothing => false,
        };
        if let Some(old) = old_end.filter(|old| end <= *old && !is_other) {
            return Err(AdoptError::Behind { end, old });
        }
        if let Old::Open(log) = old {
            log.shared.retire();
        }
        // Of an earlier swap whose own could not be removed.
        if is_there(disk, &replaced)? {
            disk.remove_dir_all(&replaced)?;
        }
        if is_there(disk, &self.dir)? {
            disk.rename(&self.dir, &replaced)?;
        }
        disk.rename(&catch_up_dir(&self.dir), &self.dir)?;
        conclude(disk, &self.dir, Some(&self.manifest), record)?;
        tracing::info!(dir = %self.dir.display(), index = %end, offset = %self.manifest.end.offset,
            "a log was replaced by the files of another replica");
        Ok(self.manifest)
    }
}

/// What [`recover_swap`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// No swap was under way.
    None,
    /// One had begun: the log is the one that was to be replaced, and its checkpoint holds.
    TakenBack,
    /// One had begun, and is done: the log is the copy, and `record` was called.
    Adopted(Arc<Manifest>),
}

/// Finishes what [`Staged::adopt`] began, or takes it back. Comes before every open of the log in
/// `dir`, and before one is created there. `record` is as for [`Staged::adopt`].
///
/// # Errors
/// See [`AdoptError`]; until it succeeds the log must not be opened.
pub fn recover_swap(
    disk: &dyn Disk,
    dir: &Path,
    identity: LogIdentity,
    record: impl FnOnce(&Manifest) -> Result<(), Poisoned>,
) -> Result<Swap, AdoptError> {
    let (staged, replaced) = (catch_up_dir(dir), replaced_dir(dir));
    let has_replaced = is_there(disk, &replaced)?;
    if !is_there(disk, dir)? {
        if !has_replaced {
            return Ok(Swap::None);
        }
        // Between the two renames. The copy was whole before the first.
        if !matches!(load_adopted(disk, &staged, identity), Ok(Some(_))) {
            disk.rename(&replaced, dir)?;
            sync_parent(disk, dir)?;
            return Ok(Swap::TakenBack);
        }
        disk.rename(&staged, dir)?;
    }
    let adopted = load_adopted(disk, dir, identity)?.map(Arc::new);
    if has_replaced || adopted.is_some() {
        conclude(disk, dir, adopted.as_deref(), record)?;
    }
    Ok(adopted.map_or(Swap::None, Swap::Adopted))
}

/// What comes behind the renames.
fn conclude(
    disk: &dyn Disk,
    dir: &Path,
    adopted: Option<&Manifest>,
    record: impl FnOnce(&Manifest) -> Result<(), Poisoned>,
) -> Result<(), AdoptError> {
    // Before the checkpoint: with that of the copy, the log that was there would be damaged. And
    // before the log that was there is removed.
    sync_parent(disk, dir)?;
    if let Some(manifest) = adopted {
        record(manifest)?;
        // Not before: without it, the checkpoint of the log that was there would be taken for the
        // copy's. And before anything is appended: it would set the checkpoint back.
        remove_if_there(disk, &dir.join(ADOPTED))?;
        disk.sync_dir(dir)?;
    }
    let replaced = replaced_dir(dir);
    let removed = is_there(disk, &replaced).and_then(|is_there| {
        if is_there {
            disk.remove_dir_all(&replaced)
        } else {
            Ok(())
        }
    });
    if let Err(e) = removed {
        tracing::warn!(error = %e, "a log that was replaced stays until the next start");
    }
    Ok(())
}

/// The manifest of the copy in `dir` that was complete when it was put there, and whose checkpoint
/// may not be recorded yet.
fn load_adopted(
    disk: &dyn Disk,
    dir: &Path,
    identity: LogIdentity,
) -> Result<Option<Manifest>, AdoptError> {
    let path = dir.join(ADOPTED);
    let bytes = match sidecar::read(disk, &path, MANIFEST_BYTES_MAX as u64) {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    match Manifest::decode(&bytes) {
        Ok(manifest) => Ok(Some(manifest).filter(|it| it.identity == identity)),
        Err(_) => Err(AdoptError::Damaged { path }),
    }
}

fn holds_log(disk: &dyn Disk, dir: &Path) -> Result<bool, DiskError> {
    match disk.list(dir) {
        Ok(entries) => Ok(entries
            .iter()
            .any(|entry| base_offset_of(&entry.name, "log").is_some())),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_there(disk: &dyn Disk, dir: &Path) -> Result<bool, DiskError> {
    match disk.list(dir) {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

fn sync_parent(disk: &dyn Disk, dir: &Path) -> Result<(), DiskError> {
    let parent = parents(dir).next().unwrap_or(Path::new("."));
    disk.sync_dir(parent)
}
