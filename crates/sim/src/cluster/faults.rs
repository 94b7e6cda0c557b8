//! What goes wrong, and when.

use super::Cluster;
use super::events::Event;

impl Cluster {
    /// One fault, and when the next one comes.
    pub(super) fn fault(&mut self) {
        if !self.is_stormy {
            return;
        }
        let next = self.now + 50 + self.rng.below(3000);
        self.events.at(next, Event::Fault);
        let ids: Vec<u64> = self.replicas.keys().copied().collect();
        let id = ids[self.rng.index(ids.len())];
        match self.rng.below(14) {
            0 | 1 => self.stop_with(id, true),
            2 => self.stop_with(id, false),
            // Everywhere at once.
            3 if self.rng.chance(40) => {
                for id in ids {
                    self.stop_with(id, true);
                }
            }
            3 | 4 => self.pause(id),
            5..8 => self.cut(),
            8 => self.loss = self.rng.below(30),
            9 => self.loss = 0,
            10 => {
                let replica = self.replicas.get_mut(&id).expect("there is one");
                replica.fail(&mut self.rng);
            }
            11 => self.transfer(id),
            _ => self.change_members(),
        }
        if self.rng.chance(5) {
            self.retire();
        }
    }

    /// The replica failed by itself.
    pub(super) fn stop(&mut self, id: u64) {
        let loses_power = self.rng.chance(50);
        self.stop_with(id, loses_power);
    }

    fn stop_with(&mut self, id: u64, loses_power: bool) {
        let Some(replica) = self.replicas.get_mut(&id).filter(|r| r.is_up()) else {
            return;
        };
        replica.stop(loses_power);
        self.clients.lost(id);
        let back = match self.rng.below(10) {
            0..5 => self.rng.below(200),
            5..9 => self.rng.below(3000),
            _ => self.rng.below(15_000),
        };
        self.events.at(self.now + 1 + back, Event::Restart { id });
    }

    pub(super) fn restart(&mut self, id: u64) {
        let Some(replica) = self.replicas.get_mut(&id).filter(|r| !r.is_up()) else {
            return;
        };
        replica.start(&mut self.rng);
        self.stats.restarts += 1;
        self.checks.restarted(&self.replicas[&id]);
        self.with(id, |_, _| {});
    }

    fn pause(&mut self, id: u64) {
        let replica = self.replicas.get_mut(&id).expect("there is one");
        replica.is_paused = true;
        let time = 100 + self.rng.below(8000);
        self.events.at(self.now + time, Event::Resume { id });
    }

    pub(super) fn resume(&mut self, id: u64) {
        let Some(replica) = self.replicas.get_mut(&id) else {
            return;
        };
        replica.is_paused = false;
        // What it had asked for before is done by now.
        let life = replica.life();
        let recorded = replica.group().map_or(0, tidelog_replica::Group::recorded);
        self.handle(Event::LogSync { id, life });
        self.handle(Event::StateSync { id, life, recorded });
    }

    /// Cuts one replica off, one way or both, or one from one.
    fn cut(&mut self) {
        let ids: Vec<u64> = self.replicas.keys().copied().collect();
        if ids.len() == 1 {
            return;
        }
        let one = ids[self.rng.index(ids.len())];
        let others: Vec<u64> = ids.into_iter().filter(|id| *id != one).collect();
        let others = if self.rng.chance(50) {
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

    fn transfer(&mut self, to: u64) {
        let leader = self.leader();
        if let Some(leader) = leader {
            self.with(leader, |replica, _| {
                if let Some(group) = replica.group_mut() {
                    group.transfer_leader(to);
                }
            });
        }
    }

    /// Whoever thinks to lead, in the newest term.
    pub(super) fn leader(&self) -> Option<u64> {
        let roles = self
            .replicas
            .values()
            .filter(|replica| replica.is_running());
        let leaders = roles.filter_map(|replica| {
            let role = replica.group()?.role();
            role.is_leader.then_some((role.term, replica.id))
        });
        leaders.max().map(|(_, id)| id)
    }

    /// The last fault is over.
    pub(super) fn calm(&mut self) {
        self.is_stormy = false;
        self.loss = 0;
        self.cuts.clear();
        let ids: Vec<u64> = self.replicas.keys().copied().collect();
        for id in ids {
            if self.replicas[&id].is_paused {
                self.resume(id);
            }
            self.restart(id);
        }
    }
}
