//! Many partitions with nothing to do: the replicas of three nodes in one thread, with the ticks of a broker,
//! its frames and its state file, on a network that loses nothing. What is looked at is what they take, so
//! none of the checks of a hunt run here.

use std::collections::HashMap;

use tidelog_log::state::GroupKey;
use tidelog_record::Timestamp;
use tidelog_replica::{GroupConfig, NodeId, ReplicaId, replica_of};

use super::frames::Frame;
use super::node::{Node, key_of};
use crate::SimRng;

const NODES: u32 = 3;
/// As a broker has them: a leader is heard of every 0.6 s, and missed after 1.8 to 3.6 s.
const TICK_MILLIS: u64 = 100;
const HEARTBEAT_TICKS: u32 = 6;
const ELECTION_TICKS: u32 = 18;
/// Within so long each partition has a leader.
const ELECTED_MILLIS: u64 = 60_000;

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdleStats {
    /// Simulated time.
    pub millis: u64,
    /// Times that a leader was elected.
    pub elections: u64,
    /// Frames that went from one node to another.
    pub frames: u64,
    /// Letters of replicas in them.
    pub letters: u64,
}

/// Three nodes that each have a replica of every partition.
#[derive(Debug)]
pub struct IdleCluster {
    nodes: Vec<Node>,
    leaders: HashMap<GroupKey, ReplicaId>,
    stats: IdleStats,
}

impl IdleCluster {
    /// Founds so many partitions. None has a leader yet.
    pub fn new(partitions: u32) -> Self {
        let mut rng = SimRng::new(1);
        let founders: Vec<ReplicaId> = (1..=NODES).map(|id| replica_of(id, 0)).collect();
        let mut nodes = Vec::new();
        for id in 1..=NODES {
            let mut node = Node::create(id, None, &mut rng);
            for number in 0..partitions {
                let config = GroupConfig {
                    id: replica_of(id, 0),
                    election_ticks: ELECTION_TICKS,
                    heartbeat_ticks: HEARTBEAT_TICKS,
                    seed: rng.next_u64(),
                    ..GroupConfig::default()
                };
                node.add_replica_as(key_of(number), &founders, config);
            }
            nodes.push(node);
        }
        Self {
            nodes,
            leaders: HashMap::new(),
            stats: IdleStats::default(),
        }
    }

    /// Lets time pass until each of so many partitions has a leader.
    ///
    /// # Panics
    /// When one has none for too long.
    pub fn elect(&mut self, partitions: u32) {
        while self.leaders.len() < partitions as usize {
            let (led, millis) = (self.leaders.len(), self.stats.millis);
            assert!(millis < ELECTED_MILLIS, "only {led} have a leader");
            self.tick();
        }
    }

    /// Lets so many simulated milliseconds pass.
    pub fn run(&mut self, millis: u64) {
        for _ in 0..millis / TICK_MILLIS {
            self.tick();
        }
    }

    /// What happened so far.
    pub fn stats(&self) -> IdleStats {
        self.stats
    }

    /// One tick of each node, and all that comes of it.
    fn tick(&mut self) {
        self.stats.millis += TICK_MILLIS;
        let mut frames = Vec::new();
        for id in 1..=NODES {
            self.node(id).tick();
            self.turns(id, &mut frames);
        }
        while !frames.is_empty() {
            for (to, frame) in std::mem::take(&mut frames) {
                let now = self.time();
                let refused = self.node(to).receive(&frame, now);
                assert_eq!(refused, 0, "nothing is damaged or late");
                self.turns(to, &mut frames);
            }
        }
    }

    /// The turns of a node; what it has for others goes to `frames`, and disks take no time.
    fn turns(&mut self, id: NodeId, frames: &mut Vec<(NodeId, Frame)>) {
        let now = self.time();
        loop {
            let node = self.node(id);
            let shard = node.shard_mut().filter(|shard| shard.has_work());
            let Some(shard) = shard else { return };
            let effects = shard.turn(now);
            assert!(effects.failed.is_empty(), "{:?}", effects.failed);
            let life = node.life();
            if !effects.state_to_sync.is_empty() {
                node.sync_state(life, &effects.state_to_sync);
            }
            if !effects.logs_to_sync.is_empty() {
                node.sync_logs(life, &effects.logs_to_sync, false);
            }
            for (to, post) in effects.posts {
                self.stats.frames += 1;
                self.stats.letters += post.raft.len() as u64;
                frames.push((to, Frame::new(id, to, post.raft)));
            }
            for (key, role) in effects.roles {
                if role.is_leader {
                    self.stats.elections += 1;
                    self.leaders.insert(key, replica_of(id, 0));
                }
            }
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    fn time(&self) -> Timestamp {
        let millis = i64::try_from(self.stats.millis);
        Timestamp::from_millis(millis.expect("a simulation is short"))
    }
}
