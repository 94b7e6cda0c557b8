//! `tidelog demo`: real events through a real broker, which is killed on the way.

mod broker;
mod events;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tidelog_client::{
    AdminOptions, Client, ConsumedRecord, Offset, OffsetSpec, PartitionId, Producer,
    ProducerConfig, ReadRange, Reader, ReaderConfig, Timestamp, TopicName,
};
use tokio::time::Instant;

use self::broker::Broker;
use self::events::{
    DISTRIBUTION, EVENTS_COUNT, Events, KEYS_COUNT, PARTITIONS, SINCE, SINCE_COUNT,
};
use crate::connect;
use crate::failure::Failure;
use crate::output::numbers::{counted, grouped, millis};
use crate::output::sink::print;
use crate::parse::time::show_time;

const TOPIC: &str = "earthquakes";

/// Where the replay from an offset begins, in the partition that has the most events.
const FROM_PARTITION: PartitionId = PartitionId::new(0);
const FROM_OFFSET: u64 = 500;

/// How long the whole may take.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run() -> Result<(), Failure> {
    connect::run(async {
        let interrupted = async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // Dropping the demo ends the broker and removes the directory.
        tokio::select! {
            result = tokio::time::timeout(PATIENCE, demo()) => result.unwrap_or_else(|_| {
                Err(Failure::failed(format!("not done within {PATIENCE:?}")))
            }),
            () = interrupted => Err(Failure::failed("interrupted")),
        }
    })
}

async fn demo() -> Result<(), Failure> {
    let dir = tempfile::Builder::new()
        .prefix("tidelog-demo-")
        .tempdir()
        .map_err(|error| Failure::failed(format!("cannot make a directory: {error}")))?;
    let events = Events::read()?;
    let topic = TopicName::new(TOPIC).expect("the name is allowed");
    say("A week of earthquakes through a broker that gets killed.\n")?;

    let broker = start(dir.path(), "Started a broker").await?;
    let written = write(&broker, &topic, &events).await;
    explained(&broker, written.map_err(|failure| failure.of_topic(&topic)))?;

    let pid = broker.pid;
    broker.kill().await?;
    say(&format!(
        "Killed process {pid} with SIGKILL: nothing was closed or saved on the way."
    ))?;

    let broker = start(dir.path(), "Started it again on the same directory").await?;
    let replayed = replay(&broker, &topic, &events).await;
    explained(
        &broker,
        replayed.map_err(|failure| failure.of_topic(&topic)),
    )?;
    broker.kill().await?;
    dir.close()
        .map_err(|error| Failure::failed(format!("cannot remove the data: {error}")))?;
    say("\nNothing is missing, nothing came twice, every key kept its order.")
}

async fn start(dir: &Path, what: &str) -> Result<Broker, Failure> {
    let broker = Broker::start(dir).await?;
    say(&format!(
        "{what}: process {}, gRPC on {}, data in {}, ready after {}.",
        broker.pid,
        broker.address,
        dir.join("data").display(),
        millis(broker.ready_after)
    ))?;
    Ok(broker)
}

/// Streams all events, and sees that each is acknowledged and where it went.
async fn write(broker: &Broker, topic: &TopicName, events: &Events) -> Result<(), Failure> {
    let client = Client::connect(&broker.address).await?;
    client
        .create_topic(topic, PARTITIONS, HashMap::new(), AdminOptions::default())
        .await?;
    say(&format!("Made topic {topic} with {PARTITIONS} partitions."))?;

    let began_at = Instant::now();
    let producer = Producer::new(client, ProducerConfig::default());
    let mut futures = Vec::new();
    for record in events.records(topic) {
        futures.push(producer.send(record).await?);
    }
    producer.flush().await;
    let mut counts = vec![0; DISTRIBUTION.len()];
    for future in futures {
        let delivered = future.await?;
        let partition = usize::try_from(delivered.partition.get()).unwrap_or(usize::MAX);
        *counts
            .get_mut(partition)
            .ok_or_else(|| Failure::failed(format!("there is no partition {partition}")))? += 1;
    }
    let elapsed = began_at.elapsed();
    expect("events in the partitions", &counts, &events.distribution())?;
    expect("events in the partitions", &counts, &DISTRIBUTION.to_vec())?;
    say(&format!(
        "Streamed {} of 2018 with key network and their own time; all are acknowledged as synced \
         after {}.\n  By partition: {}.",
        counted(EVENTS_COUNT as u64, "event"),
        millis(elapsed),
        listed(&counts)
    ))?;
    producer.close().await;
    Ok(())
}

/// Reads everything, then from an offset, then from a time.
async fn replay(broker: &Broker, topic: &TopicName, events: &Events) -> Result<(), Failure> {
    let client = Client::connect(&broker.address).await?;

    let all = Replay::read(&client, ReaderConfig::new(topic.clone())).await?;
    expect(
        "events read from the beginning",
        &all.records.len(),
        &EVENTS_COUNT,
    )?;
    events.check(&all.records, Timestamp::MIN)?;
    expect(
        "events in the partitions",
        &all.by_partition(),
        &DISTRIBUTION.to_vec(),
    )?;
    all.check_dense()?;
    say(&format!(
        "Replayed from the beginning: {}, each once and unchanged, {KEYS_COUNT} keys each in \
         order, in {}.",
        counted(EVENTS_COUNT as u64, "event"),
        millis(all.elapsed)
    ))?;

    let config = ReaderConfig {
        partitions: vec![FROM_PARTITION.into()],
        from: OffsetSpec::Offset(Offset::new(FROM_OFFSET).expect("it is small")),
        ..ReaderConfig::new(topic.clone())
    };
    let tail = Replay::read(&client, config).await?;
    let wanted: Vec<_> = all
        .records
        .iter()
        .filter(|r| r.partition == FROM_PARTITION && r.offset.get() >= FROM_OFFSET)
        .cloned()
        .collect();
    let from_count = DISTRIBUTION[0].saturating_sub(usize::try_from(FROM_OFFSET).unwrap_or(0));
    expect(
        "events read from an offset",
        &tail.records.len(),
        &from_count,
    )?;
    if tail.records != wanted {
        return Err(Failure::failed(
            "reading from an offset gave other records than before",
        ));
    }
    say(&format!(
        "Replayed partition {FROM_PARTITION} from offset {FROM_OFFSET}: {}, the same as before, in \
         {}.",
        counted(tail.records.len() as u64, "event"),
        millis(tail.elapsed)
    ))?;

    let config = ReaderConfig {
        from: OffsetSpec::Time(SINCE),
        ..ReaderConfig::new(topic.clone())
    };
    let since = Replay::read(&client, config).await?;
    expect(
        "events read from a time",
        &since.records.len(),
        &SINCE_COUNT,
    )?;
    events.check(&since.records, SINCE)?;
    say(&format!(
        "Replayed from {}: {}, exactly those at or after that time, in {}.",
        show_time(SINCE),
        counted(SINCE_COUNT as u64, "event"),
        millis(since.elapsed)
    ))
}

/// What a reader gave.
#[derive(Debug)]
struct Replay {
    ranges: Vec<ReadRange>,
    records: Vec<ConsumedRecord>,
    elapsed: Duration,
}

impl Replay {
    async fn read(client: &Client, config: ReaderConfig) -> Result<Self, Failure> {
        let began_at = Instant::now();
        let mut reader = Reader::open(client.clone(), config).await?;
        let ranges = reader.ranges();
        let mut records = Vec::new();
        while let Some(record) = reader.next().await {
            records.push(record?);
            if records.len() > 2 * EVENTS_COUNT {
                return Err(Failure::failed("more events come back than were stored"));
            }
        }
        Ok(Self {
            ranges,
            records,
            elapsed: began_at.elapsed(),
        })
    }

    fn by_partition(&self) -> Vec<usize> {
        let in_partition = |partition| {
            self.records
                .iter()
                .filter(|r| r.partition == partition)
                .count()
        };
        self.ranges
            .iter()
            .map(|range| in_partition(range.partition))
            .collect()
    }

    /// Offsets of each partition count up from 0 without a gap.
    fn check_dense(&self) -> Result<(), Failure> {
        for range in &self.ranges {
            let of_partition = self
                .records
                .iter()
                .filter(|r| r.partition == range.partition);
            for (expected, record) in (0..).zip(of_partition) {
                let partition = range.partition;
                expect(
                    &format!("the next offset of partition {partition}"),
                    &record.offset.get(),
                    &expected,
                )?;
            }
        }
        Ok(())
    }
}

/// Fails when something is not as it must be.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, seen: &T, wanted: &T) -> Result<(), Failure> {
    if seen == wanted {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{what}: {seen:?}, but it must be {wanted:?}"
    )))
}

/// With what the broker says about it.
fn explained(broker: &Broker, result: Result<(), Failure>) -> Result<(), Failure> {
    result.map_err(|failure| broker.explain(failure))
}

fn listed(counts: &[usize]) -> String {
    let counts: Vec<_> = counts.iter().map(|&count| grouped(count as u64)).collect();
    counts.join(", ")
}

fn say(line: &str) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_must_be_fails() {
        assert_eq!(expect("x", &1, &1), Ok(()));
        let failure = expect("events", &1706, &1707).unwrap_err();
        assert_eq!(failure.message, "events: 1706, but it must be 1707");
    }
}
