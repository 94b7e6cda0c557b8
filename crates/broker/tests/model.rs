//! Random changes, appends and reads on a disk that fails, is cut off and loses power, against a
//! model of what was promised.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use support::{create, new_topic, open, read_all, record, submit, try_open};
use tidelog_broker::{Acks, Broker, ErrorKind, Facts, OffsetSpec};
use tidelog_record::{Offset, TopicId};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

const NAMES: [&str; 3] = ["orders", "events", "logs"];

#[derive(Clone, Debug, Default)]
struct PartitionModel {
    /// What was acknowledged with `acks=all` or read, by offset.
    promised: BTreeMap<u64, String>,
    high_watermark: u64,
    log_start: u64,
    log_start_max: u64,
}

/// What a topic may be: one of these, `None` for gone.
type Possible = Vec<Option<(u32, String)>>;

#[derive(Clone, Debug, Default)]
struct Model {
    topics: HashMap<&'static str, Possible>,
    partitions: HashMap<(TopicId, u32), PartitionModel>,
}

fn id_of(broker: &Broker, name: &str) -> Option<TopicId> {
    let topics = broker.topics();
    topics
        .iter()
        .find(|topic| topic.name == name)
        .map(|topic| topic.topic_id)
}

async fn change_topics(
    broker: Broker,
    model: Arc<Mutex<Model>>,
    mut rng: SimRng,
    done: Arc<AtomicUsize>,
) {
    for n in 0..12 {
        let name = NAMES[rng.index(NAMES.len())];
        let before = model.lock().topics.get(name).cloned().unwrap_or(vec![None]);
        let [now] = &before[..] else { return };
        let value = format!("{}", 1_000_000_000_000_u64 + n);
        let what = rng.below(4);
        let after = match (now, what) {
            (None, _) => Some((1 + u32::try_from(rng.below(3)).unwrap(), "-1".to_owned())),
            (Some((partitions, _)), 0) => Some((*partitions, value.clone())),
            (Some((partitions, value)), 1) => Some((partitions + 1, value.clone())),
            (Some(_), 2) => None,
            (Some(_), _) => continue,
        };
        model
            .lock()
            .topics
            .insert(name, vec![now.clone(), after.clone()]);
        let result = match (now, &after) {
            (None, Some((partitions, value))) => {
                let new = new_topic(name, *partitions, &[("retention.ms", value)]);
                broker.create_topic(new).await.map(|_| ())
            }
            (Some(_), None) => broker.delete_topic(name).await,
            (Some((old, _)), Some((partitions, _))) if partitions > old => {
                broker.add_partitions(name, *partitions).await.map(|_| ())
            }
            _ => {
                let set = BTreeMap::from([("retention.ms".to_owned(), value)]);
                broker
                    .alter_topic(name, set, vec![], false)
                    .await
                    .map(|_| ())
            }
        };
        let known = match result {
            Ok(()) => vec![after],
            Err(e) if e.kind() == ErrorKind::Unknown => vec![now.clone(), after],
            Err(_) => vec![now.clone()],
        };
        model.lock().topics.insert(name, known);
        done.fetch_add(1, Ordering::SeqCst);
    }
}

async fn use_topics(
    broker: Broker,
    model: Arc<Mutex<Model>>,
    mut rng: SimRng,
    task: String,
    done: Arc<AtomicUsize>,
) {
    for n in 0..30 {
        let name = NAMES[rng.index(NAMES.len())];
        done.fetch_add(1, Ordering::SeqCst);
        let Some(id) = id_of(&broker, name) else {
            tokio::task::yield_now().await;
            continue;
        };
        let Ok(count) = broker.partitions_of(name) else {
            continue;
        };
        let number = u32::try_from(rng.below(u64::from(count))).unwrap();
        match rng.below(10) {
            0 => {
                let Ok(handle) = broker.partition(name, number) else {
                    continue;
                };
                let ends = handle.ends();
                if id_of(&broker, name) != Some(id) {
                    continue;
                }
                let to = ends.log_start.get()
                    + rng.below(ends.high_watermark.get() - ends.log_start.get() + 1);
                let entry = |model: &Model| model.partitions.get(&(id, number)).cloned();
                let mut now = entry(&model.lock()).unwrap_or_default();
                now.log_start_max = now.log_start_max.max(to);
                model
                    .lock()
                    .partitions
                    .entry((id, number))
                    .or_default()
                    .log_start_max = now.log_start_max;
                let before = OffsetSpec::Offset(Offset::new(to).unwrap());
                if let Ok(start) = handle.delete_records(before).await {
                    let mut model = model.lock();
                    let kept = &mut model.partitions.entry((id, number)).or_default().log_start;
                    *kept = start.get().max(*kept);
                }
            }
            1 => {
                let read = read_all(&broker, name, number).await;
                if let Ok(read) = read
                    && id_of(&broker, name) == Some(id)
                {
                    let mut model = model.lock();
                    let partition = model.partitions.entry((id, number)).or_default();
                    let end = read.last().map_or(0, |(offset, _)| offset + 1);
                    partition.high_watermark = partition.high_watermark.max(end);
                    for (offset, value) in read {
                        let old = partition.promised.insert(offset, value.clone());
                        assert!(
                            old.is_none_or(|old| old == value),
                            "offset {offset} changed"
                        );
                    }
                }
            }
            kind => {
                let acks = match kind {
                    2 => Acks::None,
                    3 => Acks::Leader,
                    _ => Acks::All,
                };
                let keyed = rng.chance(50);
                let values: Vec<String> = (0..1 + rng.below(5))
                    .map(|m| format!("{task}:{n:03}:{m}"))
                    .collect();
                let records = values.iter().enumerate().map(|(at, value)| {
                    let key = format!("key-{}", at % 3);
                    record(keyed.then_some(&*key), value)
                });
                let partition = (!keyed).then_some(number);
                let pending = submit(&broker, name, partition, acks, records.collect()).await;
                let Ok(pending) = pending else { continue };
                if rng.chance(10) {
                    continue;
                }
                for part in pending.await {
                    let Ok(appended) = part.result else { continue };
                    if acks != Acks::All || id_of(&broker, name) != Some(id) {
                        continue;
                    }
                    let all = (0..u32::try_from(values.len()).unwrap()).collect::<Vec<_>>();
                    let indexes = if part.record_indexes.is_empty() {
                        all
                    } else {
                        part.record_indexes
                    };
                    let base = appended.base_offset.get();
                    let mut model = model.lock();
                    let entry = model.partitions.entry((id, part.partition)).or_default();
                    entry.high_watermark = entry.high_watermark.max(base + indexes.len() as u64);
                    for (offset, index) in (base..).zip(indexes) {
                        let value = values[index as usize].clone();
                        let old = entry.promised.insert(offset, value.clone());
                        assert!(
                            old.is_none_or(|old| old == value),
                            "two for offset {offset}"
                        );
                    }
                }
            }
        }
    }
}

/// Compares a fresh broker with the model, and makes the model know what was open.
async fn check(broker: &Broker, model: &mut Model) {
    assert_eq!(broker.health().faults, Vec::<String>::new());
    let mut seen_partitions = HashMap::new();
    for name in NAMES {
        let found = broker.topics().into_iter().find(|topic| topic.name == name);
        let shape = found
            .as_ref()
            .map(|topic| (topic.partitions, topic.settings["retention.ms"].clone()));
        let possible = model.topics.get(name).cloned().unwrap_or(vec![None]);
        assert!(
            possible.contains(&shape),
            "topic {name} is {shape:?}, not one of {possible:?}"
        );
        model.topics.insert(name, vec![shape]);
        let Some(topic) = found else { continue };
        for number in 0..topic.partitions {
            let place = (topic.topic_id, number);
            let mut expected = model.partitions.remove(&place).unwrap_or_default();
            let ends = broker.partition(name, number).unwrap().ends();
            let (start, end) = (ends.log_start.get(), ends.high_watermark.get());
            let context = format!("{name}-{number}: {start}..{end}, {expected:?}");
            assert!(
                start >= expected.log_start,
                "log start went back: {context}"
            );
            assert!(
                start <= expected.log_start_max,
                "log start jumped: {context}"
            );
            assert!(
                end >= expected.high_watermark,
                "high watermark went back: {context}"
            );
            let read = read_all(broker, name, number).await.unwrap();
            let offsets: Vec<u64> = read.iter().map(|(offset, _)| *offset).collect();
            assert_eq!(offsets, (start..end).collect::<Vec<_>>(), "{context}");
            let found: BTreeMap<u64, String> = read.iter().cloned().collect();
            for (offset, value) in expected.promised.range(start..) {
                assert_eq!(
                    found.get(offset),
                    Some(value),
                    "offset {offset} of {context}"
                );
            }
            let mut values: Vec<&String> = found.values().collect();
            values.sort();
            values.dedup();
            assert_eq!(
                values.len(),
                found.len(),
                "a record is there twice: {context}"
            );
            // One task's records are in the order in which it sent them.
            let mut last: HashMap<&str, &str> = HashMap::new();
            for value in found.values() {
                let (task, number) = value.split_once(':').unwrap();
                let before = last.insert(task, number);
                assert!(
                    before.is_none_or(|before| before < number),
                    "out of order: {context}"
                );
            }
            expected.promised = found;
            expected.high_watermark = end;
            expected.log_start = start;
            expected.log_start_max = start;
            seen_partitions.insert(place, expected);
        }
    }
    model.partitions = seen_partitions;
}

async fn run(seed: u64) {
    let mut rng = SimRng::new(seed);
    let mut disk = SimDisk::new(rng.next_u64());
    let mut known = Model::default();
    for round in 0..5 {
        let mut failing = rng.chance(40);
        if failing {
            arm(&disk, OpFilter::mutating(), &mut rng, 60);
        }
        let broker = match try_open(&disk) {
            Ok(broker) if broker.health().faults.is_empty() => broker,
            refused => {
                assert!(failing, "seed {seed} round {round}: {refused:?}");
                drop(refused);
                // Dropped or half started: its threads must not be there beside the next.
                disk = disk.fork(rng.next_u64());
                failing = false;
                open(&disk)
            }
        };
        check(&broker, &mut known).await;
        if failing || rng.chance(20) {
            disk.stop_failing();
            arm(&disk, OpFilter::mutating(), &mut rng, 400);
        }
        let model = Arc::new(Mutex::new(known));
        let done = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..3 {
            let name = format!("{round}.{task}");
            tasks.spawn(use_topics(
                broker.clone(),
                model.clone(),
                rng.fork(),
                name,
                done.clone(),
            ));
        }
        tasks.spawn(change_topics(
            broker.clone(),
            model.clone(),
            rng.fork(),
            done.clone(),
        ));
        let until = usize::try_from(rng.below(110)).unwrap();
        while done.load(Ordering::SeqCst) < until && !tasks.is_empty() {
            if rng.chance(5) {
                drop(
                    tokio::time::timeout(std::time::Duration::from_micros(50), tasks.join_next())
                        .await,
                );
            }
            tokio::task::yield_now().await;
        }
        if rng.chance(25) {
            disk.stop_failing();
            let _whatever = broker.stop().await;
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
            assert_eq!(support::in_flight(&broker), "tidelog_in_flight_bytes 0");
            known = model.lock().clone();
            disk = disk.fork(rng.next_u64());
        } else {
            // In this order: what was promised until now must be on the disk as it is then.
            known = model.lock().clone();
            disk = disk.fork(rng.next_u64());
            if rng.chance(60) {
                disk.crash();
            }
            tasks.shutdown().await;
        }
    }
    let broker = open(&disk);
    check(&broker, &mut known).await;
    for name in NAMES {
        if id_of(&broker, name).is_some() {
            broker.delete_topic(name).await.unwrap();
        }
        create(&broker, name, 2).await.unwrap();
    }
    broker.stop().await.unwrap();
}

fn arm(disk: &SimDisk, filter: OpFilter, rng: &mut SimRng, within: u64) {
    let error = if rng.chance(50) {
        InjectedError::Io
    } else {
        InjectedError::Full
    };
    disk.fail_nth(filter, 1 + rng.below(within), error, FailMode::Once);
}

#[tokio::test]
async fn every_promise_is_kept_whatever_happens() {
    for seed in seeds() {
        let ran = tokio::spawn(run(seed)).await;
        assert!(ran.is_ok(), "seed {seed}: {ran:?}");
    }
}

/// `TIDELOG_SEED=n` runs one, `TIDELOG_SEEDS=n` so many.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match number("TIDELOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDELOG_SEEDS").unwrap_or(SEEDS),
    }
}

const SEEDS: u64 = 150;
