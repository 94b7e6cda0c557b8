//! Compaction: a thread that compacts the logs of topics with `cleanup.policy=compact`, the one
//! with the largest dirty share first.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tidelog_controller::TopicSettings;
use tidelog_log::state::GroupKey;
use tidelog_log::{Compaction, CompactionError, CompactionOptions, InstallError, Pace, Stopped};
use tidelog_record::Timestamp;
use tokio::sync::oneshot;

use crate::background::{BrokerStops, Rate, Waits};
use crate::mailbox::Command;
use crate::partition::Partition;
use crate::{Broker, Inner, Slot};

/// After a failure a partition is left alone for so long.
const AFTER_FAILURE: Duration = Duration::from_secs(10 * 60);
/// An interval of 0 must not keep a core busy.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// When a partition whose compaction failed may be tried again, by the broker's clock.
type Failures = HashMap<GroupKey, Timestamp>;

/// The partitions that had their turn.
type Done = HashSet<GroupKey>;

impl Broker {
    pub(crate) fn start_compaction(&self) -> io::Result<()> {
        let inner = Arc::downgrade(&self.inner);
        let stopping = self.inner.stopping.subscribe();
        let thread = std::thread::Builder::new()
            .name("tidelog-compaction".to_owned())
            .spawn(move || {
                if let Some(waits) = Waits::new(stopping, "compaction") {
                    // It ends when the broker stops, and for no other reason.
                    let _stops = run(&inner, waits);
                }
            })?;
        self.inner.threads.lock().push(thread);
        Ok(())
    }

    /// Compacts every partition that is due now, instead of at the next interval, without pauses.
    /// Blocks.
    pub fn apply_compaction(&self) {
        let stopping = self.inner.stopping.subscribe();
        let Some(mut waits) = Waits::new(stopping, "compaction") else {
            return;
        };
        // The thread's own turns and this one take turns.
        let _stops = compact_all(&self.inner, &mut waits, &mut Failures::new(), u64::MAX);
    }
}

fn run(inner: &Weak<Inner>, mut waits: Waits) -> Result<(), BrokerStops> {
    let mut failures = Failures::new();
    loop {
        let interval = match inner.upgrade() {
            Some(inner) => inner.config.compaction_check_interval,
            None => return Err(BrokerStops),
        };
        waits.wait(interval.max(INTERVAL_MIN))?;
        let inner = inner.upgrade().ok_or(BrokerStops)?;
        let rate = inner.config.compaction_bytes_per_second;
        compact_all(&inner, &mut waits, &mut failures, rate)?;
    }
}

/// Compacts the dirtiest partition, until there is none that is due.
fn compact_all(
    inner: &Inner,
    waits: &mut Waits,
    failures: &mut Failures,
    bytes_per_second: u64,
) -> Result<(), BrokerStops> {
    let _turn = inner.compacting.lock();
    let now = inner.age_clock.now();
    // A clock that went back must not keep a partition from being tried for ever.
    let longest = after(now, AFTER_FAILURE);
    failures.retain(|_, until| *until > now && *until <= longest);
    let mut done = Done::new();
    while let Some(partition) = dirtiest(inner, now, failures, &done) {
        if waits.is_stopping() {
            return Err(BrokerStops);
        }
        // Once a turn: what is dirty again by then was appended meanwhile.
        done.insert(partition.key);
        match compact(inner, &partition, now, waits, bytes_per_second) {
            Ok(()) => {}
            Err(CompactionError::Stopped(_)) if waits.is_stopping() => return Err(BrokerStops),
            Err(CompactionError::Stopped(_)) => {
                tracing::debug!(topic = %partition.topic, partition = partition.number(),
                    "a compaction was given up");
            }
            Err(error) => {
                inner.metrics.compaction_failures.inc();
                failures.insert(partition.key, longest);
                tracing::warn!(topic = %partition.topic, partition = partition.number(), %error,
                    "a partition could not be compacted; it is tried again in {} minutes",
                    AFTER_FAILURE.as_secs() / 60);
            }
        }
    }
    Ok(())
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(now.millis().saturating_add(millis))
}

/// The partition with the largest dirty share of those that are due.
fn dirtiest(
    inner: &Inner,
    now: Timestamp,
    failures: &Failures,
    done: &Done,
) -> Option<Arc<Partition>> {
    let routes: Vec<_> = inner.routes.read().values().cloned().collect();
    let slots = routes.iter().flat_map(|route| &route.slots);
    let due = slots.filter_map(|slot| {
        let Slot::Serving(partition) = slot else {
            return None;
        };
        let is_out = failures.contains_key(&partition.key) || done.contains(&partition.key);
        if is_out || partition.is_closed() || partition.fault().is_some() {
            return None;
        }
        Some((dirty_share(partition, now)?, partition))
    });
    let largest = due.max_by(|(a, _), (b, _)| a.total_cmp(b));
    largest.map(|(_, partition)| partition.clone())
}

/// The dirty part's share of a log that is due.
fn dirty_share(partition: &Partition, now: Timestamp) -> Option<f64> {
    let settings = partition.settings();
    if !settings.cleanup.compact {
        return None;
    }
    let end = partition.high_watermark();
    let lag = settings.min_compaction_lag_ms;
    let compactable = partition.reader().compactable(now, lag, end);
    let share = compactable.dirty_ratio();
    let waits_for = compactable
        .dirty_since
        .map(|since| now.millis().saturating_sub(since.millis()));
    let is_overdue = waits_for
        .and_then(|waits_for| u64::try_from(waits_for).ok())
        .is_some_and(|waits_for| waits_for >= settings.max_compaction_lag_ms);
    let is_due = share >= settings.min_cleanable_dirty_ratio || is_overdue;
    (compactable.dirty_bytes > 0 && is_due).then_some(share)
}

fn compact(
    inner: &Inner,
    partition: &Arc<Partition>,
    now: Timestamp,
    waits: &mut Waits,
    bytes_per_second: u64,
) -> Result<(), CompactionError> {
    if inner.space.check().is_err() {
        // What is read would be for nothing.
        return Err(Stopped.into());
    }
    let options = options(inner, partition, &partition.settings(), now);
    let metrics = &inner.metrics;
    let mut pace = Paced {
        inner,
        partition,
        waits,
        rate: Rate::new(bytes_per_second),
    };
    let Some(mut run) = Compaction::begin(&partition.reader(), options, &mut pace)? else {
        return Ok(());
    };
    let mut counted = 0;
    let result = loop {
        let left = i64::try_from(run.bytes_left()).unwrap_or(i64::MAX);
        metrics.compaction_pending_bytes.set(left);
        let next = run.next(&mut pace);
        let removed = run.stats().records_removed;
        metrics.compaction_records_removed.inc_by(removed - counted);
        counted = removed;
        let compacted = match next {
            Ok(Some(compacted)) => compacted,
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        };
        let beside = compacted.beside().to_owned();
        let (reply, replied) = oneshot::channel();
        let install = Command::Install {
            key: partition.key,
            compacted: Box::new(compacted),
            reply,
        };
        // Whatever it is that keeps it from being installed (a trim, a fault, the topic's
        // deletion, the stop) is told elsewhere.
        // Where the shard is gone, so is the reply.
        drop(partition.shard.blocking_send(install));
        let result = replied.blocking_recv();
        if !matches!(result, Ok(Ok(()))) {
            tracing::debug!(topic = %partition.topic, partition = partition.number(), ?result,
                "a compacted segment was not installed");
            // Of a log that was deleted or trimmed; a poisoned one may just have renamed it.
            if matches!(result, Ok(Err(InstallError::Outdated))) {
                drop(inner.seams.disk.remove_file(&beside));
            }
            break Err(Stopped.into());
        }
    };
    metrics.compaction_pending_bytes.set(0);
    if result.is_ok() {
        metrics.compactions.inc();
        let stats = run.stats();
        tracing::info!(topic = %partition.topic, partition = partition.number(),
            records_removed = stats.records_removed, tombstones = stats.tombstones_removed,
            bytes_before = stats.bytes_before, bytes_after = stats.bytes_after, "compacted");
        if stats.keyless_removed > 0 {
            tracing::warn!(topic = %partition.topic, partition = partition.number(),
                records = stats.keyless_removed,
                "compaction removed records without a key, from before the topic was compacted");
        }
    }
    result
}

fn options(
    inner: &Inner,
    partition: &Partition,
    settings: &TopicSettings,
    now: Timestamp,
) -> CompactionOptions {
    CompactionOptions {
        now,
        end_max: partition.high_watermark(),
        min_lag_ms: settings.min_compaction_lag_ms,
        delete_retention_ms: settings.delete_retention_ms,
        segment_bytes: settings.segment_bytes,
        index_interval_bytes: settings.index_interval_bytes,
        key_bytes_max: inner.config.compaction_key_bytes_max,
        secret: inner.seams.random.id(),
    }
}

/// Counts what is read and written, and holds it to the rate.
struct Paced<'a> {
    inner: &'a Inner,
    partition: &'a Partition,
    waits: &'a mut Waits,
    rate: Rate,
}

impl Paced<'_> {
    fn pass(&mut self, bytes: u64) -> Result<(), Stopped> {
        if self.waits.is_stopping() || self.partition.is_closed() {
            return Err(Stopped);
        }
        match self.rate.pass(bytes) {
            Some(pause) => self.waits.wait(pause).map_err(|_| Stopped),
            None => Ok(()),
        }
    }
}

impl Pace for Paced<'_> {
    fn read(&mut self, bytes: u64) -> Result<(), Stopped> {
        self.inner.metrics.compaction_read_bytes.inc_by(bytes);
        self.pass(bytes)
    }

    fn write(&mut self, bytes: u64) -> Result<(), Stopped> {
        // What is kept free on the disk is not for this: it makes space only at its end.
        if let Err(full) = self.inner.space.check() {
            tracing::warn!(topic = %self.partition.topic, error = %full.refusal_of(bytes),
                "a compaction waits for space");
            return Err(Stopped);
        }
        self.inner.metrics.compaction_written_bytes.inc_by(bytes);
        self.pass(bytes)
    }
}
