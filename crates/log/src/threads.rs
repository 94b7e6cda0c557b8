//! Work shared out among a few threads.

use std::thread::{Builder, ScopedJoinHandle};

/// Does `work` for each of `items`, on up to `threads` threads that each take a part; gives the
/// results in the order of the items. A panic of one is the caller's. With one thread, or nothing
/// to share, it is the caller's own; so is a part for which the system has no thread to give.
pub fn share_out<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    share_out_to(items, threads, Builder::new, work)
}

fn share_out_to<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    thread: impl Fn() -> Builder,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let threads = items.len().min(threads);
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let work = &work;
    let share = items.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let workers: Vec<_> = items
            .chunks(share)
            .map(|chunk| {
                let part = move || chunk.iter().map(work).collect::<Vec<_>>();
                let spawned = thread().spawn_scoped(scope, part);
                spawned.map_err(|_no_thread| part())
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| match worker.map(ScopedJoinHandle::join) {
                Ok(Ok(results)) | Err(results) => results,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_item_is_worked_on_once_and_results_keep_their_order() {
        for threads in 0..6 {
            for len in 0..20_u32 {
                let items: Vec<u32> = (0..len).collect();
                let here = |item: &u32| (*item * 2, std::thread::current().id());
                let results = share_out(&items, threads, here);
                let values: Vec<u32> = results.iter().map(|(value, _)| *value).collect();
                assert_eq!(values, items.iter().map(|n| n * 2).collect::<Vec<_>>());
                let used: HashSet<_> = results.iter().map(|(_, id)| *id).collect();
                assert!(used.len() <= threads.max(1));
            }
        }
    }

    #[test]
    fn without_threads_the_work_is_done_here() {
        let too_large = || Builder::new().stack_size(1 << 60);
        let here = std::thread::current().id();
        let done = share_out_to(&[1, 2, 3, 4], 4, too_large, |n| {
            (*n, std::thread::current().id())
        });
        assert_eq!(done, [1, 2, 3, 4].map(|n| (n, here)));
    }

    #[test]
    fn a_panic_is_passed_on() {
        let shared = std::panic::catch_unwind(|| {
            share_out(&[1, 2, 3], 2, |n| assert!(*n != 3, "no threes"));
        });
        assert!(shared.is_err());
    }
}
