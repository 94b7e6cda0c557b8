//! One thing at a time.

use tidelog_disk::{Disk, DiskOp};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use super::*;

fn log_with(disk: &SimDisk, batches: &[&[Keyed<'_>]], compression: Compression) -> Log {
    let mut log = create(disk, with_segments(1 << 20));
    log.begin_epoch(LeaderEpoch::new(6).unwrap()).unwrap();
    for records in batches {
        append(&mut log, keyed(records, compression));
        log.roll(at(0)).unwrap();
    }
    log.sync().unwrap();
    log
}

fn values(log: &Log) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    records(&log.reader(), log.reader().log_start().get())
        .into_iter()
        .map(|r| (r.offset, text(r.key.unwrap()), r.value.map(text)))
        .collect()
}

fn some(offset: u64, key: &str, value: &str) -> (u64, String, Option<String>) {
    (offset, key.to_owned(), Some(value.to_owned()))
}

fn none(offset: u64, key: &str) -> (u64, String, Option<String>) {
    (offset, key.to_owned(), None)
}

#[test]
fn the_last_record_of_each_key_is_left_where_it_was() {
    for compression in Compression::ALL {
        let disk = disk();
        let mut log = log_with(
            &disk,
            &[
                &[
                    ("a", Some("1"), 10),
                    ("b", Some("1"), 20),
                    ("c", Some("1"), 30),
                ],
                &[("a", Some("2"), 40), ("d", Some("1"), 50)],
                &[("b", Some("2"), 60), ("a", Some("3"), 70)],
            ],
            compression,
        );
        append(&mut log, keyed(&[("d", Some("2"), 80)], compression));
        log.sync().unwrap();
        let now = options(&log, 0);
        let stats = compact(&mut log, now).unwrap();
        // What is in the active segment stays, and does not count.
        let left = [
            some(2, "c", "1"),
            some(4, "d", "1"),
            some(5, "b", "2"),
            some(6, "a", "3"),
            some(7, "d", "2"),
        ];
        assert_eq!(values(&log), left, "{compression}");
        assert_eq!(stats.records_removed, 3);
        assert!(stats.bytes_after < stats.bytes_before);
        assert_eq!(log.reader().segments().len(), 2, "small ones became one");
        for seen in records(&log.reader(), 0) {
            assert_eq!(seen.header, seen.key, "headers stay");
            assert_eq!(seen.epoch, 6);
        }
        let times: Vec<_> = records(&log.reader(), 0).iter().map(|r| r.time).collect();
        assert_eq!(times, [30, 50, 60, 70, 80]);
        // Nothing is dirty any more.
        let now = options(&log, 0);
        assert_eq!(compact(&mut log, now), None);
        for (time, found) in [(0, 2), (31, 4), (51, 5), (61, 6), (71, 7)] {
            let end = log.reader().durable_offset();
            let (at, _) = log.reader().find_timestamp(at(time), end).unwrap().unwrap();
            assert_eq!(at.get(), found);
        }
        // It is the same after every kind of stop.
        let end = log.end();
        drop(log);
        disk.crash();
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        assert_eq!(values(&log), left);
        let end = log.close().unwrap();
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        assert_eq!(values(&log), left);
    }
}

#[test]
fn tombstones_stay_for_their_time_and_go_after_it() {
    let disk = disk();
    let mut log = log_with(
        &disk,
        &[
            &[("a", Some("1"), 10), ("b", Some("1"), 20)],
            &[("a", None, 30)],
        ],
        Compression::None,
    );
    let first = options(&log, 5000);
    compact(&mut log, first).unwrap();
    assert_eq!(values(&log), [some(1, "b", "1"), none(2, "a")]);
    assert_eq!(
        records(&log.reader(), 2)[0].time,
        30,
        "the horizon is not its time"
    );

    // Before the time is over they stay, whatever comes.
    for (now, left) in [(5999, true), (6000, false)] {
        append(&mut log, keyed(&[("c", Some("x"), 40)], Compression::None));
        log.roll(at(0)).unwrap();
        log.sync().unwrap();
        let options = options(&log, now);
        let stats = compact(&mut log, options).unwrap();
        assert_eq!(values(&log).contains(&none(2, "a")), left, "at {now}");
        assert_eq!(stats.tombstones_removed, u64::from(!left));
    }
    assert_eq!(values(&log), [some(1, "b", "1"), some(4, "c", "x")]);
}

/// Whatever times a client gave: what a newer record replaces is gone before its tombstone is.
#[test]
fn a_deleted_key_stays_deleted_whatever_its_time_was() {
    for append_time in [false, true] {
        let disk = disk();
        let mut log = create(&disk, with_segments(1 << 20));
        let appended = |records: &[Keyed<'_>], now: i64| {
            let mut batch = keyed(records, Compression::None);
            if append_time {
                batch.set_log_append_time(at(now));
            }
            batch
        };
        let min = i64::MIN;
        let first = appended(&[("a", Some("1"), min), ("b", Some("1"), min)], 4000);
        append(&mut log, first);
        append(&mut log, appended(&[("a", None, 10)], 4001));
        log.roll(at(0)).unwrap();
        log.sync().unwrap();
        for now in [5000, 6000] {
            append(&mut log, appended(&[("c", Some("x"), 40)], now));
            log.roll(at(0)).unwrap();
            log.sync().unwrap();
            let options = options(&log, now);
            compact(&mut log, options).unwrap();
            assert!(!values(&log).contains(&some(0, "a", "1")));
        }
        assert!(!values(&log).contains(&none(2, "a")), "its time is over");
        assert!(values(&log).contains(&some(1, "b", "1")));
    }
}

/// A read of a compacted segment reaches from one index entry to another.
#[test]
fn wide_index_intervals_do_not_make_reads_of_compacted_segments_long() {
    let disk = disk();
    let mut log = create(&disk, with_segments(8 << 20));
    let long = "v".repeat(3000);
    for n in 0..1000 {
        append(
            &mut log,
            keyed(&[(&n.to_string(), Some(&long), 0)], Compression::None),
        );
    }
    log.roll(at(0)).unwrap();
    log.sync().unwrap();
    let wide = CompactionOptions {
        index_interval_bytes: 1 << 30,
        segment_bytes: 8 << 20,
        ..options(&log, 0)
    };
    compact(&mut log, wide).unwrap();
    // A header and entries of 32 bytes each.
    let entries = disk.contents(&index(0)).len() / 32 - 1;
    assert!(entries > 100, "{entries}");
}

#[test]
fn what_is_young_or_not_committed_is_not_touched() {
    let disk = disk();
    let mut log = create(&disk, with_segments(1 << 20));
    for time in [100, 200, 300] {
        append(&mut log, keyed(&[("a", Some("x"), 0)], Compression::None));
        log.roll(at(time)).unwrap();
    }
    log.sync().unwrap();
    let base = options(&log, 350);
    let lag = |min_lag_ms| log.reader().compactable(at(350), min_lag_ms, base.end_max);
    assert_eq!(lag(251).dirty_bytes, 0);
    assert_eq!(lag(250).dirty_bytes * 2, lag(150).dirty_bytes);
    assert_eq!(lag(250).dirty_bytes * 3, lag(50).dirty_bytes);
    let below = log.reader().compactable(at(350), 0, offset(2));
    assert_eq!(below.dirty_bytes, lag(150).dirty_bytes);
    let young = CompactionOptions {
        min_lag_ms: 150,
        ..base
    };
    compact(&mut log, young).unwrap();
    assert_eq!(values(&log), [some(1, "a", "x"), some(2, "a", "x")]);
    // The clean part and the dirty one behind it.
    let now = log.reader().compactable(at(350), 0, offset(3));
    assert_eq!(now.dirty_from, offset(2));
    assert!(
        now.dirty_ratio() > 0.3 && now.dirty_ratio() < 0.7,
        "{now:?}"
    );
}

#[test]
fn little_memory_takes_more_runs() {
    let disk = disk();
    let names: Vec<String> = (0..100).map(|n| format!("key {n}")).collect();
    let batches: Vec<Vec<Keyed<'_>>> = (0..6)
        .map(|round| {
            names
                .iter()
                .map(|name| (name.as_str(), Some("v"), round))
                .collect()
        })
        .collect();
    let batches: Vec<&[Keyed<'_>]> = batches.iter().map(Vec::as_slice).collect();
    let mut log = log_with(&disk, &batches, Compression::None);
    let mut runs = 0;
    let mut dirty_from = 0;
    loop {
        // Room for some twenty keys: ends in the middle of batches.
        let options = CompactionOptions {
            key_bytes_max: 24 * 30,
            ..options(&log, 0)
        };
        let Some(_) = compact(&mut log, options) else {
            break;
        };
        runs += 1;
        let now = log
            .reader()
            .compactable(at(0), 0, log.end().offset)
            .dirty_from
            .get();
        assert!(now > dirty_from, "each run gets on");
        dirty_from = now;
        let clean: Vec<_> = values(&log)
            .into_iter()
            .filter(|(n, ..)| *n < now)
            .collect();
        let mut keys: Vec<_> = clean.iter().map(|(_, key, _)| key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), clean.len(), "each key once below {now}");
    }
    assert!(runs >= 600 / 21, "{runs}");
    assert_eq!(values(&log).len(), 100);
    assert!(values(&log).iter().all(|(n, ..)| *n >= 500));
}

#[test]
fn readers_of_replaced_segments_go_on() {
    let disk = disk();
    let mut log = log_with(
        &disk,
        &[
            &[
                ("a", Some("1"), 10),
                ("b", Some("1"), 20),
                ("c", Some("1"), 30),
            ],
            &[("b", Some("2"), 40)],
            &[("d", Some("1"), 50)],
        ],
        Compression::None,
    );
    // Cold, so that each read opens its file again.
    let end = log.end();
    drop(log);
    disk.kill();
    log = open(&disk, small(), Some(end)).unwrap().0;
    let held = Held::begin(&log.reader(), 0..5);
    assert_eq!(held.0.len(), 5);
    let now = options(&log, 0);
    compact(&mut log, now).unwrap();
    for (from, cold) in held.0 {
        let batches = cold.run().unwrap();
        let seen = decode(&batches.parts);
        let first = seen.iter().find(|r| r.offset >= from.get()).unwrap();
        let expected = [0, 2, 2, 3, 4][from.get() as usize];
        assert_eq!(first.offset, expected, "from {from}");
    }
    // One that begins in a gap is led out of it.
    let (batches, _) = read(&log.reader(), offset(1), log.end().offset, 1).unwrap();
    assert_eq!(decode(&batches.parts).last().unwrap().offset, 2);
}

#[test]
fn a_part_with_nothing_left_is_passed() {
    let disk = disk();
    let mut log = create(&disk, with_segments(700));
    let long = "v".repeat(350);
    for _ in 0..5 {
        append(&mut log, keyed(&[("a", Some(&long), 0)], Compression::None));
    }
    log.sync().unwrap();
    let now = options(&log, 0);
    compact(&mut log, now).unwrap();
    // Four segments of which only the last holds a record.
    assert!(log.reader().segments().len() > 2);
    let (batches, _) = read(&log.reader(), offset(0), offset(5), 1000).unwrap();
    assert_eq!((batches.is_empty(), batches.next_offset.get()), (true, 1));
    assert_eq!(values(&log), [some(3, "a", &long), some(4, "a", &long)]);
    let end = log.close().unwrap();
    let (log, _) = open(&disk, small(), Some(end)).unwrap();
    assert_eq!(values(&log), [some(3, "a", &long), some(4, "a", &long)]);
}

#[test]
fn records_without_a_key_go_and_are_counted() {
    let disk = disk();
    let mut log = create(&disk, small());
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(at(0), None, Some(b"x"), &[]).unwrap();
    builder.push(at(0), Some(b"k"), Some(b"y"), &[]).unwrap();
    let batch = validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap();
    append(&mut log, batch);
    log.roll(at(0)).unwrap();
    log.sync().unwrap();
    let now = options(&log, 0);
    let stats = compact(&mut log, now).unwrap();
    assert_eq!((stats.records_removed, stats.keyless_removed), (1, 1));
    assert_eq!(values(&log), [some(1, "k", "y")]);
}

#[test]
fn epochs_and_their_table_outlive_compaction() {
    let disk = disk();
    let mut log = create(&disk, with_segments(1 << 20));
    let mut expected = Vec::new();
    for epoch in 6..12 {
        log.begin_epoch(LeaderEpoch::new(epoch).unwrap()).unwrap();
        let base = append(
            &mut log,
            keyed(
                &[("a", Some("x"), 0), ("b", Some("x"), 0)],
                Compression::None,
            ),
        );
        expected.push((base.get(), epoch));
        log.roll(at(0)).unwrap();
    }
    log.sync().unwrap();
    let epochs = log.reader().epochs();
    let now = options(&log, 0);
    compact(&mut log, now).unwrap();
    assert_eq!(values(&log).len(), 2);
    let end = log.end();
    drop(log);
    disk.remove(&epochs_file());
    let (log, _) = open(&disk, small(), Some(end)).unwrap();
    assert_eq!(
        log.reader().epochs(),
        epochs,
        "built again from what is left"
    );
    for (base, epoch) in expected {
        assert_eq!(log.reader().epoch_at(offset(base)).unwrap().get(), epoch);
    }
}

#[test]
fn a_flipped_bit_stops_a_run_and_changes_nothing() {
    let disk = disk();
    let batches: Vec<[Keyed<'_>; 2]> = (0..4)
        .map(|n| [("a", Some("x"), n), ("b", Some("y"), n)])
        .collect();
    let batches: Vec<&[Keyed<'_>]> = batches.iter().map(|b| &b[..]).collect();
    let log = log_with(&disk, &batches, Compression::None);
    let end = log.end();
    drop(log);
    let path = segment(2);
    for byte in (HEADER..disk.contents(&path).len() as u64).step_by(7) {
        let disk = disk.fork(byte);
        disk.flip_bit(&path, byte, 3);
        let (mut log, _) = open(&disk, small(), Some(end)).unwrap();
        let before = disk.files();
        let mut pace = Steps::default();
        let run = Compaction::begin(&log.reader(), options(&log, 0), &mut pace);
        let Err(CompactionError::Corrupt(corruption)) = run else {
            panic!("byte {byte}: {run:?}");
        };
        assert_eq!(corruption.path, path);
        assert_eq!(disk.files(), before);
        let (good, _) = read(&log.reader(), offset(0), offset(8), 1).unwrap();
        assert_eq!(decode(&good.parts).len(), 2);
        let bad = read(&log.reader(), offset(2), offset(8), 1);
        assert!(
            matches!(bad, Err(ReadError::Corrupt(_))),
            "byte {byte}: {bad:?}"
        );
        log.sync().unwrap();
    }
}

#[test]
fn every_flipped_bit_of_a_compacted_segment_is_refused_or_never_served() {
    let disk = disk();
    let mut log = log_with(
        &disk,
        &[
            &[
                ("a", Some("1"), 10),
                ("b", Some("1"), 20),
                ("c", Some("1"), 30),
            ],
            &[("b", Some("2"), 40)],
        ],
        Compression::None,
    );
    let now = options(&log, 0);
    compact(&mut log, now).unwrap();
    let end = log.end();
    let good = records(&log.reader(), 0);
    drop(log);
    let path = segment(0);
    let mut refused = 0;
    for byte in 0..disk.contents(&path).len() as u64 {
        for bit in 0..8 {
            let disk = disk.fork(1);
            disk.flip_bit(&path, byte, bit);
            let Ok((log, _)) = open(&disk, small(), Some(end)) else {
                refused += 1;
                continue;
            };
            let reader = log.reader();
            let mut next = offset(0);
            let mut seen = Vec::new();
            while next < offset(4) {
                match read(&reader, next, offset(4), 1) {
                    Ok((batches, _)) => {
                        seen.extend(decode(&batches.parts));
                        next = batches.next_offset;
                    }
                    Err(ReadError::Corrupt(c)) => {
                        assert_eq!(c.path, path);
                        seen.clear();
                        break;
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            let is_wrong = next >= offset(4) && seen != good;
            assert!(!is_wrong, "byte {byte} bit {bit}: {seen:?}");
            for (time, expected) in [(0, 0), (11, 2), (31, 3)] {
                match reader.find_timestamp(at(time), offset(4)) {
                    Ok(found) => assert_eq!(found.unwrap().0, offset(expected)),
                    Err(ReadError::Corrupt(c)) => assert_eq!(c.path, path),
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn a_full_disk_leaves_the_log_as_it_was_and_a_later_run_does_it() {
    let disk = disk();
    let mut log = log_with(
        &disk,
        &[
            &[("a", Some("1"), 0)],
            &[("a", Some("2"), 0)],
            &[("b", Some("1"), 0)],
        ],
        Compression::None,
    );
    let files = disk.files();
    disk.fail_nth(
        OpFilter::op(DiskOp::Write),
        1,
        InjectedError::Full,
        FailMode::Forever,
    );
    let mut pace = Steps::default();
    let mut run = Compaction::begin(&log.reader(), options(&log, 0), &mut pace)
        .unwrap()
        .unwrap();
    let failed = run.next(&mut pace);
    assert!(
        matches!(&failed, Err(CompactionError::Disk(e)) if e.is_full()),
        "{failed:?}"
    );
    assert!(run.next(&mut pace).unwrap().is_none(), "the run is over");
    disk.stop_failing();
    assert_eq!(disk.files(), files, "nothing is left beside");
    assert_eq!(values(&log).len(), 3);
    append(&mut log, keyed(&[("c", Some("1"), 0)], Compression::None));
    let now = options(&log, 0);
    compact(&mut log, now).unwrap();
    assert_eq!(values(&log)[0], some(1, "a", "2"));
}

#[test]
fn segments_that_were_trimmed_meanwhile_do_not_come_back() {
    let disk = disk();
    let mut log = log_with(
        &disk,
        &[
            &[("a", Some("1"), 0)],
            &[("a", Some("2"), 0)],
            &[("b", Some("1"), 0)],
        ],
        Compression::None,
    );
    let mut pace = Steps::default();
    let mut run = Compaction::begin(&log.reader(), options(&log, 0), &mut pace)
        .unwrap()
        .unwrap();
    let compacted = run.next(&mut pace).unwrap().unwrap();
    log.trim(offset(2), offset(3)).unwrap();
    let installed = log.install(compacted);
    assert!(
        matches!(installed, Err(InstallError::Outdated)),
        "{installed:?}"
    );
    assert_eq!(values(&log), [some(2, "b", "1")]);
    let left = disk.list(&dir()).unwrap();
    assert!(
        left.iter().all(|entry| !entry.name.contains("cleaned")),
        "{left:?}"
    );
    assert!(
        !left
            .iter()
            .any(|entry| entry.name.starts_with("00000000000000000000.log"))
    );
}

#[test]
fn a_name_that_may_not_be_durable_stops_the_log() {
    for op in [DiskOp::Rename, DiskOp::SyncDir] {
        let disk = disk();
        let mut log = log_with(
            &disk,
            &[&[("a", Some("1"), 0)], &[("a", Some("2"), 0)]],
            Compression::None,
        );
        let mut pace = Steps::default();
        let mut run = Compaction::begin(&log.reader(), options(&log, 0), &mut pace)
            .unwrap()
            .unwrap();
        let compacted = run.next(&mut pace).unwrap().unwrap();
        disk.fail_nth(OpFilter::op(op), 1, InjectedError::Io, FailMode::Once);
        assert!(log.install(compacted).is_err());
        assert!(log.reader().poisoned().is_some());
        assert_eq!(
            values(&log),
            [some(1, "a", "2")],
            "readers have the file open"
        );
        let end = log.end();
        drop(log);
        disk.crash();
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        assert_eq!(values(&log).last().unwrap(), &some(1, "a", "2"));
    }
}
