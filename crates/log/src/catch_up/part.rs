//! One file of a copy, on its way.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow, read_up_to};

use super::check::{Unfit, check_side_file, good_len, segment_in};
use super::manifest::{Manifest, SegmentCopy, SideFile};
use super::source::CATCH_UP_READ_MAX;
use crate::epochs::EpochStart;
use crate::log::remove_if_there;
use crate::producers::snapshot_path;
use crate::segment::{epochs_path, segment_path};

/// How far a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// So many bytes are in its `.part`.
    Part(u64),
    /// It bears its name: all of it is there, and durable.
    Named,
    /// Checked besides.
    Checked,
}

/// What a file must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Segment(SegmentCopy),
    Epochs(SideFile),
    Producers(SideFile),
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
    /// Its length when it is all there, in bytes.
    pub(super) len: u64,
    pub(super) progress: Progress,
    /// The leader epochs that begin in it, once it is checked.
    pub(super) epochs: Vec<EpochStart>,
}

impl Part {
    pub(super) fn part_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".part");
        path.into()
    }

    pub(super) fn have(&self) -> u64 {
        match self.progress {
            Progress::Part(have) => have,
            Progress::Named | Progress::Checked => self.len,
        }
    }

    pub(super) fn is_file(&self, name: &str) -> bool {
        let is = |path: &Path| path.file_name().is_some_and(|own| own == name);
        self.len > 0 && (is(&self.path) || is(&self.part_path()))
    }

    /// How much of a file is there, from before.
    pub(super) fn find(&self, disk: &dyn Disk, manifest: &Manifest) -> Result<Progress, DiskError> {
        let part_path = self.part_path();
        let copy = match self.kind {
            Kind::Segment(copy) => copy,
            // As good as nothing to be fetched again.
            Kind::Epochs(side) | Kind::Producers(side) => {
                remove_if_there(disk, &part_path)?;
                if side.len == 0 {
                    return Ok(Progress::Part(0));
                }
                return match check_side_file(disk, &self.path, side) {
                    Ok(_) => Ok(Progress::Named),
                    Err(Unfit::Disk(e)) if !e.is_not_found() => Err(e),
                    Err(_) => {
                        remove_if_there(disk, &self.path)?;
                        Ok(Progress::Part(0))
                    }
                };
            }
        };
        if let Some(file) = open_if_there(disk, &self.path)? {
            let len = file.len()?;
            let is_meant = segment_in(&*file, manifest, &copy)?.is_some();
            if is_meant && len == self.len {
                remove_if_there(disk, &part_path)?;
                return Ok(Progress::Named);
            }
            if is_meant && len < self.len {
                // The newest segment then, which has grown since.
                disk.rename(&self.path, &part_path)?;
            } else {
                disk.remove_file(&self.path)?;
            }
        }
        let Some(file) = open_if_there(disk, &part_path)? else {
            return Ok(Progress::Part(0));
        };
        let good = good_len(&*file, manifest, &copy)?;
        file.set_len(good)?;
        // An earlier sync may have failed and left these pages marked clean: only what is written
        // again is made durable by the next one.
        let mut at = 0;
        while at < good {
            let len = read_len(good - at);
            let bytes = read_up_to(&*file, at, len as usize)?;
            file.write_at(at, &[IoSlice::new(&bytes)])?;
            at += u64::from(len);
        }
        Ok(Progress::Part(good))
    }
}

/// How many of `left` bytes are read at once.
pub(super) fn read_len(left: u64) -> u32 {
    u32::try_from(left).map_or(CATCH_UP_READ_MAX, |left| left.min(CATCH_UP_READ_MAX))
}

pub(super) fn parts_of(staged: &Path, manifest: &Manifest) -> Vec<Part> {
    let segments = manifest.segments.iter();
    let segments = segments.map(|copy| {
        let path = segment_path(staged, copy.base_offset);
        (Kind::Segment(*copy), path)
    });
    let beside = [
        (Kind::Epochs(manifest.epochs), epochs_path(staged)),
        (
            Kind::Producers(manifest.producers),
            snapshot_path(staged, manifest.end.offset),
        ),
    ];
    let parts = segments.chain(beside).zip(0_u32..);
    parts
        .map(|((kind, path), file)| Part {
            kind,
            path,
            len: manifest.file_len(file),
            progress: Progress::Part(0),
            epochs: Vec::new(),
        })
        .collect()
}

fn open_if_there(disk: &dyn Disk, path: &Path) -> Result<Option<Arc<dyn DiskFile>>, DiskError> {
    match disk.open(path, OpenHow::Write) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}
