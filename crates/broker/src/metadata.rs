//! The metadata log, folded: what it says is carried out here, by whichever broker it was decided.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tidelog_controller::{ClusterCommand, ClusterId, Touched};
use tidelog_record::{Offset, TopicId};
use tokio::sync::oneshot;

use crate::background::{BrokerStops, Waits};
use crate::error::{AppendError, TopicError};
use crate::mailbox::{Command, Opened};
use crate::own;
use crate::start::replay::commands;
use crate::waiters::refused;
use crate::{Broker, Inner};

/// How far the metadata log was carried out here, and what came of it. What it says is in
/// [`Inner::cluster`].
#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub(crate) applied: Offset,
    /// Where the newest snapshot begins, or the first command that there was.
    pub(crate) snapshot_at: Offset,
    /// Partitions that were made before it was decided that they are to be.
    pub(crate) made: Option<(TopicId, Vec<Opened>)>,
    /// The last topic whose partitions could not be made here, and why.
    pub(crate) failed: Option<(TopicId, TopicError)>,
    /// Topics of which not all is here that should be.
    pub(crate) unmade: Vec<TopicId>,
    /// The term in which this broker may decide.
    term: u64,
}

impl Folded {
    pub(crate) fn new(applied: Offset, snapshot_at: Offset, unmade: Vec<TopicId>) -> Self {
        Self {
            applied,
            snapshot_at,
            unmade,
            ..Self::default()
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
        let known = self.answer(replied).await.ok_or(AppendError::Stopping)?;
        let known = known.map_err(|refusal| self.inner().hinted(refused(metadata, refusal)));
        folded.term = known?.term;
        self.fold(&mut folded).await?;
        self.be_there(&mut folded).await?;
        Ok(folded)
    }

    /// Founds the cluster, and registers this broker, before anything else is decided: everything that is
    /// decided is decided for a cluster, of however few brokers.
    async fn be_there(&self, folded: &mut Folded) -> Result<(), TopicError> {
        let cluster_id = ClusterId::from_bytes(self.inner().identity.cluster_id);
        let found = self.inner().cluster.read().decide_found(cluster_id).ok();
        if let Some(found) = found {
            self.commit(folded, &found).await?;
        }
        if !self.is_registered() {
            let registration = self.registration();
            let decided = {
                let cluster = self.inner().cluster.read();
                cluster.decide_register(cluster_id, registration)
            };
            let register = decided.map_err(TopicError::Broker)?;
            self.commit(folded, &register).await?;
        }
        Ok(())
    }

    /// Commits a decision that [`Broker::begin_change`] came before, and carries it out. Gives its offset.
    pub(crate) async fn commit(
        &self,
        folded: &mut Folded,
        command: &ClusterCommand,
    ) -> Result<Offset, TopicError> {
        let offset = self.write(command, folded.term).await?;
        let folds = self.fold(folded).await;
        // It is decided, whatever comes of it here and now.
        folds.map_err(|e| {
            let cause = format!("it was decided, and is not carried out yet: {e}");
            AppendError::OutcomeUnknown { cause }
        })?;
        Ok(offset)
    }

    async fn write(&self, command: &ClusterCommand, term: u64) -> Result<Offset, TopicError> {
        let now = self.inner().seams.clock.now();
        let record = (None, Some(command.encode().into()));
        let replied = own::write(&self.inner().metadata, &[record], term, now).await?;
        let lost = || AppendError::OutcomeUnknown {
            cause: "the broker stops before it is known whether it was decided".to_owned(),
        };
        let appended = self.answer(replied).await.ok_or_else(lost)?;
        let appended = appended.map_err(|e| self.inner().hinted(e))?;
        Ok(appended.base_offset)
    }

    /// Waits for a shard's answer, which needs other brokers: not for long once this one stops.
    async fn answer<T>(&self, replied: oneshot::Receiver<T>) -> Option<T> {
        let mut stopping = self.inner().stopping.subscribe();
        let gives_up = async {
            // Its sender lives in the broker, which is held here.
            drop(stopping.wait_for(|stopping| *stopping).await);
            tokio::time::sleep(STOP_WAIT_MAX).await;
        };
        tokio::select! {
            answer = replied => answer.ok(),
            () = gives_up => None,
        }
    }

    /// Carries out what is committed and was not yet.
    pub(crate) async fn fold(&self, folded: &mut Folded) -> Result<(), TopicError> {
        let reader = self.inner().metadata.reader();
        let end = reader.committed_offset();
        if folded.applied >= end {
            return Ok(());
        }
        // So that the next start knows of what is carried out from now on; one that nobody ever joins knows it by its log.
        if !self.inner().config.is_alone() {
            self.record_commit().await?;
        }
        let from = folded.applied.max(reader.log_start());
        let is_behind = from > folded.applied;
        let read = tokio::task::spawn_blocking(move || commands(&reader, from, end));
        let storage = |e: &dyn std::fmt::Display| TopicError::Storage(e.to_string());
        let read = read.await.map_err(|e| storage(&e))?;
        let read = read.map_err(|e| storage(&e))?;
        let touched = self.apply(folded, &read, is_behind)?;
        folded.applied = end;
        self.producer_ids_known();
        // Those that are gone first: one of the same name may take the place of their directories.
        let (there, gone): (Vec<_>, Vec<_>) = {
            let cluster = self.inner().cluster.read();
            let is_there = |id: &TopicId| cluster.topics().by_id(*id).is_some();
            touched.into_iter().partition(|(id, _)| is_there(id))
        };
        for (id, before) in gone.into_iter().chain(there) {
            self.reconcile(folded, id, before).await;
        }
        self.inner()
            .metadata_changed
            .send_modify(|count| *count += 1);
        Ok(())
    }

    /// Takes commands into the state, and says which topics they are about, and how these were before.
    /// With `is_behind` some commands before are gone, and a snapshot stands for them.
    fn apply(
        &self,
        folded: &mut Folded,
        commands: &[(Offset, ClusterCommand)],
        is_behind: bool,
    ) -> Result<Touched, TopicError> {
        for (offset, command) in commands {
            if let ClusterCommand::Snapshot { part: 0, .. } = command {
                folded.snapshot_at = *offset;
            }
        }
        let mut cluster = self.inner().cluster.write();
        let commands = commands.iter().map(|(_, command)| command);
        cluster.fold(commands, is_behind).map_err(|e| {
            tracing::error!(error = %e, "the metadata log makes no sense");
            TopicError::Storage(e.to_string())
        })
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

    /// Starts the thread that carries out what other brokers decide, where there are others.
    pub(crate) fn start_folding(&self) -> io::Result<()> {
        if self.inner().config.is_alone() {
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
            for id in std::mem::take(&mut folded.unmade) {
                broker.reconcile(&mut folded, id, None).await;
            }
            is_done &= folded.unmade.is_empty();
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

/// How long a change that is under way may hold up a stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(3);
/// After how long it is tried again to carry out what could not be.
const FOLD_PAUSE: Duration = Duration::from_secs(1);
