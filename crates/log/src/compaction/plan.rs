//! Which segments are compacted, and which of them become one.

use std::sync::Arc;

use tidelog_record::{Offset, Timestamp};

use crate::reader::LogReader;
use crate::retention::ages_since_sealed;
use crate::segment::Segment;
use crate::shared::Shared;

/// How much of a log may be compacted by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compactable {
    /// Bytes of the segments in which no key has two records.
    pub clean_bytes: u64,
    /// Bytes of the sealed segments behind them, as far as they may be touched.
    pub dirty_bytes: u64,
    /// Where the dirty part begins.
    pub dirty_from: Offset,
    /// When the first of the dirty segments was made.
    pub dirty_since: Option<Timestamp>,
}

impl Compactable {
    /// The dirty part's share of all: what Kafka's `min.cleanable.dirty.ratio` is compared to.
    pub fn dirty_ratio(&self) -> f64 {
        let all = self.clean_bytes + self.dirty_bytes;
        if all == 0 {
            return 0.0;
        }
        #[allow(
            clippy::cast_precision_loss,
            reason = "a ratio, compared with a setting"
        )]
        let ratio = self.dirty_bytes as f64 / all as f64;
        ratio
    }
}

impl LogReader {
    /// How much of the log may be compacted by now, with the options of the same names in
    /// [`CompactionOptions`](crate::CompactionOptions). Reads no file.
    pub fn compactable(&self, now: Timestamp, min_lag_ms: u64, end_max: Offset) -> Compactable {
        let plan = Plan::of(self.shared(), now, min_lag_ms, end_max);
        let sum = |segments: &[Arc<Segment>]| segments.iter().map(|s| len_of(s)).sum();
        Compactable {
            clean_bytes: sum(plan.clean()),
            dirty_bytes: sum(plan.dirty()),
            dirty_from: plan.dirty_from,
            dirty_since: plan.dirty().first().map(|s| s.header.created_at),
        }
    }
}

/// The sealed segments that may be touched.
pub(super) struct Plan {
    /// Oldest first.
    segments: Vec<Arc<Segment>>,
    /// So many of them are clean.
    clean: usize,
    /// Up to here no key has two records.
    pub(super) dirty_from: Offset,
}

impl Plan {
    pub(super) fn of(shared: &Shared, now: Timestamp, min_lag_ms: u64, end_max: Offset) -> Self {
        let segments = shared.segments();
        let is_clean = |segment: &&Arc<Segment>| {
            let compacted = segment.header.compacted;
            compacted.is_some_and(|compacted| compacted.clean_end == compacted.end_offset)
        };
        let clean = segments.iter().take_while(is_clean).count();
        let ages = ages_since_sealed(&segments, now);
        let sealed = segments.windows(2).zip(ages).skip(clean);
        // Internal entries take no offset: those at the end of a segment whose records are all
        // committed may still be taken back.
        let committed = shared.committed().index;
        let is_committed = |next: &Segment| {
            next.header.base_offset <= end_max && next.header.base_index <= committed
        };
        let dirty = sealed
            .take_while(|(pair, age)| is_committed(&pair[1]) && *age >= min_lag_ms)
            .count();
        let first_dirty = &segments[clean].header;
        let clean_end = first_dirty.compacted.map(|compacted| compacted.clean_end);
        Self {
            dirty_from: clean_end
                .unwrap_or(first_dirty.base_offset)
                .max(first_dirty.base_offset)
                .max(shared.log_start()),
            segments: segments[..clean + dirty].to_vec(),
            clean,
        }
    }

    fn clean(&self) -> &[Arc<Segment>] {
        &self.segments[..self.clean]
    }

    pub(super) fn dirty(&self) -> &[Arc<Segment>] {
        &self.segments[self.clean..]
    }

    /// How many offsets the dirty part has: at most so many keys.
    pub(super) fn dirty_records(&self) -> u64 {
        let end = self.dirty().last().and_then(|segment| segment.sealed_end());
        end.map_or(0, |end| {
            end.offset.get().saturating_sub(self.dirty_from.get())
        })
    }

    /// The segments that hold records below `covered`, in groups that each become one segment: as
    /// many neighbours as are no longer than `segment_bytes` together, before anything is left out.
    pub(super) fn groups(&self, covered: Offset, segment_bytes: u32) -> Vec<Vec<Arc<Segment>>> {
        let mut groups: Vec<Vec<Arc<Segment>>> = Vec::new();
        let mut len = 0;
        for segment in &self.segments {
            let header = &segment.header;
            if header.base_offset >= covered {
                break;
            }
            let more = len_of(segment);
            let joins = groups.last().is_some_and(|group| {
                let first = &group[0].header;
                let end = segment
                    .sealed_end()
                    .map_or(header.base_offset, |end| end.offset);
                // Index entries count offsets and Raft indexes from the base in 32 bits.
                len + more <= u64::from(segment_bytes)
                    && end.records_since(first.base_offset) < u64::from(u32::MAX >> 1)
                    && header.base_index.get() - first.base_index.get() < u64::from(u32::MAX >> 1)
            });
            match groups.last_mut().filter(|_| joins) {
                Some(group) => group.push(segment.clone()),
                None => {
                    groups.push(vec![segment.clone()]);
                    len = 0;
                }
            }
            len += more;
        }
        groups
    }
}

/// The length of a sealed segment's file.
pub(super) fn len_of(segment: &Segment) -> u64 {
    segment.sealed_end().map_or(0, |end| u64::from(end.len))
}
