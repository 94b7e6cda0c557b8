//! All files of one partition, looked at to their end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError};
use tidelog_record::{LeaderEpoch, Offset, PartitionId, RaftIndex, Timestamp};

use super::content::Content;
use super::segments::{self, Listing, SegmentFile};
use super::sidecars::{self, Broken};
use super::{Depth, Observer, Problem, Severity, What};
use crate::epochs::EpochStart;
use crate::error::Damage;
use crate::header::{LogIdentity, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::segment::LogEnd;
use crate::state::{BrokerState, GroupKey};

/// What the state file says of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The last recorded durable end.
    pub checkpoint: Option<LogEnd>,
    /// Whether the last stop was clean: then the log ends there.
    pub closed: bool,
    /// The last entry that is recorded as committed; `None` where no group has ever voted on one.
    pub commit: Option<RaftIndex>,
}

/// How a file beside a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidecarReport {
    /// There is none.
    Missing,
    /// It does not agree with the segment, or a part of it does not verify.
    Broken,
    /// Good as far as it goes: it is completed from the segment.
    Partial,
    /// It agrees with the segment up to its end.
    Whole,
}

impl SidecarReport {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Broken => "broken",
            Self::Partial => "partial",
            Self::Whole => "whole",
        }
    }
}

/// What was found of a segment.
#[derive(Clone, Debug)]
pub struct SegmentReport {
    /// Its file.
    pub path: PathBuf,
    /// The offset in the file's name.
    pub base_offset: Offset,
    /// Its header, if that is good.
    pub header: Option<SegmentHeader>,
    /// Whether another one follows it, or must follow it.
    pub sealed: bool,
    /// The length of the file, in bytes, reserved space included.
    pub len: u64,
    /// The place behind the last batch that was passed.
    pub end: Option<LogEnd>,
    /// Batches of records.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Internal entries, the segment's header among them.
    pub internal_entries: u64,
    /// The largest timestamp of a record.
    pub max_timestamp: Option<Timestamp>,
    /// The leader epoch in force at its beginning.
    pub first_epoch: Option<LeaderEpoch>,
    /// How its index is.
    pub index: SidecarReport,
    /// How many entries that has.
    pub index_entries: usize,
    /// How many damaged places were found.
    pub damaged: u64,
}

/// What was found of a partition.
#[derive(Clone, Debug)]
pub struct PartitionReport {
    /// Its directory.
    pub dir: PathBuf,
    /// Whose log it is, as most of the headers say.
    pub identity: Option<LogIdentity>,
    /// Oldest first.
    pub segments: Vec<SegmentReport>,
    /// Where the log starts.
    pub log_start: Offset,
    /// Where it ends, as far as it can be read; a torn tail does not count.
    pub end: Option<LogEnd>,
    /// The leader epochs, from the table and from the segments.
    pub epochs: Vec<EpochStart>,
    /// Snapshots of producers: at which offset, and whether they hold and are of use.
    pub snapshots: Vec<(Offset, bool)>,
    /// Producers known at the end.
    pub producers: usize,
    /// What the state file says, when there is one.
    pub known: Option<Known>,
    /// Damaged places.
    pub damaged: u64,
    /// Derived files that are broken.
    pub derived: u64,
}

/// A check, and what a repair needs to know of it.
pub(super) struct Checked {
    pub(super) report: PartitionReport,
    pub(super) broken: Broken,
    /// A torn tail: the file, and where the log ends in it.
    pub(super) tail: Option<(PathBuf, u64)>,
    /// A segment that was never finished.
    pub(super) unfinished: Option<PathBuf>,
    /// The first damage, in the order of the log.
    pub(super) damage: Option<FirstDamage>,
    pub(super) listing: Listing,
}

/// The first damage in the order of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstDamage {
    /// In which segment, and where in it.
    at: (usize, u64),
    /// The last good place before it; `None` when there is none.
    pub(super) good: Option<LogEnd>,
}

/// Walks all files of the partition in `dir`. `state` is what the state file of its data directory
/// says.
///
/// # Errors
/// When a file cannot be read for another reason than that the device failed, which is told as
/// damage.
pub fn check_partition(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    state: Option<&BrokerState>,
    depth: Depth,
    observer: &mut dyn Observer,
) -> Result<PartitionReport, DiskError> {
    Ok(check(disk, dir, state, depth, observer)?.report)
}

/// Where the log in `dir` is known to be durable, by the state file.
///
/// # Errors
/// When the directory cannot be read.
pub fn checkpoint_of(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    state: Option<&BrokerState>,
) -> Result<Option<LogEnd>, DiskError> {
    let identity = segments::list(disk, dir)?.identity;
    Ok(state.zip(identity).and_then(|(state, identity)| {
        let key = GroupKey {
            topic_id: identity.topic_id,
            partition: identity.partition,
        };
        state.groups.get(&key)?.checkpoint
    }))
}

pub(super) fn check(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    state: Option<&BrokerState>,
    depth: Depth,
    observer: &mut dyn Observer,
) -> Result<Checked, DiskError> {
    let mut listing = segments::list(disk, dir)?;
    let mut check = Check::new(dir, &listing, observer);
    check.names(&listing);
    check.state(state, &listing);
    let files = std::mem::take(&mut listing.segments);
    let files = check.without_unfinished(files);
    check.contents(disk, &listing, &files, depth)?;
    check.order(&files);
    check.checkpoint(&files);
    check.beside(disk, &listing, &files)?;
    Ok(check.finish(listing))
}

/// A check under way.
pub(super) struct Check<'o> {
    pub(super) report: PartitionReport,
    pub(super) broken: Broken,
    pub(super) tail: Option<(PathBuf, u64)>,
    unfinished: Option<PathBuf>,
    damage: Option<FirstDamage>,
    /// The end of each segment.
    pub(super) ends: Vec<Option<LogEnd>>,
    /// Epochs met on the way.
    pub(super) seen: Vec<EpochStart>,
    observer: &'o mut dyn Observer,
}

impl<'o> Check<'o> {
    fn new(dir: &Path, listing: &Listing, observer: &'o mut dyn Observer) -> Self {
        Self {
            report: PartitionReport {
                dir: dir.to_owned(),
                identity: listing.identity,
                segments: Vec::new(),
                log_start: Offset::ZERO,
                end: None,
                epochs: Vec::new(),
                snapshots: Vec::new(),
                producers: 0,
                known: None,
                damaged: 0,
                derived: 0,
            },
            broken: Broken::default(),
            tail: None,
            unfinished: None,
            damage: None,
            ends: Vec::new(),
            seen: Vec::new(),
            observer,
        }
    }

    pub(super) fn tell(&mut self, problem: Problem) {
        match problem.severity {
            Severity::Damage => self.report.damaged += 1,
            Severity::Derived => self.report.derived += 1,
            Severity::Note => {}
        }
        self.observer.problem(problem);
    }

    pub(super) fn passed(&mut self, bytes: u64) {
        self.observer.passed(bytes);
    }

    /// Tells of damage in segment `number`, behind `good`.
    ///
    /// A compacted segment is good as a whole or not at all: nothing can be appended to its rest.
    pub(super) fn damaged(&mut self, number: usize, good: Option<LogEnd>, problem: Problem) {
        let at = (number, problem.position);
        let header = self.report.segments.get(number).map(|s| s.header.as_ref());
        let is_compacted = header.flatten().is_some_and(|h| h.compacted.is_some());
        let good = if is_compacted {
            self.end_before(number)
        } else {
            good
        };
        if self.damage.is_none_or(|first| at < first.at) {
            self.damage = Some(FirstDamage { at, good });
        }
        if let Some(report) = self.report.segments.get_mut(number) {
            report.damaged += 1;
        }
        self.tell(problem);
    }

    /// Where the log ends before segment `number`.
    fn end_before(&self, number: usize) -> Option<LogEnd> {
        number.checked_sub(1).and_then(|before| self.ends[before])
    }

    fn names(&mut self, listing: &Listing) {
        for path in &listing.torn {
            let what = What::Left("a torn tail that an earlier start cut, kept for a look");
            self.tell(Problem::note(path, 0, what));
        }
        for path in &listing.unfinished {
            let what = What::Left("a file in the making; the next start removes it");
            self.tell(Problem::note(path, 0, what));
        }
        for base in &listing.replaced {
            let path = crate::segment::segment_path(&self.report.dir, *base);
            let what = "a segment that a compacted one stands for; the next start removes it";
            self.tell(Problem::note(&path, 0, What::Left(what)));
        }
        for path in &listing.others {
            let what = What::Left("this is no file of a log; it is let alone");
            self.tell(Problem::note(path, 0, what));
        }
        if listing.segments.is_empty() {
            let what = What::Left("there is no segment in it");
            let dir = self.report.dir.clone();
            self.tell(Problem::note(&dir, 0, what));
        }
    }

    /// What the state file says of this log, and whether it is this log that it means.
    fn state(&mut self, state: Option<&BrokerState>, listing: &Listing) {
        let (Some(state), Some(identity)) = (state, listing.identity) else {
            return;
        };
        let dir = self.report.dir.clone();
        let key = GroupKey {
            topic_id: identity.topic_id,
            partition: identity.partition,
        };
        let foreign = |what| Problem::damage(&dir, 0, None, Damage::Foreign(what));
        if identity.cluster_id != state.identity.cluster_id {
            self.damaged(0, None, foreign("another cluster's"));
            return;
        }
        if number_in(&dir).is_some_and(|number| number != identity.partition) {
            self.damaged(
                0,
                None,
                foreign("not the partition in the directory's name"),
            );
        }
        let Some(group) = state.groups.get(&key) else {
            let what = What::Left(
                "the state file does not know this log: its topic was deleted, or it was never finished",
            );
            self.tell(Problem::note(&dir, 0, what));
            return;
        };
        // A group that went on without a majority has a later one, and the same log.
        if group.incarnation < identity.incarnation {
            self.damaged(0, None, foreign("another incarnation's"));
        }
        self.report.known = Some(Known {
            checkpoint: group.checkpoint,
            closed: state.clean,
            commit: (group.term > 0).then_some(RaftIndex::new(group.commit)),
        });
    }

    pub(super) fn known_checkpoint(&self) -> Option<LogEnd> {
        self.report.known.and_then(|known| known.checkpoint)
    }

    /// The segments without the newest file where that is what an interrupted roll leaves behind.
    fn without_unfinished(&mut self, mut files: Vec<SegmentFile>) -> Vec<SegmentFile> {
        let Some(newest) = files.last() else {
            return files;
        };
        let Err(corruption) = &newest.header else {
            return files;
        };
        let before = files.len().checked_sub(2).map(|at| &files[at].header);
        let durable_elsewhere = match (self.known_checkpoint(), before) {
            (None, _) => true,
            (Some(checkpoint), Some(Ok(before))) => before.header.sequence >= checkpoint.sequence,
            (Some(_), _) => false,
        };
        let is_unfinished = matches!(corruption.what, Damage::Batch(_))
            && durable_elsewhere
            && newest.len <= SEGMENT_HEADER_LEN as u64;
        if is_unfinished && let Some(newest) = files.pop() {
            self.tell(Problem::note(&newest.path, 0, What::Unfinished));
            self.unfinished = Some(newest.path);
        }
        files
    }

    /// Walks every segment.
    fn contents(
        &mut self,
        disk: &Arc<dyn Disk>,
        listing: &Listing,
        files: &[SegmentFile],
        depth: Depth,
    ) -> Result<(), DiskError> {
        let dir = self.report.dir.clone();
        for file in files {
            if let Ok(candidate) = &file.header {
                let start = candidate.header.log_start;
                self.report.log_start = self.report.log_start.max(start);
            }
        }
        if let Some(checkpoint) = self.known_checkpoint() {
            self.report.log_start = self.report.log_start.max(checkpoint.log_start);
        }
        let mut told = Vec::new();
        let broken = &mut self.broken;
        let snapshots = sidecars::read_producers(&**disk, &dir, listing, broken, &mut told)?;
        for problem in told {
            self.report
                .snapshots
                .extend(problem.path.file_stem().and_then(|stem| {
                    let offset = stem.to_str()?.parse().ok().and_then(Offset::new)?;
                    Some((offset, false))
                }));
            self.tell(problem);
        }
        let mut content = Content::new(disk, &dir, depth, snapshots);
        for number in 0..files.len() {
            content.segment(self, files, number)?;
        }
        self.report.producers = content.producers.len();
        for mark in content.snapshots {
            let sequence = mark.place.sequence;
            let is_within = |file: &SegmentFile| {
                let header = file.header.as_ref().ok().map(|candidate| &candidate.header);
                header.is_some_and(|header| {
                    header.compacted.is_some()
                        && (header.sequence..=header.last_sequence()).contains(&sequence)
                })
            };
            if files.iter().any(is_within) {
                let what =
                    "a snapshot of producers of before a compaction; it is not used any more";
                self.tell(Problem::note(&mark.path, 0, What::Left(what)));
                self.report.snapshots.push((mark.place.offset, false));
                continue;
            }
            let what = "the snapshot of producers is of a segment that is not there";
            self.tell(Problem::derived(&mark.path, 0, what));
            self.report.snapshots.push((mark.place.offset, false));
            self.broken.aside(&mark.path);
        }
        self.report.snapshots.sort_unstable();
        Ok(())
    }

    /// Whether the segments follow each other, from the log start on.
    fn order(&mut self, files: &[SegmentFile]) {
        let log_start = self.report.log_start;
        for (number, file) in files.iter().enumerate() {
            let Ok(next) = &file.header else { continue };
            let before = number.checked_sub(1).map(|before| &files[before]);
            let offset = Some(file.base);
            let good = self.end_before(number);
            let previous = match (before, next.header.previous) {
                // Without a segment before it, the log start must lie in it.
                (None, previous) => {
                    if file.base > log_start {
                        let sequence = previous.map_or(next.header.sequence, |p| p.sequence);
                        self.missing(number, None, sequence, log_start);
                    }
                    continue;
                }
                (Some(_), None) => {
                    let what = "it says it is the first, and there are older ones";
                    let what = Damage::NotContinued(what);
                    let problem = Problem::damage(&file.path, 0, offset, what);
                    self.damaged(number, good, problem);
                    continue;
                }
                (Some(_), Some(previous)) => previous,
            };
            let Some(Ok(older)) = before.map(|before| &before.header) else {
                continue;
            };
            if older.header.last_sequence() == previous.sequence {
                let meets = older.header.compacted.is_none_or(|it| {
                    (it.end_offset, it.end_index) == (previous.end_offset, previous.end_index)
                });
                let meets_next = previous.end_offset == file.base
                    && previous.end_index == next.header.base_index;
                if !meets || !meets_next {
                    let what = Damage::NotContinued("offsets or Raft indexes do not meet");
                    let problem = Problem::damage(&file.path, 0, offset, what);
                    self.damaged(number, good, problem);
                }
            } else if file.base <= log_start {
                let what = What::Left("it lies below the log start; the next start removes it");
                let path = before.map_or(&file.path, |before| &before.path);
                self.tell(Problem::note(path, 0, what));
            } else {
                let expected = good.map_or(file.base, |good| good.offset);
                self.missing(number, good, previous.sequence, expected);
            }
        }
    }

    fn missing(&mut self, number: usize, good: Option<LogEnd>, sequence: u64, offset: Offset) {
        let dir = self.report.dir.clone();
        let what = Damage::MissingSegment { sequence };
        let problem = Problem::damage(&dir, 0, Some(offset), what);
        self.damaged(number, good, problem);
    }

    /// Whether the segment is there that the checkpoint lies in, and one that is appended to.
    fn checkpoint(&mut self, files: &[SegmentFile]) {
        let last = files.last().and_then(|file| file.header.as_ref().ok());
        if let Some((last, compacted)) = last.and_then(|l| Some((l, l.header.compacted?))) {
            let good = self.end_before(files.len());
            let sequence = last.header.last_sequence().saturating_add(1);
            self.missing(files.len(), good, sequence, compacted.end_offset);
            return;
        }
        let Some(checkpoint) = self.known_checkpoint() else {
            return;
        };
        let newest = files
            .iter()
            .rev()
            .find_map(|file| file.header.as_ref().ok());
        if newest.is_none_or(|newest| newest.header.sequence < checkpoint.sequence)
            && files.iter().all(|file| file.header.is_ok())
        {
            let good = self.end_before(files.len());
            let (sequence, offset) = (checkpoint.sequence, checkpoint.offset);
            self.missing(files.len(), good, sequence, offset);
        }
    }

    /// The epoch table, and indexes of no segment.
    fn beside(
        &mut self,
        disk: &Arc<dyn Disk>,
        listing: &Listing,
        files: &[SegmentFile],
    ) -> Result<(), DiskError> {
        let dir = self.report.dir.clone();
        for base in &listing.indexes {
            let is_replaced = files.iter().any(|file| {
                let end = file.compacted().map(|compacted| compacted.end_offset);
                file.base < *base && end.is_some_and(|end| *base < end)
            });
            let path = crate::segment::index_path(&dir, *base);
            if is_replaced {
                let what = What::Left("the index of a segment that a compacted one stands for");
                self.tell(Problem::note(&path, 0, what));
            } else if files.iter().all(|file| file.base != *base) {
                let what = "the index is of a segment that is not there";
                self.tell(Problem::derived(&path, 0, what));
                self.broken.aside(&path);
            }
        }
        let Some(Ok(first)) = files.first().map(|file| &file.header) else {
            return Ok(());
        };
        let mut at_start = LogEnd::after_header(&first.header, &[0; SEGMENT_HEADER_LEN]);
        at_start.position = first.header_len;
        let is_whole = self.damage.is_none();
        let (seen, broken) = (&self.seen, &mut self.broken);
        // A log that was closed has written the beginnings that nobody takes back any more.
        let closed = self.report.known.filter(|known| is_whole && known.closed);
        let lasting = closed.map_or(0, |known| {
            let lasts =
                |epoch: &EpochStart| known.commit.is_none_or(|commit| epoch.index <= commit);
            seen.partition_point(lasts)
        });
        let (table, problem) =
            sidecars::check_epochs(&**disk, &dir, seen, &at_start, lasting, broken)?;
        // What the segments do not tell any more, and what they do.
        let before = table.entries().iter().filter(|e| e.index < at_start.index);
        self.report.epochs = before.copied().chain(self.seen.iter().copied()).collect();
        // With a hole in the log nobody can say which epochs began in it.
        if let Some(problem) = problem {
            if is_whole {
                self.tell(problem);
            } else {
                self.broken.aside.retain(|path| *path != problem.path);
            }
        }
        Ok(())
    }

    fn finish(mut self, listing: Listing) -> Checked {
        self.report.end = self.ends.last().copied().flatten();
        if let Some(end) = self.report.end {
            self.report.log_start = self.report.log_start.max(end.log_start);
        }
        Checked {
            report: self.report,
            broken: self.broken,
            tail: self.tail,
            unfinished: self.unfinished,
            damage: self.damage,
            listing,
        }
    }
}

/// The partition in the name of its directory.
fn number_in(dir: &Path) -> Option<PartitionId> {
    let (_, number) = dir.file_name()?.to_str()?.rsplit_once('-')?;
    number.parse().ok().map(PartitionId::new)
}
