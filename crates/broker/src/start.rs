//! Starting: lock the directory, read the state file, replay the metadata log, open every
//! partition.

mod checkpoints;
mod leftovers;
mod partitions;
pub(crate) mod replay;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tidelog_controller::Cluster;
use tidelog_disk::{DirLock, Disk, DiskError, LockError};
use tidelog_log::state::{
    DirectoryIdentity, GroupKey, GroupState, StateError, StateFile, StateRecord,
};
use tidelog_log::{Poisoned, SyncConfig, SyncCoordinator};
use tokio::sync::{Notify, Semaphore, watch};

use self::checkpoints::Checkpoints;
use self::replay::{Replayed, replay};
use crate::age_clock::AgeClock;
use crate::catch_up;
use crate::files::partition_dir;
use crate::mailbox::{Opened, ShardHandle, mailbox};
use crate::metadata::Folded;
use crate::metrics::Metrics;
use crate::producers::{self, ProducerIds};
use crate::read::COLD_READS_MAX;
use crate::removal::Remover;
use crate::seams::Seams;
use crate::seen::Seen;
use crate::shard;
use crate::space::Space;
use crate::{Broker, BrokerConfig, Inner, METADATA_TOPIC, controller};

/// Why a broker did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Another broker runs on the directory.
    #[error("the data directory is in use: {0}")]
    Locked(String),
    /// Data that everything depends on is damaged. Every byte of it is as it was found.
    #[error("{0}")]
    Damaged(String),
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A fresh write failed.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

impl StartError {
    /// Whether stored data is damaged, as opposed to something being in the way.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }

    /// The metadata log could not be read.
    fn reading(error: tidelog_log::ReadError) -> Self {
        match error {
            tidelog_log::ReadError::Disk(e) => e.into(),
            e => Self::damaged(e),
        }
    }

    fn damaged(error: impl std::fmt::Display) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// What is known before the partitions are opened.
pub(crate) struct Start {
    config: BrokerConfig,
    seams: Seams,
    state: Arc<StateFile>,
    metrics: Arc<Metrics>,
    shards: Vec<ShardHandle>,
    /// Whether the last stop closed every log: then there is nothing to recover.
    was_clean: bool,
    /// What lies in the data directory.
    there: HashSet<PathBuf>,
}

impl Start {
    /// For a partition that is opened while the broker runs.
    ///
    /// # Errors
    /// For people, where the data directory cannot be listed.
    pub(crate) fn of(broker: &Broker) -> Result<Self, String> {
        let inner = broker.inner();
        let there = there(&*inner.seams.disk, &inner.config.data_dir);
        Ok(Self {
            config: inner.config.clone(),
            seams: inner.seams.clone(),
            state: inner.state.clone(),
            metrics: inner.metrics.clone(),
            shards: inner.shards.clone(),
            was_clean: false,
            there: there.map_err(|e| e.to_string())?,
        })
    }
}

impl Broker {
    /// Starts a broker on a data directory, which is made if it is not there. Blocks until every
    /// partition serves or is known to be damaged.
    ///
    /// # Errors
    /// [`StartError`]. A damaged partition does not keep a broker from starting; a damaged state
    /// file or metadata log does.
    pub fn open(mut config: BrokerConfig, seams: Seams) -> Result<Self, StartError> {
        config.in_flight_bytes_max = config.in_flight_bytes_max.clamp(1, IN_FLIGHT_BYTES_LIMIT);
        let disk = seams.disk.clone();
        let data_dir = config.data_dir.clone();
        disk.create_dir_all(&data_dir)?;
        let lock = disk.lock(&data_dir.join("LOCK")).map_err(|e| match e {
            LockError::Held { .. } => StartError::Locked(e.to_string()),
            LockError::Disk(e) => e.into(),
        })?;
        let lock: Arc<dyn DirLock> = Arc::from(lock);
        // Before anything is written: it tells of what fails from now on.
        let file_system = disk.file_system(&data_dir)?;
        let state = Arc::new(open_state(&seams, &config)?);
        let known = state.state();
        state.record(&[StateRecord::Boot(known.boots + 1)], true)?;

        let metrics = Arc::new(Metrics::new());
        let observer = Arc::new(Checkpoints::new(state.clone(), metrics.clone()));
        let syncs = SyncConfig {
            threads_max: config.sync_threads,
            file_system,
            ..SyncConfig::default()
        };
        let coordinator = SyncCoordinator::start(observer, syncs).map_err(StartError::Thread)?;
        let (read_turns, syncs) = (coordinator.read_turns(), coordinator.watch());
        let wants_ticks = Arc::<Notify>::default();
        let (shards, mailboxes): (Vec<_>, Vec<_>) = (0..config.shards.max(1))
            .map(|_| mailbox(&wants_ticks))
            .unzip();
        let there = there(&*disk, &data_dir)?;
        let start = Start {
            there,
            config,
            seams,
            state,
            metrics,
            shards,
            was_clean: known.clean,
        };

        let metadata = start.open_metadata()?;
        let Replayed {
            cluster,
            deleted,
            applied,
            snapshot_at,
        } = replay(&metadata.partition)?;
        start.remove_deleted(&cluster, &deleted, &known.groups);
        let node = known.identity.node_id;
        let (routes, mut opened, unmade) = start.open_topics(&cluster, &known.groups);
        let metadata_partition = metadata.partition.clone();
        opened.push(metadata);
        let next_producer_id = next_producer_id(&cluster, &opened);
        start.record_opened(&mut opened)?;
        let opened = by_shard(&start, opened);
        let mut threads = Vec::new();
        let space = Space::new(disk.clone(), data_dir, start.config.free_bytes_min);
        if let Some(warning) = space.warning() {
            tracing::warn!("{warning}");
        }
        let stopping = watch::Sender::new(false);
        let (remover, thread) = Remover::start(
            start.config.removal_bytes_per_second,
            stopping.subscribe(),
            start.metrics.clone(),
        )
        .map_err(StartError::Thread)?;
        threads.push(thread);
        let leaders_changed = Arc::<Notify>::default();
        let around = shard::Surroundings {
            leaders_changed: leaders_changed.clone(),
            coordinator,
            state: start.state.clone(),
            disk: disk.clone(),
            peers: start.seams.peers.clone(),
            clock: start.seams.clock.clone(),
            metrics: start.metrics.clone(),
            space,
            remover,
            _lock: lock.clone(),
        };
        let catch_up = if !start.config.is_alone() {
            let shards = start.shards.clone();
            let started = catch_up::start(
                &start.seams,
                shards,
                stopping.subscribe(),
                start.metrics.clone(),
            );
            let (letters, thread) = started.map_err(StartError::Thread)?;
            threads.push(thread);
            Some(letters)
        } else {
            None
        };
        let count = mailboxes.len();
        let (told, started) = std::sync::mpsc::sync_channel(count);
        for ((number, mailbox), opened) in mailboxes.into_iter().enumerate().zip(opened) {
            let ends = (&start.shards[number], mailbox);
            let thread = shard::start(number, ends, opened, around.clone(), told.clone());
            threads.push(thread.map_err(StartError::Thread)?);
        }
        for _ in 0..count {
            if started.recv_timeout(START_WAIT_MAX).is_err() {
                tracing::warn!("the disk is slow: some partitions serve later");
                break;
            }
        }

        let Start {
            config,
            seams,
            state,
            metrics,
            shards,
            was_clean: _,
            there: _,
        } = start;
        let broker = Self {
            inner: Arc::new(Inner {
                room: Arc::new(Semaphore::new(config.in_flight_bytes_max)),
                space: around.space,
                age_clock: AgeClock::new(seams.clock.clone()),
                read_turns,
                syncs,
                catch_up,
                cold_reads: Arc::new(Semaphore::new(COLD_READS_MAX)),
                heavy_checks: Arc::new(Semaphore::new(heavy_checks())),
                identity: known.identity,
                config,
                seams,
                metrics,
                state,
                shards,
                threads: Mutex::new(threads),
                metadata: metadata_partition,
                epoch_before: cluster.broker(node).map_or(0, |known| known.epoch),
                cluster: RwLock::new(cluster),
                seen: Seen::default(),
                unremoved: Mutex::default(),
                leaders_changed,
                asked: controller::Asked::default(),
                metadata_changed: watch::Sender::new(0),
                producer_ids: Mutex::new(ProducerIds::after(next_producer_id)),
                groups: crate::groups::Groups::default(),
                compacting: Mutex::default(),
                metadata_folded: tokio::sync::Mutex::new(Folded::new(applied, snapshot_at, unmade)),
                routes: RwLock::new(routes),
                stopping,
                stopped: watch::Sender::new(None),
                _lock: lock,
            }),
        };
        broker.start_folding().map_err(StartError::Thread)?;
        broker.start_groups().map_err(StartError::Thread)?;
        broker.start_controller().map_err(StartError::Thread)?;
        broker.start_ticker().map_err(StartError::Thread)?;
        broker.start_retention().map_err(StartError::Thread)?;
        broker.start_compaction().map_err(StartError::Thread)?;
        Ok(broker)
    }
}

/// All that lies in the data directory, the logs among it of which a copy was about to take the place when the
/// broker stopped.
fn there(disk: &dyn Disk, data_dir: &Path) -> Result<HashSet<PathBuf>, DiskError> {
    let entries = disk.list(data_dir)?;
    let names = entries.iter().map(|entry| data_dir.join(&entry.name));
    Ok(names.collect())
}

/// How long the first syncs of all logs take at most, where the disk does not hang.
const START_WAIT_MAX: Duration = Duration::from_secs(60);

/// What one permit of the budget for appends can count.
const IN_FLIGHT_BYTES_LIMIT: usize = u32::MAX as usize;

/// A repair may have cut off the end of the metadata log, and with it which producer ids were given
/// out. One that came again would have what it sends taken for what its namesake sent.
fn next_producer_id(cluster: &Cluster, opened: &[Opened]) -> i64 {
    let decided = cluster.topics().next_producer_id();
    let known = opened
        .iter()
        .filter_map(|one| one.group.log().largest_producer_id());
    match known.max().filter(|id| *id >= decided) {
        // With the rest of its block, which may have been given out too.
        Some(largest) => {
            tracing::warn!(
                largest,
                "partitions know producers that the metadata log does not: it was cut"
            );
            largest.saturating_add(i64::from(producers::BLOCK))
        }
        None => decided,
    }
}

/// Makes the data directory's own name survive power loss, and those of the directories above that
/// were made with it: as far up as there is nothing else in them.
fn sync_names_above(disk: &dyn Disk, data_dir: &Path) -> Result<(), DiskError> {
    for dir in data_dir.ancestors().skip(1) {
        let here = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        disk.sync_dir(here)?;
        if disk.list(here).map_or(true, |entries| entries.len() > 1) {
            break;
        }
    }
    Ok(())
}

/// What was opened, by its shard.
fn by_shard(start: &Start, opened: Vec<Opened>) -> Vec<Vec<Opened>> {
    let mut by_shard: Vec<Vec<Opened>> = Vec::new();
    by_shard.resize_with(start.shards.len(), Vec::new);
    for one in opened {
        by_shard[shard_number(one.partition.key, start.shards.len())].push(one);
    }
    by_shard
}

/// Which shard writes a partition: spread evenly, the same at every start.
pub(crate) fn shard_number(key: GroupKey, shards: usize) -> usize {
    let [.., last] = key.topic_id.to_bytes();
    (key.partition.get() as usize + usize::from(last)) % shards
}

fn open_state(seams: &Seams, config: &BrokerConfig) -> Result<StateFile, StartError> {
    let data_dir = &config.data_dir;
    let dir = data_dir.join("state");
    match StateFile::open(seams.disk.clone(), &dir) {
        Ok(state) => Ok(state),
        Err(StateError::Missing { .. }) => {
            let metadata_dir = partition_dir(data_dir, METADATA_TOPIC, 0);
            let has_data = match seams.disk.list(&metadata_dir) {
                Ok(entries) => entries.iter().any(|entry| entry.name.ends_with(".log")),
                Err(e) if e.is_not_found() => false,
                Err(e) => return Err(e.into()),
            };
            if has_data {
                return Err(StartError::Damaged(format!(
                    "{} holds logs but no state file; it was lost",
                    data_dir.display()
                )));
            }
            let identity = DirectoryIdentity {
                cluster_id: config.cluster_id.unwrap_or_else(|| seams.random.id()),
                node_id: config.node_id,
                directory_id: config.directory_id.unwrap_or_else(|| seams.random.id()),
            };
            sync_names_above(&*seams.disk, data_dir)?;
            Ok(StateFile::create(seams.disk.clone(), &dir, identity)?)
        }
        Err(StateError::Disk(e)) => Err(e.into()),
        Err(e @ StateError::Damaged { .. }) => Err(StartError::damaged(e)),
    }
}

type Groups = BTreeMap<GroupKey, GroupState>;

/// How many batches may be (de)compressed for their check at a time: as many as there are cores.
fn heavy_checks() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get)
}
