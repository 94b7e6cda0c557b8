//! The files of the state directory: generations, and the spares that the next ones are made of.
//!
//! There are always three snapshots and three journals, as far as there was space for them: up to
//! two of each are generations, the others are spares. A new generation is written over a spare, and the oldest
//! one becomes the next spare, so that neither a start nor a full journal takes new space.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow};

use super::BrokerState;
use super::file::{FILE_HEADER, JOURNAL_LEN, StateError};
use super::records::{SNAPSHOT_END, frame};
use crate::log::remove_if_there;

const SNAPSHOT: &str = "snapshot";
const JOURNAL: &str = "journal";
/// How many files of each kind there are, spares included.
const FILES: usize = 3;
/// No snapshot has less space.
const SNAPSHOT_ROOM_MIN: u64 = 64 << 10;
/// More than the records of one partition take in a snapshot.
const PARTITION_BYTES: u64 = 160;

/// More than the record of the members of one takes.
const MEMBERS_BYTES: u64 = 264;

/// The space that snapshots of this state get: it doubles, so that it seldom changes.
pub(super) fn snapshot_room(state: &BrokerState) -> u64 {
    let partitions = (state.groups.len() as u64 + 1).saturating_mul(PARTITION_BYTES);
    let members = (state.members.len() as u64).saturating_mul(MEMBERS_BYTES);
    let needed = partitions.saturating_add(members);
    needed.next_power_of_two().max(SNAPSHOT_ROOM_MIN)
}

pub(super) fn snapshot_path(dir: &Path, generation: u64) -> PathBuf {
    generation_path(dir, generation, SNAPSHOT)
}

pub(super) fn journal_path(dir: &Path, generation: u64) -> PathBuf {
    generation_path(dir, generation, JOURNAL)
}

fn generation_path(dir: &Path, generation: u64, kind: &str) -> PathBuf {
    dir.join(format!("{generation:020}.{kind}"))
}

/// The generation that a file's name says, snapshot or journal.
pub(super) fn generation_of(name: &str) -> Option<u64> {
    generation_of_kind(name, SNAPSHOT).or_else(|| generation_of_kind(name, JOURNAL))
}

fn generation_of_kind(name: &str, kind: &str) -> Option<u64> {
    let digits = name.strip_suffix(kind)?.strip_suffix('.')?;
    let ours = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    // There must be one after it.
    digits
        .parse()
        .ok()
        .filter(|generation| ours && *generation < u64::MAX)
}

/// `spare-1.snapshot` and the like, by number.
fn spare_names(kind: &str) -> impl Iterator<Item = String> {
    (1..FILES).map(move |number| format!("spare-{number}.{kind}"))
}

pub(super) fn newest_generation(disk: &dyn Disk, dir: &Path) -> Result<u64, StateError> {
    let missing = || StateError::Missing {
        dir: dir.to_owned(),
    };
    let names = match names(disk, dir) {
        Ok(names) => names,
        Err(e) if e.is_not_found() => return Err(missing()),
        Err(e) => return Err(e.into()),
    };
    let generations = names.iter().filter_map(|name| generation_of(name));
    generations.max().ok_or_else(missing)
}

fn names(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, DiskError> {
    let entries = disk.list(dir)?;
    Ok(entries.into_iter().map(|entry| entry.name).collect())
}

/// What a new file of a generation is written to, before it gets its name: a spare if there is
/// one, with what it held before.
fn blank(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
    kind: &str,
) -> Result<(PathBuf, Arc<dyn DiskFile>), DiskError> {
    let names = names(disk, dir)?;
    if let Some(spare) = spare_names(kind).find(|spare| names.contains(spare)) {
        let path = dir.join(spare);
        let file = disk.open(&path, OpenHow::Write)?;
        return Ok((path, file));
    }
    let path = generation_path(dir, generation, kind).with_extension("unfinished");
    let file = disk.open(&path, OpenHow::Create)?;
    file.set_len(0)?;
    Ok((path, file))
}

pub(super) fn write_snapshot(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
    state: &BrokerState,
) -> Result<(), DiskError> {
    let records = state.to_records();
    let mut bytes = FILE_HEADER.to_vec();
    for record in &records {
        record.encode(generation, &mut bytes);
    }
    frame(generation, SNAPSHOT_END, &mut bytes, |out| {
        out.extend_from_slice(&(records.len() as u64).to_be_bytes());
    });
    let (unfinished, file) = blank(disk, dir, generation, SNAPSHOT)?;
    file.write_at(0, &[IoSlice::new(&bytes)])?;
    file.sync_data()?;
    disk.rename(&unfinished, &snapshot_path(dir, generation))?;
    disk.sync_dir(dir)
}

pub(super) fn create_journal(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
) -> Result<Arc<dyn DiskFile>, DiskError> {
    let (unfinished, file) = blank(disk, dir, generation, JOURNAL)?;
    if file.len()? > JOURNAL_LEN {
        file.set_len(JOURNAL_LEN)?;
    }
    // Written, not only reserved: a sync over written blocks costs about half.
    let zeros = vec![0; 64 << 10];
    let mut at = 0;
    while at < JOURNAL_LEN {
        file.write_at(at, &[IoSlice::new(&zeros)])?;
        at += zeros.len() as u64;
    }
    file.write_at(0, &[IoSlice::new(&FILE_HEADER)])?;
    file.sync_data()?;
    let path = journal_path(dir, generation);
    disk.rename(&unfinished, &path)?;
    disk.sync_dir(dir)?;
    // By its own name, for messages.
    disk.open(&path, OpenHow::Write)
}

/// Makes spares of all generations but the newest two. What cannot be done now is done next time.
pub(super) fn recycle(disk: &dyn Disk, dir: &Path, newest: u64) {
    let try_recycle = || -> Result<(), DiskError> {
        let mut names = names(disk, dir)?;
        let mut is_changed = false;
        for kind in [SNAPSHOT, JOURNAL] {
            let is_old =
                |name: &String| generation_of_kind(name, kind).is_some_and(|n| n + 1 < newest);
            let old: Vec<String> = names.iter().filter(|name| is_old(name)).cloned().collect();
            // Two spares would be one too many where two generations stay.
            for name in old {
                let has_spare = spare_names(kind).any(|spare| names.contains(&spare));
                if let Some(spare) = spare_names(kind).next().filter(|_| !has_spare) {
                    disk.rename(&dir.join(&name), &dir.join(&spare))?;
                    names.push(spare);
                } else {
                    disk.remove_file(&dir.join(&name))?;
                }
                is_changed = true;
            }
        }
        if is_changed {
            disk.sync_dir(dir)?;
        }
        Ok(())
    };
    if let Err(e) = try_recycle() {
        tracing::warn!(error = %e, "an old state file stays behind");
    }
}

/// Makes the spares that are missing, and gives all files the space that they need when they are
/// written over, as far as the disk has it.
pub(super) fn keep_space(disk: &dyn Disk, dir: &Path, snapshot_room: u64) {
    for (kind, len) in [(SNAPSHOT, snapshot_room), (JOURNAL, JOURNAL_LEN)] {
        if let Err(e) = keep_space_of(disk, dir, kind, len) {
            tracing::warn!(error = %e, room = len,
                "no space could be set aside for the state file: should the disk get full, the \
                 broker may not start; free space");
        }
    }
}

fn keep_space_of(disk: &dyn Disk, dir: &Path, kind: &str, len: u64) -> Result<(), DiskError> {
    let mut names = names(disk, dir)?;
    let is_spare = |name: &String| spare_names(kind).any(|spare| spare == *name);
    names.retain(|name| is_spare(name) || generation_of_kind(name, kind).is_some());
    for name in &names {
        let file = disk.open(&dir.join(name), OpenHow::Write)?;
        if file.len()? < len {
            file.reserve(len)?;
            file.sync_data()?;
        }
    }
    let missing = FILES.saturating_sub(names.len());
    let free = spare_names(kind).filter(|spare| !names.contains(spare));
    let free: Vec<String> = free.take(missing).collect();
    for name in &free {
        let path = dir.join(name);
        let file = disk.open(&path, OpenHow::Create)?;
        if let Err(e) = file.reserve(len).and_then(|()| file.sync_data()) {
            // A spare without its space would only be in the way of a good one.
            remove_if_there(disk, &path)?;
            return Err(e);
        }
    }
    if free.is_empty() {
        return Ok(());
    }
    disk.sync_dir(dir)
}
