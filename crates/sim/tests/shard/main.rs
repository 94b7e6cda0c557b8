//! Shards of several brokers beside each other: waiters, stalls, failures of one group, and replicas that
//! catch up by files.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod nodes;
mod receipts;
mod recover;

use std::path::Path;
use std::sync::Arc;

use nodes::{Nodes, key, options};
use tidelog_disk::DiskOp;
use tidelog_log::Log;
use tidelog_log::state::{DirectoryIdentity, GroupState, StateFile};
use tidelog_record::{Offset, Timestamp};
use tidelog_replica::eraftpb::{Message, MessageType};
use tidelog_replica::{
    Done, Group, GroupConfig, Members, Proposal, ProposeError, Received, Refusal, Shard,
    StateStore, Until, node_of, replica_of,
};
use tidelog_sim::{FailMode, InjectedError, OpFilter};

fn offset(offset: u64) -> Offset {
    Offset::new(offset).unwrap()
}

/// Three nodes, with which of them leads, and which does not vote.
fn with_learner() -> (Nodes, u32, u32) {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    let learner = leader % 3 + 1;
    recover::add_learner(&mut nodes, leader, learner);
    (nodes, leader, learner)
}

/// Three nodes, of which 3 stopped before the log's start was raised above all that it has.
fn with_one_left_behind(seed: u64) -> Nodes {
    let mut nodes = Nodes::new(3, 2, seed);
    nodes.until("both groups are led", |nodes| {
        nodes.leader(key(0)).is_some() && nodes.leader(key(1)).is_some()
    });
    let followers = (1..=3).filter(|id| Some(*id) != nodes.leader(key(0)));
    let behind = followers.max().unwrap();
    nodes.append(key(0), "everywhere", 0);
    nodes.node(behind).stop(seed.is_multiple_of(2));
    let value = "x".repeat(900);
    nodes.until("the others lead", |nodes| nodes.leader(key(0)).is_some());
    for ticket in 1..100 {
        nodes.append(key(0), &value, ticket);
    }
    let leader = nodes.leader(key(0)).unwrap();
    let to = offset(80);
    nodes.node(leader).shard.set_log_start(key(0), to, 1000);
    nodes.until("the log start is raised", |nodes| {
        let log = nodes.nodes[leader as usize - 1].shard.log(key(0)).unwrap();
        log.reader().log_start() == to && log.first_index().get() > 50
    });
    nodes
}

fn behind(nodes: &Nodes) -> u32 {
    let down = nodes.nodes.iter().find(|node| !node.is_up);
    down.unwrap().id
}

/// The records from the log start on are the same at two nodes.
fn assert_same(nodes: &Nodes, one: u32, other: u32) {
    let log = |id: u32| nodes.nodes[id as usize - 1].shard.log(key(0)).unwrap();
    let (one, other) = (log(one), log(other));
    assert_eq!(one.commit(), other.commit());
    assert_eq!(one.reader().log_start(), other.reader().log_start());
    let from = one.first_index().max(other.first_index());
    let read = |log: &Log| {
        log.read_entries(from, log.end_index(), u64::MAX)
            .unwrap()
            .into_iter()
            .map(|(info, bytes)| (info.index, bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(read(one), read(other));
}

#[test]
fn a_replica_that_lacks_removed_entries_copies_files_and_goes_on_with_entries() {
    for seed in 0..20 {
        let mut nodes = with_one_left_behind(seed);
        let behind = behind(&nodes);
        nodes.loss = seed % 4 * 10;
        nodes.node(behind).start(2);
        let leader = nodes.leader(key(0)).unwrap();
        nodes.until("it has caught up", |nodes| {
            nodes.commit(behind, key(0)) == nodes.commit(leader, key(0))
        });
        nodes.loss = 0;
        assert_eq!(nodes.node(behind).copies.adopted(), 1, "seed {seed}");
        assert_same(&nodes, leader, behind);

        // From now on it counts: without the third one, it takes both to commit.
        let third = (1..=3).find(|id| ![behind, leader].contains(id)).unwrap();
        nodes.node(third).stop(false);
        nodes.append(key(0), "after", 2000);
        nodes.until("what came after is committed", |nodes| {
            let node = &nodes.nodes[leader as usize - 1];
            node.answers.iter().any(|(ticket, _)| *ticket == 2000)
        });
        let last = nodes.node(leader).answers.pop().unwrap();
        assert!(matches!(last.1, Ok(Done::Stored { .. })), "{last:?}");
        assert_same(&nodes, leader, behind);
        // And after another start.
        nodes.node(behind).stop(true);
        nodes.node(behind).start(2);
        nodes.until("it is there again", |nodes| {
            nodes
                .leader(key(0))
                .is_some_and(|leader| nodes.commit(behind, key(0)) == nodes.commit(leader, key(0)))
        });
        // Without another copy.
        assert_eq!(nodes.node(behind).copies.adopted(), 0, "seed {seed}");
    }
}

/// The disk fails from each call on that changes something while files are copied and adopted, and the
/// machine stops.
#[test]
fn a_replica_that_stops_at_any_moment_of_catching_up_goes_on() {
    let mut stops = 0;
    for nth in (1..).step_by(2) {
        let mut nodes = with_one_left_behind(nth);
        let behind = behind(&nodes);
        nodes.node(behind).start(2);
        let disk = nodes.node(behind).disk.clone();
        nodes.node(behind).may_fail = true;
        disk.fail_nth(
            OpFilter::mutating(),
            nth,
            InjectedError::Io,
            FailMode::Forever,
        );
        let caught_up = |nodes: &Nodes| {
            nodes.leader(key(0)).is_some_and(|leader| {
                leader != behind && nodes.commit(behind, key(0)) == nodes.commit(leader, key(0))
            })
        };
        // Copying does not fail a replica: it is tried again.
        let mut patience = 200;
        while !caught_up(&nodes) && !nodes.node(behind).has_failed && patience > 0 {
            nodes.tick();
            patience -= 1;
        }
        let is_done = caught_up(&nodes);
        nodes.node(behind).stop(nth % 4 == 1);
        nodes.node(behind).start(2);
        nodes.until("it has caught up", caught_up);
        let leader = nodes.leader(key(0)).unwrap();
        assert_same(&nodes, leader, behind);
        stops += 1;
        if is_done {
            break;
        }
    }
    assert!(stops > 20, "{stops}");
}

#[test]
fn a_full_disk_stalls_a_follower_which_goes_on_by_itself() {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    nodes.append(key(0), "before", 1);
    let filter = OpFilter::op(DiskOp::Reserve).on("topic-0");
    let disk = nodes.node(follower).disk.clone();
    disk.fail_nth(filter, 1, InjectedError::Full, FailMode::Forever);
    let value = "x".repeat(900);
    for ticket in 2..60 {
        nodes.append(key(0), &value, ticket);
    }
    nodes.until("all are answered", |nodes| {
        nodes.nodes[leader as usize - 1].answers.len() >= 59
    });
    let answers = &nodes.node(leader).answers;
    assert!(answers.iter().all(|(_, result)| result.is_ok()));
    assert!(nodes.commit(follower, key(0)) < nodes.commit(leader, key(0)));
    disk.stop_failing();
    nodes.until("the follower has caught up", |nodes| {
        nodes.commit(follower, key(0)) == nodes.commit(leader, key(0))
    });
    assert_same(&nodes, leader, follower);
}

#[test]
fn waiters_are_told_when_another_leads() {
    let mut nodes = Nodes::new(3, 1, 3);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let old = nodes.leader(key(0)).unwrap();
    // Nobody hears it any more.
    for id in (1..=3).filter(|id| *id != old) {
        nodes.node(id).stop(false);
    }
    nodes.append(key(0), "lost?", 7);
    assert!(nodes.node(old).answers.is_empty());
    nodes.until("it gives up", |nodes| {
        !nodes.nodes[old as usize - 1].answers.is_empty()
    });
    let (ticket, result) = nodes.node(old).answers.pop().unwrap();
    assert_eq!(ticket, 7);
    assert!(matches!(result, Err(Refusal::Lost { .. })), "{result:?}");
    nodes.append_at(old, key(0), "refused", 8);
    // There may be a leader soon.
    assert!(nodes.node(old).answers.is_empty());
    for _ in 0..3 {
        nodes.tick();
    }
    assert_refused(nodes.node(old).answers.pop());
}

/// Lets time pass until the node knows of no leader.
fn until_leaderless(nodes: &mut Nodes, one: u32) {
    nodes.until("it knows no leader", |nodes| {
        let group = nodes.nodes[one as usize - 1].shard.group(key(0));
        group.unwrap().role().leader.is_none()
    });
}

/// Cuts a node off until it knows of no leader; the one that leads, or another.
fn with_one_cut_off(is_leader: bool) -> (Nodes, u32) {
    let mut nodes = Nodes::new(3, 1, 5);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    let one = if is_leader { leader } else { leader % 3 + 1 };
    nodes.cut_off = Some(one);
    until_leaderless(&mut nodes, one);
    (nodes, one)
}

/// What a node answers next.
fn next_answer(nodes: &mut Nodes, id: u32) -> (u64, Result<Done, Refusal>) {
    nodes.until("it is told", |nodes| {
        !nodes.nodes[id as usize - 1].answers.is_empty()
    });
    nodes.node(id).answers.pop().unwrap()
}

/// It has just ceased to lead.
#[test]
fn what_comes_while_nobody_leads_is_sent_to_whoever_leads_next() {
    let (mut nodes, old) = with_one_cut_off(true);
    nodes.append_at(old, key(0), "next", 9);
    assert!(nodes.node(old).answers.is_empty());
    nodes.cut_off = None;
    let (ticket, result) = next_answer(&mut nodes, old);
    assert_eq!(ticket, 9);
    let Err(Refusal::Refused(ProposeError::NotLeader {
        leader: Some(leader),
    })) = result
    else {
        panic!("{result:?}");
    };
    assert_ne!(node_of(leader), old);
}

#[test]
fn what_comes_while_nobody_leads_is_taken_by_who_leads_again() {
    let mut nodes = Nodes::new(3, 1, 5);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let old = nodes.leader(key(0)).unwrap();
    let others: Vec<u32> = (1..=3).filter(|id| *id != old).collect();
    for id in &others {
        nodes.node(*id).stop(false);
    }
    until_leaderless(&mut nodes, old);
    nodes.append_at(old, key(0), "next", 9);
    for id in &others {
        nodes.node(*id).start(1);
    }
    nodes.node(old).shard.with(key(0), Group::campaign);
    let (ticket, result) = next_answer(&mut nodes, old);
    assert_eq!(ticket, 9);
    assert!(matches!(result, Ok(Done::Stored { .. })), "{result:?}");
}

/// While it lasts, they hear of each with what comes next.
#[test]
fn followers_hear_of_the_last_commit_of_a_burst_by_the_next_tick() {
    // With a heartbeat at every second tick it is not that which tells both times.
    for ticks_before in 0..2 {
        let mut nodes = Nodes::new(3, 1, 5);
        nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
        let leader = nodes.leader(key(0)).unwrap();
        let commits =
            |nodes: &Nodes| -> Vec<u64> { (1..=3).map(|id| nodes.commit(id, key(0))).collect() };
        for _ in 0..ticks_before {
            nodes.tick();
        }
        nodes.append(key(0), "calm", 0);
        let known = nodes.commit(leader, key(0));
        assert_eq!(commits(&nodes), [known; 3]);
        for ticket in 1..4 {
            nodes.append(key(0), "burst", ticket);
        }
        nodes.tick();
        nodes.append(key(0), "last", 4);
        let last = nodes.commit(leader, key(0));
        let mut expected = [last - 1; 3];
        expected[leader as usize - 1] = last;
        assert_eq!(commits(&nodes), expected);
        nodes.tick();
        assert_eq!(commits(&nodes), [last; 3]);
    }
}

#[test]
fn what_waits_for_the_next_leader_can_be_taken_out() {
    let (mut nodes, old) = with_one_cut_off(true);
    nodes.append_at(old, key(0), "taken out", 9);
    assert_eq!(nodes.node(old).shard.take_queued(), [9]);
}

/// It would take the place of what others lead.
#[test]
fn a_follower_that_knows_no_leader_keeps_nothing() {
    let (mut nodes, one) = with_one_cut_off(false);
    nodes.append_at(one, key(0), "refused", 9);
    assert_refused(nodes.node(one).answers.pop());
}

/// Nobody is known to lead.
fn assert_refused(answer: Option<(u64, Result<Done, Refusal>)>) {
    let (_, result) = answer.unwrap();
    let is_refused = matches!(
        result,
        Err(Refusal::Refused(ProposeError::NotLeader { leader: None }))
    );
    assert!(is_refused, "{result:?}");
}

/// A leader that nobody hears takes batches of several records; those who lead after it write others,
/// with fewer records, to the same places of the log. It is told so by appends whose first place it has
/// something else at.
#[test]
fn a_leader_that_was_cut_off_gives_up_what_it_took_for_what_others_wrote() {
    for seed in 0..8 {
        let mut nodes = Nodes::new(3, 1, seed);
        nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
        let old = nodes.leader(key(0)).unwrap();
        nodes.append(key(0), "before", 1);
        nodes.cut_off = Some(old);
        for ticket in 0..20 {
            let proposal = Proposal {
                batch: nodes::batch_of("lost", 3),
                until: Until::Written,
                term: None,
                waiter: 100 + ticket,
            };
            nodes.node(old).shard.propose(key(0), proposal);
            nodes.settle();
        }
        let others = |nodes: &Nodes| nodes.leader(key(0)).filter(|leader| *leader != old);
        nodes.until("another leads", |nodes| others(nodes).is_some());
        let second = others(&nodes).unwrap();
        for ticket in 200..205 {
            nodes.append(key(0), "kept", ticket);
        }
        let third = (1..=3).find(|id| ![old, second].contains(id)).unwrap();
        let shard = &mut nodes.node(second).shard;
        let to = replica_of(third, 0);
        shard.with(key(0), |group| group.transfer_leader(to));
        nodes.until("the third leads", |nodes| others(nodes) == Some(third));
        for ticket in 300..303 {
            nodes.append(key(0), "kept too", ticket);
        }
        nodes.cut_off = None;
        nodes.until("all have the same", |nodes| {
            nodes
                .leader(key(0))
                .is_some_and(|leader| nodes.commit(old, key(0)) == nodes.commit(leader, key(0)))
        });
        assert_same(&nodes, old, third);
        assert_same(&nodes, old, second);
    }
}

/// As a broker of before left it that was killed twice in the middle of a start.
#[test]
fn a_log_whose_leader_epoch_is_ahead_of_the_state_opens_and_leads() {
    let disk = tidelog_sim::SimDisk::new(1);
    let shared: Arc<dyn tidelog_disk::Disk> = Arc::new(disk);
    let identity = tidelog_log::LogIdentity {
        cluster_id: [7; 16],
        topic_id: key(0).topic_id,
        partition: key(0).partition,
        incarnation: 1,
    };
    let dir = Path::new("/topic-0");
    let now = Timestamp::from_millis(0);
    let mut log = Log::create(shared.clone(), dir, identity, options(), now).unwrap();
    for epoch in [6, 8] {
        let epoch = tidelog_record::LeaderEpoch::new(epoch).unwrap();
        log.begin_epoch(epoch).unwrap();
    }
    let end = log.close().unwrap();
    let state = GroupState {
        incarnation: 1,
        replica_id: 1,
        term: 6,
        vote: 1,
        commit: 5,
        checkpoint: Some(end),
    };
    let commit = tidelog_record::RaftIndex::new(u64::MAX);
    let opened = Log::open_replica(shared.clone(), dir, identity, options(), Some(end), commit);
    let members = Members::founded_by(vec![1]);
    let config = GroupConfig::default();
    let group = Group::open(config, opened.unwrap().0, state, members).unwrap();
    let owner = DirectoryIdentity {
        cluster_id: [7; 16],
        node_id: 1,
        directory_id: [1; 16],
    };
    let file = StateFile::create(shared, Path::new("/state"), owner).unwrap();
    let file = Arc::new(file);
    let mut store = StateStore::new(file.clone(), key(0));
    file.record(&store.records_of(&group), true).unwrap();
    let mut shard: Shard<u64> = Shard::default();
    shard.add(key(0), 1, group, store);
    while shard.has_work() {
        let effects = shard.turn(now);
        assert!(effects.failed.is_empty(), "{:?}", effects.failed);
        shard.state_synced(&effects.state_to_sync);
        for key in effects.logs_to_sync {
            shard.log(key).unwrap().sync_handle().sync().unwrap();
            shard.log_synced(key);
        }
    }
    let role = shard.group(key(0)).unwrap().role();
    assert!(role.is_leader && role.term == 9, "{role:?}");
}

#[test]
fn a_sole_voter_needs_no_time_and_others_do() {
    let mut alone = Nodes::new(1, 3, 4);
    alone.settle();
    assert_eq!(alone.leader(key(2)), Some(1));
    assert!(!alone.node(1).shard.needs_ticks());
    alone.append(key(1), "stored", 1);
    assert_eq!(alone.node(1).answers.len(), 1);
    let rolled = alone.node(1).shard.with(key(1), |group| {
        group.set_log_options(options());
        group.roll_if_aged(Timestamp::from_millis(10), 1)
    });
    rolled.unwrap().unwrap();
    let mut nodes = Nodes::new(3, 1, 4);
    nodes.settle();
    assert!(nodes.node(1).shard.needs_ticks());
}

#[test]
fn a_term_that_comes_from_nowhere_is_not_taken() {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    let follower = leader % 3 + 1;
    let term = |nodes: &Nodes| {
        let group = nodes.nodes[follower as usize - 1].shard.group(key(0));
        group.unwrap().role().term
    };
    let before = term(&nodes);
    for (above, is_taken) in [((1 << 24) + 1, false), (1 << 24, true)] {
        let mut message = Message {
            from: replica_of(leader, 0),
            to: replica_of(follower, 0),
            term: before + above,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgHeartbeat);
        let received = Received {
            key: key(0),
            incarnation: 1,
            message,
            payloads: Vec::new(),
            receipt: false,
        };
        let shard = &mut nodes.node(follower).shard;
        let taken = shard.receive(received, Timestamp::from_millis(0));
        assert_eq!((taken.is_ok(), term(&nodes) > before), (is_taken, is_taken));
    }
}

/// Whoever listens to nobody but those it knows, as long as it hears a leader, would never hear of another.
#[test]
fn a_replica_that_does_not_vote_forgets_a_leader_that_is_gone() {
    let (mut nodes, leader, learner) = with_learner();
    let knows = |nodes: &Nodes| {
        let group = nodes.nodes[learner as usize - 1].shard.group(key(0));
        group.unwrap().role().leader
    };
    // It hears of no more than heartbeats, and believes in its leader for as long as there are any.
    for _ in 0..200 {
        nodes.tick();
        assert_eq!(knows(&nodes), Some(replica_of(leader, 0)));
    }
    for id in (1..=3).filter(|id| *id != learner) {
        nodes.node(id).stop(false);
    }
    nodes.until("it has forgotten the leader", |nodes| {
        knows(nodes).is_none()
    });
}

/// Each broker makes its replica of a new partition in its own time.
#[test]
fn a_replica_that_is_made_after_its_leader_has_spoken_hears_of_it_at_once() {
    let mut nodes = Nodes::new(3, 2, 1);
    let (leader, late) = (1, 2);
    let (group, store) = nodes.node(late).take(key(1));
    nodes.node(leader).shard.with(key(1), Group::campaign);
    nodes.settle();
    assert_eq!(nodes.leader(key(1)), Some(leader));
    let node = nodes.node(late);
    node.shard.add(key(1), 1, group, store);
    nodes.settle();
    let role = nodes.nodes[late as usize - 1]
        .shard
        .group(key(1))
        .unwrap()
        .role();
    assert_eq!(role.leader, Some(replica_of(leader, 0)));
    assert_eq!(nodes.commit(late, key(1)), nodes.commit(leader, key(1)));
}

/// The link to a broker that is back is noticed long before the next heartbeat.
#[test]
fn a_broker_that_can_be_reached_again_hears_at_once_of_what_it_lacks() {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    let follower = leader % 3 + 1;
    nodes.node(follower).stop(false);
    for ticket in 0..50 {
        nodes.append(key(0), "while it was away", ticket);
    }
    nodes.node(leader).shard.unreachable(follower);
    nodes.node(follower).start(1);
    nodes.settle();
    let all = nodes.commit(leader, key(0));
    let has = |nodes: &Nodes| {
        let log = nodes.nodes[follower as usize - 1].shard.log(key(0));
        log.unwrap().end_index().get() - 1
    };
    assert!(has(&nodes) < all, "somebody has told it");
    nodes.node(leader).shard.reachable(follower);
    nodes.settle();
    assert_eq!(has(&nodes), all, "without any time that passes");
}

/// Each would give to the next what it has just got, with an election each time, for as long as all of them wait.
#[test]
fn brokers_that_all_stop_do_not_hand_leaderships_round() {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let term = |nodes: &Nodes| {
        let terms = nodes.nodes.iter();
        let terms = terms.map(|node| node.shard.group(key(0)).unwrap().role().term);
        terms.max().unwrap()
    };
    let before = term(&nodes);
    let mut calm = 0;
    for _ in 0..500 {
        let left: usize = (1..=3).map(|id| nodes.node(id).shard.hand_over()).sum();
        calm = if left == 0 { calm + 1 } else { 0 };
        nodes.settle();
        nodes.tick();
    }
    assert!(calm > 400, "they wait for each other still");
    let after = term(&nodes);
    assert!(
        (before + 1..=before + 3).contains(&after),
        "{before} to {after}"
    );
}

/// How far it is committed takes others to say from the first of them on; before that, its log says it. What is
/// recorded may lie far behind.
#[test]
fn a_sole_voter_that_stops_while_the_first_other_joins_knows_what_it_has_committed() {
    let mut nodes = Nodes::new(1, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    for ticket in 0..20 {
        nodes.append(key(0), "alone", ticket);
    }
    let committed = nodes.commit(1, key(0));
    let node = nodes.node(1);
    let filter = OpFilter::op(DiskOp::Write).on("state");
    node.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Forever);
    node.may_fail = true;
    recover::add_learner(&mut nodes, 1, 2);
    let node = nodes.node(1);
    assert!(node.has_failed);
    node.stop(false);
    node.start(1);
    let group = node.shard.group(key(0)).unwrap();
    assert!(group.log().has_uncommitted_change());
    assert_eq!(group.log().commit().get(), committed);
}

/// Raft itself lets anybody stand.
#[test]
fn a_replica_that_does_not_vote_never_stands_for_election() {
    let (mut nodes, leader, learner) = with_learner();
    let campaign = |group: &mut Group| group.campaign();
    nodes.node(learner).shard.with(key(0), campaign);
    nodes.settle();
    assert_eq!(nodes.leader(key(0)), Some(leader));
}

/// As one of a newer version would say it.
#[test]
fn a_receipt_of_a_kind_that_is_not_known_is_refused() {
    let mut nodes = Nodes::new(3, 1, 1);
    nodes.until("it is led", |nodes| nodes.leader(key(0)).is_some());
    let leader = nodes.leader(key(0)).unwrap();
    let received = Received {
        key: key(0),
        incarnation: 1,
        message: Message {
            msg_type: 255,
            from: replica_of(leader % 3 + 1, 0),
            to: replica_of(leader, 0),
            term: 6,
            ..Message::default()
        },
        payloads: Vec::new(),
        receipt: true,
    };
    let shard = &mut nodes.node(leader).shard;
    let taken = shard.receive(received, Timestamp::from_millis(0));
    taken.unwrap_err();
    nodes.append(key(0), "it goes on", 1);
}
