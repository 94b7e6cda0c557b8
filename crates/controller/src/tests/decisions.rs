//! What is decided, and what is refused in which words.

use super::*;

fn key(n: u8, partition: u32) -> PartitionKey {
    PartitionKey {
        topic: topic_id(n),
        partition,
    }
}

fn replicas(cluster: &Cluster, n: u8, partition: u32) -> Vec<ReplicaId> {
    cluster
        .placement(topic_id(n), partition)
        .unwrap()
        .replicas
        .clone()
}

/// Takes a change of replicas to its end.
fn complete(cluster: &mut Cluster, key: PartitionKey) {
    let members_index = cluster
        .placement(key.topic, key.partition)
        .unwrap()
        .members_index;
    for phase in [Phase::Joint, Phase::Leaving] {
        commit(
            cluster,
            ClusterCommand::AdvanceReassignment {
                key,
                phase,
                members_index,
            },
        );
    }
    commit(
        cluster,
        ClusterCommand::FinishReassignment {
            key,
            is_cancelled: false,
            members_index,
        },
    );
}

#[test]
fn there_are_no_more_brokers_than_there_may_be() {
    let most = u32::try_from(BROKERS_MAX).unwrap();
    let mut cluster = cluster(most, &[]);
    let refused = cluster.decide_register(ID, registration(most + 1));
    assert_eq!(refused.unwrap_err(), BrokerError::TooMany);
    // Those that are known come back, and one that is gone for good makes room.
    cluster.decide_register(ID, registration(most)).unwrap();
    let gone = cluster.decide_remove(1).unwrap();
    commit(&mut cluster, gone);
    cluster.decide_register(ID, registration(most + 1)).unwrap();
}

#[test]
fn brokers_are_registered_with_their_directories() {
    let mut cluster = cluster(2, &[]);
    let again = cluster.decide_register(ID, registration(1)).unwrap();
    assert!(cluster.is_current(1, 1));
    commit(&mut cluster, again);
    assert!(!cluster.is_current(1, 1) && cluster.is_current(1, 3));

    let refused = |registration| cluster.decide_register(ID, registration).unwrap_err();
    let wiped = Registration {
        directory: directory(1, 1),
        ..registration(1)
    };
    assert!(
        refused(wiped)
            .to_string()
            .contains("run `tidelog cluster replace 1 --directory ")
    );
    let copied = Registration {
        directory: directory(1, 0),
        ..registration(3)
    };
    let e = refused(copied);
    assert!(
        matches!(
            e,
            BrokerError::DirectoryTaken {
                owner: 1,
                node: 3,
                ..
            }
        ),
        "{e}"
    );
    let older = Registration {
        level_max: 0,
        ..registration(3)
    };
    assert_eq!(
        refused(older).to_string(),
        "the cluster is at feature level 1; node 3 supports 0 to 0: run another version there"
    );
    assert_eq!(refused(registration(0)), BrokerError::NodeZero);
    let other = ClusterId::from_bytes([9; 16]);
    let e = cluster.decide_register(other, registration(3)).unwrap_err();
    assert!(matches!(e, BrokerError::OtherCluster { .. }), "{e}");
    assert_eq!(
        cluster.decide_found(other),
        Err(BrokerError::Founded { id: ID })
    );
    let e = Cluster::default()
        .decide_register(ID, registration(1))
        .unwrap_err();
    assert_eq!(e, BrokerError::NotFounded);
}

#[test]
fn the_level_is_raised_when_all_support_it() {
    let mut cluster = cluster(2, &[]);
    let older = Registration {
        level_max: 1,
        ..registration(3)
    };
    let register = cluster.decide_register(ID, older).unwrap();
    commit(&mut cluster, register);
    let e = cluster.decide_raise_level(2).unwrap_err();
    assert!(
        matches!(
            e,
            BrokerError::Level {
                node: 3,
                level: 2,
                ..
            }
        ),
        "{e}"
    );
    assert!(
        cluster
            .apply(&ClusterCommand::RaiseFeatureLevel { level: 2 })
            .is_err()
    );
    for asked in [0, 1, 3] {
        let e = cluster.decide_raise_level(asked).unwrap_err();
        assert!(
            matches!(e, BrokerError::CannotRaise { level: 1, .. }),
            "{e}"
        );
    }
    let upgraded = cluster.decide_register(ID, registration(3)).unwrap();
    commit(&mut cluster, upgraded);
    let raise = cluster.decide_raise_level(2).unwrap();
    commit(&mut cluster, raise);
    assert_eq!(cluster.level(), 2);
    let back = Registration {
        level_max: 1,
        ..registration(3)
    };
    assert!(cluster.decide_register(ID, back).is_err());
}

#[test]
fn a_lost_disk_is_replaced_and_its_replicas_never_come_back() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    // The replica that node 1 gets when it had one already is another one.
    for nodes in [[4, 2, 3], [1, 2, 3]] {
        let change = cluster.decide_reassign("t", 0, &nodes).unwrap();
        commit(&mut cluster, change);
        complete(&mut cluster, key(1, 0));
    }
    assert_eq!(replicas(&cluster, 1, 0), [replica_of(1, 1), 2, 3]);

    let new = directory(1, 1);
    assert_eq!(
        cluster.decide_replace(1, new),
        Err(BrokerError::Running { node: 1 })
    );
    fence(&mut cluster, 1, true);
    let same = cluster.decide_replace(1, directory(1, 0)).unwrap_err();
    assert!(matches!(same, BrokerError::DirectoryTaken { .. }), "{same}");
    let taken = cluster.decide_replace(1, directory(2, 0)).unwrap_err();
    assert!(
        matches!(taken, BrokerError::DirectoryTaken { owner: 2, .. }),
        "{taken}"
    );
    let epoch = cluster.broker(1).unwrap().epoch;
    let replace = cluster.decide_replace(1, new).unwrap();
    commit(&mut cluster, replace.clone());
    assert!(cluster.apply(&replace).is_err());
    assert!(!cluster.is_current(1, epoch));
    assert_eq!(cluster.broker(1).unwrap().generation, 2, "above all lives");
    assert!(cluster.is_lost(replica_of(1, 1)) && !cluster.is_lost(2));
    // The old disk is not welcome any more, the new one is.
    assert!(cluster.decide_register(ID, registration(1)).is_err());
    let registration = Registration {
        directory: new,
        ..registration(1)
    };
    let register = cluster.decide_register(ID, registration).unwrap();
    commit(&mut cluster, register);
    let change = cluster.decide_reassign("t", 0, &[1, 2, 3]).unwrap();
    let ClusterCommand::BeginReassignment { target, .. } = &change else {
        panic!("{change:?}");
    };
    assert_eq!(target, &[replica_of(1, 2), 2, 3]);
}

#[test]
fn it_is_told_where_a_broker_that_drains_would_have_its_replicas_go() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3], &[2, 3, 4]]);
    create(&mut cluster, "u", 2, &[&[1]]);
    create(&mut cluster, "v", 3, &[&[1, 2, 3, 4]]);
    let before = cluster.clone();
    let planned = |cluster: &Cluster, node| {
        let moves = cluster.planned_drain(node).unwrap().into_iter();
        let told = moves.map(|one| (one.key, one.nodes, one.target));
        told.collect::<Vec<_>>()
    };
    assert_eq!(
        planned(&cluster, 1),
        [
            (key(1, 0), vec![1, 2, 3], Some(vec![4, 2, 3])),
            // All have as much by then.
            (key(2, 0), vec![1], Some(vec![2])),
            (key(3, 0), vec![1, 2, 3, 4], None),
        ]
    );
    assert_eq!(cluster, before, "nothing is decided");
    assert!(matches!(
        cluster.decide_drain(1),
        Err(BrokerError::NowhereToGo { .. })
    ));
    let unknown = BrokerError::NotFound { node: 9 };
    assert_eq!(cluster.planned_drain(9), Err(unknown));
    // What is on its way to the broker would go on; what leaves it already is not told.
    let change = cluster.decide_reassign("t", 0, &[2, 3, 4]).unwrap();
    commit(&mut cluster, change);
    let change = cluster.decide_reassign("t", 1, &[1, 3, 4]).unwrap();
    commit(&mut cluster, change);
    let told = planned(&cluster, 1);
    assert_eq!(told[0], (key(1, 1), vec![1, 3, 4], Some(vec![2, 3, 4])));
    // Draining for good, all goes where it was told.
    let mut cluster = before;
    let change = cluster.decide_reassign("v", 0, &[2, 3, 4]).unwrap();
    commit(&mut cluster, change);
    complete(&mut cluster, key(3, 0));
    assert!(
        planned(&cluster, 1)
            .iter()
            .all(|(.., target)| target.is_some())
    );
    cluster.decide_drain(1).unwrap();
}

#[test]
fn brokers_are_drained_and_removed() {
    let mut cluster = cluster(4, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3]]);
    let e = cluster.decide_remove(1).unwrap_err();
    assert_eq!(e.to_string(), "node 1 has 1 replicas still: drain it first");
    assert!(
        cluster
            .apply(&ClusterCommand::UnregisterBroker {
                node: 1,
                is_lost: false,
            })
            .is_err()
    );
    assert_eq!(
        cluster.decide_remove(9),
        Err(BrokerError::NotFound { node: 9 })
    );
    assert!(matches!(
        cluster.decide_undrain(1),
        Err(BrokerError::AlreadySo { .. })
    ));
    let drain = cluster.decide_drain(1).unwrap();
    commit(&mut cluster, drain);
    assert!(matches!(
        cluster.decide_drain(1),
        Err(BrokerError::AlreadySo { .. })
    ));
    assert_eq!(
        cluster.decide_drain(2).unwrap_err().to_string(),
        "node 2 has partitions that 3 brokers are to have, and there are 2 others that could take them"
    );
    let change = cluster.decide_move_away("t", 0, 1).unwrap();
    commit(&mut cluster, change);
    complete(&mut cluster, key(1, 0));
    assert_eq!(replicas(&cluster, 1, 0), [4, 2, 3]);
    let remove = cluster.decide_remove(1).unwrap();
    commit(&mut cluster, remove);
    assert!(cluster.broker(1).is_none());
    assert!(cluster.was_removed(1));
    assert_eq!(
        cluster.decide_register(ID, registration(1)),
        Err(BrokerError::Removed { node: 1 })
    );
    // Another broker of that number is given another replica.
    let another = Registration {
        directory: directory(1, 1),
        ..registration(1)
    };
    let register = cluster.decide_register(ID, another).unwrap();
    commit(&mut cluster, register);
    assert!(!cluster.was_removed(1));
    assert_eq!(cluster.broker(1).unwrap().generation, 1);
    let change = cluster.decide_reassign("t", 0, &[1, 2, 3]).unwrap();
    commit(&mut cluster, change);
    let placement = cluster.placement(topic_id(1), 0).unwrap();
    assert_eq!(placement.added().collect::<Vec<_>>(), [replica_of(1, 1)]);
}

#[test]
fn replication_is_what_the_brokers_allow() {
    let create = |cluster: &Cluster, factor, assignment: &[&[NodeId]]| {
        let replication = Replication {
            factor,
            assignment: assignment.iter().map(|nodes| nodes.to_vec()).collect(),
        };
        cluster.decide_create_topic(&new_topic("t", 2), &replication, topic_id(1))
    };
    let factor = |command| match command {
        Ok(ClusterCommand::CreateTopic {
            replication_factor, ..
        }) => replication_factor,
        other => panic!("{other:?}"),
    };
    assert_eq!(factor(create(&cluster(2, &[]), None, &[])), 1);
    let mut three = cluster(3, &[]);
    assert_eq!(factor(create(&three, None, &[])), 3);
    assert_eq!(factor(create(&three, None, &[&[1, 2], &[2, 3]])), 2);
    fence(&mut three, 3, true);
    assert!(matches!(
        create(&three, None, &[]),
        Err(PlaceError::TooFewBrokers { factor: 3, .. })
    ));
    let says = |factor, assignment| create(&three, factor, assignment).unwrap_err().to_string();
    assert_eq!(
        says(Some(3), &[]),
        "replication factor 3 needs 3 brokers; 2 of 3 are available"
    );
    assert_eq!(says(Some(0), &[]), "a partition has 1 to 7 replicas, not 0");
    assert_eq!(says(Some(8), &[]), "a partition has 1 to 7 replicas, not 8");
    assert_eq!(
        says(None, &[&[1, 2]]),
        "brokers are assigned to 1 partitions; 2 are to be made"
    );
    assert_eq!(
        says(None, &[&[1, 2], &[1]]),
        "partition 1 is assigned 1 brokers; each gets 2"
    );
    assert_eq!(
        says(None, &[&[1, 2], &[1, 1]]),
        "a partition is assigned the same broker twice"
    );
    assert_eq!(
        says(None, &[&[1, 2], &[1, 3]]),
        "node 3 cannot take replicas: it is not heard of"
    );
    assert_eq!(
        says(None, &[&[1, 2], &[1, 9]]),
        "node 9 cannot take replicas: it is not registered"
    );
    let alone = create(&Cluster::default(), None, &[]);
    assert_eq!(alone, Err(PlaceError::NotFounded));
}

#[test]
fn partitions_are_added_with_the_factor_of_their_topic() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2]]);
    let add = cluster
        .decide_add_partitions("t", 3, &[vec![2, 3], vec![3, 1]])
        .unwrap();
    commit(&mut cluster, add);
    assert_eq!(replicas(&cluster, 1, 2), [3, 1]);
    let add = cluster.decide_add_partitions("t", 4, &[]).unwrap();
    commit(&mut cluster, add);
    assert_eq!(replicas(&cluster, 1, 3).len(), 2);
    assert!(cluster.decide_add_partitions("t", 4, &[]).is_err());
    assert!(cluster.decide_add_partitions("t", 5, &[vec![1]]).is_err());
}

#[test]
fn replicas_are_changed_one_change_at_a_time() {
    let mut cluster = cluster(9, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2, 3], &[1, 2, 3]]);
    let refused =
        |cluster: &Cluster, nodes: &[NodeId]| cluster.decide_reassign("t", 0, nodes).unwrap_err();
    assert_eq!(refused(&cluster, &[1, 2, 3]), MoveError::Unchanged);
    assert_eq!(refused(&cluster, &[]), MoveError::Count { asked: 0 });
    assert!(matches!(
        refused(&cluster, &[1, 1]),
        MoveError::Place(PlaceError::Twice)
    ));
    assert_eq!(refused(&cluster, &[4, 5, 6, 7, 8, 9]), MoveError::TooMany);
    assert_eq!(cluster.decide_cancel("t", 0), Err(MoveError::NotUnderWay));
    let e = cluster.decide_reassign("t", 2, &[1]).unwrap_err();
    assert_eq!(
        e.to_string(),
        "topic \"t\" has 2 partitions: there is no partition 2"
    );

    let order = cluster.decide_reassign("t", 0, &[2, 3, 1]).unwrap();
    commit(&mut cluster, order);
    assert_eq!(replicas(&cluster, 1, 0), [2, 3, 1]);
    let leader = cluster.decide_set_leader("t", 0, 1).unwrap();
    commit(&mut cluster, leader);
    assert_eq!(replicas(&cluster, 1, 0), [1, 2, 3]);
    assert_eq!(
        cluster.decide_set_leader("t", 0, 1),
        Err(MoveError::Unchanged)
    );
    let e = cluster.decide_set_leader("t", 0, 4);
    assert_eq!(e, Err(MoveError::NoReplica { node: 4 }));

    let change = cluster.decide_reassign("t", 0, &[4, 5, 6]).unwrap();
    commit(&mut cluster, change);
    assert_eq!(refused(&cluster, &[4]), MoveError::UnderWay);
    assert_eq!(
        cluster.decide_set_leader("t", 0, 2),
        Err(MoveError::UnderWay)
    );
    let cancel = cluster.decide_cancel("t", 0).unwrap();
    commit(&mut cluster, cancel);
    assert_eq!(cluster.decide_cancel("t", 0), Err(MoveError::Cancelling));
    let advance = |phase, members_index| ClusterCommand::AdvanceReassignment {
        key: key(1, 0),
        phase,
        members_index,
    };
    assert!(cluster.apply(&advance(Phase::Joint, 9)).is_err());

    let change = cluster.decide_reassign("t", 1, &[4, 5, 6]).unwrap();
    commit(&mut cluster, change);
    let finish = |is_cancelled, members_index| ClusterCommand::FinishReassignment {
        key: key(1, 1),
        is_cancelled,
        members_index,
    };
    let advance = |phase, members_index| ClusterCommand::AdvanceReassignment {
        key: key(1, 1),
        phase,
        members_index,
    };
    assert!(cluster.apply(&advance(Phase::Leaving, 9)).is_err());
    commit(&mut cluster, advance(Phase::Joint, 9));
    assert!(cluster.apply(&finish(false, 9)).is_err());
    let mut back = cluster.clone();
    let cancel = back.decide_cancel("t", 1).unwrap();
    commit(&mut back, cancel);
    assert!(
        back.apply(&finish(true, 9)).is_err(),
        "it may be being entered"
    );
    commit(&mut back, finish(true, 10));
    assert_eq!(replicas(&back, 1, 1), [1, 2, 3]);
    assert!(cluster.apply(&advance(Phase::Leaving, 8)).is_err());
    commit(&mut cluster, advance(Phase::Leaving, 10));
    assert_eq!(cluster.decide_cancel("t", 1), Err(MoveError::TooLate));
    // A topic can be deleted with all that goes on in it.
    let delete = cluster.topics().decide_delete("t").unwrap();
    commit(&mut cluster, delete.into());
    assert!(cluster.apply(&finish(false, 10)).is_err());
    assert_eq!(cluster.placements().count(), 0);
}

#[test]
fn what_was_not_decided_here_is_not_folded() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 1, &[&[1, 2]]);
    let begin = |target: &[ReplicaId]| ClusterCommand::BeginReassignment {
        key: key(1, 0),
        target: target.to_vec(),
        is_automatic: false,
    };
    let none: [ReplicaId; 0] = [];
    for target in [
        &none[..],
        &[2, 1],
        &[1, 9],
        &[0],
        &[1, replica_of(1, 1)],
        &[1, replica_of(3, 1)],
    ] {
        assert!(cluster.apply(&begin(target)).is_err(), "{target:?}");
    }
    let order = ClusterCommand::SetReplicaOrder {
        key: key(1, 0),
        replicas: vec![1, 3],
    };
    assert!(cluster.apply(&order).is_err());
    let found = ClusterCommand::Found { id: ID };
    assert!(cluster.apply(&found).is_err());
    let before = cluster.clone();
    for epoch in [1, 99] {
        let fence = ClusterCommand::SetFenced {
            node: 1,
            epoch,
            is_fenced: epoch == 99,
        };
        assert!(cluster.apply(&fence).is_err());
    }
    assert_eq!(cluster, before);
    commit(&mut cluster, begin(&[1, 3]));
}
