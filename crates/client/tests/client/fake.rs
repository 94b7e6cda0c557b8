//! A broker in memory behind a real gRPC server, which fails on demand.

mod cluster;
mod log;
mod reading;
mod topics;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tidelog_client::{Client, ClientConfig, Compression};
use tidelog_proto::v1;
use tidelog_proto::v1::cluster_server::ClusterServer;
use tidelog_proto::v1::log_server::LogServer;
use tidelog_proto::v1::topics_server::TopicsServer;
use tidelog_record::{BatchBuilder, BatchLimits, Timestamp, split_batches};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub(crate) use self::cluster::Cluster;

/// What becomes of one request of the produce stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Stored and acknowledged.
    Store,
    /// Answered with an error that passes by itself.
    RefuseForNow,
    /// Answered with an error that stays.
    Refuse,
    /// Not stored, and the stream breaks.
    Break,
    /// Stored, and the stream breaks before the answer.
    StoreAndBreak,
    /// Neither stored nor answered.
    Ignore,
}

/// A stored batch.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) base_offset: u64,
    pub(crate) bytes: Bytes,
    pub(crate) acks: v1::Acks,
}

/// A batch of a producer that was stored: sequence, records, offset.
type Known = (i32, i32, u64);

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) partitions: HashMap<String, u32>,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) log: BTreeMap<u32, Vec<Stored>>,
    /// For the next requests; afterwards `after_steps`, or else they are stored.
    pub(crate) steps: VecDeque<Step>,
    pub(crate) after_steps: Option<Step>,
    pub(crate) next_producer_id: i64,
    /// Errors of calls for a producer id, before it is given.
    pub(crate) identity_failures: usize,
    /// Ids that the broker does not know any more.
    pub(crate) forgotten: Vec<i64>,
    /// By partition and id: epoch, and what was stored in it.
    producers: HashMap<(u32, i64), (i16, Vec<Known>)>,
    /// Batches that came again.
    pub(crate) duplicates: usize,
    /// Requests that came, by partition.
    pub(crate) requests: Vec<u32>,
    pub(crate) streams_opened: usize,
    /// While it is set, requests wait.
    pub(crate) is_held: bool,
    /// After so many messages of data a read stream breaks, once for each number.
    pub(crate) read_breaks: VecDeque<usize>,
    /// After so many messages of data the broker says that it is about to stop and ends the stream,
    /// once for each number.
    pub(crate) read_goodbyes: VecDeque<usize>,
    /// Signs of life to be sent by followed partitions that have nothing new.
    pub(crate) heartbeats: HashMap<u32, usize>,
    /// Those that went out.
    pub(crate) heartbeats_sent: usize,
    /// Told instead of data, once.
    pub(crate) read_partition_errors: HashMap<u32, Status>,
    /// The most bytes that were sent beyond what was granted.
    pub(crate) credit_exceeded_by: u64,
    pub(crate) describes: usize,
    pub(crate) describe_failures: usize,
    /// One batch a message.
    pub(crate) starts: Vec<v1::ReadStart>,
    /// The brokers of a cluster, which share all of this as if it were copied at once. Empty: a broker
    /// that knows nothing of clusters.
    pub(crate) nodes: BTreeMap<u32, String>,
    /// Who leads each partition, and since which epoch. `None`: nobody.
    pub(crate) leaders: BTreeMap<u32, (Option<u32>, u32)>,
    /// Brokers that take everything and answer nothing.
    pub(crate) silent: BTreeSet<u32>,
    /// Whether a broker that does not lead says who does.
    pub(crate) has_hints: bool,
    /// Batches that came, by broker and partition.
    pub(crate) asked: Vec<(u32, u32)>,
    /// The refusals of brokers that did not lead.
    pub(crate) not_leader: usize,
    /// Read streams, by broker, with their partitions.
    pub(crate) reads: Vec<(u32, Vec<u32>)>,
    /// Look-ups of offsets, by broker, with their partitions.
    pub(crate) look_ups: Vec<(u32, Vec<u32>)>,
    /// Changes of the cluster that were asked for.
    pub(crate) cluster_changes: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    /// Counts the changes of the state, for those who wait for one.
    changes: watch::Sender<u64>,
    pub(crate) address: String,
    /// Which broker of a cluster it is.
    pub(crate) node: u32,
}

impl Fake {
    /// A broker with topic `t` of so many partitions.
    pub(crate) async fn start(partitions: u32) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = State {
            partitions: HashMap::from([("t".to_owned(), partitions)]),
            ..State::default()
        };
        let fake = Self {
            state: Arc::new(Mutex::new(state)),
            changes: watch::Sender::new(0),
            address,
            node: 0,
        };
        tokio::spawn(fake.clone().serve(listener));
        fake
    }

    async fn serve(self, listener: tokio::net::TcpListener) {
        let incoming = TcpListenerStream::new(listener)
            .map(|stream| stream.inspect(|stream| stream.set_nodelay(true).unwrap()));
        let server = tonic::transport::Server::builder()
            .add_service(LogServer::new(self.clone()))
            .add_service(TopicsServer::new(self.clone()))
            .add_service(ClusterServer::new(self))
            .serve_with_incoming(incoming);
        server.await.unwrap();
    }

    pub(crate) fn client(&self) -> Client {
        Client::lazy(ClientConfig::new(self.address.parse().unwrap())).unwrap()
    }

    pub(crate) fn state(&self) -> StateGuard<'_> {
        StateGuard {
            state: self.state.lock().unwrap(),
            changes: &self.changes,
            is_changed: false,
        }
    }

    pub(crate) fn release(&self) {
        self.state().is_held = false;
    }

    /// Waits until the state is as wanted; not for ever.
    pub(crate) async fn until(&self, wanted: impl Fn(&State) -> bool) {
        tokio::time::timeout(Duration::from_secs(20), self.wait_until(wanted))
            .await
            .expect("it never came to that");
    }

    pub(super) async fn wait_until(&self, wanted: impl Fn(&State) -> bool) {
        // From before the first look, so that no change is missed.
        let mut changes = self.changes.subscribe();
        while !wanted(&self.state()) {
            changes.changed().await.expect("the sender is in self");
        }
    }

    /// The values stored in a partition, in order.
    pub(crate) fn values(&self, partition: u32) -> Vec<String> {
        let state = self.state();
        let stored = state
            .log
            .get(&partition)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut values = Vec::new();
        for stored in stored {
            for batch in split_batches(stored.bytes.clone(), usize::MAX) {
                for record in batch.unwrap().records(&BatchLimits::default()).unwrap() {
                    let value = record.unwrap().value.unwrap();
                    values.push(String::from_utf8(value.to_vec()).unwrap());
                }
            }
        }
        values
    }

    /// Puts records with these values into a partition, `batch_len` a batch.
    pub(crate) fn fill(
        &self,
        partition: u32,
        count: u64,
        batch_len: usize,
        compression: Compression,
    ) {
        let mut state = self.state();
        let values: Vec<u64> = (0..count).collect();
        for values in values.chunks(batch_len) {
            let mut builder = BatchBuilder::new(compression);
            for value in values {
                let (key, value) = (b"k".as_slice(), format!("{partition}/{value}"));
                let time = Timestamp::from_millis(i64::try_from(values[0]).unwrap());
                builder
                    .push(time, Some(key), Some(value.as_bytes()), &[])
                    .unwrap();
            }
            state.store(partition, &builder.build().unwrap(), v1::Acks::All);
        }
    }

    /// Puts one record into a partition, in a batch of its own.
    pub(crate) fn add(&self, partition: u32, value: usize) {
        let mut builder = BatchBuilder::new(Compression::None);
        let value = value.to_string();
        let time = Timestamp::from_millis(0);
        builder
            .push(time, None, Some(value.as_bytes()), &[])
            .unwrap();
        let batch = builder.build().unwrap();
        self.state().store(partition, &batch, v1::Acks::All);
    }

    /// Waits for ever where the broker answers nothing.
    async fn speak(&self) {
        self.wait_until(|state| !state.silent.contains(&self.node))
            .await;
    }

    /// The refusal of a broker that does not lead a partition.
    fn check_leader(&self, partition: u32) -> Result<(), Status> {
        let mut state = self.state();
        let Some(&(leader, epoch)) = state.leaders.get(&partition) else {
            return Ok(());
        };
        if leader == Some(self.node) {
            return Ok(());
        }
        state.not_leader += 1;
        let mut facts = HashMap::from([
            ("topic".to_owned(), "t".to_owned()),
            ("partition".to_owned(), partition.to_string()),
        ]);
        if let Some(leader) = leader.filter(|_| state.has_hints) {
            facts.extend([
                ("leader".to_owned(), leader.to_string()),
                ("leader_address".to_owned(), state.nodes[&leader].clone()),
                ("leader_epoch".to_owned(), epoch.to_string()),
            ]);
        }
        let mut details = ErrorDetails::new();
        details.set_error_info("NOT_LEADER", "tidelog", facts);
        details.set_retry_info(Some(Duration::from_millis(1)));
        let message = format!("broker {} does not lead", self.node);
        Err(Status::with_error_details(
            Code::Unavailable,
            message,
            details,
        ))
    }

    fn topic_partitions(&self, topic: &str) -> Result<u32, Status> {
        let found = self.state().partitions.get(topic).copied();
        found.ok_or_else(|| {
            let message = format!("topic {topic:?} does not exist");
            error(Code::NotFound, "TOPIC_NOT_FOUND", &message, None)
        })
    }

    /// What becomes of a request, and its offset where it was stored, then or before.
    fn take(&self, append: &v1::AppendRequest) -> (Step, Result<(u64, bool), Status>) {
        let partition = append.partition.expect("the producer chooses");
        let mut state = self.state();
        state.requests.push(partition);
        state.asked.push((self.node, partition));
        let next = state
            .steps
            .pop_front()
            .or(state.after_steps)
            .unwrap_or(Step::Store);
        let mut stored = Ok((0, false));
        if matches!(next, Step::Store | Step::StoreAndBreak) {
            let Some(v1::append_request::Payload::Batch(bytes)) = &append.payload else {
                panic!("the producer sends batches");
            };
            stored = state.store_once(partition, bytes, append.acks());
        }
        (next, stored)
    }
}

/// The state, locked. Who waits for a change is woken if it was written to.
#[derive(Debug)]
pub(crate) struct StateGuard<'a> {
    state: MutexGuard<'a, State>,
    changes: &'a watch::Sender<u64>,
    is_changed: bool,
}

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.is_changed = true;
        &mut self.state
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        if self.is_changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }
}

impl State {
    /// Stores a batch unless its producer sent it before, as a broker does.
    fn store_once(
        &mut self,
        partition: u32,
        bytes: &[u8],
        acks: v1::Acks,
    ) -> Result<(u64, bool), Status> {
        let header = tidelog_record::check_batch(bytes, usize::MAX).expect("a sound batch");
        let (id, epoch, found) = (
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
        );
        if id < 0 {
            return Ok((self.store(partition, bytes, acks), false));
        }
        let refuse =
            |reason, message: String| Err(error(Code::FailedPrecondition, reason, &message, None));
        if id >= self.next_producer_id || self.forgotten.contains(&id) {
            return refuse("UNKNOWN_PRODUCER", format!("producer {id}"));
        }
        let key = (partition, id);
        match self.producers.get(&key) {
            Some((known, _)) if epoch < *known => {
                return refuse("PRODUCER_FENCED", format!("epoch {epoch}, not {known}"));
            }
            Some((known, stored)) if epoch == *known => {
                let of = |sequence| {
                    stored
                        .iter()
                        .rev()
                        .take(5)
                        .find(|(seq, ..)| *seq == sequence)
                };
                if let Some((_, _, base)) = of(found) {
                    self.duplicates += 1;
                    return Ok((*base, true));
                }
                let (last, records, _) = stored.last().expect("at least one");
                if found != last + records {
                    return refuse("OUT_OF_ORDER_SEQUENCE", format!("{found} after {last}"));
                }
            }
            None if found != 0 => return refuse("UNKNOWN_PRODUCER", format!("{found} first")),
            _ if found != 0 => return refuse("OUT_OF_ORDER_SEQUENCE", format!("{found} first")),
            _ => {
                self.producers.insert(key, (epoch, Vec::new()));
            }
        }
        let base = self.store(partition, bytes, acks);
        let (_, stored) = self.producers.get_mut(&key).expect("it is known now");
        stored.push((found, header.record_count, base));
        Ok((base, false))
    }

    fn store(&mut self, partition: u32, bytes: &[u8], acks: v1::Acks) -> u64 {
        let header = tidelog_record::check_batch(bytes, usize::MAX).expect("a sound batch");
        let stored = self.log.entry(partition).or_default();
        let base_offset = stored.last().map_or(0, |last| {
            let header = tidelog_record::check_batch(&last.bytes, usize::MAX).unwrap();
            last.base_offset + u64::try_from(header.record_count).unwrap()
        });
        let mut bytes = bytes.to_vec();
        assert_eq!(header.total_len(), bytes.len());
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        stored.push(Stored {
            base_offset,
            bytes: bytes.into(),
            acks,
        });
        base_offset
    }

    fn end_offset(&self, partition: u32) -> u64 {
        self.log
            .get(&partition)
            .and_then(|stored| stored.last())
            .map_or(0, |last| {
                let header = tidelog_record::check_batch(&last.bytes, usize::MAX).unwrap();
                last.base_offset + u64::try_from(header.record_count).unwrap()
            })
    }
}

pub(crate) fn error(code: Code, reason: &str, message: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "tidelog", [("topic".to_owned(), "t".to_owned())]);
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, message, details)
}

pub(crate) fn in_band(status: &Status) -> tonic_types::Status {
    prost::Message::decode(status.details()).expect("it was encoded")
}
