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
use crate::ClientError;

/// Which queue: they are never removed.
pub(crate) type QueueId = usize;

/// How batches are closed and how many may be on their way.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) compression: Compression,
    pub(crate) linger: Duration,
    pub(crate) in_flight_max: usize,
    pub(crate) in_flight_per_partition_max: usize,
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
    /// Batches on their way, in all queues.
    in_flight: usize,
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
    in_flight: usize,
    muted: bool,
    listed: bool,
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
            Content::Open(builder) => builder.build()?,
            Content::Built(bytes) => bytes,
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
            in_flight: 0,
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

    /// The next batch that may be sent, with its queue, topic and partition.
    pub(crate) fn next_to_send(&mut self) -> Option<(QueueId, ClosedBatch)> {
        while self.in_flight < self.limits.in_flight_max {
            let id = self.sendable.pop_front()?;
            self.queues[id].listed = false;
            if !self.has_room(id) {
                continue;
            }
            if self.queues[id].waiting.is_empty() && self.limits.linger.is_zero() {
                self.close_only(id);
            }
            let queue = &mut self.queues[id];
            let Some(batch) = queue.waiting.pop_front() else {
                continue;
            };
            queue.in_flight += 1;
            self.in_flight += 1;
            self.list(id);
            return Some((id, batch));
        }
        None
    }

    /// The topic and partition of a queue.
    pub(crate) fn place(&self, id: QueueId) -> (TopicName, PartitionId) {
        let queue = &self.queues[id];
        (queue.topic.clone(), queue.partition)
    }

    /// A batch on its way came to an end.
    pub(crate) fn landed(&mut self, id: QueueId) {
        self.queues[id].in_flight -= 1;
        self.in_flight -= 1;
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

    /// Whether there may be a batch to send now.
    pub(crate) fn has_sendable(&self) -> bool {
        !self.sendable.is_empty() && self.in_flight < self.limits.in_flight_max
    }

    /// Whether there are batches that are not settled.
    pub(crate) fn has_outstanding(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// Whether something waits to be sent, now or later.
    pub(crate) fn has_unsent(&self) -> bool {
        self.outstanding.len() > self.in_flight
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
            in_flight: 0,
            muted: false,
            listed: false,
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
        !queue.muted && queue.in_flight < self.limits.in_flight_per_partition_max
    }

    fn list(&mut self, id: QueueId) {
        let queue = &self.queues[id];
        let has_batch =
            !queue.waiting.is_empty() || (queue.open.is_some() && self.limits.linger.is_zero());
        if has_batch && !queue.listed && self.has_room(id) {
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
mod tests {
    use super::*;

    fn accumulator(linger_ms: u64, per_partition: usize) -> Accumulator {
        Accumulator::new(Limits {
            compression: Compression::None,
            linger: Duration::from_millis(linger_ms),
            in_flight_max: 10,
            in_flight_per_partition_max: per_partition,
        })
    }

    fn push(accumulator: &mut Accumulator, partition: u32, len: usize) -> Pushed {
        let topic = TopicName::new("t").unwrap();
        let record = ProducerRecord::new(topic).value(vec![0; len]);
        let partition = PartitionId::new(partition);
        accumulator
            .push(&record, partition, Timestamp::NONE, len, 1000)
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_is_closed_and_an_open_one_lingers() {
        let now = Instant::now();
        let mut accumulator = accumulator(5, 1);
        assert!(
            push(&mut accumulator, 0, 500).wake,
            "the driver must know when it is due"
        );
        assert!(accumulator.next_to_send().is_none());
        let second = push(&mut accumulator, 0, 500);
        assert!(second.wake, "the first batch is closed");
        let (_, batch) = accumulator.next_to_send().expect("the first is full");
        assert_eq!((batch.head.id, batch.head.reserved_bytes), (0, 500));
        accumulator.landed(0);

        assert!(accumulator.next_to_send().is_none());
        let due = now + Duration::from_millis(5);
        assert_eq!(accumulator.on_time(now), Some(due));
        assert_eq!(accumulator.on_time(due), None);
        assert_eq!(
            accumulator
                .next_to_send()
                .expect("it lingered enough")
                .1
                .head
                .id,
            1
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_linger_records_gather_while_others_are_on_their_way() {
        let mut accumulator = accumulator(0, 1);
        push(&mut accumulator, 0, 10);
        let (id, _) = accumulator.next_to_send().expect("at once");
        for _ in 0..5 {
            push(&mut accumulator, 0, 10);
        }
        assert!(accumulator.next_to_send().is_none(), "one at a time");
        accumulator.landed(id);
        let (_, batch) = accumulator.next_to_send().expect("the gathered ones");
        assert_eq!(batch.head.reserved_bytes, 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_batch_goes_before_later_ones() {
        let now = Instant::now();
        let mut accumulator = accumulator(0, 3);
        let mut sent = Vec::new();
        for _ in 0..3 {
            push(&mut accumulator, 0, 990);
            sent.push(accumulator.next_to_send().expect("room for three"));
        }
        push(&mut accumulator, 0, 990);
        push(&mut accumulator, 1, 990);
        // The second, then the first and the third fail.
        let until = now + Duration::from_millis(10);
        for at in [1, 0, 0] {
            let (id, batch) = sent.remove(at);
            accumulator.landed(id);
            accumulator.put_back(id, batch, Some(until));
        }
        let (other, _) = accumulator
            .next_to_send()
            .expect("the other partition goes on");
        assert_eq!(accumulator.place(other).1, PartitionId::new(1));
        assert!(
            accumulator.next_to_send().is_none(),
            "the partition is muted"
        );
        assert_eq!(accumulator.on_time(now), Some(until));
        accumulator.on_time(until);
        let ids: Vec<_> = std::iter::from_fn(|| accumulator.next_to_send())
            .map(|(_, batch)| batch.head.id)
            .collect();
        assert_eq!(ids, [0, 1, 2]);
        accumulator.landed(0);
        assert_eq!(
            accumulator
                .next_to_send()
                .expect("then the later ones")
                .1
                .head
                .id,
            3
        );
    }

    #[tokio::test(start_paused = true)]
    async fn old_batches_expire_and_flushing_waits_only_for_older_ones() {
        let now = Instant::now();
        let mut accumulator = accumulator(1000, 1);
        push(&mut accumulator, 0, 10);
        let mark = accumulator.next_batch();
        let later = now + Duration::from_secs(1);
        tokio::time::advance(later - now).await;
        push(&mut accumulator, 1, 10);
        assert!(
            accumulator
                .take_expired(now - Duration::from_secs(1))
                .is_empty()
        );
        let expired = accumulator.take_expired(now);
        assert_eq!(expired.len(), 1);
        assert!(!accumulator.is_settled_before(mark));
        accumulator.settled(expired[0].1.head.id);
        assert!(accumulator.is_settled_before(mark));
        assert!(accumulator.has_outstanding());
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_so_many_are_on_their_way() {
        let mut accumulator = accumulator(0, 1);
        for partition in 0..12 {
            push(&mut accumulator, partition, 10);
        }
        let sent = std::iter::from_fn(|| accumulator.next_to_send()).count();
        assert_eq!(sent, 10);
        accumulator.landed(3);
        assert!(accumulator.next_to_send().is_some());
    }
}
