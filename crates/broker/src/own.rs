//! What the broker itself writes to logs that it leads: changes of the metadata, and what groups decide.

use std::sync::Arc;

use bytes::Bytes;
use tidelog_controller::TimestampPolicy;
use tidelog_log::{Found, LogReader};
use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, Offset, ProducedBatch, Record, Timestamp,
    split_batches, validate_produced,
};
use tokio::sync::{Semaphore, oneshot};

use crate::append::{Acks, Appended};
use crate::error::AppendError;
use crate::mailbox::{Append, Command};
use crate::partition::Partition;

/// What becomes of what was handed over, once that is known.
pub(crate) type Written = oneshot::Receiver<Result<Appended, AppendError>>;

/// Hands records over to be appended to a partition as one batch, in the order of these calls, if this broker still
/// leads it in this term. They are copied once, into the batch.
///
/// # Errors
/// Why surely nothing was appended.
pub(crate) async fn write(
    partition: &Arc<Partition>,
    records: &[(Option<Bytes>, Option<Bytes>)],
    term: u64,
    now: Timestamp,
) -> Result<Written, AppendError> {
    // Not from the broker's budget for appends: what it has to write itself must not wait for clients, and is bounded
    // where it is gathered.
    let room = Arc::new(Semaphore::new(1)).try_acquire_owned();
    let (reply, replied) = oneshot::channel();
    #[expect(
        clippy::disallowed_methods,
        reason = "measured for people, decides nothing"
    )]
    let since = std::time::Instant::now();
    let log_append_time = partition.settings().timestamp_policy == TimestampPolicy::LogAppendTime;
    let append = Append {
        partition: partition.clone(),
        batch: batch(records, now)?,
        acks: Acks::All,
        log_append_time,
        // Whoever led in between may have decided something else.
        term: Some(term),
        reply,
        since,
        room: Arc::new(room.expect("a new semaphore has its permit")),
    };
    let sent = partition.shard.send(Command::Append(append)).await;
    sent.map_err(|_| AppendError::Stopping)?;
    Ok(replied)
}

fn batch(
    records: &[(Option<Bytes>, Option<Bytes>)],
    now: Timestamp,
) -> Result<ProducedBatch, AppendError> {
    let invalid = |e: &dyn std::fmt::Display| AppendError::Request(e.to_string());
    let mut builder = BatchBuilder::new(Compression::None);
    for (key, value) in records {
        builder
            .push(now, key.as_deref(), value.as_deref(), &[])
            .map_err(|e| invalid(&e))?;
    }
    let bytes = builder.build().map_err(|e| invalid(&e))?;
    validate_produced(bytes, &BatchLimits::default()).map_err(AppendError::from)
}

/// Why a log of the broker's own cannot be gone through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] tidelog_log::ReadError),
    /// What is read makes no sense.
    #[error("{0}")]
    Damaged(String),
}

impl WalkError {
    pub(crate) fn damaged(error: impl std::fmt::Display) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// Shows all records of a log from one offset to another, both of which are at the border of a batch, to `each`. Blocks.
pub(crate) fn walk(
    reader: &LogReader,
    mut from: Offset,
    end: Offset,
    mut each: impl FnMut(Offset, &Record) -> Result<(), WalkError>,
) -> Result<(), WalkError> {
    while from < end {
        let batches = match reader.read(from, end, 1 << 20)? {
            Found::Ready(batches) => batches,
            Found::Cold(cold) => cold.run()?,
        };
        for part in &batches.parts {
            for batch in split_batches(part.clone(), tidelog_log::BATCH_BYTES_LIMIT) {
                let batch = batch.map_err(WalkError::damaged)?;
                let records = batch.records(&BatchLimits::default());
                for record in records.map_err(WalkError::damaged)? {
                    let record = record.map_err(WalkError::damaged)?;
                    let base = u64::try_from(batch.header().base_offset).ok();
                    let base = base.and_then(Offset::new);
                    let offset = base.and_then(|base| record.offset(base));
                    let offset = offset.ok_or_else(|| WalkError::damaged("no such offset"))?;
                    each(offset, &record)?;
                }
            }
        }
        if batches.next_offset <= from {
            let at = Offset::get(from);
            return Err(WalkError::Damaged(format!(
                "the log cannot be read at {at}"
            )));
        }
        from = batches.next_offset;
    }
    Ok(())
}
