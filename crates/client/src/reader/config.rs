//! What a reader reads, and what it gives.

use std::time::Duration;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_record::{BatchLimits, Header, Offset, PartitionId, Timestamp, TopicName};

use crate::Backoff;

/// An offset in a partition, or by what the broker shall look one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// This offset.
    Offset(Offset),
    /// The log start offset: the first record there is.
    Earliest,
    /// The high watermark: behind the last readable record.
    Latest,
    /// The first record with this timestamp or a later one; the high watermark when there is none.
    Time(Timestamp),
    /// So many records before the high watermark, but not below the log start offset.
    BeforeLatest(u64),
}

impl From<OffsetSpec> for v1::OffsetSpec {
    fn from(spec: OffsetSpec) -> Self {
        use v1::offset_spec::At;
        Self {
            at: Some(match spec {
                OffsetSpec::Offset(offset) => At::Offset(offset.get()),
                OffsetSpec::Earliest => At::Earliest(true),
                OffsetSpec::Latest => At::Latest(true),
                OffsetSpec::Time(time) => At::TimestampMs(time.millis()),
                OffsetSpec::BeforeLatest(records) => At::BeforeLatest(records),
            }),
        }
    }
}

/// A partition that begins and ends elsewhere than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartAt {
    /// The partition.
    pub partition: PartitionId,
    /// Where to begin; `None`: as the configuration says for all.
    pub from: Option<OffsetSpec>,
    /// Where to end, exclusive; `None`: as the configuration says for all.
    pub to: Option<OffsetSpec>,
}

impl From<PartitionId> for StartAt {
    fn from(partition: PartitionId) -> Self {
        Self {
            partition,
            from: None,
            to: None,
        }
    }
}

/// What a [`crate::Reader`] reads and how.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// The topic.
    pub topic: TopicName,
    /// Which partitions; empty: all.
    pub partitions: Vec<StartAt>,
    /// Where to begin. The earliest record by default.
    pub from: OffsetSpec,
    /// Where to end, exclusive. `None`, the default: without `follow` the high watermark at the
    /// start, with it never.
    pub to: Option<OffsetSpec>,
    /// Whether to wait for new records at the end. Not by default.
    pub follow: bool,
    /// Whether to read from the broker that is connected too where it has a replica and does not
    /// lead: up to the high watermark that it knows, which may be an older one. Not by default.
    pub read_replica: bool,
    /// How many bytes of batches brokers may send ahead of what the application has taken: those
    /// that are read from at the same time share it. 8 MiB by default; at least 64 KiB each.
    pub credit_bytes: u64,
    /// About how many bytes the broker shall send in one message. 1 MiB by default.
    pub message_bytes: u32,
    /// Limits of what is decoded. A batch can be as large as a message of the client, and 64 MiB
    /// decompressed, by default.
    pub limits: Option<BatchLimits>,
    /// How long to go on trying to read a partition that gets no further, because the connection is
    /// lost or nobody leads it. 60 s by default.
    pub retry_timeout: Duration,
    /// How long a broker may say nothing, not even that it is alive, before the stream is
    /// given up. 45 s by default, three of its heartbeats.
    pub silence_timeout: Duration,
    /// How long to wait before trying again.
    pub backoff: Backoff,
}

impl ReaderConfig {
    /// All of a topic that there is now.
    pub fn new(topic: TopicName) -> Self {
        Self {
            topic,
            partitions: Vec::new(),
            from: OffsetSpec::Earliest,
            to: None,
            follow: false,
            read_replica: false,
            credit_bytes: 8 * 1024 * 1024,
            message_bytes: 1024 * 1024,
            limits: None,
            retry_timeout: Duration::from_secs(60),
            silence_timeout: Duration::from_secs(45),
            backoff: Backoff::default(),
        }
    }
}

/// Where one partition is read from and to, as the broker looked it up at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRange {
    /// The partition.
    pub partition: PartitionId,
    /// The first offset.
    pub from: Offset,
    /// Exclusive; `None` when the partition is followed without an end.
    pub to: Option<Offset>,
    /// When reading began.
    pub high_watermark: Offset,
    /// When reading began.
    pub log_start_offset: Offset,
}

/// A record that was read. Its bytes share the memory of the message it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// In which partition it is.
    pub partition: PartitionId,
    /// Its place there.
    pub offset: Offset,
    /// When it came to be, or was appended in topics with `message.timestamp.type=LogAppendTime`.
    pub timestamp: Timestamp,
    /// What it is about; `None` is null.
    pub key: Option<Bytes>,
    /// Its content; `None` is null.
    pub value: Option<Bytes>,
    /// Names and values beside the content, in the producer's order; names can repeat.
    pub headers: Vec<Header>,
}
