//! A disk that is slow, hangs, or has no more open files to give: what it does to one partition, and
//! that it does nothing to the others; and clocks that are wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::{
    FakeClock, append, create, new_topic, open, read_all, record, seams, submit, try_open,
};
use tidelog_broker::{Acks, Broker, ErrorKind, Facts, NewRecord, OffsetSpec, Seams};
use tidelog_disk::DiskOp;
use tidelog_record::{Offset, Timestamp};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

/// Fails a test that hangs, instead of letting it hang.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), what).await;
    waited.expect("somebody waits for ever")
}

async fn append_to(broker: &Broker, partition: u32, value: &str) -> u64 {
    let records = vec![record(None, value)];
    let pending = submit(broker, "t", Some(partition), Acks::All, records);
    let mut parts = soon(soon(pending).await.unwrap()).await;
    parts.remove(0).result.unwrap().base_offset.get()
}

fn values(records: &[(u64, String)]) -> Vec<&str> {
    records.iter().map(|(_, value)| value.as_str()).collect()
}

/// Slower than anybody waits for: it comes back only when the test says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_sync_holds_back_its_own_appends_and_nothing_else() {
    let disk = SimDisk::new(1);
    let broker = open(&disk);
    // Partitions 0 and 1 have different shards.
    create(&broker, "t", 2).await.unwrap();
    append_to(&broker, 0, "before").await;
    let ends = |partition| broker.partition("t", partition).unwrap().ends();
    let mut slow = Vec::new();
    for round in 1..=3 {
        let hang = disk.hang(OpFilter::op(DiskOp::Sync).on("t-0/"));
        let value = format!("slow {round}");
        let pending = submit(&broker, "t", Some(0), Acks::All, vec![record(None, &value)]);
        let pending = tokio::spawn(pending.await.unwrap());
        tokio::task::block_in_place(|| hang.wait_until_one_hangs());
        // The other shard appends, all is read, topics are described.
        for n in 0..3 {
            let base = append_to(&broker, 1, "beside").await;
            assert_eq!(base, (round - 1) * 3 + n);
        }
        let kept = read_all(&broker, "t", 0).await.unwrap();
        assert_eq!(values(&kept)[0], "before");
        assert_eq!(kept.len() as u64, round, "what is not durable is not read");
        assert_eq!(ends(0).high_watermark.get(), round);
        assert_eq!(ends(0).log_end.get(), round + 1);
        assert!(!pending.is_finished(), "it is not acknowledged");
        assert!(broker.describe_topic("t", true).is_ok());
        assert_eq!(broker.health().faults, Vec::<String>::new());
        drop(hang);
        slow.push(soon(pending).await.unwrap().remove(0).result.unwrap());
        assert_eq!(ends(0).high_watermark.get(), round + 1);
    }
    let offsets: Vec<u64> = slow.iter().map(|done| done.base_offset.get()).collect();
    assert_eq!(offsets, [1, 2, 3]);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_hung_sync_is_told_as_unknown_at_the_deadline_and_heals() {
    let disk = SimDisk::new(2);
    let broker = open(&disk);
    create(&broker, "t", 2).await.unwrap();
    append_to(&broker, 0, "before").await;
    let hang = disk.hang(OpFilter::op(DiskOp::Sync).on("t-0/"));
    let pending = submit(&broker, "t", Some(0), Acks::All, vec![record(None, "hung")]);
    let pending = pending.await.unwrap();
    hang.wait_until_one_hangs();
    // The deadline of 30 seconds comes at once.
    tokio::time::pause();
    let e = pending.await.remove(0).result.unwrap_err();
    tokio::time::resume();
    assert_eq!(
        (e.reason(), e.kind()),
        ("OUTCOME_UNKNOWN", ErrorKind::Unknown)
    );
    assert!(e.to_string().contains("30s"), "{e}");
    // Still it hangs, and the partitions of the other shard go on.
    append_to(&broker, 1, "beside").await;
    append_to(&broker, 1, "beside").await;
    let kept = read_all(&broker, "t", 0).await.unwrap();
    assert_eq!(values(&kept), ["before"]);
    assert_eq!(
        broker.health().faults,
        Vec::<String>::new(),
        "it is not broken"
    );
    drop(hang);
    assert_eq!(append_to(&broker, 0, "after").await, 2);
    let kept = read_all(&broker, "t", 0).await.unwrap();
    assert_eq!(values(&kept), ["before", "hung", "after"]);
    broker.stop().await.unwrap();
    drop(broker);
    let kept = read_all(&open(&disk), "t", 0).await.unwrap();
    assert_eq!(kept.len(), 3);
}

/// Any error of a write but a full disk: the log of that partition is not to be trusted until the
/// next start, and no other.
#[tokio::test]
async fn a_failed_or_short_write_stops_its_partition_alone_until_the_next_start() {
    for error in [InjectedError::Io, InjectedError::Short] {
        for seed in 0..20 {
            let disk = SimDisk::new(seed);
            let broker = open(&disk);
            create(&broker, "t", 2).await.unwrap();
            append_to(&broker, 0, "safe").await;
            let writes = OpFilter::op(DiskOp::Write).on("t-0/00000000000000000000.log");
            disk.fail_nth(writes, 1, error, FailMode::Once);
            let e = append(&broker, "t", "lost?").await.unwrap_err();
            assert_eq!(
                (e.reason(), e.kind()),
                ("OUTCOME_UNKNOWN", ErrorKind::Unknown)
            );
            for _ in 0..2 {
                let e = append(&broker, "t", "refused").await.unwrap_err();
                assert_eq!(
                    (e.reason(), e.kind()),
                    ("PARTITION_FAULTED", ErrorKind::DataLoss)
                );
                assert!(e.to_string().contains("write /srv/data/t-0/"), "{e}");
            }
            assert_eq!(values(&read_all(&broker, "t", 0).await.unwrap()), ["safe"]);
            append_to(&broker, 1, "beside").await;
            assert_eq!(broker.health().faults.len(), 1);
            if seed % 2 == 0 {
                disk.kill();
            } else {
                disk.crash();
            }
            drop(broker);
            let broker = open(&disk);
            assert_eq!(broker.health().faults, Vec::<String>::new());
            let kept = read_all(&broker, "t", 0).await.unwrap();
            assert!(["safe", "lost?"].starts_with(&values(&kept)) && !kept.is_empty());
            assert_eq!(append_to(&broker, 0, "after").await, kept.len() as u64);
            assert_eq!(read_all(&broker, "t", 1).await.unwrap().len(), 1);
        }
    }
}

/// The sync that seals a segment comes before the append is written, which surely is not there then.
#[tokio::test]
async fn an_append_whose_roll_failed_is_told_to_be_not_written() {
    let disk = SimDisk::new(4);
    let broker = open(&disk);
    let small = [("segment.bytes", "1048576")];
    let topic = new_topic("t", 1, &small);
    broker.create_topic(topic).await.unwrap();
    let value = "x".repeat(400_000);
    for _ in 0..2 {
        append(&broker, "t", &value).await.unwrap();
    }
    let syncs = OpFilter::op(DiskOp::Sync).on("t-0/00000000000000000000.log");
    disk.fail_nth(syncs, 1, InjectedError::Io, FailMode::Once);
    let e = append(&broker, "t", &value).await.unwrap_err();
    assert_eq!(e.reason(), "PARTITION_FAULTED", "{e}");
    disk.kill();
    drop(broker);
    let broker = open(&disk);
    assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), 2);
}

/// A new segment needs an open file. That there is none stops nothing for good.
#[tokio::test]
async fn a_roll_without_an_open_file_is_refused_and_heals_without_a_restart() {
    let value = "x".repeat(400_000);
    for (op, part) in [
        (DiskOp::Open, "t-0/00000000000000000002.log"),
        (DiskOp::SyncDir, "t-0"),
    ] {
        let disk = SimDisk::new(3);
        let broker = open(&disk);
        let small = [("segment.bytes", "1048576")];
        broker
            .create_topic(new_topic("t", 1, &small))
            .await
            .unwrap();
        broker
            .create_topic(new_topic("other", 1, &small))
            .await
            .unwrap();
        for _ in 0..2 {
            append(&broker, "t", &value).await.unwrap();
        }
        let files = disk.files();
        let mode = match op {
            DiskOp::Open => FailMode::Forever,
            // By then the file that was opened is closed again.
            _ => FailMode::Once,
        };
        disk.fail_nth(
            OpFilter::op(op).on(part),
            1,
            InjectedError::OutOfFiles,
            mode,
        );
        let (mut refusals, mut stored) = (0, 3);
        while disk.failures() < 4 && refusals < 4 {
            let Err(e) = append(&broker, "t", &value).await else {
                stored += 1;
                break;
            };
            assert_eq!(
                (e.reason(), e.kind()),
                ("STORAGE_ERROR", ErrorKind::Exhausted)
            );
            for part in [
                "no open file",
                "/srv/data/t-0",
                "raise the limit of open files",
            ] {
                assert!(e.to_string().contains(part), "{e}");
            }
            assert!(e.retry_after().is_some());
            refusals += 1;
            append(&broker, "other", &value).await.unwrap();
            assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), 2);
        }
        assert!(refusals > 0);
        let left: Vec<_> = disk.files();
        assert!(files.iter().all(|file| left.contains(file)));
        assert_eq!(broker.health().faults, Vec::<String>::new());
        disk.stop_failing();
        append(&broker, "t", &value).await.unwrap();
        // All of it survives power loss.
        disk.crash();
        drop(broker);
        let broker = try_open(&disk).unwrap();
        assert_eq!(broker.health().faults, Vec::<String>::new());
        assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), stored);
    }
}

/// The numbers that a client or an operator acts on are in the error.
#[tokio::test]
async fn a_full_disk_names_the_directory_the_bytes_and_what_to_do() {
    let disk = SimDisk::new(4);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let value = "x".repeat(200_000);
    // Below the reserve, and with the disk's own refusal.
    disk.set_free_bytes(Some((64 << 20) - 1000));
    let e = append(&broker, "t", &value).await.unwrap_err();
    let facts = e.facts();
    assert_eq!(facts[0], ("dir", "/srv/data".to_owned()));
    let needed: u64 = facts[1].1.parse().unwrap();
    assert!((201_000..202_000).contains(&needed), "{needed}");
    let said = e.to_string();
    for part in [
        "/srv/data",
        &format!("{needed} bytes"),
        "free space, or lower retention.ms",
    ] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    // So much more is enough.
    disk.set_free_bytes(Some((64 << 20) - 1000 + needed));
    append(&broker, "t", &value).await.unwrap();

    disk.set_free_bytes(None);
    disk.fail_nth(
        OpFilter::op(DiskOp::Reserve),
        1,
        InjectedError::Full,
        FailMode::Forever,
    );
    let e = loop {
        if let Err(e) = append(&broker, "t", &value).await {
            break e;
        }
    };
    assert_eq!(
        (e.reason(), e.kind()),
        ("STORAGE_FULL", ErrorKind::Exhausted)
    );
    let facts = e.facts();
    assert_eq!(facts[0], ("dir", "/srv/data/t-0".to_owned()));
    let said = e.to_string();
    for part in [
        "/srv/data/t-0",
        &format!("{} bytes", facts[1].1),
        "free space",
    ] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    disk.stop_failing();
    append(&broker, "t", &value).await.unwrap();
}

const HOUR: i64 = 3_600_000;
const YEAR: i64 = 365 * 24 * HOUR;

struct Clocked {
    clock: Arc<FakeClock>,
    disk: SimDisk,
}

impl Clocked {
    fn new(seed: u64) -> Self {
        let clock = Arc::new(FakeClock::default());
        clock.millis.store(1_780_000_000_000, Ordering::SeqCst);
        Self {
            clock,
            disk: SimDisk::new(seed),
        }
    }

    fn open(&self) -> Broker {
        let seams = Seams {
            clock: self.clock.clone(),
            ..seams(&self.disk)
        };
        Broker::open(support::config(), seams).unwrap()
    }

    fn pass(&self, millis: i64) {
        self.clock.millis.fetch_add(millis, Ordering::SeqCst);
    }
}

async fn retain(broker: &Broker) {
    let broker = broker.clone();
    tokio::task::spawn_blocking(move || broker.apply_retention())
        .await
        .unwrap();
}

/// Three records, of which each two fill a segment.
async fn fill(broker: &Broker, topic: &str, timestamp: Option<i64>) {
    for _ in 0..3 {
        let record = NewRecord {
            timestamp: timestamp.map(Timestamp::from_millis),
            ..record(None, &"x".repeat(500_000))
        };
        let pending = submit(broker, topic, Some(0), Acks::All, vec![record]).await;
        assert!(pending.unwrap().await[0].result.is_ok());
    }
}

fn ends(broker: &Broker, topic: &str) -> (u64, u64) {
    let ends = broker.partition(topic, 0).unwrap().ends();
    (ends.log_start.get(), ends.high_watermark.get())
}

const AGED: [(&str, &str); 2] = [("segment.bytes", "1048576"), ("retention.ms", "1800000")];

/// Records are kept for half an hour, and the clock jumps by an hour, or by years.
#[tokio::test]
async fn a_jump_of_the_wall_clock_deletes_nothing() {
    for jump in [HOUR, -HOUR, 10 * YEAR, -10 * YEAR] {
        let world = Clocked::new(5);
        let broker = world.open();
        broker
            .create_topic(new_topic("aged", 1, &AGED))
            .await
            .unwrap();
        broker
            .create_topic(new_topic("idle", 1, &AGED))
            .await
            .unwrap();
        fill(&broker, "aged", None).await;
        append(&broker, "idle", "one").await.unwrap();
        let id = broker.init_producer().await.unwrap();
        world.clock.jump(jump);
        for minute in 0..10 {
            retain(&broker).await;
            assert_eq!(ends(&broker, "aged"), (0, 3), "{jump}, {minute}");
            assert_eq!(ends(&broker, "idle"), (0, 1), "{jump}, {minute}");
            world.pass(60_000);
        }
        // While it is wrong, segments are made with times that are wrong.
        fill(&broker, "aged", None).await;
        retain(&broker).await;
        assert_eq!(ends(&broker, "aged"), (0, 6), "{jump}");
        // It is set right: still nothing is old, and what is new goes by the right time.
        world.clock.jump(-jump);
        for _ in 0..4 {
            world.pass(60_000);
            retain(&broker).await;
        }
        assert_eq!(ends(&broker, "aged").0, 0, "{jump}");
        fill(&broker, "aged", None).await;
        // And in time all of it is old, as if nothing had been.
        for _ in 0..60 {
            world.pass(60_000);
            retain(&broker).await;
        }
        assert_eq!(ends(&broker, "aged"), (9, 9), "{jump}");
        assert_eq!(ends(&broker, "idle"), (1, 1), "{jump}");
        assert!(broker.init_producer().await.unwrap() > id);
        broker.stop().await.unwrap();
    }
}

/// A clock that was ahead for a while, across restarts: what was sealed then is deleted once it is
/// old by the clock that was set right, not years later.
#[tokio::test]
async fn what_was_made_while_the_clock_was_ahead_does_not_stay_for_years() {
    let world = Clocked::new(6);
    let broker = world.open();
    broker
        .create_topic(new_topic("aged", 1, &AGED))
        .await
        .unwrap();
    fill(&broker, "aged", None).await;
    broker.stop().await.unwrap();
    drop(broker);
    world.clock.jump(10 * YEAR);
    let broker = world.open();
    // Segments are made by a clock that nobody knows to be wrong yet.
    fill(&broker, "aged", None).await;
    broker.stop().await.unwrap();
    drop(broker);
    world.clock.jump(-10 * YEAR);
    let broker = world.open();
    append(&broker, "aged", "now").await.unwrap();
    retain(&broker).await;
    assert_eq!(ends(&broker, "aged").1, 7);
    assert!(ends(&broker, "aged").0 <= 6);
    // It is never idle, so that each segment goes by its own age.
    for minute in 0..90 {
        world.pass(60_000);
        if minute % 10 == 0 {
            append(&broker, "aged", "now").await.unwrap();
        }
        retain(&broker).await;
    }
    let (start, end) = ends(&broker, "aged");
    assert!(start >= 7 && end == 16, "{start} to {end}");
    broker.stop().await.unwrap();
}

/// Records say what they like about their time: what is kept goes by the broker's clock and by
/// size, and look-ups by time go by what they say.
#[tokio::test]
async fn records_of_the_far_future_are_deleted_like_any_others_and_found_by_time() {
    for future in [10 * YEAR, 1000 * YEAR, i64::MAX - 1_780_000_000_000] {
        let world = Clocked::new(7);
        let broker = world.open();
        let sized = [("segment.bytes", "1048576"), ("retention.bytes", "1200000")];
        broker
            .create_topic(new_topic("aged", 1, &AGED))
            .await
            .unwrap();
        broker
            .create_topic(new_topic("sized", 1, &sized))
            .await
            .unwrap();
        let now = world.clock.millis.load(Ordering::SeqCst);
        let find = async |at: i64| {
            let handle = broker.partition("aged", 0).unwrap();
            let found = handle.resolve(OffsetSpec::Timestamp(Timestamp::from_millis(at)));
            let found = found.await.unwrap();
            (found.offset.get(), found.timestamp.map(Timestamp::millis))
        };
        fill(&broker, "aged", Some(now)).await;
        fill(&broker, "aged", Some(now + future)).await;
        fill(&broker, "aged", Some(now + 1)).await;
        assert_eq!(find(now).await, (0, Some(now)));
        // The first by offset that is late enough.
        assert_eq!(find(now + 1).await, (3, Some(now + future)));
        assert_eq!(find(now + future).await, (3, Some(now + future)));
        if let Some(later) = (now + future).checked_add(1) {
            assert_eq!(find(later).await, (9, None));
        }
        fill(&broker, "sized", Some(now + future)).await;
        fill(&broker, "sized", Some(now + future)).await;
        retain(&broker).await;
        assert!(ends(&broker, "sized").0 > 0);
        assert_eq!(ends(&broker, "aged").0, 0);
        world.pass(HOUR);
        retain(&broker).await;
        assert_eq!(ends(&broker, "aged"), (9, 9), "{future}");
        assert_eq!(find(now).await, (9, None));
        let kept = broker.partition("sized", 0).unwrap();
        assert!(kept.ends().high_watermark > Offset::ZERO);
        broker.stop().await.unwrap();
    }
}
