//! What the controller knows of groups, and asks their leaders for.

use tidelog_controller::{MembersChange, Order, Ordered, PartitionKey, Report, Seen};
use tidelog_log::state::GroupKey;
use tidelog_record::PartitionId;
use tidelog_replica::{Group, members_change};

/// A partition, as the controller names it.
pub(crate) fn partition_key(key: GroupKey) -> PartitionKey {
    PartitionKey {
        topic: key.topic_id,
        partition: key.partition.get(),
    }
}

/// A partition, as its replicas name it.
pub(crate) fn group_key(key: PartitionKey) -> GroupKey {
    GroupKey {
        topic_id: key.topic,
        partition: PartitionId::new(key.partition),
    }
}

/// What the leader of a group says of it; `None` where the replica does not lead.
pub(crate) fn report_of(group: &Group) -> Option<Report> {
    let role = group.role();
    // One that has failed leads nobody any more.
    if !role.is_leader || group.log().reader().poisoned().is_some() {
        return None;
    }
    let progress = group.progress();
    let progress = progress
        .iter()
        .map(|member| (member.id, member.is_caught_up, member.lag));
    Report::of_leader(group.id(), role.term, seen(group), progress)
}

/// Does what is asked for, or says why not. What comes late does nothing.
pub(crate) fn carry_out(order: &Order, group: &mut Group) -> Result<(), String> {
    let role = group.role();
    let leads_in = role.is_leader.then_some(role.term);
    match order.at(group.id(), leads_in, &seen(group))? {
        Ordered::Transfer(to) => {
            group.transfer_leader(to);
            Ok(())
        }
        Ordered::Change(MembersChange {
            voters,
            learners,
            removed,
            is_joint,
        }) => {
            let change = members_change(&voters, &learners, &removed, is_joint);
            let proposed = group.propose_members(&change);
            proposed.map_err(|e| e.to_string())
        }
    }
}

fn seen(group: &Group) -> Seen {
    let members = group.members();
    Seen {
        voters: members.state.voters.clone(),
        voters_outgoing: members.state.voters_outgoing.clone(),
        learners: members.state.learners.clone(),
        index: members.index,
    }
}
