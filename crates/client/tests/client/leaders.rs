//! Producing to a cluster in which partitions are led by several brokers, and leaders change.

use std::time::Duration;

use tidelog_client::{
    Acks, Backoff, Delivered, DeliveryFuture, Offset, PartitionId, Producer, ProducerConfig,
    ProducerRecord, TopicName,
};

use crate::fake::{Cluster, Step};

fn record(partition: u32, value: u32) -> ProducerRecord {
    ProducerRecord::new(TopicName::new("t").unwrap())
        .partition(PartitionId::new(partition))
        .value(value.to_string().into_bytes())
}

/// Small batches, several on their way, quick retries.
fn config() -> ProducerConfig {
    ProducerConfig {
        linger: Duration::ZERO,
        batch_bytes_max: 100,
        leader_check_interval: Duration::from_millis(20),
        backoff: Backoff {
            min: Duration::from_millis(1),
            max: Duration::from_millis(5),
        },
        ..ProducerConfig::default()
    }
}

fn numbers(count: u32) -> Vec<String> {
    (0..count).map(|value| value.to_string()).collect()
}

/// Sends these values to each partition in turns.
async fn send(
    producer: &Producer,
    partitions: u32,
    values: std::ops::Range<u32>,
) -> Vec<DeliveryFuture> {
    let mut futures = Vec::new();
    for value in values {
        for partition in 0..partitions {
            futures.push(producer.send(record(partition, value)).await.unwrap());
        }
    }
    futures
}

/// All were delivered, not for ever.
async fn delivered(futures: Vec<DeliveryFuture>) -> Vec<Delivered> {
    let all = async {
        let mut all = Vec::new();
        for future in futures {
            all.push(future.await.unwrap());
        }
        all
    };
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .expect("it never came to that")
}

#[tokio::test]
async fn each_batch_goes_to_the_leader_of_its_partition() {
    let cluster = Cluster::start(3, 6).await;
    let producer = Producer::new(cluster.client(&[2]), config());
    let all = delivered(send(&producer, 6, 0..20).await).await;
    for (at, delivered) in all.iter().enumerate() {
        let offset = u64::try_from(at / 6).unwrap();
        assert_eq!(delivered.offset, Offset::new(offset));
    }
    let state = cluster.fake().state();
    assert_eq!(state.not_leader, 0, "who leads was known before");
    assert!(!state.asked.is_empty());
    for (node, partition) in &state.asked {
        assert_eq!(*node, partition % 3 + 1);
    }
    assert_eq!(state.streams_opened, 3, "one to each");
}

#[tokio::test]
async fn leaders_that_move_are_followed() {
    for has_hints in [true, false] {
        let cluster = Cluster::start(3, 3).await;
        cluster.fake().state().has_hints = has_hints;
        let producer = Producer::new(cluster.client(&[1]), config());
        let mut futures = Vec::new();
        for turn in 0..20 {
            futures.extend(send(&producer, 3, turn * 10..(turn + 1) * 10).await);
            cluster.lead(turn % 3, Some(turn % 2 + turn / 10 + 1));
        }
        delivered(futures).await;
        for partition in 0..3 {
            assert_eq!(cluster.fake().values(partition), numbers(200));
        }
    }
}

#[tokio::test]
async fn without_a_leader_only_its_partition_waits() {
    let cluster = Cluster::start(2, 2).await;
    cluster.lead(0, None);
    let producer = Producer::new(cluster.client(&[1]), config());
    let waiting: Vec<_> = send(&producer, 1, 0..20).await;
    for value in 0..20 {
        let sent = producer.send(record(1, value)).await.unwrap();
        delivered(vec![sent]).await;
    }
    assert!(waiting.iter().all(|future| future.try_get().is_none()));
    cluster.lead(0, Some(2));
    delivered(waiting).await;
    assert_eq!(cluster.fake().values(0), numbers(20));
    assert_eq!(cluster.fake().values(1), numbers(20));
}

#[tokio::test]
async fn batches_of_a_leader_that_dies_go_to_the_next_one() {
    for was_stored in [false, true] {
        let mut cluster = Cluster::start(3, 3).await;
        // Only of the one that dies: what it got last is not answered.
        let producer = Producer::new(cluster.client(&[1]), config());
        delivered(send(&producer, 3, 0..10).await).await;
        let step = if was_stored {
            Step::StoreAndBreak
        } else {
            Step::Break
        };
        cluster.fake().state().steps = [step].into();
        let futures = send(&producer, 1, 10..30).await;
        cluster.fake().until(|state| state.steps.is_empty()).await;
        cluster.lead(0, None);
        cluster.kill(1).await;
        let others = delivered(vec![
            producer.send(record(1, 10)).await.unwrap(),
            producer.send(record(2, 10)).await.unwrap(),
        ]);
        assert_eq!(others.await.len(), 2, "they do not wait");
        cluster.lead(0, Some(3));
        delivered(futures).await;
        assert_eq!(cluster.fake().values(0), numbers(30));
    }
}

#[tokio::test]
async fn batches_at_a_silent_broker_are_taken_back_when_another_one_leads() {
    let cluster = Cluster::start(3, 3).await;
    let producer = Producer::new(cluster.client(&[1]), config());
    delivered(send(&producer, 3, 0..10).await).await;
    cluster.fake().state().silent.insert(1);
    let futures = send(&producer, 1, 10..100).await;
    // The first that is asked who leads is silent too.
    cluster.lead(0, Some(2));
    delivered(futures).await;
    assert_eq!(cluster.fake().values(0), numbers(100));
    // What it got, it takes when it speaks again: by then it does not lead.
    cluster.fake().state().silent.clear();
    cluster.fake().until(|state| state.not_leader >= 5).await;
    assert_eq!(cluster.fake().values(0), numbers(100));
}

#[tokio::test]
async fn without_idempotence_batches_are_not_lost_either() {
    let cluster = Cluster::start(2, 1).await;
    let config = ProducerConfig {
        acks: Acks::Leader,
        ..config()
    };
    let producer = Producer::new(cluster.client(&[2]), config);
    delivered(send(&producer, 1, 0..10).await).await;
    cluster.fake().state().silent.insert(1);
    let futures = send(&producer, 1, 10..50).await;
    cluster.lead(0, Some(2));
    delivered(futures).await;
    assert_eq!(cluster.fake().values(0), numbers(50));
}

#[tokio::test]
async fn whoever_is_dead_at_first_is_passed_over() {
    let mut cluster = Cluster::start(3, 3).await;
    let client = cluster.client(&[1, 2]);
    for partition in 0..3 {
        cluster.lead(partition, Some(3));
    }
    cluster.kill(1).await;
    let producer = Producer::new(client.clone(), config());
    delivered(send(&producer, 3, 0..10).await).await;
    // The third was not named: it was learned of.
    cluster.kill(2).await;
    assert_eq!(client.list_topics(false).await.unwrap().len(), 1);
    delivered(send(&producer, 3, 10..20).await).await;
    assert_eq!(cluster.fake().values(2), numbers(20));
}

#[tokio::test]
async fn a_broker_that_takes_no_more_for_now_holds_up_only_its_partitions() {
    let cluster = Cluster::start(2, 8).await;
    cluster.fake().state().silent.insert(1);
    let config = ProducerConfig {
        in_flight_max: 2,
        ..config()
    };
    let producer = Producer::new(cluster.client(&[2]), config);
    let (mut stuck, mut free) = (Vec::new(), Vec::new());
    for value in 0..20 {
        for partition in 0..8 {
            let sent = producer.send(record(partition, value)).await.unwrap();
            if partition % 2 == 0 {
                &mut stuck
            } else {
                &mut free
            }
            .push(sent);
        }
    }
    delivered(free).await;
    assert!(stuck.iter().all(|future| future.try_get().is_none()));
    cluster.fake().state().silent.clear();
    delivered(stuck).await;
    for partition in 0..8 {
        assert_eq!(cluster.fake().values(partition), numbers(20));
    }
}
