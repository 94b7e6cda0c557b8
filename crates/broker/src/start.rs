//! Starting: lock the directory, read the state file, replay the metadata log, open every
//! partition.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tidelog_controller::{Command as TopicCommand, Topic, TopicSettings, Topics};
use tidelog_disk::{DirLock, Disk, DiskError, DiskOp, LockError};
use tidelog_log::state::{
    DirectoryIdentity, GroupKey, GroupState, StateError, StateFile, StateRecord,
};
use tidelog_log::{
    AppendError, Found, INITIAL_EPOCH, Log, LogEnd, LogIdentity, LogOptions, OpenError, Poisoned,
    RoundObserver, SyncCoordinator, SyncTarget,
};
use tidelog_record::{
    BatchLimits, LeaderEpoch, Offset, PartitionId, TopicId, TopicName, split_batches,
};
use tokio::sync::{Semaphore, watch};

use crate::append::StickyBytes;
use crate::metrics::Metrics;
use crate::partition::Partition;
use crate::read::COLD_READS_MAX;
use crate::seams::Seams;
use crate::shard::{self, ShardHandle};
use crate::space::Space;
use crate::{Broker, BrokerConfig, Inner, METADATA_TOPIC, METADATA_TOPIC_ID, Route, Slot};

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

/// Records the durable ends of each sync round in the state file.
#[derive(Debug)]
struct Checkpoints {
    state: Arc<StateFile>,
    metrics: Arc<Metrics>,
    last_sync: Mutex<Instant>,
}

/// How old checkpoints in the state file get before they are made to survive power loss.
const CHECKPOINT_SYNC_INTERVAL: Duration = Duration::from_secs(1);

impl RoundObserver for Checkpoints {
    fn record(&self, ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned> {
        let records: Vec<StateRecord> = ends
            .iter()
            .map(|(target, end)| {
                let identity = target.log().identity();
                let (topic_id, partition) = (identity.topic_id, identity.partition);
                StateRecord::Checkpoint(
                    GroupKey {
                        topic_id,
                        partition,
                    },
                    *end,
                )
            })
            .collect();
        self.state.record(&records, false)
    }

    fn finished(&self, logs: usize, took: Duration) {
        Metrics::observe(&self.metrics.sync_seconds, took);
        #[allow(clippy::cast_precision_loss, reason = "a count of logs")]
        self.metrics.sync_logs.observe(logs as f64);
        let mut last = self.last_sync.lock();
        if last.elapsed() >= CHECKPOINT_SYNC_INTERVAL {
            // A failure poisons the state file, and with it the next round.
            if let Err(e) = self.state.sync() {
                tracing::error!(error = %e, "checkpoints cannot be kept");
            }
            *last = now();
        }
    }
}

fn now() -> Instant {
    #[allow(
        clippy::disallowed_methods,
        reason = "paces a background sync, decides nothing"
    )]
    Instant::now()
}

/// What is known before the partitions are opened.
struct Start {
    config: BrokerConfig,
    seams: Seams,
    state: Arc<StateFile>,
    metrics: Arc<Metrics>,
    shards: Vec<ShardHandle>,
}

/// A partition that was opened, and the log for its shard.
struct Opened {
    partition: Arc<Partition>,
    log: Log,
    term: u64,
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
        let state = Arc::new(open_state(&seams, &data_dir)?);
        let known = state.state();
        state.record(&[StateRecord::Boot(known.boots + 1)], true)?;

        let metrics = Arc::new(Metrics::new());
        let observer = Arc::new(Checkpoints {
            state: state.clone(),
            metrics: metrics.clone(),
            last_sync: Mutex::new(now()),
        });
        let coordinator =
            SyncCoordinator::start(observer, config.sync_threads).map_err(StartError::Thread)?;
        let (shards, mailboxes): (Vec<_>, Vec<_>) =
            (0..config.shards.max(1)).map(|_| shard::mailbox()).unzip();
        let start = Start {
            config,
            seams,
            state,
            metrics,
            shards,
        };

        let metadata = start.open_metadata(&known.groups)?;
        let (topics, deleted) = replay(&metadata.partition)?;
        start.remove_deleted(&topics, &deleted, &known.groups);
        let (routes, mut opened) = start.open_topics(&topics, &known.groups);
        let metadata_partition = metadata.partition.clone();
        opened.push(metadata);
        start.begin_epochs(&opened)?;
        let mut logs: Vec<HashMap<GroupKey, Log>> = shards_of(&start, opened);
        let mut threads = Vec::new();
        let space = Space::new(disk, data_dir, start.config.free_bytes_min);
        if let Some(warning) = space.warning() {
            tracing::warn!("{warning}");
        }
        let around = shard::Surroundings {
            coordinator,
            clock: start.seams.clock.clone(),
            metrics: start.metrics.clone(),
            space,
            lock: lock.clone(),
        };
        for (number, mailbox) in mailboxes.into_iter().enumerate() {
            let logs = std::mem::take(&mut logs[number]);
            let thread = shard::start(number, mailbox, logs, around.clone());
            threads.push(thread.map_err(StartError::Thread)?);
        }

        let Start {
            config,
            seams,
            state,
            metrics,
            shards,
        } = start;
        let broker = Self {
            inner: Arc::new(Inner {
                room: Arc::new(Semaphore::new(config.in_flight_bytes_max)),
                space: around.space,
                cold_reads: Arc::new(Semaphore::new(COLD_READS_MAX)),
                identity: known.identity,
                config,
                seams,
                metrics,
                state,
                shards,
                threads: Mutex::new(threads),
                metadata: metadata_partition,
                topics: tokio::sync::Mutex::new(topics),
                routes: RwLock::new(routes),
                stopping: watch::Sender::new(false),
                stopped: watch::Sender::new(None),
                _lock: lock,
            }),
        };
        broker.start_retention().map_err(StartError::Thread)?;
        Ok(broker)
    }
}

/// What one permit of the budget for appends can count.
const IN_FLIGHT_BYTES_LIMIT: usize = u32::MAX as usize;

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

/// The logs of each shard.
fn shards_of(start: &Start, opened: Vec<Opened>) -> Vec<HashMap<GroupKey, Log>> {
    let mut logs: Vec<HashMap<GroupKey, Log>> = Vec::new();
    logs.resize_with(start.shards.len(), HashMap::new);
    for one in opened {
        let key = one.partition.key;
        logs[shard_number(key, start.shards.len())].insert(key, one.log);
    }
    logs
}

/// Which shard writes a partition: spread evenly, the same at every start.
pub(crate) fn shard_number(key: GroupKey, shards: usize) -> usize {
    let [.., last] = key.topic_id.to_bytes();
    (key.partition.get() as usize + usize::from(last)) % shards
}

fn open_state(seams: &Seams, data_dir: &Path) -> Result<StateFile, StartError> {
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
                cluster_id: seams.random.id(),
                node_id: 1,
                directory_id: seams.random.id(),
            };
            sync_names_above(&*seams.disk, data_dir)?;
            Ok(StateFile::create(seams.disk.clone(), &dir, identity)?)
        }
        Err(StateError::Disk(e)) => Err(e.into()),
        Err(e @ StateError::Damaged { .. }) => Err(StartError::damaged(e)),
    }
}

/// `<data-dir>/<topic>-<partition>`
pub(crate) fn partition_dir(data_dir: &Path, topic: &str, partition: u32) -> PathBuf {
    data_dir.join(format!("{topic}-{partition}"))
}

/// `<data-dir>/<topic id>-<partition>.deleted`: what a deleted partition is renamed to first.
pub(crate) fn deleted_dir(data_dir: &Path, topic_id: TopicId, partition: u32) -> PathBuf {
    data_dir.join(format!("{topic_id}-{partition}.deleted"))
}

pub(crate) fn log_options(settings: &TopicSettings) -> LogOptions {
    LogOptions {
        segment_bytes: settings.segment_bytes,
        segment_ms: settings.segment_ms,
        index_interval_bytes: settings.index_interval_bytes,
        room_bytes: ROOM_BYTES,
        appends_use_room: false,
    }
}

/// For some twenty starts and deletions of records on a full disk.
const ROOM_BYTES: u32 = 2 << 10;
/// For some hundred changes of topics on a full disk: settings that let go of more, deletions.
const METADATA_ROOM_BYTES: u32 = 64 << 10;

/// What the state file says of a group that is new here: its only voter, which has the vote.
pub(crate) fn new_group(term: u64) -> GroupState {
    GroupState {
        incarnation: 1,
        replica_id: 1,
        term,
        vote: 1,
        commit: u64::from(INITIAL_EPOCH.get()),
        checkpoint: None,
    }
}

/// How many records go into the state file at once.
const RECORDS_AT_ONCE: usize = 1024;

type Groups = BTreeMap<GroupKey, GroupState>;

impl Start {
    fn identity(&self, key: GroupKey, incarnation: u32) -> LogIdentity {
        LogIdentity {
            cluster_id: self.state.state().identity.cluster_id,
            topic_id: key.topic_id,
            partition: key.partition,
            incarnation,
        }
    }

    fn open_metadata(&self, groups: &Groups) -> Result<Opened, StartError> {
        let name = TopicName::new(METADATA_TOPIC).expect("the name is valid");
        let key = GroupKey {
            topic_id: METADATA_TOPIC_ID,
            partition: PartitionId::new(0),
        };
        let settings = Arc::new(TopicSettings::default());
        self.open_partition(&name, key, settings, groups.get(&key))
            .map_err(|e| match e {
                OpenError::Disk(e) => e.into(),
                e => StartError::damaged(e),
            })
    }

    /// Opens a partition's log; makes it when the state file does not know it yet, since then a
    /// crash came between the decision to make it and its making.
    fn open_partition(
        &self,
        topic: &TopicName,
        key: GroupKey,
        settings: Arc<TopicSettings>,
        known: Option<&GroupState>,
    ) -> Result<Opened, OpenError> {
        let dir = partition_dir(&self.config.data_dir, topic.as_str(), key.partition.get());
        let group = known
            .copied()
            .unwrap_or_else(|| new_group(u64::from(INITIAL_EPOCH.get())));
        let identity = self.identity(key, group.incarnation);
        let mut options = log_options(&settings);
        if key.topic_id == METADATA_TOPIC_ID {
            options.room_bytes = METADATA_ROOM_BYTES;
            options.appends_use_room = true;
        }
        let disk = || self.seams.disk.clone();
        let opened = Log::open(disk(), &dir, identity, options, group.checkpoint);
        let mut log = match opened {
            Ok((log, recovery)) => {
                if recovery.kept_bytes + recovery.torn_bytes > 0 {
                    tracing::info!(dir = %dir.display(), kept = recovery.kept_bytes,
                        cut = recovery.torn_bytes, "recovered after an unclean stop");
                }
                log
            }
            Err(OpenError::Missing { .. }) if known.is_none() => {
                let now = self.seams.clock.now();
                Log::create(disk(), &dir, identity, options, now).map_err(|e| match e {
                    tidelog_log::CreateError::Disk(e) => OpenError::Disk(e),
                    // `open` has just found that there is none.
                    tidelog_log::CreateError::Exists { dir } => OpenError::Missing { dir },
                })?
            }
            Err(e) => return Err(e),
        };
        let term = group.term.max(u64::from(log.end().epoch.get())) + 1;
        let epoch = u32::try_from(term).ok().and_then(LeaderEpoch::new);
        let full = || {
            OpenError::Disk(DiskError::new(
                DiskOp::Write,
                &dir,
                std::io::Error::other("the log takes no more leader epochs"),
            ))
        };
        let epoch = epoch.ok_or_else(full)?;
        match log.begin_epoch(epoch) {
            Ok(()) => {}
            // It is readable, and takes appends once the epoch has begun.
            Err(e @ AppendError::Full { .. }) => {
                tracing::warn!(error = %e, "the disk is full: a partition opens for reading, and \
                    takes appends as soon as there is space");
            }
            Err(e) => {
                let source = std::io::Error::other(e);
                return Err(OpenError::Disk(DiskError::new(DiskOp::Write, &dir, source)));
            }
        }
        let partition = Partition::new(
            topic.clone(),
            key,
            epoch,
            &log,
            self.shards[shard_number(key, self.shards.len())].clone(),
            settings,
            self.metrics.clone(),
            self.seams.clock.now(),
        );
        Ok(Opened {
            partition: Arc::new(partition),
            log,
            term,
        })
    }

    /// Opens all partitions of all topics, on a few threads.
    fn open_topics(
        &self,
        topics: &Topics,
        groups: &Groups,
    ) -> (HashMap<String, Arc<Route>>, Vec<Opened>) {
        let wanted: Vec<(Arc<Topic>, u32)> = topics
            .iter()
            .flat_map(|topic| (0..topic.partitions).map(|number| (topic.clone(), number)))
            .collect();
        let threads = self.config.sync_threads.max(1);
        let share = wanted.len().div_ceil(threads).max(1);
        let results: Vec<Result<Opened, String>> = std::thread::scope(|scope| {
            let workers: Vec<_> = wanted
                .chunks(share)
                .map(|chunk| {
                    scope.spawn(move || {
                        chunk
                            .iter()
                            .map(|(topic, number)| self.open_one(topic, *number, groups))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| match worker.join() {
                    Ok(results) => results,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });

        let mut slots: HashMap<TopicId, Vec<Slot>> = HashMap::new();
        let mut opened = Vec::with_capacity(results.len());
        for ((topic, _), result) in wanted.iter().zip(results) {
            let slot = match result {
                Ok(one) => {
                    let slot = Slot::Serving(one.partition.clone());
                    opened.push(one);
                    slot
                }
                Err(fault) => Slot::Faulted(fault),
            };
            slots.entry(topic.id).or_default().push(slot);
        }
        let routes = topics
            .iter()
            .map(|topic| {
                let route = Route {
                    topic: topic.clone(),
                    slots: slots.remove(&topic.id).unwrap_or_default(),
                    sticky_bytes: StickyBytes::default(),
                };
                (topic.name.to_string(), Arc::new(route))
            })
            .collect();
        (routes, opened)
    }

    fn open_one(&self, topic: &Topic, number: u32, groups: &Groups) -> Result<Opened, String> {
        let key = GroupKey {
            topic_id: topic.id,
            partition: PartitionId::new(number),
        };
        let settings = Arc::new(topic.settings.clone());
        self.open_partition(&topic.name, key, settings, groups.get(&key))
            .map_err(|e| {
                tracing::error!(topic = %topic.name, partition = number, error = %e,
                "a partition cannot be opened; it does not serve, the others do");
                e.to_string()
            })
    }

    /// Makes the new terms durable before anything is written under them, and records where each
    /// log ends: what was recovered is durable.
    fn begin_epochs(&self, opened: &[Opened]) -> Result<(), StartError> {
        let known = self.state.state().groups;
        let mut records = Vec::with_capacity(opened.len() * 2);
        for one in opened {
            let key = one.partition.key;
            let group = known
                .get(&key)
                .copied()
                .unwrap_or_else(|| new_group(one.term));
            records.push(StateRecord::Group(
                key,
                GroupState {
                    term: one.term,
                    ..group
                },
            ));
            records.push(StateRecord::Checkpoint(key, one.partition.reader.durable()));
        }
        // Not all at once: a journal that has to be longer than usual takes new space.
        for some in records.chunks(RECORDS_AT_ONCE) {
            self.state.record(some, false)?;
        }
        self.state.sync()?;
        Ok(())
    }

    /// Finishes deletions that a crash interrupted, and takes back partitions that were made and
    /// never decided on. What cannot be removed now is left for the next start.
    fn remove_deleted(&self, topics: &Topics, deleted: &[Deleted], groups: &Groups) {
        if let Err(e) = self.try_remove_deleted(topics, deleted, groups) {
            tracing::warn!(error = %e, "files of deleted topics stay until the next start");
        }
    }

    fn try_remove_deleted(
        &self,
        topics: &Topics,
        deleted: &[Deleted],
        groups: &Groups,
    ) -> Result<(), StartError> {
        let disk = &self.seams.disk;
        let data_dir = &self.config.data_dir;
        let entries = disk.list(data_dir)?;
        let dirs = entries.into_iter().filter(|entry| entry.is_dir);
        let dirs: HashSet<String> = dirs.map(|entry| entry.name).collect();
        for aside in dirs.iter().filter(|name| name.ends_with(".deleted")) {
            disk.remove_dir_all(&data_dir.join(aside))?;
        }

        let is_wanted = |topic: &Topic, number: u32| number < topic.partitions;
        let mut leftovers: Vec<(PathBuf, PathBuf)> = Vec::new();
        let mut note = |name: &TopicName, id: TopicId, number: u32| {
            // A topic of the same name may have been made since.
            let now = topics.get(name.as_str());
            if dirs.contains(&format!("{name}-{number}"))
                && !now.is_ok_and(|topic| is_wanted(topic, number))
            {
                leftovers.push((
                    partition_dir(data_dir, name.as_str(), number),
                    deleted_dir(data_dir, id, number),
                ));
            }
        };
        for (name, id, partitions) in deleted {
            for number in 0..*partitions {
                note(name, *id, number);
            }
        }
        let mut removed = Vec::new();
        for key in groups
            .keys()
            .filter(|key| key.topic_id != METADATA_TOPIC_ID)
        {
            let number = key.partition.get();
            match topics.by_id(key.topic_id) {
                Some(topic) if is_wanted(topic, number) => continue,
                Some(topic) => note(&topic.name, topic.id, number),
                None => {}
            }
            removed.push(StateRecord::GroupRemoved(*key));
        }
        // Topics of one name, deleted one after the other, leave one directory.
        leftovers.sort();
        leftovers.dedup_by(|one, other| one.0 == other.0);
        for (from, to) in &leftovers {
            disk.rename(from, to)?;
        }
        disk.sync_dir(data_dir)?;
        self.state.record(&removed, false)?;
        for (_, aside) in &leftovers {
            disk.remove_dir_all(aside)?;
        }
        Ok(())
    }
}

/// A topic that was deleted: its name, id and number of partitions.
type Deleted = (TopicName, TopicId, u32);

/// Folds the metadata log into the topics; also tells which topics were deleted.
fn replay(metadata: &Partition) -> Result<(Topics, Vec<Deleted>), StartError> {
    let mut topics = Topics::default();
    let mut deleted = Vec::new();
    let end = metadata.reader.durable_offset();
    let mut from = metadata.reader.log_start();
    while from < end {
        let found = metadata
            .reader
            .read(from, end, 1 << 20)
            .map_err(StartError::reading)?;
        let batches = match found {
            Found::Ready(batches) => batches,
            Found::Cold(cold) => cold.run().map_err(StartError::reading)?,
        };
        for part in &batches.parts {
            for batch in split_batches(part.clone(), tidelog_log::BATCH_BYTES_LIMIT) {
                let batch = batch.map_err(StartError::damaged)?;
                let records = batch.records(&BatchLimits::default());
                for record in records.map_err(StartError::damaged)? {
                    let record = record.map_err(StartError::damaged)?;
                    let value = record.value.unwrap_or_default();
                    let command = TopicCommand::decode(&value).map_err(StartError::damaged)?;
                    if let TopicCommand::Delete { id } = &command
                        && let Some(topic) = topics.by_id(*id)
                    {
                        deleted.push((topic.name.clone(), *id, topic.partitions));
                    }
                    topics.apply(&command).map_err(StartError::damaged)?;
                }
            }
        }
        if batches.next_offset <= from {
            let at = Offset::get(from);
            return Err(StartError::Damaged(format!(
                "the metadata log cannot be read at {at}"
            )));
        }
        from = batches.next_offset;
    }
    Ok((topics, deleted))
}
