//! Which records are old enough, or too many, to be kept.

use std::sync::Arc;

use tidelog_record::{Offset, Timestamp};

use crate::reader::LogReader;
use crate::segment::Segment;

/// How many milliseconds lie between the two; `None` when the clock went back.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> Option<u64> {
    u64::try_from(now.millis().saturating_sub(then.millis())).ok()
}

/// A clock may be set back by so many milliseconds without anybody's noticing.
const SET_BACK_MAX: u64 = 24 * 60 * 60 * 1000;

/// Whether this was made by a clock that was far ahead of what the clock says now. A segment of then
/// would not be old for as long.
pub(crate) fn is_of_the_future(made: Timestamp, now: Timestamp) -> bool {
    age(now, made).is_some_and(|ahead| ahead > SET_BACK_MAX)
}

impl LogReader {
    /// How long ago the active segment was made, in milliseconds, if it holds records. One that was
    /// made more than a day from now is as old as can be: the clock was wrong then.
    pub fn active_age(&self, now: Timestamp) -> Option<u64> {
        let segments = self.shared().segments();
        let active = &segments.last()?.header;
        let has_records = self.end_offset() > active.base_offset;
        if has_records && is_of_the_future(active.created_at, now) {
            return Some(u64::MAX);
        }
        has_records.then(|| age(active.created_at, now)).flatten()
    }

    /// Where the log should start so that no sealed segment is kept longer than `retention_ms`
    /// after it was sealed, and the log is no longer than `retention_bytes` as far as whole sealed
    /// segments allow. At most `end_max`, the high watermark.
    ///
    /// A segment was sealed when the next one was made, by the broker's clock: record timestamps
    /// play no part, so that a backfill of old events stays, and a record from the future does not
    /// keep its segment for ever. Where the clock was ahead when a segment was sealed, it counts as
    /// sealed when the first later one was made that is not of the future. The active segment stays;
    /// see [`Log::roll_if_aged`].
    ///
    /// [`Log::roll_if_aged`]: crate::Log::roll_if_aged
    pub fn retention_start(
        &self,
        now: Timestamp,
        retention_ms: Option<u64>,
        retention_bytes: Option<u64>,
        end_max: Offset,
    ) -> Offset {
        let segments = self.shared().segments();
        let len_of = |segment| u64::from(self.shared().readable_len(segment));
        let mut bytes: u64 = segments.iter().map(|segment| len_of(segment)).sum();
        let mut start = self.log_start();
        let ages = ages_since_sealed(&segments, now);
        for (pair, age) in segments.windows(2).zip(ages) {
            let len = len_of(&pair[0]);
            let too_old = retention_ms.is_some_and(|limit| age > limit);
            let too_many = retention_bytes.is_some_and(|limit| bytes.saturating_sub(len) >= limit);
            if (!too_old && !too_many) || pair[1].header.base_offset > end_max {
                break;
            }
            bytes = bytes.saturating_sub(len);
            start = start.max(pair[1].header.base_offset);
        }
        start
    }
}

/// How long ago each segment but the active one was sealed, in milliseconds.
pub(crate) fn ages_since_sealed(segments: &[Arc<Segment>], now: Timestamp) -> Vec<u64> {
    let mut ages = Vec::with_capacity(segments.len());
    let mut later = 0;
    for next in segments.iter().skip(1).rev() {
        later = age(next.header.created_at, now).unwrap_or(later);
        ages.push(later);
    }
    ages.reverse();
    ages
}
