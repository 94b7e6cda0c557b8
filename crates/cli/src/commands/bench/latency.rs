//! `tidelog bench latency`.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tidelog_client::{
    Client, OffsetSpec, Producer, ProducerConfig, ProducerRecord, Reader, ReaderConfig,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::histogram::Histogram;
use super::report::Report;
use super::{LatencyArgs, Pace, Payload, Stopwatch, check_size, make_topic, progress};
use crate::failure::{Exit, Failure};

/// Which run a record belongs to, and its number.
const MARK_BYTES: usize = 16;

/// How long a record may be on its way to the reader.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn run(client: Client, args: &LatencyArgs) -> Result<Report, Failure> {
    let LatencyArgs {
        records,
        sending,
        output: _,
    } = args;
    let records = *records;
    if sending.size < MARK_BYTES {
        let message = format!(
            "--size {} is too small; latency needs {MARK_BYTES}",
            sending.size
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    make_topic(&client, sending).await?;
    let config = ProducerConfig {
        acks: sending.acks.into(),
        compression: sending.compression,
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    };
    let producer = Producer::new(client.clone(), config);
    check_size(sending, producer.topic_facts(&sending.topic).await?)?;
    let run_id = fastrand::u64(..);
    let reader = ReaderConfig {
        from: OffsetSpec::Latest,
        follow: true,
        ..ReaderConfig::new(sending.topic.clone())
    };
    let reader = Reader::open(client, reader).await?;
    let (arrivals, mut arrivals_out) = mpsc::channel(16);
    let reading = tokio::spawn(read(reader, run_id, arrivals));

    let mut payload = Payload::new(sending.size - MARK_BYTES);
    let progress = progress(Some(records));
    let (mut acknowledged, mut end_to_end) = (Histogram::new(), Histogram::new());
    let stopwatch = Stopwatch::start();
    let pace = Pace::new(sending.rate);
    for number in 0..records {
        let value = marked(run_id, number, &payload.next());
        let due = pace.due(number).await;
        let future = producer
            .send(ProducerRecord::new(sending.topic.clone()).value(value))
            .await?;
        let delivered = future.await?;
        acknowledged.record(delivered.acknowledged_at.saturating_duration_since(due));
        let arrival = tokio::time::timeout(ARRIVAL_TIMEOUT, arrivals_out.recv()).await;
        match arrival {
            Ok(Some(Ok((arrived, at)))) if arrived == number => {
                end_to_end.record(at.saturating_duration_since(due));
            }
            Ok(Some(Ok((arrived, _)))) => {
                let message = format!("record {arrived} came where {number} was due");
                return Err(Failure::failed(message));
            }
            Ok(Some(Err(failure))) => return Err(failure),
            Ok(None) => return Err(Failure::failed("the reader ended")),
            Err(_) => {
                let message = format!("record {number} did not come within {ARRIVAL_TIMEOUT:?}");
                return Err(Failure::new(Exit::Unavailable, message));
            }
        }
        progress.set_position(number);
    }
    let (elapsed, cpu) = stopwatch.stop();
    progress.finish_and_clear();
    reading.abort();
    producer.close().await;

    let mut latencies = vec![("end_to_end_ms", end_to_end)];
    if sending.acks != crate::args::AcksArg::None {
        latencies.insert(0, ("latency_ms", acknowledged));
    }
    let size = u64::try_from(sending.size).unwrap_or(u64::MAX);
    Ok(Report {
        bench: "latency",
        parameters: vec![
            ("topic", sending.topic.as_str().into()),
            ("record_bytes", sending.size.into()),
            ("acks", sending.acks.name().into()),
            ("rate", sending.rate.into()),
        ],
        records,
        bytes: records.saturating_mul(size),
        elapsed,
        cpu,
        latencies,
    })
}

fn marked(run_id: u64, number: u64, payload: &[u8]) -> Bytes {
    let mut value = BytesMut::with_capacity(MARK_BYTES + payload.len());
    value.put_u64(run_id);
    value.put_u64(number);
    value.put_slice(payload);
    value.freeze()
}

/// The number in a record of this run.
fn number_of(value: &[u8], run_id: u64) -> Option<u64> {
    let (run, rest) = value.split_first_chunk::<8>()?;
    let (number, _) = rest.split_first_chunk::<8>()?;
    (u64::from_be_bytes(*run) == run_id).then(|| u64::from_be_bytes(*number))
}

/// Tells when each record of this run came; others may write to the topic too.
async fn read(
    mut reader: Reader,
    run_id: u64,
    arrivals: mpsc::Sender<Result<(u64, Instant), Failure>>,
) {
    while let Some(record) = reader.next().await {
        let arrival = match record {
            Ok(record) => match record.value.and_then(|value| number_of(&value, run_id)) {
                Some(number) => Ok((number, Instant::now())),
                None => continue,
            },
            Err(error) => Err(Failure::from(error)),
        };
        if arrivals.send(arrival).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_of_the_run_count() {
        let value = marked(7, 42, b"payload");
        assert_eq!(value.len(), MARK_BYTES + 7);
        assert_eq!(number_of(&value, 7), Some(42));
        assert_eq!(number_of(&value, 8), None);
        assert_eq!(number_of(b"short", 7), None);
    }
}
