//! Whoever waits only until a majority has written a batch.

use tidelog_record::Timestamp;
use tidelog_replica::eraftpb::{Message, MessageType};
use tidelog_replica::{Received, Until, node_of, replica_of};

use crate::nodes::{Nodes, key};

/// A group that is led, and whose disks do no syncs any more; its leader, and the others.
fn led(seed: u64) -> (Nodes, u32, Vec<u32>) {
    let mut nodes = Nodes::new(3, 1, seed);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    for node in &mut nodes.nodes {
        node.unsynced = Some(Vec::new());
        node.answers.clear();
    }
    let others = (1..=3).filter(|id| *id != leader).collect();
    (nodes, leader, others)
}

fn answered(nodes: &mut Nodes, id: u32) -> Vec<u64> {
    let answers = std::mem::take(&mut nodes.node(id).answers);
    let is_stored = |(ticket, result): (u64, Result<_, _>)| {
        result.expect("it is stored");
        ticket
    };
    answers.into_iter().map(is_stored).collect()
}

#[test]
fn what_a_majority_has_written_is_acknowledged_before_any_sync() {
    for seed in 0..20 {
        let (mut nodes, leader, others) = led(seed);
        let before = nodes.commit(leader, key(0));
        nodes.append_until(leader, key(0), "written", Until::Received, 1);
        assert_eq!(answered(&mut nodes, leader), [1]);
        nodes.append_until(leader, key(0), "committed", Until::Committed, 2);
        assert_eq!(answered(&mut nodes, leader), []);
        assert_eq!(nodes.commit(leader, key(0)), before, "nothing is synced");
        for node in &mut nodes.nodes {
            node.sync_all();
        }
        nodes.settle();
        assert_eq!(answered(&mut nodes, leader), [2]);
        assert_eq!(nodes.commit(leader, key(0)), before + 2);

        // More than may be on their way to one that has not taken them.
        for node in &mut nodes.nodes {
            node.unsynced = Some(Vec::new());
        }
        for ticket in 10..40 {
            nodes.append_until(leader, key(0), "many", Until::Received, ticket);
        }
        assert_eq!(answered(&mut nodes, leader), (10..40).collect::<Vec<_>>());
        for node in &mut nodes.nodes {
            node.sync_all();
        }
        nodes.settle();
        let before = before + 30;
        assert_eq!(nodes.commit(leader, key(0)), before + 2);

        // Of three one more is enough, and none is too few.
        nodes.node(others[0]).stop(false);
        for id in [leader, others[1]] {
            nodes.node(id).unsynced = Some(Vec::new());
        }
        nodes.append_until(leader, key(0), "by two", Until::Received, 3);
        assert_eq!(answered(&mut nodes, leader), [3]);
        nodes.cut_off = Some(others[1]);
        nodes.append_until(leader, key(0), "by one", Until::Received, 4);
        assert_eq!(answered(&mut nodes, leader), []);
        assert_eq!(nodes.commit(leader, key(0)), before + 2);
        nodes.cut_off = None;
        for id in [leader, others[1]] {
            nodes.node(id).sync_all();
        }
        nodes.until("it is sent again", |nodes| {
            !nodes.nodes[leader as usize - 1].answers.is_empty()
        });
        assert_eq!(answered(&mut nodes, leader), [4]);
    }
}

/// Two versions in one cluster.
#[test]
fn beside_an_older_version_it_is_acknowledged_when_it_is_durable() {
    for seed in 0..20 {
        let (mut nodes, leader, others) = led(seed);
        nodes.node(others[0]).stop(false);
        nodes.older = Some(if seed % 2 == 0 { leader } else { others[1] });
        nodes.append_until(leader, key(0), "written", Until::Received, 1);
        assert_eq!(answered(&mut nodes, leader), []);
        for id in [leader, others[1]] {
            nodes.node(id).sync_all();
        }
        nodes.settle();
        assert_eq!(answered(&mut nodes, leader), [1]);
    }
}

#[test]
fn what_was_acknowledged_by_two_is_there_after_the_processes_of_all_have_ended() {
    for seed in 0..20 {
        let (mut nodes, leader, others) = led(seed);
        nodes.node(others[1]).stop(false);
        nodes.append_until(leader, key(0), "written", Until::Received, 1);
        assert_eq!(answered(&mut nodes, leader), [1]);
        for id in [leader, others[0]] {
            nodes.node(id).stop(false);
        }
        // Whoever led is not there any more.
        for id in others {
            nodes.node(id).unsynced = None;
            nodes.node(id).start(1);
        }
        nodes.until("the others lead", |nodes| nodes.leader(key(0)).is_some());
        let next = nodes.leader(key(0)).unwrap();
        let log = nodes.node(next).shard.log(key(0)).unwrap();
        assert_eq!(log.reader().committed_offset().get(), 1, "seed {seed}");
    }
}

#[test]
fn a_receipt_that_no_follower_gives_counts_for_nothing() {
    let (mut nodes, leader, others) = led(1);
    // Nobody hears of it.
    for id in &others {
        nodes.node(*id).stop(false);
    }
    nodes.append_until(leader, key(0), "alone", Until::Received, 1);
    let group = nodes.node(leader).shard.group(key(0)).unwrap();
    let term = group.role().term;
    let last = group.log().end_index().get() - 1;
    let receipt = |change: fn(&mut Message)| {
        let mut message = Message {
            from: replica_of(others[0], 0),
            to: replica_of(leader, 0),
            term,
            index: last,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgAppendResponse);
        change(&mut message);
        Received {
            key: key(0),
            incarnation: 1,
            message,
            payloads: Vec::new(),
            receipt: true,
        }
    };
    let refused: [fn(&mut Message); 4] = [
        |message| message.set_msg_type(MessageType::MsgHeartbeatResponse),
        |message| message.reject = true,
        |message| message.to += 1,
        |message| message.index += 1,
    ];
    let ignored: [fn(&mut Message); 4] = [
        |message| message.term -= 1,
        |message| message.term += 1,
        |message| message.from = replica_of(7, 0),
        |message| message.index -= 1,
    ];
    let now = Timestamp::from_millis(0);
    let changes = refused.map(|it| (it, false)).into_iter();
    for (change, is_taken) in changes.chain(ignored.map(|it| (it, true))) {
        let received = receipt(change);
        let what = format!("{:?}", received.message);
        let taken = nodes.node(leader).shard.receive(received, now);
        assert_eq!(taken.is_ok(), is_taken, "{what}");
        nodes.settle();
        assert_eq!(answered(&mut nodes, leader), [], "{what}");
    }
    let received = receipt(|_| {});
    assert_eq!(node_of(received.message.from), others[0]);
    nodes.node(leader).shard.receive(received, now).unwrap();
    nodes.settle();
    assert_eq!(answered(&mut nodes, leader), [1]);
}
