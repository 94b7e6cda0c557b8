//! Reading from, and administration of, a cluster in which partitions are led by several brokers.

use std::collections::BTreeMap;
use std::time::Duration;

use tidelog_client::{
    Backoff, Client, Compression, OffsetSpec, PartitionId, Reader, ReaderConfig, TopicName,
};

use crate::fake::Cluster;

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

fn config() -> ReaderConfig {
    ReaderConfig {
        backoff: Backoff {
            min: Duration::from_millis(1),
            max: Duration::from_millis(5),
        },
        ..ReaderConfig::new(topic())
    }
}

/// The offsets of each partition in the order they come, so many records or to the end.
async fn read(reader: &mut Reader, count: usize) -> BTreeMap<u32, Vec<u64>> {
    let mut offsets = BTreeMap::<_, Vec<_>>::new();
    for _ in 0..count {
        let next = tokio::time::timeout(Duration::from_secs(20), reader.next());
        let Some(record) = next.await.expect("it never comes") else {
            break;
        };
        let record = record.unwrap();
        let of = offsets.entry(record.partition.get()).or_default();
        of.push(record.offset.get());
    }
    offsets
}

fn filled(cluster: &Cluster, partitions: u32, count: u64) {
    for partition in 0..partitions {
        cluster.fake().fill(partition, count, 5, Compression::None);
    }
}

#[tokio::test]
async fn each_partition_is_read_from_its_leader() {
    let cluster = Cluster::start(3, 6).await;
    filled(&cluster, 6, 50);
    let mut reader = Reader::open(cluster.client(&[3]), config()).await.unwrap();
    assert_eq!(reader.ranges().len(), 6);
    let offsets = read(&mut reader, usize::MAX).await;
    for partition in 0..6 {
        assert_eq!(offsets[&partition], (0..50).collect::<Vec<_>>());
    }
    let state = cluster.fake().state();
    let mut reads = state.reads.clone();
    reads.sort();
    assert_eq!(reads, [(1, vec![0, 3]), (2, vec![1, 4]), (3, vec![2, 5])]);
    let credit = state.starts.iter().map(|start| start.credit_bytes);
    assert!(credit.sum::<u64>() <= config().credit_bytes);
}

#[tokio::test]
async fn partitions_that_move_are_read_on_at_their_new_leaders() {
    for has_hints in [true, false] {
        let cluster = Cluster::start(3, 3).await;
        cluster.fake().state().has_hints = has_hints;
        let config = ReaderConfig {
            follow: true,
            ..config()
        };
        let mut reader = Reader::open(cluster.client(&[1]), config).await.unwrap();
        let mut all = BTreeMap::<u32, Vec<u64>>::new();
        for turn in 0..12 {
            cluster.lead(turn % 3, Some((turn + turn / 3 + 1) % 3 + 1));
            for partition in 0..3 {
                cluster.fake().add(partition, 0);
            }
            for (partition, offsets) in read(&mut reader, 3).await {
                all.entry(partition).or_default().extend(offsets);
            }
        }
        for partition in 0..3 {
            assert_eq!(all[&partition], (0..12).collect::<Vec<_>>());
        }
        assert!(cluster.fake().state().not_leader > 0);
    }
}

#[tokio::test]
async fn others_are_read_on_untouched_while_a_leader_dies() {
    let mut cluster = Cluster::start(3, 3).await;
    let config = ReaderConfig {
        follow: true,
        ..config()
    };
    let mut reader = Reader::open(cluster.client(&[1]), config).await.unwrap();
    filled(&cluster, 3, 5);
    assert_eq!(read(&mut reader, 15).await.len(), 3);
    cluster.lead(0, None);
    cluster.kill(1).await;
    for partition in 0..3 {
        cluster.fake().add(partition, 0);
    }
    let offsets = read(&mut reader, 2).await;
    assert_eq!(offsets, BTreeMap::from([(1, vec![5]), (2, vec![5])]));
    cluster.lead(0, Some(2));
    assert_eq!(read(&mut reader, 1).await, BTreeMap::from([(0, vec![5])]));
    let state = cluster.fake().state();
    let untouched = state.reads.iter().filter(|(_, of)| of.contains(&2));
    assert_eq!(untouched.count(), 1, "its stream of the beginning");
}

#[tokio::test]
async fn a_leader_that_is_dead_at_the_start_is_waited_for() {
    let mut cluster = Cluster::start(2, 2).await;
    filled(&cluster, 2, 10);
    let client = cluster.client(&[2]);
    cluster.kill(1).await;
    let opening = tokio::spawn(Reader::open(client, config()));
    cluster.fake().until(|state| state.describes >= 3).await;
    cluster.lead(0, Some(2));
    let mut reader = opening.await.unwrap().unwrap();
    let offsets = read(&mut reader, usize::MAX).await;
    // What came before all had begun is not lost.
    assert_eq!(offsets[&0], (0..10).collect::<Vec<_>>());
    assert_eq!(offsets[&1], (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn replicas_are_read_from_where_that_is_wanted() {
    let cluster = Cluster::start(3, 3).await;
    filled(&cluster, 3, 10);
    let config = ReaderConfig {
        read_replica: true,
        ..config()
    };
    let mut reader = Reader::open(cluster.client(&[2]), config).await.unwrap();
    assert_eq!(read(&mut reader, usize::MAX).await.len(), 3);
    let state = cluster.fake().state();
    assert_eq!(state.reads, [(2, vec![0, 1, 2])]);
    assert!(state.starts[0].read_replica);
}

#[tokio::test]
async fn the_last_broker_is_read_though_it_does_not_know_who_leads() {
    let mut cluster = Cluster::start(3, 3).await;
    filled(&cluster, 3, 10);
    for partition in 0..3 {
        cluster.lead(partition, None);
    }
    cluster.kill(1).await;
    cluster.kill(3).await;
    let config = ReaderConfig {
        read_replica: true,
        // None of those that are dead may be tried before it.
        retry_timeout: Duration::ZERO,
        ..config()
    };
    let mut reader = Reader::open(cluster.client(&[2]), config).await.unwrap();
    assert_eq!(read(&mut reader, usize::MAX).await.len(), 3);
    assert_eq!(cluster.fake().state().reads, [(2, vec![0, 1, 2])]);
}

fn latest(partitions: u32) -> Vec<(PartitionId, OffsetSpec)> {
    (0..partitions)
        .rev()
        .map(|partition| (PartitionId::new(partition), OffsetSpec::Latest))
        .collect()
}

async fn look_up(client: &Client, partitions: u32) -> Vec<(u32, u64)> {
    let found = client.list_offsets(&topic(), &latest(partitions)).await;
    let found = found.unwrap().into_iter();
    found
        .map(|found| (found.partition.get(), found.offset.get()))
        .collect()
}

#[tokio::test]
async fn offsets_are_looked_up_at_each_leader() {
    let mut cluster = Cluster::start(3, 6).await;
    for partition in 0..6 {
        let count = u64::from(partition) + 1;
        cluster.fake().fill(partition, count, 5, Compression::None);
    }
    let expected = [(5, 6), (4, 5), (3, 4), (2, 3), (1, 2), (0, 1)];
    let client = cluster.client(&[1]);
    assert_eq!(look_up(&client, 6).await, expected);
    {
        let mut state = cluster.fake().state();
        state.look_ups.sort();
        let each = [(1, vec![3, 0]), (2, vec![4, 1]), (3, vec![5, 2])];
        assert_eq!(state.look_ups, each);
        state.look_ups.clear();
    }
    // One moves, with and without a hint, and one dies.
    cluster.lead(0, Some(2));
    assert_eq!(look_up(&client, 6).await, expected);
    cluster.fake().state().has_hints = false;
    cluster.lead(0, Some(1));
    assert_eq!(look_up(&client, 6).await, expected);
    for partition in 0..6 {
        cluster.lead(partition, Some(partition % 2 + 1));
    }
    cluster.kill(3).await;
    assert_eq!(look_up(&client, 6).await, expected);
}

#[tokio::test]
async fn partitions_are_described_by_their_leaders() {
    let mut cluster = Cluster::start(3, 3).await;
    filled(&cluster, 3, 10);
    let client = cluster.client(&[1]);
    let described = client.describe_topic(&topic(), false).await.unwrap();
    for partition in &described.partitions {
        assert_eq!(
            (partition.high_watermark, partition.is_elsewhere),
            (10, false)
        );
    }
    cluster.kill(3).await;
    let described = client.describe_topic(&topic(), false).await.unwrap();
    let is_elsewhere = described.partitions.iter().map(|it| it.is_elsewhere);
    assert_eq!(is_elsewhere.collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(described.brokers.len(), 3);
}

#[tokio::test]
async fn a_silent_broker_does_not_hold_up_questions() {
    let cluster = Cluster::start(2, 1).await;
    cluster.fake().state().silent.insert(1);
    let client = cluster.client(&[1, 2]);
    let described = client.describe_cluster().await.unwrap();
    assert_eq!(described.answered_by, 2);
}

#[tokio::test]
async fn the_cluster_is_looked_at_and_changed() {
    let cluster = Cluster::start(2, 3).await;
    let client = cluster.client(&[1]);
    let places = client.list_partitions(Some(&topic())).await.unwrap();
    let leaders: Vec<_> = places.iter().map(|place| place.leader).collect();
    assert_eq!(leaders, [Some(1), Some(2), Some(1)], "all pages");
    let partition = PartitionId::new(2);
    client
        .reassign_partition(&topic(), partition, &[2, 1])
        .await
        .unwrap();
    let refused = client.reassign_partition(&topic(), partition, &[]).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.broker().unwrap().reason, "REASSIGNMENT_REFUSED");
    client
        .cancel_reassignment(&topic(), partition)
        .await
        .unwrap();
    client.set_leader(&topic(), partition, 2).await.unwrap();
    assert_eq!(client.drain_broker(1).await.unwrap(), 7);
    client.add_broker(1).await.unwrap();
    client.remove_broker(1).await.unwrap();
    assert_eq!(client.replace_broker(2, [1; 16]).await.unwrap(), 8);
    let changes = cluster.fake().state().cluster_changes.clone();
    let expected = [
        "reassign 2 [2, 1]",
        "cancel 2",
        "lead 2 2",
        "drain 1",
        "add 1",
        "remove 1",
        "replace 2 16",
    ];
    assert_eq!(changes, expected);
}
