//! How the cluster is, as this broker sees it.

use std::collections::BTreeMap;

use tidelog_controller::{
    BrokerError, Change, NodeId, PartitionKey, Placement, ReplicaId, Resigning, node_of,
};
use tidelog_record::{TopicId, TopicName};

use crate::controller::METADATA_KEY;
use crate::error::{AppendError, LookupError, NotLeader};
use crate::files::FIRST_INCARNATION;
use crate::partition::Partition;
use crate::{Broker, Inner};

mod change;
mod problems;

use self::problems::{Faults, problem};

/// A broker that was not heard for so long is silent; heartbeats come every half second.
const SILENT_AFTER_MS: u64 = 2_500;
/// Problems that are listed at most.
const PROBLEMS_MAX: usize = 1000;

/// Another broker, or this one, and where it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownBroker {
    /// Its number.
    pub node_id: NodeId,
    /// Its data directory.
    pub directory_id: [u8; 16],
    /// Where other brokers reach it.
    pub cluster_address: String,
    /// Where clients reach it.
    pub grpc_address: String,
    /// How many disks it has lost.
    pub generation: u32,
}

/// How the cluster is.
#[derive(Clone, Debug)]
pub struct ClusterDescription {
    /// Its id.
    pub cluster_id: [u8; 16],
    /// The broker that tells.
    pub answered_by: NodeId,
    /// The broker that decides, if one is known to.
    pub metadata_leader: Option<NodeId>,
    /// The brokers that vote on the metadata.
    pub metadata_voters: Vec<NodeId>,
    /// What may be written to logs.
    pub feature_level: u32,
    /// The brokers, by number.
    pub brokers: Vec<BrokerDescription>,
    /// Partitions that are not well, as many as are listed at most.
    pub problems: Vec<PartitionProblem>,
    /// How many are not well.
    pub problem_count: usize,
    /// How many partitions there are.
    pub partitions: usize,
    /// Why the broker that tells is not taken by the cluster, where that is so.
    pub refused: Option<String>,
}

/// Whether a broker is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerState {
    /// It is.
    Alive,
    /// Not for a moment.
    Silent,
    /// Not for so long that it was fenced.
    Fenced,
}

/// One broker.
#[derive(Clone, Debug)]
pub struct BrokerDescription {
    /// Where it is reached.
    pub known: KnownBroker,
    /// Where its HTTP is reached.
    pub http_address: String,
    /// What fails together with it.
    pub rack: Option<String>,
    /// Of its software.
    pub version: String,
    /// Whether it is heard.
    pub state: BrokerState,
    /// How long it was not heard, in milliseconds; `None` where it was not since this broker started.
    pub silent_ms: Option<u64>,
    /// Its replicas are going elsewhere.
    pub is_draining: bool,
    /// Why it leads nothing that others can lead, if it does not.
    pub resigning: Option<Resigning>,
    /// Replicas that it has.
    pub replicas: usize,
    /// Partitions that it leads.
    pub leaders: usize,
}

/// What is not well with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// Nobody leads.
    Leaderless,
    /// Fewer replicas than there should be are caught up.
    UnderReplicated,
    /// A replica does not serve.
    Faulted,
}

/// A partition that is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionProblem {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: u32,
    /// What is not well.
    pub kind: ProblemKind,
    /// Why.
    pub cause: String,
}

/// Where a partition is.
#[derive(Clone, Debug)]
pub struct PartitionPlace {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: u32,
    /// The broker that leads it, if that is known.
    pub leader: Option<NodeId>,
    /// Since which epoch.
    pub leader_epoch: u32,
    /// The brokers that have it, the preferred leader first.
    pub replicas: Vec<NodeId>,
    /// Those that are caught up.
    pub in_sync: Vec<NodeId>,
    /// How many it has lost for good and not got again.
    pub lacking: u32,
    /// The change of replicas that is under way.
    pub change: Option<Change>,
    /// Entries that each broker lacks.
    pub lag: BTreeMap<NodeId, u64>,
}

impl Inner {
    /// The broker that leads a partition, and since which epoch.
    pub(crate) fn leader_of(&self, topic: &TopicName, key: PartitionKey) -> Option<(NodeId, u32)> {
        let here = match key {
            METADATA_KEY => Some(self.metadata.clone()),
            key => {
                let routes = self.routes.read();
                let route = routes.get(topic.as_str());
                let slot = route.and_then(|route| route.slots.get(key.partition as usize));
                match slot {
                    Some(crate::Slot::Serving(partition)) => Some(partition.clone()),
                    _ => None,
                }
            }
        };
        let here = here.and_then(|partition| {
            let epoch = partition.leader_epoch().get();
            partition.leader().map(|leader| (leader, epoch))
        });
        let told = self.seen.leader(key);
        // Whoever has heard of the newer one is right.
        let (leader, epoch) = match (here, told) {
            (Some(here), Some(told)) if told.1 > here.1 => told,
            (Some(here), _) => here,
            (None, told) => {
                let told = told?;
                let node = node_of(told.0);
                // A replica that knows of none has lost the one that others still speak of; or this broker
                // said so itself, before it stopped leading.
                let leads = node != self.identity.node_id && self.is_heard(node);
                leads.then_some(told)?
            }
        };
        Some((node_of(leader), epoch))
    }

    pub(crate) fn is_heard(&self, node: NodeId) -> bool {
        node == self.identity.node_id || self.seen.is_heard(node, self.now_ms(), SILENT_AFTER_MS)
    }

    /// The brokers whose replicas, of these, are caught up, as the leader last said, and which are heard.
    /// One that was lost with its disk is not, even where its broker has another one by now.
    pub(crate) fn in_sync(&self, key: PartitionKey, replicas: &[ReplicaId]) -> Vec<NodeId> {
        let nodes = replicas.iter().copied().map(node_of);
        if self.config.is_alone() {
            return nodes.collect();
        }
        let Some(report) = self.seen.report(key) else {
            return Vec::new();
        };
        let caught_up = replicas
            .iter()
            .filter(|replica| report.caught_up.contains(replica));
        let caught_up = caught_up.copied().map(node_of);
        caught_up.filter(|node| self.is_heard(*node)).collect()
    }

    pub(crate) fn not_leader(&self, partition: &Partition) -> LookupError {
        let key = crate::act::partition_key(partition.key);
        self.redirect(&partition.topic, key)
    }

    pub(crate) fn led_elsewhere(
        &self,
        topic: &TopicName,
        id: TopicId,
        partition: u32,
    ) -> LookupError {
        let key = PartitionKey {
            topic: id,
            partition,
        };
        self.redirect(topic, key)
    }

    fn redirect(&self, topic: &TopicName, key: PartitionKey) -> LookupError {
        let known = self.leader_of(topic, key);
        let own = self.identity.node_id;
        // It leads no more, and does not know yet who does.
        let known = known.filter(|(node, _)| *node != own);
        LookupError::NotLeader(NotLeader {
            topic: topic.clone(),
            partition: key.partition,
            leader: known.map(|(node, _)| node),
            epoch: known.map_or(0, |(_, epoch)| epoch),
            address: known.and_then(|(node, _)| self.grpc_address(node)),
        })
    }

    /// Where a broker's gRPC is reached.
    pub(crate) fn grpc_address(&self, node: NodeId) -> Option<String> {
        if node == self.identity.node_id {
            return Some(self.config.addresses.grpc.clone()).filter(|address| !address.is_empty());
        }
        let cluster = self.cluster.read();
        let address = cluster.broker(node)?.registration.grpc_address.clone();
        Some(address).filter(|address| !address.is_empty())
    }

    /// The error, with where to go instead.
    pub(crate) fn hinted(&self, error: AppendError) -> AppendError {
        match error {
            AppendError::Lookup(LookupError::NotLeader(mut e)) => {
                if e.leader.is_none() {
                    let id = self.topic_id(e.topic.as_str());
                    let key = id.map(|topic| PartitionKey {
                        topic,
                        partition: e.partition,
                    });
                    let known = key.and_then(|key| self.leader_of(&e.topic, key));
                    let own = self.identity.node_id;
                    if let Some((node, epoch)) = known.filter(|(node, _)| *node != own) {
                        e.leader = Some(node);
                        e.epoch = epoch;
                    }
                }
                e.address = e.leader.and_then(|node| self.grpc_address(node));
                AppendError::Lookup(LookupError::NotLeader(e))
            }
            e => e,
        }
    }

    fn topic_id(&self, name: &str) -> Option<TopicId> {
        if name == crate::METADATA_TOPIC {
            return Some(crate::METADATA_TOPIC_ID);
        }
        let cluster = self.cluster.read();
        cluster.topics().get(name).ok().map(|topic| topic.id)
    }
}

impl Broker {
    /// The number of this broker.
    pub fn node_id(&self) -> NodeId {
        self.inner().identity.node_id
    }

    /// The cluster this broker belongs to.
    pub fn cluster_id(&self) -> [u8; 16] {
        self.inner().identity.cluster_id
    }

    /// The data directory this broker has.
    pub fn directory_id(&self) -> [u8; 16] {
        self.inner().identity.directory_id
    }

    /// All registered brokers, by number.
    pub fn known_brokers(&self) -> Vec<KnownBroker> {
        let inner = self.inner();
        let cluster = inner.cluster.read();
        let mut all: Vec<KnownBroker> = cluster.brokers().map(known).collect();
        // Where it is itself it knows best: it may not have registered since it started.
        let own = KnownBroker {
            node_id: inner.identity.node_id,
            directory_id: inner.identity.directory_id,
            cluster_address: inner.config.addresses.cluster.clone(),
            grpc_address: inner.config.addresses.grpc.clone(),
            generation: inner.config.generation,
        };
        if let Some(known) = all.iter_mut().find(|one| one.node_id == own.node_id) {
            known.cluster_address = own.cluster_address;
            known.grpc_address = own.grpc_address;
        } else if inner.config.is_alone() {
            all.push(own);
        }
        all
    }

    /// Counts what was decided and carried out here: to be told when the [brokers](Broker::known_brokers),
    /// or anything else, are others.
    pub fn metadata_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner().metadata_changed.subscribe()
    }

    /// The brokers that were removed from the cluster, and have not come again.
    pub fn removed_brokers(&self) -> Vec<NodeId> {
        self.inner().cluster.read().removed().collect()
    }

    /// The data directory that a broker had when it was removed, if it has not come again; zeros where it had never come.
    pub fn removed_directory(&self, node: NodeId) -> Option<[u8; 16]> {
        let cluster = self.inner().cluster.read();
        let directory = cluster.removed_directory(node);
        directory.map(tidelog_controller::DirectoryId::to_bytes)
    }

    /// The incarnation of the metadata group: it rises when that goes on without a majority.
    pub fn metadata_incarnation(&self) -> u32 {
        let key = crate::act::group_key(METADATA_KEY);
        let known = self.inner().state.group(&key);
        known.map_or(FIRST_INCARNATION, |group| group.incarnation)
    }

    /// Whether this broker may lack what was decided last: it hears nobody who leads the metadata, or a broker
    /// that it does not know of.
    pub fn may_lack_metadata(&self) -> bool {
        let inner = self.inner();
        let (leader, founders) = (inner.metadata.leader(), &inner.config.founders);
        inner.cluster.read().may_lack(leader, founders)
    }

    /// Whether a broker was removed from the cluster.
    pub fn was_removed(&self, node: NodeId) -> bool {
        self.inner().cluster.read().was_removed(node)
    }

    /// Why the cluster does not take this broker, or does not any more, as far as that is known here. One that was
    /// removed while it did not run hears that only from those that do not listen to it; as long as it hears any, it
    /// is not out.
    pub fn refusal(&self) -> Option<String> {
        let inner = self.inner();
        let node = inner.identity.node_id;
        // With another disk it may be about to come again.
        if self.removed_directory(node) == Some(inner.identity.directory_id) {
            return Some(BrokerError::Removed { node }.to_string());
        }
        let refused = self.registration_refused();
        refused.or_else(|| {
            let others = inner.others();
            let hears_one = others.iter().any(|other| inner.is_heard(*other));
            inner.seen.refusal().filter(|_| !hears_one)
        })
    }

    /// The broker that decides, if one is known to.
    pub fn metadata_leader(&self) -> Option<KnownBroker> {
        let leader = self.inner().metadata.leader().map(node_of)?;
        let cluster = self.inner().cluster.read();
        cluster.broker(leader).map(known)
    }

    /// How the cluster is. Waits for nobody; looks at every partition.
    pub fn describe_cluster(&self) -> ClusterDescription {
        let inner = self.inner();
        let now = inner.now_ms();
        let own = inner.identity.node_id;
        let places = self.partition_places(None);
        let mut leaders: BTreeMap<NodeId, usize> = BTreeMap::new();
        for leader in places.iter().filter_map(|place| place.leader) {
            *leaders.entry(leader).or_default() += 1;
        }
        let cluster = inner.cluster.read();
        let addresses = &inner.config.addresses;
        // Of one that is gone it is no news what it said last.
        let resigning = |node| {
            let told = inner.seen.resigning(node);
            told.filter(|_| node == own || inner.is_heard(node))
        };
        let brokers = cluster.brokers().map(|broker| {
            let registration = &broker.registration;
            let node = registration.node;
            let silent_ms = if node == own {
                Some(0)
            } else {
                inner.seen.silent_ms(node, now)
            };
            let is_heard = inner.is_heard(node);
            BrokerDescription {
                known: if node == own {
                    KnownBroker {
                        grpc_address: addresses.grpc.clone(),
                        cluster_address: addresses.cluster.clone(),
                        ..known(broker)
                    }
                } else {
                    known(broker)
                },
                http_address: if node == own {
                    addresses.http.clone()
                } else {
                    registration.http_address.clone()
                },
                rack: registration.rack.clone(),
                version: registration.version.clone(),
                state: match (broker.is_fenced, is_heard) {
                    (true, _) => BrokerState::Fenced,
                    (false, true) => BrokerState::Alive,
                    (false, false) => BrokerState::Silent,
                },
                silent_ms,
                is_draining: broker.is_draining,
                resigning: resigning(node),
                replicas: cluster.replicas_at(node),
                leaders: leaders.get(&node).copied().unwrap_or_default(),
            }
        });
        let brokers: Vec<_> = brokers.collect();
        let feature_level = cluster.level();
        let how_is = |node: NodeId| match cluster.broker(node) {
            None => "is not registered",
            Some(broker) if broker.is_fenced => "is not heard of (fenced)",
            Some(_) if node != own && !inner.is_heard(node) => "is silent",
            Some(_) => match resigning(node) {
                Some(Resigning::DiskHangs) => "has a disk that hangs",
                Some(Resigning::NoSpace) => "has no space",
                _ => "is catching up",
            },
        };
        let mut faults = Faults::new();
        for (node, fault) in inner.seen.faults() {
            if let Some(topic) = cluster.topics().by_id(fault.key.topic) {
                let of_partition = (topic.name.to_string(), fault.key.partition);
                let faults = faults.entry(of_partition).or_default();
                faults.insert(node, fault.cause);
            }
        }
        let mut problems: Vec<PartitionProblem> = places
            .iter()
            .filter_map(|place| problem(place, &faults, how_is))
            .collect();
        let problem_count = problems.len();
        problems.truncate(PROBLEMS_MAX);
        drop(cluster);
        ClusterDescription {
            cluster_id: inner.identity.cluster_id,
            answered_by: own,
            metadata_leader: inner.metadata.leader().map(node_of),
            metadata_voters: self.metadata_places(),
            feature_level,
            brokers,
            problems,
            problem_count,
            partitions: places.len(),
            refused: self.refusal(),
        }
    }

    /// Sets the gauges that tell of replicas.
    pub(crate) fn count_replicas(&self) {
        let inner = self.inner();
        let own = inner.identity.node_id;
        let places = self.partition_places(None);
        let is_here = |place: &&PartitionPlace| place.replicas.contains(&own);
        let led: Vec<_> = places
            .iter()
            .filter(|place| place.leader == Some(own))
            .collect();
        let lacking = led
            .iter()
            .filter(|place| place.in_sync.len() < place.replicas.len());
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = &inner.metrics;
        metrics.under_replicated.set(number(lacking.count()));
        metrics.leaders.set(number(led.len()));
        metrics
            .replicas
            .set(number(places.iter().filter(is_here).count()));
        let leaderless = places.iter().filter(|place| place.leader.is_none());
        metrics.leaderless.set(number(leaderless.count()));
        metrics
            .leads_metadata
            .set(i64::from(inner.metadata.leads()));
    }

    /// Where all partitions are, or those of one topic, by topic and number.
    pub fn partition_places(&self, topic: Option<&str>) -> Vec<PartitionPlace> {
        let inner = self.inner();
        let reports = inner.seen.reports();
        let mut topics: Vec<(TopicName, TopicId, Vec<Placement>)> = {
            let cluster = inner.cluster.read();
            let topics = cluster.topics().iter();
            topics
                .filter(|known| topic.is_none_or(|topic| known.name.as_str() == topic))
                .filter_map(|known| {
                    let placed = cluster.topic_placement(known.id)?;
                    Some((known.name.clone(), known.id, placed.partitions.clone()))
                })
                .collect()
        };
        topics.sort_by(|a, b| a.0.cmp(&b.0));
        let mut places = Vec::new();
        for (name, id, placements) in topics {
            for (partition, placement) in (0..).zip(placements) {
                let key = PartitionKey {
                    topic: id,
                    partition,
                };
                let led = inner.leader_of(&name, key);
                let replicas: Vec<NodeId> =
                    placement.replicas.iter().copied().map(node_of).collect();
                let lag = reports.get(&key).map_or(BTreeMap::new(), |report| {
                    let lag = report.lag.iter();
                    lag.map(|(replica, lag)| (node_of(*replica), *lag))
                        .collect()
                });
                places.push(PartitionPlace {
                    topic: name.to_string(),
                    partition,
                    leader: led.map(|(node, _)| node),
                    leader_epoch: led.map_or(0, |(_, epoch)| epoch),
                    in_sync: inner.in_sync(key, &placement.replicas),
                    replicas,
                    lacking: placement.lacking,
                    change: placement.change,
                    lag,
                });
            }
        }
        places
    }
}

fn known(broker: &tidelog_controller::Broker) -> KnownBroker {
    let registration = &broker.registration;
    KnownBroker {
        node_id: registration.node,
        directory_id: registration.directory.to_bytes(),
        cluster_address: registration.cluster_address.clone(),
        grpc_address: registration.grpc_address.clone(),
        generation: broker.generation,
    }
}
