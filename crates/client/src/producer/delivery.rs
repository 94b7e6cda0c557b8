//! What became of a record: one future each, one shared outcome a batch.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tidelog_record::{Offset, PartitionId, Timestamp};
use tokio::time::Instant;

use crate::ClientError;

/// Where a record was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// In which partition.
    pub partition: PartitionId,
    /// At which offset; `None` with [`crate::Acks::None`], where the broker does not answer.
    pub offset: Option<Offset>,
    /// The record's timestamp: its own, or the broker's in topics with
    /// `message.timestamp.type=LogAppendTime`.
    pub timestamp: Timestamp,
    /// When the acknowledgement came.
    pub acknowledged_at: Instant,
}

/// Gives what became of one record. Dropping it changes nothing: the record is sent all the same.
///
/// Resolves within the producer's delivery timeout, as long as its runtime runs.
pub struct DeliveryFuture {
    outcome: Arc<BatchOutcome>,
    /// Which record of the batch.
    index: u32,
    timestamp: Timestamp,
    /// Where our waker is kept, once there is one.
    slot: Option<usize>,
}

/// What became of a batch, shared by the futures of its records.
#[derive(Debug)]
pub(crate) struct BatchOutcome {
    partition: PartitionId,
    settled: OnceLock<Result<BatchDelivered, ClientError>>,
    wakers: Mutex<Vec<Waker>>,
}

/// Where a batch was stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchDelivered {
    pub(crate) base_offset: Option<Offset>,
    pub(crate) log_append_time: Option<Timestamp>,
    pub(crate) acknowledged_at: Instant,
}

impl BatchOutcome {
    pub(crate) fn new(partition: PartitionId) -> Arc<Self> {
        Arc::new(Self {
            partition,
            settled: OnceLock::new(),
            wakers: Mutex::new(Vec::new()),
        })
    }

    /// The future of the record at `index`.
    pub(crate) fn future(self: &Arc<Self>, index: u32, timestamp: Timestamp) -> DeliveryFuture {
        DeliveryFuture {
            outcome: Arc::clone(self),
            index,
            timestamp,
            slot: None,
        }
    }

    /// Resolves all futures of the batch; only the first call counts.
    pub(crate) fn settle(&self, result: Result<BatchDelivered, ClientError>) {
        if self.settled.set(result).is_ok() {
            for waker in std::mem::take(&mut *self.wakers.lock()) {
                waker.wake();
            }
        }
    }
}

impl DeliveryFuture {
    /// What became of the record, if that is known already.
    pub fn try_get(&self) -> Option<Result<Delivered, ClientError>> {
        let settled = self.outcome.settled.get()?;
        Some(match settled {
            Ok(batch) => Ok(Delivered {
                partition: self.outcome.partition,
                offset: batch
                    .base_offset
                    .and_then(|base| base.checked_add(u64::from(self.index))),
                timestamp: batch.log_append_time.unwrap_or(self.timestamp),
                acknowledged_at: batch.acknowledged_at,
            }),
            Err(error) => Err(error.clone()),
        })
    }
}

impl Future for DeliveryFuture {
    type Output = Result<Delivered, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.try_get() {
            return Poll::Ready(result);
        }
        let outcome = Arc::clone(&self.outcome);
        let mut wakers = outcome.wakers.lock();
        // Settling takes the wakers under this lock after it set the result: looking again under
        // it leaves no moment in which nobody wakes us.
        if let Some(result) = self.try_get() {
            return Poll::Ready(result);
        }
        match self.slot {
            Some(slot) => wakers[slot].clone_from(context.waker()),
            None => {
                self.slot = Some(wakers.len());
                wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for DeliveryFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryFuture")
            .field("partition", &self.outcome.partition)
            .field("result", &self.try_get())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_records_of_a_batch_resolve_together() {
        let outcome = BatchOutcome::new(PartitionId::new(3));
        let waiting: Vec<_> = (0..3)
            .map(|index| {
                tokio::spawn(outcome.future(index, Timestamp::from_millis(i64::from(index))))
            })
            .collect();
        tokio::task::yield_now().await;
        let acknowledged_at = Instant::now();
        let base_offset = Offset::new(10);
        outcome.settle(Ok(BatchDelivered {
            base_offset,
            log_append_time: None,
            acknowledged_at,
        }));
        outcome.settle(Err(ClientError::Closed));
        for (index, task) in (0..).zip(waiting) {
            let delivered = task.await.unwrap().unwrap();
            assert_eq!(delivered.offset, Offset::new(10 + index));
            assert_eq!(delivered.partition, PartitionId::new(3));
            assert_eq!(Ok(delivered.timestamp.millis()), i64::try_from(index));
        }
        let late = outcome.future(0, Timestamp::NONE);
        assert!(late.try_get().unwrap().is_ok());
    }

    #[tokio::test]
    async fn brokers_times_replace_those_of_records() {
        let outcome = BatchOutcome::new(PartitionId::new(0));
        outcome.settle(Ok(BatchDelivered {
            base_offset: None,
            log_append_time: Some(Timestamp::from_millis(7)),
            acknowledged_at: Instant::now(),
        }));
        let delivered = outcome.future(0, Timestamp::from_millis(1)).await.unwrap();
        assert_eq!(delivered.timestamp, Timestamp::from_millis(7));
        assert_eq!(delivered.offset, None);
    }
}
