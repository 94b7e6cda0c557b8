//! What the controller knows of groups, and asks their leaders for.

use tidelog_controller::{MembersChange, Order, Ordered, PartitionKey, Report, Seen};
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
    let progress = group.progress();
    let caught_up = progress.iter().filter(|member| member.is_caught_up);
    Some(Report {
        at_ms: 0,
        leader: group.id(),
        epoch: u32::try_from(role.term).ok()?,
        members: seen(group),
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
    let leads_in = role.is_leader.then_some(role.term);
    match order.at(group.id(), leads_in, &seen(group))? {
        Ordered::Transfer(to) => {
            group.transfer_leader(to);
            Ok(())
        }
        Ordered::Change(change) => group
            .propose_members(&in_raft(&change))
            .map_err(|e| e.to_string()),
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

fn in_raft(change: &MembersChange) -> ConfChangeV2 {
    let each = |kind: ConfChangeType, ids: &[ReplicaId]| {
        let singles = ids.iter().map(|id| single(kind, *id));
        singles.collect::<Vec<_>>()
    };
    let mut raft = ConfChangeV2 {
        changes: [
            each(ConfChangeType::AddNode, &change.voters),
            each(ConfChangeType::AddLearnerNode, &change.learners),
            each(ConfChangeType::RemoveNode, &change.removed),
        ]
        .concat(),
        ..ConfChangeV2::default()
    };
    if change.is_joint {
        raft.set_transition(ConfChangeTransition::Explicit);
    }
    raft
}
