//! The log and the state of a group, as Raft reads them.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use tidelog_log::state::GroupState;
use tidelog_log::{EntriesError, EntryInfo, EntryKind, Log, ReadError};
use tidelog_record::RaftIndex;

use crate::message::has_payload;
use crate::payload::stub;

/// Who is in a group, and since which entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members {
    /// Voters and learners.
    pub state: ConfState,
    /// The last entry that changed them.
    pub index: u64,
}

impl Members {
    /// Those who are in a group from its beginning.
    pub fn founded_by(voters: Vec<u64>) -> Self {
        Self {
            state: ConfState::from((voters, Vec::new())),
            index: 0,
        }
    }

    /// Whether `id` votes, and nobody else does, nor did before a change that is under way.
    pub fn is_sole_voter(&self, id: u64) -> bool {
        self.state.voters == [id] && self.state.voters_outgoing.is_empty()
    }

    /// Whether there is anybody beside `id`.
    pub fn has_others(&self, id: u64) -> bool {
        let lists = [
            &self.state.voters,
            &self.state.learners,
            &self.state.voters_outgoing,
            &self.state.learners_next,
        ];
        lists
            .iter()
            .any(|list| list.iter().any(|other| *other != id))
    }
}

/// Batches of committed entries that Raft is about to send: read once, with their headers.
#[derive(Debug, Default)]
pub(crate) struct ReadAlong {
    batches: VecDeque<Batch>,
    bytes: usize,
}

#[derive(Debug)]
struct Batch {
    index: u64,
    term: u64,
    bytes: Bytes,
}

/// What is read beyond so many bytes is read again when it is sent.
const READ_ALONG_BYTES_MAX: usize = 4 << 20;

impl ReadAlong {
    fn push(&mut self, info: &EntryInfo, bytes: Bytes) {
        if self.bytes + bytes.len() > READ_ALONG_BYTES_MAX {
            return;
        }
        self.bytes += bytes.len();
        self.batches.push_back(Batch {
            index: info.index.get(),
            term: u64::from(info.epoch.get()),
            bytes,
        });
    }

    /// Takes the batch of an entry. They are mostly taken in the order in which they were read.
    pub(crate) fn take(&mut self, index: u64, term: u64) -> Option<Bytes> {
        let is_it = |batch: &Batch| (batch.index, batch.term) == (index, term);
        let at = self.batches.iter().position(is_it)?;
        let bytes = self.batches.remove(at)?.bytes;
        self.bytes -= bytes.len();
        Some(bytes)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A partition log with what Raft has to remember beside it.
#[derive(Debug)]
pub(crate) struct LogStorage {
    pub(crate) log: Log,
    pub(crate) state: GroupState,
    pub(crate) members: Members,
    /// Entries that are committed and were not applied yet, read before Raft asks for them: where it cannot
    /// have them it panics.
    pub(crate) unapplied: Vec<Entry>,
    /// Replicas for which Raft has asked for a snapshot: they lack entries that are not here any more.
    pub(crate) behind: RefCell<Vec<u64>>,
    /// Batches that were read together with what Raft has in their place, for the messages that it makes of them.
    pub(crate) read_along: RefCell<ReadAlong>,
}

impl LogStorage {
    fn entry(&self, info: &EntryInfo) -> std::result::Result<Entry, EntriesError> {
        let (entry_type, data) = match info.kind {
            EntryKind::Empty => (EntryType::EntryNormal, Default::default()),
            EntryKind::ConfChange => {
                let change = self.log.conf_change(info.index)?;
                (EntryType::EntryConfChangeV2, change.unwrap_or_default())
            }
            EntryKind::Batch | EntryKind::Internal => {
                (EntryType::EntryNormal, stub(info.len as usize))
            }
        };
        Ok(Entry {
            entry_type: entry_type as i32,
            term: u64::from(info.epoch.get()),
            index: info.index.get(),
            data,
            ..Entry::default()
        })
    }
}

impl LogStorage {
    /// The entries from `low` to before `high`, as many as have so many bytes, at least one.
    pub(crate) fn read(
        &self,
        low: u64,
        high: u64,
        bytes_max: u64,
    ) -> std::result::Result<Vec<Entry>, EntriesError> {
        let (low, high) = (RaftIndex::new(low), RaftIndex::new(high));
        let infos = self.log.entries(low, high, bytes_max)?;
        // A list that is gathered out of results begins with room for four.
        let mut entries = Vec::with_capacity(infos.len());
        for info in &infos {
            entries.push(self.entry(info)?);
        }
        Ok(entries)
    }

    /// The same of entries that are to be sent and are not known without reading them: what they stand for is kept
    /// for their message. Only those that are committed, whose files nobody takes back.
    fn read_to_send(
        &self,
        low: u64,
        high: u64,
        bytes_max: u64,
    ) -> std::result::Result<Vec<Entry>, EntriesError> {
        let high = high.min(self.log.commit().get() + 1);
        let (low, high) = (RaftIndex::new(low), RaftIndex::new(high));
        let read = self.log.read_entries(low, high, bytes_max)?;
        let mut along = self.read_along.borrow_mut();
        let mut entries = Vec::with_capacity(read.len());
        for (info, bytes) in read {
            let entry = self.entry(&info)?;
            if has_payload(&entry) {
                along.push(&info, bytes);
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The same of those that were read before; `None` where they are others, or not enough.
    fn read_before(&self, low: u64, high: u64, bytes_max: Option<u64>) -> Option<Vec<Entry>> {
        let first = self.unapplied.first()?.index;
        let from = usize::try_from(low.checked_sub(first)?).ok()?;
        let there = self
            .unapplied
            .get(from..)
            .filter(|there| !there.is_empty())?;
        let wanted = usize::try_from(high - low).ok()?;
        if there.len() < wanted && bytes_max.is_none() {
            return None;
        }
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += entry.data.len() as u64 + 1;
            is_first || bytes_max.is_none_or(|max| bytes <= max)
        };
        let count = there.iter().take(wanted).take_while(fits).count();
        Some(there[..count].to_vec())
    }
}

impl Storage for LogStorage {
    fn initial_state(&self) -> Result<RaftState> {
        let hard_state = HardState {
            term: self.state.term,
            vote: self.state.vote,
            commit: self.log.commit().get(),
        };
        Ok(RaftState::new(hard_state, self.members.state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low >= high {
            return Ok(Vec::new());
        }
        let max_size = max_size.into();
        if let Some(entries) = self.read_before(low, high, max_size) {
            return Ok(entries);
        }
        let bytes_max = max_size.unwrap_or(u64::MAX);
        let read = if context.can_async() && low <= self.log.commit().get() {
            self.read_to_send(low, high, bytes_max)
        } else {
            self.read(low, high, bytes_max)
        };
        match read {
            // They are to be sent, and will be when the other replica is heard of next.
            Err(e) if is_out_of_files(&e) && context.can_async() => {
                tracing::warn!(error = %e, "entries to be sent cannot be read now");
                Err(Error::Store(StorageError::LogTemporarilyUnavailable))
            }
            read => read.map_err(unreadable),
        }
    }

    fn term(&self, index: u64) -> Result<u64> {
        let epoch = self
            .log
            .epoch_of(RaftIndex::new(index))
            .map_err(unreadable)?;
        Ok(u64::from(epoch.get()))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.log.first_index().get())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.log.end_index().get() - 1)
    }

    /// There is none in a message: who lacks entries that are gone is told so, and copies files.
    fn snapshot(&self, _request_index: u64, to: u64) -> Result<Snapshot> {
        let mut behind = self.behind.borrow_mut();
        if !behind.contains(&to) {
            behind.push(to);
        }
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// Whether entries cannot be read for want of an open file, which there will be again.
pub(crate) fn is_out_of_files(e: &EntriesError) -> bool {
    matches!(e, EntriesError::Read(ReadError::Disk(e)) if e.is_out_of_files())
}

fn unreadable(e: EntriesError) -> Error {
    Error::Store(match e {
        EntriesError::Gone { .. } => StorageError::Compacted,
        EntriesError::NotYet { .. } => StorageError::Unavailable,
        EntriesError::Read(e) => {
            StorageError::Other(Box::new(std::io::Error::other(e.to_string())))
        }
    })
}
