//! `tidelog demo`: real events through three brokers, of which one is killed on the way.
//!
//! `stream.rs` sends the events of `events.rs`, `replay.rs` reads them back.

mod events;
mod replay;
mod stream;

use std::collections::HashMap;
use std::time::Duration;

use tidelog_client::proto::{PartitionPlace, ReassignmentState};
use tidelog_client::{
    AdminOptions, Client, ConsumedRecord, NewTopic, Offset, OffsetSpec, PartitionId, Producer,
    ProducerConfig, ReaderConfig, Timestamp, TopicName,
};
use tokio::time::{Instant, sleep, timeout};

use self::events::{
    DISTRIBUTION, EVENTS_COUNT, Events, KEYS_COUNT, PARTITIONS, SINCE, SINCE_COUNT,
};
use self::replay::{Replay, compare};
use self::stream::stream;
use crate::brokers::plan::{Plan, plans};
use crate::brokers::process::{Broker, Starting, last_lines};
use crate::brokers::{ports, together};
use crate::connect;
use crate::failure::Failure;
use crate::output::numbers::{counted, grouped, millis};
use crate::output::sink::print;
use crate::parse::time::show_time;

const TOPIC: &str = "earthquakes";

const BROKERS: usize = 3;
const REPLICAS: u32 = 3;

/// A broker is killed once so many events are acknowledged: a third.
const KILL_AFTER: usize = EVENTS_COUNT / 3;

/// Where the replay from an offset begins, in the partition that has the most events.
const FROM_PARTITION: PartitionId = PartitionId::new(0);
const FROM_OFFSET: u64 = 500;

/// How long the whole may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the broker that was killed may take to catch up.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn run() -> Result<(), Failure> {
    connect::run(async {
        let interrupted = async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // Dropping the demo ends the brokers and removes the directory.
        tokio::select! {
            result = timeout(PATIENCE, demo()) => result.unwrap_or_else(|_| {
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
    let plans = plans(dir.path(), &ports::free(BROKERS)?);
    say("A week of earthquakes through three brokers, one of which gets killed.\n")?;
    let began_at = Instant::now();
    let mut brokers = together::start(&plans).await?;
    let pids: Vec<_> = brokers
        .iter()
        .map(|broker| broker.pid.to_string())
        .collect();
    say(&format!(
        "Started {} brokers: processes {}, gRPC on {}, data in {}; a cluster after {}.",
        brokers.len(),
        pids.join(", "),
        together::addresses(&plans),
        dir.path().display(),
        millis(began_at.elapsed())
    ))?;
    let topic = TopicName::new(TOPIC).expect("the name is allowed");
    let shown = show(&plans, &mut brokers, &topic).await;
    shown.map_err(|failure| explained(&plans, failure.of_topic(&topic)))?;
    for broker in brokers {
        broker.kill().await?;
    }
    dir.close()
        .map_err(|error| Failure::failed(format!("cannot remove the data: {error}")))?;
    say(
        "\nNothing is missing, nothing came twice, every key kept its order, and all replicas are the \
         same.",
    )
}

/// All that is to be seen of the brokers. They are there again at the end.
async fn show(plans: &[Plan], brokers: &mut Vec<Broker>, topic: &TopicName) -> Result<(), Failure> {
    let events = Events::read()?;
    let client = Client::connect_with(together::config(&together::addresses(plans))?).await?;
    let new = NewTopic {
        partitions: PARTITIONS,
        settings: HashMap::new(),
        replication_factor: REPLICAS,
        assignment: Vec::new(),
    };
    let began_at = Instant::now();
    client
        .create_topic_as(topic, new, AdminOptions::default())
        .await?;
    say(&format!(
        "Made topic {topic} with {PARTITIONS} partitions, {REPLICAS} replicas each, in {}.",
        millis(began_at.elapsed())
    ))?;
    let killed = write(&client, brokers, topic, &events).await?;

    let began_at = Instant::now();
    let broker = Starting::spawn(&killed)?.ready().await?;
    say(&format!(
        "Started broker {} again on the same directory: process {}, ready after {}.",
        killed.node_id,
        broker.pid,
        millis(broker.ready_after)
    ))?;
    brokers.push(broker);
    wait_until_in_sync(&client, topic, plans).await?;
    say(&format!(
        "It caught up: every partition has {REPLICAS} replicas in sync again, {} after its start.",
        millis(began_at.elapsed())
    ))?;

    let all = replay(&client, topic, &events).await?;
    compare_replicas(plans, topic, &all).await
}

/// Streams all events, kills a broker on the way, and sees that each event is acknowledged and where
/// it went. Gives the broker that was killed.
async fn write(
    client: &Client,
    brokers: &mut Vec<Broker>,
    topic: &TopicName,
    events: &Events,
) -> Result<Plan, Failure> {
    let producer = Producer::new(client.clone(), ProducerConfig::default());
    let mut killed = None;
    let streamed = stream(
        &producer,
        events.records(topic),
        DISTRIBUTION.len(),
        KILL_AFTER,
        async || {
            let places = client.list_partitions(Some(topic)).await?;
            let (at, led) = leads_most(&places, brokers);
            let broker = brokers.remove(at);
            let (plan, pid) = (broker.plan.clone(), broker.pid);
            broker.kill().await?;
            say(&format!(
                "Killed broker {} (process {pid}), which led {led} of {PARTITIONS} partitions, with \
                 SIGKILL once {} were acknowledged: nothing was closed or saved on the way.",
                plan.node_id,
                counted(KILL_AFTER as u64, "event"),
            ))?;
            killed = Some(plan);
            Ok(())
        },
    )
    .await?;
    expect(
        "events in the partitions",
        &streamed.counts,
        &events.distribution(),
    )?;
    expect(
        "events in the partitions",
        &streamed.counts,
        &DISTRIBUTION.to_vec(),
    )?;
    say(&format!(
        "Streamed {} of 2018 with key network and their own time; all are acknowledged as synced on \
         a majority, after {}.\n  By partition: {}.\n  The longest pause between two acknowledgements \
         was {}: then other brokers led.",
        counted(EVENTS_COUNT as u64, "event"),
        millis(streamed.elapsed),
        listed(&streamed.counts),
        millis(streamed.pause)
    ))?;
    producer.close().await;
    killed.ok_or_else(|| Failure::failed("no broker was killed"))
}

/// The place of the broker that leads most partitions, and how many these are.
fn leads_most(places: &[PartitionPlace], brokers: &[Broker]) -> (usize, usize) {
    let leads = |broker: &Broker| {
        let places = places.iter();
        places
            .filter(|place| place.leader == Some(broker.plan.node_id))
            .count()
    };
    let counts = brokers.iter().map(leads).enumerate();
    counts.max_by_key(|&(_, led)| led).expect("there are some")
}

/// Waits until each partition has a leader and all replicas in sync, and all brokers hear each other.
async fn wait_until_in_sync(
    client: &Client,
    topic: &TopicName,
    plans: &[Plan],
) -> Result<(), Failure> {
    let in_sync = async {
        loop {
            match client.list_partitions(Some(topic)).await {
                Ok(places) if places.iter().all(is_in_sync) => return Ok(()),
                Ok(_) => {}
                // An election may go on.
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(Failure::from(error)),
            }
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(CATCH_UP_PATIENCE, in_sync).await.map_err(|_| {
        Failure::failed(format!(
            "not all replicas were in sync within {CATCH_UP_PATIENCE:?}"
        ))
    })??;
    together::all_see_each_other(plans).await
}

fn is_in_sync(place: &PartitionPlace) -> bool {
    place.leader.is_some()
        && place.in_sync.len() == BROKERS
        && place.reassignment() == ReassignmentState::None
}

/// Reads every partition from every broker, and compares the records one by one.
async fn compare_replicas(
    plans: &[Plan],
    topic: &TopicName,
    all: &[ConsumedRecord],
) -> Result<(), Failure> {
    let began_at = Instant::now();
    for plan in plans {
        let whose = format!("broker {}", plan.node_id);
        // It knows no other broker, so it reads from this one's replicas.
        let client = Client::connect_with(together::config(&plan.grpc_address())?).await?;
        let config = ReaderConfig {
            read_replica: true,
            ..ReaderConfig::new(topic.clone())
        };
        let until = Instant::now() + CATCH_UP_PATIENCE;
        loop {
            let found = Replay::read(&client, config.clone()).await?.sorted();
            // A follower learns a moment later than its leader up to where it may be read.
            if found.len() >= all.len() || Instant::now() >= until {
                compare(&whose, &found, all)?;
                break;
            }
            sleep(LOOK_EVERY).await;
        }
    }
    say(&format!(
        "Compared the replicas: {} of each of {} brokers, the same offsets, keys, values and times, in \
         {}.",
        counted(all.len() as u64, "record"),
        plans.len(),
        millis(began_at.elapsed())
    ))
}

/// The failure, with what the brokers say about it.
fn explained(plans: &[Plan], mut failure: Failure) -> Failure {
    for plan in plans {
        let log = last_lines(&plan.log);
        let node = plan.node_id;
        failure.message = format!("{}\nthe log of broker {node}:\n{log}", failure.message);
    }
    failure
}

/// Reads everything, then from an offset, then from a time. Gives everything.
async fn replay(
    client: &Client,
    topic: &TopicName,
    events: &Events,
) -> Result<Vec<ConsumedRecord>, Failure> {
    let all = Replay::read(client, ReaderConfig::new(topic.clone())).await?;
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
    let tail = Replay::read(client, config).await?;
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
    let since = Replay::read(client, config).await?;
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
    ))?;
    Ok(all.sorted())
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
