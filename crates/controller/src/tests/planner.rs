//! What is planned where the model does not get to by chance.

use std::collections::BTreeMap;

use super::*;

const KEY: PartitionKey = PartitionKey {
    topic: TopicId::from_bytes([1; 16]),
    partition: 0,
};

/// All brokers were heard just now, and replica 1 leads these.
fn seen(cluster: &Cluster, voters: &[ReplicaId], learners: &[ReplicaId], index: u64) -> Observed {
    let nodes = cluster.brokers().map(|broker| broker.registration.node);
    let report = Report {
        leader: voters[0],
        epoch: 3,
        members: Seen {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            index,
            ..Seen::default()
        },
        caught_up: voters.iter().chain(learners).copied().collect(),
        ..Report::default()
    };
    Observed {
        heard: nodes.map(|node| (node, 0)).collect(),
        partitions: BTreeMap::from([(KEY, report)]),
        ..Observed::default()
    }
}

fn planned(cluster: &Cluster, observed: &Observed) -> Vec<Step> {
    plan(cluster, observed, &PlanOptions::default(), 0)
}

fn action(steps: &[Step]) -> Option<&Action> {
    match steps {
        [Step::Act(order)] => Some(&order.action),
        _ => None,
    }
}

fn begun(nodes: &[NodeId], is_automatic: bool) -> Cluster {
    let mut cluster = cluster(5, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let begin = ClusterCommand::BeginReassignment {
        key: KEY,
        target: nodes.iter().map(|node| replica_of(*node, 0)).collect(),
        is_automatic,
    };
    commit(&mut cluster, begin);
    cluster
}

#[test]
fn a_new_controller_waits_before_it_fences() {
    let cluster = cluster(3, &[]);
    let observed = Observed {
        since_ms: 1_000_000,
        ..Observed::default()
    };
    let options = PlanOptions::default();
    let at = |now| plan(&cluster, &observed, &options, now).len();
    assert_eq!(at(1_000_000 + options.session_ms), 0);
    assert_eq!(at(1_000_001 + options.session_ms), 3);
}

#[test]
fn the_joint_configuration_is_entered_from_the_members_that_were_committed() {
    let mut cluster = begun(&[1, 2], false);
    let advance = ClusterCommand::AdvanceReassignment {
        key: KEY,
        phase: Phase::Joint,
        members_index: 7,
    };
    let observed = seen(&cluster, &[1, 2, 3], &[], 7);
    assert_eq!(
        planned(&cluster, &observed),
        [Step::Commit(advance.clone())]
    );
    commit(&mut cluster, advance);
    let enter = Action::EnterJoint(vec![1, 2]);
    assert_eq!(action(&planned(&cluster, &observed)), Some(&enter));

    // A learner came and went meanwhile: first the new index is made known.
    let observed = seen(&cluster, &[1, 2, 3], &[], 9);
    let advance = ClusterCommand::AdvanceReassignment {
        key: KEY,
        phase: Phase::Joint,
        members_index: 9,
    };
    assert_eq!(
        planned(&cluster, &observed),
        [Step::Commit(advance.clone())]
    );
    commit(&mut cluster, advance);
    assert_eq!(action(&planned(&cluster, &observed)), Some(&enter));

    // Back again: only once others were seen than those that it may be entered from.
    let cancel = cluster.decide_cancel("t", 0).unwrap();
    commit(&mut cluster, cancel);
    let steps = planned(&cluster, &observed);
    assert_eq!(action(&steps), Some(&Action::ConfirmMembers));
    let steps = planned(&cluster, &seen(&cluster, &[1, 2, 3], &[], 10));
    let [Step::Commit(finish)] = &steps[..] else {
        panic!("{steps:?}");
    };
    commit(&mut cluster, finish.clone());
    assert_eq!(cluster.placement(KEY.topic, 0).unwrap().replicas, [1, 2, 3]);
}

#[test]
fn a_target_that_anybody_chose_is_given_up_when_it_is_away() {
    for (is_automatic, expected) in [(true, true), (false, false)] {
        let mut cluster = begun(&[4, 2, 3], is_automatic);
        fence(&mut cluster, 4, true);
        let mut observed = seen(&cluster, &[1, 2, 3], &[], 1);
        observed.heard.remove(&4);
        let options = PlanOptions::default();
        let steps = plan(&cluster, &observed, &options, 0);
        let cancel = Step::Commit(ClusterCommand::CancelReassignment { key: KEY });
        assert_eq!(steps.contains(&cancel), expected, "{steps:?}");
    }
}

#[test]
fn a_replaced_broker_gets_its_replicas_back_when_it_is_there() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    fence(&mut cluster, 2, true);
    let replace = cluster.decide_replace(2, directory(2, 1)).unwrap();
    commit(&mut cluster, replace);
    let mut observed = seen(&cluster, &[1, 2, 3], &[], 1);
    observed.heard.remove(&2);
    assert_eq!(planned(&cluster, &observed), []);
    let back = Registration {
        directory: directory(2, 1),
        ..registration(2)
    };
    let register = cluster.decide_register(ID, back).unwrap();
    commit(&mut cluster, register);
    let begin = ClusterCommand::BeginReassignment {
        key: KEY,
        target: vec![1, replica_of(2, 1), 3],
        is_automatic: true,
    };
    assert_eq!(planned(&cluster, &observed), [Step::Commit(begin)]);
}

#[test]
fn only_so_much_is_begun_at_a_time() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3][..]; 20]);
    let drain = cluster.decide_drain(1).unwrap();
    commit(&mut cluster, drain);
    let mut observed = seen(&cluster, &[2, 1, 3], &[], 1);
    let report = observed.partitions[&KEY].clone();
    for partition in 0..20 {
        let key = PartitionKey { partition, ..KEY };
        observed.partitions.insert(key, report.clone());
    }
    for _ in 0..3 {
        for step in planned(&cluster, &observed) {
            if let Step::Commit(command) = step {
                commit(&mut cluster, command);
            }
        }
        let changes = cluster
            .placements()
            .filter(|(_, placement)| placement.change.is_some());
        assert_eq!(changes.count(), PlanOptions::default().reassignments_max);
    }
}

#[test]
fn the_preferred_replica_leads_once_it_is_caught_up() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let mut observed = seen(&cluster, &[2, 1, 3], &[], 1);
    let steps = planned(&cluster, &observed);
    assert_eq!(action(&steps), Some(&Action::TransferLeadership(1)));
    let report = observed.partitions.get_mut(&KEY).unwrap();
    report.caught_up.remove(&1);
    assert_eq!(planned(&cluster, &observed), []);
}

/// As it is where a disk is full: with all of them full nothing goes to and fro.
#[test]
fn a_broker_that_is_to_lead_nothing_leads_only_what_no_other_one_can() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let mut observed = seen(&cluster, &[1, 2, 3], &[], 1);
    observed.resigning = [1, 2].map(|node| (node, Resigning::NoSpace)).into();
    let steps = planned(&cluster, &observed);
    assert_eq!(action(&steps), Some(&Action::TransferLeadership(3)));
    observed.resigning.insert(3, Resigning::Stopping);
    assert_eq!(planned(&cluster, &observed), []);
    let mut observed = seen(&cluster, &[3, 1, 2], &[], 1);
    observed.resigning = [(1, Resigning::NoSpace)].into();
    assert_eq!(planned(&cluster, &observed), []);
}

#[test]
fn a_partition_that_moves_altogether_keeps_its_leader_for_one_round_if_that_is_heard() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1]]);
    let begin = cluster.decide_reassign("t", 0, &[4]).unwrap();
    commit(&mut cluster, begin);
    let mut observed = seen(&cluster, &[1], &[4], 2);
    let [Step::Commit(advance)] = &planned(&cluster, &observed)[..] else {
        panic!("it is caught up");
    };
    commit(&mut cluster, advance.clone());
    let steps = planned(&cluster, &observed);
    assert_eq!(action(&steps), Some(&Action::EnterJoint(vec![4, 1])));
    fence(&mut cluster, 1, true);
    observed.heard.remove(&1);
    let options = PlanOptions::default();
    observed.since_ms = 0;
    let steps = plan(&cluster, &observed, &options, 0);
    assert_eq!(steps, []);
}
