//! Catching up by files: what the copy of a log is, and what its making survives.

mod crashes;
mod manifest;
mod source;
mod swap;

use std::path::PathBuf;

use bytes::Bytes;
use tidelog_disk::Disk;
use tidelog_log::catch_up::{CatchUpSource, Manifest, Old, Staging, StagingError, catch_up_dir};
use tidelog_log::{InternalKind, Log, LogEntry, LogOptions, Poisoned};
use tidelog_record::{BatchBuilder, BatchLimits, Compression, ProducedBatch, validate_produced};
use tidelog_sim::SimDisk;

use crate::common::*;
use crate::compaction::{compact, options as compaction};
use crate::replica::{at_index, begin, create_replica, next_internal};

/// A log that others copy, and what was sent to it.
pub(crate) struct Original {
    log: Log,
    sent: Vec<ProducedBatch>,
    /// What its records have for values.
    value: u8,
}

/// The producers that send to it.
const PRODUCERS: i64 = 3;

impl Original {
    fn new(options: LogOptions) -> Self {
        let disk = disk();
        let mut log = create_replica(&disk, options);
        begin(&mut log, 6);
        let (sent, value) = (Vec::new(), b'v');
        Self { log, sent, value }
    }

    /// Appends so many batches of two records, by turns of the producers; the key of each second
    /// record comes again and again.
    fn append(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.sent.len();
            let (id, sequence) = (number as i64 % PRODUCERS, number as i32 / 3 * 2);
            let key = format!("key {number}");
            let mut builder = BatchBuilder::new(Compression::None).producer(id, 0, sequence);
            for key in [key.as_str(), "again"] {
                let value = [self.value; 60];
                let time = at(1000 + number as i64);
                builder
                    .push(time, Some(key.as_bytes()), Some(&value), &[])
                    .unwrap();
            }
            let batch = validate_produced(builder.build().unwrap(), &BatchLimits::default());
            let mut batch = batch.unwrap();
            batch.stamp(self.log.end().offset, self.log.end().epoch);
            let entry = LogEntry::batch(&batch);
            assert_eq!(self.log.append_entries(&[entry], at(0)).unwrap(), 1);
            self.sent.push(batch);
        }
    }

    fn internal(&mut self, kind: InternalKind) {
        let epoch_now = self.log.end().epoch.get();
        let entry = next_internal(&self.log, kind, epoch_now);
        assert_eq!(self.log.append_entries(&[entry], at(0)).unwrap(), 1);
    }

    fn commit(&mut self) {
        self.log.sync().unwrap();
        self.log.commit_to(at_index(self.log.end_index().get() - 1));
    }

    fn trim(&mut self, to: u64) {
        self.internal(InternalKind::LogStart(offset(to)));
        self.commit();
    }

    fn source(&self) -> CatchUpSource {
        CatchUpSource::of(&self.log.reader(), Bytes::from_static(b"members")).unwrap()
    }

    /// Compacted, sealed and active segments, a log start inside one of them, two epochs, and a tail
    /// that is not committed in a segment of its own and the one before.
    fn of_all_kinds() -> Self {
        let mut it = Self::new(small());
        it.append(24);
        it.internal(InternalKind::RaftConfChange(Bytes::from_static(b"conf")));
        begin(&mut it.log, 7);
        it.append(10);
        it.commit();
        let options = compaction(&it.log, 100);
        compact(&mut it.log, options).expect("something to be compacted");
        it.append(12);
        it.trim(31);
        it.append(9);
        it.commit();
        let log = &mut it.log;
        let committed = log.end();
        begin(log, 8);
        for _ in 0..14 {
            it.append(1);
        }
        it.sent.truncate(it.sent.len() - 14);
        assert!(
            it.log.end().sequence > committed.sequence,
            "the tail goes on in another segment"
        );
        it
    }
}

/// What the state file has of the copy's side.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Recorded {
    checkpoint: tidelog_log::LogEnd,
    commit: u64,
}

impl Recorded {
    fn of(manifest: &Manifest) -> Self {
        assert_eq!(manifest.note(), "members");
        Self {
            checkpoint: manifest.end(),
            commit: manifest.commit().get(),
        }
    }

    fn open(&self, disk: &SimDisk) -> Log {
        let opened = Log::open_replica(
            dynamic(disk),
            &dir(),
            identity(),
            small(),
            Some(self.checkpoint),
            at_index(self.commit),
        );
        opened.unwrap().0
    }
}

/// A disk with nothing but the directory of all partitions.
fn fresh(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all("/data".as_ref()).unwrap();
    disk.sync_dir("/".as_ref()).unwrap();
    disk
}

fn stage(disk: &SimDisk, manifest: &Manifest) -> Result<Staging, StagingError> {
    Staging::open(dynamic(disk), &dir(), identity(), manifest.clone())
}

/// Copies what is wanted, in parts of at most `part` bytes, at most `limit` of them; gives how many
/// bytes each file took.
fn pump(
    source: &CatchUpSource,
    staging: &mut Staging,
    part: u32,
    mut limit: usize,
) -> Result<Vec<u64>, StagingError> {
    let mut fetched = vec![0; source.manifest().files() as usize];
    while let Some(wanted) = staging.next().filter(|_| limit > 0) {
        limit -= 1;
        let len = wanted.len_max.min(part);
        let bytes = source.read(wanted.file, wanted.position, len).unwrap();
        assert_eq!(bytes.len(), len as usize);
        fetched[wanted.file as usize] += u64::from(len);
        staging.write(wanted.file, wanted.position, &bytes)?;
    }
    Ok(fetched)
}

/// A copy of it all, adopted where nothing was.
fn copy(source: &CatchUpSource, disk: &SimDisk) -> (Recorded, Log) {
    let mut staging = stage(disk, source.manifest()).unwrap();
    pump(source, &mut staging, 700, usize::MAX).unwrap();
    let staged = staging.finish().unwrap();
    let mut recorded = None;
    let record = |manifest: &Manifest| {
        recorded = Some(Recorded::of(manifest));
        Ok::<_, Poisoned>(())
    };
    staged.adopt(Old::Nothing, record).unwrap();
    let recorded = recorded.unwrap();
    (recorded, recorded.open(disk))
}

fn committed_bytes(log: &Log) -> Vec<Bytes> {
    let reader = log.reader();
    let end = reader.committed_offset();
    let mut next = reader.log_start();
    let mut all = Vec::new();
    while next < end {
        let (batches, _) = read(&reader, next, end, 700).unwrap();
        assert!(batches.next_offset > next);
        next = batches.next_offset;
        for part in batches.parts {
            for batch in tidelog_record::split_batches(part, BATCH_MAX) {
                all.push(batch.unwrap().bytes().clone());
            }
        }
    }
    assert_eq!(next, end);
    all
}

/// The copy has what the original had at its commit, and nothing else.
fn check_copy(original: &Original, copy: &Log, manifest: &Manifest) {
    let (log, end) = (&original.log, manifest.end());
    assert_eq!(copy.end(), end);
    assert_eq!(copy.commit(), manifest.commit());
    assert_eq!(copy.reader().log_start(), end.log_start);
    assert_eq!(copy.reader().committed_offset(), end.offset);
    let epochs = log.reader().epochs();
    let epochs: Vec<_> = epochs.into_iter().filter(|e| e.index < end.index).collect();
    assert_eq!(copy.reader().epochs(), epochs);

    // In the bytes of the batches lie their offsets and epochs.
    let upto = end.offset.get() as i64;
    let expected: Vec<_> = committed_bytes(log)
        .into_iter()
        .filter(|bytes| base_of(bytes) < upto)
        .collect();
    let copied = committed_bytes(copy);
    assert_eq!(copied.len(), expected.len());
    assert!(copied == expected, "other batches");
    let first = copy.first_index();
    assert_eq!(first, log.first_index());
    if first < end.index {
        let all = |log: &Log| log.read_entries(first, end.index, u64::MAX).unwrap();
        assert_eq!(all(copy), all(log));
        for index in first.get() - 1..end.index.get() {
            let of = |log: &Log| log.epoch_of(at_index(index)).unwrap();
            assert_eq!(of(copy), of(log));
        }
    }
    for time in [0, 1010, 1040, 1050, 2000] {
        let of = |log: &Log| log.reader().find_timestamp(at(time), end.offset).unwrap();
        assert_eq!(of(copy), of(log), "at {time}");
    }

    // What was sent before is known, and the next one is the next one.
    assert_eq!(copy.producer_count(), PRODUCERS as usize);
    let sent = original.sent.iter();
    let sent = sent.filter(|batch| batch.header().base_offset < upto);
    for batch in sent.clone().rev().take(5 * PRODUCERS as usize) {
        let stored = copy.check_producer(batch).unwrap().expect("a duplicate");
        assert_eq!(stored.base_offset.get() as i64, batch.header().base_offset);
    }
    for id in 0..PRODUCERS {
        let of = sent.clone().filter(|b| b.header().producer_id == id);
        let next = of.clone().count() as i32 * 2;
        let next = crate::producers::batch_by(id, 0, next, &[(0, b"next")]);
        assert_eq!(copy.check_producer(&next), Ok(None));
        let gap = crate::producers::batch_by(id, 0, 9999, &[(0, b"gap")]);
        assert!(copy.check_producer(&gap).is_err());
    }
}

fn base_of(bytes: &Bytes) -> i64 {
    let header = tidelog_record::BatchHeader::decode(bytes, bytes.len());
    header.unwrap().base_offset
}

fn staged_files(disk: &SimDisk) -> Vec<PathBuf> {
    let staged = catch_up_dir(&dir());
    let entries = disk.list(&staged).unwrap();
    entries.iter().map(|e| staged.join(&e.name)).collect()
}

#[test]
fn a_copy_is_the_log_up_to_its_commit() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let manifest = source.manifest().clone();
    let committed = original.log.reader().committed_offset();
    assert_eq!(manifest.end().offset, committed);
    assert!(manifest.end().index < original.log.end_index());
    assert!(manifest.files() > 6, "{} files", manifest.files());
    let disk = fresh(2);
    let (recorded, log) = copy(&source, &disk);
    check_copy(&original, &log, &manifest);
    assert_eq!(
        disk.list("/data".as_ref()).unwrap().len(),
        1,
        "nothing is left beside"
    );
    drop(log);

    // Whatever the machine forgets.
    disk.crash();
    let mut log = recorded.open(&disk);
    check_copy(&original, &log, &manifest);

    // It goes on as the original does.
    let (from, to) = (manifest.end().index, original.log.end_index());
    let tail = original.log.read_entries(from, to, u64::MAX).unwrap();
    for (_, bytes) in &tail {
        let entry = LogEntry::check(bytes.clone(), BATCH_MAX).unwrap();
        assert_eq!(log.append_entries(&[entry], at(0)).unwrap(), 1);
    }
    assert_eq!(log.read_entries(from, to, u64::MAX).unwrap(), tail);
    assert_eq!(log.end().offset, original.log.end().offset);
    log.truncate(from, |_| Ok(())).unwrap();
    assert_eq!(log.end().index, from);
}

#[test]
fn no_byte_above_the_commit_is_given() {
    let mut original = Original::of_all_kinds();
    let source = original.source();
    let manifest = source.manifest();
    for file in 0..manifest.files() + 2 {
        let len = manifest.file_len(file);
        for position in [len, len + 1, u64::MAX] {
            assert!(
                source.read(file, position, 1).is_err(),
                "{file} at {position}"
            );
        }
        if len > 0 {
            let last = source.read(file, len - 1, u32::MAX).unwrap();
            assert_eq!(last.len(), 1);
        }
    }
    // Nor once it is committed: the manifest is what it was.
    let end = manifest.end();
    original.commit();
    assert!(
        source
            .read(manifest.files() - 3, u64::from(end.position), 1)
            .is_err()
    );
}

#[test]
fn after_a_stop_only_what_is_missing_is_fetched() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let manifest = source.manifest();
    let whole = {
        let disk = fresh(2);
        let mut staging = stage(&disk, manifest).unwrap();
        pump(&source, &mut staging, 300, usize::MAX).unwrap()
    };
    assert_eq!(whole.iter().sum::<u64>(), manifest.len_bytes());
    for parts in 0.. {
        let disk = fresh(parts);
        let mut staging = stage(&disk, manifest).unwrap();
        let before = pump(&source, &mut staging, 300, parts as usize).unwrap();
        let is_all = staging.next().is_none();
        let have = staging.have_bytes();
        assert_eq!(have, before.iter().sum::<u64>());
        // The process ends, its bytes stay.
        disk.kill();
        let mut staging = stage(&disk, manifest).unwrap();
        let after = pump(&source, &mut staging, 300, usize::MAX).unwrap();
        let again = before
            .iter()
            .zip(&after)
            .map(|(before, after)| before + after);
        for (file, ((sum, whole), before)) in again.zip(&whole).zip(&before).enumerate() {
            let lost = sum - whole;
            if before == whole {
                assert_eq!(lost, 0, "file {file} was there");
            } else if file < whole_segments(manifest) {
                assert!(lost < 300, "file {file}: {lost} of {before} fetched again");
            }
        }
        staging.finish().unwrap();
        if is_all {
            break;
        }
    }
}

fn whole_segments(manifest: &Manifest) -> usize {
    manifest.files() as usize - 2
}

#[test]
fn what_is_damaged_on_the_way_is_fetched_again_and_nothing_else() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let manifest = source.manifest();
    let total = manifest.len_bytes();
    for damaged in (0..total).step_by(37) {
        let disk = fresh(damaged);
        let mut staging = stage(&disk, manifest).unwrap();
        let mut at = 0;
        let mut hit = None;
        let mut flaws = Vec::new();
        let mut fetched = vec![0; manifest.files() as usize];
        while let Some(wanted) = staging.next() {
            let bytes = source.read(wanted.file, wanted.position, 500).unwrap();
            let mut bytes = bytes.to_vec();
            if hit.is_none() && (at..at + bytes.len() as u64).contains(&damaged) {
                bytes[(damaged - at) as usize] ^= 1 << (damaged % 8);
                hit = Some(wanted.file);
            }
            at += bytes.len() as u64;
            fetched[wanted.file as usize] += bytes.len() as u64;
            match staging.write(wanted.file, wanted.position, &bytes) {
                Ok(()) => {}
                Err(StagingError::Damaged { file, .. }) => flaws.push(file),
                Err(e) => panic!("{e}"),
            }
        }
        staging.finish().unwrap();
        let hit = hit.unwrap();
        assert_eq!(flaws, [hit], "byte {damaged}");
        for (file, fetched) in (0..).zip(fetched) {
            let times = 1 + u64::from(file == hit);
            assert_eq!(fetched, times * manifest.file_len(file));
        }
    }
}

/// Bits that rot between two stops, in files that had been checked.
#[test]
fn what_is_damaged_in_the_staging_directory_is_fetched_again() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let manifest = source.manifest();
    for file in 0..manifest.files() as usize {
        let disk = fresh(3);
        let mut staging = stage(&disk, manifest).unwrap();
        pump(&source, &mut staging, 5000, usize::MAX).unwrap();
        staging.finish().unwrap();
        let names = staged_files(&disk);
        let mut wanted: Vec<_> = names
            .iter()
            .filter(|path| {
                let path = path.to_string_lossy();
                path.ends_with(".log") || path.ends_with("epochs") || path.ends_with("producers")
            })
            .collect();
        wanted.sort_by_key(|path| {
            let path = path.to_string_lossy();
            (
                path.ends_with("producers"),
                path.ends_with("epochs"),
                path.into_owned(),
            )
        });
        let path = wanted[file];
        let len = manifest.file_len(file as u32);
        assert_eq!(disk.contents(path).len() as u64, len);
        disk.kill();
        disk.flip_bit(path, len - 1, 3);
        let mut staging = stage(&disk, manifest).unwrap();
        if staging.next().is_none() {
            let refused = staging.finish();
            let is_it = matches!(&refused,
                Err(StagingError::Damaged { file: damaged, .. }) if *damaged == file as u32);
            assert!(is_it, "{refused:?}");
        }
        let fetched = pump(&source, &mut staging, 5000, usize::MAX).unwrap();
        assert_eq!(fetched.iter().sum::<u64>(), len, "only file {file}");
        staging.finish().unwrap();
    }
}

#[test]
fn bytes_that_do_not_come_next_are_refused() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let disk = fresh(4);
    let mut staging = stage(&disk, source.manifest()).unwrap();
    assert!(matches!(staging.finish(), Err(StagingError::Incomplete)));
    let wanted = staging.next().unwrap();
    assert_eq!(
        staging.wanted().map(|w| u64::from(w.len_max)).sum::<u64>(),
        source.manifest().len_bytes()
    );
    let long = vec![0; wanted.len_max as usize + 1];
    for (file, position, bytes) in [
        (0, 1, &long[..1]),
        (1, 0, &long[..1]),
        (0, 0, &long[..0]),
        (0, 0, &long[..]),
        (u32::MAX, 0, &long[..1]),
    ] {
        let refused = staging.write(file, position, bytes);
        assert!(
            matches!(refused, Err(StagingError::NotWanted { .. })),
            "{refused:?}"
        );
        assert_eq!(staging.next(), Some(wanted));
    }
    let mut other = identity();
    other.incarnation += 1;
    let refused = Staging::open(dynamic(&disk), &dir(), other, source.manifest().clone());
    assert!(matches!(refused, Err(StagingError::Foreign)));
}

#[test]
fn a_full_disk_is_waited_for() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let disk = fresh(5);
    disk.set_free_bytes(Some(4096));
    let mut staging = stage(&disk, source.manifest()).unwrap();
    let full = pump(&source, &mut staging, 300, usize::MAX);
    assert!(matches!(full, Err(StagingError::Full(_))), "{full:?}");
    let have = staging.have_bytes();
    assert!(have > 0);
    disk.set_free_bytes(Some(1 << 20));
    let fetched = pump(&source, &mut staging, 300, usize::MAX).unwrap();
    assert_eq!(
        fetched.iter().sum::<u64>(),
        source.manifest().len_bytes() - have
    );
    staging.finish().unwrap();
}
