//! The log goes on while it is copied: appended to, trimmed, compacted, rolled.

use tidelog_log::catch_up::SourceError;

use super::*;

#[test]
fn what_is_trimmed_or_compacted_meanwhile_is_copied_all_the_same() {
    for compacts in [false, true] {
        let mut original = Original::new(small());
        original.append(60);
        original.commit();
        let source = original.source();
        let before = committed_bytes(&original.log);
        let disk = fresh(2);
        let mut staging = stage(&disk, source.manifest()).unwrap();
        pump(&source, &mut staging, 500, 3).unwrap();
        original.append(9);
        original.commit();
        let first = original.log.first_index();
        if compacts {
            let options = compaction(&original.log, 100);
            compact(&mut original.log, options).unwrap();
        } else {
            original.trim(100);
            original.log.take_removed();
        }
        assert!(original.log.first_index() > first);
        pump(&source, &mut staging, 500, usize::MAX).unwrap();
        staging
            .finish()
            .unwrap()
            .adopt(Old::Nothing, |_| Ok(()))
            .unwrap();
        let log = Recorded::of(source.manifest()).open(&disk);
        assert_eq!(committed_bytes(&log), before);
    }
}

/// More segments than are held open: another source goes on from what there is.
#[test]
fn segments_that_nobody_held_are_gone_and_another_source_goes_on() {
    let mut original = Original::new(with_segments(700));
    original.append(230);
    original.commit();
    let source = original.source();
    let segments = source.manifest().files() - 2;
    assert!(segments > 100, "{segments}");
    let disk = fresh(2);
    let mut staging = stage(&disk, source.manifest()).unwrap();
    pump(&source, &mut staging, 1 << 20, 10).unwrap();
    // The log start lies in a segment that was copied, the newest ones are compacted.
    original.trim(7);
    original.append(9);
    original.commit();
    let options = compaction(&original.log, 100);
    compact(&mut original.log, options).unwrap();
    let gone = loop {
        let wanted = staging.next().unwrap();
        match source.read(wanted.file, wanted.position, wanted.len_max) {
            Ok(bytes) => staging.write(wanted.file, wanted.position, &bytes).unwrap(),
            Err(e) => break e,
        }
    };
    assert!(
        matches!(gone, SourceError::Gone { file } if file >= 64),
        "{gone}"
    );

    let source = original.source();
    let mut staging = stage(&disk, source.manifest()).unwrap();
    pump(&source, &mut staging, 1 << 20, usize::MAX).unwrap();
    staging
        .finish()
        .unwrap()
        .adopt(Old::Nothing, |_| Ok(()))
        .unwrap();
    let log = Recorded::of(source.manifest()).open(&disk);
    check_copy(&original, &log, source.manifest());
}

#[test]
fn another_manifest_fetches_only_what_is_new() {
    let mut original = Original::of_all_kinds();
    let source = original.source();
    let disk = fresh(2);
    let mut staging = stage(&disk, source.manifest()).unwrap();
    pump(&source, &mut staging, 500, usize::MAX).unwrap();
    staging.finish().unwrap();
    let first = source.manifest().clone();
    let position = u64::from(first.end().position);
    original.sent.clear();
    original.commit();
    let source = original.source();
    let manifest = source.manifest();
    let mut staging = stage(&disk, manifest).unwrap();
    let wanted = staging.next().unwrap();
    assert_eq!(
        (wanted.file, wanted.position),
        (first.files() - 3, position),
        "the newest segment goes on"
    );
    pump(&source, &mut staging, 500, usize::MAX).unwrap();
    staging
        .finish()
        .unwrap()
        .adopt(Old::Nothing, |_| Ok(()))
        .unwrap();
    let log = Recorded::of(manifest).open(&disk);
    assert_eq!(log.end(), manifest.end());
    assert_eq!(committed_bytes(&log), committed_bytes(&original.log));
}

/// Where the commit is the end of a sealed segment, which may be compacted by then.
#[test]
fn a_commit_at_a_segment_border_is_a_place_in_the_next_one() {
    for compacts in [false, true] {
        let mut original = Original::new(small());
        original.append(30);
        original.commit();
        original.log.roll(at(0)).unwrap();
        if compacts {
            let options = compaction(&original.log, 100);
            compact(&mut original.log, options).unwrap();
        }
        let source = original.source();
        let end = source.manifest().end();
        assert_eq!(u64::from(end.position), HEADER);
        assert_eq!(end.index, original.log.end_index());
        let disk = fresh(2);
        let (_, log) = copy(&source, &disk);
        check_copy(&original, &log, source.manifest());
    }
}

#[test]
fn every_commit_makes_a_copy() {
    let mut original = Original::new(small());
    original.append(3);
    original.internal(InternalKind::LogStart(offset(3)));
    original.append(20);
    begin(&mut original.log, 9);
    original.append(4);
    original.log.sync().unwrap();
    for commit in 6..original.log.end_index().get() {
        original.log.commit_to(at_index(commit));
        let source = original.source();
        assert_eq!(source.manifest().commit().get(), commit);
        let disk = fresh(commit);
        let (_, log) = copy(&source, &disk);
        assert_eq!(log.end(), source.manifest().end());
        assert_eq!(committed_bytes(&log), committed_bytes(&original.log));
        let epochs = original.log.reader().epochs();
        let epochs: Vec<_> = epochs
            .into_iter()
            .filter(|e| e.index.get() <= commit)
            .collect();
        assert_eq!(log.reader().epochs(), epochs);
    }
}

/// Internal entries at the end of a segment take no offset, and may be taken back.
#[test]
fn compaction_touches_no_segment_with_entries_that_are_not_committed() {
    let mut original = Original::new(small());
    original.append(8);
    let records = original.log.end();
    original.internal(InternalKind::RaftConfChange(Bytes::from_static(b"conf")));
    let internal = original.log.end();
    original.log.roll(at(0)).unwrap();
    original.append(1);
    original.log.sync().unwrap();
    let dirty_at = |original: &mut Original, next: u64| {
        original.log.commit_to(at_index(next - 1));
        let end_max = original.log.reader().committed_offset();
        assert_eq!(end_max, records.offset);
        let dirty = original.log.reader().compactable(at(100), 0, end_max);
        dirty.dirty_bytes
    };
    let segments = original.log.reader().segments();
    let upto_last: u64 = segments[..segments.len() - 2].iter().map(|s| s.len).sum();
    assert_eq!(dirty_at(&mut original, records.index.get()), upto_last);
    let all = upto_last + u64::from(internal.position);
    assert_eq!(dirty_at(&mut original, internal.index.get()), all);
}
