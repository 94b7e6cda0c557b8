//! The sync coordinator: one for all logs of a broker, so that appends that wait at the same time
//! share their syncs.
//!
//! A round takes every log that asked so far, syncs each once, records the new durable ends in the
//! state file, and tells each log's owner. What was appended to a log before its round began is
//! covered, however many appends that are: that is the group commit. Logs that ask while a round
//! runs are in the next one.
//!
//! When nothing else is going on and somebody waits, the thread that asks runs the round itself:
//! handing over to another thread would cost more than it saves. Where nobody waits, it would keep
//! that thread from writing on, and the coordinator's runs it.
//!
//! A round of many logs is one sync of the file system, where that can be relied on (`together.rs`).

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tidelog_disk::{DiskError, DiskOp, FileSystem};

use crate::error::Poisoned;
use crate::segment::LogEnd;
use crate::shared::{Shared, SyncError};
use crate::threads::share_out;
use crate::together::Together;

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

/// Told about each round before the owners are.
pub trait RoundObserver: Debug + Send + Sync + 'static {
    /// Records the durable ends of a round, so that they are known after a crash. An error poisons
    /// every log of the round.
    ///
    /// # Errors
    /// Whatever makes it impossible to record more.
    fn record(&self, ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned>;

    /// Called when the owners have been told, with how long the syncs took.
    fn finished(&self, logs: usize, took: std::time::Duration);
}

/// Runs the rounds. Cheap to clone; the last clone ends the thread.
#[derive(Clone, Debug)]
pub struct SyncCoordinator {
    inner: Arc<Inner>,
    _thread: Arc<Thread>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    observer: Arc<dyn RoundObserver>,
    threads_max: usize,
    together: Together,
}

#[derive(Debug, Default)]
struct State {
    /// Logs that asked for a sync, each at most once: as long as there are logs at most.
    waiting: VecDeque<Arc<dyn SyncTarget>>,
    /// The addresses of what waits.
    known: HashSet<usize>,
    running: bool,
    stopping: bool,
}

#[derive(Debug)]
struct Thread {
    inner: Arc<Inner>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.inner.state.lock().stopping = true;
        self.inner.changed.notify_all();
        if let Some(handle) = self.handle.lock().take()
            && handle.thread().id() != std::thread::current().id()
            && handle.join().is_err()
        {
            tracing::error!("the sync thread panicked");
        }
    }
}

impl SyncCoordinator {
    /// Starts the coordinator's thread. A round of several logs uses up to `threads_max` threads.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(observer: Arc<dyn RoundObserver>, threads_max: usize) -> io::Result<Self> {
        Self::start_on(observer, threads_max, None)
    }

    /// As [`SyncCoordinator::start`], for logs that all lie on one file system: rounds of many of
    /// them sync it as a whole. `file_system` was asked for before any of the logs was opened.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start_on(
        observer: Arc<dyn RoundObserver>,
        threads_max: usize,
        file_system: Option<Box<dyn FileSystem>>,
    ) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            changed: Condvar::new(),
            observer,
            threads_max: threads_max.max(1),
            together: Together::new(file_system),
        });
        let runner = inner.clone();
        let handle = std::thread::Builder::new()
            .name("tidelog-sync".to_owned())
            .spawn(move || runner.run())?;
        let thread = Thread {
            inner: inner.clone(),
            handle: Mutex::new(Some(handle)),
        };
        Ok(Self {
            inner,
            _thread: Arc::new(thread),
        })
    }

    /// Asks for a sync of each of `targets`. Each is told by [`SyncTarget::synced`], on this
    /// thread before the call returns when nothing else is going on, or on the coordinator's.
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
        let idle = !state.running && state.waiting.is_empty();
        if somebody_waits && idle && targets.len() == 1 {
            state.running = true;
            drop(state);
            self.inner.round(&targets);
            state = self.inner.state.lock();
            state.running = false;
        } else {
            for target in targets {
                if state.known.insert(Arc::as_ptr(&target).addr()) {
                    state.waiting.push_back(target);
                }
            }
        }
        let work_left = !state.waiting.is_empty();
        drop(state);
        if work_left {
            self.inner.changed.notify_one();
        }
    }
}

impl Inner {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if !state.waiting.is_empty() && !state.running {
                let targets: Vec<_> = state.waiting.drain(..).collect();
                state.known.clear();
                state.running = true;
                drop(state);
                self.round(&targets);
                state = self.state.lock();
                state.running = false;
            } else if state.stopping {
                return;
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    /// One round, from the syncs to the owners' being told.
    fn round(&self, targets: &[Arc<dyn SyncTarget>]) {
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
        #[allow(
            clippy::disallowed_methods,
            reason = "measured for people, decides nothing"
        )]
        let began = std::time::Instant::now();
        let mut results = self.sync_all(targets);
        // A failed sync says that the device lost writes: no log of the round is to be trusted.
        let failed = results.iter().find_map(|result| match result {
            Err(SyncError::Now(poisoned)) => Some(poisoned.clone()),
            _ => None,
        });
        let failed = failed.or_else(|| {
            let ends: Vec<_> = targets
                .iter()
                .zip(&results)
                .filter_map(|(target, result)| Some((target.clone(), *result.as_ref().ok()?)))
                .collect();
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
        share_out(targets, self.threads_max, |target| {
            target.log().shared.sync()
        })
    }
}
