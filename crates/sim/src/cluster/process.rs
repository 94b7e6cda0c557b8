//! How a node's process ends, by itself or not, and starts again; and what its disk does meanwhile.

use std::sync::Arc;

use tidelog_disk::{Disk, DiskOp};
use tidelog_log::catch_up::AdoptError;
use tidelog_log::state::{StateError, StateFile, StateRecord};
use tidelog_log::{Log, OpenError};
use tidelog_record::RaftIndex;
use tidelog_replica::{Group, Shard, StateStore};

use super::node::{Node, Running, copies_on, dir_of, identity, options, state_dir};
use crate::{FailMode, InjectedError, OpFilter, SimRng};

impl Node {
    /// The next sync, or write, fails.
    pub(super) fn fail(&mut self, rng: &mut SimRng) {
        self.may_fail = true;
        let ops = [DiskOp::Sync, DiskOp::Write, DiskOp::SetLen, DiskOp::SyncDir];
        let filter = OpFilter::op(ops[rng.index(ops.len())]);
        let nth = 1 + rng.below(3);
        self.disk
            .fail_nth(filter, nth, InjectedError::Io, FailMode::Once);
    }

    /// There is next to no space left, or no file can be opened, until [`Self::make_space`].
    pub(super) fn fill(&mut self, rng: &mut SimRng) {
        self.is_short = true;
        if rng.chance(30) {
            let filter = OpFilter::op(DiskOp::Open);
            let error = InjectedError::OutOfFiles;
            self.disk.fail_nth(filter, 1, error, FailMode::Forever);
        } else {
            let left = rng.below(4) * rng.below(6000);
            self.is_full = true;
            self.disk.set_free_bytes(Some(left));
        }
    }

    pub(super) fn make_space(&mut self) {
        self.is_short = false;
        self.is_full = false;
        self.disk.stop_failing();
        self.disk.set_free_bytes(None);
    }

    /// Ends the process.
    pub(super) fn stop(&mut self, loses_power: bool) {
        self.running = None;
        self.is_paused = false;
        self.inbox.clear();
        self.letters.clear();
        if loses_power {
            self.disk.crash();
        } else {
            self.disk.kill();
        }
    }

    /// Stops as a broker does that is told to: all logs are closed, and that is remembered.
    pub(super) fn stop_orderly(&mut self) {
        let Some(Running { file, shard, .. }) = self.running.take() else {
            return;
        };
        let mut records = Vec::new();
        let mut is_clean = true;
        for (key, closed) in shard.close() {
            match closed {
                Ok(state) => {
                    records.push(StateRecord::Group(key, state));
                    let end = state.checkpoint.expect("a log was closed at an end");
                    records.push(StateRecord::Checkpoint(key, end));
                }
                Err(_) => is_clean = false,
            }
        }
        if is_clean {
            records.push(StateRecord::Clean);
        }
        // Where this fails, nothing says that the stop was an orderly one.
        file.record(&records, true).ok();
        drop(file);
        self.stop(false);
    }

    /// Starts the process; says no where its disk has no space for that.
    pub(super) fn start(&mut self, rng: &mut SimRng) -> bool {
        self.disk.stop_failing();
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let file = match StateFile::open(disk.clone(), &state_dir()) {
            Err(StateError::Disk(e)) if is_full(&e) => return self.give_up_start(),
            file => Arc::new(file.expect("what was remembered is there")),
        };
        let known = file.state();
        let boot = StateRecord::Boot(known.boots + 1);
        if file.record(&[boot], true).is_err() {
            return self.give_up_start();
        }
        let mut shard = Shard::default();
        let mut records = Vec::new();
        for key in known.groups.keys().copied() {
            let mut store = StateStore::new(file.clone(), key);
            let replica = file.group(&key).expect("the group is known").replica_id;
            let swapped = store.recover_swap(&*disk, &dir_of(key, replica), identity(key));
            match swapped {
                Err(AdoptError::Disk(e)) if is_full(&e) => return self.give_up_start(),
                swapped => swapped.expect("a swap comes to its end"),
            }
            let (state, members) = store.load().expect("the group is known");
            let commit = RaftIndex::new(state.commit);
            let dir = dir_of(key, state.replica_id);
            let (disk, identity) = (disk.clone(), identity(key));
            let opened = match state.checkpoint.filter(|_| known.clean) {
                Some(end) => Log::open_closed_replica(disk, &dir, identity, options(), end, commit),
                None => {
                    let checkpoint = state.checkpoint;
                    Log::open_replica(disk, &dir, identity, options(), checkpoint, commit)
                }
            };
            let log = match opened {
                Err(OpenError::Disk(e)) if is_full(&e) => return self.give_up_start(),
                opened => opened.expect("what was durable is there").0,
            };
            let config = self.config(state.replica_id, rng);
            let group = Group::open(config, log, state, members);
            let group = group.expect("the configuration is a good one");
            records.extend(store.records_of(&group));
            shard.add(key, state.incarnation, group, store);
        }
        if file.record(&records, true).is_err() {
            return self.give_up_start();
        }
        let copies = copies_on(&self.disk);
        self.running = Some(Running {
            file,
            shard,
            copies,
            broker: None,
        });
        self.may_fail = false;
        self.life += 1;
        true
    }

    fn give_up_start(&self) -> bool {
        self.disk.kill();
        false
    }
}

pub(super) fn is_full(e: &tidelog_disk::DiskError) -> bool {
    e.source.kind() == std::io::ErrorKind::StorageFull
}
