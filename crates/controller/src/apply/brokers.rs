//! Brokers.

use super::{Checked, NO_BROKER, ensure};
use crate::cluster::{Broker, Cluster, Registration, Removed};
use crate::command::ClusterCommand;
use crate::ids::{DirectoryId, NodeId, node_of};

/// That of a broker that was never registered.
pub(crate) const NO_DIRECTORY: DirectoryId = DirectoryId::from_bytes([0; 16]);

impl Cluster {
    pub(super) fn apply_broker(&mut self, command: &ClusterCommand) -> Checked {
        match command {
            ClusterCommand::RegisterBroker {
                registration,
                epoch,
            } => self.apply_registration(registration, *epoch),
            ClusterCommand::SetFenced {
                node,
                epoch,
                is_fenced,
            } => {
                let broker = self.brokers.get_mut(node).ok_or(NO_BROKER)?;
                ensure(
                    broker.epoch == *epoch && broker.is_fenced != *is_fenced,
                    "a broker is fenced, or not any more, that is so already",
                )?;
                broker.is_fenced = *is_fenced;
                Ok(())
            }
            ClusterCommand::SetDraining { node, is_draining } => {
                let broker = self.brokers.get_mut(node).ok_or(NO_BROKER)?;
                ensure(
                    broker.is_draining != *is_draining,
                    "a broker is draining, or not any more, that is so already",
                )?;
                broker.is_draining = *is_draining;
                Ok(())
            }
            ClusterCommand::UnregisterBroker { node, is_lost } => {
                ensure(
                    *is_lost || self.replicas_at(*node) == 0,
                    "a broker is removed that has replicas",
                )?;
                let generation = self.next_generation(*node);
                let directory = match self.brokers.remove(node) {
                    Some(broker) => broker.registration.directory,
                    // One that has founded the cluster, and never came.
                    None if *is_lost && !self.removed.contains_key(node) => NO_DIRECTORY,
                    None => return Err(NO_BROKER),
                };
                let removed = Removed {
                    directory,
                    generation,
                };
                self.removed.insert(*node, removed);
                Ok(())
            }
            ClusterCommand::ReplaceBroker {
                node,
                directory,
                generation,
                epoch,
            } => {
                ensure(
                    *generation >= self.next_generation(*node) && *epoch > self.last_epoch,
                    "a broker is replaced that was replaced already",
                )?;
                let is_known = |broker: &Broker| broker.registration.directory == *directory;
                ensure(
                    !self.brokers.values().any(is_known),
                    "a broker gets a directory that another has",
                )?;
                let broker = self.brokers.get_mut(node).ok_or(NO_BROKER)?;
                broker.registration.directory = *directory;
                broker.generation = *generation;
                broker.epoch = *epoch;
                broker.is_fenced = true;
                self.last_epoch = *epoch;
                Ok(())
            }
            _ => unreachable!("all others are folded elsewhere"),
        }
    }

    fn apply_registration(&mut self, registration: &Registration, epoch: u64) -> Checked {
        ensure(
            registration.node != 0 && epoch > self.last_epoch,
            "a broker is registered that was registered already",
        )?;
        ensure(
            (registration.level_min..=registration.level_max).contains(&self.level),
            "a broker is registered that does not support the feature level",
        )?;
        let fits = self.brokers.values().all(|broker| {
            let other = &broker.registration;
            (other.node == registration.node) == (other.directory == registration.directory)
        });
        ensure(fits, "a broker is registered with the directory of another")?;
        let removed = self.removed.get(&registration.node).copied();
        ensure(
            removed.is_none_or(|removed| removed.directory != registration.directory),
            "a broker is registered that was removed",
        )?;
        self.removed.remove(&registration.node);
        let before = self.brokers.get(&registration.node);
        let fresh = removed.map_or(0, |removed| removed.generation);
        let broker = Broker {
            registration: registration.clone(),
            epoch,
            is_fenced: false,
            is_draining: before.is_some_and(|broker| broker.is_draining),
            generation: before.map_or(fresh, |broker| broker.generation),
        };
        self.brokers.insert(registration.node, broker);
        self.last_epoch = epoch;
        Ok(())
    }

    /// How many replicas a broker has, those of changes under way included.
    pub fn replicas_at(&self, node: NodeId) -> usize {
        let all = self.placements().flat_map(|(_, placement)| placement.all());
        all.filter(|replica| node_of(*replica) == node).count()
    }

    /// The generation after the loss of a disk: above the life of every replica that was on it.
    pub(crate) fn next_generation(&self, node: NodeId) -> u32 {
        let lives = self
            .placements()
            .map(|(_, placement)| placement.next_life(node));
        let generation = self.broker(node).map_or(0, |broker| broker.generation);
        let next = generation.saturating_add(1);
        lives.max().map_or(next, |life| life.max(next))
    }
}
