//! One node: a disk, a state file, and a shard with the replicas of several partitions. How its process
//! ends and starts is in `process.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::Disk;
use tidelog_log::catch_up::{catch_up_dir, replaced_dir};
use tidelog_log::state::{DirectoryIdentity, GroupKey, GroupState, StateFile, StateRecord};
use tidelog_log::{Log, LogIdentity, LogOptions};
use tidelog_record::{PartitionId, RaftIndex, Timestamp, TopicId};
use tidelog_replica::catch_up::{CatchUpLetter, Copies, LogsOf, PullConfig};
use tidelog_replica::{
    Effects, Group, GroupConfig, GroupStore, Members, NodeId, Planted, ReplicaId, Shard,
    StateStore, replica_of,
};

use super::controlled::{Broker, Seat};
use super::events::Event;
use super::frames::{Frame, is_late};
use crate::{SimDisk, SimRng};

/// What a node has while its process is there.
pub(super) struct Running {
    pub(super) file: Arc<StateFile>,
    pub(super) shard: Shard<u64>,
    pub(super) copies: Copies,
    /// In a cluster that decides for itself.
    pub(super) broker: Option<Broker>,
}

pub(super) struct Node {
    pub(super) id: NodeId,
    planted: Option<Planted>,
    pub(super) disk: SimDisk,
    pub(super) running: Option<Running>,
    /// Counts its starts.
    pub(super) life: u64,
    pub(super) is_paused: bool,
    /// What came while the process was paused.
    pub(super) inbox: VecDeque<Event>,
    /// Whether a call was to fail in a way that ends a group.
    pub(super) may_fail: bool,
    /// Whether there is next to no space left, or no file to be had.
    pub(super) is_short: bool,
    /// Whether it is space that lacks.
    pub(super) is_full: bool,
    /// What its disk stands for, in a cluster that decides for itself.
    pub(super) seat: Option<Seat>,
    /// It does not belong to the cluster yet, or not any more.
    pub(super) is_out: bool,
    /// How many copies took the place of logs.
    pub(super) adopted: u64,
    /// What is to be said about files.
    pub(super) letters: Vec<CatchUpLetter>,
    /// How many replicas of each partition it has lost.
    lost: BTreeMap<GroupKey, u32>,
}

/// The key of a partition.
pub(super) fn key_of(number: u32) -> GroupKey {
    GroupKey {
        topic_id: TopicId::from_bytes([9; 16]),
        partition: PartitionId::new(number),
    }
}

pub(super) fn dir_of(key: GroupKey, id: ReplicaId) -> PathBuf {
    let (number, lost) = (key.partition.get(), id >> 32);
    PathBuf::from(format!("/data/topic-{number}.{lost}"))
}

pub(super) fn state_dir() -> PathBuf {
    PathBuf::from("/data/state")
}

/// Where logs lie.
pub(super) fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}

pub(super) const CLUSTER: [u8; 16] = [7; 16];

pub(super) fn identity(key: GroupKey) -> LogIdentity {
    LogIdentity {
        cluster_id: CLUSTER,
        topic_id: key.topic_id,
        partition: key.partition,
        incarnation: 1,
    }
}

pub(super) fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 20_000,
        index_interval_bytes: 500,
        ..LogOptions::default()
    }
}

/// Slow, and with little patience: so that copies meet what happens meanwhile.
pub(super) fn copies_on(disk: &SimDisk) -> Copies {
    let config = PullConfig {
        bytes_per_second: 400_000,
        parts_ahead: 3,
        patience_millis: 500,
    };
    Copies::new(Arc::new(disk.clone()), config)
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shard = self.shard();
        let keys = shard.map_or(Vec::new(), |shard| shard.keys().collect());
        let groups = keys.iter().filter_map(|key| shard?.group(*key));
        let groups: Vec<_> = groups.collect();
        let Self { id, life, .. } = self;
        write!(f, "node {id} in life {life}: {groups:#?}")
    }
}

impl Node {
    /// A node without a replica of any partition.
    pub(super) fn create(id: NodeId, planted: Option<Planted>, rng: &mut SimRng) -> Self {
        let disk = SimDisk::new(rng.next_u64());
        disk.create_dir_all(&state_dir())
            .expect("nothing fails yet");
        for dir in ["/", "/data"] {
            disk.sync_dir(Path::new(dir)).expect("nothing fails yet");
        }
        let owner = DirectoryIdentity {
            cluster_id: CLUSTER,
            node_id: id,
            directory_id: [u8::try_from(id).expect("few"); 16],
        };
        let file = StateFile::create(Arc::new(disk.clone()), &state_dir(), owner);
        let running = Running {
            file: Arc::new(file.expect("nothing fails yet")),
            shard: Shard::default(),
            copies: copies_on(&disk),
            broker: None,
        };
        Self {
            id,
            planted,
            disk,
            running: Some(running),
            life: 0,
            is_paused: false,
            inbox: VecDeque::new(),
            may_fail: false,
            is_short: false,
            is_full: false,
            seat: None,
            is_out: false,
            adopted: 0,
            letters: Vec::new(),
            lost: BTreeMap::new(),
        }
    }

    /// The number its next replica of a partition has.
    pub(super) fn next_replica(&self, key: GroupKey) -> ReplicaId {
        replica_of(self.id, self.lost.get(&key).copied().unwrap_or(0))
    }

    pub(super) fn config(&self, id: ReplicaId, rng: &mut SimRng) -> GroupConfig {
        GroupConfig {
            id,
            message_bytes_max: 4000,
            messages_in_flight_max: 8,
            uncommitted_bytes_max: 20_000,
            seed: rng.next_u64(),
            planted: self.planted,
            ..GroupConfig::default()
        }
    }

    /// Makes an empty replica, which knows who founded its group.
    pub(super) fn add_replica(&mut self, key: GroupKey, founders: &[ReplicaId], rng: &mut SimRng) {
        let config = self.config(self.next_replica(key), rng);
        self.add_replica_as(key, founders, config);
    }

    /// Makes an empty replica that works in this way.
    pub(super) fn add_replica_as(
        &mut self,
        key: GroupKey,
        founders: &[ReplicaId],
        config: GroupConfig,
    ) {
        // How a replica is made on a disk that fails is another matter.
        self.disk.stop_failing();
        self.disk.set_free_bytes(None);
        let id = config.id;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let now = Timestamp::from_millis(0);
        let log = Log::create_replica(disk, &dir_of(key, id), identity(key), options(), now);
        let log = log.expect("nothing fails now");
        let members = Members::founded_by(founders.to_vec());
        let state = GroupState {
            incarnation: 1,
            replica_id: id,
            term: 5,
            vote: 0,
            commit: 5,
            checkpoint: None,
        };
        let running = self.running.as_mut().expect("it runs");
        let mut store = StateStore::new(running.file.clone(), key);
        let recorded = store
            .record(&state, &members)
            .and_then(|()| store.checkpoint(log.end()))
            .and_then(|()| store.sync());
        recorded.expect("nothing fails now");
        let group = Group::open(config, log, state, members);
        let group = group.expect("the configuration is a good one");
        running.shard.add(key, 1, group, store);
    }

    /// Deletes its replica of a partition, if that can be remembered.
    pub(super) fn remove_replica(&mut self, key: GroupKey) -> bool {
        self.disk.stop_failing();
        self.disk.set_free_bytes(None);
        let id = self.next_replica(key);
        let running = self.running.as_mut().expect("it runs");
        let removed = running.file.record(&[StateRecord::GroupRemoved(key)], true);
        if removed.is_ok() {
            drop(running.shard.remove(key));
            let dir = dir_of(key, id);
            let deleted = self.disk.remove_dir_all(&dir);
            deleted.expect("nothing fails now");
            for beside in [catch_up_dir(&dir), replaced_dir(&dir)] {
                // Mostly there is none.
                self.disk.remove_dir_all(&beside).ok();
            }
            *self.lost.entry(key).or_default() += 1;
        }
        removed.is_ok()
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some() && !self.is_paused
    }

    /// Whether it runs, and replicas can be made and deleted there.
    pub(super) fn takes_changes(&self) -> bool {
        let running = self.running.as_ref().filter(|_| !self.is_paused);
        running.is_some_and(|running| running.file.poisoned().is_none())
    }

    pub(super) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn shard(&self) -> Option<&Shard<u64>> {
        Some(&self.running.as_ref()?.shard)
    }

    pub(super) fn shard_mut(&mut self) -> Option<&mut Shard<u64>> {
        Some(&mut self.running.as_mut()?.shard)
    }

    /// The replica with this number, if it runs here.
    pub(super) fn replica(&self, key: GroupKey, id: ReplicaId) -> Option<&Group> {
        let group = self.shard()?.group(key)?;
        (group.id() == id).then_some(group)
    }

    /// The number of the replica that runs here, or would be the next.
    pub(super) fn replica_of(&self, key: GroupKey) -> ReplicaId {
        let group = self.shard().and_then(|shard| shard.group(key));
        group.map_or_else(|| self.next_replica(key), Group::id)
    }

    pub(super) fn broker(&self) -> Option<&Broker> {
        self.running.as_ref()?.broker.as_ref()
    }

    pub(super) fn broker_mut(&mut self) -> Option<&mut Broker> {
        self.running.as_mut()?.broker.as_mut()
    }

    /// Which of its disks it has, in a cluster that decides for itself.
    pub(super) fn disk_number(&self) -> u32 {
        self.seat.as_ref().map_or(0, |seat| seat.disk)
    }

    pub(super) fn tick(&mut self) {
        if let Some(shard) = self.shard_mut().filter(|shard| shard.needs_ticks()) {
            shard.tick();
        }
    }

    /// Does something to what is copied; gives what is to be sent for it.
    fn with_copies(
        &mut self,
        act: impl FnOnce(&mut Copies, &mut LogsOf<'_, u64>) -> Vec<CatchUpLetter>,
    ) {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        if let Some(Running { shard, copies, .. }) = &mut self.running {
            let before = copies.adopted();
            let letters = act(copies, &mut LogsOf { shard, disk });
            self.adopted += copies.adopted() - before;
            self.letters.extend(letters);
        }
    }

    /// A letter about files; what comes of it is sent with the next turn.
    pub(super) fn take_files(&mut self, letter: CatchUpLetter, now: u64) {
        self.with_copies(|copies, logs| copies.take(letter, logs, now));
    }

    /// Goes on with what is copied.
    pub(super) fn tick_files(&mut self, now: u64) {
        self.with_copies(|copies, logs| copies.tick(logs, now));
    }

    /// Gives how many letters of a frame were refused.
    pub(super) fn receive(&mut self, frame: &Frame, now: Timestamp) -> u64 {
        let Some(Running { shard, .. }) = &mut self.running else {
            return 0;
        };
        let mut refused = 0;
        for mail in &frame.mail {
            let key = mail.received.key;
            let Err(e) = shard.receive(mail.received.clone(), now) else {
                continue;
            };
            refused += 1;
            let is_failed = shard.log(key).is_none_or(|log| {
                let is_full = matches!(e, tidelog_replica::StepError::Append(_));
                is_full || log.reader().poisoned().is_some()
            });
            assert!(
                mail.is_damaged || is_failed || is_late(&e),
                "a message of a replica was refused: {e}"
            );
        }
        refused
    }

    fn in_life(&mut self, life: u64) -> Option<&mut Running> {
        let is_this = life == self.life;
        self.running.as_mut().filter(|_| is_this)
    }

    /// The round of syncs that was asked for has taken its time: all that was written is durable, and
    /// the ends are recorded before anybody hears of them. A failure shows in the next turn.
    pub(super) fn sync_logs(&mut self, life: u64, keys: &[GroupKey], with_state: bool) {
        let Some(Running { file, shard, .. }) = self.in_life(life) else {
            return;
        };
        let mut ends = Vec::new();
        for key in keys {
            let synced = shard.log(*key).map(|log| log.sync_handle().sync());
            if let Some(Ok(end)) = synced {
                ends.push(StateRecord::Checkpoint(*key, end));
            }
        }
        let mut recorded = file.record(&ends, false);
        if with_state && recorded.is_ok() {
            recorded = file.sync();
        }
        for key in keys {
            if let (Err(poisoned), Some(log)) = (&recorded, shard.log(*key)) {
                log.sync_handle().poison(poisoned);
            }
            shard.log_synced(*key);
        }
    }

    /// The sync of the state that was asked for has taken its time.
    pub(super) fn sync_state(&mut self, life: u64, recorded: &[(GroupKey, u64)]) {
        let Some(Running { file, shard, .. }) = self.in_life(life) else {
            return;
        };
        match file.sync() {
            Ok(()) => shard.state_synced(recorded),
            Err(poisoned) => shard.state_failed(&poisoned),
        }
    }

    /// What the shard has to do, if there is anything, and in how many groups entries were taken back
    /// for it.
    pub(super) fn turn(&mut self, now: Timestamp) -> Option<(Effects<u64>, u64)> {
        let shard = self.shard_mut().filter(|shard| shard.has_work())?;
        let last = |log: &Log| {
            let end = log.end_index().get() - 1;
            (end, log.epoch_of(RaftIndex::new(end)).ok())
        };
        let keys: Vec<GroupKey> = shard.keys().collect();
        let logs = keys.iter().filter_map(|key| shard.log(*key));
        let before: Vec<_> = logs.map(last).collect();
        let effects = shard.turn(now);
        let logs = keys.iter().filter_map(|key| shard.log(*key));
        let cut = before.into_iter().zip(logs).filter(|((end, epoch), log)| {
            log.end_index().get() <= *end || log.epoch_of(RaftIndex::new(*end)).ok() != *epoch
        });
        let cut = cut.count() as u64;
        Some((effects, cut))
    }
}
