//! The writer's half of a log.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow};
use tidelog_record::{LeaderEpoch, Offset, Timestamp};

use crate::ahead::SyncPace;
use crate::epochs::{self, EpochStart};
use crate::error::{AppendError, Poisoned, TrimError};
use crate::header::{LogIdentity, SegmentHeader};
use crate::index::{self, IndexEntry};
use crate::internal::{InternalEntry, InternalKind};
use crate::options::LogOptions;
use crate::producers::ProducerTable;
use crate::reader::LogReader;
use crate::segment::{LogEnd, Segment, epochs_path, index_path};
use crate::shared::Shared;
use crate::sync::LogSync;
use crate::tail::Tail;

/// One partition's log, as its single writer holds it.
///
/// Readers hold [`LogReader`]s and whoever syncs holds a [`LogSync`]; both are cheap to clone and
/// outlive it.
#[derive(Debug)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: LogOptions,
    pub(crate) active: Arc<Segment>,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Everything before it was given to the operating system.
    pub(crate) end: LogEnd,
    /// Space is taken for the active file up to here; what lies past `end` in it is zeros.
    pub(crate) reserved: u64,
    /// Whether the file of the epoch table lacks an entry.
    pub(crate) epochs_unwritten: bool,
    /// The producers at `end`.
    pub(crate) producers: ProducerTable,
    /// Bytes appended since the last snapshot of the producers.
    pub(crate) since_snapshot: u64,
    /// How long that was.
    pub(crate) snapshot_len: u64,
    /// Where durable ones stand, by the segment that each lies in: those that this log has written, or
    /// seen to be there.
    pub(crate) durable_snapshots: BTreeMap<u64, LogEnd>,
    /// Whether the last one waits for batches that were noted to go in.
    pub(crate) owes_snapshot: bool,
    /// How many batches the producers are known by that did not go in yet.
    pub(crate) noted: usize,
    /// The epoch that could not begin for want of space: nothing is written before it has.
    pub(crate) pending_epoch: Option<LeaderEpoch>,
    /// How much each sync covers.
    pub(crate) sync_pace: SyncPace,
    /// The snapshots of producers written since the last look at the directory, oldest first.
    pub(crate) recent_snapshots: VecDeque<Offset>,
    /// What is not known to be committed; `None` where whatever is durable is.
    pub(crate) tail: Option<Tail>,
    /// Files of removed segments that nobody has taken yet.
    pub(crate) removed: Vec<RemovedFile>,
    /// Files of segments below the log start that could not be removed, oldest first.
    pub(crate) unremoved: Vec<PathBuf>,
}

/// A file of a segment that was removed: its name is gone, its space is given back when this is
/// dropped and no reader holds a slice of it any more. That can take a file system long, a second
/// and more a GiB: drop it where nobody waits.
#[derive(Debug)]
pub struct RemovedFile {
    _file: Arc<dyn DiskFile>,
    len: u64,
}

impl RemovedFile {
    /// The length of the file, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }
}

impl Log {
    /// Whose log this is.
    pub fn identity(&self) -> LogIdentity {
        self.shared.identity
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The settings in force.
    pub fn options(&self) -> LogOptions {
        self.options
    }

    /// Takes other settings from the next append on.
    pub fn set_options(&mut self, options: LogOptions) {
        self.options = options;
    }

    /// Everything before this was given to the operating system.
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// A handle for reading, from any thread.
    pub fn reader(&self) -> LogReader {
        LogReader::new(self.shared.clone())
    }

    /// A handle for making what was appended durable, from any thread.
    pub fn sync_handle(&self) -> LogSync {
        LogSync::new(self.shared.clone())
    }

    /// Makes all that was appended durable, on this thread.
    ///
    /// # Errors
    /// [`Poisoned`] when this or an earlier write or sync failed; then nothing is known of what
    /// was appended since the last success.
    pub fn sync(&mut self) -> Result<LogEnd, Poisoned> {
        Ok(self.shared.sync()?)
    }

    /// Begins the leader epoch `epoch` with Raft's empty entry. Not yet durable.
    ///
    /// # Errors
    /// As for [`Log::append`], but that after [`AppendError::Poisoned`] it is not known whether the
    /// epoch will have begun after the next open. After [`AppendError::Full`] it begins with the next
    /// append or trim that finds space; until then these are refused, and reads go on.
    ///
    /// # Panics
    /// When `epoch` is not newer than the last one.
    pub fn begin_epoch(&mut self, epoch: LeaderEpoch) -> Result<(), AppendError> {
        assert!(
            epoch > self.end.epoch,
            "epoch {epoch} after epoch {}",
            self.end.epoch
        );
        let start = EpochStart {
            epoch,
            offset: self.end.offset,
            index: self.end.index,
        };
        let begun = self.append_internal(InternalKind::RaftEmpty, epoch);
        self.pending_epoch = matches!(begun, Err(AppendError::Full { .. })).then_some(epoch);
        begun?;
        self.shared.epochs.write().push(start);
        self.epochs_unwritten = true;
        Ok(())
    }

    /// Begins the epoch that waits for space, if one does: nothing may be written for a leader
    /// under the epoch of the one before.
    pub(crate) fn begin_pending_epoch(&mut self) -> Result<(), AppendError> {
        self.pending_epoch
            .map_or(Ok(()), |epoch| self.begin_epoch(epoch))
    }

    /// Adds to the file of the epoch table what has become durable, and is committed, since: an entry
    /// there is never taken back.
    pub(crate) fn write_durable_epochs(&mut self) {
        if !self.epochs_unwritten {
            return;
        }
        let lasting = self.shared.committed().index;
        let pending = self.shared.epochs.read().pending(lasting);
        if let Some(pending) = pending {
            let written = epochs::write_pending(self.disk(), &epochs_path(self.dir()), &pending);
            match written {
                Ok(()) => self.shared.epochs.write().written(&pending),
                Err(e) => {
                    tracing::warn!(error = %e, "the epoch table was not written; it is built again");
                }
            }
        }
        self.epochs_unwritten = self.shared.epochs.read().has_unwritten();
    }

    /// Drops every record below `to`, for good: writes and syncs the new log start offset, then
    /// removes the segments that lie wholly below it. Slices that readers hold stay readable.
    ///
    /// # Errors
    /// [`TrimError::OutOfRange`] unless `to` lies between the log start and `end_max`, which is the
    /// high watermark; the errors of [`Log::begin_epoch`] when the new log start could not be
    /// written.
    pub fn trim(&mut self, to: Offset, end_max: Offset) -> Result<(), TrimError> {
        self.shared.check().map_err(AppendError::from)?;
        let start = self.end.log_start;
        let end_max = end_max.min(self.end.offset);
        if to < start || to > end_max {
            return Err(TrimError::OutOfRange {
                requested: to,
                start,
                end: end_max,
            });
        }
        if to > start {
            self.begin_pending_epoch()?;
            self.append_internal(InternalKind::LogStart(to), self.end.epoch)?;
            self.sync().map_err(AppendError::from)?;
            self.shared.set_log_start(to);
        }
        self.remove_below_start();
        Ok(())
    }

    /// The files of segments removed since the last call, to be dropped where nobody waits. They
    /// gather until they are taken.
    pub fn take_removed(&mut self) -> Vec<RemovedFile> {
        std::mem::take(&mut self.removed)
    }

    /// Removes segments below the log start, oldest first, after those that could not be removed
    /// before. What cannot be removed now is removed at the next trim or start.
    pub fn remove_below_start(&mut self) {
        let segments = self.shared.segments();
        // The durable one: what is removed must never be asked for again.
        let start = self.shared.log_start();
        // Internal entries have no offsets: one that is not committed may stand behind the last record.
        let committed = match &self.tail {
            Some(tail) => tail.committed().index,
            None => self.end.index,
        };
        let is_below =
            |next: &SegmentHeader| next.base_offset <= start && next.base_index <= committed;
        let keep_from = segments
            .windows(2)
            .take_while(|pair| is_below(&pair[1].header))
            .count();
        if keep_from == 0 && self.unremoved.is_empty() {
            return;
        }
        let unkept = match self.keep_producers(&segments, keep_from) {
            Ok(unkept) => unkept,
            Err(error) => {
                tracing::warn!(%error, "segments stay: what they tell of producers cannot be kept");
                return;
            }
        };
        for path in std::mem::take(&mut self.unremoved) {
            let file = self.disk().open(&path, OpenHow::Read).ok();
            self.remove_or_note(path, file);
        }
        if keep_from > 0 {
            self.shared.set_segments(segments[keep_from..].to_vec());
        }
        for segment in &segments[..keep_from] {
            let open = || self.disk().open(&segment.path, OpenHow::Read).ok();
            let file = segment.open_file().or_else(open);
            self.remove_or_note(segment.path.clone(), file);
            let index = index_path(self.dir(), segment.header.base_offset);
            self.remove_or_note(index, None);
        }
        self.write_unkept(unkept);
        self.remove_stale_producers();
        if let Err(e) = self.disk().sync_dir(self.dir()) {
            tracing::warn!(error = %e, "removed segments may be there again after power loss");
        }
    }

    /// Removes a file of a segment that is no longer the log's. While it is held as `file`, the name
    /// is all that this takes.
    fn remove_or_note(&mut self, path: PathBuf, file: Option<Arc<dyn DiskFile>>) {
        match remove_if_there(self.disk(), &path) {
            Ok(()) => self.removed.extend(file.map(|file| RemovedFile {
                len: file.len().unwrap_or(0),
                _file: file,
            })),
            Err(e) => {
                tracing::warn!(error = %e, "a file below the log start was not removed");
                self.unremoved.push(path);
            }
        }
    }

    /// Cuts reserved space off the active segment, but for its room, completes its index, and
    /// makes all durable, so that the next open reads next to nothing. Returns the end to keep as
    /// checkpoint.
    ///
    /// # Errors
    /// [`Poisoned`] when this or an earlier write or sync failed.
    pub fn close(mut self) -> Result<LogEnd, Poisoned> {
        self.shared.check()?;
        self.cut_to_room()?;
        self.write_index(true);
        self.sync_file()?;
        self.write_durable_epochs();
        if self.since_snapshot > 0 {
            self.write_producers();
            self.remove_stale_producers();
        }
        Ok(self.end)
    }

    /// Leaves the file as long as a log at rest is, or as there is space for.
    fn cut_to_room(&mut self) -> Result<(), Poisoned> {
        let wanted = self.options.resting_len(self.end.position);
        if wanted > self.reserved {
            match self.file.reserve(wanted) {
                Ok(()) => self.reserved = wanted,
                Err(e) if e.is_full() => {}
                Err(e) => return Err(self.shared.poison(e)),
            }
        }
        let len = self.reserved.min(wanted);
        self.file.set_len(len).map_err(|e| self.shared.poison(e))?;
        self.reserved = len;
        Ok(())
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.shared.disk
    }

    /// Makes the file end where the log ends. Also where no space is known to be reserved: a
    /// reservation that failed may have made the file longer.
    pub(crate) fn cut_reserve(&mut self) -> Result<(), Poisoned> {
        let len = u64::from(self.end.position);
        self.file.set_len(len).map_err(|e| self.shared.poison(e))?;
        self.reserved = len;
        Ok(())
    }

    /// Writes what the index file lacks; with `complete`, up to the end of the log. Readers are
    /// kept waiting for neither the disk nor each other.
    pub(crate) fn write_index(&mut self, complete: bool) {
        let pending = {
            let mut index = self.active.index.write();
            let Some(index) = &mut *index else { return };
            if complete {
                index.push_end(IndexEntry::at(&self.end));
            }
            index.pending()
        };
        let Some(pending) = pending else { return };
        let path = index_path(self.dir(), self.active.header.base_offset);
        match index::write_pending(self.disk(), &path, &pending) {
            Ok(()) => {
                if let Some(index) = &mut *self.active.index.write() {
                    index.written(pending);
                }
            }
            Err(e) => tracing::warn!(error = %e, "index not written; it is built again"),
        }
    }

    pub(crate) fn internal_entry(&self, kind: InternalKind, epoch: LeaderEpoch) -> InternalEntry {
        InternalEntry {
            index: self.end.index,
            epoch,
            next_offset: self.end.offset,
            kind,
        }
    }

    /// Whether the active segment is due to be rolled before anything else goes in.
    pub(crate) fn is_old(&self, now: Timestamp) -> bool {
        self.is_aged(now, self.options.segment_ms)
    }

    pub(crate) fn is_aged(&self, now: Timestamp, age_ms: u64) -> bool {
        let made = self.active.header.created_at;
        crate::retention::age(made, now).is_some_and(|age| age >= age_ms)
            || crate::retention::is_of_the_future(made, now)
    }
}

/// Creates `dir` and its missing parents, all of them durable when this returns.
pub(crate) fn create_dir_durably(disk: &dyn Disk, dir: &Path) -> Result<(), DiskError> {
    let is_missing = |dir: &&Path| disk.list(dir).is_err_and(|e| e.is_not_found());
    let missing = parents(dir).take_while(is_missing).count();
    disk.create_dir_all(dir)?;
    // A name is durable once the directory that holds it was synced.
    parents(dir)
        .take(missing + 1)
        .try_for_each(|parent| disk.sync_dir(parent))
}

/// The directories above `dir`, nearest first.
pub(crate) fn parents(dir: &Path) -> impl Iterator<Item = &Path> {
    let here = Path::new(".");
    dir.ancestors().skip(1).map(move |dir| {
        if dir.as_os_str().is_empty() {
            here
        } else {
            dir
        }
    })
}

pub(crate) fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<(), DiskError> {
    match disk.remove_file(path) {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}
