//! Idempotent producers: what is sent again is stored once, whatever the log goes through.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

use bytes::Bytes;
use tidelog_disk::{Disk, DiskOp, OpenHow};
use tidelog_log::{
    AppendError, InternalKind, Log, LogEnd, LogEntry, LogOptions, PRODUCER_BATCHES, ProducerError,
    StoredBatch, sequence_after,
};
use tidelog_record::{
    BatchBuilder, BatchHeader, BatchLimits, Compression, Offset, ProducedBatch, RaftIndex,
    validate_produced,
};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use crate::common::*;
use crate::compaction::{compact, options};
use crate::replica::{at_index, create_replica, epoch, reopen};

/// A batch of a producer.
pub(crate) fn batch_by(
    id: i64,
    epoch: i16,
    sequence: i32,
    records: &[(i64, &[u8])],
) -> ProducedBatch {
    let mut builder = BatchBuilder::new(Compression::None).producer(id, epoch, sequence);
    for (millis, value) in records {
        builder.push(at(*millis), None, Some(value), &[]).unwrap();
    }
    validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap()
}

/// The last batches of each producer, by the order in which they are in a log.
#[derive(Default)]
pub(crate) struct Senders(pub(crate) BTreeMap<i64, VecDeque<(ProducedBatch, u64)>>);

impl Senders {
    pub(crate) fn of<'a>(batches: impl Iterator<Item = &'a Bytes>) -> Self {
        let mut senders = Self::default();
        for bytes in batches {
            let header = BatchHeader::decode(bytes, bytes.len()).unwrap();
            let batch = validate_produced(bytes.clone(), &BatchLimits::default()).unwrap();
            senders.note(&batch, header.base_offset.unsigned_abs());
        }
        senders
    }

    /// `base`: where it is, if that is known by now.
    pub(crate) fn note(&mut self, batch: &ProducedBatch, base: u64) {
        if batch.header().producer_id < 0 {
            return;
        }
        let last = self.0.entry(batch.header().producer_id).or_default();
        last.push_back((batch.clone(), base));
        if last.len() > PRODUCER_BATCHES {
            last.pop_front();
        }
    }

    pub(crate) fn next_sequence(&self, id: i64) -> i32 {
        self.0.get(&id).map_or(0, |last| {
            let (batch, _) = last.back().unwrap();
            sequence_after(batch.header().base_sequence, batch.record_count())
        })
    }

    /// The log knows all of them that are in its segments, from offset `first` on. Of those that
    /// were dropped it may have forgotten; it never takes them for something else.
    pub(crate) fn check(&self, log: &Log, first: u64) {
        for (id, last) in &self.0 {
            let kept = last.iter().filter(|(_, base)| *base >= first).count();
            for (batch, base) in last {
                let result = log.check_producer(batch);
                match &result {
                    Ok(Some(stored)) => assert_eq!(stored.base_offset.get(), *base),
                    _ if *base >= first => panic!("producer {id} at {base}: {result:?}"),
                    Ok(None) => assert!(
                        kept == 0 && batch.header().base_sequence == 0,
                        "stored at {base}, and would be again"
                    ),
                    Err(ProducerError::Duplicate { .. } | ProducerError::Unknown { .. }) => {}
                    Err(e) => panic!("producer {id} at {base}: {e}"),
                }
            }
            if kept > 0 {
                let next = self.next_sequence(*id);
                let new = batch_by(*id, 0, next, &[(0, b"")]);
                assert_eq!(log.check_producer(&new), Ok(None));
                let gap = batch_by(*id, 0, sequence_after(next, 1), &[(0, b"")]);
                let result = log.check_producer(&gap);
                assert!(
                    matches!(result, Err(ProducerError::OutOfOrder { expected, .. }) if expected == next),
                    "{result:?}"
                );
            }
        }
    }
}

fn small_segments() -> LogOptions {
    LogOptions {
        segment_bytes: 1000,
        ..LogOptions::default()
    }
}

fn send(log: &mut Log, batch: ProducedBatch) -> Result<(u64, Option<StoredBatch>), AppendError> {
    let appended = log.append(&mut [batch], at(5))?;
    assert_eq!(appended.batches, 1);
    Ok((appended.base_offset.get(), appended.duplicate))
}

#[test]
fn a_batch_sent_again_is_answered_with_its_first_offset() {
    let disk = disk();
    let mut log = create(&disk, LogOptions::default());
    let first = batch_by(7, 0, 0, &[(1, b"a"), (2, b"b")]);
    let second = batch_by(7, 0, 2, &[(3, b"c")]);
    assert_eq!(send(&mut log, first.clone()).unwrap(), (0, None));
    assert_eq!(send(&mut log, second.clone()).unwrap(), (2, None));
    let end = log.end();
    let (base, duplicate) = send(&mut log, first).unwrap();
    assert_eq!((base, duplicate.unwrap().records), (0, 2));
    let (base, duplicate) = send(&mut log, second).unwrap();
    assert_eq!((base, duplicate.unwrap().base_sequence), (2, 2));
    assert!(matches!(
        send(&mut log, batch_by(7, 0, 4, &[(3, b"e")])),
        Err(AppendError::Producer(ProducerError::OutOfOrder {
            expected: 3,
            found: 4,
            ..
        }))
    ));
    assert_eq!(log.end(), end, "nothing was written");
}

#[test]
fn one_call_takes_what_belongs_together_and_stops_at_the_rest() {
    let disk = disk();
    let mut log = create(&disk, LogOptions::default());
    let by = |id, sequence| batch_by(id, 0, sequence, &[(1, b"v")]);
    // New, new, again, new, a gap, another producer.
    let mut all = vec![by(1, 0), by(1, 1), by(1, 0), by(1, 2), by(1, 4), by(2, 0)];
    let mut told = Vec::new();
    while !all.is_empty() {
        let taken = match log.append(&mut all, at(1)) {
            Ok(appended) => {
                told.push((appended.batches, appended.duplicate.is_some()));
                appended.batches
            }
            Err(AppendError::Producer(_)) => {
                told.push((0, false));
                1
            }
            Err(e) => panic!("{e}"),
        };
        all.drain(..taken);
    }
    assert_eq!(
        told,
        [(2, false), (1, true), (1, false), (0, false), (1, false)]
    );
    assert_eq!(log.end().offset, offset(4));
}

#[test]
fn every_roll_and_every_stop_leaves_a_snapshot_and_old_ones_go() {
    let disk = disk();
    let mut log = create(&disk, small_segments());
    for n in 0..60 {
        send(&mut log, batch_by(1, 0, n, &[(1, &[b'v'; 100])])).unwrap();
    }
    log.sync().unwrap();
    let bases = |log: &Log| -> Vec<u64> {
        let segments = log.reader().segments();
        segments.iter().map(|s| s.base_offset.get()).collect()
    };
    let snapshots = || -> Vec<u64> {
        let files = disk.files();
        let of = files
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == "producers"));
        of.map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap())
            .collect()
    };
    assert!(bases(&log).len() > 5);
    assert_eq!(snapshots(), bases(&log)[1..]);
    let middle = bases(&log)[4];
    log.trim(offset(middle), offset(60)).unwrap();
    assert_eq!(bases(&log)[0], middle);
    let end = log.close().unwrap();
    assert!(snapshots().iter().all(|at| *at >= middle));
    assert_eq!(snapshots().last(), Some(&60));

    // The next open walks nothing: a broken segment would be told.
    let (log, _) = open(&disk, small_segments(), Some(end)).unwrap();
    assert_eq!(log.producer_count(), 1);
    assert!(matches!(
        log.check_producer(&batch_by(1, 0, 59, &[(1, &[b'v'; 100])])),
        Ok(Some(stored)) if stored.base_offset == offset(59)
    ));
}

#[test]
fn without_snapshots_the_segments_tell() {
    let disk = disk();
    let mut log = create(&disk, small_segments());
    for n in 0..40 {
        let id = 1 + i64::from(n % 2);
        send(&mut log, batch_by(id, 0, n / 2, &[(1, &[b'v'; 100])])).unwrap();
    }
    let end = log.close().unwrap();
    for path in disk.files() {
        if path.extension().is_some_and(|e| e == "producers") {
            disk.remove(&path);
        }
    }
    let (log, _) = open(&disk, small_segments(), Some(end)).unwrap();
    for id in [1, 2] {
        let last = batch_by(id, 0, 19, &[(1, &[b'v'; 100])]);
        assert!(matches!(log.check_producer(&last), Ok(Some(_))));
        let next = batch_by(id, 0, 20, &[(1, b"")]);
        assert_eq!(log.check_producer(&next), Ok(None));
    }
}

#[test]
fn a_snapshot_of_a_tail_that_was_cut_is_not_believed() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let mut log = create(&disk, LogOptions::default());
        let one = |n| batch_by(1, 0, n, &[(1, b"v")]);
        send(&mut log, one(0)).unwrap();
        let durable = log.sync().unwrap();
        // Closed, with a snapshot, but power fails before anything of it is known.
        send(&mut log, one(1)).unwrap();
        drop(log.close());
        disk.crash();
        let (mut log, _) = open(&disk, LogOptions::default(), Some(durable)).unwrap();
        let stored = log.end().offset.get();
        assert!((1..=2).contains(&stored));
        let again = send(&mut log, one(1)).unwrap();
        assert_eq!(again.1.is_some(), stored == 2, "seed {seed}");
        // Another history from here on, and its own snapshot.
        send(&mut log, batch_by(2, 0, 0, &[(1, b"w")])).unwrap();
        let end: LogEnd = log.close().unwrap();
        let (log, _) = open(&disk, LogOptions::default(), Some(end)).unwrap();
        assert!(matches!(log.check_producer(&one(1)), Ok(Some(_))));
        assert_eq!(log.producer_count(), 2);
    }
}

#[test]
fn snapshots_that_cannot_be_written_are_missed_by_nobody() {
    let disk = disk();
    let mut log = create(&disk, small_segments());
    disk.fail_nth(
        OpFilter::op(DiskOp::Open).on(".producers"),
        1,
        InjectedError::Full,
        FailMode::Forever,
    );
    for n in 0..40 {
        send(&mut log, batch_by(1, 0, n, &[(1, &[b'v'; 100])])).unwrap();
    }
    log.sync().unwrap();
    let end = log.close().unwrap();
    disk.stop_failing();
    let (log, _) = open(&disk, small_segments(), Some(end)).unwrap();
    let last = batch_by(1, 0, 39, &[(1, &[b'v'; 100])]);
    assert!(matches!(log.check_producer(&last), Ok(Some(_))));
}

#[test]
fn what_a_trim_removed_is_known_after_power_loss() {
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let mut log = create(&disk, small_segments());
        let one = |id, n| batch_by(id, 0, n, &[(1, &[b'v'; 100])]);
        send(&mut log, one(1, 0)).unwrap();
        for n in 0..30 {
            send(&mut log, one(2, n)).unwrap();
        }
        let end = log.sync().unwrap();
        log.trim(offset(25), offset(31)).unwrap();
        assert!(log.reader().segments()[0].base_offset > offset(1));
        drop(log);
        disk.crash();
        let (log, _) = open(&disk, small_segments(), Some(end)).unwrap();
        assert!(
            matches!(log.check_producer(&one(1, 0)), Ok(Some(_))),
            "seed {seed}: would be stored again"
        );
    }
}

#[test]
fn later_snapshots_do_not_drive_out_the_durable_one() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let mut log = create(&disk, LogOptions::default());
        let first = batch_by(1, 0, 0, &[(1, b"v")]);
        send(&mut log, first.clone()).unwrap();
        log.roll(at(1)).unwrap();
        // Three intervals of appends that are never synced, after the segment of the first is gone.
        let long = vec![b'v'; 600 << 10];
        send(&mut log, batch_by(2, 0, 0, &[(1, &long)])).unwrap();
        log.sync().unwrap();
        log.trim(offset(2), offset(2)).unwrap();
        let end = log.reader().durable();
        for n in 1..25 {
            send(&mut log, batch_by(2, 0, n, &[(1, &long)])).unwrap();
        }
        drop(log);
        disk.crash();
        let (log, _) = open(&disk, LogOptions::default(), Some(end)).unwrap();
        assert!(
            matches!(log.check_producer(&first), Ok(Some(_))),
            "seed {seed}: would be stored again"
        );
    }
}

/// On a full disk a roll may go through, and its snapshot not.
#[test]
fn a_snapshot_that_a_roll_could_not_write_is_there_before_what_it_stands_for_is_gone() {
    let disk = disk();
    let mut log = create(&disk, small());
    append(&mut log, batch_by(7, 0, 0, &[(1000, b"value")]));
    let filter = OpFilter::op(DiskOp::Write).on(".producers");
    disk.fail_nth(filter, 1, InjectedError::Full, FailMode::Forever);
    log.roll(at(0)).unwrap();
    append(&mut log, batch(1, 10));
    disk.stop_failing();
    let end = log.sync().unwrap();
    log.trim(offset(1), end.offset).unwrap();
    let end = log.sync().unwrap();
    drop(log);
    disk.crash();
    let (log, _) = open(&disk, small(), Some(end)).unwrap();
    let again = batch_by(7, 0, 0, &[(1000, b"value")]);
    assert!(
        log.check_producer(&again).unwrap().is_some(),
        "it was stored"
    );
}

/// A stop between a roll and its snapshot, or one that came before a sync, leaves none that survives.
#[test]
fn what_is_removed_after_a_stop_in_the_middle_of_a_roll_is_still_known() {
    for (seed, is_there) in (0..20).flat_map(|seed| [(seed, true), (seed, false)]) {
        let disk = SimDisk::new(seed);
        let mut log = create(&disk, small());
        let first = batch_by(7, 0, 0, &[(1000, b"value")]);
        append(&mut log, first.clone());
        let base = log.roll(at(0)).map(|()| log.end().offset).unwrap();
        append(&mut log, batch(1, 10));
        let end = log.sync().unwrap();
        drop(log);
        let snapshot = dir().join(format!("{:020}.producers", base.get()));
        let bytes = disk.contents(&snapshot);
        disk.remove_file(&snapshot).unwrap();
        disk.sync_dir(&dir()).unwrap();
        if is_there {
            let file = disk.open(&snapshot, OpenHow::CreateNew).unwrap();
            file.write_at(0, &[IoSlice::new(&bytes)]).unwrap();
        }

        let (mut log, _) = open(&disk, small(), Some(end)).unwrap();
        log.trim(offset(1), end.offset).unwrap();
        assert_eq!(log.reader().segments()[0].base_offset, base);
        let end = log.sync().unwrap();
        drop(log);
        disk.crash();
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        let found = log.check_producer(&first);
        assert!(matches!(found, Ok(Some(_))), "seed {seed}: {found:?}");
    }
}

/// As above, where the segments become one by a compaction.
#[test]
fn what_is_compacted_after_a_stop_in_the_middle_of_a_roll_is_still_known() {
    let disk = disk();
    let mut log = create(&disk, small());
    let keyed = |id| {
        let mut builder = BatchBuilder::new(Compression::None).producer(id, 0, 0);
        builder.push(at(1), Some(b"key"), Some(b"v"), &[]).unwrap();
        validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap()
    };
    append(&mut log, keyed(7));
    log.roll(at(0)).unwrap();
    append(&mut log, keyed(8));
    log.roll(at(0)).unwrap();
    let base = log.end().offset;
    append(&mut log, batch(1, 10));
    let end = log.sync().unwrap();
    drop(log);
    let snapshot = dir().join(format!("{:020}.producers", base.get()));
    disk.remove_file(&snapshot).unwrap();
    let (mut log, _) = open(&disk, small(), Some(end)).unwrap();
    let how = options(&log, 1);
    compact(&mut log, how).expect("there is something to compact");
    let end = log.sync().unwrap();
    drop(log);
    disk.crash();
    let (log, _) = open(&disk, small(), Some(end)).unwrap();
    for id in [7, 8] {
        let found = log.check_producer(&keyed(id));
        assert!(matches!(found, Ok(Some(_))), "{id}: {found:?}");
    }
}

/// Segments for about seven of the batches below.
fn of_a_replica() -> LogOptions {
    LogOptions {
        segment_bytes: 2000,
        ..LogOptions::default()
    }
}

/// A batch of 200 bytes and more of producer 2, as its leader proposes it.
fn proposed(log: &mut Log, base: u64, sequence: i32) -> LogEntry {
    let batch = batch_by(2, 0, sequence, &[(1, &[b'v'; 200])]);
    noted(log, base, batch)
}

fn noted(log: &mut Log, base: u64, mut batch: ProducedBatch) -> LogEntry {
    batch.stamp(offset(base), epoch(5));
    log.note_proposed(&batch, offset(base), at(1))
}

/// Commits all, raises the log start to `start`, and commits that.
fn raise_start(log: &mut Log, start: Offset) -> RaftIndex {
    log.sync().unwrap();
    log.commit_to(at_index(log.end().index.get() - 1));
    let kind = InternalKind::LogStart(start);
    let entry = log.next_internal(kind, epoch(5), 0, 0).unwrap();
    log.append_entries(&[LogEntry::internal(&entry)], at(1))
        .unwrap();
    log.sync().unwrap();
    let commit = at_index(log.end().index.get() - 1);
    log.commit_to(commit);
    commit
}

/// Where batches were proposed that had not gone in, the snapshot of a roll comes later, and is not where
/// the segment begins.
#[test]
fn a_durable_snapshot_in_the_middle_of_a_segment_outlives_restarts() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let mut log = create_replica(&disk, of_a_replica());
        let first = batch_by(1, 0, 0, &[(1, b"v")]);
        let entry = noted(&mut log, 0, first.clone());
        log.append_entries(&[entry], at(1)).unwrap();
        let (mut base, mut sequence) = (1, 0);
        while log.end().position < 1500 {
            let entry = proposed(&mut log, base, sequence);
            log.append_entries(&[entry], at(1)).unwrap();
            (base, sequence) = (base + 1, sequence + 1);
        }
        let together =
            (0..4).map(|ahead| proposed(&mut log, base + ahead, sequence + ahead as i32));
        let together: Vec<LogEntry> = together.collect();
        let mut rest = &together[..];
        while !rest.is_empty() {
            let taken = log.append_entries(rest, at(1)).unwrap();
            rest = &rest[taken..];
        }
        (base, sequence) = (base + 4, sequence + 4);
        let second = log.reader().segments()[1].base_offset;
        raise_start(&mut log, second);
        assert_eq!(log.reader().segments().len(), 1);
        let mut end = log.close().unwrap();
        for _ in 0..2 {
            let mut log = reopen(&disk, of_a_replica(), end, end.index.get() - 1);
            let entry = proposed(&mut log, base, sequence);
            (base, sequence) = (base + 1, sequence + 1);
            log.append_entries(&[entry], at(1)).unwrap();
            log.sync().unwrap();
            log.commit_to(at_index(log.end().index.get() - 1));
            end = log.close().unwrap();
        }
        disk.crash();
        let log = reopen(&disk, of_a_replica(), end, end.index.get() - 1);
        let found = log.check_producer(&first);
        assert!(matches!(found, Ok(Some(_))), "seed {seed}: {found:?}");
    }
}

/// What is known of producers is found out anew then; without files to be had it would be less.
#[test]
fn producers_are_not_forgotten_where_a_snapshot_cannot_be_opened() {
    let disk = SimDisk::new(1);
    let mut log = create_replica(&disk, of_a_replica());
    let first = batch_by(1, 0, 0, &[(1, b"v")]);
    let entry = noted(&mut log, 0, first.clone());
    log.append_entries(&[entry], at(1)).unwrap();
    for number in 0..8 {
        let entry = proposed(&mut log, 1 + number, number as i32);
        log.append_entries(&[entry], at(1)).unwrap();
    }
    let second = log.reader().segments()[1].base_offset;
    let commit = raise_start(&mut log, second);
    assert_eq!(log.reader().segments().len(), 1);
    let entry = noted(&mut log, 9, batch_by(3, 0, 0, &[(1, b"w")]));
    log.append_entries(&[entry], at(1)).unwrap();
    log.sync().unwrap();
    let filter = OpFilter::op(DiskOp::Open).on(".producers");
    disk.fail_nth(filter, 1, InjectedError::OutOfFiles, FailMode::Forever);
    let taken_back = log.truncate(commit.checked_add(1).unwrap(), |_| Ok(()));
    disk.stop_failing();
    assert!(taken_back.is_err());
    let end = log.reader().durable();
    drop(log);
    disk.kill();
    let log = reopen(&disk, of_a_replica(), end, commit.get());
    assert!(matches!(log.check_producer(&first), Ok(Some(_))));
}
