//! What must hold of each partition, whatever happens.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidelog_log::{EntriesError, InternalEntry, InternalKind, Log, ReadError};
use tidelog_record::{BATCH_HEADER_LEN, BatchHeader, Offset, RaftIndex};
use tidelog_replica::{ReplicaId, Role};

use super::clients::Producer;

/// An entry that is committed: its term and its bytes, which are the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    term: u32,
    bytes: Bytes,
}

/// What was seen of a replica.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Its entries were compared up to here in this life of its node.
    compared: u64,
    /// Where its log started, in any life.
    log_start: Offset,
    /// Records below are committed and durable there, for good.
    kept: Offset,
}

/// What was ever seen to be committed in a partition.
#[derive(Debug, Default)]
pub(super) struct Checks {
    entries: Vec<Committed>,
    /// The log starts among them: which entry, and where the log starts from it on.
    starts: Vec<(u64, Offset)>,
    seen: BTreeMap<ReplicaId, Seen>,
    leaders: BTreeMap<u64, ReplicaId>,
}

const FIRST: u64 = 6;

impl Checks {
    /// The last entry that is committed anywhere.
    pub(super) fn length(&self) -> u64 {
        FIRST - 1 + self.entries.len() as u64
    }

    /// How many entries are committed anywhere.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Those of them from the `at`th on.
    pub(super) fn entries_from(&self, at: usize) -> impl Iterator<Item = &Bytes> {
        self.entries[at..].iter().map(|entry| &entry.bytes)
    }

    /// Where the last batch up to the entry `index` begins: whoever has that entry needs nothing that
    /// lies before.
    pub(super) fn batch_at(&self, index: u64) -> Option<Offset> {
        let count = usize::try_from(index.checked_sub(FIRST - 1)?).ok()?;
        let known = &self.entries[..count.min(self.entries.len())];
        let headers = known.iter().rev().map(|entry| header_of(&entry.bytes));
        let mut batches = headers.filter(|header| !header.attributes.is_control());
        Offset::from_wire(batches.next()?.base_offset)
    }

    /// Compares what has become committed at a replica.
    pub(super) fn committed(&mut self, id: ReplicaId, log: &Log) {
        let seen = self.seen.get(&id).copied().unwrap_or_default();
        let to = log.commit().get() + 1;
        assert!(
            to >= seen.compared,
            "the watermark of replica {id} went back from {} to {to}",
            seen.compared
        );
        let from = seen.compared.max(FIRST);
        if !self.compare(id, log, from, to) {
            return;
        }
        let reader = log.reader();
        let log_start = reader.log_start();
        assert!(
            log_start >= seen.log_start,
            "the log start of replica {id} went back from {} to {log_start}",
            seen.log_start
        );
        // One that was asked for before others and is committed after them does not set it back.
        let told = self.starts.iter().filter(|(index, _)| *index < to);
        let told = told.map(|(_, start)| *start).max().unwrap_or(Offset::ZERO);
        assert_eq!(
            log_start, told,
            "the log start of replica {id} is not the one that is committed"
        );
        let durable = reader.durable_offset().min(reader.committed_offset());
        let seen = Seen {
            compared: to,
            log_start,
            kept: seen.kept.max(durable),
        };
        self.seen.insert(id, seen);
    }

    /// Compares everything that is committed at a replica, once more.
    pub(super) fn all_of(&mut self, id: ReplicaId, log: &Log) {
        self.compare(id, log, FIRST, log.commit().get() + 1);
    }

    /// What a replica knew as committed before may have been forgotten; what is in its log was durable.
    pub(super) fn restarted(&mut self, id: ReplicaId, log: &Log) {
        let seen = self.seen.entry(id).or_default();
        seen.compared = 0;
        let end = log.end().offset;
        assert!(
            end >= seen.kept,
            "replica {id} has records up to {end}; it had them durable and committed up to {}",
            seen.kept
        );
        self.committed(id, log);
    }

    /// Says no when nothing can be read for want of an open file.
    fn compare(&mut self, id: ReplicaId, log: &Log, from: u64, to: u64) -> bool {
        let from = from.max(log.first_index().get());
        if from >= to {
            return true;
        }
        let entries = match log.read_entries(RaftIndex::new(from), RaftIndex::new(to), u64::MAX) {
            Err(EntriesError::Read(ReadError::Disk(e))) if e.is_out_of_files() => return false,
            entries => entries.expect("what is committed can be read"),
        };
        for (info, bytes) in entries {
            let found = Committed {
                term: info.epoch.get(),
                bytes,
            };
            let index = info.index.get();
            let at = usize::try_from(index - FIRST).expect("few");
            match self.entries.get(at) {
                Some(known) => assert_eq!(
                    *known, found,
                    "replica {id} has another entry {index} than was committed"
                ),
                None => {
                    assert_eq!(at, self.entries.len(), "entries are committed in order");
                    if let Some(start) = log_start(&found.bytes) {
                        self.starts.push((index, start));
                    }
                    self.entries.push(found);
                }
            }
        }
        true
    }

    /// A replica has a new role; gives how many leaderships began.
    pub(super) fn role(&mut self, id: ReplicaId, role: Role) -> u64 {
        if !role.is_leader {
            return 0;
        }
        let leader = self.leaders.get(&role.term).copied();
        assert!(
            leader.is_none_or(|leader| leader == id),
            "term {} has the leaders {leader:?} and {id}",
            role.term
        );
        self.leaders.insert(role.term, id);
        u64::from(leader.is_none())
    }

    /// What producers were told is true, nothing is there twice, and all of it is in order.
    pub(super) fn batches<'a>(&self, producers: impl Iterator<Item = &'a Producer>) {
        let mut by_producer: BTreeMap<i64, Vec<BatchHeader>> = BTreeMap::new();
        for entry in &self.entries {
            let header = header_of(&entry.bytes);
            if !header.attributes.is_control() {
                let of_it = by_producer.entry(header.producer_id).or_default();
                of_it.push(header);
            }
        }
        for producer in producers {
            let found = by_producer.remove(&producer.id()).unwrap_or_default();
            producer.check(&found);
        }
        assert!(by_producer.is_empty(), "batches of nobody: {by_producer:?}");
    }
}

fn header_of(bytes: &[u8]) -> BatchHeader {
    BatchHeader::decode(bytes, bytes.len()).expect("entries are batches")
}

/// Where the log starts, if the entry says so.
fn log_start(bytes: &[u8]) -> Option<Offset> {
    let header = header_of(bytes);
    if !header.attributes.is_control() {
        return None;
    }
    let entry = InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..]).ok()?;
    match entry.kind {
        InternalKind::LogStart(start) => Some(start),
        _ => None,
    }
}
