//! Which brokers another one listens to.

use crate::apply::NO_DIRECTORY;
use crate::cluster::Cluster;
use crate::ids::{DirectoryId, NodeId, ReplicaId, life_of, node_of};

/// What a broker knows of another one that speaks to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownOf {
    /// The data directory that it is registered with.
    pub registered: Option<DirectoryId>,
    /// That with which it has founded the cluster: it may not have come to register yet.
    pub founded: Option<DirectoryId>,
    /// The data directory with which it was removed, and has not come again; zeros where it never came.
    pub removed: Option<DirectoryId>,
}

/// Whether a broker is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is.
    Admitted,
    /// Not one that was removed.
    Removed,
    /// Nobody knows it.
    Unknown,
    /// It is known with this other data directory.
    OtherDirectory(DirectoryId),
}

impl KnownOf {
    /// Whether the broker is listened to, with the data directory with which it comes. Whoever may be behind, see
    /// [`Cluster::may_lack`], may have missed that a broker has joined, or has another disk, and must listen to
    /// it then: it may be the only one that can tell. A broker on another disk never speaks for replicas that
    /// were on an earlier one.
    ///
    /// `may_be_behind` is asked only where that matters.
    pub fn admits(
        &self,
        directory: DirectoryId,
        may_be_behind: impl FnOnce() -> bool,
    ) -> Admission {
        let founded = self.founded.filter(|_| self.removed.is_none());
        // On another one it may have joined again since.
        let is_gone = self.removed.is_some_and(|removed| {
            removed == directory || removed == NO_DIRECTORY && self.founded == Some(directory)
        });
        match self.registered.or(founded) {
            Some(known) if known == directory => Admission::Admitted,
            None if is_gone => Admission::Removed,
            _ if may_be_behind() => Admission::Admitted,
            None if self.removed.is_some() => Admission::Removed,
            None => Admission::Unknown,
            Some(known) => Admission::OtherDirectory(known),
        }
    }
}

impl Cluster {
    /// Whether a broker that has folded this, and knows of this leader of the metadata group, may lack what was
    /// decided last: it hears no leader, or one that is not known here, as it has joined, or has got another disk,
    /// since. A leader on a disk that is known here to be lost is behind itself.
    pub fn may_lack(&self, leader: Option<ReplicaId>, founders: &[NodeId]) -> bool {
        let Some(leader) = leader else {
            return true;
        };
        let node = node_of(leader);
        let generation = match self.broker(node) {
            Some(broker) => Some(broker.generation),
            None => founders.contains(&node).then_some(0),
        };
        generation.is_none_or(|known| life_of(leader) > known)
    }
}
