//! `Log.Produce`: many appends over one stream, pipelined.
//!
//! One task reads requests in order and submits each before it reads the next, which keeps the
//! order within partitions. Answers go out as they come. What is unanswered is bounded in bytes,
//! for the connection here and for all of them in the broker, and so are answers that the client
//! does not take: above that the stream is not read, and HTTP/2 holds the client back.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tidelog_broker::{Acks, PartitionAppend, PendingAppend};
use tidelog_proto::v1::produce_response::Outcome;
use tidelog_proto::v1::{AppendResponse, AppendResult, ProduceRequest, ProduceResponse};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Status, Streaming};

use super::call::Meter;
use super::status::{Failure, RequestError, failure};
use super::task::Waiting;
use super::{Shared, convert, message_is_taken};
use crate::room::Room;
use crate::transport::Peer;

/// How many answers wait for the client. They are small.
pub(super) const ANSWERS_AHEAD: usize = 64;

const PATH: &str = "/tidelog.v1.Log/Produce";

/// The client is gone: there is nobody to answer.
struct Gone;

/// How a stream ends.
enum End {
    /// The client has sent all it wanted.
    Sent,
    /// The requests broke off.
    Broken(Status),
    /// The broker stops.
    Stopping,
}

/// Serves one stream to its end. When this is dropped, because the client vanished, what was
/// submitted is appended all the same, and nothing else goes on.
pub(super) async fn run(
    shared: Arc<Shared>,
    peer: Peer,
    meter: Option<Meter>,
    mut requests: Streaming<ProduceRequest>,
    sender: mpsc::Sender<Unsent>,
) {
    let _counted = shared.metrics.stream("Produce");
    let mut answers = Answers {
        pending: FuturesUnordered::new(),
        unsent: None,
        sender,
    };
    let outcome = async {
        let end = loop {
            let next = tokio::select! {
                biased;
                () = shared.stopping.cancelled() => break End::Stopping,
                next = answers.during(requests.message()) => next?,
            };
            match next {
                Ok(Some(request)) => {
                    take(&shared, &peer, meter.as_ref(), request, &mut answers).await?;
                }
                Ok(None) => break End::Sent,
                Err(status) => break End::Broken(shared.broken(status, PATH)),
            }
        };
        // What was submitted is answered, however the stream ends.
        answers.drain().await?;
        Ok::<_, Gone>(end)
    };
    let status = match outcome.await {
        Ok(End::Sent) | Err(Gone) => return,
        Ok(End::Broken(status)) => status,
        Ok(End::Stopping) => shared.reject(RequestError::Stopping),
    };
    // Only fails when the client is gone, and then nobody wants to know.
    let last = Unsent {
        answer: Err(status),
        room: None,
    };
    drop(answers.sender.send(last).await);
}

/// An answer that waits for the client, and the room it takes among all that waits.
#[derive(Debug)]
pub(crate) struct Unsent {
    answer: Result<ProduceResponse, Status>,
    room: Option<Room>,
}

impl Waiting for Unsent {
    type Message = ProduceResponse;

    fn take(self) -> (Result<ProduceResponse, Status>, Option<Room>) {
        (self.answer, self.room)
    }
}

/// Takes one request, up to the moment when the next one may be submitted.
async fn take(
    shared: &Arc<Shared>,
    peer: &Peer,
    meter: Option<&Meter>,
    request: ProduceRequest,
    answers: &mut Answers,
) -> Result<(), Gone> {
    let correlation_id = request.correlation_id;
    // Room for the answer: who does not take answers is not read any more.
    let unsent = answers
        .during(peer.unsent(convert::REQUEST_OVERHEAD))
        .await?;
    let converted = match request.append {
        Some(append) => {
            convert::append(append, meter).map_err(|e| Failure::from(e).inside("append"))
        }
        None => Err(Failure::from(RequestError::Missing {
            field: "append",
            what: "what to append must be given",
        })),
    };
    let (append, len, field) = match converted {
        Ok(converted) => {
            let field = match converted.field {
                "records" => "append.records",
                _ => "append.batch",
            };
            (converted.request, converted.len, field)
        }
        // Answered also where no answer is wanted, since the request cannot be understood.
        Err(error) => {
            let room = answers
                .during(peer.in_flight(convert::REQUEST_OVERHEAD))
                .await?;
            message_is_taken(meter);
            let rooms = Rooms {
                _in_flight: room,
                unsent,
            };
            answers.failed(shared, correlation_id, &error, rooms);
            return Ok(());
        }
    };
    let wants_answer = append.acks != Acks::None;
    let room = answers.during(peer.in_flight(len)).await?;
    message_is_taken(meter);
    let room = Rooms {
        _in_flight: room,
        unsent,
    };
    match answers.during(shared.broker.submit(append)).await? {
        Ok(pending) => answers.wait_for(shared.clone(), correlation_id, pending, field, room),
        Err(error) => {
            let failure = failure(&error).in_field(field);
            if wants_answer {
                answers.failed(shared, correlation_id, &failure, room);
            } else {
                shared.broker.metrics().count_error(failure.reason());
            }
        }
    }
    Ok(())
}

/// What a request's parts became, or the failure of its only part. `field` is what an error about
/// the data itself names.
pub(super) fn appended(
    shared: &Shared,
    parts: Vec<PartitionAppend>,
    field: &'static str,
) -> Result<AppendResponse, Failure> {
    if let [only] = parts.as_slice()
        && let Err(error) = &only.result
    {
        return Err(failure(error).in_field(field));
    }
    let results = parts.into_iter().map(|part| {
        let (base_offset, log_append_time_ms, duplicate, error) = match part.result {
            Ok(appended) => (
                Some(appended.base_offset.get()),
                appended.log_append_time.map(|timestamp| timestamp.millis()),
                appended.duplicate,
                None,
            ),
            Err(error) => {
                let failure = failure(&error).in_field(field);
                (
                    None,
                    None,
                    false,
                    Some(failure.message(shared.broker.metrics())),
                )
            }
        };
        AppendResult {
            partition: part.partition,
            base_offset,
            record_count: part.record_count,
            log_append_time_ms,
            record_indexes: part.record_indexes,
            error,
            duplicate,
        }
    });
    Ok(AppendResponse {
        results: results.collect(),
    })
}

/// An answer on its way: none for requests that want none.
type Pending = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What a request takes until it is answered, and its answer until the client takes it.
struct Rooms {
    _in_flight: OwnedSemaphorePermit,
    unsent: Room,
}

/// An answer, and the room that its request and itself take until it is sent.
struct Answer {
    response: Option<ProduceResponse>,
    room: Rooms,
}

impl Answer {
    /// As it goes to the client; nothing for a request that wants no answer.
    fn into_unsent(self) -> Option<Unsent> {
        Some(Unsent {
            answer: Ok(self.response?),
            room: Some(self.room.unsent),
        })
    }
}

/// The requests of a stream that were submitted and not answered yet.
struct Answers {
    pending: FuturesUnordered<Pending>,
    /// Complete, but the client does not take it yet.
    unsent: Option<Answer>,
    sender: mpsc::Sender<Unsent>,
}

impl Answers {
    /// Does `work`, and sends answers meanwhile.
    async fn during<F: Future>(&mut self, work: F) -> Result<F::Output, Gone> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                place = self.sender.reserve(), if self.unsent.is_some() => {
                    let answer = self.unsent.take().and_then(Answer::into_unsent);
                    let place = place.map_err(|_| Gone)?;
                    if let Some(answer) = answer {
                        place.send(answer);
                    }
                }
                Some(answer) = self.pending.next(), if self.unsent.is_none() => {
                    // One that is not wanted is dropped here, and gives its room back.
                    self.unsent = Some(answer).filter(|answer| answer.response.is_some());
                }
                done = &mut work => return Ok(done),
            }
        }
    }

    /// Sends all answers that are still to come.
    async fn drain(&mut self) -> Result<(), Gone> {
        while self.unsent.is_some() || !self.pending.is_empty() {
            self.step().await?;
        }
        Ok(())
    }

    /// Sends one answer, or waits for the next.
    async fn step(&mut self) -> Result<(), Gone> {
        match self.unsent.take() {
            Some(answer) => {
                if let Some(answer) = answer.into_unsent() {
                    self.sender.send(answer).await.map_err(|_| Gone)?;
                }
            }
            None => self.unsent = self.pending.next().await,
        }
        Ok(())
    }

    fn wait_for(
        &mut self,
        shared: Arc<Shared>,
        correlation_id: u64,
        pending: PendingAppend,
        field: &'static str,
        room: Rooms,
    ) {
        let wants_answer = pending.wants_answer();
        self.pending.push(Box::pin(async move {
            let parts = pending.await;
            let outcome = match appended(&shared, parts, field) {
                Ok(response) => Outcome::Appended(response),
                Err(failure) => Outcome::Error(failure.message(shared.broker.metrics())),
            };
            let response = ProduceResponse {
                correlation_id,
                outcome: Some(outcome),
            };
            Answer {
                response: wants_answer.then_some(response),
                room,
            }
        }));
    }

    fn failed(&mut self, shared: &Shared, correlation_id: u64, failure: &Failure, room: Rooms) {
        let error = failure.message(shared.broker.metrics());
        let response = ProduceResponse {
            correlation_id,
            outcome: Some(Outcome::Error(error)),
        };
        let answer = Answer {
            response: Some(response),
            room,
        };
        self.pending.push(Box::pin(std::future::ready(answer)));
    }
}
