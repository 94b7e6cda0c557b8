//! Shards: a few threads, each the single writer of many logs.
//!
//! A shard takes turns. In a turn it takes all the commands that wait, up to a bound, writes the
//! appends of each partition with as few calls as possible, and asks the sync coordinator for one
//! sync of every log it wrote to. What arrives meanwhile is in the next turn: the busier the disk,
//! the more appends share a write and a sync.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tidelog_disk::{DirLock, DiskError, DiskOp};
use tidelog_log::state::GroupKey;
use tidelog_log::{
    Compacted, InstallError, Log, LogEnd, LogOptions, LogSync, Poisoned, SyncCoordinator,
    SyncTarget, TrimError,
};
use tidelog_record::{Offset, ProducedBatch, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::answers::{answer_taken, append_error, refuse, refuse_front};
use crate::append::{Acks, Appended};
use crate::error::AppendError;
use crate::metrics::Metrics;
use crate::partition::Partition;
use crate::removal::Remover;
use crate::retention::Due;
use crate::seams::Clock;
use crate::space::Space;

/// Commands that wait at most; bytes are bounded by the broker's budget before they get here.
const MAILBOX_LEN: usize = 4096;
/// Commands taken in one turn at most, so that the first of them does not wait for ever.
const TURN_LEN_MAX: usize = 1024;
/// Bytes of appends taken in one turn at most.
const TURN_BYTES_MAX: usize = 8 << 20;

/// Bytes of a log that may be written and not durable when more is answered before it is: then the
/// shard waits for the disk first. What power loss may take, and what whoever waits next has to wait
/// for.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;

/// One append on its way to a log.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) partition: Arc<Partition>,
    pub(crate) batch: ProducedBatch,
    pub(crate) acks: Acks,
    /// The timestamp all records get is the broker's.
    pub(crate) log_append_time: bool,
    /// Before `reply`, so that it is given back before whoever waits is told, even by a panic.
    pub(crate) room: Arc<OwnedSemaphorePermit>,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
    pub(crate) since: Instant,
}

/// What a shard is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    Append(Append),
    /// Take this log.
    Add(Box<Log>),
    /// Let go of a log, without closing it.
    Remove {
        key: GroupKey,
        reply: oneshot::Sender<()>,
    },
    Trim {
        key: GroupKey,
        to: Offset,
        end: Offset,
        reply: oneshot::Sender<Result<Offset, TrimError>>,
    },
    /// Apply retention to a partition's log.
    Retain {
        partition: Arc<Partition>,
        /// What time it is for retention.
        now: Timestamp,
        reply: oneshot::Sender<Result<Offset, TrimError>>,
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
    /// Close all logs and end the thread; answers with where each ends.
    Stop {
        reply: oneshot::Sender<Vec<(GroupKey, Result<LogEnd, Poisoned>)>>,
    },
}

impl Command {
    /// Whose log it is about, if it is one that the shard has.
    fn key(&self) -> Option<GroupKey> {
        match self {
            Self::Append(append) => Some(append.partition.key),
            Self::Retain { partition, .. } => Some(partition.key),
            Self::Remove { key, .. }
            | Self::Trim { key, .. }
            | Self::Install { key, .. }
            | Self::SetOptions { key, .. } => Some(*key),
            Self::Add(_) | Self::ExpireProducers { .. } | Self::Stop { .. } => None,
        }
    }
}

/// Where to send commands for a shard.
#[derive(Clone, Debug)]
pub(crate) struct ShardHandle {
    commands: mpsc::Sender<Command>,
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

    /// Whether the shard's thread is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }
}

/// What a shard takes its commands from.
pub(crate) type Mailbox = mpsc::Receiver<Command>;

/// The two ends of a shard's mailbox; the thread is started later, with its logs.
pub(crate) fn mailbox() -> (ShardHandle, Mailbox) {
    let (commands, mailbox) = mpsc::channel(MAILBOX_LEN);
    (ShardHandle { commands }, mailbox)
}

/// What all shards share.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) coordinator: SyncCoordinator,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) space: Space,
    pub(crate) remover: Remover,
    /// Held until the last log is let go of: a broker that is dropped without a stop must not be
    /// followed by another while this one still writes. After the coordinator, which may sync yet.
    pub(crate) lock: Arc<dyn DirLock>,
}

pub(crate) fn start(
    number: usize,
    mailbox: Mailbox,
    logs: HashMap<GroupKey, Log>,
    around: Surroundings,
) -> io::Result<JoinHandle<()>> {
    let Surroundings {
        coordinator,
        clock,
        metrics,
        space,
        remover,
        lock,
    } = around;
    let shard = Shard {
        commands: mailbox,
        logs,
        coordinator,
        clock,
        metrics,
        space,
        remover,
        _lock: lock,
    };
    std::thread::Builder::new()
        .name(format!("tidelog-shard-{number}"))
        .spawn(move || shard.run())
}

struct Shard {
    commands: Mailbox,
    logs: HashMap<GroupKey, Log>,
    coordinator: SyncCoordinator,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    space: Space,
    remover: Remover,
    _lock: Arc<dyn DirLock>,
}

/// The appends of one turn, by partition, in the order they came.
#[derive(Default)]
struct Turn {
    by_partition: Vec<(Arc<Partition>, Vec<Append>)>,
    places: HashMap<GroupKey, usize>,
    bytes: usize,
}

impl Turn {
    fn add(&mut self, append: Append) {
        self.bytes += append.batch.total_len();
        let place = *self.places.entry(append.partition.key).or_insert_with(|| {
            self.by_partition
                .push((append.partition.clone(), Vec::new()));
            self.by_partition.len() - 1
        });
        self.by_partition[place].1.push(append);
    }
}

impl Shard {
    fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            let mut turn = Turn::default();
            let mut next = Some(first);
            let mut taken = 0;
            while let Some(command) = next {
                taken += 1;
                match command {
                    Command::Append(append) => turn.add(append),
                    // Everything else keeps its place behind the appends sent before it.
                    Command::Stop { reply } => {
                        self.write(std::mem::take(&mut turn));
                        return self.stop(reply);
                    }
                    other => {
                        self.write(std::mem::take(&mut turn));
                        let key = other.key();
                        let act = AssertUnwindSafe(|| self.administer(other));
                        if catch_unwind(act).is_err()
                            && let Some(log) = key.and_then(|key| self.logs.get(&key))
                        {
                            give_up(&log.sync_handle());
                        }
                    }
                }
                let more = taken < TURN_LEN_MAX && turn.bytes < TURN_BYTES_MAX;
                next = if more {
                    self.commands.try_recv().ok()
                } else {
                    None
                };
            }
            self.write(turn);
        }
    }

    /// Writes the appends of a turn and asks for their syncs.
    fn write(&mut self, turn: Turn) {
        if turn.by_partition.is_empty() {
            return;
        }
        let space = self.space.check();
        let mut dirty: Vec<Arc<dyn SyncTarget>> = Vec::with_capacity(turn.by_partition.len());
        let mut somebody_waits = false;
        for (partition, appends) in turn.by_partition {
            if let Err(shortage) = &space
                && !partition.topic.is_internal()
            {
                for append in appends {
                    let len = append.batch.total_len() as u64;
                    refuse(append, &shortage.refusal_of(len));
                }
                continue;
            }
            // Answered without being durable: these do not wait in the budget of what is in flight.
            let is_answered_early = appends.iter().any(|append| append.acks != Acks::All);
            let write = AssertUnwindSafe(|| self.write_partition(&partition, appends));
            match catch_unwind(write) {
                Ok(false) => {}
                Ok(true) => {
                    if is_answered_early && partition.log().unsynced_bytes() > UNSYNCED_BYTES_MAX {
                        // A failure poisons the log, of which the round tells.
                        drop(partition.log().sync());
                    }
                    somebody_waits |= partition.has_waiters();
                    dirty.push(partition);
                }
                Err(_panic) => {
                    give_up(partition.log());
                    // The round finds the log poisoned, and answers whoever waits for it.
                    somebody_waits = true;
                    dirty.push(partition);
                }
            }
        }
        if somebody_waits {
            self.coordinator.sync(dirty);
        } else {
            self.coordinator.sync_behind(dirty);
        }
    }

    /// Says whether anything was written, and so has to be synced and answered.
    fn write_partition(&mut self, partition: &Arc<Partition>, appends: Vec<Append>) -> bool {
        let Some(log) = self.logs.get_mut(&partition.key) else {
            for append in appends {
                refuse(
                    append,
                    &AppendError::Lookup(crate::error::LookupError::TopicNotFound {
                        topic: partition.topic.to_string(),
                    }),
                );
            }
            return false;
        };
        let now = self.clock.now();
        partition.note_append(now);
        let mut batches = Vec::with_capacity(appends.len());
        let mut unanswered = VecDeque::with_capacity(appends.len());
        for mut append in appends {
            if append.log_append_time {
                append.batch.set_log_append_time(now);
            }
            batches.push(append.batch.clone());
            unanswered.push_back(append);
        }

        let mut stored = false;
        while !unanswered.is_empty() {
            let answered = batches.len() - unanswered.len();
            match log.append(&mut batches[answered..], now) {
                Ok(appended) => {
                    let taken = unanswered.drain(..appended.batches);
                    stored |= answer_taken(partition, taken, &appended, now, &self.metrics);
                }
                Err(e) => refuse_front(&mut unanswered, &append_error(partition, e)),
            }
        }
        // Not only when the log is dirty: a round that is under way may have made these appends
        // durable before they were among the waiters, and somebody must answer them.
        stored
    }

    fn administer(&mut self, command: Command) {
        match command {
            Command::Add(log) => {
                let identity = log.identity();
                let key = GroupKey {
                    topic_id: identity.topic_id,
                    partition: identity.partition,
                };
                self.logs.insert(key, *log);
            }
            Command::Remove { key, reply } => {
                self.logs.remove(&key);
                // Whoever asked may have given up waiting.
                let _gone = reply.send(());
            }
            Command::Trim {
                key,
                to,
                end,
                reply,
            } => {
                let result = match self.logs.get_mut(&key) {
                    Some(log) => {
                        let trimmed = log.trim(to, end);
                        self.remover.take(log.take_removed());
                        trimmed.map(|()| log.end().log_start)
                    }
                    // Deleted meanwhile: there is nothing left to be trimmed.
                    None => Ok(to),
                };
                drop(reply.send(result));
            }
            Command::Retain {
                partition,
                now,
                reply,
            } => {
                let result = match self.logs.get_mut(&partition.key) {
                    Some(log) => {
                        let retained = retain(log, &partition, now);
                        self.remover.take(log.take_removed());
                        retained
                    }
                    None => Ok(partition.reader.log_start()),
                };
                drop(reply.send(result));
            }
            Command::Install {
                key,
                compacted,
                reply,
            } => {
                let result = match self.logs.get_mut(&key) {
                    Some(log) => log.install(*compacted),
                    // Deleted meanwhile, files and all.
                    None => Err(InstallError::Outdated),
                };
                drop(reply.send(result));
            }
            Command::SetOptions { key, options } => {
                if let Some(log) = self.logs.get_mut(&key) {
                    log.set_options(options);
                }
            }
            Command::ExpireProducers { before, now } => {
                for log in self.logs.values_mut() {
                    log.expire_producers(before, now);
                }
            }
            Command::Append(_) | Command::Stop { .. } => unreachable!("handled by the turn"),
        }
    }

    fn stop(mut self, reply: oneshot::Sender<Vec<(GroupKey, Result<LogEnd, Poisoned>)>>) {
        // What was sent before the stop was written; what comes after is refused.
        self.commands.close();
        // Ends when those who are just sending have sent.
        while let Some(command) = self.commands.blocking_recv() {
            if let Command::Append(append) = command {
                refuse(append, &AppendError::Stopping);
            }
        }
        let ends = self
            .logs
            .drain()
            .map(|(key, log)| (key, log.close()))
            .collect();
        drop(reply.send(ends));
    }
}

/// Applies retention, on the thread that appends: whether a partition is idle is known only here.
fn retain(log: &mut Log, partition: &Partition, now: Timestamp) -> Result<Offset, TrimError> {
    let settings = partition.settings();
    let end = partition.high_watermark();
    let due = Due::of(partition, &settings, now, end);
    // What was written and is not yet durable belongs to somebody who waits for it.
    let is_expired = due.is_expired && end == log.end().offset;
    let to = if is_expired { end } else { due.start };
    // First the start, which needs no space: what lies below makes space for a new segment.
    log.trim(to.max(log.end().log_start), end)?;
    if let Some(age) = due.roll_at {
        log.roll_if_aged(now, if is_expired { 0 } else { age })?;
        log.trim(log.end().log_start, end)?;
    }
    Ok(log.end().log_start)
}

/// Stops a log whose writer panicked: nothing is known of what it holds in memory. The other logs
/// of the shard go on.
fn give_up(log: &LogSync) {
    let source = io::Error::other("the code that writes it panicked");
    let identity = log.identity();
    let name = format!("{}-{}", identity.topic_id, identity.partition.get());
    let cause = DiskError::new(DiskOp::Write, std::path::Path::new(&name), source);
    log.poison(&Poisoned {
        cause: Arc::new(cause),
    });
}
