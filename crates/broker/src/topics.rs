//! Topics: decided, written to the metadata log, carried out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tidelog_controller::{Command as TopicCommand, EffectiveSetting, NewTopic, Topic, Topics};
use tidelog_disk::{DirEntry, DiskError};
use tidelog_log::state::{GroupKey, StateRecord};
use tidelog_log::{
    AppendError as LogAppendError, CreateError, INITIAL_EPOCH, Log, LogIdentity, SegmentInfo,
};
use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, LeaderEpoch, Offset, PartitionId, TopicId,
    validate_produced,
};
use tokio::sync::{Semaphore, oneshot};

use crate::append::{Acks, StickyBytes};
use crate::error::{AppendError, ErrorKind, Facts, TopicError};
use crate::metrics::PartitionNumbers;
use crate::partition::Partition;
use crate::shard::{Append, Command};
use crate::start::{deleted_dir, log_options, new_group, partition_dir, shard_number};
use crate::{Broker, METADATA_TOPIC, METADATA_TOPIC_ID, Route, Slot};

/// A topic in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub name: String,
    /// Its id.
    pub topic_id: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
    /// What was set.
    pub settings: BTreeMap<String, String>,
    /// Whether it belongs to the cluster itself.
    pub internal: bool,
}

/// A topic in full.
#[derive(Clone, Debug)]
pub struct TopicDescription {
    /// The topic in short.
    pub summary: TopicSummary,
    /// Every setting with the value in force.
    pub settings: Vec<EffectiveSetting>,
    /// Its partitions, from 0.
    pub partitions: Vec<PartitionDescription>,
}

/// A partition in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Its number.
    pub partition: u32,
    /// The first readable offset.
    pub log_start: Offset,
    /// Everything below is acknowledged and readable.
    pub high_watermark: Offset,
    /// The next offset to be assigned.
    pub log_end: Offset,
    /// The leadership in force.
    pub leader_epoch: LeaderEpoch,
    /// Bytes of all segments, reserved space not counted.
    pub size_bytes: u64,
    /// How many segments there are.
    pub segment_count: usize,
    /// The segments, when they were asked for.
    pub segments: Vec<SegmentInfo>,
    /// Why it does not serve, all of it or only appends.
    pub fault: Option<String>,
}

pub(crate) fn numbers(partition: &Partition) -> PartitionNumbers {
    let segments = partition.reader.segments();
    PartitionNumbers {
        topic: partition.topic.to_string(),
        partition: partition.number().to_string(),
        log_start: partition.reader.log_start().get(),
        high_watermark: partition.high_watermark().get(),
        log_end: partition.reader.end_offset().get(),
        size_bytes: segments.iter().map(|segment| segment.len).sum(),
        segments: segments.len(),
    }
}

fn summary(topic: &Topic) -> TopicSummary {
    TopicSummary {
        name: topic.name.to_string(),
        topic_id: topic.id,
        partitions: topic.partitions,
        settings: topic.settings.set().clone(),
        internal: topic.name.is_internal(),
    }
}

fn metadata_summary() -> TopicSummary {
    TopicSummary {
        name: METADATA_TOPIC.to_owned(),
        topic_id: METADATA_TOPIC_ID,
        partitions: 1,
        settings: BTreeMap::new(),
        internal: true,
    }
}

impl Broker {
    /// All topics, by name, internal ones too.
    pub fn topics(&self) -> Vec<TopicSummary> {
        let routes = self.inner.routes.read();
        let mut topics: Vec<_> = routes.values().map(|route| summary(&route.topic)).collect();
        drop(routes);
        topics.push(metadata_summary());
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// One topic in full.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn describe_topic(
        &self,
        name: &str,
        include_segments: bool,
    ) -> Result<TopicDescription, TopicError> {
        let (summary, settings, slots) = if name == METADATA_TOPIC {
            let metadata = self.inner.metadata.clone();
            let settings = metadata.settings().effective();
            (metadata_summary(), settings, vec![Slot::Serving(metadata)])
        } else {
            let routes = self.inner.routes.read();
            let route = routes.get(name).cloned().ok_or_else(|| not_found(name))?;
            let settings = route.topic.settings.effective();
            (summary(&route.topic), settings, route.slots.clone())
        };
        let partitions = (0..)
            .zip(&slots)
            .map(|(n, slot)| describe(n, slot, include_segments));
        Ok(TopicDescription {
            summary,
            settings,
            partitions: partitions.collect(),
        })
    }

    /// Makes a topic; it serves when this returns. Once begun, this and the other changes of topics
    /// are carried through even when nobody waits for them any more.
    ///
    /// # Errors
    /// Why it is refused, or could not be made.
    pub async fn create_topic(&self, new: NewTopic) -> Result<TopicSummary, TopicError> {
        let broker = self.clone();
        detached(async move { broker.create_now(new).await }).await
    }

    async fn create_now(&self, new: NewTopic) -> Result<TopicSummary, TopicError> {
        let mut topics = self.lock_topics().await?;
        let id = TopicId::from_bytes(self.inner.seams.random.id());
        let command = topics.decide_create(&new, id)?;
        let TopicCommand::Create(topic) = &command else {
            unreachable!("decided just now")
        };
        let topic = Arc::new(topic.clone());
        self.check_limits(&topics, 1, topic.partitions)?;
        if new.validate_only {
            return Ok(summary(&topic));
        }
        self.clear_the_way(&topic, 0..topic.partitions).await?;
        self.commit(&mut topics, &command).await?;
        match self.make_partitions(&topic, 0..topic.partitions).await {
            Ok(made) => {
                let slots = self.serve(made).await;
                self.insert_route(&topic, slots);
                Ok(summary(&topic))
            }
            Err(e) => Err(self.take_back(&mut topics, &topic, e).await),
        }
    }

    /// Checks that the broker takes so many more topics and partitions: each costs memory, an open
    /// file, and time at the next start.
    fn check_limits(
        &self,
        topics: &Topics,
        more_topics: usize,
        more_partitions: u32,
    ) -> Result<(), TopicError> {
        let config = &self.inner.config;
        let partitions = topics.iter().map(|topic| topic.partitions as usize).sum();
        for (what, setting, max, count, asked) in [
            (
                "topics",
                "topics_max",
                config.topics_max,
                topics.iter().count(),
                more_topics,
            ),
            (
                "partitions",
                "partitions_max",
                config.partitions_max,
                partitions,
                more_partitions as usize,
            ),
        ] {
            if asked > 0 && count.saturating_add(asked) > max {
                return Err(TopicError::LimitReached {
                    what,
                    setting,
                    max,
                    count,
                    asked,
                });
            }
        }
        Ok(())
    }

    /// Takes back a topic that was decided and could not be made.
    async fn take_back(
        &self,
        topics: &mut Topics,
        topic: &Arc<Topic>,
        error: TopicError,
    ) -> TopicError {
        let undo = TopicCommand::Delete { id: topic.id };
        match self.commit(topics, &undo).await {
            Ok(()) => {
                self.remove_partitions(topic, &[]).await;
                error
            }
            Err(undo) => {
                // It exists then, and the next start makes it. Until then it says why it does not
                // serve, and can be deleted.
                let fault = error.to_string();
                let slots = (0..topic.partitions).map(|_| Slot::Faulted(fault.clone()));
                self.insert_route(topic, slots.collect());
                let cause = format!("{error}; nor could the topic be taken back: {undo}");
                AppendError::OutcomeUnknown { cause }.into()
            }
        }
    }

    /// Changes settings; they are in force when this returns.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn alter_topic(
        &self,
        name: &str,
        set: BTreeMap<String, String>,
        reset: Vec<String>,
        validate_only: bool,
    ) -> Result<TopicSummary, TopicError> {
        let (broker, name) = (self.clone(), name.to_owned());
        detached(async move { broker.alter_now(&name, set, reset, validate_only).await }).await
    }

    async fn alter_now(
        &self,
        name: &str,
        set: BTreeMap<String, String>,
        reset: Vec<String>,
        validate_only: bool,
    ) -> Result<TopicSummary, TopicError> {
        let mut topics = self.lock_topics().await?;
        let command = topics.decide_alter(name, set, &reset)?;
        if validate_only {
            let mut after = topics.clone();
            after.apply(&command).expect("decided on this state");
            return Ok(summary(after.get(name)?));
        }
        self.commit(&mut topics, &command).await?;
        let topic = topics.get(name)?.clone();
        let route = self.replace_route(&topic, Vec::new());
        let settings = Arc::new(topic.settings.clone());
        for slot in &route.slots {
            if let Slot::Serving(partition) = slot {
                *partition.settings.write() = settings.clone();
                let options = log_options(&settings);
                let change = Command::SetOptions {
                    key: partition.key,
                    options,
                };
                // Without its thread the partition is faulted, and gets them at the next start.
                drop(partition.shard.send(change).await);
            }
        }
        Ok(summary(&topic))
    }

    /// Adds partitions, up to `total`; they serve when this returns.
    ///
    /// # Errors
    /// Why that is refused, or could not be done.
    pub async fn add_partitions(&self, name: &str, total: u32) -> Result<TopicSummary, TopicError> {
        let (broker, name) = (self.clone(), name.to_owned());
        detached(async move { broker.add_now(&name, total).await }).await
    }

    async fn add_now(&self, name: &str, total: u32) -> Result<TopicSummary, TopicError> {
        let mut topics = self.lock_topics().await?;
        let command = topics.decide_add_partitions(name, total)?;
        let topic = topics.get(name)?.clone();
        let added = topic.partitions..total;
        self.check_limits(&topics, 0, total - topic.partitions)?;
        self.clear_the_way(&topic, added.clone()).await?;
        // The files come first: a partition cannot be taken back once it is decided. What a crash
        // leaves behind the next start removes.
        let made = match self.make_partitions(&topic, added.clone()).await {
            Ok(made) => made,
            Err(e) => {
                self.remove_files(&topic, added).await;
                return Err(e);
            }
        };
        if let Err(e) = self.commit(&mut topics, &command).await {
            drop(made);
            if e.kind() != ErrorKind::Unknown {
                self.remove_files(&topic, added).await;
            }
            return Err(e);
        }
        let slots = self.serve(made).await;
        let topic = topics.get(name)?.clone();
        self.replace_route(&topic, slots);
        Ok(summary(&topic))
    }

    /// Deletes a topic and all its records. They are gone when this returns, except for slices
    /// that readers still hold.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let (broker, name) = (self.clone(), name.to_owned());
        detached(async move { broker.delete_now(&name).await }).await
    }

    async fn delete_now(&self, name: &str) -> Result<(), TopicError> {
        let mut topics = self.lock_topics().await?;
        let command = topics.decide_delete(name)?;
        let topic = topics.get(name)?.clone();
        self.commit(&mut topics, &command).await?;
        let route = self.inner.routes.write().remove(name);
        let slots = route.map_or(Vec::new(), |route| route.slots.clone());
        self.remove_partitions(&topic, &slots).await;
        Ok(())
    }

    async fn lock_topics(&self) -> Result<tokio::sync::MutexGuard<'_, Topics>, TopicError> {
        let topics = self.inner.topics.lock().await;
        if self.is_stopping() {
            return Err(AppendError::Stopping.into());
        }
        Ok(topics)
    }

    /// Makes a decision durable, then folds it in.
    async fn commit(&self, topics: &mut Topics, command: &TopicCommand) -> Result<(), TopicError> {
        let metadata = self.inner.metadata.clone();
        let now = self.inner.seams.clock.now();
        let invalid = |e: &dyn std::fmt::Display| AppendError::Request(e.to_string());
        let mut builder = BatchBuilder::new(Compression::None);
        builder
            .push(now, None, Some(&command.encode()), &[])
            .map_err(|e| invalid(&e))?;
        let bytes = builder.build().map_err(|e| invalid(&e))?;
        let batch = validate_produced(bytes, &BatchLimits::default()).map_err(AppendError::from)?;

        // Not from the broker's budget: a change of topics is small, and must not wait for clients.
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned();
        let (reply, replied) = oneshot::channel();
        #[allow(
            clippy::disallowed_methods,
            reason = "measured for people, decides nothing"
        )]
        let since = std::time::Instant::now();
        let append = Append {
            partition: metadata.clone(),
            batch,
            acks: Acks::All,
            log_append_time: false,
            reply,
            since,
            room: room.expect("a new semaphore has its permit"),
        };
        metadata
            .shard
            .send(Command::Append(append))
            .await
            .map_err(|_| AppendError::Stopping)?;
        let lost = || AppendError::OutcomeUnknown {
            cause: "the thread that writes the metadata log has ended".to_owned(),
        };
        replied.await.map_err(|_| lost())??;
        topics.apply(command).expect("decided on this state");
        Ok(())
    }

    /// Checks that there is space for new partitions, and moves out of their way what an earlier
    /// topic of the same name left behind.
    async fn clear_the_way(&self, topic: &Topic, numbers: Range<u32>) -> Result<(), TopicError> {
        let (broker, topic) = (self.clone(), topic.clone());
        let cleared = tokio::task::spawn_blocking(move || {
            broker.inner.space.check()?;
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
    async fn make_partitions(
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
    async fn serve(&self, made: Vec<Made>) -> Vec<Slot> {
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
            LogAppendError::Full { .. } => AppendError::Full(e.to_string()).into(),
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
            now,
        );
        Ok((Arc::new(partition), log))
    }

    /// Takes partitions out of service and removes their files: first renamed aside, so that a
    /// crash leaves no half of a log under its name.
    async fn remove_partitions(&self, topic: &Topic, slots: &[Slot]) {
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
    async fn remove_files(&self, topic: &Topic, numbers: Range<u32>) {
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

    fn insert_route(&self, topic: &Arc<Topic>, slots: Vec<Slot>) {
        let route = Route {
            topic: topic.clone(),
            slots,
            sticky_bytes: StickyBytes::default(),
        };
        let mut routes = self.inner.routes.write();
        routes.insert(topic.name.to_string(), Arc::new(route));
    }

    /// Puts a changed topic, with more partitions perhaps, where requests find it.
    fn replace_route(&self, topic: &Arc<Topic>, more: Vec<Slot>) -> Arc<Route> {
        let mut routes = self.inner.routes.write();
        let before = routes.get(topic.name.as_str());
        let mut slots = before.map_or(Vec::new(), |route| route.slots.clone());
        let sticky_bytes = before
            .map(|route| route.sticky_bytes.clone())
            .unwrap_or_default();
        slots.extend(more);
        let route = Arc::new(Route {
            topic: topic.clone(),
            slots,
            sticky_bytes,
        });
        routes.insert(topic.name.to_string(), route.clone());
        route
    }
}

/// A new partition, and the log for its shard.
type Made = (Arc<Partition>, Log);

/// Carries a change through to its end, even when the caller goes away: a change that is written
/// and not folded in would let a later one be decided on a state that is not so.
async fn detached<T: Send + 'static>(
    change: impl Future<Output = Result<T, TopicError>> + Send + 'static,
) -> Result<T, TopicError> {
    tokio::spawn(change).await.unwrap_or_else(|e| {
        let cause = e.to_string();
        Err(AppendError::OutcomeUnknown { cause }.into())
    })
}

fn storage(error: &dyn std::fmt::Display) -> TopicError {
    TopicError::Storage(error.to_string())
}

fn made_error(error: DiskError) -> TopicError {
    if error.is_full() {
        AppendError::Full(error.to_string()).into()
    } else if error.is_out_of_files() {
        TopicError::OutOfFiles(error.to_string())
    } else {
        storage(&error)
    }
}

/// Whether a log keeps files of such a name in its directory.
fn is_of_a_log(entry: &DirEntry) -> bool {
    let of_a_segment = [".log", ".index", ".torn"];
    let name = entry.name.as_str();
    let ours = name.starts_with("leader-epochs")
        || of_a_segment
            .iter()
            .any(|extension| name.ends_with(extension));
    ours && !entry.is_dir
}

fn not_found(name: &str) -> TopicError {
    let name = name
        .chars()
        .take(tidelog_record::TopicName::LEN_MAX)
        .collect();
    tidelog_controller::TopicError::NotFound { name }.into()
}

fn describe(partition: u32, slot: &Slot, include_segments: bool) -> PartitionDescription {
    match slot {
        Slot::Serving(serving) => {
            let segments = serving.reader.segments();
            PartitionDescription {
                partition,
                log_start: serving.reader.log_start(),
                high_watermark: serving.high_watermark(),
                log_end: serving.reader.end_offset(),
                leader_epoch: serving.leader_epoch,
                size_bytes: segments.iter().map(|segment| segment.len).sum(),
                segment_count: segments.len(),
                segments: if include_segments {
                    segments
                } else {
                    Vec::new()
                },
                fault: serving.fault(),
            }
        }
        Slot::Faulted(fault) => PartitionDescription {
            partition,
            log_start: Offset::ZERO,
            high_watermark: Offset::ZERO,
            log_end: Offset::ZERO,
            leader_epoch: LeaderEpoch::ZERO,
            size_bytes: 0,
            segment_count: 0,
            segments: Vec::new(),
            fault: Some(fault.clone()),
        },
    }
}
