//! What a broker counts, in Prometheus' terms.

use std::fmt::Write;
use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// The metrics of one broker, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(crate) append_batches: IntCounter,
    pub(crate) append_duplicates: IntCounter,
    pub(crate) append_records: IntCounter,
    pub(crate) append_bytes: IntCounter,
    pub(crate) fetch_bytes: IntCounter,
    pub(crate) cold_reads: IntCounter,
    pub(crate) append_seconds: Histogram,
    pub(crate) sync_seconds: Histogram,
    pub(crate) sync_logs: Histogram,
    pub(crate) fetch_seconds: Histogram,
    pub(crate) in_flight_bytes: IntGauge,
    pub(crate) compactions: IntCounter,
    pub(crate) compaction_failures: IntCounter,
    pub(crate) compaction_read_bytes: IntCounter,
    pub(crate) compaction_written_bytes: IntCounter,
    pub(crate) compaction_records_removed: IntCounter,
    pub(crate) compaction_pending_bytes: IntGauge,
    pub(crate) removed_bytes: IntCounter,
    pub(crate) removal_pending_bytes: IntGauge,
    pub(crate) commit_seconds: Histogram,
    pub(crate) elections: IntCounter,
    pub(crate) leader_changes: IntCounter,
    pub(crate) catch_up_received_bytes: IntCounter,
    pub(crate) catch_up_sent_bytes: IntCounter,
    pub(crate) replicas: IntGauge,
    pub(crate) leaders: IntGauge,
    pub(crate) under_replicated: IntGauge,
    pub(crate) leaderless: IntGauge,
    pub(crate) leads_metadata: IntGauge,
    pub(crate) group_commits: IntCounter,
    pub(crate) coordinator_load_seconds: Histogram,
    errors: IntCounterVec,
    faulted: IntGauge,
}

/// A gauge that there is for each partition: its name, what it tells, and how it is read.
type PartitionGauge = (
    &'static str,
    &'static str,
    fn(&PartitionNumbers) -> Option<u64>,
);

/// Written down by hand: in the registry each would be made, sorted and copied for each answer, which
/// with 10,000 partitions takes most of a second.
const PARTITION_GAUGES: [PartitionGauge; 8] = [
    (
        "tidelog_log_start_offset",
        "The first readable offset.",
        |numbers| Some(numbers.log_start),
    ),
    (
        "tidelog_high_watermark",
        "Everything below is acknowledged and readable.",
        |numbers| Some(numbers.high_watermark),
    ),
    (
        "tidelog_log_end_offset",
        "The next offset to be assigned.",
        |numbers| Some(numbers.log_end),
    ),
    (
        "tidelog_log_size_bytes",
        "Bytes of all segments.",
        |numbers| Some(numbers.size_bytes),
    ),
    ("tidelog_log_segments", "Segment files.", |numbers| {
        Some(numbers.segments as u64)
    }),
    (
        "tidelog_log_dirty_bytes",
        "Bytes that may be compacted and were not yet, of compacted topics.",
        |numbers| numbers.dirty_bytes,
    ),
    (
        "tidelog_replication_lag_entries",
        "Entries that the replica which is furthest behind lacks, of partitions that are led here.",
        |numbers| numbers.lag_entries,
    ),
    (
        "tidelog_replication_lag_ms",
        "For how long not all replicas were caught up, of partitions that are led here.",
        |numbers| numbers.lag_ms,
    ),
];

/// One partition's numbers, as they are when the metrics are asked for.
#[derive(Debug)]
pub(crate) struct PartitionNumbers {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) log_start: u64,
    pub(crate) high_watermark: u64,
    pub(crate) log_end: u64,
    pub(crate) size_bytes: u64,
    pub(crate) segments: usize,
    /// Of a compacted topic.
    pub(crate) dirty_bytes: Option<u64>,
    /// Of one that is led here and has other replicas.
    pub(crate) lag_entries: Option<u64>,
    pub(crate) lag_ms: Option<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            append_batches: counter("tidelog_append_batches_total", "Record batches appended."),
            append_duplicates: counter(
                "tidelog_append_duplicates_total",
                "Record batches that were sent again and had been stored before.",
            ),
            append_records: counter("tidelog_append_records_total", "Records appended."),
            append_bytes: counter("tidelog_append_bytes_total", "Bytes of batches appended."),
            fetch_bytes: counter("tidelog_fetch_bytes_total", "Bytes of batches read."),
            cold_reads: counter(
                "tidelog_cold_reads_total",
                "Reads that went to the disk instead of to recently written memory.",
            ),
            append_seconds: histogram(
                "tidelog_append_seconds",
                "From the hand-over of a batch to its acknowledgement, as acks asks for.",
                latency_buckets(),
            ),
            sync_seconds: histogram(
                "tidelog_sync_seconds",
                "How long a sync round took, all its logs together.",
                latency_buckets(),
            ),
            sync_logs: histogram(
                "tidelog_sync_round_logs",
                "How many logs shared a sync round.",
                vec![1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0],
            ),
            fetch_seconds: histogram(
                "tidelog_fetch_seconds",
                "How long a read took, waiting for new records not counted.",
                latency_buckets(),
            ),
            in_flight_bytes: gauge(
                "tidelog_in_flight_bytes",
                "Bytes of appends that were taken and not yet answered.",
            ),
            compactions: counter(
                "tidelog_compactions_total",
                "Logs that were compacted, run by run.",
            ),
            compaction_failures: counter(
                "tidelog_compaction_failures_total",
                "Runs of compaction that damage or the disk ended.",
            ),
            compaction_read_bytes: counter(
                "tidelog_compaction_read_bytes_total",
                "Bytes read to compact.",
            ),
            compaction_written_bytes: counter(
                "tidelog_compaction_written_bytes_total",
                "Bytes written to compact.",
            ),
            compaction_records_removed: counter(
                "tidelog_compaction_records_removed_total",
                "Records that compaction found superfluous.",
            ),
            compaction_pending_bytes: gauge(
                "tidelog_compaction_pending_bytes",
                "Bytes that the run under way has yet to rewrite.",
            ),
            removed_bytes: counter(
                "tidelog_removed_bytes_total",
                "Bytes of removed segments whose space was given back.",
            ),
            removal_pending_bytes: gauge(
                "tidelog_removal_pending_bytes",
                "Bytes of removed segments whose space was not given back yet.",
            ),
            commit_seconds: histogram(
                "tidelog_commit_seconds",
                "From when a batch was proposed to when it was committed, with acks=all and without write.caching.",
                latency_buckets(),
            ),
            elections: counter(
                "tidelog_elections_total",
                "Times that a replica here was elected leader.",
            ),
            leader_changes: counter(
                "tidelog_leader_changes_total",
                "Times that a replica here got another leader, or became it.",
            ),
            catch_up_received_bytes: counter(
                "tidelog_catch_up_received_bytes_total",
                "Bytes of files that replicas here have copied from other brokers.",
            ),
            catch_up_sent_bytes: counter(
                "tidelog_catch_up_sent_bytes_total",
                "Bytes of files that replicas of other brokers have copied from here.",
            ),
            replicas: gauge("tidelog_replicas", "Replicas that this broker has."),
            leaders: gauge("tidelog_leaders", "Partitions that are led here."),
            under_replicated: gauge(
                "tidelog_under_replicated_partitions",
                "Partitions that are led here, and of whose replicas not all are caught up and heard.",
            ),
            leaderless: gauge(
                "tidelog_leaderless_partitions",
                "Partitions of which no leader is known here, of all there are.",
            ),
            leads_metadata: gauge(
                "tidelog_metadata_leader",
                "1 where the metadata are decided.",
            ),
            group_commits: counter(
                "tidelog_group_commits_total",
                "Offsets that groups coordinated here have committed, one for each partition.",
            ),
            coordinator_load_seconds: histogram(
                "tidelog_coordinator_load_seconds",
                "Reading the groups of a partition of __consumer_offsets that is led here from now on.",
                latency_buckets(),
            ),
            errors: IntCounterVec::new(
                Opts::new("tidelog_errors_total", "Requests that failed, by reason."),
                &["reason"],
            )
            .expect("the name and label are valid"),
            faulted: gauge(
                "tidelog_partitions_faulted",
                "Partitions that do not serve.",
            ),
            registry,
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let collectors: [Box<dyn prometheus::core::Collector>; 33] = [
            Box::new(self.append_batches.clone()),
            Box::new(self.append_duplicates.clone()),
            Box::new(self.append_records.clone()),
            Box::new(self.append_bytes.clone()),
            Box::new(self.fetch_bytes.clone()),
            Box::new(self.cold_reads.clone()),
            Box::new(self.append_seconds.clone()),
            Box::new(self.sync_seconds.clone()),
            Box::new(self.sync_logs.clone()),
            Box::new(self.fetch_seconds.clone()),
            Box::new(self.in_flight_bytes.clone()),
            Box::new(self.compactions.clone()),
            Box::new(self.compaction_failures.clone()),
            Box::new(self.compaction_read_bytes.clone()),
            Box::new(self.compaction_written_bytes.clone()),
            Box::new(self.compaction_records_removed.clone()),
            Box::new(self.compaction_pending_bytes.clone()),
            Box::new(self.removed_bytes.clone()),
            Box::new(self.removal_pending_bytes.clone()),
            Box::new(self.commit_seconds.clone()),
            Box::new(self.elections.clone()),
            Box::new(self.leader_changes.clone()),
            Box::new(self.catch_up_received_bytes.clone()),
            Box::new(self.catch_up_sent_bytes.clone()),
            Box::new(self.replicas.clone()),
            Box::new(self.leaders.clone()),
            Box::new(self.under_replicated.clone()),
            Box::new(self.leaderless.clone()),
            Box::new(self.leads_metadata.clone()),
            Box::new(self.group_commits.clone()),
            Box::new(self.coordinator_load_seconds.clone()),
            Box::new(self.errors.clone()),
            Box::new(self.faulted.clone()),
        ];
        for collector in collectors {
            self.registry
                .register(collector)
                .expect("each name is registered once");
        }
    }

    /// Where listeners may register metrics of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a request that failed, by the reason in its answer.
    pub fn count_error(&self, reason: &str) {
        self.errors.with_label_values(&[reason]).inc();
    }

    /// All metrics in Prometheus' text format, version 0.0.4.
    pub(crate) fn text(&self, partitions: &[PartitionNumbers], faulted: usize) -> String {
        self.faulted.set(i64::try_from(faulted).unwrap_or(i64::MAX));
        let mut text = String::new();
        if let Err(e) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(error = %e, "the metrics could not be written down");
        }
        for (name, help, value) in PARTITION_GAUGES {
            write_partitions(&mut text, name, help, partitions, value);
        }
        text
    }

    pub(crate) fn observe(histogram: &Histogram, took: Duration) {
        histogram.observe(took.as_secs_f64());
    }
}

/// From 50 µs, a sync of a fast device, to 10 s.
fn latency_buckets() -> Vec<f64> {
    vec![
        0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
        1.0, 2.0, 5.0, 10.0,
    ]
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("the name is valid")
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("the name is valid")
}

fn histogram(name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        .expect("the name is valid and the buckets grow")
}

/// One gauge of all partitions; nothing where none has it. What labels cannot hold as it is, names of
/// topics cannot either.
fn write_partitions(
    text: &mut String,
    name: &str,
    help: &str,
    partitions: &[PartitionNumbers],
    value: impl Fn(&PartitionNumbers) -> Option<u64>,
) {
    let mut any = false;
    for numbers in partitions {
        let Some(value) = value(numbers) else {
            continue;
        };
        let PartitionNumbers {
            topic, partition, ..
        } = numbers;
        if !any {
            any = true;
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge")
                .expect("a string takes everything");
        }
        writeln!(
            text,
            "{name}{{partition=\"{partition}\",topic=\"{topic}\"}} {value}"
        )
        .expect("a string takes everything");
    }
}
