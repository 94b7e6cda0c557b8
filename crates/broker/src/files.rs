//! The files of partitions: made, moved out of the way, removed.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_controller::{Topic, TopicSettings};
use tidelog_disk::{DirEntry, DiskError};
use tidelog_log::state::{GroupKey, GroupState, StateRecord};
use tidelog_log::{
    AppendError as LogAppendError, CreateError, INITIAL_EPOCH, Log, LogIdentity, LogOptions,
};
use tidelog_record::{PartitionId, TopicId};
use tokio::sync::oneshot;

use crate::error::{AppendError, TopicError};
use crate::partition::Partition;
use crate::shard::Command;
use crate::start::shard_number;
use crate::{Broker, Slot};

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

/// What the files of an empty partition take, about.
const PARTITION_BYTES: u64 = 8 << 10;
/// For some twenty starts and deletions of records on a full disk.
const ROOM_BYTES: u32 = 2 << 10;
/// For some hundred changes of topics on a full disk: settings that let go of more, deletions.
pub(crate) const METADATA_ROOM_BYTES: u32 = 64 << 10;

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

/// A new partition, and the log for its shard.
pub(crate) type Made = (Arc<Partition>, Log);

impl Broker {
    /// Checks that there is space for new partitions, and moves out of their way what an earlier
    /// topic of the same name left behind.
    pub(crate) async fn clear_the_way(
        &self,
        topic: &Topic,
        numbers: Range<u32>,
    ) -> Result<(), TopicError> {
        let (broker, topic) = (self.clone(), topic.clone());
        let cleared = tokio::task::spawn_blocking(move || {
            let count = numbers.clone().count() as u64;
            let needed = count * PARTITION_BYTES;
            let space = broker.inner.space.check();
            space.map_err(|shortage| shortage.refusal_of(needed))?;
            broker.move_leftovers(&topic, numbers)
        });
        cleared.await.map_err(|e| storage(&e))?
    }

    fn move_leftovers(&self, topic: &Topic, numbers: Range<u32>) -> Result<(), TopicError> {
        let disk = &self.inner.seams.disk;
        let data_dir = &self.inner.config.data_dir;
        let mut aside = Vec::new();
        for number in numbers {
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
            let to = deleted_dir(data_dir, topic.id, number);
            match disk.remove_dir_all(&to) {
                Err(e) if !e.is_not_found() => return Err(made_error(e)),
                _ => {}
            }
            disk.rename(&from, &to).map_err(made_error)?;
            aside.push(to);
        }
        if aside.is_empty() {
            return Ok(());
        }
        // Before the new logs are decided on: old ones must not come back under their names.
        disk.sync_dir(data_dir).map_err(made_error)?;
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
        numbers: Range<u32>,
    ) -> Result<Vec<Made>, TopicError> {
        let (broker, topic) = (self.clone(), topic.clone());
        let made = tokio::task::spawn_blocking(move || {
            let made: Result<Vec<Made>, TopicError> = numbers
                .map(|number| broker.make_partition(&topic, number))
                .collect();
            let made = made?;
            let records: Vec<StateRecord> = made
                .iter()
                .flat_map(|(partition, log)| {
                    let group = new_group(u64::from(log.end().epoch.get()));
                    // A crash may have left a record of a partition that was never decided on.
                    [
                        StateRecord::GroupRemoved(partition.key),
                        StateRecord::Group(partition.key, group),
                    ]
                })
                .collect();
            let recorded = broker.inner.state.record(&records, true);
            recorded.map_err(|e| storage(&e)).map(|()| made)
        });
        made.await.map_err(|e| storage(&e))?
    }

    /// Gives new logs to their shards.
    pub(crate) async fn serve(&self, made: Vec<Made>) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(made.len());
        for (partition, log) in made {
            // Without its thread the partition is faulted, and says so by itself.
            drop(partition.shard.send(Command::Add(Box::new(log))).await);
            slots.push(Slot::Serving(partition));
        }
        slots
    }

    fn make_partition(&self, topic: &Topic, number: u32) -> Result<Made, TopicError> {
        let inner = self.inner();
        let key = GroupKey {
            topic_id: topic.id,
            partition: PartitionId::new(number),
        };
        let identity = LogIdentity {
            cluster_id: inner.identity.cluster_id,
            topic_id: key.topic_id,
            partition: key.partition,
            incarnation: 1,
        };
        let dir = partition_dir(&inner.config.data_dir, topic.name.as_str(), number);
        let disk = inner.seams.disk.clone();
        let now = inner.seams.clock.now();
        let options = log_options(&topic.settings);
        let created = Log::create(disk, &dir, identity, options, now);
        let mut log = created.map_err(|e| match e {
            CreateError::Disk(e) => made_error(e),
            e @ CreateError::Exists { .. } => storage(&e),
        })?;
        let epoch = INITIAL_EPOCH.next().expect("6 is small");
        log.begin_epoch(epoch).map_err(|e| match e {
            LogAppendError::Full { ref dir, needed } => AppendError::Full {
                what: e.to_string(),
                dir: dir.clone(),
                needed,
            }
            .into(),
            e => storage(&e),
        })?;
        let partition = Partition::new(
            topic.name.clone(),
            key,
            epoch,
            &log,
            inner.shards[shard_number(key, inner.shards.len())].clone(),
            Arc::new(topic.settings.clone()),
            inner.metrics.clone(),
        );
        partition.note_append(now);
        Ok((Arc::new(partition), log))
    }

    /// Takes partitions out of service and removes their files: first renamed aside, so that a
    /// crash leaves no half of a log under its name.
    pub(crate) async fn remove_partitions(&self, topic: &Topic, slots: &[Slot]) {
        for slot in slots {
            if let Slot::Serving(partition) = slot {
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
        self.remove_files(topic, 0..topic.partitions).await;
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
                    continue;
                }
            }
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
            if let Err(e) = disk.remove_dir_all(&dir) {
                failed.get_or_insert(e.to_string());
            }
        }
        failed.map_or(Ok(()), Err)
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
    let of_a_segment = [".log", ".index", ".producers", ".torn", ".cleaned"];
    let name = entry.name.as_str();
    let ours = name.starts_with("leader-epochs")
        || of_a_segment
            .iter()
            .any(|extension| name.ends_with(extension));
    ours && !entry.is_dir
}
