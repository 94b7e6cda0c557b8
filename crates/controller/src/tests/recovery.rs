//! What goes on when a majority is lost for good.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn key(topic: u8, partition: u32) -> PartitionKey {
    PartitionKey {
        topic: topic_id(topic),
        partition,
    }
}

/// A replica that votes and does not lead.
fn left(replica: ReplicaId, last_term: u64, last_index: u64) -> Left {
    Left {
        replica,
        last_term,
        last_index,
        is_able: true,
        has_majority: false,
        leads: false,
    }
}

/// A majority of those that it knows of is left.
fn whole(left: Left) -> Left {
    Left {
        has_majority: true,
        ..left
    }
}

fn give_up(cluster: &mut Cluster, nodes: &[NodeId]) {
    for node in nodes {
        let command = cluster.decide_give_up(*node).unwrap();
        commit(cluster, command);
    }
}

#[test]
fn only_partitions_without_a_majority_go_on_with_whoever_has_most() {
    let mut cluster = cluster(5, &[]);
    let lists: &[&[NodeId]] = &[&[1, 2, 3], &[3, 4, 5], &[4, 5, 1]];
    create(&mut cluster, "t", 1, lists);
    create(&mut cluster, "wide", 2, &[&[5, 4, 3, 2, 1]]);
    let lost = BTreeSet::from([4, 5]);
    let positions = BTreeMap::from([
        (
            key(1, 0),
            [1, 2, 3].map(|replica| whole(left(replica, 7, 9))).to_vec(),
        ),
        (key(1, 1), vec![left(3, 7, 9)]),
        (key(1, 2), vec![left(1, 6, 50)]),
        (
            key(2, 0),
            [3, 2, 1].map(|replica| whole(left(replica, 7, 9))).to_vec(),
        ),
    ]);
    give_up(&mut cluster, &[4, 5]);
    let recovery = cluster.plan_recovery(&lost, &positions);
    assert!(recovery.stuck.is_empty());
    let found: Vec<_> = recovery
        .partitions
        .iter()
        .map(|one| (one.key.partition, one.keeper, one.others.clone()))
        .collect();
    assert_eq!(found, [(1, 3, vec![]), (2, 1, vec![])]);
    commit(
        &mut cluster,
        ClusterCommand::RecoverPartitions {
            partitions: recovery.partitions.clone(),
        },
    );
    let placement = cluster.placement(topic_id(1), 1).unwrap();
    assert_eq!(
        (&placement.replicas, placement.incarnation()),
        (&vec![3], 2)
    );
    assert_eq!(placement.change, None);
    // What was decided on the state before does not fit any more.
    let again = ClusterCommand::RecoverPartitions {
        partitions: recovery.partitions,
    };
    assert!(cluster.apply(&again).is_err());
    // One whose replica has not gone on is offered again; then it has its majority.
    assert_eq!(cluster.plan_recovery(&lost, &positions).partitions.len(), 2);
    let mut positions = positions;
    for number in [1, 2] {
        let left = positions.get_mut(&key(1, number)).unwrap();
        *left = left.iter().copied().map(whole).collect();
    }
    let again = cluster.plan_recovery(&lost, &positions);
    assert!(again.partitions.is_empty(), "{again:?}");
    // A snapshot has all that.
    let mut folded = Cluster::default();
    for part in cluster.snapshot() {
        commit(&mut folded, part);
    }
    assert_eq!(folded, cluster);
}

#[test]
fn a_later_term_has_more_than_a_longer_log_and_the_others_follow() {
    let mut cluster = cluster(5, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3, 4, 5]]);
    let lost = BTreeSet::from([3, 4, 5]);
    let positions = BTreeMap::from([(key(1, 0), vec![left(1, 6, 90), left(2, 7, 50)])]);
    let recovery = cluster.plan_recovery(&lost, &positions);
    let [recovered] = &recovery.partitions[..] else {
        panic!("{recovery:?}");
    };
    assert_eq!((recovered.keeper, &recovered.others), (2, &vec![1]));
    commit(
        &mut cluster,
        ClusterCommand::RecoverPartitions {
            partitions: recovery.partitions,
        },
    );
    let placement = cluster.placement(topic_id(1), 0).unwrap();
    assert_eq!(placement.replicas, [2]);
    let change = placement.change.as_ref().unwrap();
    assert_eq!((&change.target, change.phase), (&vec![2, 1], Phase::Adding));
    // None of those that were given up ever comes back under its number.
    assert_eq!(placement.next_life(3), 1);
    assert_eq!(placement.next_life(1), 1);
}

#[test]
fn a_learner_that_has_more_than_those_who_vote_goes_on() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let change = cluster.decide_reassign("t", 0, &[1, 2, 4]).unwrap();
    commit(&mut cluster, change);
    let lost = BTreeSet::from([2, 3]);
    let positions = BTreeMap::from([(key(1, 0), vec![left(1, 7, 50), left(4, 7, 60)])]);
    let recovery = cluster.plan_recovery(&lost, &positions);
    assert_eq!(recovery.partitions[0].keeper, 4);
    assert_eq!(recovery.partitions[0].others, [1]);
    // Where it cannot lead, what it has is not given up for that.
    let unable = Left {
        is_able: false,
        ..left(4, 7, 60)
    };
    let positions = BTreeMap::from([(key(1, 0), vec![left(1, 7, 50), unable])]);
    let recovery = cluster.plan_recovery(&lost, &positions);
    assert_eq!(
        (recovery.partitions, recovery.stuck),
        (vec![], vec![key(1, 0)])
    );
}

#[test]
fn what_has_nothing_left_begins_anew_and_what_does_not_serve_is_left_alone() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[3, 4], &[4, 3]]);
    create(&mut cluster, "damaged", 2, &[&[1, 3, 4]]);
    let lost = BTreeSet::from([3, 4]);
    give_up(&mut cluster, &[3, 4]);
    // Broker 1 says nothing of the other topic: it is damaged there.
    let recovery = cluster.plan_recovery(&lost, &BTreeMap::new());
    assert_eq!(recovery.stuck, [key(2, 0)]);
    let keepers: Vec<_> = recovery.partitions.iter().map(|one| one.keeper).collect();
    assert_eq!(keepers, [2, 1], "the load is shared");
    commit(
        &mut cluster,
        ClusterCommand::RecoverPartitions {
            partitions: recovery.partitions,
        },
    );
    let placement = cluster.placement(topic_id(1), 0).unwrap();
    assert_eq!(
        (&placement.replicas, &placement.founders),
        (&vec![2], &vec![2])
    );
}

#[test]
fn what_lost_replicas_gets_as_many_again_when_there_are_brokers() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let lost = BTreeSet::from([2, 3]);
    let positions = BTreeMap::from([(key(1, 0), vec![left(1, 7, 9)])]);
    let recovery = cluster.plan_recovery(&lost, &positions);
    give_up(&mut cluster, &[2, 3]);
    let partitions = recovery.partitions;
    commit(
        &mut cluster,
        ClusterCommand::RecoverPartitions { partitions },
    );
    let members = Seen {
        voters: vec![1],
        index: 20,
        ..Seen::default()
    };
    let report = Report {
        at_ms: 1000,
        leader: 1,
        epoch: 100_006,
        members,
        ..Report::default()
    };
    let heard = |cluster: &Cluster| Observed {
        heard: cluster
            .brokers()
            .map(|one| (one.registration.node, 1000))
            .collect(),
        partitions: [(key(1, 0), report.clone())].into(),
        ..Observed::default()
    };
    let planned = |cluster: &Cluster| plan(cluster, &heard(cluster), &PlanOptions::default(), 1000);
    assert_eq!(planned(&cluster), [], "nobody could take them");
    for node in [4, 5] {
        let register = cluster.decide_register(ID, registration(node)).unwrap();
        commit(&mut cluster, register);
    }
    let steps = planned(&cluster);
    let [Step::Commit(begin @ ClusterCommand::BeginReassignment { target, .. })] = &steps[..]
    else {
        panic!("{steps:?}");
    };
    assert_eq!(target, &[1, 4, 5]);
    commit(&mut cluster, begin.clone());
    for (phase, members_index) in [(Phase::Joint, 20), (Phase::Leaving, 22)] {
        let key = key(1, 0);
        commit(
            &mut cluster,
            ClusterCommand::AdvanceReassignment {
                key,
                phase,
                members_index,
            },
        );
    }
    assert_eq!(cluster.placement(topic_id(1), 0).unwrap().lacking, 2);
    commit(
        &mut cluster,
        ClusterCommand::FinishReassignment {
            key: key(1, 0),
            is_cancelled: false,
            members_index: 23,
        },
    );
    assert_eq!(cluster.placement(topic_id(1), 0).unwrap().lacking, 0);
}

#[test]
fn one_that_leads_needs_nothing() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let lost = BTreeSet::from([2, 3]);
    let leads = Left {
        leads: true,
        ..left(1, 7, 9)
    };
    let positions = BTreeMap::from([(key(1, 0), vec![leads])]);
    assert!(
        cluster
            .plan_recovery(&lost, &positions)
            .partitions
            .is_empty()
    );
}

#[test]
fn a_broker_that_was_given_up_comes_back_with_another_directory_only() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    give_up(&mut cluster, &[3]);
    assert!(cluster.was_removed(3) && cluster.is_lost(3));
    assert_eq!(
        cluster.decide_register(ID, registration(3)),
        Err(BrokerError::Removed { node: 3 })
    );
    let other = Registration {
        directory: directory(3, 1),
        ..registration(3)
    };
    let register = cluster.decide_register(ID, other).unwrap();
    commit(&mut cluster, register);
    assert_eq!(cluster.broker(3).unwrap().generation, 1);
    assert!(cluster.is_lost(3), "what it had is lost");
}
