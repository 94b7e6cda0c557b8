//! A whole data directory: its state file and all of its partitions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError};

use super::partition::{PartitionReport, check_partition};
use super::{Depth, Observer, Problem, Severity, What};
use crate::catch_up::{CATCH_UP, REPLACED};
use crate::segment::base_offset_of;
use crate::state::{BrokerState, GroupKey, StateError, look};

/// The directory of the state file, in a data directory.
pub const STATE_DIR: &str = "state";

/// What was found in a data directory.
#[derive(Clone, Debug)]
pub struct DataDirReport {
    /// What the state file says, if it can be read.
    pub state: Option<BrokerState>,
    /// By name.
    pub partitions: Vec<PartitionReport>,
}

/// Whether `dir` holds the files of one partition.
///
/// # Errors
/// When it cannot be listed.
pub fn is_partition_dir(disk: &dyn Disk, dir: &Path) -> Result<bool, DiskError> {
    let entries = disk.list(dir)?;
    Ok(entries.iter().any(|entry| {
        !entry.is_dir
            && (base_offset_of(&entry.name, "log").is_some() || entry.name == "leader-epochs")
    }))
}

/// Whether `dir` is a data directory: it holds a state directory or partitions.
///
/// # Errors
/// When it cannot be listed.
pub fn is_data_dir(disk: &dyn Disk, dir: &Path) -> Result<bool, DiskError> {
    for entry in disk.list(dir)?.iter().filter(|entry| entry.is_dir) {
        if entry.name == STATE_DIR || is_partition_dir(disk, &dir.join(&entry.name))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the state file of the data directory `dir` and tells what is wrong with it. `None` when
/// there is none, or it cannot be read.
pub(super) fn check_state(
    disk: &dyn Disk,
    dir: &Path,
    is_wanted: bool,
    observer: &mut dyn Observer,
) -> Result<Option<BrokerState>, DiskError> {
    let state_dir = dir.join(STATE_DIR);
    let damaged = |path: &Path, position, severity, what: String| Problem {
        severity,
        path: path.to_owned(),
        position,
        offset: None,
        what: What::State(what),
    };
    let looked = match look(disk, &state_dir) {
        Ok(looked) => looked,
        Err(StateError::Missing { .. }) => {
            if is_wanted {
                let what = "there is no state file; it was lost".to_owned();
                observer.problem(damaged(&state_dir, 0, Severity::Damage, what));
            }
            return Ok(None);
        }
        Err(StateError::Damaged {
            path,
            position,
            what,
        }) => {
            observer.problem(damaged(&path, position, Severity::Damage, what.to_owned()));
            return Ok(None);
        }
        Err(StateError::Disk(e)) => {
            observer.problem(Problem::reading(e, None)?);
            return Ok(None);
        }
    };
    for error in looked.replaced {
        if let StateError::Damaged {
            path,
            position,
            what,
        } = error
        {
            let what = format!("{what}; the other generation stands in for it");
            observer.problem(damaged(&path, position, Severity::Derived, what));
        }
    }
    if let Some((path, position)) = looked.torn {
        let what = "the end of the journal is torn; what was synced lies before".to_owned();
        observer.problem(damaged(&path, position, Severity::Note, what));
    }
    Ok(Some(looked.state))
}

/// The directories in `dir` that hold partitions; tells of other names.
pub(super) fn partition_dirs(
    disk: &dyn Disk,
    dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Vec<PathBuf>, DiskError> {
    let mut dirs = Vec::new();
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        let what = match (entry.is_dir, entry.name.as_str()) {
            (true, STATE_DIR) | (false, "LOCK" | "addresses.json" | "founding.json") => {
                continue;
            }
            (true, name) if name.ends_with(".deleted") => {
                "a deleted partition; the next start removes it"
            }
            (true, name) if name.ends_with(CATCH_UP) => {
                "files of another replica that gather; the catch-up goes on with them"
            }
            (true, name) if name.ends_with(REPLACED) => {
                "a log that another replica's files replace; the next start sees to it"
            }
            (true, name) if name.ends_with(".stray") => {
                "a partition that the metadata did not know, kept when another took its place"
            }
            (true, name) if name.ends_with(super::repair::KEPT) => {
                "what a repair put aside, kept for a look"
            }
            (true, _) if is_partition_dir(disk, &path)? => {
                dirs.push(path);
                continue;
            }
            (true, name)
                if name
                    .rsplit_once('-')
                    .is_some_and(|(_, n)| n.parse::<u32>().is_ok()) =>
            {
                "there is no segment in it"
            }
            _ => "it is not known what this is; it is let alone",
        };
        observer.problem(Problem::note(&path, 0, What::Left(what)));
    }
    Ok(dirs)
}

/// Looks at all that a data directory holds.
///
/// # Errors
/// As for [`check_partition`].
pub fn check_data_dir(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    depth: Depth,
    observer: &mut dyn Observer,
) -> Result<DataDirReport, DiskError> {
    // First the state file: a broker that runs meanwhile only adds to what it says.
    let dirs = partition_dirs(&**disk, dir, observer)?;
    let state = check_state(&**disk, dir, !dirs.is_empty(), observer)?;
    let mut partitions = Vec::with_capacity(dirs.len());
    for partition in &dirs {
        partitions.push(check_partition(
            disk,
            partition,
            state.as_ref(),
            depth,
            observer,
        )?);
    }
    if let Some(state) = &state {
        tell_missing(&**disk, dir, state, &partitions, observer)?;
    }
    Ok(DataDirReport { state, partitions })
}

/// Tells of partitions that the state file has a checkpoint of and that have no directory.
fn tell_missing(
    disk: &dyn Disk,
    dir: &Path,
    state: &BrokerState,
    partitions: &[PartitionReport],
    observer: &mut dyn Observer,
) -> Result<(), DiskError> {
    let names = disk.list(dir)?;
    for (key, group) in &state.groups {
        let is_there = partitions.iter().any(|partition| {
            partition.identity.is_some_and(|identity| {
                (identity.topic_id, identity.partition) == (key.topic_id, key.partition)
            })
        });
        let GroupKey {
            topic_id,
            partition,
        } = key;
        let aside = format!("{topic_id}-{partition}.deleted");
        if is_there || group.checkpoint.is_none() || names.iter().any(|e| e.name == aside) {
            continue;
        }
        // A directory whose headers cannot be read says nothing of whose it is, and is told.
        if partitions
            .iter()
            .any(|partition| partition.identity.is_none())
        {
            continue;
        }
        observer.problem(Problem {
            severity: Severity::Damage,
            path: dir.to_owned(),
            position: 0,
            offset: None,
            what: What::State(format!(
                "partition {partition} of the topic with id {topic_id} is in the state file, and \
                 there is no directory of it"
            )),
        });
    }
    Ok(())
}
