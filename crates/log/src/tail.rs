//! The end of a replicated log that is not known to be committed: where each of its entries ends.
//!
//! Raft says how far the log is committed, and may have what lies behind taken back. Until then the
//! borders between these entries are kept, with all that is known at each: enough to make one of
//! them the end of the log again, and to tell what lies between two of them without reading it.

use std::collections::VecDeque;

use tidelog_record::{Offset, RaftIndex};

use crate::entry::{EntryInfo, EntryKind};
use crate::segment::LogEnd;

/// An entry that may be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TailEntry {
    kind: EntryKind,
    len: u32,
    /// The place behind it; at the end of a segment that was rolled, the beginning of the next one.
    end: LogEnd,
}

/// The entries of a log past its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The place behind the last committed entry.
    committed: LogEnd,
    entries: VecDeque<TailEntry>,
}

impl Tail {
    /// Nothing lies past `committed`.
    pub(crate) fn new(committed: LogEnd) -> Self {
        Self {
            committed,
            entries: VecDeque::new(),
        }
    }

    pub(crate) fn committed(&self) -> LogEnd {
        self.committed
    }

    pub(crate) fn push(&mut self, kind: EntryKind, len: u32, end: LogEnd) {
        self.entries.push_back(TailEntry { kind, len, end });
    }

    /// The segment was rolled: `end`, in the new one, is the same place.
    pub(crate) fn rolled(&mut self, end: LogEnd) {
        match self.entries.back_mut() {
            Some(last) => last.end = end,
            None => self.committed = end,
        }
    }

    /// No entry of the tail tells a log start: it is `log_start` at each.
    pub(crate) fn raise_log_start(&mut self, log_start: Offset) {
        let ends = self.entries.iter_mut().map(|entry| &mut entry.end);
        for end in ends.chain([&mut self.committed]) {
            end.log_start = log_start;
        }
    }

    /// The place before the entry `index`; `None` where that is committed or past the end.
    pub(crate) fn before(&self, index: RaftIndex) -> Option<LogEnd> {
        if index == self.committed.index {
            return Some(self.committed);
        }
        let past = index.get().checked_sub(self.committed.index.get())?;
        let entry = self
            .entries
            .get(usize::try_from(past).ok()?.checked_sub(1)?)?;
        Some(entry.end)
    }

    /// Everything before the entry `index` is committed, which is at most the end; gives that place.
    pub(crate) fn commit(&mut self, index: RaftIndex) -> LogEnd {
        while self.committed.index < index {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.committed = entry.end;
        }
        self.committed
    }

    /// Takes back the entry `index` and those behind it.
    pub(crate) fn cut(&mut self, index: RaftIndex) {
        let keep = index.get().saturating_sub(self.committed.index.get());
        self.entries
            .truncate(usize::try_from(keep).unwrap_or(usize::MAX));
    }

    /// The entries from `index` on, oldest first; nothing where that is committed.
    pub(crate) fn infos(&self, index: RaftIndex) -> impl Iterator<Item = EntryInfo> {
        let skipped = index.get().checked_sub(self.committed.index.get());
        let skipped = skipped.and_then(|skipped| usize::try_from(skipped).ok());
        self.entries
            .iter()
            .skip(skipped.unwrap_or(usize::MAX))
            .zip(index.get()..)
            .map(|(entry, index)| EntryInfo {
                index: RaftIndex::new(index),
                epoch: entry.end.epoch,
                kind: entry.kind,
                len: entry.len,
            })
    }
}
