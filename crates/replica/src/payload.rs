//! Entries beside Raft: it keeps stubs, and what they stand for is kept here until it is written, and
//! for a while after, since what was just written is sent next.

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::Bytes;
use tidelog_log::{BATCH_BYTES_LIMIT, LogEntry};

/// Zeros, none of which anybody reads: the system gives no memory for them.
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; BATCH_BYTES_LIMIT]));

/// What Raft has in place of an entry of `len` bytes.
pub(crate) fn stub(len: usize) -> Bytes {
    ZEROS.slice(..len)
}

/// What Raft has in place of a batch of `len` bytes, for whoever makes a message of what came over a
/// network; `None` where no batch is that long.
pub fn stub_of(len: usize) -> Option<Bytes> {
    (len <= BATCH_BYTES_LIMIT).then(|| stub(len))
}

/// An entry and its place in the Raft log.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) entry: LogEntry,
}

/// The entries that came last, oldest first, one behind the other.
#[derive(Debug)]
pub(crate) struct Recent {
    entries: VecDeque<Placed>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Keeps an entry, in place of those from its index on; forgets the oldest that are too much.
    pub(crate) fn push(&mut self, placed: Placed) {
        while self
            .entries
            .back()
            .is_some_and(|last| last.index >= placed.index)
        {
            let last = self.entries.pop_back();
            self.bytes -= last.map_or(0, |last| last.entry.len_bytes());
        }
        if self
            .entries
            .back()
            .is_some_and(|last| last.index + 1 != placed.index)
        {
            self.clear();
        }
        self.bytes += placed.entry.len_bytes();
        self.entries.push_back(placed);
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            let first = self.entries.pop_front();
            self.bytes -= first.map_or(0, |first| first.entry.len_bytes());
        }
    }

    /// Forgets the entries up to `index`.
    pub(crate) fn forget_to(&mut self, index: u64) {
        while self
            .entries
            .front()
            .is_some_and(|first| first.index <= index)
        {
            let first = self.entries.pop_front();
            self.bytes -= first.map_or(0, |first| first.entry.len_bytes());
        }
    }

    pub(crate) fn get(&self, index: u64, term: u64) -> Option<&LogEntry> {
        let first = self.entries.front()?.index;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        let placed = self.entries.get(at)?;
        (placed.term == term).then_some(&placed.entry)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}
