//! What the tests of a broker share.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

pub(crate) mod cluster;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tidelog_broker::{
    Acks, AppendError, AppendRequest, Broker, BrokerConfig, Clock, NewRecord, NewTopic, Payload,
    PendingAppend, ReadError, Seams, StartError, TopicError, TopicSummary,
};
use tidelog_record::{BatchLimits, Compression, Offset, Timestamp, split_batches};
use tidelog_sim::SimDisk;

pub(crate) fn config() -> BrokerConfig {
    BrokerConfig {
        data_dir: PathBuf::from("/srv/data"),
        shards: 2,
        offsets_partitions: 3,
        ..BrokerConfig::default()
    }
}

pub(crate) fn seams(disk: &SimDisk) -> Seams {
    Seams {
        disk: Arc::new(disk.clone()),
        ..Seams::os()
    }
}

pub(crate) fn try_open(disk: &SimDisk) -> Result<Broker, StartError> {
    Broker::open(config(), seams(disk))
}

pub(crate) fn open(disk: &SimDisk) -> Broker {
    try_open(disk).unwrap()
}

/// A clock that a test sets. The threads that write logs can be held up at it, or made to panic.
#[derive(Debug, Default)]
pub(crate) struct FakeClock {
    pub(crate) millis: AtomicI64,
    /// How much of that did not pass: it jumped.
    pub(crate) jumped: AtomicI64,
    pub(crate) gate: parking_lot::Mutex<()>,
}

impl FakeClock {
    /// The wall clock is set to another time.
    pub(crate) fn jump(&self, millis: i64) {
        self.jumped.fetch_add(millis, Ordering::SeqCst);
        self.millis.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        let thread = std::thread::current();
        if thread
            .name()
            .is_some_and(|name| name.starts_with("tidelog-shard"))
        {
            drop(self.gate.lock());
        }
        Timestamp::from_millis(self.millis.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        let passed = self.millis.load(Ordering::SeqCst) - self.jumped.load(Ordering::SeqCst);
        Duration::from_millis(u64::try_from(passed).unwrap_or(0))
    }
}

pub(crate) fn new_topic(name: &str, partitions: u32, settings: &[(&str, &str)]) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        partitions,
        settings: settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        validate_only: false,
    }
}

pub(crate) async fn create(
    broker: &Broker,
    name: &str,
    partitions: u32,
) -> Result<TopicSummary, TopicError> {
    broker.create_topic(new_topic(name, partitions, &[])).await
}

pub(crate) fn record(key: Option<&str>, value: &str) -> NewRecord {
    NewRecord {
        key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..NewRecord::default()
    }
}

pub(crate) async fn submit(
    broker: &Broker,
    topic: &str,
    partition: Option<u32>,
    acks: Acks,
    records: Vec<NewRecord>,
) -> Result<PendingAppend, AppendError> {
    let payload = Payload::Records {
        records,
        compression: Compression::None,
        producer: None,
    };
    let topic = topic.to_owned();
    let request = AppendRequest {
        topic,
        partition,
        acks,
        payload,
    };
    broker.submit(request).await
}

pub(crate) async fn append(
    broker: &Broker,
    topic: &str,
    value: &str,
) -> Result<Offset, AppendError> {
    let pending = submit(broker, topic, Some(0), Acks::All, vec![record(None, value)]);
    let mut parts = pending.await?.await;
    parts.remove(0).result.map(|appended| appended.base_offset)
}

/// All records from the log start to the high watermark.
pub(crate) async fn read_all(
    broker: &Broker,
    topic: &str,
    partition: u32,
) -> Result<Vec<(u64, String)>, ReadError> {
    let handle = broker.partition(topic, partition)?.from_replica(true);
    let mut values = Vec::new();
    let mut from = handle.ends().log_start;
    loop {
        let data = handle.read(from, 1 << 20).await?;
        if data.batches.is_empty() {
            return Ok(values);
        }
        for part in data.batches.parts {
            for batch in split_batches(part, 1 << 20) {
                let batch = batch.unwrap();
                let base = Offset::from_wire(batch.header().base_offset).unwrap();
                for record in batch.records(&BatchLimits::default()).unwrap() {
                    let record = record.unwrap();
                    let offset = record.offset(base).unwrap();
                    let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
                    if offset >= from {
                        values.push((offset.get(), value));
                    }
                }
            }
        }
        from = data.batches.next_offset;
    }
}

pub(crate) fn in_flight(broker: &Broker) -> String {
    let text = broker.metrics_text();
    let line = text
        .lines()
        .find(|line| line.starts_with("tidelog_in_flight_bytes"));
    line.unwrap().to_owned()
}
