//! Clusters of real processes of which one has a disk that is full, or whose syncs fail.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]
#![cfg(target_os = "linux")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/cluster.rs"]
mod harness;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use disk::{BadSyncs, Mounted, skip};
use harness::{Cluster, Load};
use tidelog_client::proto::{ProblemKind, ResigningCause};
use tidelog_client::{NewTopic, TopicName};

const PARTITIONS: u32 = 3;
/// The broker whose disk it is.
const ILL: u32 = 2;

/// A topic of which each broker leads a partition.
async fn spread(cluster: &Cluster) -> TopicName {
    let new = NewTopic {
        assignment: vec![vec![1, 2, 3], vec![2, 3, 1], vec![3, 1, 2]],
        ..NewTopic::default()
    };
    let topic = cluster.create_as("t", new).await;
    assert_eq!(cluster.leader(&topic, 1).await, ILL);
    topic
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_disk_is_full_is_done_without_and_catches_up_when_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::tmpfs(&dir.path().join("fs"), "size=128m") else {
        return;
    };
    let mut cluster = Cluster::unfounded(3).await;
    cluster.nodes.get_mut(&ILL).unwrap().data_dir = mounted.dir.join("data");
    cluster.start_all().await;
    let topic = spread(&cluster).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more_of_each(200).await;
    mounted.fill_up_to(0);
    load.more_of_each(500).await;
    until_it_resigns(&cluster, ResigningCause::NoSpace).await;
    mounted.remove_ballast();
    cluster.is_well().await;
    load.more_of_each(200).await;
    load.check(&cluster, &topic).await;
}

async fn until_it_resigns(cluster: &Cluster, why: ResigningCause) {
    cluster
        .until("it is said why it leads nothing", |described| {
            let ill = described
                .brokers
                .iter()
                .find(|broker| broker.node_id == ILL);
            ill.is_some_and(|ill| ill.resigning() == why)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_disk_hangs_is_done_without_until_it_goes_on() {
    let cluster = Cluster::found(3).await;
    let topic = spread(&cluster).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more_of_each(200).await;
    let Some(hanging) = BadSyncs::hang(cluster.pid(ILL)) else {
        return skip("this process may not hold up the syncs of another with strace");
    };
    until_it_resigns(&cluster, ResigningCause::DiskHangs).await;
    load.more_of_each(300).await;
    let broker = [("TIDELOG_BROKER", cluster.nodes[&1].grpc.as_str())];
    let health = support::run(&["cluster", "health"], &broker, b"");
    let said = String::from_utf8(health.stdout).unwrap();
    let named = "broker 2 is alive, with a disk that hangs";
    assert!(said.contains(named), "{said}");
    assert_eq!(health.status.code(), Some(1));
    drop(hanging);
    cluster.is_well().await;
    load.more_of_each(200).await;
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_syncs_fail_is_done_without_until_its_next_start() {
    let mut cluster = Cluster::found(3).await;
    let topic = spread(&cluster).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more_of_each(200).await;
    let Some(failing) = BadSyncs::fail(cluster.pid(ILL)) else {
        return skip("this process may not make the syncs of another fail with strace");
    };
    cluster
        .until("each of its replicas is said to be faulted", |described| {
            let faults = described.problems.iter().filter(|problem| {
                problem.kind() == ProblemKind::Faulted && problem.cause.contains("broker 2")
            });
            faults.count() == PARTITIONS as usize
        })
        .await;
    load.more_of_each(300).await;
    drop(failing);
    // The disk is well again, and what failed is not trusted all the same.
    load.more_of_each(300).await;
    let broker = [("TIDELOG_BROKER", cluster.nodes[&1].grpc.as_str())];
    let status = support::run(&["cluster", "status"], &broker, b"");
    let said = String::from_utf8(status.stdout).unwrap();
    assert!(said.contains("3 not well: 3 faulted"), "{said}");
    cluster.kill(ILL);
    cluster.start(ILL).await;
    cluster.is_well().await;
    load.more_of_each(200).await;
    load.check(&cluster, &topic).await;
}
