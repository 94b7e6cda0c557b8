//! The groups that this broker coordinates: those of the partitions of `__consumer_offsets` that it leads.
//!
//! One thread runs a task for each replica here of such a partition (`coordinate.rs`); while it leads, the task has the
//! groups in memory. Requests come in through [`Broker::ask_group`], wait in the task's queue, and are answered when
//! everything that the answer rests on is committed. What is decided, the `group` crate knows.

mod coordinate;
mod lag;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidelog_controller::NewTopic;
use tidelog_group::{Answer, GroupId, GroupOffset, KnownTopic, KnownTopics, Request, partition_of};
use tidelog_record::{Offset, TopicName};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::error::{AppendError, CoordinatorError, LookupError};
use crate::partition::Partition;
use crate::{Broker, Inner, KnownBroker, Slot};

/// The internal topic of committed offsets and groups.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// Requests that wait for a coordinator at most; more wait before its queue.
const QUEUE_LEN: usize = 1024;
/// How long a request waits for its answer: the partition of the group may be without a majority.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a request waits for the topic of groups to be made.
const MAKING_WAIT_MAX: Duration = Duration::from_secs(5);
/// The most bytes of a batch of decided records: more than a turn with the largest request takes.
const BATCH_BYTES_MAX: &str = "16777216";

/// What a coordinator is asked for.
#[derive(Debug)]
enum Asked {
    /// To be decided, and answered when that is committed.
    Request {
        request: Request,
        reply: oneshot::Sender<Result<Answer, CoordinatorError>>,
    },
    /// What is in force, committed or not, for the metrics.
    Look {
        /// So many offsets at most.
        max: usize,
        reply: std::sync::mpsc::SyncSender<Vec<GroupOffset>>,
    },
}

/// The task of one replica here, and its queue.
type Task = (Arc<Partition>, mpsc::Sender<Asked>);

/// The coordinators here, by the number of their partition.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    coordinators: Mutex<BTreeMap<u32, Task>>,
    /// Partitions have come or gone.
    changed: Arc<Notify>,
}

impl Groups {
    /// Takes note that replicas of the topic may have come or gone.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }

    fn queue(&self, partition: &Arc<Partition>) -> Option<mpsc::Sender<Asked>> {
        let coordinators = self.coordinators.lock();
        let (of, queue) = coordinators.get(&partition.number())?;
        Arc::ptr_eq(of, partition).then(|| queue.clone())
    }
}

impl KnownTopics for Inner {
    fn topic(&self, name: &TopicName) -> Option<KnownTopic> {
        let cluster = self.cluster.read();
        let topic = cluster.topics().get(name.as_str()).ok()?;
        Some(KnownTopic {
            id: topic.id,
            partitions: topic.partitions,
        })
    }
}

/// Where the coordinator of a group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorPlace {
    /// The partition of [`OFFSETS_TOPIC`] that the group belongs to.
    pub partition: u32,
    /// The broker that leads it.
    pub broker: KnownBroker,
}

impl Broker {
    /// Asks the coordinator of a group, which must be here. The answer rests on nothing that could still be lost. What
    /// was asked takes effect, or does not, also when nobody waits for the answer any more.
    ///
    /// # Errors
    /// [`CoordinatorError`]: another broker coordinates the group, or it is not known what became of it.
    pub async fn ask_group(
        &self,
        group: &GroupId,
        request: Request,
    ) -> Result<Answer, CoordinatorError> {
        let number = self.group_partition(group).await?;
        self.ask_coordinator(number, request).await
    }

    /// Asks the coordinators here of all groups, each by itself; those that do not answer are left out, with why.
    pub async fn ask_groups_here(
        &self,
        request: &Request,
    ) -> Vec<(u32, Result<Answer, CoordinatorError>)> {
        let numbers: Vec<u32> = {
            let coordinators = self.inner().groups.coordinators.lock();
            let led = coordinators
                .iter()
                .filter(|(_, (partition, _))| partition.leads());
            led.map(|(number, _)| *number).collect()
        };
        let asked = numbers.into_iter().map(|number| async move {
            (number, self.ask_coordinator(number, request.clone()).await)
        });
        futures_util::future::join_all(asked).await
    }

    async fn ask_coordinator(
        &self,
        number: u32,
        request: Request,
    ) -> Result<Answer, CoordinatorError> {
        let inner = self.inner();
        let partition = inner.lookup(OFFSETS_TOPIC, number)?;
        if !partition.answers_for_leader() {
            return Err(inner.not_leader(&partition).into());
        }
        if let Some(fault) = partition.fault() {
            if partition.has_others() {
                return Err(inner.not_leader(&partition).into());
            }
            return Err(CoordinatorError::Write(AppendError::Poisoned {
                topic: partition.topic.clone(),
                partition: number,
                fault,
            }));
        }
        let Some(queue) = inner.groups.queue(&partition) else {
            // It has just come here.
            inner.groups.look();
            return Err(CoordinatorError::Loading { partition: number });
        };
        let (reply, replied) = oneshot::channel();
        let answered = async {
            let asked = queue.send(Asked::Request { request, reply }).await;
            asked.map_err(|_| CoordinatorError::Stopping)?;
            replied.await.map_err(|_| CoordinatorError::Stopping)?
        };
        match tokio::time::timeout(ANSWER_WAIT_MAX, answered).await {
            Ok(Ok(Answer::Refused(e))) => Err(e.into()),
            Ok(answer) => answer,
            Err(_elapsed) => Err(CoordinatorError::Unknown {
                cause: format!(
                    "partition {number} of {OFFSETS_TOPIC} did not take it within {} s",
                    ANSWER_WAIT_MAX.as_secs()
                ),
            }),
        }
    }

    /// Where the coordinator of a group is.
    ///
    /// # Errors
    /// Nobody is known to lead the group's partition now, or there is no partition yet and none can be made here.
    pub async fn group_coordinator(
        &self,
        group: &GroupId,
    ) -> Result<CoordinatorPlace, CoordinatorError> {
        let partition = self.group_partition(group).await?;
        let places = self.coordinators();
        let place = places
            .into_iter()
            .find(|place| place.partition == partition);
        place.ok_or(CoordinatorError::NoLeader { partition })
    }

    /// Where all coordinators are, as far as it is known who leads.
    pub fn coordinators(&self) -> Vec<CoordinatorPlace> {
        let known = self.known_brokers();
        let places = self.partition_places(Some(OFFSETS_TOPIC)).into_iter();
        let led = places.filter_map(|place| {
            let broker = known.iter().find(|one| Some(one.node_id) == place.leader);
            Some(CoordinatorPlace {
                partition: place.partition,
                broker: broker?.clone(),
            })
        });
        led.collect()
    }

    /// Which partition of [`OFFSETS_TOPIC`] a group belongs to; the topic is made if it is not there.
    async fn group_partition(&self, group: &GroupId) -> Result<u32, CoordinatorError> {
        let count = match self.partitions_of(OFFSETS_TOPIC) {
            Ok(count) => count,
            Err(_) => self.make_offsets_topic().await?,
        };
        let count = NonZeroU32::new(count).expect("a topic has one partition or more");
        Ok(partition_of(group.as_str(), count))
    }

    async fn make_offsets_topic(&self) -> Result<u32, CoordinatorError> {
        let settings = [
            ("cleanup.policy", "compact"),
            ("max.message.bytes", BATCH_BYTES_MAX),
            ("segment.bytes", "104857600"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let new = NewTopic {
            name: OFFSETS_TOPIC.to_owned(),
            partitions: self.inner().config.offsets_partitions,
            settings: settings.into_iter().map(owned).collect(),
            validate_only: false,
        };
        let created = tokio::time::timeout(MAKING_WAIT_MAX, self.create_internal(new));
        match created.await {
            Ok(created) => created.map_err(|e| CoordinatorError::Topic(Box::new(e)))?,
            // It is made all the same; whoever asks again finds it.
            Err(_elapsed) => return Err(CoordinatorError::Making),
        }
        Ok(self.partitions_of(OFFSETS_TOPIC)?)
    }

    /// Whether this broker coordinates a group now, as far as it knows; the topic of groups is made if it is not there.
    ///
    /// # Errors
    /// There is no topic of groups, and none can be made here.
    pub async fn coordinates(&self, group: &GroupId) -> Result<bool, CoordinatorError> {
        let number = self.group_partition(group).await?;
        let partition = self.inner().lookup(OFFSETS_TOPIC, number);
        Ok(partition.is_ok_and(|partition| partition.answers_for_leader()))
    }

    /// Where the gRPC of the broker is reached that leads a partition, if that is another one and known.
    pub fn leader_address(&self, topic: &str, partition: u32) -> Option<String> {
        let redirect = match self.inner().lookup(topic, partition) {
            Ok(here) => self.inner().not_leader(&here),
            Err(e) => e,
        };
        match redirect {
            LookupError::NotLeader(e) => e.address,
            _ => None,
        }
    }

    /// The high watermark of a partition, where the replica here knows that it is at least `offset`, or leads.
    pub fn known_end(&self, topic: &str, partition: u32, offset: Offset) -> Option<Offset> {
        let partition = self.inner().lookup(topic, partition).ok()?;
        let end = partition.high_watermark();
        (end >= offset || partition.answers_for_leader()).then_some(end)
    }

    /// Starts the thread that runs the coordinators.
    pub(crate) fn start_groups(&self) -> io::Result<()> {
        let inner = Arc::downgrade(&self.inner);
        let stopping = self.inner().stopping.subscribe();
        let thread = std::thread::Builder::new()
            .name("tidelog-groups".to_owned())
            .spawn(move || coordinate::run(&inner, stopping))?;
        self.inner().threads.lock().push(thread);
        Ok(())
    }

    /// The replicas here of the partitions that groups belong to.
    fn replicas_of_groups(&self) -> Vec<Arc<Partition>> {
        let route = self.inner().route(OFFSETS_TOPIC).ok();
        let slots = route.map_or(Vec::new(), |route| route.slots.clone());
        let serving = slots.into_iter().filter_map(|slot| match slot {
            Slot::Serving(partition) => Some(partition),
            _ => None,
        });
        serving.collect()
    }
}
