//! Clusters of real processes: several brokers that die at once, one that dies at every start, one that has no
//! memory left, and many readers of what is old.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

#[path = "support/cluster.rs"]
mod harness;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Cluster, Load};
use tidelog_client::{Client, NewTopic, Reader, ReaderConfig, TopicName};
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::{AppendRequest, append_request};

use tokio::task::JoinSet;
use tonic::transport::Channel;

const PARTITIONS: u32 = 3;

async fn five_replicas(cluster: &Cluster) -> TopicName {
    let new = NewTopic {
        partitions: PARTITIONS,
        replication_factor: 5,
        ..NewTopic::default()
    };
    cluster.create_as("t", new).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_are_killed_at_once_and_nothing_stops() {
    let mut cluster = Cluster::found(5).await;
    let topic = five_replicas(&cluster).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    for _ in 0..2 {
        load.more_of_each(300).await;
        let leader = cluster.leader(&topic, 0).await;
        let other = leader % 5 + 1;
        cluster.kill(leader);
        cluster.kill(other);
        load.more_of_each(300).await;
        cluster.spawn(leader);
        cluster.spawn(other);
        cluster.all_ready().await;
        cluster.is_well().await;
    }
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_five_is_killed_in_turn() {
    let mut cluster = Cluster::found(5).await;
    let topic = five_replicas(&cluster).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    for id in 1..=5 {
        load.more_of_each(200).await;
        cluster.kill(id);
        load.more_of_each(200).await;
        cluster.start(id).await;
        cluster.is_well().await;
    }
    load.check(&cluster, &topic).await;
}

/// The sum of the leader epochs: how often leaderships have changed.
async fn epochs(cluster: &Cluster, topic: &TopicName) -> u32 {
    let places = cluster.client().list_partitions(Some(topic)).await.unwrap();
    places.iter().map(|place| place.leader_epoch).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_at_every_start_is_done_without() {
    const ROUNDS: u32 = 12;
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more_of_each(200).await;
    let before = epochs(&cluster, &topic).await;
    cluster.kill(2);
    for round in 0..ROUNDS {
        cluster.spawn(2);
        match round % 4 {
            // Before it has done anything; somewhere on its way; when it serves; when it is counted on.
            0 => {}
            1 => load.more(u64::from(round) * 200).await,
            2 => cluster.serves(2).await,
            _ => cluster.all_ready().await,
        }
        cluster.kill(2);
        load.more_of_each(100).await;
    }
    // Where it was there for long enough it may have led again, what it is to lead; no more than that.
    let after = epochs(&cluster, &topic).await;
    assert!(
        after - before <= 2 * (ROUNDS + PARTITIONS),
        "{before} to {after}"
    );
    cluster.start(2).await;
    cluster.is_well().await;
    load.more_of_each(200).await;
    load.check(&cluster, &topic).await;
}

/// A request that is refused, and has to be in memory before.
fn too_large() -> AppendRequest {
    AppendRequest {
        topic: "t".to_owned(),
        partition: Some(0),
        payload: Some(append_request::Payload::Batch(vec![7; 15 << 20].into())),
        ..AppendRequest::default()
    }
}

/// Whoever gets no memory dies of it, wherever it is just then.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_gets_no_more_memory_dies_and_is_done_without() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more_of_each(200).await;
    let ill = cluster.leader(&topic, 0).await;
    let channel = Channel::from_shared(format!("http://{}", cluster.nodes[&ill].grpc)).unwrap();
    let log = LogClient::new(channel.connect().await.unwrap());
    let pid = cluster.pid(ill);
    let has = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let data = has.lines().find(|line| line.starts_with("VmData:"));
    let kib = data
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap();
    let limit = Rlimit {
        current: Some(kib.parse::<u64>().unwrap() * 1024),
        maximum: getrlimit(Resource::Data).maximum,
    };
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    prlimit(pid, Resource::Data, limit).unwrap();
    // What it has may be enough for the load, and is not for these, which it would refuse.
    let pressing = async {
        loop {
            let requests = (0..4).map(|_| {
                let mut log = log.clone();
                async move { log.append(too_large()).await.map(drop) }
            });
            let _refused = requests.collect::<JoinSet<_>>().join_all().await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), cluster.ended(ill));
    let status = tokio::select! {
        status = ended => status.expect("it dies within a minute"),
        () = pressing => unreachable!("it goes on for ever"),
    };
    assert!(!status.success(), "{status}");
    load.more_of_each(300).await;
    cluster.start(ill).await;
    cluster.is_well().await;
    load.more_of_each(200).await;
    load.check(&cluster, &topic).await;
}

/// Reads all that there is when it begins, from the first record on, and gives how many of each partition.
async fn read_in_order(client: Client, topic: TopicName) -> BTreeMap<u32, u64> {
    let config = ReaderConfig::new(topic);
    let mut reader = Reader::open(client, config).await.unwrap();
    let mut next = BTreeMap::<u32, u64>::new();
    while let Some(record) = reader.next().await {
        let record = record.unwrap();
        let partition = record.partition.get();
        let number = next.entry(partition).or_default();
        // One producer has sent them, in order, so that they have the numbers of their offsets.
        let value = format!("{partition}/{number}");
        assert_eq!(record.offset.get(), *number, "{value}");
        assert_eq!(record.value.unwrap(), value.as_bytes());
        *number += 1;
    }
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_what_is_old_get_all_in_order_beside_producers() {
    const READERS: usize = 16;
    let cluster = Cluster::found(3).await;
    let new = NewTopic {
        partitions: PARTITIONS,
        replication_factor: 3,
        // As short as they can be, so that most of the segments are sealed and cold.
        settings: [("segment.bytes", "1048576"), ("max.message.bytes", "65536")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..NewTopic::default()
    };
    let topic = cluster.create_as("t", new).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more_of_each(50_000).await;
    let readers: JoinSet<_> = (0..READERS)
        .map(|_| read_in_order(cluster.client(), topic.clone()))
        .collect();
    for read in readers.join_all().await {
        assert_eq!(read.len(), PARTITIONS as usize);
        assert!(read.values().all(|count| *count >= 50_000), "{read:?}");
    }
    load.more_of_each(200).await;
    load.check(&cluster, &topic).await;
}
