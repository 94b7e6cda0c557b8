//! The files of partitions: made, moved out of the way, removed.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tidelog_controller::{Topic, TopicSettings, Wanted};
use tidelog_disk::{DirEntry, Disk, DiskError};
use tidelog_log::catch_up::{ADOPTED, catch_up_dir, replaced_dir};
use tidelog_log::offline::log_identity;
use tidelog_log::state::{GroupKey, GroupState, StateRecord};
use tidelog_log::{BATCH_BYTES_LIMIT, CreateError, INITIAL_EPOCH, Log, LogIdentity, LogOptions};
use tidelog_record::{PartitionId, TopicId};
use tidelog_replica::{Group, GroupConfig, GroupError, Members, ReplicaId, StateStore, first_term};
use tokio::sync::oneshot;

use crate::error::{AppendError, TopicError};
use crate::mailbox::{Command, Opened};
use crate::partition::Partition;
use crate::seams::Random;
use crate::start::{Start, shard_number};
use crate::{Broker, Slot};

/// `<data-dir>/<topic>-<partition>`
pub(crate) fn partition_dir(data_dir: &Path, topic: &str, partition: u32) -> PathBuf {
    data_dir.join(format!("{topic}-{partition}"))
}

/// `<data-dir>/<topic id>-<partition>.deleted`: what a deleted partition is renamed to first.
pub(crate) fn deleted_dir(data_dir: &Path, topic_id: TopicId, partition: u32) -> PathBuf {
    data_dir.join(format!("{topic_id}-{partition}.deleted"))
}

/// `<data-dir>/<topic id>-<partition>.stray`: where a partition is kept that the metadata do not know, and in whose
/// place another one is to be. With a number, where there is one already.
pub(crate) fn stray_dir(
    disk: &dyn Disk,
    data_dir: &Path,
    key: GroupKey,
) -> Result<PathBuf, DiskError> {
    let name = format!("{}-{}", key.topic_id, key.partition.get());
    let names = std::iter::once(format!("{name}.stray"));
    let mut names = names.chain((2_u32..).map(|number| format!("{name}.{number}.stray")));
    loop {
        let path = data_dir.join(names.next().expect("there are more than directories"));
        match disk.list(&path) {
            Err(e) if e.is_not_found() => return Ok(path),
            Err(e) => return Err(e),
            Ok(_) => {}
        }
    }
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

/// How long it takes at most until a new partition serves, where the disk does not hang.
const SERVE_WAIT_MAX: Duration = Duration::from_secs(10);
/// What the files of an empty partition take, about.
const PARTITION_BYTES: u64 = 8 << 10;
/// For some twenty starts and deletions of records on a full disk.
const ROOM_BYTES: u32 = 2 << 10;
/// For some hundred changes of topics on a full disk: settings that let go of more, deletions.
pub(crate) const METADATA_ROOM_BYTES: u32 = 64 << 10;

/// That of a group which never went on without a majority; and that of every log, which stays the same one
/// when its group goes on so.
pub(crate) const FIRST_INCARNATION: u32 = 1;

/// What is known of a group that is new here.
fn new_group(replica: ReplicaId, incarnation: u32) -> GroupState {
    let initial = u64::from(INITIAL_EPOCH.get());
    GroupState {
        incarnation,
        replica_id: replica,
        // One that begins anew, since nothing was left of it, must not have epochs that it had before.
        term: first_term(incarnation),
        vote: 0,
        commit: initial,
        checkpoint: None,
    }
}

/// How a broker's replica of a partition works.
fn group_config(replica: ReplicaId, seed: u64) -> GroupConfig {
    GroupConfig {
        id: replica,
        batch_bytes_max: BATCH_BYTES_LIMIT,
        uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: HEARTBEAT_TICKS,
        seed,
        ..GroupConfig::default()
    }
}

/// A leader is heard of every 0.6 s, each group by itself; one that is not for 1.8 to 3.6 s is replaced. One
/// whose broker is gone is known to be gone by its connections, at once.
const HEARTBEAT_TICKS: u32 = 6;
const ELECTION_TICKS: u32 = 18;

/// Bytes of a log that may be written and not committed: with `acks=1` what power loss may take, and
/// what whoever waits next has to wait for.
const UNCOMMITTED_BYTES_MAX: u64 = 32 << 20;

/// Makes the replica that a log, and what is known of its group, stand for.
pub(crate) fn open_group(
    random: &dyn Random,
    log: Log,
    state: GroupState,
    members: Members,
) -> Result<Group, GroupError> {
    let [a, b, c, d, e, f, g, h, ..] = random.id();
    let seed = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let config = group_config(state.replica_id, seed);
    Group::open(config, log, state, members)
}

/// A replica that is new here, of a group that began with `founders` and has this incarnation by now.
pub(crate) fn open_new_group(
    random: &dyn Random,
    log: Log,
    replica: ReplicaId,
    incarnation: u32,
    founders: &[ReplicaId],
) -> Result<Group, GroupError> {
    let members = Members::founded_by(founders.to_vec());
    open_group(random, log, new_group(replica, incarnation), members)
}

impl Broker {
    /// Checks that there is space for new partitions, and moves out of their way what an earlier
    /// topic of the same name left behind.
    pub(crate) async fn clear_the_way(
        &self,
        topic: &Topic,
        wanted: Vec<Wanted>,
    ) -> Result<(), TopicError> {
        let (broker, topic) = (self.clone(), topic.clone());
        let cleared = tokio::task::spawn_blocking(move || {
            let needed = wanted.len() as u64 * PARTITION_BYTES;
            let space = broker.inner.space.check();
            space.map_err(|shortage| shortage.refusal_of(needed))?;
            broker.move_leftovers(&topic, &wanted)
        });
        cleared.await.map_err(|e| storage(&e))?
    }

    fn move_leftovers(&self, topic: &Topic, wanted: &[Wanted]) -> Result<(), TopicError> {
        let disk = &self.inner.seams.disk;
        let data_dir = &self.inner.config.data_dir;
        let mut aside = Vec::new();
        let mut removed = Vec::new();
        for want in wanted {
            let number = want.number;
            let from = partition_dir(data_dir, topic.name.as_str(), number);
            let entries = match disk.list(&from) {
                Ok(entries) => entries,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(made_error(e)),
            };
            // What lies there was never decided on, or belongs to a topic that is gone; unless
            // somebody else put it there.
            if let Some(alien) = entries.iter().find(|entry| !is_of_a_log(entry)) {
                let dir = from.display();
                let what = format!("{dir} is in the way: {:?} in it is not ours", alien.name);
                return Err(TopicError::Storage(what));
            }
            // One that the state file knows may have records that somebody counts on.
            let log = log_identity(&**disk, &from).map_err(made_error)?;
            let log = log.map(|log| GroupKey {
                topic_id: log.topic_id,
                partition: log.partition,
            });
            if log.is_some_and(|key| key == key_of(topic, want) && self.is_known(key, want)) {
                continue;
            }
            if let Some(key) = log.filter(|key| !self.is_gone(*key)) {
                let to = stray_dir(&**disk, data_dir, key).map_err(made_error)?;
                tracing::warn!(from = %from.display(), to = %to.display(),
                    "a partition that the metadata do not know makes way for another");
                disk.rename(&from, &to).map_err(made_error)?;
                removed.push(StateRecord::GroupRemoved(key));
                continue;
            }
            let to = deleted_dir(data_dir, topic.id, number);
            match disk.remove_dir_all(&to) {
                Err(e) if !e.is_not_found() => return Err(made_error(e)),
                _ => {}
            }
            disk.rename(&from, &to).map_err(made_error)?;
            aside.push(to);
        }
        if aside.is_empty() && removed.is_empty() {
            return Ok(());
        }
        // Before the new logs are decided on: old ones must not come back under their names.
        disk.sync_dir(data_dir).map_err(made_error)?;
        let recorded = self.inner.state.record(&removed, true);
        recorded.map_err(|e| storage(&e))?;
        for dir in aside {
            if let Err(e) = disk.remove_dir_all(&dir) {
                tracing::warn!(error = %e, "a deleted partition stays until the next start");
            }
        }
        Ok(())
    }

    /// Makes the logs of new partitions, and their records in the state file.
    pub(crate) async fn make_partitions(
        &self,
        topic: &Topic,
        wanted: Vec<Wanted>,
    ) -> Result<Vec<Opened>, TopicError> {
        let (broker, topic) = (self.clone(), topic.clone());
        let made = tokio::task::spawn_blocking(move || {
            let known: Vec<bool> = wanted
                .iter()
                .map(|want| broker.is_known(key_of(&topic, want), want))
                .collect();
            let made = wanted.iter().zip(&known);
            let made: Result<Vec<Opened>, TopicError> = made
                .map(|(want, is_known)| match is_known {
                    // A start that was behind has let it alone.
                    true => Start::of(&broker)
                        .and_then(|start| start.open_wanted(&topic, want))
                        .map_err(TopicError::Storage),
                    false => broker.make_partition(&topic, want),
                })
                .collect();
            let mut made = made?;
            let mut records = Vec::with_capacity(made.len() * 4);
            for (one, is_known) in made.iter_mut().zip(known) {
                if !is_known {
                    // A crash may have left a record of a partition that was never decided on.
                    records.push(StateRecord::GroupRemoved(one.partition.key));
                }
                records.extend(one.store.records_of(&one.group));
            }
            let recorded = broker.inner.state.record(&records, true);
            recorded.map_err(|e| storage(&e)).map(|()| made)
        });
        made.await.map_err(|e| storage(&e))?
    }

    /// Gives new partitions to their shards, and waits until they serve.
    pub(crate) async fn serve(&self, made: Vec<Opened>) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(made.len());
        let mut serving = Vec::with_capacity(made.len());
        for opened in made {
            let partition = opened.partition.clone();
            let (reply, replied) = oneshot::channel();
            let opened = Box::new(opened);
            // Without its thread the partition is faulted, and says so by itself.
            if partition
                .shard
                .send(Command::Add { opened, reply })
                .await
                .is_ok()
            {
                serving.push(replied);
            }
            slots.push(Slot::Serving(partition));
        }
        // One that takes longer serves later: its appends wait for it.
        drop(tokio::time::timeout(SERVE_WAIT_MAX, join_all(serving)).await);
        slots
    }

    /// Whether nobody can count on a log: the state file does not know it, or it is known to be deleted, or
    /// to have moved away.
    fn is_gone(&self, key: GroupKey) -> bool {
        let Some(known) = self.known_replica(key) else {
            return true;
        };
        let cluster = self.inner.cluster.read();
        let placement = cluster.placement(key.topic_id, key.partition.get());
        match placement {
            Some(placement) => placement.was_retired(known),
            None => self.inner.unremoved.lock().contains(&key.topic_id),
        }
    }

    /// Whether the state file knows the partition as the replica that is wanted: it has voted, and may have
    /// acknowledged what nobody else has any more.
    fn is_known(&self, key: GroupKey, want: &Wanted) -> bool {
        self.known_replica(key) == Some(want.replica)
    }

    fn make_partition(&self, topic: &Topic, want: &Wanted) -> Result<Opened, TopicError> {
        let inner = self.inner();
        let number = want.number;
        let key = key_of(topic, want);
        let identity = LogIdentity {
            cluster_id: inner.identity.cluster_id,
            topic_id: key.topic_id,
            partition: key.partition,
            incarnation: FIRST_INCARNATION,
        };
        let dir = partition_dir(&inner.config.data_dir, topic.name.as_str(), number);
        let disk = inner.seams.disk.clone();
        let now = inner.seams.clock.now();
        let options = log_options(&topic.settings);
        let created = Log::create_replica(disk, &dir, identity, options, now);
        let log = created.map_err(|e| match e {
            CreateError::Disk(e) => made_error(e),
            e @ CreateError::Exists { .. } => storage(&e),
        })?;
        let incarnation = want.incarnation;
        let random = &*inner.seams.random;
        let group = open_new_group(random, log, want.replica, incarnation, &want.founders);
        let group = group.map_err(|e| storage(&e))?;
        let partition = Partition::new(
            topic.name.clone(),
            key,
            &group,
            inner.shards[shard_number(key, inner.shards.len())].clone(),
            Arc::new(topic.settings.clone()),
        );
        partition.note_append(now);
        Ok(Opened {
            partition: Arc::new(partition),
            group,
            store: StateStore::new(inner.state.clone(), key),
            incarnation,
            leads_first: want.leads_first,
        })
    }

    /// Takes partitions out of service and removes their files: first renamed aside, so that a
    /// crash leaves no half of a log under its name.
    pub(crate) async fn remove_partitions(
        &self,
        topic: &Topic,
        numbers: Range<u32>,
        slots: &[Slot],
    ) {
        let is_there = self
            .inner()
            .cluster
            .read()
            .topics()
            .by_id(topic.id)
            .is_some();
        for slot in slots {
            if let Slot::Serving(partition) = slot {
                if is_there {
                    partition.note_moved();
                }
                partition.close();
                let (reply, replied) = oneshot::channel();
                let remove = Command::Remove {
                    key: partition.key,
                    reply,
                };
                if partition.shard.send(remove).await.is_ok() {
                    drop(replied.await);
                }
            }
        }
        self.remove_files(topic, numbers).await;
    }

    /// Removes the files of partitions, as far as that can be done now.
    pub(crate) async fn remove_files(&self, topic: &Topic, numbers: Range<u32>) {
        let (broker, topic) = (self.clone(), topic.clone());
        let remove = move || broker.try_remove_files(&topic, numbers);
        let removed = tokio::task::spawn_blocking(remove).await;
        if let Err(e) = removed.map_err(|e| e.to_string()).and_then(|result| result) {
            tracing::warn!(error = %e, "files of a deleted topic stay until the next start");
        }
    }

    fn try_remove_files(&self, topic: &Topic, numbers: Range<u32>) -> Result<(), String> {
        let inner = self.inner();
        let disk = &inner.seams.disk;
        let data_dir = &inner.config.data_dir;
        let mut aside = Vec::new();
        let mut records = Vec::new();
        let mut failed = None;
        for number in numbers {
            let from = partition_dir(data_dir, topic.name.as_str(), number);
            let to = deleted_dir(data_dir, topic.id, number);
            match disk.rename(&from, &to) {
                Ok(()) => aside.push(to),
                Err(e) if e.is_not_found() => {}
                Err(e) => {
                    failed.get_or_insert(e.to_string());
                    inner.unremoved.lock().insert(topic.id);
                    continue;
                }
            }
            // What a replica had copied of another one, or was about to put in its place.
            aside.extend([catch_up_dir(&from), replaced_dir(&from)]);
            let key = GroupKey {
                topic_id: topic.id,
                partition: PartitionId::new(number),
            };
            records.push(StateRecord::GroupRemoved(key));
        }
        disk.sync_dir(data_dir).map_err(|e| e.to_string())?;
        let recorded = inner.state.record(&records, true);
        recorded.map_err(|e| e.to_string())?;
        for dir in aside {
            match disk.remove_dir_all(&dir) {
                Err(e) if !e.is_not_found() => {
                    failed.get_or_insert(e.to_string());
                }
                _ => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn key_of(topic: &Topic, want: &Wanted) -> GroupKey {
    GroupKey {
        topic_id: topic.id,
        partition: PartitionId::new(want.number),
    }
}

fn storage(error: &dyn std::fmt::Display) -> TopicError {
    TopicError::Storage(error.to_string())
}

fn made_error(error: DiskError) -> TopicError {
    if error.is_full() {
        let dir = error.path.parent().unwrap_or(&error.path).to_owned();
        AppendError::Full {
            what: format!("{error}: {PARTITION_BYTES} bytes are needed for a partition"),
            dir,
            needed: PARTITION_BYTES,
        }
        .into()
    } else if error.is_out_of_files() {
        TopicError::OutOfFiles(error.to_string())
    } else {
        storage(&error)
    }
}

/// Whether a log keeps files of such a name in its directory.
fn is_of_a_log(entry: &DirEntry) -> bool {
    let of_a_segment = [
        ".log",
        ".index",
        ".producers",
        ".producers-new",
        ".torn",
        ".cleaned",
    ];
    let name = entry.name.as_str();
    let ours = name.starts_with("leader-epochs")
        || name == ADOPTED
        || of_a_segment
            .iter()
            .any(|extension| name.ends_with(extension));
    ours && !entry.is_dir
}
