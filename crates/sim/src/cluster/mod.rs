//! A whole cluster in one thread, from one seed: nodes with the replicas of several partitions on
//! simulated disks, a network that loses, repeats, delays, reorders and damages, clients that retry,
//! and checks of what they were promised.
//!
//! Time is a number that jumps to the next event (`events.rs`), so a minute of it takes a few
//! milliseconds. A node (`node.rs`) is the code that a broker runs: the shard, its groups, their logs,
//! recovery; here are only its surroundings. What comes of a turn is done as a broker
//! does it (`turns.rs`). What a node has for another after a turn is one frame (`frames.rs`). Faults
//! (`faults.rs`) are drawn from the seed. Producers (`clients.rs`) send idempotent batches, several at
//! a time, again and again until they are acknowledged; others read, trim and roll (`admin.rs`), and
//! members come and go (`members.rs`), or the nodes decide that for themselves, as brokers do (`controlled/`). All along and at the end (`checks.rs`) it is asked whether
//! - replicas agree on every committed entry, byte by byte, and on where their logs start;
//! - a term has one leader;
//! - every acknowledged record is committed at the offset that was told;
//! - nothing is there twice, and each producer's records are in order;
//! - a read is told of all that was committed when it asked;
//! - whoever waits is answered, once;
//! - once the faults end, everything is acknowledged.

mod admin;
mod checks;
mod clients;
mod controlled;
mod events;
mod faults;
mod frames;
mod idle;
mod members;
mod node;
mod options;
mod process;
mod turns;

use std::collections::{BTreeMap, BTreeSet};

use tidelog_log::state::GroupKey;
use tidelog_record::Timestamp;
use tidelog_replica::{Members, NodeId, Until, node_of, replica_of};

use self::admin::Ticket;
use self::clients::Producer;
use self::controlled::{Controlled, METADATA};
use self::events::{Event, Events};
pub use self::idle::{IdleCluster, IdleStats};
use self::members::Partition;
use self::node::{Node, key_of};
pub use self::options::{ClusterOptions, ClusterStats};
use crate::SimRng;

/// Runs a cluster.
///
/// # Panics
/// When a check fails: that is what it is for.
pub fn run_cluster(seed: u64, options: ClusterOptions) -> ClusterStats {
    let mut cluster = Cluster::new(seed, options);
    cluster.run()
}

pub(crate) struct Cluster {
    options: ClusterOptions,
    rng: SimRng,
    now: u64,
    events: Events,
    /// By their numbers, from 1 on.
    nodes: Vec<Node>,
    partitions: Vec<Partition>,
    /// Where each of them is in that list.
    numbers: BTreeMap<GroupKey, usize>,
    /// What there is where the cluster decides for itself who has what.
    controlled: Option<Controlled>,
    producers: Vec<Producer>,
    /// Who waits for an answer of a node that runs.
    tickets: BTreeMap<u64, Ticket>,
    last_ticket: u64,
    /// Replicas that wait for space.
    stalled: BTreeSet<(NodeId, GroupKey)>,
    /// Pairs that do not hear each other: from, to.
    cuts: Vec<(NodeId, NodeId)>,
    /// Of 100 frames so many are lost now.
    loss: u64,
    /// Of 100 answers to clients so many are.
    answers_lost: u64,
    /// Whether faults may happen, and producers have more to say.
    is_stormy: bool,
    stats: ClusterStats,
}

/// How often nodes are told of time.
const TICK_MILLIS: u64 = 50;
/// Nodes that are there without being among the founders.
const SPARE_NODES: u32 = 2;

impl Cluster {
    fn new(seed: u64, options: ClusterOptions) -> Self {
        if options.is_controlled {
            return Self::new_controlled(seed, options);
        }
        let mut rng = SimRng::new(seed);
        let mut events = Events::default();
        let count = options.replicas + SPARE_NODES;
        let mut nodes: Vec<Node> = (1..=count)
            .map(|id| Node::create(id, options.planted, &mut rng))
            .collect();
        let founders: Vec<u64> = (1..=options.replicas).map(|id| replica_of(id, 0)).collect();
        let mut partitions = Vec::new();
        for number in 0..options.partitions {
            let partition = Partition::new(key_of(number), founders.clone(), rng.chance(50));
            for node in &mut nodes[..options.replicas as usize] {
                node.add_replica(partition.key, &founders, &mut rng);
            }
            partitions.push(partition);
        }
        for node in 1..=count {
            events.at(rng.below(TICK_MILLIS), Event::Tick { node });
        }
        let mut producers = Vec::new();
        for producer in 0..options.producers {
            let until = if producer % 4 == 3 {
                Until::Written
            } else if options.is_cached {
                Until::Received
            } else {
                Until::Committed
            };
            let partition = producer % partitions.len();
            producers.push(Producer::new(producer, partition, until));
            events.at(rng.below(500), Event::Send { producer, plan: 0 });
        }
        events.at(rng.below(2000), Event::Fault);
        events.at(rng.below(2000), Event::Admin);
        Self::with_parts(options, rng, events, nodes, partitions, producers)
    }

    /// Nodes that decide who has what, of which some have founded the cluster.
    fn new_controlled(seed: u64, options: ClusterOptions) -> Self {
        let mut rng = SimRng::new(seed);
        let mut events = Events::default();
        let nodes = controlled::found(options, &mut rng, &mut events);
        // In the first seconds brokers register and the first topic is created.
        events.at(3000 + rng.below(2000), Event::Fault);
        events.at(3000 + rng.below(2000), Event::Admin);
        events.at(1000, Event::Operate);
        let partitions = vec![controlled::metadata(options.replicas)];
        let mut cluster = Self::with_parts(options, rng, events, nodes, partitions, Vec::new());
        cluster.controlled = Some(Controlled::new(seed));
        for id in 1..=options.replicas {
            cluster.note_made(id, METADATA, replica_of(id, 0));
        }
        cluster
    }

    fn with_parts(
        options: ClusterOptions,
        rng: SimRng,
        events: Events,
        nodes: Vec<Node>,
        partitions: Vec<Partition>,
        producers: Vec<Producer>,
    ) -> Self {
        let keys = partitions.iter().map(|partition| partition.key);
        let numbers = keys.zip(0..).collect();
        Self {
            options,
            rng,
            now: 0,
            events,
            nodes,
            partitions,
            numbers,
            controlled: None,
            producers,
            tickets: BTreeMap::new(),
            last_ticket: 0,
            stalled: BTreeSet::new(),
            cuts: Vec::new(),
            loss: 0,
            answers_lost: 0,
            is_stormy: true,
            stats: ClusterStats::default(),
        }
    }

    fn run(&mut self) -> ClusterStats {
        self.run_until(self.options.millis, |_| false);
        self.calm();
        // Elections, and batches that wait for their time to be sent again.
        let deadline = self.now + 120_000;
        self.run_until(deadline, Self::is_well);
        assert!(
            self.is_well(),
            "two minutes after the last fault the cluster is not well: {}{:#?}, {:?}, left behind: {:?}",
            self.unsettled()
                .map_or(String::new(), |what| format!("{what}; ")),
            self.nodes,
            self.producers
                .iter()
                .filter(|p| !p.is_done())
                .collect::<Vec<_>>(),
            self.tickets,
        );
        self.check_end();
        self.stats.millis = self.now;
        self.stats
    }

    fn run_until(&mut self, deadline: u64, is_done: impl Fn(&Self) -> bool) {
        while !is_done(self)
            && let Some((at, event)) = self.events.next_before(deadline)
        {
            self.now = at;
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        if let Some(node) = event.waits_for() {
            if self.node(node).is_paused {
                self.keep(node, event);
            } else {
                self.arrive(node, event);
                self.with(node, |_| {});
            }
            return;
        }
        match event {
            Event::Tick { node } => {
                let next = self.now + TICK_MILLIS;
                self.events.at(next, Event::Tick { node });
                let now = self.now;
                self.with(node, |node| {
                    node.tick();
                    node.tick_files(now);
                });
                self.tick_broker(node);
            }
            Event::Answer { producer, reply } => {
                let nodes = self.count();
                let state = &mut self.producers[producer];
                let is_good = state.answered(&reply, &mut self.rng, nodes);
                self.plan(producer, if is_good { 120 } else { 200 });
            }
            Event::Send { producer, plan } => self.send(producer, plan),
            Event::Admin => self.administer(),
            Event::Operate => self.operate(),
            Event::Enter { node } => self.enter(node),
            Event::Carry { node, life } if self.node(node).life() == life => {
                self.with(node, |_| {});
            }
            Event::Stop { node, life } if self.node(node).life() == life => self.stop(node),
            Event::PowerLoss { node, life } if self.node(node).life() == life => {
                self.lose_power(node);
            }
            Event::Contest { number } => self.stand(number),
            Event::Restart { node } => self.restart(node),
            Event::Resume { node, life } if self.node(node).life() == life => self.resume(node),
            Event::Space { node } => self.node_mut(node).make_space(),
            Event::Heal { cuts } => {
                self.cuts.retain(|cut| !cuts.contains(cut));
                for (from, to) in cuts {
                    self.meet(from, to);
                }
            }
            Event::Fault => self.fault(),
            // Of another life, or handled before.
            _ => {}
        }
    }

    /// What was under way comes to a process that runs, which has yet to take its turn.
    fn arrive(&mut self, node: NodeId, event: Event) {
        let now = self.time();
        if !self.node(node).is_running() {
            return;
        }
        match event {
            Event::Deliver { to, frame } => {
                let is_let_in = self.node(to).lets_in(frame.from, frame.disk);
                if !self.cuts.contains(&(frame.from, to)) && is_let_in {
                    let at = self.now;
                    for note in &frame.notes {
                        self.node_mut(to).take_note(frame.from, note, at);
                    }
                    self.stats.frames += 1;
                    self.stats.shared += u64::from(frame.groups() > 1);
                    self.stats.refused += self.node_mut(to).receive(&frame, now);
                }
            }
            Event::Files { from, to, letter } => {
                if !self.cuts.contains(&(from, to)) {
                    let now = self.now;
                    self.node_mut(to).take_files(*letter, now);
                }
            }
            Event::Request { to, request } => self.propose(to, request),
            Event::Ask { to, request } => self.take_request(to, *request),
            Event::LogSync { node, life, keys } => {
                let with_state = self.rng.chance(10);
                self.node_mut(node).sync_logs(life, &keys, with_state);
            }
            Event::StateSync {
                node,
                life,
                recorded,
            } => self.node_mut(node).sync_state(life, &recorded),
            other => unreachable!("{other:?} is not for a node"),
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize - 1]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    fn count(&self) -> u32 {
        self.options.replicas + SPARE_NODES
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millis(i64::try_from(self.now).expect("a simulation is short"))
    }

    fn key_for(&self, producer: usize) -> GroupKey {
        self.partitions[self.producers[producer].partition].key
    }

    /// A producer sends within so many milliseconds.
    fn plan(&mut self, producer: usize, within: u64) {
        let time = self.now + self.rng.below(within);
        let state = &mut self.producers[producer];
        state.plan += 1;
        let plan = state.plan;
        self.events.at(time, Event::Send { producer, plan });
    }

    /// A producer sends what it has to send.
    fn send(&mut self, id: usize, plan: u64) {
        let (now, time, nodes) = (self.now, self.time(), self.count());
        let producer = &mut self.producers[id];
        if producer.plan != plan {
            return;
        }
        if self.is_stormy {
            producer.write(&mut self.rng);
        }
        let (request, retried) = producer.request(now, time);
        if retried > 0 && self.rng.chance(20) {
            producer.look_elsewhere(&mut self.rng, nodes);
        }
        self.stats.retried += retried;
        let to = producer.target;
        let is_over = producer.is_done() && !self.is_stormy;
        if !request.batches.is_empty() && !self.rng.chance(self.answers_lost / 2) {
            let arrives = now + self.delay();
            self.events.at(arrives, Event::Request { to, request });
        }
        if !is_over {
            self.plan(id, 500);
        }
    }

    fn is_well(&self) -> bool {
        let is_done = self.producers.iter().all(Producer::is_done) && self.tickets.is_empty();
        is_done
            && self
                .partitions
                .iter()
                .all(|partition| self.is_caught_up(partition))
            && self.unsettled().is_none()
    }

    fn is_caught_up(&self, partition: &Partition) -> bool {
        let length = partition.checks.length();
        let mut members = partition.member_ids().filter(|_| !partition.is_deleted);
        members.all(|id| {
            let node = self.node(node_of(id));
            let group = node
                .replica(partition.key, id)
                .filter(|_| node.is_running());
            group.is_some_and(|group| {
                let log = group.log();
                // What was acknowledged before it was committed must be by then.
                let is_all = !self.options.is_cached || log.end_index().get() - 1 == length;
                is_all && log.commit().get() == length
            })
        })
    }

    fn check_end(&mut self) {
        for partition in self.partitions.iter_mut().filter(|it| !it.is_deleted) {
            let Partition {
                key,
                checks,
                replicas,
                ..
            } = partition;
            for id in replicas.iter() {
                let node = &self.nodes[node_of(*id) as usize - 1];
                if let Some(group) = node.replica(*key, *id) {
                    checks.all_of(*id, group.log());
                }
            }
            for id in partition.member_ids() {
                let node = &self.nodes[node_of(id) as usize - 1];
                let known = node.replica(partition.key, id).map(|g| sorted(g.members()));
                let members = Some(sorted(&partition.members));
                assert_eq!(known, members, "the members, as replica {id} knows them");
            }
        }
        for (number, partition) in self.partitions.iter().enumerate() {
            // What the metadata log says is checked where it is folded.
            if partition.is_deleted || partition.key == METADATA {
                continue;
            }
            let of_it = self.producers.iter().filter(|p| p.partition == number);
            partition.checks.batches(of_it);
        }
        self.stats.copies = self.nodes.iter().map(|node| node.adopted).sum();
        self.stats.acknowledged = self.producers.iter().map(|p| p.acknowledged).sum();
    }
}

/// The members in an order that Raft does not keep.
fn sorted(members: &Members) -> Members {
    let mut members = members.clone();
    let state = &mut members.state;
    for ids in [
        &mut state.voters,
        &mut state.learners,
        &mut state.voters_outgoing,
        &mut state.learners_next,
    ] {
        ids.sort_unstable();
    }
    members
}
