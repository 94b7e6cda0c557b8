//! The way of a change of replicas.
//!
//! | phase | what is done | what ends it |
//! |---|---|---|
//! | adding | new replicas become learners | all are caught up |
//! | joint | the leader enters the joint configuration | it was entered |
//! | leaving | it is left; what else is missing is done | the voters are those of the target |
//!
//! A change that is cancelled goes back by removing its learners. In the joint phase a leader may just be
//! entering the configuration. It was told so only for members of the index that was committed with the
//! phase; so once it shows others, and has not entered it with them, it never will. Where there is no
//! learner to remove, the members are confirmed for that. Where it was entered, the change goes on.
//!
//! A leader never proposes a configuration without itself. So it hands over before to a replica that
//! stays; where none of those that vote stays, it stays for one round itself, and hands over to a new one
//! after that.

use super::{Action, Planner, Report};
use crate::cluster::{Change, PartitionKey, Phase, Placement, is_same_set};
use crate::command::ClusterCommand;
use crate::ids::{ReplicaId, node_of};
#[cfg(feature = "planted")]
use crate::planted::Planted;

impl Planner<'_> {
    pub(super) fn change(
        &mut self,
        key: PartitionKey,
        placement: &Placement,
        change: &Change,
        report: Option<&Report>,
    ) {
        if change.phase != Phase::Leaving
            && !change.is_cancelling
            && placement.can_cancel()
            && self.is_hopeless(placement, change)
        {
            self.commit(ClusterCommand::CancelReassignment { key });
            return;
        }
        let Some(report) = report else {
            return;
        };
        match change.phase {
            Phase::Leaving => self.leave(key, change, report),
            Phase::Joint if is_entered(placement, report) => {
                self.advance(key, Phase::Leaving, report);
            }
            _ if change.is_cancelling => self.go_back(key, placement, change, report),
            Phase::Adding => self.add(key, placement, change, report),
            Phase::Joint => self.enter(key, placement, change, report),
        }
    }

    /// Whether a new replica is lost, or too many of those that stay; or a new one is not coming where
    /// anybody else would do. A lost one that stays for want of a better one does no harm.
    fn is_hopeless(&self, placement: &Placement, change: &Change) -> bool {
        let is_lost = |replica: &ReplicaId| self.cluster.is_lost(*replica);
        let lost = change.target.iter().filter(|replica| is_lost(replica));
        if placement.added().any(|replica| is_lost(&replica))
            || 2 * lost.count() >= change.target.len()
        {
            return true;
        }
        // Later they were caught up: whoever is late only has to come back.
        change.phase == Phase::Adding
            && placement.added().any(|replica| {
                let broker = self.cluster.broker(node_of(replica));
                broker.is_none_or(|broker| {
                    broker.is_draining || change.is_automatic && broker.is_fenced
                })
            })
    }

    fn add(&mut self, key: PartitionKey, placement: &Placement, change: &Change, report: &Report) {
        let members = &report.members;
        if is_entered(placement, report) {
            return;
        }
        let stray = members
            .learners
            .iter()
            .find(|id| !change.target.contains(id));
        if let Some(stray) = stray {
            self.act(key, report, Action::RemoveLearner(*stray));
            return;
        }
        let mut missing = placement
            .added()
            .filter(|replica| !members.learners.contains(replica))
            .peekable();
        if missing.peek().is_some() {
            if let Some(next) = missing.find(|replica| self.cluster.is_live(*replica)) {
                self.act(key, report, Action::AddLearner(next));
            }
            return;
        }
        let is_ready =
            |replica| report.caught_up.contains(&replica) && self.cluster.is_live(replica);
        if placement.added().all(is_ready) && self.has_able_majority(&change.target, report) {
            self.advance(key, Phase::Joint, report);
        } else {
            // Catching up may take hours.
            self.lead(key, placement, report);
        }
    }

    fn enter(
        &mut self,
        key: PartitionKey,
        placement: &Placement,
        change: &Change,
        report: &Report,
    ) {
        let members = &report.members;
        if members.index != placement.members_index {
            self.advance(key, Phase::Joint, report);
            return;
        }
        let are_there = placement
            .added()
            .all(|replica| members.learners.contains(&replica));
        if are_there && self.has_able_majority(&change.target, report) {
            self.go_to(key, &change.target, report);
        }
    }

    fn leave(&mut self, key: PartitionKey, change: &Change, report: &Report) {
        let members = &report.members;
        #[cfg(feature = "planted")]
        match self.options.planted {
            Some(Planted::JointKept) if members.is_joint() => return,
            Some(Planted::FinishedEarly) => {
                self.commit(ClusterCommand::FinishReassignment {
                    key,
                    is_cancelled: false,
                    members_index: members.index,
                });
                return;
            }
            _ => {}
        }
        if members.is_joint() {
            if members.voters.contains(&report.leader) {
                self.act(key, report, Action::LeaveJoint);
            } else if let Some(to) = self.best(&members.voters, report) {
                self.hand_over(key, report, to);
            }
        } else if !is_same_set(&members.voters, &change.target) {
            if self.has_able_majority(&change.target, report) {
                self.go_to(key, &change.target, report);
            }
        } else if let Some(stray) = members.learners.first() {
            self.act(key, report, Action::RemoveLearner(*stray));
        } else {
            self.commit(ClusterCommand::FinishReassignment {
                key,
                is_cancelled: false,
                members_index: members.index,
            });
        }
    }

    /// Has the leader enter a joint configuration with these, or hand over first to one that stays.
    fn go_to(&mut self, key: PartitionKey, target: &[ReplicaId], report: &Report) {
        if target.contains(&report.leader) {
            self.act(key, report, Action::EnterJoint(target.to_vec()));
            return;
        }
        let voters = &report.members.voters;
        let stay: Vec<_> = target
            .iter()
            .filter(|id| voters.contains(id))
            .copied()
            .collect();
        if let Some(to) = self.best(&stay, report) {
            self.hand_over(key, report, to);
        } else if stay.iter().all(|replica| !self.cluster.is_live(*replica)) {
            let mut round = target.to_vec();
            round.push(report.leader);
            if self.has_able_majority(&round, report) {
                self.act(key, report, Action::EnterJoint(round));
            }
        }
    }

    /// Whether these could commit by themselves, and at once.
    fn has_able_majority(&self, replicas: &[ReplicaId], report: &Report) -> bool {
        let able = replicas.iter().filter(|replica| {
            report.caught_up.contains(replica) && self.cluster.is_live(**replica)
        });
        able.count() * 2 > replicas.len()
    }

    fn go_back(
        &mut self,
        key: PartitionKey,
        placement: &Placement,
        change: &Change,
        report: &Report,
    ) {
        let members = &report.members;
        if let Some(learner) = members.learners.first() {
            self.act(key, report, Action::RemoveLearner(*learner));
        } else if change.phase == Phase::Joint && members.index == placement.members_index {
            self.act(key, report, Action::ConfirmMembers);
        } else {
            self.commit(ClusterCommand::FinishReassignment {
                key,
                is_cancelled: true,
                members_index: members.index,
            });
        }
    }

    fn advance(&mut self, key: PartitionKey, phase: Phase, report: &Report) {
        self.commit(ClusterCommand::AdvanceReassignment {
            key,
            phase,
            members_index: report.members.index,
        });
    }
}

/// Whether the voters are not those from before any more.
fn is_entered(placement: &Placement, report: &Report) -> bool {
    report.members.is_joint() || !is_same_set(&report.members.voters, &placement.replicas)
}
