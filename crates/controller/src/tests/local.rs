//! What a broker is to have, and what a leader makes of an order.

use super::*;

const TOPIC: TopicId = TopicId::from_bytes([7; 16]);
const KEY: PartitionKey = PartitionKey {
    topic: TOPIC,
    partition: 0,
};

fn want(cluster: &Cluster, local: LocalBroker) -> Option<Wanted> {
    local.wanted(cluster, TOPIC, 0..1).pop()
}

#[test]
fn a_broker_on_a_new_disk_never_makes_what_was_on_the_lost_one() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 7, &[&[1, 2, 3]]);
    let before = LocalBroker::new(1, 0);
    let placement = cluster.placement(TOPIC, 0).unwrap();
    assert_eq!(before.replica(placement), Some(replica_of(1, 0)));
    assert!(want(&cluster, before).unwrap().leads_first);

    fence(&mut cluster, 1, true);
    let replace = cluster.decide_replace(1, directory(1, 1)).unwrap();
    commit(&mut cluster, replace);
    let after = LocalBroker::new(1, cluster.broker(1).unwrap().generation);
    let placement = cluster.placement(TOPIC, 0).unwrap();
    assert_eq!(after.replica(placement), None);
    assert_eq!(after.at_start(&cluster, placement, None), AtStart::Unwanted);
    assert_eq!(want(&cluster, after), None);
    // It gets another one.
    let begin = ClusterCommand::BeginReassignment {
        key: KEY,
        target: vec![replica_of(1, 1), replica_of(2, 0), replica_of(3, 0)],
        is_automatic: true,
    };
    commit(&mut cluster, begin);
    let wanted = want(&cluster, after).unwrap();
    assert_eq!(wanted.replica, replica_of(1, 1));
    assert_eq!(wanted.founders, [1, 2, 3].map(|node| replica_of(node, 0)));
    assert!(!wanted.leads_first);
}

/// A topic that was deleted before the disk was replaced leaves no trace of the numbers it had.
#[test]
fn a_broker_on_a_new_disk_makes_nothing_by_what_was_decided_before_it_had_that() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 7, &[&[1, 2, 3]]);
    let target = [replica_of(1, 2), replica_of(2, 0), replica_of(3, 0)];
    let placed = cluster.placements.get_mut(&TOPIC).unwrap();
    placed.partitions[0].replicas = target.into();
    let early = cluster.clone();
    let delete = ClusterCommand::Topics(Command::Delete { id: TOPIC });
    commit(&mut cluster, delete);
    fence(&mut cluster, 1, true);
    let replace = cluster.decide_replace(1, directory(1, 1)).unwrap();
    commit(&mut cluster, replace);
    let after = LocalBroker::new(1, cluster.broker(1).unwrap().generation);
    assert_eq!(after.generation, 1);

    let placement = early.placement(TOPIC, 0).unwrap();
    assert!(
        want(&early, after).is_some(),
        "by its number it could be its own"
    );
    assert!(!after.may_make(&early) && after.may_make(&cluster));
    assert_eq!(after.at_start(&early, placement, None), AtStart::Later);
    // What it has is never taken for what it has not.
    let own = replica_of(1, 2);
    assert_eq!(
        after.at_start(&early, placement, Some(own)),
        AtStart::Opened(own)
    );
}

#[test]
fn what_is_here_stays_or_makes_way() {
    let mut cluster = cluster(3, &[]);
    create(&mut cluster, "t", 7, &[&[1]]);
    let local = LocalBroker::new(1, 0);
    let wanted = want(&cluster, local).unwrap();
    let (own, other) = (wanted.replica, replica_of(1, 4));
    let cases = [
        (Here::Serving(own), Fate::Stays, Fate::Removed),
        (Here::Serving(other), Fate::Removed, Fate::Removed),
        (Here::Faulted(Some(own)), Fate::Stays, Fate::Removed),
        (Here::Faulted(None), Fate::Stays, Fate::Removed),
        (Here::Faulted(Some(other)), Fate::Removed, Fate::Removed),
        (Here::Nothing, Fate::Absent, Fate::Absent),
    ];
    for (here, wanted_here, elsewhere) in cases {
        assert_eq!(local.fate(here, Some(&wanted)), wanted_here, "{here:?}");
        assert_eq!(local.fate(here, None), elsewhere, "{here:?}");
    }
    let placement = cluster.placement(TOPIC, 0).unwrap();
    assert_eq!(
        local.at_start(&cluster, placement, None),
        AtStart::Opened(own)
    );
    assert_eq!(
        local.at_start(&cluster, placement, Some(own)),
        AtStart::Opened(own)
    );
    assert_eq!(
        local.at_start(&cluster, placement, Some(other)),
        AtStart::Later
    );
    let elsewhere = LocalBroker::new(2, 0);
    assert_eq!(
        elsewhere.at_start(&cluster, placement, None),
        AtStart::Unwanted
    );
}

#[test]
fn whoever_says_that_it_leads_is_asked_by_a_broker_that_knows_the_founders_only() {
    let leads = Report {
        leader: replica_of(5, 0),
        epoch: 9,
        ..Report::default()
    };
    let mut seen = Observed::default();
    let founders = Cluster::default().others(2, &[1, 2, 3]);
    let all = |nodes: &[NodeId]| nodes.iter().copied().collect();
    assert_eq!(seen.registrars(2, None, &founders, KEY), all(&[1, 3]));
    seen.heartbeat(5, true, vec![(KEY, leads)], 10);
    assert_eq!(seen.registrars(2, None, &founders, KEY), all(&[1, 3, 5]));
    // Its own replica knows better.
    assert_eq!(seen.registrars(2, Some(3), &founders, KEY), all(&[3]));
    assert_eq!(seen.registrars(2, Some(2), &founders, KEY), all(&[]));
}

#[test]
fn whoever_is_behind_listens_to_a_leader_that_it_does_not_know_yet() {
    let (old, new) = (directory(5, 0), directory(5, 1));
    let known = KnownOf {
        registered: Some(old),
        ..KnownOf::default()
    };
    assert_eq!(known.admits(old, || false), Admission::Admitted);
    assert_eq!(known.admits(new, || false), Admission::OtherDirectory(old));
    assert_eq!(known.admits(new, || true), Admission::Admitted);
    let unknown = KnownOf::default();
    assert_eq!(unknown.admits(new, || false), Admission::Unknown);
    assert_eq!(unknown.admits(new, || true), Admission::Admitted);
    let removed = KnownOf {
        founded: Some(old),
        removed: Some(old),
        ..KnownOf::default()
    };
    assert_eq!(removed.admits(old, || false), Admission::Removed);
    assert_eq!(removed.admits(old, || true), Admission::Removed);
    // It may have joined again, and be the only one that can tell.
    assert_eq!(removed.admits(new, || false), Admission::Removed);
    assert_eq!(removed.admits(new, || true), Admission::Admitted);
    let never_came = KnownOf {
        removed: Some(DirectoryId::from_bytes([0; 16])),
        ..removed
    };
    assert_eq!(never_came.admits(old, || true), Admission::Removed);
    assert_eq!(never_came.admits(new, || true), Admission::Admitted);

    let cluster = cluster(3, &[]);
    assert!(cluster.may_lack(None, &[]));
    assert!(!cluster.may_lack(Some(replica_of(3, 0)), &[]));
    // It has another disk, has joined, or founded the cluster and did not register.
    assert!(cluster.may_lack(Some(replica_of(3, 1)), &[]));
    assert!(cluster.may_lack(Some(replica_of(4, 0)), &[]));
    assert!(!cluster.may_lack(Some(replica_of(4, 0)), &[4]));

    // Whoever leads on a disk that is lost is behind itself.
    let mut replaced = cluster;
    fence(&mut replaced, 3, true);
    let replace = replaced.decide_replace(3, directory(3, 1)).unwrap();
    commit(&mut replaced, replace);
    assert!(!replaced.may_lack(Some(replica_of(3, 0)), &[]));
    assert!(!replaced.may_lack(Some(replica_of(3, 1)), &[]));
}

#[test]
fn an_order_is_for_one_leadership_and_its_members() {
    let members = Seen {
        voters: vec![1, 2, 3],
        learners: vec![4],
        index: 9,
        ..Seen::default()
    };
    let order = |action| Order {
        key: KEY,
        leader: 1,
        epoch: 6,
        members_index: 9,
        action,
    };
    let joint = order(Action::EnterJoint(vec![1, 2, 4]));
    let change = MembersChange {
        voters: vec![4],
        removed: vec![3],
        is_joint: true,
        ..MembersChange::default()
    };
    assert_eq!(joint.at(1, Some(6), &members), Ok(Ordered::Change(change)));
    // It follows, leads in another epoch, is another one, or has other members by now.
    assert!(joint.at(1, None, &members).is_err());
    assert!(joint.at(1, Some(7), &members).is_err());
    assert!(joint.at(2, Some(6), &members).is_err());
    let later = Seen {
        index: 10,
        ..members.clone()
    };
    assert!(joint.at(1, Some(6), &later).is_err());
    // Leaderships go over whoever the members are.
    let transfer = order(Action::TransferLeadership(2));
    assert_eq!(transfer.at(1, Some(6), &later), Ok(Ordered::Transfer(2)));
    assert!(
        order(Action::AddLearner(4))
            .at(1, Some(6), &members)
            .is_err()
    );
    let unknown = order(Action::RemoveLearner(5));
    assert!(unknown.at(1, Some(6), &members).is_err());
}
