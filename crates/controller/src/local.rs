//! What a broker is to have on its disk, from what was decided and what it has.

use std::ops::Range;

use tidelog_record::TopicId;

use crate::cluster::{Cluster, Placement};
use crate::ids::{NodeId, ReplicaId, life_of};
#[cfg(feature = "planted")]
use crate::planted::Planted;

/// A replica that a broker is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Of which partition.
    pub number: u32,
    /// Its own number.
    pub replica: ReplicaId,
    /// Who was in the group when it began.
    pub founders: Vec<ReplicaId>,
    /// What the replicas of the group write on what they say to each other.
    pub incarnation: u32,
    /// It is the only one of its partition, at present.
    pub is_alone: bool,
    /// The partition is new, and this replica is to lead it.
    pub leads_first: bool,
}

/// What a running broker has of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// Nothing, as far as is known: what may lie in the way is moved out of it.
    Nothing,
    /// A replica that serves.
    Serving(ReplicaId),
    /// One that could not be opened; its number, where that is known.
    Faulted(Option<ReplicaId>),
}

/// What becomes of what a broker has of a partition, before what is wanted and not there is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Stays,
    /// It is taken out of service and its files removed.
    Removed,
    /// Nothing: it is not there.
    Absent,
}

/// What a broker does at its start with what it may have of a partition that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStart {
    /// This replica is opened; made where it is not known yet.
    Opened(ReplicaId),
    /// What is there is another replica than is wanted, and serves nobody; or nothing is there, and
    /// nothing may be made yet. That is seen to once the broker runs.
    Later,
    /// Nothing is wanted: what is there is removed.
    Unwanted,
}

/// A broker, as far as it matters for what it is to have.
#[derive(Clone, Copy, Debug)]
pub struct LocalBroker {
    /// Its number.
    pub node: NodeId,
    /// How many disks it had lost when it got the one that it has.
    pub generation: u32,
    /// What is wrong.
    #[cfg(feature = "planted")]
    pub planted: Option<Planted>,
}

impl LocalBroker {
    /// The broker `node` on a disk of this generation.
    pub const fn new(node: NodeId, generation: u32) -> Self {
        Self {
            node,
            generation,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }

    /// The replica of a partition that is to be on its disk. One of an earlier generation was on a disk that
    /// is lost: it must never be made here, where it would vote and lead without what it had.
    pub fn replica(&self, placement: &Placement) -> Option<ReplicaId> {
        let replica = placement.replica_at(self.node);
        #[cfg(feature = "planted")]
        if self.planted == Some(Planted::GenerationForgotten) {
            return replica;
        }
        replica.filter(|replica| life_of(*replica) >= self.generation)
    }

    /// Whether it may make replicas that are not there, by what it has folded. Where that does not know of its
    /// disk yet, it may hold a replica of a number that was on an earlier disk, and was forgotten
    /// with its topic before this disk was given its generation.
    pub fn may_make(&self, cluster: &Cluster) -> bool {
        let known = cluster.broker(self.node);
        known.is_none_or(|known| known.generation >= self.generation)
    }

    /// What it is to have of the partitions `numbers` of a topic.
    pub fn wanted(&self, cluster: &Cluster, id: TopicId, numbers: Range<u32>) -> Vec<Wanted> {
        let wanted = numbers.filter_map(|number| {
            let placement = cluster.placement(id, number)?;
            let replica = self.replica(placement)?;
            let is_new = placement.members_index == 0 && placement.change.is_none();
            Some(Wanted {
                number,
                replica,
                founders: placement.founders.clone(),
                incarnation: placement.incarnation(),
                is_alone: placement.replicas == [replica],
                leads_first: is_new
                    && placement.replicas.len() > 1
                    && placement.replicas.first() == Some(&replica),
            })
        });
        wanted.collect()
    }

    /// What becomes of what it has of a partition, of which it is to have `want`.
    pub fn fate(&self, here: Here, want: Option<&Wanted>) -> Fate {
        let wanted = want.map(|want| want.replica);
        match here {
            Here::Serving(replica) if wanted == Some(replica) => Fate::Stays,
            #[cfg(feature = "planted")]
            Here::Serving(_)
                if want.is_none() && self.planted == Some(Planted::RemovalForgotten) =>
            {
                Fate::Stays
            }
            Here::Serving(_) => Fate::Removed,
            // Its files are as they are, and tell what is wrong with them.
            Here::Faulted(known) if wanted.is_some() && (known.is_none() || known == wanted) => {
                Fate::Stays
            }
            Here::Faulted(_) => Fate::Removed,
            Here::Nothing => Fate::Absent,
        }
    }

    /// What it does at its start with a partition; `known` is the replica that its state file knows of.
    pub fn at_start(
        &self,
        cluster: &Cluster,
        placement: &Placement,
        known: Option<ReplicaId>,
    ) -> AtStart {
        match (self.replica(placement), known) {
            (None, _) => AtStart::Unwanted,
            (Some(wanted), Some(known)) if known == wanted => AtStart::Opened(wanted),
            (Some(wanted), None) if self.may_make(cluster) => AtStart::Opened(wanted),
            (Some(_), _) => AtStart::Later,
        }
    }
}
