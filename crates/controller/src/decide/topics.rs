//! Topics get partitions, and these their replicas.

use std::collections::BTreeSet;

use thiserror::Error;
use tidelog_record::TopicId;

use crate::cluster::{Cluster, Placement, REPLICAS_MAX};
use crate::command::ClusterCommand;
use crate::ids::{NodeId, ReplicaId};
use crate::place::place;
use crate::topics::{Command, NewTopic, TopicError};

/// How many replicas a partition gets where nobody says, if there are so many brokers.
const DEFAULT_FACTOR: usize = 3;

/// How the partitions of a topic are to be replicated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replication {
    /// How many replicas each has; `None` for 3, or for 1 where there are fewer brokers.
    pub factor: Option<u32>,
    /// The brokers of each partition, the preferred leader first; empty: chosen.
    pub assignment: Vec<Vec<NodeId>>,
}

/// Why partitions cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// The topic cannot be so.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// There is no cluster yet.
    #[error("no cluster was founded here")]
    NotFounded,
    /// There are not so many brokers.
    #[error(
        "replication factor {factor} needs {factor} brokers; {available} of {registered} are available"
    )]
    TooFewBrokers {
        /// How many replicas a partition is to have.
        factor: u32,
        /// How many brokers are not fenced.
        available: usize,
        /// How many are registered.
        registered: usize,
    },
    /// Not so many replicas are allowed.
    #[error("a partition has 1 to {REPLICAS_MAX} replicas, not {asked}")]
    Factor {
        /// What was asked for.
        asked: u32,
    },
    /// The assignment is for another number of partitions.
    #[error("brokers are assigned to {assigned} partitions; {partitions} are to be made")]
    Partitions {
        /// How many are assigned.
        assigned: usize,
        /// How many there will be.
        partitions: u32,
    },
    /// Partitions of a topic are made with equally many replicas.
    #[error("partition {partition} is assigned {assigned} brokers; each gets {factor}")]
    UnevenAssignment {
        /// The partition.
        partition: usize,
        /// How many it is assigned.
        assigned: usize,
        /// How many it is to have.
        factor: u32,
    },
    /// A broker would have two replicas of a partition.
    #[error("a partition is assigned the same broker twice")]
    Twice,
    /// An assigned broker does not exist, or cannot take replicas now.
    #[error("node {node} cannot take replicas: it {}", why(*.state))]
    Unusable {
        /// The broker.
        node: NodeId,
        /// How it is.
        state: Unusable,
    },
}

/// Why a broker takes no replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is not registered.
    Unknown,
    /// It is fenced.
    Fenced,
    /// It is draining.
    Draining,
}

fn why(state: Unusable) -> &'static str {
    match state {
        Unusable::Unknown => "is not registered",
        Unusable::Fenced => "is not heard of",
        Unusable::Draining => "is draining",
    }
}

impl Cluster {
    /// Decides on a new topic, which will have the id `id`.
    ///
    /// # Errors
    /// Why it is refused: the topic itself first, then its replicas.
    pub fn decide_create_topic(
        &self,
        new: &NewTopic,
        replication: &Replication,
        id: TopicId,
    ) -> Result<ClusterCommand, PlaceError> {
        let mut new = new.clone();
        if new.partitions == 0 {
            new.partitions = u32::try_from(replication.assignment.len()).unwrap_or(u32::MAX);
        }
        self.decide_placed(self.topics.decide_create(&new, id)?, replication)
    }

    /// Decides on a new topic that the cluster itself needs, which will have the id `id`: its name may be internal.
    ///
    /// # Errors
    /// As [`Cluster::decide_create_topic`].
    pub fn decide_create_internal(
        &self,
        new: &NewTopic,
        id: TopicId,
    ) -> Result<ClusterCommand, PlaceError> {
        let create = self.topics.decide_create_internal(new, id)?;
        self.decide_placed(create, &Replication::default())
    }

    fn decide_placed(
        &self,
        create: Command,
        replication: &Replication,
    ) -> Result<ClusterCommand, PlaceError> {
        let assignment = &replication.assignment;
        let Command::Create(topic) = create else {
            unreachable!("that is what was decided on")
        };
        self.id.ok_or(PlaceError::NotFounded)?;
        let (_, registered) = self.available();
        let assigned = assignment.first().map(|nodes| nodes.len());
        let default = assigned.unwrap_or(if registered >= DEFAULT_FACTOR {
            DEFAULT_FACTOR
        } else {
            1
        });
        let default = u32::try_from(default).unwrap_or(u32::MAX);
        let factor = replication.factor.unwrap_or(default);
        let placement = self.place_new(None, topic.partitions, factor, assignment)?;
        Ok(ClusterCommand::CreateTopic {
            topic,
            replication_factor: factor,
            placement,
        })
    }

    /// Decides on more partitions, `total` of them, on the brokers of `assignment`, one entry for each
    /// new one; they are chosen where it is empty.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_add_partitions(
        &self,
        name: &str,
        total: u32,
        assignment: &[Vec<NodeId>],
    ) -> Result<ClusterCommand, PlaceError> {
        self.topics.decide_add_partitions(name, total)?;
        self.id.ok_or(PlaceError::NotFounded)?;
        let topic = self.topics.get(name)?;
        let placed = self.topic_placement(topic.id);
        let factor = placed.map_or(1, |placed| placed.replication_factor);
        let added = total - topic.partitions;
        Ok(ClusterCommand::AddPartitions {
            id: topic.id,
            total,
            placement: self.place_new(Some(topic.id), added, factor, assignment)?,
        })
    }

    fn place_new(
        &self,
        topic: Option<TopicId>,
        partitions: u32,
        factor: u32,
        assignment: &[Vec<NodeId>],
    ) -> Result<Vec<Vec<ReplicaId>>, PlaceError> {
        let count = usize::try_from(factor).unwrap_or(usize::MAX);
        if !(1..=REPLICAS_MAX).contains(&count) {
            return Err(PlaceError::Factor { asked: factor });
        }
        let (available, registered) = self.available();
        if assignment.is_empty() {
            if count > available {
                return Err(PlaceError::TooFewBrokers {
                    factor,
                    available,
                    registered,
                });
            }
            return Ok(place(self, topic, partitions, count));
        }
        if usize::try_from(partitions).ok() != Some(assignment.len()) {
            let assigned = assignment.len();
            return Err(PlaceError::Partitions {
                assigned,
                partitions,
            });
        }
        let mut placed = Vec::new();
        for (partition, nodes) in assignment.iter().enumerate() {
            if nodes.len() != count {
                return Err(PlaceError::UnevenAssignment {
                    partition,
                    assigned: nodes.len(),
                    factor,
                });
            }
            placed.push(self.replicas_on(&Placement::default(), nodes)?);
        }
        Ok(placed)
    }

    /// The replicas of a partition on these nodes: those that it has there already, and new ones.
    pub(crate) fn replicas_on(
        &self,
        placement: &Placement,
        nodes: &[NodeId],
    ) -> Result<Vec<ReplicaId>, PlaceError> {
        if nodes.iter().collect::<BTreeSet<_>>().len() != nodes.len() {
            return Err(PlaceError::Twice);
        }
        let replica = |node: &NodeId| {
            let there = placement.replicas.iter().find(|replica| {
                crate::ids::node_of(**replica) == *node && !self.is_lost(**replica)
            });
            if let Some(there) = there {
                return Ok(*there);
            }
            let state = match self.broker(*node) {
                None => Unusable::Unknown,
                Some(broker) if broker.is_fenced => Unusable::Fenced,
                Some(broker) if broker.is_draining => Unusable::Draining,
                Some(_) => return Ok(self.fresh(*node, placement)),
            };
            Err(PlaceError::Unusable { node: *node, state })
        };
        nodes.iter().map(replica).collect()
    }

    /// How many brokers are not fenced, and how many there are.
    fn available(&self) -> (usize, usize) {
        let available = self.brokers.values().filter(|broker| !broker.is_fenced);
        (available.count(), self.brokers.len())
    }
}
