//! The changes of a cluster.

use crate::cluster::{PartitionKey, Phase, Registration};
use crate::ids::{ClusterId, DirectoryId, NodeId, ReplicaId};
use crate::topics::{Command, Topic};
use tidelog_record::TopicId;

/// A change of the cluster that was decided. Folding it in cannot fail unless the log was tampered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterCommand {
    /// A change that does not place anything, or one from before the cluster was founded.
    Topics(Command),
    /// A new topic, and where its partitions are.
    CreateTopic {
        /// The topic.
        topic: Topic,
        /// How many replicas each partition has.
        replication_factor: u32,
        /// The replicas of each partition, the preferred leader first.
        placement: Vec<Vec<ReplicaId>>,
    },
    /// More partitions, and where they are.
    AddPartitions {
        /// The topic.
        id: TopicId,
        /// How many in all.
        total: u32,
        /// The replicas of each new one.
        placement: Vec<Vec<ReplicaId>>,
    },
    /// A cluster is founded on what there is.
    Found {
        /// Its id.
        id: ClusterId,
    },
    /// A broker has started.
    RegisterBroker {
        /// What it said.
        registration: Registration,
        /// Above that of every registration before.
        epoch: u64,
    },
    /// A broker is not heard of any more, or is again.
    SetFenced {
        /// The broker.
        node: NodeId,
        /// Its registration.
        epoch: u64,
        /// Whether it is fenced from now on.
        is_fenced: bool,
    },
    /// The replicas of a broker are to go elsewhere, or not any more.
    SetDraining {
        /// The broker.
        node: NodeId,
        /// Whether it is draining from now on.
        is_draining: bool,
    },
    /// A broker is gone for good.
    UnregisterBroker {
        /// The broker.
        node: NodeId,
        /// It was given up with all the replicas that it has.
        is_lost: bool,
    },
    /// A broker has lost its disk and gets another.
    ReplaceBroker {
        /// The broker.
        node: NodeId,
        /// Its new data directory.
        directory: DirectoryId,
        /// Its replicas of a lower life are lost.
        generation: u32,
        /// As of a registration.
        epoch: u64,
    },
    /// A partition is to have other replicas.
    BeginReassignment {
        /// The partition.
        key: PartitionKey,
        /// Its replicas afterwards.
        target: Vec<ReplicaId>,
        /// Nobody asked for just these.
        is_automatic: bool,
    },
    /// A change of replicas has come further.
    AdvanceReassignment {
        /// The partition.
        key: PartitionKey,
        /// How far.
        phase: Phase,
        /// Raft index of the members that were seen.
        members_index: u64,
    },
    /// A change of replicas is to go back, if it still can.
    CancelReassignment {
        /// The partition.
        key: PartitionKey,
    },
    /// A change of replicas is over.
    FinishReassignment {
        /// The partition.
        key: PartitionKey,
        /// The replicas are those from before.
        is_cancelled: bool,
        /// Raft index of the members that were seen.
        members_index: u64,
    },
    /// Another order of the same replicas.
    SetReplicaOrder {
        /// The partition.
        key: PartitionKey,
        /// Its replicas, the preferred leader first.
        replicas: Vec<ReplicaId>,
    },
    /// Partitions that have lost a majority of their replicas go on with what is left.
    RecoverPartitions {
        /// These.
        partitions: Vec<RecoveredPartition>,
    },
    /// What the level allows may be written from now on.
    RaiseFeatureLevel {
        /// The level.
        level: u32,
    },
    /// A part of the whole state.
    Snapshot {
        /// Which, from 0.
        part: u32,
        /// How many there are.
        parts: u32,
        /// All of them together are the state.
        data: Vec<u8>,
    },
}

/// How a partition goes on that has lost a majority of its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredPartition {
    /// The partition.
    pub key: PartitionKey,
    /// The replica that goes on, alone at first. One that is new begins with nothing.
    pub keeper: ReplicaId,
    /// Others that are left, and follow it from then on.
    pub others: Vec<ReplicaId>,
    /// How many times it has gone on so, this one included.
    pub recoveries: u32,
}

impl From<Command> for ClusterCommand {
    fn from(command: Command) -> Self {
        Self::Topics(command)
    }
}

impl ClusterCommand {
    /// The feature level that the cluster must have for this to be written.
    pub fn level(&self) -> u32 {
        match self {
            // Founding is what takes the level from 0 to 1.
            Self::Topics(_) | Self::Found { .. } => 0,
            _ => 1,
        }
    }
}
