//! Opening the logs of all partitions, each under a new leader epoch.

use std::collections::HashMap;
use std::sync::Arc;

use tidelog_controller::{Topic, TopicSettings, Topics};
use tidelog_disk::{DiskError, DiskOp};
use tidelog_log::state::{GroupKey, GroupState, StateRecord};
use tidelog_log::{AppendError, INITIAL_EPOCH, Log, LogIdentity, OpenError, share_out};
use tidelog_record::{LeaderEpoch, PartitionId, TopicId, TopicName};

use super::{Groups, Opened, Start, StartError, shard_number};
use crate::append::StickyBytes;
use crate::files::{METADATA_ROOM_BYTES, log_options, new_group, partition_dir};
use crate::partition::Partition;
use crate::{METADATA_TOPIC, METADATA_TOPIC_ID, Route, Slot};

/// How many records go into the state file at once.
const RECORDS_AT_ONCE: usize = 1024;

impl Start {
    fn identity(&self, key: GroupKey, incarnation: u32) -> LogIdentity {
        LogIdentity {
            cluster_id: self.state.identity().cluster_id,
            topic_id: key.topic_id,
            partition: key.partition,
            incarnation,
        }
    }

    pub(super) fn open_metadata(&self, groups: &Groups) -> Result<Opened, StartError> {
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
        let opened = match group.checkpoint.filter(|_| self.was_clean) {
            Some(end) => Log::open_closed(disk(), &dir, identity, options, end),
            None => Log::open(disk(), &dir, identity, options, group.checkpoint),
        };
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
        );
        partition.note_append(self.seams.clock.now());
        Ok(Opened {
            partition: Arc::new(partition),
            log,
            term,
        })
    }

    /// Opens all partitions of all topics, on a few threads.
    pub(super) fn open_topics(
        &self,
        topics: &Topics,
        groups: &Groups,
    ) -> (HashMap<String, Arc<Route>>, Vec<Opened>) {
        let wanted: Vec<(Arc<Topic>, u32)> = topics
            .iter()
            .flat_map(|topic| (0..topic.partitions).map(|number| (topic.clone(), number)))
            .collect();
        let results = share_out(&wanted, self.config.sync_threads, |(topic, number)| {
            self.open_one(topic, *number, groups)
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
    pub(super) fn begin_epochs(&self, opened: &[Opened]) -> Result<(), StartError> {
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
}
