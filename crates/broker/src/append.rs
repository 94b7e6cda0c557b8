//! Appending: admit by bytes, choose the partition, check, hand to the shard, wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use tidelog_controller::TimestampPolicy;
use tidelog_record::{
    BatchBuilder, BatchHeader, BatchLimits, Compression, Offset, ProducedBatch, Timestamp,
    partition_for_key, validate_produced,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::Broker;
use crate::error::{AppendError, LookupError};
use crate::mailbox::{Append, Command};
use crate::partition::Partition;

/// How long a request may wait for room before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long an append may take before its outcome is given up as unknown.
const APPEND_WAIT_MAX: Duration = Duration::from_secs(30);
/// How many bytes without a key go to one partition before the next one is chosen.
const STICKY_BYTES: u64 = 1 << 20;

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Synced to the disk before the answer (of a majority of the replicas, once there are
    /// several).
    All,
    /// Written by the leader.
    Leader,
    /// Nothing.
    None,
}

/// Something to be appended.
#[derive(Clone, Debug)]
pub struct AppendRequest {
    /// To which topic.
    pub topic: String,
    /// To which partition; otherwise chosen by key, or one that stays the same for a while.
    pub partition: Option<u32>,
    /// When to answer.
    pub acks: Acks,
    /// What.
    pub payload: Payload,
}

/// What is to be appended.
#[derive(Clone, Debug)]
pub enum Payload {
    /// One record batch, magic v2. It is checked and stored as it is.
    Batch(Bytes),
    /// Records, for the broker to put into batches: one for each partition.
    Records {
        /// The records.
        records: Vec<NewRecord>,
        /// How their batches are compressed.
        compression: Compression,
        /// Whose they are, if they are to be stored once however often they are sent: only with a
        /// partition.
        producer: Option<ProducerStamp>,
    },
}

/// What makes a batch known again: who sends it, and as which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerStamp {
    /// The id from [`Broker::init_producer`].
    pub id: i64,
    /// The producer's epoch.
    pub epoch: i16,
    /// The number of the first record: the records of a producer in a partition are counted from 0.
    pub base_sequence: i32,
}

/// What a record costs in memory beside its bytes, about.
const RECORD_OVERHEAD: usize = 160;
/// The same for a header.
const HEADER_OVERHEAD: usize = 64;

/// Compressed batches above this many bytes are not checked on the threads that serve connections:
/// they may become more than a thousand times as large.
const DECOMPRESS_INLINE_MAX: usize = 1024;
/// The same for records above this many bytes that are to be compressed.
const COMPRESS_INLINE_MAX: usize = 16 * 1024;

impl Payload {
    /// What it takes in memory, in bytes, about.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Batch(bytes) => bytes.len(),
            Self::Records { records, .. } => records.iter().map(NewRecord::len_bytes).sum(),
        }
    }

    /// How much of that is not bytes of the request: what its records and headers take as such.
    pub fn overhead_bytes(&self) -> usize {
        match self {
            Self::Batch(_) => 0,
            Self::Records { records, .. } => records.iter().map(NewRecord::overhead_bytes).sum(),
        }
    }

    /// Whose it is, if it is to be stored once.
    fn producer_id(&self) -> Option<i64> {
        match self {
            Self::Batch(bytes) => {
                let header = BatchHeader::decode(bytes, bytes.len()).ok()?;
                Some(header.producer_id).filter(|id| *id >= 0)
            }
            Self::Records { producer, .. } => producer.map(|producer| producer.id),
        }
    }

    /// Whether checking it takes long: (de)compression of more than a little.
    fn is_heavy(&self) -> bool {
        match self {
            Self::Batch(bytes) => {
                bytes.len() > DECOMPRESS_INLINE_MAX
                    && BatchHeader::decode(bytes, bytes.len())
                        .and_then(|header| header.attributes.compression())
                        .is_ok_and(|compression| compression != Compression::None)
            }
            Self::Records { compression, .. } => {
                *compression != Compression::None && self.len_bytes() > COMPRESS_INLINE_MAX
            }
        }
    }
}

/// A record for the broker to put into a batch.
#[derive(Clone, Debug, Default)]
pub struct NewRecord {
    /// Its timestamp; otherwise now.
    pub timestamp: Option<Timestamp>,
    /// Its key; records with equal keys go to the same partition.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl NewRecord {
    fn overhead_bytes(&self) -> usize {
        RECORD_OVERHEAD + self.headers.len() * HEADER_OVERHEAD
    }

    fn len_bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers = self
            .headers
            .iter()
            .map(|(key, value)| key.len() + len(value));
        self.overhead_bytes() + len(&self.key) + len(&self.value) + headers.sum::<usize>()
    }
}

/// Where records were put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The offset of the first of them; the others follow without a gap.
    pub base_offset: Offset,
    /// The timestamp they got, in topics with log append time.
    pub log_append_time: Option<Timestamp>,
    /// They were stored before, at `base_offset`: this time nothing was written.
    pub duplicate: bool,
}

/// What became of the part of a request that went to one partition.
#[derive(Clone, Debug)]
pub struct PartitionAppend {
    /// The partition.
    pub partition: u32,
    /// How many records.
    pub record_count: u32,
    /// Which records of the request, when they were spread over partitions; empty for all.
    pub record_indexes: Vec<u32>,
    /// Where they are, or why they are not.
    pub result: Result<Appended, AppendError>,
}

/// An append on its way. Dropping it does not cancel it: what was submitted will be written.
pub struct PendingAppend {
    parts: Pin<Box<dyn Future<Output = Vec<PartitionAppend>> + Send>>,
    wants_answer: bool,
}

impl std::fmt::Debug for PendingAppend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingAppend").finish_non_exhaustive()
    }
}

impl PendingAppend {
    /// Whether the request asked for an answer: not with [`Acks::None`].
    pub fn wants_answer(&self) -> bool {
        self.wants_answer
    }
}

impl Future for PendingAppend {
    type Output = Vec<PartitionAppend>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.parts.as_mut().poll(cx)
    }
}

/// The part of a request that goes to one partition.
struct Part {
    partition: Arc<Partition>,
    batch: ProducedBatch,
    record_indexes: Vec<u32>,
}

impl Broker {
    /// Checks a request and hands it to the shards of its partitions. Requests to one partition
    /// are appended in the order in which their `submit` calls returned.
    ///
    /// A batch is not copied: what is written is the header, stamped, and a slice of `batch`.
    /// Waits for room when the broker holds too many bytes already, which holds back the caller
    /// and, through it, its connection.
    ///
    /// # Errors
    /// Why surely nothing was appended. What happens after the hand-over, the returned future
    /// tells.
    pub async fn submit(&self, request: AppendRequest) -> Result<PendingAppend, AppendError> {
        if self.is_stopping() {
            return Err(AppendError::Stopping);
        }
        let acks = request.acks;
        // What is surely refused needs no room.
        self.partitions_of(&request.topic)?;
        let room = Arc::new(self.room_for(request.payload.len_bytes()).await?);
        if let Some(producer_id) = request.payload.producer_id() {
            self.await_producer_id(producer_id).await;
        }
        let parts = self.checked_parts(request).await?;
        let mut pending = Vec::with_capacity(parts.len());
        for part in parts {
            let record_count = part.batch.record_count();
            let number = part.partition.number();
            let record_indexes = part.record_indexes.clone();
            let reply = match self.hand_over(part, acks, room.clone()).await {
                Err(e) if pending.is_empty() => return Err(e),
                // Earlier parts are on their way: the answer tells of each part by itself.
                reply => reply,
            };
            let broker = self.clone();
            pending.push(async move {
                let result = match reply {
                    Ok(reply) => await_reply(reply).await,
                    Err(e) => Err(e),
                };
                let result = result.map_err(|e| broker.inner.hinted(e));
                PartitionAppend {
                    partition: number,
                    record_count,
                    record_indexes,
                    result,
                }
            });
        }
        Ok(PendingAppend {
            parts: Box::pin(join_all(pending)),
            wants_answer: acks != Acks::None,
        })
    }

    async fn hand_over(
        &self,
        part: Part,
        acks: Acks,
        room: Arc<OwnedSemaphorePermit>,
    ) -> Result<oneshot::Receiver<Result<Appended, AppendError>>, AppendError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "measured for people, decides nothing"
        )]
        let since = Instant::now();
        let (reply, replied) = oneshot::channel();
        let partition = part.partition.clone();
        let log_append_time =
            partition.settings().timestamp_policy == TimestampPolicy::LogAppendTime;
        let append = Append {
            partition: part.partition,
            batch: part.batch,
            acks,
            log_append_time,
            term: None,
            reply,
            since,
            room,
        };
        if partition.shard.send(Command::Append(append)).await.is_err() {
            return Err(if self.is_stopping() {
                AppendError::Stopping
            } else {
                AppendError::Poisoned {
                    topic: partition.topic.clone(),
                    partition: partition.number(),
                    fault: "the thread that writes it has ended".to_owned(),
                }
            });
        }
        Ok(replied)
    }

    /// Takes `len` bytes of the broker's budget for appends; given back with the permit.
    async fn room_for(&self, len: usize) -> Result<OwnedSemaphorePermit, AppendError> {
        let inner = self.inner();
        let max = inner.config.in_flight_bytes_max;
        let wanted = u32::try_from(len.min(max)).unwrap_or(u32::MAX);
        let room = inner.room.clone().acquire_many_owned(wanted);
        match tokio::time::timeout(ROOM_WAIT_MAX, room).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(AppendError::Stopping),
            Err(_elapsed) => Err(AppendError::Overloaded {
                len,
                max,
                waited_ms: u64::try_from(ROOM_WAIT_MAX.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// The batches of the request, checked. What may take long is done on a thread that may be
    /// busy, as many at a time as there are cores.
    async fn checked_parts(&self, request: AppendRequest) -> Result<Vec<Part>, AppendError> {
        if !request.payload.is_heavy() {
            return self.parts(request);
        }
        let permit = self.inner().heavy_checks.clone().acquire_owned().await;
        let permit = permit.map_err(|_| AppendError::Stopping)?;
        let broker = self.clone();
        let check = move || {
            let _permit = permit;
            broker.parts(request)
        };
        match tokio::task::spawn_blocking(check).await {
            Ok(parts) => parts,
            // As if it had been checked right here.
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_cancelled) => Err(AppendError::Stopping),
        }
    }

    fn parts(&self, request: AppendRequest) -> Result<Vec<Part>, AppendError> {
        let count = self.partitions_of(&request.topic)?;
        let count = NonZeroU32::new(count).expect("a topic has one partition or more");
        match request.payload {
            Payload::Batch(bytes) => {
                let number = match request.partition {
                    Some(number) => number,
                    None => self.sticky(&request.topic, count, bytes.len()),
                };
                let partition = self.writable(&request.topic, number)?;
                let batch = checked(&partition, bytes)?;
                self.check_producer_id(batch.header().producer_id)?;
                Ok(vec![Part {
                    partition,
                    batch,
                    record_indexes: Vec::new(),
                }])
            }
            Payload::Records {
                records,
                compression,
                producer,
            } => {
                if let Some(producer) = producer {
                    self.check_producer_id(producer.id)?;
                    if request.partition.is_none() {
                        return Err(AppendError::Request(
                            "records of an idempotent producer need a partition: their sequence \
                             numbers count within one"
                                .to_owned(),
                        ));
                    }
                }
                if records.is_empty() {
                    return Err(AppendError::Request(
                        "there are no records to append".to_owned(),
                    ));
                }
                let numbers = match request.partition {
                    Some(number) => vec![number; records.len()],
                    None => self.spread(&request.topic, count, &records),
                };
                self.parts_of_records(&request.topic, &records, &numbers, compression, producer)
            }
        }
    }

    /// The partition of each record: by its key, or the sticky one.
    fn spread(&self, topic: &str, count: NonZeroU32, records: &[NewRecord]) -> Vec<u32> {
        let choose = || {
            let lens = records
                .iter()
                .map(|record| record.value.as_ref().map_or(0, Bytes::len));
            self.sticky(topic, count, lens.sum())
        };
        // Chosen once, and only where something has no key: choosing counts.
        let mut sticky = None;
        let number_of = |record: &NewRecord| match &record.key {
            Some(key) => partition_for_key(key, count).get(),
            None => *sticky.get_or_insert_with(choose),
        };
        records.iter().map(number_of).collect()
    }

    fn parts_of_records(
        &self,
        topic: &str,
        records: &[NewRecord],
        numbers: &[u32],
        compression: Compression,
        producer: Option<ProducerStamp>,
    ) -> Result<Vec<Part>, AppendError> {
        let mut by_partition: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (at, number) in (0..).zip(numbers) {
            by_partition.entry(*number).or_default().push(at);
        }
        let spread = by_partition.len() > 1;
        let now = self.inner().seams.clock.now();
        let mut parts = Vec::with_capacity(by_partition.len());
        for (number, indexes) in by_partition {
            let partition = self.writable(topic, number)?;
            let chosen = indexes.iter().map(|at| &records[*at as usize]);
            let bytes = build(chosen, compression, producer, now)
                .map_err(|e| AppendError::Request(e.to_string()))?;
            let batch = checked(&partition, bytes)?;
            let record_indexes = if spread { indexes } else { Vec::new() };
            parts.push(Part {
                partition,
                batch,
                record_indexes,
            });
        }
        Ok(parts)
    }

    fn writable(&self, topic: &str, number: u32) -> Result<Arc<Partition>, AppendError> {
        let partition = self.lookup(topic, number)?;
        if partition.topic.is_internal() {
            return Err(AppendError::InternalTopic {
                topic: partition.topic.clone(),
            });
        }
        if let Some(fault) = partition.fault() {
            if partition.has_others() {
                return Err(self.inner().not_leader(&partition).into());
            }
            let topic = partition.topic.clone();
            return Err(AppendError::Poisoned {
                topic,
                partition: number,
                fault,
            });
        }
        if !partition.answers_for_leader() && partition.leader().is_some() {
            return Err(self.inner().not_leader(&partition).into());
        }
        Ok(partition)
    }

    /// The partition for what has no key: the same one for [`STICKY_BYTES`], then the next that
    /// serves here.
    fn sticky(&self, topic: &str, count: NonZeroU32, len: usize) -> u32 {
        let count = count.get();
        let sent = self
            .inner()
            .sticky_bytes(topic)
            .fetch_add(len as u64, Ordering::Relaxed);
        let first = u32::try_from((sent / STICKY_BYTES) % u64::from(count)).unwrap_or(0);
        (0..count)
            .map(|step| (first + step) % count)
            .find(|number| {
                self.lookup(topic, *number).is_ok_and(|partition| {
                    partition.answers_for_leader() && partition.fault().is_none()
                })
            })
            .unwrap_or(first)
    }
}

/// How much went to a topic without a key, to choose the sticky partition by.
pub(crate) type StickyBytes = Arc<AtomicU64>;

fn checked(partition: &Partition, bytes: Bytes) -> Result<ProducedBatch, AppendError> {
    let settings = partition.settings();
    let max = settings.max_message_bytes as usize;
    let len = bytes.len();
    if len > max {
        return Err(AppendError::TooLarge {
            topic: partition.topic.clone(),
            len,
            max,
        });
    }
    let limits = BatchLimits {
        batch_bytes_max: max,
        keys_required: settings.cleanup.compact,
        ..BatchLimits::default()
    };
    Ok(validate_produced(bytes, &limits)?)
}

fn build<'a>(
    records: impl Iterator<Item = &'a NewRecord>,
    compression: Compression,
    producer: Option<ProducerStamp>,
    now: Timestamp,
) -> Result<Bytes, tidelog_record::BuildError> {
    let mut builder = BatchBuilder::new(compression);
    if let Some(ProducerStamp {
        id,
        epoch,
        base_sequence,
    }) = producer
    {
        builder = builder.producer(id, epoch, base_sequence);
    }
    let mut headers = Vec::new();
    for record in records {
        headers.clear();
        headers.extend(
            record
                .headers
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_deref())),
        );
        let timestamp = record.timestamp.unwrap_or(now);
        builder.push(
            timestamp,
            record.key.as_deref(),
            record.value.as_deref(),
            &headers,
        )?;
    }
    builder.build()
}

async fn await_reply(
    reply: oneshot::Receiver<Result<Appended, AppendError>>,
) -> Result<Appended, AppendError> {
    match tokio::time::timeout(APPEND_WAIT_MAX, reply).await {
        Ok(Ok(result)) => result,
        Ok(Err(_dropped)) => {
            let cause = "the thread that writes the partition has ended".to_owned();
            Err(AppendError::OutcomeUnknown { cause })
        }
        Err(_elapsed) => {
            let cause = format!("there was no answer from the disk within {APPEND_WAIT_MAX:?}");
            Err(AppendError::OutcomeUnknown { cause })
        }
    }
}

impl Broker {
    /// The partition, if its log could be opened.
    pub(crate) fn lookup(&self, topic: &str, number: u32) -> Result<Arc<Partition>, LookupError> {
        self.inner().lookup(topic, number)
    }
}
