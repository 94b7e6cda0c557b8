//! Opening the logs of all partitions, and the replicas that they stand for.

use std::collections::HashMap;
use std::sync::Arc;

use tidelog_controller::{AtStart, Cluster, LocalBroker, Topic, TopicSettings, Wanted};
use tidelog_disk::{DiskError, DiskOp};
use tidelog_log::catch_up::replaced_dir;
use tidelog_log::state::{GroupKey, StateRecord};
use tidelog_log::{Log, LogIdentity, OpenError, share_out};
use tidelog_record::{PartitionId, RaftIndex, TopicId, TopicName};
use tidelog_replica::{NodeId, ReplicaId, StateStore, replica_of};

use super::{Groups, Start, StartError, shard_number};
use crate::append::StickyBytes;
use crate::files::{
    FIRST_INCARNATION, METADATA_ROOM_BYTES, log_options, open_group, open_new_group, partition_dir,
};
use crate::mailbox::Opened;
use crate::partition::Partition;
use crate::{METADATA_TOPIC, METADATA_TOPIC_ID, Route, Slot};

/// The metadata log is cut into segments of so many bytes.
const METADATA_SEGMENT_BYTES: u32 = 16 << 20;

/// A replica that was not here before.
struct AsNew {
    replica: ReplicaId,
    /// Who was in the group when it began.
    founders: Vec<ReplicaId>,
    incarnation: u32,
}

/// How many records go into the state file at once.
const RECORDS_AT_ONCE: usize = 1024;

impl Start {
    fn identity(&self, key: GroupKey) -> LogIdentity {
        LogIdentity {
            cluster_id: self.state.identity().cluster_id,
            topic_id: key.topic_id,
            partition: key.partition,
            incarnation: FIRST_INCARNATION,
        }
    }

    pub(super) fn open_metadata(&self) -> Result<Opened, StartError> {
        let name = TopicName::new(METADATA_TOPIC).expect("the name is valid");
        let key = GroupKey {
            topic_id: METADATA_TOPIC_ID,
            partition: PartitionId::new(0),
        };
        let settings = Arc::new(TopicSettings::default());
        let first = |node: &NodeId| replica_of(*node, 0);
        let as_new = AsNew {
            replica: replica_of(self.state.identity().node_id, self.config.generation),
            founders: self.config.founders.iter().map(first).collect(),
            incarnation: self.config.metadata_incarnation,
        };
        self.open_partition(&name, key, settings, &as_new)
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
        as_new: &AsNew,
    ) -> Result<Opened, OpenError> {
        let dir = partition_dir(&self.config.data_dir, topic.as_str(), key.partition.get());
        let mut store = StateStore::new(self.state.clone(), key);
        let known = store.load();
        let known_incarnation = known.as_ref().map(|(group, _)| group.incarnation);
        let incarnation = known_incarnation.unwrap_or(as_new.incarnation);
        let identity = self.identity(key);
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            OpenError::Disk(DiskError::new(DiskOp::Open, &dir, std::io::Error::other(e)))
        };
        let known = if self.there.contains(&replaced_dir(&dir)) {
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
            // So that what a snapshot stands for can be removed.
            options.segment_bytes = METADATA_SEGMENT_BYTES;
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
        // Founders that are new have no leader, and need not wait for each other to notice.
        let is_first = as_new.founders.first() == Some(&as_new.replica);
        let leads_first = known.is_none() && as_new.founders.len() > 1 && is_first;
        let random = &*self.seams.random;
        let group = match known {
            Some((state, members)) => open_group(random, log, state, members),
            None => open_new_group(random, log, as_new.replica, incarnation, &as_new.founders),
        };
        let group = group.map_err(|e| failed(e.into()))?;
        let partition = Partition::new(
            topic.clone(),
            key,
            &group,
            self.shards[shard_number(key, self.shards.len())].clone(),
            settings,
        );
        partition.note_append(self.seams.clock.now());
        Ok(Opened {
            partition: Arc::new(partition),
            group,
            store,
            incarnation,
            leads_first,
        })
    }

    /// Opens the partitions that are placed here, on a few threads. Also gives the topics of which not
    /// all is here that should be.
    pub(super) fn open_topics(
        &self,
        cluster: &Cluster,
        groups: &Groups,
    ) -> (HashMap<String, Arc<Route>>, Vec<Opened>, Vec<TopicId>) {
        let local = LocalBroker::new(self.state.identity().node_id, self.config.generation);
        let mut wanted: Vec<(Arc<Topic>, u32, AsNew)> = Vec::new();
        let mut slots: HashMap<TopicId, Vec<Slot>> = HashMap::new();
        let mut unmade = Vec::new();
        for topic in cluster.topics().iter() {
            slots.insert(topic.id, vec![Slot::Elsewhere; topic.partitions as usize]);
            for number in 0..topic.partitions {
                let Some(placement) = cluster.placement(topic.id, number) else {
                    continue;
                };
                let key = GroupKey {
                    topic_id: topic.id,
                    partition: PartitionId::new(number),
                };
                let known = groups.get(&key);
                let known_replica = known.map(|known| known.replica_id);
                let replica = match local.at_start(cluster, placement, known_replica) {
                    AtStart::Opened(replica) => replica,
                    AtStart::Later => {
                        unmade.push(topic.id);
                        continue;
                    }
                    AtStart::Unwanted => continue,
                };
                let as_new = AsNew {
                    replica,
                    founders: placement.founders.clone(),
                    incarnation: placement.incarnation(),
                };
                if known.is_some_and(|known| known.incarnation != as_new.incarnation) {
                    // It has missed that its group went on, and is told later.
                    unmade.push(topic.id);
                }
                wanted.push((topic.clone(), number, as_new));
            }
        }
        let threads = self.config.sync_threads;
        let results = share_out(&wanted, threads, |(topic, number, as_new)| {
            self.open_one(topic, *number, as_new)
        });
        let mut opened = Vec::with_capacity(results.len());
        for ((topic, number, _), result) in wanted.iter().zip(results) {
            let slot = match result {
                Ok(one) => {
                    let slot = Slot::Serving(one.partition.clone());
                    opened.push(one);
                    slot
                }
                Err(fault) => Slot::Faulted(fault),
            };
            let slots = slots.get_mut(&topic.id);
            slots.expect("every topic has its slots")[*number as usize] = slot;
        }
        let routes = cluster.topics().iter().map(|topic| {
            let route = Route {
                topic: topic.clone(),
                slots: slots.remove(&topic.id).unwrap_or_default(),
                sticky_bytes: StickyBytes::default(),
            };
            (topic.name.to_string(), Arc::new(route))
        });
        let routes = routes.collect();
        unmade.dedup();
        (routes, opened, unmade)
    }

    /// Opens a partition that the state file knows, while the broker runs.
    ///
    /// # Errors
    /// For people.
    pub(crate) fn open_wanted(&self, topic: &Topic, want: &Wanted) -> Result<Opened, String> {
        let as_new = AsNew {
            replica: want.replica,
            founders: want.founders.clone(),
            incarnation: want.incarnation,
        };
        self.open_one(topic, want.number, &as_new)
    }

    fn open_one(&self, topic: &Topic, number: u32, as_new: &AsNew) -> Result<Opened, String> {
        let key = GroupKey {
            topic_id: topic.id,
            partition: PartitionId::new(number),
        };
        let settings = Arc::new(topic.settings.clone());
        self.open_partition(&topic.name, key, settings, as_new)
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
