//! Opening the logs of all partitions, and the replicas that they stand for.

use std::collections::HashMap;
use std::sync::Arc;

use tidelog_controller::{Topic, TopicSettings, Topics};
use tidelog_disk::{DiskError, DiskOp};
use tidelog_log::state::{GroupKey, StateRecord};
use tidelog_log::{Log, LogIdentity, OpenError, share_out};
use tidelog_record::{PartitionId, RaftIndex, TopicId, TopicName};
use tidelog_replica::StateStore;

use super::{Start, StartError, shard_number};
use crate::append::StickyBytes;
use crate::files::{METADATA_ROOM_BYTES, log_options, open_group, open_new_group, partition_dir};
use crate::mailbox::Opened;
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

    pub(super) fn open_metadata(&self) -> Result<Opened, StartError> {
        let name = TopicName::new(METADATA_TOPIC).expect("the name is valid");
        let key = GroupKey {
            topic_id: METADATA_TOPIC_ID,
            partition: PartitionId::new(0),
        };
        let settings = Arc::new(TopicSettings::default());
        self.open_partition(&name, key, settings)
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
    ) -> Result<Opened, OpenError> {
        let dir = partition_dir(&self.config.data_dir, topic.as_str(), key.partition.get());
        let mut store = StateStore::new(self.state.clone(), key);
        let known = store.load();
        let incarnation = known.as_ref().map_or(1, |(group, _)| group.incarnation);
        let identity = self.identity(key, incarnation);
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            OpenError::Disk(DiskError::new(DiskOp::Open, &dir, std::io::Error::other(e)))
        };
        let known = if self.replaced.contains(&dir) {
            let recovered = store.recover_swap(&*self.seams.disk, &dir, identity);
            recovered.map_err(|e| failed(e.into()))?;
            store.load()
        } else {
            known
        };
        let mut options = log_options(&settings);
        if key.topic_id == METADATA_TOPIC_ID {
            options.room_bytes = METADATA_ROOM_BYTES;
            options.appends_use_room = true;
        }
        let disk = || self.seams.disk.clone();
        let checkpoint = known.as_ref().and_then(|(group, _)| group.checkpoint);
        let commit = RaftIndex::new(known.as_ref().map_or(0, |(group, _)| group.commit));
        let opened = match checkpoint.filter(|_| self.was_clean) {
            Some(end) => Log::open_closed_replica(disk(), &dir, identity, options, end, commit),
            None => Log::open_replica(disk(), &dir, identity, options, checkpoint, commit),
        };
        let log = match opened {
            Ok((log, recovery)) => {
                if recovery.kept_bytes + recovery.torn_bytes > 0 {
                    tracing::info!(dir = %dir.display(), kept = recovery.kept_bytes,
                        cut = recovery.torn_bytes, "recovered after an unclean stop");
                }
                log
            }
            Err(OpenError::Missing { .. }) if known.is_none() => {
                let now = self.seams.clock.now();
                Log::create_replica(disk(), &dir, identity, options, now).map_err(|e| match e {
                    tidelog_log::CreateError::Disk(e) => OpenError::Disk(e),
                    // `open` has just found that there is none.
                    tidelog_log::CreateError::Exists { dir } => OpenError::Missing { dir },
                })?
            }
            Err(e) => return Err(e),
        };
        let random = &*self.seams.random;
        let group = match known {
            Some((state, members)) => open_group(random, log, state, members),
            None => {
                let node = self.state.identity().node_id;
                open_new_group(random, log, node, &self.config.founders)
            }
        };
        let group = group.map_err(|e| failed(e.into()))?;
        let partition = Partition::new(
            topic.clone(),
            key,
            group.log(),
            self.shards[shard_number(key, self.shards.len())].clone(),
            settings,
        );
        partition.note_append(self.seams.clock.now());
        Ok(Opened {
            partition: Arc::new(partition),
            group,
            store,
            incarnation,
        })
    }

    /// Opens all partitions of all topics, on a few threads.
    pub(super) fn open_topics(
        &self,
        topics: &Topics,
    ) -> (HashMap<String, Arc<Route>>, Vec<Opened>) {
        let wanted: Vec<(Arc<Topic>, u32)> = topics
            .iter()
            .flat_map(|topic| (0..topic.partitions).map(|number| (topic.clone(), number)))
            .collect();
        let results = share_out(&wanted, self.config.sync_threads, |(topic, number)| {
            self.open_one(topic, *number)
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

    fn open_one(&self, topic: &Topic, number: u32) -> Result<Opened, String> {
        let key = GroupKey {
            topic_id: topic.id,
            partition: PartitionId::new(number),
        };
        let settings = Arc::new(topic.settings.clone());
        self.open_partition(&topic.name, key, settings)
            .map_err(|e| {
                tracing::error!(topic = %topic.name, partition = number, error = %e,
                "a partition cannot be opened; it does not serve, the others do");
                e.to_string()
            })
    }

    /// Records what was opened, durably: who is in each group, how far it is committed, and where its
    /// log ends, all of which is durable by now.
    pub(super) fn record_opened(&self, opened: &mut [Opened]) -> Result<(), StartError> {
        let records = opened
            .iter_mut()
            .flat_map(|one| one.store.records_of(&one.group));
        let records: Vec<StateRecord> = records.collect();
        // Not all at once: a journal that has to be longer than usual takes new space.
        for some in records.chunks(RECORDS_AT_ONCE) {
            self.state.record(some, false)?;
        }
        self.state.sync()?;
        Ok(())
    }
}
