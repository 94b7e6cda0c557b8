//! What is known of the cluster: its brokers, topics, and which brokers have which partitions.

use std::collections::{BTreeMap, BTreeSet};

use tidelog_record::TopicId;

use crate::ids::{ClusterId, DirectoryId, NodeId, ReplicaId, life_of, node_of, replica_of};
use crate::snapshot::Parts;
use crate::topics::Topics;

/// The highest feature level that this version can fold. Level 0 is a broker that is alone, level 1 a
/// cluster. What a later version adds to the log it writes only after the level was raised. Tests have
/// one more, so that there is one to raise to.
pub const LEVEL_MAX: u32 = if cfg!(test) { 2 } else { 1 };

/// The most replicas a partition may have.
pub const REPLICAS_MAX: usize = 7;

/// What a broker says of itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its number; not 0.
    pub node: NodeId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// Where its gRPC listener is reached, as `host:port`.
    pub grpc_address: String,
    /// Where its HTTP listener is reached, as `host:port`.
    pub http_address: String,
    /// Where other brokers reach it, as `host:port`.
    pub cluster_address: String,
    /// What fails together with it: a rack, a zone.
    pub rack: Option<String>,
    /// The version of its software, for people.
    pub version: String,
    /// The lowest feature level that it supports.
    pub level_min: u32,
    /// The highest feature level that it supports.
    pub level_max: u32,
}

/// A broker, as registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// What it said of itself.
    pub registration: Registration,
    /// Rises with each registration in the cluster: requests of an older one are refused.
    pub epoch: u64,
    /// It was not heard of for too long: it gets no new replicas and is not made leader.
    pub is_fenced: bool,
    /// Its replicas are to go elsewhere.
    pub is_draining: bool,
    /// Rises with each disk that it lost: replicas of a lower life are lost.
    pub generation: u32,
}

impl Broker {
    /// Whether it may be given replicas and leaderships.
    pub fn is_usable(&self) -> bool {
        !self.is_fenced && !self.is_draining
    }
}

/// What is remembered of a broker that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The data directory it had: with that one it does not come back.
    pub(crate) directory: DirectoryId,
    /// What a broker of this number begins with: above the life of all replicas that it had.
    pub(crate) generation: u32,
}

/// How far a change of replicas has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// New replicas are learners, and catch up.
    Adding,
    /// The leader may have been told to enter the joint configuration.
    Joint,
    /// It has been entered, and is to be left.
    Leaving,
}

/// A change of replicas that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The replicas afterwards, the preferred leader first.
    pub target: Vec<ReplicaId>,
    /// How far it has come.
    pub phase: Phase,
    /// It is to go back, if the joint configuration turns out not to have been entered.
    pub is_cancelling: bool,
    /// Nobody asked for just this target.
    pub is_automatic: bool,
}

/// The replicas of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The replicas, the preferred leader first. While a change is under way, those from before.
    pub replicas: Vec<ReplicaId>,
    /// The change that is under way.
    pub change: Option<Change>,
    /// Raft index of the newest members that a decision was based on: reports of older ones are not
    /// believed.
    pub members_index: u64,
    /// Who was in the group when it began: a replica that begins with the first entry begins with these.
    pub founders: Vec<ReplicaId>,
    /// How many times it went on without a majority of its replicas: see [`Placement::incarnation`].
    pub recoveries: u32,
    /// How many replicas it lost by that, and has not got again.
    pub lacking: u32,
    /// The highest life of the replicas that were removed, by node.
    pub(crate) past: BTreeMap<NodeId, u32>,
}

impl Placement {
    pub(crate) fn new(replicas: Vec<ReplicaId>) -> Self {
        Self {
            founders: replicas.clone(),
            replicas,
            ..Self::default()
        }
    }

    /// The replica that a broker has, or is to have.
    pub fn replica_at(&self, node: NodeId) -> Option<ReplicaId> {
        // Where the one it has is lost, the new one counts.
        self.all()
            .filter(|replica| node_of(*replica) == node)
            .max_by_key(|replica| life_of(*replica))
    }

    /// What the group's replicas write on what they say to each other: those of an earlier incarnation
    /// were given up as lost, and are not heard.
    pub fn incarnation(&self) -> u32 {
        self.recoveries.saturating_add(1)
    }

    /// All replicas of now and of the target, each once.
    pub fn all(&self) -> impl Iterator<Item = ReplicaId> {
        let target = self.change.iter().flat_map(|change| &change.target);
        let added = target.filter(|replica| !self.replicas.contains(replica));
        self.replicas.iter().chain(added).copied()
    }

    /// The replicas of the target that are not there yet.
    pub fn added(&self) -> impl Iterator<Item = ReplicaId> {
        self.all().skip(self.replicas.len())
    }

    /// The lowest life that a new replica at `node` may have.
    pub(crate) fn next_life(&self, node: NodeId) -> u32 {
        let here = self.all().filter(|replica| node_of(*replica) == node);
        let past = self.past.get(&node).copied();
        let last = here.map(life_of).chain(past).max();
        last.map_or(0, |life| life.saturating_add(1))
    }

    /// Whether the replica was one of the partition, and is not any more.
    pub fn was_retired(&self, replica: ReplicaId) -> bool {
        let past = self.past.get(&node_of(replica));
        past.is_some_and(|past| life_of(replica) <= *past) && !self.all().any(|one| one == replica)
    }

    pub(crate) fn retire(&mut self, replica: ReplicaId) {
        let life = self.past.entry(node_of(replica)).or_default();
        *life = life_of(replica).max(*life);
    }
}

/// The replicas of a topic's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPlacement {
    /// How many replicas a new partition gets.
    pub replication_factor: u32,
    /// By number of the partition.
    pub partitions: Vec<Placement>,
}

/// The cluster: a state machine folded from [`ClusterCommand`](crate::ClusterCommand)s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    pub(crate) id: Option<ClusterId>,
    pub(crate) level: u32,
    pub(crate) last_epoch: u64,
    pub(crate) brokers: BTreeMap<NodeId, Broker>,
    /// Brokers that were removed.
    pub(crate) removed: BTreeMap<NodeId, Removed>,
    pub(crate) topics: Topics,
    /// Has the topics of `topics`, each with all its partitions.
    pub(crate) placements: BTreeMap<TopicId, TopicPlacement>,
    /// Parts of a snapshot that is not whole yet.
    pub(crate) parts: Parts,
}

impl Cluster {
    /// Its id; `None` for a broker that is alone and founded no cluster.
    pub fn id(&self) -> Option<ClusterId> {
        self.id
    }

    /// The feature level: what may be written to logs.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// The broker of this number.
    pub fn broker(&self, node: NodeId) -> Option<&Broker> {
        self.brokers.get(&node)
    }

    /// Whether a broker was removed, and none of its number has come since.
    pub fn was_removed(&self, node: NodeId) -> bool {
        self.removed.contains_key(&node)
    }

    /// The data directory that a broker had when it was removed, if none of its number has come since; zeros where it had
    /// never come.
    pub fn removed_directory(&self, node: NodeId) -> Option<DirectoryId> {
        self.removed.get(&node).map(|removed| removed.directory)
    }

    /// The brokers that were removed, and have not come since.
    pub fn removed(&self) -> impl Iterator<Item = NodeId> {
        self.removed.keys().copied()
    }

    /// All registered brokers, by number.
    pub fn brokers(&self) -> impl Iterator<Item = &Broker> {
        self.brokers.values()
    }

    /// The topics.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The replicas of a topic.
    pub fn topic_placement(&self, id: TopicId) -> Option<&TopicPlacement> {
        self.placements.get(&id)
    }

    /// The replicas of a partition.
    pub fn placement(&self, id: TopicId, partition: u32) -> Option<&Placement> {
        let partitions = &self.placements.get(&id)?.partitions;
        partitions.get(usize::try_from(partition).ok()?)
    }

    /// The replicas of all partitions, by topic id and number.
    pub fn placements(&self) -> impl Iterator<Item = (PartitionKey, &Placement)> {
        self.placements.iter().flat_map(|(&topic, placement)| {
            (0..)
                .zip(&placement.partitions)
                .map(move |(partition, placement)| (PartitionKey { topic, partition }, placement))
        })
    }

    /// Whether requests of a broker's registration `epoch` are heard: not those of a process whose
    /// node was registered again, replaced or removed since.
    pub fn is_current(&self, node: NodeId, epoch: u64) -> bool {
        self.broker(node)
            .is_some_and(|broker| broker.epoch == epoch)
    }

    /// Whether a broker that says this of itself was registered since it started: it had the registration
    /// `epoch_before` then, or 0 if it knew of none.
    pub fn has_registered(&self, registration: &Registration, epoch_before: u64) -> bool {
        let known = self.broker(registration.node);
        known.is_some_and(|known| known.epoch > epoch_before && known.registration == *registration)
    }

    /// The brokers beside `own` that there are, or are to come: `founders` are those that founded the cluster.
    pub fn others(&self, own: NodeId, founders: &[NodeId]) -> BTreeSet<NodeId> {
        let registered = self.brokers().map(|broker| broker.registration.node);
        let founders = founders.iter().copied();
        let founders = founders.filter(|node| !self.was_removed(*node));
        let all = registered.chain(founders);
        all.filter(|node| *node != own).collect()
    }

    /// Whether a replica is lost with its disk, or its broker was never registered.
    pub fn is_lost(&self, replica: ReplicaId) -> bool {
        self.broker(node_of(replica))
            .is_none_or(|broker| life_of(replica) < broker.generation)
    }

    /// Whether a replica can be counted on: it is not lost, and its broker is heard.
    pub fn is_live(&self, replica: ReplicaId) -> bool {
        let broker = self.broker(node_of(replica));
        broker.is_some_and(|broker| !broker.is_fenced) && !self.is_lost(replica)
    }

    /// The next replica at `node` of a partition that is placed so.
    pub(crate) fn fresh(&self, node: NodeId, placement: &Placement) -> ReplicaId {
        let generation = self.broker(node).map_or(0, |broker| broker.generation);
        replica_of(node, generation.max(placement.next_life(node)))
    }
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The topic.
    pub topic: TopicId,
    /// The number of the partition in it.
    pub partition: u32,
}

/// Whether both have the same replicas, in whatever order.
pub(crate) fn is_same_set(a: &[ReplicaId], b: &[ReplicaId]) -> bool {
    let set = |list: &[ReplicaId]| list.iter().copied().collect::<BTreeSet<_>>();
    a.len() == b.len() && set(a) == set(b)
}

/// Whether no broker has two of these.
pub(crate) fn are_nodes_distinct(replicas: &[ReplicaId]) -> bool {
    let nodes: BTreeSet<_> = replicas.iter().map(|replica| node_of(*replica)).collect();
    nodes.len() == replicas.len()
}
