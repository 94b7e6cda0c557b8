//! Waiting for acknowledgements while lines go on being sent.

use std::time::Duration;

use indicatif::ProgressBar;
use tidelog_client::{ClientError, DeliveryFuture};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::connect::waiting_aloud;

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
    pub(super) fn start(progress: ProgressBar, until: Duration) -> Self {
        let (chunks, chunks_out) = mpsc::channel(CHUNKS_MAX);
        let (failed_in, failed) = watch::channel(false);
        let task = tokio::spawn(collect(chunks_out, failed_in, progress, until));
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

async fn collect(
    mut chunks: mpsc::Receiver<Vec<(u64, DeliveryFuture)>>,
    failed: watch::Sender<bool>,
    progress: ProgressBar,
    until: Duration,
) -> Outcome {
    let for_what = || {
        let until = until.as_secs();
        format!("acknowledgements: the broker is gone or slow; each record has {until} s")
    };
    let mut outcome = Outcome::default();
    while let Some(chunk) = chunks.recv().await {
        for (number, future) in chunk {
            match waiting_aloud(for_what, future).await {
                Ok(_) => outcome.acknowledged += 1,
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
