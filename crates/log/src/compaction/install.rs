//! Putting a compacted segment into the place of those it was made of.

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use tidelog_disk::DiskError;

use super::Compacted;
use crate::error::Poisoned;
use crate::log::{Log, remove_if_there};
use crate::segment::{Segment, index_path};

/// Why a compacted segment was not installed. The log is as it was, but for
/// [`InstallError::Poisoned`].
#[derive(Debug, Error)]
pub enum InstallError {
    /// The segments it was made of are not those of the log any more: they were trimmed.
    #[error("the segments were removed meanwhile")]
    Outdated,
    /// A write or sync failed, before or now; the log takes no more until it is opened again.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// What the segments tell of their producers cannot be kept without them.
    #[error("what the segments tell of their producers cannot be kept: {0}")]
    Producers(#[source] DiskError),
}

impl Log {
    /// Puts a compacted segment into the place of those it was made of, durably.
    ///
    /// Readers that hold the old ones keep them. In this order: from now on readers are given the
    /// new segment, by its open file; it takes the name of the oldest one it stands for; the
    /// directory is synced; the others are removed. A crash in between leaves the old ones, or the
    /// new one and perhaps some of the old ones behind it, which the next open removes.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub fn install(&mut self, compacted: Compacted) -> Result<(), InstallError> {
        self.shared.check()?;
        let Compacted {
            replaced,
            segment,
            mut index,
            beside,
        } = compacted;
        let segments = self.shared.segments();
        let place = place_of(&segments, &replaced).ok_or(InstallError::Outdated);
        let prepared = place.and_then(|place| {
            let unkept = self.keep_producers(&segments, place.end);
            let unkept = unkept.map_err(InstallError::Producers)?;
            Ok((place, unkept))
        });
        let (place, unkept) = prepared.inspect_err(|error| {
            tracing::warn!(%error, "a compacted segment is not used");
            if let Err(e) = remove_if_there(self.disk(), &beside) {
                tracing::warn!(error = %e, "a compacted segment that is not used was not removed");
            }
        })?;
        let mut installed = segments.to_vec();
        installed.splice(place, [segment.clone()]);
        self.shared.set_segments(installed);
        let renamed = self.disk().rename(&beside, &segment.path);
        if let Err(e) = renamed.and_then(|()| self.disk().sync_dir(self.dir())) {
            // Nobody knows which file has the name now, or after power loss. Either is good, and
            // readers have the new one open; but what counts on the older records being gone, as
            // the removal of tombstones does, must not go on.
            return Err(self.shared.poison(e).into());
        }
        // Its name leads to it now.
        segment.cool();
        for old in &replaced[1..] {
            let index = index_path(self.dir(), old.header.base_offset);
            for path in [&old.path, &index] {
                if let Err(e) = remove_if_there(self.disk(), path) {
                    tracing::warn!(error = %e, "a segment that was compacted was not removed");
                }
            }
        }
        let path = index_path(self.dir(), segment.header.base_offset);
        if let Err(e) = index.write(self.disk(), &path) {
            tracing::warn!(error = %e, "index not written; it is built again");
        }
        self.write_unkept(unkept);
        self.remove_stale_producers();
        Ok(())
    }
}

/// Where the `replaced` ones are, which must all be there, side by side.
fn place_of(segments: &[Arc<Segment>], replaced: &[Arc<Segment>]) -> Option<Range<usize>> {
    let at = segments
        .iter()
        .position(|have| Arc::ptr_eq(have, &replaced[0]))?;
    let place = at..at + replaced.len();
    let there = segments.get(place.clone())?;
    let same = there.iter().zip(replaced).all(|(a, b)| Arc::ptr_eq(a, b));
    same.then_some(place)
}
