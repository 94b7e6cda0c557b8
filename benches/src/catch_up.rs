//! A follower that was away: how fast it catches up, what that costs the leader's clients, and what memory
//! it takes; and what memory a start takes that has much to apply.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tidelog_client::{Client, TopicName};
use tidelog_proto::v1::Acks;
use tidelog_proto::v1::log_client::LogClient;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::append::reserved_file;
use crate::brokers::{BROKERS, Cluster, LOOK, PATIENCE, create, is_well};
use crate::figure::{Figure, Goal, percentile};
use crate::fixtures::{Bench, MIB, batch_of, float, now, timed};
use crate::grpc::{Clients, Stream, append_request};
use crate::process::Peaks;

const TOPIC: &str = "away";
/// Batches of 128 KiB, nearly.
const BATCH_RECORDS: usize = 127;
const IN_FLIGHT: usize = 16;
/// So long a broker that was started is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(3);
/// One record is appended every so often, one after the other.
const PACE: Duration = Duration::from_millis(2);

/// Three brokers and a topic, and how to speak with them.
struct Scene {
    cluster: Cluster,
    client: Client,
    topic: TopicName,
    // After what lives in it.
    runtime: Runtime,
}

impl Scene {
    fn new(bench: &Bench, partitions: u32) -> anyhow::Result<Self> {
        let cluster = Cluster::start(bench, BROKERS)?;
        let runtime = crate::broker::runtime()?;
        let (client, topic) = runtime.block_on(async {
            let client = cluster.client()?;
            let topic = create(&client, TOPIC, partitions).await?;
            is_well(&client, BROKERS as usize).await?;
            anyhow::Ok((client, topic))
        })?;
        Ok(Self {
            cluster,
            client,
            topic,
            runtime,
        })
    }

    fn settle(&self, bench: &Bench) {
        let pause = if bench.quick { SETTLE / 6 } else { SETTLE };
        self.runtime
            .block_on(async { tokio::time::sleep(pause).await });
    }

    /// The brokers that lead the partitions, in the order of these; each is one that is there.
    fn leaders(&self) -> anyhow::Result<Vec<usize>> {
        let began = now();
        self.runtime.block_on(async {
            loop {
                let places = self.client.list_partitions(Some(&self.topic)).await?;
                let leaders = places.iter().map(|place| Some(place.leader? as usize - 1));
                let leaders: Option<Vec<_>> = leaders.collect();
                let is_there = |at: &usize| self.cluster.brokers[*at].is_some();
                if let Some(leaders) = leaders.filter(|all| all.iter().all(is_there)) {
                    return Ok(leaders);
                }
                anyhow::ensure!(began.elapsed() < PATIENCE, "a partition is not led");
                tokio::time::sleep(LOOK).await;
            }
        })
    }

    fn log(&self, at: usize) -> anyhow::Result<LogClient<Channel>> {
        let broker = self.cluster.brokers[at].as_ref().context("it runs")?;
        Ok(self.runtime.block_on(Clients::connect(&broker.addr))?.log)
    }

    /// Writes so many bytes to a partition.
    fn fill(&self, leader: usize, partition: u32, bytes: usize) -> anyhow::Result<()> {
        let batch = batch_of(BATCH_RECORDS)?;
        let count = bytes.div_ceil(batch.len());
        let stream = Stream {
            topic: TOPIC,
            partitions: &[partition],
            acks: Acks::All,
            in_flight: IN_FLIGHT,
            batch,
            count,
        };
        let log = self.log(leader)?;
        self.runtime.block_on(stream.produce(log)).map(drop)
    }

    /// Waits until the first partition is led by its preferred leader, to which it goes back by itself.
    fn wait_led_by(&self, leader: usize) -> anyhow::Result<()> {
        let began = now();
        while self.leaders()?[0] != leader {
            anyhow::ensure!(
                began.elapsed() < PATIENCE,
                "the leadership does not go back"
            );
            self.runtime
                .block_on(async { tokio::time::sleep(LOOK).await });
        }
        Ok(())
    }

    fn wait_well(&self) -> anyhow::Result<()> {
        self.runtime
            .block_on(is_well(&self.client, BROKERS as usize))
    }

    /// Restarts a broker, and waits until all are caught up.
    fn restart(&mut self, at: usize) -> anyhow::Result<()> {
        self.cluster.restart(at)?;
        let back = self.cluster.brokers[at].as_mut().context("it runs")?;
        back.ready()?;
        self.wait_well()
    }

    fn memory(&self, at: usize) -> anyhow::Result<f64> {
        let broker = self.cluster.brokers[at].as_ref().context("it runs")?;
        broker.anonymous_mib()
    }
}

/// Single records, one every while, until it is told to end.
struct Paced {
    is_over: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Vec<f64>>>,
}

impl Paced {
    fn start(runtime: &Runtime, mut log: LogClient<Channel>) -> anyhow::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, batch) = (is_over.clone(), batch_of(1)?);
        let task = runtime.spawn(async move {
            let mut millis = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let began = now();
                log.append(append_request(TOPIC, 0, batch.clone())).await?;
                millis.push(began.elapsed().as_secs_f64() * 1e3);
                tokio::time::sleep(PACE.saturating_sub(began.elapsed())).await;
            }
            Ok(millis)
        });
        Ok(Self { is_over, task })
    }

    fn p99(self, runtime: &Runtime) -> anyhow::Result<f64> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut millis = runtime.block_on(self.task)??;
        Ok(percentile(&mut millis, 0.99))
    }
}

/// What one turn gives, a value and its baseline each: the speed of catching up and of a bare write, the
/// leader's p99 during it and before, what the follower holds more than at rest and at rest, and the same of
/// the leader.
type Turn = [(f64, f64); 4];

fn one_turn(bench: &Bench) -> anyhow::Result<Turn> {
    let bytes = bench.size(1 << 30, 64 << 20);
    let mut scene = Scene::new(bench, 1)?;
    let leader = scene.leaders()?[0];
    let away = (leader + 1) % BROKERS as usize;
    // What it holds after a start that had nothing to catch up with.
    scene.restart(away)?;
    scene.settle(bench);
    let away_rest = scene.memory(away)?;
    drop(scene.cluster.brokers[away].take());
    scene.wait_led_by(leader)?;
    scene.fill(leader, 0, bytes)?;
    // What they hold then is not left over from the load.
    for at in (0..BROKERS as usize).filter(|at| *at != away) {
        scene.cluster.restart(at)?;
        let back = scene.cluster.brokers[at].as_mut().context("it runs")?;
        back.ready()?;
        scene.wait_led_by(leader)?;
    }
    scene.settle(bench);
    let goal = scene.cluster.high_watermark(leader, TOPIC)?;
    let bare = bare_write(scene.cluster.dir.path(), bytes)?;

    let log = scene.log(leader)?;
    let calm = Paced::start(&scene.runtime, log.clone())?;
    scene.settle(bench);
    let calm = calm.p99(&scene.runtime)?;
    let leader_rest = scene.memory(leader)?;
    let leader_process = scene.cluster.brokers[leader].as_ref().context("it runs")?;
    let leader_process = leader_process.process();
    let during = Paced::start(&scene.runtime, log)?;
    let began = now();
    let away_process = scene.cluster.restart(away)?;
    let peaks = Peaks::watch(vec![away_process, leader_process]);
    while !matches!(scene.cluster.high_watermark(away, TOPIC), Ok(end) if end >= goal) {
        anyhow::ensure!(began.elapsed() < PATIENCE, "it does not catch up");
        scene
            .runtime
            .block_on(async { tokio::time::sleep(LOOK).await });
    }
    let seconds = began.elapsed().as_secs_f64();
    let during = during.p99(&scene.runtime)?;
    let peaks = peaks.end()?;
    Ok([
        (float(bytes) / MIB / seconds, bare),
        (during, calm),
        (peaks[0] - away_rest, away_rest),
        (peaks[1] - leader_rest, leader_rest),
    ])
}

/// MiB a second of a bare loop of writes into a file with its space taken, synced at the end.
fn bare_write(dir: &Path, bytes: usize) -> anyhow::Result<f64> {
    let path = dir.join("bare");
    let file = reserved_file(&path, bytes as u64)?;
    let part = vec![7; 1 << 20];
    let (seconds, ()) = timed(|| {
        for at in (0..bytes).step_by(part.len()) {
            file.write_all_at(&part, at as u64)?;
        }
        Ok(file.sync_data()?)
    })?;
    std::fs::remove_file(path)?;
    Ok(float(bytes) / MIB / seconds)
}

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut turns = Vec::new();
    for _ in 0..bench.turns {
        turns.push(one_turn(bench)?);
    }
    let names = [
        (
            "speed",
            "MiB/s",
            "a bare loop of write, and fdatasync at the end",
            Goal::RatioAtLeast(0.5),
        ),
        (
            "leader-append-p99",
            "ms",
            "the same before the follower came back",
            Goal::RatioAtMost(2.0),
        ),
        (
            "follower-memory-added",
            "MiB",
            "what it holds after a start with nothing to catch up with",
            Goal::Below(8.0),
        ),
        (
            "leader-memory-added",
            "MiB",
            "what it holds before the follower came back",
            Goal::Below(8.0),
        ),
    ];
    let figures = names.iter().enumerate();
    let figures = figures.map(|(at, (name, unit, baseline, goal))| Figure {
        name: format!("catch-up.1GiB.{name}"),
        unit,
        values: turns.iter().map(|turn| turn[at].0).collect(),
        baseline,
        baselines: turns.iter().map(|turn| turn[at].1).collect(),
        goal: *goal,
    });
    Ok(figures.collect())
}

/// A commit is recorded every 8 MiB of a partition, so that less than that is to be applied at a start: it
/// takes many partitions to have 64 MiB.
const UNAPPLIED_PARTITIONS: u32 = 9;
const UNAPPLIED_BYTES_EACH: usize = 7_500 << 10;

/// What all brokers hold at most while they start after they were killed together, more with 64 MiB that
/// they do not know to be committed than with nothing.
pub(crate) fn unapplied(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let (mut values, mut baselines) = (Vec::new(), Vec::new());
    for _ in 0..bench.turns {
        let mut scene = Scene::new(bench, UNAPPLIED_PARTITIONS)?;
        let empty = peak_of_start(&mut scene, bench)?;
        for (partition, leader) in (0..).zip(scene.leaders()?) {
            scene.fill(leader, partition, UNAPPLIED_BYTES_EACH)?;
        }
        scene.wait_well()?;
        let full = peak_of_start(&mut scene, bench)?;
        let added = full.iter().zip(&empty).map(|(full, empty)| full - empty);
        values.push(added.fold(f64::MIN, f64::max));
        baselines.push(empty.into_iter().fold(0.0, f64::max));
    }
    Ok(vec![Figure {
        name: "unapplied.64MiB.memory-added".to_owned(),
        unit: "MiB",
        values,
        baseline: "the most a broker holds during a start with nothing to apply",
        baselines,
        goal: Goal::Below(8.0),
    }])
}

/// The most that each broker holds from when all are started, after they were killed, until all is well.
fn peak_of_start(scene: &mut Scene, bench: &Bench) -> anyhow::Result<Vec<f64>> {
    scene
        .cluster
        .brokers
        .iter_mut()
        .for_each(|one| drop(one.take()));
    let all = 0..BROKERS as usize;
    let processes = all.map(|at| scene.cluster.restart(at));
    let peaks = Peaks::watch(processes.collect::<anyhow::Result<_>>()?);
    scene.cluster.ready()?;
    scene.wait_well()?;
    scene.leaders()?;
    scene.settle(bench);
    peaks.end()
}
