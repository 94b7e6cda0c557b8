//! One `Produce` stream: requests in, answers out, until it ends.

use tidelog_proto::v1;
use tidelog_proto::v1::log_client::LogClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::client::Route;

/// Answers that wait for the driver. It takes them all the time, so that few wait.
const ANSWERS_WAITING_MAX: usize = 64;

/// An open stream. Dropping it breaks it off.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) route: Route,
    /// `None` once no more requests will come.
    requests: Option<mpsc::Sender<v1::ProduceRequest>>,
    events: mpsc::Receiver<LinkEvent>,
    task: JoinHandle<()>,
}

/// What comes from a stream.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    Answer(v1::ProduceResponse),
    /// The last one. `None`: the broker ended the stream without an error.
    Ended(Option<Status>),
}

impl Link {
    /// Opens a stream. That it cannot be opened is its first and last event.
    pub(crate) fn open(log: LogClient<Channel>, route: Route, requests_max: usize) -> Self {
        let (requests, requests_in) = mpsc::channel(requests_max);
        let (events_out, events) = mpsc::channel(ANSWERS_WAITING_MAX);
        let task = tokio::spawn(run(log, requests_in, events_out));
        Self {
            route,
            requests: Some(requests),
            events,
            task,
        }
    }

    /// Room for one request, if there is some now.
    pub(crate) fn try_reserve(&self) -> Option<mpsc::Permit<'_, v1::ProduceRequest>> {
        self.requests.as_ref()?.try_reserve().ok()
    }

    /// The next event; after the last one, that it ended.
    pub(crate) async fn event(&mut self) -> LinkEvent {
        self.events.recv().await.unwrap_or(LinkEvent::Ended(None))
    }

    /// The next event, or `None` once there is room for a request.
    pub(crate) async fn event_or_room(&mut self) -> Option<LinkEvent> {
        let room = async {
            let is_there = match &self.requests {
                Some(requests) => requests.reserve().await.is_ok(),
                None => false,
            };
            if !is_there {
                // The stream is over: its end is an event.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            event = self.events.recv() => Some(event.unwrap_or(LinkEvent::Ended(None))),
            () = room => None,
        }
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
    mut log: LogClient<Channel>,
    requests: mpsc::Receiver<v1::ProduceRequest>,
    events: mpsc::Sender<LinkEvent>,
) {
    let end = match log.produce(ReceiverStream::new(requests)).await {
        Err(status) => Some(status),
        Ok(response) => {
            let mut answers = response.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(answer)) => {
                        if events.send(LinkEvent::Answer(answer)).await.is_err() {
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
    drop(events.send(LinkEvent::Ended(end)).await);
}
