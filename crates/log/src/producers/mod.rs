//! What a log knows of its producers, so that a batch that is sent again is stored once.
//!
//! An idempotent producer has an id and an epoch, and numbers the records it sends to a partition.
//! The table keeps for each producer its epoch and its last five batches, as Kafka does: so many
//! may be under way at a time. A batch is the next one, one of these five again, or refused.
//!
//! The table is derived from the batch headers of the log. `snapshot.rs` keeps it beside the log,
//! with the place it stands for; `rebuild.rs` reads the newest snapshot that fits and the headers
//! behind it.

mod of_log;
mod rebuild;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use thiserror::Error;
use tidelog_record::{BatchHeader, Offset, Timestamp, TimestampType};

pub(crate) use rebuild::{leads_on, rebuild};
pub(crate) use snapshot::{SNAPSHOT_LEN_MAX, Snapshot, UNFINISHED, load, load_all, snapshot_path};

/// How many of a producer's last batches are known: as many as it may have under way.
pub const PRODUCER_BATCHES: usize = 5;

/// How many producers one log knows at most. Above it those that were silent longest are
/// forgotten, an eighth at a time.
pub const PRODUCERS_MAX: usize = 100_000;

/// Why a batch of an idempotent producer is not stored. Nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProducerError {
    /// The producer was replaced by one with a newer epoch.
    #[error("producer {producer_id} has epoch {current} by now; epoch {epoch} is fenced")]
    Fenced {
        /// The producer.
        producer_id: i64,
        /// The batch's epoch.
        epoch: i16,
        /// The newest one known.
        current: i16,
    },
    /// Records are missing between the last batch that was stored and this one.
    #[error(
        "producer {producer_id}, epoch {epoch}: the next sequence number is {expected}, not {found}"
    )]
    OutOfOrder {
        /// The producer.
        producer_id: i64,
        /// The batch's epoch.
        epoch: i16,
        /// The sequence number that must come next.
        expected: i32,
        /// The batch's.
        found: i32,
    },
    /// Its records were stored, but so long ago that it is not known where.
    #[error(
        "producer {producer_id}, epoch {epoch}: the records from sequence number {found} on were \
         stored before; the next is {expected}"
    )]
    Duplicate {
        /// The producer.
        producer_id: i64,
        /// The batch's epoch.
        epoch: i16,
        /// The sequence number that must come next.
        expected: i32,
        /// The batch's.
        found: i32,
    },
    /// Nothing is known of the producer, and the batch is not its first: it was silent for too
    /// long, or its first batch never came.
    #[error(
        "producer {producer_id}, epoch {epoch} is not known here, and sequence number {found} is \
         not its first"
    )]
    Unknown {
        /// The producer.
        producer_id: i64,
        /// The batch's epoch.
        epoch: i16,
        /// The batch's sequence number.
        found: i32,
    },
}

/// A batch that was stored before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    /// The sequence number of its first record.
    pub base_sequence: i32,
    /// How many records it has.
    pub records: u32,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The timestamp its records got, where the broker gave it.
    pub log_append_time: Option<Timestamp>,
}

/// What a batch is to its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To be stored.
    Next,
    /// Stored before.
    Stored(StoredBatch),
}

/// One producer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// The broker's clock when it was last heard of; `None` until somebody knows the time.
    last_seen: Option<Timestamp>,
    /// Oldest first, at least one.
    batches: VecDeque<StoredBatch>,
}

/// The producers of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProducerTable {
    producers: HashMap<i64, Producer>,
}

impl ProducerTable {
    pub(crate) fn len(&self) -> usize {
        self.producers.len()
    }

    pub(crate) fn largest_id(&self) -> Option<i64> {
        self.producers.keys().copied().max()
    }

    /// What the batch with this header is. Batches without a producer are always next.
    pub(crate) fn check(&self, header: &BatchHeader) -> Result<Verdict, ProducerError> {
        let &BatchHeader {
            producer_id,
            producer_epoch: epoch,
            base_sequence: found,
            ..
        } = header;
        if producer_id < 0 {
            return Ok(Verdict::Next);
        }
        let Some(producer) = self.producers.get(&producer_id) else {
            return match found {
                0 => Ok(Verdict::Next),
                _ => Err(ProducerError::Unknown {
                    producer_id,
                    epoch,
                    found,
                }),
            };
        };
        if epoch < producer.epoch {
            return Err(ProducerError::Fenced {
                producer_id,
                epoch,
                current: producer.epoch,
            });
        }
        if epoch > producer.epoch {
            // A new epoch begins anew.
            return match found {
                0 => Ok(Verdict::Next),
                _ => Err(ProducerError::OutOfOrder {
                    producer_id,
                    epoch,
                    expected: 0,
                    found,
                }),
            };
        }
        let records = header.record_count.unsigned_abs();
        let stored = producer
            .batches
            .iter()
            .find(|stored| stored.base_sequence == found && stored.records == records);
        if let Some(stored) = stored {
            return Ok(Verdict::Stored(*stored));
        }
        let expected = producer.next_sequence();
        if found == expected {
            return Ok(Verdict::Next);
        }
        // Numbers go round: what lies in the half behind is old, in the half ahead is missing.
        let ahead = expected.wrapping_sub(found) & i32::MAX;
        Err(if ahead <= i32::MAX / 2 {
            ProducerError::Duplicate {
                producer_id,
                epoch,
                expected,
                found,
            }
        } else {
            ProducerError::OutOfOrder {
                producer_id,
                epoch,
                expected,
                found,
            }
        })
    }

    /// Notes that the batch with this header is stored at `base_offset`. It was checked, now or
    /// before it went into the log.
    pub(crate) fn note(
        &mut self,
        header: &BatchHeader,
        base_offset: Offset,
        now: Option<Timestamp>,
    ) {
        if header.producer_id < 0 {
            return;
        }
        let is_stamped = header.attributes.timestamp_type() == TimestampType::LogAppendTime;
        let stored = StoredBatch {
            base_sequence: header.base_sequence,
            records: header.record_count.unsigned_abs(),
            base_offset,
            log_append_time: is_stamped.then(|| Timestamp::from_millis(header.max_timestamp)),
        };
        let producer = self
            .producers
            .entry(header.producer_id)
            .or_insert_with(|| Producer {
                epoch: header.producer_epoch,
                last_seen: now,
                batches: VecDeque::with_capacity(PRODUCER_BATCHES),
            });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == PRODUCER_BATCHES {
            producer.batches.pop_front();
        }
        producer.batches.push_back(stored);
        producer.last_seen = now.or(producer.last_seen);
        self.bound(PRODUCERS_MAX);
    }

    /// Forgets the producers that were last heard of before `before`. Those whose time nobody
    /// knows, since they were found in the log, count as heard of `now`.
    pub(crate) fn expire(&mut self, before: Timestamp, now: Timestamp) -> usize {
        let known = self.producers.len();
        self.producers
            .retain(|_, producer| *producer.last_seen.get_or_insert(now) >= before);
        known - self.producers.len()
    }

    /// Keeps the table within `max` producers.
    fn bound(&mut self, max: usize) {
        if self.producers.len() <= max {
            return;
        }
        let excess = (max / 8).max(1);
        let mut times: Vec<(Option<Timestamp>, i64)> = self
            .producers
            .iter()
            .map(|(id, producer)| (producer.last_seen, *id))
            .collect();
        let (silent, _, _) = times.select_nth_unstable(excess);
        for (_, id) in silent {
            self.producers.remove(id);
        }
        tracing::warn!(
            forgotten = excess,
            max,
            "too many producers write to one partition; those that were silent longest are forgotten"
        );
    }
}

impl Producer {
    fn next_sequence(&self) -> i32 {
        let last = self
            .batches
            .back()
            .expect("a producer is known by a batch of it");
        sequence_after(last.base_sequence, last.records)
    }
}

/// The sequence number `records` after `base`: after 2^31 - 1 comes 0.
pub fn sequence_after(base: i32, records: u32) -> i32 {
    base.wrapping_add_unsigned(records) & i32::MAX
}
