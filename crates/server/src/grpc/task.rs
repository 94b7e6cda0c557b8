//! Answers that a task of its own makes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

/// The answers of one streaming call, made by a task through a bounded channel. When the client
/// goes away the stream is dropped, and the task ends with it.
#[derive(Debug)]
pub(crate) struct TaskStream<T> {
    answers: mpsc::Receiver<Result<T, Status>>,
    task: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> TaskStream<T> {
    /// Starts the task. At most `ahead` answers wait for the client.
    pub(crate) fn spawn<F>(
        ahead: usize,
        run: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, answers) = mpsc::channel(ahead);
        Self {
            answers,
            task: Some(tokio::spawn(run(sender))),
        }
    }
}

impl<T> Stream for TaskStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(answer) = ready!(self.answers.poll_recv(cx)) {
            return Poll::Ready(Some(answer));
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

impl<T> Drop for TaskStream<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
