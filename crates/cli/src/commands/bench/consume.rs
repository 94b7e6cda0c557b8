//! `tidelog bench consume`.

use tidelog_client::{Client, Reader, ReaderConfig};
use tokio::time::Instant;

use super::histogram::Histogram;
use super::report::Report;
use super::{ConsumeArgs, Stopwatch, progress};
use crate::failure::Failure;

/// How often the bar moves.
const PROGRESS_EVERY: u64 = 16 * 1024;

pub(super) async fn run(client: Client, args: &ConsumeArgs) -> Result<Report, Failure> {
    let wanted = args.records.unwrap_or(u64::MAX);
    let progress = progress(args.records);
    // How long each message was waited for: with none at hand, the reader is the faster one.
    let mut waits = Histogram::new();
    let (mut records, mut bytes) = (0, 0);

    let stopwatch = Stopwatch::start();
    let mut reader = Reader::open(client, ReaderConfig::new(args.topic.clone())).await?;
    while records < wanted {
        let record = match reader.next_buffered() {
            Some(record) => record?,
            None => {
                let began_at = Instant::now();
                match reader.next().await {
                    Some(record) => {
                        waits.record(began_at.elapsed());
                        record?
                    }
                    None => break,
                }
            }
        };
        records += 1;
        let len = record.key.map_or(0, |key| key.len()) + record.value.map_or(0, |v| v.len());
        bytes += u64::try_from(len).unwrap_or(u64::MAX);
        if records.is_multiple_of(PROGRESS_EVERY) {
            progress.set_position(records);
        }
    }
    let (elapsed, cpu) = stopwatch.stop();
    progress.finish_and_clear();
    if records == 0 {
        return Err(
            Failure::failed(format!("topic {} has no records", args.topic)).hint(format!(
                "write some with: tidelog bench produce --topic {}",
                args.topic
            )),
        );
    }
    Ok(Report {
        bench: "consume",
        parameters: vec![("topic", args.topic.as_str().into())],
        records,
        bytes,
        elapsed,
        cpu,
        latencies: vec![("message_wait_ms", waits)],
    })
}
