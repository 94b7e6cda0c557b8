//! One replica: a group on a disk of its own, and what it keeps beside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskOp};
use tidelog_log::state::{DirectoryIdentity, GroupKey, GroupState, StateFile};
use tidelog_log::{Log, LogEnd, LogIdentity, LogOptions, Poisoned};
use tidelog_record::{PartitionId, RaftIndex, Timestamp, TopicId};
use tidelog_replica::eraftpb::ConfState;
use tidelog_replica::{
    Group, GroupConfig, GroupError, GroupStore, Members, Payload, Planted, Role, StateStore,
};

use super::checks::Checks;
use super::events::Letter;
use crate::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

/// The state file, and how many times entries were taken back.
#[derive(Debug)]
struct Store {
    inner: StateStore,
    truncations: u64,
}

impl GroupStore for Store {
    fn record(&mut self, state: &GroupState, members: &Members) -> Result<(), Poisoned> {
        self.inner.record(state, members)
    }

    fn sync(&mut self) -> Result<(), Poisoned> {
        self.inner.sync()
    }

    fn replace(&mut self, end: LogEnd) -> Result<(), Poisoned> {
        self.inner.replace(end)
    }

    fn set_back(&mut self, end: LogEnd) -> Result<(), Poisoned> {
        self.truncations += 1;
        self.inner.set_back(end)
    }
}

/// What came of a turn.
pub(super) struct Outcome {
    pub(super) letters: Vec<Letter>,
    pub(super) is_log_dirty: bool,
    pub(super) state_to_sync: Option<u64>,
    pub(super) role: Option<Role>,
    pub(super) members: Option<Members>,
    pub(super) truncations: u64,
}

/// What a replica has while its process is there.
struct Running {
    store: Store,
    group: Group,
}

pub(super) struct Replica {
    pub(super) id: u64,
    planted: Option<Planted>,
    disk: SimDisk,
    running: Option<Running>,
    /// Counts its starts.
    life: u64,
    pub(super) is_paused: bool,
}

fn dir() -> PathBuf {
    PathBuf::from("/data/topic-0")
}

fn state_dir() -> PathBuf {
    PathBuf::from("/data/state")
}

fn key() -> GroupKey {
    let LogIdentity {
        topic_id,
        partition,
        ..
    } = identity();
    GroupKey {
        topic_id,
        partition,
    }
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
        let group = self.group();
        write!(f, "replica {} in life {}: {group:?}", self.id, self.life)
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
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        disk.create_dir_all(&state_dir())
            .expect("nothing fails yet");
        for dir in ["/", "/data"] {
            disk.sync_dir(Path::new(dir)).expect("nothing fails yet");
        }
        let now = Timestamp::from_millis(0);
        let log = Log::create_replica(shared.clone(), &dir(), identity(), options(), now);
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
        let owner = DirectoryIdentity {
            cluster_id: [7; 16],
            node_id: u32::try_from(id).expect("few"),
            directory_id: [u8::try_from(id).expect("few"); 16],
        };
        let file = StateFile::create(shared, &state_dir(), owner).expect("nothing fails yet");
        let mut store = StateStore::new(Arc::new(file), key());
        let recorded = store
            .record(&state, &members)
            .and_then(|()| store.checkpoint(log.end()))
            .and_then(|()| store.sync());
        recorded.expect("nothing fails yet");
        let group = Group::open(config(id, planted, rng.next_u64()), log, state, members);
        let running = Running {
            store: Store {
                inner: store,
                truncations: 0,
            },
            group: group.expect("the configuration is a good one"),
        };
        Self {
            id,
            planted,
            disk,
            running: Some(running),
            life: 0,
            is_paused: false,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some() && !self.is_paused
    }

    pub(super) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn group(&self) -> Option<&Group> {
        Some(&self.running.as_ref()?.group)
    }

    pub(super) fn group_mut(&mut self) -> Option<&mut Group> {
        Some(&mut self.running.as_mut()?.group)
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
        if let Some(group) = self.group_mut() {
            group.tick();
        }
    }

    /// Says whether the message was refused.
    pub(super) fn step(&mut self, letter: &Letter, now: Timestamp) -> bool {
        let Some(group) = self.group_mut() else {
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

    fn in_life(&mut self, life: u64) -> Option<&mut Running> {
        let is_this = life == self.life;
        self.running.as_mut().filter(|_| is_this)
    }

    /// The sync of the log that was asked for has taken its time. A failure shows in the next turn.
    pub(super) fn sync_log(&mut self, life: u64) {
        if let Some(running) = self.in_life(life)
            && let Ok(end) = running.group.log().sync_handle().sync()
        {
            running.store.inner.checkpoint(end).ok();
        }
    }

    /// The sync of the state that was asked for when so much was recorded has taken its time.
    pub(super) fn sync_state(&mut self, life: u64, recorded: u64) {
        if let Some(running) = self.in_life(life)
            && running.store.sync().is_ok()
        {
            running.group.state_synced(recorded);
        }
    }

    /// Who is in the group, as far as it is committed here.
    pub(super) fn members(&self) -> Option<&Members> {
        Some(self.group()?.members())
    }

    /// Does what the group asks for; `None` when it has failed.
    pub(super) fn turn(&mut self, now: Timestamp) -> Option<Outcome> {
        let Running { store, group } = self.running.as_mut()?;
        let turn = match group.turn(store, now) {
            Ok(turn) => turn,
            Err(GroupError::Poisoned(_)) => return None,
            Err(e) => panic!("replica {} fails by itself: {e}", self.id),
        };
        // As a broker stops all its logs when nothing can be remembered.
        if group.log().reader().poisoned().is_some() || store.inner.is_poisoned() {
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
            state_to_sync: turn.is_state_dirty.then(|| group.recorded()),
            role: turn.role,
            members: turn.members,
            truncations: std::mem::take(&mut store.truncations),
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

    pub(super) fn stop(&mut self, loses_power: bool) {
        self.running = None;
        self.is_paused = false;
        if loses_power {
            self.disk.crash();
        } else {
            self.disk.kill();
        }
    }

    pub(super) fn start(&mut self, rng: &mut SimRng) {
        if self.running.is_some() {
            return;
        }
        self.disk.stop_failing();
        let shared: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let file = StateFile::open(shared.clone(), &state_dir());
        let file = Arc::new(file.expect("what was remembered is there"));
        let store = StateStore::new(file, key());
        let (state, members) = store.load().expect("the group was recorded at its making");
        let commit = RaftIndex::new(state.commit);
        let checkpoint = state.checkpoint;
        let opened = Log::open_replica(shared, &dir(), identity(), options(), checkpoint, commit);
        let log = opened.expect("what was durable is there").0;
        // An open makes durable what it keeps.
        store.checkpoint(log.end()).expect("nothing fails now");
        let config = config(self.id, self.planted, rng.next_u64());
        let group = Group::open(config, log, state, members);
        self.running = Some(Running {
            store: Store {
                inner: store,
                truncations: 0,
            },
            group: group.expect("the configuration is a good one"),
        });
        self.life += 1;
    }
}

/// A message from before this replica's log was cut or had to be opened anew.
fn is_late(e: &tidelog_replica::StepError) -> bool {
    matches!(
        e,
        tidelog_replica::StepError::Malformed { what, .. } if *what == "what it speaks of is beyond the log"
    )
}
