//! What the leader of a group makes of what it is asked for.

use crate::ids::ReplicaId;
use crate::plan::{Action, Order, Seen};

/// What the leader of a group is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// Hand the leadership over to this replica.
    Transfer(ReplicaId),
    /// Propose other members.
    Change(MembersChange),
}

/// A change of the members of a group. The empty one leaves a joint configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembersChange {
    /// These vote afterwards.
    pub voters: Vec<ReplicaId>,
    /// These learn afterwards.
    pub learners: Vec<ReplicaId>,
    /// These are members no more.
    pub removed: Vec<ReplicaId>,
    /// By a joint configuration, which is left only when that is asked for.
    pub is_joint: bool,
}

impl Order {
    /// What the replica `id` is to do, which leads in the epoch `leads_in` if it leads, and has these members;
    /// or why it is to do nothing: what comes late does nothing.
    ///
    /// # Errors
    /// For people.
    pub fn at(
        &self,
        id: ReplicaId,
        leads_in: Option<u64>,
        members: &Seen,
    ) -> Result<Ordered, String> {
        if leads_in != Some(u64::from(self.epoch)) || id != self.leader {
            return Err("another leadership is meant".to_owned());
        }
        if let Action::TransferLeadership(to) = &self.action {
            return Ok(Ordered::Transfer(*to));
        }
        if members.index != self.members_index {
            return Err(format!(
                "the members of index {} are meant, and those of {} are there",
                self.members_index, members.index
            ));
        }
        self.change(&members.voters, &members.learners)
            .map(Ordered::Change)
    }

    fn change(
        &self,
        voters: &[ReplicaId],
        learners: &[ReplicaId],
    ) -> Result<MembersChange, String> {
        let mut change = MembersChange::default();
        match &self.action {
            Action::AddLearner(id) if voters.contains(id) || learners.contains(id) => {
                return Err(format!("replica {id} is there already"));
            }
            Action::AddLearner(id) => change.learners.push(*id),
            Action::RemoveLearner(id) if !learners.contains(id) => {
                return Err(format!("replica {id} is no learner"));
            }
            Action::RemoveLearner(id) => change.removed.push(*id),
            Action::EnterJoint(target) => {
                let added = target.iter().filter(|id| !voters.contains(id));
                let removed = voters.iter().filter(|id| !target.contains(id));
                change.voters = added.copied().collect();
                change.removed = removed.copied().collect();
                change.is_joint = true;
            }
            Action::LeaveJoint => {}
            Action::ConfirmMembers => change.voters.push(self.leader),
            Action::TransferLeadership(_) => return Err("that changes no members".to_owned()),
        }
        Ok(change)
    }
}
