//! Counting durations in little memory: buckets of 1/64 of their power of two, so that what is read
//! back is at most 1.6 % too large.

use std::time::Duration;

/// Buckets to a power of two, and the bits of their number.
const SUB_BUCKETS: u64 = 64;
const SUB_BITS: u32 = 6;

/// Durations by nanoseconds, up to 584 years.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        let powers = usize::try_from(u64::BITS - SUB_BITS + 1).expect("a small number");
        let buckets = powers * usize::try_from(SUB_BUCKETS).expect("a small number");
        Self {
            counts: vec![0; buckets],
            count: 0,
            max: Duration::ZERO,
        }
    }

    pub(crate) fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(duration);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// The duration that at least so many of a thousand are not above.
    pub(crate) fn per_mille(&self, per_mille: u64) -> Duration {
        // As if sorted, the smallest at rank 1.
        let rank = (u128::from(self.count) * u128::from(per_mille))
            .div_ceil(1000)
            .max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return Duration::from_nanos(largest_of(bucket)).min(self.max);
            }
        }
        self.max
    }
}

fn bucket_of(nanos: u64) -> usize {
    let bits = u64::BITS - nanos.leading_zeros();
    let shift = bits.saturating_sub(SUB_BITS + 1);
    // Below 64 the numbers themselves; above, 64 to 127 shifted left.
    let bucket = u64::from(shift) * SUB_BUCKETS + (nanos >> shift);
    usize::try_from(bucket).expect("there are few buckets")
}

fn largest_of(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).expect("there are few buckets");
    let shift = (bucket / SUB_BUCKETS).saturating_sub(1);
    let within = bucket - shift * SUB_BUCKETS;
    (((u128::from(within) + 1) << shift) - 1)
        .try_into()
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_those_of_sorted_values() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.max(), Duration::from_millis(1));
        for per_mille in [1, 500, 950, 990, 1000] {
            let exact = Duration::from_micros(per_mille);
            let read = histogram.per_mille(per_mille);
            assert!(
                read >= exact && read <= exact.mul_f64(1.016),
                "{per_mille}: {read:?}"
            );
        }
    }

    #[test]
    fn nothing_is_zero_and_one_is_everything() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.per_mille(500), Duration::ZERO);
        histogram.record(Duration::from_micros(7));
        for per_mille in [1, 500, 1000] {
            assert_eq!(histogram.per_mille(per_mille), Duration::from_micros(7));
        }
        histogram.record(Duration::from_nanos(u64::MAX));
        histogram.record(Duration::ZERO);
        assert_eq!(histogram.per_mille(1), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn buckets_hold_what_they_say(nanos: u64) {
            let bucket = bucket_of(nanos);
            let largest = largest_of(bucket);
            prop_assert!(largest >= nanos);
            prop_assert!(u128::from(largest - nanos) * 64 <= u128::from(nanos));
            prop_assert!(bucket == 0 || largest_of(bucket - 1) < nanos);
            prop_assert!(bucket < Histogram::new().counts.len());
        }
    }
}
