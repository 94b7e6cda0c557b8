//! One partition of a broker: what readers, its shard and the sync coordinator share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tidelog_controller::TopicSettings;
use tidelog_log::state::GroupKey;
use tidelog_log::{LogEnd, LogReader, LogSync, Poisoned, SyncTarget};
use tidelog_record::{LeaderEpoch, Offset, Timestamp, TopicName};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::append::Appended;
use crate::error::AppendError;
use crate::metrics::Metrics;
use crate::shard::ShardHandle;

/// What readers wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything below is acknowledged and readable.
    pub(crate) high_watermark: Offset,
    /// Nothing more will come: the topic was deleted or the broker stops.
    pub(crate) closed: bool,
}

/// An append that was written and waits to be durable.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) end: Offset,
    pub(crate) appended: Appended,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
    pub(crate) since: Instant,
    /// The request's bytes of the broker's budget, given back before the answer: whoever is
    /// answered finds room for the next request.
    pub(crate) room: Arc<OwnedSemaphorePermit>,
}

#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic: TopicName,
    pub(crate) key: GroupKey,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) reader: LogReader,
    pub(crate) shard: ShardHandle,
    pub(crate) settings: RwLock<Arc<TopicSettings>>,
    pub(crate) progress: watch::Sender<Progress>,
    /// When something was last appended, by the broker's clock, or when the log was opened.
    last_append: AtomicI64,
    sync: LogSync,
    /// In the order of their offsets.
    waiters: Mutex<VecDeque<Waiter>>,
    metrics: Arc<Metrics>,
}

impl Partition {
    pub(crate) fn new(
        topic: TopicName,
        key: GroupKey,
        leader_epoch: LeaderEpoch,
        log: &tidelog_log::Log,
        shard: ShardHandle,
        settings: Arc<TopicSettings>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let reader = log.reader();
        let progress = Progress {
            high_watermark: reader.durable_offset(),
            closed: false,
        };
        Self {
            topic,
            key,
            leader_epoch,
            reader,
            shard,
            settings: RwLock::new(settings),
            progress: watch::Sender::new(progress),
            last_append: AtomicI64::new(i64::MAX),
            sync: log.sync_handle(),
            waiters: Mutex::default(),
            metrics,
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.key.partition.get()
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        self.progress.borrow().high_watermark
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.progress.borrow().closed
    }

    /// Something is appended now. Called by the shard only, and when the log was opened.
    pub(crate) fn note_append(&self, now: Timestamp) {
        self.last_append.store(now.millis(), Ordering::Relaxed);
    }

    /// Whether nothing was appended for longer than this.
    pub(crate) fn is_idle_for(&self, limit_ms: u64, now: Timestamp) -> bool {
        let last = self.last_append.load(Ordering::Relaxed);
        u64::try_from(now.millis().saturating_sub(last)).is_ok_and(|idle| idle > limit_ms)
    }

    pub(crate) fn settings(&self) -> Arc<TopicSettings> {
        self.settings.read().clone()
    }

    /// Puts an append among those that wait for the next sync. Called by the shard only, in the
    /// order of the offsets, and before it asks for that sync.
    pub(crate) fn wait(&self, waiter: Waiter) {
        self.waiters.lock().push_back(waiter);
    }

    /// Whether appends wait for the next sync.
    pub(crate) fn has_waiters(&self) -> bool {
        !self.waiters.lock().is_empty()
    }

    /// Wakes everybody who waits for more; there will be none.
    pub(crate) fn close(&self) {
        self.progress
            .send_if_modified(|progress| !std::mem::replace(&mut progress.closed, true));
    }

    /// Why appends are refused, if they are.
    pub(crate) fn fault(&self) -> Option<String> {
        let poisoned = self.reader.poisoned().map(|poisoned| poisoned.to_string());
        poisoned.or_else(|| {
            let abandoned = self.shard.is_gone() && !self.is_closed();
            abandoned.then(|| "the thread that writes it has ended".to_owned())
        })
    }

    fn raise_high_watermark(&self, to: Offset) {
        self.progress.send_if_modified(|progress| {
            let raised = to > progress.high_watermark;
            progress.high_watermark = progress.high_watermark.max(to);
            raised
        });
    }
}

impl SyncTarget for Partition {
    fn log(&self) -> &LogSync {
        &self.sync
    }

    fn synced(&self, result: &Result<LogEnd, Poisoned>) {
        match result {
            Ok(end) => {
                // Readable first, so that whoever is answered can read what it wrote.
                self.raise_high_watermark(end.offset);
                let mut done = Vec::new();
                {
                    let mut waiters = self.waiters.lock();
                    while waiters
                        .front()
                        .is_some_and(|waiter| waiter.end <= end.offset)
                    {
                        done.extend(waiters.pop_front());
                    }
                }
                for waiter in done {
                    Metrics::observe(&self.metrics.append_seconds, waiter.since.elapsed());
                    drop(waiter.room);
                    // Nobody may be listening any more: the records are stored all the same.
                    drop(waiter.reply.send(Ok(waiter.appended)));
                }
            }
            Err(poisoned) => {
                let waiters = std::mem::take(&mut *self.waiters.lock());
                for waiter in waiters {
                    let cause = poisoned.to_string();
                    drop(waiter.room);
                    drop(
                        waiter
                            .reply
                            .send(Err(AppendError::OutcomeUnknown { cause })),
                    );
                }
            }
        }
    }
}
