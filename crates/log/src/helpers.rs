//! Threads that help with the syncs of a round, and are there before it begins. To start two took 0.3 to 0.65 ms
//! (two busy cores), as long as a sync of a batch; to wake one and hear of it took 0.01 to 0.03. What is done once,
//! as opening logs at a start, has threads of its own (threads.rs).

use std::any::Any;
use std::io;
use std::iter::Enumerate;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::vec::IntoIter;

use parking_lot::{Condvar, Mutex};

/// Work that several threads take part in, whoever has time: each item is done once.
struct Shared<T, R> {
    work: fn(&T) -> R,
    state: Mutex<State<T, R>>,
    is_done: Condvar,
}

struct State<T, R> {
    /// Those that nobody has taken. Once all are done none is held here, however late a helper comes.
    left: Enumerate<IntoIter<T>>,
    /// In the order of the items.
    results: Vec<Option<Result<R, Box<dyn Any + Send>>>>,
    missing: usize,
}

impl<T, R> Shared<T, R> {
    /// Does items until none is left.
    fn take_part(&self) {
        let mut state = self.state.lock();
        while let Some((at, item)) = state.left.next() {
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| (self.work)(&item)));
            drop(item);
            state = self.state.lock();
            state.results[at] = Some(result);
            state.missing -= 1;
            if state.missing == 0 {
                self.is_done.notify_one();
            }
        }
    }
}

/// The threads. They end when this is dropped, each with what it does then.
pub(crate) struct Helpers<T, R> {
    calls: Vec<SyncSender<Arc<Shared<T, R>>>>,
    handles: Vec<JoinHandle<()>>,
}

impl<T, R> std::fmt::Debug for Helpers<T, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helpers")
            .field("threads", &self.handles.len())
            .finish()
    }
}

impl<T, R> Drop for Helpers<T, R> {
    fn drop(&mut self) {
        self.calls.clear();
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                tracing::error!("a helper of syncs panicked");
            }
        }
    }
}

impl<T, R> Helpers<T, R>
where
    T: Send + Sync + 'static,
    R: Send + 'static,
{
    /// # Errors
    /// When the system gives no threads.
    pub(crate) fn start(count: usize, name: &str) -> io::Result<Self> {
        let mut helpers = Self {
            calls: Vec::new(),
            handles: Vec::new(),
        };
        for number in 0..count {
            // Whoever is busy with work of before is not waited for.
            let (calls, called) = sync_channel(1);
            let handle = std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || help(&called))?;
            helpers.calls.push(calls);
            helpers.handles.push(handle);
        }
        Ok(helpers)
    }

    /// Does `work` for each item, here and on the helpers that have time; gives the results in the order of
    /// the items. A panic of one is the caller's. Helpers that hang with work of others are done without.
    pub(crate) fn each(&self, items: Vec<T>, work: fn(&T) -> R) -> Vec<R> {
        if let [item] = &items[..] {
            return vec![work(item)];
        }
        let missing = items.len();
        let shared = Arc::new(Shared {
            work,
            state: Mutex::new(State {
                results: items.iter().map(|_| None).collect(),
                left: items.into_iter().enumerate(),
                missing,
            }),
            is_done: Condvar::new(),
        });
        let called = self.calls.iter();
        let called = called.filter(|call| call.try_send(shared.clone()).is_ok());
        // This thread takes part too.
        let _helpers = called.take(missing.saturating_sub(1)).count();
        shared.take_part();
        let mut state = shared.state.lock();
        while state.missing > 0 {
            shared.is_done.wait(&mut state);
        }
        let results = std::mem::take(&mut state.results);
        let results = results.into_iter().flatten();
        results
            .map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    }
}

fn help<T, R>(called: &Receiver<Arc<Shared<T, R>>>) {
    while let Ok(shared) = called.recv() {
        shared.take_part();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;

    use super::*;

    fn of_thread(item: &u32) -> (u32, std::thread::ThreadId) {
        (*item * 2, std::thread::current().id())
    }

    #[test]
    fn each_item_is_done_once_and_results_keep_their_order() {
        for count in 0..4 {
            let helpers = Helpers::start(count, "test").unwrap();
            for len in 0..20_u32 {
                let results = helpers.each((0..len).collect(), of_thread);
                let values: Vec<u32> = results.iter().map(|(value, _)| *value).collect();
                assert_eq!(values, (0..len).map(|n| n * 2).collect::<Vec<_>>());
                let used: HashSet<_> = results.iter().map(|(_, thread)| *thread).collect();
                assert!(used.len() <= count + 1);
            }
        }
    }

    /// Items that wait for each other are done at the same time.
    #[test]
    fn as_many_are_done_at_a_time_as_there_are_threads() {
        let helpers = Helpers::start(2, "test").unwrap();
        for _ in 0..20 {
            let barrier = Arc::new(Barrier::new(3));
            let done = helpers.each(vec![barrier; 3], |barrier: &Arc<Barrier>| {
                barrier.wait();
            });
            assert_eq!(done.len(), 3);
        }
    }

    #[test]
    fn helpers_that_hang_are_done_without() {
        /// What is passed when it is begun, and to end it.
        type Work = Arc<[Barrier; 2]>;
        fn pass(work: &Work) {
            for barrier in &**work {
                barrier.wait();
            }
        }
        let helpers = Arc::new(Helpers::start(1, "test").unwrap());
        let hangs: Work = Arc::new([3, 3].map(Barrier::new));
        let hanging = {
            let (helpers, hangs) = (helpers.clone(), hangs.clone());
            std::thread::spawn(move || helpers.each(vec![hangs; 2], pass))
        };
        // The helper has begun too: had it anything else to do then, it would not hang.
        hangs[0].wait();
        let other: Work = Arc::new([1, 1].map(Barrier::new));
        for _ in 0..100 {
            let done = helpers.each(vec![other.clone(); 4], pass);
            assert_eq!(done.len(), 4);
        }
        hangs[1].wait();
        hanging.join().unwrap();
    }

    #[test]
    fn a_panic_is_passed_on_and_the_helpers_go_on() {
        let helpers = Helpers::start(1, "test").unwrap();
        for _ in 0..3 {
            let ran = catch_unwind(AssertUnwindSafe(|| {
                helpers.each(vec![1, 2, 3, 4], |item: &u32| assert_ne!(*item, 3))
            }));
            assert!(ran.is_err());
        }
        let done = helpers.each(vec![1, 2], |item: &u32| assert!(*item < 3));
        assert_eq!(done.len(), 2);
    }
}
