//! Three brokers in one process, each with a disk of its own, and a network that a test may cut.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::time::Duration;

use support::cluster::Cluster;
use support::{record, submit};
use tidelog_broker::{Acks, Broker, Facts};
use tidelog_disk::DiskOp;
use tidelog_sim::OpFilter;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_survives_the_leader_and_is_the_same_everywhere() {
    let mut cluster = Cluster::new();
    cluster.topic("t", 1, &[]).await;

    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut leader = 0;
        let mut end = 0;
        for number in 0..50 {
            let value = format!("{round}/{number}");
            let (at, offset) = cluster.append("t", &value).await;
            (leader, end) = (at, offset.get() + 1);
            acknowledged.push(value);
        }
        cluster.crash(leader);
        for number in 50..80 {
            let value = format!("{round}/{number}");
            end = cluster.append("t", &value).await.1.get() + 1;
            acknowledged.push(value);
        }
        cluster.start(leader);
        let values = cluster.same_everywhere("t", end).await;
        // In order; what was not acknowledged at once may be there again.
        let mut found = values.iter();
        for value in &acknowledged {
            assert!(found.any(|found| found == value), "{value} is lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_syncs_hang_is_done_without_and_comes_back() {
    let mut cluster = Cluster::new();
    cluster.topic("t", 1, &[]).await;
    let (leader, _) = cluster.append("t", "first").await;
    let mut acknowledged = vec!["first".to_owned()];
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let mut end = 0;
    for hung in [follower, leader] {
        let hang = cluster.disks[&hung].hang(OpFilter::op(DiskOp::Sync));
        let broker = cluster.brokers.remove(&hung).unwrap();
        // Where it leads, it has this one, and answers only once its disk goes on.
        let asked = broker.clone();
        let asked = tokio::spawn(async move {
            let records = vec![record(None, "of the one that hangs")];
            if let Ok(pending) = submit(&asked, "t", Some(0), Acks::All, records).await {
                pending.await;
            }
        });
        let hangs = tokio::task::spawn_blocking(move || {
            hang.wait_until_one_hangs();
            hang
        });
        for number in 0..20 {
            let value = format!("{hung}/{number}");
            end = cluster.append("t", &value).await.1.get() + 1;
            acknowledged.push(value);
        }
        drop(hangs.await.unwrap());
        cluster.brokers.insert(hung, broker);
        tokio::time::timeout(Duration::from_secs(60), asked)
            .await
            .expect("whoever asked is answered")
            .unwrap();
    }
    let values = cluster.same_everywhere("t", end).await;
    let mut found = values.iter();
    for value in &acknowledged {
        assert!(found.any(|found| found == value), "{value} is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_write_caching_nobody_waits_for_a_sync_and_nothing_is_read_before_it() {
    let cluster = Cluster::new();
    cluster.topic("t", 1, &[("write.caching", "true")]).await;
    let (leader, _) = cluster.append("t", "first").await;
    cluster.same_everywhere("t", 1).await;
    let sync = OpFilter::op(DiskOp::Sync);
    let hangs = cluster.disks.values().map(|disk| disk.hang(sync.clone()));
    let hangs: Vec<_> = hangs.collect();
    let broker = &cluster.brokers[&leader];
    let records = vec![record(None, "second")];
    let pending = submit(broker, "t", Some(0), Acks::All, records)
        .await
        .unwrap();
    let appended = tokio::time::timeout(Duration::from_secs(60), pending).await;
    let appended = appended
        .expect("it waits for no sync")
        .remove(0)
        .result
        .unwrap();
    assert_eq!(appended.base_offset.get(), 1);
    let ends = broker.partition("t", 0).unwrap().ends();
    assert_eq!(ends.high_watermark.get(), 1, "it is not committed");
    drop(hangs);
    assert_eq!(cluster.same_everywhere("t", 2).await, ["first", "second"]);
}

/// Its thread goes on, and would lead on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_syncs_hang_in_the_background_leads_nothing_that_others_can() {
    let cluster = Cluster::new();
    cluster.topic("t", 1, &[("write.caching", "true")]).await;
    let (leader, _) = cluster.append("t", "first").await;
    cluster.same_everywhere("t", 1).await;
    let hang = cluster.disks[&leader].hang(OpFilter::op(DiskOp::Sync));
    let broker = &cluster.brokers[&leader];
    let records = vec![record(None, "second")];
    let pending = submit(broker, "t", Some(0), Acks::All, records)
        .await
        .unwrap();
    pending.await.remove(0).result.unwrap();
    cluster
        .until("another leads", |broker| {
            let places = broker.partition_places(None);
            let led = places.iter().find(|place| place.topic == "t");
            led.is_some_and(|place| place.leader.is_some_and(|id| id != leader))
        })
        .await;
    drop(hang);
    cluster.append("t", "third").await;
    assert_eq!(
        cluster.same_everywhere("t", 3).await,
        ["first", "second", "third"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_decided_by_one_and_carried_out_by_all() {
    let mut cluster = Cluster::new();
    for name in ["a", "b", "c"] {
        let leader = cluster.topic(name, 2, &[]).await;
        cluster.append(name, "first").await;
        // Whoever decided goes, with its power; another one decides.
        cluster.crash(leader);
        let delete = async |broker: &Broker| broker.add_partitions(name, 4).await;
        cluster.anywhere("more partitions", delete).await;
        cluster.start(leader);
        cluster
            .until("all have more partitions", |broker| {
                broker.partition(name, 3).is_ok()
            })
            .await;
    }
    let delete = async |broker: &Broker| broker.delete_topic("b").await;
    cluster.anywhere("a deletion", delete).await;
    cluster
        .until("it is gone everywhere", |broker| {
            broker.partition("b", 0).is_err()
        })
        .await;
    assert_eq!(cluster.same_everywhere("a", 1).await, ["first"]);
    assert_eq!(cluster.same_everywhere("c", 1).await, ["first"]);
    for broker in cluster.brokers.values() {
        assert_eq!(broker.health().faults, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_hears_acknowledges_nothing() {
    let cluster = Cluster::new();
    cluster.topic("t", 1, &[]).await;
    let (leader, _) = cluster.append("t", "first").await;
    *cluster.net.cut_off.lock() = Some(leader);
    let alone = &cluster.brokers[&leader];
    let records = vec![record(None, "lost?")];
    let pending = submit(alone, "t", Some(0), Acks::All, records)
        .await
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(30), pending).await;
    let e = answer.unwrap().remove(0).result.unwrap_err();
    assert!(
        ["OUTCOME_UNKNOWN", "NOT_LEADER"].contains(&e.reason()),
        "{e}"
    );
    // The others go on meanwhile, and the one that was alone takes what they have.
    let (_, offset) = cluster.append("t", "second").await;
    *cluster.net.cut_off.lock() = None;
    let values = cluster.same_everywhere("t", offset.get() + 1).await;
    assert_eq!(values, ["first", "second"]);
}
