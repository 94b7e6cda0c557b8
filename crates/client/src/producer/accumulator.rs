//! Batches in the making and on their way, a queue for each partition. No I/O and no waiting: the
//! senders and the driver reach it under one lock, each for a moment.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog_record::{BatchBuilder, BuildError, Compression, PartitionId, Timestamp, TopicName};
use tokio::time::Instant;

use super::ProducerRecord;
use super::delivery::{BatchOutcome, DeliveryFuture};
use super::sequence::{Identity, Sequence, Stamp};
use crate::ClientError;

/// Which queue: they are never removed.
pub(crate) type QueueId = usize;

/// How batches are closed and how many of a partition may be on their way.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) compression: Compression,
    pub(crate) linger: Duration,
    pub(crate) in_flight_per_partition_max: usize,
    /// Whether batches get sequence numbers.
    pub(crate) idempotent: bool,
}

/// All batches of a producer.
#[derive(Debug)]
pub(crate) struct Accumulator {
    limits: Limits,
    queue_ids: HashMap<TopicName, HashMap<PartitionId, QueueId>>,
    queues: Vec<Queue>,
    /// Queues that may have a batch to send; each at most once.
    sendable: VecDeque<QueueId>,
    /// Open batches, with when they shall be closed, the oldest first.
    lingering: VecDeque<(Instant, QueueId, BatchId)>,
    /// Queues that wait before they try again. Few, so that looking at all of them is cheap.
    muted: Vec<(Instant, QueueId)>,
    /// Who this producer is, once that is known.
    identity: Option<Identity>,
    /// Whether a batch could not be sent for want of an identity.
    wants_identity: bool,
    /// Batches that are not settled, by age.
    outstanding: BTreeSet<BatchId>,
    next_batch: BatchId,
}

/// Counts batches up in the order they are begun.
pub(crate) type BatchId = u64;

#[derive(Debug)]
struct Queue {
    topic: TopicName,
    partition: PartitionId,
    open: Option<OpenBatch>,
    /// Closed, waiting to be sent, in order: what failed goes back to its old place.
    waiting: VecDeque<ClosedBatch>,
    /// Batches of this queue on their way.
    on_the_way: BTreeSet<BatchId>,
    muted: bool,
    /// It has something to send, but the driver said that it cannot be sent now.
    held: bool,
    listed: bool,
    sequence: Sequence,
}

#[derive(Debug)]
struct OpenBatch {
    builder: BatchBuilder,
    head: BatchHead,
}

/// A batch that takes no more records.
#[derive(Debug)]
pub(crate) struct ClosedBatch {
    content: Content,
    pub(crate) head: BatchHead,
    pub(crate) attempts: u32,
    /// Whether an attempt ended without an answer, so that it may be stored.
    pub(crate) maybe_stored: bool,
    pub(crate) last_error: Option<ClientError>,
    records: u32,
    stamp: Option<Stamp>,
}

/// What goes with a batch from its beginning to its end.
#[derive(Debug)]
pub(crate) struct BatchHead {
    pub(crate) id: BatchId,
    pub(crate) begun_at: Instant,
    /// Bytes of the buffer it takes.
    pub(crate) reserved_bytes: usize,
    pub(crate) outcome: Arc<BatchOutcome>,
}

/// Compressed only when it is sent, by the driver and outside of the lock.
#[derive(Debug)]
enum Content {
    Open(BatchBuilder),
    Built(Bytes),
    /// Building failed.
    Gone,
}

impl ClosedBatch {
    /// The bytes to send. After an error there are none.
    pub(crate) fn bytes(&mut self) -> Result<Bytes, BuildError> {
        let bytes = match std::mem::replace(&mut self.content, Content::Gone) {
            Content::Open(builder) => match &self.stamp {
                Some(stamp) => builder
                    .producer(stamp.id(), stamp.epoch(), stamp.base_sequence)
                    .build()?,
                None => builder.build()?,
            },
            Content::Built(bytes) => match &self.stamp {
                Some(stamp) => stamp.put_on(bytes),
                None => bytes,
            },
            Content::Gone => return Err(BuildError::Empty),
        };
        self.content = Content::Built(bytes.clone());
        Ok(bytes)
    }
}

impl Accumulator {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            queue_ids: HashMap::new(),
            queues: Vec::new(),
            sendable: VecDeque::new(),
            lingering: VecDeque::new(),
            muted: Vec::new(),
            identity: None,
            wants_identity: false,
            outstanding: BTreeSet::new(),
            next_batch: 0,
        }
    }

    /// Adds a record to the open batch of its partition, which becomes as large as
    /// `batch_bytes_max` at most, unless it is of one record.
    pub(crate) fn push(
        &mut self,
        record: &ProducerRecord,
        partition: PartitionId,
        timestamp: Timestamp,
        reserved_bytes: usize,
        batch_bytes_max: usize,
    ) -> Result<Pushed, BuildError> {
        let id = self.queue_id(&record.topic, partition);
        let headers: Vec<(&str, Option<&[u8]>)> = record
            .headers
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()))
            .collect();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());

        let mut closed = false;
        if let Some(open) = &self.queues[id].open {
            let record_len = open.builder.record_len(timestamp, key, value, &headers);
            if open.builder.len_bytes().saturating_add(record_len) > batch_bytes_max {
                self.close(id);
                closed = true;
            }
        }
        if let Some(open) = &mut self.queues[id].open {
            match open.builder.push(timestamp, key, value, &headers) {
                Ok(index) => {
                    open.head.reserved_bytes += reserved_bytes;
                    let future = open.head.outcome.future(index, timestamp);
                    let full = open.builder.len_bytes() >= batch_bytes_max;
                    if full {
                        self.close(id);
                    }
                    return Ok(Pushed {
                        future,
                        wake: full || closed,
                    });
                }
                // Neither can happen in a batch of one record.
                Err(BuildError::TimestampOverflow { .. } | BuildError::TooManyRecords { .. }) => {
                    self.close(id);
                }
                Err(error) => return Err(error),
            }
        }

        let mut builder = BatchBuilder::new(self.limits.compression);
        let index = builder.push(timestamp, key, value, &headers)?;
        let full = builder.len_bytes() >= batch_bytes_max;
        // Only here: reading the clock for each record would show.
        let now = Instant::now();
        let head = self.begin(partition, reserved_bytes, now);
        let future = head.outcome.future(index, timestamp);
        if !self.limits.linger.is_zero() {
            self.lingering
                .push_back((now + self.limits.linger, id, head.id));
        }
        self.queues[id].open = Some(OpenBatch { builder, head });
        if full {
            self.close(id);
        } else if self.limits.linger.is_zero() {
            // The open batch itself may be sent, as soon as there is room for it on the way.
            self.list(id);
        }
        Ok(Pushed { future, wake: true })
    }

    /// Whether the partition has an open batch with so much room left. One with less is closed.
    pub(crate) fn has_open_batch_for(
        &mut self,
        topic: &TopicName,
        partition: PartitionId,
        bytes: usize,
        batch_bytes_max: usize,
    ) -> bool {
        let id = self.queue_id(topic, partition);
        let Some(open) = &self.queues[id].open else {
            return false;
        };
        let fits = open.builder.len_bytes().saturating_add(bytes) <= batch_bytes_max;
        if !fits {
            self.close(id);
        }
        fits
    }

    /// The next batch that may be sent, with its queue. A queue that `may_send` denies is held back
    /// until it is [released](Self::release).
    pub(crate) fn next_to_send(
        &mut self,
        mut may_send: impl FnMut(QueueId, &TopicName, PartitionId) -> bool,
    ) -> Option<(QueueId, ClosedBatch)> {
        while let Some(id) = self.sendable.pop_front() {
            self.queues[id].listed = false;
            if !self.has_room(id) || !self.has_batch(id) {
                continue;
            }
            let queue = &mut self.queues[id];
            if !may_send(id, &queue.topic, queue.partition) {
                queue.held = true;
                continue;
            }
            if self.queues[id].waiting.is_empty() && self.limits.linger.is_zero() {
                self.close_only(id);
            }
            if self.limits.idempotent && !self.number(id) {
                continue;
            }
            let queue = &mut self.queues[id];
            let Some(batch) = queue.waiting.pop_front() else {
                continue;
            };
            queue.on_the_way.insert(batch.head.id);
            self.list(id);
            return Some((id, batch));
        }
        None
    }

    /// What was held back may be tried again.
    pub(crate) fn release(&mut self, ids: impl IntoIterator<Item = QueueId>) {
        for id in ids {
            self.queues[id].held = false;
            self.list(id);
        }
    }

    /// Numbers the next batch of a queue, if it has none yet. Whether the batch may be sent now.
    fn number(&mut self, id: QueueId) -> bool {
        let queue = &mut self.queues[id];
        if queue.sequence.is_broken() {
            // Nothing new until it is known what became of those on their way.
            if !queue.on_the_way.is_empty() {
                return false;
            }
            let Some(front) = queue.waiting.front() else {
                return false;
            };
            if front.stamp.is_some() && front.maybe_stored {
                return true;
            }
            // The first is surely not stored, so nothing behind it is.
            queue.sequence.begin_anew();
            for batch in &mut queue.waiting {
                batch.stamp = None;
                batch.maybe_stored = false;
            }
        }
        let Some(front) = queue.waiting.front_mut() else {
            return false;
        };
        if front.stamp.is_none() {
            front.stamp = queue.sequence.stamp(self.identity, front.records);
        }
        if front.stamp.is_none() {
            self.wants_identity = true;
        }
        front.stamp.is_some()
    }

    /// Whether batches wait for an identity.
    pub(crate) fn wants_identity(&self) -> bool {
        self.wants_identity
    }

    /// Takes an identity for all partitions that have none.
    pub(crate) fn set_identity(&mut self, identity: Identity) {
        self.identity = Some(identity);
        self.wants_identity = false;
        for id in 0..self.queues.len() {
            self.list(id);
        }
    }

    /// Tells all batches that wait why they do.
    pub(crate) fn note_error(&mut self, error: &ClientError) {
        for batch in self.queues.iter_mut().flat_map(|queue| &mut queue.waiting) {
            batch.last_error = Some(error.clone());
        }
    }

    /// The broker refused a batch as out of order, so it is not stored, nor is anything behind it.
    /// It is to be put back. If nothing is under way before it, its numbers lead nowhere.
    pub(crate) fn out_of_order(&mut self, id: QueueId, batch: &mut ClosedBatch) {
        batch.maybe_stored = false;
        if self.is_oldest(id, batch) || self.queues[id].sequence.is_broken() {
            self.queues[id].sequence.break_off();
            batch.stamp = None;
        }
    }

    /// The broker does not know who sent a batch. Whether it is to be put back: not if it was
    /// perhaps stored before the broker forgot.
    pub(crate) fn unknown_producer(&mut self, id: QueueId, batch: &mut ClosedBatch) -> bool {
        // Behind the producer's first batch, if that was not stored: it comes again.
        if !self.is_oldest(id, batch) {
            return true;
        }
        if batch.maybe_stored {
            return false;
        }
        batch.stamp = None;
        if self.identity.map(|identity| identity.id) == self.queues[id].sequence.id() {
            self.identity = None;
        }
        self.queues[id].sequence.forget_identity();
        true
    }

    /// Whether nothing of the queue before this batch waits or is on its way.
    fn is_oldest(&self, id: QueueId, batch: &ClosedBatch) -> bool {
        self.outstanding_of(id)
            .is_none_or(|oldest| oldest >= batch.head.id)
    }

    /// A batch is given up, or was refused for good.
    pub(crate) fn given_up(&mut self, id: QueueId, batch: &ClosedBatch) {
        if batch.stamp.is_some() {
            self.queues[id].sequence.break_off();
        }
    }

    /// The oldest batch of a queue that is on its way or waits.
    fn outstanding_of(&self, id: QueueId) -> Option<BatchId> {
        let queue = &self.queues[id];
        let waiting = queue.waiting.front().map(|batch| batch.head.id);
        waiting
            .into_iter()
            .chain(queue.on_the_way.first().copied())
            .min()
    }

    /// The topic and partition of a queue.
    pub(crate) fn place(&self, id: QueueId) -> (TopicName, PartitionId) {
        let queue = &self.queues[id];
        (queue.topic.clone(), queue.partition)
    }

    /// The topic of a queue.
    pub(crate) fn topic(&self, id: QueueId) -> &TopicName {
        &self.queues[id].topic
    }

    /// A batch on its way came to an end.
    pub(crate) fn landed(&mut self, id: QueueId, batch: BatchId) {
        self.queues[id].on_the_way.remove(&batch);
        self.list(id);
    }

    /// Puts a batch that [`landed`](Self::landed) without success back to its place, to be sent
    /// again. With `until`, nothing of its partition is sent before.
    pub(crate) fn put_back(&mut self, id: QueueId, batch: ClosedBatch, until: Option<Instant>) {
        let queue = &mut self.queues[id];
        let at = queue
            .waiting
            .partition_point(|other| other.head.id < batch.head.id);
        queue.waiting.insert(at, batch);
        if let Some(until) = until {
            queue.muted = true;
            self.muted.retain(|&(_, other)| other != id);
            self.muted.push((until, id));
        }
        self.list(id);
    }

    /// A batch will not be sent any more.
    pub(crate) fn settled(&mut self, batch: BatchId) {
        self.outstanding.remove(&batch);
    }

    /// Closes what has lingered long enough and lifts mutes that are over. Gives when to call again.
    pub(crate) fn on_time(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&(due, id, batch)) = self.lingering.front() {
            let is_open = self.queues[id]
                .open
                .as_ref()
                .is_some_and(|open| open.head.id == batch);
            if is_open && due > now {
                break;
            }
            self.lingering.pop_front();
            if is_open {
                self.close(id);
            }
        }
        let mut unmuted = Vec::new();
        self.muted.retain(|&(until, id)| {
            let over = until <= now;
            if over {
                unmuted.push(id);
            }
            !over
        });
        for id in unmuted {
            self.queues[id].muted = false;
            self.list(id);
        }
        let lingering = self.lingering.front().map(|&(due, ..)| due);
        let muted = self.muted.iter().map(|&(until, _)| until).min();
        lingering.into_iter().chain(muted).min()
    }

    /// Closes every open batch.
    pub(crate) fn close_all(&mut self) {
        for id in 0..self.queues.len() {
            self.close(id);
        }
        self.lingering.clear();
    }

    /// Takes out the batches that wait since `begun_before` or longer.
    pub(crate) fn take_expired(&mut self, begun_before: Instant) -> Vec<(QueueId, ClosedBatch)> {
        let mut expired = Vec::new();
        for id in 0..self.queues.len() {
            let is_old = |head: &BatchHead| head.begun_at <= begun_before;
            if self.queues[id]
                .open
                .as_ref()
                .is_some_and(|open| is_old(&open.head))
            {
                self.close(id);
            }
            let waiting = &mut self.queues[id].waiting;
            // In order of age.
            while waiting.front().is_some_and(|batch| is_old(&batch.head)) {
                expired.extend(waiting.pop_front().map(|batch| (id, batch)));
            }
        }
        expired
    }

    /// Takes out everything that is not on its way.
    pub(crate) fn take_all(&mut self) -> Vec<(QueueId, ClosedBatch)> {
        self.close_all();
        let queues = self.queues.iter_mut().enumerate();
        queues
            .flat_map(|(id, queue)| queue.waiting.drain(..).map(move |batch| (id, batch)))
            .collect()
    }

    /// Whether there are batches that are not settled.
    pub(crate) fn has_outstanding(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// Whether all batches begun before `batch` are settled.
    pub(crate) fn is_settled_before(&self, batch: BatchId) -> bool {
        self.outstanding
            .first()
            .is_none_or(|&oldest| oldest >= batch)
    }

    /// The id that the next batch will have.
    pub(crate) fn next_batch(&self) -> BatchId {
        self.next_batch
    }

    fn queue_id(&mut self, topic: &TopicName, partition: PartitionId) -> QueueId {
        let found = self
            .queue_ids
            .get(topic)
            .and_then(|ids| ids.get(&partition));
        if let Some(&id) = found {
            return id;
        }
        let id = self.queues.len();
        self.queues.push(Queue {
            topic: topic.clone(),
            partition,
            open: None,
            waiting: VecDeque::new(),
            on_the_way: BTreeSet::new(),
            muted: false,
            held: false,
            listed: false,
            sequence: Sequence::default(),
        });
        self.queue_ids
            .entry(topic.clone())
            .or_default()
            .insert(partition, id);
        id
    }

    fn begin(&mut self, partition: PartitionId, reserved_bytes: usize, now: Instant) -> BatchHead {
        let id = self.next_batch;
        self.next_batch += 1;
        self.outstanding.insert(id);
        BatchHead {
            id,
            begun_at: now,
            reserved_bytes,
            outcome: BatchOutcome::new(partition),
        }
    }

    fn close(&mut self, id: QueueId) {
        self.close_only(id);
        self.list(id);
    }

    fn close_only(&mut self, id: QueueId) {
        let queue = &mut self.queues[id];
        if let Some(open) = queue.open.take() {
            queue.waiting.push_back(ClosedBatch {
                records: open.builder.record_count(),
                stamp: None,
                content: Content::Open(open.builder),
                head: open.head,
                attempts: 0,
                maybe_stored: false,
                last_error: None,
            });
        }
    }

    fn has_room(&self, id: QueueId) -> bool {
        let queue = &self.queues[id];
        // While a failed batch waits for its next try, those after it stay behind it.
        !queue.muted
            && !queue.held
            && queue.on_the_way.len() < self.limits.in_flight_per_partition_max
    }

    fn has_batch(&self, id: QueueId) -> bool {
        let queue = &self.queues[id];
        !queue.waiting.is_empty() || (queue.open.is_some() && self.limits.linger.is_zero())
    }

    fn list(&mut self, id: QueueId) {
        if self.has_batch(id) && !self.queues[id].listed && self.has_room(id) {
            self.queues[id].listed = true;
            self.sendable.push_back(id);
        }
    }
}

/// What adding a record did.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) future: DeliveryFuture,
    /// Whether the driver has something new to do.
    pub(crate) wake: bool,
}

#[cfg(test)]
mod tests;
