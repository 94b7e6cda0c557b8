//! `tidelog bench produce`.

use tidelog_client::{Client, DeliveryFuture, Producer, ProducerConfig, ProducerRecord};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::histogram::Histogram;
use super::report::Report;
use super::{Pace, Payload, ProduceArgs, Stopwatch, check_size, make_topic, progress};
use crate::failure::Failure;

/// Futures go to the task that waits for them in chunks, so that this costs little.
const CHUNK_RECORDS: usize = 1024;
const CHUNKS_MAX: usize = 256;

type Sent = (Instant, DeliveryFuture);

pub(super) async fn run(client: Client, args: &ProduceArgs) -> Result<Report, Failure> {
    let ProduceArgs {
        records,
        sending,
        batch_size,
        in_flight,
        output: _,
    } = args;
    make_topic(&client, sending).await?;
    let config = ProducerConfig {
        acks: sending.acks.into(),
        compression: sending.compression,
        batch_bytes_max: *batch_size,
        in_flight_per_partition_max: Some(*in_flight),
        ..ProducerConfig::default()
    };
    let producer = Producer::new(client, config);
    check_size(sending, producer.topic_facts(&sending.topic).await?)?;
    let mut payload = Payload::new(sending.size);
    let progress = progress(Some(*records));

    let stopwatch = Stopwatch::start();
    let (chunks, chunks_out) = mpsc::channel(CHUNKS_MAX);
    let waiting = tokio::spawn(wait_for_all(chunks_out));
    let pace = Pace::new(sending.rate);
    let mut chunk = Vec::with_capacity(CHUNK_RECORDS);
    for number in 0..*records {
        let due = pace.due(number).await;
        let record = ProducerRecord::new(sending.topic.clone()).value(payload.next());
        chunk.push((due, producer.send(record).await?));
        if chunk.len() == CHUNK_RECORDS {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_RECORDS));
            if chunks.send(full).await.is_err() {
                // The task met a failure and ended: it is told below.
                break;
            }
            progress.set_position(number);
        }
    }
    // What is left, unless the task met a failure and ended.
    drop(chunks.send(chunk).await);
    drop(chunks);
    producer.close().await;
    let latency = waiting.await.expect("the task does not panic")?;
    let (elapsed, cpu) = stopwatch.stop();
    progress.finish_and_clear();

    let size = u64::try_from(sending.size).unwrap_or(u64::MAX);
    Ok(Report {
        bench: "produce",
        parameters: vec![
            ("topic", sending.topic.as_str().into()),
            ("record_bytes", sending.size.into()),
            ("batch_bytes", (*batch_size).into()),
            ("acks", sending.acks.name().into()),
            ("compression", sending.compression.name().into()),
            ("in_flight", (*in_flight).into()),
            ("rate", sending.rate.into()),
        ],
        records: latency.count(),
        bytes: latency.count().saturating_mul(size),
        elapsed,
        cpu,
        latencies: vec![("latency_ms", latency)],
    })
}

/// The times from when each record was due until its acknowledgement came.
async fn wait_for_all(mut chunks: mpsc::Receiver<Vec<Sent>>) -> Result<Histogram, Failure> {
    let mut latency = Histogram::new();
    while let Some(chunk) = chunks.recv().await {
        for (due, future) in chunk {
            let delivered = future.await?;
            latency.record(delivered.acknowledged_at.saturating_duration_since(due));
        }
    }
    Ok(latency)
}
