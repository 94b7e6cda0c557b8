//! Shards: a few threads, each of which runs the groups of many partitions and is the single writer of
//! their logs.
//!
//! A thread takes turns. In a turn it takes all the commands that wait, up to a bound, and has its
//! [`tidelog_replica::Shard`] do what they ask for: the appends of each partition go in with as few
//! writes as possible. Then it answers those whose records are committed by now, sends what others are to have,
//! and asks the sync coordinator for one sync of every log that was written to. What arrives meanwhile is in the
//! next turn: the busier the disk, the more appends share a write and a sync.

mod effects;

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tidelog_controller::{PartitionKey, Report};
use tidelog_disk::{DirLock, Disk};
use tidelog_log::state::{GroupKey, GroupState, StateFile};
use tidelog_log::{InstallError, SyncCoordinator};
use tidelog_record::{Offset, Timestamp};
use tidelog_replica::{GroupError, Proposal, Shard as Groups, Until};
use tokio::sync::{Notify, oneshot};

use crate::act::{self, group_key, partition_key, report_of};
use crate::append::Acks;
use crate::error::{AppendError, DeleteError};
use crate::mailbox::{Append, Command, Mailbox, Opened, ShardHandle};
use crate::metrics::Metrics;
use crate::partition::Partition;
use crate::removal::Remover;
use crate::retention::Due;
use crate::seams::{Clock, Peers};
use crate::space::Space;
use crate::waiters::{AppendWaiter, Waiter, log_error};

/// Commands taken in one turn at most, so that the first of them does not wait for ever.
const TURN_LEN_MAX: usize = 1024;
/// Bytes of appends taken in one turn at most.
const TURN_BYTES_MAX: usize = 8 << 20;

/// For how many ticks a new group may lack the others that were made with it.
const BEGINNING_TICKS: u32 = 100;

/// What a leader surely knows of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// The term it leads in. Everything up to the present high watermark is committed.
    pub(crate) term: u64,
}

/// What all shards share.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) coordinator: SyncCoordinator,
    pub(crate) state: Arc<StateFile>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) space: Space,
    pub(crate) remover: Remover,
    /// Told when another replica leads some partition.
    pub(crate) leaders_changed: Arc<Notify>,
    /// Held until the last log is let go of: a broker that is dropped without a stop must not be
    /// followed by another while this one still writes. After the coordinator, which may sync yet.
    pub(crate) _lock: Arc<dyn DirLock>,
}

/// Starts the thread. `started` is told when all of `opened` serve, or cannot by themselves.
pub(crate) fn start(
    number: usize,
    (handle, mailbox): (&ShardHandle, Mailbox),
    opened: Vec<Opened>,
    around: Surroundings,
    started: std::sync::mpsc::SyncSender<()>,
) -> io::Result<JoinHandle<()>> {
    let mut shard = Shard {
        commands: mailbox,
        synced: handle.synced.clone(),
        needs_ticks: handle.needs_ticks.clone(),
        wants_ticks: handle.wants_ticks.clone(),
        groups: Groups::default(),
        partitions: HashMap::new(),
        adding: Vec::new(),
        beginning: HashMap::new(),
        started: Some(started),
        bytes_taken: 0,
        has_space: false,
        around,
    };
    std::thread::Builder::new()
        .name(format!("tidelog-shard-{number}"))
        .spawn(move || {
            for one in opened {
                shard.add(one);
            }
            shard.run();
        })
}

struct Shard {
    commands: Mailbox,
    synced: Arc<Mutex<Vec<GroupKey>>>,
    needs_ticks: Arc<AtomicBool>,
    wants_ticks: Arc<Notify>,
    groups: Groups<Waiter>,
    /// Not held: the way to this thread is through them, and it ends when there is none any more.
    partitions: HashMap<GroupKey, Weak<Partition>>,
    /// Partitions that somebody waits for until they serve.
    adding: Vec<(GroupKey, oneshot::Sender<()>)>,
    /// New groups in which the replica here is to lead, and for how many ticks more it stands for election
    /// again and again: not all others may be there yet.
    beginning: HashMap<GroupKey, u32>,
    started: Option<std::sync::mpsc::SyncSender<()>>,
    /// Bytes of appends taken since the last turn.
    bytes_taken: usize,
    /// Whether there was space for what clients write when the first of them came since the last turn.
    has_space: bool,
    around: Surroundings,
}

impl Shard {
    fn run(mut self) {
        self.turns();
        while let Some(first) = self.commands.blocking_recv() {
            let mut next = Some(first);
            let mut taken = 0;
            while let Some(command) = next {
                if let Command::Stop { reply } = command {
                    return self.stop(reply);
                }
                let key = command.key();
                let take = AssertUnwindSafe(|| self.take(command));
                if catch_unwind(take).is_err()
                    && let Some(key) = key
                {
                    let what = "the code that does what it was asked for panicked".to_owned();
                    self.groups.fail(key, GroupError::Invariant(what));
                }
                taken += 1;
                let more = taken < TURN_LEN_MAX && self.bytes_taken < TURN_BYTES_MAX;
                next = if more {
                    self.commands.try_recv().ok()
                } else {
                    None
                };
            }
            self.turns();
        }
    }

    fn add(&mut self, opened: Opened) {
        let Opened {
            partition,
            group,
            store,
            incarnation,
            leads_first,
        } = opened;
        let key = partition.key;
        self.partitions.insert(key, Arc::downgrade(&partition));
        self.groups.add(key, incarnation, group, store);
        if leads_first {
            self.beginning.insert(key, BEGINNING_TICKS);
            self.groups.with(key, tidelog_replica::Group::campaign);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Append(append) => self.append(append),
            Command::Add { opened, reply } => {
                let key = opened.partition.key;
                self.add(*opened);
                self.adding.push((key, reply));
            }
            Command::Wake => {}
            Command::Tick => {
                self.groups.tick();
                self.begin();
            }
            Command::Reports { reply } => {
                // Whoever asked may have given up waiting.
                let _gone = reply.send(self.reports());
            }
            Command::Positions { reply } => {
                // Whoever asked may have given up waiting.
                let _gone = reply.send(self.groups.positions());
            }
            Command::Recover {
                key,
                incarnation,
                how,
                reply,
            } => {
                let waiter = Waiter::Recover { reply };
                self.groups.recover(key, incarnation, how, waiter);
            }
            Command::HandOver { reply } => {
                // Whoever asked may have given up waiting.
                let _gone = reply.send(self.groups.hand_over());
            }
            Command::Act(order) => {
                let key = group_key(order.key);
                let acted = self.groups.with(key, |group| act::carry_out(&order, group));
                if let Some(Err(e)) = acted {
                    tracing::debug!(?order, error = %e, "an order is not carried out");
                }
            }
            Command::Received(received) => {
                let now = self.around.clock.now();
                for one in received {
                    if let Err(e) = self.groups.receive(one, now) {
                        tracing::debug!(error = %e, "a message of another replica is not taken");
                    }
                }
            }
            Command::Unreachable(node) => self.groups.unreachable(node),
            Command::Reachable(node) => self.groups.reachable(node),
            Command::ReadIndex { key, reply } => {
                self.groups.read_index(key, Waiter::ReadIndex { reply });
            }
            // Everything else keeps its place behind the appends sent before it.
            other => {
                self.turns();
                self.administer(other);
            }
        }
    }

    /// Stands for election again in new groups that have no leader yet.
    fn begin(&mut self) {
        let groups = &mut self.groups;
        self.beginning.retain(|key, ticks| {
            let has_leader = |group: &mut tidelog_replica::Group| group.role().leader.is_some();
            let is_over = groups.with(*key, has_leader).unwrap_or(true);
            if !is_over {
                groups.with(*key, tidelog_replica::Group::campaign);
            }
            *ticks -= 1;
            !is_over && *ticks > 0
        });
    }

    /// What is to be told of the partitions that are led here.
    fn reports(&self) -> Vec<(PartitionKey, Report)> {
        let groups = self.groups.keys().filter_map(|key| {
            let group = self.groups.group(key)?;
            Some((partition_key(key), report_of(group)?))
        });
        groups.collect()
    }

    fn append(&mut self, append: Append) {
        let Append {
            partition,
            mut batch,
            acks,
            log_append_time,
            term,
            room,
            reply,
            since,
        } = append;
        let len = batch.total_len();
        self.bytes_taken += len;
        let until = match acks {
            Acks::All if partition.settings().write_caching => Until::Received,
            Acks::All => Until::Committed,
            Acks::Leader | Acks::None => Until::Written,
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "measured for people, decides nothing"
        )]
        let proposed = (until == Until::Committed).then(std::time::Instant::now);
        let waiter = AppendWaiter {
            proposed,
            partition: partition.clone(),
            records: batch.record_count(),
            bytes: len,
            since,
            room,
            reply,
        };
        let Surroundings { space, clock, .. } = &self.around;
        if !self.has_space && !partition.topic.is_internal() {
            // Whoever is refused may have made space before the next one comes.
            match space.check() {
                Ok(()) => self.has_space = true,
                Err(shortage) => return waiter.refuse(&shortage.refusal_of(len as u64)),
            }
        }
        let now = clock.now();
        partition.note_append(now);
        if log_append_time {
            batch.set_log_append_time(now);
        }
        let proposal = Proposal {
            batch,
            until,
            term,
            waiter: Waiter::Append(waiter),
        };
        self.groups.propose(partition.key, proposal);
    }

    /// Has the groups do what there is to do, until they wait for the disk or for others.
    fn turns(&mut self) {
        self.bytes_taken = 0;
        self.has_space = false;
        loop {
            let synced = std::mem::take(&mut *self.synced.lock());
            for key in synced {
                self.groups.log_synced(key);
            }
            if !self.groups.has_work() {
                break;
            }
            let effects = self.groups.turn(self.around.clock.now());
            self.carry_out(effects);
        }
        let needs_ticks = self.groups.needs_ticks();
        let needed_them = self.needs_ticks.swap(needs_ticks, Ordering::AcqRel);
        if needs_ticks && !needed_them {
            self.wants_ticks.notify_one();
        }
        self.tell_who_serves();
    }

    fn partition(&self, key: &GroupKey) -> Option<Arc<Partition>> {
        self.partitions.get(key)?.upgrade()
    }

    fn tell_who_serves(&mut self) {
        let groups = &self.groups;
        let settled = self
            .adding
            .extract_if(.., |(key, _)| groups.is_settled(*key));
        for (_, reply) in settled {
            // Whoever asked may have given up waiting.
            let _gone = reply.send(());
        }
        if self.started.is_some()
            && self.groups.unsettled() == 0
            && let Some(started) = self.started.take()
        {
            let _gone = started.send(());
        }
    }

    fn administer(&mut self, command: Command) {
        match command {
            Command::Remove { key, reply } => {
                self.groups.remove(key);
                self.partitions.remove(&key);
                self.turns();
                // Whoever asked may have given up waiting.
                let _gone = reply.send(());
            }
            Command::Trim {
                partition,
                to,
                end,
                reply,
            } => {
                let log_start = partition.reader().log_start();
                if to < log_start || to > end {
                    let refused = DeleteError::OutOfRange {
                        requested: to,
                        log_start,
                        high_watermark: end,
                    };
                    return drop(reply.send(Err(refused)));
                }
                let key = partition.key;
                self.groups
                    .set_log_start(key, to, Waiter::Trim { partition, reply });
            }
            Command::Retain {
                partition,
                now,
                reply,
            } => self.retain(partition, now, reply),
            Command::Install {
                key,
                compacted,
                reply,
            } => {
                let installed = self.groups.with(key, |group| group.install(*compacted));
                // Deleted meanwhile, files and all; or failed.
                drop(reply.send(installed.unwrap_or(Err(InstallError::Outdated))));
            }
            Command::SetOptions { key, options } => {
                self.groups
                    .with(key, |group| group.set_log_options(options));
            }
            Command::ExpireProducers { before, now } => self.groups.expire_producers(before, now),
            Command::TargetOf { letter, reply } => {
                drop(reply.try_send(self.groups.target_of(&letter)));
            }
            Command::SourceOf { letter, reply } => {
                drop(reply.try_send(self.groups.source_of(&letter)));
            }
            Command::Adopt { pulled, reply } => {
                let key = pulled.key;
                let taken = self.groups.adopt(*pulled, self.around.disk.clone());
                if taken
                    && let Some(log) = self.groups.log(key)
                    && let Some(partition) = self.partition(&key)
                {
                    partition.replace_log(log);
                }
                let _gone = reply.try_send(taken);
            }
            Command::RecordCommit { key, reply } => {
                let _gone = reply.send(self.groups.record_commit(key));
            }
            Command::Append(_)
            | Command::Received(_)
            | Command::Unreachable(_)
            | Command::Reachable(_)
            | Command::ReadIndex { .. }
            | Command::Reports { .. }
            | Command::Positions { .. }
            | Command::Recover { .. }
            | Command::HandOver { .. }
            | Command::Act(_)
            | Command::Add { .. }
            | Command::Wake
            | Command::Tick
            | Command::Stop { .. } => unreachable!("handled before"),
        }
    }

    /// Applies retention, on the thread that appends: whether a partition is idle is known only here.
    fn retain(
        &mut self,
        partition: Arc<Partition>,
        now: Timestamp,
        reply: oneshot::Sender<Result<Offset, DeleteError>>,
    ) {
        let key = partition.key;
        let settings = partition.settings();
        let end = partition.high_watermark();
        let due = Due::of(&partition, &settings, now, end);
        let log_end = self.groups.log(key).map(|log| log.end().offset);
        // What was written and is not committed yet belongs to somebody who waits for it.
        let is_idle = log_end == Some(end) && !self.groups.is_awaited(key);
        let is_expired = due.is_expired && is_idle;
        let to = if is_expired { end } else { due.start };
        let to = to.max(partition.reader().log_start());
        let age = if is_expired { Some(0) } else { due.roll_at };
        let roll_at = due.roll_at.and(age);
        let waiter = Waiter::Retain {
            partition,
            now,
            roll_at,
            reply,
        };
        // First the start, which needs no space: what lies below makes space for a new segment.
        self.groups.set_log_start(key, to, waiter);
    }

    /// Seals the active segment of a log, if it is that old, and removes what lies below its start.
    fn roll(
        &mut self,
        key: GroupKey,
        partition: &Partition,
        now: Timestamp,
        age_ms: u64,
    ) -> Result<Offset, DeleteError> {
        let rolled = self.groups.with(key, |group| {
            group.roll_if_aged(now, age_ms)?;
            group.remove_below_start();
            Ok(())
        });
        self.around.remover.take(self.groups.take_removed(key));
        match rolled {
            Some(Err(e)) => Err(log_error(partition, e).into()),
            _ => Ok(partition.reader().log_start()),
        }
    }

    fn stop(mut self, reply: oneshot::Sender<Vec<(GroupKey, Result<GroupState, GroupError>)>>) {
        // What was sent before the stop is written; what comes after is refused.
        self.turns();
        self.commands.close();
        // Ends when those who are just sending have sent.
        while let Some(command) = self.commands.blocking_recv() {
            if let Command::Append(append) = command {
                drop(append.room);
                drop(append.reply.send(Err(AppendError::Stopping)));
            }
        }
        let awaited: Vec<GroupKey> = self
            .groups
            .keys()
            .filter(|key| self.groups.is_awaited(*key))
            .collect();
        for key in awaited {
            if let Some(log) = self.groups.log(key) {
                // How it went, the turn finds out.
                drop(log.sync_handle().sync());
            }
            self.groups.log_synced(key);
        }
        self.turns();
        // What waited until it is known who leads.
        for waiter in self.groups.take_queued() {
            if let Waiter::Append(waiter) = waiter {
                waiter.refuse(&AppendError::Stopping);
            }
        }
        drop(reply.send(self.groups.close()));
    }
}
