//! Where partitions are put.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn spread(counts: &BTreeMap<NodeId, usize>, nodes: &[NodeId]) -> usize {
    let of = |node: &NodeId| counts.get(node).copied().unwrap_or(0);
    let counts = nodes.iter().map(of);
    counts.clone().max().unwrap() - counts.min().unwrap()
}

fn auto(factor: u32) -> Replication {
    Replication {
        factor: Some(factor),
        assignment: Vec::new(),
    }
}

proptest! {
    #[test]
    fn replicas_are_spread(
        racks in 1_u32..5,
        in_rack in 1_u32..5,
        topics in proptest::collection::vec((1_u32..20, 1_u32..5, 0_u32..10), 1..6),
        out in proptest::collection::btree_set(1_u32..20, 0..3),
    ) {
        let count = racks * in_rack;
        let names: Vec<String> = (0..count).map(|node| format!("rack{}", node % racks)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut cluster = cluster(count, &names);
        let mut usable: Vec<NodeId> = (1..=count).collect();
        let out: BTreeSet<_> = out.into_iter().filter(|node| *node <= count).collect();
        // As long as others are enough, neither is given anything.
        if usable.len() >= out.len() + 4 {
            for (i, node) in out.iter().enumerate() {
                usable.retain(|other| other != node);
                if i % 2 == 0 {
                    fence(&mut cluster, *node, true);
                } else {
                    let drain = cluster.decide_drain(*node).unwrap();
                    commit(&mut cluster, drain);
                }
            }
        }
        let is_even = usable.len() == count as usize;
        let mut all = BTreeMap::new();
        for (n, (partitions, factor, more)) in topics.into_iter().enumerate() {
            let factor = factor.min(u32::try_from(usable.len()).unwrap());
            let id = topic_id(u8::try_from(n).unwrap());
            let name = format!("topic{n}");
            let new = new_topic(&name, partitions);
            let command = cluster.decide_create_topic(&new, &auto(factor), id).unwrap();
            prop_assert_eq!(&command, &cluster.decide_create_topic(&new, &auto(factor), id).unwrap());
            commit(&mut cluster, command);
            if more > 0 {
                let add = cluster.decide_add_partitions(&name, partitions + more, &[]).unwrap();
                commit(&mut cluster, add);
            }
            let (mut here, mut leaders) = (BTreeMap::new(), BTreeMap::new());
            for placement in &cluster.topic_placement(id).unwrap().partitions {
                let nodes: BTreeSet<_> = placement.replicas.iter().map(|r| node_of(*r)).collect();
                prop_assert_eq!(nodes.len(), factor as usize);
                let mut per_rack: BTreeMap<_, usize> = BTreeMap::new();
                for node in &nodes {
                    prop_assert!(usable.contains(node));
                    *here.entry(*node).or_default() += 1;
                    *all.entry(*node).or_default() += 1;
                    *per_rack.entry(node % racks).or_default() += 1;
                }
                *leaders.entry(node_of(placement.replicas[0])).or_default() += 1;
                if is_even {
                    let fewest = (0..racks).map(|rack| per_rack.get(&((rack + 1) % racks)).copied().unwrap_or(0));
                    prop_assert!(fewest.clone().max().unwrap() - fewest.min().unwrap() <= 1);
                }
            }
            if is_even || racks == 1 {
                prop_assert!(spread(&here, &usable) <= 1, "{here:?}");
                prop_assert!(spread(&all, &usable) <= 1, "{all:?}");
                prop_assert!(spread(&leaders, &usable) <= 2, "{leaders:?}");
            }
        }
    }
}

/// One has two more than another, and no partition has replicas at both: it takes a way over others.
#[test]
fn leaderships_go_on_over_several_brokers() {
    let racks = ["a", "b", "c", "d", "a", "b", "c", "d"];
    let mut cluster = cluster(8, &racks);
    for (n, (partitions, factor, more)) in
        [(8, 3, 1), (13, 1, 8), (14, 3, 6)].into_iter().enumerate()
    {
        let id = topic_id(u8::try_from(n).unwrap());
        let name = format!("topic{n}");
        let new = cluster.decide_create_topic(&new_topic(&name, partitions), &auto(factor), id);
        commit(&mut cluster, new.unwrap());
        let add = cluster.decide_add_partitions(&name, partitions + more, &[]);
        commit(&mut cluster, add.unwrap());
    }
    let mut leaders = BTreeMap::new();
    for placement in &cluster.topic_placement(topic_id(2)).unwrap().partitions {
        *leaders.entry(node_of(placement.replicas[0])).or_default() += 1;
    }
    let nodes: Vec<NodeId> = (1..=8).collect();
    assert!(spread(&leaders, &nodes) <= 2, "{leaders:?}");
}

#[test]
fn a_new_topic_is_spread_though_one_broker_is_empty() {
    let mut cluster = cluster(3, &[]);
    let old = cluster.decide_create_topic(&new_topic("old", 30), &auto(1), topic_id(1));
    commit(&mut cluster, old.unwrap());
    let register = cluster.decide_register(ID, registration(4)).unwrap();
    commit(&mut cluster, register);
    let new = cluster.decide_create_topic(&new_topic("new", 4), &auto(1), topic_id(2));
    commit(&mut cluster, new.unwrap());
    let partitions = &cluster.topic_placement(topic_id(2)).unwrap().partitions;
    let nodes: BTreeSet<_> = partitions.iter().map(|p| p.replicas[0]).collect();
    assert_eq!(nodes.len(), 4);
}

#[test]
fn three_racks_have_one_replica_each() {
    let mut cluster = cluster(5, &["a", "a", "a", "b", "c"]);
    let new = cluster.decide_create_topic(&new_topic("t", 6), &auto(3), topic_id(1));
    commit(&mut cluster, new.unwrap());
    for placement in &cluster.topic_placement(topic_id(1)).unwrap().partitions {
        assert!(placement.replicas.contains(&4) && placement.replicas.contains(&5));
    }
}

#[test]
fn draining_brokers_are_taken_when_the_others_are_too_few() {
    let mut cluster = cluster(3, &[]);
    let drain = cluster.decide_drain(1).unwrap();
    commit(&mut cluster, drain);
    let two = cluster
        .decide_create_topic(&new_topic("t", 2), &auto(2), topic_id(1))
        .unwrap();
    commit(&mut cluster, two);
    assert_eq!(cluster.replicas_at(1), 0);
    let three = cluster
        .decide_create_topic(&new_topic("u", 2), &auto(3), topic_id(2))
        .unwrap();
    commit(&mut cluster, three);
    assert_eq!(cluster.replicas_at(1), 2);
}

#[test]
fn a_new_topic_is_spread_though_one_rack_is_empty() {
    let mut cluster = cluster(2, &["a", "b"]);
    create(&mut cluster, "old", 1, &[&[1][..]; 30]);
    let new = cluster.decide_create_topic(&new_topic("new", 4), &auto(1), topic_id(2));
    commit(&mut cluster, new.unwrap());
    let partitions = &cluster.topic_placement(topic_id(2)).unwrap().partitions;
    let at_1 = partitions.iter().filter(|p| p.replicas == [1]);
    assert_eq!(at_1.count(), 2);
}

#[test]
fn a_replica_that_moves_leaves_its_rack_to_the_next() {
    let mut cluster = cluster(4, &["a", "b", "a", "b"]);
    create(&mut cluster, "t", 1, &[&[1, 2], &[3, 1]]);
    let change = cluster.decide_move_away("t", 0, 1).unwrap();
    let ClusterCommand::BeginReassignment { target, .. } = change else {
        panic!("{change:?}");
    };
    assert_eq!(target, [3, 2]);
}
