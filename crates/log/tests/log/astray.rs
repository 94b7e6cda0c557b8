//! Reads and writes that the device puts elsewhere, and says that all went well: refused, never
//! served.

use std::path::PathBuf;

use bytes::Bytes;
use tidelog_disk::DiskOp;
use tidelog_log::{Found, Log, LogEnd, OpenError, ReadError};
use tidelog_record::{Batch, Compression, split_batches};
use tidelog_sim::{Astray, OpFilter, SimDisk, SimRng};

use crate::common::*;
use crate::seeds::each_seed;

/// What each batch was when it was appended.
fn fill(log: &mut Log, rng: &mut SimRng, count: usize, given: &mut Vec<Bytes>) {
    for _ in 0..count {
        let mut value = vec![0; rng.index(400)];
        rng.fill(&mut value);
        let batch = batch_of(&[(given.len() as i64, &value)], Compression::None);
        given.push(stamped(&batch, log.end().offset, log.end().epoch.get()));
        append(log, batch);
    }
}

/// Whatever is served, from wherever a reader begins, is what was appended there; says how many of
/// the reads were refused as damaged.
fn check_served(log: &Log, given: &[Bytes]) -> usize {
    let reader = log.reader();
    let end = reader.durable_offset();
    let mut refused = 0;
    for (n, good) in given.iter().enumerate() {
        let from = offset(n as u64);
        if from >= end {
            break;
        }
        match read(&reader, from, end, 1) {
            Ok((batches, _)) => assert_eq!(batches.parts.concat(), good[..], "at {n}"),
            Err(ReadError::Corrupt(corruption)) => {
                assert!(corruption.path.starts_with(dir()), "{corruption}");
                refused += 1;
            }
            Err(e) => panic!("{e}"),
        }
        match reader.find_timestamp(at(n as i64), end) {
            Ok(found) => assert_eq!(found, Some((from, at(n as i64)))),
            Err(e) => assert!(matches!(e, ReadError::Corrupt(_)), "{e}"),
        }
    }
    refused
}

/// Somewhere to go astray to: near by, or in any file.
fn astray(disk: &SimDisk, rng: &mut SimRng) -> Astray {
    if rng.chance(50) {
        let sectors = 1 + rng.below(6) as i64;
        return Astray::By(if rng.chance(50) { 512 } else { -512 } * sectors);
    }
    let files = disk.files();
    let path: PathBuf = files[rng.index(files.len())].clone();
    let len = disk.contents(&path).len() as u64;
    Astray::To(path, rng.below(len + 1))
}

#[derive(Clone, Copy, Default)]
struct Seen {
    refused: usize,
    unopened: usize,
    astray: u64,
}

/// A write of the log lands elsewhere, in its own files or in another log's; then the pages are read
/// anew, by the process that wrote or, after a kill or power loss, by the next one.
#[test]
fn what_a_misdirected_write_left_or_hit_is_refused_and_never_served() {
    let runs = each_seed("astray", |seed| {
        let mut rng = SimRng::new(seed);
        let disk = SimDisk::new(rng.next_u64());
        let mut given = Vec::new();
        let mut log = create(&disk, small());
        let before = 1 + rng.index(12);
        fill(&mut log, &mut rng, before, &mut given);
        let mut end: LogEnd = log.sync().unwrap();
        let to = astray(&disk, &mut rng);
        disk.misdirect_nth(OpFilter::op(DiskOp::Write).on(".log"), 1 + rng.below(8), to);
        let more = 1 + rng.index(12);
        fill(&mut log, &mut rng, more, &mut given);
        if rng.chance(80) {
            end = log.sync().unwrap();
        }
        let mut seen = Seen {
            astray: disk.failures(),
            ..Seen::default()
        };
        // The page cache still has it right.
        assert_eq!(check_served(&log, &given), 0);
        drop(log);
        if rng.chance(50) {
            disk.kill();
            disk.drop_caches();
        } else {
            disk.crash();
        }
        match open(&disk, small(), Some(end)) {
            Ok((log, _)) => {
                assert!(
                    log.end().offset >= end.offset,
                    "what was durable is not cut"
                );
                assert!(log.end().offset.get() <= given.len() as u64);
                seen.refused += check_served(&log, &given);
            }
            Err(OpenError::Corrupt(corruption)) => {
                assert!(corruption.path.starts_with(dir()), "{corruption}");
                seen.unopened += 1;
            }
            Err(e) => panic!("{e}"),
        }
        seen
    });
    let refused: usize = runs.iter().map(|seen| seen.refused).sum();
    let unopened: usize = runs.iter().map(|seen| seen.unopened).sum();
    let astray: u64 = runs.iter().map(|seen| seen.astray).sum();
    if runs.len() > 1000 {
        assert!(
            refused > 100 && unopened > 100 && astray > 1000,
            "{refused}, {unopened}, {astray}"
        );
    }
}

/// One read of an open log, or of the opening, gives another place's bytes.
#[test]
fn what_a_misdirected_read_gave_is_refused_and_never_served() {
    let runs = each_seed("astray", |seed| {
        let mut rng = SimRng::new(seed);
        let disk = SimDisk::new(rng.next_u64());
        let mut given = Vec::new();
        let mut log = create(&disk, small());
        fill(&mut log, &mut rng, 12, &mut given);
        let end = log.close().unwrap();
        let mut seen = Seen::default();
        let to = astray(&disk, &mut rng);
        let reads = OpFilter::op(DiskOp::Read).on(".log");
        let opened = if rng.chance(30) {
            disk.misdirect_nth(reads, 1 + rng.below(6), to);
            open(&disk, small(), Some(end))
        } else {
            let opened = open(&disk, small(), Some(end));
            disk.misdirect_nth(reads, 1 + rng.below(20), to);
            opened
        };
        match opened {
            Ok((log, _)) => {
                assert_eq!(log.end().offset, end.offset, "what was durable is not cut");
                seen.refused = check_served(&log, &given);
                // The next time it is right.
                disk.stop_failing();
                assert_eq!(check_served(&log, &given), 0);
            }
            Err(OpenError::Corrupt(_)) => seen.unopened += 1,
            Err(e) => panic!("{e}"),
        }
        disk.stop_failing();
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        assert_eq!(check_served(&log, &given), 0, "no file was changed");
        seen
    });
    let refused: usize = runs.iter().map(|seen| seen.refused).sum();
    let unopened: usize = runs.iter().map(|seen| seen.unopened).sum();
    if runs.len() > 1000 {
        assert!(refused > 100 && unopened > 100, "{refused}, {unopened}");
    }
}

/// The process that wrote reads through a map, without checking sums. Where a page was dropped and
/// comes back as a copy of another batch, it serves neither.
#[test]
fn a_batch_in_another_ones_place_is_not_served_from_memory_either() {
    let disk = disk();
    let mut log = create(&disk, large());
    for _ in 0..8 {
        append(&mut log, batch(1, 100));
    }
    log.sync().unwrap();
    let borders = borders(&disk, &segment(0));
    let len = borders[2] - borders[1];
    let bytes = disk.contents(&segment(0));
    let copy = &bytes[borders[6] as usize..][..len as usize];
    // The third batch is now a copy of the sixth, whole and well.
    disk.overwrite(&segment(0), borders[3], copy);
    let reader = log.reader();
    for from in 0..8 {
        match read(&reader, offset(from), offset(8), 10_000) {
            Ok((batches, _)) => {
                let parts = Bytes::from(batches.parts.concat());
                let found: Vec<Batch> = split_batches(parts, BATCH_MAX)
                    .map(Result::unwrap)
                    .collect();
                for (next, batch) in (from..).zip(&found) {
                    assert_eq!(batch.header().base_offset, next as i64, "from {from}");
                }
                assert!(from != 2 && (from > 2 || batches.next_offset == offset(2)));
            }
            Err(ReadError::Corrupt(corruption)) => {
                assert_eq!((from, corruption.position), (2, borders[3]));
            }
            Err(e) => panic!("{e}"),
        }
    }
    assert!(matches!(
        reader.read(offset(4), offset(8), 10),
        Ok(Found::Ready(_))
    ));
}
