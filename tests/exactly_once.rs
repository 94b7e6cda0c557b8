//! One producer, a broker that is killed again and again: every record is stored exactly once, and in
//! order.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::Broker;
use tidelog_client::{
    Client, ClientConfig, PartitionId, Producer, ProducerConfig, ProducerRecord, TopicName,
};
use tidelog_proto::v1::CreateTopicRequest;

const PARTITIONS: u32 = 3;
const RECORDS: u32 = 6000;
const KILLS: u32 = 6;

/// How many records were acknowledged, for those who wait for some number of them.
#[derive(Debug, Default)]
struct Acknowledged {
    count: AtomicU32,
    more: tokio::sync::Notify,
}

impl Acknowledged {
    fn one_more(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.more.notify_one();
    }

    async fn reach(&self, count: u32) {
        while self.count.load(Ordering::SeqCst) < count {
            self.more.notified().await;
        }
    }
}

async fn produce(address: String, acknowledged: Arc<Acknowledged>) {
    let client = Client::lazy(ClientConfig::new(address.parse().unwrap())).unwrap();
    let config = ProducerConfig {
        linger: Duration::ZERO,
        // Many batches, so that many are on their way when the broker dies.
        batch_bytes_max: 300,
        request_timeout: Duration::from_secs(5),
        ..ProducerConfig::default()
    };
    let producer = Producer::new(client, config);
    let topic = TopicName::new("t").unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..RECORDS {
        let record = ProducerRecord::new(topic.clone())
            .partition(PartitionId::new(n % PARTITIONS))
            .value(n.to_string().into_bytes());
        let delivered = producer.send(record).await.unwrap();
        let acknowledged = acknowledged.clone();
        waiting.spawn(async move {
            delivered.await.unwrap();
            acknowledged.one_more();
        });
        // Not all at once: the kills come while records are sent.
        while waiting.len() > 500 {
            waiting.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = waiting.join_next().await {
        done.unwrap();
    }
    producer.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_stored_once_across_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let mut broker = Broker::start(&data_dir);
    let create = CreateTopicRequest {
        name: "t".to_owned(),
        partitions: PARTITIONS,
        ..CreateTopicRequest::default()
    };
    broker.topics().await.create_topic(create).await.unwrap();
    let address = broker.grpc.clone();
    let acknowledged = Arc::new(Acknowledged::default());
    let producing = tokio::spawn(produce(address.clone(), acknowledged.clone()));
    for kill in 1..=KILLS {
        acknowledged.reach(kill * RECORDS / (KILLS + 1)).await;
        broker.kill();
        // Where the producer looks for it.
        broker = Broker::start_with(&data_dir, &["--grpc-addr", &address]);
    }
    producing.await.unwrap();

    for partition in 0..PARTITIONS {
        let values = broker.ok(&["consume", "t", "--partition", &partition.to_string()]);
        let expected: Vec<String> = (0..RECORDS)
            .filter(|n| n % PARTITIONS == partition)
            .map(|n| n.to_string())
            .collect();
        let values: Vec<&str> = values.lines().collect();
        assert_eq!(values.len(), expected.len(), "partition {partition}");
        assert!(values == expected, "partition {partition} is not in order");
    }
}
