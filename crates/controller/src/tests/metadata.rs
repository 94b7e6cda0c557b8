//! Who holds the metadata.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What a leader sees: all are caught up but those named.
fn report(leader: ReplicaId, voters: &[ReplicaId], learners: &[ReplicaId]) -> Report {
    let all = voters.iter().chain(learners).copied();
    Report {
        at_ms: 0,
        leader,
        epoch: 7,
        members: Seen {
            voters: voters.to_vec(),
            voters_outgoing: Vec::new(),
            learners: learners.to_vec(),
            index: 9,
        },
        caught_up: all.collect(),
        lag: BTreeMap::new(),
    }
}

/// Does what is planned to what is seen, until nothing is left to be done.
fn settle(cluster: &Cluster, mut seen: Report) -> (Report, Vec<Action>) {
    let mut done = Vec::new();
    while let Some(action) = plan_metadata(cluster, &seen) {
        assert!(done.len() < 50, "it never ends: {done:?}");
        match &action {
            Action::AddLearner(id) => {
                seen.members.learners.push(*id);
                seen.caught_up.insert(*id);
            }
            Action::RemoveLearner(id) => seen.members.learners.retain(|other| other != id),
            Action::EnterJoint(target) => {
                assert!(target.contains(&seen.leader), "a leader never leaves");
                seen.members.voters_outgoing = seen.members.voters.clone();
                seen.members.voters = target.clone();
                seen.members.learners.retain(|id| !target.contains(id));
            }
            Action::LeaveJoint => seen.members.voters_outgoing.clear(),
            Action::TransferLeadership(to) => {
                assert!(seen.members.voters.contains(to));
                seen.leader = *to;
            }
            Action::ConfirmMembers => panic!("there is nothing to be confirmed"),
        }
        done.push(action);
    }
    (seen, done)
}

fn sorted(ids: &[ReplicaId]) -> BTreeSet<ReplicaId> {
    ids.iter().copied().collect()
}

#[test]
fn founders_vote_and_stay_although_they_have_not_registered() {
    for registered in 1..=3 {
        let cluster = cluster(registered, &[]);
        assert_eq!(plan_metadata(&cluster, &report(1, &[1, 2, 3], &[])), None);
    }
    assert_eq!(
        plan_metadata(&Cluster::default(), &report(1, &[1, 2, 3], &[])),
        None
    );
}

#[test]
fn who_joins_learns_and_votes_where_voters_are_lacking() {
    let (seen, _) = settle(&cluster(2, &[]), report(1, &[1], &[]));
    assert_eq!(
        (&seen.members.voters[..], &seen.members.learners[..]),
        (&[1][..], &[2][..])
    );
    let (seen, _) = settle(&cluster(3, &[]), seen);
    assert_eq!(sorted(&seen.members.voters), sorted(&[1, 2, 3]));
    let (seen, _) = settle(&cluster(4, &[]), seen);
    assert_eq!(sorted(&seen.members.voters), sorted(&[1, 2, 3]));
    assert_eq!(seen.members.learners, [4]);
    let (seen, _) = settle(&cluster(5, &[]), seen);
    assert_eq!(seen.members.voters.len(), 5);
    let (seen, done) = settle(&cluster(6, &[]), seen);
    assert_eq!((seen.members.voters.len(), done.len()), (5, 1));
}

#[test]
fn who_lags_does_not_vote_yet() {
    let cluster = cluster(3, &[]);
    let mut seen = report(1, &[1], &[2, 3]);
    seen.caught_up.remove(&3);
    seen.caught_up.remove(&2);
    assert_eq!(plan_metadata(&cluster, &seen), None);
}

#[test]
fn one_more_than_an_odd_number_waits_for_another_one() {
    let cluster = cluster(5, &[]);
    let mut seen = report(1, &[1, 2, 3], &[4, 5]);
    seen.caught_up.remove(&5);
    assert_eq!(plan_metadata(&cluster, &seen), None);
    seen.caught_up.insert(5);
    let (seen, _) = settle(&cluster, seen);
    assert_eq!(seen.members.voters.len(), 5);
}

#[test]
fn a_disk_that_was_lost_is_replaced_by_another_replica() {
    let mut cluster = cluster(3, &[]);
    fence(&mut cluster, 2, true);
    let replace = cluster.decide_replace(2, directory(2, 1)).unwrap();
    commit(&mut cluster, replace);
    let mut seen = report(1, &[1, 2, 3], &[]);
    seen.caught_up.remove(&2);
    // Not before it is there.
    let waits = plan_metadata(&cluster, &seen);
    assert!(!matches!(waits, Some(Action::AddLearner(_))), "{waits:?}");
    let back = Registration {
        directory: directory(2, 1),
        ..registration(2)
    };
    let register = cluster.decide_register(ID, back).unwrap();
    commit(&mut cluster, register);
    let (seen, _) = settle(&cluster, seen);
    assert_eq!(
        sorted(&seen.members.voters),
        sorted(&[1, replica_of(2, 1), 3])
    );
}

#[test]
fn a_leader_that_was_removed_hands_over_and_goes() {
    let mut cluster = cluster(4, &[]);
    let remove = cluster.decide_remove(1).unwrap();
    commit(&mut cluster, remove);
    let (seen, _) = settle(&cluster, report(1, &[1, 2, 3], &[4]));
    assert_ne!(seen.leader, 1);
    assert_eq!(sorted(&seen.members.voters), sorted(&[2, 3, 4]));
}

#[test]
fn notes_are_read_as_they_were_said() {
    let key = PartitionKey {
        topic: topic_id(3),
        partition: 2,
    };
    let mut seen = report(1, &[1, 2, 3], &[4]);
    seen.lag.extend([(1, 0), (2, 0), (3, 7), (4, 0)]);
    seen.caught_up.remove(&3);
    seen.members.voters_outgoing = vec![1, 2];
    let act = |action| {
        Note::Act(Order {
            key,
            leader: 1,
            epoch: 7,
            members_index: 9,
            action,
        })
    };
    let notes = [
        Note::Heartbeat {
            epoch: 5,
            reports: vec![(key, seen)],
            faults: vec![ReplicaFault {
                key,
                cause: "no disk".to_owned(),
            }],
            resigning: None,
        },
        Note::Heartbeat {
            epoch: 6,
            reports: Vec::new(),
            faults: Vec::new(),
            resigning: Some(Resigning::Other),
        },
        Note::Heartbeat {
            epoch: 6,
            reports: Vec::new(),
            faults: Vec::new(),
            resigning: Some(Resigning::DiskHangs),
        },
        act(Action::AddLearner(5)),
        act(Action::RemoveLearner(5)),
        act(Action::EnterJoint(vec![1, 2, replica_of(3, 1)])),
        act(Action::LeaveJoint),
        act(Action::ConfirmMembers),
        act(Action::TransferLeadership(2)),
        Note::Register {
            cluster: ID,
            registration: registration(4),
            epoch_before: 3,
        },
        Note::RegisterRefused {
            cause: "another disk".to_owned(),
        },
    ];
    for note in &notes {
        assert_eq!(Note::decode(&note.encode()).as_ref(), Ok(note));
    }
    let lines: Vec<String> = notes
        .iter()
        .map(|note| {
            note.encode()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        })
        .collect();
    assert_eq!(
        lines.join("\n"),
        include_str!("notes.hex").trim(),
        "{}",
        lines.join("\n")
    );
}

proptest::proptest! {
    #[test]
    fn arbitrary_notes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        Note::decode(&bytes).ok();
    }
}

#[test]
fn a_draining_broker_does_not_make_the_number_of_voters_even() {
    let mut cluster = cluster(5, &[]);
    let drain = cluster.decide_drain(5).unwrap();
    commit(&mut cluster, drain);
    // Broker 4 would be one of four, and each decision would need one more of them.
    let (seen, _) = settle(&cluster, report(1, &[1, 2, 3], &[4, 5]));
    assert_eq!(sorted(&seen.members.voters), sorted(&[1, 2, 3]));
    let undrain = cluster.decide_undrain(5).unwrap();
    commit(&mut cluster, undrain);
    let (seen, _) = settle(&cluster, seen);
    assert_eq!(sorted(&seen.members.voters), sorted(&[1, 2, 3, 4, 5]));
}

#[test]
fn of_two_voters_the_one_that_is_draining_goes() {
    let mut cluster = cluster(2, &[]);
    let (seen, _) = settle(&cluster, report(1, &[1, 2], &[]));
    assert_eq!(sorted(&seen.members.voters), sorted(&[1, 2]));
    assert!(cluster.decide_remove_heard(2, &seen.members).is_err());
    let drain = cluster.decide_drain(2).unwrap();
    commit(&mut cluster, drain);
    let (seen, _) = settle(&cluster, seen);
    assert_eq!(seen.members.voters, [1]);
    assert!(cluster.decide_remove_heard(2, &seen.members).is_ok());
    // Where a third may vote once it has caught up, it stays until then.
    let mut three = self::cluster(3, &[]);
    let drain = three.decide_drain(2).unwrap();
    commit(&mut three, drain);
    let mut lagging = report(1, &[1, 2], &[3]);
    lagging.caught_up.remove(&3);
    assert_eq!(plan_metadata(&three, &lagging), None);
    let (seen, _) = settle(&three, report(1, &[1, 2], &[3]));
    assert_eq!(sorted(&seen.members.voters), sorted(&[1, 2, 3]));
    // Where the other one cannot be without it, it stays.
    fence(&mut cluster, 1, true);
    assert_eq!(plan_metadata(&cluster, &report(2, &[1, 2], &[])), None);
}

#[test]
fn a_broker_whose_vote_is_needed_is_not_removed() {
    let mut cluster = cluster(3, &[]);
    let members = |voters: &[ReplicaId], outgoing: &[ReplicaId]| Seen {
        voters: voters.to_vec(),
        voters_outgoing: outgoing.to_vec(),
        ..Seen::default()
    };
    let all = members(&[1, 2, 3], &[]);
    assert!(cluster.decide_remove_heard(3, &all).is_ok());
    fence(&mut cluster, 2, true);
    let e = cluster.decide_remove_heard(3, &all).unwrap_err();
    let needed = BrokerError::VoterNeeded {
        node: 3,
        voters: 3,
        others: 1,
    };
    assert_eq!(e, needed);
    assert!(e.to_string().contains("no majority"), "{e}");
    // The one that is not heard can go, as can one that does not vote.
    assert!(cluster.decide_remove_heard(2, &all).is_ok());
    assert!(cluster.decide_remove_heard(3, &members(&[1], &[])).is_ok());
    // In a joint configuration both majorities are needed.
    let joint = members(&[1], &[1, 2, 3]);
    assert!(cluster.decide_remove_heard(3, &joint).is_err());
}
