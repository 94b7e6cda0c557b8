//! A data directory of a broker from before its partitions were Raft groups opens, and all it had is
//! there.
//!
//! `before_raft/` holds the files of one that was killed, each without the zeros at its end: `LENGTHS`
//! tells how long it was, and `~` in a name stands for `/`. Topic `events` with two partitions got 40
//! records twice, `event 1` to `event 40`, with a clean stop and a start in between; then partition 0
//! was trimmed below offset 5. Topic `settings` is compacted and got the 40 records once. Producers
//! were idempotent.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use support::{append, create, new_topic, read_all};
use tidelog_broker::{Broker, BrokerConfig, Seams, StartError};

fn restore(to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/before_raft");
    let lengths = std::fs::read_to_string(from.join("LENGTHS")).unwrap();
    for line in lengths.lines() {
        let (len, name) = line.split_once(' ').unwrap();
        let mut content = std::fs::read(from.join(name)).unwrap();
        content.resize(len.parse().unwrap(), 0);
        let path = to.join(name.replace('~', "/"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

fn start(data_dir: &Path) -> Broker {
    let config = BrokerConfig {
        data_dir: data_dir.to_owned(),
        ..BrokerConfig::default()
    };
    let clock = Seams::os().clock;
    let began = clock.monotonic();
    loop {
        match Broker::open(config.clone(), Seams::os()) {
            Ok(broker) => return broker,
            // The threads of one that was dropped come to their end.
            Err(StartError::Locked(_)) if clock.monotonic() < began + Duration::from_secs(20) => {
                std::thread::yield_now();
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn epochs(broker: &Broker) -> Vec<u32> {
    let topic = broker.describe_topic("events", false).unwrap();
    let epochs = topic.partitions.iter().map(|p| p.leader_epoch.get());
    epochs.collect()
}

/// What the topic has, counted.
async fn counted(broker: &Broker, topic: &str, partitions: u32) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for partition in 0..partitions {
        for (_, value) in read_all(broker, topic, partition).await.unwrap() {
            *counted.entry(value).or_default() += 1;
        }
    }
    counted
}

#[tokio::test]
async fn a_directory_from_before_raft_opens_with_all_it_had() {
    let dir = tempfile::tempdir().unwrap();
    restore(dir.path());
    let broker = start(dir.path());
    assert_eq!(broker.health().faults, Vec::<String>::new());
    let ends = |number| {
        let ends = broker.partition("events", number).unwrap().ends();
        (ends.log_start.get(), ends.high_watermark.get())
    };
    assert_eq!((ends(0), ends(1)), ((5, 32), (0, 48)));
    let events = counted(&broker, "events", 2).await;
    // What lies below the log start had been trimmed: five records of the first time.
    assert_eq!(events.len(), 40);
    assert_eq!(events.values().sum::<usize>(), 75);
    assert_eq!(counted(&broker, "settings", 1).await.len(), 40);
    // Begun as 6 and 7 before.
    assert_eq!(epochs(&broker), [8, 8]);

    let next = append(&broker, "events", "new").await.unwrap();
    assert_eq!(next.get(), 32);
    create(&broker, "more", 3).await.unwrap();
    let wrong = broker.create_topic(new_topic("events", 1, &[])).await;
    assert!(wrong.is_err());
    broker.stop().await.unwrap();
    drop(broker);

    // And it goes on from there, after a clean stop and a kill.
    let broker = start(dir.path());
    assert_eq!(epochs(&broker), [9, 9]);
    assert_eq!(counted(&broker, "events", 2).await.len(), 41);
    append(&broker, "more", "first").await.unwrap();
    drop(broker);
    let broker = start(dir.path());
    assert_eq!(epochs(&broker), [10, 10]);
    assert_eq!(counted(&broker, "more", 3).await["first"], 1);
    assert_eq!(counted(&broker, "events", 2).await["new"], 1);
}
