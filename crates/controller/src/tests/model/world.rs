//! What really happens at the brokers.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;

/// SplitMix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ z >> 31) % u64::from(n)).unwrap()
    }

    pub(super) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    pub(super) fn of<'t, T>(&mut self, all: &'t [T]) -> Option<&'t T> {
        let count = u32::try_from(all.len()).unwrap();
        (count > 0).then(|| &all[self.below(count) as usize])
    }

    pub(super) fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(u32::try_from(i).unwrap() + 1) as usize);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Up,
    /// Since when; it registers when it returns.
    Dead(u64),
    /// It returns as if nothing had happened.
    Paused(u64),
    /// As dead, and another disk must be registered first.
    Wiped(u64),
}

#[derive(Default)]
struct Group {
    members: Seen,
    leader: Option<ReplicaId>,
    epoch: u32,
    caught_up: BTreeSet<ReplicaId>,
}

struct Sent {
    at: u64,
    key: PartitionKey,
    planned_for: (ReplicaId, u32, u64),
    action: Action,
}

pub(super) struct World {
    pub(super) now: u64,
    random: Random,
    nodes: BTreeMap<NodeId, Node>,
    disks: BTreeMap<NodeId, u32>,
    groups: BTreeMap<PartitionKey, Group>,
    sent: Vec<Sent>,
    reports: Vec<(u64, PartitionKey, Report)>,
    is_calm: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            random: Random::new(!seed),
            nodes: (1..=6).map(|node| (node, Node::Up)).collect(),
            disks: BTreeMap::new(),
            groups: BTreeMap::new(),
            sent: Vec::new(),
            reports: Vec::new(),
            is_calm: false,
        }
    }

    pub(super) fn send(
        &mut self,
        key: PartitionKey,
        planned_for: (ReplicaId, u32, u64),
        action: Action,
    ) {
        // Some are lost, some come twice, and some come when they are forgotten.
        for _ in 0..[1, 1, 1, 0, 2][self.random.below(5) as usize] {
            let delays = [0, 500, 3_000, 20_000];
            let at = self.now + delays[self.random.below(4) as usize];
            let action = action.clone();
            self.sent.push(Sent {
                at,
                key,
                planned_for,
                action,
            });
        }
    }

    fn is_up(&self, cluster: &Cluster, replica: ReplicaId) -> bool {
        self.nodes[&node_of(replica)] == Node::Up && !cluster.is_lost(replica)
    }

    /// Whether those of `these` for which `test` holds can decide.
    fn is_quorum(members: &Seen, test: impl Fn(ReplicaId) -> bool) -> bool {
        let halves = [&members.voters, &members.voters_outgoing];
        halves.iter().all(|half| {
            let count = half.iter().filter(|replica| test(**replica)).count();
            half.is_empty() || 2 * count > half.len()
        })
    }

    pub(super) fn turn(&mut self, cluster: &Cluster, observed: &mut Observed) {
        self.groups
            .retain(|key, _| cluster.placement(key.topic, key.partition).is_some());
        for (key, placement) in cluster.placements() {
            self.groups.entry(key).or_insert_with(|| Group {
                members: Seen {
                    voters: placement.replicas.clone(),
                    ..Seen::default()
                },
                caught_up: placement.replicas.iter().copied().collect(),
                ..Group::default()
            });
        }
        self.deliver(cluster);
        let keys: Vec<_> = self.groups.keys().copied().collect();
        for key in keys {
            let mut group = self.groups.remove(&key).unwrap();
            self.live(cluster, key, &mut group);
            self.groups.insert(key, group);
        }
        for (node, state) in &self.nodes {
            if *state == Node::Up && cluster.broker(*node).is_some() && !self.random.one_in(4) {
                observed.heard.insert(*node, self.now);
            }
        }
        let now = self.now;
        let (come, stay) = std::mem::take(&mut self.reports)
            .into_iter()
            .partition(|r| r.0 <= now);
        self.reports = stay;
        let come: Vec<(u64, PartitionKey, Report)> = come;
        for (_, key, mut report) in come {
            report.at_ms = now;
            let before = observed.partitions.get(&key);
            // As promised: of the highest epoch, and what the leader said last. Those of one leader may
            // overtake each other here, which is worse.
            if before.is_none_or(|before| before.epoch <= report.epoch) {
                observed.partitions.insert(key, report);
            }
        }
    }

    /// Elects, catches up, reports.
    fn live(&mut self, cluster: &Cluster, key: PartitionKey, group: &mut Group) {
        let members = &group.members;
        let has_quorum = Self::is_quorum(members, |replica| self.is_up(cluster, replica));
        let is_voter = |replica: &ReplicaId| {
            members.voters.contains(replica) || members.voters_outgoing.contains(replica)
        };
        let is_led = group
            .leader
            .is_some_and(|leader| self.is_up(cluster, leader) && is_voter(&leader));
        if !has_quorum || !is_led {
            group.leader = None;
        }
        if group.leader.is_none() && has_quorum {
            let able = group.caught_up.iter().copied();
            let able: Vec<_> = able
                .filter(|r| is_voter(r) && self.is_up(cluster, *r))
                .collect();
            group.leader = self.random.of(&able).copied();
            group.epoch += 1;
        }
        let Some(leader) = group.leader else {
            return;
        };
        let (voters, learners) = (&members.voters, &members.learners);
        let all: BTreeSet<_> = voters
            .iter()
            .chain(&members.voters_outgoing)
            .chain(learners)
            .copied()
            .collect();
        group.caught_up.retain(|replica| all.contains(replica));
        for replica in all {
            if self.is_up(cluster, replica) {
                if self.random.one_in(if self.is_calm { 10 } else { 40 }) {
                    group.caught_up.insert(replica);
                }
            } else if Self::is_quorum(members, |other| {
                // What is appended meanwhile is on the others.
                other != replica && group.caught_up.contains(&other) && self.is_up(cluster, other)
            }) {
                group.caught_up.remove(&replica);
            }
        }
        if !self.random.one_in(4) {
            let report = Report {
                at_ms: 0,
                leader,
                epoch: group.epoch,
                members: group.members.clone(),
                caught_up: group.caught_up.clone(),
                lag: BTreeMap::new(),
            };
            let delays = [0, 0, 250, 2_000];
            let at = self.now + delays[self.random.below(4) as usize];
            self.reports.push((at, key, report));
        }
    }

    fn deliver(&mut self, cluster: &Cluster) {
        let now = self.now;
        let (come, stay) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|sent| sent.at <= now);
        self.sent = stay;
        let come: Vec<Sent> = come;
        for Sent {
            key,
            planned_for: (leader, epoch, index),
            action,
            ..
        } in come
        {
            let Some(mut group) = self.groups.remove(&key) else {
                continue;
            };
            let has_quorum = Self::is_quorum(&group.members, |r| self.is_up(cluster, r));
            let is_leading = group.leader == Some(leader) && self.is_up(cluster, leader);
            let is_current = group.epoch == epoch && is_leading && has_quorum;
            match action {
                Action::TransferLeadership(to) => {
                    let can = group.members.voters.contains(&to) && self.is_up(cluster, to);
                    if is_current && can && group.caught_up.contains(&to) && !self.random.one_in(5)
                    {
                        group.leader = Some(to);
                        group.epoch += 1;
                    }
                }
                change if is_current && group.members.index == index => {
                    group.change(leader, change);
                    group.members.index += 1 + u64::from(self.random.below(5));
                }
                _ => {}
            }
            self.groups.insert(key, group);
        }
    }

    /// Something bad happens to a broker.
    pub(super) fn disturb(&mut self, cluster: &Cluster) {
        let node = 1 + self.random.below(6);
        let down = self
            .nodes
            .values()
            .filter(|state| **state != Node::Up)
            .count();
        let now = self.now;
        if self.nodes[&node] != Node::Up || down >= 2 {
            return;
        }
        let state = match self.random.below(4) {
            0 => Node::Dead(now),
            1 | 2 => Node::Paused(now),
            _ if self.can_lose(cluster, node) => Node::Wiped(now),
            _ => return,
        };
        self.nodes.insert(node, state);
    }

    /// Whether everything is still on a majority without the disk of this node.
    fn can_lose(&self, cluster: &Cluster, node: NodeId) -> bool {
        let is_kept = |replica: ReplicaId| {
            let is_wiped = matches!(self.nodes[&node_of(replica)], Node::Wiped(_));
            node_of(replica) != node && !is_wiped && !cluster.is_lost(replica)
        };
        let groups = self.groups.values();
        let mut groups = groups.map(|group| group.members.clone());
        groups.all(|members| Self::is_quorum(&members, is_kept))
            && cluster.placements().all(|(_, placement)| {
                let change = placement.change.iter();
                let lists = change
                    .map(|change| &change.target)
                    .chain([&placement.replicas]);
                lists.cloned().all(|voters| {
                    let seen = Seen {
                        voters,
                        ..Seen::default()
                    };
                    Self::is_quorum(&seen, is_kept)
                })
            })
    }

    /// Brokers come back, and register where they have to.
    pub(super) fn returning(&mut self, cluster: &Cluster) -> Vec<ClusterCommand> {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(node, state)| (*node, *state))
            .collect();
        for (node, state) in nodes {
            let is_time = self.is_calm || self.random.one_in(60);
            let disk = self.disks.get(&node).copied().unwrap_or(0);
            let back = Registration {
                rack: cluster.broker(node).unwrap().registration.rack.clone(),
                directory: directory(node, disk),
                ..registration(node)
            };
            match state {
                Node::Paused(_) if is_time => {
                    self.nodes.insert(node, Node::Up);
                }
                Node::Dead(_) if is_time => {
                    self.nodes.insert(node, Node::Up);
                    return vec![cluster.decide_register(ID, back).unwrap()];
                }
                Node::Wiped(since) if is_time => {
                    let blank = Registration {
                        directory: directory(node, disk + 1),
                        ..back
                    };
                    let e = cluster.decide_register(ID, blank).unwrap_err();
                    assert!(matches!(e, BrokerError::OtherDirectory { .. }), "{e}");
                    if let Ok(replace) = cluster.decide_replace(node, directory(node, disk + 1)) {
                        self.disks.insert(node, disk + 1);
                        self.nodes.insert(node, Node::Dead(since));
                        return vec![replace];
                    }
                }
                _ => {}
            }
        }
        Vec::new()
    }

    pub(super) fn calm(&mut self) {
        self.is_calm = true;
    }

    /// Whoever is away for long enough is fenced.
    pub(super) fn check_fenced(&self, cluster: &Cluster, session_ms: u64) {
        for (node, state) in &self.nodes {
            if let Node::Dead(since) | Node::Paused(since) | Node::Wiped(since) = state
                && self.now > since + session_ms
            {
                assert!(
                    cluster.broker(*node).unwrap().is_fenced,
                    "node {node} is away"
                );
            }
        }
    }

    pub(super) fn is_any_wiped(&self) -> bool {
        let mut states = self.nodes.values();
        states.any(|state| matches!(state, Node::Wiped(_)))
    }

    pub(super) fn describe(&self, key: PartitionKey) -> String {
        let group = &self.groups[&key];
        format!(
            "{:?} leads {:?}, of which {:?} are caught up",
            group.leader, group.members, group.caught_up
        )
    }

    pub(super) fn check_settled(&self, key: PartitionKey, placement: &Placement) {
        let group = &self.groups[&key];
        let set = |list: &[ReplicaId]| list.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(
            set(&group.members.voters),
            set(&placement.replicas),
            "{key:?}"
        );
        assert!(!group.members.is_joint(), "{key:?}");
        assert_eq!(group.members.learners, [], "{key:?}");
        assert_eq!(group.leader, Some(placement.replicas[0]), "{key:?}");
    }
}

impl Group {
    /// What the leader does; it refuses what groups refuse, and what should not have been asked fails.
    fn change(&mut self, leader: ReplicaId, action: Action) {
        let members = &mut self.members;
        match action {
            Action::AddLearner(replica) => {
                assert!(!members.voters.contains(&replica));
                assert!(!members.learners.contains(&replica));
                members.learners.push(replica);
                self.caught_up.remove(&replica);
            }
            Action::RemoveLearner(replica) => members.learners.retain(|other| *other != replica),
            Action::EnterJoint(voters) => {
                assert!(!members.is_joint());
                assert!(voters.contains(&leader), "a leader does not leave");
                let is_member = |replica: &ReplicaId| {
                    members.voters.contains(replica) || members.learners.contains(replica)
                };
                assert!(voters.iter().all(is_member));
                members.learners.retain(|replica| !voters.contains(replica));
                members.voters_outgoing = std::mem::replace(&mut members.voters, voters);
            }
            Action::LeaveJoint => {
                assert!(members.is_joint() && members.voters.contains(&leader));
                members.voters_outgoing.clear();
            }
            Action::ConfirmMembers => {}
            Action::TransferLeadership(_) => unreachable!("that changes no members"),
        }
    }
}
