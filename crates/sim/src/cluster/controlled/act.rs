//! What is told of groups, and done to them, as a broker does it.

use tidelog_controller::{MembersChange, Order, Ordered, Report, Seen};
use tidelog_replica::{Group, members_change};

/// What the leader of a group says of it; `None` where the replica does not lead.
pub(super) fn report_of(group: &Group) -> Option<Report> {
    let role = group.role();
    if !role.is_leader || group.log().reader().poisoned().is_some() {
        return None;
    }
    let progress = group.progress();
    let progress = progress
        .iter()
        .map(|member| (member.id, member.is_caught_up, member.lag));
    Report::of_leader(group.id(), role.term, seen(group), progress)
}

/// Does what is asked for; what comes late does nothing, nor does what the group does not take now.
pub(super) fn carry_out(order: &Order, group: &mut Group) {
    let role = group.role();
    let leads_in = role.is_leader.then_some(role.term);
    match order.at(group.id(), leads_in, &seen(group)) {
        Ok(Ordered::Transfer(to)) => group.transfer_leader(to),
        Ok(Ordered::Change(MembersChange {
            voters,
            learners,
            removed,
            is_joint,
        })) => {
            let change = members_change(&voters, &learners, &removed, is_joint);
            group.propose_members(&change).ok();
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
