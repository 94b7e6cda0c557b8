//! One partition of a broker: what readers, its shard and the sync coordinator share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use parking_lot::RwLock;
use tidelog_controller::TopicSettings;
use tidelog_log::state::GroupKey;
use tidelog_log::{LogEnd, LogReader, LogSync, Poisoned, SyncTarget};
use tidelog_record::{LeaderEpoch, Offset, Timestamp, TopicName};
use tokio::sync::watch;

use crate::mailbox::ShardHandle;

/// What readers wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything below is acknowledged and readable.
    pub(crate) high_watermark: Offset,
    /// Nothing more will come: the topic was deleted or the broker stops.
    pub(crate) closed: bool,
}

#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic: TopicName,
    pub(crate) key: GroupKey,
    leader_epoch: AtomicU32,
    log: RwLock<(LogReader, Arc<Target>)>,
    pub(crate) shard: ShardHandle,
    pub(crate) settings: RwLock<Arc<TopicSettings>>,
    pub(crate) progress: watch::Sender<Progress>,
    /// When something was last appended, by the broker's clock, or when the log was opened.
    last_append: AtomicI64,
}

impl Partition {
    pub(crate) fn new(
        topic: TopicName,
        key: GroupKey,
        log: &tidelog_log::Log,
        shard: ShardHandle,
        settings: Arc<TopicSettings>,
    ) -> Self {
        let reader = log.reader();
        let progress = Progress {
            high_watermark: reader.committed_offset(),
            closed: false,
        };
        Self {
            topic,
            key,
            leader_epoch: AtomicU32::new(log.end().epoch.get()),
            log: RwLock::new((reader, target(key, log, &shard))),
            shard,
            settings: RwLock::new(settings),
            progress: watch::Sender::new(progress),
            last_append: AtomicI64::new(i64::MAX),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.key.partition.get()
    }

    /// What reads the log.
    pub(crate) fn reader(&self) -> LogReader {
        self.log.read().0.clone()
    }

    /// What the sync coordinator syncs.
    pub(crate) fn sync_target(&self) -> Arc<dyn SyncTarget> {
        self.log.read().1.clone()
    }

    /// The copy of another replica's log has taken the place of the log. Called by the shard only.
    pub(crate) fn replace_log(&self, log: &tidelog_log::Log) {
        *self.log.write() = (log.reader(), target(self.key, log, &self.shard));
    }

    /// The leader epoch that is known here.
    pub(crate) fn leader_epoch(&self) -> LeaderEpoch {
        let epoch = self.leader_epoch.load(Ordering::Acquire);
        LeaderEpoch::new(epoch).expect("only epochs are stored")
    }

    /// Takes note of another leader epoch. Called by the shard only.
    pub(crate) fn set_leader_epoch(&self, epoch: LeaderEpoch) {
        self.leader_epoch.store(epoch.get(), Ordering::Release);
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

    /// Wakes everybody who waits for more; there will be none.
    pub(crate) fn close(&self) {
        self.progress
            .send_if_modified(|progress| !std::mem::replace(&mut progress.closed, true));
    }

    /// Why appends are refused, if they are.
    pub(crate) fn fault(&self) -> Option<String> {
        let poisoned = self
            .reader()
            .poisoned()
            .map(|poisoned| poisoned.to_string());
        poisoned.or_else(|| {
            let abandoned = self.shard.is_gone() && !self.is_closed();
            abandoned.then(|| "the thread that writes it has ended".to_owned())
        })
    }

    /// Everything below `to` is committed. Called by the shard only.
    pub(crate) fn raise_high_watermark(&self, to: Offset) {
        self.progress.send_if_modified(|progress| {
            let raised = to > progress.high_watermark;
            progress.high_watermark = progress.high_watermark.max(to);
            raised
        });
    }
}

fn target(key: GroupKey, log: &tidelog_log::Log, shard: &ShardHandle) -> Arc<Target> {
    Arc::new(Target {
        key,
        sync: log.sync_handle(),
        shard: shard.clone(),
    })
}

/// A log, as the sync coordinator has it.
#[derive(Debug)]
struct Target {
    key: GroupKey,
    sync: LogSync,
    shard: ShardHandle,
}

impl SyncTarget for Target {
    fn log(&self) -> &LogSync {
        &self.sync
    }

    fn synced(&self, _result: &Result<LogEnd, Poisoned>) {
        // How it went, the log knows: its group finds out in its next turn.
        self.shard.note_synced(self.key);
    }
}
