//! Stopping so that the next start has nothing to recover.

use std::time::Duration;

use thiserror::Error;
use tidelog_log::Poisoned;
use tidelog_log::state::StateRecord;
use tidelog_replica::GroupError;
use tokio::sync::oneshot;

use crate::mailbox::Command;
use crate::{Broker, Slot};

/// Why a stop was not clean. What was acknowledged is safe all the same: the next start recovers.
#[derive(Clone, Debug, Error)]
pub enum StopError {
    /// A log could not be closed.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// A replica had failed.
    #[error(transparent)]
    Failed(#[from] GroupError),
    /// A thread had ended before it was told to.
    #[error("a thread that writes logs ended before the stop")]
    ThreadEnded,
}

/// How long a stop waits for other brokers to take over what is led here.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);
/// How often it is looked at what is left.
const HAND_OVER_LOOK: Duration = Duration::from_millis(20);

impl Broker {
    /// Refuses new work, finishes what was submitted, closes every log and marks the directory as
    /// cleanly stopped. Later calls wait for the first one, whether that still waits or not.
    ///
    /// # Errors
    /// [`StopError`]: the next start will recover.
    pub async fn stop(&self) -> Result<(), StopError> {
        if !self.inner.stopping.send_replace(true) {
            let broker = self.clone();
            tokio::spawn(async move {
                let stopping = broker.clone();
                let stop = tokio::spawn(async move { stopping.stop_now().await });
                let result = stop.await.unwrap_or(Err(StopError::ThreadEnded));
                broker.inner.stopped.send_replace(Some(result));
            });
        }
        let mut stopped = self.inner.stopped.subscribe();
        let result = stopped.wait_for(Option::is_some).await;
        // The sender lives in the broker, which is held here.
        result
            .ok()
            .and_then(|result| result.clone())
            .unwrap_or(Err(StopError::ThreadEnded))
    }

    /// Hands over the leaderships of all partitions that other brokers can lead, so that nobody has to
    /// notice that this one is gone. Takes a few seconds at most; clients are answered meanwhile.
    pub async fn hand_over_leaderships(&self) {
        self.inner.asked.leave();
        let all = async {
            loop {
                let mut left = 0;
                for shard in &self.inner.shards {
                    let (reply, replied) = oneshot::channel();
                    if shard.send(Command::HandOver { reply }).await.is_ok() {
                        left += replied.await.unwrap_or(0);
                    }
                }
                if left == 0 {
                    return;
                }
                tokio::time::sleep(HAND_OVER_LOOK).await;
            }
        };
        // What is led here still then, others take over when they notice.
        drop(tokio::time::timeout(HAND_OVER_MAX, all).await);
    }

    async fn stop_now(&self) -> Result<(), StopError> {
        // A change of topics that is under way ends first; none begins after.
        let _folded = self.inner.metadata_folded.lock().await;
        self.close_partitions();
        let mut closings = Vec::new();
        let mut failed = None;
        for shard in &self.inner.shards {
            let (reply, replied) = oneshot::channel();
            match shard.send(Command::Stop { reply }).await {
                Ok(()) => closings.push(replied),
                // The other shards close their logs all the same.
                Err(_) => failed = Some(StopError::ThreadEnded),
            }
        }
        let mut records = Vec::new();
        for closing in closings {
            let Ok(closed) = closing.await else {
                failed = Some(StopError::ThreadEnded);
                continue;
            };
            for (key, result) in closed {
                match result {
                    Ok(state) => {
                        records.push(StateRecord::Group(key, state));
                        let end = state.checkpoint;
                        records.extend(end.map(|end| StateRecord::Checkpoint(key, end)));
                    }
                    Err(e) => failed = Some(e.into()),
                }
            }
        }
        // A log that could not be opened was not closed either: its checkpoint may be an old one.
        if failed.is_none() && !self.has_unopened() {
            records.push(StateRecord::Clean);
        }
        let state = self.inner.state.clone();
        let recorded = tokio::task::spawn_blocking(move || state.record(&records, true)).await;
        recorded.map_err(|_| StopError::ThreadEnded)??;
        let threads = std::mem::take(&mut *self.inner.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().all(|thread| thread.join().is_ok())
        });
        if !joined.await.unwrap_or(false) {
            return Err(StopError::ThreadEnded);
        }
        failed.map_or(Ok(()), Err)
    }

    fn has_unopened(&self) -> bool {
        let routes = self.inner.routes.read();
        let mut slots = routes.values().flat_map(|route| &route.slots);
        slots.any(|slot| matches!(slot, Slot::Faulted(_) | Slot::Unmade(_)))
    }

    /// Wakes all who wait for records.
    fn close_partitions(&self) {
        self.inner.metadata.close();
        for route in self.inner.routes.read().values() {
            for slot in &route.slots {
                if let Slot::Serving(partition) = slot {
                    partition.close();
                }
            }
        }
    }
}
