//! What the writer, the readers and the sync coordinator of one log share.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tidelog_disk::{Disk, DiskError, DiskFile, DiskOp, FileSystem};
use tidelog_record::{Offset, RaftIndex};

use crate::epochs::EpochTable;
use crate::error::Poisoned;
use crate::header::LogIdentity;
use crate::lookup::{ColdIndexes, start_of};
use crate::segment::{LogEnd, Segment};

/// The segments of a log, oldest first; the last one is active. Never empty.
pub(crate) type Segments = Arc<Vec<Arc<Segment>>>;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) identity: LogIdentity,
    segments: RwLock<Segments>,
    /// Of the segments: see [`crate::Log::first_index`]. Raft asks for it all the time.
    first_index: AtomicU64,
    pub(crate) epochs: RwLock<EpochTable>,
    ends: Mutex<Ends>,
    /// Held over every sync of the log, until its outcome is noted. The kernel reports a failure
    /// once: of two syncs at a time, the second could succeed over what the first had just lost.
    syncing: Mutex<()>,
    /// Copies of what `ends` holds, for readers that want one number.
    log_start: AtomicU64,
    end_offset: AtomicU64,
    durable_offset: AtomicU64,
    committed_offset: AtomicU64,
    /// How often the durable end has moved.
    syncs: AtomicU64,
    poisoned: OnceLock<Poisoned>,
    /// How many times entries were taken back. Held while a checkpoint is recorded, or set back.
    cuts: Mutex<u64>,
    /// Whether the directory lies on the file system that rounds sync as a whole; asked once.
    is_on_synced: OnceLock<bool>,
    pub(crate) cold_indexes: ColdIndexes,
}

#[derive(Debug)]
struct Ends {
    /// Given to the operating system, and the file it went to.
    written: LogEnd,
    file: Arc<dyn DiskFile>,
    /// Survives power loss here. `durable <= written`.
    durable: LogEnd,
    /// Is never taken back, as others told; `None` where whatever is durable is not.
    committed: Option<LogEnd>,
}

/// Why a sync did not succeed.
#[derive(Debug)]
pub(crate) enum SyncError {
    /// The log had been poisoned for its own reasons: this says nothing about other logs.
    Before(Poisoned),
    /// The device failed now.
    Now(Poisoned),
}

/// A sync of a log that began.
pub(crate) enum Begun<'a> {
    /// There is nothing to be synced.
    Done(Result<LogEnd, SyncError>),
    Dirty(Dirty<'a>),
}

/// What a sync that began is to make durable. Holds off every other sync of the log.
pub(crate) struct Dirty<'a> {
    shared: &'a Shared,
    end: LogEnd,
    file: Arc<dyn DiskFile>,
    _syncing: MutexGuard<'a, ()>,
}

impl Dirty<'_> {
    /// Takes note of how it went; a failure poisons the log.
    pub(crate) fn finish(self, synced: Result<(), Poisoned>) -> Result<LogEnd, SyncError> {
        let synced = synced.map_err(|poisoned| self.shared.poison_with(poisoned));
        self.shared.note_synced(self.end, &*self.file, synced)?;
        Ok(self.end)
    }
}

impl From<SyncError> for Poisoned {
    fn from(e: SyncError) -> Self {
        match e {
            SyncError::Before(poisoned) | SyncError::Now(poisoned) => poisoned,
        }
    }
}

/// The first entry that is there by itself: behind the last compacted segment, or in the oldest one.
fn first_index_of(segments: &[Arc<Segment>]) -> RaftIndex {
    let compacted = segments.iter().rev().find_map(|s| s.header.compacted);
    compacted.map_or(segments[0].header.base_index, |last| last.end_index)
}

impl Shared {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        segments: Vec<Arc<Segment>>,
        epochs: EpochTable,
        (file, durable): (Arc<dyn DiskFile>, LogEnd),
        is_replica: bool,
    ) -> Self {
        // Until others have told.
        let committed = is_replica.then(|| start_of(&segments[0]));
        let shared = Self {
            disk,
            dir: dir.to_owned(),
            identity,
            first_index: AtomicU64::new(first_index_of(&segments).get()),
            segments: RwLock::new(Arc::new(segments)),
            epochs: RwLock::new(epochs),
            ends: Mutex::new(Ends {
                written: durable,
                file: file.clone(),
                durable,
                committed,
            }),
            syncing: Mutex::default(),
            log_start: AtomicU64::new(durable.log_start.get()),
            end_offset: AtomicU64::new(durable.offset.get()),
            durable_offset: AtomicU64::new(durable.offset.get()),
            committed_offset: AtomicU64::new(durable.offset.get()),
            syncs: AtomicU64::new(0),
            poisoned: OnceLock::new(),
            cuts: Mutex::default(),
            is_on_synced: OnceLock::new(),
            cold_indexes: ColdIndexes::default(),
        };
        if !is_replica {
            file.freeze(u64::from(durable.position));
        }
        shared
    }

    pub(crate) fn segments(&self) -> Segments {
        self.segments.read().clone()
    }

    pub(crate) fn set_segments(&self, segments: Vec<Arc<Segment>>) {
        let mut current = self.segments.write();
        let first_index = first_index_of(&segments);
        self.first_index.store(first_index.get(), Ordering::Release);
        *current = Arc::new(segments);
    }

    pub(crate) fn first_index(&self) -> RaftIndex {
        RaftIndex::new(self.first_index.load(Ordering::Acquire))
    }

    /// The segment that holds `offset`, or would; `None` below the oldest.
    pub(crate) fn segment_at(&self, offset: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let after = segments.partition_point(|segment| segment.header.base_offset <= offset);
        Some(segments[after.checked_sub(1)?].clone())
    }

    /// Whether the segment is still one of the log: not trimmed, and not replaced by a compacted
    /// one.
    pub(crate) fn is_current(&self, segment: &Arc<Segment>) -> bool {
        let current = self.segment_at(segment.header.base_offset);
        current.is_some_and(|current| Arc::ptr_eq(&current, segment))
    }

    pub(crate) fn log_start(&self) -> Offset {
        load(&self.log_start)
    }

    pub(crate) fn set_log_start(&self, offset: Offset) {
        self.log_start.store(offset.get(), Ordering::Release);
    }

    pub(crate) fn end_offset(&self) -> Offset {
        load(&self.end_offset)
    }

    pub(crate) fn durable_offset(&self) -> Offset {
        load(&self.durable_offset)
    }

    pub(crate) fn committed_offset(&self) -> Offset {
        load(&self.committed_offset)
    }

    /// What is before it never changes: it is committed, as far as others tell, or durable.
    pub(crate) fn committed(&self) -> LogEnd {
        let ends = self.ends.lock();
        ends.committed.unwrap_or(ends.durable)
    }

    /// Takes `end` as committed, and hands the bytes before it over to slicing.
    pub(crate) fn set_committed(&self, end: LogEnd) {
        for segment in self.segments().iter().rev() {
            let len = match segment.sealed_end() {
                _ if segment.header.sequence > end.sequence => continue,
                _ if segment.header.sequence == end.sequence => end.position,
                Some(sealed) => sealed.len,
                None => continue,
            };
            // One that is cold has no map to be sliced.
            let Some(file) = segment.open_file() else {
                break;
            };
            if file.frozen() >= u64::from(len) {
                break;
            }
            file.freeze(u64::from(len));
        }
        self.ends.lock().committed = Some(end);
        self.committed_offset
            .store(end.offset.get(), Ordering::Release);
    }

    /// How many times entries were taken back; no checkpoint is recorded, or set back, while it is
    /// held.
    pub(crate) fn cuts(&self) -> MutexGuard<'_, u64> {
        self.cuts.lock()
    }

    /// Keeps others from syncing the log, and waits for who does.
    pub(crate) fn hold_syncs(&self) -> MutexGuard<'_, ()> {
        self.syncing.lock()
    }

    /// The log was cut to end at `end`, and that is durable. Syncs are held.
    pub(crate) fn set_back(&self, end: LogEnd, file: &Arc<dyn DiskFile>) {
        let mut ends = self.ends.lock();
        ends.written = end;
        ends.durable = end;
        ends.file = file.clone();
        self.end_offset.store(end.offset.get(), Ordering::Release);
        self.durable_offset
            .store(end.offset.get(), Ordering::Release);
    }

    /// How many syncs made something durable, since the log was opened.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    pub(crate) fn durable(&self) -> LogEnd {
        self.ends.lock().durable
    }

    pub(crate) fn set_written(&self, end: LogEnd, file: &Arc<dyn DiskFile>) {
        let mut ends = self.ends.lock();
        ends.written = end;
        if !Arc::ptr_eq(&ends.file, file) {
            ends.file = file.clone();
        }
        self.end_offset.store(end.offset.get(), Ordering::Release);
    }

    /// Takes `end` as durable in `file`, and hands its bytes over to slicing where they are committed
    /// with that.
    pub(crate) fn set_durable(&self, end: LogEnd, file: &dyn DiskFile) {
        let mut ends = self.ends.lock();
        if ends.committed.is_none() {
            file.freeze(u64::from(end.position));
        }
        if ends.durable.is_before(&end) {
            ends.durable = end;
            self.durable_offset
                .store(end.offset.get(), Ordering::Release);
            if ends.committed.is_none() {
                self.committed_offset
                    .store(end.offset.get(), Ordering::Release);
            }
            self.syncs.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes all that is written durable. Called from any thread; see the crate's docs.
    pub(crate) fn sync(&self) -> Result<LogEnd, SyncError> {
        self.check().map_err(SyncError::Before)?;
        if let Some(durable) = self.all_durable() {
            return Ok(durable);
        }
        match self.begin(self.syncing.lock()) {
            Begun::Done(result) => result,
            Begun::Dirty(dirty) => {
                let synced = dirty.file.sync_data();
                dirty.finish(synced.map_err(|e| self.poison(e)))
            }
        }
    }

    /// Whether a sync of `file_system`, the one there is for the life of the log, covers it.
    pub(crate) fn is_on(&self, file_system: &dyn FileSystem) -> bool {
        *self.is_on_synced.get_or_init(|| {
            file_system.holds(&self.dir).unwrap_or_else(|error| {
                tracing::warn!(%error, "a log is synced by itself: it is not known where it lies");
                false
            })
        })
    }

    /// Begins a sync that somebody else makes for many logs at once; `None` while another sync of
    /// this one is under way.
    pub(crate) fn begin_sync(&self) -> Option<Begun<'_>> {
        Some(self.begin(self.syncing.try_lock()?))
    }

    fn begin<'a>(&'a self, syncing: MutexGuard<'a, ()>) -> Begun<'a> {
        if let Err(poisoned) = self.check() {
            return Begun::Done(Err(SyncError::Before(poisoned)));
        }
        // Whoever had the lock may have synced all of it.
        if let Some(durable) = self.all_durable() {
            return Begun::Done(Ok(durable));
        }
        let (end, file) = {
            let ends = self.ends.lock();
            (ends.written, ends.file.clone())
        };
        Begun::Dirty(Dirty {
            shared: self,
            end,
            file,
            _syncing: syncing,
        })
    }

    pub(crate) fn unsynced_bytes(&self) -> u64 {
        let ends = self.ends.lock();
        let (written, durable) = (&ends.written, &ends.durable);
        // A roll makes all before it durable.
        let from = if written.sequence == durable.sequence {
            durable.position
        } else {
            0
        };
        u64::from(written.position.saturating_sub(from))
    }

    /// The durable end, when nothing was written past it.
    fn all_durable(&self) -> Option<LogEnd> {
        let ends = self.ends.lock();
        (!ends.durable.is_before(&ends.written)).then_some(ends.durable)
    }

    /// Syncs `file`, whose log ends at `end`, whatever is known to be durable: a cut changes its
    /// length after the last append may have been synced.
    pub(crate) fn sync_cut(&self, end: LogEnd, file: &dyn DiskFile) -> Result<(), Poisoned> {
        let _syncing = self.syncing.lock();
        self.check()?;
        let synced = file.sync_data().map_err(|e| self.poison(e));
        Ok(self.note_synced(end, file, synced)?)
    }

    /// Takes note of how a sync went that began when `file` ended at `end`. `syncing` is held.
    fn note_synced(
        &self,
        end: LogEnd,
        file: &dyn DiskFile,
        synced: Result<(), Poisoned>,
    ) -> Result<(), SyncError> {
        synced.map_err(SyncError::Now)?;
        // Poisoned meanwhile, by a write or by another log of its round: then this success is not
        // to be trusted.
        self.check().map_err(SyncError::Before)?;
        self.set_durable(end, file);
        Ok(())
    }

    /// How far the bytes of a segment may be read, by whoever was told of them.
    pub(crate) fn readable_len(&self, segment: &Segment) -> u32 {
        let committed = self.committed();
        if committed.sequence == segment.header.sequence {
            return committed.position;
        }
        if committed.sequence < segment.header.sequence {
            return segment.header_len;
        }
        // A segment is sealed before the next one becomes the durable end.
        segment
            .sealed_end()
            .map_or(segment.header_len, |end| end.len)
    }

    pub(crate) fn check(&self) -> Result<(), Poisoned> {
        self.poisoned().map_or(Ok(()), Err)
    }

    /// Ends all writes for good without a failure: the log's files are about to be others. Waits for
    /// a sync that has begun; no end of the log is recorded from now on.
    pub(crate) fn retire(&self) {
        let _syncing = self.syncing.lock();
        let mut cuts = self.cuts.lock();
        *cuts += 1;
        self.poisoned.get_or_init(|| {
            let why = "the log was replaced by the files of another replica";
            let source = io::Error::other(why);
            Poisoned {
                cause: Arc::new(DiskError::new(DiskOp::Rename, &self.dir, source)),
            }
        });
    }

    pub(crate) fn poisoned(&self) -> Option<Poisoned> {
        self.poisoned.get().cloned()
    }

    /// Stops all writes for good; the first cause is kept.
    pub(crate) fn poison(&self, cause: DiskError) -> Poisoned {
        self.poison_with(Poisoned {
            cause: Arc::new(cause),
        })
    }

    pub(crate) fn poison_with(&self, poisoned: Poisoned) -> Poisoned {
        let first = self.poisoned.get_or_init(|| {
            tracing::error!(dir = %self.dir.display(), cause = %poisoned.cause,
                "a write failed; the log takes no more until it is opened again");
            poisoned
        });
        first.clone()
    }
}

fn load(offset: &AtomicU64) -> Offset {
    Offset::new(offset.load(Ordering::Acquire)).expect("only offsets are stored")
}
