//! A majority is lost for good, and one replica goes on alone.

use tidelog_replica::eraftpb::{ConfChangeType, ConfChangeV2};
use tidelog_replica::{Done, RecoverError, Recovery, Refusal, replica_of, single};

use tidelog_sim::{FailMode, InjectedError, OpFilter};

use crate::nodes::{Nodes, key};

/// Tells a node to go on, again and again as long as it may be led; gives what it says then.
fn told(nodes: &mut Nodes, id: u32, incarnation: u32, how: Recovery) -> Result<Done, Refusal> {
    for _ in 0..200 {
        let shard = &mut nodes.node(id).shard;
        shard.recover(key(0), incarnation, how, 9_000);
        nodes.settle();
        let answers = &mut nodes.node(id).answers;
        let answer = answers.iter().position(|(ticket, _)| *ticket == 9_000);
        match answers.remove(answer.unwrap()).1 {
            Err(Refusal::NotRecovered(RecoverError::IsLed)) => nodes.tick(),
            other => return other,
        }
    }
    panic!("it does not notice that it is not led any more");
}

fn go_on_alone(nodes: &mut Nodes, id: u32, incarnation: u32) {
    let done = told(nodes, id, incarnation, Recovery::Alone);
    assert!(matches!(done, Ok(Done::Recovered)), "{done:?}");
}

fn last(nodes: &Nodes, id: u32) -> (u64, u64) {
    let positions = nodes.nodes[id as usize - 1].shard.positions();
    let position = positions.iter().find(|one| one.key == key(0)).unwrap();
    (position.last_term, position.last_index)
}

fn incarnation(nodes: &Nodes, id: u32) -> u32 {
    nodes.nodes[id as usize - 1].shard.positions()[0].incarnation
}

fn voters(nodes: &Nodes, id: u32) -> Vec<u64> {
    let group = nodes.nodes[id as usize - 1].shard.group(key(0)).unwrap();
    group.members().state.voters.clone()
}

/// A change of members, as the controller asks for it.
pub(crate) fn add_learner(nodes: &mut Nodes, leader: u32, learner: u32) {
    let mut change = ConfChangeV2::default();
    change.changes.push(single(
        ConfChangeType::AddLearnerNode,
        replica_of(learner, 0),
    ));
    let proposed = nodes
        .node(leader)
        .shard
        .with(key(0), |group| group.propose_members(&change));
    proposed.unwrap().unwrap();
    nodes.settle();
}

#[test]
fn one_of_three_goes_on_with_all_it_has_and_those_who_come_back_are_not_heard() {
    for seed in 0..10 {
        let mut nodes = Nodes::new(3, 1, seed);
        nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
        for ticket in 0..20 {
            nodes.append(key(0), "before", ticket);
        }
        let leader = nodes.leader(key(0)).unwrap();
        let keeper = (1..=3).filter(|id| *id != leader).max().unwrap();
        // What the keeper has and nobody has committed is kept too.
        nodes.tick();
        let end = nodes.node(keeper).shard.log(key(0)).unwrap().end();
        for id in (1..=3).filter(|id| *id != keeper) {
            nodes.node(id).stop(seed % 2 == 0);
        }
        nodes.until("it has no leader", |nodes| nodes.leader(key(0)).is_none());
        go_on_alone(&mut nodes, keeper, 2);
        assert_eq!(voters(&nodes, keeper), [replica_of(keeper, 0)]);
        let log = nodes.node(keeper).shard.log(key(0)).unwrap();
        assert_eq!(log.reader().committed_offset(), end.offset);
        nodes.append(key(0), "after", 100);
        let is_stored = |nodes: &Nodes, id: u32, ticket: u64| {
            let answers = &nodes.nodes[id as usize - 1].answers;
            let answer = answers.iter().find(|(told, _)| *told == ticket);
            matches!(answer, Some((_, Ok(Done::Stored { .. }))))
        };
        assert!(is_stored(&nodes, keeper, 100));

        // They were not lost after all: they are a group of their own, as they were before.
        for id in (1..=3).filter(|id| *id != keeper) {
            nodes.node(id).start(1);
        }
        let before = last(&nodes, keeper);
        nodes.until("the others have a leader", |nodes| {
            let others = (1..=3).filter(|id| *id != keeper);
            let groups = others.map(|id| nodes.nodes[id as usize - 1].shard.group(key(0)));
            groups.flatten().any(tidelog_replica::Group::is_ready)
        });
        for _ in 0..200 {
            nodes.tick();
        }
        assert_eq!(last(&nodes, keeper), before, "nothing of theirs came in");
        assert_eq!(nodes.leader(key(0)), Some(keeper));

        // The next start knows all that.
        nodes.node(keeper).stop(true);
        nodes.node(keeper).start(1);
        nodes.until("it leads again", |nodes| {
            let group = nodes.nodes[keeper as usize - 1].shard.group(key(0));
            group.is_some_and(tidelog_replica::Group::is_ready)
        });
        assert_eq!(voters(&nodes, keeper), [replica_of(keeper, 0)]);
        assert_eq!(nodes.node(keeper).shard.positions()[0].incarnation, 2);
    }
}

#[test]
fn another_that_is_left_follows_and_comes_to_the_same_members() {
    for seed in 0..10 {
        let mut nodes = Nodes::new(5, 1, seed);
        nodes.loss = 10;
        nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
        for ticket in 0..30 {
            nodes.append(key(0), "before", ticket);
            nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
        }
        let leader = nodes.leader(key(0)).unwrap();
        let mut left = (1..=5).filter(|id| *id != leader);
        let (one, other) = (left.next().unwrap(), left.next_back().unwrap());
        for id in (1..=5).filter(|id| ![one, other].contains(id)) {
            nodes.node(id).stop(false);
        }
        nodes.until("it has no leader", |nodes| nodes.leader(key(0)).is_none());
        let (keeper, follower) = if last(&nodes, one) >= last(&nodes, other) {
            (one, other)
        } else {
            (other, one)
        };
        let committed = nodes.commit(follower, key(0));
        go_on_alone(&mut nodes, keeper, 2);
        assert!(nodes.commit(keeper, key(0)) >= committed);
        told(&mut nodes, follower, 2, Recovery::Follows).unwrap();
        assert_eq!(incarnation(&nodes, follower), 2);
        add_learner(&mut nodes, keeper, follower);
        nodes.append(key(0), "after", 100);
        nodes.until("the other has all", |nodes| {
            last(nodes, follower) == last(nodes, keeper)
                && nodes.commit(follower, key(0)) == nodes.commit(keeper, key(0))
        });
        assert_eq!(voters(&nodes, follower), [replica_of(keeper, 0)]);
    }
}

#[test]
fn a_stop_in_the_middle_costs_nothing_and_it_is_done_again() {
    // So many calls of the disk go well, and none after that.
    for calls in 1..60 {
        let mut nodes = Nodes::new(3, 1, calls);
        nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
        for ticket in 0..5 {
            nodes.append(key(0), "before", ticket);
        }
        nodes.tick();
        let end = nodes.node(3).shard.log(key(0)).unwrap().end();
        (1..=2).for_each(|id| nodes.node(id).stop(false));
        nodes.until("it has no leader", |nodes| {
            let group = nodes.nodes[2].shard.group(key(0)).unwrap();
            group.role().leader.is_none()
        });
        let node = nodes.node(3);
        node.may_fail = true;
        node.disk.fail_nth(
            OpFilter::mutating(),
            calls,
            InjectedError::Io,
            FailMode::Forever,
        );
        let how = Recovery::Alone;
        node.shard.recover(key(0), 2, how, 9_002);
        nodes.settle();
        nodes.node(3).stop(true);
        nodes.node(3).start(1);
        go_on_alone(&mut nodes, 3, 2);
        assert_eq!(voters(&nodes, 3), [replica_of(3, 0)]);
        let log = nodes.node(3).shard.log(key(0)).unwrap();
        assert_eq!(log.end().offset, end.offset);
        assert_eq!(log.reader().committed_offset(), end.offset);
    }
}

#[test]
fn a_group_that_is_led_goes_on_as_it_is() {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    for ticket in 0..5 {
        nodes.append(key(0), "before", ticket);
    }
    for id in 1..=3 {
        for (incarnation, how) in [
            (2, Recovery::Alone),
            (2, Recovery::Follows),
            (u32::MAX, Recovery::Follows),
        ] {
            let shard = &mut nodes.node(id).shard;
            shard.recover(key(0), incarnation, how, 9_004);
            nodes.settle();
            let answer = nodes.node(id).answers.pop().unwrap();
            assert!(
                matches!(answer, (9_004, Err(Refusal::NotRecovered(_)))),
                "{answer:?}"
            );
        }
        assert_eq!(incarnation(&nodes, id), 1);
    }
    nodes.append(key(0), "after", 10);
}

#[test]
fn one_that_is_no_member_does_not_go_on_alone() {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    let gone = (1..=3).find(|id| *id != leader).unwrap();
    let mut change = ConfChangeV2::default();
    change
        .changes
        .push(single(ConfChangeType::RemoveNode, replica_of(gone, 0)));
    let shard = &mut nodes.node(leader).shard;
    let proposed = shard.with(key(0), |group| group.propose_members(&change));
    proposed.unwrap().unwrap();
    nodes.until("it knows that it is none", |nodes| {
        !voters(nodes, gone).contains(&replica_of(gone, 0))
    });
    let before = last(&nodes, gone);
    let refused = told(&mut nodes, gone, 2, Recovery::Alone);
    let e = RecoverError::NoMember;
    assert!(
        matches!(&refused, Err(Refusal::NotRecovered(said)) if *said == e),
        "{refused:?}"
    );
    assert_eq!(last(&nodes, gone), before);
}
