//! One batch after the other, up to the first problem.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tidelog_disk::{Disk, DiskError, OpenHow};
use tidelog_record::{Batch, Offset};

use super::scanner::Scanner;
use super::segments::{self, SegmentFile};
use super::{Depth, Problem, What};
use crate::internal::InternalEntry;
use crate::lookup::start_of;
use crate::open::Candidate;
use crate::segment::{LogEnd, Segment};
use crate::walk::{BATCH_BYTES_LIMIT, WalkError};

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
    /// Its Raft index.
    pub index: tidelog_record::RaftIndex,
    /// What it is, its checksum checked.
    pub batch: Batch,
    /// Set for an internal entry.
    pub internal: Option<InternalEntry>,
}

/// Gives the batches of a partition, in order.
pub struct Dump {
    disk: Arc<dyn Disk>,
    files: VecDeque<SegmentFile>,
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
        let listing = segments::list(disk, dir)?;
        let mut files = VecDeque::from(listing.segments);
        if files.is_empty() {
            let what = What::Left("there is no segment in it");
            return Err(DumpError::Problem(Problem::note(dir, 0, what)));
        }
        while files.get(1).is_some_and(|next| next.base <= from) {
            files.pop_front();
        }
        Ok(Self {
            disk: disk.clone(),
            files,
            now: None,
            from,
            checkpoint,
            is_over: false,
        })
    }

    /// Goes to the next segment; false behind the last.
    fn next_segment(&mut self, before: Option<&LogEnd>) -> Result<bool, DumpError> {
        let Some(next) = self.files.pop_front() else {
            return Ok(false);
        };
        let candidate = match next.header {
            Ok(candidate) => candidate,
            Err(corruption) => {
                let mut problem = Problem::note(&next.path, 0, What::Header(corruption));
                problem.severity = super::Severity::Damage;
                problem.offset = Some(next.base);
                return Err(DumpError::Problem(problem));
            }
        };
        if let Some(before) = before
            && before.offset != next.base
        {
            let sequence = before.sequence + 1;
            let what = crate::Damage::MissingSegment { sequence };
            let problem = Problem::damage(&next.path, 0, Some(before.offset), what);
            return Err(DumpError::Problem(problem));
        }
        let file = self.disk.open(&next.path, OpenHow::Read)?;
        self.now = Some(Now {
            scanner: Scanner::new(
                file,
                start(&next.path, &candidate),
                next.len,
                Depth::Everything,
            ),
            sealed: !self.files.is_empty(),
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
                let before = self.now.take().map(|now| now.scanner.end);
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
            if scanner.end.offset <= self.from && passed.internal.is_none() {
                continue;
            }
            if scanner.end.offset < self.from {
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
                    Some(at.offset),
                    e.into(),
                ))
            })?;
            return Ok(Some(DumpedBatch {
                path: now.path.clone(),
                position: u64::from(at.position),
                offset: at.offset,
                index: at.index,
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

fn start(path: &Path, candidate: &Candidate) -> LogEnd {
    let header = candidate.header.clone();
    start_of(&Segment::unopened(
        path.to_owned(),
        header,
        candidate.header_len,
    ))
}
