//! How a producer works, and what it takes.

use std::time::Duration;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_record::{Compression, PartitionId, Timestamp, TopicName};

use crate::Backoff;

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Acks {
    /// Synced to the disk before the answer (of a majority of the replicas, once there are
    /// several).
    #[default]
    All,
    /// Written by the leader; lost if it loses power now.
    Leader,
    /// Nothing: records count as delivered once they are handed to the connection, have no offset,
    /// and errors of the broker are not told.
    None,
}

impl From<Acks> for v1::Acks {
    fn from(acks: Acks) -> Self {
        match acks {
            Acks::All => Self::All,
            Acks::Leader => Self::Leader,
            Acks::None => Self::None,
        }
    }
}

/// How a [`crate::Producer`] works.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// What an acknowledgement promises. [`Acks::All`] by default.
    pub acks: Acks,
    /// How batches are compressed. Not at all by default.
    pub compression: Compression,
    /// How long a batch waits for more records before it is sent; with zero, only while others of
    /// its partition are on their way. 5 ms by default.
    pub linger: Duration,
    /// How large a batch grows, in bytes before compression. A topic's `max.message.bytes` is kept
    /// to if it is smaller. 256 KiB by default.
    pub batch_bytes_max: usize,
    /// How many bytes of records may wait for their acknowledgement; beyond,
    /// [`crate::Producer::send`] waits. 32 MiB by default.
    pub buffer_bytes_max: usize,
    /// How many batches may be on their way to one broker at the same time. 64 by default.
    pub in_flight_max: usize,
    /// Whether a batch that is sent again is stored once: the broker gives the producer an id, and
    /// batches have sequence numbers by which it knows them again. True by default; needs
    /// [`Acks::All`], and is off with others. What is given up after the delivery timeout may have
    /// been stored all the same.
    pub idempotence: bool,
    /// How many of these may be of the same partition. `None`, the default, is 5 with idempotence,
    /// the most a broker knows again, and 1 without, which keeps records in order whatever fails.
    /// With more and without idempotence, when the broker refuses one batch for the moment and
    /// takes the next, the next one is stored first.
    pub in_flight_per_partition_max: Option<usize>,
    /// How long a record may take from the call of send to its end, retries included. 2 minutes by
    /// default.
    pub delivery_timeout: Duration,
    /// How long one request may stay without an answer before the connection is given up. 30 s by
    /// default.
    pub request_timeout: Duration,
    /// After how long without an answer it is asked whether another broker leads by now: then the
    /// batches go there instead. 1 s by default.
    pub leader_check_interval: Duration,
    /// How long to wait before trying again. Connecting, and asking for the leader, is tried at
    /// least once a second and five times a second.
    pub backoff: Backoff,
    /// After how long a topic's partition count is asked again. 5 minutes by default.
    pub topic_facts_age_max: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            compression: Compression::None,
            linger: Duration::from_millis(5),
            batch_bytes_max: 256 * 1024,
            buffer_bytes_max: 32 * 1024 * 1024,
            in_flight_max: 64,
            idempotence: true,
            in_flight_per_partition_max: None,
            delivery_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(30),
            leader_check_interval: Duration::from_secs(1),
            backoff: Backoff::default(),
            topic_facts_age_max: Duration::from_secs(300),
        }
    }
}

/// How many batches of a producer a broker knows again in a partition.
const KNOWN_AGAIN: usize = 5;

impl ProducerConfig {
    /// Whether batches get sequence numbers.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.idempotence && self.acks == Acks::All
    }

    /// How many batches of a partition may be on their way.
    pub(crate) fn in_flight_per_partition(&self) -> usize {
        let asked = self.in_flight_per_partition_max;
        if self.is_idempotent() {
            asked.unwrap_or(KNOWN_AGAIN).clamp(1, KNOWN_AGAIN)
        } else {
            asked.unwrap_or(1).max(1)
        }
    }
}

/// A record to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerRecord {
    /// To which topic.
    pub topic: TopicName,
    /// To which partition. `None`: by the key's murmur2 hash, as Kafka's clients do; without a key,
    /// to one partition until its batch is full or sent, then to another.
    pub partition: Option<PartitionId>,
    /// What it is about; `None` is null.
    pub key: Option<Bytes>,
    /// Its content; `None` is null, a tombstone in compacted topics.
    pub value: Option<Bytes>,
    /// Names and values beside the content, in order; names can repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// When it came to be. `None`: now.
    pub timestamp: Option<Timestamp>,
}

impl ProducerRecord {
    /// A record without key, value and headers.
    pub fn new(topic: TopicName) -> Self {
        Self {
            topic,
            partition: None,
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp: None,
        }
    }

    /// The record with this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The record with this value.
    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// The record for this partition.
    #[must_use]
    pub fn partition(mut self, partition: PartitionId) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The record with this timestamp.
    #[must_use]
    pub fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The record with one header more.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// Bytes that it takes in the buffer: its fields, and room for what encoding adds to each.
    pub(crate) fn buffer_bytes(&self) -> usize {
        const RECORD_OVERHEAD: usize = 32;
        const HEADER_OVERHEAD: usize = 10;
        let content =
            self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len);
        self.headers
            .iter()
            .fold(RECORD_OVERHEAD + content, |sum, (name, value)| {
                sum + HEADER_OVERHEAD + name.len() + value.as_ref().map_or(0, Bytes::len)
            })
    }
}
