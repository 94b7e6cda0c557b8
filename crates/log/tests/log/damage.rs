//! Damaged, missing and foreign files: refused and named, never served, never changed.

use std::path::{Path, PathBuf};

use tidelog_disk::{Disk, OpenHow};
use tidelog_log::{
    Corruption, Damage, Found, InternalEntry, InternalError, InternalKind, Log, LogEnd,
    LogIdentity, OpenError, ReadError,
};
use tidelog_record::{BATCH_HEADER_LEN, Compression, LeaderEpoch, Offset, TopicId, crc32c};
use tidelog_sim::SimDisk;

use crate::common::*;

/// A log of several segments, closed; and where it ended.
fn closed() -> (SimDisk, LogEnd, Vec<u64>) {
    let disk = disk();
    let mut log = create(&disk, small());
    log.begin_epoch(LeaderEpoch::new(6).unwrap()).unwrap();
    for n in 0..40 {
        append(&mut log, batch_of(&[(n, &[b'x'; 120])], Compression::None));
    }
    let bases: Vec<u64> = {
        log.sync().unwrap();
        log.reader().segments()
    }
    .iter()
    .map(|segment| segment.base_offset.get())
    .collect();
    assert!(bases.len() >= 4);
    (disk, log.close().unwrap(), bases)
}

fn refused(disk: &SimDisk, checkpoint: Option<LogEnd>) -> Corruption {
    let before: Vec<_> = disk
        .files()
        .iter()
        .map(|path| disk.contents(path))
        .collect();
    let files = disk.files();
    let corruption = match open(disk, small(), checkpoint) {
        Err(OpenError::Corrupt(corruption)) => corruption,
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it opened"),
    };
    assert_eq!(disk.files(), files, "a refusal removes nothing");
    let after: Vec<_> = files.iter().map(|path| disk.contents(path)).collect();
    assert!(before == after, "a refusal changes nothing");
    corruption
}

fn overwrite(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, OpenHow::Create).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, &[std::io::IoSlice::new(bytes)]).unwrap();
}

/// Reads all there is, until the first refusal.
fn read_until_refused(log: &Log) -> (u64, Option<ReadError>) {
    let reader = log.reader();
    let end = reader.durable_offset();
    let mut next = reader.log_start();
    while next < end {
        match read(&reader, next, end, 1) {
            Ok((batches, _)) => next = batches.next_offset,
            Err(e) => return (next.get(), Some(e)),
        }
    }
    (next.get(), None)
}

#[test]
fn every_flipped_bit_in_a_sealed_segment_is_found_and_named() {
    let (disk, end, bases) = closed();
    let path = segment(bases[1]);
    let borders = borders(&disk, &path);
    let len = disk.contents(&path).len() as u64;
    let header_len = borders[1];
    assert_eq!(header_len, HEADER);
    for position in 0..len {
        let disk = disk.fork(1);
        let bit = u8::try_from(position % 8).unwrap();
        disk.flip_bit(&path, position, bit);
        if position < header_len {
            let corruption = refused(&disk, Some(end));
            assert_eq!((&corruption.path, corruption.position), (&path, 0));
            continue;
        }
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        let batch = borders
            .iter()
            .rposition(|border| *border <= position)
            .unwrap();
        let (good, error) = read_until_refused(&log);
        // The batches before are served, this one is not, and is named.
        assert_eq!(good, bases[1] + batch as u64 - 1, "bit {bit} of {position}");
        let Some(ReadError::Corrupt(corruption)) = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            (&corruption.path, corruption.position),
            (&path, borders[batch])
        );
        assert_eq!(corruption.offset, offset(good));
        // What lies behind in other segments is served.
        let (rest, _) = read(&log.reader(), offset(bases[2]), end.offset, 1).unwrap();
        assert!(!rest.is_empty());
        // Looking up times neither serves nor hides it.
        let at_batch = i64::try_from(good).unwrap();
        match log.reader().find_timestamp(at(at_batch), end.offset) {
            Ok(found) => assert_eq!(found, Some((offset(good), at(at_batch)))),
            Err(e) => assert!(matches!(e, ReadError::Corrupt(_)), "{e}"),
        }
    }
}

#[test]
fn every_flipped_bit_below_the_checkpoint_is_refused_or_never_served() {
    let disk = disk();
    let mut log = create(&disk, large());
    for n in 0..12 {
        append(&mut log, batch_of(&[(n, &[b'x'; 60])], Compression::None));
        if n == 5 {
            log.begin_epoch(LeaderEpoch::new(9).unwrap()).unwrap();
        }
    }
    let end = log.sync().unwrap();
    drop(log);
    disk.kill();
    let good: Vec<_> = {
        let disk = disk.fork(1);
        bytes_of(
            &read_all(
                &open(&disk, large(), Some(end)).unwrap().0.reader(),
                Offset::ZERO,
            )
            .unwrap(),
        )
    };
    let path = segment(0);
    let borders = borders(&disk, &path);
    let mut refusals = 0;
    for position in 0..u64::from(end.position) {
        let disk = disk.fork(1);
        disk.flip_bit(&path, position, u8::try_from(position % 7).unwrap());
        match open(&disk, large(), Some(end)) {
            Err(OpenError::Corrupt(corruption)) => {
                refusals += 1;
                let border = borders.iter().rfind(|border| **border <= position).unwrap();
                let named = (&corruption.path, corruption.position);
                assert_eq!(named, (&path, *border), "at {position}: {corruption}");
            }
            Err(e) => panic!("{e}"),
            Ok((log, recovery)) => {
                assert_eq!((log.end(), recovery.torn_bytes), (end, 0), "nothing is cut");
                let mut served = 0;
                for (n, good) in good.iter().enumerate() {
                    let from = offset(n as u64);
                    match read(&log.reader(), from, end.offset, 1) {
                        Ok((batches, _)) => {
                            assert_eq!(batches.parts.concat(), good[..], "at {position}");
                            served += 1;
                        }
                        Err(ReadError::Corrupt(corruption)) => assert_eq!(corruption.path, path),
                        Err(e) => panic!("{e}"),
                    }
                }
                assert!(served < good.len(), "nobody noticed {position}");
            }
        }
    }
    assert!(
        refusals > 300,
        "header fields are found at once: {refusals}"
    );
}

#[test]
fn every_flipped_bit_above_the_checkpoint_is_cut_and_kept_beside() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(1, 100));
    let checkpoint = log.sync().unwrap();
    for _ in 0..3 {
        append(&mut log, batch(1, 40));
    }
    let end = log.end();
    drop(log);
    disk.kill();
    let path = segment(0);
    let borders = borders(&disk, &path);
    let bytes = disk.contents(&path);
    for position in u64::from(checkpoint.position)..u64::from(end.position) {
        let disk = disk.fork(1);
        disk.flip_bit(&path, position, 2);
        let damaged = disk.contents(&path);
        let (log, recovery) = open(&disk, large(), Some(checkpoint)).unwrap();
        let border = *borders.iter().rfind(|border| **border <= position).unwrap();
        let cut = usize::try_from(border).unwrap();
        assert_eq!(u64::from(log.end().position), border);
        assert_eq!(recovery.kept_bytes, border - u64::from(checkpoint.position));
        // Zeros at the end may as well be reserved space.
        let used = damaged.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        assert!(u64::from(end.position) - used as u64 <= 1);
        assert_eq!(recovery.torn_bytes, (used - cut) as u64);
        assert_eq!(disk.contents(&path), bytes[..cut]);
        let torn = disk.contents(&path.with_extension("torn"));
        assert_eq!(torn, damaged[cut..used]);
        let batches = borders.iter().filter(|b| **b < border).count() - 1;
        assert_eq!(
            read_all(&log.reader(), Offset::ZERO).unwrap().len(),
            batches
        );
    }
}

#[test]
fn one_torn_tail_is_kept_the_last() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(1, 100));
    log.sync().unwrap();
    log.roll(at(0)).unwrap();
    let mut checkpoint = log.sync().unwrap();
    disk.open(&dir().join("00000000000000000000.torn"), OpenHow::Create)
        .unwrap();
    for n in 1..3 {
        append(&mut log, batch(1, 50 * n));
        drop(log);
        disk.flip_bit(&segment(1), u64::from(checkpoint.position) + 70, 0);
        disk.kill();
        (log, _) = open(&disk, large(), Some(checkpoint)).unwrap();
        checkpoint = log.end();
        let torn: Vec<PathBuf> = disk
            .files()
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "torn"))
            .collect();
        assert_eq!(torn, [dir().join("00000000000000000001.torn")]);
        assert_eq!(
            disk.contents(&torn[0]).len(),
            batch(1, 50 * n).total_len() - 1
        );
    }
}

#[test]
fn a_missing_segment_is_refused_and_named() {
    let (disk, end, bases) = closed();
    let newest = bases.len() as u64;
    for (at, base) in bases.iter().enumerate() {
        let disk = disk.fork(1);
        disk.remove(&segment(*base));
        let corruption = refused(&disk, Some(end));
        let Damage::MissingSegment { sequence } = corruption.what else {
            panic!("{corruption}")
        };
        assert_eq!(sequence, at as u64 + 1);
    }
    // The newest one is missed only by who knows of it.
    let disk = disk.fork(1);
    disk.remove(&segment(bases[bases.len() - 1]));
    let (log, _) = open(&disk, small(), None).unwrap();
    assert_eq!(log.end().sequence, newest - 1);
    // All of them.
    for base in &bases[..bases.len() - 1] {
        disk.remove(&segment(*base));
    }
    let corruption = refused(&disk, Some(end));
    assert!(matches!(corruption.what, Damage::MissingSegment { sequence } if sequence == newest));
    assert!(matches!(
        open(&disk, small(), None),
        Err(OpenError::Missing { .. })
    ));
}

#[test]
fn a_shortened_segment_is_refused_and_named() {
    let (disk, end, bases) = closed();
    for base in &bases {
        let path = segment(*base);
        let whole = disk.contents(&path).len() as u64;
        for len in [whole - 1, HEADER] {
            let disk = disk.fork(1);
            disk.truncate_file(&path, len);
            let corruption = refused(&disk, Some(end));
            assert_eq!((&corruption.path, corruption.position), (&path, len));
            let Damage::Short {
                len: found,
                durable,
            } = corruption.what
            else {
                panic!()
            };
            assert_eq!((found, durable), (len, whole));
        }
        // Into the header: of the newest, too, since something in it was durable.
        for len in [0, 60, HEADER - 1] {
            let disk = disk.fork(1);
            disk.truncate_file(&path, len);
            assert_eq!(refused(&disk, Some(end)).path, path);
        }
    }
}

#[test]
fn a_header_that_rotted_is_no_torn_roll() {
    let (disk, end, bases) = closed();
    let newest = segment(bases[bases.len() - 1]);
    // Even without a checkpoint: there are entries behind it.
    assert!(disk.contents(&newest).len() as u64 > HEADER);
    for position in 0..HEADER {
        let disk = disk.fork(1);
        disk.flip_bit(&newest, position, 1);
        for checkpoint in [None, Some(end)] {
            let corruption = refused(&disk, checkpoint);
            assert_eq!((&corruption.path, corruption.position), (&newest, 0));
        }
    }
}

#[test]
fn a_torn_roll_is_removed() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(3, 100));
    let end = log.sync().unwrap();
    log.roll(at(0)).unwrap();
    let closed = log.reader().segments()[0].len;
    drop(log);
    disk.kill();
    let newest = segment(3);
    let header = disk.contents(&newest);
    assert_eq!(header.len() as u64, HEADER);
    let mut torn: Vec<Vec<u8>> = [0, 1, 20, 61, 200, 250]
        .iter()
        .map(|len| header[..*len].to_vec())
        .collect();
    torn.push(vec![0; header.len()]);
    let mut half = header.clone();
    half[128..].fill(0);
    torn.push(half);
    for torn in torn {
        for checkpoint in [None, Some(end)] {
            let disk = disk.fork(1);
            overwrite(&disk, &newest, &torn);
            let (mut log, _) = open(&disk, large(), checkpoint).unwrap();
            assert!(!disk.files().contains(&newest), "{} bytes", torn.len());
            assert_eq!(
                (log.end().offset, u64::from(log.end().position)),
                (offset(3), closed)
            );
            log.roll(at(0)).unwrap();
            assert_eq!(append(&mut log, batch(1, 1)), offset(3));
        }
    }
    // A log that was never finished holds nothing; it is made anew.
    let disk = SimDisk::new(5);
    drop(create(&disk, large()));
    disk.truncate_file(&segment(0), 100);
    assert!(matches!(
        open(&disk, large(), None),
        Err(OpenError::Missing { .. })
    ));
    create(&disk, large());
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let (disk, end, bases) = closed();
    let others = [
        LogIdentity {
            cluster_id: [8; 16],
            ..identity()
        },
        LogIdentity {
            topic_id: TopicId::from_bytes([1; 16]),
            ..identity()
        },
        LogIdentity {
            partition: tidelog_record::PartitionId::new(4),
            ..identity()
        },
        LogIdentity {
            incarnation: 2,
            ..identity()
        },
    ];
    for other in others {
        let error = Log::open(dynamic(&disk), &dir(), other, small(), Some(end)).unwrap_err();
        let OpenError::Corrupt(corruption) = error else {
            panic!("{error}")
        };
        assert!(
            matches!(corruption.what, Damage::Foreign(_)),
            "{corruption}"
        );
        // A small one at the end, as a torn roll might be, and one in the middle.
        for path in [segment(end.offset.get()), segment(bases[1])] {
            let disk = disk.fork(1);
            let foreign = SimDisk::new(2);
            foreign.create_dir_all(Path::new("/data")).unwrap();
            let log = Log::create(dynamic(&foreign), &dir(), other, small(), at(0)).unwrap();
            drop(log);
            overwrite(&disk, &path, &foreign.contents(&segment(0)));
            for checkpoint in [None, Some(end)] {
                let corruption = refused(&disk, checkpoint);
                assert_eq!(corruption.path, path);
                assert!(
                    matches!(corruption.what, Damage::Foreign(_)),
                    "{corruption}"
                );
            }
        }
    }
    // One of ours under another name.
    let copy = disk.contents(&segment(bases[1]));
    overwrite(&disk, &segment(end.offset.get()), &copy);
    assert!(matches!(refused(&disk, Some(end)).what, Damage::Foreign(_)));
}

/// Changes bytes under the CRC of the batch at `at` and makes it hold again.
fn change(disk: &SimDisk, path: &Path, at: u64, change: impl FnOnce(&mut [u8])) {
    let start = usize::try_from(at).unwrap();
    let bytes = disk.contents(path);
    let len = tidelog_record::BatchHeader::decode(&bytes[start..], BATCH_MAX)
        .unwrap()
        .total_len();
    let mut batch = bytes[start..start + len].to_vec();
    change(&mut batch);
    let crc = crc32c(&[&batch[21..]]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    disk.overwrite(path, at, &batch);
}

#[test]
fn an_unknown_entry_that_must_be_understood_is_refused_and_others_are_skipped() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(1, 10));
    let checkpoint = log.sync().unwrap();
    log.begin_epoch(LeaderEpoch::new(6).unwrap()).unwrap();
    let position = u64::from(checkpoint.position);
    log.sync().unwrap();
    append(&mut log, batch(1, 10));
    let end = log.sync().unwrap();
    drop(log);
    disk.kill();
    let path = segment(0);
    let (kind, version) = (BATCH_HEADER_LEN, BATCH_HEADER_LEN + 1);
    for (at, value) in [(kind, 77), (version, 2)] {
        let disk = disk.fork(1);
        change(&disk, &path, position, |batch| batch[at] = value);
        // Above the checkpoint it is whole, so it is not torn; below, the same.
        for checkpoint in [None, Some(checkpoint), Some(end)] {
            let corruption = refused(&disk, checkpoint);
            assert_eq!((&corruption.path, corruption.position), (&path, position));
            assert!(matches!(
                corruption.what,
                Damage::Internal(InternalError::Unknown { .. })
            ));
        }
    }
    // Without the bit an unknown kind takes its Raft index and is passed over.
    let disk = disk.fork(1);
    let truncated = u64::from(checkpoint.position);
    disk.truncate_file(&path, truncated);
    let skippable = InternalEntry {
        index: checkpoint.index,
        epoch: checkpoint.epoch,
        next_offset: checkpoint.offset,
        kind: InternalKind::Skippable(99),
    };
    let file = disk.open(&path, OpenHow::Write).unwrap();
    file.write_at(truncated, &[std::io::IoSlice::new(&skippable.encode())])
        .unwrap();
    drop(file);
    let (mut log, recovery) = open(&disk, large(), Some(checkpoint)).unwrap();
    assert_eq!(recovery.torn_bytes, 0);
    assert_eq!(log.end().index.get(), checkpoint.index.get() + 1);
    append(&mut log, batch(1, 10));
    log.sync().unwrap();
    assert_eq!(read_all(&log.reader(), Offset::ZERO).unwrap().len(), 2);
}

#[test]
fn a_newer_format_is_refused_everywhere() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(3, 100));
    let end = log.sync().unwrap();
    log.roll(at(0)).unwrap();
    drop(log);
    disk.kill();
    let content = BATCH_HEADER_LEN + 28;
    for path in [segment(0), segment(3)] {
        for at in [content + 1, content + 2 + 8 + 7] {
            // The format version; a bit of the incompatible features.
            let disk = disk.fork(1);
            change(&disk, &path, 0, |batch| batch[at] = 2);
            for checkpoint in [None, Some(end)] {
                let corruption = refused(&disk, checkpoint);
                assert_eq!(
                    corruption.path, path,
                    "the small newest one is not taken for torn"
                );
                assert!(matches!(
                    corruption.what,
                    Damage::Internal(InternalError::Malformed(_))
                ));
            }
        }
    }
    // Compatible features are kept, not understood.
    let disk = disk.fork(1);
    change(&disk, &segment(3), 0, |batch| batch[content + 2 + 7] = 1);
    open(&disk, large(), Some(end)).unwrap();
}

#[test]
fn reserved_bytes_are_checked() {
    let disk = disk();
    drop(create(&disk, large()));
    for at in [
        BATCH_HEADER_LEN + 2,
        BATCH_HEADER_LEN + 3,
        BATCH_HEADER_LEN + 28 + 102,
    ] {
        let disk = disk.fork(1);
        change(&disk, &segment(0), 0, |batch| batch[at] |= 2);
        let corruption = refused(&disk, None);
        assert!(
            matches!(
                corruption.what,
                Damage::Internal(InternalError::Malformed(_))
            ),
            "{at}"
        );
    }
}

#[test]
fn other_names_in_the_directory_are_let_alone() {
    let (disk, end, _) = closed();
    let names = [
        "1.log",
        "0000000000000000000x.log",
        "00000000000000000000.LOG",
        "99999999999999999999.log",
        "000000000000000000000.log",
        "notes.txt",
        ".log",
    ];
    for name in names {
        overwrite(&disk, &dir().join(name), b"what is this");
    }
    disk.create_dir_all(&dir().join("00000000000000009999.log"))
        .unwrap();
    let (mut log, _) = open(&disk, small(), Some(end)).unwrap();
    log.trim(offset(30), offset(40)).unwrap();
    assert_eq!(read_until_refused(&log).0, 40);
    for name in names {
        assert!(disk.files().contains(&dir().join(name)));
    }
}

#[test]
fn a_trim_that_was_interrupted_anywhere_is_finished_and_other_gaps_are_refused() {
    let (disk, end, bases) = closed();
    let before: Vec<_> = bases
        .iter()
        .map(|base| disk.contents(&segment(*base)))
        .collect();
    let (mut log, _) = open(&disk, small(), Some(end)).unwrap();
    log.trim(offset(bases[3]), end.offset).unwrap();
    let end = log.close().unwrap();
    // Any of the removed files may be back after power loss.
    for back in 0..8_usize {
        let disk = disk.fork(1);
        for (at, bytes) in before[..3].iter().enumerate() {
            if back & (1 << at) != 0 {
                overwrite(&disk, &segment(bases[at]), bytes);
            }
        }
        let (log, _) = open(&disk, small(), Some(end)).unwrap();
        assert_eq!(log.reader().log_start(), offset(bases[3]));
        let first = log.reader().segments()[0].base_offset;
        assert_eq!(first, offset(bases[3]), "what is back is removed again");
        assert!(!disk.files().contains(&segment(bases[0])));
    }
    disk.remove(&segment(bases[3]));
    assert!(matches!(
        refused(&disk, Some(end)).what,
        Damage::MissingSegment { sequence: 4 }
    ));
}

#[test]
fn hot_reads_of_other_parts_go_on_beside_damage() {
    let disk = disk();
    let mut log = create(&disk, large());
    append(&mut log, batch(1, 100));
    let end = log.close().unwrap();
    disk.flip_bit(&segment(0), HEADER + 80, 1);
    let (mut log, _) = open(&disk, large(), Some(end)).unwrap();
    append(&mut log, batch(1, 100));
    log.sync().unwrap();
    assert!(matches!(
        log.reader().read(offset(1), offset(2), 10),
        Ok(Found::Ready(_))
    ));
    let error = read(&log.reader(), Offset::ZERO, offset(2), 10).unwrap_err();
    let shown = error.to_string();
    assert!(
        shown.contains("00000000000000000000.log") && shown.contains("position 251"),
        "{shown}"
    );
    assert!(shown.contains("offset 0"), "{shown}");
}
