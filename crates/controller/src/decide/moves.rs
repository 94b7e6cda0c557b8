//! Partitions get other replicas, or another preferred leader.

use thiserror::Error;

use super::PlaceError;
use crate::cluster::{Cluster, PartitionKey, Placement, REPLICAS_MAX, is_same_set};
use crate::command::ClusterCommand;
use crate::ids::{NodeId, node_of};
use crate::place::{Load, elsewhere, fits_one_change};
use crate::topics::TopicError;

/// Why a partition does not get other replicas.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MoveError {
    /// There is no such topic, or it belongs to the cluster itself.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The brokers cannot be taken.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// There is no such partition.
    #[error("topic {topic:?} has {partitions} partitions: there is no partition {partition}")]
    NoPartition {
        /// The topic.
        topic: String,
        /// How many it has.
        partitions: u32,
        /// What was asked for.
        partition: u32,
    },
    /// Its replicas are being changed.
    #[error("the replicas of the partition are being changed: wait for that, or cancel it")]
    UnderWay,
    /// They are not.
    #[error("the replicas of the partition are not being changed")]
    NotUnderWay,
    /// There is no way back any more.
    #[error("the change has come so far that it can only be completed")]
    TooLate,
    /// It is going back already.
    #[error("the change is being cancelled already")]
    Cancelling,
    /// They would be as they are.
    #[error("the partition is there already")]
    Unchanged,
    /// A partition needs at least one replica, and has not too many.
    #[error("a partition has 1 to {REPLICAS_MAX} replicas, not {asked}")]
    Count {
        /// What was asked for.
        asked: usize,
    },
    /// Too much at once.
    #[error("these are too many replicas to be exchanged at once: do it in two steps")]
    TooMany,
    /// The broker has no replica of it.
    #[error("node {node} has no replica of the partition")]
    NoReplica {
        /// The broker.
        node: NodeId,
    },
    /// No other broker can take it.
    #[error("there is no other broker to take the replica of node {node}")]
    Nowhere {
        /// The broker.
        node: NodeId,
    },
}

impl Cluster {
    /// Decides on having a partition on these brokers, the preferred leader first.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_reassign(
        &self,
        topic: &str,
        partition: u32,
        nodes: &[NodeId],
    ) -> Result<ClusterCommand, MoveError> {
        let (key, placement) = self.unchanging(topic, partition)?;
        if !(1..=REPLICAS_MAX).contains(&nodes.len()) {
            return Err(MoveError::Count { asked: nodes.len() });
        }
        let target = self.replicas_on(placement, nodes)?;
        if target == placement.replicas {
            return Err(MoveError::Unchanged);
        }
        if is_same_set(&target, &placement.replicas) {
            let replicas = target;
            return Ok(ClusterCommand::SetReplicaOrder { key, replicas });
        }
        if !fits_one_change(&placement.replicas, &target) {
            return Err(MoveError::TooMany);
        }
        Ok(ClusterCommand::BeginReassignment {
            key,
            target,
            is_automatic: false,
        })
    }

    /// Decides on having the replica that `node` has of a partition on another broker, whichever suits.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_move_away(
        &self,
        topic: &str,
        partition: u32,
        node: NodeId,
    ) -> Result<ClusterCommand, MoveError> {
        let (key, placement) = self.unchanging(topic, partition)?;
        replica_at(placement, node)?;
        let mut load = Load::new(self, Some(key.topic));
        let target = elsewhere(self, placement, &mut load, Some(node));
        let target = target.filter(|target| target.iter().all(|r| node_of(*r) != node));
        Ok(ClusterCommand::BeginReassignment {
            key,
            target: target.ok_or(MoveError::Nowhere { node })?,
            is_automatic: true,
        })
    }

    /// Decides on the preferred leader of a partition. The leadership follows when that replica is
    /// caught up.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_set_leader(
        &self,
        topic: &str,
        partition: u32,
        node: NodeId,
    ) -> Result<ClusterCommand, MoveError> {
        let (key, placement) = self.unchanging(topic, partition)?;
        let at = replica_at(placement, node)?;
        if at == 0 {
            return Err(MoveError::Unchanged);
        }
        let mut replicas = placement.replicas.clone();
        replicas[..=at].rotate_right(1);
        Ok(ClusterCommand::SetReplicaOrder { key, replicas })
    }

    /// Decides on turning a change of replicas back. That is possible up to the joint configuration;
    /// should it turn out to have been entered, the change is completed after all.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_cancel(&self, topic: &str, partition: u32) -> Result<ClusterCommand, MoveError> {
        let (key, placement) = self.of_topic(topic, partition)?;
        let change = placement.change.as_ref().ok_or(MoveError::NotUnderWay)?;
        if change.is_cancelling {
            return Err(MoveError::Cancelling);
        }
        if !placement.can_cancel() {
            return Err(MoveError::TooLate);
        }
        Ok(ClusterCommand::CancelReassignment { key })
    }

    fn of_topic(
        &self,
        name: &str,
        partition: u32,
    ) -> Result<(PartitionKey, &Placement), MoveError> {
        let topic = self.topics.get(name)?;
        let placement = self.placement(topic.id, partition);
        let key = PartitionKey {
            topic: topic.id,
            partition,
        };
        let none = || MoveError::NoPartition {
            topic: name.to_owned(),
            partitions: topic.partitions,
            partition,
        };
        placement.map(|placement| (key, placement)).ok_or_else(none)
    }

    fn unchanging(
        &self,
        topic: &str,
        partition: u32,
    ) -> Result<(PartitionKey, &Placement), MoveError> {
        let found = self.of_topic(topic, partition)?;
        match found.1.change {
            Some(_) => Err(MoveError::UnderWay),
            None => Ok(found),
        }
    }
}

fn replica_at(placement: &Placement, node: NodeId) -> Result<usize, MoveError> {
    let mut replicas = placement.replicas.iter();
    let at = replicas.position(|replica| node_of(*replica) == node);
    at.ok_or(MoveError::NoReplica { node })
}
