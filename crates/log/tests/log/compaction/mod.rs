//! Compaction: what is left of a log, and what it survives.

mod cases;
mod model;

use bytes::Bytes;
use tidelog_log::{
    Compaction, CompactionError, CompactionOptions, CompactionStats, InstallError, Log, LogReader,
    Pace, ReadError, Stopped,
};
use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, LeaderEpoch, Offset, ProducedBatch, split_batches,
    validate_produced,
};

use crate::common::*;

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    offset: u64,
    time: i64,
    key: Option<Bytes>,
    value: Option<Bytes>,
    header: Option<Bytes>,
    epoch: u32,
    producer: (i64, i32),
}

/// Everything from `from` to the durable end, record by record.
fn records(reader: &LogReader, from: u64) -> Vec<Seen> {
    try_records(reader, from).unwrap()
}

fn try_records(reader: &LogReader, from: u64) -> Result<Vec<Seen>, ReadError> {
    let end = reader.durable_offset();
    let mut seen = Vec::new();
    let mut next = offset(from);
    while next < end {
        let (batches, _) = read(reader, next, end, 900)?;
        assert!(batches.next_offset > next, "no way on from {next}");
        seen.extend(
            decode(&batches.parts)
                .into_iter()
                .filter(|r| r.offset >= next.get()),
        );
        next = batches.next_offset;
    }
    assert!(seen.is_sorted_by(|a, b| a.offset < b.offset), "in order");
    Ok(seen)
}

fn decode(parts: &[Bytes]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for part in parts {
        for batch in split_batches(part.clone(), BATCH_MAX) {
            let batch = batch.unwrap();
            let header = batch.header().clone();
            let base = Offset::from_wire(header.base_offset).unwrap();
            for record in batch.records(&BatchLimits::default()).unwrap() {
                let record = record.unwrap();
                seen.push(Seen {
                    offset: record.offset(base).unwrap().get(),
                    time: record.timestamp.millis(),
                    key: record.key,
                    value: record.value,
                    header: record.headers.first().and_then(|h| h.value.clone()),
                    epoch: LeaderEpoch::from_wire(header.leader_epoch).unwrap().get(),
                    producer: (header.producer_id, header.base_sequence),
                });
            }
        }
    }
    seen
}

/// Key, value and time of a record to be appended.
type Keyed<'a> = (&'a str, Option<&'a str>, i64);

fn keyed(records: &[Keyed<'_>], compression: Compression) -> ProducedBatch {
    let mut builder = BatchBuilder::new(compression);
    for (key, value, time) in records {
        builder
            .push(
                at(*time),
                Some(key.as_bytes()),
                value.map(str::as_bytes),
                &[("h", Some(key.as_bytes()))],
            )
            .unwrap();
    }
    validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap()
}

/// Never waits; stops after so many steps.
#[derive(Default)]
struct Steps {
    left: Option<u64>,
    read: u64,
    written: u64,
}

impl Steps {
    fn step(&mut self) -> Result<(), Stopped> {
        match &mut self.left {
            Some(0) => Err(Stopped),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Pace for Steps {
    fn read(&mut self, bytes: u64) -> Result<(), Stopped> {
        self.read += bytes;
        self.step()
    }

    fn write(&mut self, bytes: u64) -> Result<(), Stopped> {
        self.written += bytes;
        self.step()
    }
}

pub(crate) fn options(log: &Log, now: i64) -> CompactionOptions {
    CompactionOptions {
        now: at(now),
        end_max: log.reader().durable_offset(),
        min_lag_ms: 0,
        delete_retention_ms: 1000,
        segment_bytes: log.options().segment_bytes,
        index_interval_bytes: log.options().index_interval_bytes,
        key_bytes_max: 1 << 20,
        secret: [3; 16],
    }
}

/// A whole run; `None` when there was nothing to do.
pub(crate) fn compact(log: &mut Log, options: CompactionOptions) -> Option<CompactionStats> {
    let mut pace = Steps::default();
    let mut run = Compaction::begin(&log.reader(), options, &mut pace).unwrap()?;
    while let Some(compacted) = run.next(&mut pace).unwrap() {
        log.install(compacted).unwrap();
    }
    assert_eq!(run.bytes_left(), 0);
    assert!(pace.read > 0);
    Some(run.stats())
}

/// Reads which a compaction comes in between of.
struct Held(Vec<(Offset, tidelog_log::ColdRead)>);

impl Held {
    fn begin(reader: &LogReader, from: impl Iterator<Item = u64>) -> Self {
        let end = reader.durable_offset();
        let cold = from.filter_map(|from| match reader.read(offset(from), end, 500).unwrap() {
            tidelog_log::Found::Cold(cold) => Some((offset(from), cold)),
            tidelog_log::Found::Ready(_) => None,
        });
        Self(cold.collect())
    }
}
