//! What a shard tells those whose appends it took or refused.

use std::collections::VecDeque;
use std::sync::Arc;

use tidelog_log::StoredBatch;
use tidelog_record::{Offset, Timestamp};

use crate::append::{Acks, Appended};
use crate::error::AppendError;
use crate::metrics::Metrics;
use crate::partition::{Partition, Waiter};
use crate::shard::Append;

/// Answers those that one call of [`tidelog_log::Log::append`] took. Says whether a sync has to come to that.
pub(crate) fn answer_taken(
    partition: &Arc<Partition>,
    taken: impl Iterator<Item = Append>,
    appended: &tidelog_log::Appended,
    now: Timestamp,
    metrics: &Metrics,
) -> bool {
    let mut base = appended.base_offset;
    let mut stored = false;
    for append in taken {
        if let Some(before) = &appended.duplicate {
            metrics.append_duplicates.inc();
            stored |= answer_duplicate(partition, append, before, metrics);
            continue;
        }
        let records = u64::from(append.batch.record_count());
        let end = base
            .checked_add(records)
            .expect("the log gave these offsets");
        metrics.append_batches.inc();
        metrics.append_records.inc_by(records);
        metrics.append_bytes.inc_by(append.batch.total_len() as u64);
        let appended = Appended {
            base_offset: base,
            log_append_time: append.log_append_time.then_some(now),
            duplicate: false,
        };
        accept(partition, append, appended, end, metrics);
        base = end;
        stored = true;
    }
    stored
}

/// Refuses the first of those that were not taken, or all where the error is not of its batch alone.
pub(crate) fn refuse_front(unanswered: &mut VecDeque<Append>, error: &AppendError) {
    let is_of_one = matches!(
        error,
        AppendError::TooLarge { .. } | AppendError::Producer { .. }
    );
    let count = if is_of_one { 1 } else { unanswered.len() };
    for append in unanswered.drain(..count) {
        refuse(append, error);
    }
}

/// Answers now or at the sync, as the append asks for.
fn accept(
    partition: &Arc<Partition>,
    append: Append,
    appended: Appended,
    end: Offset,
    metrics: &Metrics,
) {
    match append.acks {
        Acks::All => partition.wait(Waiter {
            end,
            appended,
            reply: append.reply,
            since: append.since,
            room: append.room,
        }),
        Acks::Leader | Acks::None => {
            Metrics::observe(&metrics.append_seconds, append.since.elapsed());
            drop(append.room);
            drop(append.reply.send(Ok(appended)));
        }
    }
}

/// Answers for a batch that was stored before: at once, or when it is durable. Says whether a sync
/// has to come to that.
fn answer_duplicate(
    partition: &Arc<Partition>,
    append: Append,
    stored: &StoredBatch,
    metrics: &Metrics,
) -> bool {
    let appended = Appended {
        base_offset: stored.base_offset,
        log_append_time: stored.log_append_time,
        duplicate: true,
    };
    let end = stored
        .base_offset
        .checked_add(u64::from(stored.records))
        .expect("the log gave these offsets");
    if append.acks == Acks::All && end > partition.high_watermark() {
        accept(partition, append, appended, end, metrics);
        return true;
    }
    drop(append.room);
    drop(append.reply.send(Ok(appended)));
    false
}

pub(crate) fn refuse(append: Append, error: &AppendError) {
    drop(append.room);
    drop(append.reply.send(Err(error.clone())));
}

pub(crate) fn append_error(partition: &Partition, error: tidelog_log::AppendError) -> AppendError {
    use tidelog_log::AppendError as Log;
    let poisoned = |fault: String| AppendError::Poisoned {
        topic: partition.topic.clone(),
        partition: partition.number(),
        fault,
    };
    match error {
        Log::Full { ref dir, needed } => AppendError::Full {
            what: error.to_string(),
            dir: dir.clone(),
            needed,
        },
        Log::OutOfFiles { .. } => AppendError::OutOfFiles(error.to_string()),
        Log::TooLarge { len, segment_bytes } => AppendError::TooLarge {
            topic: partition.topic.clone(),
            len: usize::try_from(len).unwrap_or(usize::MAX),
            max: usize::try_from(segment_bytes).unwrap_or(usize::MAX),
        },
        Log::Producer(error) => AppendError::Producer {
            topic: partition.topic.clone(),
            partition: partition.number(),
            error,
        },
        Log::Exhausted | Log::Poisoned(_) => poisoned(error.to_string()),
        // Any part of it may be found at the next start.
        Log::WriteFailed(_) => AppendError::OutcomeUnknown {
            cause: error.to_string(),
        },
    }
}
