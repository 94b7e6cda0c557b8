//! Three brokers in one process, each with a disk of its own, and a network that a test may cut.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use support::{config, new_topic, read_all, record, submit};
use tidelog_broker::{
    Acks, AppendError, Broker, BrokerConfig, Delivery, Facts, NodeId, Peers, Post, Seams,
};
use tidelog_record::Offset;
use tidelog_replica::Received;
use tidelog_sim::SimDisk;
use tokio::sync::{Notify, mpsc};

/// What goes between the brokers. What is for one that is not there, or is cut off, is lost.
#[derive(Debug, Default)]
struct Net {
    brokers: Mutex<HashMap<NodeId, mpsc::Sender<Delivery>>>,
    cut_off: Mutex<Option<NodeId>>,
    /// Something has arrived: heartbeats do all the time, and what is waited for comes of what arrives.
    arrived: Notify,
}

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
        place.send(Delivery {
            from: self.own,
            raft: post.raft.into_iter().map(Received::from).collect(),
            files: post.files,
            notes: post.notes,
        });
        Ok(())
    }
}

struct Cluster {
    net: Arc<Net>,
    disks: HashMap<NodeId, SimDisk>,
    brokers: HashMap<NodeId, Broker>,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            net: Arc::default(),
            disks: (1..=3)
                .map(|id| (id, SimDisk::new(u64::from(id))))
                .collect(),
            brokers: HashMap::new(),
        };
        for id in 1..=3 {
            cluster.start(id);
        }
        cluster
    }

    fn start(&mut self, id: NodeId) {
        let config = BrokerConfig {
            node_id: id,
            founders: vec![1, 2, 3],
            cluster_id: Some([7; 16]),
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
    fn crash(&mut self, id: NodeId) {
        self.net.brokers.lock().remove(&id);
        self.brokers.remove(&id);
        self.disks[&id].crash();
    }

    /// Has some broker do it, as soon as one leads: asks one after the other.
    async fn anywhere<T, E: Facts>(
        &self,
        what: &str,
        act: impl AsyncFn(&Broker) -> Result<T, E>,
    ) -> (NodeId, T) {
        let tried = async {
            loop {
                for (id, broker) in &self.brokers {
                    match act(broker).await {
                        Ok(done) => return (*id, done),
                        Err(e) if ["NOT_LEADER", "TOPIC_NOT_FOUND"].contains(&e.reason()) => {}
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
    async fn append(&self, topic: &str, value: &str) -> (NodeId, Offset) {
        let act = async |broker: &Broker| {
            let records = vec![record(None, value)];
            let pending = submit(broker, topic, Some(0), Acks::All, records).await?;
            match pending.await.remove(0).result {
                Ok(appended) => Ok(appended.base_offset),
                // Sent again.
                Err(AppendError::OutcomeUnknown { .. }) => Err(AppendError::NotLeader {
                    topic: tidelog_record::TopicName::new(topic).unwrap(),
                    partition: 0,
                    leader: None,
                }),
                Err(e) => Err(e),
            }
        };
        self.anywhere("an append", act).await
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Broker) -> bool) {
        let wait = async {
            while !self.brokers.values().all(&is_so) {
                self.net.arrived.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .unwrap_or_else(|_| panic!("it never came to be that {what}"));
    }

    async fn same_everywhere(&self, topic: &str, expected: u64) -> Vec<String> {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_survives_the_leader_and_is_the_same_everywhere() {
    let mut cluster = Cluster::new();
    let create = async |broker: &Broker| broker.create_topic(new_topic("t", 1, &[])).await;
    cluster.anywhere("a topic", create).await;
    cluster
        .until("all know the topic", |broker| {
            broker.partition("t", 0).is_ok()
        })
        .await;

    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut leader = 0;
        let mut end = 0;
        for number in 0..50 {
            let value = format!("{round}/{number}");
            let (at, offset) = cluster.append("t", &value).await;
            (leader, end) = (at, offset.get() + 1);
            acknowledged.push(value);
        }
        cluster.crash(leader);
        for number in 50..80 {
            let value = format!("{round}/{number}");
            end = cluster.append("t", &value).await.1.get() + 1;
            acknowledged.push(value);
        }
        cluster.start(leader);
        let values = cluster.same_everywhere("t", end).await;
        // In order; what was not acknowledged at once may be there again.
        let mut found = values.iter();
        for value in &acknowledged {
            assert!(found.any(|found| found == value), "{value} is lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_decided_by_one_and_carried_out_by_all() {
    let mut cluster = Cluster::new();
    for name in ["a", "b", "c"] {
        let create = async |broker: &Broker| broker.create_topic(new_topic(name, 2, &[])).await;
        let (leader, _) = cluster.anywhere("a topic", create).await;
        cluster
            .until("all know the topic", |broker| {
                broker.partition(name, 1).is_ok()
            })
            .await;
        cluster.append(name, "first").await;
        // Whoever decided goes, with its power; another one decides.
        cluster.crash(leader);
        let delete = async |broker: &Broker| broker.add_partitions(name, 4).await;
        cluster.anywhere("more partitions", delete).await;
        cluster.start(leader);
        cluster
            .until("all have more partitions", |broker| {
                broker.partition(name, 3).is_ok()
            })
            .await;
    }
    let delete = async |broker: &Broker| broker.delete_topic("b").await;
    cluster.anywhere("a deletion", delete).await;
    cluster
        .until("it is gone everywhere", |broker| {
            broker.partition("b", 0).is_err()
        })
        .await;
    assert_eq!(cluster.same_everywhere("a", 1).await, ["first"]);
    assert_eq!(cluster.same_everywhere("c", 1).await, ["first"]);
    for broker in cluster.brokers.values() {
        assert_eq!(broker.health().faults, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_hears_acknowledges_nothing() {
    let cluster = Cluster::new();
    let create = async |broker: &Broker| broker.create_topic(new_topic("t", 1, &[])).await;
    cluster.anywhere("a topic", create).await;
    cluster
        .until("all know the topic", |broker| {
            broker.partition("t", 0).is_ok()
        })
        .await;
    let (leader, _) = cluster.append("t", "first").await;
    *cluster.net.cut_off.lock() = Some(leader);
    let alone = &cluster.brokers[&leader];
    let records = vec![record(None, "lost?")];
    let pending = submit(alone, "t", Some(0), Acks::All, records)
        .await
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(30), pending).await;
    let e = answer.unwrap().remove(0).result.unwrap_err();
    assert!(
        ["OUTCOME_UNKNOWN", "NOT_LEADER"].contains(&e.reason()),
        "{e}"
    );
    // The others go on meanwhile, and the one that was alone takes what they have.
    let (_, offset) = cluster.append("t", "second").await;
    *cluster.net.cut_off.lock() = None;
    let values = cluster.same_everywhere("t", offset.get() + 1).await;
    assert_eq!(values, ["first", "second"]);
}
