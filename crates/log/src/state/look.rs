//! Reading the state file without changing anything.

use std::path::{Path, PathBuf};

use tidelog_disk::Disk;

use super::BrokerState;
use super::file::{StateError, fold, read_snapshot, torn_end};
use super::generations::{journal_path, newest_generation};

/// What the state file says, and what is not as it should be without being in the way.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) state: BrokerState,
    /// The damage of a generation that another one stands in for.
    pub(crate) replaced: Vec<StateError>,
    /// A journal whose end is torn, and where.
    pub(crate) torn: Option<(PathBuf, u64)>,
}

/// Reads the state file in `dir`. A broker may run on it meanwhile.
pub(crate) fn look(disk: &dyn Disk, dir: &Path) -> Result<Looked, StateError> {
    // While it is read, a broker may have begun the next generation and put the oldest one away.
    for _ in 0..3 {
        match try_look(disk, dir) {
            Err(StateError::Disk(e)) if e.is_not_found() => {}
            Err(StateError::Damaged { .. }) => {}
            other => return other,
        }
    }
    try_look(disk, dir)
}

fn try_look(disk: &dyn Disk, dir: &Path) -> Result<Looked, StateError> {
    let newest = newest_generation(disk, dir)?;
    let (state, damaged) = fold(disk, dir, newest)?;
    let mut replaced: Vec<StateError> = damaged.into_iter().collect();
    if replaced.is_empty()
        && newest > 1
        && let Ok(Err(damage)) = read_snapshot(disk, dir, newest - 1)
    {
        replaced.push(damage);
    }
    let journal = journal_path(dir, newest);
    let torn = torn_end(disk, &journal, newest).map(|position| (journal, position));
    Ok(Looked {
        state,
        replaced,
        torn,
    })
}
