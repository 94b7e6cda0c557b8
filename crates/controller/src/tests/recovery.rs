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
        votes: true,
        leads: false,
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
        (key(1, 0), vec![left(1, 7, 9), left(2, 7, 9), left(3, 7, 9)]),
        (key(1, 1), vec![left(3, 7, 9)]),
        (key(1, 2), vec![left(1, 6, 50)]),
        (key(2, 0), vec![left(3, 7, 9), left(2, 7, 9), left(1, 7, 9)]),
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
    assert!(
        cluster
            .plan_recovery(&lost, &positions)
            .partitions
            .is_empty(),
        "what has gone on has its majority"
    );
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
fn of_those_that_vote_one_goes_on_before_a_learner_that_has_more() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let change = cluster.decide_reassign("t", 0, &[1, 2, 4]).unwrap();
    commit(&mut cluster, change);
    let lost = BTreeSet::from([2, 3]);
    let learner = Left {
        votes: false,
        ..left(4, 7, 60)
    };
    let positions = BTreeMap::from([(key(1, 0), vec![left(1, 7, 50), learner])]);
    let recovery = cluster.plan_recovery(&lost, &positions);
    assert_eq!(recovery.partitions[0].keeper, 1);
    assert_eq!(recovery.partitions[0].others, [4]);
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
