//! What must be so once the faults are over for long enough: all is as was decided.

use std::collections::BTreeSet;

use tidelog_controller::{LocalBroker, PartitionKey, Placement, node_of};
use tidelog_log::state::GroupKey;
use tidelog_record::Offset;
use tidelog_replica::{NodeId, ReplicaId};

use super::act::{report_of, seen};
use super::{METADATA, group_key};
use crate::cluster::Cluster;

/// So many brokers vote on the metadata at most.
const METADATA_VOTERS_MAX: usize = 5;

impl Cluster {
    /// What is not as was decided, if anything.
    pub(in crate::cluster) fn unsettled(&self) -> Option<String> {
        self.controlled.as_ref()?;
        let reference = self.reference();
        for broker in reference.brokers() {
            let id = broker.registration.node;
            let Some(known) = self.node(id).broker() else {
                return Some(format!("broker {id} does not run: {broker:?}"));
            };
            if known.cluster != *reference {
                let group = self
                    .node(id)
                    .shard()
                    .and_then(|shard| shard.group(METADATA));
                return Some(format!(
                    "broker {id} has folded another cluster, up to {} of {group:?}",
                    known.applied
                ));
            }
            if broker.is_fenced || !known.is_registered() {
                return Some(format!(
                    "broker {id} runs, and is not registered, or fenced"
                ));
            }
        }
        let placements = reference.placements();
        let first = placements.filter_map(|(key, placement)| self.of_partition_not(key, placement));
        let first = first.chain(self.leftovers()).chain(self.metadata_not());
        first.chain(self.draining_not()).next()
    }

    fn of_partition_not(&self, key: PartitionKey, placement: &Placement) -> Option<String> {
        let name = format!("{}-{}", key.topic.to_bytes()[0], key.partition);
        if placement.change.is_some() {
            let leader = self.leader(group_key(key)).map(|id| self.node(id));
            let group = leader.and_then(|node| node.shard()?.group(group_key(key)));
            let report = group.and_then(report_of);
            return Some(format!(
                "the reassignment of {name} is left hanging: {placement:?}, {report:?}"
            ));
        }
        let reference = self.reference();
        for replica in &placement.replicas {
            let node = self.node(node_of(*replica));
            // On a draining broker it waits for another one that can have it.
            let is_draining = reference
                .broker(node_of(*replica))
                .is_some_and(|broker| broker.is_draining);
            let others = reference.brokers().filter(|broker| {
                let id = broker.registration.node;
                let mut here = placement.replicas.iter();
                broker.is_usable() && !here.any(|replica| node_of(*replica) == id)
            });
            if is_draining && reference.is_lost(*replica) && others.count() == 0 {
                continue;
            }
            if reference.is_lost(*replica) {
                let brokers: Vec<_> = reference.brokers().collect();
                return Some(format!(
                    "replica {replica} of {name} is lost and was not replaced: {placement:?}, {brokers:?}"
                ));
            }
            if node.replica(group_key(key), *replica).is_none() {
                return Some(format!("replica {replica} of {name} is not there"));
            }
        }
        let Some(leader) = self.leader(group_key(key)) else {
            return Some(format!("{name} has no leader"));
        };
        let group = self.node(leader).shard()?.group(group_key(key))?;
        let members = seen(group);
        let voters: BTreeSet<ReplicaId> = members.voters.iter().copied().collect();
        let placed: BTreeSet<ReplicaId> = placement.replicas.iter().copied().collect();
        if voters != placed || members.is_joint() || !members.learners.is_empty() {
            return Some(format!(
                "the members of {name} are {members:?}, and it is placed on {placed:?}"
            ));
        }
        let preferred = placement.replicas[0];
        let broker = reference.broker(node_of(preferred))?;
        (group.id() != preferred && !broker.is_draining).then(|| {
            let id = group.id();
            format!("{name} is led by replica {id}, and the preferred leader is {preferred}")
        })
    }

    /// Replicas, and files of some, that are where nothing is to be.
    fn leftovers(&self) -> Option<String> {
        let reference = self.reference();
        for node in self.nodes.iter().filter(|node| !node.is_out) {
            let id = node.id;
            if reference.broker(id).is_none() {
                continue;
            }
            let generation = node.seat.as_ref().map_or(0, |seat| seat.generation);
            let local = LocalBroker::new(id, generation);
            let wanted = reference.placements().filter_map(|(key, placement)| {
                let replica = local.replica(placement)?;
                Some((group_key(key), replica))
            });
            let wanted: Vec<_> = wanted.collect();
            for key in node.shard()?.keys().filter(|key| *key != METADATA) {
                if !wanted.iter().any(|(other, _)| *other == key) {
                    return Some(format!(
                        "a replica that was moved off broker {id} is there: {key:?}"
                    ));
                }
            }
            // A log that a stop has left half made is no replica: it lies there until another is made. Of a topic
            // that was deleted while the broker was away it need not know whether it was one.
            let file = &node.running.as_ref()?.file;
            let is_there = |key: &GroupKey| reference.topics().by_id(key.topic_id).is_some();
            let is_cut = node.shard()?.log(METADATA)?.reader().log_start() > Offset::ZERO;
            let strays = &node.broker()?.strays;
            let may_stay = |key: &GroupKey| is_cut && !is_there(key) && strays.contains(key);
            for key in file.state().groups.into_keys().filter(|key| !may_stay(key)) {
                if key != METADATA && !wanted.iter().any(|(other, _)| *other == key) {
                    return Some(format!(
                        "files that were to go are left at broker {id}: {key:?}"
                    ));
                }
            }
        }
        None
    }

    /// Every registered broker has the metadata, and an odd number of them votes, as many as may.
    fn metadata_not(&self) -> Option<String> {
        let Some(leader) = self.leader(METADATA) else {
            return Some("the metadata have no leader".to_owned());
        };
        let members = seen(self.node(leader).shard()?.group(METADATA)?);
        let reference = self.reference();
        let brokers = reference.brokers();
        let placed: BTreeSet<ReplicaId> = brokers
            .map(|broker| tidelog_replica::replica_of(broker.registration.node, broker.generation))
            .collect();
        let all = members.voters.iter().chain(&members.learners).copied();
        let all: BTreeSet<ReplicaId> = all.collect();
        // Those that are draining are not chosen.
        let could_vote = members.learners.iter().any(|replica| {
            let broker = reference.broker(node_of(*replica));
            broker.is_some_and(|broker| !broker.is_draining)
        });
        let is_odd = members.voters.len() % 2 == 1 || !could_vote;
        let able = reference.brokers().filter(|broker| !broker.is_draining);
        let able = able.count().min(METADATA_VOTERS_MAX);
        let is_enough = members.voters.len() >= able - able.saturating_sub(1) % 2;
        let is_well = all == placed && !members.is_joint() && is_odd && is_enough;
        (!is_well).then(|| format!("the members of the metadata are {members:?}, not {placed:?}"))
    }

    /// Brokers that are draining have nothing, where others can take it.
    fn draining_not(&self) -> Option<String> {
        let reference = self.reference();
        let usable: Vec<NodeId> = reference
            .brokers()
            .filter(|broker| broker.is_usable())
            .map(|broker| broker.registration.node)
            .collect();
        let fits = |placement: &Placement| placement.replicas.len() <= usable.len();
        for (key, placement) in reference.placements().filter(|(_, it)| fits(it)) {
            let nodes = placement.replicas.iter().map(|replica| node_of(*replica));
            for node in nodes {
                if !usable.contains(&node) {
                    return Some(format!(
                        "broker {node} is drained, and has a replica of {key:?}"
                    ));
                }
            }
        }
        None
    }
}
