//! Who waits for a shard, and what each is told.

use std::sync::Arc;
use std::time::Instant;

use tidelog_record::{Offset, Timestamp};
use tidelog_replica::{Done, GroupError, ProposeError, Refusal, node_of};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::append::Appended;
use crate::error::{AppendError, DeleteError, LookupError, NotLeader};
use crate::metrics::Metrics;
use crate::partition::Partition;
use crate::shard::Known;

/// Somebody who waits for a shard.
#[derive(Debug)]
pub(crate) enum Waiter {
    Append(AppendWaiter),
    Trim {
        partition: Arc<Partition>,
        reply: oneshot::Sender<Result<Offset, DeleteError>>,
    },
    /// Who wants to know up to where a log is committed.
    ReadIndex {
        reply: oneshot::Sender<Result<Known, Refusal>>,
    },
    /// Who wants a group to go on without those of its replicas that are lost.
    Recover {
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Retention, which goes on when the log start is committed.
    Retain {
        partition: Arc<Partition>,
        now: Timestamp,
        /// From which age on the active segment is to be sealed then.
        roll_at: Option<u64>,
        reply: oneshot::Sender<Result<Offset, DeleteError>>,
    },
}

/// An append on its way to a log.
#[derive(Debug)]
pub(crate) struct AppendWaiter {
    pub(crate) partition: Arc<Partition>,
    pub(crate) records: u32,
    pub(crate) bytes: usize,
    pub(crate) since: Instant,
    /// When it was proposed, where it is answered once it is committed.
    pub(crate) proposed: Option<Instant>,
    /// The request's bytes of the broker's budget, given back before the answer, even by a panic:
    /// whoever is answered finds room for the next request.
    pub(crate) room: Arc<OwnedSemaphorePermit>,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
}

impl AppendWaiter {
    /// What became of it.
    pub(crate) fn answer(self, result: Result<Done, Refusal>, metrics: &Metrics) {
        match result {
            Ok(Done::Stored {
                base_offset,
                log_append_time,
                is_duplicate,
            }) => {
                if is_duplicate {
                    metrics.append_duplicates.inc();
                } else {
                    metrics.append_batches.inc();
                    metrics.append_records.inc_by(u64::from(self.records));
                    metrics.append_bytes.inc_by(self.bytes as u64);
                }
                Metrics::observe(&metrics.append_seconds, self.since.elapsed());
                if let Some(proposed) = self.proposed {
                    Metrics::observe(&metrics.commit_seconds, proposed.elapsed());
                }
                drop(self.room);
                // Nobody may be listening any more: the records are stored all the same.
                drop(self.reply.send(Ok(Appended {
                    base_offset,
                    log_append_time,
                    duplicate: is_duplicate,
                })));
            }
            Ok(Done::LogStart(_) | Done::ReadIndex(_) | Done::Recovered) => {
                unreachable!("not what was asked for")
            }
            Err(refusal) => {
                let error = refused(&self.partition, refusal);
                self.refuse(&error);
            }
        }
    }

    pub(crate) fn refuse(self, error: &AppendError) {
        drop(self.room);
        drop(self.reply.send(Err(error.clone())));
    }
}

/// Why something was not done, as a caller of the broker is told.
pub(crate) fn refused(partition: &Partition, refusal: Refusal) -> AppendError {
    let unknown = |cause: String| AppendError::OutcomeUnknown { cause };
    match refusal {
        Refusal::Refused(error) => proposal_error(partition, error),
        Refusal::Gone if partition.is_moved() => not_leader(partition, None),
        Refusal::Gone => AppendError::Lookup(LookupError::TopicNotFound {
            topic: partition.topic.to_string(),
        }),
        Refusal::Down(_) if partition.has_others() => not_leader(partition, None),
        Refusal::Down(e) => poisoned(partition, failure(e)),
        Refusal::Failed(e) => unknown(failure(e)),
        Refusal::NotRecovered(e) => unknown(e.to_string()),
        Refusal::Stalled(e) => unknown(format!("it waits for space: {e}")),
        Refusal::Lost { leader } => unknown(match leader.map(node_of) {
            Some(leader) => format!("broker {leader} leads the partition now"),
            None => "no leader of the partition is known any more".to_owned(),
        }),
    }
}

fn failure(error: GroupError) -> String {
    match error {
        GroupError::Poisoned(poisoned) => poisoned.to_string(),
        e => e.to_string(),
    }
}

fn poisoned(partition: &Partition, fault: String) -> AppendError {
    AppendError::Poisoned {
        topic: partition.topic.clone(),
        partition: partition.number(),
        fault,
    }
}

fn not_leader(partition: &Partition, leader: Option<u32>) -> AppendError {
    AppendError::Lookup(LookupError::NotLeader(NotLeader {
        topic: partition.topic.clone(),
        partition: partition.number(),
        leader,
        epoch: partition.leader_epoch().get(),
        address: None,
    }))
}

fn proposal_error(partition: &Partition, error: ProposeError) -> AppendError {
    match error {
        ProposeError::NotLeader { leader } => not_leader(partition, leader.map(node_of)),
        // It waits in the queue instead, all but for changes of members, which are asked for elsewhere.
        ProposeError::NotReady
        | ProposeError::Busy { .. }
        | ProposeError::LeaderLeaves
        | ProposeError::VotersAway
        | ProposeError::TooManyMembers { .. } => not_leader(partition, None),
        ProposeError::PastEnd { .. } => AppendError::Request(error.to_string()),
        ProposeError::Producer(error) => AppendError::Producer {
            topic: partition.topic.clone(),
            partition: partition.number(),
            error,
        },
        ProposeError::Append(error) => log_error(partition, error),
    }
}

/// Why a log took nothing.
pub(crate) fn log_error(partition: &Partition, error: tidelog_log::AppendError) -> AppendError {
    use tidelog_log::AppendError as Log;
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
        Log::Exhausted | Log::Poisoned(_) => poisoned(partition, error.to_string()),
        // Any part of it may be found at the next start.
        Log::WriteFailed(_) => AppendError::OutcomeUnknown {
            cause: error.to_string(),
        },
    }
}
