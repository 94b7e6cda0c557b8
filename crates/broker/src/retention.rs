//! Retention: a thread that looks at every partition now and then and trims what is too old or
//! too much.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tidelog_controller::TopicSettings;
use tidelog_record::{Offset, Timestamp};
use tokio::sync::oneshot;

use crate::background::{BrokerStops, Waits};
use crate::mailbox::Command;
use crate::partition::Partition;
use crate::{Broker, Inner, Slot};

impl Broker {
    pub(crate) fn start_retention(&self) -> io::Result<()> {
        let inner = Arc::downgrade(&self.inner);
        let stopping = self.inner.stopping.subscribe();
        let thread = std::thread::Builder::new()
            .name("tidelog-retention".to_owned())
            .spawn(move || {
                if let Some(waits) = Waits::new(stopping, "retention") {
                    // It ends when the broker stops, and for no other reason.
                    let _stops = run(&inner, waits);
                }
            })?;
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

fn run(inner: &Weak<Inner>, mut waits: Waits) -> Result<(), BrokerStops> {
    loop {
        let interval = match inner.upgrade() {
            Some(inner) => inner.config.retention_check_interval,
            None => return Err(BrokerStops),
        };
        waits.wait(interval.max(INTERVAL_MIN))?;
        apply(&*inner.upgrade().ok_or(BrokerStops)?);
    }
}

fn apply(inner: &Inner) {
    let silence = i64::try_from(inner.config.producer_id_expiration.as_millis());
    let now = inner.age_clock.now();
    let before = now.millis().saturating_sub(silence.unwrap_or(i64::MAX));
    let before = Timestamp::from_millis(before);
    for shard in &inner.shards {
        // A shard that is gone has no logs any more.
        drop(shard.blocking_send(Command::ExpireProducers { before, now }));
    }
    let routes: Vec<_> = inner.routes.read().values().cloned().collect();
    for route in routes {
        for slot in &route.slots {
            if let Slot::Serving(partition) = slot {
                trim(inner, partition);
            }
        }
    }
}

/// What retention asks for of a partition.
#[derive(Debug)]
pub(crate) struct Due {
    /// Where the log is to start, by its sealed segments.
    pub(crate) start: Offset,
    /// From which age on the active segment is to be sealed, when it has reached it.
    pub(crate) roll_at: Option<u64>,
    /// Whether even the newest record is too old.
    pub(crate) is_expired: bool,
}

impl Due {
    /// An active segment that no append seals is sealed when it is as old as `segment.ms` or
    /// `retention.ms` says, or `max.compaction.lag.ms` where the topic is compacted, so that it ages
    /// from then on, whatever starts and stops come. And once nothing was appended for
    /// `retention.ms`, all records are too old.
    pub(crate) fn of(
        partition: &Partition,
        settings: &TopicSettings,
        now: Timestamp,
        end: Offset,
    ) -> Self {
        let (limit_ms, limit_bytes) = match settings.cleanup.delete {
            true => (settings.retention_ms, settings.retention_bytes),
            false => (None, None),
        };
        let reader = &partition.reader();
        let start = reader.retention_start(now, limit_ms, limit_bytes, end);
        let is_expired = limit_ms.is_some_and(|limit| partition.is_idle_for(limit, now));
        let mut roll_at = settings.segment_ms.min(limit_ms.unwrap_or(u64::MAX));
        if settings.cleanup.compact {
            // What is in the active segment is not compacted.
            roll_at = roll_at.min(settings.max_compaction_lag_ms);
        }
        let is_aged = reader.active_age(now).is_some_and(|age| age >= roll_at);
        Self {
            start,
            roll_at: (is_aged || is_expired).then_some(roll_at),
            is_expired,
        }
    }

    fn is_anything(&self, partition: &Partition, now: Timestamp) -> bool {
        let reader = &partition.reader();
        let start = reader.log_start();
        self.start > start
            || self.is_expired && start < reader.end_offset()
            || self.roll_at.is_some() && reader.active_age(now).is_some()
    }
}

fn trim(inner: &Inner, partition: &Arc<Partition>) {
    let now = inner.age_clock.now();
    let due = Due::of(
        partition,
        &partition.settings(),
        now,
        partition.high_watermark(),
    );
    // The leader decides for all.
    let is_led = partition.answers_for_leader();
    if !is_led || !due.is_anything(partition, now) || partition.fault().is_some() {
        return;
    }
    let before = partition.reader().log_start();
    let (reply, replied) = oneshot::channel();
    let command = Command::Retain {
        partition: partition.clone(),
        now,
        reply,
    };
    if partition.shard.blocking_send(command).is_err() {
        return;
    }
    match replied.blocking_recv() {
        Ok(Ok(start)) if start > before => tracing::info!(topic = %partition.topic,
            partition = partition.number(), log_start = %start,
            "retention removed old segments"),
        Ok(Ok(_)) => tracing::debug!(topic = %partition.topic, partition = partition.number(),
            "retention sealed an old segment"),
        Ok(Err(e)) => tracing::warn!(topic = %partition.topic, partition = partition.number(),
            error = %e, "retention could not remove old segments"),
        // The broker stops.
        Err(_) => {}
    }
}
