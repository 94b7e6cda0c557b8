//! Folding commands: what each needs is checked, then it is done.
//!
//! Topics and levels are in this file, brokers in `brokers.rs`, changes of replicas in `moves.rs`, and what
//! goes on after a majority was lost in `recovery.rs`.

mod brokers;
pub(crate) use brokers::NO_DIRECTORY;
mod moves;
mod recovery;

use crate::cluster::{
    Broker, Cluster, LEVEL_MAX, Placement, REPLICAS_MAX, Registration, TopicPlacement,
    are_nodes_distinct,
};
use crate::command::ClusterCommand;
use crate::ids::{ReplicaId, node_of, replica_of};
use crate::topics::{Command, ReplayError};

/// What a broker without a cluster creates is here.
const ALONE: ReplicaId = replica_of(1, 0);

type Checked = Result<(), ReplayError>;

fn ensure(fits: bool, what: &'static str) -> Checked {
    if fits { Ok(()) } else { Err(ReplayError(what)) }
}

impl Cluster {
    /// Folds in a command that was decided on.
    ///
    /// # Errors
    /// [`ReplayError`] when it cannot have been decided on in this state: then the log it comes from
    /// is not the one that was written. Nothing is changed by it.
    pub fn apply(&mut self, command: &ClusterCommand) -> Checked {
        if let ClusterCommand::Snapshot { part, parts, data } = command {
            return self.apply_part(*part, *parts, data);
        }
        ensure(
            command.level() <= self.level,
            "the feature level does not allow a command yet",
        )?;
        match command {
            ClusterCommand::Topics(command) => self.apply_topics(command)?,
            ClusterCommand::CreateTopic {
                topic,
                replication_factor,
                placement,
            } => {
                let count = usize::try_from(topic.partitions).ok();
                ensure(
                    count == Some(placement.len()),
                    "a topic has another number of partitions than of placements",
                )?;
                self.check_placement(placement, *replication_factor)?;
                self.topics.apply(&Command::Create(topic.clone()))?;
                let placement = TopicPlacement {
                    replication_factor: *replication_factor,
                    partitions: placement.iter().cloned().map(Placement::new).collect(),
                };
                self.placements.insert(topic.id, placement);
            }
            ClusterCommand::AddPartitions {
                id,
                total,
                placement,
            } => {
                let there = self.placements.get(id).ok_or(UNPLACED)?;
                let count = usize::try_from(*total).ok();
                ensure(
                    count == Some(there.partitions.len() + placement.len()),
                    "a topic has another number of partitions than of placements",
                )?;
                self.check_placement(placement, there.replication_factor)?;
                let (id, total) = (*id, *total);
                self.topics.apply(&Command::AddPartitions { id, total })?;
                let added = placement.iter().cloned().map(Placement::new);
                let there = self.placements.get_mut(&id).ok_or(UNPLACED)?;
                there.partitions.extend(added);
            }
            ClusterCommand::Found { id } => {
                ensure(self.id.is_none(), "a cluster is founded a second time")?;
                self.id = Some(*id);
                self.level = 1;
            }
            ClusterCommand::RaiseFeatureLevel { level } => {
                self.check_level(*level)?;
                self.level = *level;
            }
            ClusterCommand::BeginReassignment { .. }
            | ClusterCommand::AdvanceReassignment { .. }
            | ClusterCommand::CancelReassignment { .. }
            | ClusterCommand::FinishReassignment { .. }
            | ClusterCommand::SetReplicaOrder { .. } => self.apply_placement(command)?,
            ClusterCommand::RecoverPartitions { partitions } => self.apply_recovery(partitions)?,
            _ => self.apply_broker(command)?,
        }
        // Only what comes without a gap is a snapshot.
        self.parts.clear();
        Ok(())
    }

    fn apply_topics(&mut self, command: &Command) -> Checked {
        let is_placed = matches!(command, Command::Create(_) | Command::AddPartitions { .. });
        ensure(
            !is_placed || self.id.is_none(),
            "partitions of a cluster have no placement",
        )?;
        self.topics.apply(command)?;
        match command {
            Command::Create(topic) => {
                let placement = TopicPlacement {
                    replication_factor: 1,
                    partitions: alone(topic.partitions),
                };
                self.placements.insert(topic.id, placement);
            }
            Command::AddPartitions { id, total } => {
                let there = self.placements.get_mut(id).ok_or(UNPLACED)?;
                there.partitions = alone(*total);
            }
            Command::Delete { id } => {
                self.placements.remove(id);
            }
            Command::Alter { .. } | Command::ReserveProducerIds { .. } => {}
        }
        Ok(())
    }

    fn check_placement(&self, placement: &[Vec<ReplicaId>], factor: u32) -> Checked {
        ensure(factor > 0, "a partition has no replicas")?;
        for replicas in placement {
            let count = usize::try_from(factor).ok();
            ensure(
                count == Some(replicas.len()),
                "a partition has another number of replicas than its topic",
            )?;
            self.check_replicas(&Placement::default(), replicas)?;
        }
        Ok(())
    }

    /// Checks what a partition that is placed as `before` may be given.
    fn check_replicas(&self, before: &Placement, replicas: &[ReplicaId]) -> Checked {
        ensure(
            (1..=REPLICAS_MAX).contains(&replicas.len()),
            "a partition has too few or too many replicas",
        )?;
        ensure(
            are_nodes_distinct(replicas),
            "a partition has two replicas at one broker",
        )?;
        let mut added = replicas
            .iter()
            .filter(|replica| !before.replicas.contains(replica));
        let fits = added.all(|replica| {
            let node = node_of(*replica);
            self.broker(node).is_some() && *replica == self.fresh(node, before)
        });
        ensure(fits, "a partition gets a replica that cannot be")
    }

    fn check_level(&self, level: u32) -> Checked {
        ensure(level > self.level, "the feature level is not raised")?;
        ensure(
            level <= LEVEL_MAX,
            "the feature level is above what this version supports",
        )?;
        let allows = |broker: &Broker| {
            let Registration {
                level_min,
                level_max,
                ..
            } = broker.registration;
            (level_min..=level_max).contains(&level)
        };
        ensure(
            self.brokers.values().all(allows),
            "a broker does not support the feature level",
        )
    }
}

fn alone(partitions: u32) -> Vec<Placement> {
    let one = |_| Placement::new(vec![ALONE]);
    (0..partitions).map(one).collect()
}

const UNPLACED: ReplayError = ReplayError("a partition is placed that does not exist");
const NO_CHANGE: ReplayError = ReplayError("a change of replicas goes on that was not begun");
const NO_BROKER: ReplayError = ReplayError("a broker is changed that was not registered");
