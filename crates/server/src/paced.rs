//! Answers that take a thread for a while, for anyone who asks, however often.

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Of the time, making takes one part in so many at most.
const SHARE: u32 = 10;
/// Nobody waits longer for the sake of that.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A value that is made on a thread that may be busy, by one at a time, and after a pause that grows
/// with what it took. Those who ask meanwhile share one: each gets a value that was begun after it
/// asked, so that it sees everything that was there then.
#[derive(Debug)]
pub(crate) struct Paced<T>(Arc<State<T>>);

impl<T> Clone for Paced<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct State<T> {
    /// Held by who makes one.
    turn: Arc<Mutex<Turn>>,
    made: SyncMutex<Made<T>>,
}

#[derive(Debug)]
struct Turn {
    /// When the next one may be made.
    not_before: Instant,
}

#[derive(Debug)]
struct Made<T> {
    /// How many were begun.
    begun: u64,
    /// The last that was made, and its number.
    last: Option<(u64, T)>,
}

impl<T: Clone + Send + 'static> Paced<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            turn: Arc::new(Mutex::new(Turn {
                not_before: Instant::now(),
            })),
            made: SyncMutex::new(Made {
                begun: 0,
                last: None,
            }),
        }))
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Made<T>> {
        self.0.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next value, made by `make` unless one that asked too has it made.
    pub(crate) async fn get(&self, make: impl FnOnce() -> T + Send + 'static) -> T {
        let seen = self.made().begun;
        let mut turn = self.0.turn.clone().lock_owned().await;
        let shared = self.made().last.clone();
        if let Some((number, value)) = shared
            && number > seen
        {
            return value;
        }
        if turn.not_before > Instant::now() {
            tokio::time::sleep_until(turn.not_before).await;
        }
        let number = {
            let mut made = self.made();
            made.begun += 1;
            made.begun
        };
        let state = self.0.clone();
        // In a task, so that the turn is kept until it is made, also when who asked goes away.
        let making = tokio::spawn(async move {
            let begun = Instant::now();
            let value = tokio::task::spawn_blocking(make).await?;
            turn.not_before = Instant::now() + (begun.elapsed() * (SHARE - 1)).min(PAUSE_MAX);
            let mut made = state.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.last = Some((number, value.clone()));
            Ok::<_, tokio::task::JoinError>(value)
        });
        making
            .await
            .and_then(|made| made)
            .expect("what is asked for does not panic, and is not cancelled")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_while_one_is_made_share_the_next() {
        let paced = Paced::<usize>::new();
        let count = Arc::new(AtomicUsize::new(0));
        let (go, wait) = mpsc::sync_channel::<()>(1);
        let wait = Arc::new(SyncMutex::new(wait));
        let ask = || {
            let (count, wait) = (count.clone(), wait.clone());
            paced.get(move || {
                wait.lock().unwrap().recv().unwrap();
                count.fetch_add(1, Ordering::Relaxed) + 1
            })
        };
        let mut first = Box::pin(ask());
        assert!(first.as_mut().now_or_never().is_none());
        let mut others: Vec<_> = (0..20).map(|_| Box::pin(ask())).collect();
        for other in &mut others {
            assert!(other.as_mut().now_or_never().is_none());
        }
        go.send(()).unwrap();
        assert_eq!(first.await, 1);
        go.send(()).unwrap();
        for other in others {
            assert_eq!(other.await, 2, "one that was begun after it was asked for");
        }
        go.send(()).unwrap();
        assert_eq!(ask().await, 3, "not an old one");
    }

    #[tokio::test]
    async fn who_goes_away_leaves_no_second_one_to_be_made_beside_the_first() {
        let paced = Paced::<usize>::new();
        let (go, wait) = mpsc::sync_channel::<()>(1);
        let first = paced.get(move || {
            wait.recv().unwrap();
            1
        });
        assert!(Box::pin(first).now_or_never().is_none());
        let mut second = Box::pin(paced.get(|| 2));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(paced.0.turn.try_lock().is_err());
        go.send(()).unwrap();
        assert_eq!(second.await, 2);
    }

    #[tokio::test]
    async fn one_that_takes_long_is_not_made_all_the_time() {
        let paced = Paced::<usize>::new();
        let pause = |not_before| paced.0.turn.try_lock().unwrap().not_before = not_before;
        pause(Instant::now() + Duration::from_secs(3600));
        assert!(paced.get(|| 1).now_or_never().is_none());
        assert_eq!(paced.made().begun, 0);
        pause(Instant::now());
        assert_eq!(paced.get(|| 2).await, 2);
    }
}
