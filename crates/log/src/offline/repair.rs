//! Putting right what can be, without throwing a byte away.
//!
//! A plan names every step, and changes nothing. Carrying it out goes in an order that leaves the
//! log repairable wherever it is cut off: first what is to be cut is copied, durably; then whole
//! files are renamed into the same directory beside, newest first; then files are cut; then a segment
//! is begun where there is none left to append to; last of all the sync checkpoint in the state file is taken back. Until then a broker refuses a log that ends
//! before its checkpoint, so that no half of a repair is ever served.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidelog_disk::{Disk, DiskError, OpenHow, read_up_to};
use tidelog_record::{Offset, Timestamp};

use super::data_dir::STATE_DIR;
use super::partition::{Checked, FirstDamage, check};
use super::{Depth, Observer};
use crate::epochs::{self, EpochTable};
use crate::error::Poisoned;
use crate::header::{PreviousSegment, SegmentHeader};
use crate::log::create_dir_durably;
use crate::producers::{load, snapshot_path};
use crate::roll::encode_header;
use crate::segment::{LogEnd, epochs_path, index_path, segment_path};
use crate::state::{BrokerState, GroupKey, StateError, StateFile, StateRecord};

/// What the names of directories end in that hold what a repair put aside. No partition's does.
pub(super) const KEPT: &str = ".cut";

/// The file in a data directory that is locked while a broker, or a repair, works on it.
pub const LOCK_FILE: &str = "LOCK";

/// One step of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A file is moved to the directory beside.
    Aside {
        /// Which.
        path: PathBuf,
    },
    /// The end of a file is copied to the directory beside, and then cut off.
    Cut {
        /// Which file.
        path: PathBuf,
        /// Its length from then on.
        at: u64,
        /// How many bytes are cut.
        bytes: u64,
    },
    /// An empty segment is begun: what comes before it is compacted and takes nothing any more.
    Begin {
        /// Its file.
        path: PathBuf,
        /// What it begins with.
        header: Box<SegmentHeader>,
    },
    /// The state file says from then on that the log is durable up to here, and no further.
    Checkpoint {
        /// Whose.
        key: GroupKey,
        /// The end of what was kept.
        end: LogEnd,
    },
}

/// What a cut at damage costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutPlan {
    /// The first offset that is not in the log any more.
    pub from: Offset,
    /// The offset behind the last that was.
    pub to: Offset,
    /// Where the log started before the cut: offsets below it were not served any more. The log
    /// starts at `from` behind the cut where that is less.
    pub log_start: Offset,
    /// Bytes of segments that are put aside.
    pub bytes: u64,
    /// Damaged places that go with it.
    pub damaged: u64,
}

impl CutPlan {
    /// How many offsets were served and are not any more. After compaction not each of them has a
    /// record.
    pub fn offsets(&self) -> u64 {
        self.to.records_since(self.from.max(self.log_start))
    }
}

/// What is to be done about a partition.
#[derive(Clone, Debug)]
pub struct RepairPlan {
    /// The partition's directory.
    pub dir: PathBuf,
    /// Where bytes are put aside; made when there are any.
    pub kept: PathBuf,
    /// The steps, in their order; none when there is nothing to do.
    pub actions: Vec<Action>,
    /// Set when the log is cut at damage.
    pub cut: Option<CutPlan>,
    /// Damaged places that stay.
    pub remaining: u64,
    /// Why they stay, although a cut was asked for.
    pub refused: Option<&'static str>,
}

/// Why a repair was not carried out to its end.
#[derive(Debug, Error)]
pub enum RepairError {
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The state file could not be opened.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state file could not be written.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Looks at every byte of the partition in `dir`, as [`check_partition`](super::check_partition)
/// does, and says what can be done about what it finds. With `cut_at_damage` that is to cut the log
/// before its first damage; a compacted segment goes as a whole. `now` is the time by the broker's
/// clock.
///
/// # Errors
/// When a file cannot be read.
pub fn plan_repair(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    state: Option<&BrokerState>,
    cut_at_damage: bool,
    now: Timestamp,
    observer: &mut dyn Observer,
) -> Result<RepairPlan, DiskError> {
    let checked = check(disk, dir, state, Depth::Everything, observer)?;
    let mut plan = RepairPlan {
        dir: dir.to_owned(),
        kept: free_name(&**disk, dir)?,
        actions: Vec::new(),
        cut: None,
        remaining: checked.report.damaged,
        refused: None,
    };
    let mut steps = Steps::default();
    match checked.damage {
        Some(damage) if cut_at_damage => match cut(disk, dir, &checked, damage, now, &mut steps)? {
            Ok(cut) => {
                plan.cut = Some(cut);
                plan.remaining = 0;
            }
            Err(why) => {
                plan.refused = Some(why);
                steps = Steps::default();
            }
        },
        _ => {
            if let Some((path, at)) = &checked.tail {
                steps.cut(&**disk, path, *at)?;
            }
        }
    }
    if plan.cut.is_none()
        && let Some(path) = &checked.unfinished
    {
        steps.aside(path.clone());
    }
    for path in &checked.broken.aside {
        steps.aside(path.clone());
    }
    for (path, at) in &checked.broken.cut {
        steps.cut(&**disk, path, *at)?;
    }
    plan.actions = steps.in_order();
    Ok(plan)
}

/// Steps in the making; a file that is moved is not cut as well.
#[derive(Default)]
struct Steps {
    aside: Vec<PathBuf>,
    cuts: Vec<(PathBuf, u64, u64)>,
    begin: Option<(PathBuf, Box<SegmentHeader>)>,
    checkpoint: Option<(GroupKey, LogEnd)>,
}

impl Steps {
    fn aside(&mut self, path: PathBuf) {
        self.cuts.retain(|(cut, _, _)| *cut != path);
        if !self.aside.contains(&path) {
            self.aside.push(path);
        }
    }

    fn cut(&mut self, disk: &dyn Disk, path: &Path, at: u64) -> Result<(), DiskError> {
        let is_known = self.cuts.iter().any(|(cut, _, _)| cut == path);
        if is_known || self.aside.iter().any(|aside| aside == path) {
            return Ok(());
        }
        let len = disk.open(path, OpenHow::Read)?.len()?;
        if len > at {
            self.cuts.push((path.to_owned(), at, len - at));
        }
        Ok(())
    }

    fn in_order(self) -> Vec<Action> {
        let aside = self.aside.into_iter().map(|path| Action::Aside { path });
        let cuts = self.cuts.into_iter();
        let cuts = cuts.map(|(path, at, bytes)| Action::Cut { path, at, bytes });
        let begin = self.begin.into_iter();
        let begin = begin.map(|(path, header)| Action::Begin { path, header });
        let checkpoint = self.checkpoint.into_iter();
        let checkpoint = checkpoint.map(|(key, end)| Action::Checkpoint { key, end });
        aside.chain(cuts).chain(begin).chain(checkpoint).collect()
    }
}

/// Plans to cut the log before its first damage.
fn cut(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    checked: &Checked,
    damage: FirstDamage,
    now: Timestamp,
    steps: &mut Steps,
) -> Result<Result<CutPlan, &'static str>, DiskError> {
    let report = &checked.report;
    let Some(good) = damage.good else {
        return Ok(Err(
            "its first segment cannot be used at all, so that a cut would leave nothing",
        ));
    };
    let sequence_of =
        |segment: &super::SegmentReport| segment.header.as_ref().map(|header| header.sequence);
    let last = report
        .segments
        .iter()
        .position(|segment| sequence_of(segment) == Some(good.sequence));
    let (Some(last), Some(first)) = (last, report.segments.first()) else {
        return Ok(Err("it is not known in which segment the damage begins"));
    };
    let log_start = report.log_start.min(good.offset);
    let checkpoint = report.known.and_then(|known| known.checkpoint);
    let kept = &report.segments[last];
    let compacted = kept.header.as_ref().filter(|h| h.compacted.is_some());
    // Behind a compacted one a segment is begun, whose header tells it.
    let tells_start = compacted.is_some() || report.known.is_some();
    if !tells_start && good.log_start < first.base_offset {
        return Ok(Err(
            "the log start is kept behind the damage only, and there is no state file to keep it in",
        ));
    }
    let mut bytes = 0;
    // What a compacted segment that goes stands for, and was not removed yet, goes before it: it
    // must not be taken for a part of the log.
    let replaced = checked.listing.replaced.iter();
    let replaced = replaced.filter(|base| **base >= good.offset);
    let mut aside: Vec<_> = replaced
        .map(|base| (*base, segment_path(dir, *base)))
        .collect();
    for segment in &report.segments[last + 1..] {
        bytes += segment.len;
        aside.push((segment.base_offset, segment.path.clone()));
    }
    aside.sort_unstable();
    if let Some(path) = &checked.unfinished {
        steps.aside(path.clone());
    }
    for (_, path) in aside.into_iter().rev() {
        steps.aside(path);
    }
    let indexes_from = if compacted.is_some() {
        good.offset
    } else {
        kept.base_offset
    };
    let indexes = checked.listing.indexes.iter();
    for base in indexes.filter(|base| **base >= indexes_from) {
        steps.aside(index_path(dir, *base));
    }
    for offset in &checked.listing.producers {
        let path = snapshot_path(dir, *offset);
        let snapshot = load(&**disk, &path)?;
        let is_behind = snapshot.is_none_or(|snapshot| good.is_before(&snapshot.end));
        if *offset > good.offset || is_behind {
            steps.aside(path);
        }
    }
    let at = u64::from(good.position);
    bytes += kept.len.saturating_sub(at);
    steps.cut(&**disk, &kept.path, at)?;
    if checked.listing.has_epochs {
        let path = epochs_path(dir);
        let table = EpochTable::load(&**disk, &path);
        let good = table
            .entries()
            .iter()
            .take_while(|e| e.index < good.index)
            .count();
        if good < table.entries().len() {
            steps.cut(&**disk, &path, epochs::file_len(good))?;
        }
    }
    let end = match compacted {
        Some(header) => {
            let header = header_behind(header, &good, log_start, now);
            let end = LogEnd::after_header(&header, &encode_header(&header));
            let path = segment_path(dir, good.offset);
            steps.begin = Some((path, Box::new(header)));
            end
        }
        None => good,
    };
    let identity = report.identity.filter(|_| checkpoint.is_some());
    let end = LogEnd { log_start, ..end };
    if let (Some(checkpoint), Some(identity)) = (checkpoint, identity)
        && !checkpoint.is_before(&end)
        && checkpoint != end
    {
        let key = GroupKey {
            topic_id: identity.topic_id,
            partition: identity.partition,
        };
        steps.checkpoint = Some((key, end));
    }
    let known_end = checkpoint.map_or(good.offset, |checkpoint| checkpoint.offset);
    let found_end = report
        .segments
        .iter()
        .filter_map(|s| s.end)
        .map(|end| end.offset);
    Ok(Ok(CutPlan {
        from: good.offset,
        to: found_end.fold(known_end, Offset::max).max(good.offset),
        log_start: report.log_start,
        bytes,
        damaged: report.damaged,
    }))
}

/// The header of an empty segment behind the compacted one with this header, which ends at `end`. The
/// length and the chain of the last of those it stands for are not known any more, and nobody
/// compares them.
fn header_behind(
    compacted: &SegmentHeader,
    end: &LogEnd,
    log_start: Offset,
    now: Timestamp,
) -> SegmentHeader {
    let sequence = compacted.last_sequence();
    SegmentHeader {
        compatible_features: 0,
        incompatible_features: 0,
        identity: compacted.identity,
        sequence: sequence.saturating_add(1),
        base_offset: end.offset,
        base_index: end.index,
        epoch: end.epoch,
        log_start,
        created_at: now,
        previous: Some(PreviousSegment {
            sequence,
            len: u64::from(end.position),
            end_offset: end.offset,
            end_index: end.index,
            last_epoch: end.epoch,
            chain: end.chain,
        }),
        compacted: None,
    }
}

/// The first free name for the directory beside: `<dir>.<number>.cut`.
fn free_name(disk: &dyn Disk, dir: &Path) -> Result<PathBuf, DiskError> {
    let name = dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let parent = parent(dir);
    let taken = disk.list(&parent)?;
    let mut number = 1_u64;
    loop {
        let kept = format!("{name}.{number}{KEPT}");
        if taken.iter().all(|entry| entry.name != kept) {
            return Ok(parent.join(kept));
        }
        number += 1;
    }
}

fn parent(dir: &Path) -> PathBuf {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Carries `plan` out. Nobody else may write to the directory meanwhile: the caller holds the lock
/// of the data directory, `data_dir`, whose state file is changed if the plan says so.
///
/// # Errors
/// [`RepairError`]; then the log is as it was, or a part of the steps was done. Another plan goes
/// on from there.
pub fn apply_repair(
    disk: &Arc<dyn Disk>,
    plan: &RepairPlan,
    data_dir: Option<&Path>,
) -> Result<(), RepairError> {
    if plan.actions.iter().any(puts_aside) {
        create_dir_durably(&**disk, &plan.kept)?;
    }
    for action in &plan.actions {
        if let Action::Cut { path, at, .. } = action {
            copy_end(&**disk, path, *at, &plan.kept)?;
        }
    }
    disk_sync(&**disk, plan)?;
    for action in &plan.actions {
        if let Action::Aside { path } = action {
            // What is moved is kept for good, also what was never synced.
            disk.open(path, OpenHow::Write)?.sync_data()?;
            let name = path.file_name().unwrap_or_default();
            disk.rename(path, &plan.kept.join(name))?;
        }
    }
    disk_sync(&**disk, plan)?;
    for action in &plan.actions {
        if let Action::Cut { path, at, .. } = action {
            let file = disk.open(path, OpenHow::Write)?;
            file.set_len(*at)?;
            file.sync_data()?;
        }
    }
    for action in &plan.actions {
        if let Action::Begin { path, header } = action {
            let file = disk.open(path, OpenHow::CreateNew)?;
            file.write_at(0, &[IoSlice::new(&encode_header(header))])?;
            file.sync_data()?;
            disk.sync_dir(&plan.dir)?;
        }
    }
    for action in &plan.actions {
        if let (Action::Checkpoint { key, end }, Some(data_dir)) = (action, data_dir) {
            let state = StateFile::open(disk.clone(), &data_dir.join(STATE_DIR))?;
            state.record(&[StateRecord::Checkpoint(*key, *end)], true)?;
        }
    }
    Ok(())
}

fn puts_aside(action: &Action) -> bool {
    matches!(action, Action::Aside { .. } | Action::Cut { .. })
}

/// Makes the names in the partition's directory durable, and those in the one beside.
fn disk_sync(disk: &dyn Disk, plan: &RepairPlan) -> Result<(), DiskError> {
    if plan.actions.iter().any(puts_aside) {
        disk.sync_dir(&plan.kept)?;
        disk.sync_dir(&plan.dir)?;
    }
    Ok(())
}

/// Copies what `path` holds from `at` on to a file of the directory `kept`, durably but for its
/// name: `<name>.from-<at>`.
fn copy_end(disk: &dyn Disk, path: &Path, at: u64, kept: &Path) -> Result<(), DiskError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let from = disk.open(path, OpenHow::Read)?;
    let to = disk.open(&kept.join(format!("{name}.from-{at}")), OpenHow::Create)?;
    let len = from.len()?;
    let mut position = at;
    while position < len {
        let step = usize::try_from((len - position).min(1 << 20)).expect("at most 1 MiB");
        let bytes = read_up_to(&*from, position, step)?;
        if bytes.is_empty() {
            break;
        }
        to.write_at(position - at, &[IoSlice::new(&bytes)])?;
        position += bytes.len() as u64;
    }
    to.sync_data()
}

/// Tells what is wrong with the state file of the data directory `dir`, and reads it. `None` when
/// there is none or it cannot be read.
///
/// # Errors
/// When it cannot be read for another reason than damage.
pub fn read_state(
    disk: &dyn Disk,
    dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Option<BrokerState>, DiskError> {
    super::data_dir::check_state(disk, dir, false, observer)
}

/// The partitions of a data directory, by name.
///
/// # Errors
/// When it cannot be listed.
pub fn partitions_of(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, DiskError> {
    super::data_dir::partition_dirs(disk, dir, &mut Nobody)
}

struct Nobody;

impl Observer for Nobody {
    fn problem(&mut self, _problem: super::Problem) {}
}
