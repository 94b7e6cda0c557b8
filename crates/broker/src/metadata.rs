//! The metadata log, folded: what it says is carried out here, command by command, by whichever broker
//! it was decided.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tidelog_controller::{Command as TopicCommand, Topic, Topics};
use tidelog_record::{BatchBuilder, BatchLimits, Compression, Offset, TopicId, validate_produced};
use tokio::sync::{Semaphore, oneshot};

use crate::append::{Acks, StickyBytes};
use crate::background::{BrokerStops, Waits};
use crate::error::{AppendError, TopicError};
use crate::files::log_options;
use crate::mailbox::{Append, Command, Opened};
use crate::start::replay::commands;
use crate::waiters::refused;
use crate::{Broker, Inner, Route, Slot};

/// The metadata log as far as it was carried out.
#[derive(Debug)]
pub(crate) struct Folded {
    pub(crate) topics: Topics,
    applied: Offset,
    /// Partitions that were made before it was decided that they are to be.
    pub(crate) made: Option<(TopicId, Vec<Opened>)>,
    /// The last topic whose partitions could not be made here, and why.
    pub(crate) failed: Option<(TopicId, TopicError)>,
    /// The term in which this broker may decide.
    term: u64,
}

impl Folded {
    pub(crate) fn new(topics: Topics, applied: Offset) -> Self {
        Self {
            topics,
            applied,
            made: None,
            failed: None,
            term: 0,
        }
    }
}

/// Held while a change is decided on, written and carried out.
pub(crate) type FoldedGuard<'a> = tokio::sync::MutexGuard<'a, Folded>;

impl Broker {
    /// Waits for its turn to decide: with all that was decided before, which only the leader of the
    /// metadata log knows of.
    pub(crate) async fn begin_change(&self) -> Result<FoldedGuard<'_>, TopicError> {
        let mut folded = self.inner().metadata_folded.lock().await;
        if self.is_stopping() {
            return Err(AppendError::Stopping.into());
        }
        let metadata = &self.inner().metadata;
        let (reply, replied) = oneshot::channel();
        let key = metadata.key;
        let asked = metadata.shard.send(Command::ReadIndex { key, reply }).await;
        asked.map_err(|_| AppendError::Stopping)?;
        let known = replied.await.map_err(|_| AppendError::Stopping)?;
        folded.term = known.map_err(|refusal| refused(metadata, refusal))?.term;
        self.fold(&mut folded).await?;
        Ok(folded)
    }

    /// Commits a decision that [`Broker::begin_change`] came before, and carries it out.
    pub(crate) async fn commit(
        &self,
        folded: &mut Folded,
        command: &TopicCommand,
    ) -> Result<(), TopicError> {
        self.write(command, folded.term).await?;
        let folds = self.fold(folded).await;
        // It is decided, whatever comes of it here and now.
        folds.map_err(|e| {
            let cause = format!("it was decided, and is not carried out yet: {e}");
            AppendError::OutcomeUnknown { cause }.into()
        })
    }

    async fn write(&self, command: &TopicCommand, term: u64) -> Result<(), TopicError> {
        let metadata = self.inner().metadata.clone();
        let now = self.inner().seams.clock.now();
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
        #[expect(
            clippy::disallowed_methods,
            reason = "measured for people, decides nothing"
        )]
        let since = std::time::Instant::now();
        let append = Append {
            partition: metadata.clone(),
            batch,
            acks: Acks::All,
            log_append_time: false,
            // Whoever led in between may have decided something else.
            term: Some(term),
            reply,
            since,
            room: Arc::new(room.expect("a new semaphore has its permit")),
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
        Ok(())
    }

    /// Carries out what is committed and was not yet.
    pub(crate) async fn fold(&self, folded: &mut Folded) -> Result<(), TopicError> {
        let reader = self.inner().metadata.reader();
        let end = reader.committed_offset();
        if folded.applied >= end {
            return Ok(());
        }
        if self.inner().config.founders.len() > 1 {
            self.record_commit().await?;
        }
        let from = folded.applied.max(reader.log_start());
        let read = tokio::task::spawn_blocking(move || commands(&reader, from, end));
        let storage = |e: &dyn std::fmt::Display| TopicError::Storage(e.to_string());
        let read = read.await.map_err(|e| storage(&e))?;
        for command in read.map_err(|e| storage(&e))? {
            self.carry_out(folded, &command).await?;
        }
        folded.applied = end;
        Ok(())
    }

    /// Makes sure that the next start knows of what is carried out from now on: otherwise it would take the
    /// files for those of partitions that nobody ever decided on, and remove them.
    async fn record_commit(&self) -> Result<(), TopicError> {
        let metadata = &self.inner().metadata;
        let key = metadata.key;
        let (reply, replied) = oneshot::channel();
        let asked = metadata
            .shard
            .send(Command::RecordCommit { key, reply })
            .await;
        asked.map_err(|_| AppendError::Stopping)?;
        if replied.await.map_err(|_| AppendError::Stopping)? {
            Ok(())
        } else {
            let what = "how far the metadata log is committed cannot be recorded";
            Err(TopicError::Storage(what.to_owned()))
        }
    }

    async fn carry_out(
        &self,
        folded: &mut Folded,
        command: &TopicCommand,
    ) -> Result<(), TopicError> {
        let before = |id: TopicId| folded.topics.by_id(id).cloned();
        let (id, before) = match command {
            TopicCommand::Create(topic) => (topic.id, None),
            TopicCommand::Alter { id, .. }
            | TopicCommand::AddPartitions { id, .. }
            | TopicCommand::Delete { id } => (*id, before(*id)),
            TopicCommand::ReserveProducerIds { .. } => {
                self.apply(folded, command)?;
                self.producer_ids_known(&folded.topics);
                return Ok(());
            }
        };
        self.apply(folded, command)?;
        let Some(topic) = folded.topics.by_id(id).cloned() else {
            let route = before.and_then(|before| {
                let mut routes = self.inner().routes.write();
                let route = routes.remove(before.name.as_str());
                route.map(|route| (before, route.slots.clone()))
            });
            if let Some((before, slots)) = route {
                self.remove_partitions(&before, &slots).await;
            }
            return Ok(());
        };
        let first_new = before.map_or(0, |before| before.partitions);
        if first_new < topic.partitions {
            let slots = self.make(folded, &topic, first_new).await;
            if first_new == 0 {
                self.insert_route(&topic, slots);
            } else {
                self.replace_route(&topic, slots);
            }
        } else {
            self.change_settings(&topic).await;
        }
        Ok(())
    }

    fn apply(&self, folded: &mut Folded, command: &TopicCommand) -> Result<(), TopicError> {
        folded.topics.apply(command).map_err(|e| {
            tracing::error!(error = %e, "the metadata log makes no sense");
            TopicError::Storage(e.to_string())
        })
    }

    /// Makes the partitions of a topic from `first` on, unless they were made before.
    async fn make(&self, folded: &mut Folded, topic: &Arc<Topic>, first: u32) -> Vec<Slot> {
        let numbers = first..topic.partitions;
        let made = match folded.made.take() {
            Some((id, made)) if id == topic.id && made.len() == numbers.len() => Ok(made),
            _ => match self.clear_the_way(topic, numbers.clone()).await {
                Ok(()) => self.make_partitions(topic, numbers.clone()).await,
                Err(e) => Err(e),
            },
        };
        match made {
            Ok(made) => self.serve(made).await,
            Err(e) => {
                // The next start makes them. Until then they say why they do not serve.
                tracing::error!(topic = %topic.name, error = %e, "partitions cannot be made");
                let fault = e.to_string();
                folded.failed = Some((topic.id, e));
                numbers.map(|_| Slot::Faulted(fault.clone())).collect()
            }
        }
    }

    async fn change_settings(&self, topic: &Arc<Topic>) {
        let route = self.replace_route(topic, Vec::new());
        let settings = Arc::new(topic.settings.clone());
        for slot in &route.slots {
            if let Slot::Serving(partition) = slot {
                *partition.settings.write() = settings.clone();
                let change = Command::SetOptions {
                    key: partition.key,
                    options: log_options(&settings),
                };
                // Without its thread the partition is faulted, and gets them at the next start.
                drop(partition.shard.send(change).await);
            }
        }
    }

    fn insert_route(&self, topic: &Arc<Topic>, slots: Vec<Slot>) {
        let route = Route {
            topic: topic.clone(),
            slots,
            sticky_bytes: StickyBytes::default(),
        };
        let mut routes = self.inner().routes.write();
        routes.insert(topic.name.to_string(), Arc::new(route));
    }

    /// Puts a changed topic, with more partitions perhaps, where requests find it.
    fn replace_route(&self, topic: &Arc<Topic>, more: Vec<Slot>) -> Arc<Route> {
        let mut routes = self.inner().routes.write();
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

    /// Starts the thread that carries out what other brokers decide, where there are others.
    pub(crate) fn start_folding(&self) -> io::Result<()> {
        if self.inner().config.founders.len() < 2 {
            return Ok(());
        }
        let inner = Arc::downgrade(&self.inner);
        let grows = self.inner().metadata.progress.subscribe();
        let stopping = self.inner().stopping.subscribe();
        let thread = std::thread::Builder::new()
            .name("tidelog-metadata".to_owned())
            .spawn(move || {
                if let Some(waits) = Waits::new(stopping, "the metadata log") {
                    // It ends when the broker stops, and for no other reason.
                    let _stops = run(&inner, grows, waits);
                }
            })?;
        self.inner().threads.lock().push(thread);
        Ok(())
    }
}

fn run(
    inner: &Weak<Inner>,
    mut grows: tokio::sync::watch::Receiver<crate::partition::Progress>,
    mut waits: Waits,
) -> Result<(), BrokerStops> {
    loop {
        // Before the log is looked at: what comes after that wakes it again.
        grows.mark_unchanged();
        let inner = inner.upgrade().ok_or(BrokerStops)?;
        let broker = Broker { inner };
        let mut is_done = true;
        waits.until(async {
            let mut folded = broker.inner().metadata_folded.lock().await;
            if let Err(e) = broker.fold(&mut folded).await {
                tracing::error!(error = %e, "what was decided cannot be carried out here yet");
                is_done = false;
            }
        })?;
        drop(broker);
        if is_done {
            waits.until(async {
                // An error says that there is no log any more, which ends the thread.
                drop(grows.changed().await);
            })?;
        } else {
            waits.wait(FOLD_PAUSE)?;
        }
    }
}

/// After how long it is tried again to carry out what could not be.
const FOLD_PAUSE: Duration = Duration::from_secs(1);
