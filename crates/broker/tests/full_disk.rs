//! A disk without any free space: what is there can be read and deleted, and it heals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use support::{append, config, create, new_topic, read_all, seams, try_open};
use tidelog_broker::{Broker, BrokerConfig, Facts, OffsetSpec};
use tidelog_disk::{Disk, DiskOp};
use tidelog_record::Offset;
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

/// A directory with records in it, as a clean stop, a kill or power loss left it.
async fn prepared(how: &str) -> SimDisk {
    let disk = SimDisk::new(7);
    let broker = try_open(&disk).unwrap();
    create(&broker, "t", 2).await.unwrap();
    create(&broker, "other", 1).await.unwrap();
    for value in ["a", "b", "c"] {
        append(&broker, "t", value).await.unwrap();
    }
    match how {
        "stop" => broker.stop().await.unwrap(),
        "kill" => disk.kill(),
        _ => disk.crash(),
    }
    drop(broker);
    disk
}

fn values(records: &[(u64, String)]) -> Vec<&str> {
    records.iter().map(|(_, value)| value.as_str()).collect()
}

#[tokio::test]
async fn a_broker_starts_on_a_full_disk_and_heals_without_a_restart() {
    for how in ["stop", "kill", "crash"] {
        // With the reserve that is refused by itself, and without, by the disk.
        for free_bytes_min in [64 << 20, 0] {
            let disk = prepared(how).await;
            let config = || BrokerConfig {
                free_bytes_min,
                ..config()
            };
            let mut kept = vec!["a", "b", "c"];
            for start in 0..4 {
                disk.set_free_bytes(Some(0));
                let what = format!("{how}, {free_bytes_min}, start {start}");
                let broker =
                    Broker::open(config(), seams(&disk)).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(broker.health().faults, Vec::<String>::new(), "{what}");
                let read = read_all(&broker, "t", 0).await.unwrap();
                assert_eq!(values(&read), kept, "{what}");
                let big = "x".repeat(100_000);
                let refused = append(&broker, "t", &big).await.unwrap_err();
                assert_eq!(refused.reason(), "STORAGE_FULL", "{what}");
                let refused = create(&broker, "more", 1).await.unwrap_err();
                assert_eq!(refused.reason(), "STORAGE_FULL", "{what}");

                if start == 1 {
                    let set = BTreeMap::from([("retention.ms".to_owned(), "3600000".to_owned())]);
                    let altered = broker.alter_topic("t", set, Vec::new(), false).await;
                    altered.unwrap_or_else(|e| panic!("{what}: {e}"));
                    let handle = broker.partition("t", 0).unwrap();
                    let to = OffsetSpec::Offset(Offset::new(1).unwrap());
                    handle.delete_records(to).await.unwrap();
                    kept = vec!["b", "c"];
                }
                if start == 2 {
                    broker.delete_topic("other").await.unwrap();
                    assert!(disk.free_bytes(Path::new("/")).unwrap() > 0, "{what}");
                }
                if start == 3 {
                    disk.set_free_bytes(None);
                    append(&broker, "t", "d").await.unwrap();
                    kept.push("d");
                    let read = read_all(&broker, "t", 0).await.unwrap();
                    assert_eq!(values(&read), kept, "{what}");
                    create(&broker, "more", 1).await.unwrap();
                }
                broker.stop().await.unwrap();
            }
            let broker = try_open(&disk).unwrap();
            assert_eq!(values(&read_all(&broker, "t", 0).await.unwrap()), kept);
        }
    }
}

/// As on a directory of an earlier version, or where a kill came between a step of the log and its
/// room: the partition is not faulted.
#[tokio::test]
async fn an_epoch_without_space_leaves_a_partition_readable_until_the_next_append() {
    let disk = prepared("stop").await;
    for name in ["t-0", "__cluster_metadata-0"] {
        let path = format!("/srv/data/{name}/00000000000000000000.log");
        let path = Path::new(&path);
        let used = disk.contents(path);
        // A batch ends with a record without headers: one zero.
        let used = used.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 2;
        disk.truncate_file(path, used);
    }
    disk.fail_nth(
        OpFilter::op(DiskOp::Reserve),
        1,
        InjectedError::Full,
        FailMode::Forever,
    );
    let broker = try_open(&disk).unwrap();
    assert_eq!(broker.health().faults, Vec::<String>::new());
    let refused = append(&broker, "t", "d").await.unwrap_err();
    assert_eq!(refused.reason(), "STORAGE_FULL");
    let refused = create(&broker, "more", 1).await.unwrap_err();
    assert_eq!(refused.reason(), "STORAGE_FULL");
    let read = read_all(&broker, "t", 0).await.unwrap();
    assert_eq!(values(&read), ["a", "b", "c"]);
    // Nor does whoever deletes wait for ever, as retention does for all partitions.
    let handle = broker.partition("t", 0).unwrap();
    let to = OffsetSpec::Offset(Offset::new(1).unwrap());
    let deleted = tokio::time::timeout(Duration::from_secs(30), handle.delete_records(to)).await;
    assert_eq!(deleted.unwrap().unwrap_err().reason(), "STORAGE_FULL");

    disk.stop_failing();
    assert_eq!(append(&broker, "t", "d").await.unwrap().get(), 3);
    create(&broker, "more", 1).await.unwrap();
    let described = broker.describe_topic("t", false).unwrap();
    // The power goes: what was acknowledged under the new epoch is there.
    disk.crash();
    drop(broker);
    let broker = try_open(&disk).unwrap();
    let read = read_all(&broker, "t", 0).await.unwrap();
    assert_eq!(values(&read), ["a", "b", "c", "d"]);
    let epoch = |described: &tidelog_broker::TopicDescription| described.partitions[0].leader_epoch;
    let again = broker.describe_topic("t", false).unwrap();
    assert!(epoch(&again) > epoch(&described));
}

/// Deleting records needs no space even where appends have taken all there was.
#[tokio::test]
async fn records_are_deleted_on_a_disk_that_appends_have_filled() {
    let disk = prepared("stop").await;
    let config = BrokerConfig {
        free_bytes_min: 0,
        ..config()
    };
    let broker = Broker::open(config, seams(&disk)).unwrap();
    let small = new_topic("small", 1, &[("segment.bytes", "1048576")]);
    broker.create_topic(small).await.unwrap();
    disk.set_free_bytes(Some(3 << 20));
    let value = "x".repeat(10_000);
    let refused = loop {
        if let Err(e) = append(&broker, "small", &value).await {
            break e;
        }
    };
    assert_eq!(refused.reason(), "STORAGE_FULL");
    let handle = broker.partition("small", 0).unwrap();
    let start = handle.delete_records(OffsetSpec::Latest).await.unwrap();
    assert!(start > Offset::ZERO);
    append(&broker, "small", &value).await.unwrap();
    broker.stop().await.unwrap();
}
