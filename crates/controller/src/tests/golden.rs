//! The bytes of commands never change.

use std::collections::BTreeMap;

use tidelog_record::TopicName;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn all() -> Vec<ClusterCommand> {
    let topic = TopicId::from_bytes(*b"0123456789abcdef");
    let key = PartitionKey {
        topic,
        partition: 5,
    };
    let directory = DirectoryId::from_bytes(*b"directory-id-dir");
    let new = |name, partitions| Topic {
        name: TopicName::new(name).unwrap(),
        id: topic,
        partitions,
        settings: TopicSettings::new(BTreeMap::new()).unwrap(),
    };
    vec![
        ClusterCommand::CreateTopic {
            topic: new("quakes", 2),
            replication_factor: 2,
            placement: vec![vec![1, 2], vec![2, replica_of(3, 1)]],
        },
        ClusterCommand::AddPartitions {
            id: topic,
            total: 3,
            placement: vec![vec![3, 1]],
        },
        ClusterCommand::Found { id: ID },
        ClusterCommand::RegisterBroker {
            registration: Registration {
                node: 7,
                directory,
                grpc_address: "a:1".to_owned(),
                http_address: "b:2".to_owned(),
                cluster_address: "c:3".to_owned(),
                rack: Some("r".to_owned()),
                version: "1.2".to_owned(),
                level_min: 1,
                level_max: 2,
            },
            epoch: 300,
        },
        ClusterCommand::SetFenced {
            node: 7,
            epoch: 300,
            is_fenced: true,
        },
        ClusterCommand::SetDraining {
            node: 7,
            is_draining: true,
        },
        ClusterCommand::UnregisterBroker {
            node: 7,
            is_lost: false,
        },
        ClusterCommand::ReplaceBroker {
            node: 7,
            directory,
            generation: 2,
            epoch: 301,
        },
        ClusterCommand::BeginReassignment {
            key,
            target: vec![1, replica_of(2, 1)],
            is_automatic: true,
        },
        ClusterCommand::AdvanceReassignment {
            key,
            phase: Phase::Joint,
            members_index: 9,
        },
        ClusterCommand::CancelReassignment { key },
        ClusterCommand::FinishReassignment {
            key,
            is_cancelled: true,
            members_index: 10,
        },
        ClusterCommand::SetReplicaOrder {
            key,
            replicas: vec![2, 1],
        },
        ClusterCommand::RaiseFeatureLevel { level: 2 },
        ClusterCommand::Snapshot {
            part: 1,
            parts: 3,
            data: b"xyz".to_vec(),
        },
        ClusterCommand::UnregisterBroker {
            node: 7,
            is_lost: true,
        },
        ClusterCommand::RecoverPartitions {
            partitions: vec![
                RecoveredPartition {
                    key,
                    keeper: replica_of(2, 1),
                    others: vec![1, 3],
                    recoveries: 2,
                },
                RecoveredPartition {
                    key: PartitionKey {
                        topic,
                        partition: 0,
                    },
                    keeper: replica_of(1, 3),
                    others: Vec::new(),
                    recoveries: 1,
                },
            ],
        },
    ]
}

#[test]
fn commands() {
    let file = include_str!("golden.hex");
    let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with('#')).collect();
    let all = all();
    let actual: Vec<String> = all.iter().map(|command| hex(&command.encode())).collect();
    assert_eq!(actual, lines, "{}", actual.join("\n"));
    for command in &all {
        assert_eq!(
            ClusterCommand::decode(&command.encode()).as_ref(),
            Ok(command)
        );
        assert!(Command::decode(&command.encode()).is_err());
    }
}

/// A state in which everything is something.
fn state() -> Cluster {
    let mut cluster = cluster(4, &["a", "b"]);
    create(&mut cluster, "quakes", 1, &[&[1, 2, 3], &[2, 3, 1]]);
    let alter = cluster.topics().decide_alter(
        "quakes",
        [("retention.ms".to_owned(), "5".to_owned())].into(),
        &[],
    );
    commit(&mut cluster, alter.unwrap().into());
    let ids = cluster.topics().decide_producer_ids(1000).unwrap();
    commit(&mut cluster, ids.into());
    let change = cluster.decide_reassign("quakes", 0, &[4, 2, 3]).unwrap();
    commit(&mut cluster, change);
    let cancel = cluster.decide_cancel("quakes", 0).unwrap();
    commit(&mut cluster, cancel);
    let key = PartitionKey {
        topic: topic_id(1),
        partition: 0,
    };
    commit(
        &mut cluster,
        ClusterCommand::FinishReassignment {
            key,
            is_cancelled: true,
            members_index: 6,
        },
    );
    let change = cluster.decide_reassign("quakes", 0, &[4, 2, 3]).unwrap();
    commit(&mut cluster, change);
    fence(&mut cluster, 3, true);
    let replace = cluster.decide_replace(3, directory(3, 1)).unwrap();
    commit(&mut cluster, replace);
    commit(
        &mut cluster,
        ClusterCommand::SetDraining {
            node: 2,
            is_draining: true,
        },
    );
    cluster
}

#[test]
fn a_snapshot() {
    let state = state();
    let [command] = &state.snapshot()[..] else {
        panic!("a small state is one part");
    };
    let actual = hex(&command.encode());
    assert_eq!(actual, include_str!("snapshot.hex").trim());
    let mut folded = Cluster::default();
    folded.apply(command).unwrap();
    assert_eq!(folded, state);
}

#[test]
fn parts_of_a_snapshot_are_whole_or_nothing() {
    let state = state();
    let parts = state.snapshot_in(100);
    assert!(parts.len() > 3);
    let mut folded = Cluster::default();
    for part in &parts {
        commit(&mut folded, part.clone());
    }
    assert_eq!(folded, state);

    // One that was given up is void once something else comes, or another begins.
    let mut folded = state.clone();
    for part in &parts[..2] {
        commit(&mut folded, part.clone());
    }
    for part in &parts {
        commit(&mut folded, part.clone());
    }
    assert_eq!(folded, state);
    commit(&mut folded, parts[0].clone());
    fence(&mut folded, 1, true);
    assert!(folded.apply(&parts[1]).is_err());
    for part in &parts[..parts.len() - 1] {
        commit(&mut folded, part.clone());
    }
    assert!(
        folded.apply(parts.last().unwrap()).is_err(),
        "it is not the state that was folded"
    );
    assert!(Cluster::default().apply(&parts[1]).is_err());
}

#[test]
fn a_snapshot_of_a_newer_version_is_refused() {
    let mut newer = state();
    newer.level = LEVEL_MAX + 1;
    let mut folded = Cluster::default();
    assert!(folded.apply(&newer.snapshot()[0]).is_err());
}

#[test]
fn a_kind_of_a_newer_version_is_refused() {
    // Field 1000 of the command, which nobody knows.
    let newer = [0xc2, 0x3e, 0x00];
    assert_eq!(ClusterCommand::decode(&newer), Err(CommandError::Unknown));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        if let Ok(command) = ClusterCommand::decode(&bytes) {
            state().apply(&command).ok();
        }
        let data = bytes;
        Cluster::default().apply(&ClusterCommand::Snapshot { part: 0, parts: 1, data }).ok();
    }
}
