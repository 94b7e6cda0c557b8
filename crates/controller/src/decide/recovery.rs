//! Partitions that have lost a majority of their replicas for good go on with what is left, when people say
//! so.

use std::collections::{BTreeMap, BTreeSet};

use super::BrokerError;
use crate::cluster::{Cluster, PartitionKey, Phase, Placement};
use crate::command::{ClusterCommand, RecoveredPartition};
use crate::ids::{NodeId, ReplicaId, node_of};
use crate::place::{Load, one_more};

/// What one replica that is left says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The replica.
    pub replica: ReplicaId,
    /// The term of its last entry.
    pub last_term: u64,
    /// The index of its last entry.
    pub last_index: u64,
    /// Whether it could go on alone.
    pub is_able: bool,
    /// Whether a majority is left of the members that it knows of.
    pub has_majority: bool,
    /// Whether it leads, with that majority.
    pub leads: bool,
}

/// What becomes of the partitions of a cluster that has lost brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// These go on with what is left.
    pub partitions: Vec<RecoveredPartition>,
    /// These cannot: something that is left of them does not serve, and has to be repaired first, or cannot go on
    /// alone.
    pub stuck: Vec<PartitionKey>,
}

impl Cluster {
    /// Decides on giving a broker up with all its replicas. Whether it is gone for good cannot be known here.
    ///
    /// # Errors
    /// [`BrokerError::NotFound`].
    pub fn decide_give_up(&self, node: NodeId) -> Result<ClusterCommand, BrokerError> {
        match self.broker(node) {
            Some(_) => Ok(ClusterCommand::UnregisterBroker {
                node,
                is_lost: true,
            }),
            None => Err(BrokerError::NotFound { node }),
        }
    }

    /// What there is to do for the partitions that have lost a majority when the brokers `lost` are; `left`
    /// is what the replicas at all other brokers say.
    ///
    /// Of those that are left the one goes on that has most: a later term, and in the same one more entries.
    /// All that was committed and is left is there. Where none is left the partition begins anew, empty.
    /// Where one that is left does not serve, or the one that has most cannot go on alone, nothing is done:
    /// it may have what the others have not.
    pub fn plan_recovery(
        &self,
        lost: &BTreeSet<NodeId>,
        left: &BTreeMap<PartitionKey, Vec<Left>>,
    ) -> Recovery {
        let mut recovery = Recovery::default();
        let mut load = None;
        for (key, placement) in self.placements() {
            let is_left =
                |replica: &ReplicaId| !lost.contains(&node_of(*replica)) && !self.is_lost(*replica);
            let all: Vec<ReplicaId> = placement.all().filter(is_left).collect();
            let serving = left.get(&key).map_or(&[][..], Vec::as_slice).iter();
            let serving: Vec<&Left> = serving.filter(|one| all.contains(&one.replica)).collect();
            let serves = |replica: &ReplicaId| serving.iter().any(|one| one.replica == *replica);
            let best = serving
                .iter()
                .max_by_key(|one| (one.last_term, one.last_index, one.is_able));
            let is_well =
                has_majority(placement, &serves) && best.is_some_and(|best| best.has_majority);
            if is_well || serving.iter().any(|one| one.leads) {
                continue;
            }
            let keeper = match best {
                Some(best) if best.is_able && all.iter().all(serves) => Some(best.replica),
                None if all.is_empty() => {
                    let load = load.get_or_insert_with(|| Load::new(self, None));
                    let node = one_more(self, load, |node| lost.contains(&node));
                    node.map(|node| self.fresh(node, placement))
                }
                _ => None,
            };
            let Some(keeper) = keeper else {
                recovery.stuck.push(key);
                continue;
            };
            let others = serving.iter().map(|one| one.replica);
            recovery.partitions.push(RecoveredPartition {
                key,
                keeper,
                others: others.filter(|one| *one != keeper).collect(),
                recoveries: placement.recoveries.saturating_add(1),
            });
        }
        recovery
    }
}

/// Whether a majority is there of all that may have to agree, as far as a change of replicas may have come.
fn has_majority(placement: &Placement, is_there: &impl Fn(&ReplicaId) -> bool) -> bool {
    let has = |replicas: &[ReplicaId]| {
        2 * replicas.iter().filter(|one| is_there(one)).count() > replicas.len()
    };
    let change = placement.change.as_ref();
    let change = change.filter(|change| change.phase != Phase::Adding);
    has(&placement.replicas) && change.is_none_or(|change| has(&change.target))
}
