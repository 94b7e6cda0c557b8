//! Groups and their committed offsets: durable like any other record, at whichever broker.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::time::Duration;

use support::cluster::Cluster;
use support::{append, config, create, seams};
use tidelog_broker::{Broker, BrokerConfig, CoordinatorError, Facts, OFFSETS_TOPIC};
use tidelog_disk::DiskOp;
use tidelog_group::{
    Answer, CommitOffsets, Committer, FetchOffsets, GroupId, NewOffset, OffsetError, Request,
};
use tidelog_record::{Offset, TopicName};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

async fn commit(
    broker: &Broker,
    of: &str,
    offset: u64,
) -> Result<Result<(), OffsetError>, CoordinatorError> {
    let new = NewOffset {
        topic: TopicName::new("t").unwrap(),
        topic_id: None,
        partition: 0,
        offset: Offset::new(offset).unwrap(),
        leader_epoch: None,
        metadata: format!("up to {offset}"),
        end: None,
    };
    let commit = CommitOffsets {
        group: group(of),
        committer: Committer::Alone,
        allow_backwards: false,
        offsets: vec![new],
    };
    match broker
        .ask_group(&group(of), Request::Commit(commit))
        .await?
    {
        Answer::Committed(mut results) => Ok(results.remove(0)),
        other => panic!("{other:?}"),
    }
}

async fn committed(broker: &Broker, of: &str) -> Result<Option<u64>, CoordinatorError> {
    let fetch = FetchOffsets {
        group: group(of),
        partitions: Some(vec![(TopicName::new("t").unwrap(), 0)]),
    };
    match broker
        .ask_group(&group(of), Request::Committed(fetch))
        .await?
    {
        Answer::Offsets(mut offsets) => {
            let committed = offsets.remove(0).committed;
            if let Some(committed) = &committed {
                assert_eq!(committed.metadata, format!("up to {}", committed.offset));
            }
            Ok(committed.map(|committed| committed.offset.get()))
        }
        other => panic!("{other:?}"),
    }
}

/// How many batches were appended to all logs.
fn batches(broker: &Broker) -> u64 {
    let text = broker.metrics_text();
    let line = text
        .lines()
        .find(|line| line.starts_with("tidelog_append_batches_total"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// Until the coordinator has its groups.
async fn loaded<T>(ask: impl AsyncFn() -> Result<T, CoordinatorError>) -> T {
    let answered = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(CoordinatorError::Loading { .. }) => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        }
    };
    let answered = tokio::time::timeout(Duration::from_secs(60), answered);
    answered.await.expect("it is loaded by then")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_survives_a_stop_and_a_loss_of_power() {
    let disk = SimDisk::new(1);
    let mut broker = Broker::open(config(), seams(&disk)).unwrap();
    create(&broker, "t", 1).await.unwrap();
    for number in 0..10 {
        append(&broker, "t", &number.to_string()).await.unwrap();
    }
    for round in 1..=4u64 {
        for of in ["g", "h", "another group"] {
            loaded(async || commit(&broker, of, round).await)
                .await
                .unwrap();
            assert_eq!(committed(&broker, of).await.unwrap(), Some(round));
        }
        if round % 2 == 0 {
            broker.stop().await.unwrap();
        }
        drop(broker);
        disk.crash();
        let more = BrokerConfig {
            offsets_partitions: 9,
            ..config()
        };
        broker = Broker::open(more, seams(&disk)).unwrap();
        for of in ["g", "h", "another group"] {
            let found = loaded(async || committed(&broker, of).await).await;
            assert_eq!(found, Some(round), "{of}");
        }
    }
    // Made with 3 partitions, and it stays so whatever is configured later.
    assert_eq!(broker.partitions_of(OFFSETS_TOPIC).unwrap(), 3);
    let refused = append(&broker, OFFSETS_TOPIC, "forged").await.unwrap_err();
    assert_eq!(refused.reason(), "INTERNAL_TOPIC");
    let refused = broker.delete_topic(OFFSETS_TOPIC).await.unwrap_err();
    assert_eq!(refused.reason(), "INTERNAL_TOPIC");
    let refused = broker.add_partitions(OFFSETS_TOPIC, 9).await.unwrap_err();
    assert_eq!(refused.reason(), "INTERNAL_TOPIC");
    broker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_come_together_are_written_together() {
    let disk = SimDisk::new(2);
    let broker = Broker::open(config(), seams(&disk)).unwrap();
    create(&broker, "t", 1).await.unwrap();
    loaded(async || commit(&broker, "g", 0).await)
        .await
        .unwrap();
    let before = batches(&broker);
    let hang = disk.hang(OpFilter::op(DiskOp::Sync).on(OFFSETS_TOPIC));
    let first = tokio::spawn({
        let broker = broker.clone();
        async move { commit(&broker, "g", 1).await }
    });
    let hang = tokio::task::spawn_blocking(move || {
        hang.wait_until_one_hangs();
        hang
    });
    let hang = hang.await.unwrap();
    // All of these wait for the one that is under way.
    let rest = (2..100u64).map(|offset| commit(&broker, "g", offset));
    let mut rest = Box::pin(futures_util::future::join_all(rest));
    let pending = std::future::poll_fn(|context| {
        std::task::Poll::Ready(rest.as_mut().poll(context).is_pending())
    });
    assert!(pending.await);
    drop(hang);
    first.await.unwrap().unwrap().unwrap();
    let done = rest.await;
    // They need not come in the order in which they were begun.
    let is_done = |one: &Result<_, _>| matches!(one, Ok(Ok(()) | Err(OffsetError::Behind { .. })));
    let refused = done.iter().find(|one| !is_done(one));
    assert!(refused.is_none(), "{refused:?}");
    let written = batches(&broker) - before;
    assert!(written <= 4, "{written} batches for 99 commits");
    assert_eq!(committed(&broker, "g").await.unwrap(), Some(99));
    broker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_not_durable_is_not_acknowledged() {
    let disk = SimDisk::new(3);
    let broker = Broker::open(config(), seams(&disk)).unwrap();
    create(&broker, "t", 1).await.unwrap();
    loaded(async || commit(&broker, "g", 5).await)
        .await
        .unwrap();
    let fails = OpFilter::op(DiskOp::Sync).on(OFFSETS_TOPIC);
    disk.fail_nth(fails, 1, InjectedError::Io, FailMode::Forever);
    let refused = commit(&broker, "g", 6).await.unwrap_err();
    assert_eq!(refused.reason(), "OUTCOME_UNKNOWN", "{refused}");
    // The log takes no more, and nobody is told what may be lost.
    let refused = commit(&broker, "g", 7).await.unwrap_err();
    assert_eq!(refused.reason(), "PARTITION_FAULTED", "{refused}");
    drop(broker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_are_too_old_are_forgotten() {
    let disk = SimDisk::new(4);
    let broker = Broker::open(config(), seams(&disk)).unwrap();
    create(&broker, "t", 1).await.unwrap();
    loaded(async || commit(&broker, "g", 5).await)
        .await
        .unwrap();
    broker.stop().await.unwrap();
    drop(broker);
    // Whoever carried the stop out may hold the broker a moment longer.
    disk.kill();
    let config = BrokerConfig {
        offsets_retention: Duration::ZERO,
        ..config()
    };
    let broker = Broker::open(config, seams(&disk)).unwrap();
    let forgotten = async {
        while loaded(async || committed(&broker, "g").await)
            .await
            .is_some()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), forgotten)
        .await
        .unwrap();
    broker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_survives_the_coordinator_and_never_goes_back() {
    let mut cluster = Cluster::new();
    cluster.topic("t", 1, &[]).await;
    let mut acknowledged = 0;
    for round in 1..=3u64 {
        let mut coordinator = 0;
        for number in 0..10 {
            let offset = round * 10 + number;
            let (at, ()) = cluster
                .anywhere("a commit", async |broker| {
                    match commit(broker, "g", offset).await {
                        Ok(Ok(()) | Err(OffsetError::Behind { .. })) => Ok(()),
                        Ok(Err(e)) => panic!("{e}"),
                        // Once more does no harm.
                        Err(CoordinatorError::Unknown { .. }) => {
                            Err(CoordinatorError::NoLeader { partition: 0 })
                        }
                        Err(e) => Err(e),
                    }
                })
                .await;
            coordinator = at;
            acknowledged = offset;
        }
        cluster.crash(coordinator);
        let (_, found) = cluster
            .anywhere("a look-up", async |broker| committed(broker, "g").await)
            .await;
        assert_eq!(found, Some(acknowledged));
        cluster.start(coordinator);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_was_replaced_tells_nothing_old() {
    let cluster = Cluster::new();
    cluster.topic("t", 1, &[]).await;
    let set = async |broker: &Broker, offset| match commit(broker, "g", offset).await {
        Ok(result) => {
            result.unwrap();
            Ok(())
        }
        Err(e) => Err(e),
    };
    let (old, ()) = cluster
        .anywhere("a commit", async |broker| set(broker, 5).await)
        .await;
    *cluster.net.cut_off.lock() = Some(old);
    let others: Vec<_> = cluster
        .brokers
        .iter()
        .filter(|(id, _)| **id != old)
        .collect();
    let moved = async {
        loop {
            for (_, broker) in &others {
                if let Ok(Ok(())) = commit(broker, "g", 6).await {
                    return;
                }
            }
            cluster.net.arrived.notified().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), moved)
        .await
        .unwrap();
    // It may not know yet that it was replaced; it cannot make sure that it leads, and so says nothing.
    let asked = committed(&cluster.brokers[&old], "g");
    match tokio::time::timeout(Duration::from_secs(2), asked).await {
        Err(_elapsed) => {}
        Ok(Err(e)) => assert_ne!(e.reason(), "INTERNAL", "{e}"),
        Ok(Ok(found)) => panic!("it told {found:?}, which is old"),
    }
    *cluster.net.cut_off.lock() = None;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_while_the_topic_of_groups_is_made_is_told_to_come_again() {
    let disk = SimDisk::new(5);
    let broker = Broker::open(config(), seams(&disk)).unwrap();
    create(&broker, "t", 1).await.unwrap();
    let hang = disk.hang(OpFilter::ops(&[DiskOp::Sync, DiskOp::SyncDir]).on(OFFSETS_TOPIC));
    let refused = commit(&broker, "g", 0).await.unwrap_err();
    assert_eq!(refused.reason(), "COORDINATOR_NOT_AVAILABLE", "{refused}");
    assert!(refused.retry_after().is_some());
    drop(hang);
    let made = async {
        loop {
            match commit(&broker, "g", 0).await {
                Ok(result) => return result.unwrap(),
                Err(e) => assert!(e.retry_after().is_some(), "{e}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), made)
        .await
        .unwrap();
    broker.stop().await.unwrap();
}
