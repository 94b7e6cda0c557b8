//! What shards are told to do, and where to tell them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tidelog_controller::{Order, PartitionKey, Report};
use tidelog_log::catch_up::{CatchUpSource, SourceError};
use tidelog_log::state::{GroupKey, GroupState};
use tidelog_log::{Compacted, InstallError, LogOptions};
use tidelog_record::{Offset, ProducedBatch, Timestamp};
use tidelog_replica::catch_up::{CatchUpLetter, PullTarget, Pulled};
use tidelog_replica::{
    Group, GroupError, NodeId, Position, Received, Recovery, Refusal, StateStore,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use crate::act::group_key;
use crate::append::{Acks, Appended};
use crate::error::{AppendError, DeleteError};
use crate::partition::Partition;
use crate::shard::Known;

/// Commands that wait at most. The bytes of appends are bounded by the broker's budget before they get here, and those
/// of messages by what leaders have on their way: 2 MiB a partition, or eight batches where these are larger.
const MAILBOX_LEN: usize = 4096;
/// One append on its way to a log.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) partition: Arc<Partition>,
    pub(crate) batch: ProducedBatch,
    pub(crate) acks: Acks,
    /// The timestamp all records get is the broker's.
    pub(crate) log_append_time: bool,
    /// Only if the leader leads in this term still.
    pub(crate) term: Option<u64>,
    /// Before `reply`, so that it is given back before whoever waits is told, even by a panic.
    pub(crate) room: Arc<OwnedSemaphorePermit>,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
    pub(crate) since: Instant,
}

/// A partition for a shard: its replica, which was opened and recorded.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) partition: Arc<Partition>,
    pub(crate) group: Group,
    pub(crate) store: StateStore,
    pub(crate) incarnation: u32,
    /// It is new everywhere, and this is the replica that is to lead.
    pub(crate) leads_first: bool,
}

/// What a shard is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    Append(Append),
    /// Take this partition; answered once it serves, or cannot by itself.
    Add {
        opened: Box<Opened>,
        reply: oneshot::Sender<()>,
    },
    /// Let go of a log, without closing it.
    Remove {
        key: GroupKey,
        reply: oneshot::Sender<()>,
    },
    Trim {
        partition: Arc<Partition>,
        to: Offset,
        end: Offset,
        reply: oneshot::Sender<Result<Offset, DeleteError>>,
    },
    /// Apply retention to a partition's log.
    Retain {
        partition: Arc<Partition>,
        /// What time it is for retention.
        now: Timestamp,
        reply: oneshot::Sender<Result<Offset, DeleteError>>,
    },
    /// Put a compacted segment into its place.
    Install {
        key: GroupKey,
        compacted: Box<Compacted>,
        reply: oneshot::Sender<Result<(), InstallError>>,
    },
    SetOptions {
        key: GroupKey,
        options: LogOptions,
    },
    /// Forget the producers of all logs that were last heard of before this.
    ExpireProducers {
        before: Timestamp,
        now: Timestamp,
    },
    /// Messages of other brokers' replicas.
    Received(Vec<Received>),
    /// What was sent to a broker lately may not have arrived.
    Unreachable(NodeId),
    /// A broker can be reached, for the first time or again.
    Reachable(NodeId),
    /// A leader has told that a replica here lacks entries: what is to be copied.
    TargetOf {
        letter: CatchUpLetter,
        reply: std::sync::mpsc::SyncSender<Option<PullTarget>>,
    },
    /// What another broker's replica is to copy of a log.
    SourceOf {
        letter: CatchUpLetter,
        reply: std::sync::mpsc::SyncSender<Option<Result<CatchUpSource, SourceError>>>,
    },
    /// Put a copy into the place of a log; says whether it was taken.
    Adopt {
        pulled: Box<Pulled>,
        reply: std::sync::mpsc::SyncSender<bool>,
    },
    /// Up to where a log is committed, by what its leader surely knows.
    ReadIndex {
        key: GroupKey,
        reply: oneshot::Sender<Result<Known, Refusal>>,
    },
    /// What is to be told of the partitions that are led here.
    Reports {
        reply: oneshot::Sender<Vec<(PartitionKey, Report)>>,
    },
    /// Hand over all leaderships that others can take; says how many are left here.
    HandOver {
        reply: oneshot::Sender<usize>,
    },
    /// What the controller asks the leader of a partition for.
    Act(Order),
    /// Record, durably, how far a log is committed; says whether that is so.
    RecordCommit {
        key: GroupKey,
        reply: oneshot::Sender<bool>,
    },
    /// Go on with a group of which a majority is lost, in this incarnation: see [`Recovery`].
    Recover {
        key: GroupKey,
        incarnation: u32,
        how: Recovery,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// How far the replicas here are.
    Positions {
        reply: oneshot::Sender<Vec<Position>>,
    },
    /// A sync has ended.
    Wake,
    /// Time has passed.
    Tick,
    /// Close all logs and end the thread; answers with what is to be recorded of each group.
    Stop {
        reply: oneshot::Sender<Vec<(GroupKey, Result<GroupState, GroupError>)>>,
    },
}

impl Command {
    /// Whose log it is about, if it is one that the shard has.
    pub(crate) fn key(&self) -> Option<GroupKey> {
        match self {
            Self::Append(Append { partition, .. })
            | Self::Trim { partition, .. }
            | Self::Retain { partition, .. } => Some(partition.key),
            Self::Remove { key, .. } | Self::Install { key, .. } | Self::SetOptions { key, .. } => {
                Some(*key)
            }
            Self::TargetOf { letter, .. } | Self::SourceOf { letter, .. } => Some(letter.key),
            Self::Adopt { pulled, .. } => Some(pulled.key),
            Self::ReadIndex { key, .. }
            | Self::RecordCommit { key, .. }
            | Self::Recover { key, .. } => Some(*key),
            Self::Act(order) => Some(group_key(order.key)),
            Self::Reports { .. }
            | Self::Positions { .. }
            | Self::HandOver { .. }
            | Self::Add { .. }
            | Self::Received(_)
            | Self::Unreachable(_)
            | Self::Reachable(_)
            | Self::ExpireProducers { .. }
            | Self::Wake
            | Self::Tick
            | Self::Stop { .. } => None,
        }
    }
}

/// Where to send commands for a shard.
#[derive(Clone, Debug)]
pub(crate) struct ShardHandle {
    commands: mpsc::Sender<Command>,
    /// Groups whose logs were synced since the shard looked last: each at most once a round.
    pub(crate) synced: Arc<Mutex<Vec<GroupKey>>>,
    pub(crate) needs_ticks: Arc<AtomicBool>,
    /// Wakes the ticker, which sleeps while no shard wants to know of time.
    pub(crate) wants_ticks: Arc<Notify>,
}

/// The shard's thread is gone: it was stopped, or it panicked.
#[derive(Debug)]
pub(crate) struct ShardGone;

impl ShardHandle {
    /// Waits for room in the mailbox.
    pub(crate) async fn send(&self, command: Command) -> Result<(), ShardGone> {
        self.commands.send(command).await.map_err(|_| ShardGone)
    }

    /// As [`ShardHandle::send`], on a thread that may block.
    pub(crate) fn blocking_send(&self, command: Command) -> Result<(), ShardGone> {
        self.commands.blocking_send(command).map_err(|_| ShardGone)
    }

    /// Asks for something that is asked for again when it is lost. Never waits.
    pub(crate) fn try_send(&self, command: Command) {
        // With a full mailbox it is lost.
        drop(self.commands.try_send(command));
    }

    /// Hands over what came of other brokers. Never waits: without room for it, it comes back.
    pub(crate) fn try_receive(
        &self,
        received: Vec<Received>,
    ) -> Result<(), TrySendError<Vec<Received>>> {
        let sent = self.commands.try_send(Command::Received(received));
        sent.map_err(|e| match e {
            TrySendError::Full(Command::Received(received)) => TrySendError::Full(received),
            _ => TrySendError::Closed(Vec::new()),
        })
    }

    /// Whether the shard's thread is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    /// A round that synced the log of a group has ended. Never waits.
    pub(crate) fn note_synced(&self, key: GroupKey) {
        let mut synced = self.synced.lock();
        synced.push(key);
        if synced.len() == 1 {
            // A full mailbox keeps the shard awake, and it looks each turn.
            drop(self.commands.try_send(Command::Wake));
        }
    }

    /// What was sent to a broker lately may not have arrived. Never waits.
    pub(crate) fn unreachable(&self, node: NodeId) {
        // With a full mailbox the heartbeats tell it in time.
        drop(self.commands.try_send(Command::Unreachable(node)));
    }

    /// A broker can be reached, for the first time or again. Never waits.
    pub(crate) fn reachable(&self, node: NodeId) {
        // With a full mailbox the next heartbeats do it.
        drop(self.commands.try_send(Command::Reachable(node)));
    }

    /// Tells the shard that time has passed, if it wants to know; says whether it does.
    pub(crate) fn tick(&self) -> bool {
        let wants = self.needs_ticks.load(Ordering::Acquire);
        if wants {
            // With a full mailbox time stands still for a moment.
            drop(self.commands.try_send(Command::Tick));
        }
        wants
    }
}

/// What a shard takes its commands from.
pub(crate) type Mailbox = mpsc::Receiver<Command>;

/// The two ends of a shard's mailbox; the thread is started later, with its logs.
pub(crate) fn mailbox(wants_ticks: &Arc<Notify>) -> (ShardHandle, Mailbox) {
    let (commands, mailbox) = mpsc::channel(MAILBOX_LEN);
    let handle = ShardHandle {
        commands,
        synced: Arc::default(),
        needs_ticks: Arc::default(),
        wants_ticks: wants_ticks.clone(),
    };
    (handle, mailbox)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_comes_back() {
        let (handle, mailbox) = mailbox(&Arc::default());
        handle.try_receive(Vec::new()).unwrap();
        for _ in 1..MAILBOX_LEN {
            handle.try_send(Command::Wake);
        }
        let key = GroupKey {
            topic_id: tidelog_record::TopicId::from_bytes([1; 16]),
            partition: tidelog_record::PartitionId::new(2),
        };
        let received = Received {
            key,
            incarnation: 1,
            message: tidelog_replica::eraftpb::Message::default(),
            payloads: Vec::new(),
            receipt: false,
        };
        let refused = handle.try_receive(vec![received]);
        let Err(TrySendError::Full(back)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((back.len(), back[0].key), (1, key));
        drop(mailbox);
        // Whoever is gone has no replicas any more.
        let refused = handle.try_receive(back);
        assert!(
            matches!(refused, Err(TrySendError::Closed(_))),
            "{refused:?}"
        );
    }
}
