//! How long a partition takes no writes while its leadership is handed over on purpose: one transfer after
//! the other, and all that a broker leads when it is drained.
#![expect(clippy::disallowed_methods, reason = "this is a benchmark")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tidelog_client::{Client, PartitionId, Producer, ProducerConfig, ProducerRecord, TopicName};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::brokers::{Cluster, LOOK, PATIENCE, create, is_well};
use crate::figure::{Figure, Goal, median, percentile};
use crate::fixtures::{Bench, RECORD_BYTES, float};

/// With three replicas each, and one broker more, to which those of a drained one go.
const BROKERS: usize = 4;
/// Each has a writer; the transfers are of the first.
const PARTITIONS: u32 = 24;
const CALM: Duration = Duration::from_secs(5);
/// Between a transfer and the next.
const PAUSE: Duration = Duration::from_millis(200);

/// Writers of so many partitions, each of one record after the other: what their brokers do not take counts
/// as failed, but for what the client sends again.
struct Writers {
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<(Vec<Instant>, usize)>,
}

/// When each partition's records were acknowledged, and how many failed.
struct Written {
    acknowledged: Vec<Vec<Instant>>,
    failed: usize,
}

impl Writers {
    fn start(client: &Client, topic: &TopicName, partitions: u32) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for partition in 0..partitions {
            let (client, topic, over) = (client.clone(), topic.clone(), is_over.clone());
            tasks.spawn(async move {
                let config = ProducerConfig {
                    linger: Duration::ZERO,
                    ..ProducerConfig::default()
                };
                let producer = Producer::new(client, config);
                let value = bytes::Bytes::from(vec![7; RECORD_BYTES]);
                let (mut acknowledged, mut failed) = (Vec::new(), 0);
                while !over.load(Ordering::Relaxed) {
                    let record = ProducerRecord::new(topic.clone())
                        .partition(PartitionId::new(partition))
                        .value(value.clone());
                    let written = async { producer.send(record).await?.await };
                    match written.await {
                        Ok(_) => acknowledged.push(Instant::now()),
                        Err(_) => failed += 1,
                    }
                    // So that many of them leave something of the processor to the brokers.
                    if partitions > 1 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                producer.close().await;
                (acknowledged, failed)
            });
        }
        Self { is_over, tasks }
    }

    async fn end(self) -> Written {
        self.is_over.store(true, Ordering::Relaxed);
        let done = self.tasks.join_all().await;
        Written {
            failed: done.iter().map(|(_, failed)| failed).sum(),
            acknowledged: done.into_iter().map(|(times, _)| times).collect(),
        }
    }
}

impl Written {
    /// How many writes were acknowledged, and how many failed.
    fn counts(&self) -> (usize, usize) {
        (self.acknowledged.iter().map(Vec::len).sum(), self.failed)
    }

    /// The longest time between two acknowledgements of one partition that has a part in this while, in
    /// milliseconds.
    fn longest_gap(&self, from: Instant, to: Instant) -> f64 {
        let gaps = self.acknowledged.iter().flat_map(|times| {
            let pairs = times
                .windows(2)
                .filter(|pair| pair[1] > from && pair[0] < to);
            pairs.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3)
        });
        gaps.fold(0.0, f64::max)
    }
}

async fn place(client: &Client, topic: &TopicName) -> anyhow::Result<(Option<u32>, Vec<u32>)> {
    let places = client.list_partitions(Some(topic)).await?;
    let first = places.into_iter().find(|place| place.partition == 0);
    let first = first.context("a topic has a first partition")?;
    Ok((first.leader, first.replicas))
}

/// Hands a partition over again and again; gives the whiles in which that happened.
async fn hand_over(
    client: &Client,
    topic: &TopicName,
    count: usize,
) -> anyhow::Result<Vec<(Instant, Instant)>> {
    let mut whiles = Vec::new();
    for _ in 0..count {
        let (leader, replicas) = place(client, topic).await?;
        let at = replicas.iter().position(|node| Some(*node) == leader);
        let to = replicas[at.map_or(0, |at| at + 1) % replicas.len()];
        let began = Instant::now();
        client.set_leader(topic, PartitionId::new(0), to).await?;
        while place(client, topic).await?.0 != Some(to) {
            anyhow::ensure!(began.elapsed() < PATIENCE, "broker {to} does not lead");
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(PAUSE).await;
        whiles.push((began, Instant::now()));
    }
    Ok(whiles)
}

/// Has a broker give away all that it has, and waits until it has nothing.
async fn drain(client: &Client, node: u32) -> anyhow::Result<(Instant, Instant)> {
    let began = Instant::now();
    client.drain_broker(node).await?;
    loop {
        let places = client.list_partitions(None).await?;
        // Each broker has a replica of the metadata.
        let mut places = places.iter().filter(|place| !place.topic.starts_with("__"));
        let is_there =
            places.any(|place| place.replicas.contains(&node) || place.leader == Some(node));
        if !is_there {
            return Ok((began, Instant::now()));
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "broker {node} is not drained");
        tokio::time::sleep(LOOK).await;
    }
}

fn start(bench: &Bench) -> anyhow::Result<(Cluster, Runtime, Client)> {
    let count = u32::try_from(BROKERS)?;
    let cluster = Cluster::start(bench, count)?;
    let runtime = crate::broker::runtime()?;
    let client = {
        let _runtime = runtime.enter();
        cluster.client()?
    };
    Ok((cluster, runtime, client))
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (_cluster, runtime, client) = start(bench)?;
    let calm = if bench.quick { CALM / 5 } else { CALM };
    runtime.block_on(async {
        let one = create(&client, "one", 1).await?;
        let many = create(&client, "many", PARTITIONS).await?;
        is_well(&client, BROKERS).await?;

        let writers = Writers::start(&client, &one, 1);
        let count = if bench.quick { 3 } else { 50 };
        tokio::time::sleep(calm / 5).await;
        let quiet = (Instant::now(), Instant::now() + calm);
        tokio::time::sleep(calm).await;
        let whiles = hand_over(&client, &one, count).await?;
        let written = writers.end().await;
        let gaps = whiles
            .iter()
            .map(|(from, to)| written.longest_gap(*from, *to));
        let mut gaps: Vec<f64> = gaps.collect();
        let gap = written.longest_gap(quiet.0, quiet.1);
        let mut figures = figures("one-leadership", &mut gaps, gap, written.counts());

        let (mut gaps, mut quiets, mut counts) = (Vec::new(), Vec::new(), (0, 0));
        for turn in 0..bench.turns {
            is_well(&client, BROKERS).await?;
            let node = u32::try_from(turn % BROKERS)? + 1;
            let writers = Writers::start(&client, &many, PARTITIONS);
            tokio::time::sleep(calm / 5).await;
            let quiet = (Instant::now(), Instant::now() + calm);
            tokio::time::sleep(calm).await;
            let (from, to) = drain(&client, node).await?;
            let written = writers.end().await;
            gaps.push(written.longest_gap(from, to));
            quiets.push(written.longest_gap(quiet.0, quiet.1));
            let (acknowledged, failed) = written.counts();
            counts = (counts.0 + acknowledged, counts.1 + failed);
            client.add_broker(node).await?;
        }
        figures.extend(self::figures("drain", &mut gaps, median(&quiets), counts));
        Ok(figures)
    })
}

fn figures(
    what: &str,
    gaps: &mut [f64],
    quiet: f64,
    (acknowledged, failed): (usize, usize),
) -> Vec<Figure> {
    let figure = |name: &str, unit, value, goal| Figure {
        name: format!("transfer.{what}.{name}"),
        unit,
        values: vec![value],
        baseline: "the longest gap while nothing is handed over",
        baselines: vec![quiet],
        goal,
    };
    vec![
        figure("gap-p50", "ms", percentile(gaps, 0.5), Goal::None),
        figure("gap-max", "ms", percentile(gaps, 1.0), Goal::Below(50.0)),
        Figure {
            baseline: "acknowledged meanwhile",
            baselines: vec![float(acknowledged)],
            ..figure("failed", "writes", float(failed), Goal::Below(1.0))
        },
    ]
}
