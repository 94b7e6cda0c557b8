//! Three nodes of Kafka on this machine, each a broker and a controller, from a directory of jars.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::PARTITIONS;
use super::wire::{self, Connection};
use crate::brokers::free_ports;
use crate::fixtures::{Bench, now};
use crate::process::Server;

/// How long they may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
const CLUSTER_ID: &str = "dGlkZWxvZy1iZW5jaC0wMQ";
/// What Kafka's own scripts start a broker with.
const JVM: [&str; 8] = [
    "-Xmx1g",
    "-Xms1g",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
];

pub(super) struct Nodes {
    nodes: Vec<Server>,
    // After the processes that use it.
    pub(super) dir: tempfile::TempDir,
}

impl Nodes {
    /// Starts three nodes of the jars in `libs`; they are ready when the first topic can be made.
    pub(super) fn start(bench: &Bench, libs: &Path) -> anyhow::Result<Self> {
        let dir = bench.dir()?;
        let ports: Vec<u16> = free_ports().take(6).collect();
        let ports: Vec<(u16, u16)> = ports.chunks_exact(2).map(|two| (two[0], two[1])).collect();
        let mut nodes = Vec::new();
        for at in 0..ports.len() {
            nodes.push(start_one(
                libs,
                &dir.path().join(at.to_string()),
                at,
                &ports,
            )?);
        }
        Ok(Self { nodes, dir })
    }

    /// Waits until a topic can be made.
    pub(super) fn ready(&self) -> anyhow::Result<()> {
        self.until(|| self.connect(0)?.create("ready", 3, &[]))
    }

    /// A connection to the node at this place.
    pub(super) fn connect(&self, at: usize) -> anyhow::Result<Connection> {
        Connection::open(&self.nodes[at].addr)
    }

    /// Waits until each partition of a topic takes a batch.
    pub(super) fn until_led(&self, topic: &str, batch: &[u8]) -> anyhow::Result<()> {
        for at in 0..PARTITIONS as usize {
            let partition = i32::try_from(at)?;
            let request = [wire::produce(topic, partition, batch)];
            self.until(|| {
                let mut broker = self.connect(at % 3)?;
                broker.produce(&request, 1, 1).map(drop)
            })?;
        }
        Ok(())
    }

    /// Deletes a topic, and waits until its files are gone.
    pub(super) fn delete(&self, topic: &str) -> anyhow::Result<()> {
        self.connect(0)?.delete(topic)?;
        let beginning = format!("{topic}-");
        self.until(|| {
            for node in 0..self.nodes.len() {
                let data = self.dir.path().join(node.to_string()).join("data");
                for entry in std::fs::read_dir(data)? {
                    let name = entry?.file_name();
                    let is_left = name.to_string_lossy().starts_with(&beginning);
                    anyhow::ensure!(!is_left, "the files of topic {topic} are not deleted");
                }
            }
            Ok(())
        })
    }

    /// Tries until it is done.
    fn until(&self, mut act: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let began = now();
        loop {
            match act() {
                Ok(()) => return Ok(()),
                Err(e) if began.elapsed() > PATIENCE => {
                    let log = std::fs::read_to_string(self.dir.path().join("0/out"));
                    return Err(e.context(log.unwrap_or_default()));
                }
                #[allow(clippy::disallowed_methods, reason = "for a condition, with an end")]
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.nodes.iter().map(Server::cpu_seconds).sum()
    }
}

fn start_one(libs: &Path, dir: &Path, at: usize, ports: &[(u16, u16)]) -> anyhow::Result<Server> {
    std::fs::create_dir(dir)?;
    let (port, control) = ports[at];
    let voters = (1..).zip(ports);
    let voters = voters.map(|(id, (_, port))| format!("{id}@127.0.0.1:{port}"));
    let voters = voters.collect::<Vec<_>>().join(",");
    // Its defaults but for where it is, who belongs to it, when deleted files go (at once, so that the disk
    // does not fill), and when leaderships go back to the broker that is to lead (not after five minutes).
    let properties = format!(
        "process.roles=broker,controller\n\
         node.id={id}\n\
         controller.quorum.voters={voters}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{control}\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={data}\n\
         log.retention.ms=-1\n\
         log.segment.delete.delay.ms=0\n\
         leader.imbalance.check.interval.seconds=1\n\
         default.replication.factor=3\n\
         min.insync.replicas=2\n",
        id = at + 1,
        data = dir.join("data").display(),
    );
    let file = dir.join("server.properties");
    std::fs::write(&file, properties)?;
    let formatted = java(libs, dir)?
        .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(&file)
        .status()
        .context("java does not start")?;
    anyhow::ensure!(formatted.success(), "Kafka's directory is not formatted");
    let mut command = java(libs, dir)?;
    command.arg("kafka.Kafka").arg(&file);
    Server::other(command, format!("127.0.0.1:{port}"))
}

/// A JVM with the jars, which says what it has to say to a file.
fn java(libs: &Path, dir: &Path) -> anyhow::Result<Command> {
    let out = File::options()
        .create(true)
        .append(true)
        .open(dir.join("out"))?;
    let mut jars = PathBuf::from(libs).into_os_string();
    jars.push("/*");
    let mut command = Command::new("java");
    command
        .args(JVM)
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .arg("-cp")
        .arg(jars)
        .current_dir(dir)
        .stdout(out.try_clone()?)
        .stderr(out);
    Ok(command)
}
