//! A broker of its own process beside the bare server: the same client, the same messages.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tidelog_disk::{Disk, OsDisk};
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::topics_client::TopicsClient;
use tidelog_proto::v1::{
    Acks, AppendRequest, CreateTopicRequest, DeleteTopicRequest, ProduceRequest, ReadRequest,
    ReadStart, append_request, produce_response, read_request, read_response,
};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::figure::{Figure, Goal, in_turns, percentile};
use crate::fixtures::{Bench, MIB, batch_of, float, now, timed};
use crate::process::Server;

/// HTTP/2 windows of the clients and the bare server: at least what a broker and its clients have.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// The same for a connection.
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;
/// The longest frame, as the broker has it.
pub(crate) const FRAME_MAX: u32 = 64 << 10;

const TOPIC: &str = "bench";
/// Records of 1 KiB in a batch of 128 KiB, about.
const BATCH_RECORDS: usize = 127;
/// Requests of a produce stream that are not answered yet.
const IN_FLIGHT: usize = 64;
/// So long the next turn waits for what the last one left on the disk.
const SPACE_WAIT_MAX: Duration = Duration::from_secs(20);

/// Clients over one connection.
pub(crate) struct Clients {
    pub(crate) log: LogClient<Channel>,
    topics: TopicsClient<Channel>,
}

impl Clients {
    pub(crate) async fn connect(addr: &str) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(format!("http://{addr}"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .connect()
            .await?;
        Ok(Self {
            log: LogClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            topics: TopicsClient::new(channel),
        })
    }

    pub(crate) async fn create(&mut self, name: &str, partitions: u32) -> anyhow::Result<()> {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            ..CreateTopicRequest::default()
        };
        self.topics.create_topic(request).await?;
        Ok(())
    }

    async fn delete(&mut self, name: &str) -> anyhow::Result<()> {
        let request = DeleteTopicRequest {
            name: name.to_owned(),
        };
        self.topics.delete_topic(request).await?;
        Ok(())
    }
}

/// One batch, to be durable before it is answered.
pub(crate) fn append_request(topic: &str, partition: u32, batch: Bytes) -> AppendRequest {
    AppendRequest {
        topic: topic.to_owned(),
        partition: Some(partition),
        payload: Some(append_request::Payload::Batch(batch)),
        ..AppendRequest::default()
    }
}

/// A broker and a bare server, and clients of both.
struct Sides {
    runtime: Runtime,
    broker: Server,
    ours: Clients,
    server: Server,
    bare: Clients,
    // After the processes that use it.
    dir: tempfile::TempDir,
}

impl Sides {
    fn start(bench: &Bench) -> anyhow::Result<Self> {
        let dir = bench.dir()?;
        let runtime = crate::broker::runtime()?;
        let broker = Server::broker(&dir.path().join("data"))?;
        let server = Server::bare(dir.path())?;
        let (ours, bare) = runtime.block_on(async {
            let mut ours = Clients::connect(&broker.addr).await?;
            ours.create(TOPIC, 1).await?;
            Ok::<_, anyhow::Error>((ours, Clients::connect(&server.addr).await?))
        })?;
        Ok(Self {
            runtime,
            broker,
            ours,
            server,
            bare,
            dir,
        })
    }
}

/// One record of 1 KiB at a time, synced before each answer.
pub(crate) fn unary(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let sides = Sides::start(bench)?;
    let count = bench.size(3000, 300);
    let batch = batch_of(1)?;
    let p50 = |log: &LogClient<Channel>| {
        let (mut log, batch) = (log.clone(), batch.clone());
        sides.runtime.block_on(async move {
            let mut took = Vec::with_capacity(count);
            for _ in 0..count {
                let began = now();
                log.append(append_request(TOPIC, 0, batch.clone())).await?;
                took.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok(percentile(&mut took, 0.5))
        })
    };
    let (values, baselines) = in_turns(
        bench.turns,
        || p50(&sides.ours.log),
        || p50(&sides.bare.log),
    )?;
    Ok(vec![Figure {
        name: "unary.synced-p50".to_owned(),
        unit: "ms",
        values,
        baseline: "bare tonic unary + fdatasync",
        baselines,
        goal: Goal::RatioAtMost(1.2),
    }])
}

/// Prepared batches over one stream, not synced before the answer.
pub(crate) fn produce_stream(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut sides = Sides::start(bench)?;
    let batch = batch_of(BATCH_RECORDS)?;
    let count = bench.size(1 << 30, 256 << 20) / batch.len();
    let gigabytes = float(count * batch.len()) / 1e9;
    let mut turn = 0;
    let (values, baselines) = in_turns(
        bench.turns,
        || {
            // A topic a turn: each writes to new files. The old ones are gone, and their space is
            // given back, before the next turn begins.
            turn += 1;
            let topic = format!("{TOPIC}-{turn}");
            let free = OsDisk.free_bytes(sides.dir.path())?;
            sides.runtime.block_on(sides.ours.create(&topic, 1))?;
            let before = sides.broker.cpu_seconds()?;
            let (log, batch) = (sides.ours.log.clone(), batch.clone());
            let (seconds, ()) =
                timed(|| sides.runtime.block_on(produce(log, &topic, batch, count)))?;
            let cpu = sides.broker.cpu_seconds()? - before;
            sides.runtime.block_on(sides.ours.delete(&topic))?;
            wait_for_space(sides.dir.path(), free)?;
            Ok((seconds, cpu))
        },
        || {
            let before = sides.server.cpu_seconds()?;
            let (log, batch) = (sides.bare.log.clone(), batch.clone());
            let (seconds, ()) =
                timed(|| sides.runtime.block_on(produce(log, TOPIC, batch, count)))?;
            Ok((seconds, sides.server.cpu_seconds()? - before))
        },
    )?;
    let bytes = float(count * batch.len());
    Ok(stream_figures(
        "produce-stream.128KiB-not-synced",
        &values,
        &baselines,
        bytes,
        gigabytes,
        Goal::RatioAtLeast(0.6),
    ))
}

/// Waits until about as much is free as was `before`; what takes longer than that is left.
fn wait_for_space(dir: &Path, before: u64) -> anyhow::Result<()> {
    let began = now();
    while OsDisk.free_bytes(dir)? + (64 << 20) < before && began.elapsed() < SPACE_WAIT_MAX {
        #[allow(clippy::disallowed_methods, reason = "for a condition, with an end")]
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The same batch again and again over one stream.
pub(crate) struct Stream<'a> {
    pub(crate) topic: &'a str,
    /// Those that it goes to, one after the other.
    pub(crate) partitions: &'a [u32],
    pub(crate) acks: Acks,
    /// Requests that are not answered yet, at most.
    pub(crate) in_flight: usize,
    pub(crate) batch: Bytes,
    pub(crate) count: usize,
}

impl Stream<'_> {
    /// Gives how long each batch took to be answered, in milliseconds.
    pub(crate) async fn produce(self, mut log: LogClient<Channel>) -> anyhow::Result<Vec<f64>> {
        let room = Arc::new(Semaphore::new(self.in_flight));
        let (sender, requests) = mpsc::channel(8);
        let (begun, mut begins) = mpsc::channel(self.in_flight);
        let places = room.clone();
        let (topic, partitions) = (self.topic.to_owned(), self.partitions.to_owned());
        let (acks, batch, count) = (self.acks, self.batch, self.count);
        let sending = tokio::spawn(async move {
            let partitions = partitions.iter().cycle();
            for (correlation_id, partition) in (0..count as u64).zip(partitions) {
                places.acquire().await?.forget();
                let append = AppendRequest {
                    acks: acks.into(),
                    ..append_request(&topic, *partition, batch.clone())
                };
                let request = ProduceRequest {
                    correlation_id,
                    append: Some(append),
                };
                begun.send(now()).await?;
                sender.send(request).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        let mut answers = log
            .produce(ReceiverStream::new(requests))
            .await?
            .into_inner();
        let mut millis = Vec::with_capacity(count);
        let mut under_way = HashMap::new();
        let mut last = 0;
        while let Some(answer) = answers.message().await? {
            let is_appended =
                matches!(answer.outcome, Some(produce_response::Outcome::Appended(_)));
            anyhow::ensure!(is_appended, "an append failed: {answer:?}");
            // Those of several partitions may come in another order.
            while let Ok(began) = begins.try_recv() {
                under_way.insert(last, began);
                last += 1;
            }
            let began = under_way.remove(&answer.correlation_id);
            let took = began.context("an answer to no request")?.elapsed();
            millis.push(took.as_secs_f64() * 1e3);
            room.add_permits(1);
        }
        sending.await??;
        let answered = millis.len();
        anyhow::ensure!(answered == count, "{answered} answers to {count} requests");
        Ok(millis)
    }
}

async fn produce(
    log: LogClient<Channel>,
    topic: &str,
    batch: Bytes,
    count: usize,
) -> anyhow::Result<()> {
    let stream = Stream {
        topic,
        partitions: &[0],
        acks: Acks::Leader,
        in_flight: IN_FLIGHT,
        batch,
        count,
    };
    stream.produce(log).await.map(drop)
}

/// A topic read from its beginning, over one stream.
pub(crate) fn read_stream(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let sides = Sides::start(bench)?;
    let batch = batch_of(BATCH_RECORDS)?;
    let count = bench.size(768 << 20, 128 << 20) / batch.len();
    let filling = produce(sides.ours.log.clone(), TOPIC, batch.clone(), count);
    sides.runtime.block_on(filling)?;
    // Readable is what is durable: an append that waits for it is behind all others.
    let (mut log, last) = (sides.ours.log.clone(), append_request(TOPIC, 0, batch));
    sides.runtime.block_on(log.append(last))?;
    let side = |server: &Server, log: &LogClient<Channel>, bytes: u64| {
        let before = server.cpu_seconds()?;
        let (seconds, moved) = timed(|| sides.runtime.block_on(read(log.clone(), bytes)))?;
        anyhow::ensure!(moved > 0, "nothing was read");
        // Each side as much as it moved; both are about the same.
        let bytes = float(moved);
        Ok((seconds / bytes, (server.cpu_seconds()? - before) / bytes))
    };
    let bytes = (count << 17) as u64;
    let (values, baselines) = in_turns(
        bench.turns,
        || side(&sides.broker, &sides.ours.log, bytes),
        || side(&sides.server, &sides.bare.log, bytes),
    )?;
    Ok(stream_figures(
        "read-stream.1MiB",
        &values,
        &baselines,
        1.0,
        1e-9,
        Goal::None,
    ))
}

async fn read(mut log: LogClient<Channel>, bytes: u64) -> anyhow::Result<usize> {
    let start = ReadStart {
        topic: TOPIC.to_owned(),
        // To the bare server this says how much to send; the broker does not heed it.
        credit_bytes: bytes,
        ..ReadStart::default()
    };
    let start = ReadRequest {
        request: Some(read_request::Request::Start(start)),
    };
    let mut answers = log.read(tokio_stream::once(start)).await?.into_inner();
    let mut read = 0;
    while let Some(message) = answers.message().await? {
        match message.response.context("a message says something")? {
            read_response::Response::Data(data) => read += data.batches.len(),
            read_response::Response::PartitionError(error) => {
                anyhow::bail!("a partition cannot be read: {error:?}")
            }
            _ => {}
        }
    }
    Ok(read)
}

/// The speed of a stream, and what its server took for it, of (seconds, CPU seconds) a turn.
fn stream_figures(
    name: &str,
    values: &[(f64, f64)],
    baselines: &[(f64, f64)],
    bytes: f64,
    gigabytes: f64,
    goal: Goal,
) -> Vec<Figure> {
    let speed = |turns: &[(f64, f64)]| turns.iter().map(|(s, _)| bytes / MIB / s).collect();
    let cpu = |turns: &[(f64, f64)]| turns.iter().map(|(_, cpu)| cpu / gigabytes).collect();
    vec![
        Figure {
            name: name.to_owned(),
            unit: "MiB/s",
            values: speed(values),
            baseline: "bare tonic stream",
            baselines: speed(baselines),
            goal,
        },
        Figure {
            name: format!("{name}.server-cpu"),
            unit: "CPU-s/GB",
            values: cpu(values),
            baseline: "bare tonic stream",
            baselines: cpu(baselines),
            goal: Goal::None,
        },
    ]
}
