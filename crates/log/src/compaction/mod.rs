//! Compaction: of each key only the last record is kept.
//!
//! A run reads the *dirty* part of a log, what was appended since the run before, and notes the
//! newest offset of each key (`keys.rs`), in as much memory as it is given: where that ends, so
//! does the run, and the next one goes on there. Then it goes through all sealed segments from the
//! oldest on, group by group (`plan.rs`), and writes beside each group one file with what is left
//! of it (`rewrite.rs`). [`Log::install`] (`install.rs`) puts that into the group's place.
//!
//! What is left keeps its offset, its batch, its producer and its leader epoch; offsets get gaps.
//! A run works on any thread, reads cold, and disturbs nobody: readers hold the segments they have,
//! and one that finds its segment replaced looks for its offset again.
//!
//! *Tombstones*, records without a value, go last: the run that finds one to be the newest of its
//! key stamps its batch with the time until when it is kept, as Kafka does (the delete horizon), so
//! that whoever reads the log from its start meanwhile learns that the key is gone. By then no
//! older record of that key is left: groups are installed oldest first, each durable before the
//! next, and a run ends where one cannot be.
//!
//! *Crashes*: until the rename a group is as it was, from then on it is the new file, which was
//! synced before. Segments of the group that are still there then are what the new file stands for;
//! the next open removes them. Which part of a log is clean is read off the segments' headers.
//!
//! [`Log::install`]: crate::Log::install

mod install;
mod keys;
mod plan;
mod rewrite;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tidelog_disk::{DiskError, DiskFile};
use tidelog_record::{Batch, BatchHeader, BuildError, Offset, Record, Timestamp, retain_records};

use crate::compaction::keys::KeyMap;
use crate::error::{Corruption, Damage};
use crate::internal::{InternalEntry, InternalKind};
use crate::lookup::start_of;
use crate::reader::{LogReader, next_offset};
use crate::segment::{SealedEnd, Segment};
use crate::shared::Shared;
use crate::time::STORED_LIMITS;
use crate::walk::{BATCH_BYTES_LIMIT, Look, Walk, WalkError, corruption};

pub use install::InstallError;
pub use plan::Compactable;
pub use rewrite::Compacted;

/// How a log is to be compacted.
#[derive(Clone, Debug)]
pub struct CompactionOptions {
    /// The time, by the broker's clock.
    pub now: Timestamp,
    /// The high watermark: only segments that end at or below it are touched, and of a replica only
    /// those whose every entry is committed.
    pub end_max: Offset,
    /// Segments that were sealed less than so many milliseconds ago stay as they are (Kafka's
    /// `min.compaction.lag.ms`).
    pub min_lag_ms: u64,
    /// How many milliseconds tombstones are kept once nothing older of their key is left (Kafka's
    /// `delete.retention.ms`).
    pub delete_retention_ms: u64,
    /// The longest a segment gets by joining others, in bytes (Kafka's `segment.bytes`).
    pub segment_bytes: u32,
    /// How far apart index entries are at least, in bytes.
    pub index_interval_bytes: u32,
    /// The most memory that the keys may take, in bytes: 24 a key, and half as much again.
    pub key_bytes_max: usize,
    /// Random: nobody who chooses keys may know it.
    pub secret: [u8; 16],
}

/// Lets a run go on, or not; told of every step before it reads or writes on.
pub trait Pace {
    /// So many bytes were read. May wait.
    ///
    /// # Errors
    /// [`Stopped`] ends the run; what was installed stays.
    fn read(&mut self, bytes: u64) -> Result<(), Stopped>;

    /// So many bytes are about to be written. May wait.
    ///
    /// # Errors
    /// As for [`Pace::read`].
    fn write(&mut self, bytes: u64) -> Result<(), Stopped>;
}

/// The run is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the compaction was stopped")]
pub struct Stopped;

/// Why a run ended early. The log is as good as before, and what was installed stays.
#[derive(Debug, Error)]
pub enum CompactionError {
    /// The pace said so.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A segment is damaged: nothing of its group was touched.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// What is left of a segment would be longer than a segment can be: the time of its tombstones
    /// takes some bytes a record.
    #[error("what is left of {} does not fit a segment", path.display())]
    TooLong {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A batch cannot be made anew with fewer records.
    #[error("what is left of the batch at offset {offset} of {} cannot be written: {error}", path.display())]
    Unwritable {
        /// The segment's file.
        path: PathBuf,
        /// The batch's base offset.
        offset: Offset,
        /// Why not.
        error: BuildError,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What a run did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionStats {
    /// All records that are gone: those with a newer one of their key, tombstones whose time was over,
    /// records without a key, and those below the log start.
    pub records_removed: u64,
    /// Of `records_removed`, tombstones whose time was over.
    pub tombstones_removed: u64,
    /// Of `records_removed`, records without a key, which no newer record can replace; not those below
    /// the log start.
    pub keyless_removed: u64,
    /// Bytes of the segments whose groups were gone through.
    pub bytes_before: u64,
    /// Bytes of what they became.
    pub bytes_after: u64,
}

/// A run of compaction over one log.
#[derive(Debug)]
pub struct Compaction {
    shared: Arc<Shared>,
    options: CompactionOptions,
    keys: KeyMap,
    /// The keys of all records from the end of the clean part up to here are known.
    covered: Offset,
    groups: VecDeque<Vec<Arc<Segment>>>,
    bytes_left: u64,
    stats: CompactionStats,
    /// The files of the group that was handed out last. While they are held, replacing and removing
    /// them takes only their names, and so little time; the rest is done when they are let go of.
    held: Vec<Arc<dyn DiskFile>>,
}

/// What is left of a batch.
enum Left {
    All,
    Part(Bytes),
    Nothing,
}

impl Compaction {
    /// Begins a run: reads the dirty part. `None` when there is nothing dirty that may be compacted
    /// by now. At most one run may be under way for a log.
    ///
    /// # Errors
    /// See [`CompactionError`].
    pub fn begin(
        reader: &LogReader,
        options: CompactionOptions,
        pace: &mut dyn Pace,
    ) -> Result<Option<Self>, CompactionError> {
        let shared = reader.shared().clone();
        let plan = plan::Plan::of(&shared, options.now, options.min_lag_ms, options.end_max);
        if plan.dirty().is_empty() {
            return Ok(None);
        }
        let records = plan.dirty_records();
        let mut run = Self {
            keys: KeyMap::new(records, options.key_bytes_max, options.secret),
            covered: plan.dirty_from,
            shared,
            options,
            groups: VecDeque::new(),
            bytes_left: 0,
            stats: CompactionStats::default(),
            held: Vec::new(),
        };
        run.note_keys(&plan, pace)?;
        let groups = plan.groups(run.covered, run.options.segment_bytes);
        run.bytes_left = groups.iter().flatten().map(|s| plan::len_of(s)).sum();
        run.groups = groups.into();
        Ok(Some(run))
    }

    /// Writes what is left of the next group; `None` after the last. Install it before calling
    /// again; when that fails, the run is over.
    ///
    /// # Errors
    /// See [`CompactionError`]; the run is over then.
    pub fn next(&mut self, pace: &mut dyn Pace) -> Result<Option<Compacted>, CompactionError> {
        self.held.clear();
        while let Some(group) = self.groups.pop_front() {
            let before: u64 = group.iter().map(|segment| plan::len_of(segment)).sum();
            let compacted = match rewrite::rewrite(self, &group, pace) {
                Ok(compacted) => compacted,
                Err(e) => {
                    self.groups.clear();
                    return Err(e);
                }
            };
            self.bytes_left = self.bytes_left.saturating_sub(before);
            self.stats.bytes_before += before;
            match compacted {
                Some(compacted) => {
                    self.stats.bytes_after += compacted.len_bytes();
                    return Ok(Some(compacted));
                }
                None => self.stats.bytes_after += before,
            }
        }
        Ok(None)
    }

    /// Bytes of the segments that were not gone through yet.
    pub fn bytes_left(&self) -> u64 {
        self.bytes_left
    }

    /// What the run did so far.
    pub fn stats(&self) -> CompactionStats {
        self.stats
    }

    /// Notes the newest offset of each key in the dirty part, as far as there is memory.
    fn note_keys(&mut self, plan: &plan::Plan, pace: &mut dyn Pace) -> Result<(), CompactionError> {
        for segment in plan.dirty() {
            let file = segment.file(&*self.shared.disk)?;
            let mut scan = Scan::new(&*file, segment);
            while let Some((header, bytes)) = scan.next(pace)? {
                let end = next_offset(&header).unwrap_or(Offset::MAX);
                if header.attributes.is_control() || end <= self.covered {
                    continue;
                }
                let base = base_of(&header);
                for record in scan.records(bytes)? {
                    let offset = record.offset(base).unwrap_or(Offset::MAX);
                    if offset < self.covered {
                        continue;
                    }
                    if let Some(key) = &record.key
                        && !self.keys.put(key, offset)
                    {
                        self.covered = offset;
                        return Ok(());
                    }
                }
                self.covered = end;
            }
            self.covered = scan.sealed.offset;
        }
        Ok(())
    }

    fn left_of(
        &mut self,
        scan: &Scan<'_>,
        header: &BatchHeader,
        bytes: Bytes,
    ) -> Result<Left, CompactionError> {
        let base = base_of(header);
        if base >= self.covered {
            return Ok(Left::All);
        }
        let horizon = header.attributes.has_delete_horizon();
        let is_over = horizon && header.base_timestamp <= self.options.now.millis();
        let records = scan.records(bytes)?;
        let count = records.len();
        let mut has_tombstone = false;
        let mut left = Vec::with_capacity(count);
        for record in records {
            let offset = record.offset(base).unwrap_or(Offset::MAX);
            if self.keep_or_count(&record, offset, is_over) {
                has_tombstone |= record.value.is_none();
                left.push(record);
            }
        }
        if left.is_empty() {
            return Ok(Left::Nothing);
        }
        // The time of tombstones that a later run has yet to look at does not begin before it has.
        let is_covered = next_offset(header).is_some_and(|end| end <= self.covered);
        let keep_until = (has_tombstone && !horizon && is_covered).then(|| {
            let retention = i64::try_from(self.options.delete_retention_ms).unwrap_or(i64::MAX);
            Timestamp::from_millis(self.options.now.millis().saturating_add(retention))
        });
        if left.len() == count && keep_until.is_none() {
            return Ok(Left::All);
        }
        // A record from the beginning of time cannot be told relative to now: then its batch goes
        // on without a horizon.
        let part = retain_records(header, &left, keep_until)
            .or_else(|_| retain_records(header, &left, None));
        match part {
            Ok(part) => Ok(Left::Part(part)),
            Err(_) if left.len() == count => Ok(Left::All),
            // With what has to go still there, the segment would not be clean.
            Err(error) => Err(CompactionError::Unwritable {
                path: scan.segment.path.clone(),
                offset: base,
                error,
            }),
        }
    }

    /// Whether the record stays; counts it if not.
    fn keep_or_count(&mut self, record: &Record, offset: Offset, is_over: bool) -> bool {
        if offset >= self.covered {
            return true;
        }
        let mut removed = CompactionStats {
            records_removed: 1,
            ..CompactionStats::default()
        };
        let is_newest = match &record.key {
            // Below the log start nothing is read any more.
            _ if offset < self.shared.log_start() => false,
            Some(key) => self.keys.get(key).is_none_or(|newest| newest <= offset),
            None => {
                removed.keyless_removed = 1;
                false
            }
        };
        let is_expired = is_newest && is_over && record.value.is_none();
        removed.tombstones_removed = u64::from(is_expired);
        if is_newest && !is_expired {
            return true;
        }
        self.stats.records_removed += removed.records_removed;
        self.stats.tombstones_removed += removed.tombstones_removed;
        self.stats.keyless_removed += removed.keyless_removed;
        false
    }
}

/// Goes through the batches of a sealed segment, every checksum verified, up to the end that is
/// known of it.
struct Scan<'a> {
    walk: Walk<'a>,
    segment: &'a Segment,
    sealed: SealedEnd,
    /// Where the batch that was given last begins.
    before: crate::segment::LogEnd,
}

impl<'a> Scan<'a> {
    fn new(file: &'a dyn DiskFile, segment: &'a Segment) -> Self {
        let start = start_of(segment);
        Self {
            walk: Walk::new(file, segment, start),
            segment,
            sealed: segment
                .sealed_end()
                .expect("only sealed segments are compacted"),
            before: start,
        }
    }

    fn next(
        &mut self,
        pace: &mut dyn Pace,
    ) -> Result<Option<(BatchHeader, Bytes)>, CompactionError> {
        self.before = self.walk.end;
        let at = self.before.position;
        if at >= self.sealed.len {
            let end = &self.walk.end;
            let found = SealedEnd::of(end);
            if found == self.sealed {
                return Ok(None);
            }
            let what = Damage::WrongChain {
                found: found.chain,
                expected: self.sealed.chain,
            };
            return Err(corruption(&self.segment.path, end, what).into());
        }
        let failed = |e: WalkError, at| e.at::<CompactionError>(&self.segment.path, at);
        let header = self
            .walk
            .step(u64::from(self.sealed.len), Look::Everything)
            .map_err(|e| failed(e, &self.before))?;
        let len = header.total_len();
        let bytes = self.walk.bytes(u64::from(at), len, len)?;
        let bytes = Bytes::copy_from_slice(bytes);
        pace.read(bytes.len() as u64)?;
        Ok(Some((header, bytes)))
    }

    /// The records of the batch that was given last, which is no internal entry.
    fn records(&self, bytes: Bytes) -> Result<Vec<Record>, Corruption> {
        let records = Batch::check(bytes, BATCH_BYTES_LIMIT).and_then(|batch| {
            batch
                .records(&STORED_LIMITS)?
                .collect::<Result<Vec<_>, _>>()
        });
        records.map_err(|e| corruption(&self.segment.path, &self.before, e.into()))
    }
}

fn base_of(header: &BatchHeader) -> Offset {
    Offset::from_wire(header.base_offset).expect("a walk has passed it")
}

/// Whether an internal entry is kept: an epoch's beginning is, and whatever is not known here; the
/// log start is told by the segments behind.
fn keeps_internal(header: &BatchHeader, bytes: &Bytes) -> bool {
    let body = &bytes[tidelog_record::BATCH_HEADER_LEN..];
    let kind = InternalEntry::decode(header, body).map(|entry| entry.kind);
    !matches!(kind, Ok(InternalKind::LogStart(_)))
}
