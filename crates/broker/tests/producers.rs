//! Idempotent producers: ids that never come twice, batches that are stored once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use support::{FakeClock, config, create, open, read_all, record, seams};
use tidelog_broker::{
    Acks, AppendError, AppendRequest, Appended, Broker, BrokerConfig, Facts, NewRecord, Payload,
    PendingAppend, ProducerStamp, Seams,
};
use tidelog_disk::{Disk, DiskOp};
use tidelog_log::offline::{Problem, apply_repair, plan_repair, read_state};
use tidelog_record::{Compression, Timestamp};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

async fn submit(
    broker: &Broker,
    acks: Acks,
    producer: ProducerStamp,
    records: Vec<NewRecord>,
) -> Result<PendingAppend, AppendError> {
    let payload = Payload::Records {
        records,
        compression: Compression::None,
        producer: Some(producer),
    };
    let request = AppendRequest {
        topic: "t".to_owned(),
        partition: Some(0),
        acks,
        payload,
    };
    broker.submit(request).await
}

async fn send(
    broker: &Broker,
    producer: ProducerStamp,
    values: &[&str],
) -> Result<Appended, AppendError> {
    let records = values.iter().map(|value| record(None, value)).collect();
    let pending = submit(broker, Acks::All, producer, records).await?;
    pending.await.remove(0).result
}

fn stamp(id: i64, epoch: i16, base_sequence: i32) -> ProducerStamp {
    ProducerStamp {
        id,
        epoch,
        base_sequence,
    }
}

/// A repair that cut the metadata log has cut off which ids were given out.
#[tokio::test]
async fn ids_that_partitions_know_are_not_given_out_again_after_a_repair() {
    let disk = SimDisk::new(4);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let id = broker.init_producer().await.unwrap();
    send(&broker, stamp(id, 0, 0), &["before"]).await.unwrap();
    broker.stop().await.unwrap();
    drop(broker);

    let dir = config().data_dir.join("__cluster_metadata-0");
    let log = dir.join("00000000000000000000.log");
    let bytes = disk.contents(&log);
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    disk.flip_bit(&log, end as u64 - 2, 3);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let data_dir = config().data_dir;
    let mut problems: Vec<Problem> = Vec::new();
    let state = read_state(&disk, &data_dir, &mut problems).unwrap();
    let now = Timestamp::from_millis(0);
    let plan = plan_repair(&shared, &dir, state.as_ref(), true, now, &mut problems).unwrap();
    assert!(plan.cut.is_some());
    apply_repair(&shared, &plan, Some(&data_dir)).unwrap();

    let broker = open(&disk);
    let again = broker.init_producer().await.unwrap();
    assert!(again > id, "{again} after {id}");
    let appended = send(&broker, stamp(again, 0, 0), &["after"]).await.unwrap();
    assert!(!appended.duplicate);
    let values: Vec<_> = read_all(&broker, "t", 0).await.unwrap();
    assert_eq!(values.last().unwrap().1, "after");
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn ids_never_come_twice() {
    let disk = SimDisk::new(1);
    let mut given = BTreeSet::new();
    for round in 0..6 {
        let broker = open(&disk);
        let asked = (0..700).map(|_| broker.init_producer());
        for id in futures_util::future::join_all(asked).await {
            assert!(given.insert(id.unwrap()), "given out a second time");
        }
        if round % 2 == 0 {
            broker.stop().await.unwrap();
        } else {
            drop(broker);
            disk.crash();
        }
    }
    assert_eq!(given.first(), Some(&0));
}

#[tokio::test]
async fn an_id_that_was_never_given_out_is_refused() {
    let disk = SimDisk::new(2);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let id = broker.init_producer().await.unwrap();
    send(&broker, stamp(id, 0, 0), &["a"]).await.unwrap();
    let refused = send(&broker, stamp(id + 100_000, 0, 0), &["b"]).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason(), "UNKNOWN_PRODUCER");
    assert!(refused.to_string().contains("never given out"), "{refused}");
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn what_comes_again_is_answered_with_its_first_offset_also_after_a_crash() {
    let disk = SimDisk::new(3);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let id = broker.init_producer().await.unwrap();
    let first = send(&broker, stamp(id, 0, 0), &["a", "b"]).await.unwrap();
    assert!(!first.duplicate);
    send(&broker, stamp(id, 0, 2), &["c"]).await.unwrap();
    let again = send(&broker, stamp(id, 0, 0), &["a", "b"]).await.unwrap();
    assert_eq!(
        (again.base_offset, again.duplicate),
        (first.base_offset, true)
    );
    drop(broker);
    disk.crash();

    let broker = open(&disk);
    let again = send(&broker, stamp(id, 0, 2), &["c"]).await.unwrap();
    assert_eq!((again.base_offset.get(), again.duplicate), (2, true));
    let gap = send(&broker, stamp(id, 0, 4), &["e"]).await.unwrap_err();
    assert_eq!(gap.reason(), "OUT_OF_ORDER_SEQUENCE");
    let facts = gap.facts();
    assert!(
        facts.contains(&("expected_sequence", "3".to_owned())),
        "{facts:?}"
    );
    send(&broker, stamp(id, 1, 0), &["d"]).await.unwrap();
    let fenced = send(&broker, stamp(id, 0, 3), &["d"]).await.unwrap_err();
    assert_eq!(fenced.reason(), "PRODUCER_FENCED");
    let values: Vec<String> = read_all(&broker, "t", 0)
        .await
        .unwrap()
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    assert_eq!(values, ["a", "b", "c", "d"]);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_duplicate_is_not_acknowledged_before_the_first_is_durable() {
    let disk = SimDisk::new(4);
    let broker = open(&disk);
    create(&broker, "t", 1).await.unwrap();
    let id = broker.init_producer().await.unwrap();
    let hang = disk.hang(OpFilter::op(DiskOp::Sync).on("t-0"));
    let one = || vec![record(None, "a")];
    let mut first = submit(&broker, Acks::All, stamp(id, 0, 0), one())
        .await
        .unwrap();
    let mut second = submit(&broker, Acks::All, stamp(id, 0, 0), one())
        .await
        .unwrap();
    // On a thread of its own, since it blocks.
    let hung = tokio::task::spawn_blocking(move || {
        hang.wait_until_one_hangs();
        hang
    });
    let hang = hung.await.unwrap();
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none(), "not durable yet");
    drop(hang);
    let first = first.await.remove(0).result.unwrap();
    let second = second.await.remove(0).result.unwrap();
    assert_eq!((first.duplicate, second.duplicate), (false, true));
    assert_eq!(first.base_offset, second.base_offset);
    assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), 1);
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_producer_that_was_silent_for_too_long_is_forgotten() {
    let disk = SimDisk::new(5);
    let clock = Arc::new(FakeClock::default());
    clock.millis.store(1_000_000, Ordering::SeqCst);
    let seams = Seams {
        clock: clock.clone(),
        ..seams(&disk)
    };
    let config = BrokerConfig {
        producer_id_expiration: Duration::from_secs(100),
        ..config()
    };
    let broker = Broker::open(config, seams).unwrap();
    create(&broker, "t", 1).await.unwrap();
    let id = broker.init_producer().await.unwrap();
    send(&broker, stamp(id, 0, 0), &["a"]).await.unwrap();
    let pass = |seconds: i64| {
        clock.millis.fetch_add(seconds * 1000, Ordering::SeqCst);
        let broker = broker.clone();
        tokio::task::spawn_blocking(move || broker.apply_retention())
    };
    pass(99).await.unwrap();
    send(&broker, stamp(id, 0, 1), &["b"]).await.unwrap();
    pass(99).await.unwrap();
    send(&broker, stamp(id, 0, 2), &["c"]).await.unwrap();
    pass(101).await.unwrap();
    let refused = send(&broker, stamp(id, 0, 3), &["d"]).await.unwrap_err();
    assert_eq!(refused.reason(), "UNKNOWN_PRODUCER");
    // It begins anew.
    send(&broker, stamp(id, 1, 0), &["d"]).await.unwrap();
    assert_eq!(read_all(&broker, "t", 0).await.unwrap().len(), 4);
    broker.stop().await.unwrap();
}

/// A producer that sends its batches one after the other, each until it is acknowledged.
struct Retrying {
    id: i64,
    next: i32,
    batches: i32,
}

impl Retrying {
    /// Sends on until all is acknowledged, or the broker takes no more.
    async fn run(&mut self, broker: &Broker, rng: &mut SimRng) {
        while self.next < self.batches {
            // Long, so that segments roll.
            let value = format!("{:<40000}", format!("{}/{}", self.id, self.next));
            let sent = send(broker, stamp(self.id, 0, self.next), &[&value]).await;
            match sent {
                Ok(_) => self.next += 1,
                Err(_) => return,
            }
            // As if the answer was lost.
            if rng.chance(20) {
                self.next -= 1;
            }
        }
    }
}

#[tokio::test]
async fn whatever_crashes_every_batch_is_stored_once() {
    let seeds = match std::env::var("TIDELOG_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..60,
    };
    for seed in seeds {
        eprintln!(
            "seed {seed}; replay: TIDELOG_SEED={seed} cargo test -p tidelog-broker --test producers"
        );
        let mut rng = SimRng::new(seed);
        let disk = SimDisk::new(rng.next_u64());
        let broker = open(&disk);
        let new = support::new_topic("t", 1, &[("segment.bytes", "1048576")]);
        broker.create_topic(new).await.unwrap();
        let mut producers = Vec::new();
        for _ in 0..3 {
            producers.push(Retrying {
                id: broker.init_producer().await.unwrap(),
                next: 0,
                batches: 25,
            });
        }
        let mut broker = Some(broker);
        while producers
            .iter()
            .any(|producer| producer.next < producer.batches)
        {
            let running = broker.take().unwrap_or_else(|| open(&disk));
            let ops = [DiskOp::Write, DiskOp::Sync];
            let op = ops[rng.index(ops.len())];
            let filter = OpFilter::op(op).on("t-0");
            let nth = 1 + rng.below(20);
            disk.fail_nth(filter, nth, InjectedError::Io, FailMode::Forever);
            let mut rngs = [(); 3].map(|()| SimRng::new(rng.next_u64()));
            let [a, b, c] = &mut producers[..] else {
                unreachable!("three were made")
            };
            let [ra, rb, rc] = &mut rngs;
            tokio::join!(
                a.run(&running, ra),
                b.run(&running, rb),
                c.run(&running, rc)
            );
            drop(running);
            disk.stop_failing();
            if rng.chance(50) {
                disk.crash();
            } else {
                disk.kill();
            }
        }
        let broker = open(&disk);
        let values: Vec<String> = read_all(&broker, "t", 0)
            .await
            .unwrap()
            .into_iter()
            .map(|(_, value)| value.trim_end().to_owned())
            .collect();
        assert_eq!(values.len(), 75, "seed {seed}: {values:?}");
        for producer in &producers {
            let own = format!("{}/", producer.id);
            let own: Vec<&String> = values
                .iter()
                .filter(|value| value.starts_with(&own))
                .collect();
            let expected: Vec<String> = (0..25).map(|n| format!("{}/{n}", producer.id)).collect();
            assert_eq!(own, expected.iter().collect::<Vec<_>>(), "seed {seed}");
        }
        broker.stop().await.unwrap();
    }
}
