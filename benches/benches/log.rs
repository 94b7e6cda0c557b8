//! The log against a bare loop of the same system calls, in one run.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidelog_disk::{Disk, OpenHow, OsDisk};
use tidelog_log::{Log, LogIdentity, LogOptions};
use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, PartitionId, ProducedBatch, Timestamp, TopicId, crc32c,
    validate_produced,
};

const RECORD_BYTES: usize = 1024;
/// A segment's worth of appends between fresh files, so that both sides write new pages.
const FILE_BYTES: usize = 256 << 20;

fn batch_of(records: usize) -> Bytes {
    let value = vec![7; RECORD_BYTES];
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        builder
            .push(Timestamp::from_millis(0), None, Some(&value), &[])
            .expect("the record is small");
    }
    builder.build().expect("the batch is small")
}

fn produced(bytes: &Bytes) -> ProducedBatch {
    let limits = BatchLimits {
        batch_bytes_max: 4 << 20,
        ..BatchLimits::default()
    };
    validate_produced(bytes.clone(), &limits).expect("the batch is valid")
}

fn new_log(dir: &Path) -> Log {
    let identity = LogIdentity {
        cluster_id: [1; 16],
        topic_id: TopicId::from_bytes([2; 16]),
        partition: PartitionId::new(0),
        incarnation: 1,
    };
    let now = Timestamp::from_millis(0);
    Log::create(Arc::new(OsDisk), dir, identity, LogOptions::default(), now)
        .expect("the directory is new")
}

/// What the bare loop writes to: a preallocated file, as the log has.
fn new_file(dir: &Path) -> File {
    let path = dir.join("bare");
    let file = OsDisk
        .open(&path, OpenHow::CreateNew)
        .expect("the directory is new");
    file.reserve(FILE_BYTES as u64).expect("there is space");
    File::options()
        .write(true)
        .open(path)
        .expect("it was just made")
}

fn append(c: &mut Criterion) {
    for (records, sync) in [(16, false), (64, false), (16, true), (64, true)] {
        let bytes = batch_of(records);
        let name = if sync {
            "append, synced each"
        } else {
            "append, not synced"
        };
        let mut group = c.benchmark_group(format!("{name}, {records} x 1 KiB"));
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let per_file = if sync {
            200
        } else {
            FILE_BYTES / bytes.len() - 1
        };
        let now = Timestamp::from_millis(0);
        group.bench_function("log", |b| {
            let mut dir = tempfile::tempdir().expect("a temporary directory");
            let mut log = new_log(dir.path());
            let mut batch = [produced(&bytes)];
            let mut appended = 0;
            b.iter(|| {
                if appended == per_file {
                    dir = tempfile::tempdir().expect("a temporary directory");
                    log = new_log(dir.path());
                    appended = 0;
                }
                // The check of the CRC belongs to the append of a broker.
                assert_eq!(crc32c(&[&bytes[21..]]), batch[0].header().crc);
                log.append(&mut batch, now).expect("there is space");
                if sync {
                    log.sync().expect("the disk is sound");
                }
                appended += 1;
            });
        });
        group.bench_function("bare loop", |b| {
            let mut dir = tempfile::tempdir().expect("a temporary directory");
            let mut file = new_file(dir.path());
            let stored = produced(&bytes).header().crc;
            let mut appended = 0;
            b.iter(|| {
                if appended == per_file {
                    dir = tempfile::tempdir().expect("a temporary directory");
                    file = new_file(dir.path());
                    appended = 0;
                }
                assert_eq!(crc32c(&[&bytes[21..]]), stored);
                let at = (appended * bytes.len()) as u64;
                file.write_all_at(&bytes, at).expect("there is space");
                if sync {
                    file.sync_data().expect("the disk is sound");
                }
                appended += 1;
            });
        });
        group.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
