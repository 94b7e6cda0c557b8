//! Partitions go on that have lost a majority of their replicas.

use super::{Checked, UNPLACED, ensure};
use crate::cluster::{Change, Cluster, Phase};
use crate::command::RecoveredPartition;
use crate::ids::{ReplicaId, node_of};

impl Cluster {
    pub(super) fn apply_recovery(&mut self, partitions: &[RecoveredPartition]) -> Checked {
        for recovered in partitions {
            self.check_recovery(recovered)?;
        }
        for recovered in partitions {
            self.recover(recovered)?;
        }
        Ok(())
    }

    fn check_recovery(&self, recovered: &RecoveredPartition) -> Checked {
        let RecoveredPartition {
            key,
            keeper,
            others,
            recoveries,
        } = recovered;
        let there = self.placement(key.topic, key.partition).ok_or(UNPLACED)?;
        ensure(
            *recoveries == there.recoveries.saturating_add(1),
            "a partition goes on that has gone on already",
        )?;
        let all: Vec<ReplicaId> = there.all().collect();
        let is_new = !all.contains(keeper);
        ensure(
            !is_new || others.is_empty() && *keeper == self.fresh(node_of(*keeper), there),
            "a partition goes on with a replica that cannot be",
        )?;
        let mut nodes: Vec<_> = others
            .iter()
            .chain([keeper])
            .copied()
            .map(node_of)
            .collect();
        nodes.sort_unstable();
        let count = nodes.len();
        nodes.dedup();
        let are_there = others.iter().all(|other| all.contains(other));
        ensure(
            are_there && nodes.len() == count,
            "a partition goes on with replicas that it has not, or twice",
        )
    }

    fn recover(&mut self, recovered: &RecoveredPartition) -> Checked {
        let RecoveredPartition {
            key,
            keeper,
            others,
            recoveries,
        } = recovered;
        let there = self.placement_mut(*key)?;
        let all: Vec<ReplicaId> = there.all().collect();
        let target: Vec<ReplicaId> = [keeper].into_iter().chain(others).copied().collect();
        // A change that was under way ends with it, and counts as what it was to come to.
        let had = there
            .change
            .as_ref()
            .map_or(&there.replicas, |it| &it.target);
        let lost = had.len().saturating_sub(target.len());
        there.lacking += u32::try_from(lost).unwrap_or(0);
        for gone in all.iter().filter(|replica| !target.contains(replica)) {
            there.retire(*gone);
        }
        if !all.contains(keeper) {
            there.founders = vec![*keeper];
            there.members_index = 0;
        }
        there.replicas = vec![*keeper];
        there.recoveries = *recoveries;
        there.change = (!others.is_empty()).then_some(Change {
            target,
            phase: Phase::Adding,
            is_cancelling: false,
            is_automatic: true,
        });
        Ok(())
    }
}
