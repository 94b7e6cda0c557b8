//! The sync coordinator: one for all logs of a broker, so that appends that wait at the same time
//! share their syncs.
//!
//! A round takes every log that asked so far, syncs each once, records the new durable ends in the
//! state file, and tells each log's owner. What was appended to a log before its round began is
//! covered, however many appends that are: that is the group commit. Logs that ask while a round
//! runs are in the next one.
//!
//! When nothing else is going on and somebody waits for one log, the thread that asks runs the round
//! itself: handing over to another thread would cost more than it saves. Where nobody waits, it would
//! keep that thread from writing on, and the coordinator's runs it, a few milliseconds after the last
//! one at the earliest: each sync has its price, however little it covers.
//!
//! A round that does not end, because one file hangs, holds up its own logs alone: after a while the
//! others get a round beside it, and so on up to a bound. Rounds beside one that syncs the file
//! system sync each file by itself.
//!
//! A round of many logs is one sync of the file system, where that can be relied on (`together.rs`).

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tidelog_disk::{DiskError, DiskOp, FileSystem};

use crate::error::Poisoned;
use crate::helpers::Helpers;
use crate::segment::LogEnd;
use crate::shared::{Shared, SyncError};
use crate::together::Together;
use crate::turns::ReadTurns;

/// Rounds at a time at most, all but one of which hang; and how many threads there are for them.
const ROUNDS_MAX: usize = 4;

/// Makes what was appended to one log durable, from any thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogSync {
    shared: Arc<Shared>,
}

impl LogSync {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Whose log this is.
    pub fn identity(&self) -> crate::LogIdentity {
        self.shared.identity
    }

    /// Makes everything that was appended before this call durable; returns the new durable end.
    /// Blocks for as long as the device takes, unless there is nothing to do.
    ///
    /// # Errors
    /// [`Poisoned`] when this or an earlier write or sync failed. There is no second try.
    pub fn sync(&self) -> Result<LogEnd, Poisoned> {
        Ok(self.shared.sync()?)
    }

    /// How many bytes were written and are not known to be durable.
    pub fn unsynced_bytes(&self) -> u64 {
        self.shared.unsynced_bytes()
    }

    /// Stops all writes to the log for good, because something it depends on failed.
    pub fn poison(&self, poisoned: &Poisoned) {
        self.shared.poison_with(poisoned.clone());
    }
}

/// A log's owner, as the coordinator sees it.
pub trait SyncTarget: Debug + Send + Sync + 'static {
    /// The log to be synced.
    fn log(&self) -> &LogSync;

    /// Called after each round with what is durable now, or with why nothing more will be. Must be
    /// quick: the next round waits.
    fn synced(&self, result: &Result<LogEnd, Poisoned>);
}

/// Told about each round: of its ends before the owners are, and of its end after them.
pub trait RoundObserver: Debug + Send + Sync + 'static {
    /// Records the durable ends of a round, so that they are known after a crash. An error poisons
    /// every log of the round.
    ///
    /// # Errors
    /// Whatever makes it impossible to record more.
    fn record(&self, ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned>;

    /// Called when the owners have been told, with how long it took to make the ends durable and
    /// to record them.
    fn finished(&self, logs: usize, took: Duration);
}

/// How a [`SyncCoordinator`] works.
#[derive(Debug)]
pub struct SyncConfig {
    /// A round of several logs uses up to so many threads.
    pub threads_max: usize,
    /// The file system on which all logs lie: rounds of many of them sync it as a whole. Asked for
    /// before any of the logs was opened.
    pub file_system: Option<Box<dyn FileSystem>>,
    /// A round that takes longer holds up the logs of others no more.
    pub patience: Duration,
    /// Between the beginnings of two rounds that nobody waits for: so much later what was appended
    /// can be read at most, while more is coming.
    pub unawaited_interval: Duration,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            threads_max: 1,
            file_system: None,
            patience: Duration::from_secs(1),
            unawaited_interval: Duration::from_millis(4),
        }
    }
}

/// Runs the rounds. Cheap to clone; the last clone ends the threads.
#[derive(Clone, Debug)]
pub struct SyncCoordinator {
    inner: Arc<Inner>,
    _threads: Arc<Threads>,
}

/// How long syncs take.
#[derive(Clone, Debug)]
pub struct SyncWatch(Arc<Inner>);

impl SyncWatch {
    /// Since when the oldest of the rounds runs that have not come to an end.
    pub fn oldest_runs_for(&self) -> Option<Duration> {
        let state = self.0.state.lock();
        let oldest = state.running.first_key_value();
        oldest.map(|(_, began)| began.elapsed())
    }
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the watchdog.
    watch: Condvar,
    patience: Duration,
    unawaited_interval: Duration,
    observer: Arc<dyn RoundObserver>,
    helpers: Helpers<Arc<dyn SyncTarget>, Result<LogEnd, SyncError>>,
    together: Together,
    turns: Arc<ReadTurns>,
}

#[derive(Debug, Default)]
struct State {
    /// Logs that asked for a sync, each at most once: as long as there are logs at most.
    waiting: Vec<Arc<dyn SyncTarget>>,
    /// The addresses of what waits.
    known: HashSet<usize>,
    /// When each of the rounds began that run, by its number, and the addresses of their logs.
    running: BTreeMap<u64, Instant>,
    busy: HashSet<usize>,
    /// Whether somebody waits for one of those that wait.
    is_awaited: bool,
    /// The number of the last round that began, and when that was.
    begun: u64,
    begun_at: Option<Instant>,
    /// How many of the rounds that run seem to hang: those of a number up to `stuck_up_to`.
    stuck: usize,
    stuck_up_to: u64,
    /// Whether the watchdog looks at times whether the rounds come to an end.
    watched: bool,
    stopping: bool,
}

impl State {
    /// Whether a round may begin: one at a time, so that appends share syncs, beside those that
    /// hang.
    fn is_free(&self) -> bool {
        self.running.len() == self.stuck && self.running.len() < ROUNDS_MAX
    }

    /// Whether something waits that is in no round. A second sync of what hangs would hang too.
    fn has_work(&self) -> bool {
        let is_busy = |target| self.busy.contains(&address(target));
        !self.waiting.iter().all(is_busy)
    }

    /// How long a round with what waits is put off, so that it begins `interval` after the last one.
    fn put_off(&self, interval: Duration) -> Option<Duration> {
        if self.is_awaited || self.stopping {
            return None;
        }
        let left = interval.checked_sub(self.begun_at?.elapsed())?;
        Some(left).filter(|left| !left.is_zero())
    }

    /// Begins a round with what waits; gives its logs and its number.
    fn begin(&mut self) -> (Vec<Arc<dyn SyncTarget>>, u64) {
        let waiting = std::mem::take(&mut self.waiting);
        let is_busy = |target: &Arc<dyn SyncTarget>| self.busy.contains(&address(target));
        let (stay, targets): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_busy);
        self.waiting = stay;
        self.is_awaited &= !self.waiting.is_empty();
        for target in &targets {
            self.known.remove(&address(target));
        }
        let number = self.begin_with(&targets);
        (targets, number)
    }

    fn begin_with(&mut self, targets: &[Arc<dyn SyncTarget>]) -> u64 {
        self.begun += 1;
        let at = now();
        self.begun_at = Some(at);
        self.running.insert(self.begun, at);
        self.busy.extend(targets.iter().map(address));
        self.begun
    }

    fn end(&mut self, targets: &[Arc<dyn SyncTarget>], number: u64) {
        self.running.remove(&number);
        if number <= self.stuck_up_to {
            self.stuck -= 1;
        }
        for target in targets {
            self.busy.remove(&address(target));
        }
    }

    /// The rounds that run have taken too long: another one may begin.
    fn give_up_waiting(&mut self) {
        self.stuck = self.running.len();
        self.stuck_up_to = self.begun;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "decides nothing but how soon what nobody waits for is synced; the rest is measured for \
              people"
)]
fn now() -> Instant {
    Instant::now()
}

fn address(target: &Arc<dyn SyncTarget>) -> usize {
    Arc::as_ptr(target).addr()
}

#[derive(Debug)]
struct Threads {
    inner: Arc<Inner>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.inner.state.lock().stopping = true;
        self.inner.changed.notify_all();
        self.inner.watch.notify_all();
        for handle in std::mem::take(&mut *self.handles.lock()) {
            if handle.thread().id() != std::thread::current().id() && handle.join().is_err() {
                tracing::error!("a sync thread panicked");
            }
        }
    }
}

impl SyncCoordinator {
    /// Starts the coordinator's threads.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub fn start(observer: Arc<dyn RoundObserver>, config: SyncConfig) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            changed: Condvar::new(),
            watch: Condvar::new(),
            patience: config.patience,
            unawaited_interval: config.unawaited_interval,
            observer,
            // The thread of the round is one.
            helpers: Helpers::start(config.threads_max.saturating_sub(1), "tidelog-syncing")?,
            together: Together::new(config.file_system),
            turns: Arc::default(),
        });
        // Made first, so that those that were started end when one cannot be.
        let threads = Threads {
            inner: inner.clone(),
            handles: Mutex::default(),
        };
        let start = |name: String, run: fn(&Inner)| {
            let inner = inner.clone();
            let handle = std::thread::Builder::new()
                .name(name)
                .spawn(move || run(&inner))?;
            threads.handles.lock().push(handle);
            Ok::<_, io::Error>(())
        };
        for number in 0..ROUNDS_MAX {
            start(format!("tidelog-sync-{number}"), Inner::run)?;
        }
        start("tidelog-sync-dog".to_owned(), Inner::watch)?;
        Ok(Self {
            inner,
            _threads: Arc::new(threads),
        })
    }

    /// What keeps cold reads out of the way of the syncs.
    pub fn read_turns(&self) -> Arc<ReadTurns> {
        self.inner.turns.clone()
    }

    /// To look at how long syncs take. Does not keep the coordinator going.
    pub fn watch(&self) -> SyncWatch {
        SyncWatch(self.inner.clone())
    }

    /// Asks for a sync of each of `targets`. Each is told by [`SyncTarget::synced`]: on this thread
    /// before the call returns when there is one and nothing else is going on, else on the
    /// coordinator's.
    pub fn sync(&self, targets: Vec<Arc<dyn SyncTarget>>) {
        self.ask(targets, true);
    }

    /// As [`SyncCoordinator::sync`], where nobody waits: always on the coordinator's thread, so that
    /// the caller writes on meanwhile.
    pub fn sync_behind(&self, targets: Vec<Arc<dyn SyncTarget>>) {
        self.ask(targets, false);
    }

    fn ask(&self, targets: Vec<Arc<dyn SyncTarget>>, somebody_waits: bool) {
        if targets.is_empty() {
            return;
        }
        let mut state = self.inner.state.lock();
        let is_idle = state.is_free() && !state.is_awaited;
        let is_busy = |target| state.busy.contains(&address(target));
        let runs_here = somebody_waits && is_idle && targets.len() == 1 && !is_busy(&targets[0]);
        // A thread goes on already with what could be in a round, but not with what hangs.
        let is_news = somebody_waits || !state.has_work();
        if runs_here {
            let number = state.begin_with(&targets);
            drop(state);
            self.inner.round(&targets);
            state = self.inner.state.lock();
            state.end(&targets, number);
        } else {
            state.is_awaited |= somebody_waits;
            for target in targets {
                if state.known.insert(address(&target)) {
                    state.waiting.push(target);
                }
            }
        }
        let is_work_left = !state.waiting.is_empty();
        let is_unwatched = is_work_left && !state.watched;
        state.watched |= is_work_left;
        // Otherwise whoever ends a round goes on with it.
        let is_for_now = is_news && is_work_left && state.is_free();
        drop(state);
        if is_for_now {
            self.inner.changed.notify_one();
        }
        if is_unwatched {
            self.inner.watch.notify_one();
        }
    }
}

impl Inner {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            let is_due = state.has_work() && state.is_free();
            if let Some(left) = state.put_off(self.unawaited_interval).filter(|_| is_due) {
                self.changed.wait_for(&mut state, left);
            } else if is_due {
                let (targets, number) = state.begin();
                drop(state);
                self.round(&targets);
                state = self.state.lock();
                state.end(&targets, number);
            } else if state.stopping && state.waiting.is_empty() {
                // The others may wait for what this one has done last.
                self.changed.notify_all();
                self.watch.notify_all();
                return;
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    /// Sees to it that a round that hangs holds up nobody else for long.
    fn watch(&self) {
        let mut state = self.state.lock();
        loop {
            if !state.waiting.is_empty() {
                let begun = state.begun;
                let waited = self.watch.wait_for(&mut state, self.patience);
                let is_same = waited.timed_out() && state.begun == begun;
                if is_same
                    && state.has_work()
                    && !state.is_free()
                    && state.running.len() < ROUNDS_MAX
                {
                    tracing::warn!(
                        rounds = state.running.len(),
                        "the disk hangs: what waits for another \
                        sync goes on beside it"
                    );
                    state.give_up_waiting();
                    self.changed.notify_one();
                }
            } else if state.stopping {
                return;
            } else {
                state.watched = false;
                self.watch.wait(&mut state);
            }
        }
    }

    /// One round, from the syncs to the owners' being told.
    fn round(&self, targets: &[Arc<dyn SyncTarget>]) {
        let _turn = self.turns.sync();
        let ran = catch_unwind(AssertUnwindSafe(|| self.try_round(targets)));
        if ran.is_ok() {
            return;
        }
        // An owner or the observer panicked. The coordinator goes on for all others, and nobody
        // waits for an answer that does not come.
        let source = io::Error::other("a sync round panicked");
        let cause = DiskError::new(DiskOp::Sync, Path::new("(sync round)"), source);
        let poisoned = Poisoned {
            cause: Arc::new(cause),
        };
        for target in targets {
            let result = Err(target.log().shared.poison_with(poisoned.clone()));
            if catch_unwind(AssertUnwindSafe(|| target.synced(&result))).is_err() {
                tracing::error!(?target, "a log's owner panicked when told of its sync");
            }
        }
    }

    fn try_round(&self, targets: &[Arc<dyn SyncTarget>]) {
        let began = now();
        let cuts: Vec<u64> = targets.iter().map(|t| *t.log().shared.cuts()).collect();
        let mut results = self.sync_all(targets);
        // A failed sync says that the device lost writes: no log of the round is to be trusted.
        let failed = results.iter().find_map(|result| match result {
            Err(SyncError::Now(poisoned)) => Some(poisoned.clone()),
            _ => None,
        });
        let failed = failed.or_else(|| {
            // Where entries were taken back since, the checkpoint has been set back: an end from before
            // must not be recorded over that. Nor while one is.
            let held: Vec<_> = targets.iter().map(|t| t.log().shared.cuts()).collect();
            let is_current = held.iter().zip(&cuts).map(|(now, then)| **now == *then);
            let synced = targets.iter().zip(&results).zip(is_current);
            let synced = synced
                .filter(|(_, is_current)| *is_current)
                .filter_map(|((target, result), _)| Some((target.clone(), *result.as_ref().ok()?)));
            // Room for just these: mostly it is one.
            let mut ends = Vec::with_capacity(targets.len());
            ends.extend(synced);
            if ends.is_empty() {
                None
            } else {
                self.observer.record(&ends).err()
            }
        });
        if let Some(poisoned) = failed {
            self.together.distrust();
            for (target, result) in targets.iter().zip(&mut results) {
                *result = Err(SyncError::Now(
                    target.log().shared.poison_with(poisoned.clone()),
                ));
            }
        }
        let results = results
            .into_iter()
            .map(|result| result.map_err(Poisoned::from));
        let results: Vec<_> = results.collect();
        let took = began.elapsed();
        for (target, result) in targets.iter().zip(&results) {
            target.synced(result);
        }
        self.observer.finished(targets.len(), took);
    }

    fn sync_all(&self, targets: &[Arc<dyn SyncTarget>]) -> Vec<Result<LogEnd, SyncError>> {
        let logs: Vec<&Shared> = targets.iter().map(|t| &*t.log().shared).collect();
        if let Some(results) = self.together.sync(&logs) {
            return results;
        }
        self.helpers
            .each(targets.to_vec(), |target| target.log().shared.sync())
    }
}
