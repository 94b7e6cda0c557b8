//! Nobody waits for ever: appends, reads and waits through stops, deletions, panics and overload;
//! and retention.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::{
    FakeClock, append, config, create, in_flight, new_topic, open, read_all, record, seams, submit,
};
use tidelog_broker::{
    Acks, Broker, BrokerConfig, Facts, FetchPartition, FetchRequest, FetchedPartition, NewRecord,
    Seams,
};
use tidelog_disk::DiskOp;
use tidelog_record::{Offset, Timestamp};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

/// A fetch by somebody who has room for anything.
async fn fetch(broker: &Broker, request: FetchRequest) -> Vec<FetchedPartition> {
    let anything = |bytes_max| async move { (bytes_max, ()) };
    broker.fetch(request, anything).await.0
}

fn fetch_of(topic: &str, offset: u64) -> FetchRequest {
    FetchRequest {
        partitions: vec![FetchPartition {
            topic: topic.to_owned(),
            partition: 0,
            offset,
            bytes_max: 1 << 20,
        }],
        bytes_min: 1,
        bytes_max: 1 << 20,
        wait_max: Duration::MAX,
        from_replica: false,
    }
}

/// Fails a test that hangs, instead of letting it hang.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(20), what).await;
    waited.expect("somebody waits for ever")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_append_is_answered_and_every_long_poll_wakes() {
    let disk = SimDisk::new(1);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let broker = broker.clone();
        tasks.spawn(async move {
            for n in 0..200 {
                soon(append(&broker, "t", &format!("{task}-{n}")))
                    .await
                    .unwrap();
            }
        });
    }
    let reader = broker.clone();
    tasks.spawn(async move {
        let mut next = 0;
        while next < 1600 {
            let fetched = soon(fetch(&reader, fetch_of("t", next))).await;
            let data = fetched[0].result.as_ref().unwrap();
            assert!(!data.batches.is_empty());
            next = data.batches.next_offset.get();
        }
    });
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(in_flight(&broker), "tidelog_in_flight_bytes 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_all_appends_and_wakes_all_waits() {
    for seed in 0..10 {
        let disk = SimDisk::new(seed);
        let broker = open(&disk);
        create(&broker, "t", 2).await.unwrap();
        let waits = broker.partition("t", 1).unwrap();
        let wait = tokio::spawn(async move { soon(waits.wait_beyond(Offset::ZERO)).await });
        let poll = broker.clone();
        let poll = tokio::spawn(async move {
            let mut request = fetch_of("t", 0);
            request.partitions[0].partition = 1;
            soon(fetch(&poll, request)).await
        });
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..4 {
            let broker = broker.clone();
            tasks.spawn(async move {
                let mut stored = 0;
                loop {
                    match soon(append(&broker, "t", &format!("{task}"))).await {
                        Ok(_) => stored += 1,
                        Err(e) => return (stored, e.reason()),
                    }
                }
            });
        }
        while broker
            .partition("t", 0)
            .unwrap()
            .ends()
            .high_watermark
            .get()
            < 20
        {
            tokio::task::yield_now().await;
        }
        let (one, two) = tokio::join!(soon(broker.stop()), soon(broker.stop()));
        one.unwrap();
        two.unwrap();
        let mut stored = 0;
        while let Some(task) = tasks.join_next().await {
            let (count, reason) = task.unwrap();
            assert_eq!(reason, "SHUTTING_DOWN");
            stored += count;
        }
        wait.await.unwrap();
        let polled = poll.await.unwrap();
        assert_eq!(
            polled[0].result.as_ref().unwrap_err().reason(),
            "SHUTTING_DOWN"
        );
        assert_eq!(in_flight(&broker), "tidelog_in_flight_bytes 0");
        drop((broker, polled));
        let broker = open(&disk.fork(0));
        assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), stored);
    }
}

#[tokio::test]
async fn deleting_a_topic_wakes_who_waits_for_it() {
    let disk = SimDisk::new(2);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let handle = broker.partition("t", 0).unwrap();
    let (fetched, (), deleted) = tokio::join!(
        soon(fetch(&broker, fetch_of("t", 0))),
        soon(handle.wait_beyond(Offset::ZERO)),
        broker.delete_topic("t"),
    );
    deleted.unwrap();
    assert_eq!(
        fetched[0].result.as_ref().unwrap_err().reason(),
        "TOPIC_NOT_FOUND"
    );
    let e = handle.read(Offset::ZERO, 1).await.unwrap_err();
    assert_eq!(e.reason(), "TOPIC_NOT_FOUND");
}

#[tokio::test]
async fn a_dropped_append_is_stored_and_gives_its_room_back() {
    let disk = SimDisk::new(3);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    for n in 0..50 {
        let records = vec![record(None, &n.to_string())];
        drop(
            submit(&broker, "t", Some(0), Acks::All, records)
                .await
                .unwrap(),
        );
    }
    append(&broker, "t", "last").await.unwrap();
    assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), 51);
    assert_eq!(in_flight(&broker), "tidelog_in_flight_bytes 0");
}

#[allow(
    clippy::await_holding_lock,
    reason = "holds up the thread that writes, not this one"
)]
#[tokio::test]
async fn overload_is_refused_in_time_and_passes() {
    let disk = SimDisk::new(4);
    let config = BrokerConfig {
        in_flight_bytes_max: 100,
        ..config()
    };
    let clock = Arc::new(FakeClock::default());
    let seams = Seams {
        clock: clock.clone(),
        ..seams(&disk)
    };
    let broker = Broker::open(config, seams).unwrap();
    create(&broker, "t", 1).await.unwrap();
    // The budget is held by an append that hangs.
    let hold = clock.gate.lock();
    let held = submit(&broker, "t", Some(0), Acks::All, vec![record(None, "held")])
        .await
        .unwrap();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let e = append(&broker, "t", "too much").await.unwrap_err();
    assert_eq!(e.reason(), "OVERLOADED");
    assert!(
        began.elapsed() <= Duration::from_secs(11),
        "{:?}",
        began.elapsed()
    );
    assert!(e.to_string().contains("100 bytes"), "{e}");
    tokio::time::resume();
    drop(hold);
    assert!(soon(held).await[0].result.is_ok());
    append(&broker, "t", "again").await.unwrap();
    assert_eq!(in_flight(&broker), "tidelog_in_flight_bytes 0");
}

#[tokio::test]
async fn a_panic_stops_one_partition_and_says_so() {
    let disk = SimDisk::new(5);
    let config = BrokerConfig {
        shards: 1,
        ..config()
    };
    let broker = Broker::open(config, seams(&disk)).unwrap();
    create(&broker, "a", 1).await.unwrap();
    create(&broker, "b", 1).await.unwrap();
    append(&broker, "a", "safe").await.unwrap();
    let writes = OpFilter::op(DiskOp::Write).on("/a-0/");
    disk.fail_nth(writes, 1, InjectedError::Panic, FailMode::Once);
    let e = append(&broker, "a", "lost?").await.unwrap_err();
    assert_eq!(e.reason(), "OUTCOME_UNKNOWN");
    let e = append(&broker, "a", "refused").await.unwrap_err();
    assert_eq!(e.reason(), "PARTITION_FAULTED");
    assert_eq!(broker.health().faults.len(), 1);
    append(&broker, "b", "goes on").await.unwrap();
    assert_eq!(read_all(&broker, "a", 0).await.unwrap().len(), 1);
    assert_eq!(in_flight(&broker), "tidelog_in_flight_bytes 0");
    assert!(soon(broker.stop()).await.is_err());
    append(&open(&disk.fork(0)), "a", "well again")
        .await
        .unwrap();
}

const HOUR: i64 = 3_600_000;

/// 2 MiB in batches of 400 KB, whose records are of 2018.
async fn fill(broker: &Broker, topic: &str) {
    for _ in 0..6 {
        let old = NewRecord {
            timestamp: Some(Timestamp::from_millis(1_530_000_000_000)),
            ..record(None, &"x".repeat(400_000))
        };
        let parts = submit(broker, topic, Some(0), Acks::All, vec![old])
            .await
            .unwrap()
            .await;
        assert!(parts[0].result.is_ok());
    }
}

async fn retain(broker: &Broker) {
    let broker = broker.clone();
    tokio::task::spawn_blocking(move || broker.apply_retention())
        .await
        .unwrap();
}

fn start(broker: &Broker, topic: &str) -> u64 {
    broker.partition(topic, 0).unwrap().ends().log_start.get()
}

#[tokio::test]
async fn retention_goes_by_the_brokers_clock_and_by_size() {
    let disk = SimDisk::new(6);
    let clock = Arc::new(FakeClock::default());
    let now = 1_780_000_000_000;
    clock.millis.store(now, Ordering::SeqCst);
    let seams = Seams {
        clock: clock.clone(),
        ..seams(&disk)
    };
    let broker = Broker::open(config(), seams).unwrap();
    let day = (24 * HOUR).to_string();
    let segment = ("segment.bytes", "1048576");
    for (name, setting) in [
        ("aged", ("retention.ms", &*day)),
        ("sized", ("retention.bytes", "1200000")),
    ] {
        broker
            .create_topic(new_topic(name, 1, &[segment, setting]))
            .await
            .unwrap();
        fill(&broker, name).await;
    }
    retain(&broker).await;
    assert_eq!(
        start(&broker, "aged"),
        0,
        "records of 2018 are not old by themselves"
    );
    let described = broker
        .describe_topic("sized", false)
        .unwrap()
        .partitions
        .remove(0);
    assert!(described.log_start.get() > 0);
    assert!(
        (1_200_000..2_400_000).contains(&described.size_bytes),
        "{described:?}"
    );

    for jump in [-HOUR, -1000 * HOUR, HOUR, 23 * HOUR] {
        clock.millis.store(now + jump, Ordering::SeqCst);
        retain(&broker).await;
        assert_eq!(start(&broker, "aged"), 0, "jump of {jump} ms");
    }
    // The active segment is not idle.
    append(&broker, "aged", "late").await.unwrap();
    clock.millis.store(now + 24 * HOUR + 1, Ordering::SeqCst);
    retain(&broker).await;
    let ends = broker.partition("aged", 0).unwrap().ends();
    assert!(
        ends.log_start.get() > 0 && ends.log_start < ends.high_watermark,
        "{ends:?}"
    );
    fill(&broker, "aged").await;
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn an_idle_partition_ages_out_whole() {
    let disk = SimDisk::new(8);
    let clock = Arc::new(FakeClock::default());
    let began = 1_780_000_000_000;
    let at = |millis: i64| clock.millis.store(began + millis, Ordering::SeqCst);
    let start_broker = || {
        let seams = Seams {
            clock: clock.clone(),
            ..seams(&disk)
        };
        Broker::open(config(), seams).unwrap()
    };
    at(0);
    let mut broker = start_broker();
    let day = (24 * HOUR).to_string();
    for (name, setting) in [
        ("idle", ("retention.ms", &*day)),
        ("kept", ("retention.ms", "-1")),
        ("restarted", ("retention.ms", &*day)),
    ] {
        broker
            .create_topic(new_topic(name, 1, &[setting]))
            .await
            .unwrap();
        append(&broker, name, "one").await.unwrap();
    }
    // Not idle for long enough, however old the segment is.
    at(23 * HOUR);
    append(&broker, "idle", "two").await.unwrap();
    at(46 * HOUR);
    retain(&broker).await;
    let ends = |broker: &Broker, name: &str| {
        let ends = broker.partition(name, 0).unwrap().ends();
        (ends.log_start.get(), ends.high_watermark.get())
    };
    assert_eq!(ends(&broker, "idle"), (0, 2));
    assert_eq!(ends(&broker, "kept"), (0, 1));
    assert_eq!(
        ends(&broker, "restarted"),
        (1, 1),
        "it was idle for 46 hours"
    );
    assert_eq!(read_all(&broker, "restarted", 0).await.unwrap(), []);

    // And once it is, all goes, with the file.
    let file = std::path::Path::new("/srv/data/idle-0/00000000000000000000.log");
    assert!(disk.files().iter().any(|path| path == file));
    at(47 * HOUR + 1);
    retain(&broker).await;
    assert_eq!(ends(&broker, "idle"), (2, 2));
    assert!(disk.files().iter().all(|path| path != file));
    let described = broker.describe_topic("idle", false).unwrap();
    assert_eq!(described.partitions[0].segment_count, 1);
    let calls = disk.io_count();
    retain(&broker).await;
    assert_eq!(disk.io_count(), calls, "nothing is left to be done");
    // It goes on where it was.
    assert_eq!(append(&broker, "idle", "three").await.unwrap().get(), 2);
    assert_eq!(append(&broker, "restarted", "x").await.unwrap().get(), 1);

    // A broker that is started again and again, never idle for long: the segment is sealed by its
    // own age, and goes by the age of the seal.
    for day in 2..6 {
        broker.stop().await.unwrap();
        drop(broker);
        at(day * 23 * HOUR + 3 * HOUR);
        broker = start_broker();
        retain(&broker).await;
    }
    assert_eq!(ends(&broker, "restarted"), (2, 2));
    assert_eq!(ends(&broker, "kept"), (0, 1));
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_fetch_that_stopped_at_a_segments_end_does_not_wait() {
    let disk = SimDisk::new(7);
    let broker = open(&disk);
    broker
        .create_topic(new_topic("t", 1, &[("segment.bytes", "1048576")]))
        .await
        .unwrap();
    fill(&broker, "t").await;
    let mut request = fetch_of("t", 0);
    request.bytes_min = usize::MAX;
    request.bytes_max = usize::MAX;
    request.partitions[0].bytes_max = 1 << 30;
    let fetched = soon(fetch(&broker, request)).await;
    assert!(!fetched[0].result.as_ref().unwrap().batches.is_empty());
}

/// The sync behind an append that does not wait for it holds up neither that append nor the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_do_not_wait_for_the_disk_go_on_while_it_hangs() {
    let disk = SimDisk::new(1);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let hang = disk.hang(OpFilter::op(DiskOp::Sync).on("t-0/"));
    let write = |n: usize| {
        let records = vec![record(None, &n.to_string())];
        submit(&broker, "t", Some(0), Acks::Leader, records)
    };
    let mut answers = soon(soon(write(0)).await.unwrap()).await;
    assert_eq!(answers.remove(0).result.unwrap().base_offset, Offset::ZERO);
    let hang = tokio::task::spawn_blocking(move || {
        hang.wait_until_one_hangs();
        hang
    });
    let hang = soon(hang).await.unwrap();
    for n in 1..20 {
        let mut answers = soon(soon(write(n)).await.unwrap()).await;
        let appended = answers.remove(0).result.unwrap();
        assert_eq!(appended.base_offset.get(), n as u64);
    }
    assert!(
        read_all(&broker, "t", 0).await.unwrap().is_empty(),
        "none is durable"
    );
    drop(hang);
    assert_eq!(soon(append(&broker, "t", "last")).await.unwrap().get(), 20);
    assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), 21);
}

/// What was answered before it is durable is bounded, also where somebody waits for the same disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_append_that_waits_for_the_disk_lifts_no_bound_for_those_that_do_not() {
    let disk = SimDisk::new(1);
    let config = BrokerConfig {
        in_flight_bytes_max: 4 << 20,
        ..config()
    };
    let broker = Broker::open(config, seams(&disk)).unwrap();
    create(&broker, "t", 1).await.unwrap();
    let hang = disk.hang(OpFilter::op(DiskOp::Sync).on("t-0/"));
    let value = "x".repeat(900 << 10);
    let write = |acks| submit(&broker, "t", Some(0), acks, vec![record(None, &value)]);
    let first = soon(write(Acks::Leader)).await.unwrap();
    assert!(soon(first).await[0].result.is_ok());
    let hang = tokio::task::spawn_blocking(move || {
        hang.wait_until_one_hangs();
        hang
    });
    let hang = soon(hang).await.unwrap();
    let waits = soon(write(Acks::All)).await.unwrap();
    let mut sent = Vec::new();
    // Those that are not answered hold the budget, until there is no room for one more.
    let refused = loop {
        match write(Acks::Leader).await {
            Ok(pending) => sent.push(pending),
            Err(refused) => break refused,
        }
        assert!(sent.len() < 80, "nothing is held back");
    };
    assert_eq!(refused.reason(), "OVERLOADED");
    assert!(sent.len() >= 30, "{} were taken before", sent.len());
    drop(hang);
    assert!(soon(waits).await[0].result.is_ok());
    for pending in sent {
        assert!(soon(pending).await[0].result.is_ok());
    }
}
