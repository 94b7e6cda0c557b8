//! What is in each segment, and whether the files beside it and the state file agree.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tidelog_disk::{Disk, DiskError, read_up_to};
use tidelog_record::{Batch, LeaderEpoch, Offset, RaftIndex, Timestamp};

use super::compacted::{any_compacted, looks_compacted};
use super::partition::{Check, SegmentReport, SidecarReport};
use super::scanner::{Passed, Scanner};
use super::segments::SegmentFile;
use super::sidecars::{Mark, Namer, judge_index, read_index, wrong_place};
use super::{Depth, Problem, Severity, What};
use crate::error::Damage;
use crate::found::Candidate;
use crate::header::{COMPACTED_HEADER_LEN, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::lookup::start_of;
use crate::producers::ProducerTable;
use crate::segment::{LogEnd, SEGMENT_BYTES_LIMIT, Segment};
use crate::time::STORED_LIMITS;
use crate::walk::{BATCH_BYTES_LIMIT, WalkError};

/// The walk through all segments.
pub(super) struct Content<'a> {
    disk: &'a Arc<dyn Disk>,
    dir: &'a Path,
    depth: Depth,
    /// Those whose segment is still to come.
    pub(super) snapshots: VecDeque<Mark>,
    /// The producers where the walk stands.
    pub(super) producers: ProducerTable,
    /// The last place of which an index says what was found there.
    pub(super) agreed: LogEnd,
    /// The first entry of a compacted segment's index of which that is not so.
    pub(super) disagreeing: Option<Mark>,
}

/// What is known of a segment's end before it is walked.
struct Expected<'f> {
    /// The header of the segment that follows.
    next: Option<&'f SegmentHeader>,
    sealed: bool,
    limit: u64,
}

impl<'a> Content<'a> {
    pub(super) fn new(
        disk: &'a Arc<dyn Disk>,
        dir: &'a Path,
        depth: Depth,
        snapshots: VecDeque<Mark>,
    ) -> Self {
        Self {
            disk,
            dir,
            depth,
            snapshots,
            producers: ProducerTable::default(),
            agreed: start_without_header(Offset::ZERO, false),
            disagreeing: None,
        }
    }

    /// Walks segment `number` of `files`.
    pub(super) fn segment(
        &mut self,
        check: &mut Check<'_>,
        files: &[SegmentFile],
        number: usize,
    ) -> Result<(), DiskError> {
        let file = &files[number];
        // A compacted segment is never appended to.
        let sealed = number + 1 < files.len() || file.compacted().is_some();
        let header = file.header.as_ref().ok();
        check.report.segments.push(SegmentReport {
            path: file.path.clone(),
            base_offset: file.base,
            header: header.map(|candidate| candidate.header.clone()),
            sealed,
            len: file.len,
            end: None,
            batches: 0,
            records: 0,
            internal_entries: 0,
            max_timestamp: None,
            first_epoch: header.map(|candidate| candidate.header.epoch),
            index: SidecarReport::Missing,
            index_entries: 0,
            damaged: 0,
        });
        check.ends.push(None);
        let Some(handle) = file.open(&**self.disk)? else {
            let what = What::Left("it was removed or compacted meanwhile");
            check.tell(Problem::note(&file.path, 0, what));
            return Ok(());
        };
        let (start, compacted) = match &file.header {
            Ok(candidate) => (start_of_candidate(file, candidate), file.compacted()),
            Err(corruption) => {
                let good = number.checked_sub(1).and_then(|before| check.ends[before]);
                let problem = Problem {
                    severity: Severity::Damage,
                    path: corruption.path.clone(),
                    position: corruption.position,
                    offset: Some(corruption.offset),
                    what: What::Header(corruption.clone()),
                };
                check.damaged(number, good, problem);
                let bytes = read_up_to(&*handle, 0, COMPACTED_HEADER_LEN)?;
                let compacted = looks_compacted(&bytes).then(|| any_compacted(file.len));
                (
                    start_without_header(file.base, compacted.is_some()),
                    compacted,
                )
            }
        };
        let expected = expected(files, number, sealed);
        let limit = expected.limit;
        let mut scanner = Scanner::new(handle, start, compacted, limit, self.depth);
        scanner.is_whole = header.is_some();
        match self.walk(check, file, number, &mut scanner, &expected) {
            Ok(()) => Ok(()),
            Err(e) => {
                let offset = Some(scanner.end.offset);
                let mut problem = Problem::reading(e, offset)?;
                problem.position = scanner.position();
                let good = scanner.is_whole.then_some(scanner.end);
                check.damaged(number, good, problem);
                Ok(())
            }
        }
    }

    fn walk(
        &mut self,
        check: &mut Check<'_>,
        file: &SegmentFile,
        number: usize,
        scanner: &mut Scanner,
        expected: &Expected<'_>,
    ) -> Result<(), DiskError> {
        let header = file.header.as_ref().ok().map(|candidate| &candidate.header);
        let sequence = header.map(|header| header.sequence);
        let mut marks = Vec::new();
        let mut index = None;
        if let Some(header) = header {
            let limit = expected.limit;
            index = Some(read_index(
                &**self.disk,
                self.dir,
                header,
                limit,
                &mut marks,
            )?);
            check.report.segments[number].internal_entries += 1;
        } else if scanner.go_on()?.is_none() {
            return Ok(());
        }
        let checkpoint = check.known_checkpoint();
        // Places in what a compacted segment stands for are not in it.
        let is_compacted = header.is_some_and(|header| header.compacted.is_some());
        let sequence = sequence.filter(|_| !is_compacted);
        let mine = checkpoint.filter(|checkpoint| Some(checkpoint.sequence) == sequence);
        marks.extend(mine.map(|place| Mark {
            namer: Namer::Checkpoint,
            path: file.path.as_path().into(),
            place,
        }));
        while let Some(at) = self
            .snapshots
            .iter()
            .position(|mark| Some(mark.place.sequence) == sequence)
        {
            marks.extend(self.snapshots.remove(at));
        }
        marks.sort_by_key(|mark| mark.place.position);
        let mut marks = VecDeque::from(marks);
        if is_compacted {
            // The last batch of a producer may be one that was left out.
            self.producers = ProducerTable::default();
            self.agreed = scanner.end;
            self.disagreeing = None;
        }

        let mut good = scanner.end;
        loop {
            self.compare(check, number, scanner, &good, &mut marks);
            if scanner.is_at_limit() {
                break;
            }
            let before = scanner.position();
            match scanner.step() {
                Ok(passed) => {
                    good = passed.before;
                    self.take(check, file, number, scanner, &passed)?;
                    check.passed(scanner.position() - before);
                }
                Err(WalkError::Disk(e)) => return Err(e),
                Err(WalkError::Damage(what)) => {
                    let mine = mine.map(|mine| u64::from(mine.position));
                    let durable = match (checkpoint, mine) {
                        (None, _) => None,
                        (Some(_), Some(position)) => Some(position),
                        // The checkpoint lies in another segment: only what is sealed is durable.
                        (Some(_), None) => Some(0),
                    };
                    if !self.end_or_damage(check, file, number, scanner, expected, durable, what)? {
                        break;
                    }
                    check.passed(scanner.position() - before);
                }
            }
        }
        if let Some(compacted) = file.compacted() {
            self.compacted_ended(check, file, number, scanner, &compacted);
        }
        self.ended(check, file, number, scanner, expected);
        self.left_over(check, number, marks);
        if let Some(index) = index {
            judge_index(check, number, &index, scanner.is_whole, expected.sealed);
        }
        Ok(())
    }

    /// Notes a batch that was passed, and looks at its records.
    fn take(
        &mut self,
        check: &mut Check<'_>,
        file: &SegmentFile,
        number: usize,
        scanner: &mut Scanner,
        passed: &Passed,
    ) -> Result<(), DiskError> {
        check.seen.append(&mut scanner.epochs);
        let report = &mut check.report.segments[number];
        if passed.internal.is_some() {
            report.internal_entries += 1;
            check.report.log_start = check.report.log_start.max(scanner.end.log_start);
            return Ok(());
        }
        report.batches += 1;
        report.records += u64::from(passed.header.record_count.unsigned_abs());
        let time = Timestamp::from_millis(passed.header.max_timestamp);
        report.max_timestamp = report.max_timestamp.max(Some(time));
        if file.compacted().is_none() {
            self.producers.note(&passed.header, passed.base, None);
        }
        if self.depth == Depth::Everything {
            let at = u64::from(passed.before.position);
            let bytes = scanner.window.bytes(at, passed.header.total_len())?;
            if let Err(what) = check_records(Bytes::copy_from_slice(bytes)) {
                let good = scanner.is_whole.then_some(passed.before);
                let problem = Problem {
                    severity: Severity::Damage,
                    path: file.path.clone(),
                    position: at,
                    offset: Some(passed.base),
                    what,
                };
                check.damaged(number, good, problem);
            }
        }
        Ok(())
    }

    /// What stands at the scanner's place is no batch that must come next: says whether to go on
    /// behind it.
    #[allow(clippy::too_many_arguments, reason = "one place in one walk")]
    fn end_or_damage(
        &mut self,
        check: &mut Check<'_>,
        file: &SegmentFile,
        number: usize,
        scanner: &mut Scanner,
        expected: &Expected<'_>,
        durable: Option<u64>,
        what: Damage,
    ) -> Result<bool, DiskError> {
        let at = scanner.position();
        let used = scanner.window.used(at, expected.limit)?;
        let is_unknown = matches!(
            what,
            Damage::Internal(crate::internal::InternalError::Unknown { .. })
        );
        if !expected.sealed && durable.is_none_or(|durable| at >= durable) && !is_unknown {
            if used == 0 {
                return Ok(false);
            }
            // Without a checkpoint nobody knows what was durable; whole batches behind speak for
            // damage.
            let (end, was_whole) = (scanner.end, scanner.is_whole);
            let goes_on = durable.is_none() && scanner.go_on()?.is_some() && scanner.step().is_ok();
            scanner.epochs.clear();
            scanner.end = end;
            scanner.is_whole = was_whole;
            if !goes_on {
                let what = What::TornTail { bytes: used };
                let mut problem = Problem::note(&file.path, at, what);
                problem.offset = Some(end.offset);
                check.tell(problem);
                check.tail = Some((file.path.clone(), at));
                return Ok(false);
            }
        }
        let offset = Some(scanner.end.offset);
        let good = scanner.is_whole.then_some(scanner.end);
        check.damaged(number, good, Problem::damage(&file.path, at, offset, what));
        match scanner.go_on()? {
            Some(0) => Ok(true),
            Some(bytes) => {
                let mut problem = Problem::note(&file.path, at, What::Skipped { bytes });
                problem.offset = offset;
                check.tell(problem);
                Ok(true)
            }
            None => {
                let bytes = used.max(1).min(expected.limit - at);
                let mut problem = Problem::note(&file.path, at, What::Unreadable { bytes });
                problem.offset = offset;
                check.tell(problem);
                Ok(false)
            }
        }
    }

    /// Compares the marks that the walk has come to with what it found.
    fn compare(
        &mut self,
        check: &mut Check<'_>,
        number: usize,
        scanner: &Scanner,
        before: &LogEnd,
        marks: &mut VecDeque<Mark>,
    ) {
        while marks
            .front()
            .is_some_and(|mark| mark.place.position <= scanner.end.position)
        {
            let Some(mark) = marks.pop_front() else {
                return;
            };
            if !scanner.is_whole {
                continue;
            }
            let agrees = mark.agrees(&scanner.end);
            match mark.namer {
                Namer::Producers(producers) if agrees => {
                    check.report.snapshots.push((mark.place.offset, true));
                    self.producers = *producers;
                }
                _ if agrees => self.agreed = scanner.end,
                // Who is wrong, the index or a base offset, shows at the end.
                Namer::Index(_) if scanner.is_compacted() => {
                    self.disagreeing.get_or_insert(mark);
                }
                Namer::Checkpoint => {
                    let what = "the sync checkpoint";
                    let problem = Problem {
                        severity: Severity::Damage,
                        path: mark.path.to_path_buf(),
                        position: u64::from(mark.place.position),
                        offset: Some(mark.place.offset),
                        what: What::WrongPlace { what },
                    };
                    check.damaged(number, Some(*before), problem);
                }
                _ => wrong_place(check, number, &mark),
            }
        }
    }

    /// The walk has ended: is this where the segment ends?
    fn ended(
        &mut self,
        check: &mut Check<'_>,
        file: &SegmentFile,
        number: usize,
        scanner: &Scanner,
        expected: &Expected<'_>,
    ) {
        let end = scanner.end;
        check.report.segments[number].end = Some(end);
        check.ends[number] = Some(end);
        let Some(previous) = expected.next.and_then(|next| next.previous) else {
            return self.reaches_checkpoint(check, file, number, scanner);
        };
        let is_mine = file
            .header
            .as_ref()
            .is_ok_and(|candidate| candidate.header.last_sequence() == previous.sequence);
        if !scanner.is_whole || !is_mine {
            return;
        }
        // The length and the chain of what a compacted segment stands for are not its own.
        let is_compacted = file.compacted().is_some();
        let what = if is_compacted {
            if end.epoch == previous.last_epoch {
                return;
            }
            Damage::NotContinued("it does not end in the leader epoch that the next one says")
        } else if file.len != previous.len {
            Damage::Short {
                len: file.len,
                durable: previous.len,
            }
        } else if end.chain != previous.chain {
            Damage::WrongChain {
                found: end.chain,
                expected: previous.chain,
            }
        } else if (end.offset, end.index) != (previous.end_offset, previous.end_index) {
            Damage::NotContinued(
                "it does not end at the offset and Raft index that the next one says",
            )
        } else if end.epoch != previous.last_epoch {
            Damage::NotContinued("it does not end in the leader epoch that the next one says")
        } else {
            return;
        };
        let at = u64::from(end.position);
        let problem = Problem::damage(&file.path, at, Some(end.offset), what);
        check.damaged(number, Some(end), problem);
    }

    /// Whether the newest segment reaches the sync checkpoint.
    fn reaches_checkpoint(
        &self,
        check: &mut Check<'_>,
        file: &SegmentFile,
        number: usize,
        scanner: &Scanner,
    ) {
        let Some(checkpoint) = check.known_checkpoint() else {
            return;
        };
        let durable = u64::from(checkpoint.position);
        let is_mine = checkpoint.sequence == scanner.end.sequence;
        if is_mine && scanner.is_whole && scanner.position() < durable {
            let (at, offset) = (scanner.position(), Some(scanner.end.offset));
            let len = file.len.min(at);
            let what = Damage::Short { len, durable };
            let problem = Problem::damage(&file.path, at, offset, what);
            check.damaged(number, Some(scanner.end), problem);
        }
    }

    /// Marks past the end of what was walked.
    fn left_over(&mut self, check: &mut Check<'_>, number: usize, marks: VecDeque<Mark>) {
        let is_damaged = check.report.segments[number].damaged > 0;
        for mark in marks {
            match mark.namer {
                Namer::Checkpoint => {}
                _ if is_damaged => {}
                _ => wrong_place(check, number, &mark),
            }
        }
    }
}

/// What is known of the end of segment `number`.
fn expected(files: &[SegmentFile], number: usize, sealed: bool) -> Expected<'_> {
    let next = files.get(number + 1);
    let next = next.and_then(|next| next.header.as_ref().ok());
    let next = next.map(|candidate| &candidate.header);
    Expected {
        next,
        sealed,
        limit: files[number].len.min(u64::from(SEGMENT_BYTES_LIMIT)),
    }
}

fn start_of_candidate(file: &SegmentFile, candidate: &Candidate) -> LogEnd {
    let header = candidate.header.clone();
    let segment = Segment::unopened(file.path.clone(), header, candidate.header_len);
    start_of(&segment)
}

/// Where the walk begins behind a header that cannot be read.
fn start_without_header(base: Offset, is_compacted: bool) -> LogEnd {
    let header_len = if is_compacted {
        COMPACTED_HEADER_LEN
    } else {
        SEGMENT_HEADER_LEN
    };
    LogEnd {
        sequence: 0,
        position: u32::try_from(header_len - 1).expect("small"),
        offset: base,
        index: RaftIndex::ZERO,
        epoch: LeaderEpoch::ZERO,
        chain: 0,
        max_timestamp: Timestamp::MIN,
        log_start: Offset::ZERO,
    }
}

/// Looks at every record of a batch.
fn check_records(bytes: Bytes) -> Result<(), What> {
    let batch = Batch::check(bytes, BATCH_BYTES_LIMIT)?;
    let mut last = -1;
    for (number, record) in batch.records(&STORED_LIMITS)?.enumerate() {
        let delta = record?.offset_delta;
        if delta <= last {
            return Err(What::RecordOrder {
                record: u32::try_from(number).unwrap_or(u32::MAX),
                delta,
            });
        }
        last = delta;
    }
    Ok(())
}
