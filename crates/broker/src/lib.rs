//! What a node does, without sockets: admit, append, wait for the sync, read, administer topics.
//!
//! Listeners translate their protocol into calls of [`Broker`] and nothing more.
//!
//! # How data flows
//!
//! *Append*: [`Broker::submit`] (`append.rs`) takes room in the broker's budget, chooses a batch's
//! partition, checks the batch, and sends it (`mailbox.rs`) to the partition's shard (`shard.rs`), a thread that runs
//! the Raft groups of many partitions. The shard has them propose and write what waits, and asks the
//! sync coordinator of the `log` crate for a round; when the batch is committed, it raises the high
//! watermark (`partition.rs`) and answers (`waiters.rs`). Near the end of the disk's space (`space.rs`)
//! it refuses instead. A panic in a group's code stops that partition alone.
//!
//! *Read*: [`PartitionHandle::read`] and [`Broker::fetch`] (`read.rs`) give slices of the log below
//! the high watermark; what is not in memory is fetched on threads that may wait.
//!
//! *Topics* (`topics.rs`): decided by the state machine of the `controller` crate, one change at a
//! time; each change is committed to the metadata log, the partition `__cluster_metadata-0`, before
//! it takes effect. Every broker folds that log and carries out what it says (`metadata.rs`), at its
//! start and as it grows. `files.rs` makes and removes the files. A change that has begun goes on when its
//! caller goes away. `describe.rs` tells what there is.
//!
//! *Cluster*: which brokers there are and which have which partitions is decided by the `controller`
//! crate too. `controller.rs` is a thread that tells the others that this broker is there and what it leads,
//! hears of them (`seen.rs`), and, at the broker that leads the metadata log, plans what is to be done and
//! has it done (`act.rs`). `local.rs` makes and removes this broker's replicas; `cluster.rs` tells how it
//! all is, and takes what people ask for.
//!
//! *Beside them*: `retention.rs` is a thread that trims what is too old or too much, by a clock that
//! does not jump ahead (`age_clock.rs`), and `removal.rs` one that gives its space back;
//! `compaction.rs` is one that compacts; `stop.rs` closes the logs and says so in the state file;
//! `metrics.rs` counts; `error.rs` has an error for each
//! operation, with the facts that listeners tell.
//!
//! Time, ids and files come in through [`Seams`].

mod act;
mod age_clock;
mod append;
mod background;
mod catch_up;
mod cluster;
mod compaction;
mod controller;
mod describe;
mod error;
mod files;
mod groups;
mod local;
mod mailbox;
mod metadata;
mod metrics;
mod own;
mod partition;
mod producers;
mod read;
mod recovery;
mod removal;
mod retention;
mod seams;
mod seen;
mod shard;
mod space;
mod start;
mod stop;
mod topics;
mod waiters;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Mutex, RwLock};
use tidelog_controller::{Cluster, Topic};
use tidelog_disk::DirLock;
use tidelog_log::state::{DirectoryIdentity, StateFile};
use tidelog_log::{ReadTurns, SyncWatch};
use tidelog_record::TopicId;
use tokio::sync::{Notify, Semaphore, watch};

pub use append::{
    Acks, AppendRequest, Appended, NewRecord, PartitionAppend, Payload, PendingAppend,
    ProducerStamp,
};
pub use cluster::{
    BrokerDescription, BrokerState, ClusterDescription, KnownBroker, PartitionPlace,
    PartitionProblem, ProblemKind,
};
pub use describe::{PartitionDescription, TopicDescription, TopicSummary};
pub use error::{
    AppendError, CoordinatorError, DeleteError, ErrorKind, Facts, LookupError, NotLeader,
    ReadError, TopicError,
};
pub use groups::{CoordinatorPlace, OFFSETS_TOPIC};
pub use metrics::Metrics;
pub use read::{
    Ends, FetchPartition, FetchRequest, FetchedPartition, OffsetSpec, PartitionData,
    PartitionHandle, Resolved,
};
pub use recovery::{MetadataRecovery, is_of_metadata, position_of, recover_metadata};
pub use seams::{Clock, NoPeers, Peers, Random, Seams};
pub use start::StartError;
pub use stop::StopError;
pub use tidelog_controller::{
    ClusterId, DirectoryId, EffectiveSetting, LEVEL_MAX, NewTopic, Replication, setting_specs,
};
pub use tidelog_log::{Batches, ProducerError, SegmentInfo};
pub use tidelog_replica::{Delivery, NodeId, Position, Post, Recovery};

use age_clock::AgeClock;
use append::StickyBytes;
use mailbox::ShardHandle;
use metadata::Folded;
use partition::Partition;
use producers::ProducerIds;
use space::Space;

/// How a broker is run.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where everything is kept. Made if it is not there.
    pub data_dir: PathBuf,
    /// Bytes of appends that may be taken and not yet answered: 1 byte to 4 GiB, and taken for the
    /// nearest of these otherwise.
    pub in_flight_bytes_max: usize,
    /// Threads that write logs.
    pub shards: usize,
    /// Threads that sync several logs at once.
    pub sync_threads: usize,
    /// How often retention is looked at.
    pub retention_check_interval: std::time::Duration,
    /// How fast the space of removed segments is given back, in bytes a second.
    pub removal_bytes_per_second: u64,
    /// How often it is looked at whether a log is to be compacted.
    pub compaction_check_interval: std::time::Duration,
    /// How fast compaction reads and writes, together, in bytes a second.
    pub compaction_bytes_per_second: u64,
    /// How much memory compaction takes for keys at most, in bytes; it takes what the keys at hand
    /// need. 36 a key: with less than a log has, it is compacted in several runs.
    pub compaction_key_bytes_max: usize,
    /// Below so many free bytes on the disk nothing is taken from clients any more; what is left
    /// is for the broker's own use: to delete topics and records, and to keep its state.
    pub free_bytes_min: u64,
    /// After how long of silence an idempotent producer is forgotten: a batch that is sent again
    /// later than that is not known any more.
    pub producer_id_expiration: std::time::Duration,
    /// The number of this broker in its cluster: 1 where it is alone. A data directory keeps the number it
    /// was made with.
    pub node_id: NodeId,
    /// The brokers that founded the cluster: they began with the metadata.
    pub founders: Vec<NodeId>,
    /// The cluster, where others belong to it too: all founders have to be given the same.
    pub cluster_id: Option<[u8; 16]>,
    /// The id of the data directory, where others know it already.
    pub directory_id: Option<[u8; 16]>,
    /// How many disks this broker has lost, as the cluster counts them: a new directory is that of
    /// another replica of the metadata.
    pub generation: u32,
    /// The incarnation of the metadata group, where this broker is new in it: it rises when the group goes on
    /// without a majority of its replicas.
    pub metadata_incarnation: u32,
    /// Where this broker is reached.
    pub addresses: Addresses,
    /// After how many changes of the metadata a snapshot of it is made, and its log trimmed.
    pub snapshot_commands: u64,
    /// How many partitions the topic of committed offsets gets when it is made; it keeps them.
    pub offsets_partitions: u32,
    /// How long a committed offset is kept in a group without members.
    pub offsets_retention: std::time::Duration,
    /// The most groups that one partition of that topic has.
    pub groups_max: usize,
    /// The most topics there may be.
    pub topics_max: usize,
    /// The most partitions there may be, of all topics together.
    pub partitions_max: usize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            data_dir: PathBuf::from("tidelog-data"),
            in_flight_bytes_max: 256 << 20,
            shards: cores,
            sync_threads: cores.min(4),
            retention_check_interval: std::time::Duration::from_secs(300),
            removal_bytes_per_second: 1 << 30,
            compaction_check_interval: std::time::Duration::from_secs(15),
            compaction_bytes_per_second: 64 << 20,
            compaction_key_bytes_max: 128 << 20,
            free_bytes_min: 64 << 20,
            producer_id_expiration: std::time::Duration::from_secs(24 * 60 * 60),
            node_id: 1,
            founders: vec![1],
            cluster_id: None,
            directory_id: None,
            generation: 0,
            metadata_incarnation: 1,
            addresses: Addresses::default(),
            snapshot_commands: 5000,
            offsets_partitions: 50,
            offsets_retention: std::time::Duration::from_secs(7 * 24 * 60 * 60),
            groups_max: 100_000,
            topics_max: 10_000,
            partitions_max: 100_000,
        }
    }
}

/// Where a broker is reached, each as `host:port`, and what fails together with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Of gRPC.
    pub grpc: String,
    /// Of HTTP.
    pub http: String,
    /// Of other brokers; empty where there are none to come.
    pub cluster: String,
    /// What fails together with it: a rack, a zone.
    pub rack: Option<String>,
}

impl BrokerConfig {
    /// Whether no other broker can ever come.
    pub(crate) fn is_alone(&self) -> bool {
        self.founders.len() < 2 && self.addresses.cluster.is_empty()
    }
}

/// A running broker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: BrokerConfig,
    /// Topics of which files could not be removed that were to be: deleted ones, if they are not there any more.
    unremoved: Mutex<HashSet<TopicId>>,
    seams: Seams,
    identity: DirectoryIdentity,
    metrics: Arc<Metrics>,
    state: Arc<StateFile>,
    shards: Vec<ShardHandle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// What all appends that are not yet answered hold together.
    room: Arc<Semaphore>,
    space: Space,
    /// What retention goes by.
    age_clock: AgeClock,
    cold_reads: Arc<Semaphore>,
    /// What keeps them out of the way of syncs.
    read_turns: Arc<ReadTurns>,
    syncs: SyncWatch,
    /// The thread that copies files of logs, where there are others to copy from.
    catch_up: Option<catch_up::Letters>,
    /// Turns of those that (de)compress batches to check them.
    heavy_checks: Arc<Semaphore>,
    metadata: Arc<Partition>,
    /// What the metadata log says. Written to while `metadata_folded` is held only.
    cluster: RwLock<Cluster>,
    /// What is seen of other brokers.
    seen: seen::Seen,
    /// Told when another replica leads some partition.
    leaders_changed: Arc<Notify>,
    /// What the controller's thread is to look at.
    asked: controller::Asked,
    /// The epoch of the registration of this broker before this start.
    epoch_before: u64,
    /// Counts what was carried out.
    metadata_changed: watch::Sender<u64>,
    /// What the metadata log says, as far as it was carried out here. Held while a change is decided on,
    /// written and carried out, so that there is one at a time.
    metadata_folded: tokio::sync::Mutex<Folded>,
    producer_ids: Mutex<ProducerIds>,
    /// The coordinators of groups here.
    groups: groups::Groups,
    /// Held while a log is compacted: one at a time.
    compacting: Mutex<()>,
    /// What requests are looked up in.
    routes: RwLock<HashMap<String, Arc<Route>>>,
    stopping: watch::Sender<bool>,
    /// How the stop went, once it is over.
    stopped: watch::Sender<Option<Result<(), StopError>>>,
    _lock: Arc<dyn DirLock>,
}

/// A topic as requests find it.
#[derive(Debug)]
struct Route {
    topic: Arc<Topic>,
    slots: Vec<Slot>,
    sticky_bytes: StickyBytes,
}

/// A partition that serves, or why it does not.
#[derive(Clone, Debug)]
enum Slot {
    Serving(Arc<Partition>),
    Faulted(String),
    /// It could not be made; it is tried again.
    Unmade(String),
    /// This broker has no replica of it.
    Elsewhere,
}

/// The name of the metadata log's topic.
pub(crate) const METADATA_TOPIC: &str = "__cluster_metadata";
/// Its id, the same in every cluster.
pub(crate) const METADATA_TOPIC_ID: TopicId =
    TopicId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// How a broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it takes requests: it does not stop, and what all of it depends on works.
    pub ready: bool,
    /// Whether what all of it depends on does not work any more: the metadata log or the state
    /// file. Only a start helps then.
    pub faulted: bool,
    /// What does not work, partitions mostly, and why.
    pub faults: Vec<String>,
    /// What it waits for before the others count on it.
    pub waits_for: Option<String>,
}

impl Broker {
    fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Whether a stop has begun.
    pub fn is_stopping(&self) -> bool {
        *self.inner.stopping.borrow()
    }

    /// Waits until a stop begins.
    pub async fn stopping(&self) {
        let mut stopping = self.inner.stopping.subscribe();
        drop(stopping.wait_for(|stopping| *stopping).await);
    }

    /// The metrics, to count what listeners see.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// All metrics in Prometheus' text format, version 0.0.4. Asks every partition: with 10,000 of
    /// them it takes tens of milliseconds of a thread.
    pub fn metrics_text(&self) -> String {
        let now = self.inner.age_clock.now();
        let seen_at = self.inner.now_ms();
        self.count_replicas();
        let mut numbers = Vec::new();
        let mut faulted = 0;
        let routes = self.inner.routes.read().clone();
        let mut slots: Vec<Slot> = vec![Slot::Serving(self.inner.metadata.clone())];
        slots.extend(
            routes
                .values()
                .flat_map(|route| route.slots.iter().cloned()),
        );
        for slot in slots {
            match slot {
                Slot::Serving(partition) => {
                    faulted += usize::from(partition.fault().is_some());
                    let mut of_it = describe::numbers(&partition, now);
                    if partition.leads() && partition.has_others() {
                        let key = act::partition_key(partition.key);
                        (of_it.lag_entries, of_it.lag_ms) = self.inner.seen.lag(key, seen_at);
                    }
                    numbers.push(of_it);
                }
                Slot::Faulted(_) | Slot::Unmade(_) => faulted += 1,
                Slot::Elsewhere => {}
            }
        }
        numbers.sort_by(|a, b| (&a.topic, &a.partition).cmp(&(&b.topic, &b.partition)));
        let taken = self.inner.config.in_flight_bytes_max - self.inner.room.available_permits();
        self.inner
            .metrics
            .in_flight_bytes
            .set(i64::try_from(taken).unwrap_or(i64::MAX));
        let mut text = self.inner.metrics.text(&numbers, faulted);
        text.push_str(&self.groups_text());
        text
    }

    /// How the broker is. Asks every partition.
    pub fn health(&self) -> Health {
        let mut faults = Vec::new();
        // Nobody who looks a partition up waits for this to end.
        let routes = self.inner.routes.read().clone();
        for route in routes.values() {
            for (number, slot) in route.slots.iter().enumerate() {
                let fault = match slot {
                    Slot::Serving(partition) => partition.fault(),
                    Slot::Faulted(fault) | Slot::Unmade(fault) => Some(fault.clone()),
                    Slot::Elsewhere => None,
                };
                faults.extend(fault.map(|fault| format!("{}-{number}: {fault}", route.topic.name)));
            }
        }
        let metadata = self.inner.metadata.fault();
        let metadata = metadata.map(|fault| format!("{METADATA_TOPIC}: {fault}"));
        let state = self.inner.state.poisoned();
        let state = state.map(|poisoned| format!("state file: {}", poisoned.cause));
        let faulted = metadata.is_some() || state.is_some();
        faults.extend(metadata.into_iter().chain(state));
        faults.sort();
        let is_joined = self.inner.config.is_alone() || self.is_registered();
        let waits_for = (!is_joined).then(|| match self.refusal() {
            Some(refused) => format!("the cluster does not take this broker: {refused}"),
            None => "a majority of the brokers that decide".to_owned(),
        });
        Health {
            ready: !faulted && !self.is_stopping() && is_joined,
            faulted,
            faults,
            waits_for,
        }
    }

    /// A partition, to be read.
    ///
    /// # Errors
    /// There is none, or its log could not be opened.
    pub fn partition(&self, topic: &str, partition: u32) -> Result<PartitionHandle, LookupError> {
        let partition = self.inner.lookup(topic, partition)?;
        Ok(PartitionHandle::new(self.clone(), partition))
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// [`LookupError::TopicNotFound`].
    pub fn partitions_of(&self, topic: &str) -> Result<u32, LookupError> {
        if topic == METADATA_TOPIC {
            return Ok(1);
        }
        Ok(self.inner.route(topic)?.topic.partitions)
    }
}

impl Inner {
    fn route(&self, topic: &str) -> Result<Arc<Route>, LookupError> {
        self.routes
            .read()
            .get(topic)
            .cloned()
            .ok_or_else(|| LookupError::TopicNotFound {
                topic: topic
                    .chars()
                    .take(tidelog_record::TopicName::LEN_MAX)
                    .collect(),
            })
    }

    fn lookup(&self, topic: &str, number: u32) -> Result<Arc<Partition>, LookupError> {
        if topic == METADATA_TOPIC {
            return match number {
                0 => Ok(self.metadata.clone()),
                _ => Err(LookupError::PartitionNotFound {
                    topic: self.metadata.topic.clone(),
                    partition: number,
                    partitions: 1,
                }),
            };
        }
        let route = self.route(topic)?;
        let name = || route.topic.name.clone();
        match route.slots.get(number as usize) {
            Some(Slot::Serving(partition)) => Ok(partition.clone()),
            Some(Slot::Elsewhere) => {
                Err(self.led_elsewhere(&route.topic.name, route.topic.id, number))
            }
            Some(Slot::Faulted(fault) | Slot::Unmade(fault)) => Err(LookupError::Faulted {
                topic: name(),
                partition: number,
                fault: fault.clone(),
            }),
            None => Err(LookupError::PartitionNotFound {
                topic: name(),
                partition: number,
                partitions: route.topic.partitions,
            }),
        }
    }

    fn sticky_bytes(&self, topic: &str) -> StickyBytes {
        self.route(topic)
            .map(|route| route.sticky_bytes.clone())
            .unwrap_or_default()
    }
}
