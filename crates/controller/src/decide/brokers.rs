//! Brokers come, go, lose their disks.

use thiserror::Error;

use crate::cluster::{Broker, Cluster, LEVEL_MAX, Registration};
use crate::command::ClusterCommand;
use crate::ids::{ClusterId, DirectoryId, NodeId, node_of};
use crate::plan::Seen;

/// So many brokers a cluster has at most: each has a link to each other one.
pub const BROKERS_MAX: usize = 1000;

/// Why a change of the brokers is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BrokerError {
    /// There is no cluster yet.
    #[error("no cluster was founded here")]
    NotFounded,
    /// There is one already.
    #[error("this is cluster {id} already")]
    Founded {
        /// Its id.
        id: ClusterId,
    },
    /// The broker belongs to another cluster.
    #[error("the broker belongs to cluster {theirs}, this is {ours}")]
    OtherCluster {
        /// The broker's.
        theirs: ClusterId,
        /// This one.
        ours: ClusterId,
    },
    /// 0 names nobody.
    #[error("a node id is 1 or more")]
    NodeZero,
    /// The disk under the broker is another one.
    #[error(
        "node {node} is registered with data directory {registered}, not {found}: if its disk is lost, run `tidelog cluster replace {node} --directory {found}`; if this is another broker, give it another node id"
    )]
    OtherDirectory {
        /// The broker.
        node: NodeId,
        /// The directory it had.
        registered: DirectoryId,
        /// The directory it has now.
        found: DirectoryId,
    },
    /// The broker was removed.
    #[error(
        "node {node} was removed from the cluster: to have it back, give it an empty data directory and start it with --join"
    )]
    Removed {
        /// The broker.
        node: NodeId,
    },
    /// There are as many brokers as there may be.
    #[error(
        "the cluster has {BROKERS_MAX} brokers, and takes no more than that: remove those that are gone for good with `tidelog cluster remove`"
    )]
    TooMany,
    /// The directory belongs to another broker.
    #[error("data directory {directory} is that of node {owner}, not of node {node}")]
    DirectoryTaken {
        /// The directory.
        directory: DirectoryId,
        /// Whose it is.
        owner: NodeId,
        /// Who wants it.
        node: NodeId,
    },
    /// The versions do not fit.
    #[error(
        "the cluster is at feature level {level}; node {node} supports {min} to {max}: run another version there"
    )]
    Level {
        /// The broker.
        node: NodeId,
        /// The cluster's level, or the one asked for.
        level: u32,
        /// The lowest the broker supports.
        min: u32,
        /// The highest.
        max: u32,
    },
    /// The level cannot become this one.
    #[error("the feature level is {level}; it can be raised to {max} at most, not to {asked}")]
    CannotRaise {
        /// The level.
        level: u32,
        /// The highest that the deciding broker supports.
        max: u32,
        /// What was asked for.
        asked: u32,
    },
    /// There is no broker of this number.
    #[error("there is no node {node}")]
    NotFound {
        /// The broker.
        node: NodeId,
    },
    /// The broker has replicas still.
    #[error("node {node} has {replicas} replicas still: drain it first")]
    HasReplicas {
        /// The broker.
        node: NodeId,
        /// How many.
        replicas: usize,
    },
    /// It votes on the metadata, and the others that do are too few without it.
    #[error(
        "node {node} votes on the metadata: of the {voters} brokers that do, {others} without it are not fenced and have their disks, which is no majority; have those that are missing back first, or, if none is, drain it and wait until it votes no more"
    )]
    VoterNeeded {
        /// The broker.
        node: NodeId,
        /// How many vote.
        voters: usize,
        /// How many of the others can.
        others: usize,
    },
    /// This broker has just begun to lead the metadata, and has not heard yet who votes on them.
    #[error("it is not known yet whether node {node} votes on the metadata; try again in a moment")]
    VotersUnknown {
        /// The broker.
        node: NodeId,
    },
    /// The broker is running.
    #[error("node {node} is running: it can be replaced only when it is not")]
    Running {
        /// The broker.
        node: NodeId,
    },
    /// The others are too few for its replicas.
    #[error(
        "node {node} has partitions that {replicas} brokers are to have, and there are {others} others that could take them"
    )]
    NowhereToGo {
        /// The broker.
        node: NodeId,
        /// The most replicas of such a partition.
        replicas: usize,
        /// How many brokers there are beside it that are heard and not draining.
        others: usize,
    },
    /// It is so already.
    #[error("node {node} is {}", if *is_draining { "draining already" } else { "not draining: it may have replicas as it is" })]
    AlreadySo {
        /// The broker.
        node: NodeId,
        /// Whether it is draining.
        is_draining: bool,
    },
}

impl Cluster {
    /// Decides on founding a cluster with this id on what there is.
    ///
    /// # Errors
    /// [`BrokerError::Founded`].
    pub fn decide_found(&self, id: ClusterId) -> Result<ClusterCommand, BrokerError> {
        match self.id {
            Some(id) => Err(BrokerError::Founded { id }),
            None => Ok(ClusterCommand::Found { id }),
        }
    }

    /// Decides on a broker that has started, and believes to belong to `cluster`. It counts as heard, so
    /// it is not fenced.
    ///
    /// # Errors
    /// Why it is refused: the first of cluster, directory, feature levels, number of brokers.
    pub fn decide_register(
        &self,
        cluster: ClusterId,
        registration: Registration,
    ) -> Result<ClusterCommand, BrokerError> {
        let ours = self.id.ok_or(BrokerError::NotFounded)?;
        let node = registration.node;
        if cluster != ours {
            let theirs = cluster;
            return Err(BrokerError::OtherCluster { theirs, ours });
        }
        if node == 0 {
            return Err(BrokerError::NodeZero);
        }
        let found = registration.directory;
        if let Some(broker) = self.broker(node)
            && broker.registration.directory != found
        {
            return Err(BrokerError::OtherDirectory {
                node,
                registered: broker.registration.directory,
                found,
            });
        }
        let removed = self.removed.get(&node);
        if removed.is_some_and(|removed| removed.directory == found) {
            return Err(BrokerError::Removed { node });
        }
        self.check_directory(found, node)?;
        check_level(&registration, self.level)?;
        if self.broker(node).is_none() && self.brokers().count() >= BROKERS_MAX {
            return Err(BrokerError::TooMany);
        }
        Ok(ClusterCommand::RegisterBroker {
            registration,
            epoch: self.last_epoch + 1,
        })
    }

    /// The same for one that asks again and again until it is registered: `None` where it is, since its
    /// registration `epoch_before`, and is not fenced.
    ///
    /// # Errors
    /// See [`Cluster::decide_register`].
    pub fn decide_registration(
        &self,
        cluster: ClusterId,
        registration: Registration,
        epoch_before: u64,
    ) -> Result<Option<ClusterCommand>, BrokerError> {
        let known = self.broker(registration.node);
        let is_heard = known.is_some_and(|known| !known.is_fenced);
        if is_heard && self.has_registered(&registration, epoch_before) {
            return Ok(None);
        }
        self.decide_register(cluster, registration).map(Some)
    }

    /// Decides on another disk for a broker that has lost its own: its replicas are lost with it, and
    /// will be replaced by new ones.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_replace(
        &self,
        node: NodeId,
        directory: DirectoryId,
    ) -> Result<ClusterCommand, BrokerError> {
        let broker = self.known(node)?;
        if !broker.is_fenced {
            return Err(BrokerError::Running { node });
        }
        if broker.registration.directory == directory {
            let owner = node;
            return Err(BrokerError::DirectoryTaken {
                directory,
                owner,
                node,
            });
        }
        self.check_directory(directory, node)?;
        Ok(ClusterCommand::ReplaceBroker {
            node,
            directory,
            generation: self.next_generation(node),
            epoch: self.last_epoch + 1,
        })
    }

    /// Decides on having the replicas of a broker go elsewhere.
    ///
    /// # Errors
    /// Why that is refused; also when the other brokers are too few to take them.
    pub fn decide_drain(&self, node: NodeId) -> Result<ClusterCommand, BrokerError> {
        let broker = self.known(node)?;
        if broker.is_draining {
            let is_draining = true;
            return Err(BrokerError::AlreadySo { node, is_draining });
        }
        let others = self.brokers.values();
        let others = others
            .filter(|broker| broker.is_usable() && broker.registration.node != node)
            .count();
        let here = |replicas: &[u64]| replicas.iter().any(|r| node_of(*r) == node);
        let placements = self.placements().map(|(_, placement)| placement);
        let after = placements.map(|placement| {
            let change = placement.change.as_ref();
            change.map_or(&placement.replicas, |change| &change.target)
        });
        let most = after.filter(|replicas| here(replicas)).map(Vec::len).max();
        match most {
            Some(replicas) if replicas > others => Err(BrokerError::NowhereToGo {
                node,
                replicas,
                others,
            }),
            _ => Ok(ClusterCommand::SetDraining {
                node,
                is_draining: true,
            }),
        }
    }

    /// Decides on leaving a broker the replicas it still has.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_undrain(&self, node: NodeId) -> Result<ClusterCommand, BrokerError> {
        let is_draining = self.known(node)?.is_draining;
        if !is_draining {
            return Err(BrokerError::AlreadySo { node, is_draining });
        }
        Ok(ClusterCommand::SetDraining {
            node,
            is_draining: false,
        })
    }

    /// The same, with what the leader of the metadata group sees of its members: from the removal on nobody
    /// listens to the broker, so the others must do without its vote at once.
    ///
    /// # Errors
    /// See [`Cluster::decide_remove`]; also when they cannot.
    pub fn decide_remove_heard(
        &self,
        node: NodeId,
        metadata: &Seen,
    ) -> Result<ClusterCommand, BrokerError> {
        let removed = self.decide_remove(node)?;
        for voters in [&metadata.voters, &metadata.voters_outgoing] {
            let votes = voters.iter().any(|replica| node_of(*replica) == node);
            let others = voters
                .iter()
                .filter(|replica| node_of(**replica) != node && self.is_live(**replica))
                .count();
            let voters = voters.len();
            if votes && others * 2 <= voters {
                return Err(BrokerError::VoterNeeded {
                    node,
                    voters,
                    others,
                });
            }
        }
        Ok(removed)
    }

    /// Decides on taking a broker without replicas out of the cluster.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_remove(&self, node: NodeId) -> Result<ClusterCommand, BrokerError> {
        self.known(node)?;
        match self.replicas_at(node) {
            0 => Ok(ClusterCommand::UnregisterBroker {
                node,
                is_lost: false,
            }),
            replicas => Err(BrokerError::HasReplicas { node, replicas }),
        }
    }

    /// Decides on raising the feature level. There is no way back.
    ///
    /// # Errors
    /// Why that is refused: also when a registered broker does not support it.
    pub fn decide_raise_level(&self, asked: u32) -> Result<ClusterCommand, BrokerError> {
        self.id.ok_or(BrokerError::NotFounded)?;
        if asked <= self.level || asked > LEVEL_MAX {
            return Err(BrokerError::CannotRaise {
                level: self.level,
                max: LEVEL_MAX,
                asked,
            });
        }
        for broker in self.brokers.values() {
            check_level(&broker.registration, asked)?;
        }
        Ok(ClusterCommand::RaiseFeatureLevel { level: asked })
    }

    fn known(&self, node: NodeId) -> Result<&Broker, BrokerError> {
        self.broker(node).ok_or(BrokerError::NotFound { node })
    }

    fn check_directory(&self, directory: DirectoryId, node: NodeId) -> Result<(), BrokerError> {
        let others = self.brokers.values().map(|broker| &broker.registration);
        let mut others = others.filter(|other| other.node != node);
        match others.find(|other| other.directory == directory) {
            None => Ok(()),
            Some(owner) => Err(BrokerError::DirectoryTaken {
                directory,
                owner: owner.node,
                node,
            }),
        }
    }
}

fn check_level(registration: &Registration, level: u32) -> Result<(), BrokerError> {
    let (min, max) = (registration.level_min, registration.level_max);
    if (min..=max).contains(&level) {
        return Ok(());
    }
    Err(BrokerError::Level {
        node: registration.node,
        level,
        min,
        max,
    })
}
