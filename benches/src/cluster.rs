//! Three brokers on this machine beside one: what replication takes, how long a partition stands still when
//! its leader is killed, and what many partitions cost.
#![expect(clippy::disallowed_methods, reason = "this is a benchmark")]

use std::time::{Duration, Instant};

use tidelog_client::{PartitionId, Producer, ProducerConfig, ProducerRecord};

use crate::brokers::{BROKERS, Cluster, LOOK, PATIENCE, create, is_well};
use crate::figure::{Figure, Goal, in_turns, median, percentile};
use crate::fixtures::Bench;
use crate::process::Server;

const RECORD_BYTES: usize = 1024;
const BATCH_BYTES: usize = 128 << 10;

/// What one turn of load gives: MiB a second, CPU-seconds of all brokers a GB, and the median of one record
/// at a time in milliseconds.
fn one_load(bench: &Bench, brokers: u32) -> anyhow::Result<[f64; 3]> {
    let bytes: usize = if bench.quick { 16 << 20 } else { 512 << 20 };
    let singles = if bench.quick { 100 } else { 2000 };
    let cluster = Cluster::start(bench, brokers)?;
    let runtime = crate::broker::runtime()?;
    runtime.block_on(async {
        let client = cluster.client()?;
        let topic = create(&client, "load", 6).await?;
        is_well(&client, brokers as usize).await?;
        let config = ProducerConfig {
            batch_bytes_max: BATCH_BYTES,
            buffer_bytes_max: 64 << 20,
            ..ProducerConfig::default()
        };
        let producer = Producer::new(client.clone(), config);
        let value = bytes::Bytes::from(vec![7; RECORD_BYTES]);
        let count = bytes / RECORD_BYTES;
        let send = async |count: usize| {
            let mut last = Vec::new();
            for number in 0..count {
                let partition = PartitionId::new(u32::try_from(number % 6).unwrap_or(0));
                let record = ProducerRecord::new(topic.clone())
                    .partition(partition)
                    .value(value.clone());
                let delivery = producer.send(record).await?;
                if number + 6 >= count {
                    last.push(delivery);
                }
            }
            for delivery in last {
                delivery.await?;
            }
            producer.flush().await;
            anyhow::Ok(())
        };
        // What comes first touches memory for the first time.
        send(count / 8).await?;
        let cpu = cluster.cpu_seconds()?;
        let began = Instant::now();
        send(count).await?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu = cluster.cpu_seconds()? - cpu;
        producer.close().await;

        let config = ProducerConfig {
            linger: Duration::ZERO,
            ..ProducerConfig::default()
        };
        let producer = Producer::new(client, config);
        let mut millis = Vec::new();
        for _ in 0..singles {
            let began = Instant::now();
            let record = ProducerRecord::new(topic.clone())
                .partition(PartitionId::new(0))
                .value(value.clone());
            producer.send(record).await?.await?;
            millis.push(began.elapsed().as_secs_f64() * 1e3);
        }
        producer.close().await;
        #[allow(clippy::cast_precision_loss, reason = "far below what a float holds")]
        let bytes = bytes as f64;
        let mib = bytes / f64::from(1 << 20) / seconds;
        Ok([mib, cpu / (bytes / 1e9), median(&millis)])
    })
}

/// The same load on three brokers, each partition at all of them, and on one without replication.
pub(crate) fn load(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (values, baselines) = in_turns(
        bench.turns,
        || one_load(bench, BROKERS),
        || one_load(bench, 1),
    )?;
    let figures = [
        ("cluster.produce-128KiB-three-replicas", "MiB/s"),
        (
            "cluster.produce-128KiB-three-replicas.brokers-cpu",
            "CPU-s/GB",
        ),
        ("cluster.one-record-at-a-time.p50", "ms"),
    ];
    let figures = figures.iter().enumerate().map(|(at, (name, unit))| {
        let of = |turns: &[[f64; 3]]| turns.iter().map(|turn| turn[at]).collect();
        Figure {
            name: (*name).to_owned(),
            unit,
            values: of(&values),
            baseline: "one broker without replication",
            baselines: of(&baselines),
            goal: if at == 2 {
                Goal::Below(0.6)
            } else {
                Goal::None
            },
        }
    });
    Ok(figures.collect())
}

/// Partitions, a third of which each broker leads.
const FAILOVER_PARTITIONS: u32 = 300;

/// From when a broker is killed that leads a hundred partitions to the next acknowledged write on each of
/// these, and the same writes while nobody is killed.
pub(crate) fn failover(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let kills = if bench.quick { 2 } else { 51 };
    let partitions = if bench.quick { 30 } else { FAILOVER_PARTITIONS };
    let mut cluster = Cluster::start(bench, BROKERS)?;
    let runtime = crate::broker::runtime()?;
    let client = {
        let _runtime = runtime.enter();
        cluster.client()?
    };
    let topic = runtime.block_on(create(&client, "failover", partitions))?;
    let config = ProducerConfig {
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    };
    let producer = {
        let _runtime = runtime.enter();
        Producer::new(client.clone(), config)
    };
    let write_to = async |partitions: &[u32]| {
        let began = Instant::now();
        let mut waiting = tokio::task::JoinSet::new();
        for partition in partitions {
            let record = ProducerRecord::new(topic.clone())
                .partition(PartitionId::new(*partition))
                .value("v");
            let delivery = producer.send(record).await?;
            waiting.spawn(async move { delivery.await.map(|_| began.elapsed().as_secs_f64()) });
        }
        let mut seconds = Vec::new();
        while let Some(done) = waiting.join_next().await {
            seconds.push(done??);
        }
        anyhow::Ok(seconds)
    };
    let led_by = async |node: u32| {
        let places = client.list_partitions(Some(&topic)).await?;
        let led = places.iter().filter(|place| place.leader == Some(node));
        anyhow::Ok(led.map(|place| place.partition).collect::<Vec<u32>>())
    };
    let (mut killed, mut calm) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        let at = kill % BROKERS as usize;
        let node = u32::try_from(at)? + 1;
        let led = runtime.block_on(async {
            is_well(&client, BROKERS as usize).await?;
            // The leaderships go back to it some time after it has come back.
            let until = Instant::now() + PATIENCE;
            loop {
                let led = led_by(node).await?;
                if led.len() >= (partitions / BROKERS) as usize {
                    return anyhow::Ok(led);
                }
                anyhow::ensure!(Instant::now() < until, "broker {node} leads too little");
                tokio::time::sleep(LOOK).await;
            }
        })?;
        calm.extend(runtime.block_on(write_to(&led))?);
        // Killed, and waited for: none of its threads acknowledges anything any more.
        drop(cluster.brokers[at].take());
        killed.extend(runtime.block_on(write_to(&led))?);
        let mut back = cluster.spawn(at)?;
        back.ready()?;
        cluster.brokers[at] = Some(back);
    }
    runtime.block_on(producer.close());
    let figure = |name: &str, share, goal| Figure {
        name: format!("failover.kill-9.{name}"),
        unit: "s",
        values: vec![percentile(&mut killed.clone(), share)],
        baseline: "the same writes, nobody killed",
        baselines: vec![percentile(&mut calm.clone(), share)],
        goal,
    };
    Ok(vec![
        figure("p50", 0.5, Goal::None),
        figure("p99", 0.99, Goal::Below(1.5)),
        figure("max", 1.0, Goal::None),
    ])
}

/// Partitions that each broker has a replica of.
const MANY: u32 = 2000;

/// What three brokers take that have two thousand partitions each and nothing to do, and how long they need
/// from their start to a leader of each.
pub(crate) fn partitions(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let count = if bench.quick { 100 } else { MANY };
    let pause = Duration::from_secs(if bench.quick { 1 } else { 10 });
    let side = |count: u32| {
        let mut cluster = Cluster::start(bench, BROKERS)?;
        let runtime = crate::broker::runtime()?;
        let client = {
            let _runtime = runtime.enter();
            cluster.client()?
        };
        runtime.block_on(async {
            let topics = count.div_ceil(500);
            for number in 0..topics {
                let partitions = (count - number * 500).min(500);
                create(&client, &format!("many-{number}"), partitions).await?;
            }
            is_well(&client, BROKERS as usize).await?;
            tokio::time::sleep(pause / 2).await;
            anyhow::Ok(())
        })?;
        let before = cluster.cpu_seconds()?;
        runtime.block_on(async { tokio::time::sleep(pause).await });
        let busy = (cluster.cpu_seconds()? - before) / f64::from(BROKERS);
        let idle = busy / pause.as_secs_f64() * 100.0;
        let memory = cluster.brokers.iter().flatten();
        let memory = memory
            .map(Server::anonymous_mib)
            .sum::<anyhow::Result<f64>>()?;
        cluster.brokers.iter_mut().for_each(|one| drop(one.take()));
        let began = Instant::now();
        for at in 0..BROKERS as usize {
            let back = cluster.spawn(at)?;
            cluster.brokers[at] = Some(back);
        }
        cluster.ready()?;
        runtime.block_on(is_well(&client, BROKERS as usize))?;
        let restart = began.elapsed().as_secs_f64();
        anyhow::Ok([idle, memory / f64::from(BROKERS), restart])
    };
    let many = side(count)?;
    let none = side(1)?;
    let each = (many[1] - none[1]) * 1024.0 / f64::from(count);
    let figure = |name: &str, unit, value, baseline, goal| Figure {
        name: format!("replicated-partitions.{name}"),
        unit,
        values: vec![value],
        baseline: "the same with one partition",
        baselines: vec![baseline],
        goal,
    };
    Ok(vec![
        figure(
            "idle-core",
            "% of a core",
            many[0],
            none[0],
            Goal::Below(5.0),
        ),
        figure(
            "memory-each",
            "KiB",
            each,
            none[1] * 1024.0,
            Goal::Below(256.0),
        ),
        figure(
            "restart-to-leaders",
            "s",
            many[2],
            none[2],
            Goal::Below(15.0),
        ),
    ])
}
