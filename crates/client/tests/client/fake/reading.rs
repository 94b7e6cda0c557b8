//! `Log.Read` of the fake broker.

use std::collections::HashMap;

use bytes::Bytes;
use tidelog_proto::v1::{self, read_response};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::{Fake, error, in_band};

/// One read stream: a batch a message, first all of one partition, then the next.
pub(super) struct Reading {
    fake: Fake,
    start: v1::ReadStart,
    requests: Streaming<v1::ReadRequest>,
    partitions: u32,
}

pub(super) type Answers = mpsc::Sender<Result<v1::ReadResponse, Status>>;

impl Reading {
    pub(super) fn new(
        fake: Fake,
        start: v1::ReadStart,
        requests: Streaming<v1::ReadRequest>,
        partitions: u32,
    ) -> Self {
        Self {
            fake,
            start,
            requests,
            partitions,
        }
    }

    pub(super) async fn run(mut self, answers: &Answers) -> Result<(), Status> {
        let send = async |response: read_response::Response| {
            drop(
                answers
                    .send(Ok(v1::ReadResponse {
                        response: Some(response),
                    }))
                    .await,
            );
        };
        let (ranges, failed) = self.ranges();
        // From before the first look at the log, so that no change is missed.
        let mut changes = self.fake.changes.subscribe();
        let (mut breaks_after, mut leaves_after) = {
            let mut state = self.fake.state();
            state.starts.push(self.start.clone());
            let breaks_after = state.read_breaks.pop_front().unwrap_or(usize::MAX);
            let leaves_after = state.read_goodbyes.pop_front().unwrap_or(usize::MAX);
            (breaks_after, leaves_after)
        };
        send(read_response::Response::Started(v1::ReadStarted {
            partitions: ranges.clone(),
        }))
        .await;

        for failed in failed {
            send(read_response::Response::PartitionError(failed)).await;
        }

        let mut credit = self.start.credit_bytes;
        'partitions: for range in &ranges {
            let partition = range.partition;
            let failure = self.fake.state().read_partition_errors.remove(&partition);
            if let Some(status) = failure {
                send(read_response::Response::PartitionError(
                    v1::ReadPartitionError {
                        partition,
                        next_offset: range.from,
                        error: Some(in_band(&status)),
                    },
                ))
                .await;
                continue;
            }
            let mut next_offset = range.from;
            while range.to.is_none_or(|to| next_offset < to) {
                self.fake.speak().await;
                let lost = self.fake.check_leader(partition);
                if let Err(status) = lost.or_else(|lost| self.follower(lost)) {
                    let error = Some(in_band(&status));
                    send(read_response::Response::PartitionError(
                        v1::ReadPartitionError {
                            partition,
                            next_offset,
                            error,
                        },
                    ))
                    .await;
                    continue 'partitions;
                }
                let Some((bytes, end)) = self.batch_at(partition, next_offset) else {
                    if self.take_heartbeat(partition) {
                        send(read_response::Response::Heartbeat(v1::ReadHeartbeat {})).await;
                        // The channel has room for one: with room again it was taken out.
                        drop(answers.reserve().await);
                        self.fake.state().heartbeats_sent += 1;
                        continue;
                    }
                    // Following: the test closes the stream.
                    tokio::select! {
                        changed = changes.changed() => changed.expect("the sender is in self"),
                        () = answers.closed() => return Ok(()),
                    }
                    continue;
                };
                let len = u64::try_from(bytes.len()).unwrap();
                // With some credit left one batch may pass it, so that reading always gets on.
                while credit == 0 {
                    match self.requests.message().await? {
                        Some(v1::ReadRequest {
                            request: Some(v1::read_request::Request::AddCreditBytes(more)),
                        }) => credit += more,
                        _ => return Ok(()),
                    }
                }
                if breaks_after == 0 {
                    return Err(Status::unavailable("broken on demand"));
                }
                breaks_after -= 1;
                if leaves_after == 0 {
                    let goodbye = v1::GoingAway { drain_ms: 1000 };
                    send(read_response::Response::GoingAway(goodbye)).await;
                    return Ok(());
                }
                leaves_after -= 1;
                {
                    let mut state = self.fake.state();
                    let over = len.saturating_sub(credit);
                    state.credit_exceeded_by = state.credit_exceeded_by.max(over);
                }
                credit = credit.saturating_sub(len);
                next_offset = end;
                send(read_response::Response::Data(v1::ReadData {
                    partition,
                    batches: bytes,
                    next_offset,
                    high_watermark: range.high_watermark,
                    ..Default::default()
                }))
                .await;
            }
            send(read_response::Response::PartitionEnd(
                v1::ReadPartitionEnd {
                    partition,
                    next_offset,
                },
            ))
            .await;
        }
        Ok(())
    }

    /// A replica serves those who want that.
    fn follower(&self, lost: Status) -> Result<(), Status> {
        if self.start.read_replica {
            return Ok(());
        }
        Err(lost)
    }

    /// What can be read, and what cannot.
    fn ranges(&self) -> (Vec<v1::ReadRange>, Vec<v1::ReadPartitionError>) {
        // Before the state is locked here.
        let mut moved = HashMap::new();
        for asked in self
            .start
            .partitions
            .iter()
            .filter(|_| !self.start.read_replica)
        {
            if let Err(status) = self.fake.check_leader(asked.partition) {
                moved.insert(asked.partition, status);
            }
        }
        let state = self.fake.state();
        let look_up = |spec: &v1::OffsetSpec, end: u64| match spec.at {
            Some(v1::offset_spec::At::Offset(offset)) => offset,
            Some(v1::offset_spec::At::BeforeLatest(records)) => end.saturating_sub(records),
            Some(v1::offset_spec::At::Latest(_)) => end,
            _ => 0,
        };
        let (mut ranges, mut failed) = (Vec::new(), Vec::new());
        for asked in &self.start.partitions {
            let end = state.end_offset(asked.partition);
            let from = asked
                .from
                .or(self.start.from)
                .map_or(0, |from| look_up(&from, end));
            let to = asked
                .to
                .or(self.start.to)
                .map(|to| look_up(&to, end).min(end));
            if let Some(status) = moved.remove(&asked.partition) {
                failed.push(v1::ReadPartitionError {
                    partition: asked.partition,
                    next_offset: from,
                    error: Some(in_band(&status)),
                });
                continue;
            }
            let refusal = if asked.partition >= self.partitions {
                Some((Code::NotFound, "PARTITION_NOT_FOUND"))
            } else if from > end {
                Some((Code::OutOfRange, "OFFSET_OUT_OF_RANGE"))
            } else {
                None
            };
            match refusal {
                Some((code, reason)) => failed.push(v1::ReadPartitionError {
                    partition: asked.partition,
                    next_offset: from,
                    error: Some(in_band(&error(code, reason, "no", None))),
                }),
                None => ranges.push(v1::ReadRange {
                    partition: asked.partition,
                    from,
                    to: to.or((!self.start.follow).then_some(end)),
                    high_watermark: end,
                    log_start_offset: 0,
                }),
            }
        }
        (ranges, failed)
    }

    /// Whether a sign of life shall be sent for this partition.
    fn take_heartbeat(&self, partition: u32) -> bool {
        let is_wanted = self.fake.state().heartbeats.get(&partition) > Some(&0);
        if is_wanted {
            *self.fake.state().heartbeats.get_mut(&partition).unwrap() -= 1;
        }
        is_wanted
    }

    /// The batch that holds an offset, and its end.
    fn batch_at(&self, partition: u32, offset: u64) -> Option<(Bytes, u64)> {
        let state = self.fake.state();
        let stored = state.log.get(&partition)?;
        let at = stored
            .partition_point(|batch| batch.base_offset <= offset)
            .checked_sub(1)?;
        let end = stored
            .get(at + 1)
            .map_or(state.end_offset(partition), |next| next.base_offset);
        (offset < end).then(|| (stored[at].bytes.clone(), end))
    }
}
