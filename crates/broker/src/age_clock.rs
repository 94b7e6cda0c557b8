//! The time that retention goes by: the wall clock, as far as it can be believed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidelog_record::Timestamp;

use crate::seams::Clock;

/// How much faster than time passes this clock goes at most, to catch up with the wall clock.
const SPEED_MAX: u32 = 2;
/// A jump ahead of less is not worth a word.
const JUMP_TOLD: i64 = 60_000;

/// Follows the wall clock, but where that jumps ahead, this one does not: it goes at twice the speed
/// of time until it has caught up. So a clock that is set wrong by an hour, or by years, does not
/// make everything old at once, and there is time to set it right. Where the wall clock jumps back,
/// this one does too: what seems younger is kept.
///
/// What came before the start is unknown, so the wall clock is believed then.
#[derive(Debug)]
pub(crate) struct AgeClock {
    clock: Arc<dyn Clock>,
    last: Mutex<Reading>,
}

#[derive(Debug)]
struct Reading {
    time: Timestamp,
    monotonic: Duration,
    /// Whether it was told that the wall clock is ahead.
    is_told: bool,
}

impl AgeClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let last = Reading {
            time: clock.now(),
            monotonic: clock.monotonic(),
            is_told: false,
        };
        Self {
            clock,
            last: Mutex::new(last),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let mut last = self.last.lock();
        let (wall, monotonic) = (self.clock.now(), self.clock.monotonic());
        let passed = monotonic.saturating_sub(last.monotonic) * SPEED_MAX;
        let passed = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let most = last.time.millis().saturating_add(passed);
        let ahead = wall.millis().saturating_sub(most);
        if ahead <= 0 {
            last.is_told = false;
        } else if ahead >= JUMP_TOLD && !last.is_told {
            tracing::warn!(
                ahead_ms = ahead,
                "the wall clock has jumped ahead: retention follows it slowly, and at once after a \
                 restart"
            );
            last.is_told = true;
        }
        last.time = wall.min(Timestamp::from_millis(most));
        last.monotonic = monotonic;
        last.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Hands(Mutex<(i64, u64)>);

    impl Hands {
        /// So much time passes, and the wall clock jumps.
        fn pass(&self, millis: u64, jump: i64) {
            let mut hands = self.0.lock();
            hands.0 += jump + i64::try_from(millis).expect("not that much");
            hands.1 += millis;
        }
    }

    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.lock().0)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.lock().1)
        }
    }

    #[test]
    fn it_follows_time_and_not_jumps() {
        let hands = Arc::new(Hands::default());
        hands.pass(0, 1_000_000);
        let clock = AgeClock::new(hands.clone());
        // How much time passes, the jump of the wall clock, what this one says.
        let expected = [
            (0, 0, 1_000_000),
            (500, 0, 1_000_500),
            (0, 10_000, 1_000_500),
            // It catches up.
            (1_000, 0, 1_002_500),
            (20_000, 0, 1_031_500),
            (0, -50_000, 981_500),
            // And after the jump back again.
            (10_000, 50_000, 1_001_500),
            (100_000, 0, 1_141_500),
            (1, i64::MAX / 2, 1_141_502),
            (1, -i64::MAX / 2, 1_141_502),
        ];
        for (passed, jump, says) in expected {
            hands.pass(passed, jump);
            assert_eq!(clock.now().millis(), says, "{passed}, {jump}");
        }
    }
}
