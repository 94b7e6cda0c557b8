//! What a log does while nothing goes wrong.

use std::path::Path;

use tidelog_disk::{Disk, DiskOp};
use tidelog_log::{
    AppendError, CreateError, Found, INITIAL_INDEX, Log, LogIdentity, LogOptions, OpenError,
    ReadError, RemovedFile, TrimError,
};
use tidelog_record::{Compression, LeaderEpoch, Offset, Timestamp, TopicId};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use crate::common::*;

fn epoch(value: u32) -> LeaderEpoch {
    LeaderEpoch::new(value).unwrap()
}

#[test]
fn what_was_appended_is_read_hot_and_after_reopening_cold() {
    let disk = disk();
    let mut log = create(&disk, large());
    let values: Vec<Vec<u8>> = (0..10_u8).map(|n| vec![n; 50 * usize::from(n)]).collect();
    let mut expected = Vec::new();
    let mut next = 0;
    for (n, value) in values.iter().enumerate() {
        let compression = Compression::ALL[n % Compression::ALL.len()];
        let batch = batch_of(&[(n as i64, value), (5, b"second")], compression);
        expected.push(stamped(&batch, offset(next), 5));
        assert_eq!(append(&mut log, batch), offset(next));
        next += 2;
    }
    let reader = log.reader();
    assert_eq!(reader.end_offset(), offset(20));
    assert_eq!(reader.durable_offset(), Offset::ZERO);
    let (nothing, _) = read(&reader, Offset::ZERO, offset(20), 1 << 20).unwrap();
    assert!(nothing.is_empty(), "what is not durable is not read");

    let end = log.sync().unwrap();
    assert_eq!(
        (end.offset, end.index.get()),
        (offset(20), INITIAL_INDEX.get() + 1 + 10)
    );
    assert_eq!(
        bytes_of(&read_all(&reader, Offset::ZERO).unwrap()),
        expected
    );
    let (all, hot) = read(&reader, Offset::ZERO, offset(20), usize::MAX).unwrap();
    assert!(hot);
    assert_eq!(all.parts.len(), 1, "one slice: nothing lies in between");
    assert_eq!(all.parts[0], expected.concat());

    let checkpoint = log.close().unwrap();
    let (log, recovery) = open(&disk, large(), Some(checkpoint)).unwrap();
    assert_eq!((recovery.kept_bytes, recovery.torn_bytes), (0, 0));
    assert_eq!(log.end(), checkpoint);
    let (all, hot) = read(&log.reader(), Offset::ZERO, offset(20), usize::MAX).unwrap();
    assert!(!hot);
    assert_eq!(all.parts.concat(), expected.concat());
    for from in 0..20 {
        let (batches, _) = read(&log.reader(), offset(from), offset(20), 1).unwrap();
        let wanted = usize::try_from(from / 2).unwrap();
        assert_eq!(
            batches.parts,
            [expected[wanted].clone()],
            "the first batch, always"
        );
        assert_eq!(batches.next_offset, offset(from / 2 * 2 + 2));
    }
}

#[test]
fn several_batches_at_once_go_as_far_as_the_segment_has_room() {
    let disk = disk();
    let mut log = create(&disk, small());
    let mut batches: Vec<_> = (0..40).map(|_| batch(2, 100)).collect();
    let mut rest = &mut batches[..];
    let mut base = 0;
    while !rest.is_empty() {
        let appended = log.append(rest, at(0)).unwrap();
        assert_eq!(appended.base_offset, offset(base));
        assert!(appended.batches > 0);
        base += 2 * appended.batches as u64;
        rest = &mut rest[appended.batches..];
    }
    log.sync().unwrap();
    let reader = log.reader();
    let segments = reader.segments();
    assert!(segments.len() >= 6, "{segments:?}");
    for (n, segment) in segments.iter().enumerate() {
        assert!(segment.len <= 2000);
        assert_eq!(segment.sealed, n + 1 < segments.len());
        if segment.sealed {
            assert_eq!(disk.contents(&segment.path).len() as u64, segment.len);
        }
    }
    for pair in segments.windows(2) {
        assert_eq!(pair[0].end_offset, pair[1].base_offset);
    }
    let all = read_all(&reader, Offset::ZERO).unwrap();
    assert_eq!(all.len(), 40);
    // A read ends with its segment.
    let (batches, _) = read(&reader, Offset::ZERO, offset(80), 1 << 20).unwrap();
    assert_eq!(batches.next_offset, segments[0].end_offset);

    let end = log.close().unwrap();
    let (log, _) = open(&disk, small(), Some(end)).unwrap();
    assert_eq!(
        bytes_of(&read_all(&log.reader(), Offset::ZERO).unwrap()),
        bytes_of(&all)
    );
    assert_eq!(log.reader().segments(), segments);
}

#[test]
fn bytes_max_is_kept_except_for_the_first_batch() {
    let disk = disk();
    let mut log = create(&disk, large());
    let len = batch(1, 100).total_len();
    for _ in 0..5 {
        append(&mut log, batch(1, 100));
    }
    log.sync().unwrap();
    let check = |log: &Log, hot: bool| {
        for (max, batches) in [
            (0, 1),
            (len, 1),
            (2 * len - 1, 1),
            (2 * len, 2),
            (usize::MAX, 5),
        ] {
            let (got, was_hot) = read(&log.reader(), Offset::ZERO, offset(5), max).unwrap();
            assert_eq!(
                (got.len_bytes(), was_hot),
                (batches * len, hot),
                "bytes_max {max}"
            );
            assert_eq!(got.next_offset, offset(batches as u64));
        }
        // The end is a bound, too.
        let (got, _) = read(&log.reader(), offset(1), offset(3), usize::MAX).unwrap();
        assert_eq!((got.len_bytes(), got.next_offset), (2 * len, offset(3)));
    };
    check(&log, true);
    let end = log.close().unwrap();
    check(&open(&disk, large(), Some(end)).unwrap().0, false);
}

#[test]
fn an_end_inside_a_batch_gives_nothing_instead_of_damage() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(10, 10));
    let end = log.close().unwrap();
    let (mut log, _) = open(&disk, large(), Some(end)).unwrap();
    append(&mut log, batch(10, 10));
    log.sync().unwrap();
    for from in [0, 12] {
        let (got, _) = read(&log.reader(), offset(from), offset(from + 3), 1000).unwrap();
        assert_eq!((got.is_empty(), got.next_offset), (true, offset(from)));
    }
}

#[test]
fn reads_out_of_range_are_refused_with_the_range() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(10, 10));
    log.sync().unwrap();
    let reader = log.reader();
    let error = reader.read(offset(11), offset(10), 1000).unwrap_err();
    let ReadError::OutOfRange {
        requested,
        start,
        end,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (requested, start, end),
        (offset(11), Offset::ZERO, offset(10))
    );
    let Found::Ready(batches) = reader.read(offset(10), offset(10), 1000).unwrap() else {
        panic!("nothing to wait for")
    };
    assert!(batches.is_empty());
    assert_eq!(batches.next_offset, offset(10));
}

#[test]
fn internal_entries_are_not_read_and_epochs_are_known() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(1, 10));
    log.begin_epoch(epoch(6)).unwrap();
    append(&mut log, batch(2, 20));
    log.begin_epoch(epoch(8)).unwrap();
    log.begin_epoch(epoch(9)).unwrap();
    append(&mut log, batch(3, 30));
    log.sync().unwrap();

    let check = |log: &Log| {
        let reader = log.reader();
        let expected = [
            stamped(&batch(1, 10), offset(0), 5),
            stamped(&batch(2, 20), offset(1), 6),
            stamped(&batch(3, 30), offset(3), 9),
        ];
        let (all, _) = read(&reader, Offset::ZERO, offset(6), 10_000).unwrap();
        assert_eq!(all.parts, expected, "cut apart at the internal entries");
        let epochs: Vec<_> = reader
            .epochs()
            .iter()
            .map(|start| (start.epoch.get(), start.offset.get(), start.index.get()))
            .collect();
        assert_eq!(epochs, [(6, 1, 7), (8, 3, 9), (9, 3, 10)]);
        assert_eq!(reader.epoch_at(offset(0)), None);
        for (at, known) in [(1, 6), (2, 6), (3, 9), (5, 9), (6, 9)] {
            assert_eq!(reader.epoch_at(offset(at)), Some(epoch(known)));
        }
        assert_eq!((log.end().epoch, log.end().index.get()), (epoch(9), 12));
    };
    check(&log);
    let end = log.close().unwrap();
    check(&open(&disk, large(), Some(end)).unwrap().0);

    // The table comes back from the segment, whatever is left of its file.
    let whole = disk.contents(&epochs_file());
    assert_eq!(whole.len(), 8 + 3 * 24);
    for cut in 0..whole.len() as u64 {
        let disk = disk.fork(1);
        disk.truncate_file(&epochs_file(), cut);
        check(&open(&disk, large(), Some(end)).unwrap().0);
        assert_eq!(disk.contents(&epochs_file()), whole);
    }
    for at in 0..whole.len() as u64 {
        let disk = disk.fork(1);
        disk.flip_bit(&epochs_file(), at, 3);
        check(&open(&disk, large(), Some(end)).unwrap().0);
        assert_eq!(disk.contents(&epochs_file()), whole);
    }
    disk.remove(&epochs_file());
    check(&open(&disk, large(), Some(end)).unwrap().0);
    disk.kill();
    check(&open(&disk, large(), None).unwrap().0);
}

#[test]
fn the_epoch_table_is_rebuilt_across_segments_and_after_a_trim() {
    let disk = disk();
    let mut log = create(&disk, small());
    for n in 6..20 {
        log.begin_epoch(epoch(n)).unwrap();
        for _ in 0..n % 5 {
            append(&mut log, batch(2, 150));
        }
    }
    log.sync().unwrap();
    let known = log.reader().epochs();
    assert!(log.reader().segments().len() > 3);
    let end = log.close().unwrap();
    disk.remove(&epochs_file());
    let (mut log, _) = open(&disk, small(), Some(end)).unwrap();
    assert_eq!(log.reader().epochs(), known);

    log.trim(offset(30), log.end().offset).unwrap();
    let reader = log.reader();
    let start = reader.segments()[0].base_offset;
    assert!(start > Offset::ZERO);
    let epochs: Vec<_> = (start.get()..end.offset.get())
        .map(|at| reader.epoch_at(offset(at)))
        .collect();
    let end = log.close().unwrap();
    disk.remove(&epochs_file());
    let reader = open(&disk, small(), Some(end)).unwrap().0.reader();
    for (at, epoch) in (start.get()..).zip(epochs) {
        assert_eq!(reader.epoch_at(offset(at)), epoch);
    }
    assert!(reader.epochs().len() < known.len());
}

#[test]
fn an_old_segment_is_rolled_but_never_an_empty_one() {
    let disk = disk();
    let mut log = create(&disk, large());
    let append_at = |log: &mut Log, now: i64| {
        log.append(&mut [batch(1, 10)], at(now)).unwrap();
        log.reader().segments().len()
    };
    assert_eq!(append_at(&mut log, 5_000_000), 1, "no records: not rolled");
    assert_eq!(append_at(&mut log, 5_000_001), 2, "made at 0");
    assert_eq!(append_at(&mut log, 6_000_000), 2);
    assert_eq!(append_at(&mut log, 6_000_001), 3, "a million ms later");
    assert_eq!(
        append_at(&mut log, 100),
        3,
        "a clock that goes back rolls nothing"
    );
    let before_that = 6_000_001 - 25 * 3_600_000;
    for _ in 0..2 {
        let count = append_at(&mut log, before_that);
        assert_eq!(count, 4, "once where the segment would be of the future");
    }
}

#[test]
fn a_segment_full_of_internal_entries_still_takes_every_batch_that_can_fit() {
    let disk = disk();
    let options = with_segments(1000);
    let mut log = create(&disk, options);
    for n in 6..30 {
        log.begin_epoch(epoch(n)).unwrap();
    }
    let fits = 1000 - usize::try_from(HEADER).unwrap() - batch(1, 0).total_len() - 4;
    let fitting = batch(1, fits);
    assert!(fitting.total_len() as u64 + HEADER <= 1000);
    assert_eq!(append(&mut log, fitting), Offset::ZERO);

    let error = log.append(&mut [batch(1, 1000)], at(0)).unwrap_err();
    assert!(
        matches!(
            error,
            AppendError::TooLarge {
                segment_bytes: 1000,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(log.reader().segments().len(), 1, "nothing happened");
    append(&mut log, batch(1, fits));
    assert_eq!(log.reader().segments().len(), 2);
    log.sync().unwrap();
    assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 2);
    let end = log.close().unwrap();
    let (log, _) = open(&disk, options, Some(end)).unwrap();
    assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 2);
}

#[test]
fn options_beyond_the_format_are_clamped_and_a_larger_segment_outgrows_its_map() {
    let disk = disk();
    let mut log = create(
        &disk,
        LogOptions {
            segment_bytes: 1 << 20,
            ..large()
        },
    );
    log.set_options(LogOptions {
        segment_bytes: u32::MAX,
        ..large()
    });
    for _ in 0..5 {
        append(&mut log, batch(1, 500_000));
    }
    log.sync().unwrap();
    let hot: Vec<bool> = (0..5)
        .map(|at| {
            let (got, hot) = read(&log.reader(), offset(at), offset(5), 1).unwrap();
            assert_eq!(got.next_offset, offset(at + 1));
            hot
        })
        .collect();
    assert_eq!(hot, [true, true, true, true, false], "2 MiB are mapped");
}

#[test]
fn a_log_is_created_once() {
    let disk = disk();
    let log = create(&disk, large());
    let again = Log::create(dynamic(&disk), &dir(), identity(), large(), at(0)).unwrap_err();
    assert!(matches!(again, CreateError::Exists { .. }), "{again}");
    drop(log);
    let other = Log::open(
        dynamic(&disk),
        Path::new("/none"),
        identity(),
        large(),
        None,
    );
    assert!(matches!(other, Err(OpenError::Missing { .. })));
}

#[test]
fn a_trim_removes_whole_segments_and_survives() {
    let disk = disk();
    let mut log = create(&disk, small());
    for _ in 0..50 {
        append(&mut log, batch(2, 100));
    }
    log.sync().unwrap();
    let reader = log.reader();
    let (held, _) = read(&reader, Offset::ZERO, offset(100), 1 << 20).unwrap();
    let held_bytes = held.parts.concat();
    let before = reader.segments();
    let stale = reader.durable();

    let error = log.trim(offset(101), offset(1000)).unwrap_err();
    assert!(
        matches!(error, TrimError::OutOfRange { end, .. } if end == offset(100)),
        "{error}"
    );
    log.trim(offset(37), offset(100)).unwrap();
    assert_eq!(reader.log_start(), offset(37));
    assert!(matches!(
        log.trim(offset(36), offset(100)),
        Err(TrimError::OutOfRange { .. })
    ));
    let after = reader.segments();
    assert!(after.len() < before.len());
    assert!(after[0].base_offset <= offset(37) && after[0].end_offset > offset(37));
    for segment in &before[..before.len() - after.len()] {
        assert!(!disk.files().contains(&segment.path));
        assert!(!disk.files().contains(&segment.path.with_extension("index")));
    }
    assert_eq!(held.parts.concat(), held_bytes, "slices stay readable");

    let check = |log: &Log| {
        let reader = log.reader();
        assert_eq!(reader.log_start(), offset(37));
        let error = read(&reader, offset(36), offset(100), 1000).unwrap_err();
        assert!(matches!(error, ReadError::OutOfRange { start, .. } if start == offset(37)));
        let all = read_all(&reader, offset(37)).unwrap();
        assert_eq!(
            all[0].header().base_offset,
            36,
            "the batch that holds it, whole"
        );
        assert_eq!(all.len(), 32);
    };
    check(&log);
    // All the way to the end, and on from there.
    let disk_at_37 = disk.fork(1);
    log.trim(offset(100), offset(100)).unwrap();
    assert_eq!(append(&mut log, batch(1, 1)), offset(100));
    let end = log.close().unwrap();
    let (log, _) = open(&disk, small(), Some(end)).unwrap();
    assert_eq!(log.reader().log_start(), offset(100));
    assert_eq!(read_all(&log.reader(), offset(100)).unwrap().len(), 1);

    for checkpoint in [None, Some(stale)] {
        let disk = disk_at_37.fork(2);
        disk.crash();
        check(&open(&disk, small(), checkpoint).unwrap().0);
    }
}

/// Without this the space is gone until the next start.
#[test]
fn what_a_trim_could_not_remove_the_next_one_does() {
    for part in [".log", ".index"] {
        let (mut left_over, mut given_back) = (0, 0);
        // Of the removals that fail, some are done all the same.
        for seed in 0..10 {
            let disk = SimDisk::new(seed);
            let mut log = create(&disk, small());
            for _ in 0..50 {
                append(&mut log, batch(2, 100));
            }
            log.sync().unwrap();
            let before = log.reader().segments();
            let removals = OpFilter::op(DiskOp::Remove).on(part);
            disk.fail_nth(removals, 1, InjectedError::Io, FailMode::Forever);
            log.trim(offset(37), offset(100)).unwrap();
            let gone = before.len() - log.reader().segments().len();
            assert!(gone > 1);
            let left = || {
                let files = disk.files();
                let index = |path: &Path| path.with_extension("index");
                let is_there = |path: &Path| {
                    files.iter().any(|have| have == path) || files.contains(&index(path))
                };
                let paths = before[..gone].iter().map(|segment| segment.path.as_path());
                paths.filter(|path| is_there(path)).count()
            };
            // It still cannot be done; and then it can.
            log.trim(offset(37), offset(100)).unwrap();
            left_over += left();
            disk.stop_failing();
            log.take_removed();
            log.trim(offset(37), offset(100)).unwrap();
            assert_eq!(left(), 0, "{part}, seed {seed}");
            let removed = log.take_removed();
            given_back += removed.iter().map(RemovedFile::len_bytes).sum::<u64>();
            assert_eq!(read_all(&log.reader(), offset(37)).unwrap().len(), 32);
        }
        assert!(left_over > 0 && given_back > 0, "{part}");
    }
}

#[test]
fn a_cold_read_that_meets_a_trim_says_out_of_range() {
    let disk = disk();
    let mut log = create(&disk, small());
    for _ in 0..50 {
        append(&mut log, batch(2, 100));
    }
    let end = log.close().unwrap();
    let (mut log, _) = open(&disk, small(), Some(end)).unwrap();
    let Found::Cold(cold) = log.reader().read(Offset::ZERO, offset(100), 1000).unwrap() else {
        panic!("just opened")
    };
    log.trim(offset(50), offset(100)).unwrap();
    let error = cold.run().unwrap_err();
    assert!(
        matches!(error, ReadError::OutOfRange { start, .. } if start == offset(50)),
        "{error}"
    );
}

/// A topic is deleted and made again under its name while somebody reads the old one.
#[test]
fn a_cold_read_never_serves_another_log_in_the_same_place() {
    let disk = disk();
    let fill = |log: &mut Log, value: u8| {
        for _ in 0..20 {
            append(log, batch_of(&[(1000, &[value; 300])], Compression::None));
        }
        log.sync().unwrap();
    };
    let mut old = create(&disk, small());
    fill(&mut old, b'o');
    let reader = old.reader();
    let Found::Cold(cold) = reader.read(offset(0), offset(20), 1).unwrap() else {
        panic!("many segments ago")
    };
    let aside = Path::new("/data/aside");
    disk.rename(&dir(), aside).unwrap();
    let other = LogIdentity {
        topic_id: TopicId::from_bytes([8; 16]),
        ..identity()
    };
    let mut new = Log::create(dynamic(&disk), &dir(), other, small(), at(0)).unwrap();
    fill(&mut new, b'n');
    for result in [
        cold.run().map(|_| ()),
        read_all(&reader, Offset::ZERO).map(|_| ()),
        reader.find_timestamp(at(1000), offset(20)).map(|_| ()),
    ] {
        match result {
            Err(ReadError::Disk(e)) => assert!(e.is_not_found(), "{e}"),
            other => panic!("{other:?}"),
        }
    }
    let all = read_all(&new.reader(), Offset::ZERO).unwrap();
    assert_eq!(all.len(), 20, "the new one is as it was");
    // Back in its place, it is served again: nothing was remembered of the other.
    disk.rename(&dir(), Path::new("/data/new")).unwrap();
    disk.rename(aside, &dir()).unwrap();
    assert_eq!(read_all(&reader, Offset::ZERO).unwrap().len(), 20);
}

#[test]
fn find_timestamp_agrees_with_a_naive_search() {
    let disk = disk();
    let mut log = create(&disk, small());
    let mut rng = tidelog_sim::SimRng::new(7);
    let mut times: Vec<i64> = Vec::new();
    for n in 0..60 {
        let millis: Vec<i64> = (0..1 + rng.below(5))
            .map(|_| n * 10 + rng.below(60) as i64 - 30)
            .collect();
        let records: Vec<(i64, &[u8])> = millis
            .iter()
            .map(|millis| (*millis, &b"some value"[..]))
            .collect();
        let compression = Compression::ALL[rng.index(Compression::ALL.len())];
        append(&mut log, batch_of(&records, compression));
        if rng.chance(10) {
            log.begin_epoch(log.end().epoch.next().unwrap()).unwrap();
        }
        times.extend(millis);
    }
    log.sync().unwrap();
    let end = times.len() as u64;
    let check = |log: &Log, start: u64| {
        let reader = log.reader();
        for wanted in (-40..700).chain([i64::MIN, i64::MAX, 5000]) {
            for end in [end, end / 2, start, start + 1] {
                let expected = times
                    .iter()
                    .enumerate()
                    .take(usize::try_from(end).unwrap())
                    .skip(usize::try_from(start).unwrap())
                    .find(|(_, millis)| **millis >= wanted)
                    .map(|(n, millis)| (offset(n as u64), at(*millis)));
                let found = reader.find_timestamp(at(wanted), offset(end)).unwrap();
                assert_eq!(found, expected, "time {wanted}, {start}..{end}");
            }
        }
    };
    check(&log, 0);
    let closed = log.close().unwrap();
    let (mut log, _) = open(&disk, small(), Some(closed)).unwrap();
    check(&log, 0);
    log.trim(offset(41), offset(end)).unwrap();
    check(&log, 41);
    let closed = log.close().unwrap();
    check(&open(&disk, small(), Some(closed)).unwrap().0, 41);
}

#[test]
fn a_log_append_time_is_found() {
    let disk = disk();
    let mut log = create(&disk, large());
    for now in [100, 200] {
        let mut batch = batch_of(&[(1, b"a"), (2, b"b")], Compression::Zstd);
        batch.set_log_append_time(at(now));
        append(&mut log, batch);
    }
    log.sync().unwrap();
    let find = |millis| log.reader().find_timestamp(at(millis), offset(4)).unwrap();
    assert_eq!(find(50), Some((offset(0), at(100))));
    assert_eq!(find(101), Some((offset(2), at(200))));
    assert_eq!(find(201), None);
    assert_eq!(
        log.reader()
            .find_timestamp(Timestamp::MIN, Offset::ZERO)
            .unwrap(),
        None
    );
}

#[test]
fn opening_a_closed_log_reads_and_changes_next_to_nothing() {
    let disk = disk();
    let mut log = create(&disk, large());
    for _ in 0..3000 {
        append(&mut log, batch(3, 100));
    }
    let end = log.close().unwrap();
    let before = disk.io_count();
    // Bodies below the checkpoint are not read at opening, nor are headers.
    let reads = disk.call_count();
    let (log, _) = open(&disk, large(), Some(end)).unwrap();
    assert_eq!(disk.io_count(), before + 1, "only the directory is synced");
    assert!(
        disk.call_count() - reads <= 17,
        "{} calls",
        disk.call_count() - reads
    );
    assert_eq!(log.end(), end);
    drop(log);

    // However large the file is: a header that cannot be read does not matter.
    let borders = borders(&disk, &segment(0));
    disk.fail_nth(
        OpFilter::op(DiskOp::Read).on(".log"),
        2,
        InjectedError::Io,
        FailMode::Forever,
    );
    disk.flip_bit(&segment(0), borders[1500], 0);
    open(&disk, large(), Some(end)).unwrap();
}

/// What a clean stop makes superfluous is not done, and nothing is believed that is not so.
#[test]
fn a_log_known_to_be_closed_is_opened_without_recovery() {
    for room_bytes in [0, 2000] {
        let options = LogOptions {
            room_bytes,
            ..large()
        };
        let disk = disk();
        let mut log = create(&disk, options);
        for _ in 0..300 {
            append(&mut log, batch(3, 100));
        }
        let end = log.close().unwrap();
        let open_closed =
            |disk: &SimDisk| Log::open_closed(dynamic(disk), &dir(), identity(), options, end);
        // As many reads as it takes to see that the end is the one that was recorded.
        let calls = |disk: &SimDisk, is_closed: bool| {
            let before = (disk.call_count(), disk.io_count());
            let opened = if is_closed {
                open_closed(disk)
            } else {
                open(disk, options, Some(end))
            };
            assert_eq!(opened.unwrap().0.end(), end);
            (disk.call_count() - before.0, disk.io_count() - before.1)
        };
        let (usual, usual_changes) = calls(&disk.fork(1), false);
        let (closed, changes) = calls(&disk.fork(1), true);
        assert_eq!(changes, 0, "nothing is synced or changed");
        assert!(usual_changes > 0 && closed < usual, "{closed} of {usual}");

        // A file that somebody put something to is looked through all the same.
        let (mut log, _) = open_closed(&disk).unwrap();
        append(&mut log, batch(1, 10));
        log.sync().unwrap();
        drop(log);
        disk.kill();
        let (log, recovery) = open_closed(&disk).unwrap();
        assert!(recovery.kept_bytes > 0);
        assert_eq!(log.end().offset, offset(901));
        drop(log);
        let disk = disk.fork(2);
        disk.truncate_file(&segment(0), u64::from(end.position) - 1);
        assert!(matches!(open_closed(&disk), Err(OpenError::Corrupt(_))));
    }
}

#[test]
fn after_a_kill_the_log_opens_at_any_recorded_end() {
    let disk = disk();
    let mut log = create(&disk, large());
    let mut ends = vec![None];
    for n in 0..30 {
        append(&mut log, batch(3, 50 * n));
        if n % 7 == 0 {
            log.begin_epoch(log.end().epoch.next().unwrap()).unwrap();
        }
        ends.push(Some(log.sync().unwrap()));
    }
    append(&mut log, batch(1, 1));
    let expected = log.end();
    for checkpoint in ends {
        let disk = disk.fork(1);
        let (log, recovery) = open(&disk, large(), checkpoint).unwrap();
        assert_eq!(log.end(), expected);
        let from = checkpoint.map_or(HEADER, |end| u64::from(end.position));
        assert_eq!(recovery.kept_bytes, u64::from(expected.position) - from);
        assert_eq!(recovery.torn_bytes, 0);
        // What was kept is durable now.
        assert_eq!(log.reader().durable_offset(), offset(91));
        disk.crash();
        let (log, _) = open(&disk, large(), Some(expected)).unwrap();
        assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 31);
    }
}

#[test]
fn what_is_appended_after_an_open_is_hot_at_once() {
    let disk = disk();
    let mut log = create(&disk, LogOptions::default());
    append(&mut log, batch(1, 10));
    let end = log.close().unwrap();
    let (mut log, _) = open(&disk, LogOptions::default(), Some(end)).unwrap();
    append(&mut log, batch(1, 10));
    log.sync().unwrap();
    assert!(!read(&log.reader(), offset(0), offset(2), 1).unwrap().1);
    assert!(read(&log.reader(), offset(1), offset(2), 1).unwrap().1);
}

#[test]
fn an_index_is_built_again_whatever_is_left_of_it() {
    let disk = disk();
    let options = with_segments(4000);
    let mut log = create(&disk, options);
    for n in 0..60 {
        append(&mut log, batch_of(&[(n, &[b'x'; 120])], Compression::None));
        if n % 11 == 3 {
            log.begin_epoch(log.end().epoch.next().unwrap()).unwrap();
        }
    }
    let end = log.close().unwrap();
    let all = {
        let (log, _) = open(&disk, options, Some(end)).unwrap();
        assert!(log.reader().segments().len() > 2);
        bytes_of(&read_all(&log.reader(), Offset::ZERO).unwrap())
    };
    let newest = log_bases(&disk).pop().unwrap();
    let check = |disk: &SimDisk, what: &str| {
        let (log, _) = open(disk, options, Some(end)).unwrap();
        assert_eq!(
            bytes_of(&read_all(&log.reader(), Offset::ZERO).unwrap()),
            all,
            "{what}"
        );
        for n in 0..60 {
            let found = log.reader().find_timestamp(at(n), offset(60)).unwrap();
            assert_eq!(found, Some((offset(n.unsigned_abs()), at(n))), "{what}");
        }
    };
    for base in [0, newest] {
        let len = disk.contents(&index(base)).len() as u64;
        assert!(len > 64);
        for cut in (0..len).step_by(13) {
            let disk = disk.fork(1);
            disk.truncate_file(&index(base), cut);
            check(&disk, &format!("index {base} cut to {cut}"));
        }
        for at in (0..len).step_by(5) {
            let disk = disk.fork(1);
            disk.flip_bit(&index(base), at, 6);
            check(&disk, &format!("index {base} broken at {at}"));
        }
        let disk = disk.fork(1);
        disk.remove(&index(base));
        check(&disk, &format!("index {base} missing"));
        check(&disk, "written again");
    }
    // Another segment's index is not believed.
    let other = disk.contents(&index(0));
    let file = disk
        .open(&index(newest), tidelog_disk::OpenHow::Write)
        .unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, &[std::io::IoSlice::new(&other)]).unwrap();
    check(&disk, "another's index");
}

/// The base offsets of all segments.
fn log_bases(disk: &SimDisk) -> Vec<u64> {
    disk.files()
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn an_index_of_a_history_that_was_cut_is_not_believed() {
    let disk = disk();
    let mut log = create(
        &disk,
        LogOptions {
            index_interval_bytes: 1,
            ..large()
        },
    );
    append(&mut log, batch(1, 10));
    let checkpoint = log.sync().unwrap();
    // Enough for the index to be written, of records that power loss takes.
    for _ in 0..300 {
        append(&mut log, batch(1, 100));
    }
    let stale = disk.contents(&index(0));
    assert!(stale.len() > 256 * 32);
    disk.truncate_file(&segment(0), u64::from(checkpoint.position));
    disk.kill();
    let options = LogOptions {
        index_interval_bytes: 1,
        ..large()
    };
    let (mut log, _) = open(&disk, options, Some(checkpoint)).unwrap();
    // As long a batch with more records: its border is at the same place and not the same.
    for _ in 0..10 {
        append(&mut log, batch(7, 100));
    }
    let checkpoint = log.sync().unwrap();
    disk.kill();
    let file = disk.open(&index(0), tidelog_disk::OpenHow::Create).unwrap();
    file.write_at(0, &[std::io::IoSlice::new(&stale)]).unwrap();
    let (log, _) = open(&disk, options, Some(checkpoint)).unwrap();
    assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 11);
    for from in 0..71 {
        read(&log.reader(), offset(from), offset(71), 1).unwrap();
    }
}

#[test]
fn the_same_on_the_real_disk() {
    let options = with_segments(20_000);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("topics").join("topic-0");
    let disk: std::sync::Arc<dyn Disk> = std::sync::Arc::new(tidelog_disk::OsDisk);
    let mut log = Log::create(disk.clone(), &dir, identity(), options, at(0)).unwrap();
    let mut expected = Vec::new();
    let reader = log.reader();
    let mut held = Vec::new();
    for n in 0..200_u64 {
        let value = vec![u8::try_from(n).unwrap(); 100];
        let batch = batch_of(&[(n.cast_signed(), &value)], Compression::None);
        expected.push(stamped(&batch, offset(n), 5));
        append(&mut log, batch);
        let end = log.sync().unwrap().offset;
        let (newest, hot) = read(&reader, offset(n), end, 1).unwrap();
        assert!(hot, "what was just written is read through the map");
        held.extend(newest.parts);
    }
    assert_eq!(held, expected);
    assert_eq!(
        bytes_of(&read_all(&reader, Offset::ZERO).unwrap()),
        expected
    );
    log.trim(offset(150), offset(200)).unwrap();
    assert_eq!(held, expected, "slices outlive their files");
    let checkpoint = log.sync().unwrap();
    append(&mut log, batch(1, 10));
    drop(log);

    let path = reader.segments().pop().unwrap().path;
    let length = std::fs::metadata(&path).unwrap().len();
    assert!(length > u64::from(checkpoint.position) + 71);
    let file = disk.open(&path, tidelog_disk::OpenHow::Write).unwrap();
    file.write_at(
        u64::from(checkpoint.position) + 70,
        &[std::io::IoSlice::new(b"!")],
    )
    .unwrap();
    let opened = Log::open(disk.clone(), &dir, identity(), options, Some(checkpoint));
    let (log, recovery) = opened.unwrap();
    assert_eq!(log.end(), checkpoint, "the torn tail is cut");
    assert!(recovery.torn_bytes > 0);
    let all = bytes_of(&read_all(&log.reader(), offset(150)).unwrap());
    assert_eq!(all, expected[150..]);
    let end = log.close().unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        u64::from(end.position)
    );
    assert_eq!(held, expected);
}
