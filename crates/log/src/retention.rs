//! Which records are old enough, or too many, to be kept.

use tidelog_record::{Offset, Timestamp};

use crate::reader::LogReader;

/// How many milliseconds lie between the two; `None` when the clock went back.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> Option<u64> {
    u64::try_from(now.millis().saturating_sub(then.millis())).ok()
}

impl LogReader {
    /// How long ago the active segment was made, in milliseconds, if it holds records.
    pub fn active_age(&self, now: Timestamp) -> Option<u64> {
        let segments = self.shared().segments();
        let active = &segments.last()?.header;
        let has_records = self.end_offset() > active.base_offset;
        has_records.then(|| age(active.created_at, now)).flatten()
    }

    /// Where the log should start so that no sealed segment is kept longer than `retention_ms`
    /// after it was sealed, and the log is no longer than `retention_bytes` as far as whole sealed
    /// segments allow. At most `end_max`, the high watermark.
    ///
    /// A segment was sealed when the next one was made, by the broker's clock: record timestamps
    /// play no part, so that a backfill of old events stays, and a record from the future does not
    /// keep its segment for ever. The active segment stays; see [`Log::roll_if_aged`].
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
        for pair in segments.windows(2) {
            let age = age(pair[1].header.created_at, now).unwrap_or(0);
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
