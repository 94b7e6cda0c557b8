//! How long to wait before trying again.

use std::time::Duration;

/// Exponential backoff with full jitter: before the n-th retry, a random time between 0 and
/// `min * 2^(n-1)`, but at most `max`.
///
/// Full jitter spreads clients that lost the same broker at the same moment over the whole time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The bound of the first wait.
    pub min: Duration,
    /// The bound of every wait.
    pub max: Duration,
}

impl Default for Backoff {
    /// 20 ms to 2 s.
    fn default() -> Self {
        Self {
            min: Duration::from_millis(20),
            max: Duration::from_secs(2),
        }
    }
}

impl Backoff {
    /// How long to wait before retry number `retry`, counted from 1; never shorter than what the
    /// broker asked for.
    pub fn wait(&self, retry: u32, asked: Option<Duration>) -> Duration {
        let bound = self.bound(retry);
        let jittered = bound.mul_f64(fastrand::f64());
        match asked {
            // What the broker asked for is a floor for everybody: jitter comes on top.
            Some(asked) => asked.saturating_add(jittered),
            None => jittered,
        }
    }

    /// The same, with waits of `max` at most.
    pub(crate) fn at_most(&self, max: Duration) -> Self {
        Self {
            min: self.min.min(max),
            max: self.max.min(max),
        }
    }

    /// The longest wait before retry number `retry`.
    fn bound(&self, retry: u32) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        self.min.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_most() {
        let backoff = Backoff {
            min: Duration::from_millis(10),
            max: Duration::from_millis(75),
        };
        let bounds: Vec<_> = (1..=6)
            .map(|retry| backoff.bound(retry).as_millis())
            .collect();
        assert_eq!(bounds, [10, 20, 40, 75, 75, 75]);
        assert_eq!(backoff.bound(u32::MAX), backoff.max);
    }

    #[test]
    fn waits_lie_within_their_bound() {
        let backoff = Backoff::default();
        for retry in 1..=20 {
            assert!(backoff.wait(retry, None) <= backoff.bound(retry));
            let asked = Duration::from_millis(300);
            let wait = backoff.wait(retry, Some(asked));
            assert!(wait >= asked && wait <= asked + backoff.bound(retry));
        }
    }
}
