//! What is told of groups, and done to them, as a broker does it.

use tidelog_controller::{MembersChange, Order, Ordered, Report, Seen};
use tidelog_replica::eraftpb::{ConfChangeTransition, ConfChangeType, ConfChangeV2};
use tidelog_replica::{Group, ReplicaId, single};

/// What the leader of a group says of it; `None` where the replica does not lead.
pub(super) fn report_of(group: &Group) -> Option<Report> {
    let role = group.role();
    if !role.is_leader || group.log().reader().poisoned().is_some() {
        return None;
    }
    let progress = group.progress();
    let caught_up = progress.iter().filter(|member| member.is_caught_up);
    let lag = progress.iter().map(|member| (member.id, member.lag));
    Some(Report {
        at_ms: 0,
        leader: group.id(),
        epoch: u32::try_from(role.term).ok()?,
        members: seen(group),
        caught_up: caught_up.map(|member| member.id).collect(),
        lag: lag.collect(),
    })
}

/// Does what is asked for; what comes late does nothing, nor does what the group does not take now.
pub(super) fn carry_out(order: &Order, group: &mut Group) {
    let role = group.role();
    let leads_in = role.is_leader.then_some(role.term);
    match order.at(group.id(), leads_in, &seen(group)) {
        Ok(Ordered::Transfer(to)) => group.transfer_leader(to),
        Ok(Ordered::Change(change)) => {
            group.propose_members(&in_raft(&change)).ok();
        }
        Err(_late) => {}
    }
}

pub(super) fn seen(group: &Group) -> Seen {
    let members = group.members();
    Seen {
        voters: members.state.voters.clone(),
        voters_outgoing: members.state.voters_outgoing.clone(),
        learners: members.state.learners.clone(),
        index: members.index,
    }
}

fn in_raft(change: &MembersChange) -> ConfChangeV2 {
    let mut raft = ConfChangeV2::default();
    for (kind, ids) in [
        (ConfChangeType::AddNode, &change.voters),
        (ConfChangeType::AddLearnerNode, &change.learners),
        (ConfChangeType::RemoveNode, &change.removed),
    ] {
        let each = |id: &ReplicaId| single(kind, *id);
        raft.changes.extend(ids.iter().map(each));
    }
    if change.is_joint {
        raft.set_transition(ConfChangeTransition::Explicit);
    }
    raft
}
