//! One batch after the other, up to the first problem.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tidelog_disk::{Disk, DiskError};
use tidelog_record::{Batch, Offset, RaftIndex};

use super::scanner::Scanner;
use super::segments::{self, SegmentFile};
use super::{Depth, Problem, What};
use crate::found::Candidate;
use crate::header::CompactedSegment;
use crate::internal::InternalEntry;
use crate::lookup::start_of;
use crate::segment::{LogEnd, Segment};
use crate::walk::{BATCH_BYTES_LIMIT, WalkError};

/// How often the segments are listed again that a broker compacts meanwhile.
const LISTED_MAX: usize = 64;

/// Why a dump ended before its end.
#[derive(Debug, Error)]
pub enum DumpError {
    /// It cannot go on behind this.
    #[error("{0}")]
    Problem(Problem),
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// One batch of a log, or an internal entry.
#[derive(Clone, Debug)]
pub struct DumpedBatch {
    /// The file.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub position: u64,
    /// The offset of its first record; of the next one, for an internal entry.
    pub offset: Offset,
    /// Its Raft index; not known of records in a compacted segment.
    pub index: Option<RaftIndex>,
    /// What it is, its checksum checked.
    pub batch: Batch,
    /// Set for an internal entry.
    pub internal: Option<InternalEntry>,
}

/// Gives the batches of a partition, in order.
pub struct Dump {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    files: VecDeque<SegmentFile>,
    /// How often they were listed again.
    listed: usize,
    now: Option<Now>,
    from: Offset,
    /// What of the newest segment is known to be durable.
    checkpoint: Option<LogEnd>,
    is_over: bool,
}

impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dump")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

/// The segment under way.
struct Now {
    path: PathBuf,
    scanner: Scanner,
    sealed: bool,
    last_sequence: u64,
}

impl Now {
    /// A compacted segment is never the last: nothing can be appended to it.
    fn may_be_last(&self) -> Result<bool, DumpError> {
        if self.scanner.is_compacted() {
            return Err(self.missing_behind(&self.path));
        }
        Ok(false)
    }

    fn missing_behind(&self, path: &Path) -> DumpError {
        let sequence = self.last_sequence.saturating_add(1);
        let what = crate::Damage::MissingSegment { sequence };
        let offset = Some(self.scanner.end.offset);
        DumpError::Problem(Problem::damage(path, 0, offset, what))
    }
}

/// Whether the offsets of a compacted segment rise and its batch headers add up: else a base offset
/// is wrong, perhaps that of a batch before. Other damage shows where it is.
fn check_chain(
    path: &Path,
    mut scanner: Scanner,
    compacted: &CompactedSegment,
) -> Result<(), DumpError> {
    let start = scanner.end;
    while !scanner.is_at_limit() {
        match scanner.step() {
            Ok(_) => {}
            Err(WalkError::Damage(what @ crate::Damage::WrongOffset { .. })) => {
                let (position, offset) = (scanner.position(), Some(scanner.end.offset));
                let problem = Problem::damage(path, position, offset, what);
                return Err(DumpError::Problem(problem));
            }
            Err(WalkError::Damage(_)) => return Ok(()),
            Err(WalkError::Disk(e)) => return Err(e.into()),
        }
    }
    let (found, expected) = (scanner.end.chain, compacted.chain);
    if found == expected {
        return Ok(());
    }
    let what = crate::Damage::WrongChain { found, expected };
    let position = u64::from(start.position);
    let problem = Problem::damage(path, position, Some(start.offset), what);
    Err(DumpError::Problem(problem))
}

impl Dump {
    /// The batches of the log in `dir` that reach to `from` or beyond. `checkpoint` is where the
    /// log is known to be durable: only above it may a tail be torn.
    ///
    /// # Errors
    /// When the directory cannot be read, and [`DumpError::Problem`] when there is no log in it.
    pub fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        from: Offset,
        checkpoint: Option<LogEnd>,
    ) -> Result<Self, DumpError> {
        let files = files_from(disk, dir, from)?;
        if files.is_empty() {
            let what = What::Left("there is no segment in it");
            return Err(DumpError::Problem(Problem::note(dir, 0, what)));
        }
        Ok(Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            files,
            listed: 0,
            now: None,
            from,
            checkpoint,
            is_over: false,
        })
    }

    /// Goes on at the offset where it stands, in what a compaction or retention has made of the
    /// segments meanwhile.
    fn list_again(&mut self, gone: &SegmentFile) -> Result<bool, DumpError> {
        self.listed += 1;
        if self.listed > LISTED_MAX {
            let what = "it was removed or compacted meanwhile, over and over; begin again there";
            let mut problem = Problem::note(&gone.path, 0, What::Left(what));
            problem.severity = super::Severity::Derived;
            problem.offset = Some(self.from);
            return Err(DumpError::Problem(problem));
        }
        self.from = self.from.max(gone.base);
        self.files = files_from(&self.disk, &self.dir, self.from)?;
        self.next_segment(None)
    }

    /// Goes to the next segment; false behind the last.
    fn next_segment(&mut self, before: Option<&Now>) -> Result<bool, DumpError> {
        let Some(next) = self.files.pop_front() else {
            return before.map_or(Ok(false), |before| before.may_be_last());
        };
        let candidate = match &next.header {
            Ok(candidate) => candidate,
            Err(corruption) => {
                let what = What::Header(corruption.clone());
                let mut problem = Problem::note(&next.path, 0, what);
                problem.severity = super::Severity::Damage;
                problem.offset = Some(next.base);
                return Err(DumpError::Problem(problem));
            }
        };
        if let Some(before) = before
            && before.scanner.end.offset != next.base
        {
            return Err(before.missing_behind(&next.path));
        }
        let Some(file) = next.open(&*self.disk)? else {
            return self.list_again(&next);
        };
        let start = start(&next.path, candidate);
        let compacted = candidate.header.compacted;
        let scanner = |depth| Scanner::new(file.clone(), start, compacted, next.len, depth);
        if let Some(compacted) = &compacted {
            check_chain(&next.path, scanner(Depth::Headers), compacted)?;
        }
        self.now = Some(Now {
            scanner: scanner(Depth::Everything),
            sealed: !self.files.is_empty() || compacted.is_some(),
            last_sequence: candidate.header.last_sequence(),
            path: next.path,
        });
        Ok(true)
    }

    fn step(&mut self) -> Result<Option<DumpedBatch>, DumpError> {
        loop {
            if self
                .now
                .as_ref()
                .is_none_or(|now| now.scanner.is_at_limit())
            {
                let before = self.now.take();
                if !self.next_segment(before.as_ref())? {
                    return Ok(None);
                }
            }
            let Some(now) = &mut self.now else {
                return Ok(None);
            };
            let scanner = &mut now.scanner;
            let at = scanner.end;
            let passed = match scanner.step() {
                Ok(passed) => passed,
                Err(WalkError::Disk(e)) => return Err(e.into()),
                Err(WalkError::Damage(what)) => {
                    let position = u64::from(at.position);
                    let used = scanner.used_behind()?;
                    let is_durable = self.checkpoint.is_some_and(|checkpoint| {
                        (at.sequence, at.position) < (checkpoint.sequence, checkpoint.position)
                    });
                    if !now.sealed && !is_durable && used == 0 {
                        return Ok(None);
                    }
                    let torn = !now.sealed && !is_durable && self.checkpoint.is_some();
                    let mut problem = Problem::damage(&now.path, position, Some(at.offset), what);
                    if torn {
                        problem.severity = super::Severity::Note;
                        problem.what = What::TornTail { bytes: used };
                    }
                    return Err(DumpError::Problem(problem));
                }
            };
            // At the end of a compacted segment the walk stands further on.
            let records = u64::try_from(i64::from(passed.header.last_offset_delta) + 1);
            let behind = passed.base.checked_add(records.unwrap_or(0));
            let behind = behind.unwrap_or(scanner.end.offset);
            if behind <= self.from && passed.internal.is_none() || behind < self.from {
                continue;
            }
            let len = passed.header.total_len();
            let bytes = scanner.window.bytes(u64::from(at.position), len)?;
            let batch = Batch::check(Bytes::copy_from_slice(bytes), BATCH_BYTES_LIMIT);
            let batch = batch.map_err(|e| {
                let position = u64::from(at.position);
                DumpError::Problem(Problem::damage(
                    &now.path,
                    position,
                    Some(passed.base),
                    e.into(),
                ))
            })?;
            return Ok(Some(DumpedBatch {
                path: now.path.clone(),
                position: u64::from(at.position),
                offset: passed.base,
                index: match &passed.internal {
                    Some(entry) => Some(entry.index),
                    None => (!scanner.is_compacted()).then_some(at.index),
                },
                batch,
                internal: passed.internal,
            }));
        }
    }
}

impl Iterator for Dump {
    type Item = Result<DumpedBatch, DumpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let stepped = self.step();
        self.is_over = !matches!(stepped, Ok(Some(_)));
        stepped.transpose()
    }
}

/// The segments from that on which holds `from`.
fn files_from(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    from: Offset,
) -> Result<VecDeque<SegmentFile>, DiskError> {
    let mut files = VecDeque::from(segments::list(disk, dir)?.segments);
    while files.get(1).is_some_and(|next| next.base <= from) {
        files.pop_front();
    }
    Ok(files)
}

fn start(path: &Path, candidate: &Candidate) -> LogEnd {
    let header = candidate.header.clone();
    start_of(&Segment::unopened(
        path.to_owned(),
        header,
        candidate.header_len,
    ))
}
