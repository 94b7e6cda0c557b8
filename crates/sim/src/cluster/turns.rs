//! The turns of a node, and what comes of them.

use tidelog_log::state::GroupKey;
use tidelog_replica::catch_up::{CatchUp, CatchUpLetter};
use tidelog_replica::{Effects, GroupError, NodeId, node_of};

use super::Cluster;
use super::controlled::METADATA;
use super::events::Event;
use super::frames::Frame;
use super::node::Node;

/// More turns than that, one behind the other, have no end.
const TURNS_MAX: u32 = 1000;

impl Cluster {
    /// Does something to a node that runs, and then gives its shard its turns, as many as it needs.
    pub(super) fn with(&mut self, id: NodeId, act: impl FnOnce(&mut Node)) {
        let now = self.time();
        if !self.node(id).is_running() {
            return;
        }
        act(self.node_mut(id));
        let letters = std::mem::take(&mut self.node_mut(id).letters);
        self.post_files(id, letters);
        let mut turns = 0;
        loop {
            while let Some((effects, truncations)) = self.node_mut(id).turn(now) {
                self.carry_out(id, effects, truncations);
                turns += 1;
                assert!(turns < TURNS_MAX, "the turns of node {id} have no end");
            }
            let goes_on = self.control(id);
            let shard = self.node(id).shard();
            if !goes_on && !shard.is_some_and(|shard| shard.has_work()) {
                break;
            }
        }
        self.note_stalls(id);
    }

    /// Does what a turn asks for, in the order in which a broker does.
    fn carry_out(&mut self, id: NodeId, effects: Effects<u64>, truncations: u64) {
        let life = self.node(id).life();
        for (key, error) in effects.failed {
            self.failed(id, key, &error);
        }
        // Whoever has just voted may forget it.
        let voted = effects.roles.iter().any(|(_, role)| role.leader.is_none());
        if voted && self.is_stormy && self.rng.chance(15) {
            let time = self.now + self.rng.below(5);
            self.events.at(time, Event::PowerLoss { node: id, life });
        }
        for (key, role) in effects.roles {
            let replica = self.node(id).replica_of(key);
            let checks = &mut self.partitions[self.numbers[&key]].checks;
            self.stats.terms += checks.role(replica, role);
        }
        for (key, members) in effects.members {
            let number = self.numbers[&key];
            let is_news = self.partitions[number].members_changed(members);
            self.stats.changes += u64::from(is_news);
        }
        for (key, _) in effects.committed {
            let node = &mut self.nodes[id as usize - 1];
            let replica = node.replica_of(key);
            if let Some(shard) = node.shard_mut() {
                drop(shard.take_removed(key));
            }
            if let Some(group) = node.replica(key, replica) {
                let checks = &mut self.partitions[self.numbers[&key]].checks;
                checks.committed(replica, group.log());
            }
            if key == METADATA {
                self.fold_reference();
            }
        }
        for answer in effects.answers {
            self.answered(id, answer.waiter, answer.result);
        }
        for (to, post) in effects.posts {
            if !post.raft.is_empty() {
                let mut frame = Frame::new(id, to, post.raft);
                frame.disk = self.node(id).disk_number();
                self.post(id, to, frame);
            }
            self.post_files(id, post.files);
        }
        if !effects.state_to_sync.is_empty() {
            let time = self.now + self.sync_millis();
            let recorded = effects.state_to_sync;
            let event = Event::StateSync {
                node: id,
                life,
                recorded,
            };
            self.events.at(time, event);
        }
        if !effects.logs_to_sync.is_empty() {
            let behind = if effects.is_sync_awaited {
                0
            } else {
                self.rng.below(200)
            };
            let time = self.now + behind + self.sync_millis();
            let keys = effects.logs_to_sync;
            let event = Event::LogSync {
                node: id,
                life,
                keys,
            };
            self.events.at(time, event);
        }
        self.stats.truncations += truncations;
        // What follows on entries that were taken back is where recovery may go wrong.
        if truncations > 0 && self.is_stormy && self.rng.chance(30) {
            let time = self.now + self.rng.below(20);
            self.events.at(time, Event::PowerLoss { node: id, life });
        }
    }

    /// A group has failed: only its disk may be the cause, or that it had to open an older segment to
    /// take entries back and could not. The others go on, until somebody comes.
    fn failed(&mut self, id: NodeId, key: GroupKey, error: &GroupError) {
        let node = self.node(id);
        let is_disk = match error {
            GroupError::Poisoned(poisoned) => node.may_fail || poisoned.cause.is_out_of_files(),
            GroupError::Adopt(_) => node.may_fail || node.is_short,
            _ => false,
        };
        assert!(is_disk, "a group of node {id} fails by itself: {error}");
        if let (GroupError::Poisoned(poisoned), Some(log)) =
            (error, node.shard().and_then(|shard| shard.log(key)))
        {
            log.sync_handle().poison(poisoned);
        }
        let life = node.life();
        let time = self.now + self.rng.below(2000);
        self.events.at(time, Event::Stop { node: id, life });
    }

    fn note_stalls(&mut self, id: NodeId) {
        let node = &self.nodes[id as usize - 1];
        let Some(shard) = node.shard() else { return };
        for partition in &self.partitions {
            let key = partition.key;
            let group = shard.group(key);
            if group.is_some_and(|group| group.stalled().is_some()) {
                self.stalled.insert((id, key));
            } else if self.stalled.remove(&(id, key)) {
                self.stats.stalls += 1;
            }
        }
    }

    pub(super) fn post(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        if self.rng.chance(self.loss) || self.cuts.contains(&(from, to)) {
            if self.rng.chance(10)
                && let Some(shard) = self.node_mut(from).shard_mut()
            {
                // A connection that breaks tells that what was sent may be lost.
                shard.unreachable(to);
            }
            return;
        }
        let copies = 1 + u64::from(self.is_stormy && self.rng.chance(2));
        for _ in 0..copies {
            let time = self.now + self.delay();
            let mut frame = frame.clone();
            if self.is_stormy && self.rng.chance(1) && !frame.damage(&mut self.rng) {
                // The checksum over it says so.
                continue;
            }
            let frame = Box::new(frame);
            self.events.at(time, Event::Deliver { to, frame });
        }
    }

    fn post_files(&mut self, from: NodeId, letters: Vec<CatchUpLetter>) {
        for mut letter in letters {
            let to = node_of(letter.to);
            if self.rng.chance(self.loss) || self.cuts.contains(&(from, to)) {
                continue;
            }
            if let CatchUp::Part { bytes, .. } = &mut letter.what
                && self.is_stormy
                && self.rng.chance(1)
            {
                // As on a disk that gives other bytes than it was given.
                let mut other = bytes.to_vec();
                let at = self.rng.index(other.len());
                other[at] ^= 1;
                *bytes = other.into();
            }
            let time = self.now + self.delay();
            let letter = Box::new(letter);
            self.events.at(time, Event::Files { from, to, letter });
        }
    }

    pub(super) fn delay(&mut self) -> u64 {
        match self.rng.below(100) {
            0..80 => self.rng.below(3),
            80..99 => self.rng.below(30),
            _ => self.rng.below(1000),
        }
    }

    fn sync_millis(&mut self) -> u64 {
        match self.rng.below(100) {
            0..70 => self.rng.below(2),
            70..98 => self.rng.below(20),
            _ => self.rng.below(1500),
        }
    }
}
