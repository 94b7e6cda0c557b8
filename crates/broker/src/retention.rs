//! Retention: a thread that looks at every partition now and then and trims what is too old or
//! too much.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::partition::Partition;
use crate::shard::Command;
use crate::{Broker, Inner, Slot};

impl Broker {
    pub(crate) fn start_retention(&self) -> io::Result<()> {
        let inner = Arc::downgrade(&self.inner);
        let interval = self.inner.config.retention_check_interval;
        let stopping = self.inner.stopping.subscribe();
        let thread = std::thread::Builder::new()
            .name("tidelog-retention".to_owned())
            .spawn(move || run(&inner, interval, stopping))?;
        self.inner.threads.lock().push(thread);
        Ok(())
    }

    /// Looks at every partition now, instead of at the next interval. Blocks.
    pub fn apply_retention(&self) {
        apply(&self.inner);
    }
}

/// An interval of 0 must not keep a core busy.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

fn run(inner: &Weak<Inner>, interval: Duration, mut stopping: watch::Receiver<bool>) {
    // A runtime of this thread's own, for a wait that the stop can end.
    let Ok(waits) = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    else {
        tracing::error!("retention does not run: no timer could be made");
        return;
    };
    loop {
        let stop = waits.block_on(async {
            tokio::time::timeout(
                interval.max(INTERVAL_MIN),
                stopping.wait_for(|stopping| *stopping),
            )
            .await
            .is_ok()
        });
        let Some(inner) = inner.upgrade().filter(|_| !stop) else {
            return;
        };
        apply(&inner);
    }
}

fn apply(inner: &Inner) {
    let routes: Vec<_> = inner.routes.read().values().cloned().collect();
    for route in routes {
        for slot in &route.slots {
            if let Slot::Serving(partition) = slot {
                trim(inner, partition);
            }
        }
    }
}

fn trim(inner: &Inner, partition: &Partition) {
    let settings = partition.settings();
    let end = partition.high_watermark();
    let now = inner.seams.clock.now();
    let to =
        partition
            .reader
            .retention_start(now, settings.retention_ms, settings.retention_bytes, end);
    if to <= partition.reader.log_start() || partition.fault().is_some() {
        return;
    }
    let (reply, replied) = oneshot::channel();
    let command = Command::Trim {
        key: partition.key,
        to,
        end,
        reply,
    };
    if partition.shard.blocking_send(command).is_err() {
        return;
    }
    match replied.blocking_recv() {
        Ok(Ok(start)) => tracing::info!(topic = %partition.topic, partition = partition.number(),
            log_start = %start, "retention removed old segments"),
        Ok(Err(e)) => tracing::warn!(topic = %partition.topic, partition = partition.number(),
            error = %e, "retention could not remove old segments"),
        // The broker stops.
        Err(_) => {}
    }
}
