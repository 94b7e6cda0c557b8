//! What draining a broker would come to, without deciding it.

use super::BrokerError;
use crate::cluster::{Cluster, PartitionKey, Placement};
use crate::ids::{NodeId, ReplicaId, node_of};
use crate::place::{Load, elsewhere};

/// Where the replica would go that a draining broker has of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// The partition.
    pub key: PartitionKey,
    /// The brokers that have it, or are to have it where that is being changed.
    pub nodes: Vec<NodeId>,
    /// Those that would have it then; `None` where no other broker can take it.
    pub target: Option<Vec<NodeId>>,
}

impl Cluster {
    /// Where the replicas of a broker would go if it were drained now, by topic id and number of the partition. The
    /// planner chooses again for each as its turn comes: what changes until then changes this.
    ///
    /// # Errors
    /// [`BrokerError::NotFound`].
    pub fn planned_drain(&self, node: NodeId) -> Result<Vec<PlannedMove>, BrokerError> {
        self.broker(node).ok_or(BrokerError::NotFound { node })?;
        let mut load = Load::new(self, None);
        let moves = self.placements().filter_map(|(key, placement)| {
            // A change that is under way comes to its end first.
            let after = match &placement.change {
                Some(change) => &Placement {
                    replicas: change.target.clone(),
                    change: None,
                    ..placement.clone()
                },
                None => placement,
            };
            let nodes = nodes(&after.replicas);
            if !nodes.contains(&node) {
                return None;
            }
            let target = elsewhere(self, after, &mut load, Some(node));
            let target = target.map(|target| self::nodes(&target));
            let target = target.filter(|target| !target.contains(&node));
            Some(PlannedMove { key, nodes, target })
        });
        Ok(moves.collect())
    }
}

fn nodes(replicas: &[ReplicaId]) -> Vec<NodeId> {
    replicas.iter().copied().map(node_of).collect()
}
