//! A log on a simulated disk, and a broker's memory of what it may trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidelog_disk::Disk;
use tidelog_log::{
    Appended, Batches, Found, Log, LogEnd, LogIdentity, LogOptions, LogReader, OpenError, Poisoned,
    ReadError, Recovery, RoundObserver, SyncTarget,
};
use tidelog_record::{
    Batch, BatchBuilder, BatchLimits, Compression, Offset, PartitionId, ProducedBatch, Timestamp,
    TopicId, split_batches, validate_produced,
};
use tidelog_sim::SimDisk;

/// More than any batch in these tests.
pub(crate) const BATCH_MAX: usize = 64 << 20;
/// The length of a segment header entry.
pub(crate) const HEADER: u64 = 251;

pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/data/topic-0")
}

pub(crate) fn identity() -> LogIdentity {
    LogIdentity {
        cluster_id: [7; 16],
        topic_id: TopicId::from_bytes([9; 16]),
        partition: PartitionId::new(3),
        incarnation: 1,
    }
}

/// Small segments, an index entry every other batch.
pub(crate) fn small() -> LogOptions {
    LogOptions {
        segment_bytes: 2000,
        segment_ms: 1_000_000,
        index_interval_bytes: 200,
        ..LogOptions::default()
    }
}

/// Segments that hold all of a test.
pub(crate) fn large() -> LogOptions {
    LogOptions {
        segment_bytes: 16 << 20,
        segment_ms: 1_000_000,
        index_interval_bytes: 400,
        ..LogOptions::default()
    }
}

/// As [`small`], with segments of so many bytes.
pub(crate) fn with_segments(segment_bytes: u32) -> LogOptions {
    LogOptions {
        segment_bytes,
        ..small()
    }
}

/// An observer of sync rounds who records nothing.
#[derive(Debug)]
pub(crate) struct Unrecorded;

impl RoundObserver for Unrecorded {
    fn record(&self, _ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned> {
        Ok(())
    }
    fn finished(&self, _logs: usize, _took: Duration) {}
}

pub(crate) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

pub(crate) fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

pub(crate) fn disk() -> SimDisk {
    SimDisk::new(1)
}

pub(crate) fn dynamic(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

pub(crate) fn create(disk: &SimDisk, options: LogOptions) -> Log {
    disk.create_dir_all(Path::new("/data")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    Log::create(dynamic(disk), &dir(), identity(), options, at(0)).unwrap()
}

pub(crate) fn open(
    disk: &SimDisk,
    options: LogOptions,
    checkpoint: Option<LogEnd>,
) -> Result<(Log, Recovery), OpenError> {
    Log::open(dynamic(disk), &dir(), identity(), options, checkpoint)
}

/// A batch of records with these timestamps and values.
pub(crate) fn batch_of(records: &[(i64, &[u8])], compression: Compression) -> ProducedBatch {
    let mut builder = BatchBuilder::new(compression);
    for (millis, value) in records {
        builder
            .push(at(*millis), Some(b"k"), Some(value), &[])
            .unwrap();
    }
    validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap()
}

/// A batch of `records` records, `len` bytes each.
pub(crate) fn batch(records: usize, len: usize) -> ProducedBatch {
    let value = vec![b'v'; len];
    let records: Vec<(i64, &[u8])> = (0..records).map(|_| (1000, &value[..])).collect();
    batch_of(&records, Compression::None)
}

pub(crate) fn append(log: &mut Log, batch: ProducedBatch) -> Offset {
    let mut batches = [batch];
    let Appended {
        batches: taken,
        base_offset,
        duplicate,
    } = log.append(&mut batches, at(0)).unwrap();
    assert_eq!((taken, duplicate), (1, None));
    base_offset
}

/// What one read gave, and whether it came without waiting.
pub(crate) fn read(
    reader: &LogReader,
    from: Offset,
    end: Offset,
    bytes_max: usize,
) -> Result<(Batches, bool), ReadError> {
    match reader.read(from, end, bytes_max)? {
        Found::Ready(batches) => Ok((batches, true)),
        Found::Cold(cold) => Ok((cold.run()?, false)),
    }
}

/// All batches from `from` to the durable end, one by one.
pub(crate) fn read_all(reader: &LogReader, from: Offset) -> Result<Vec<Batch>, ReadError> {
    let end = reader.durable_offset();
    let mut all = Vec::new();
    let mut next = from;
    while next < end {
        let (batches, _) = read(reader, next, end, 700)?;
        assert!(!batches.is_empty(), "nothing at {next} of {end}");
        for part in &batches.parts {
            for batch in split_batches(part.clone(), BATCH_MAX) {
                all.push(batch.unwrap());
            }
        }
        assert!(batches.next_offset > next);
        next = batches.next_offset;
    }
    assert_eq!(next, end.max(from));
    Ok(all)
}

/// The bytes that `batch` has in a log at this offset and epoch.
pub(crate) fn stamped(batch: &ProducedBatch, base: Offset, epoch: u32) -> Bytes {
    let mut batch = batch.clone();
    batch.stamp(base, tidelog_record::LeaderEpoch::new(epoch).unwrap());
    let (header, body) = batch.parts();
    [&header[..], &body[..]].concat().into()
}

pub(crate) fn bytes_of(batches: &[Batch]) -> Vec<Bytes> {
    batches.iter().map(|batch| batch.bytes().clone()).collect()
}

/// The path of the segment with this base offset.
pub(crate) fn segment(base: u64) -> PathBuf {
    dir().join(format!("{base:020}.log"))
}

pub(crate) fn index(base: u64) -> PathBuf {
    dir().join(format!("{base:020}.index"))
}

pub(crate) fn epochs_file() -> PathBuf {
    dir().join("leader-epochs")
}

/// Where each batch of a segment file begins.
pub(crate) fn borders(disk: &SimDisk, path: &Path) -> Vec<u64> {
    let bytes = disk.contents(path);
    let mut borders = Vec::new();
    let mut at = 0;
    while let Ok(header) = tidelog_record::BatchHeader::decode(&bytes[at..], BATCH_MAX) {
        borders.push(at as u64);
        at += header.total_len();
    }
    borders
}
