//! Where the files of another replica's log gather until all are there and checked.
//!
//! A file that is not all there, or not yet checked, has `.part` behind its name. One that is takes
//! its name after its bytes were synced: what bears its name is durable, whatever became of the
//! process that wrote it.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow};

use super::adopt::Staged;
use super::check::{Flaw, Unfit, check_segment, check_side_file};
use super::manifest::Manifest;
use super::part::{Kind, Part, Progress, parts_of, read_len};
use super::source::CATCH_UP_READ_MAX;
use super::{ADOPTED, catch_up_dir};
use crate::header::LogIdentity;
use crate::log::{create_dir_durably, remove_if_there};
use crate::segment::index_path;

/// Why a copy does not go on.
#[derive(Debug, Error)]
pub enum StagingError {
    /// The manifest is of another log. Nothing happened.
    #[error("the manifest is of another log")]
    Foreign,
    /// These bytes are not the ones that come next. Nothing happened.
    #[error("{len} bytes at {position} of file {file} are not wanted")]
    NotWanted {
        /// The file's number.
        file: u32,
        /// Where in it, in bytes.
        position: u64,
        /// How many there are.
        len: u64,
    },
    /// Not all of it is there yet. Nothing happened.
    #[error("the copy is not complete")]
    Incomplete,
    /// A file is not what it must be. It was removed, and is wanted again. Where that goes on and on,
    /// it is the source whose file is damaged.
    #[error("file {file} of the copy is damaged: {flaw}")]
    Damaged {
        /// The file's number.
        file: u32,
        /// What is wrong with it.
        flaw: Box<Flaw>,
    },
    /// Each file is what the manifest says, but together they make no log that ends as it says. Only
    /// another manifest helps.
    #[error("the files of the copy do not fit each other: {0}")]
    Unfit(String),
    /// There is no space. What is there stays; the same call may be made again once there is some.
    #[error("there is no space for the copy: {0}")]
    Full(DiskError),
    /// The disk refused. What it is certain of stays and the rest is wanted again.
    #[error(transparent)]
    Disk(DiskError),
}

impl From<DiskError> for StagingError {
    fn from(e: DiskError) -> Self {
        if e.is_full() {
            Self::Full(e)
        } else {
            Self::Disk(e)
        }
    }
}

/// Bytes of a copy that are not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The file's number.
    pub file: u32,
    /// Where in it, in bytes.
    pub position: u64,
    /// How many at most; at least 1.
    pub len_max: u32,
}

/// The directory in which a copy gathers, beside the partition's own. At most one at a time for a
/// partition.
#[derive(Debug)]
pub struct Staging {
    disk: Arc<dyn Disk>,
    /// The partition's.
    dir: PathBuf,
    staged: PathBuf,
    manifest: Arc<Manifest>,
    parts: Vec<Part>,
    /// The file that is being written, and its number.
    writing: Option<(usize, Arc<dyn DiskFile>)>,
}

impl Staging {
    /// Opens the staging directory of the partition whose log is in `dir`, or makes it. What is there
    /// of this copy stays, also where it was made from another manifest; the rest is removed.
    ///
    /// # Errors
    /// [`StagingError::Foreign`] when the manifest is not of the log `identity`; when the disk
    /// refused.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        manifest: Manifest,
    ) -> Result<Self, StagingError> {
        if manifest.identity != identity {
            return Err(StagingError::Foreign);
        }
        let staged = catch_up_dir(dir);
        create_dir_durably(&*disk, &staged)?;
        let mut staging = Self {
            parts: parts_of(&staged, &manifest),
            disk,
            dir: dir.to_owned(),
            staged,
            manifest: Arc::new(manifest),
            writing: None,
        };
        staging.remove_others()?;
        for at in 0..staging.parts.len() {
            let part = &staging.parts[at];
            staging.parts[at].progress = part.find(&*staging.disk, &staging.manifest)?;
        }
        Ok(staging)
    }

    /// What the copy is to be.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How many bytes of it are there.
    pub fn have_bytes(&self) -> u64 {
        self.parts.iter().map(Part::have).sum()
    }

    /// What comes next; `None` when all is there.
    pub fn next(&self) -> Option<Wanted> {
        self.wanted().next()
    }

    /// What comes next and after that, in order: what may be asked for before the first is there.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> {
        self.parts.iter().zip(0_u32..).flat_map(|(part, file)| {
            let steps = (part.have()..part.len).step_by(CATCH_UP_READ_MAX as usize);
            steps.map(move |position| Wanted {
                file,
                position,
                len_max: read_len(part.len - position),
            })
        })
    }

    /// Takes bytes of a copy, which must be what comes next, or its beginning. With its last bytes a
    /// file is checked and synced.
    ///
    /// # Errors
    /// See [`StagingError`]; [`Staging::next`] says what is wanted after it.
    pub fn write(&mut self, file: u32, position: u64, bytes: &[u8]) -> Result<(), StagingError> {
        let len = bytes.len() as u64;
        let next = self.next().filter(|next| {
            (next.file, next.position) == (file, position)
                && (1..=u64::from(next.len_max)).contains(&len)
        });
        if next.is_none() {
            return Err(StagingError::NotWanted {
                file,
                position,
                len,
            });
        }
        let at = file as usize;
        let open = self.open_part(at)?;
        open.write_at(position, &[IoSlice::new(bytes)])?;
        let have = position + len;
        self.parts[at].progress = Progress::Part(have);
        if have == self.parts[at].len {
            self.complete(at)?;
        }
        Ok(())
    }

    /// Checks what is not checked yet, and all of it together. When this returns, all is durable.
    ///
    /// # Errors
    /// See [`StagingError`].
    pub fn finish(&mut self) -> Result<Staged, StagingError> {
        if self.next().is_some() {
            return Err(StagingError::Incomplete);
        }
        for at in 0..self.parts.len() {
            match self.parts[at].progress {
                Progress::Part(0) if self.parts[at].len == 0 => {}
                Progress::Part(_) => self.complete(at)?,
                Progress::Named => {
                    let path = self.parts[at].path.clone();
                    self.check(at, &path)?;
                    self.parts[at].progress = Progress::Checked;
                }
                Progress::Checked => {}
            }
        }
        let epochs = self.parts.iter().flat_map(|part| &part.epochs);
        let together = super::together::check(&self.disk, &self.staged, &self.manifest, epochs);
        together.map_err(|e| match e {
            super::together::Unfit::Log(what) => StagingError::Unfit(what),
            super::together::Unfit::Disk(e) => e.into(),
        })?;
        let adopted = self
            .disk
            .open(&self.staged.join(ADOPTED), OpenHow::Create)?;
        let bytes = self.manifest.encode();
        adopted.write_at(0, &[IoSlice::new(&bytes)])?;
        adopted.set_len(bytes.len() as u64)?;
        adopted.sync_data()?;
        self.disk.sync_dir(&self.staged)?;
        Ok(Staged::new(
            self.disk.clone(),
            self.dir.clone(),
            self.manifest.clone(),
        ))
    }

    /// Removes what belongs to no file of the copy.
    fn remove_others(&self) -> Result<(), DiskError> {
        for entry in self.disk.list(&self.staged)? {
            let path = self.staged.join(&entry.name);
            if entry.is_dir {
                self.disk.remove_dir_all(&path)?;
            } else if !self.parts.iter().any(|part| part.is_file(&entry.name)) {
                self.disk.remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The `.part` of a file, to be written to.
    fn open_part(&mut self, at: usize) -> Result<Arc<dyn DiskFile>, DiskError> {
        if let Some((open, file)) = &self.writing
            && *open == at
        {
            return Ok(file.clone());
        }
        let part = &self.parts[at];
        let file = self.disk.open(&part.part_path(), OpenHow::Create)?;
        // What lies behind is of a write that failed.
        file.set_len(part.have())?;
        self.writing = Some((at, file.clone()));
        Ok(file)
    }

    /// Checks a file that is all there, makes it durable, and gives it its name.
    fn complete(&mut self, at: usize) -> Result<(), StagingError> {
        let part_path = self.parts[at].part_path();
        self.check(at, &part_path)?;
        let synced = self.sync_and_name(at, &part_path);
        if let Err(e) = synced {
            // Nothing is known of its bytes, nor of its name; a sync is never tried again.
            self.discard(at);
            return Err(e.into());
        }
        self.writing = None;
        self.parts[at].progress = Progress::Checked;
        Ok(())
    }

    fn sync_and_name(&mut self, at: usize, part_path: &Path) -> Result<(), DiskError> {
        self.open_part(at)?.sync_data()?;
        self.disk.rename(part_path, &self.parts[at].path)
    }

    fn check(&mut self, at: usize, path: &Path) -> Result<(), StagingError> {
        let disk = &*self.disk;
        let checked = match self.parts[at].kind {
            Kind::Segment(copy) => {
                check_segment(disk, path, &self.manifest, &copy).map(|(epochs, mut index)| {
                    let path = index_path(&self.staged, copy.base_offset);
                    if let Err(e) = index.write(disk, &path) {
                        tracing::warn!(error = %e, "index not written; it is built again");
                    }
                    epochs
                })
            }
            Kind::Epochs(side) | Kind::Producers(side) => {
                check_side_file(disk, path, side).map(|_| Vec::new())
            }
        };
        match checked {
            Ok(epochs) => {
                self.parts[at].epochs = epochs;
                Ok(())
            }
            Err(Unfit::Disk(e)) => Err(e.into()),
            Err(Unfit::Flaw(flaw)) => {
                tracing::warn!(%flaw, "a damaged file of a copy is fetched again");
                self.discard(at);
                let file = u32::try_from(at).expect("their number is bounded");
                let flaw = Box::new(flaw);
                Err(StagingError::Damaged { file, flaw })
            }
        }
    }

    /// Begins a file anew. What of it cannot be removed now is overwritten.
    fn discard(&mut self, at: usize) {
        self.writing = None;
        let part = &mut self.parts[at];
        part.progress = Progress::Part(0);
        for path in [part.part_path(), part.path.clone()] {
            if let Err(e) = remove_if_there(&*self.disk, &path) {
                tracing::warn!(error = %e, "a file of a copy was not removed");
            }
        }
    }
}
