//! A broker without sockets: topics, appends, reads, restarts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog_broker::{
    Acks, AppendError, AppendRequest, Broker, BrokerConfig, Facts, FetchPartition, FetchRequest,
    NewRecord, NewTopic, OffsetSpec, Payload, ReadError, Seams,
};
use tidelog_disk::DiskOp;
use tidelog_record::{BatchBuilder, BatchLimits, Compression, Offset, Timestamp, split_batches};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

fn seams(disk: &SimDisk) -> Seams {
    Seams {
        disk: Arc::new(disk.clone()),
        ..Seams::os()
    }
}

fn config() -> BrokerConfig {
    BrokerConfig {
        data_dir: PathBuf::from("/data"),
        shards: 2,
        ..BrokerConfig::default()
    }
}

fn open(disk: &SimDisk) -> Broker {
    Broker::open(config(), seams(disk)).unwrap()
}

async fn create(broker: &Broker, name: &str, partitions: u32) {
    let new = NewTopic {
        name: name.to_owned(),
        partitions,
        ..NewTopic::default()
    };
    broker.create_topic(new).await.unwrap();
}

fn batch(values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for (at, value) in (0..).zip(values) {
        builder
            .push(
                Timestamp::from_millis(at),
                None,
                Some(value.as_bytes()),
                &[],
            )
            .unwrap();
    }
    builder.build().unwrap()
}

async fn append(broker: &Broker, topic: &str, values: &[&str]) -> Result<Offset, AppendError> {
    let request = AppendRequest {
        topic: topic.to_owned(),
        partition: Some(0),
        acks: Acks::All,
        payload: Payload::Batch(batch(values)),
    };
    let mut parts = broker.submit(request).await?.await;
    assert_eq!(parts.len(), 1);
    parts.remove(0).result.map(|appended| appended.base_offset)
}

async fn read_all(broker: &Broker, topic: &str, partition: u32) -> Vec<String> {
    let handle = broker.partition(topic, partition).unwrap();
    let mut values = Vec::new();
    let mut from = handle.ends().log_start;
    loop {
        let data = handle.read(from, 1 << 20).await.unwrap();
        if data.batches.is_empty() {
            return values;
        }
        for part in data.batches.parts {
            for batch in split_batches(part, 1 << 20) {
                for record in batch.unwrap().records(&BatchLimits::default()).unwrap() {
                    let value = record.unwrap().value.unwrap();
                    values.push(String::from_utf8(value.to_vec()).unwrap());
                }
            }
        }
        from = data.batches.next_offset;
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_every_kind_of_stop() {
    let disk = SimDisk::new(7);
    let mut expected = Vec::new();
    for round in 0..12 {
        let broker = open(&disk);
        if round == 0 {
            create(&broker, "orders", 2).await;
        }
        assert_eq!(
            read_all(&broker, "orders", 0).await,
            expected,
            "round {round}"
        );
        for n in 0..5 {
            let value = format!("{round}-{n}");
            let offset = append(&broker, "orders", &[&value, "second"])
                .await
                .unwrap();
            assert_eq!(offset.get(), expected.len() as u64);
            expected.extend([value, "second".to_owned()]);
        }
        assert_eq!(read_all(&broker, "orders", 0).await, expected);
        match round % 3 {
            0 => broker.stop().await.unwrap(),
            1 => disk.kill(),
            _ => disk.crash(),
        }
    }
}

/// After a clean stop no log is recovered, which shows in what is not synced; and a stop is not
/// clean for a log that was not there to be closed.
#[tokio::test]
async fn only_after_a_clean_stop_nothing_is_recovered() {
    let disk = SimDisk::new(5);
    let broker = open(&disk);
    create(&broker, "t", 1).await;
    append(&broker, "t", &["a"]).await.unwrap();
    broker.stop().await.unwrap();
    drop(broker);
    let recovers = |disk: &SimDisk| {
        let filter = OpFilter::op(DiskOp::SyncDir).on("t-0");
        disk.fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
        let broker = open(disk);
        disk.stop_failing();
        let is_faulted = !broker.health().faults.is_empty();
        (broker, is_faulted)
    };
    let (broker, recovered) = recovers(&disk);
    assert!(!recovered, "it was closed");
    append(&broker, "t", &["b"]).await.unwrap();
    disk.kill();
    drop(broker);
    let (broker, recovered) = recovers(&disk);
    assert!(recovered, "it was not closed");
    // It did not open, so this stop does not close it.
    broker.stop().await.unwrap();
    drop(broker);
    let (broker, recovered) = recovers(&disk);
    assert!(recovered, "it still was not closed");
    drop(broker);
    disk.kill();
    let broker = open(&disk);
    assert_eq!(read_all(&broker, "t", 0).await, ["a", "b"]);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn topics_live_and_die_across_restarts() {
    let disk = SimDisk::new(8);
    let broker = open(&disk);
    create(&broker, "a", 3).await;
    create(&broker, "b", 1).await;
    append(&broker, "b", &["old"]).await.unwrap();
    let set = BTreeMap::from([("retention.ms".to_owned(), "1000".to_owned())]);
    broker.alter_topic("a", set, vec![], false).await.unwrap();
    broker.add_partitions("a", 5).await.unwrap();
    broker.delete_topic("b").await.unwrap();
    assert_eq!(
        append(&broker, "b", &["x"]).await.unwrap_err().reason(),
        "TOPIC_NOT_FOUND"
    );
    create(&broker, "b", 1).await;
    assert_eq!(read_all(&broker, "b", 0).await, Vec::<String>::new());
    disk.crash();

    let broker = open(&disk);
    let topics = broker.topics();
    let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["__cluster_metadata", "a", "b"]);
    assert_eq!(topics[1].partitions, 5);
    assert_eq!(topics[1].settings["retention.ms"], "1000");
    let described = broker.describe_topic("a", true).unwrap();
    assert_eq!(described.partitions.len(), 5);
    assert!(
        described
            .partitions
            .iter()
            .all(|partition| partition.fault.is_none())
    );
    assert_eq!(read_all(&broker, "b", 0).await, Vec::<String>::new());
    assert!(
        !disk
            .files()
            .iter()
            .any(|path| path.to_string_lossy().contains("deleted"))
    );
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn records_are_spread_by_key_and_answered_by_partition() {
    let disk = SimDisk::new(9);
    let broker = open(&disk);
    create(&broker, "keyed", 6).await;
    let record = |key: &'static str, value: &'static str| NewRecord {
        key: Some(Bytes::from_static(key.as_bytes())),
        value: Some(Bytes::from_static(value.as_bytes())),
        ..NewRecord::default()
    };
    let request = AppendRequest {
        topic: "keyed".to_owned(),
        partition: None,
        acks: Acks::All,
        payload: Payload::Records {
            records: vec![record("us", "1"), record("nc", "2"), record("us", "3")],
            compression: Compression::Lz4,
            producer: None,
        },
    };
    let parts = broker.submit(request).await.unwrap().await;
    let mut indexes: Vec<_> = parts
        .iter()
        .flat_map(|part| part.record_indexes.clone())
        .collect();
    indexes.sort_unstable();
    assert_eq!(indexes, [0, 1, 2]);
    let us = parts
        .iter()
        .find(|part| part.record_indexes.contains(&0))
        .unwrap();
    assert_eq!(us.record_indexes, [0, 2]);
    assert_eq!(read_all(&broker, "keyed", us.partition).await, ["1", "3"]);
}

#[tokio::test]
async fn a_fetch_waits_for_an_append() {
    let disk = SimDisk::new(10);
    let broker = open(&disk);
    create(&broker, "t", 1).await;
    let request = FetchRequest {
        partitions: vec![FetchPartition {
            topic: "t".to_owned(),
            partition: 0,
            offset: 0,
            bytes_max: 1 << 20,
        }],
        bytes_min: 1,
        bytes_max: 1 << 20,
        wait_max: Duration::from_secs(60),
        from_replica: false,
    };
    let anything = |bytes_max| async move { (bytes_max, ()) };
    let fetch = broker.fetch(request.clone(), anything);
    let ((fetched, _), appended) = tokio::join!(fetch, append(&broker, "t", &["x"]));
    appended.unwrap();
    assert!(!fetched[0].result.as_ref().unwrap().batches.is_empty());

    let mut past = request;
    past.partitions[0].offset = 2;
    let (fetched, _) = broker.fetch(past, anything).await;
    let Err(error) = &fetched[0].result else {
        panic!("past the end")
    };
    assert!(
        matches!(error, ReadError::OutOfRange { requested: 2, .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("starts at 0") && text.contains("high watermark is 1"),
        "{text}"
    );
}

#[tokio::test]
async fn deleting_records_moves_the_start_for_good() {
    let disk = SimDisk::new(11);
    let broker = open(&disk);
    create(&broker, "t", 1).await;
    for value in ["a", "b", "c"] {
        append(&broker, "t", &[value]).await.unwrap();
    }
    let handle = broker.partition("t", 0).unwrap();
    let start = handle
        .delete_records(OffsetSpec::BeforeLatest(1))
        .await
        .unwrap();
    assert_eq!(start.get(), 2);
    disk.crash();
    let broker = open(&disk);
    assert_eq!(read_all(&broker, "t", 0).await, ["c"]);
    let handle = broker.partition("t", 0).unwrap();
    let e = handle
        .delete_records(OffsetSpec::Offset(Offset::new(9).unwrap()))
        .await
        .unwrap_err();
    assert_eq!(e.reason(), "OFFSET_OUT_OF_RANGE");
}

#[tokio::test]
async fn after_a_failed_sync_nothing_more_is_taken_and_what_was_durable_is_read() {
    let disk = SimDisk::new(12);
    let broker = open(&disk);
    create(&broker, "t", 1).await;
    append(&broker, "t", &["safe"]).await.unwrap();
    disk.fail_nth(
        OpFilter::op(DiskOp::Sync).on(".log"),
        1,
        InjectedError::Io,
        FailMode::Once,
    );
    let e = append(&broker, "t", &["lost?"]).await.unwrap_err();
    assert_eq!(e.reason(), "OUTCOME_UNKNOWN");
    let e = append(&broker, "t", &["refused"]).await.unwrap_err();
    assert_eq!(e.reason(), "PARTITION_FAULTED");
    assert_eq!(read_all(&broker, "t", 0).await, ["safe"]);
    assert_eq!(broker.health().faults.len(), 1);
    assert!(
        broker
            .metrics_text()
            .contains("tidelog_partitions_faulted 1")
    );
}

#[tokio::test]
async fn two_brokers_never_share_a_directory() {
    let disk = SimDisk::new(13);
    let broker = open(&disk);
    let e = Broker::open(config(), seams(&disk)).unwrap_err();
    assert!(e.to_string().contains("in use"), "{e}");
    broker.stop().await.unwrap();
}
