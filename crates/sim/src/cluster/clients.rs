//! Producers: each sends one batch after the other, and each until it is acknowledged.

use std::collections::BTreeMap;

use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, Offset, ProducedBatch, Timestamp, validate_produced,
};

use super::Cluster;
use super::events::Event;
use super::replica::Replica;

/// A batch on its way.
#[derive(Clone, Debug)]
struct Sent {
    /// Where it was proposed last, in which term, and what was told.
    at: Option<Waiting>,
    sequence: i32,
    records: u32,
    /// Counts what was sent, so that what comes late is known as late.
    attempt: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    replica: u64,
    term: u64,
    base: Offset,
    end: Offset,
}

/// A batch that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) base: Offset,
    pub(super) sequence: i32,
    pub(super) records: u32,
}

#[derive(Debug, Default)]
struct Producer {
    /// The number of the one time it is to send at next.
    plan: u64,
    sent: Option<Sent>,
    next_sequence: i32,
    done: Vec<Acknowledged>,
}

#[derive(Debug)]
pub(super) struct Clients {
    producers: BTreeMap<u64, Producer>,
    is_stopped: bool,
}

/// How long a producer waits for an answer before it asks again.
const PATIENCE_MILLIS: u64 = 400;

impl Clients {
    pub(super) fn new(count: u64) -> Self {
        Self {
            producers: (0..count).map(|id| (id, Producer::default())).collect(),
            is_stopped: false,
        }
    }

    /// Nothing new is sent.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
    }

    pub(super) fn is_done(&self) -> bool {
        self.producers
            .values()
            .all(|producer| producer.sent.is_none())
    }

    pub(super) fn waiting(&self) -> String {
        format!(
            "{:?}",
            self.producers.values().map(|p| &p.sent).collect::<Vec<_>>()
        )
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.producers.values().map(|p| p.done.len() as u64).sum()
    }

    pub(super) fn done(&self) -> impl Iterator<Item = (u64, &[Acknowledged])> {
        self.producers
            .iter()
            .map(|(id, producer)| (*id, &producer.done[..]))
    }

    /// A replica stopped: what it was to answer it never will.
    pub(super) fn lost(&mut self, replica: u64) {
        let sent = self.producers.values_mut().filter_map(|p| p.sent.as_mut());
        for sent in sent.filter(|sent| sent.at.is_some_and(|at| at.replica == replica)) {
            sent.at = None;
        }
    }
}

/// The record `number` of a producer says so.
fn batch(producer: u64, sequence: i32, records: u32, now: Timestamp) -> ProducedBatch {
    let id = i64::try_from(producer).expect("few");
    let mut builder = BatchBuilder::new(Compression::None).producer(id, 0, sequence);
    for number in 0..records {
        let value = format!("{producer}/{}", i64::from(sequence) + i64::from(number));
        let pushed = builder.push(now, None, Some(value.as_bytes()), &[]);
        pushed.expect("a short record");
    }
    let built = builder.build().expect("it has records");
    validate_produced(built, &BatchLimits::default()).expect("it was just built")
}

impl Cluster {
    /// A producer sends its next batch, or the one that was not acknowledged, to some replica.
    pub(super) fn send(&mut self, id: u64, plan: u64) {
        let again = self.now + PATIENCE_MILLIS + self.rng.below(100);
        let now = self.time();
        let is_stopped = self.clients.is_stopped;
        let producer = self.clients.producers.get_mut(&id).expect("there is one");
        if producer.plan != plan {
            return;
        }
        producer.plan += 1;
        let plan = producer.plan;
        if producer.sent.is_none() {
            if is_stopped {
                return;
            }
            let records = 1 + u32::try_from(self.rng.below(5)).expect("small");
            producer.sent = Some(Sent {
                at: None,
                sequence: producer.next_sequence,
                records,
                attempt: 0,
            });
        }
        self.events.at(again, Event::Send { producer: id, plan });
        let sent = producer.sent.as_mut().expect("just made");
        if sent.attempt > 0 {
            self.stats.retried += 1;
        }
        sent.attempt += 1;
        let batch = batch(id, sent.sequence, sent.records, now);
        let leader = self.leader().filter(|_| self.rng.chance(90));
        let ids: Vec<u64> = self.replicas.keys().copied().collect();
        let to = leader.unwrap_or_else(|| ids[self.rng.index(ids.len())]);
        let mut answer = None;
        self.with(to, |replica, _| {
            if let Some(group) = replica.group_mut() {
                answer = group.propose([batch], now).pop();
            }
        });
        // A refusal is no last word, not even one for the order of what the producer sent: a leader that
        // others have replaced, and that has not heard of it, misses what was sent since.
        if let Some(Ok(proposed)) = answer {
            self.stats.duplicates += u64::from(proposed.is_duplicate);
            let producer = self.clients.producers.get_mut(&id).expect("there is one");
            if let Some(sent) = &mut producer.sent {
                sent.at = Some(Waiting {
                    replica: to,
                    term: proposed.term,
                    base: proposed.base_offset,
                    end: proposed.end_offset,
                });
            }
            // Where one replica is enough, that very turn may have committed it.
            self.answer(to);
        }
    }

    /// Acknowledges what has become committed at a replica that leads still.
    pub(super) fn answer(&mut self, replica: u64) {
        let Some(group) = self.replicas.get(&replica).and_then(Replica::group) else {
            return;
        };
        let role = group.role();
        let committed = Some(group.log().reader().committed_offset());
        for (id, producer) in &mut self.clients.producers {
            let Some(sent) = &mut producer.sent else {
                continue;
            };
            let Some(at) = sent.at.filter(|at| at.replica == replica) else {
                continue;
            };
            if !role.is_leader || role.term != at.term {
                // What became of it is not known here.
                sent.at = None;
            } else if committed >= Some(at.end) {
                let done = Acknowledged {
                    base: at.base,
                    sequence: sent.sequence,
                    records: sent.records,
                };
                producer.done.push(done);
                producer.next_sequence = sent.sequence + i32::try_from(sent.records).expect("few");
                producer.sent = None;
                let next = self.now + self.rng.below(100);
                producer.plan += 1;
                let (producer, plan) = (*id, producer.plan);
                self.events.at(next, Event::Send { producer, plan });
            }
        }
    }
}
