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
    /// Who waits first for more than [`LEAST`] goes first.
    turn: tokio::sync::Mutex<()>,
    /// Some of it was given back.
    given_back: Notify,
}

impl Total {
    pub(crate) fn new(max: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            max,
            gauge,
            turn: tokio::sync::Mutex::new(()),
            given_back: Notify::new(),
        })
    }

    /// Takes `len` bytes if so many are left, or if nobody holds anything but `own`, what is held
    /// for the same message already.
    fn take_whole(&self, len: usize, own: usize) -> bool {
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                let fits = len <= self.max.saturating_sub(held) || held == own;
                fits.then_some(held + len)
            })
            .is_ok();
        if taken {
            self.gauge.add(i64::try_from(len).unwrap_or(i64::MAX));
        }
        taken
    }

    /// Waits until `len` bytes are left, or nothing is held.
    async fn until_left(&self, len: usize) {
        let _turn = self.turn.lock().await;
        loop {
            let held = self.held.load(Ordering::Relaxed);
            if held == 0 || len <= self.max.saturating_sub(held) {
                return;
            }
            self.given_back.notified().await;
        }
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
        self.given_back.notify_one();
    }
}

/// What a message that is larger than all that is left may do when its connection has nothing else
/// that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alone {
    /// It goes, however much the other connections hold: as large as it is, clients sent it so.
    Goes,
    /// It waits for the other connections too, unless it is at most [`LEAST`]: it is far larger than
    /// what was sent.
    Waits,
}

/// Why there is no room.
enum Short {
    /// The connection's client has to take something first.
    Own,
    /// Some other client has to.
    Total,
}

/// What one connection holds.
///
/// A connection that holds nothing always gets something, at most [`LEAST`]: however much the
/// others do not take, it goes on, one message at a time.
///
/// A batch is never cut, nor is a record, so what is to be sent can be larger than the room it was
/// read for. Then it waits until there is room for all of it ([`Budget::take_whole`]), but for what
/// [`Alone`] lets through. Together connections so hold the total at most, and beside it one message
/// each: [`LEAST`], or a batch if that is larger.
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

    /// Waits until there is room for all of `len` bytes, and takes it. To be called by who holds no
    /// room: two that hold some and wait for more would wait for each other.
    pub(crate) async fn take_whole(self: &Arc<Self>, len: usize, alone: Alone) -> Room {
        loop {
            {
                let _turn = self.turn.lock().await;
                loop {
                    match self.try_whole(len, 0, alone) {
                        Ok(()) => {
                            return Room {
                                budget: self.clone(),
                                len,
                            };
                        }
                        Err(Short::Own) => self.given_back.notified().await,
                        Err(Short::Total) => break,
                    }
                }
            }
            // The connection's turn is given up: its smaller messages do not wait for what others
            // do not take.
            self.total.until_left(len).await;
        }
    }

    /// Takes room for all of `len` bytes, if there is so much.
    pub(crate) fn try_take_whole(self: &Arc<Self>, len: usize, alone: Alone) -> Option<Room> {
        self.try_whole(len, 0, alone).is_ok().then(|| Room {
            budget: self.clone(),
            len,
        })
    }

    /// Takes `more` bytes, for a message that holds `own` of them already, if there is room for all
    /// of it.
    fn try_whole(&self, more: usize, own: usize, alone: Alone) -> Result<(), Short> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let is_alone = *held == own;
        if more > self.max.saturating_sub(*held) && !is_alone {
            return Err(Short::Own);
        }
        if !self.total.take_whole(more, own) {
            let goes = alone == Alone::Goes || own + more <= LEAST;
            if !(is_alone && goes) {
                return Err(Short::Total);
            }
            self.total.force(more);
        }
        *held += more;
        Ok(())
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

    /// Makes it `len` bytes, if it is smaller, without waiting. Tells whether it is large enough
    /// now.
    pub(crate) fn try_grow(&mut self, len: usize, alone: Alone) -> bool {
        let more = len.saturating_sub(self.len);
        let grown = more == 0 || self.budget.try_whole(more, self.len, alone).is_ok();
        if grown {
            self.len += more;
        }
        grown
    }

    /// Gives back what is above `len` bytes.
    pub(crate) fn shrink(&mut self, len: usize) {
        let excess = self.len.saturating_sub(len);
        if excess > 0 {
            self.budget.give_back(excess);
            self.len -= excess;
        }
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
        room.shrink(3 * MIB);
        assert!(next.as_mut().now_or_never().is_none());
        room.shrink(100);
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
        // It is all that its connection has.
        assert!(batch.try_grow(16 * MIB, Alone::Goes));
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
    async fn messages_that_are_larger_than_their_rooms_go_one_after_the_other() {
        let total = total(100 * MIB);
        let budget = Budget::new(8 * MIB, total.clone());
        let mut small = Vec::new();
        for _ in 0..8 {
            small.push(budget.take(MIB).await);
        }
        // None may grow, and whoever lets go waits in a row with the others.
        assert!(
            small
                .iter_mut()
                .all(|one| !one.try_grow(6 * MIB, Alone::Goes))
        );
        drop(small);
        let first = budget.take_whole(6 * MIB, Alone::Goes).await;
        let mut second = Box::pin(budget.take_whole(6 * MIB, Alone::Goes));
        assert!(second.as_mut().now_or_never().is_none());
        // What is above the whole limit waits until there is nothing else, and goes then.
        let mut third = Box::pin(budget.take_whole(60 * MIB, Alone::Waits));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.await;
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert_eq!(third.await.len(), 60 * MIB);
        assert_eq!(total.left(), 100 * MIB);
    }

    #[tokio::test]
    async fn what_waits_for_other_clients_holds_up_nothing_small() {
        let total = total(8 * MIB);
        let hog = Budget::new(8 * MIB, total.clone());
        let mut all = hog.take(8 * MIB).await;
        let budget = Budget::new(8 * MIB, total.clone());
        let mut large = Box::pin(budget.take_whole(6 * MIB, Alone::Waits));
        assert!(large.as_mut().now_or_never().is_none());
        assert_eq!(budget.take(7).await.len(), 7);
        assert_eq!(budget.take_whole(7, Alone::Waits).await.len(), 7);
        all.shrink(MIB);
        assert_eq!(large.await.len(), 6 * MIB);
        // What is above the total goes when nobody has anything.
        let mut above = Box::pin(budget.take_whole(60 * MIB, Alone::Waits));
        assert!(above.as_mut().now_or_never().is_none());
        drop(all);
        assert_eq!(above.await.len(), 60 * MIB);
        assert_eq!(total.left(), 8 * MIB);
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
