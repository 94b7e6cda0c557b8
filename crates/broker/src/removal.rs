//! Giving back the space of removed segments, on a thread of its own.
//!
//! Removing a large file takes a file system long: a second and more a GiB was measured. A log
//! removes only the name, while the file is held; the space is given back here when it is let go
//! of, at a rate that leaves the disk time for others.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use tidelog_log::RemovedFile;
use tokio::sync::watch;

use crate::background::{Rate, Waits};
use crate::metrics::Metrics;

/// Files that wait at most; what comes while there are as many is let go of by whoever removed it.
const WAITING_MAX: usize = 1024;

/// Where to send what was removed.
#[derive(Clone, Debug)]
pub(crate) struct Remover {
    files: SyncSender<RemovedFile>,
    metrics: Arc<Metrics>,
}

impl Remover {
    /// Starts the thread. It ends when the last of the handles is gone.
    pub(crate) fn start(
        bytes_per_second: u64,
        stopping: watch::Receiver<bool>,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (files, waiting) = sync_channel(WAITING_MAX);
        let counts = metrics.clone();
        let thread = std::thread::Builder::new()
            .name("tidelog-removal".to_owned())
            .spawn(move || run(&waiting, Rate::new(bytes_per_second), stopping, &counts))?;
        Ok((Self { files, metrics }, thread))
    }

    pub(crate) fn take(&self, removed: Vec<RemovedFile>) {
        for file in removed {
            let len = gauge(file.len_bytes());
            self.metrics.removal_pending_bytes.add(len);
            if let Err(TrySendError::Full(file) | TrySendError::Disconnected(file)) =
                self.files.try_send(file)
            {
                drop(file);
                note_removed(&self.metrics, len);
            }
        }
    }
}

fn run(
    waiting: &Receiver<RemovedFile>,
    mut rate: Rate,
    stopping: watch::Receiver<bool>,
    metrics: &Metrics,
) {
    let mut waits = Waits::new(stopping, "removal");
    while let Ok(file) = waiting.recv() {
        let len = gauge(file.len_bytes());
        let pause = rate.pass(file.len_bytes());
        drop(file);
        note_removed(metrics, len);
        if let (Some(pause), Some(waits)) = (pause, &mut waits) {
            // While the broker stops there are no pauses: the process is about to give all back.
            let _stops = waits.wait(pause);
        }
    }
}

fn note_removed(metrics: &Metrics, len: i64) {
    metrics.removal_pending_bytes.sub(len);
    metrics.removed_bytes.inc_by(len.unsigned_abs());
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
