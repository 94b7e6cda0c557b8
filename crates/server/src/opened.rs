//! Memory for batches that are decompressed for clients which want records.
//!
//! A small batch can be large when decompressed, and a client that reads slowly would keep it so
//! for as long as it likes. All decompressed batches of the broker therefore share one budget, and
//! a stream whose client does not take what it has lets go of its batch when another stream waits.
//! It is then decompressed again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// What all decompressed batches may take, in bytes.
const OPENED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Below this a decompressed batch is no more than what HTTP/2 keeps of a call, and is not counted.
pub(crate) const SMALL: usize = 64 * 1024;

/// The budget.
#[derive(Clone, Debug)]
pub(crate) struct OpenedBatches(Arc<State>);

#[derive(Debug)]
struct State {
    budget: Arc<Semaphore>,
    waiting: AtomicUsize,
    wanted: Notify,
}

/// One more who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl OpenedBatches {
    pub(crate) fn new() -> Self {
        Self::with(OPENED_BYTES_MAX)
    }

    fn with(bytes_max: usize) -> Self {
        Self(Arc::new(State {
            budget: Arc::new(Semaphore::new(bytes_max)),
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
        }))
    }

    /// Waits until `len` bytes are free, the most that a batch can become.
    pub(crate) async fn reserve(&self, len: usize) -> OpenedBatch {
        let state = &self.0;
        state.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&state.waiting);
        let len = u32::try_from(len.min(OPENED_BYTES_MAX)).unwrap_or(u32::MAX);
        let mut taking = std::pin::pin!(state.budget.clone().acquire_many_owned(len));
        let room = match futures_util::poll!(taking.as_mut()) {
            std::task::Poll::Ready(room) => room,
            std::task::Poll::Pending => {
                state.wanted.notify_waiters();
                taking.await
            }
        };
        OpenedBatch(room.expect("the budget is never closed"))
    }

    /// Waits until somebody else wants room.
    pub(crate) async fn wanted(&self) {
        let wanted = self.0.wanted.notified();
        if self.0.waiting.load(Ordering::Relaxed) == 0 {
            wanted.await;
        }
    }
}

/// The room of one decompressed batch.
#[derive(Debug)]
pub(crate) struct OpenedBatch(OwnedSemaphorePermit);

impl OpenedBatch {
    /// Gives back what is not needed; all of it for a small batch.
    pub(crate) fn shrink(&mut self, len: usize) {
        let needed = if len <= SMALL { 0 } else { len };
        let excess = self.0.num_permits().saturating_sub(needed);
        drop(self.0.split(excess));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_has_room_hears_that_another_waits() {
        let opened = OpenedBatches::with(10 * SMALL);
        let mut first = opened.reserve(10 * SMALL).await;
        first.shrink(8 * SMALL);
        assert!(opened.wanted().now_or_never().is_none());
        let heard = opened.wanted();
        let mut heard = std::pin::pin!(heard);
        assert!(heard.as_mut().now_or_never().is_none());
        let second = opened.reserve(2 * SMALL).await;
        assert!(heard.as_mut().now_or_never().is_none(), "nobody waits");
        let mut third = Box::pin(opened.reserve(SMALL));
        assert!(third.as_mut().now_or_never().is_none());
        heard.await;
        opened.wanted().await;
        drop(first);
        let mut third = third.await;
        third.shrink(5);
        assert!(opened.wanted().now_or_never().is_none());
        drop((second, third));
        assert_eq!(opened.0.budget.available_permits(), 10 * SMALL);
    }
}
