//! `Log.Read`: reading on and on from the partitions of a topic.
//!
//! `plan.rs` turns the first message into ranges; `pump.rs` reads them, one message of one
//! partition after the other, as long as there is credit and the client takes what is sent;
//! `credit.rs` counts. One task a stream: a slow reader holds back nobody else, and holds at most
//! [`MESSAGES_AHEAD`] messages in memory, most of them slices of maps. All that waits on one connection
//! is bounded in bytes.

mod credit;
mod plan;
mod pump;

use std::sync::Arc;

use tidelog_proto::v1::{GoingAway, ReadRequest, ReadResponse, read_request, read_response};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::call::Meter;
use super::status::RequestError;
use super::task::Waiting;
use super::{Shared, message_is_taken};
use crate::room::Room;
use crate::transport::Peer;

/// How many messages wait for the client.
pub(super) const MESSAGES_AHEAD: usize = 2;

const PATH: &str = "/tidelog.v1.Log/Read";

/// How a stream ends.
enum End {
    /// Every partition was read to its end, or failed.
    Done,
    /// The client went away.
    Gone,
    /// The client broke the rules, or the topic cannot be read at all.
    Failed(Status),
    /// The broker stops.
    Stopping,
}

/// An answer that waits for the client, and the room it takes among all that waits on its
/// connection.
#[derive(Debug)]
pub(crate) struct Unsent {
    answer: Result<ReadResponse, Status>,
    room: Option<Room>,
}

impl Waiting for Unsent {
    type Message = ReadResponse;

    fn take(self) -> (Result<ReadResponse, Status>, Option<Room>) {
        (self.answer, self.room)
    }
}

impl From<Result<ReadResponse, Status>> for Unsent {
    /// An answer too small to be counted.
    fn from(answer: Result<ReadResponse, Status>) -> Self {
        Self { answer, room: None }
    }
}

/// Where answers go.
type Sender = mpsc::Sender<Unsent>;

/// Serves one stream to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    peer: Peer,
    meter: Option<Meter>,
    requests: Streaming<ReadRequest>,
    sender: Sender,
) {
    let _counted = shared.metrics.stream("Read");
    let mut requests = Requests {
        requests: Some(requests),
        meter,
        shared: shared.clone(),
    };
    let end = match serve(&shared, &peer, &mut requests, &sender).await {
        Ok(end) | Err(end) => end,
    };
    let last = match end {
        End::Done | End::Gone => return,
        End::Failed(status) => Err(status),
        End::Stopping => {
            let drain = shared.limits.shutdown_deadline.as_millis();
            let drain_ms = u32::try_from(drain).unwrap_or(u32::MAX);
            Ok(response(read_response::Response::GoingAway(GoingAway {
                drain_ms,
            })))
        }
    };
    // Only fails when the client is gone, and then nobody wants to know.
    drop(sender.send(last.into()).await);
}

async fn serve(
    shared: &Arc<Shared>,
    peer: &Peer,
    requests: &mut Requests,
    sender: &Sender,
) -> Result<End, End> {
    let first = tokio::select! {
        biased;
        () = shared.stopping.cancelled() => return Ok(End::Stopping),
        first = requests.next() => first?,
    };
    let start = match first {
        Some(read_request::Request::Start(start)) => start,
        Some(read_request::Request::AddCreditBytes(_)) => {
            return Err(End::Failed(shared.reject(RequestError::Missing {
                field: "start",
                what: "the first message of a read must start it",
            })));
        }
        None => return Ok(End::Done),
    };
    let plan = tokio::select! {
        biased;
        () = shared.stopping.cancelled() => return Ok(End::Stopping),
        plan = plan::plan(shared, peer, start) => plan.map_err(End::Failed)?,
    };
    pump::pump(shared, peer, plan, requests, sender).await
}

/// The client's messages.
struct Requests {
    /// `None` once the client has said its last.
    requests: Option<Streaming<ReadRequest>>,
    meter: Option<Meter>,
    shared: Arc<Shared>,
}

impl Requests {
    /// The next message; `None`, at once and for ever, after the last. Nothing is lost when this
    /// is dropped before it is done.
    async fn next(&mut self) -> Result<Option<read_request::Request>, End> {
        let Some(requests) = &mut self.requests else {
            return Ok(None);
        };
        let message = requests.message().await;
        match message {
            Ok(Some(request)) => {
                message_is_taken(self.meter.as_ref());
                let empty = || {
                    let what = "start or add_credit_bytes must be given";
                    let error = RequestError::Missing {
                        field: "request",
                        what,
                    };
                    End::Failed(self.shared.reject(error))
                };
                request.request.ok_or_else(empty).map(Some)
            }
            Ok(None) => {
                self.requests = None;
                Ok(None)
            }
            Err(status) => Err(End::Failed(self.shared.broken(status, PATH))),
        }
    }

    /// Whether more may come.
    fn is_open(&self) -> bool {
        self.requests.is_some()
    }
}

fn response(response: read_response::Response) -> ReadResponse {
    ReadResponse {
        response: Some(response),
    }
}
