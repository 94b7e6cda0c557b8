//! Whatever is decided in whatever order: folding what was written gives the same state, from the
//! beginning as from any snapshot.

use proptest::prelude::*;

use super::*;

/// One decision, made from some numbers; `None` where it is refused.
fn decide(cluster: &Cluster, kind: u8, a: u32, b: u32, n: usize) -> Option<ClusterCommand> {
    let node = 1 + a % 6;
    let name = format!("t{}", b % 4);
    let partition = a % 3;
    let key = cluster.topics().get(&name).ok().map(|topic| PartitionKey {
        topic: topic.id,
        partition,
    });
    let index = n as u64;
    match kind {
        0 | 1 => cluster.decide_register(ID, registration(node)).ok(),
        2 => Some(ClusterCommand::SetFenced {
            node,
            epoch: cluster.broker(node)?.epoch,
            is_fenced: !cluster.broker(node)?.is_fenced,
        }),
        3 => cluster.decide_drain(node).ok(),
        4 => cluster.decide_undrain(node).ok(),
        5 => cluster.decide_remove(node).ok(),
        6 => {
            let disk = directory(node, 1 + u32::try_from(n).unwrap());
            cluster.decide_replace(node, disk).ok()
        }
        7 => {
            let id = topic_id(u8::try_from(n % 256).unwrap());
            let replication = Replication {
                factor: Some(1 + a % 3),
                ..Replication::default()
            };
            let new = new_topic(&name, 1 + a % 3);
            cluster.decide_create_topic(&new, &replication, id).ok()
        }
        8 => cluster.decide_add_partitions(&name, 1 + a % 5, &[]).ok(),
        9 => cluster.topics().decide_delete(&name).ok().map(Into::into),
        10 => cluster.topics().decide_producer_ids(a + 1).map(Into::into),
        11 | 12 => {
            let nodes = [node, 1 + b % 6, 1 + (a + b) % 6];
            cluster
                .decide_reassign(&name, partition, &nodes[..1 + (b % 3) as usize])
                .ok()
        }
        13 => cluster.decide_move_away(&name, partition, node).ok(),
        14 => cluster.decide_cancel(&name, partition).ok(),
        15 => cluster.decide_set_leader(&name, partition, node).ok(),
        16 => Some(ClusterCommand::AdvanceReassignment {
            key: key?,
            phase: match cluster.placement(key?.topic, partition)?.change.as_ref()? {
                change if change.phase == Phase::Adding && !change.is_cancelling => Phase::Joint,
                change if change.phase == Phase::Joint => Phase::Leaving,
                _ => return None,
            },
            members_index: index,
        }),
        17 => {
            let change = cluster.placement(key?.topic, partition)?.change.as_ref()?;
            let is_cancelled = change.is_cancelling;
            let fits = is_cancelled || change.phase == Phase::Leaving;
            fits.then_some(ClusterCommand::FinishReassignment {
                key: key?,
                is_cancelled,
                members_index: index,
            })
        }
        18 => cluster.decide_raise_level(2).ok(),
        _ => cluster
            .topics()
            .decide_alter(
                &name,
                [("retention.ms".to_owned(), a.to_string())].into(),
                &[],
            )
            .ok()
            .map(Into::into),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn what_is_decided_fits_and_folds_to_the_same(
        requests in proptest::collection::vec((0_u8..20, 0_u32..60, 0_u32..60), 0..150),
        part_bytes in 20_usize..2000,
    ) {
        let mut state = cluster(4, &["a", "b"]);
        let mut log: Vec<Vec<u8>> = state.snapshot().iter().map(ClusterCommand::encode).collect();
        let mut starts = vec![0];
        for (n, (kind, a, b)) in requests.into_iter().enumerate() {
            if n % 25 == 24 {
                starts.push(log.len());
                for part in state.snapshot_in(part_bytes) {
                    state.apply(&part).unwrap();
                    log.push(part.encode());
                }
            }
            if let Some(command) = decide(&state, kind, a, b, n) {
                log.push(command.encode());
                prop_assert_eq!(state.apply(&command), Ok(()), "{:?}", command);
                // Nothing is taken a second time, except that an order or settings are set again.
                let again = !matches!(command, ClusterCommand::SetReplicaOrder { .. } | ClusterCommand::Topics(Command::Alter { .. }));
                prop_assert!(!again || state.clone().apply(&command).is_err(), "{:?}", command);
            }
            for (key, placement) in state.placements() {
                prop_assert!(placement.is_sound(), "{key:?} {placement:?}");
                prop_assert!(placement.all().all(|r| state.broker(node_of(r)).is_some()));
            }
        }
        for start in starts {
            let mut folded = Cluster::default();
            for bytes in &log[start..] {
                folded.apply(&ClusterCommand::decode(bytes).unwrap()).unwrap();
            }
            prop_assert_eq!(&folded, &state);
        }
    }
}

#[test]
fn the_log_of_a_broker_that_is_alone_is_the_beginning_of_a_cluster() {
    let (mut topics, mut state) = (Topics::default(), Cluster::default());
    let mut fold = |state: &mut Cluster, command: Command| {
        topics.apply(&command).unwrap();
        let read = ClusterCommand::decode(&command.encode()).unwrap();
        state.apply(&read).unwrap();
        assert_eq!(state.topics(), &topics);
    };
    let create = state
        .topics()
        .decide_create(&new_topic("old", 2), topic_id(1));
    fold(&mut state, create.unwrap());
    let add = state.topics().decide_add_partitions("old", 3).unwrap();
    fold(&mut state, add);
    assert!(state.snapshot().is_empty());
    for partition in 0..3 {
        let placement = state.placement(topic_id(1), partition).unwrap();
        assert_eq!(placement.replicas, [1]);
    }
    let register = ClusterCommand::RegisterBroker {
        registration: registration(1),
        epoch: 1,
    };
    assert!(state.apply(&register).is_err(), "the level forbids it");
    let found = state.decide_found(ID).unwrap();
    commit(&mut state, found);
    commit(&mut state, register);
    let unplaced = state
        .topics()
        .decide_create(&new_topic("new", 2), topic_id(2))
        .unwrap();
    assert!(state.apply(&unplaced.into()).is_err());
    let add = state.decide_add_partitions("old", 4, &[]).unwrap();
    commit(&mut state, add);
    assert_eq!(state.placement(topic_id(1), 3).unwrap().replicas, [1]);
}
