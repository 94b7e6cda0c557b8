//! Producers: each has up to five batches on their way to one partition, and sends each until it is
//! acknowledged.
//!
//! Most wait until a batch is committed, or until a majority has written it where that is as good. The others are
//! content when it is written, and so may lose it: one of these that is told of a gap goes on with a new epoch, and
//! forgets what it was sending.

use std::collections::{BTreeMap, VecDeque};

use tidelog_record::{
    BatchBuilder, BatchHeader, BatchLimits, Compression, Offset, ProducedBatch, Timestamp,
    validate_produced,
};
use tidelog_replica::{Done, NodeId, ProposeError, Refusal, Until, node_of};

use crate::SimRng;

/// Which batch of a producer: its epoch, and the sequence number of its first record.
pub(super) type BatchId = (i16, i32);

/// A batch that is not acknowledged, or stands behind one.
#[derive(Clone, Debug)]
struct Sent {
    sequence: i32,
    records: u32,
    /// Counts the records of the producer, over all its epochs.
    number: u64,
    /// When it was sent last, if it need not be sent again at once.
    at: Option<u64>,
    attempts: u64,
    is_done: bool,
}

/// Batches on their way to a node, in one piece.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) producer: usize,
    pub(super) until: Until,
    /// In their order: which one, and itself.
    pub(super) batches: Vec<(BatchId, ProducedBatch)>,
}

/// What a producer is told of a batch.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    batch: BatchId,
    result: Told,
}

#[derive(Clone, Copy, Debug)]
enum Told {
    Stored,
    NotLeader(Option<NodeId>),
    /// Not its next batch, as far as is known there.
    Gap,
    /// Anything else.
    NotNow,
}

impl Reply {
    pub(super) fn new(batch: BatchId, result: &Result<Done, Refusal>) -> Self {
        let result = match result {
            Ok(_) => Told::Stored,
            Err(
                Refusal::Refused(ProposeError::NotLeader { leader }) | Refusal::Lost { leader },
            ) => Told::NotLeader(leader.map(node_of)),
            Err(Refusal::Refused(ProposeError::Producer(_))) => Told::Gap,
            Err(Refusal::Gone) => Told::NotLeader(None),
            Err(_) => Told::NotNow,
        };
        Self { batch, result }
    }
}

#[derive(Debug)]
pub(super) struct Producer {
    id: usize,
    /// The number of its partition.
    pub(super) partition: usize,
    until: Until,
    /// The number of the one time it is to send at next.
    pub(super) plan: u64,
    /// Whom it takes for the leader.
    pub(super) target: NodeId,
    epoch: i16,
    next_sequence: i32,
    next_number: u64,
    window: VecDeque<Sent>,
    /// Every batch it ever sent: how many records, and the number of the first.
    all: BTreeMap<BatchId, (u32, u64)>,
    /// Where it was told that batches are, for good.
    told: BTreeMap<BatchId, Offset>,
    pub(super) acknowledged: u64,
    /// It writes no more: its partition is gone.
    is_retired: bool,
}

/// How long a producer waits for an answer before it asks again.
const PATIENCE_MILLIS: u64 = 400;
/// So many batches of a producer are on their way at most.
const WINDOW: usize = tidelog_log::PRODUCER_BATCHES;

impl Producer {
    pub(super) fn new(id: usize, partition: usize, until: Until) -> Self {
        Self {
            id,
            partition,
            until,
            plan: 0,
            target: 1,
            epoch: 0,
            next_sequence: 0,
            next_number: 0,
            window: VecDeque::new(),
            all: BTreeMap::new(),
            told: BTreeMap::new(),
            acknowledged: 0,
            is_retired: false,
        }
    }

    /// Until when it waits with each batch.
    pub(super) fn until(&self) -> Until {
        self.until
    }

    pub(super) fn id(&self) -> i64 {
        i64::try_from(self.id).expect("few")
    }

    pub(super) fn is_done(&self) -> bool {
        self.window.is_empty()
    }

    /// Its partition is gone, and what was on its way with it.
    pub(super) fn retire(&mut self) {
        self.is_retired = true;
        self.window.clear();
    }

    /// Adds some batches to those on their way, as far as there may be more.
    pub(super) fn write(&mut self, rng: &mut SimRng) {
        if self.is_retired {
            return;
        }
        let more = rng.index(WINDOW);
        for _ in 0..=more.min(WINDOW.saturating_sub(self.window.len() + 1)) {
            if self.window.len() == WINDOW {
                return;
            }
            let records = 1 + u32::try_from(rng.below(5)).expect("small");
            let (sequence, number) = (self.next_sequence, self.next_number);
            self.window.push_back(Sent {
                sequence,
                records,
                number,
                at: None,
                attempts: 0,
                is_done: false,
            });
            self.all.insert((self.epoch, sequence), (records, number));
            self.next_sequence += i32::try_from(records).expect("small");
            self.next_number += u64::from(records);
        }
    }

    /// What is to be sent now: from the first batch on that nobody answered for too long. Gives how
    /// many of these were sent before.
    pub(super) fn request(&mut self, now: u64, time: Timestamp) -> (Request, u64) {
        let is_due = |sent: &Sent| {
            let is_late = sent.at.is_none_or(|at| at + PATIENCE_MILLIS <= now);
            !sent.is_done && is_late
        };
        let first = self.window.iter().position(is_due);
        let mut batches = Vec::new();
        let mut retried = 0;
        for sent in self.window.iter_mut().skip(first.unwrap_or(WINDOW)) {
            if sent.is_done {
                continue;
            }
            retried += u64::from(sent.attempts > 0);
            sent.attempts += 1;
            sent.at = Some(now);
            let id = (self.epoch, sent.sequence);
            let number = sent.number;
            let id_of_it = i64::try_from(self.id).expect("few");
            batches.push((id, batch(id_of_it, id, sent.records, number, time)));
        }
        let request = Request {
            producer: self.id,
            until: self.until,
            batches,
        };
        (request, retried)
    }

    /// A node says that a batch is stored: what it says of a committed one must be true for good.
    pub(super) fn told(&mut self, batch: BatchId, base: Offset) {
        if self.until != Until::Written {
            let before = self.told.insert(batch, base);
            assert!(
                before.is_none_or(|before| before == base),
                "producer {} sent {batch:?} and was told {before:?} and {base}",
                self.id
            );
        }
    }

    /// What came back; says whether there is something to send at once.
    pub(super) fn answered(&mut self, reply: &Reply, rng: &mut SimRng, nodes: u32) -> bool {
        let (epoch, sequence) = reply.batch;
        let of_it = |sent: &&mut Sent| sent.sequence == sequence && !sent.is_done;
        if epoch != self.epoch {
            return false;
        }
        let Some(sent) = self.window.iter_mut().find(of_it) else {
            return false;
        };
        match reply.result {
            Told::Stored => {
                sent.is_done = true;
                self.acknowledged += 1;
                while self.window.pop_front_if(|sent| sent.is_done).is_some() {}
                return true;
            }
            Told::Gap if self.until == Until::Written => {
                self.epoch += 1;
                self.next_sequence = 0;
                self.window.clear();
                return true;
            }
            // A leader that others have replaced, and that has not heard of it, misses what was sent
            // since.
            Told::Gap => {
                if rng.chance(30) {
                    self.look_elsewhere(rng, nodes);
                }
            }
            Told::NotLeader(leader) => match leader {
                Some(leader) => self.target = leader,
                None => self.look_elsewhere(rng, nodes),
            },
            Told::NotNow => {}
        }
        if let Some(sent) = self.window.iter_mut().find(of_it) {
            sent.at = None;
        }
        false
    }

    pub(super) fn look_elsewhere(&mut self, rng: &mut SimRng, nodes: u32) {
        self.target = 1 + u32::try_from(rng.below(u64::from(nodes))).expect("few");
    }

    /// Compares what is committed of this producer with what it sent and was told.
    pub(super) fn check(&self, found: &[BatchHeader]) {
        let id = |header: &BatchHeader| (header.producer_epoch, header.base_sequence);
        let mut next = 0;
        for header in found {
            let sent = self.all.get(&id(header));
            let (records, number) = sent.copied().expect("it sent what is there");
            assert_eq!(records, header.record_count.unsigned_abs(), "its records");
            assert!(
                number >= next,
                "producer {}: batch {:?} is there twice, or out of order",
                self.id,
                id(header)
            );
            next = number + u64::from(records);
        }
        if self.until == Until::Written {
            return;
        }
        let found: BTreeMap<BatchId, i64> = found
            .iter()
            .map(|header| (id(header), header.base_offset))
            .collect();
        let told: BTreeMap<BatchId, i64> = self
            .told
            .iter()
            .map(|(id, base)| (*id, base.to_wire()))
            .collect();
        assert_eq!(
            found, told,
            "what is there of producer {} and what it sent and was told",
            self.id
        );
        assert_eq!(self.all.len(), told.len(), "all that it sent was told");
    }
}

/// The batch `id` of a producer; its records, from `number` on, say who they are.
fn batch(producer: i64, id: BatchId, records: u32, number: u64, now: Timestamp) -> ProducedBatch {
    let (epoch, sequence) = id;
    let mut builder = BatchBuilder::new(Compression::None).producer(producer, epoch, sequence);
    for number in number..number + u64::from(records) {
        // Some are longer than others.
        let width = usize::try_from(number * 37 % 150).expect("small");
        let value = format!("{producer}/{number:width$}");
        let pushed = builder.push(now, None, Some(value.as_bytes()), &[]);
        pushed.expect("a short record");
    }
    let built = builder.build().expect("it has records");
    validate_produced(built, &BatchLimits::default()).expect("it was just built")
}
