//! Sending records.
//!
//! [`Producer::send`] chooses the partition (`topics.rs`), waits for room in the buffer, and puts
//! the record into the open batch of its partition (`accumulator.rs`). One task, the driver
//! (`driver.rs`), sends closed batches to the leaders of their partitions, over a stream to each
//! (`links.rs`, `link.rs`), sends again what failed (`failures.rs`), and settles the futures of
//! their records (`delivery.rs`). With idempotence it first asks who it is (`identity.rs`), and numbers the
//! batches of each partition (`sequence.rs`). Senders and driver share the accumulator under a lock that nobody keeps
//! across a wait.

mod accumulator;
mod config;
mod delivery;
mod driver;
mod failures;
mod identity;
mod link;
mod links;
mod sequence;
mod topics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tidelog_record::{BATCH_HEADER_LEN, BatchBuilder};
use tokio::sync::{Notify, Semaphore, watch};

pub use self::config::{Acks, ProducerConfig, ProducerRecord};
pub use self::delivery::{Delivered, DeliveryFuture};
pub use self::topics::TopicFacts;

use self::accumulator::{Accumulator, ClosedBatch, Limits};
use self::delivery::BatchDelivered;
use self::driver::Driver;
use self::topics::Topics;
use crate::{Client, ClientError, Compression, Timestamp, TopicName, clock};

/// Sends records in batches, in the background. Clones share everything; records of different
/// clones go into the same batches.
///
/// When the last clone is dropped without [`close`](Self::close), what was sent before is still
/// delivered as long as the runtime runs.
#[derive(Clone, Debug)]
pub struct Producer {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

/// What senders and the driver share.
#[derive(Debug)]
struct Shared {
    config: ProducerConfig,
    client: Client,
    topics: Topics,
    accumulator: Mutex<Accumulator>,
    /// A permit a byte.
    buffer: Semaphore,
    /// The driver has something new to do.
    work: Notify,
    /// A batch was settled.
    settled: Notify,
    /// Whether the driver is gone.
    stopped: watch::Sender<bool>,
    closed: AtomicBool,
}

impl Producer {
    /// A producer over `client`. Must be called within a Tokio runtime, on which it runs one task.
    ///
    /// Limits of zero are taken as one.
    pub fn new(client: Client, mut config: ProducerConfig) -> Self {
        config.in_flight_max = config.in_flight_max.max(1);
        config.buffer_bytes_max = config.buffer_bytes_max.clamp(1, Semaphore::MAX_PERMITS);
        let limits = Limits {
            compression: config.compression,
            linger: config.linger,
            in_flight_per_partition_max: config.in_flight_per_partition(),
            idempotent: config.is_idempotent(),
        };
        let shared = Arc::new(Shared {
            client,
            topics: Topics::new(),
            accumulator: Mutex::new(Accumulator::new(limits)),
            buffer: Semaphore::new(config.buffer_bytes_max),
            work: Notify::new(),
            settled: Notify::new(),
            stopped: watch::Sender::new(false),
            closed: AtomicBool::new(false),
            config,
        });
        tokio::spawn(Driver::new(Arc::clone(&shared)).run());
        Self {
            handle: Arc::new(Handle { shared }),
        }
    }

    /// What is known of a topic; asks the broker the first time.
    ///
    /// # Errors
    /// What describing a topic meets.
    pub async fn topic_facts(&self, topic: &TopicName) -> Result<TopicFacts, ClientError> {
        let shared = &self.handle.shared;
        shared
            .topics
            .facts(&shared.client, topic, &shared.config)
            .await
    }

    /// Takes a record to be sent, waiting for room while the buffer is full, and gives a future of
    /// what becomes of it. Calls one after the other keep their order within a partition.
    ///
    /// Dropping this future before it is ready sends nothing.
    ///
    /// # Errors
    /// The record was not taken and will not be sent: [`ClientError::RecordTooLarge`],
    /// [`ClientError::Build`], [`ClientError::BufferFull`], [`ClientError::Closed`], and what asking
    /// for the topic's partitions meets.
    pub async fn send(&self, record: ProducerRecord) -> Result<DeliveryFuture, ClientError> {
        let shared = &*self.handle.shared;
        shared.check_open()?;
        let facts = self.topic_facts(&record.topic).await?;
        let size = record.buffer_bytes();
        let timestamp = record.timestamp.unwrap_or_else(clock::now);
        let batch_bytes_max = shared.check_size(&record, timestamp, size, facts)?;
        shared.reserve(size).await?;

        // From here on nothing waits: the record is taken, or its room is given back.
        let pushed = {
            let mut accumulator = shared.accumulator.lock();
            // Under the lock, since the driver takes what is left under it when it ends.
            shared.check_open().and_then(|()| {
                let partition = shared.topics.partition(&record, facts, |sticky| {
                    let topic = &record.topic;
                    accumulator.has_open_batch_for(topic, sticky, size, batch_bytes_max)
                });
                Ok(accumulator.push(&record, partition, timestamp, size, batch_bytes_max)?)
            })
        };
        let pushed = match pushed {
            Ok(pushed) => pushed,
            Err(error) => {
                shared.buffer.add_permits(size);
                return Err(error);
            }
        };
        if pushed.wake {
            shared.work.notify_one();
        }
        Ok(pushed.future)
    }

    /// Waits until all records taken before have their end, good or bad; batches are sent without
    /// lingering. Takes the delivery timeout at most, about.
    pub async fn flush(&self) {
        let shared = &self.handle.shared;
        let mark = {
            let mut accumulator = shared.accumulator.lock();
            accumulator.close_all();
            accumulator.next_batch()
        };
        shared.work.notify_one();
        loop {
            let settled = shared.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if shared.accumulator.lock().is_settled_before(mark) {
                return;
            }
            settled.await;
        }
    }

    /// Takes no more records, waits until all have their end, and ends the stream.
    pub async fn close(&self) {
        let shared = &self.handle.shared;
        shared.closed.store(true, Ordering::Release);
        self.flush().await;
        shared.work.notify_one();
        // The sender lives in what we hold: waiting for it cannot fail.
        drop(
            shared
                .stopped
                .subscribe()
                .wait_for(|stopped| *stopped)
                .await,
        );
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.accumulator.lock().close_all();
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), ClientError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(ClientError::Closed);
        }
        Ok(())
    }

    /// How large a batch may grow, once it is known that the record can be in one.
    fn check_size(
        &self,
        record: &ProducerRecord,
        timestamp: Timestamp,
        buffer_bytes: usize,
        facts: TopicFacts,
    ) -> Result<usize, ClientError> {
        let limit = self.config.buffer_bytes_max;
        if buffer_bytes > limit || u32::try_from(buffer_bytes).is_err() {
            let limit_name = "the producer's buffer_bytes_max";
            return Err(ClientError::RecordTooLarge {
                size: buffer_bytes,
                limit,
                limit_name,
            });
        }
        let Some(limit) = facts.batch_bytes_max else {
            return Ok(self.config.batch_bytes_max);
        };
        // Compression may make it fit: then the broker decides.
        if self.config.compression == Compression::None && buffer_bytes + BATCH_HEADER_LEN > limit {
            let size = batch_len(record, timestamp);
            if size > limit {
                let limit_name = "the topic's max.message.bytes";
                return Err(ClientError::RecordTooLarge {
                    size,
                    limit,
                    limit_name,
                });
            }
        }
        Ok(self.config.batch_bytes_max.min(limit))
    }

    /// Takes room in the buffer, waiting for it at most the delivery timeout.
    async fn reserve(&self, size: usize) -> Result<(), ClientError> {
        let permits = u32::try_from(size).expect("checked by check_size");
        if let Ok(room) = self.buffer.try_acquire_many(permits) {
            room.forget();
            return Ok(());
        }
        // What lingers would keep its room although nothing can be added to it.
        self.accumulator.lock().close_all();
        self.work.notify_one();
        let after = self.config.delivery_timeout;
        match tokio::time::timeout(after, self.buffer.acquire_many(permits)).await {
            Ok(room) => {
                room.map_err(|_| ClientError::Closed)?.forget();
                Ok(())
            }
            Err(_) => {
                let buffer_bytes_max = self.config.buffer_bytes_max;
                Err(ClientError::BufferFull {
                    buffer_bytes_max,
                    after,
                })
            }
        }
    }

    /// Tells what became of a batch, and gives its room back.
    fn settle(&self, batch: ClosedBatch, result: Result<BatchDelivered, ClientError>) {
        let head = batch.head;
        head.outcome.settle(result);
        self.accumulator.lock().settled(head.id);
        self.buffer.add_permits(head.reserved_bytes);
        self.settled.notify_waiters();
    }
}

/// Bytes of a plain batch of this record alone.
fn batch_len(record: &ProducerRecord, timestamp: Timestamp) -> usize {
    let headers: Vec<(&str, Option<&[u8]>)> = record
        .headers
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_deref()))
        .collect();
    let builder = BatchBuilder::new(Compression::None);
    let (key, value) = (record.key.as_deref(), record.value.as_deref());
    builder
        .len_bytes()
        .saturating_add(builder.record_len(timestamp, key, value, &headers))
}
