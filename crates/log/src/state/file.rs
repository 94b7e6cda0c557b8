//! The state file on the disk: generations of a snapshot and a journal.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;
use tidelog_disk::{Disk, DiskError, DiskFile, DiskOp, OpenHow, read_up_to};

use super::generations::{
    create_journal, generation_of, journal_path, keep_space, newest_generation, recycle,
    snapshot_path, snapshot_room, write_snapshot,
};
use super::records::{
    FRAME_LEN, JOURNAL_END, RECORD_LEN_MAX, SNAPSHOT_END, SYNCED, frame, frame_crc,
};
use super::{BrokerState, DirectoryIdentity, GroupKey, GroupMembers, GroupState, StateRecord};
use crate::error::Poisoned;
use crate::log::{create_dir_durably, parents};

pub(crate) const FILE_HEADER: [u8; 8] = *b"TSTA\0\x01\0\0";
/// The journal is preallocated by this much; a longer one is folded into a snapshot.
pub(super) const JOURNAL_LEN: u64 = 1 << 20;
/// No state file is longer: millions of partitions.
const FILE_LEN_MAX: u64 = 1 << 30;

/// Why the state file was not opened.
#[derive(Debug, Error)]
pub enum StateError {
    /// There is none.
    #[error("{} holds no state file", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// Neither generation can be read in full.
    #[error("the state file {} is damaged at position {position}: {what}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// Where, in bytes.
        position: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The open state file of one data directory.
#[derive(Debug)]
pub struct StateFile {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: BrokerState,
    generation: u64,
    journal: Arc<dyn DiskFile>,
    position: u64,
    /// Past this position the journal is folded into a snapshot.
    limit: u64,
    /// Everything before it is durable. Below `position` when records were written since.
    synced: u64,
    /// What the last SYNCED record says.
    marked: u64,
    /// The space that every snapshot has.
    room: u64,
    poisoned: Option<Poisoned>,
    /// Empty, with room: what is recorded is encoded here.
    buffer: Vec<u8>,
}

/// So much room is kept for the next records: those of a turn are a few hundred bytes.
const BUFFER_KEPT_MAX: usize = 4096;

impl StateFile {
    /// Makes the state file of a new data directory in `dir`.
    ///
    /// # Errors
    /// Whatever the disk says; [`std::io::ErrorKind::AlreadyExists`] when `dir` has a state file.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: DirectoryIdentity,
    ) -> Result<Self, DiskError> {
        create_dir_durably(&*disk, dir)?;
        // An earlier start may have made the directories above and ended before it synced them.
        for parent in parents(dir).skip(1) {
            if let Err(e) = disk.sync_dir(parent) {
                tracing::debug!(error = %e, "a directory above the data is not ours to sync");
            }
        }
        if disk
            .list(dir)?
            .iter()
            .any(|entry| generation_of(&entry.name).is_some())
        {
            return Err(DiskError::new(
                DiskOp::Open,
                dir,
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let state = BrokerState {
            identity,
            boots: 0,
            clean: true,
            groups: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        Self::begin_generation(disk, dir, state, 1)
    }

    /// Opens the state file in `dir` and folds its records; begins a new generation with them.
    ///
    /// # Errors
    /// [`StateError::Missing`] when there is none, [`StateError::Damaged`] when what it says cannot
    /// be known for sure; then the files are left as they are.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StateError> {
        let newest = newest_generation(&*disk, dir)?;
        let (state, _damaged) = fold(&*disk, dir, newest)?;
        // The old journal is closed first, so that it counts as complete if it is needed again.
        end_journal(&*disk, dir, newest)?;
        // An earlier start may have ended before it did this.
        recycle(&*disk, dir, newest);
        Ok(Self::begin_generation(disk, dir, state, newest + 1)?)
    }

    /// Whose directory it is, by the state file in `dir`. Changes nothing.
    ///
    /// # Errors
    /// As for [`StateFile::open`].
    pub fn identity_in(disk: &dyn Disk, dir: &Path) -> Result<DirectoryIdentity, StateError> {
        super::look(disk, dir).map(|looked| looked.state.identity)
    }

    fn begin_generation(
        disk: Arc<dyn Disk>,
        dir: &Path,
        state: BrokerState,
        generation: u64,
    ) -> Result<Self, DiskError> {
        write_snapshot(&*disk, dir, generation, &state)?;
        let journal = create_journal(&*disk, dir, generation)?;
        recycle(&*disk, dir, generation);
        let room = snapshot_room(&state);
        keep_space(&*disk, dir, room);
        Ok(Self {
            inner: Mutex::new(Inner {
                disk,
                dir: dir.to_owned(),
                state,
                generation,
                journal,
                position: FILE_HEADER.len() as u64,
                limit: JOURNAL_LEN,
                synced: FILE_HEADER.len() as u64,
                marked: FILE_HEADER.len() as u64,
                room,
                poisoned: None,
                buffer: Vec::new(),
            }),
        })
    }

    /// Whose directory it is.
    pub fn identity(&self) -> DirectoryIdentity {
        self.inner.lock().state.identity
    }

    /// What the file says now.
    pub fn state(&self) -> BrokerState {
        self.inner.lock().state.clone()
    }

    /// What the file says of one group now.
    pub fn group(&self, key: &GroupKey) -> Option<GroupState> {
        self.inner.lock().state.groups.get(key).copied()
    }

    /// What the file says of the members of one group now.
    pub fn members(&self, key: &GroupKey) -> Option<GroupMembers> {
        self.inner.lock().state.members.get(key).cloned()
    }

    /// Why nothing is recorded any more, if so.
    pub fn poisoned(&self) -> Option<Poisoned> {
        self.inner.lock().poisoned.clone()
    }

    /// Writes records; with `sync`, they survive power loss when this returns.
    ///
    /// # Errors
    /// [`Poisoned`] when this or an earlier write or sync failed: then no partition of the broker
    /// may go on, since none of their checkpoints, terms and votes can be kept any more.
    pub fn record(&self, records: &[StateRecord], sync: bool) -> Result<(), Poisoned> {
        self.inner.lock().record(records, sync)
    }

    /// Makes what was recorded survive power loss, if anything was.
    ///
    /// # Errors
    /// As for [`StateFile::record`].
    pub fn sync(&self) -> Result<(), Poisoned> {
        self.inner.lock().record(&[], true)
    }
}

impl Inner {
    fn record(&mut self, records: &[StateRecord], sync: bool) -> Result<(), Poisoned> {
        if let Some(poisoned) = &self.poisoned {
            return Err(poisoned.clone());
        }
        self.try_record(records, sync).map_err(|e| {
            tracing::error!(error = %e, "the state file cannot be written; all logs stop");
            let poisoned = Poisoned { cause: Arc::new(e) };
            self.poisoned = Some(poisoned.clone());
            poisoned
        })
    }

    fn try_record(&mut self, records: &[StateRecord], sync: bool) -> Result<(), DiskError> {
        for record in records {
            self.state.apply(record);
        }
        let room = snapshot_room(&self.state);
        if room > self.room {
            keep_space(&*self.disk, &self.dir, room);
            self.room = room;
        }
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.reserve(32 + records.len() * 96);
        if !records.is_empty() && self.synced > self.marked {
            frame(self.generation, SYNCED, &mut bytes, |out| {
                out.extend_from_slice(&self.synced.to_be_bytes());
            });
        }
        for record in records {
            record.encode(self.generation, &mut bytes);
        }
        // Room for the record that ends the journal is always left.
        if self.position + bytes.len() as u64 + 64 > self.limit {
            return self.rotate(records);
        }
        if !bytes.is_empty() {
            self.journal
                .write_at(self.position, &[IoSlice::new(&bytes)])?;
            self.position += bytes.len() as u64;
            self.marked = self.synced;
        }
        if bytes.capacity() <= BUFFER_KEPT_MAX {
            bytes.clear();
            self.buffer = bytes;
        }
        if sync && self.synced < self.position {
            self.journal.sync_data()?;
            self.synced = self.position;
        }
        Ok(())
    }

    /// Folds everything into the next generation, which is durable when this returns.
    ///
    /// `last` are the records that did not go into this journal any more. They are in the next
    /// snapshot, and in the next journal too: should that snapshot be lost, this generation and
    /// the next journal together still say the same. Folding them in twice changes nothing.
    fn rotate(&mut self, last: &[StateRecord]) -> Result<(), DiskError> {
        let mut end = Vec::new();
        frame(self.generation, JOURNAL_END, &mut end, |_| {});
        self.journal
            .write_at(self.position, &[IoSlice::new(&end)])?;
        self.journal.sync_data()?;

        let generation = self.generation + 1;
        write_snapshot(&*self.disk, &self.dir, generation, &self.state)?;
        let journal = create_journal(&*self.disk, &self.dir, generation)?;
        let mut bytes = Vec::new();
        for record in last {
            record.encode(generation, &mut bytes);
        }
        let position = FILE_HEADER.len() as u64;
        journal.write_at(position, &[IoSlice::new(&bytes)])?;
        journal.sync_data()?;
        recycle(&*self.disk, &self.dir, generation);
        keep_space(&*self.disk, &self.dir, self.room);
        self.position = position + bytes.len() as u64;
        self.synced = self.position;
        self.marked = position;
        // Very many records at once alone fill the usual length.
        self.limit = JOURNAL_LEN.max(self.position * 4);
        self.journal = journal;
        self.generation = generation;
        Ok(())
    }
}

/// What the two newest generations say. With it comes the damage of the newest snapshot, where the
/// older generation serves in its place.
pub(super) fn fold(
    disk: &dyn Disk,
    dir: &Path,
    newest: u64,
) -> Result<(BrokerState, Option<StateError>), StateError> {
    let damage = match read_snapshot(disk, dir, newest)? {
        Ok(mut state) => {
            read_journal(disk, dir, newest, &mut state)?;
            return Ok((state, None));
        }
        Err(damage) => damage,
    };
    // The older snapshot serves only when its journal says that it is complete: then it and the
    // newer journal together say what the newer snapshot said.
    let Some(older) = newest.checked_sub(1).filter(|older| *older > 0) else {
        return Err(damage);
    };
    let Ok(mut state) = read_snapshot(disk, dir, older)? else {
        return Err(damage);
    };
    if !read_journal(disk, dir, older, &mut state)? {
        return Err(damage);
    }
    tracing::warn!(error = %damage, "using the older generation of the state file");
    read_journal(disk, dir, newest, &mut state)?;
    Ok((state, Some(damage)))
}

/// Where the end of a journal is torn, if it is.
pub(super) fn torn_end(disk: &dyn Disk, path: &Path, generation: u64) -> Option<u64> {
    let bytes = read_file(disk, path).ok()?;
    let (position, ended) = read_records(&bytes, generation, |_| {});
    matches!(ended, Ended::Damaged).then_some(position as u64)
}

/// Why the walk over a file's records ended.
#[derive(Debug)]
enum Ended {
    /// At a record of this kind that is no change of state.
    At(u8, Vec<u8>),
    /// At zeros, or at the end of the file.
    Blank,
    /// At something that is not a record: damage, or a torn end.
    Damaged,
    /// At a good record, or a file header, that this version does not know.
    Unknown,
}

/// Gives each record of a file, in order; says where and why it ended.
fn read_records(
    bytes: &[u8],
    generation: u64,
    mut take: impl FnMut(StateRecord),
) -> (usize, Ended) {
    match bytes.first_chunk::<8>() {
        Some(&FILE_HEADER) => {}
        // A version of 0 is none: the write of the header broke off behind the name.
        Some(header) if header[..4] == FILE_HEADER[..4] && header[4..6] != [0, 0] => {
            return (0, Ended::Unknown);
        }
        Some(_) => return (0, Ended::Damaged),
        None => return (0, Ended::Blank),
    }
    let mut at = FILE_HEADER.len();
    loop {
        let rest = &bytes[at..];
        if rest.iter().take(FRAME_LEN).all(|byte| *byte == 0) {
            return (at, Ended::Blank);
        }
        let Some(body) = good_record(rest, generation) else {
            return (at, Ended::Damaged);
        };
        let (kind, content) = (body[0], &body[1..]);
        match kind {
            SNAPSHOT_END | JOURNAL_END => return (at, Ended::At(kind, content.to_vec())),
            SYNCED => {}
            _ => match StateRecord::decode(kind, content) {
                Some(record) => take(record),
                None => return (at, Ended::Unknown),
            },
        }
        at += FRAME_LEN + body.len();
    }
}

/// The body of the record at the start of `bytes`, kind first, when it verifies. Never empty.
fn good_record(bytes: &[u8], generation: u64) -> Option<&[u8]> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    if len == 0 || len > RECORD_LEN_MAX {
        return None;
    }
    let body = rest.get(..len)?;
    (frame_crc(generation, body) == u32::from_be_bytes(*crc)).then_some(body)
}

/// Whether a record further on says that the journal was durable past `damaged`.
fn was_synced_past(bytes: &[u8], damaged: usize, generation: u64) -> bool {
    // The borders of records are lost with the damage: every position is tried, but in the zeros that nothing
    // was written over yet, most of a journal: a record says its length first, and none is empty.
    (damaged + 1..written_len(bytes)).any(|at| {
        let [kind, position @ ..] = good_record(&bytes[at..], generation).unwrap_or_default()
        else {
            return false;
        };
        *kind == SYNCED
            && position
                .try_into()
                .is_ok_and(|p| u64::from_be_bytes(p) > damaged as u64)
    })
}

/// The length of `bytes` without the zeros at its end.
fn written_len(bytes: &[u8]) -> usize {
    // Whole pages are compared at once.
    let zeros = [0; 4 << 10];
    let mut len = bytes.len();
    while let Some(page) = bytes[..len].last_chunk() {
        if *page != zeros {
            break;
        }
        len -= page.len();
    }
    let written = bytes[..len].iter().rposition(|&b| b != 0);
    written.map_or(0, |last| last + 1)
}

fn read_file(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>, StateError> {
    let file = disk.open(path, OpenHow::Read)?;
    let len = file.len()?;
    if len > FILE_LEN_MAX {
        let what = "it is longer than a state file can be";
        return Err(StateError::Damaged {
            path: path.to_owned(),
            position: 0,
            what,
        });
    }
    Ok(read_up_to(
        &*file,
        0,
        usize::try_from(len).expect("at most 1 GiB"),
    )?)
}

/// The inner error says that the snapshot is damaged, so that an older one may serve; the outer that
/// the disk refused or that a newer version wrote it.
pub(super) fn read_snapshot(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
) -> Result<Result<BrokerState, StateError>, StateError> {
    let path = snapshot_path(dir, generation);
    let damaged = |position, what| StateError::Damaged {
        path: path.clone(),
        position,
        what,
    };
    let bytes = match read_file(disk, &path) {
        Ok(bytes) => bytes,
        Err(StateError::Disk(e)) if e.is_not_found() => {
            return Ok(Err(damaged(0, "it is missing")));
        }
        Err(e @ StateError::Disk(_)) => return Err(e),
        Err(e) => return Ok(Err(e)),
    };
    let mut records = Vec::new();
    let (position, ended) = read_records(&bytes, generation, |record| records.push(record));
    let position = position as u64;
    if matches!(ended, Ended::Unknown) {
        return Err(damaged(position, UNKNOWN));
    }
    let complete = matches!(&ended, Ended::At(SNAPSHOT_END, count)
        if **count == (records.len() as u64).to_be_bytes());
    if !complete {
        return Ok(Err(damaged(position, "the snapshot is not complete")));
    }
    let Some(StateRecord::Identity(identity)) = records.first() else {
        return Ok(Err(damaged(0, "it does not begin with an identity")));
    };
    let mut state = BrokerState {
        identity: *identity,
        boots: 0,
        clean: false,
        groups: BTreeMap::new(),
        members: BTreeMap::new(),
    };
    for record in &records {
        state.apply(record);
    }
    Ok(Ok(state))
}

const UNKNOWN: &str = "a newer version of Tidelog wrote what stands there";

/// Folds a journal into `state`; says whether it is complete. One that is missing, or torn at its
/// end, gives what it has: only records that were never synced can be lost that way.
///
/// Damage is taken for a torn end unless a later record tells that the place was durable. Of the
/// records that were synced last, nothing later tells.
fn read_journal(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
    state: &mut BrokerState,
) -> Result<bool, StateError> {
    let path = journal_path(dir, generation);
    let bytes = match read_file(disk, &path) {
        Ok(bytes) => bytes,
        Err(StateError::Disk(e)) if e.is_not_found() => return Ok(false),
        Err(e) => return Err(e),
    };
    let (position, ended) = read_records(&bytes, generation, |record| state.apply(&record));
    let damaged = |what| StateError::Damaged {
        path: path.clone(),
        position: position as u64,
        what,
    };
    match ended {
        Ended::At(JOURNAL_END, _) => Ok(true),
        Ended::Unknown => Err(damaged(UNKNOWN)),
        Ended::At(..) => Err(damaged("a snapshot's end stands in a journal")),
        Ended::Blank | Ended::Damaged => {
            if was_synced_past(&bytes, position, generation) {
                return Err(damaged("a record that was synced is damaged"));
            }
            if matches!(ended, Ended::Damaged) {
                tracing::warn!(journal = %path.display(), position, "the journal's end is torn");
            }
            Ok(false)
        }
    }
}

/// Marks the journal of an earlier run as complete, behind its last good record.
fn end_journal(disk: &dyn Disk, dir: &Path, generation: u64) -> Result<(), DiskError> {
    let path = journal_path(dir, generation);
    let bytes = match read_file(disk, &path) {
        Ok(bytes) => bytes,
        Err(StateError::Disk(e)) if !e.is_not_found() => return Err(e),
        Err(_) => return Ok(()),
    };
    let (position, ended) = read_records(&bytes, generation, |_| {});
    if matches!(ended, Ended::At(..)) || position == 0 {
        return Ok(());
    }
    let mut end = Vec::new();
    frame(generation, JOURNAL_END, &mut end, |_| {});
    let file = disk.open(&path, OpenHow::Write)?;
    file.write_at(position as u64, &[IoSlice::new(&end)])?;
    file.sync_data()
}

#[cfg(test)]
mod tests;
