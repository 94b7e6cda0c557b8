//! Compacted topics, as clients of a broker see them.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use support::*;
use tidelog_broker::{
    Acks, Broker, BrokerConfig, DeleteError, FetchPartition, FetchRequest, NewRecord, OffsetSpec,
    Seams,
};
use tidelog_record::{BatchLimits, Offset, split_batches};
use tidelog_sim::SimDisk;

const BEGAN: i64 = 1_780_000_000_000;
const HOUR: i64 = 3_600_000;

struct World {
    disk: SimDisk,
    clock: Arc<FakeClock>,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(FakeClock::default());
        clock.millis.store(BEGAN, Ordering::SeqCst);
        let disk = SimDisk::new(5);
        Self { disk, clock }
    }

    fn open(&self) -> Broker {
        self.open_with(config())
    }

    fn open_with(&self, config: BrokerConfig) -> Broker {
        let seams = Seams {
            clock: self.clock.clone(),
            ..seams(&self.disk)
        };
        Broker::open(config, seams).unwrap()
    }

    fn pass(&self, millis: i64) {
        self.clock.millis.fetch_add(millis, Ordering::SeqCst);
    }
}

/// On a thread of its own: it blocks.
async fn compact(broker: &Broker) {
    let broker = broker.clone();
    let run = move || broker.apply_compaction();
    tokio::task::spawn_blocking(run).await.unwrap();
}

async fn retain(broker: &Broker) {
    let broker = broker.clone();
    let run = move || broker.apply_retention();
    tokio::task::spawn_blocking(run).await.unwrap();
}

async fn create_with(broker: &Broker, settings: &[(&str, &str)]) {
    let topic = new_topic("t", 1, settings);
    broker.create_topic(topic).await.unwrap();
}

const COMPACT: (&str, &str) = ("cleanup.policy", "compact");
const SMALL: (&str, &str) = ("segment.bytes", "1048576");

fn keyed(key: &str, value: Option<&str>) -> NewRecord {
    NewRecord {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        ..NewRecord::default()
    }
}

async fn put(broker: &Broker, key: &str, value: Option<&str>) -> u64 {
    let records = vec![keyed(key, value)];
    let pending = submit(broker, "t", Some(0), Acks::All, records).await;
    let mut parts = pending.unwrap().await;
    parts.remove(0).result.unwrap().base_offset.get()
}

type Found = Vec<(u64, String, Option<String>)>;

/// All records, with the first letters of their values.
async fn all(broker: &Broker) -> Found {
    let handle = broker.partition("t", 0).unwrap();
    let mut found = Vec::new();
    let mut from = handle.ends().log_start;
    loop {
        let data = handle.read(from, 1 << 20).await.unwrap();
        let next = data.batches.next_offset;
        for part in data.batches.parts {
            for batch in split_batches(part, 1 << 24) {
                let batch = batch.unwrap();
                let base = Offset::from_wire(batch.header().base_offset).unwrap();
                for record in batch.records(&BatchLimits::default()).unwrap() {
                    let record = record.unwrap();
                    let offset = record.offset(base).unwrap();
                    let text = |bytes: Bytes| {
                        String::from_utf8(bytes[..bytes.len().min(8)].to_vec()).unwrap()
                    };
                    if offset >= from {
                        let value = record.value.map(text);
                        found.push((offset.get(), text(record.key.unwrap()), value));
                    }
                }
            }
        }
        if next == from {
            return found;
        }
        from = next;
    }
}

/// The newest value of each key.
fn table(found: &Found) -> BTreeMap<String, Option<String>> {
    found
        .iter()
        .map(|(_, key, value)| (key.clone(), value.clone()))
        .collect()
}

fn metric(broker: &Broker, name: &str) -> u64 {
    let text = broker.metrics_text();
    let line = text.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn of_each_key_the_last_record_is_kept() {
    let world = World::new();
    let broker = world.open();
    create_with(&broker, &[COMPACT, SMALL]).await;
    let long = |n: u32| format!("{n:08}{}", "x".repeat(200_000));
    for n in 0..20 {
        put(&broker, &format!("key {}", n % 3), Some(&long(n))).await;
    }
    let before = all(&broker).await;
    assert_eq!(before.len(), 20);
    assert!(metric(&broker, "tidelog_log_dirty_bytes") > 2_000_000);
    compact(&broker).await;
    let after = all(&broker).await;
    assert_eq!(table(&after), table(&before));
    assert!(after.len() < 10, "{after:?}");
    assert!(
        after.iter().all(|record| before.contains(record)),
        "offsets stay"
    );
    assert_eq!(metric(&broker, "tidelog_log_dirty_bytes"), 0);
    assert_eq!(metric(&broker, "tidelog_compactions_total"), 1);
    assert_eq!(
        metric(&broker, "tidelog_compaction_records_removed_total"),
        (before.len() - after.len()) as u64
    );
    assert!(metric(&broker, "tidelog_compaction_read_bytes_total") > 0);
    assert!(metric(&broker, "tidelog_compaction_written_bytes_total") > 0);
    // Nothing retention could find to delete, however old.
    world.pass(1000 * HOUR);
    retain(&broker).await;
    assert_eq!(all(&broker).await, after);
    broker.stop().await.unwrap();
    drop(broker);
    let broker = world.open();
    assert_eq!(all(&broker).await, after);
    drop(broker);
    world.disk.crash();
    let broker = world.open();
    assert_eq!(all(&broker).await, after);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn records_without_a_key_are_refused_and_so_is_a_trim() {
    let world = World::new();
    let broker = world.open();
    create_with(&broker, &[COMPACT]).await;
    let refused = append(&broker, "t", "keyless").await.unwrap_err();
    assert!(refused.to_string().contains("it has no key"), "{refused}");
    put(&broker, "a", Some("1")).await;
    let handle = broker.partition("t", 0).unwrap();
    let refused = handle.delete_records(OffsetSpec::Latest).await.unwrap_err();
    assert!(matches!(refused, DeleteError::Policy { .. }), "{refused}");
    let set = [("cleanup.policy".to_owned(), "compact,delete".to_owned())].into();
    broker
        .alter_topic("t", set, Vec::new(), false)
        .await
        .unwrap();
    handle.delete_records(OffsetSpec::Latest).await.unwrap();
    assert_eq!(all(&broker).await, []);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_topic_is_compacted_once_enough_of_it_is_new_or_old_enough() {
    let world = World::new();
    let broker = world.open();
    let ratio = ("min.cleanable.dirty.ratio", "0.9");
    let lag = ("max.compaction.lag.ms", "7200000");
    let young = ("min.compaction.lag.ms", "1000");
    create_with(
        &broker,
        &[COMPACT, ratio, lag, young, ("segment.ms", "60000")],
    )
    .await;
    let runs = || metric(&broker, "tidelog_compactions_total");
    let seal = || async {
        world.pass(60_001);
        retain(&broker).await;
    };
    for n in 0..4 {
        put(&broker, "a", Some(&n.to_string())).await;
    }
    compact(&broker).await;
    assert_eq!(runs(), 0, "the active segment stays");
    seal().await;
    compact(&broker).await;
    assert_eq!(runs(), 0, "younger than min.compaction.lag.ms");
    world.pass(1000);
    compact(&broker).await;
    assert_eq!(runs(), 1, "all of it is new");
    assert_eq!(
        all(&broker).await,
        [(3, "a".to_owned(), Some("3".to_owned()))]
    );
    put(&broker, "a", Some("4")).await;
    seal().await;
    world.pass(1000);
    compact(&broker).await;
    assert_eq!(runs(), 1, "only some of it is new");
    assert_eq!(all(&broker).await.len(), 2);
    world.pass(2 * HOUR);
    compact(&broker).await;
    assert_eq!(runs(), 2, "older than max.compaction.lag.ms");
    assert_eq!(
        all(&broker).await,
        [(4, "a".to_owned(), Some("4".to_owned()))]
    );
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn tombstones_are_kept_for_their_time() {
    let world = World::new();
    let broker = world.open();
    let settings = [
        COMPACT,
        ("segment.ms", "1000"),
        ("delete.retention.ms", "3600000"),
    ];
    create_with(&broker, &settings).await;
    put(&broker, "a", Some("1")).await;
    put(&broker, "a", None).await;
    let mut seen = Vec::new();
    for round in 0..3 {
        put(&broker, &format!("b{round}"), Some("1")).await;
        world.pass(1001);
        retain(&broker).await;
        compact(&broker).await;
        seen.push(table(&all(&broker).await).contains_key("a"));
        assert!(
            !all(&broker)
                .await
                .contains(&(0, "a".to_owned(), Some("1".to_owned())))
        );
        world.pass(HOUR / 2);
    }
    assert_eq!(seen, [true, true, false]);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn compacted_and_deleted_topics_are_both() {
    let world = World::new();
    let broker = world.open();
    let settings = [
        ("cleanup.policy", "compact,delete"),
        ("segment.ms", "60000"),
        ("retention.ms", "7200000"),
    ];
    create_with(&broker, &settings).await;
    for key in ["a", "a", "b"] {
        put(&broker, key, Some("1")).await;
    }
    world.pass(60_001);
    retain(&broker).await;
    compact(&broker).await;
    assert_eq!(all(&broker).await.len(), 2);
    put(&broker, "c", Some("1")).await;
    world.pass(2 * HOUR + 1);
    put(&broker, "d", Some("1")).await;
    retain(&broker).await;
    let keys: Vec<_> = table(&all(&broker).await).into_keys().collect();
    assert_eq!(keys, ["c", "d"]);
    broker.stop().await.unwrap();
}

/// A consumer whose place was compacted away is led on by what it is told, not left waiting.
#[tokio::test]
async fn a_fetch_from_a_gap_finds_what_is_behind_it() {
    let world = World::new();
    let broker = world.open();
    create_with(&broker, &[COMPACT, SMALL]).await;
    let long = "x".repeat(400_000);
    for _ in 0..9 {
        put(&broker, "a", Some(&long)).await;
    }
    compact(&broker).await;
    let left = all(&broker).await;
    assert!(left[0].0 >= 5, "several segments are empty: {left:?}");
    for offset in 0..9 {
        let request = FetchRequest {
            partitions: vec![FetchPartition {
                topic: "t".to_owned(),
                partition: 0,
                offset,
                bytes_max: 1,
            }],
            bytes_min: 1,
            bytes_max: 1 << 20,
            wait_max: Duration::from_secs(3600),
            from_replica: false,
        };
        let (fetched, _) = broker.fetch(request, |len| async move { (len, ()) }).await;
        let data = fetched[0].result.as_ref().unwrap();
        let expected = left.iter().find(|(n, ..)| *n >= offset).unwrap().0;
        assert_eq!(
            data.batches.next_offset.get(),
            expected + 1,
            "from {offset}"
        );
    }
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_slow_compaction() {
    let world = World::new();
    let slow = BrokerConfig {
        compaction_bytes_per_second: 1,
        compaction_check_interval: Duration::ZERO,
        ..config()
    };
    let broker = world.open_with(slow);
    create_with(&broker, &[COMPACT, ("segment.ms", "1")]).await;
    for n in 0..10 {
        world.pass(2);
        put(&broker, "a", Some(&n.to_string())).await;
    }
    while metric(&broker, "tidelog_compaction_read_bytes_total") == 0 {
        tokio::task::yield_now().await;
    }
    // Other partitions and this one go on meanwhile.
    put(&broker, "b", Some("1")).await;
    let before = all(&broker).await;
    broker.stop().await.unwrap();
    drop(broker);
    let broker = world.open();
    assert_eq!(all(&broker).await, before);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_damaged_segment_is_left_alone_and_counted() {
    let world = World::new();
    let broker = world.open();
    create_with(&broker, &[COMPACT, ("segment.ms", "1")]).await;
    for n in 0..4 {
        put(&broker, "a", Some(&n.to_string())).await;
        world.pass(2);
    }
    broker.stop().await.unwrap();
    drop(broker);
    let dir = config().data_dir.join("t-0");
    let mut logs: Vec<_> = world.disk.files();
    logs.retain(|path| path.starts_with(&dir) && path.extension().is_some_and(|e| e == "log"));
    assert_eq!(logs.len(), 4);
    let len = world.disk.contents(&logs[1]).len() as u64;
    world.disk.flip_bit(&logs[1], len - 3, 1);
    let broker = world.open();
    for _ in 0..3 {
        compact(&broker).await;
    }
    assert_eq!(metric(&broker, "tidelog_compactions_total"), 0);
    assert!(metric(&broker, "tidelog_compaction_failures_total") > 0);
    assert!(world.disk.files().contains(&logs[1]), "it is kept");
    put(&broker, "a", Some("5")).await;
    broker.stop().await.unwrap();
}

/// Appends, reads and compaction at the same time, then power loss: the newest of each key is
/// there, and every reader saw each key's values in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_beside_appends_and_readers_loses_nothing() {
    let world = World::new();
    let fast = BrokerConfig {
        compaction_check_interval: Duration::ZERO,
        compaction_key_bytes_max: 600,
        ..config()
    };
    let broker = world.open_with(fast);
    let ratio = ("min.cleanable.dirty.ratio", "0.0");
    create_with(&broker, &[COMPACT, ratio, ("segment.ms", "5")]).await;
    let reader = {
        let broker = broker.clone();
        tokio::spawn(async move {
            let mut rounds = 0;
            while !broker.is_stopping() {
                let mut last: HashMap<String, u64> = HashMap::new();
                for (_, key, value) in all(&broker).await {
                    let value = value.unwrap().parse().unwrap();
                    let before = last.insert(key, value);
                    assert!(before.is_none_or(|before| before < value));
                }
                rounds += 1;
                tokio::task::yield_now().await;
            }
            rounds
        })
    };
    let mut newest = BTreeMap::new();
    let mut n = 0_u64;
    while n < 400 || metric(&broker, "tidelog_compactions_total") < 5 {
        let key = format!("key {}", n * 7 % 30);
        put(&broker, &key, Some(&n.to_string())).await;
        newest.insert(key, Some(n.to_string()));
        world.pass(1);
        n += 1;
        compact(&broker).await;
    }
    assert_eq!(table(&all(&broker).await), newest);
    // The reader ends with the broker, which is let go of without a stop.
    reader.abort();
    drop(reader.await);
    drop(broker);
    world.disk.crash();
    let broker = world.open();
    assert_eq!(table(&all(&broker).await), newest);
    assert!(all(&broker).await.len() < 300);
    broker.stop().await.unwrap();
}

/// The names of removed segments go at once; their space is given back, and counted, in the
/// background.
#[tokio::test]
async fn the_space_of_removed_segments_is_given_back_beside_the_work() {
    let world = World::new();
    let slow = BrokerConfig {
        removal_bytes_per_second: 1,
        ..config()
    };
    let broker = world.open_with(slow);
    create_with(&broker, &[SMALL]).await;
    let long = "x".repeat(400_000);
    for _ in 0..9 {
        put(&broker, "a", Some(&long)).await;
    }
    let sealed = broker.describe_topic("t", true).unwrap().partitions[0]
        .segments
        .clone();
    let removed: u64 = sealed.iter().filter(|s| s.sealed).map(|s| s.len).sum();
    let handle = broker.partition("t", 0).unwrap();
    handle.delete_records(OffsetSpec::Latest).await.unwrap();
    assert!(removed > 3_000_000);
    let counts = || {
        let pending = metric(&broker, "tidelog_removal_pending_bytes");
        (metric(&broker, "tidelog_removed_bytes_total"), pending)
    };
    // One byte a second: after the first file comes a pause of days.
    let (mut done, mut pending) = counts();
    while done == 0 {
        tokio::task::yield_now().await;
        (done, pending) = counts();
    }
    assert!(pending > 0 && done < removed, "{done} of {removed}");
    put(&broker, "a", Some("1")).await;
    broker.stop().await.unwrap();
    assert_eq!(counts(), (removed, 0));
}
