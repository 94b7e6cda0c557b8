//! Answers that a task of its own makes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

use super::sending::Outgoing;
use crate::room::Room;

/// What waits for the client, with the room it holds until it was sent.
pub(crate) trait Waiting: Send + 'static {
    /// The message. None that is sent is the default, which encodes to nothing.
    type Message: prost::Message + Default;

    /// The answer itself, and its room.
    fn take(self) -> (Result<Self::Message, Status>, Option<Room>);
}

/// The answers of one streaming call, made by a task through a bounded channel. When the client
/// goes away the stream is dropped, and the task ends with it.
#[derive(Debug)]
pub(crate) struct TaskStream<W> {
    answers: mpsc::Receiver<W>,
    outgoing: Option<Outgoing>,
    task: Option<JoinHandle<()>>,
}

impl<W: Waiting> TaskStream<W> {
    /// Starts the task. At most `ahead` answers wait for the client.
    pub(crate) fn spawn<F>(
        outgoing: Option<Outgoing>,
        ahead: usize,
        run: impl FnOnce(mpsc::Sender<W>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, answers) = mpsc::channel(ahead);
        Self {
            answers,
            outgoing,
            task: Some(tokio::spawn(run(sender))),
        }
    }
}

impl<W: Waiting> Stream for TaskStream<W> {
    type Item = Result<W::Message, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.outgoing.as_ref().is_some_and(Outgoing::has_large) {
            // The library has the empty message that stands for it, and sends that when there is
            // nothing more. It would take everything else too: to it, it is small.
            return Poll::Pending;
        }
        if let Some(answer) = ready!(self.answers.poll_recv(cx)) {
            let (answer, room) = answer.take();
            return Poll::Ready(Some(answer.map(|message| match &self.outgoing {
                Some(outgoing) => outgoing.pass(message, room),
                None => message,
            })));
        }
        // A task that ended by a panic must not look like one that came to its end.
        let Some(task) = &mut self.task else {
            return Poll::Ready(None);
        };
        let ended = ready!(Pin::new(task).poll(cx));
        self.task = None;
        Poll::Ready(match ended {
            Ok(()) => None,
            Err(_) => Some(Err(Status::internal(
                "the call failed inside of the broker",
            ))),
        })
    }
}

impl<W> Drop for TaskStream<W> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
