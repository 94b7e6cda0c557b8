//! Waiting for acknowledgements while lines go on being sent.

use std::time::Duration;

use indicatif::ProgressBar;
use tidelog_client::{Client, ClientError, DeliveryFuture, TopicName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::connect::waiting_for_leaders;

/// Records that are handed over at a time.
const CHUNK_RECORDS: usize = 1024;

/// Chunks that wait. The producer's buffer bounds what is behind them.
const CHUNKS_MAX: usize = 64;

/// What became of all records.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) acknowledged: u64,
    pub(super) failed: u64,
    /// The line, and why.
    pub(super) first_failure: Option<(u64, ClientError)>,
}

/// Takes the futures of records in the order of their lines.
#[derive(Debug)]
pub(super) struct Collector {
    pending: Vec<(u64, DeliveryFuture)>,
    chunks: mpsc::Sender<Vec<(u64, DeliveryFuture)>>,
    failed: watch::Receiver<bool>,
    task: JoinHandle<Outcome>,
}

impl Collector {
    /// No record is waited for longer than `until`.
    pub(super) fn start(
        client: Client,
        topic: TopicName,
        progress: ProgressBar,
        until: Duration,
    ) -> Self {
        let (chunks, chunks_out) = mpsc::channel(CHUNKS_MAX);
        let (failed_in, failed) = watch::channel(false);
        let waiting = Waiting {
            client,
            topic,
            until,
        };
        let task = tokio::spawn(collect(chunks_out, failed_in, progress, waiting));
        Self {
            pending: Vec::new(),
            chunks,
            failed,
            task,
        }
    }

    /// Becomes true with the first failure.
    pub(super) fn failed(&self) -> watch::Receiver<bool> {
        self.failed.clone()
    }

    /// Adds the record of a line.
    pub(super) async fn add(&mut self, number: u64, future: DeliveryFuture) {
        self.pending.push((number, future));
        if self.pending.len() >= CHUNK_RECORDS {
            self.hand_over().await;
        }
    }

    /// Hands over what was added.
    pub(super) async fn hand_over(&mut self) {
        let chunk = std::mem::take(&mut self.pending);
        if !chunk.is_empty() {
            self.chunks
                .send(chunk)
                .await
                .expect("the task ends after the sender");
        }
    }

    /// Waits for all of them.
    pub(super) async fn finish(self) -> Outcome {
        drop(self.chunks);
        self.task.await.expect("the task does not panic")
    }
}

/// How acknowledgements are waited for.
#[derive(Debug)]
struct Waiting {
    client: Client,
    topic: TopicName,
    until: Duration,
}

impl Waiting {
    async fn acknowledged(&self, future: DeliveryFuture) -> Result<(), ClientError> {
        let until = self.until.as_secs();
        let for_what = |leaderless: Option<String>| match leaderless {
            Some(which) => format!("a leader of {which}; each record has {until} s"),
            None => {
                format!("acknowledgements: the broker is gone or slow; each record has {until} s")
            }
        };
        let waited = waiting_for_leaders(&self.client, &self.topic, for_what, future);
        waited.await.map(drop)
    }
}

async fn collect(
    mut chunks: mpsc::Receiver<Vec<(u64, DeliveryFuture)>>,
    failed: watch::Sender<bool>,
    progress: ProgressBar,
    waiting: Waiting,
) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(chunk) = chunks.recv().await {
        for (number, future) in chunk {
            match waiting.acknowledged(future).await {
                Ok(()) => outcome.acknowledged += 1,
                Err(error) => {
                    outcome.failed += 1;
                    if outcome.first_failure.is_none() {
                        outcome.first_failure = Some((number, error));
                        failed.send_replace(true);
                    }
                }
            }
        }
        progress.set_position(outcome.acknowledged);
    }
    progress.finish_and_clear();
    outcome
}
