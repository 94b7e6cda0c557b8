//! One `Read` stream: grants in, messages out, until it ends.

use std::time::Duration;

use tidelog_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::brokers::Route;
use crate::{Client, ClientError};

/// Grants that may wait to be sent. One is sent for each quarter of the credit, so that more than a
/// few never wait.
const GRANTS_WAITING_MAX: usize = 16;

/// Counts streams up in the order they are opened.
pub(super) type StreamId = u64;

/// What comes from a stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    Message(v1::read_response::Response),
    /// The last one.
    Ended(ClientError),
}

/// Where the events of all streams go.
pub(super) type StreamEvents = mpsc::Sender<(StreamId, StreamEvent)>;

/// An open stream. Dropping it breaks it off.
#[derive(Debug)]
pub(super) struct ReadStream {
    grants: mpsc::Sender<v1::ReadRequest>,
    /// What the broker may send ahead.
    credit_bytes: u64,
    /// Bytes that were taken since the last grant.
    ungranted_bytes: u64,
    pub(super) route: Route,
    task: JoinHandle<()>,
}

impl ReadStream {
    /// Opens a stream. That it cannot be opened is its first and last event.
    pub(super) fn open(
        id: StreamId,
        client: Client,
        route: Route,
        start: v1::ReadStart,
        silence_timeout: Duration,
        events: StreamEvents,
    ) -> Self {
        let (grants, requests) = mpsc::channel(GRANTS_WAITING_MAX);
        let credit_bytes = start.credit_bytes;
        let request = v1::read_request::Request::Start(start);
        grants
            .try_send(v1::ReadRequest {
                request: Some(request),
            })
            .expect("a new channel has room");
        let over = route.clone();
        let task = tokio::spawn(async move {
            let error = match run(id, &client, &over, requests, silence_timeout, &events).await {
                Ok(()) => return,
                Err(error) => error,
            };
            // Nobody listens any more when the reader gave the stream up.
            drop(events.send((id, StreamEvent::Ended(error))).await);
        });
        Self {
            grants,
            credit_bytes,
            ungranted_bytes: 0,
            route,
            task,
        }
    }

    /// So many bytes were taken: the broker may send as many more.
    pub(super) fn grant(&mut self, len: u64) {
        self.ungranted_bytes = self.ungranted_bytes.saturating_add(len);
        if self.ungranted_bytes >= self.credit_bytes / 4 {
            let grant = v1::read_request::Request::AddCreditBytes(self.ungranted_bytes);
            // No room, or the stream is over: the bytes go with the next grant.
            if self
                .grants
                .try_send(v1::ReadRequest {
                    request: Some(grant),
                })
                .is_ok()
            {
                self.ungranted_bytes = 0;
            }
        }
    }
}

impl Drop for ReadStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Gives the error that the stream ends with, unless the reader is gone.
async fn run(
    id: StreamId,
    client: &Client,
    route: &Route,
    requests: mpsc::Receiver<v1::ReadRequest>,
    silence_timeout: Duration,
    events: &StreamEvents,
) -> Result<(), ClientError> {
    let silence = |after| ClientError::TimedOut {
        operation: "Read",
        after,
    };
    let mut log = client.log_of(route);
    let after = client.config().request_timeout;
    let opening = tokio::time::timeout(after, log.read(ReceiverStream::new(requests)));
    let mut answers = match opening.await {
        Ok(Ok(response)) => {
            client.answered();
            response.into_inner()
        }
        Ok(Err(status)) => {
            let error = client.error_over(route, &status);
            return Err(client.explained(route, error).await);
        }
        Err(_) => return Err(silence(after)),
    };
    loop {
        let message = match tokio::time::timeout(silence_timeout, answers.message()).await {
            Ok(message) => message.map_err(|status| client.error_over(route, &status))?,
            Err(_) => return Err(silence(silence_timeout)),
        };
        let response = match message {
            Some(v1::ReadResponse {
                response: Some(response),
            }) => response,
            Some(_) => {
                return Err(ClientError::Protocol {
                    what: "a message of Read without content".to_owned(),
                });
            }
            None => {
                return Err(ClientError::Disconnected {
                    cause: "the broker ended the stream".to_owned(),
                });
            }
        };
        let message = StreamEvent::Message(response);
        if events.send((id, message)).await.is_err() {
            return Ok(());
        }
    }
}
