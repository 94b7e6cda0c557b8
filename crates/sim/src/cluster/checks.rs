//! What must hold, whatever happens.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidelog_record::{BatchHeader, RaftIndex};
use tidelog_replica::Role;

use super::clients::Clients;
use super::replica::Replica;

/// An entry that is committed: its term and its bytes, which are the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    term: u32,
    bytes: Bytes,
}

/// What was ever seen to be committed.
#[derive(Debug, Default)]
pub(super) struct Checks {
    entries: Vec<Committed>,
    /// How far each replica's entries were compared.
    checked: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
}

const FIRST: u64 = 6;

impl Checks {
    /// The last entry that is committed anywhere.
    pub(super) fn length(&self) -> u64 {
        FIRST - 1 + self.entries.len() as u64
    }

    /// Compares what has become committed at a replica.
    pub(super) fn committed(&mut self, replica: &Replica) {
        let from = self.checked.get(&replica.id).copied().unwrap_or(FIRST);
        let to = replica.committed() + 1;
        if from < to {
            self.compare(replica, from, to);
            self.checked.insert(replica.id, to);
        }
    }

    /// Compares everything that is committed at a replica, once more.
    pub(super) fn all_of(&mut self, replica: &Replica) {
        let to = replica.committed() + 1;
        if FIRST < to {
            self.compare(replica, FIRST, to);
        }
    }

    /// What it knew as committed before may have been forgotten; what is in its log was durable.
    pub(super) fn restarted(&mut self, replica: &Replica) {
        self.checked.insert(replica.id, FIRST);
        self.committed(replica);
    }

    fn compare(&mut self, replica: &Replica, from: u64, to: u64) {
        let log = replica.group().expect("it runs").log();
        let (from, to) = (RaftIndex::new(from), RaftIndex::new(to));
        let entries = log.read_entries(from, to, u64::MAX);
        for (info, bytes) in entries.expect("what is committed can be read") {
            let found = Committed {
                term: info.epoch.get(),
                bytes,
            };
            let at = usize::try_from(info.index.get() - FIRST).expect("few");
            match self.entries.get(at) {
                Some(known) => assert_eq!(
                    *known, found,
                    "replica {} has another entry {} than was committed",
                    replica.id, info.index
                ),
                None => {
                    assert_eq!(at, self.entries.len(), "entries are committed in order");
                    self.entries.push(found);
                }
            }
        }
    }

    /// A replica has a new role; gives how many leaderships began.
    pub(super) fn role(&mut self, id: u64, role: Role) -> u64 {
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
    pub(super) fn batches(&self, clients: &Clients) {
        let mut by_producer: BTreeMap<i64, Vec<(i64, i32, i32)>> = BTreeMap::new();
        for entry in &self.entries {
            let header = BatchHeader::decode(&entry.bytes, entry.bytes.len());
            let header = header.expect("entries are batches");
            if !header.attributes.is_control() {
                let of_it = by_producer.entry(header.producer_id).or_default();
                of_it.push((
                    header.base_offset,
                    header.base_sequence,
                    header.record_count,
                ));
            }
        }
        for (id, done) in clients.done() {
            let id = i64::try_from(id).expect("few");
            let told: Vec<_> = done
                .iter()
                .map(|done| {
                    let base = done.base.to_wire();
                    (base, done.sequence, done.records.cast_signed())
                })
                .collect();
            let found = by_producer.remove(&id).unwrap_or_default();
            assert_eq!(found, told, "what producer {id} sent and was told");
        }
        assert!(by_producer.is_empty(), "batches of nobody: {by_producer:?}");
    }
}
