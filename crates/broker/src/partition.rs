//! One partition of a broker: what readers, its shard and the sync coordinator share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use parking_lot::RwLock;
use tidelog_controller::TopicSettings;
use tidelog_log::state::GroupKey;
use tidelog_log::{LogEnd, LogReader, LogSync, Poisoned, SyncTarget};
use tidelog_record::{LeaderEpoch, Offset, Timestamp, TopicName};
use tidelog_replica::{Group, ReplicaId};
use tokio::sync::watch;

use crate::mailbox::ShardHandle;

/// What readers wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything below is acknowledged and readable.
    pub(crate) high_watermark: Offset,
    /// Nothing more will come: the topic was deleted or the broker stops.
    pub(crate) closed: bool,
    /// The replica here leads.
    pub(crate) leads: bool,
}

#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic: TopicName,
    pub(crate) key: GroupKey,
    /// The replica here.
    pub(crate) replica: ReplicaId,
    leader_epoch: AtomicU32,
    /// The replica that leads, as far as is known here; 0 when none is known to.
    leader: AtomicU64,
    /// Whether there are other replicas.
    has_others: AtomicBool,
    /// The replica here is not needed any more: the partition is elsewhere.
    is_moved: AtomicBool,
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
        group: &Group,
        shard: ShardHandle,
        settings: Arc<TopicSettings>,
    ) -> Self {
        let log = group.log();
        let reader = log.reader();
        let progress = Progress {
            high_watermark: reader.committed_offset(),
            closed: false,
            leads: false,
        };
        Self {
            topic,
            key,
            replica: group.id(),
            leader: AtomicU64::new(0),
            is_moved: AtomicBool::new(false),
            has_others: AtomicBool::new(group.has_others() || !group.is_sole_voter()),
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

    /// The replica that leads, if that is known here.
    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        Some(self.leader.load(Ordering::Acquire)).filter(|leader| *leader != 0)
    }

    /// Takes note of another leadership. Called by the shard only.
    pub(crate) fn set_leader(&self, epoch: LeaderEpoch, leader: Option<ReplicaId>) {
        self.leader_epoch.store(epoch.get(), Ordering::Release);
        self.leader.store(leader.unwrap_or(0), Ordering::Release);
        let leads = leader == Some(self.replica);
        self.progress
            .send_if_modified(|progress| std::mem::replace(&mut progress.leads, leads) != leads);
    }

    /// Whether the replica here leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.progress.borrow().leads
    }

    /// Whether there are other replicas, so that another one may lead.
    pub(crate) fn has_others(&self) -> bool {
        self.has_others.load(Ordering::Acquire)
    }

    /// Takes note of who is in the group. Called by the shard only.
    pub(crate) fn set_has_others(&self, has_others: bool) {
        self.has_others.store(has_others, Ordering::Release);
    }

    /// Whether requests for the leader are answered here: it leads, or nobody else could.
    pub(crate) fn answers_for_leader(&self) -> bool {
        self.leads() || !self.has_others()
    }

    /// The replica here is about to be removed, and the partition stays.
    pub(crate) fn note_moved(&self) {
        self.is_moved.store(true, Ordering::Release);
    }

    /// Whether it was removed while the partition stays.
    pub(crate) fn is_moved(&self) -> bool {
        self.is_moved.load(Ordering::Acquire)
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
