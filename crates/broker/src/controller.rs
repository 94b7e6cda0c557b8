//! The controller's thread: tells other brokers that this one is there and what it leads, registers it,
//! and, where this broker leads the metadata log, plans what is to be done and has it done.
//!
//! It takes turns, a few a second and at once when a leadership changes. Nothing that it does is lost for
//! good when it is lost on the way: the next turn does what is lacking then.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tidelog_controller::{
    ClusterId, DirectoryId, LEVEL_MAX, Note, Order, PartitionKey, Registration, ReplicaFault,
    Report, Resigning, Teller, node_of,
};
use tidelog_replica::{NodeId, Post};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::act::group_key;
use crate::background::{BrokerStops, Waits};
use crate::error::TopicError;
use crate::mailbox::Command;
use crate::{Broker, Inner, METADATA_TOPIC_ID, Slot};

mod decide;

/// The metadata log, as the controller names it.
pub(crate) const METADATA_KEY: PartitionKey = PartitionKey {
    topic: METADATA_TOPIC_ID,
    partition: 0,
};

/// A disk that takes longer for a sync hangs. One that is only slow does not: whoever hangs leads nothing.
const HANGS_AFTER: Duration = Duration::from_secs(5);
/// A broker says that it is there at least so often.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Turns do not follow each other faster.
const TURN_PAUSE: Duration = Duration::from_millis(20);
/// Replicas that do not serve, of which others are told.
const FAULTS_MAX: usize = 1000;
/// How long the shards get to say what they lead.
const SHARD_WAIT_MAX: Duration = Duration::from_secs(2);

/// What others ask the controller's thread for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Brokers that want to be registered: the last thing each has said.
    registrations: Mutex<BTreeMap<NodeId, (ClusterId, Registration, u64)>>,
    /// Why this broker may not register, as it was told.
    refused: Mutex<Option<String>>,
    /// This broker is about to stop.
    is_leaving: AtomicBool,
    wake: Notify,
}

impl Asked {
    /// From now on others are told that this broker is about to stop.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Has the thread take a turn soon.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }
}

impl Broker {
    /// What this broker says of itself.
    pub(crate) fn registration(&self) -> Registration {
        let inner = self.inner();
        let addresses = inner.config.addresses.clone();
        Registration {
            node: inner.identity.node_id,
            directory: DirectoryId::from_bytes(inner.identity.directory_id),
            grpc_address: addresses.grpc,
            http_address: addresses.http,
            cluster_address: addresses.cluster,
            rack: addresses.rack,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            level_min: 0,
            level_max: LEVEL_MAX,
        }
    }

    /// Whether this broker was registered since it started, as far as was carried out here.
    pub fn is_registered(&self) -> bool {
        let inner = self.inner();
        let cluster = inner.cluster.read();
        cluster.has_registered(&self.registration(), inner.epoch_before)
    }

    /// Why this broker may not register, if it was told so.
    pub fn registration_refused(&self) -> Option<String> {
        self.inner().asked.refused.lock().clone()
    }

    /// Takes what another broker says beside what its replicas do.
    pub(crate) fn take_note(&self, from: NodeId, bytes: &Bytes) {
        let note = match Note::decode(bytes) {
            Ok(note) => note,
            Err(e) => {
                tracing::debug!(from, error = %e, "a note of another broker is not understood");
                return;
            }
        };
        let inner = self.inner();
        match note {
            Note::Heartbeat {
                epoch,
                reports,
                faults,
                resigning,
            } => {
                let is_current = inner.cluster.read().is_current(from, epoch);
                let now = inner.now_ms();
                inner.seen.resigns(from, resigning);
                inner.seen.heartbeat(from, is_current, reports, faults, now);
            }
            Note::Act(order) => self.order(order),
            Note::Register {
                cluster,
                registration,
                epoch_before,
            } => {
                if registration.node == from {
                    let said = (cluster, registration, epoch_before);
                    inner.asked.registrations.lock().insert(from, said);
                    inner.asked.wake();
                }
            }
            Note::RegisterRefused { cause } => {
                let mut refused = inner.asked.refused.lock();
                if refused.as_ref() != Some(&cause) {
                    tracing::error!(%cause, "the cluster does not take this broker");
                    *refused = Some(cause);
                }
            }
        }
    }

    /// Has a replica here do something, if it leads as it is meant to.
    fn order(&self, order: Order) {
        let shards = &self.inner().shards;
        let shard = &shards[crate::start::shard_number(group_key(order.key), shards.len())];
        shard.try_send(Command::Act(order));
    }

    /// Decides on a broker that joins, at the broker that leads the metadata log. Gives its generation.
    ///
    /// # Errors
    /// Why it may not, or that another broker decides.
    pub async fn join(
        &self,
        cluster: ClusterId,
        registration: Registration,
    ) -> Result<u32, TopicError> {
        let broker = self.clone();
        crate::topics::detached(async move {
            let mut folded = broker.begin_change().await?;
            let node = registration.node;
            broker
                .register(&mut folded, cluster, registration, 0)
                .await?;
            let cluster = broker.inner().cluster.read();
            Ok(cluster.broker(node).map_or(0, |known| known.generation))
        })
        .await
    }

    async fn register(
        &self,
        folded: &mut crate::metadata::Folded,
        cluster: ClusterId,
        registration: Registration,
        epoch_before: u64,
    ) -> Result<(), TopicError> {
        let node = registration.node;
        let decided = {
            let state = self.inner().cluster.read();
            state.decide_registration(cluster, registration, epoch_before)
        };
        let Some(command) = decided.map_err(TopicError::Broker)? else {
            return Ok(());
        };
        self.commit(folded, &command).await?;
        // It was just heard, and does not know yet by which epoch it is to speak.
        let now = self.inner().now_ms();
        self.inner()
            .seen
            .with(|observed| observed.heard.insert(node, now));
        Ok(())
    }

    /// Starts the thread, where there are other brokers or may come some.
    pub(crate) fn start_controller(&self) -> io::Result<()> {
        if self.inner().config.is_alone() {
            return Ok(());
        }
        let inner = Arc::downgrade(&self.inner);
        let stopping = self.inner().stopping.subscribe();
        let thread = std::thread::Builder::new()
            .name("tidelog-controller".to_owned())
            .spawn(move || {
                if let Some(waits) = Waits::new(stopping, "the controller") {
                    // It ends when the broker stops, and for no other reason.
                    let _stops = Controller::default().run(&inner, waits);
                }
            })?;
        self.inner().threads.lock().push(thread);
        Ok(())
    }
}

/// What the thread remembers from one turn to the next: nothing that is decided.
#[derive(Debug, Default)]
struct Controller {
    teller: Teller,
    /// Clients get no more onto the disk here, and others are to lead what they can.
    is_short_of_space: bool,
    is_hanging: bool,
    /// The term in which this broker leads the metadata log.
    leads_since: Arc<Mutex<Option<u32>>>,
    /// What is being decided. It is never broken off: what it has written may yet be committed, and to
    /// decide it once more would have the log say twice what can be only once.
    deciding: Option<JoinHandle<()>>,
}

impl Controller {
    fn run(mut self, inner: &Weak<Inner>, mut waits: Waits) -> Result<(), BrokerStops> {
        let mut pause = HEARTBEAT;
        loop {
            let broker = Broker {
                inner: inner.upgrade().ok_or(BrokerStops)?,
            };
            waits.until(self.turn(&broker))?;
            waits.wait(TURN_PAUSE)?;
            let (leaders, asked) = (&broker.inner.leaders_changed, &broker.inner.asked.wake);
            pause = waits.until(async {
                tokio::select! {
                    // The followers of whoever leads anew catch up within a moment: that is to be told soon, too.
                    () = leaders.notified() => TURN_PAUSE,
                    () = asked.notified() => pause,
                    () = tokio::time::sleep(pause) => (pause * 2).min(HEARTBEAT),
                }
            })?;
        }
    }

    async fn turn(&mut self, broker: &Broker) {
        let inner = broker.inner();
        let reports = reports(inner).await;
        let node = inner.identity.node_id;
        let epoch = {
            let cluster = inner.cluster.read();
            cluster.broker(node).map_or(0, |known| known.epoch)
        };
        let faults = inner.own_faults();
        let now = inner.now_ms();
        inner
            .seen
            .heartbeat(node, true, reports.clone(), faults.clone(), now);
        self.tell(inner, epoch, reports, faults);
        if broker.is_registered() {
            *inner.asked.refused.lock() = None;
        } else {
            ask_to_register(broker);
        }
        if inner.metadata.leads() {
            let deciding = self.deciding.get_or_insert_with(|| {
                let (broker, leads_since) = (broker.clone(), self.leads_since.clone());
                tokio::spawn(async move {
                    if let Err(e) = decide::decide(&broker, &leads_since).await {
                        tracing::debug!(error = %e, "nothing more can be decided now");
                    }
                })
            });
            // However long it takes, others are told that this broker is there.
            if tokio::time::timeout(HEARTBEAT, deciding).await.is_ok() {
                self.deciding = None;
            }
        } else {
            *self.leads_since.lock() = None;
            inner.asked.registrations.lock().clear();
        }
        inner.seen.forget_gone(&inner.cluster.read(), METADATA_KEY);
    }

    /// Whether the disk hangs. What is led here could never be said to be committed, while the thread that leads it
    /// may go on.
    fn hangs(&mut self, inner: &Inner) -> bool {
        let longest = inner.syncs.oldest_runs_for().unwrap_or_default();
        let hangs = longest >= HANGS_AFTER;
        if hangs && !self.is_hanging {
            tracing::warn!(?longest, "the disk hangs: others are to lead what they can");
        }
        self.is_hanging = hangs;
        hangs
    }

    /// Tells all others what has changed, and now and then all.
    fn tell(
        &mut self,
        inner: &Inner,
        epoch: u64,
        reports: Vec<(PartitionKey, Report)>,
        faults: Vec<ReplicaFault>,
    ) {
        self.is_short_of_space = inner.space.is_short(self.is_short_of_space);
        let is_leaving = inner.asked.is_leaving.load(Ordering::SeqCst);
        let hangs = self.hangs(inner);
        let causes = [
            (is_leaving, Resigning::Stopping),
            (hangs, Resigning::DiskHangs),
            (self.is_short_of_space, Resigning::NoSpace),
        ];
        let resigning = causes.into_iter().find(|(is_so, _)| *is_so);
        let resigning = resigning.map(|(_, why)| why);
        inner.seen.resigns(inner.identity.node_id, resigning);
        let notes = self.teller.notes(epoch, reports, faults, resigning);
        let notes: Vec<Bytes> = notes.iter().map(|note| note.encode().into()).collect();
        for other in inner.others() {
            let notes = notes.clone();
            // What is lost is said again.
            drop(inner.seams.peers.send(
                other,
                Post {
                    notes,
                    ..Post::default()
                },
            ));
        }
    }
}

/// Asks whoever leads the metadata log to register this broker; all others too, where it is not sure who does.
fn ask_to_register(broker: &Broker) {
    let inner = broker.inner();
    let own = inner.identity.node_id;
    let note = Note::Register {
        cluster: ClusterId::from_bytes(inner.identity.cluster_id),
        registration: broker.registration(),
        epoch_before: inner.epoch_before,
    };
    let leader = inner.metadata.leader().map(node_of);
    let others = inner.others();
    let asked = inner
        .seen
        .with(|observed| observed.registrars(own, leader, &others, METADATA_KEY));
    for node in asked {
        inner.send_note(node, &note);
    }
}

/// What the shards lead.
async fn reports(inner: &Inner) -> Vec<(PartitionKey, Report)> {
    let mut all = Vec::new();
    for shard in &inner.shards {
        let (reply, replied) = oneshot::channel();
        let asked = async {
            shard.send(Command::Reports { reply }).await.ok()?;
            replied.await.ok()
        };
        // One that is busy for long says so in the next turn.
        if let Ok(Some(reports)) = tokio::time::timeout(SHARD_WAIT_MAX, asked).await {
            all.extend(reports);
        }
    }
    all
}

impl Inner {
    /// By a clock that never jumps, in milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        let now = self.seams.clock.monotonic().as_millis();
        u64::try_from(now).unwrap_or(u64::MAX)
    }

    /// The other brokers that there are, or are to come.
    pub(crate) fn others(&self) -> BTreeSet<NodeId> {
        let cluster = self.cluster.read();
        cluster.others(self.identity.node_id, &self.config.founders)
    }

    fn send_note(&self, to: NodeId, note: &Note) {
        let post = Post {
            notes: vec![Bytes::from(note.encode())],
            ..Post::default()
        };
        // What is lost is said again.
        drop(self.seams.peers.send(to, post));
    }

    /// Replicas here that do not serve.
    fn own_faults(&self) -> Vec<ReplicaFault> {
        let routes: Vec<_> = self.routes.read().values().cloned().collect();
        let faults = routes.iter().flat_map(|route| {
            (0..).zip(&route.slots).filter_map(|(partition, slot)| {
                let cause = match slot {
                    Slot::Serving(partition) => partition.fault()?,
                    Slot::Faulted(fault) | Slot::Unmade(fault) => fault.clone(),
                    Slot::Elsewhere => return None,
                };
                let key = PartitionKey {
                    topic: route.topic.id,
                    partition,
                };
                Some(ReplicaFault { key, cause })
            })
        });
        faults.take(FAULTS_MAX).collect()
    }
}
