//! Brokers in one process, each with a disk of its own, and a network that a test may cut.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidelog_broker::{
    Acks, Addresses, AppendError, Broker, BrokerConfig, ClusterId, Delivery, DirectoryId, Facts,
    LookupError, NodeId, NotLeader, PartitionPlace, Peers, Post, Seams,
};
use tidelog_record::Offset;
use tidelog_sim::SimDisk;
use tokio::sync::{Notify, mpsc};

use crate::support::{config, new_topic, read_all, record, submit};

/// The cluster of all these tests.
pub(crate) const CLUSTER_ID: [u8; 16] = [7; 16];

/// What goes between the brokers. What is for one that is not there, or is cut off, is lost.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(crate) brokers: Mutex<HashMap<NodeId, mpsc::Sender<Delivery>>>,
    pub(crate) cut_off: Mutex<Option<NodeId>>,
    /// Something has arrived: heartbeats do all the time, and what is waited for comes of what arrives.
    pub(crate) arrived: Notify,
    /// The numbers of all replicas that have said something.
    pub(crate) spoke: Mutex<HashSet<u64>>,
}

/// Why another broker is asked, or the same one again.
const ELSEWHERE: [&str; 5] = [
    "NOT_LEADER",
    "TOPIC_NOT_FOUND",
    "NOT_COORDINATOR",
    "COORDINATOR_LOADING",
    "COORDINATOR_NOT_AVAILABLE",
];

#[derive(Debug)]
struct Wire {
    own: NodeId,
    net: Arc<Net>,
}

impl Peers for Wire {
    fn send(&self, to: NodeId, post: Post) -> Result<(), Post> {
        let cut_off = *self.net.cut_off.lock();
        if [self.own, to].map(Some).contains(&cut_off) {
            return Err(post);
        }
        let brokers = self.net.brokers.lock();
        let place = brokers
            .get(&to)
            .and_then(|broker| broker.try_reserve().ok());
        let Some(place) = place else {
            return Err(post);
        };
        let spoke = post.raft.iter().map(|letter| letter.message.from);
        self.net.spoke.lock().extend(spoke);
        // Through the bytes that a link would send.
        place.send(tidelog_peer::carried(post, self.own, to).unwrap());
        Ok(())
    }
}

pub(crate) struct Cluster {
    pub(crate) net: Arc<Net>,
    pub(crate) disks: HashMap<NodeId, SimDisk>,
    pub(crate) brokers: HashMap<NodeId, Broker>,
    /// How many disks each has lost.
    pub(crate) generations: HashMap<NodeId, u32>,
    /// After how many commands the metadata log is cut.
    pub(crate) snapshot_commands: u64,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::begun_by(&[1, 2, 3])
    }

    /// The metadata log is cut after so many commands.
    pub(crate) fn cut_after(snapshot_commands: u64) -> Self {
        let mut cluster = Self::begun_by(&[]);
        cluster.snapshot_commands = snapshot_commands;
        for id in 1..=3 {
            cluster.start(id);
        }
        cluster
    }

    /// Of the three that found it only these have come.
    pub(crate) fn begun_by(ids: &[NodeId]) -> Self {
        let mut cluster = Self {
            net: Arc::default(),
            disks: (1..=3)
                .map(|id| (id, SimDisk::new(u64::from(id))))
                .collect(),
            brokers: HashMap::new(),
            generations: HashMap::new(),
            snapshot_commands: 5000,
        };
        for id in ids {
            cluster.start(*id);
        }
        cluster
    }

    pub(crate) fn start(&mut self, id: NodeId) {
        let config = BrokerConfig {
            node_id: id,
            founders: vec![1, 2, 3],
            cluster_id: Some(CLUSTER_ID),
            directory_id: Some(self.directory(id)),
            generation: self.generations.get(&id).copied().unwrap_or_default(),
            snapshot_commands: self.snapshot_commands,
            addresses: Addresses {
                grpc: format!("broker{id}:9400"),
                http: format!("broker{id}:9401"),
                cluster: format!("broker{id}:9402"),
                rack: None,
            },
            ..config()
        };
        let seams = Seams {
            disk: Arc::new(self.disks[&id].clone()),
            peers: Arc::new(Wire {
                own: id,
                net: self.net.clone(),
            }),
            ..Seams::os()
        };
        let broker = Broker::open(config, seams).unwrap();
        let (deliveries, mut arriving) = mpsc::channel::<Delivery>(1000);
        self.net.brokers.lock().insert(id, deliveries);
        self.brokers.insert(id, broker.clone());
        let net = self.net.clone();
        tokio::spawn(async move {
            while let Some(delivery) = arriving.recv().await {
                broker.deliver(delivery).await;
                net.arrived.notify_waiters();
            }
        });
    }

    /// As if the power went.
    pub(crate) fn crash(&mut self, id: NodeId) {
        self.net.brokers.lock().remove(&id);
        self.brokers.remove(&id);
        self.disks[&id].crash();
    }

    /// Makes a topic, and waits until all that run have it. Gives who decided.
    pub(crate) async fn topic(
        &self,
        name: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> NodeId {
        let create = async |broker: &Broker| {
            let new = new_topic(name, partitions, settings);
            broker.create_topic(new).await
        };
        let (decided, _) = self.anywhere("a topic", create).await;
        self.until("all know the topic", |broker| {
            broker.partition(name, partitions - 1).is_ok()
        })
        .await;
        decided
    }

    /// Has some broker do it, as soon as one leads: asks one after the other.
    pub(crate) async fn anywhere<T, E: Facts>(
        &self,
        what: &str,
        act: impl AsyncFn(&Broker) -> Result<T, E>,
    ) -> (NodeId, T) {
        let tried = async {
            loop {
                for (id, broker) in &self.brokers {
                    match act(broker).await {
                        Ok(done) => return (*id, done),
                        Err(e) if ELSEWHERE.contains(&e.reason()) => {}
                        Err(e) => panic!("{what}: {e}"),
                    }
                }
                self.net.arrived.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), tried)
            .await
            .unwrap_or_else(|_| panic!("{what} takes too long"))
    }

    /// Appends until it is acknowledged; it may be there more than once.
    pub(crate) async fn append(&self, topic: &str, value: &str) -> (NodeId, Offset) {
        let act = async |broker: &Broker| {
            let records = vec![record(None, value)];
            let pending = submit(broker, topic, Some(0), Acks::All, records).await?;
            match pending.await.remove(0).result {
                Ok(appended) => Ok(appended.base_offset),
                // Sent again.
                Err(AppendError::OutcomeUnknown { .. }) => {
                    Err(AppendError::Lookup(LookupError::NotLeader(NotLeader {
                        topic: tidelog_record::TopicName::new(topic).unwrap(),
                        partition: 0,
                        leader: None,
                        epoch: 0,
                        address: None,
                    })))
                }
                Err(e) => Err(e),
            }
        };
        self.anywhere("an append", act).await
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Broker) -> bool) {
        let wait = async {
            while !self.brokers.values().all(&is_so) {
                self.net.arrived.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .unwrap_or_else(|_| panic!("it never came to be that {what}: {}", self.dump()));
    }

    /// How each broker sees the cluster.
    fn dump(&self) -> String {
        let one = |broker: &Broker| {
            let described = broker.describe_cluster();
            let places = broker.partition_places(None);
            format!(
                "\n{}: registered {}, refused {:?}, leader {:?}, voters {:?}, brokers {:?}, places {:?}, problems {:?}",
                broker.node_id(),
                broker.is_registered(),
                broker.registration_refused(),
                described.metadata_leader,
                described.metadata_voters,
                described.brokers,
                places,
                described.problems,
            )
        };
        self.brokers.values().map(one).collect()
    }

    pub(crate) async fn same_everywhere(&self, topic: &str, expected: u64) -> Vec<String> {
        self.until("all have all of it", |broker| {
            let handle = broker.partition(topic, 0);
            handle.is_ok_and(|handle| handle.ends().high_watermark.get() >= expected)
        })
        .await;
        let mut first: Option<Vec<(u64, String)>> = None;
        for broker in self.brokers.values() {
            let read = read_all(broker, topic, 0).await.unwrap();
            match &first {
                Some(first) => assert_eq!(*first, read),
                None => first = Some(read),
            }
        }
        let values = first.unwrap().into_iter().map(|(_, value)| value);
        values.collect()
    }

    /// The data directory on the disk that a broker has now.
    pub(crate) fn directory(&self, id: NodeId) -> [u8; 16] {
        let lost = self.generations.get(&id).copied().unwrap_or_default();
        let bytes = (u128::from(id) << 64) + u128::from(lost);
        bytes.to_be_bytes()
    }

    /// A broker that was not there before joins.
    pub(crate) async fn join(&mut self, id: NodeId) {
        let registration = tidelog_controller::Registration {
            node: id,
            directory: DirectoryId::from_bytes(self.directory(id)),
            grpc_address: format!("broker{id}:9400"),
            http_address: format!("broker{id}:9401"),
            cluster_address: format!("broker{id}:9402"),
            rack: None,
            version: "1".to_owned(),
            level_min: 0,
            level_max: 1,
        };
        let cluster_id = ClusterId::from_bytes(CLUSTER_ID);
        let join = async |broker: &Broker| broker.join(cluster_id, registration.clone()).await;
        let (_, generation) = self.anywhere("to join", join).await;
        self.generations.insert(id, generation);
        self.disks.insert(id, SimDisk::new(u64::from(id)));
        self.start(id);
    }

    /// The disk of a broker that does not run is lost, and it gets another one.
    pub(crate) async fn replace(&mut self, id: NodeId) {
        *self.generations.entry(id).or_default() += 1;
        let directory = self.directory(id);
        self.until("it is seen to be gone", |broker| {
            let described = broker.describe_cluster();
            let found = described.brokers.iter().find(|one| one.known.node_id == id);
            found.is_some_and(|one| one.state == tidelog_broker::BrokerState::Fenced)
        })
        .await;
        let replace = async |broker: &Broker| broker.replace_broker(id, directory).await;
        self.anywhere("another disk", replace).await;
        self.net.spoke.lock().clear();
        self.disks.insert(id, SimDisk::new(100 + u64::from(id)));
        self.start(id);
    }

    /// Waits until a partition is at these brokers, and nothing is changed about that any more.
    pub(crate) async fn placed(&self, topic: &str, partition: u32, nodes: &[NodeId]) {
        self.until(&format!("{topic}-{partition} is at {nodes:?}"), |broker| {
            let Some(place) = place(broker, topic, partition) else {
                return false;
            };
            let mut found = place.replicas.clone();
            found.sort_unstable();
            let mut wanted = nodes.to_vec();
            wanted.sort_unstable();
            place.change.is_none() && found == wanted
        })
        .await;
    }

    /// Whether a broker has files of a partition.
    pub(crate) fn has_files(&self, id: NodeId, topic: &str, partition: u32) -> bool {
        let dir = PathBuf::from(format!("/srv/data/{topic}-{partition}"));
        let files = self.disks[&id].files();
        files.iter().any(|file| file.starts_with(&dir))
    }
}

/// Where a partition is, as a broker sees it; `None` where it has not heard of it yet.
pub(crate) fn place(broker: &Broker, topic: &str, partition: u32) -> Option<PartitionPlace> {
    let places = broker.partition_places(Some(topic));
    let mut places = places.into_iter();
    places.find(|place| place.partition == partition)
}
