//! Clusters that decide for themselves: brokers with the metadata log, which fold it, have what it says, and of
//! which the one that leads it plans what is to be done. What decides is the code of `tidelog_controller`;
//! here is what a broker has around it.
//!
//! A request of the operator (`operator.rs`) goes to whoever leads the metadata log, and becomes a command
//! there, as does what is planned (`decide.rs`). Each broker folds what is committed (`fold.rs`), and makes and
//! removes replicas (`files.rs`) until it has what it is to have, also after a stop (`start.rs`). What
//! brokers tell each other (`notes.rs`) goes over the same network as what their replicas say. Leaders of
//! partitions do what they are asked for (`act.rs`). Whether all came to what was decided is checked in
//! `settled.rs`.

mod act;
mod broker;
mod decide;
mod files;
mod fold;
mod notes;
mod operator;
mod settled;
mod start;

use tidelog_controller::{
    Cluster as Folded, ClusterCommand, ClusterId, Command, DirectoryId, PartitionKey, Registration,
};
use tidelog_log::state::GroupKey;
use tidelog_record::{PartitionId, TopicId};
use tidelog_replica::{NodeId, ReplicaId, Until, replica_of};

pub(super) use self::broker::{Broker, Seat};
use self::files::makes_partitions;
pub(super) use self::operator::Request;
use super::clients::Producer;
use super::events::{Event, Events};
use super::members::Partition;
use super::node::{CLUSTER, Node};
use super::{ClusterOptions, SPARE_NODES, TICK_MILLIS};
use crate::SimRng;

/// The metadata log.
pub(super) const METADATA: GroupKey = GroupKey {
    topic_id: TopicId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    partition: PartitionId::new(0),
};

/// Topics have one of so many names; one that was deleted gives its name to the next.
const NAMES: u8 = 3;
/// Topics that there ever are.
const TOPICS_MAX: u8 = 40;

/// What is known outside of the nodes.
#[derive(Debug, Default)]
pub(super) struct Controlled {
    /// All that was committed in the metadata log, folded.
    reference: Folded,
    /// So many of its entries are.
    entries: usize,
    /// The number of the last topic that was asked for.
    last_topic: u8,
    /// Whether topics get one replica and two as well; then no disk is lost.
    is_mixed: bool,
    /// No disk is lost before: what was asked for, or is decided meanwhile, counts on all that there are.
    no_loss_until: u64,
}

/// The nodes that found a cluster, and some that may join it.
pub(super) fn found(options: ClusterOptions, rng: &mut SimRng, events: &mut Events) -> Vec<Node> {
    let count = options.replicas + SPARE_NODES;
    let founders: Vec<NodeId> = (1..=options.replicas).collect();
    let nodes = (1..=count).map(|id| {
        let seat = Seat {
            disk: 0,
            generation: 0,
            founders: founders.clone(),
            planted: options.planted_controller,
        };
        let is_founder = founders.contains(&id);
        if !is_founder {
            events.at(rng.below(30_000), Event::Enter { node: id });
        }
        let mut node = Node::create(id, options.planted, rng);
        node.sit(seat, is_founder, rng);
        events.at(rng.below(TICK_MILLIS), Event::Tick { node: id });
        node
    });
    nodes.collect()
}

impl Controlled {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            is_mixed: seed % 4 == 3,
            ..Self::default()
        }
    }
}

/// The metadata log as a partition that is checked like any other.
pub(super) fn metadata(replicas: u32) -> Partition {
    let founders: Vec<ReplicaId> = (1..=replicas).map(|id| replica_of(id, 0)).collect();
    Partition::new(METADATA, founders, false)
}

impl super::Cluster {
    /// Folds what has become committed anywhere in the metadata log. Partitions that there are from then on
    /// get producers, and those of partitions that are gone stop.
    pub(super) fn fold_reference(&mut self) {
        let Some(mut controlled) = self.controlled.take() else {
            return;
        };
        let checks = &self.partitions[self.numbers[&METADATA]].checks;
        let entries = checks.entries_from(controlled.entries);
        let commands = entries.flat_map(fold::decoded).map(|(_, command)| command);
        let commands: Vec<ClusterCommand> = commands.collect();
        controlled.entries = checks.count();
        for command in commands {
            let gone: Vec<PartitionKey> = match &command {
                ClusterCommand::Topics(Command::Delete { id }) => {
                    let all = controlled.reference.placements();
                    let of_it = all.filter(|(key, _)| key.topic == *id);
                    of_it.map(|(key, _)| key).collect()
                }
                _ => Vec::new(),
            };
            let folded = controlled.reference.apply(&command);
            folded.expect("what is committed in the metadata log makes sense");
            self.stats.commands += 1;
            for key in gone {
                self.delete(group_key(key));
            }
            if makes_partitions(&command) {
                self.create(&controlled.reference);
            }
        }
        self.controlled = Some(controlled);
    }

    fn create(&mut self, reference: &Folded) {
        for (key, placement) in reference.placements() {
            let key = group_key(key);
            if self.numbers.contains_key(&key) {
                continue;
            }
            let number = self.partitions.len();
            self.numbers.insert(key, number);
            let mut partition =
                Partition::new(key, placement.founders.clone(), self.rng.chance(50));
            partition.replicas.clear();
            self.partitions.push(partition);
            for _ in 0..2 {
                let producer = self.producers.len();
                let until = if producer % 4 == 3 {
                    Until::Written
                } else {
                    Until::Committed
                };
                self.producers.push(Producer::new(producer, number, until));
                let first = self.now + self.rng.below(2000);
                self.events.at(first, Event::Send { producer, plan: 0 });
            }
        }
    }

    fn delete(&mut self, key: GroupKey) {
        let number = self.numbers[&key];
        self.partitions[number].is_deleted = true;
        for producer in &mut self.producers {
            if producer.partition == number {
                producer.retire();
            }
        }
    }

    /// All that was decided.
    fn reference(&self) -> &Folded {
        let controlled = self.controlled.as_ref();
        &controlled
            .expect("the cluster decides for itself")
            .reference
    }
}

/// A partition, as the controller names it.
fn partition_key(key: GroupKey) -> PartitionKey {
    PartitionKey {
        topic: key.topic_id,
        partition: key.partition.get(),
    }
}

/// A partition, as its replicas name it.
fn group_key(key: PartitionKey) -> GroupKey {
    GroupKey {
        topic_id: key.topic,
        partition: PartitionId::new(key.partition),
    }
}

fn cluster_id() -> ClusterId {
    ClusterId::from_bytes(CLUSTER)
}

/// The data directory on a disk of a node.
fn directory(node: NodeId, disk: u32) -> DirectoryId {
    let bytes = (u128::from(node) << 64) + u128::from(disk) + 1;
    DirectoryId::from_bytes(bytes.to_be_bytes())
}

/// What a broker says of itself.
fn registration(node: NodeId, disk: u32) -> Registration {
    Registration {
        node,
        directory: directory(node, disk),
        grpc_address: format!("node{node}:9400"),
        http_address: format!("node{node}:9401"),
        cluster_address: format!("node{node}:9402"),
        rack: node.is_multiple_of(2).then(|| "even".to_owned()),
        version: "1.0.0".to_owned(),
        level_min: 0,
        level_max: 1,
    }
}

/// The name of the topic with the number `n`, of which its id is made.
fn name_of(n: u8) -> String {
    format!("t{}", n % NAMES)
}
