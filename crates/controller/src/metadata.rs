//! Who holds the metadata, and who votes on it.
//!
//! Every broker has a replica of the metadata log, since every broker folds it. Some of them vote: those
//! that did before stay, as long as they are not removed and have not lost their disk, and are not the one that is
//! draining of an even number to which nobody can be added; there is an odd number of them, up to [`VOTERS_MAX`], as
//! far as there are brokers. Others are learners.
//!
//! Unlike that of a partition, this change is not written down before it is made: the members that the group
//! has, and the brokers that are registered, say what is lacking.

use crate::cluster::{Broker, Cluster};
use crate::ids::{ReplicaId, node_of, replica_of};
use crate::plan::{Action, Report};

/// The most brokers that vote on the metadata: one more makes each decision slower.
const VOTERS_MAX: usize = 5;

/// What the leader of the metadata group is to do next about its members, if anything. `report` is what it
/// sees of them; all replicas in it that are not lost are counted on.
pub fn plan_metadata(cluster: &Cluster, report: &Report) -> Option<Action> {
    cluster.id()?;
    let members = &report.members;
    if members.is_joint() {
        let stays = members.voters.contains(&report.leader);
        return if stays {
            Some(Action::LeaveJoint)
        } else {
            best(cluster, &members.voters, report).map(Action::TransferLeadership)
        };
    }
    let registered: Vec<ReplicaId> = cluster.brokers().map(replica_at).collect();
    if !registered.contains(&report.leader) {
        // One that has not registered yet knows of nobody who is gone.
        let must_go = cluster.was_removed(node_of(report.leader));
        let heir = must_go.then(|| best(cluster, &members.voters, report));
        return heir.flatten().map(Action::TransferLeadership);
    }
    if let Some(gone) = members
        .learners
        .iter()
        .find(|learner| !registered.contains(learner))
    {
        return Some(Action::RemoveLearner(*gone));
    }
    let is_missing = |replica: &&ReplicaId| {
        let is_member = members.voters.contains(replica) || members.learners.contains(replica);
        !is_member && cluster.is_live(**replica)
    };
    if let Some(missing) = registered.iter().find(is_missing) {
        return Some(Action::AddLearner(*missing));
    }
    let target = voters(cluster, report, &registered);
    if target.len() == members.voters.len()
        && target
            .iter()
            .all(|replica| members.voters.contains(replica))
    {
        return None;
    }
    let able = target
        .iter()
        .filter(|replica| is_able(cluster, **replica, report));
    if able.count() * 2 <= target.len() {
        return None;
    }
    if target.contains(&report.leader) {
        Some(Action::EnterJoint(target))
    } else {
        best(cluster, &target, report).map(Action::TransferLeadership)
    }
}

/// The replica of the metadata at a broker: it has one for each disk.
fn replica_at(broker: &Broker) -> ReplicaId {
    replica_of(broker.registration.node, broker.generation)
}

fn is_able(cluster: &Cluster, replica: ReplicaId, report: &Report) -> bool {
    report.caught_up.contains(&replica) && cluster.is_live(replica)
}

/// Those of these that can lead: the one that lacks the least.
fn best(cluster: &Cluster, replicas: &[ReplicaId], report: &Report) -> Option<ReplicaId> {
    let able = replicas.iter().copied().filter(|replica| {
        *replica != report.leader
            && report.members.voters.contains(replica)
            && is_able(cluster, *replica, report)
    });
    able.min_by_key(|replica| report.lag.get(replica).copied().unwrap_or(u64::MAX))
}

fn voters(cluster: &Cluster, report: &Report, registered: &[ReplicaId]) -> Vec<ReplicaId> {
    let members = &report.members;
    // A founder that was not seen yet is not gone.
    let is_awaited = |voter: &ReplicaId| {
        let node = node_of(*voter);
        cluster.broker(node).is_none() && !cluster.was_removed(node)
    };
    let stays = |voter: &&ReplicaId| registered.contains(voter) || is_awaited(voter);
    let mut target: Vec<ReplicaId> = members.voters.iter().filter(stays).copied().collect();
    let is_draining = |replica: &ReplicaId| {
        let broker = cluster.broker(node_of(*replica));
        broker.is_some_and(|broker| broker.is_draining)
    };
    let candidates = members.learners.iter().copied();
    let candidates =
        candidates.filter(|learner| is_able(cluster, *learner, report) && !is_draining(learner));
    // One that is draining will not make an even number odd.
    let is_other = |replica: &&ReplicaId| !target.contains(replica) && !is_draining(replica);
    let others = registered.iter().filter(is_other).count();
    let known = (target.len() + others).min(VOTERS_MAX);
    let wanted = known - (known + 1) % 2;
    let stay = target.len();
    for candidate in candidates {
        if target.len() >= wanted {
            break;
        }
        target.push(candidate);
    }
    if target.len().is_multiple_of(2) && target.len() > stay {
        // One more than an odd number may be lost no sooner, and each decision needs one more: it waits until
        // there are two.
        target.pop();
    }
    if target.len().is_multiple_of(2)
        && others == 0
        && let Some(at) = target.iter().position(is_draining)
    {
        // While it is listened to: the other of two could not do without its vote once it was removed. Where a
        // third may come, it stays until then.
        target.remove(at);
    }
    target
}
