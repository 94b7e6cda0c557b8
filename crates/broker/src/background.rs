//! What the broker's own threads share: waits that a stop ends, and a rate.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::Broker;
use crate::mailbox::ShardHandle;

/// Waits of one thread, each ended by the broker's stop.
#[derive(Debug)]
pub(crate) struct Waits {
    runtime: Runtime,
    stopping: watch::Receiver<bool>,
}

/// The broker stops.
#[derive(Debug)]
pub(crate) struct BrokerStops;

impl Waits {
    /// `None` when no timer could be made, which is logged.
    pub(crate) fn new(stopping: watch::Receiver<bool>, what: &'static str) -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        match runtime {
            Ok(runtime) => Some(Self { runtime, stopping }),
            Err(error) => {
                tracing::error!(%error, what, "it does not run: no timer could be made");
                None
            }
        }
    }

    /// Waits so long, unless the broker stops.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<(), BrokerStops> {
        let stopping = &mut self.stopping;
        let stops = self.runtime.block_on(async {
            let stops = stopping.wait_for(|stopping| *stopping);
            tokio::time::timeout(time, stops).await.is_ok()
        });
        if stops { Err(BrokerStops) } else { Ok(()) }
    }

    /// Waits until something is done, unless the broker stops.
    pub(crate) fn until<T>(&mut self, done: impl Future<Output = T>) -> Result<T, BrokerStops> {
        let stopping = &mut self.stopping;
        self.runtime.block_on(async {
            tokio::select! {
                done = done => Ok(done),
                _ = stopping.wait_for(|stopping| *stopping) => Err(BrokerStops),
            }
        })
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }
}

impl Broker {
    /// Starts the thread that tells the shards of time, for as long as they want to know.
    pub(crate) fn start_ticker(&self) -> std::io::Result<()> {
        let shards = self.inner().shards.clone();
        let stopping = self.inner().stopping.subscribe();
        let thread = std::thread::Builder::new()
            .name("tidelog-ticker".to_owned())
            .spawn(move || {
                if let Some(mut waits) = Waits::new(stopping, "the ticker") {
                    // It ends when the broker stops, and for no other reason.
                    let _stops = tick(&shards, &mut waits);
                }
            })?;
        self.inner().threads.lock().push(thread);
        Ok(())
    }
}

fn tick(shards: &[ShardHandle], waits: &mut Waits) -> Result<(), BrokerStops> {
    loop {
        waits.wait(TICK)?;
        // All are told, whatever the first says.
        let wanting = shards.iter().filter(|shard| shard.tick()).count();
        if let Some(shard) = shards.first().filter(|_| wanting == 0) {
            // One that wants to know from now on, or has just begun to, leaves word.
            waits.until(shard.wants_ticks.notified())?;
        }
    }
}

/// What replicas count time in.
const TICK: Duration = Duration::from_millis(100);

/// Lets at most so many bytes a second pass, by pausing for as long as those that passed take at
/// that rate: the time that the work itself takes comes on top.
#[derive(Debug)]
pub(crate) struct Rate {
    bytes_per_second: u64,
    /// Passed since the last pause.
    passed: u64,
}

/// Shorter pauses cost more than they say.
const PAUSE_MIN: Duration = Duration::from_millis(20);

impl Rate {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            passed: 0,
        }
    }

    /// So many bytes pass. Says how long to pause now, if at all.
    pub(crate) fn pass(&mut self, bytes: u64) -> Option<Duration> {
        self.passed = self.passed.saturating_add(bytes);
        let nanos = u128::from(self.passed) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        (pause >= PAUSE_MIN).then(|| {
            self.passed = 0;
            pause
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_add_up_to_the_rate() {
        let mut rate = Rate::new(1_000_000);
        let pauses: Vec<_> = (0..1000).filter_map(|_| rate.pass(7000)).collect();
        let sum: Duration = pauses.iter().sum();
        // 7 MB at 1 MB/s, but for what still waits for a pause worth making.
        assert!(sum <= Duration::from_secs(7) && sum + PAUSE_MIN > Duration::from_secs(7));
        assert!(pauses.iter().all(|pause| *pause >= PAUSE_MIN));
        assert_eq!(
            Rate::new(0).pass(u64::MAX),
            Some(
                Duration::from_secs(u64::MAX / 1_000_000_000)
                    + Duration::from_nanos(u64::MAX % 1_000_000_000)
            )
        );
    }

    #[test]
    fn a_stop_ends_a_wait() {
        let (stop, stopping) = watch::channel(false);
        let mut waits = Waits::new(stopping, "a test").unwrap();
        waits.wait(Duration::ZERO).unwrap();
        let waiter = std::thread::spawn(move || waits.wait(Duration::from_secs(3600)));
        stop.send_replace(true);
        assert!(waiter.join().unwrap().is_err());
    }
}
