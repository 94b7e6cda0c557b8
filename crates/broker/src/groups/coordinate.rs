//! The task of a coordinator: waits until its partition is led here, folds its log, and takes turns until it is led
//! elsewhere.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tidelog_group::{Answer, Coordinator, GroupOptions, KnownTopics, Now, Turns};
use tidelog_record::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Asked, QUEUE_LEN};
use crate::error::{AppendError, CoordinatorError, ErrorKind, Facts, LookupError};
use crate::mailbox::Command;
use crate::metrics::Metrics;
use crate::own::{self, WalkError, walk};
use crate::partition::{Partition, Progress};
use crate::waiters::refused;
use crate::{Broker, BrokerConfig, Inner};

/// How often it is looked at which offsets are too old: Kafka's `offsets.retention.check.interval.ms`.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
/// After how long a coordinator that could not load, or not write, begins again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

type Reply = oneshot::Sender<Result<Answer, CoordinatorError>>;

/// Runs the coordinators until the broker stops.
pub(super) fn run(inner: &Weak<Inner>, mut stopping: watch::Receiver<bool>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "groups are not coordinated: no timer could be made");
            return;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            () = supervise(inner) => {}
            // The tasks end with the runtime; what waits for them is told that the broker stops.
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    });
    if let Some(inner) = inner.upgrade() {
        inner.groups.coordinators.lock().clear();
    }
    runtime.shutdown_background();
}

/// Sees to it that each replica here has its task.
async fn supervise(inner: &Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let broker = Broker { inner: strong };
        {
            let replicas = broker.replicas_of_groups();
            let mut coordinators = broker.inner().groups.coordinators.lock();
            coordinators.retain(|_, (of, _)| replicas.iter().any(|one| Arc::ptr_eq(one, of)));
            for partition in replicas {
                coordinators.entry(partition.number()).or_insert_with(|| {
                    let (queue, asked) = mpsc::channel(QUEUE_LEN);
                    tokio::spawn(coordinate(inner.clone(), partition.clone(), asked));
                    (partition, queue)
                });
            }
        }
        let changed = broker.inner().groups.changed.clone();
        // Nobody is held up who lets the broker go.
        drop(broker);
        // The notice is kept where it comes before this.
        changed.notified().await;
    }
}

/// Coordinates the groups of one partition for as long as the replica is here.
async fn coordinate(
    inner: Weak<Inner>,
    partition: Arc<Partition>,
    mut asked: mpsc::Receiver<Asked>,
) {
    let mut progress = partition.progress.subscribe();
    loop {
        if !wait_to_lead(&inner, &partition, &mut progress, &mut asked).await {
            return;
        }
        let ended = match load(&inner, &partition).await {
            Ok((term, coordinator)) => {
                let led = Led {
                    inner: &inner,
                    partition: &partition,
                    term,
                    turns: Turns::new(coordinator),
                };
                led.serve(&mut progress, &mut asked).await
            }
            Err(e) => {
                tracing::warn!(partition = partition.number(), error = %e, "the groups cannot be loaded");
                Ended::Failed
            }
        };
        match ended {
            Ended::QueueClosed => return,
            Ended::LeadsNoMore => {}
            Ended::Failed => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}

/// Waits until the partition is led here; whoever asks meanwhile is told who leads, or waits where only this broker can. `false` when there is nothing to
/// wait for any more.
async fn wait_to_lead(
    inner: &Weak<Inner>,
    partition: &Arc<Partition>,
    progress: &mut watch::Receiver<Progress>,
    asked: &mut mpsc::Receiver<Asked>,
) -> bool {
    loop {
        let wait = progress.wait_for(|now| now.leads || now.closed);
        tokio::select! {
            now = wait => return now.is_ok_and(|now| !now.closed),
            one = asked.recv(), if partition.has_others() => {
                let (Some(one), Some(inner)) = (one, inner.upgrade()) else {
                    return false;
                };
                if let Asked::Request { reply, .. } = one {
                    let elsewhere = inner.not_leader(partition);
                    // Nobody may be waiting any more.
                    drop(reply.send(Err(elsewhere.into())));
                }
            }
        }
    }
}

/// The groups as the log of their partition has them, and the term in which this broker leads it.
async fn load(
    inner: &Weak<Inner>,
    partition: &Arc<Partition>,
) -> Result<(u64, Coordinator), WalkError> {
    let led = lead_for_sure(inner, partition).await;
    let term = led.map_err(WalkError::damaged)?;
    let reader = partition.reader();
    let end = partition.high_watermark();
    let stopping = || WalkError::damaged("the broker is stopping");
    let options = options(&inner.upgrade().ok_or_else(stopping)?.config);
    let load = move || {
        let mut coordinator = Coordinator::new(options);
        walk(&reader, reader.log_start(), end, |offset, record| {
            let key = record.key.as_deref().unwrap_or_default();
            let folded = coordinator.fold(key, record.value.as_deref());
            folded.map_err(|e| WalkError::Damaged(format!("offset {offset}: {e}")))
        })?;
        Ok::<_, WalkError>(coordinator)
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "measured for people, decides nothing"
    )]
    let began = std::time::Instant::now();
    let loaded = tokio::task::spawn_blocking(load).await;
    let coordinator: Coordinator = loaded.map_err(WalkError::damaged)??;
    if let Some(inner) = inner.upgrade() {
        Metrics::observe(&inner.metrics.coordinator_load_seconds, began.elapsed());
    }
    let (partition, groups) = (partition.number(), coordinator.groups());
    tracing::debug!(partition, groups, term, "the groups are loaded");
    Ok((term, coordinator))
}

fn options(config: &BrokerConfig) -> GroupOptions {
    let retention = config.offsets_retention.as_millis();
    GroupOptions {
        groups_max: config.groups_max,
        offsets_retention_ms: u64::try_from(retention).unwrap_or(u64::MAX),
    }
}

/// Makes sure that this broker leads a partition, with everything that was acknowledged before; gives the term. Holds
/// nothing of the broker while it waits for others.
async fn lead_for_sure(
    inner: &Weak<Inner>,
    partition: &Arc<Partition>,
) -> Result<u64, AppendError> {
    let (reply, replied) = oneshot::channel();
    let key = partition.key;
    let asked = partition
        .shard
        .send(Command::ReadIndex { key, reply })
        .await;
    asked.map_err(|_| AppendError::Stopping)?;
    let known = replied.await.map_err(|_| AppendError::Stopping)?;
    let known = known.map_err(|refusal| hinted(inner, refused(partition, refusal)))?;
    Ok(known.term)
}

/// The error, with where to go instead.
fn hinted(inner: &Weak<Inner>, error: AppendError) -> AppendError {
    match inner.upgrade() {
        Some(inner) => inner.hinted(error),
        None => error,
    }
}

/// Why a coordinator does not go on.
enum Ended {
    /// Another broker leads.
    LeadsNoMore,
    /// What was decided could not be written.
    Failed,
    /// The replica is gone, or the broker stops.
    QueueClosed,
}

/// A coordinator while its partition is led here.
struct Led<'a> {
    inner: &'a Weak<Inner>,
    partition: &'a Arc<Partition>,
    term: u64,
    turns: Turns<Reply>,
}

/// A turn on its way to the log.
type UnderWay = Pin<Box<dyn Future<Output = Result<(), AppendError>> + Send>>;

impl Led<'_> {
    /// Takes turns until the partition is led elsewhere, or a turn fails.
    async fn serve(
        mut self,
        progress: &mut watch::Receiver<Progress>,
        asked: &mut mpsc::Receiver<Asked>,
    ) -> Ended {
        let mut under_way: Option<UnderWay> = None;
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if under_way.is_none()
                && let Some(batch) = self.turns.begin()
            {
                under_way = Some(self.write(batch));
            }
            tokio::select! {
                biased;
                done = outcome(&mut under_way) => {
                    under_way = None;
                    match done {
                        Ok(()) => self.answer(),
                        Err(e) => return self.fail(&e),
                    }
                }
                now = progress.wait_for(|now| !now.leads || now.closed), if self.turns.is_idle() => {
                    let is_gone = now.is_err();
                    return if is_gone { Ended::QueueClosed } else { Ended::LeadsNoMore };
                }
                one = asked.recv(), if self.turns.has_room() => {
                    let Some(one) = one else {
                        return Ended::QueueClosed;
                    };
                    if !self.take(one, asked) {
                        return Ended::QueueClosed;
                    }
                }
                _ = expiry.tick() => {
                    if let Some(now) = self.now() {
                        self.turns.expire(now);
                    }
                }
            }
        }
    }

    /// Decides on a request, and on those that wait behind it, as many as one turn takes. `false` when the broker is
    /// gone.
    fn take(&mut self, first: Asked, asked: &mut mpsc::Receiver<Asked>) -> bool {
        let Some(inner) = self.inner.upgrade() else {
            return false;
        };
        let topics: &dyn KnownTopics = &*inner;
        let now = now_at(&inner);
        let mut next = Some(first);
        while let Some(asked_for) = next {
            match asked_for {
                Asked::Request { request, reply } => {
                    self.turns.take(reply, request, now, topics);
                }
                Asked::Look { max, reply } => {
                    // Nobody may be waiting any more.
                    drop(reply.try_send(self.turns.coordinator().offsets(max)));
                }
            }
            next = if self.turns.has_room() {
                asked.try_recv().ok()
            } else {
                None
            };
        }
        true
    }

    fn now(&self) -> Option<Timestamp> {
        Some(self.inner.upgrade()?.seams.clock.now())
    }

    /// Writes what a turn decided, or makes sure that this broker leads where it decided nothing.
    fn write(&self, batch: Vec<tidelog_group::Encoded>) -> UnderWay {
        let (weak, partition, term) = (self.inner.clone(), self.partition.clone(), self.term);
        let now = self.now().unwrap_or_default();
        Box::pin(async move {
            if batch.is_empty() {
                // Where there are no others, nobody else can have led.
                let led = match partition.has_others() {
                    true => lead_for_sure(&weak, &partition).await?,
                    false => term,
                };
                if led == term {
                    return Ok(());
                }
                let inner = weak.upgrade().ok_or(AppendError::Stopping)?;
                return Err(inner.not_leader(&partition).into());
            }
            let records = batch.into_iter().map(|(key, value)| (Some(key), value));
            let records: Vec<_> = records.collect();
            let written = own::write(&partition, &records, term, now).await?;
            // Waited for as long as it takes: what nobody knows the outcome of could still be written when the log is
            // folded anew.
            let appended = written.await.map_err(|_| AppendError::Stopping)?;
            appended.map(drop).map_err(|e| hinted(&weak, e))
        })
    }

    fn answer(&mut self) {
        let inner = self.inner.upgrade();
        for (reply, answer) in self.turns.committed() {
            if let (Some(inner), Answer::Committed(results)) = (&inner, &answer) {
                let committed = results.iter().filter(|result| result.is_ok());
                inner.metrics.group_commits.inc_by(committed.count() as u64);
            }
            // Nobody may be waiting any more.
            drop(reply.send(Ok(answer)));
        }
    }

    /// Tells all who wait that the turn failed: those in it that they do not know, or that it was not done, the others
    /// that surely nothing was.
    fn fail(self, error: &AppendError) -> Ended {
        let is_known = error.kind() != ErrorKind::Unknown;
        let not_done = match error {
            AppendError::Lookup(LookupError::NotLeader(e)) => {
                CoordinatorError::NotCoordinator(e.clone())
            }
            AppendError::Stopping => CoordinatorError::Stopping,
            e => CoordinatorError::Write(e.clone()),
        };
        let in_it = match is_known {
            true => not_done.clone(),
            false => CoordinatorError::Unknown {
                cause: error.to_string(),
            },
        };
        let after = match is_known {
            true => not_done,
            false => CoordinatorError::Loading {
                partition: self.partition.number(),
            },
        };
        let (under_way, gathered) = self.turns.fail();
        for reply in under_way {
            // Nobody may be waiting any more.
            drop(reply.send(Err(in_it.clone())));
        }
        for reply in gathered {
            // Nobody may be waiting any more.
            drop(reply.send(Err(after.clone())));
        }
        tracing::debug!(partition = self.partition.number(), %error, "the groups are loaded again");
        Ended::Failed
    }
}

/// What time it is for a coordinator.
fn now_at(inner: &Inner) -> Now {
    let clock = &inner.seams.clock;
    Now {
        wall: clock.now(),
        monotonic_ms: u64::try_from(clock.monotonic().as_millis()).unwrap_or(u64::MAX),
    }
}

/// Waits for the turn that is under way; for ever where there is none.
async fn outcome(under_way: &mut Option<UnderWay>) -> Result<(), AppendError> {
    match under_way {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}
