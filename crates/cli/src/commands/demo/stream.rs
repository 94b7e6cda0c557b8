//! Streaming the events, with a broker that is killed on the way.

use std::time::Duration;

use tidelog_client::{ClientError, Delivered, DeliveryFuture, Producer, ProducerRecord};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::failure::Failure;

/// Events that are sent and not yet acknowledged: the others wait, as they would come from somewhere.
const IN_FLIGHT: usize = 64;

/// What became of the stream.
#[derive(Debug)]
pub(super) struct Streamed {
    /// Events in each partition.
    pub(super) counts: Vec<usize>,
    pub(super) elapsed: Duration,
    /// The longest time between two acknowledgements, of which the second came after the interruption.
    pub(super) pause: Duration,
}

/// An acknowledgement, and when it came.
type Acknowledged = (Result<Delivered, ClientError>, Instant);

/// Sends records, and calls `interrupt` once `after` of them are acknowledged; the stream stands still
/// for that, acknowledgements do not.
pub(super) async fn stream(
    producer: &Producer,
    records: impl Iterator<Item = ProducerRecord>,
    partitions: usize,
    after: usize,
    interrupt: impl AsyncFnOnce() -> Result<(), Failure>,
) -> Result<Streamed, Failure> {
    let mut interrupt = Some(interrupt);
    let mut records = records;
    let mut pending = JoinSet::new();
    let mut counts = vec![0; partitions];
    let began_at = Instant::now();
    let mut acknowledged_at = Vec::new();
    let mut interrupted_at = began_at;
    loop {
        while pending.len() < IN_FLIGHT
            && let Some(record) = records.next()
        {
            let future = producer.send(record).await?;
            pending.spawn(acknowledgement(future));
        }
        let Some(ended) = pending.join_next().await else {
            break;
        };
        let (delivered, at) = ended.map_err(|error| Failure::failed(error.to_string()))?;
        let partition = delivered?.partition;
        *usize::try_from(partition.get())
            .ok()
            .and_then(|partition| counts.get_mut(partition))
            .ok_or_else(|| Failure::failed(format!("there is no partition {partition}")))? += 1;
        acknowledged_at.push(at);
        if acknowledged_at.len() >= after
            && let Some(interrupt) = interrupt.take()
        {
            interrupt().await?;
            interrupted_at = Instant::now();
        }
    }
    acknowledged_at.sort_unstable();
    Ok(Streamed {
        counts,
        elapsed: began_at.elapsed(),
        pause: longest_pause(&acknowledged_at, interrupted_at),
    })
}

async fn acknowledgement(future: DeliveryFuture) -> Acknowledged {
    let delivered = future.await;
    (delivered, Instant::now())
}

/// The longest time between two that follow each other, of those that end at `since` or later.
fn longest_pause(times: &[Instant], since: Instant) -> Duration {
    let pairs = times.windows(2).filter(|pair| pair[1] >= since);
    pairs
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_pause_is_between_neighbours_and_after_the_interruption() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(longest_pause(&[], start), Duration::ZERO);
        assert_eq!(longest_pause(&[start], start), Duration::ZERO);
        let times = [start, at(5), at(700), at(701), at(703)];
        assert_eq!(longest_pause(&times, start), Duration::from_millis(695));
        assert_eq!(longest_pause(&times, at(6)), Duration::from_millis(695));
        assert_eq!(longest_pause(&times, at(701)), Duration::from_millis(2));
    }
}
