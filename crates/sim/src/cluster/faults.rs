//! What goes wrong, and when.

use tidelog_log::state::GroupKey;
use tidelog_replica::{NodeId, node_of};

use super::Cluster;
use super::events::Event;

/// How a node stops.
#[derive(Clone, Copy, Debug)]
enum Stop {
    PowerLoss,
    Kill,
    Orderly,
}

/// So much of the network's waits for a process that is stopped for a while; what comes then is lost.
const INBOX_MAX: usize = 300;

impl Cluster {
    /// One fault, and when the next one comes.
    pub(super) fn fault(&mut self) {
        if !self.is_stormy {
            return;
        }
        let next = self.now + 50 + self.rng.below(2500);
        self.events.at(next, Event::Fault);
        let nodes: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let id = nodes[self.rng.index(nodes.len())];
        let number = self.rng.index(self.partitions.len());
        match self.rng.below(24) {
            0 | 1 => self.stop_with(id, Stop::PowerLoss),
            2 => self.stop_with(id, Stop::Kill),
            3 => self.stop_with(id, Stop::Orderly),
            // Everywhere at once.
            4 if self.rng.chance(40) => {
                for id in nodes {
                    self.stop_with(id, Stop::PowerLoss);
                }
            }
            4 | 5 => self.pause(id),
            6..9 => self.cut(id),
            // The one that leads is worth more: it goes on for a while as if nothing were.
            9..11 => {
                let leader = self.leader(self.partitions[number].key);
                self.cut(leader.unwrap_or(id));
            }
            11 => self.loss = self.rng.below(30),
            12 => self.answers_lost = self.rng.below(30),
            13 => (self.loss, self.answers_lost) = (0, 0),
            14 if self.options.is_cached => {}
            14 => self.nodes[id as usize - 1].fail(&mut self.rng),
            15..17 => {
                let is_everywhere = self.rng.chance(30);
                for node in nodes {
                    if is_everywhere || node == id {
                        self.fill(node);
                    }
                }
            }
            17 => self.transfer(number),
            18 | 19 => self.contest(number),
            // The others do that for themselves.
            _ if self.controlled.is_none() => self.change_members(number),
            _ => {}
        }
        if self.controlled.is_none() && self.rng.chance(20) {
            self.retire(number);
        }
    }

    /// A group of the node failed by itself, and somebody starts the node anew.
    pub(super) fn stop(&mut self, id: NodeId) {
        let stop = match self.rng.below(3) {
            0 => Stop::PowerLoss,
            1 => Stop::Kill,
            _ => Stop::Orderly,
        };
        self.stop_with(id, stop);
    }

    /// Power fails for a moment.
    pub(super) fn lose_power(&mut self, id: NodeId) {
        self.stop_with(id, Stop::PowerLoss);
        let back = self.now + 1 + self.rng.below(30);
        self.events.at(back, Event::Restart { node: id });
    }

    /// The leader is lost, and more than one want to be the next.
    fn contest(&mut self, number: usize) {
        if let Some(leader) = self.leader(self.partitions[number].key) {
            self.stop_with(leader, Stop::PowerLoss);
        }
        // Before, they keep to the leader that they have heard of.
        let time = self.now + 500 + self.rng.below(300);
        self.events.at(time, Event::Contest { number });
    }

    pub(super) fn stand(&mut self, number: usize) {
        let partition = &self.partitions[number];
        let key = partition.key;
        let nodes: Vec<NodeId> = partition.member_ids().map(node_of).collect();
        for id in nodes {
            if self.rng.chance(60) {
                self.with(id, |node| {
                    if let Some(shard) = node.shard_mut() {
                        shard.with(key, tidelog_replica::Group::campaign);
                    }
                });
            }
        }
    }

    fn stop_with(&mut self, id: NodeId, stop: Stop) {
        let is_kept = self.options.is_cached;
        let node = self.node_mut(id);
        if !node.is_up() {
            return;
        }
        match stop {
            Stop::PowerLoss => node.stop(!is_kept),
            Stop::Kill => node.stop(false),
            // A process that is paused does not hear of it.
            Stop::Orderly if node.is_paused => node.stop(false),
            Stop::Orderly => node.stop_orderly(),
        }
        self.forget_process(id);
        let back = match self.rng.below(10) {
            0..5 => self.rng.below(200),
            5..9 => self.rng.below(3000),
            _ => self.rng.below(15_000),
        };
        self.events
            .at(self.now + 1 + back, Event::Restart { node: id });
    }

    /// Nobody answers any more those who wait for it.
    pub(super) fn forget_process(&mut self, id: NodeId) {
        self.tickets.retain(|_, ticket| ticket.node != id);
        self.stalled.retain(|(node, _)| *node != id);
    }

    pub(super) fn restart(&mut self, id: NodeId) {
        let node = &mut self.nodes[id as usize - 1];
        if node.is_up() || node.is_out {
            return;
        }
        let is_started = if node.seat.is_some() {
            node.start_broker(&mut self.rng)
        } else {
            node.start(&mut self.rng)
        };
        if !is_started {
            let again = self.now + 200;
            self.events.at(again, Event::Restart { node: id });
            return;
        }
        self.stats.restarts += 1;
        for partition in &mut self.partitions {
            let replica = node.replica_of(partition.key);
            if let Some(group) = node.replica(partition.key, replica) {
                partition.checks.restarted(replica, group.log());
            }
        }
        self.note_started(id);
        self.with(id, |_| {});
        for other in (1..=self.count()).filter(|other| *other != id) {
            self.meet(other, id);
        }
    }

    /// The link of a node that runs to another one is there, if nothing is in its way.
    pub(super) fn meet(&mut self, from: NodeId, to: NodeId) {
        let is_there = self.node(from).is_running() && self.node(to).is_running();
        if is_there && !self.cuts.contains(&(from, to)) {
            self.with(from, |node| {
                if let Some(shard) = node.shard_mut() {
                    shard.reachable(to);
                }
            });
        }
    }

    fn pause(&mut self, id: NodeId) {
        let time = 100 + self.rng.below(8000);
        let now = self.now;
        let node = self.node_mut(id);
        if node.is_running() {
            node.is_paused = true;
            let life = node.life();
            self.events.at(now + time, Event::Resume { node: id, life });
        }
    }

    /// Keeps what came for a process that is stopped for a while, as its sockets do.
    pub(super) fn keep(&mut self, id: NodeId, event: Event) {
        let node = self.node_mut(id);
        let is_room = node.inbox.len() < INBOX_MAX;
        if is_room || !event.is_mail() {
            node.inbox.push_back(event);
        }
    }

    /// The process goes on, with all that waits for it: some of it before it takes its next turn.
    pub(super) fn resume(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        node.is_paused = false;
        let mut inbox = std::mem::take(&mut node.inbox);
        // It does not know yet what has become of it.
        for number in 0..self.partitions.len() {
            self.read(number, id);
        }
        while !inbox.is_empty() {
            let count = (1 + self.rng.index(20)).min(inbox.len());
            for event in inbox.drain(..count) {
                self.arrive(id, event);
            }
            self.with(id, |_| {});
        }
    }

    fn fill(&mut self, id: NodeId) {
        let time = 100 + self.rng.below(6000);
        let node = &mut self.nodes[id as usize - 1];
        node.fill(&mut self.rng);
        self.events.at(self.now + time, Event::Space { node: id });
    }

    /// Cuts a node off, one way or both, or from one other.
    fn cut(&mut self, one: NodeId) {
        let others = self.nodes.iter().map(|node| node.id);
        let others: Vec<NodeId> = others.filter(|id| *id != one).collect();
        let others = if self.rng.chance(60) {
            others
        } else {
            vec![others[self.rng.index(others.len())]]
        };
        let ways = self.rng.below(3);
        let mut cuts = Vec::new();
        for other in others {
            if ways != 0 {
                cuts.push((one, other));
            }
            if ways != 1 {
                cuts.push((other, one));
            }
        }
        self.cuts.extend(&cuts);
        let time = 100 + self.rng.below(6000);
        self.events.at(self.now + time, Event::Heal { cuts });
    }

    fn transfer(&mut self, number: usize) {
        let partition = &self.partitions[number];
        let key = partition.key;
        let ids: Vec<u64> = partition.member_ids().collect();
        if ids.is_empty() {
            return;
        }
        let to = ids[self.rng.index(ids.len())];
        if let Some(leader) = self.leader(key) {
            self.with(leader, |node| {
                if let Some(shard) = node.shard_mut() {
                    shard.with(key, |group| group.transfer_leader(to));
                }
            });
        }
    }

    /// The node on which a replica thinks to lead, in the newest term.
    pub(super) fn leader(&self, key: GroupKey) -> Option<NodeId> {
        let nodes = self.nodes.iter().filter(|node| node.is_running());
        let leaders = nodes.filter_map(|node| {
            let role = node.shard()?.group(key)?.role();
            role.is_leader.then_some((role.term, node.id))
        });
        leaders.max().map(|(_, id)| id)
    }

    /// The last fault is over.
    pub(super) fn calm(&mut self) {
        self.is_stormy = false;
        (self.loss, self.answers_lost) = (0, 0);
        self.cuts.clear();
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        for id in ids {
            self.node_mut(id).make_space();
            if self.node(id).is_paused {
                self.resume(id);
            }
            self.restart(id);
        }
    }
}
