//! The brokers of a cluster, each a process of its own on this machine.
#![expect(clippy::disallowed_methods, reason = "this is a benchmark")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use tidelog_client::{AdminOptions, Client, ClientConfig, NewTopic, TopicName};

use crate::fixtures::Bench;
use crate::process::Server;

pub(crate) const BROKERS: u32 = 3;
/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How often what is waited for is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(5);

/// The brokers of one cluster, or one that is alone.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) brokers: Vec<Option<Server>>,
    ports: Vec<[u16; 3]>,
    peers: String,
}

impl Cluster {
    pub(crate) fn start(bench: &Bench, count: u32) -> anyhow::Result<Self> {
        let dir = bench.dir()?;
        if count == 1 {
            let alone = Server::broker(&dir.path().join("1"))?;
            return Ok(Self {
                dir,
                brokers: vec![Some(alone)],
                ports: Vec::new(),
                peers: String::new(),
            });
        }
        let mut free = free_ports();
        let mut port = || free.next().context("a free port");
        let mut ports = Vec::new();
        for _ in 0..count {
            ports.push([port()?, port()?, port()?]);
        }
        let peers = (1..)
            .zip(&ports)
            .map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports[2]));
        let peers = peers.collect::<Vec<_>>().join(",");
        let mut cluster = Self {
            dir,
            brokers: Vec::new(),
            ports,
            peers,
        };
        for at in 0..count as usize {
            cluster.brokers.push(Some(cluster.spawn(at)?));
        }
        cluster.ready()?;
        Ok(cluster)
    }

    pub(crate) fn spawn(&self, at: usize) -> anyhow::Result<Server> {
        let id = u32::try_from(at)? + 1;
        let data = self.dir.path().join(id.to_string());
        Server::of_cluster(&data, id, self.ports[at], &self.peers)
    }

    pub(crate) fn ready(&mut self) -> anyhow::Result<()> {
        self.brokers
            .iter_mut()
            .flatten()
            .try_for_each(Server::ready)
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let addresses: Vec<String> = if self.ports.is_empty() {
            self.brokers
                .iter()
                .flatten()
                .map(|one| one.addr.clone())
                .collect()
        } else {
            let ports = self.ports.iter();
            ports
                .map(|ports| format!("127.0.0.1:{}", ports[0]))
                .collect()
        };
        Ok(Client::lazy(ClientConfig::new(
            addresses.join(",").parse()?,
        ))?)
    }

    /// The high watermark of the first partition of a topic, as a broker's metrics have it.
    pub(crate) fn high_watermark(&self, at: usize, topic: &str) -> anyhow::Result<u64> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports[at][1]))?;
        let request = "GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
        socket.write_all(request.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let of_it = format!("topic=\"{topic}\"");
        let mut lines = answer.lines();
        let line = lines.find(|line| {
            line.starts_with("tidelog_high_watermark{") && line.contains(of_it.as_str())
        });
        let value = line.and_then(|line| line.rsplit(' ').next());
        Ok(value.context("the metrics have the partition")?.parse()?)
    }

    /// Kills a broker and starts it again; gives the process, which is not ready yet.
    pub(crate) fn restart(&mut self, at: usize) -> anyhow::Result<u32> {
        drop(self.brokers[at].take());
        let back = self.spawn(at)?;
        let process = back.process();
        self.brokers[at] = Some(back);
        Ok(process)
    }

    /// User and system time of all brokers, in seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let brokers = self.brokers.iter().flatten();
        brokers.map(Server::cpu_seconds).sum()
    }
}

/// Ports that nobody has: below those that the system gives to connections.
pub(crate) fn free_ports() -> impl Iterator<Item = u16> {
    (12_000..30_000).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// Waits until each partition is led, and all replicas are caught up.
pub(crate) async fn is_well(client: &Client, brokers: usize) -> anyhow::Result<()> {
    let alive = tidelog_client::proto::BrokerState::Alive as i32;
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(described) = client.describe_cluster().await {
            let there = described.brokers.iter().filter(|one| one.state == alive);
            if described.problem_count == 0 && there.count() == brokers {
                return Ok(());
            }
        }
        anyhow::ensure!(Instant::now() < until, "the cluster does not get well");
        tokio::time::sleep(LOOK).await;
    }
}

pub(crate) async fn create(
    client: &Client,
    name: &str,
    partitions: u32,
) -> anyhow::Result<TopicName> {
    let new = NewTopic {
        partitions,
        ..NewTopic::default()
    };
    create_as(client, name, new).await
}

pub(crate) async fn create_as(
    client: &Client,
    name: &str,
    new: NewTopic,
) -> anyhow::Result<TopicName> {
    let topic = TopicName::new(name)?;
    client
        .create_topic_as(&topic, new, AdminOptions::default())
        .await?;
    Ok(topic)
}
