//! What the controller knows of groups, and asks their leaders for.

use tidelog_controller::{Action, Order, PartitionKey, Report, Seen};
use tidelog_log::state::GroupKey;
use tidelog_record::PartitionId;
use tidelog_replica::eraftpb::{ConfChangeTransition, ConfChangeType, ConfChangeV2};
use tidelog_replica::{Group, ReplicaId, single};

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
    let members = group.members();
    let progress = group.progress();
    let caught_up = progress.iter().filter(|member| member.is_caught_up);
    Some(Report {
        at_ms: 0,
        leader: group.id(),
        epoch: u32::try_from(role.term).ok()?,
        members: Seen {
            voters: members.state.voters.clone(),
            voters_outgoing: members.state.voters_outgoing.clone(),
            learners: members.state.learners.clone(),
            index: members.index,
        },
        caught_up: caught_up.map(|member| member.id).collect(),
        lag: progress
            .iter()
            .map(|member| (member.id, member.lag))
            .collect(),
    })
}

/// Does what is asked for, or says why not. What comes late does nothing.
pub(crate) fn carry_out(order: &Order, group: &mut Group) -> Result<(), String> {
    let role = group.role();
    let leads = role.is_leader && role.term == u64::from(order.epoch);
    if !leads || group.id() != order.leader {
        return Err("another leadership is meant".to_owned());
    }
    if let Action::TransferLeadership(to) = &order.action {
        group.transfer_leader(*to);
        return Ok(());
    }
    let members = group.members();
    if members.index != order.members_index {
        return Err(format!(
            "the members of index {} are meant, and those of {} are there",
            order.members_index, members.index
        ));
    }
    let change = change(order, &members.state.voters, &members.state.learners)?;
    group.propose_members(&change).map_err(|e| e.to_string())
}

fn change(
    order: &Order,
    voters: &[ReplicaId],
    learners: &[ReplicaId],
) -> Result<ConfChangeV2, String> {
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    let mut change = ConfChangeV2::default();
    match &order.action {
        Action::AddLearner(id) if voters.contains(id) || learners.contains(id) => {
            return Err(format!("replica {id} is there already"));
        }
        Action::AddLearner(id) => change.changes.push(single(AddLearnerNode, *id)),
        Action::RemoveLearner(id) if !learners.contains(id) => {
            return Err(format!("replica {id} is no learner"));
        }
        Action::RemoveLearner(id) => change.changes.push(single(RemoveNode, *id)),
        Action::EnterJoint(target) => {
            let added = target.iter().filter(|id| !voters.contains(id));
            let removed = voters.iter().filter(|id| !target.contains(id));
            let added = added.map(|id| single(AddNode, *id));
            change.changes = added
                .chain(removed.map(|id| single(RemoveNode, *id)))
                .collect();
            change.set_transition(ConfChangeTransition::Explicit);
        }
        // The empty change leaves the joint configuration.
        Action::LeaveJoint => {}
        Action::ConfirmMembers => change.changes.push(single(AddNode, order.leader)),
        Action::TransferLeadership(_) => return Err("that changes no members".to_owned()),
    }
    Ok(change)
}
