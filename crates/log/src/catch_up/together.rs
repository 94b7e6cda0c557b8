//! Whether the files of a copy, each of them checked, make one log.

use std::path::Path;
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, OpenHow};

use super::manifest::Manifest;
use crate::epochs::{EpochStart, EpochTable};
use crate::error::OpenError;
use crate::found::Found;
use crate::open::Opening;
use crate::options::LogOptions;
use crate::producers::{load, snapshot_path};
use crate::segment::{epochs_path, segment_path};

/// Why they do not.
pub(super) enum Unfit {
    /// In words.
    Log(String),
    Disk(DiskError),
}

impl From<OpenError> for Unfit {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Disk(e) => Self::Disk(e),
            e @ (OpenError::Corrupt(_) | OpenError::Missing { .. }) => Self::Log(e.to_string()),
        }
    }
}

impl From<DiskError> for Unfit {
    fn from(e: DiskError) -> Self {
        Self::Disk(e)
    }
}

fn unfit(what: &str) -> Unfit {
    Unfit::Log(what.to_owned())
}

/// Looks at the files in `staged` as the next open will, with the end of the manifest as checkpoint.
/// `began` are the leader epochs that begin in the segments.
pub(super) fn check<'a>(
    disk: &Arc<dyn Disk>,
    staged: &Path,
    manifest: &Manifest,
    began: impl Iterator<Item = &'a EpochStart>,
) -> Result<(), Unfit> {
    let end = manifest.end;
    let opening = Opening {
        disk,
        dir: staged,
        identity: manifest.identity,
        options: LogOptions::default(),
        checkpoint: Some(end),
        closed: false,
        is_replica: true,
    };
    let Found {
        mut candidates,
        unfinished,
        replaced,
    } = opening.find()?;
    let has_all = candidates.len() == manifest.segments.len();
    if unfinished.is_some() || !replaced.is_empty() || !has_all {
        return Err(unfit("its segments are not those of one log"));
    }
    let Some(newest) = candidates.pop() else {
        return Err(unfit("there are no segments"));
    };
    if newest.header.compacted.is_some() {
        return Err(unfit("it ends in a compacted segment"));
    }
    let path = segment_path(staged, newest.header.base_offset);
    let file = disk.open(&path, OpenHow::Read)?;
    let recovered = opening.recover(&*file, &newest)?;
    if recovered.end != end {
        return Err(unfit("it ends elsewhere"));
    }
    let headers = candidates.iter().chain([&newest]);
    let headers: Vec<_> = headers
        .map(|candidate| (candidate.header.base_index, candidate.header.epoch))
        .collect();
    let sealed = opening.check_chain(candidates, &newest, end.log_start)?;
    // Each segment tells of the one before how it ends, checksum and all.
    let told = sealed.iter().map(|(_, end)| *end);
    let copied = manifest.segments.iter().map(|copy| copy.end);
    if !told.eq(copied.take(manifest.segments.len() - 1)) {
        return Err(unfit("a segment is not the one that the next one tells of"));
    }

    let epochs = EpochTable::load(&**disk, &epochs_path(staged));
    if epochs.file_before(end.index).len() != manifest.epochs.len as usize {
        return Err(unfit("its leader epochs cannot be read"));
    }
    let known = [(end.index, end.epoch)].into_iter().chain(headers);
    let knows_all = known
        .into_iter()
        .all(|(index, epoch)| epochs.knows(index, epoch))
        && { began }.all(|start| epochs.entries().contains(start));
    if !knows_all {
        return Err(unfit(
            "its leader epochs are others than those in the segments",
        ));
    }
    let producers = load(&**disk, &snapshot_path(staged, end.offset))?;
    if producers.is_none_or(|producers| producers.end != end) {
        return Err(unfit("its producers are not those at its end"));
    }
    Ok(())
}
