//! One replica: a group on a disk of its own, and what it keeps beside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskOp};
use tidelog_log::state::GroupState;
use tidelog_log::{Log, LogEnd, LogIdentity, LogOptions, Poisoned};
use tidelog_record::{PartitionId, Timestamp, TopicId};
use tidelog_replica::eraftpb::ConfState;
use tidelog_replica::{Group, GroupConfig, GroupStore, Members, Payload, Planted, Role};

use super::checks::Checks;
use super::events::Letter;
use crate::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

/// What a broker's state file says of the group.
#[derive(Clone, Debug)]
struct Kept {
    state: GroupState,
    members: Members,
    checkpoint: LogEnd,
}

/// The state file: a journal, of which power loss keeps what was synced and some of the rest.
#[derive(Debug)]
struct Journal {
    durable: Kept,
    /// Recorded since, oldest first.
    pending: Vec<Kept>,
    truncations: u64,
}

impl Journal {
    fn last(&self) -> &Kept {
        self.pending.last().unwrap_or(&self.durable)
    }

    fn push(&mut self, change: impl FnOnce(&mut Kept)) {
        let mut kept = self.last().clone();
        change(&mut kept);
        self.pending.push(kept);
    }

    fn sync(&mut self) {
        if let Some(last) = self.pending.pop() {
            self.durable = last;
            self.pending.clear();
        }
    }

    fn crash(&mut self, rng: &mut SimRng) {
        let kept = rng.index(self.pending.len() + 1);
        self.pending.truncate(kept);
        self.sync();
    }
}

impl GroupStore for Journal {
    fn record(&mut self, state: &GroupState, members: &Members) -> Result<(), Poisoned> {
        self.push(|kept| {
            kept.state = *state;
            kept.members = members.clone();
        });
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Poisoned> {
        Self::sync(self);
        Ok(())
    }

    fn set_back(&mut self, end: LogEnd) -> Result<(), Poisoned> {
        self.truncations += 1;
        if end.index < self.last().checkpoint.index {
            self.push(|kept| kept.checkpoint = end);
        }
        Self::sync(self);
        Ok(())
    }
}

/// What came of a turn.
pub(super) struct Outcome {
    pub(super) letters: Vec<Letter>,
    pub(super) is_log_dirty: bool,
    pub(super) is_state_dirty: bool,
    pub(super) role: Option<Role>,
    pub(super) members: Option<Members>,
    pub(super) truncations: u64,
}

pub(super) struct Replica {
    pub(super) id: u64,
    planted: Option<Planted>,
    disk: SimDisk,
    journal: Journal,
    group: Option<Group>,
    /// Counts its starts.
    life: u64,
    pub(super) is_paused: bool,
}

fn dir() -> PathBuf {
    PathBuf::from("/data/topic-0")
}

fn identity() -> LogIdentity {
    LogIdentity {
        cluster_id: [7; 16],
        topic_id: TopicId::from_bytes([9; 16]),
        partition: PartitionId::new(0),
        incarnation: 1,
    }
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 20_000,
        index_interval_bytes: 500,
        ..LogOptions::default()
    }
}

fn config(id: u64, planted: Option<Planted>, seed: u64) -> GroupConfig {
    GroupConfig {
        id,
        message_bytes_max: 4000,
        messages_in_flight_max: 8,
        uncommitted_bytes_max: 20_000,
        seed,
        planted,
        ..GroupConfig::default()
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "replica {} in life {}: {:?}",
            self.id, self.life, self.group
        )
    }
}

impl Replica {
    pub(super) fn create(
        id: u64,
        voters: &[u64],
        planted: Option<Planted>,
        rng: &mut SimRng,
    ) -> Self {
        let disk = SimDisk::new(rng.next_u64());
        disk.create_dir_all(Path::new("/data"))
            .expect("nothing fails yet");
        disk.sync_dir(Path::new("/")).expect("nothing fails yet");
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let now = Timestamp::from_millis(0);
        let log = Log::create_replica(shared, &dir(), identity(), options(), now);
        let log = log.expect("nothing fails yet");
        let members = Members {
            state: ConfState::from((voters.to_vec(), Vec::new())),
            index: 0,
        };
        let state = GroupState {
            incarnation: 1,
            replica_id: id,
            term: 5,
            vote: 0,
            commit: 5,
            checkpoint: None,
        };
        let checkpoint = log.end();
        let group = Group::open(
            config(id, planted, rng.next_u64()),
            log,
            state,
            members.clone(),
        );
        Self {
            id,
            planted,
            disk,
            journal: Journal {
                durable: Kept {
                    state,
                    members,
                    checkpoint,
                },
                pending: Vec::new(),
                truncations: 0,
            },
            group: Some(group.expect("the configuration is a good one")),
            life: 0,
            is_paused: false,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.group.is_some() && !self.is_paused
    }

    pub(super) fn is_up(&self) -> bool {
        self.group.is_some()
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    pub(super) fn group_mut(&mut self) -> Option<&mut Group> {
        self.group.as_mut()
    }

    /// Whether it lacks more than a few entries.
    pub(super) fn is_behind(&self, checks: &Checks) -> bool {
        self.committed() + 20 < checks.length()
    }

    /// How many entries are committed here.
    pub(super) fn committed(&self) -> u64 {
        self.group().map_or(0, |group| group.log().commit().get())
    }

    pub(super) fn tick(&mut self) {
        if let Some(group) = &mut self.group {
            group.tick();
        }
    }

    /// Says whether the message was refused.
    pub(super) fn step(&mut self, letter: &Letter, now: Timestamp) -> bool {
        let Some(group) = &mut self.group else {
            return false;
        };
        let stepped = group.step(letter.message.clone(), letter.payloads.clone(), now);
        let Err(e) = stepped else { return false };
        let is_failed = group.log().reader().poisoned().is_some();
        assert!(
            letter.is_damaged || is_failed || is_late(&e),
            "a message of a replica was refused: {e}"
        );
        true
    }

    /// The sync of the log that was asked for has taken its time.
    pub(super) fn sync_log(&mut self, life: u64) {
        if let Some(group) = self.group.as_ref().filter(|_| life == self.life)
            && let Ok(end) = group.log().sync_handle().sync()
        {
            self.journal.push(|kept| kept.checkpoint = end);
        }
    }

    pub(super) fn sync_state(&mut self, life: u64) {
        if let Some(group) = self.group.as_mut().filter(|_| life == self.life) {
            self.journal.sync();
            group.state_synced();
        }
    }

    /// Does what the group asks for; `None` when it has failed.
    pub(super) fn turn(&mut self, now: Timestamp) -> Option<Outcome> {
        let group = self.group.as_mut()?;
        let before = std::mem::take(&mut self.journal.truncations);
        debug_assert_eq!(before, 0);
        let turn = group.turn(&mut self.journal, now).ok()?;
        if group.log().reader().poisoned().is_some() {
            return None;
        }
        let letters = turn.messages.iter().map(|outgoing| Letter {
            message: outgoing.message.clone(),
            payloads: outgoing.payloads.iter().map(Payload::to_bytes).collect(),
            is_damaged: false,
        });
        Some(Outcome {
            letters: letters.collect(),
            is_log_dirty: turn.is_log_dirty,
            is_state_dirty: turn.is_state_dirty,
            role: turn.role,
            members: turn.members,
            truncations: std::mem::take(&mut self.journal.truncations),
        })
    }

    /// The next sync, or write, fails.
    pub(super) fn fail(&mut self, rng: &mut SimRng) {
        let ops = [DiskOp::Sync, DiskOp::Write, DiskOp::SetLen, DiskOp::SyncDir];
        let filter = OpFilter::op(ops[rng.index(ops.len())]);
        let nth = 1 + rng.below(3);
        self.disk
            .fail_nth(filter, nth, InjectedError::Io, FailMode::Once);
    }

    pub(super) fn stop(&mut self, loses_power: bool, rng: &mut SimRng) {
        self.group = None;
        self.is_paused = false;
        if loses_power {
            self.disk.crash();
            self.journal.crash(rng);
        } else {
            self.disk.kill();
        }
        self.journal.truncations = 0;
    }

    pub(super) fn start(&mut self, rng: &mut SimRng) {
        if self.group.is_some() {
            return;
        }
        self.disk.stop_failing();
        let Kept {
            state,
            members,
            checkpoint,
        } = self.journal.last().clone();
        let shared: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let commit = tidelog_record::RaftIndex::new(state.commit);
        let opened = Log::open_replica(
            shared,
            &dir(),
            identity(),
            options(),
            Some(checkpoint),
            commit,
        );
        let log = opened.expect("what was durable is there").0;
        // An open makes durable what it keeps.
        let end = log.end();
        self.journal.push(|kept| kept.checkpoint = end);
        let group = Group::open(
            config(self.id, self.planted, rng.next_u64()),
            log,
            state,
            members,
        );
        self.group = Some(group.expect("the configuration is a good one"));
        self.life += 1;
    }
}

/// A message from before this replica's log was cut or had to be opened anew.
fn is_late(e: &tidelog_replica::StepError) -> bool {
    matches!(
        e,
        tidelog_replica::StepError::Malformed { what, .. } if *what == "its commit is beyond the log"
    )
}
