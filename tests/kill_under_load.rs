//! `kill -9` in a loop under load: every record that was acknowledged is there, in order.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::Broker;
use tidelog_proto::v1::{
    Acks, AppendRequest, CreateTopicRequest, FetchPartition, FetchRequest, Format, NewRecord,
    NewRecords, ProduceRequest, append_request, produce_response,
};
use tokio_stream::wrappers::ReceiverStream;

const PRODUCERS: u32 = 4;
const PARTITIONS: u32 = 3;
const ROUNDS: u64 = 6;
const ACKS_A_ROUND: u64 = 300;

/// What a producer was told: value by partition and offset.
type Acknowledged = HashMap<(u32, u64), String>;

fn request(correlation_id: u64, producer: u32, value: &str) -> ProduceRequest {
    let record = NewRecord {
        key: Some(format!("producer-{producer}").into_bytes().into()),
        value: Some(value.to_owned().into_bytes().into()),
        ..NewRecord::default()
    };
    ProduceRequest {
        correlation_id,
        append: Some(AppendRequest {
            topic: "load".to_owned(),
            partition: Some(producer % PARTITIONS),
            acks: Acks::All.into(),
            payload: Some(append_request::Payload::Records(NewRecords {
                records: vec![record],
                compression: 0,
                producer: None,
            })),
        }),
    }
}

/// Streams numbered records until the broker dies; tells what was acknowledged.
async fn produce(
    mut log: tidelog_proto::v1::log_client::LogClient<tonic::transport::Channel>,
    producer: u32,
    round: u64,
    total: Arc<AtomicU64>,
    enough: Arc<tokio::sync::Notify>,
) -> Acknowledged {
    let (sender, requests) = tokio::sync::mpsc::channel(16);
    let feeder = tokio::spawn(async move {
        for n in 0.. {
            let value = format!("{producer}/{round:03}/{n:08}");
            if sender.send(request(n, producer, &value)).await.is_err() {
                return;
            }
        }
    });
    let mut acknowledged = Acknowledged::new();
    if let Ok(answers) = log.produce(ReceiverStream::new(requests)).await {
        let mut answers = answers.into_inner();
        while let Ok(Some(answer)) = answers.message().await {
            let Some(produce_response::Outcome::Appended(appended)) = answer.outcome else {
                continue;
            };
            let result = &appended.results[0];
            let value = format!("{producer}/{round:03}/{:08}", answer.correlation_id);
            acknowledged.insert((result.partition, result.base_offset.unwrap()), value);
            if total.fetch_add(1, Ordering::Relaxed) + 1 == ACKS_A_ROUND {
                enough.notify_one();
            }
        }
    }
    feeder.abort();
    acknowledged
}

async fn read_all(broker: &Broker, partition: u32) -> Vec<String> {
    let mut log = broker.log().await;
    let mut values = Vec::new();
    loop {
        let fetch = FetchRequest {
            partitions: vec![FetchPartition {
                topic: "load".to_owned(),
                partition,
                offset: values.len() as u64,
                max_bytes: 0,
            }],
            format: Format::Records.into(),
            ..FetchRequest::default()
        };
        let fetched = log
            .fetch(fetch)
            .await
            .unwrap()
            .into_inner()
            .partitions
            .remove(0);
        assert_eq!(fetched.error, None);
        if fetched.records.is_empty() {
            assert_eq!(fetched.high_watermark, values.len() as u64);
            return values;
        }
        for record in fetched.records {
            assert_eq!(record.offset, values.len() as u64, "offsets are dense");
            values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_in_a_loop() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let mut acknowledged = Acknowledged::new();
    for round in 0..ROUNDS {
        let broker = Broker::start(&data_dir);
        if round == 0 {
            let create = CreateTopicRequest {
                name: "load".to_owned(),
                partitions: PARTITIONS,
                ..CreateTopicRequest::default()
            };
            broker.topics().await.create_topic(create).await.unwrap();
        }
        let total = Arc::new(AtomicU64::new(0));
        let enough = Arc::new(tokio::sync::Notify::new());
        let mut producers = Vec::new();
        for producer in 0..PRODUCERS {
            let log = broker.log().await;
            let (total, enough) = (total.clone(), enough.clone());
            producers.push(tokio::spawn(produce(log, producer, round, total, enough)));
        }
        enough.notified().await;
        broker.kill();
        for producer in producers {
            acknowledged.extend(producer.await.unwrap());
        }
    }
    assert!(acknowledged.len() as u64 >= ROUNDS * ACKS_A_ROUND);

    let broker = Broker::start(&data_dir);
    let mut seen = 0;
    for partition in 0..PARTITIONS {
        let values = read_all(&broker, partition).await;
        for ((_, offset), value) in acknowledged.iter().filter(|((p, _), _)| *p == partition) {
            let found = values.get(usize::try_from(*offset).unwrap());
            assert_eq!(found, Some(value), "partition {partition}, offset {offset}");
            seen += 1;
        }
        // What one producer sent is in the order in which it sent it; nothing is there twice,
        // since nothing was sent twice.
        for producer in 0..PRODUCERS {
            let prefix = format!("{producer}/");
            let of_one: Vec<_> = values.iter().filter(|v| v.starts_with(&prefix)).collect();
            assert!(
                of_one.is_sorted_by(|a, b| a < b),
                "producer {producer} is out of order"
            );
        }
    }
    assert_eq!(seen, acknowledged.len());
    assert!(broker.terminate().success());
}
