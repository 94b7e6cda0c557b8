//! Who is to lead.

use super::{Action, Planner, Report};
use crate::cluster::{PartitionKey, Placement};
use crate::ids::{ReplicaId, node_of};
#[cfg(feature = "planted")]
use crate::planted::Planted;

impl Planner<'_> {
    /// A partition whose replicas are to stay: learners that nobody placed are removed, and the right
    /// replica leads.
    pub(super) fn keep(&mut self, key: PartitionKey, placement: &Placement, report: &Report) {
        let members = &report.members;
        if members.is_joint() {
            return;
        }
        if let Some(stray) = members.learners.first() {
            self.act(key, report, Action::RemoveLearner(*stray));
        }
        self.lead(key, placement, report);
    }

    /// Back to the preferred leader, when that one can; away from a broker that is draining, or is to lead
    /// nothing. A broker that leads only because the preferred one is away keeps what it has, so nothing
    /// goes to and fro.
    pub(super) fn lead(&mut self, key: PartitionKey, placement: &Placement, report: &Report) {
        let replicas = &placement.replicas;
        let Some(&preferred) = replicas.first() else {
            return;
        };
        let others = || {
            let others = replicas.iter().filter(|id| **id != report.leader);
            others.copied().collect::<Vec<_>>()
        };
        if report.leader == preferred || !self.can_lead(preferred, report) {
            let broker = self.cluster.broker(node_of(report.leader));
            let must_go =
                broker.is_some_and(|broker| broker.is_draining) || self.is_resigning(report.leader);
            if must_go
                && let Some(to) = self.best(&others(), report)
                && self.is_undraining(to)
            {
                self.hand_over(key, report, to);
            }
        } else {
            #[cfg(feature = "planted")]
            if self.options.planted == Some(Planted::LeaderKept) {
                return;
            }
            self.hand_over(key, report, preferred);
        }
    }

    fn can_lead(&self, replica: ReplicaId, report: &Report) -> bool {
        report.members.voters.contains(&replica)
            && report.caught_up.contains(&replica)
            && self.cluster.is_live(replica)
            && self.is_undraining(replica)
            && !self.is_resigning(replica)
    }

    fn is_resigning(&self, replica: ReplicaId) -> bool {
        self.observed.resigning.contains_key(&node_of(replica))
    }

    fn is_undraining(&self, replica: ReplicaId) -> bool {
        let broker = self.cluster.broker(node_of(replica));
        broker.is_some_and(|broker| !broker.is_draining)
    }

    /// Of these, whoever can lead: rather one that is not draining, then the one that lacks the least,
    /// then the first.
    pub(super) fn best(&self, replicas: &[ReplicaId], report: &Report) -> Option<ReplicaId> {
        let able = replicas
            .iter()
            .copied()
            .filter(|replica| report.caught_up.contains(replica) && self.cluster.is_live(*replica))
            .filter(|replica| !self.is_resigning(*replica));
        able.min_by_key(|replica| {
            let lag = report.lag.get(replica).copied().unwrap_or(u64::MAX);
            (!self.is_undraining(*replica), lag)
        })
    }

    /// Asks for a hand-over, unless that was done just now or too many are under way.
    pub(super) fn hand_over(&mut self, key: PartitionKey, report: &Report, to: ReplicaId) {
        let asked = self.observed.transfers_asked.get(&key);
        let wait_ms = self.options.transfer_wait_ms;
        let is_asked = asked.is_some_and(|asked| self.now_ms.saturating_sub(*asked) < wait_ms);
        if is_asked || self.transfers_left == 0 {
            return;
        }
        self.transfers_left -= 1;
        self.act(key, report, Action::TransferLeadership(to));
    }
}
