//! Room for bytes that wait for clients: a budget for each connection, within one for the broker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntGauge;
use tokio::sync::Notify;

/// The least that is given when more was asked for, in bytes: below it messages would be too small
/// to be worth their frames.
const LEAST: usize = 1024 * 1024;

/// What all connections together hold.
#[derive(Debug)]
pub(crate) struct Total {
    held: AtomicUsize,
    max: usize,
    gauge: IntGauge,
}

impl Total {
    pub(crate) fn new(max: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            max,
            gauge,
        })
    }

    /// Takes up to `len` bytes, if at least `least` are left.
    fn take(&self, len: usize, least: usize) -> Option<usize> {
        let granted = |held: usize| {
            let left = self.max.saturating_sub(held);
            (left >= least).then_some(len.min(left))
        };
        let before = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                granted(held).map(|len| held + len)
            });
        let len = granted(before.ok()?)?;
        self.gauge.add(i64::try_from(len).unwrap_or(i64::MAX));
        Some(len)
    }

    /// Takes `len` bytes, even if there are none left.
    fn force(&self, len: usize) {
        self.held.fetch_add(len, Ordering::Relaxed);
        self.gauge.add(i64::try_from(len).unwrap_or(i64::MAX));
    }

    fn sub(&self, len: usize) {
        self.held.fetch_sub(len, Ordering::Relaxed);
        self.gauge.sub(i64::try_from(len).unwrap_or(i64::MAX));
    }
}

/// What one connection holds.
///
/// A connection that holds nothing always gets something, at most [`LEAST`]: however much the
/// others do not take, it goes on, one message at a time.
///
/// A batch is never cut, so what was read can be larger than the room it was read for. Then it
/// counts whole ([`Room::resize`]), and all that comes later waits for it. Together connections so
/// hold the total at most, and beside it for each connection [`LEAST`], and for each message under
/// way at that moment what its batch is larger than its room.
#[derive(Debug)]
pub(crate) struct Budget {
    held: Mutex<usize>,
    max: usize,
    total: Arc<Total>,
    /// Who waits first goes first.
    turn: tokio::sync::Mutex<()>,
    /// Some of it was given back.
    given_back: Notify,
}

impl Budget {
    pub(crate) fn new(max: usize, total: Arc<Total>) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(0),
            max,
            total,
            turn: tokio::sync::Mutex::new(()),
            given_back: Notify::new(),
        })
    }

    /// Waits until there is room for `len` bytes, or for [`LEAST`] of them, and takes it.
    pub(crate) async fn take(self: &Arc<Self>, len: usize) -> Room {
        let _turn = self.turn.lock().await;
        loop {
            if let Some(room) = self.try_take(len) {
                return room;
            }
            // Only the connection's own clients' taking is waited for: it holds something, since
            // otherwise it would have got its room. `Notify` keeps what came before this line.
            self.given_back.notified().await;
        }
    }

    fn try_take(self: &Arc<Self>, len: usize) -> Option<Room> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let least = len.min(LEAST);
        let own = self.max.saturating_sub(*held);
        let granted = (own >= least)
            .then(|| self.total.take(len.min(own), least))
            .flatten();
        let len = match granted {
            Some(len) => len,
            None if *held == 0 => {
                self.total.force(least);
                least
            }
            None => return None,
        };
        *held += len;
        Some(Room {
            budget: self.clone(),
            len,
        })
    }

    /// Takes `len` bytes, even if there are none left.
    fn force(&self, len: usize) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held += len;
        self.total.force(len);
    }

    fn give_back(&self, len: usize) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held -= len;
        self.total.sub(len);
        drop(held);
        self.given_back.notify_one();
    }
}

/// Some of a connection's [`Budget`], given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    budget: Arc<Budget>,
    len: usize,
}

impl Room {
    /// How many bytes it is.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What it is for turned out to be `len` bytes: gives back what that does not need. What it
    /// needs more is taken without waiting, since it is there already.
    pub(crate) fn resize(&mut self, len: usize) {
        if len > self.len {
            self.budget.force(len - self.len);
        } else if len < self.len {
            self.budget.give_back(self.len - len);
        }
        self.len = len;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.len > 0 {
            self.budget.give_back(self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn total(max: usize) -> Arc<Total> {
        Total::new(max, IntGauge::new("unsent", "test").unwrap())
    }

    impl Total {
        fn left(&self) -> usize {
            self.max.saturating_sub(self.held.load(Ordering::Relaxed))
        }
    }

    #[tokio::test]
    async fn a_connection_waits_for_its_own_client_only() {
        let total = total(100 * MIB);
        let (slow, quick) = (
            Budget::new(4 * MIB, total.clone()),
            Budget::new(4 * MIB, total.clone()),
        );
        let first = slow.take(3 * MIB).await;
        // What is left is enough for a message, though not for all that was asked for.
        let second = slow.take(3 * MIB).await;
        assert_eq!((first.len(), second.len()), (3 * MIB, MIB));
        let mut third = Box::pin(slow.take(10));
        assert!(third.as_mut().now_or_never().is_none());
        assert_eq!(quick.take(4 * MIB).await.len(), 4 * MIB);
        drop(first);
        assert_eq!(third.await.len(), 10);
        drop(second);
        assert_eq!(total.left(), 100 * MIB);
    }

    #[tokio::test]
    async fn when_all_is_taken_each_connection_still_gets_a_message() {
        let total = total(4 * MIB);
        let hog = Budget::new(64 * MIB, total.clone());
        let _all = hog.take(64 * MIB).await;
        assert_eq!(total.left(), 0);
        let other = Budget::new(64 * MIB, total.clone());
        let one = other.take(64 * MIB).await;
        assert_eq!(one.len(), MIB);
        let mut next = Box::pin(other.take(64 * MIB));
        assert!(next.as_mut().now_or_never().is_none());
        drop(one);
        assert_eq!(next.await.len(), MIB);
        // Nothing that is not asked for is given.
        assert_eq!(Budget::new(MIB, total).take(7).await.len(), 7);
    }

    #[tokio::test]
    async fn shrinking_lets_the_next_one_in() {
        let total = total(2 * MIB);
        let budget = Budget::new(2 * MIB, total.clone());
        let mut room = budget.take(2 * MIB).await;
        let mut next = Box::pin(budget.take(MIB));
        assert!(next.as_mut().now_or_never().is_none());
        room.resize(2 * MIB);
        assert!(next.as_mut().now_or_never().is_none());
        room.resize(100);
        assert_eq!((room.len(), next.await.len()), (100, MIB));
        drop(room);
        assert_eq!(total.left(), 2 * MIB);
    }

    #[tokio::test]
    async fn what_is_larger_than_its_room_counts_whole() {
        let total = total(4 * MIB);
        let (one, other) = (
            Budget::new(4 * MIB, total.clone()),
            Budget::new(4 * MIB, total.clone()),
        );
        let mut batch = one.take(MIB).await;
        let second = other.take(MIB).await;
        batch.resize(16 * MIB);
        assert_eq!((batch.len(), total.left()), (16 * MIB, 0));
        // The others' next messages wait too, each for its own client.
        let mut next = Box::pin(other.take(10));
        assert!(next.as_mut().now_or_never().is_none());
        drop(second);
        assert_eq!(next.await.len(), 10);
        drop(batch);
        assert_eq!(total.left(), 4 * MIB);
        assert_eq!(one.take(4 * MIB).await.len(), 4 * MIB);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_no_trace() {
        let total = total(MIB);
        let budget = Budget::new(MIB, total.clone());
        let room = budget.take(MIB).await;
        drop(Box::pin(budget.take(5)).now_or_never());
        let mut waiting = Box::pin(budget.take(6));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(room);
        assert_eq!(waiting.await.len(), 6);
        assert_eq!(total.left(), MIB);
    }
}
