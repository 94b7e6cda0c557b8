//! Three brokers of ours beside three of Kafka: the same batches from clients that encode nothing, over as
//! many connections, with as many requests on their way, to as many partitions at all three brokers.
//!
//! Both take part twice. What they acknowledge is on three of Kafka's disks with `flush.messages=1`, and on two
//! of ours; with Kafka's defaults it is in three page caches, and in two of ours with `write.caching=true`.

mod nodes;
mod ours;
mod wire;

use std::path::PathBuf;

use bytes::Bytes;

use self::nodes::Nodes;
use self::ours::Ours;
use crate::figure::{Figure, Goal, percentile};
use crate::fixtures::{Bench, MIB, RECORD_BYTES, batch_of, float, timed};
use crate::process::own_cpu_seconds;

/// Where the jars are.
const LIBS: &str = "KAFKA_LIBS";
/// Of a topic: each broker leads two.
const PARTITIONS: u32 = 6;
/// From the clients to each broker. Kafka answers the requests of one connection one after the other, so
/// with a single one it would stand idle most of the time.
const CONNECTIONS: usize = 4;
/// Of one connection, as Kafka's own client has it.
const IN_FLIGHT: usize = 5;
/// Batches of 128 KiB, nearly.
const BATCH_RECORDS: usize = 127;

/// What a turn sends.
struct Load {
    batch: Bytes,
    /// How many of them over each connection.
    count: usize,
    single: Bytes,
    /// How many single records, one after the other.
    singles: usize,
}

impl Load {
    /// So many bytes of values, and so many single records.
    fn new(bytes: usize, singles: usize) -> anyhow::Result<Self> {
        let connections = CONNECTIONS * 3;
        Ok(Self {
            batch: batch_of(BATCH_RECORDS)?,
            count: bytes / (BATCH_RECORDS * RECORD_BYTES) / connections,
            single: batch_of(1)?,
            singles,
        })
    }

    fn bytes(&self) -> f64 {
        float(self.count * CONNECTIONS * 3 * BATCH_RECORDS * RECORD_BYTES)
    }
}

/// What one turn gives.
#[derive(Clone, Copy)]
enum What {
    MibPerSecond,
    BrokersCpu,
    ClientCpu,
    BatchP99,
    SingleP50,
}

const FIGURES: [(&str, &str, What, Option<Goal>); 5] = [
    (
        "produce-128KiB",
        "MiB/s",
        What::MibPerSecond,
        Some(Goal::RatioAtLeast(3.0)),
    ),
    (
        "brokers-cpu",
        "CPU-s/GB",
        What::BrokersCpu,
        Some(Goal::RatioAtMost(0.5)),
    ),
    ("client-cpu", "CPU-s/GB", What::ClientCpu, None),
    ("produce-128KiB.p99", "ms", What::BatchP99, None),
    (
        "one-record-at-a-time.p50",
        "ms",
        What::SingleP50,
        Some(Goal::RatioAtMost(1.0)),
    ),
];

type Turn = [f64; FIGURES.len()];

/// Takes the times of a load, and what it cost the brokers and this process.
fn taken(
    load: &Load,
    cpu: impl Fn() -> anyhow::Result<f64>,
    batches: impl FnOnce() -> anyhow::Result<Vec<f64>>,
    singles: impl FnOnce() -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<Turn> {
    let (brokers, own) = (cpu()?, own_cpu_seconds()?);
    let (seconds, mut millis) = timed(batches)?;
    let (brokers, own) = (cpu()? - brokers, own_cpu_seconds()? - own);
    let mut single_millis = singles()?;
    let gigabytes = load.bytes() / 1e9;
    Ok(FIGURES.map(|(_, _, what, _)| match what {
        What::MibPerSecond => load.bytes() / MIB / seconds,
        What::BrokersCpu => brokers / gigabytes,
        What::ClientCpu => own / gigabytes,
        What::BatchP99 => percentile(&mut millis, 0.99),
        What::SingleP50 => percentile(&mut single_millis, 0.5),
    }))
}

fn kafka(nodes: &Nodes, topic: &str, synced: bool, load: &Load) -> anyhow::Result<Turn> {
    let synced: &[_] = if synced {
        &[("flush.messages", "1")]
    } else {
        &[]
    };
    nodes
        .connect(0)?
        .create(topic, PARTITIONS.cast_signed(), synced)?;
    let single = wire::produce(topic, 0, &load.single);
    // Its leaders are there some time after it is.
    nodes.until_led(topic, &load.single)?;
    let batches = || {
        std::thread::scope(|scope| {
            let connections = (0..CONNECTIONS * 3).map(|number| {
                let at = number % 3;
                let batches = [at, at + 3].map(|partition| {
                    let partition = i32::try_from(partition).unwrap_or(0);
                    wire::produce(topic, partition, &load.batch)
                });
                scope.spawn(move || {
                    let mut broker = nodes.connect(at)?;
                    broker.produce(&batches, load.count, IN_FLIGHT)
                })
            });
            let connections: Vec<_> = connections.collect();
            let mut millis = Vec::new();
            for connection in connections {
                let taken = connection.join();
                millis.extend(taken.map_err(|_| anyhow::anyhow!("a client panicked"))??);
            }
            Ok(millis)
        })
    };
    let singles = || nodes.connect(0)?.produce(&[single], load.singles, 1);
    let turn = taken(load, || nodes.cpu_seconds(), batches, singles)?;
    nodes.delete(topic)?;
    Ok(turn)
}

/// Ours beside Kafka, if there is one.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let Some(libs) = std::env::var_os(LIBS) else {
        eprintln!("  left out: {LIBS} does not say where Kafka's jars are");
        return Ok(Vec::new());
    };
    let mut ours = Ours::start(bench)?;
    let nodes = Nodes::start(bench, &PathBuf::from(libs))?;
    nodes.ready()?;
    // A virtual machine compiles what is called often: Kafka gets several times as fast while it does.
    let warm = Load::new(bench.size(1 << 30, 64 << 20), bench.size(2000, 100))?;
    for number in 0..bench.size(6, 1) {
        let turn = kafka(&nodes, &format!("warm-{number}"), false, &warm)?;
        eprintln!(
            "  warming Kafka: {:.0} MiB/s, {:.1} CPU-s/GB",
            turn[0], turn[1]
        );
    }
    kafka(&nodes, "warm-synced", true, &warm)?;
    ours.turn("warm", true, &warm)?;

    let load = Load::new(bench.size(512 << 20, 64 << 20), bench.size(3000, 100))?;
    let mut turns: [Vec<Turn>; 4] = Default::default();
    for turn in 0..bench.turns {
        let mut order = [0, 1, 2, 3];
        if turn % 2 == 1 {
            order.reverse();
        }
        for side in order {
            let topic = format!("turn-{turn}-{side}");
            turns[side].push(match side {
                0 | 1 => ours.turn(&topic, side == 1, &load)?,
                side => kafka(&nodes, &topic, side == 3, &load)?,
            });
        }
    }
    let mut figures = Vec::new();
    for (side, name, baseline) in [
        (
            0,
            "beside-page-cache",
            "three nodes of Kafka, acks=all, nothing synced",
        ),
        (
            1,
            "beside-synced",
            "three nodes of Kafka, acks=all, flush.messages=1",
        ),
    ] {
        for (at, (what, unit, _, goal)) in FIGURES.iter().enumerate() {
            let of = |side: usize| turns[side].iter().map(|turn| turn[at]).collect();
            figures.push(Figure {
                name: format!("kafka.{what}.{name}"),
                unit,
                values: of(side),
                baseline,
                baselines: of(side + 2),
                goal: goal.unwrap_or(Goal::None),
            });
        }
    }
    Ok(figures)
}
