//! One `Produce` stream: requests in, answers out, until it ends.

use std::sync::Arc;

use tidelog_proto::v1;
use tidelog_proto::v1::log_client::LogClient;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::brokers::Route;

/// Counts links up in the order they are opened.
pub(crate) type LinkId = u64;

/// An open stream. Dropping it breaks it off.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) route: Route,
    /// `None` once no more requests will come.
    requests: Option<mpsc::Sender<v1::ProduceRequest>>,
    task: JoinHandle<()>,
}

/// What comes from a stream.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    Answer(v1::ProduceResponse),
    /// The last one. `None`: the broker ended the stream without an error.
    Ended(Option<Status>),
}

/// Where the events of all links go, and who is told that one has room for a request.
#[derive(Clone, Debug)]
pub(crate) struct LinkEvents {
    pub(crate) events: mpsc::Sender<(LinkId, LinkEvent)>,
    pub(crate) room: Arc<Notify>,
}

impl Link {
    /// Opens a stream. That it cannot be opened is its first and last event.
    pub(crate) fn open(
        id: LinkId,
        log: LogClient<Channel>,
        route: Route,
        requests_max: usize,
        events: LinkEvents,
    ) -> Self {
        let (requests, requests_in) = mpsc::channel(requests_max);
        let task = tokio::spawn(run(id, log, requests_in, events));
        Self {
            id,
            route,
            requests: Some(requests),
            task,
        }
    }

    /// For how many requests there is room now.
    pub(crate) fn room(&self) -> usize {
        match &self.requests {
            Some(requests) if !requests.is_closed() => requests.capacity(),
            _ => 0,
        }
    }

    /// Hands a request over. Gives whether that could be done.
    pub(crate) fn send(&self, request: v1::ProduceRequest) -> bool {
        let requests = self.requests.as_ref();
        requests.is_some_and(|requests| requests.try_send(request).is_ok())
    }

    /// Tells the broker that there are no more requests.
    pub(crate) fn close_requests(&mut self) {
        self.requests = None;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    id: LinkId,
    mut log: LogClient<Channel>,
    requests: mpsc::Receiver<v1::ProduceRequest>,
    out: LinkEvents,
) {
    let LinkEvents { events, room } = out;
    let requests = ReceiverStream::new(requests).map(move |request| {
        room.notify_one();
        request
    });
    let end = match log.produce(requests).await {
        Err(status) => Some(status),
        Ok(response) => {
            let mut answers = response.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(answer)) => {
                        if events.send((id, LinkEvent::Answer(answer))).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            }
        }
    };
    // Nobody listens any more when the producer gave the stream up.
    drop(events.send((id, LinkEvent::Ended(end))).await);
}
