//! Clusters of real broker processes: killed, paused, cut off from each other, and counted on.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tidelog_client::{
    Client, ClientConfig, NewTopic, PartitionId, Producer, ProducerConfig, ProducerRecord, Reader,
    ReaderConfig, TopicName,
};
use tokio::sync::Notify;

use crate::proxy::Net;
use crate::support::serve;

/// One broker's process, or its place while it does not run.
pub struct Node {
    pub id: u32,
    child: Option<Child>,
    pub grpc: String,
    pub data_dir: PathBuf,
    args: Vec<String>,
    /// The command that runs it elsewhere; empty for here.
    within: Vec<String>,
}

/// Where a broker runs that is not on loopback: its address, and the command that runs programs there.
pub struct Host {
    pub ip: String,
    pub within: Vec<String>,
}

/// A process that does not outlive this.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Brokers on loopback, whose links to each other go through proxies that can be cut.
pub struct Cluster {
    dir: tempfile::TempDir,
    pub nodes: BTreeMap<u32, Node>,
    pub net: Arc<Net>,
}

/// So many ports that were free a moment ago, and which the system gives to nobody by itself: others,
/// that connections begin at, lie above.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 900).unwrap() * 20;
    let mut ports = Vec::new();
    while ports.len() < count {
        let next = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 12_000 + (spread + next) % 19_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}

impl Cluster {
    /// Founds a cluster of brokers 1 to `count`, and waits until each serves and is counted on.
    pub async fn found(count: u32) -> Self {
        let mut cluster = Self::unfounded(count).await;
        cluster.start_all().await;
        cluster
    }

    /// Places for brokers 1 to `count`, none of which runs yet.
    pub async fn unfounded(count: u32) -> Self {
        let net = Arc::<Net>::default();
        let ports = free_ports(count as usize * 3);
        let mut peers = Vec::new();
        for id in 1..=count {
            let target = ports[(id as usize - 1) * 3 + 2];
            let proxy = net.proxy(id, target).await;
            peers.push(format!("{id}@127.0.0.1:{proxy}"));
        }
        let peers = peers.join(",");
        let mut cluster = Self::empty(net);
        for id in 1..=count {
            let at = (id as usize - 1) * 3;
            let proxy = peers.split(',').nth(id as usize - 1).unwrap();
            let proxy = proxy.split_once('@').unwrap().1;
            cluster.add(
                id,
                [ports[at], ports[at + 1], ports[at + 2]],
                &["--peers", &peers, "--advertised-cluster-addr", proxy],
            );
        }
        cluster
    }

    /// A place for a broker on each of these hosts, which reach each other with nothing in between.
    pub fn on(hosts: &[Host]) -> Self {
        let ports = free_ports(3);
        let peers: Vec<String> = (1..)
            .zip(hosts)
            .map(|(id, host)| format!("{id}@{}:{}", host.ip, ports[2]))
            .collect();
        let mut cluster = Self::empty(Arc::default());
        for (id, host) in (1..).zip(hosts) {
            let ports = [ports[0], ports[1], ports[2]];
            cluster.add_at(id, host, ports, &["--peers", &peers.join(",")]);
        }
        cluster
    }

    fn empty(net: Arc<Net>) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            nodes: BTreeMap::new(),
            net,
        }
    }

    /// Starts all, and waits until each serves and is counted on.
    pub async fn start_all(&mut self) {
        let ids: Vec<u32> = self.nodes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.spawn(id));
        self.all_ready().await;
    }

    /// A place for a broker that joins: it does not run yet.
    pub async fn join(&mut self, id: u32) {
        let ports = free_ports(3);
        let proxy = self.net.proxy(id, ports[2]).await;
        let some = self.net.any_proxy(id);
        let (join, advertised) = (format!("127.0.0.1:{some}"), format!("127.0.0.1:{proxy}"));
        self.add(
            id,
            [ports[0], ports[1], ports[2]],
            &["--join", &join, "--advertised-cluster-addr", &advertised],
        );
        self.start(id).await;
    }

    fn add(&mut self, id: u32, ports: [u16; 3], args: &[&str]) {
        let loopback = Host {
            ip: "127.0.0.1".to_owned(),
            within: Vec::new(),
        };
        self.add_at(id, &loopback, ports, args);
    }

    fn add_at(&mut self, id: u32, host: &Host, ports: [u16; 3], args: &[&str]) {
        let [grpc, http, cluster] = ports.map(|port| format!("{}:{port}", host.ip));
        let mut all = vec![
            "--node-id".to_owned(),
            id.to_string(),
            "--grpc-addr".to_owned(),
            grpc.clone(),
            "--http-addr".to_owned(),
            http,
            "--cluster-addr".to_owned(),
            cluster,
            "--log-level".to_owned(),
            std::env::var("TIDELOG_TEST_LOG").unwrap_or_else(|_| "warn".to_owned()),
        ];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let node = Node {
            id,
            child: None,
            grpc,
            data_dir: self.dir.path().join(format!("broker-{id}")),
            args: all,
            within: host.within.clone(),
        };
        self.nodes.insert(id, node);
    }

    /// Starts a broker's process, and does not wait for it.
    pub fn spawn(&mut self, id: u32) {
        let node = self.nodes.get_mut(&id).unwrap();
        let args: Vec<&str> = node.args.iter().map(String::as_str).collect();
        let mut command = within(&node.within, serve(&node.data_dir, &args));
        // Only one of the two is needed; the later one counts.
        command.stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        self.net.set_pid(id, child.id());
        node.child = Some(child);
    }

    /// Starts a broker and waits until it serves.
    pub async fn start(&mut self, id: u32) {
        self.spawn(id);
        self.serves(id).await;
    }

    /// Waits until a broker that was spawned serves.
    pub async fn serves(&mut self, id: u32) {
        let node = self.nodes.get_mut(&id).unwrap();
        let child = node.child.as_mut().unwrap();
        let Some(stdout) = child.stdout.take() else {
            return;
        };
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            line
        });
        let line = tokio::time::timeout(Duration::from_secs(60), line).await;
        let line = line.expect("the broker serves within a minute").unwrap();
        assert!(!line.is_empty(), "broker {id} ended instead of serving");
    }

    /// Waits until all that run serve, and the others count on them.
    pub async fn all_ready(&mut self) {
        let ids: Vec<u32> = self.running();
        for id in ids {
            self.serves(id).await;
        }
        let wanted = self.running();
        self.until("all are counted on", |described| {
            wanted.iter().all(|id| {
                described.brokers.iter().any(|broker| {
                    broker.node_id == *id
                        && broker.state == tidelog_client::proto::BrokerState::Alive as i32
                })
            })
        })
        .await;
    }

    /// The brokers that run.
    pub fn running(&self) -> Vec<u32> {
        let nodes = self.nodes.values();
        nodes
            .filter(|node| node.child.is_some())
            .map(|node| node.id)
            .collect()
    }

    /// `kill -9`.
    pub fn kill(&mut self, id: u32) {
        if let Some(mut child) = self.nodes.get_mut(&id).unwrap().child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits until a broker has ended by itself, and says how.
    pub async fn ended(&mut self, id: u32) -> ExitStatus {
        let mut child = self.nodes.get_mut(&id).unwrap().child.take().unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        status.await.unwrap()
    }

    /// The process of a broker that runs.
    pub fn pid(&self, id: u32) -> u32 {
        self.nodes[&id].child.as_ref().unwrap().id()
    }

    fn signal(&self, id: u32, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid(id)).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub fn pause(&self, id: u32) {
        self.signal(id, Signal::STOP);
    }

    pub fn resume(&self, id: u32) {
        self.signal(id, Signal::CONT);
    }

    /// SIGTERM, and waits for the end, which must be a clean one.
    pub async fn stop(&mut self, id: u32) {
        self.signal(id, Signal::TERM);
        let status = self.ended(id).await;
        assert!(
            status.success(),
            "broker {id} did not stop cleanly: {status}"
        );
    }

    /// The disk of a broker that does not run is lost.
    pub fn wipe(&self, id: u32) {
        std::fs::remove_dir_all(&self.nodes[&id].data_dir).unwrap();
    }

    /// Starts a broker that must refuse to start; gives what it says.
    pub async fn refused(&mut self, id: u32) -> String {
        let node = &self.nodes[&id];
        let args: Vec<&str> = node.args.iter().map(String::as_str).collect();
        let mut command = serve(&node.data_dir, &args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        self.net.set_pid(id, child.id());
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        let output = tokio::time::timeout(Duration::from_secs(60), output).await;
        let output = output.expect("it ends within a minute").unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A process on a copy of the data directory of a broker that does not run, on ports of its own.
    pub fn on_copy(&self, id: u32) -> Command {
        let node = &self.nodes[&id];
        let copy = node.data_dir.with_extension("copy");
        copy_dir(&node.data_dir, &copy);
        let mut args = node.args.clone();
        let addresses = ["--grpc-addr", "--http-addr", "--cluster-addr"];
        for (flag, port) in addresses.into_iter().zip(free_ports(3)) {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            args[at + 1] = format!("127.0.0.1:{port}");
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        serve(&copy, &args)
    }

    /// The addresses of all brokers.
    pub fn addresses(&self) -> String {
        let all: Vec<&str> = self.nodes.values().map(|node| node.grpc.as_str()).collect();
        all.join(",")
    }

    pub fn client(&self) -> Client {
        Client::lazy(ClientConfig::new(self.addresses().parse().unwrap())).unwrap()
    }

    /// A client that knows only of one broker.
    pub fn client_of(&self, id: u32) -> Client {
        let address = self.nodes[&id].grpc.parse().unwrap();
        Client::lazy(ClientConfig::new(address)).unwrap()
    }

    /// Waits until the cluster is so, as any broker that runs sees it.
    pub async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&tidelog_client::proto::DescribeClusterResponse) -> bool,
    ) {
        self.until_by(self.client(), what, is_so).await;
    }

    /// Waits until the cluster is so, as one broker sees it.
    pub async fn until_at(
        &self,
        id: u32,
        what: &str,
        is_so: impl Fn(&tidelog_client::proto::DescribeClusterResponse) -> bool,
    ) {
        self.until_by(self.client_of(id), what, is_so).await;
    }

    async fn until_by(
        &self,
        client: Client,
        what: &str,
        is_so: impl Fn(&tidelog_client::proto::DescribeClusterResponse) -> bool,
    ) {
        let wait = async {
            loop {
                let described = client.describe_cluster().await;
                if described.as_ref().is_ok_and(&is_so) {
                    return;
                }
                // What is waited for comes of what brokers tell each other, a few times a second.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .is_err()
        {
            panic!(
                "it never came to be that {what}: {:?}",
                client.describe_cluster().await
            );
        }
    }

    /// Waits until everything is led, and all replicas have all.
    pub async fn is_well(&self) {
        let running = self.running().len();
        self.until("all is well", |described| {
            let alive = tidelog_client::proto::BrokerState::Alive as i32;
            let alive = described.brokers.iter().filter(|one| one.state == alive);
            described.problem_count == 0 && alive.count() == running
        })
        .await;
    }

    /// Makes a topic with three replicas each.
    pub async fn create(&self, name: &str, partitions: u32) -> TopicName {
        let new = NewTopic {
            partitions,
            replication_factor: 3,
            ..NewTopic::default()
        };
        self.create_as(name, new).await
    }

    pub async fn create_as(&self, name: &str, new: NewTopic) -> TopicName {
        let topic = TopicName::new(name).unwrap();
        let client = self.client();
        let created = client.create_topic_as(&topic, new, Default::default());
        created.await.unwrap();
        topic
    }

    /// The broker that leads a partition.
    pub async fn leader(&self, topic: &TopicName, partition: u32) -> u32 {
        let client = self.client();
        let found = async {
            loop {
                if let Ok(places) = client.list_partitions(Some(topic)).await
                    && let Some(place) = places.iter().find(|one| one.partition == partition)
                    && let Some(leader) = place.leader
                {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(60), found).await;
        found.expect("a leader is found within a minute")
    }

    /// All records of a topic, as one broker has them, or as the leaders do.
    pub async fn read(&self, topic: &TopicName, at: Option<u32>) -> Vec<(u32, u64, String)> {
        let client = match at {
            Some(id) => self.client_of(id),
            None => self.client(),
        };
        let config = ReaderConfig {
            read_replica: at.is_some(),
            ..ReaderConfig::new(topic.clone())
        };
        let mut reader = Reader::open(client, config).await.unwrap();
        let mut records = Vec::new();
        while let Some(record) = reader.next().await {
            let record = record.unwrap();
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            records.push((record.partition.get(), record.offset.get(), value));
        }
        records.sort();
        records
    }

    /// The same, once there are so many: one that does not lead hears a moment later how far all is committed, and
    /// with `write.caching` all is a moment after it was acknowledged.
    async fn read_as_many(
        &self,
        topic: &TopicName,
        at: Option<u32>,
        count: usize,
    ) -> Vec<(u32, u64, String)> {
        let all = async {
            loop {
                let read = self.read(topic, at).await;
                if read.len() >= count {
                    return read;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let all = tokio::time::timeout(Duration::from_secs(30), all).await;
        all.unwrap_or_else(|_| panic!("broker {at:?} does not get all of it"))
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The same program, run by another one that takes it with its arguments behind its own.
fn within(outer: &[String], inner: Command) -> Command {
    let Some((program, args)) = outer.split_first() else {
        return inner;
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .arg(inner.get_program())
        .args(inner.get_args());
    command
        .current_dir(inner.get_current_dir().unwrap())
        .stdin(Stdio::null());
    command
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            if let Some(mut child) = node.child.take() {
                // One that is paused dies of this too.
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}

/// Producers that send numbered records, one partition each, until they are told to stop, and what was
/// acknowledged of them.
pub struct Load {
    stop: Arc<AtomicBool>,
    /// Of each partition.
    acknowledged: Arc<[AtomicU64]>,
    more: Arc<Notify>,
    tasks: Vec<tokio::task::JoinHandle<Vec<(u32, u64, String)>>>,
}

/// Records of one producer that wait for their acknowledgement at most.
const WAITING_MAX: usize = 50;

impl Load {
    /// One producer for each partition.
    pub fn start(client: &Client, topic: &TopicName, partitions: u32) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let acknowledged: Arc<[AtomicU64]> = (0..partitions).map(|_| AtomicU64::new(0)).collect();
        let more = Arc::<Notify>::default();
        let tasks = (0..partitions).map(|partition| {
            let config = ProducerConfig {
                linger: Duration::ZERO,
                batch_bytes_max: 2000,
                ..ProducerConfig::default()
            };
            let producer = Producer::new(client.clone(), config);
            let (stop, topic) = (stop.clone(), topic.clone());
            let (acknowledged, more) = (acknowledged.clone(), more.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    let mut waiting = Vec::new();
                    for _ in 0..WAITING_MAX {
                        let value = format!("{partition}/{number}");
                        number += 1;
                        let record = ProducerRecord::new(topic.clone())
                            .partition(PartitionId::new(partition))
                            .value(value.clone());
                        waiting.push((value, producer.send(record).await.unwrap()));
                    }
                    for (value, delivery) in waiting {
                        let delivered = delivery.await.unwrap();
                        let offset = delivered.offset.unwrap().get();
                        told.push((partition, offset, value));
                        acknowledged[partition as usize].fetch_add(1, Ordering::SeqCst);
                        more.notify_waiters();
                    }
                }
                producer.close().await;
                told
            })
        });
        Self {
            tasks: tasks.collect(),
            stop,
            acknowledged,
            more,
        }
    }

    /// Waits until so many more are acknowledged.
    pub async fn more(&self, count: u64) {
        let all = || self.acknowledged().iter().sum::<u64>();
        let until = all() + count;
        self.until(|| all() >= until).await;
    }

    /// Waits until so many more are acknowledged of each partition.
    pub async fn more_of_each(&self, count: u64) {
        let before = self.acknowledged();
        let is_more = |(now, before): (&u64, &u64)| *now >= before + count;
        self.until(|| self.acknowledged().iter().zip(&before).all(is_more))
            .await;
    }

    fn acknowledged(&self) -> Vec<u64> {
        let each = self.acknowledged.iter();
        each.map(|count| count.load(Ordering::SeqCst)).collect()
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        let wait = async {
            loop {
                let more = self.more.notified();
                if is_so() {
                    return;
                }
                more.await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        if waited.is_err() {
            panic!(
                "not enough is acknowledged within a minute: {:?}",
                self.acknowledged()
            );
        }
    }

    /// Stops, and gives what was acknowledged: partition, offset and value of each record, in order.
    pub async fn end(self) -> Vec<(u32, u64, String)> {
        self.stop.store(true, Ordering::SeqCst);
        let mut told = Vec::new();
        for task in self.tasks {
            told.extend(task.await.unwrap());
        }
        told.sort();
        told
    }

    /// Stops, and checks that the cluster has just what was acknowledged: each record once, where it was
    /// told, in order, and the same at every broker that has a replica.
    pub async fn check(self, cluster: &Cluster, topic: &TopicName) -> usize {
        let told = self.end().await;
        let read = cluster.read_as_many(topic, None, told.len()).await;
        assert_same("the leaders", &told, &read);
        let places = cluster.client().list_partitions(Some(topic)).await.unwrap();
        for id in cluster.running() {
            let is_here =
                |place: &tidelog_client::proto::PartitionPlace| place.replicas.contains(&id);
            let here: HashMap<u32, ()> = places
                .iter()
                .filter(|place| is_here(place))
                .map(|place| (place.partition, ()))
                .collect();
            if here.len() == places.len() {
                let read = cluster.read_as_many(topic, Some(id), told.len()).await;
                assert_same(&format!("broker {id}"), &told, &read);
            }
        }
        told.len()
    }
}

fn assert_same(who: &str, told: &[(u32, u64, String)], read: &[(u32, u64, String)]) {
    if let Some((told, read)) = told.iter().zip(read).find(|(told, read)| told != read) {
        panic!("{who}: {told:?} was acknowledged, and {read:?} is read");
    }
    assert_eq!(
        told.len(),
        read.len(),
        "{who} has more, or less, than was acknowledged"
    );
}
