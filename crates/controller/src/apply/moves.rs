//! Changes of replicas.

use super::{Checked, NO_CHANGE, UNPLACED, ensure};
use crate::cluster::{
    Change, Cluster, PartitionKey, Phase, Placement, REPLICAS_MAX, are_nodes_distinct, is_same_set,
};
use crate::command::ClusterCommand;
use crate::ids::{ReplicaId, life_of, node_of};
use crate::topics::ReplayError;

impl Cluster {
    pub(super) fn apply_placement(&mut self, command: &ClusterCommand) -> Checked {
        match command {
            ClusterCommand::BeginReassignment {
                key,
                target,
                is_automatic,
            } => {
                let there = self.placement(key.topic, key.partition).ok_or(UNPLACED)?;
                ensure(
                    there.change.is_none() && !is_same_set(&there.replicas, target),
                    "replicas are changed that are being changed, or not",
                )?;
                self.check_replicas(there, target)?;
                let there = self.placement_mut(*key)?;
                if !is_automatic {
                    // It is to have as many as somebody wants now.
                    there.lacking = 0;
                }
                there.change = Some(Change {
                    target: target.clone(),
                    phase: Phase::Adding,
                    is_cancelling: false,
                    is_automatic: *is_automatic,
                });
            }
            ClusterCommand::AdvanceReassignment {
                key,
                phase,
                members_index,
            } => {
                let there = self.placement_mut(*key)?;
                ensure(
                    *members_index >= there.members_index,
                    "members are older than those seen before",
                )?;
                let change = there.change.as_mut().ok_or(NO_CHANGE)?;
                ensure(
                    match (change.phase, phase) {
                        (Phase::Adding, Phase::Joint) => !change.is_cancelling,
                        // The leader is told to enter it with the members of this index only.
                        (Phase::Joint, Phase::Joint) => {
                            !change.is_cancelling && *members_index > there.members_index
                        }
                        (Phase::Joint, Phase::Leaving) => true,
                        _ => false,
                    },
                    "a change of replicas skips a phase",
                )?;
                change.phase = *phase;
                // Once the joint configuration is entered there is no way back.
                change.is_cancelling &= *phase != Phase::Leaving;
                there.members_index = *members_index;
            }
            ClusterCommand::CancelReassignment { key } => {
                let there = self.placement_mut(*key)?;
                let can = there.can_cancel();
                let change = there.change.as_mut().ok_or(NO_CHANGE)?;
                ensure(
                    can && !change.is_cancelling,
                    "a change of replicas is cancelled too late, or twice",
                )?;
                change.is_cancelling = true;
            }
            ClusterCommand::FinishReassignment {
                key,
                is_cancelled,
                members_index,
            } => self
                .placement_mut(*key)?
                .finish(*is_cancelled, *members_index)?,
            ClusterCommand::SetReplicaOrder { key, replicas } => {
                let there = self.placement_mut(*key)?;
                ensure(
                    there.change.is_none() && is_same_set(&there.replicas, replicas),
                    "the order of replicas is changed while they are, or has others",
                )?;
                there.replicas.clone_from(replicas);
            }
            _ => unreachable!("all others are folded elsewhere"),
        }
        Ok(())
    }

    pub(super) fn placement_mut(
        &mut self,
        key: PartitionKey,
    ) -> Result<&mut Placement, ReplayError> {
        let topic = self.placements.get_mut(&key.topic).ok_or(UNPLACED)?;
        let index = usize::try_from(key.partition).map_err(|_| UNPLACED)?;
        topic.partitions.get_mut(index).ok_or(UNPLACED)
    }
}

impl Placement {
    /// Whether a change can still be turned back, as far as is known here.
    pub(crate) fn can_cancel(&self) -> bool {
        let change = self.change.as_ref();
        change.is_some_and(|change| change.phase != Phase::Leaving)
    }

    fn finish(&mut self, is_cancelled: bool, members_index: u64) -> Checked {
        let change = self.change.as_ref().ok_or(NO_CHANGE)?;
        let fits = if is_cancelled {
            // With the members from before, the joint configuration may be being entered.
            change.is_cancelling
                && (change.phase == Phase::Adding || members_index > self.members_index)
        } else {
            change.phase == Phase::Leaving
        };
        ensure(
            fits && members_index >= self.members_index,
            "a change of replicas is over before its end",
        )?;
        let after = if is_cancelled {
            self.replicas.clone()
        } else {
            change.target.clone()
        };
        let all: Vec<_> = self.all().collect();
        for gone in all.iter().filter(|replica| !after.contains(replica)) {
            self.retire(*gone);
        }
        let more = after.len().saturating_sub(self.replicas.len());
        if !is_cancelled {
            self.lacking = self
                .lacking
                .saturating_sub(u32::try_from(more).unwrap_or(0));
        }
        self.replicas = after;
        self.change = None;
        self.members_index = members_index;
        Ok(())
    }

    /// Checks a placement that comes from a snapshot.
    pub(crate) fn is_sound(&self) -> bool {
        let target = self.change.as_ref().map(|change| &change.target);
        let lists = [Some(&self.replicas), target];
        let mut lists = lists.into_iter().flatten().chain([&self.founders]);
        let is_list_sound = |list: &Vec<ReplicaId>| {
            (1..=REPLICAS_MAX).contains(&list.len())
                && are_nodes_distinct(list)
                && !list.contains(&0)
        };
        lists.all(is_list_sound)
            && self.all().all(|replica| {
                let past = self.past.get(&node_of(replica));
                past.is_none_or(|past| life_of(replica) != *past)
            })
    }
}
