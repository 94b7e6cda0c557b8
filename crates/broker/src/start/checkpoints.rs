//! What the sync coordinator tells the state file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidelog_log::state::{GroupKey, StateFile, StateRecord};
use tidelog_log::{LogEnd, Poisoned, RoundObserver, SyncTarget};

use crate::metrics::Metrics;

/// Records the durable ends of each sync round in the state file.
#[derive(Debug)]
pub(super) struct Checkpoints {
    state: Arc<StateFile>,
    metrics: Arc<Metrics>,
    last_sync: Mutex<Instant>,
}

/// How old checkpoints in the state file get before they are made to survive power loss.
const CHECKPOINT_SYNC_INTERVAL: Duration = Duration::from_secs(1);

impl Checkpoints {
    pub(super) fn new(state: Arc<StateFile>, metrics: Arc<Metrics>) -> Self {
        Self {
            state,
            metrics,
            last_sync: Mutex::new(now()),
        }
    }
}

impl RoundObserver for Checkpoints {
    fn record(&self, ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned> {
        let record = |(target, end): &(Arc<dyn SyncTarget>, LogEnd)| {
            let identity = target.log().identity();
            let (topic_id, partition) = (identity.topic_id, identity.partition);
            StateRecord::Checkpoint(
                GroupKey {
                    topic_id,
                    partition,
                },
                *end,
            )
        };
        // Mostly it is one, which needs no list.
        if let [end] = ends {
            return self.state.record(&[record(end)], false);
        }
        let records: Vec<StateRecord> = ends.iter().map(record).collect();
        self.state.record(&records, false)
    }

    fn finished(&self, logs: usize, took: Duration) {
        Metrics::observe(&self.metrics.sync_seconds, took);
        #[allow(clippy::cast_precision_loss, reason = "a count of logs")]
        self.metrics.sync_logs.observe(logs as f64);
        let mut last = self.last_sync.lock();
        if last.elapsed() >= CHECKPOINT_SYNC_INTERVAL {
            // A failure poisons the state file, and with it the next round.
            if let Err(e) = self.state.sync() {
                tracing::error!(error = %e, "checkpoints cannot be kept");
            }
            *last = now();
        }
    }
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "paces a background sync, decides nothing"
    )]
    Instant::now()
}
