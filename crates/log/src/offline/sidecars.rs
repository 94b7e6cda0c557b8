//! The files beside the segments, and the places in the segments that they name.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError};
use tidelog_record::Offset;

use super::partition::{Check, SidecarReport};
use super::segments::Listing;
use super::{Problem, Severity, What};
use crate::epochs::{self, EpochStart, EpochTable};
use crate::header::SegmentHeader;
use crate::index::{self, SegmentIndex};
use crate::producers::{ProducerTable, load, snapshot_path};
use crate::segment::{LogEnd, Segment, epochs_path, index_path};
use crate::sidecar;

/// What is to be done about the files beside.
#[derive(Debug, Default)]
pub(super) struct Broken {
    /// Files that are not believed.
    pub(super) aside: Vec<PathBuf>,
    /// Files of which only the end is not, and where that begins.
    pub(super) cut: Vec<(PathBuf, u64)>,
}

impl Broken {
    pub(super) fn aside(&mut self, path: &Path) {
        if !self.aside.iter().any(|known| known == path) {
            self.aside.push(path.to_owned());
        }
    }
}

/// Who names a place.
#[derive(Debug)]
pub(super) enum Namer {
    /// The entry of an index, at this position of its file.
    Index(u64),
    /// A snapshot of the producers.
    Producers(Box<ProducerTable>),
    /// The sync checkpoint.
    Checkpoint,
}

/// A place in a segment, and what is said of it.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) namer: Namer,
    /// An index has very many.
    pub(super) path: Arc<Path>,
    pub(super) place: LogEnd,
}

impl Mark {
    /// Whether `found` is the place that was meant.
    pub(super) fn agrees(&self, found: &LogEnd) -> bool {
        let mut said = self.place;
        // What trims say is in later entries too, and in the checkpoint earlier than in the log.
        said.log_start = found.log_start;
        if matches!(self.namer, Namer::Index(_)) {
            // An index says nothing of these.
            said.epoch = found.epoch;
            said.sequence = found.sequence;
        }
        said == *found
    }
}

/// What an index is found to be before the segment was walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexState {
    Missing,
    /// Nothing in it is believed.
    Broken,
    /// The end of the file is not believed, from this position on.
    BrokenFrom(u64),
    Whole,
}

pub(super) struct IndexFound {
    pub(super) path: PathBuf,
    pub(super) state: IndexState,
    pub(super) entries: usize,
    /// Whether it says that it reaches the end of the segment.
    pub(super) has_end: bool,
}

/// Reads the index of a segment and adds what it says to `marks`.
pub(super) fn read_index(
    disk: &dyn Disk,
    dir: &Path,
    header: &SegmentHeader,
    position_max: u64,
    marks: &mut Vec<Mark>,
) -> Result<IndexFound, DiskError> {
    let path = index_path(dir, header.base_offset);
    let mut found = IndexFound {
        path: path.clone(),
        state: IndexState::Missing,
        entries: 0,
        has_end: false,
    };
    let bytes = match sidecar::read(disk, &path, index::FILE_LEN_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => return Ok(found),
        Err(e) => return Err(e),
    };
    let index = SegmentIndex::parse(&bytes, Segment::index_base(header), position_max);
    found.entries = index.entries().len();
    found.has_end = index.last().is_some_and(|last| last.is_end);
    let good = (found.entries as u64 + 1) * index::ENTRY_LEN as u64;
    found.state = match index.pending() {
        None => IndexState::Whole,
        Some(_) if found.entries == 0 => IndexState::Broken,
        Some(_) => IndexState::BrokenFrom(good),
    };
    let shared: Arc<Path> = path.into();
    for (at, entry) in index.entries().iter().enumerate() {
        marks.push(Mark {
            namer: Namer::Index((at as u64 + 1) * index::ENTRY_LEN as u64),
            path: shared.clone(),
            place: LogEnd {
                sequence: header.sequence,
                position: entry.position,
                offset: entry.offset,
                index: entry.index,
                epoch: header.epoch,
                chain: entry.chain,
                max_timestamp: entry.max_timestamp,
                log_start: Offset::ZERO,
            },
        });
    }
    Ok(found)
}

/// A place in a segment is not what an index or a snapshot says of it.
pub(super) fn wrong_place(check: &mut Check<'_>, number: usize, mark: &Mark) {
    let (what, position) = match mark.namer {
        Namer::Index(position) => ("the index", position),
        _ => ("the snapshot of producers", 0),
    };
    if let Namer::Producers(_) = mark.namer {
        check.report.snapshots.push((mark.place.offset, false));
    } else {
        check.report.segments[number].index = SidecarReport::Broken;
    }
    // Once is enough: what follows in an index is built on what comes before.
    let is_known = check.broken.aside.iter().any(|known| **known == *mark.path);
    check.broken.aside(&mark.path);
    if !is_known {
        check.tell(Problem {
            severity: Severity::Derived,
            path: mark.path.to_path_buf(),
            position,
            offset: Some(mark.place.offset),
            what: What::WrongPlace { what },
        });
    }
}

/// What the index of a segment that was walked is found to be.
pub(super) fn judge_index(
    check: &mut Check<'_>,
    number: usize,
    index: &IndexFound,
    is_whole: bool,
    sealed: bool,
) {
    check.report.segments[number].index_entries = index.entries;
    if check.report.segments[number].index == SidecarReport::Broken {
        return;
    }
    let (state, problem) = match index.state {
        IndexState::Missing if sealed => {
            let what = "the index is missing";
            (SidecarReport::Missing, Some((0, what)))
        }
        IndexState::Missing => (SidecarReport::Missing, None),
        IndexState::Broken => {
            check.broken.aside(&index.path);
            let what = "nothing in the index verifies";
            (SidecarReport::Broken, Some((0, what)))
        }
        IndexState::BrokenFrom(position) => {
            check.broken.cut.push((index.path.clone(), position));
            let what = "the rest of the index does not verify";
            (SidecarReport::Broken, Some((position, what)))
        }
        IndexState::Whole if index.has_end || !is_whole => (SidecarReport::Whole, None),
        IndexState::Whole if sealed => {
            let what = "the index ends before its segment does";
            let position = (index.entries as u64 + 1) * 32;
            (SidecarReport::Partial, Some((position, what)))
        }
        IndexState::Whole => (SidecarReport::Partial, None),
    };
    check.report.segments[number].index = state;
    if let Some((position, what)) = problem {
        check.tell(Problem::derived(&index.path, position, what));
    }
}

/// Reads all snapshots of producers; those that are broken are told.
pub(super) fn read_producers(
    disk: &dyn Disk,
    dir: &Path,
    listing: &Listing,
    broken: &mut Broken,
    problems: &mut Vec<Problem>,
) -> Result<VecDeque<Mark>, DiskError> {
    let mut marks = VecDeque::new();
    for offset in &listing.producers {
        let path = snapshot_path(dir, *offset);
        let snapshot = match load(disk, &path) {
            Ok(snapshot) => snapshot,
            // Newer ones took its place since the directory was listed.
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e),
        };
        match snapshot.filter(|snapshot| snapshot.end.offset == *offset) {
            Some(snapshot) => marks.push_back(Mark {
                namer: Namer::Producers(Box::new(snapshot.producers)),
                path: path.into(),
                place: snapshot.end,
            }),
            None => {
                let what = "the snapshot of producers does not verify";
                problems.push(Problem::derived(&path, 0, what));
                broken.aside(&path);
            }
        }
    }
    Ok(marks)
}

/// Compares the file of the epoch table with the epochs that were met in the segments, which begin
/// with the entry of `at_start`; what began before that nobody can check any more. The first `lasting` of them must
/// be in the file.
pub(super) fn check_epochs(
    disk: &dyn Disk,
    dir: &Path,
    seen: &[EpochStart],
    at_start: &LogEnd,
    lasting: usize,
    broken: &mut Broken,
) -> Result<(EpochTable, Option<Problem>), DiskError> {
    let path = epochs_path(dir);
    let bytes = match sidecar::read(disk, &path, epochs::FILE_LEN_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => {
            let problem =
                (lasting > 0).then(|| Problem::derived(&path, 0, "the epoch table is missing"));
            return Ok((EpochTable::default(), problem));
        }
        Err(e) => return Err(e),
    };
    let table = EpochTable::parse(&bytes);
    let good = epochs::file_len(table.entries().len());
    let first = table
        .entries()
        .partition_point(|e| e.index < at_start.index);
    let (before, within) = table.entries().split_at(first);
    // The segments that held the beginning of an epoch may be gone.
    let of_start = before.last().map(|e| e.epoch);
    let starts_well = of_start.is_none_or(|epoch| epoch == at_start.epoch)
        // Its end may be missing.
        || (within.is_empty() && of_start.is_some_and(|epoch| epoch < at_start.epoch))
        || within.first().is_some_and(|e| e.epoch == at_start.epoch);
    let rebuilt = within.strip_prefix(
        &[EpochStart {
            epoch: at_start.epoch,
            offset: at_start.offset,
            index: at_start.index,
        }][..],
    );
    let within = rebuilt.unwrap_or(within);
    let wrong = within
        .iter()
        .zip(seen)
        .position(|(said, seen)| said != seen)
        .or_else(|| (within.len() > seen.len()).then_some(seen.len()));
    let problem = if !starts_well || wrong.is_some() {
        let skipped = table.entries().len() - within.len();
        let entry = wrong.map_or(first.saturating_sub(1), |wrong| skipped + wrong);
        broken.aside(&path);
        let what = "the epoch table is not of this log";
        Some(Problem::derived(&path, epochs::file_len(entry), what))
    } else if table.entries().is_empty() && !bytes.starts_with(&epochs::FILE_HEADER) {
        broken.aside(&path);
        Some(Problem::derived(
            &path,
            0,
            "the epoch table has no header of its own",
        ))
    } else if bytes.len() as u64 > good {
        broken.cut.push((path.clone(), good));
        let what = "the rest of the epoch table does not verify";
        Some(Problem::derived(&path, good, what))
    } else if within.len() < lasting {
        let what = "the epoch table ends early";
        Some(Problem::derived(&path, good, what))
    } else {
        None
    };
    Ok((table, problem))
}
