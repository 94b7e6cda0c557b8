//! One call to the disk fails, at every place of a workload in turn, once or for ever.

use std::path::Path;

use bytes::Bytes;
use tidelog_disk::{Disk, DiskOp};
use tidelog_log::{AppendError, Log, LogEnd, LogOptions, OpenError, ReadError, TrimError};
use tidelog_record::{Compression, Offset};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use crate::common::*;

/// What a workload did until it ended or failed.
struct Run {
    log: Option<Log>,
    /// The last end that was recorded after a sync.
    recorded: Option<LogEnd>,
    /// All batches that were given to the log.
    given: Vec<Bytes>,
    /// Everything below was acknowledged as durable.
    acknowledged: u64,
    log_start: u64,
    /// Whether the log may not be there at all.
    created: bool,
}

#[derive(Debug)]
enum Stopped {
    Append(AppendError),
    Other,
}

impl<E: Into<AppendError>> From<E> for Stopped {
    fn from(e: E) -> Self {
        Self::Append(e.into())
    }
}

impl Run {
    fn new() -> Self {
        Self {
            log: None,
            recorded: None,
            given: Vec::new(),
            acknowledged: 0,
            log_start: 0,
            created: false,
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("created")
    }

    fn workload(&mut self, disk: &SimDisk) -> Result<(), Stopped> {
        disk.create_dir_all(Path::new("/data"))
            .map_err(|_| Stopped::Other)?;
        disk.sync_dir(Path::new("/")).map_err(|_| Stopped::Other)?;
        let log = Log::create(dynamic(disk), &dir(), identity(), options(), at(0));
        self.log = Some(log.map_err(|_| Stopped::Other)?);
        self.created = true;
        self.begin_epoch()?;
        self.appends(8)?;
        self.sync()?;
        self.appends(12)?;
        self.begin_epoch()?;
        self.sync()?;
        let end = self.log().end().offset;
        self.log().roll(at(1))?;
        self.acknowledged = end.get();
        self.appends(3)?;
        self.sync()?;
        self.trim(11)?;
        self.appends(9)?;
        let log = self.log.take().expect("created");
        let all = log.end().offset.get();
        let end = log.close()?;
        self.acknowledged = all;
        self.recorded = Some(end);
        let (log, _) = open(disk, options(), self.recorded).map_err(|_| Stopped::Other)?;
        self.log = Some(log);
        self.appends(5)?;
        self.sync()?;
        Ok(())
    }

    fn begin_epoch(&mut self) -> Result<(), Stopped> {
        let epoch = self.log().end().epoch.next().unwrap();
        Ok(self.log().begin_epoch(epoch)?)
    }

    fn appends(&mut self, count: usize) -> Result<(), Stopped> {
        for n in 0..count {
            let value = [u8::try_from(n).unwrap(); 150];
            let batch = batch_of(&[(n as i64, &value)], Compression::None);
            let base = self.log().end().offset;
            let appended = self.log().append(&mut [batch.clone()], at(0));
            // An epoch that waited for space began with it.
            let epoch = self.log().end().epoch;
            if matches!(appended, Ok(_) | Err(AppendError::WriteFailed(_))) {
                self.given.push(stamped(&batch, base, epoch.get()));
            }
            appended?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Stopped> {
        let end = self.log().sync()?;
        self.recorded = Some(end);
        self.acknowledged = end.offset.get();
        Ok(())
    }

    fn trim(&mut self, to: u64) -> Result<(), Stopped> {
        let end = self.log().reader().durable_offset();
        match self.log().trim(offset(to), end) {
            Ok(()) => {
                self.log_start = to;
                Ok(())
            }
            Err(TrimError::Append(e)) => Err(e.into()),
            Err(e) => panic!("{e}"),
        }
    }

    /// What was acknowledged can be read through `log`, and nothing else than what was given.
    fn check(&self, log: &Log, what: &str) {
        let reader = log.reader();
        let start = reader.log_start();
        assert!(start.get() >= self.log_start, "{what}");
        let durable = reader.durable_offset().get();
        assert!(
            durable >= self.acknowledged,
            "{what}: {durable} of {}",
            self.acknowledged
        );
        let all = read_all(&reader, start).unwrap();
        let from = usize::try_from(start.get()).unwrap();
        let to = usize::try_from(durable).unwrap();
        assert_eq!(bytes_of(&all), self.given[from..to], "{what}");
    }
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 1500,
        segment_ms: 1_000_000,
        index_interval_bytes: 300,
        room_bytes: 300,
        appends_use_room: false,
    }
}

/// Runs the workload with the k-th call failing, for each k until none fails.
fn every_call(
    filter: &OpFilter,
    error: InjectedError,
    mode: FailMode,
    after: impl Fn(&str, Run, SimDisk, Result<(), Stopped>),
) {
    for k in 1.. {
        let what = format!("call {k}, {error:?}, {mode:?}");
        let disk = SimDisk::new(k);
        disk.fail_nth(filter.clone(), k, error, mode);
        let mut run = Run::new();
        let result = run.workload(&disk);
        let untouched = disk.failures() == 0;
        if untouched {
            result.unwrap();
            assert!(k > 20, "the workload makes more calls than {k}");
            return;
        }
        after(&what, run, disk, result);
    }
}

fn reopen(what: &str, run: &Run, disk: &SimDisk) {
    // As a kill leaves it, as power loss in several ways leaves it, and after each as a second
    // power loss leaves what the opening made of it.
    for seed in 0..6 {
        let disk = disk.fork(seed);
        match seed {
            0 => disk.kill(),
            1 => {
                disk.kill();
                disk.drop_caches();
            }
            _ => disk.crash(),
        }
        match open(&disk, options(), run.recorded) {
            Ok((log, _)) => {
                run.check(&log, what);
                let end = log.end();
                drop(log);
                disk.crash();
                let (log, _) = open(&disk, options(), Some(end)).unwrap();
                run.check(&log, what);
                assert_eq!(log.end(), end, "{what}");
            }
            Err(OpenError::Missing { .. }) if !run.created => {}
            Err(e) => panic!("{what}, seed {seed}: {e}"),
        }
    }
}

fn check_failure(what: &str, mut run: Run, disk: SimDisk, result: Result<(), Stopped>) {
    disk.stop_failing();
    match result {
        // The call did not matter: an index, the removal of a trimmed segment.
        Ok(()) => {}
        Err(Stopped::Append(AppendError::Full { .. })) => {
            // Nothing happened, and the log works on.
            let given = run.given.len() as u64;
            assert_eq!(run.log().end().offset, offset(given), "{what}");
            run.appends(12).unwrap();
            run.sync().unwrap();
        }
        Err(Stopped::Append(AppendError::Poisoned(first) | AppendError::WriteFailed(first))) => {
            if let Some(log) = &mut run.log {
                let refused = log.append(&mut [batch(1, 1)], at(0)).unwrap_err();
                let AppendError::Poisoned(again) = refused else {
                    panic!("{what}: {refused}")
                };
                assert_eq!(
                    again.to_string(),
                    first.to_string(),
                    "{what}: the first cause stays"
                );
                assert!(log.sync().is_err(), "{what}");
                assert!(
                    log.begin_epoch(log.end().epoch.next().unwrap()).is_err(),
                    "{what}"
                );
                let to = log.end().log_start;
                assert!(
                    log.trim(to, to).is_err(),
                    "{what}: nothing is removed any more"
                );
                assert!(log.reader().poisoned().is_some());
            }
        }
        Err(Stopped::Append(e)) => panic!("{what}: {e}"),
        Err(Stopped::Other) => {}
    }
    if let Some(log) = run.log.take() {
        run.check(&log, what);
        run.log = Some(log);
    }
    reopen(what, &run, &disk);
}

#[test]
fn a_change_fails_once() {
    every_call(
        &OpFilter::mutating(),
        InjectedError::Io,
        FailMode::Once,
        check_failure,
    );
}

#[test]
fn changes_fail_for_ever() {
    every_call(
        &OpFilter::mutating(),
        InjectedError::Io,
        FailMode::Forever,
        check_failure,
    );
}

#[test]
fn any_call_fails_once() {
    every_call(
        &OpFilter::any(),
        InjectedError::Io,
        FailMode::Once,
        check_failure,
    );
}

#[test]
fn the_disk_is_full_once() {
    every_call(
        &OpFilter::mutating(),
        InjectedError::Full,
        FailMode::Once,
        check_failure,
    );
}

#[test]
fn the_disk_stays_full_until_there_is_space() {
    let taking = OpFilter::ops(&[DiskOp::Open, DiskOp::Write, DiskOp::Reserve]);
    every_call(
        &taking,
        InjectedError::Full,
        FailMode::Forever,
        check_failure,
    );
}

#[test]
fn power_fails_between_any_two_calls() {
    // The k-th call and all after it fail, as for a process that is about to die.
    every_call(
        &OpFilter::any(),
        InjectedError::Io,
        FailMode::Forever,
        |what, run, disk, _| {
            disk.stop_failing();
            reopen(what, &run, &disk);
        },
    );
}

#[test]
fn a_full_disk_refuses_before_anything_is_written_and_heals() {
    let disk = SimDisk::new(3);
    let mut log = create(&disk, large());
    append(&mut log, batch(1, 100));
    let end = log.sync().unwrap();
    disk.set_free_bytes(Some(0));
    let mut appended = 1;
    let refused = loop {
        match log.append(&mut [batch(1, 10_000)], at(0)) {
            Ok(_) => appended += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    assert!(appended < 100);
    assert!(log.end().offset == offset(appended) && log.reader().poisoned().is_none());
    assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 1);
    log.sync().unwrap();
    // What fits exactly is taken where a step ahead would not fit.
    disk.set_free_bytes(Some(12_000));
    append(&mut log, batch(1, 10_000));
    disk.set_free_bytes(Some(1 << 30));
    append(&mut log, batch(1, 10_000));
    log.sync().unwrap();
    disk.crash();
    let (log, _) = open(&disk, large(), Some(end)).unwrap();
    assert_eq!(log.end().offset, offset(appended + 2));
}

#[test]
fn an_epoch_that_finds_no_space_begins_with_the_append_that_does() {
    let disk = SimDisk::new(3);
    let mut log = create(&disk, large());
    for _ in 0..20 {
        append(&mut log, batch(1, 100));
    }
    let end = log.close().unwrap();
    // So that the next entry needs another sector.
    disk.set_free_bytes(Some(0));
    let (mut log, _) = open(&disk, large(), Some(end)).unwrap();
    let mut epoch = end.epoch;
    let refused = loop {
        epoch = epoch.next().unwrap();
        if let Err(e) = log.begin_epoch(epoch) {
            break e;
        }
    };
    let before = log.end();
    assert!(before.epoch < epoch);
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    let refused = log.append(&mut [batch(1, 1)], at(0)).unwrap_err();
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    let refused = log.trim(offset(3), before.offset).unwrap_err();
    assert!(
        matches!(refused, TrimError::Append(AppendError::Full { .. })),
        "{refused}"
    );
    assert_eq!(log.end(), before, "nothing was written for the new leader");
    assert!(log.reader().poisoned().is_none());
    assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 20);

    disk.set_free_bytes(None);
    append(&mut log, batch(1, 1));
    log.sync().unwrap();
    assert_eq!(log.end().epoch, epoch);
    let reader = log.reader();
    assert_eq!(reader.epoch_at(offset(20)), Some(epoch));
    let last = &read_all(&reader, offset(20)).unwrap()[0];
    assert_eq!(last.header().leader_epoch, epoch.to_wire());
    log.trim(offset(3), log.end().offset).unwrap();
}

/// The room is there for the log's own entries, however the log was stopped.
#[test]
fn a_log_with_room_begins_epochs_and_is_trimmed_on_a_full_disk() {
    let options = LogOptions {
        room_bytes: 1000,
        ..large()
    };
    for kill in [false, true] {
        for len in 0..300 {
            let disk = SimDisk::new(3);
            let mut log = create(&disk, options);
            append(&mut log, batch(1, len));
            append(&mut log, batch(1, len));
            disk.set_free_bytes(Some(0));
            let mut end = log.sync().unwrap();
            while log.append(&mut [batch(1, 400)], at(0)).is_ok() {
                end = log.sync().unwrap();
            }
            if kill {
                disk.kill();
            } else {
                end = log.close().unwrap();
            }
            let (mut log, recovery) = open(&disk, options, Some(end)).unwrap();
            assert_eq!(recovery.torn_bytes, 0);
            log.begin_epoch(end.epoch.next().unwrap()).unwrap();
            log.sync().unwrap();
            log.trim(offset(1), end.offset).unwrap();
            let refused = log.append(&mut [batch(1, 4000)], at(0)).unwrap_err();
            assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
            assert_eq!(log.reader().log_start(), offset(1));
            let rest = read_all(&log.reader(), offset(1)).unwrap().len() as u64;
            assert_eq!(rest, end.offset.get() - 1);
        }
    }
}

/// As the metadata log has it: what is left of the room is for appends too.
#[test]
fn appends_that_may_use_the_room_do_once_there_is_nothing_else() {
    let options = LogOptions {
        room_bytes: 8000,
        appends_use_room: true,
        ..large()
    };
    let disk = SimDisk::new(3);
    let end = create(&disk, options).close().unwrap();
    disk.set_free_bytes(Some(0));
    let (mut log, _) = open(&disk, options, Some(end)).unwrap();
    for _ in 0..10 {
        append(&mut log, batch(1, 500));
    }
    log.sync().unwrap();
}

#[test]
fn a_failed_sync_that_reads_still_show_is_made_durable_by_the_next_open() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let mut log = create(&disk, large());
        append(&mut log, batch(1, 600));
        let end = log.sync().unwrap();
        append(&mut log, batch(1, 2000));
        disk.fail_nth(
            OpFilter::op(DiskOp::Sync),
            1,
            InjectedError::Io,
            FailMode::Once,
        );
        log.sync().unwrap_err();
        disk.kill();
        let (log, _) = open(&disk, large(), Some(end)).unwrap();
        assert_eq!(
            log.reader().durable_offset(),
            offset(2),
            "the cache shows it all"
        );
        let end = log.end();
        disk.crash();
        let (log, _) = open(&disk, large(), Some(end)).unwrap();
        assert_eq!(
            read_all(&log.reader(), Offset::ZERO).unwrap().len(),
            2,
            "seed {seed}"
        );
    }
}

#[test]
fn a_new_segment_whose_header_was_not_durable_is_made_so_by_the_next_open() {
    for (op, part) in [(DiskOp::Sync, "00001.log"), (DiskOp::SyncDir, "topic-0")] {
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let mut log = create(&disk, large());
            append(&mut log, batch(1, 600));
            let end = log.sync().unwrap();
            disk.fail_nth(
                OpFilter::op(op).on(part),
                1,
                InjectedError::Io,
                FailMode::Once,
            );
            log.roll(at(0)).unwrap_err();
            disk.kill();
            let (mut log, _) = open(&disk, large(), Some(end)).unwrap();
            append(&mut log, batch(1, 700));
            let end = log.sync().unwrap();
            drop(log);
            disk.crash();
            let (log, _) = open(&disk, large(), Some(end)).unwrap();
            assert_eq!(
                read_all(&log.reader(), Offset::ZERO).unwrap().len(),
                2,
                "seed {seed}"
            );
        }
    }
}

#[test]
fn a_segment_without_a_map_is_read_cold() {
    let disk = SimDisk::new(1);
    disk.fail_nth(
        OpFilter::op(DiskOp::Map),
        1,
        InjectedError::OutOfFiles,
        FailMode::Forever,
    );
    let mut log = create(&disk, small());
    for _ in 0..30 {
        append(&mut log, batch(1, 100));
    }
    log.sync().unwrap();
    assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 30);
    assert!(!read(&log.reader(), offset(29), offset(30), 10).unwrap().1);
}

#[test]
fn a_read_that_fails_says_so_and_the_log_goes_on() {
    let disk = SimDisk::new(1);
    let mut log = create(&disk, large());
    append(&mut log, batch(1, 100));
    let end = log.close().unwrap();
    let (log, _) = open(&disk, large(), Some(end)).unwrap();
    disk.fail_nth(
        OpFilter::op(DiskOp::Read),
        1,
        InjectedError::Io,
        FailMode::Once,
    );
    let error = read(&log.reader(), Offset::ZERO, offset(1), 100).unwrap_err();
    assert!(matches!(error, ReadError::Disk(_)), "{error}");
    assert!(read(&log.reader(), Offset::ZERO, offset(1), 100).is_ok());
    assert!(log.reader().poisoned().is_none());
}

/// The device writes what was not synced in any order. A batch that arrived behind one that did not
/// proves nothing: it is cut with what is missing before it, and its bytes are never served.
#[test]
fn unsynced_pages_that_land_in_any_order_leave_a_prefix() {
    let (mut holes, mut kept_some) = (0, 0);
    for seed in 0..500 {
        let disk = SimDisk::new(seed);
        let mut log = create(&disk, large());
        append(&mut log, batch(1, 700));
        let end = log.sync().unwrap();
        let mut given: Vec<Bytes> = Vec::new();
        for n in 0..8_u8 {
            let value = [n; 600];
            let batch = batch_of(&[(0, &value)], Compression::None);
            given.push(stamped(&batch, log.end().offset, log.end().epoch.get()));
            append(&mut log, batch);
        }
        let borders = borders(&disk, &segment(0));
        drop(log);
        disk.crash();
        // What is on the device of each batch, before anybody looks.
        let device = disk.contents(&segment(0));
        let arrived = |n: usize| {
            let start = borders[n + 2] as usize;
            device.get(start..start + given[n].len()) == Some(&given[n][..])
        };
        let whole = (0..given.len()).take_while(|n| arrived(*n)).count();
        let behind_a_hole = (whole..given.len()).filter(|n| arrived(*n)).count();
        let (log, recovery) = open(&disk, large(), Some(end)).unwrap();
        let all = read_all(&log.reader(), offset(1)).unwrap();
        assert_eq!(bytes_of(&all), given[..whole], "seed {seed}");
        assert_eq!(log.end().offset.get(), 1 + whole as u64);
        if behind_a_hole > 0 {
            assert!(recovery.torn_bytes > 0, "seed {seed}");
            holes += 1;
        }
        kept_some += u64::from(whole > 0 && whole < given.len());
    }
    assert!(holes > 50 && kept_some > 50, "{holes}, {kept_some}");
}

/// Whoever sends a batch again wants to know whether it may be there already.
#[test]
fn an_append_whose_write_failed_is_told_from_one_that_wrote_nothing() {
    let fail = |part: &str, op, append_again: bool| {
        let disk = SimDisk::new(5);
        let mut log = create(&disk, small());
        while log.end().position < 1500 {
            append(&mut log, batch(1, 300));
        }
        log.sync().unwrap();
        let end = log.end();
        let calls = OpFilter::op(op).on(part);
        disk.fail_nth(calls, 1, InjectedError::Io, FailMode::Once);
        // With another one of this length the segment is full.
        let len = if append_again { 1 } else { 1000 };
        let refused = log.append(&mut [batch(1, len)], at(0)).unwrap_err();
        let again = log.append(&mut [batch(1, 1)], at(0)).unwrap_err();
        assert!(matches!(again, AppendError::Poisoned(_)), "{again}");
        disk.kill();
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        let found = log.end().offset.records_since(end.offset);
        (refused, found)
    };
    let (refused, found) = fail(".log", DiskOp::Write, true);
    assert!(matches!(refused, AppendError::WriteFailed(_)), "{refused}");
    assert!(found <= 1);
    // The roll before the write.
    let (refused, found) = fail(".log", DiskOp::Sync, false);
    assert!(matches!(refused, AppendError::Poisoned(_)), "{refused}");
    assert_eq!(found, 0);
}
