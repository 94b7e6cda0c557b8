//! Compacted segments: checked by their own rules, and cut as a whole.

use bytes::Bytes;
use tidelog_log::{Compaction, CompactionOptions, Pace, Stopped};
use tidelog_record::{BatchBuilder, BatchLimits, ProducedBatch, validate_produced};

use super::*;

/// Never waits.
struct Free;

impl Pace for Free {
    fn read(&mut self, _bytes: u64) -> Result<(), Stopped> {
        Ok(())
    }

    fn write(&mut self, _bytes: u64) -> Result<(), Stopped> {
        Ok(())
    }
}

fn keyed(keys: &[&str], value: &str) -> ProducedBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    for key in keys {
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        builder.push(at(5), key, value, &[]).unwrap();
    }
    validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap()
}

fn options(log: &Log, segment_bytes: u32, key_bytes_max: usize) -> CompactionOptions {
    CompactionOptions {
        now: at(0),
        end_max: log.end().offset,
        min_lag_ms: 0,
        delete_retention_ms: 1000,
        segment_bytes,
        index_interval_bytes: 200,
        key_bytes_max,
        secret: [3; 16],
    }
}

/// A log with some compacted segments, two that are not, and the active one, and a state file that
/// knows it. With `synced` the checkpoint is that of the end; else it was recorded before the
/// segment it lies in was compacted.
fn compacted(synced: bool) -> (SimDisk, Vec<u64>) {
    let (disk, _) = filled(synced);
    for path in disk.files() {
        if path.parent() == Some(&partition()) {
            disk.remove(&path);
        }
    }
    disk.sync_dir(&partition()).unwrap();
    let mut log = Log::create(dynamic(&disk), &partition(), identity(), small(), at(0)).unwrap();
    let mut checkpoint = log.end();
    for round in 0..8_u32 {
        log.begin_epoch(LeaderEpoch::new(6 + round).unwrap())
            .unwrap();
        for n in 0..4 {
            let (own, shared) = (format!("own {round} {n}"), format!("key {n}"));
            let value = format!("{round} {}", "v".repeat(60));
            append(&mut log, keyed(&[&own, &shared, "all"], &value));
        }
        if round == 1 {
            checkpoint = log.sync().unwrap();
        }
        log.roll(at(i64::from(round))).unwrap();
    }
    log.sync().unwrap();
    // Room for the keys of some rounds only: the last compacted segment is not clean to its end.
    let options = options(&log, 3000, 24 * 45);
    let mut run = Compaction::begin(&log.reader(), options, &mut Free)
        .unwrap()
        .unwrap();
    while let Some(compacted) = run.next(&mut Free).unwrap() {
        log.install(compacted).unwrap();
    }
    drop(run);
    append(&mut log, keyed(&["all"], "newest"));
    log.begin_epoch(LeaderEpoch::new(20).unwrap()).unwrap();
    let end = log.sync().unwrap();
    let bases: Vec<u64> = log
        .reader()
        .segments()
        .iter()
        .map(|s| s.base_offset.get())
        .collect();
    let (checkpoint, stop) = if synced {
        assert_eq!(log.close().unwrap(), end);
        (end, Some(StateRecord::Clean))
    } else {
        (checkpoint, None)
    };
    let state = StateFile::open(dynamic(&disk), &data_dir().join("state")).unwrap();
    state
        .record(&[StateRecord::Checkpoint(key(), checkpoint)], true)
        .unwrap();
    if let Some(stop) = stop {
        state.record(&[stop], true).unwrap();
    }
    disk.kill();
    disk.sync_all();
    assert!(bases.len() >= 5, "{bases:?}");
    (disk, bases)
}

/// How many of the segments are compacted: the first ones.
fn compacted_count(disk: &SimDisk) -> usize {
    let mut problems: Vec<Problem> = Vec::new();
    let depth = Depth::Headers;
    let report = check_partition(&dynamic(disk), &partition(), None, depth, &mut problems);
    let segments = report.unwrap().segments;
    let is_compacted = |s: &&tidelog_log::offline::SegmentReport| {
        s.header.as_ref().is_some_and(|h| h.compacted.is_some())
    };
    let count = segments.iter().filter(is_compacted).count();
    assert_eq!(segments.iter().take_while(is_compacted).count(), count);
    assert!(count >= 2, "{count} of {}", segments.len());
    count
}

fn said(problems: &[Problem]) -> Vec<String> {
    let line = |p: &Problem| format!("{}: {p}", p.severity.name());
    problems.iter().map(line).collect()
}

/// Each record as a start serves it: offset, key and value.
fn records(disk: &SimDisk) -> Vec<(u64, Bytes, Bytes)> {
    let checkpoint = state(disk).unwrap().groups[&key()].checkpoint;
    let log = open_here(disk, checkpoint);
    let reader = log.reader();
    let end = reader.durable_offset();
    let mut all = Vec::new();
    let mut next = reader.log_start();
    while next < end {
        let (batches, _) = read(&reader, next, end, 700).unwrap();
        for part in &batches.parts {
            for batch in tidelog_record::split_batches(part.clone(), BATCH_MAX) {
                let batch = batch.unwrap();
                let base = Offset::from_wire(batch.header().base_offset).unwrap();
                for record in batch.records(&BatchLimits::default()).unwrap() {
                    let record = record.unwrap();
                    let offset = record.offset(base).unwrap();
                    if offset >= next {
                        let (key, value) = (record.key.unwrap(), record.value.unwrap());
                        all.push((offset.get(), key, value));
                    }
                }
            }
        }
        assert!(batches.next_offset > next);
        next = batches.next_offset;
    }
    drop(log);
    all
}

/// What a broker does after a repair: it opens the log, appends, and reads all of it.
fn serves_and_goes_on(disk: &SimDisk) -> Vec<(u64, Bytes, Bytes)> {
    let before = records(disk);
    let disk = disk.fork(7);
    let checkpoint = state(&disk).unwrap().groups[&key()].checkpoint;
    let mut log = open_here(&disk, checkpoint);
    let newer = log.end().epoch.get() + 1;
    log.begin_epoch(LeaderEpoch::new(newer).unwrap()).unwrap();
    let base = append(&mut log, keyed(&["all"], "after the repair"));
    let end = log.sync().unwrap();
    drop(log);
    disk.crash();
    let (log, _) = Log::open(dynamic(&disk), &partition(), identity(), small(), Some(end)).unwrap();
    assert_eq!(log.end().offset.get(), base.get() + 1);
    before
}

#[test]
fn a_healthy_compacted_log_has_no_problems_and_is_not_touched() {
    for synced in [true, false] {
        let (disk, bases) = compacted(synced);
        let calls = disk.io_count();
        let mut problems: Vec<Problem> = Vec::new();
        let all = Depth::Everything;
        let report = check_data_dir(&dynamic(&disk), data_dir(), all, &mut problems).unwrap();
        assert_eq!(said(&problems), [""; 0], "synced: {synced}");
        let partition = &report.partitions[0];
        let count = compacted_count(&disk);
        assert!(count < bases.len() - 1);
        for (number, segment) in partition.segments.iter().enumerate() {
            assert_eq!(segment.base_offset.get(), bases[number]);
            let end = segment.end.unwrap();
            if let Some(next) = bases.get(number + 1) {
                assert!(segment.sealed);
                assert_eq!(end.offset.get(), *next);
                assert_eq!(segment.index.name(), "whole");
            }
            let offsets = end.offset.get() - bases[number];
            // Of the last compacted one nothing may be known to be superseded.
            let has_gaps = segment.records < offsets;
            assert!(has_gaps || number >= count - 1, "{number}");
            assert!(!has_gaps || number < count, "{number}");
        }
        let epochs: Vec<u32> = partition.epochs.iter().map(|e| e.epoch.get()).collect();
        assert_eq!(epochs, [6, 7, 8, 9, 10, 11, 12, 13, 20]);
        for cut_at_damage in [false, true] {
            let plan = plan(&disk, cut_at_damage);
            assert_eq!((plan.actions.len(), plan.cut), (0, None));
        }
        assert_eq!(disk.io_count(), calls, "reading changes nothing");
        // The tools count what is served.
        let served = records(&disk);
        let counted: u64 = partition.segments.iter().map(|s| s.records).sum();
        assert_eq!(counted, served.len() as u64);
    }
}

#[test]
fn a_dump_gives_what_is_left_with_its_offsets_and_none_of_a_changed_base_offset() {
    let (disk, bases) = compacted(true);
    let dump = |disk: &SimDisk, from: u64| {
        let dump = Dump::open(&dynamic(disk), &partition(), offset(from), None).unwrap();
        let mut all = Vec::new();
        for batch in dump {
            let batch = match batch {
                Ok(batch) => batch,
                Err(e) => return (all, Some(e.to_string())),
            };
            if batch.internal.is_some() {
                assert!(batch.index.is_some());
                continue;
            }
            assert_eq!(
                batch.offset.to_wire(),
                batch.batch.header().base_offset,
                "its own offset"
            );
            for record in batch.batch.records(&BatchLimits::default()).unwrap() {
                let record = record.unwrap();
                let at = record.offset(batch.offset).unwrap().get();
                all.push((at, record.key.unwrap(), record.value.unwrap()));
            }
        }
        (all, None)
    };
    let served = records(&disk);
    assert_eq!(dump(&disk, 0), (served.clone(), None));
    for from in 0..served.last().unwrap().0 {
        let (part, problem) = dump(&disk, from);
        assert_eq!(problem, None);
        let wanted: Vec<_> = served.iter().filter(|r| r.0 >= from).cloned().collect();
        assert!(part.ends_with(&wanted), "from {from}");
        assert!(part.len() - wanted.len() < 3, "no batch too many at {from}");
    }
    let path = file(0, "log");
    let borders = borders(&disk, &path);
    let served_here = served.iter().filter(|r| r.0 < bases[1]).count();
    for border in &borders[1..] {
        for bit in 0..64 {
            let disk = disk.fork(1);
            disk.flip_bit(&path, border + bit / 8, u8::try_from(bit % 8).unwrap());
            let (none, problem) = dump(&disk, 0);
            // Up to an entry of the log's own, whose offset stands in it too, all is well.
            assert!(served.starts_with(&none), "{border}, {bit}: {none:?}");
            assert!(none.len() < served_here, "{border}, {bit}");
            assert!(problem.unwrap().contains(path.to_str().unwrap()));
        }
    }
    // One without an active segment does not end there.
    let count = compacted_count(&disk);
    for base in &bases[count..] {
        disk.remove(&file(*base, "log"));
    }
    let (_, problem) = dump(&disk, bases[count - 1]);
    assert!(problem.unwrap().contains("is missing"));
}

#[test]
fn every_flipped_bit_of_a_compacted_segment_is_damage() {
    let (disk, bases) = compacted(true);
    let path = file(bases[1], "log");
    let borders = borders(&disk, &path);
    let other = file(*bases.last().unwrap(), "log");
    let mut exact = 0;
    let len = disk.contents(&path).len() as u64;
    for position in 0..len {
        let disk = disk.fork(1);
        disk.flip_bit(&path, position, u8::try_from(position % 8).unwrap());
        // A second one elsewhere is not hidden by the first.
        disk.flip_bit(&other, HEADER + 70, 1);
        let problems = check(&disk);
        let damage = of_severity(&problems, Severity::Damage);
        let at = borders.iter().rposition(|b| *b <= position).unwrap();
        let first = damage[0];
        assert_eq!(first.path, path, "at {position}: {:?}", said(&problems));
        if first.position == borders[at] {
            exact += 1;
        } else {
            // Only the chain tells of a base offset that may be one.
            let within = position - borders[at];
            assert!(within < 8, "at {position}: {first}");
            assert!(first.position <= len);
        }
        let last = damage.last().unwrap();
        assert_eq!((&last.path, last.position), (&other, HEADER), "{last}");
        assert!(damage.iter().all(|d| d.path == path || d.path == other));
        assert!(damage.len() <= 3, "at {position}: {:?}", said(&problems));
    }
    assert!(exact > len * 9 / 10, "{exact} of {len}");
}

#[test]
fn every_bit_of_a_base_offset_is_told_near_its_place() {
    let (disk, bases) = compacted(true);
    let path = file(bases[1], "log");
    let borders = borders(&disk, &path);
    for (at, border) in borders.iter().enumerate().skip(1) {
        for bit in 0..64_u64 {
            let disk = disk.fork(1);
            disk.flip_bit(&path, border + bit / 8, u8::try_from(bit % 8).unwrap());
            let problems = check(&disk);
            let damage = of_severity(&problems, Severity::Damage);
            assert_eq!(damage.len(), 1, "{border}, {bit}: {:?}", said(&problems));
            assert_eq!(damage[0].path, path);
            // From the last index entry before it, which is one of every other batch, to the next.
            let from = borders[at.saturating_sub(3).max(1)];
            let to = borders.get(at + 1).copied().unwrap_or(*border);
            assert!(
                (from..=to).contains(&damage[0].position),
                "{border}, {bit}: {}",
                damage[0]
            );
            // Nobody blames the index.
            assert!(of_severity(&problems, Severity::Derived).is_empty());
        }
    }
}

#[test]
fn a_broken_index_of_a_compacted_segment_is_told_and_built_again() {
    let (disk, bases) = compacted(true);
    let served = records(&disk);
    // That of another segment, and of another history: its checksums hold.
    let (other, _) = compacted(true);
    let path = file(bases[0], "index");
    for position in (0..disk.contents(&path).len() as u64).step_by(11) {
        let disk = disk.fork(1);
        disk.flip_bit(&path, position, 2);
        let problems = check(&disk);
        assert_eq!(problems.len(), 1, "{:?}", said(&problems));
        assert_eq!(problems[0].severity, Severity::Derived);
        assert_eq!(problems[0].path, path);
        apply(&disk, &plan(&disk, false));
        assert_eq!(records(&disk), served);
    }
    // One entry of an older file of this segment: it is whole, and its places are elsewhere.
    let mut log = Log::create(
        dynamic(&other),
        Path::new("/data/other-3"),
        identity(),
        small(),
        at(0),
    )
    .unwrap();
    for n in 0..4 {
        append(
            &mut log,
            keyed(&["x", "y"], &format!("{n} {}", "w".repeat(99))),
        );
    }
    log.roll(at(0)).unwrap();
    log.close().unwrap();
    let stale = other.contents(&Path::new("/data/other-3").join(path.file_name().unwrap()));
    disk.remove(&path);
    let file = disk.open(&path, tidelog_disk::OpenHow::Create).unwrap();
    file.write_at(0, &[std::io::IoSlice::new(&stale)]).unwrap();
    drop(file);
    let problems = check(&disk);
    assert_eq!(problems.len(), 1, "{:?}", said(&problems));
    assert_eq!(problems[0].severity, Severity::Derived);
    assert_eq!(problems[0].path, path);
    apply(&disk, &plan(&disk, false));
    assert_eq!(records(&disk), served);
}

#[test]
fn what_a_crash_in_the_middle_of_a_compaction_leaves_is_noted_and_left() {
    let (disk, _) = compacted(true);
    let checkpoint = state(&disk).unwrap().groups[&key()].checkpoint;
    let mut log = open_here(&disk, checkpoint);
    append(&mut log, keyed(&["all"], "newer"));
    log.roll(at(9)).unwrap();
    let end = log.sync().unwrap();
    let old = snapshot(&disk);
    let mut run = Compaction::begin(&log.reader(), options(&log, 1 << 20, 1 << 20), &mut Free)
        .unwrap()
        .unwrap();
    let joined = run.next(&mut Free).unwrap().unwrap();
    let cleaned = file(0, "cleaned");
    assert!(disk.files().contains(&cleaned));

    // It was written, and not renamed yet.
    let record = |disk: &SimDisk| {
        let state = StateFile::open(dynamic(disk), &data_dir().join("state")).unwrap();
        state
            .record(&[StateRecord::Checkpoint(key(), end)], true)
            .unwrap();
    };
    let before = disk.fork(1);
    before.kill();
    record(&before);
    let problems = check(&before);
    assert_eq!(problems.len(), 1, "{:?}", said(&problems));
    assert_eq!(problems[0].severity, Severity::Note);
    assert_eq!(problems[0].path, cleaned);
    assert!(problems[0].to_string().contains("in the making"));
    assert!(plan(&before, true).actions.is_empty());

    // It was renamed, and the others were not removed.
    log.install(joined).unwrap();
    drop(run);
    drop(log);
    disk.kill();
    record(&disk);
    let mut left = Vec::new();
    for (path, bytes) in &old {
        let is_of_partition = path.parent() == Some(&partition());
        if is_of_partition && !disk.files().contains(path) {
            let file = disk.open(path, tidelog_disk::OpenHow::Create).unwrap();
            file.write_at(0, &[std::io::IoSlice::new(bytes)]).unwrap();
            left.push(path.clone());
        }
    }
    disk.sync_all();
    let logs = |paths: &[PathBuf]| {
        let is_log = |p: &&PathBuf| p.extension().is_some_and(|e| e == "log");
        paths.iter().filter(is_log).cloned().collect::<Vec<_>>()
    };
    assert!(logs(&left).len() >= 3, "{left:?}");
    let problems = check(&disk);
    assert!(
        problems.iter().all(|p| p.severity == Severity::Note),
        "{:?}",
        said(&problems)
    );
    // Snapshots of producers that lie in it are not used any more, left behind or not.
    let is_snapshot = |path: &&PathBuf| path.extension().is_some_and(|e| e == "producers");
    let noted = problems.iter().map(|p| p.path.clone());
    let mut noted: Vec<PathBuf> = noted.filter(|path| !is_snapshot(&path)).collect();
    noted.sort_unstable();
    let files = left.iter().filter(|path| !is_snapshot(path));
    assert_eq!(noted, files.cloned().collect::<Vec<_>>());
    assert!(problems.iter().any(|p| is_snapshot(&&p.path)));
    assert!(plan(&disk, true).actions.is_empty());

    // With damage behind it, they stay; with damage in it, they go with it.
    let newest = disk.files().into_iter().filter(|path| {
        path.parent() == Some(&partition()) && path.extension().is_some_and(|e| e == "log")
    });
    let newest = newest.max().unwrap();
    let behind = disk.fork(1);
    behind.flip_bit(&newest, 100, 1);
    let bytes = snapshot(&behind);
    let plan_behind = plan(&behind, true);
    assert_eq!(plan_behind.refused, None);
    apply(&behind, &plan_behind);
    assert_nothing_is_lost(&bytes, &behind);
    let mut stay = left.iter().filter(|path| !is_snapshot(path));
    assert!(stay.all(|path| behind.files().contains(path)));
    let problems = check(&behind);
    assert!(of_severity(&problems, Severity::Damage).is_empty());
    serves_and_goes_on(&behind);
}

#[test]
fn damage_in_a_compacted_segment_costs_it_and_what_follows_and_no_byte() {
    for synced in [true, false] {
        let (disk, bases) = compacted(synced);
        let count = compacted_count(&disk);
        let all = records(&disk);
        for (number, base) in bases.iter().copied().enumerate().take(count + 1) {
            let path = file(base, "log");
            let len = disk.contents(&path).len() as u64;
            for position in (0..len).step_by(97) {
                if number == count && position >= HEADER {
                    continue;
                }
                let disk = disk.fork(1);
                disk.flip_bit(&path, position, 5);
                let before = snapshot(&disk);
                assert!(plan(&disk, false).remaining > 0);
                let plan = plan(&disk, true);
                assert_eq!(snapshot(&disk), before, "a plan changes nothing");
                if number == 0 {
                    assert!(plan.refused.unwrap().contains("would leave nothing"));
                    continue;
                }
                assert_eq!((plan.remaining, plan.refused), (0, None));
                assert_eq!(plan.cut.unwrap().from.get(), base);
                let begins = |action: &&Action| matches!(action, Action::Begin { .. });
                assert_eq!(plan.actions.iter().filter(begins).count(), 1);
                apply(&disk, &plan);
                assert_nothing_is_lost(&before, &disk);
                let problems = check(&disk);
                let damage = of_severity(&problems, Severity::Damage);
                assert!(damage.is_empty(), "at {position}: {damage:?}");
                let served = serves_and_goes_on(&disk);
                let kept: Vec<_> = all.iter().filter(|r| r.0 < base).cloned().collect();
                assert_eq!(served, kept, "segment {number} at {position}");
            }
        }
    }
}

#[test]
fn a_log_whose_newest_segments_are_gone_goes_on_behind_a_compacted_one() {
    let (disk, bases) = compacted(true);
    let count = compacted_count(&disk);
    for base in &bases[count..] {
        disk.remove(&file(*base, "log"));
    }
    disk.sync_all();
    let before = snapshot(&disk);
    let problems = check(&disk);
    let damage = of_severity(&problems, Severity::Damage);
    assert_eq!(damage.len(), 1, "{:?}", said(&problems));
    assert!(damage[0].to_string().contains("is missing"));
    let mut alone: Vec<Problem> = Vec::new();
    let depth = Depth::Everything;
    check_partition(&dynamic(&disk), &partition(), None, depth, &mut alone).unwrap();
    assert_eq!(of_severity(&alone, Severity::Damage).len(), 1);
    assert!(plan(&disk, false).remaining > 0);
    let plan = plan(&disk, true);
    assert_eq!((plan.remaining, plan.refused), (0, None));
    apply(&disk, &plan);
    assert_nothing_is_lost(&before, &disk);
    let problems = check(&disk);
    assert!(of_severity(&problems, Severity::Damage).is_empty());
    let served = serves_and_goes_on(&disk);
    assert!(served.last().unwrap().0 < bases[count]);
}

#[test]
fn a_repair_of_compacted_segments_that_is_cut_off_anywhere_can_be_done_again() {
    for synced in [true, false] {
        let (disk, bases) = compacted(synced);
        let path = file(bases[1], "log");
        disk.flip_bit(&path, 279 + 90, 1);
        // A segment that it stands for was not removed yet, nor a file of a later compaction.
        for (base, extension) in [
            (bases[1] + 1, "log"),
            (bases[1] + 1, "index"),
            (0, "cleaned"),
        ] {
            let left = disk.open(&file(base, extension), tidelog_disk::OpenHow::Create);
            let bytes = disk.contents(&file(bases[2], "log"));
            let left = left.unwrap();
            left.write_at(0, &[std::io::IoSlice::new(&bytes)]).unwrap();
        }
        disk.sync_all();
        assert_eq!(of_severity(&check(&disk), Severity::Damage).len(), 1);
        let before = snapshot(&disk);
        let plan_of_all = plan(&disk, true);
        let whole = disk.fork(1);
        let calls = whole.io_count();
        apply(&whole, &plan_of_all);
        let calls = whole.io_count() - calls;
        assert!(calls > 20, "{calls}");
        let expected = serves_and_goes_on(&whole);
        assert!(!expected.is_empty());
        for nth in 1..=calls {
            for seed in 0..2 {
                let disk = disk.fork(seed);
                let filter = OpFilter::mutating();
                disk.fail_nth(filter, nth, InjectedError::Io, FailMode::Forever);
                let shared: Arc<dyn Disk> = dynamic(&disk);
                apply_repair(&shared, &plan_of_all, Some(data_dir())).unwrap_err();
                disk.crash();
                assert_nothing_is_lost(&before, &disk);
                let plan = plan(&disk, true);
                assert_eq!(
                    (plan.remaining, plan.refused),
                    (0, None),
                    "call {nth}, seed {seed}"
                );
                apply(&disk, &plan);
                assert_nothing_is_lost(&before, &disk);
                let problems = check(&disk);
                let damage = of_severity(&problems, Severity::Damage);
                assert!(damage.is_empty(), "{damage:?}");
                let served = serves_and_goes_on(&disk);
                assert_eq!(served, expected, "call {nth}, seed {seed}");
            }
        }
    }
}
