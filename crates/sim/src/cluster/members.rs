//! Members come and go: what a controller would ask for.

use tidelog_replica::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
};
use tidelog_replica::{Members, ProposeError};

use super::Cluster;
use super::events::Event;
use super::replica::Replica;

/// So many replicas there ever are: a number is never used again.
const EVER_MAX: u64 = 12;
/// With more voters than that one leaves rather than one comes.
const VOTERS_MAX: usize = 5;

fn single(change: ConfChangeType, id: u64) -> ConfChangeSingle {
    ConfChangeSingle {
        change_type: change as i32,
        node_id: id,
    }
}

impl Cluster {
    pub(super) fn is_member(&self, id: u64) -> bool {
        let state = &self.members.state;
        [&state.voters, &state.learners, &state.voters_outgoing]
            .iter()
            .any(|ids| ids.contains(&id))
    }

    /// A replica has committed a change.
    pub(super) fn members_changed(&mut self, members: Members) {
        if members.index > self.members.index {
            let were = self.members.state.clone();
            self.left
                .extend([were.voters, were.learners, were.voters_outgoing].concat());
            self.members = members;
            self.stats.changes += 1;
        }
    }

    /// Asks the leader for a change, if one makes sense now.
    pub(super) fn change_members(&mut self) {
        let Some(leader) = self.leader() else { return };
        let Some(group) = self.replicas[&leader].group() else {
            return;
        };
        let Members { state, .. } = group.members().clone();
        let mut change = ConfChangeV2::default();
        if state.voters_outgoing.is_empty() {
            let Some((transition, changes)) = self.choose(&state.voters, &state.learners) else {
                return;
            };
            change.changes = changes;
            change.set_transition(transition);
        }
        // Otherwise the empty change leaves the joint configuration.
        self.with(leader, |replica, _| {
            if let Some(group) = replica.group_mut() {
                // Where another change is under way, or the leader is not ready, it is not now.
                if let Err(ProposeError::LeaderLeaves) = group.propose_members(&change) {
                    let heir = state.voters.iter().find(|id| **id != leader);
                    heir.into_iter()
                        .for_each(|heir| group.transfer_leader(*heir));
                }
            }
        });
    }

    fn choose(
        &mut self,
        voters: &[u64],
        learners: &[u64],
    ) -> Option<(ConfChangeTransition, Vec<ConfChangeSingle>)> {
        use ConfChangeTransition::{Auto, Explicit};
        use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
        let leaves = voters[self.rng.index(voters.len())];
        if let Some(learner) = learners.first().copied() {
            let is_new = self
                .replicas
                .get(&learner)
                .is_none_or(|r| r.is_behind(&self.checks));
            return if is_new && self.rng.chance(80) {
                // As a controller does, it waits until the learner has caught up.
                None
            } else if self.rng.chance(50) {
                // In its place one leaves, in one step.
                Some((
                    Explicit,
                    vec![single(AddNode, learner), single(RemoveNode, leaves)],
                ))
            } else if voters.len() < VOTERS_MAX {
                Some((Auto, vec![single(AddNode, learner)]))
            } else {
                Some((Auto, vec![single(RemoveNode, learner)]))
            };
        }
        if voters.len() > 2 && (voters.len() >= VOTERS_MAX || self.rng.chance(30)) {
            return Some((Auto, vec![single(RemoveNode, leaves)]));
        }
        let newest = *self.replicas.keys().last()?;
        let unused = (1..=newest)
            .find(|id| !self.ever_members.contains(id) && self.replicas.contains_key(id));
        let id = match unused {
            Some(id) => id,
            None if newest < EVER_MAX => self.create_spare(newest + 1),
            None => return None,
        };
        self.ever_members.insert(id);
        Some((Auto, vec![single(AddLearnerNode, id)]))
    }

    /// An empty replica, which knows who founded the group.
    fn create_spare(&mut self, id: u64) -> u64 {
        let founders: Vec<u64> = (1..=self.options.replicas).collect();
        let replica = Replica::create(id, &founders, self.options.planted, &mut self.rng);
        self.replicas.insert(id, replica);
        self.events.at(self.now, Event::Tick { id });
        id
    }

    /// Those that were members and are none any more are gone for good, once all members know it: until
    /// then they may need them to choose a leader.
    pub(super) fn retire(&mut self) {
        let mut members = self.replicas.iter().filter(|(id, _)| self.is_member(**id));
        if !members.all(|(_, replica)| replica.committed() >= self.members.index) {
            return;
        }
        let gone: Vec<u64> = self
            .replicas
            .keys()
            .copied()
            .filter(|id| self.left.contains(id) && !self.is_member(*id))
            .collect();
        for id in gone {
            self.clients.lost(id);
            self.replicas.remove(&id);
        }
    }
}
