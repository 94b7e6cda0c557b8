//! Where replicas go: over racks first, then to the brokers that have the fewest, and the leaderships
//! to those that have the fewest of these. The same state gives the same placement.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidelog_record::TopicId;

use crate::cluster::{Cluster, Placement, REPLICAS_MAX};
use crate::ids::{NodeId, ReplicaId, node_of, replica_of};

/// The most members a group may have, each counted twice while they change: a limit of what a broker
/// remembers of a group.
const CHANGING_MEMBERS_MAX: usize = 24;

/// How much brokers have, of one topic and of all.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Of each node: replicas of the topic, replicas of all topics, then preferred leaderships, likewise.
    counts: BTreeMap<NodeId, Count>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    of_topic: i64,
    of_all: i64,
    leaders_of_topic: i64,
    leaders_of_all: i64,
}

/// A broker that a replica can go to.
#[derive(Clone, Copy, Debug)]
struct Candidate<'c> {
    node: NodeId,
    rack: Option<&'c str>,
}

impl Load {
    /// As it will be once all changes under way are done; `topic` is the one that counts most.
    pub(crate) fn new(cluster: &Cluster, topic: Option<TopicId>) -> Self {
        let mut load = Self::default();
        for (key, placement) in cluster.placements() {
            let change = placement.change.as_ref();
            let after = change.map_or(&placement.replicas, |change| &change.target);
            load.add(after, topic == Some(key.topic));
        }
        load
    }

    fn add(&mut self, replicas: &[ReplicaId], is_of_topic: bool) {
        for (i, replica) in replicas.iter().enumerate() {
            let count = self.counts.entry(node_of(*replica)).or_default();
            count.of_all += 1;
            count.of_topic += i64::from(is_of_topic);
            if i == 0 {
                count.leaders_of_all += 1;
                count.leaders_of_topic += i64::from(is_of_topic);
            }
        }
    }

    /// A replica moves.
    pub(crate) fn shift(&mut self, from: NodeId, to: NodeId) {
        self.counts.entry(from).or_default().of_all -= 1;
        self.counts.entry(to).or_default().of_all += 1;
    }

    fn of(&self, node: NodeId) -> Count {
        self.counts.get(&node).copied().unwrap_or_default()
    }

    /// The candidate for the next replica of a partition that is at `taken` already. Racks are compared
    /// by how much they have for each broker in them, multiplied out so that no fraction is lost.
    fn pick<'c>(
        &self,
        candidates: &[Candidate<'c>],
        taken: &[Candidate<'c>],
    ) -> Option<Candidate<'c>> {
        let mut racks: BTreeMap<Option<&str>, (i64, i64, i64)> = BTreeMap::new();
        for candidate in candidates {
            let (size, of_topic, of_all) = racks.entry(candidate.rack).or_default();
            *size += 1;
            *of_topic += self.of(candidate.node).of_topic;
            *of_all += self.of(candidate.node).of_all;
        }
        // Racks have at most some thousand brokers, and brokers some million replicas.
        let scale: i64 = 1 << 20;
        let free = candidates
            .iter()
            .filter(|candidate| taken.iter().all(|other| other.node != candidate.node));
        free.min_by_key(|candidate| {
            let here = taken.iter().filter(|other| other.rack == candidate.rack);
            let (size, of_topic, of_all) = racks[&candidate.rack];
            let count = self.of(candidate.node);
            (
                here.count(),
                of_topic * scale / size,
                of_all * scale / size,
                count.of_topic,
                count.of_all,
                candidate.node,
            )
        })
        .copied()
    }
}

fn candidates(cluster: &Cluster, is_allowed: impl Fn(NodeId) -> bool) -> Vec<Candidate<'_>> {
    let allowed = cluster.brokers.keys().filter(|node| is_allowed(**node));
    allowed.map(|node| candidate(cluster, *node)).collect()
}

fn candidate(cluster: &Cluster, node: NodeId) -> Candidate<'_> {
    let broker = cluster.broker(node);
    let rack = broker.and_then(|broker| broker.registration.rack.as_deref());
    Candidate { node, rack }
}

/// The brokers that have these.
fn taken<'c>(cluster: &'c Cluster, replicas: &[ReplicaId]) -> Vec<Candidate<'c>> {
    let nodes = replicas.iter().map(|replica| node_of(*replica));
    nodes.map(|node| candidate(cluster, node)).collect()
}

/// The broker that gets one more replica, the only one of its partition; none that is excluded.
pub(crate) fn one_more(
    cluster: &Cluster,
    load: &mut Load,
    is_excluded: impl Fn(NodeId) -> bool,
) -> Option<NodeId> {
    let others = candidates(cluster, |node| !is_excluded(node));
    let next = load.pick(&others, &[])?;
    load.add(&[replica_of(next.node, 0)], false);
    Some(next.node)
}

/// The replicas of a partition with as many more as it lacks, and brokers can take; `None` where none can.
pub(crate) fn with_more(
    cluster: &Cluster,
    placement: &Placement,
    load: &mut Load,
) -> Option<Vec<ReplicaId>> {
    let usable = candidates(cluster, |node| {
        cluster
            .broker(node)
            .is_some_and(|broker| broker.is_usable())
    });
    let mut target = placement.replicas.clone();
    let mut taken = taken(cluster, &target);
    for _ in 0..placement.lacking {
        if target.len() >= REPLICAS_MAX {
            break;
        }
        let Some(next) = load.pick(&usable, &taken) else {
            break;
        };
        taken.push(next);
        target.push(cluster.fresh(next.node, placement));
        load.counts.entry(next.node).or_default().of_all += 1;
    }
    (target.len() > placement.replicas.len()).then_some(target)
}

/// Places `count` new partitions of a topic with `factor` replicas each; there are at least so many
/// unfenced brokers. Draining ones are taken only if there are too few others.
pub(crate) fn place(
    cluster: &Cluster,
    topic: Option<TopicId>,
    count: u32,
    factor: usize,
) -> Vec<Vec<ReplicaId>> {
    let is = |node: NodeId, test: fn(&crate::cluster::Broker) -> bool| {
        cluster.broker(node).is_some_and(test)
    };
    let mut allowed = candidates(cluster, |node| is(node, |broker| broker.is_usable()));
    if allowed.len() < factor {
        allowed = candidates(cluster, |node| is(node, |broker| !broker.is_fenced));
    }
    let mut load = Load::new(cluster, topic);
    let mut placed: Vec<Vec<ReplicaId>> = Vec::new();
    for _ in 0..count {
        let mut taken = Vec::new();
        while taken.len() < factor
            && let Some(next) = load.pick(&allowed, &taken)
        {
            taken.push(next);
        }
        let replicas = in_order(cluster, &load, taken.iter().map(|candidate| candidate.node));
        load.add(&replicas, true);
        placed.push(replicas);
    }
    even_out(&mut placed, &mut load);
    placed
}

/// Each leadership went to whoever had the fewest then. Now that all are known, they go on as long as a broker
/// then has two fewer than another: from that one to another replica of a partition, whose broker gives one of
/// its own on, and so on to the one with fewer. When no such way is left, none makes it more even.
fn even_out(placed: &mut [Vec<ReplicaId>], load: &mut Load) {
    while let Some(way) = way_to_fewer(placed, load) {
        for (partition, to) in way {
            let replicas = &mut placed[partition];
            for (at, change) in [(0, -1), (to, 1)] {
                let count = load.counts.entry(node_of(replicas[at])).or_default();
                count.leaders_of_topic += change;
                count.leaders_of_all += change;
            }
            replicas.rotate_left(to);
        }
    }
}

/// By which partitions, each with the replica that is to lead it, a leadership can go on from a broker that has
/// two more of the topic than the one at the end. Tried from the brokers with the most on.
fn way_to_fewer(placed: &[Vec<ReplicaId>], load: &Load) -> Option<Vec<(usize, usize)>> {
    let mut led: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (partition, replicas) in placed.iter().enumerate() {
        led.entry(node_of(*replicas.first()?))
            .or_default()
            .push(partition);
    }
    let leads = |node: NodeId| load.of(node).leaders_of_topic;
    let mut most: Vec<NodeId> = led.keys().copied().collect();
    most.sort_by_key(|node| (-leads(*node), *node));
    for first in most {
        // How each broker was come to: by which partition, to which of its replicas.
        let mut by: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
        let mut next = VecDeque::from([first]);
        while let Some(node) = next.pop_front() {
            for partition in led.get(&node).into_iter().flatten() {
                for (to, replica) in placed[*partition].iter().enumerate() {
                    let other = node_of(*replica);
                    if other == first || by.contains_key(&other) {
                        continue;
                    }
                    by.insert(other, (*partition, to));
                    if leads(other) + 2 <= leads(first) {
                        return Some(way_back(placed, &by, first, other));
                    }
                    next.push_back(other);
                }
            }
        }
    }
    None
}

/// The way by which `last` was come to.
fn way_back(
    placed: &[Vec<ReplicaId>],
    by: &BTreeMap<NodeId, (usize, usize)>,
    first: NodeId,
    last: NodeId,
) -> Vec<(usize, usize)> {
    let mut way = Vec::new();
    let mut node = last;
    while node != first {
        let (partition, to) = by[&node];
        way.push((partition, to));
        node = node_of(placed[partition][0]);
    }
    way
}

/// The preferred leader first, then the others in a circle from it on, so that the second choices are
/// spread as well.
fn in_order(cluster: &Cluster, load: &Load, nodes: impl Iterator<Item = NodeId>) -> Vec<ReplicaId> {
    let nodes: BTreeSet<NodeId> = nodes.collect();
    let leader = nodes.iter().min_by_key(|node| {
        let count = load.of(**node);
        (count.leaders_of_topic, count.leaders_of_all, **node)
    });
    let leader = leader.copied().unwrap_or_default();
    let (before, from): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| **node < leader);
    let circle = from.into_iter().chain(before);
    circle
        .map(|node| {
            let generation = cluster.broker(node).map_or(0, |broker| broker.generation);
            replica_of(node, generation)
        })
        .collect()
}

/// Other replicas instead of those that must not stay where they are: on draining brokers, at `leave`,
/// or lost with a disk. A lost one comes back at its own broker, once that is there. `None` when nothing
/// can be done now; what cannot be replaced yet stays.
pub(crate) fn elsewhere(
    cluster: &Cluster,
    placement: &Placement,
    load: &mut Load,
    leave: Option<NodeId>,
) -> Option<Vec<ReplicaId>> {
    let is_draining = |node| {
        cluster
            .broker(node)
            .is_some_and(|broker| broker.is_draining)
    };
    let is_usable = |node| {
        cluster
            .broker(node)
            .is_some_and(|broker| broker.is_usable())
    };
    let must_leave = |node| is_draining(node) || leave == Some(node);
    let allowed = candidates(cluster, |node| is_usable(node) && leave != Some(node));
    let mut target = placement.replicas.clone();
    // Half of what is left beside those that are there goes to new ones, half to removed ones.
    let mut moves = CHANGING_MEMBERS_MAX.saturating_sub(2 * target.len()) / 4;
    for i in 0..target.len() {
        let (replica, node) = (target[i], node_of(target[i]));
        let to = if moves == 0 {
            None
        } else if must_leave(node) {
            // The one that leaves takes no room in its rack, and cannot be chosen either.
            let mut kept = taken(cluster, &target);
            kept.remove(i);
            let free: Vec<_> = allowed
                .iter()
                .filter(|candidate| candidate.node != node)
                .copied()
                .collect();
            load.pick(&free, &kept).map(|candidate| candidate.node)
        } else if cluster.is_lost(replica) && is_usable(node) {
            Some(node)
        } else {
            None
        };
        if let Some(to) = to {
            load.shift(node, to);
            target[i] = cluster.fresh(to, placement);
            moves -= 1;
        }
    }
    (target != placement.replicas).then_some(target)
}

/// Whether the groups' memory of their members is enough for going from the one to the other.
pub(crate) fn fits_one_change(before: &[ReplicaId], after: &[ReplicaId]) -> bool {
    let added = after
        .iter()
        .filter(|replica| !before.contains(replica))
        .count();
    let removed = before
        .iter()
        .filter(|replica| !after.contains(replica))
        .count();
    2 * (before.len() + added) + added + removed <= CHANGING_MEMBERS_MAX
}
