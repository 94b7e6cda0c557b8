//! Creating a log, and opening one after a stop of any kind.
//!
//! Which segments there are is in `found.rs`, the newest one's end is found in `recover.rs`; here are
//! the order of all that, and what is kept beside.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use tidelog_disk::{Disk, OpenHow};
use tidelog_record::{LeaderEpoch, Offset, RaftIndex, Timestamp};

use crate::ahead::SyncPace;
use crate::epochs::{EpochStart, EpochTable};
use crate::error::{Corruption, CreateError, Damage, OpenError};
use crate::found::{Candidate, Found};
use crate::header::{LogIdentity, SegmentHeader};
use crate::index::IndexEntry;
use crate::log::{Log, create_dir_durably, remove_if_there};
use crate::lookup::start_of;
use crate::options::LogOptions;
use crate::producers::{ProducerTable, UNFINISHED, rebuild};
use crate::recover::Recovered;
use crate::roll::{NewSegment, map_or_go_without, new_segment_file};
use crate::segment::{
    CLEANED, LogEnd, SealedEnd, Segment, base_offset_of, epochs_path, index_path, segment_path,
};
use crate::shared::Shared;
use crate::walk::{Look, Walk};

/// The Raft index and term before the first entry of every log, as if a snapshot were there: a
/// replica that joins later without any data then always asks for one.
pub const INITIAL_INDEX: RaftIndex = RaftIndex::new(5);
/// See [`INITIAL_INDEX`].
pub const INITIAL_EPOCH: LeaderEpoch = LeaderEpoch::new(5).expect("5 is small");

/// What opening a log found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes above the sync checkpoint that were verified and kept.
    pub kept_bytes: u64,
    /// Bytes of a torn tail that were cut; reserved space does not count.
    pub torn_bytes: u64,
}

impl Log {
    /// Creates an empty log in `dir`, which is created too, and makes it durable.
    ///
    /// # Errors
    /// [`CreateError::Exists`] when there is a segment in `dir`.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        now: Timestamp,
    ) -> Result<Self, CreateError> {
        Self::create_how(disk, dir, identity, options, now, false)
    }

    pub(crate) fn create_how(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        now: Timestamp,
        is_replica: bool,
    ) -> Result<Self, CreateError> {
        create_dir_durably(&*disk, dir)?;
        if disk
            .list(dir)?
            .iter()
            .any(|entry| base_offset_of(&entry.name, "log").is_some())
        {
            return Err(CreateError::Exists {
                dir: dir.to_owned(),
            });
        }
        let header = SegmentHeader {
            compatible_features: 0,
            incompatible_features: 0,
            identity,
            sequence: 1,
            base_offset: Offset::ZERO,
            base_index: INITIAL_INDEX.checked_add(1).expect("6 is small"),
            epoch: INITIAL_EPOCH,
            log_start: Offset::ZERO,
            created_at: now,
            previous: None,
            compacted: None,
        };
        let NewSegment {
            segment: active,
            file,
            end,
            reserved,
        } = new_segment_file(&*disk, dir, &options, header)?;
        let segments = vec![active.clone()];
        let epochs = EpochTable::default();
        let file_and_end = (file.clone(), end);
        let shared = Shared::new(
            disk,
            dir,
            identity,
            segments,
            epochs,
            file_and_end,
            is_replica,
        );
        Ok(Self {
            shared: Arc::new(shared),
            options,
            active,
            file,
            end,
            reserved,
            epochs_unwritten: false,
            producers: ProducerTable::default(),
            since_snapshot: 0,
            snapshot_len: 0,
            durable_snapshots: BTreeMap::new(),
            owes_snapshot: false,
            noted: 0,
            pending_epoch: None,
            sync_pace: SyncPace::default(),
            recent_snapshots: VecDeque::new(),
            tail: None,
            removed: Vec::new(),
            unremoved: Vec::new(),
        })
    }

    /// Opens the log in `dir` after a stop of any kind. When this returns, all of it is durable.
    ///
    /// `checkpoint` is the last end that was recorded as durable. Without one, all of the newest
    /// segment counts as not known to be durable.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] names the damage; no file was changed. [`OpenError::Missing`] when
    /// there is no log, or only the torn beginning of one that never held anything.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        checkpoint: Option<LogEnd>,
    ) -> Result<(Self, Recovery), OpenError> {
        Self::open_how(disk, dir, identity, options, checkpoint, false, false)
    }

    /// Opens a log that [`Log::close`] closed, and that nobody wrote to since: it ends at `end`.
    /// What [`Log::open`] does to find and keep what lies past the checkpoint is left out, and so
    /// is making names durable, which they are. A file that is not as long as it was left is opened
    /// as after any other stop.
    ///
    /// # Errors
    /// As for [`Log::open`].
    pub fn open_closed(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        end: LogEnd,
    ) -> Result<(Self, Recovery), OpenError> {
        Self::open_how(disk, dir, identity, options, Some(end), true, false)
    }

    pub(crate) fn open_how(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
        checkpoint: Option<LogEnd>,
        closed: bool,
        is_replica: bool,
    ) -> Result<(Self, Recovery), OpenError> {
        Opening {
            disk: &disk,
            dir,
            identity,
            options,
            checkpoint,
            closed,
            is_replica,
        }
        .run()
    }
}

/// The opening of a log, under way.
pub(crate) struct Opening<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    pub(crate) dir: &'a Path,
    pub(crate) identity: LogIdentity,
    pub(crate) options: LogOptions,
    pub(crate) checkpoint: Option<LogEnd>,
    /// Whether the log was closed at the checkpoint.
    pub(crate) closed: bool,
    /// Whether others tell how far the log is committed.
    pub(crate) is_replica: bool,
}

impl<'a> Opening<'a> {
    /// For reading headers alone.
    pub(crate) fn to_look(disk: &'a Arc<dyn Disk>, dir: &'a Path, identity: LogIdentity) -> Self {
        Self {
            disk,
            dir,
            identity,
            options: LogOptions::default(),
            checkpoint: None,
            closed: false,
            is_replica: false,
        }
    }
}

impl Opening<'_> {
    fn run(self) -> Result<(Log, Recovery), OpenError> {
        let Found {
            mut candidates,
            unfinished,
            replaced,
        } = self.find()?;
        let Some(newest) = candidates.pop() else {
            if let Some(checkpoint) = self.checkpoint {
                return Err(self.missing(checkpoint.sequence, checkpoint.offset).into());
            }
            self.remove_unfinished(unfinished)?;
            return Err(OpenError::Missing {
                dir: self.dir.to_owned(),
            });
        };
        if let Some(checkpoint) = &self.checkpoint
            && newest.header.sequence < checkpoint.sequence
        {
            return Err(self.missing(checkpoint.sequence, checkpoint.offset).into());
        }

        if let Some(compacted) = &newest.header.compacted {
            let sequence = compacted.last_sequence.saturating_add(1);
            return Err(self.missing(sequence, compacted.end_offset).into());
        }
        let path = segment_path(self.dir, newest.header.base_offset);
        let file = self.disk.open(&path, OpenHow::Write)?;
        let recovered = self.recover(&*file, &newest)?;
        let end = recovered.end;
        let sealed = self.check_chain(candidates, &newest, end.log_start)?;

        // Nothing was changed until here: a refusal leaves the files as they were.
        let is_whole = recovered.as_closed && unfinished.is_none();
        self.remove_unfinished(unfinished)?;
        let reserved = if is_whole {
            newest.len
        } else {
            self.make_durable(&*file, &newest, &recovered)?
        };
        let Recovered {
            mut index,
            walked_from,
            epochs,
            recovery,
            ..
        } = recovered;
        if end.position > newest.header_len {
            // So that what is appended now is read from here on, through the map.
            index.push(IndexEntry::at(&end));
        }
        let map_len = map_or_go_without(&*file, &self.options);
        let active = Arc::new(Segment::active(
            path,
            newest.header,
            newest.header_len,
            file.clone(),
            index,
            end.position,
            map_len,
        ));
        self.remove_replaced(&replaced);
        let mut segments = self.sealed_segments(sealed, &active)?;
        segments.push(active.clone());
        let epochs = self.epochs(&segments, &end, &walked_from, epochs)?;
        let known = rebuild(&**self.disk, self.dir, &segments, &end);
        let disk = self.disk.clone();
        let shared = Shared::new(
            disk,
            self.dir,
            self.identity,
            segments,
            epochs,
            (file.clone(), end),
            self.is_replica,
        );
        let mut log = Log {
            shared: Arc::new(shared),
            options: self.options,
            active,
            file,
            end,
            reserved,
            epochs_unwritten: true,
            producers: known.producers,
            since_snapshot: known.walked_bytes,
            snapshot_len: 0,
            durable_snapshots: BTreeMap::new(),
            owes_snapshot: false,
            noted: 0,
            pending_epoch: None,
            sync_pace: SyncPace::default(),
            recent_snapshots: VecDeque::new(),
            tail: None,
            removed: Vec::new(),
            unremoved: Vec::new(),
        };
        log.write_durable_epochs();
        if !self.is_replica {
            // The log start at the end of a replica may be taken back.
            log.remove_below_start();
        }
        Ok((log, recovery))
    }

    /// Finishes what a compaction began; what cannot be removed now is at the next start.
    fn remove_replaced(&self, replaced: &[Offset]) {
        for base in replaced.iter().copied() {
            let paths = [segment_path(self.dir, base), index_path(self.dir, base)];
            for path in paths {
                if let Err(e) = remove_if_there(&**self.disk, &path) {
                    tracing::warn!(error = %e, "a segment that was compacted was not removed");
                }
            }
        }
    }

    /// The sealed segments, as they are read. Removes files that belong to none, and what a compaction
    /// did not finish.
    fn sealed_segments(
        &self,
        sealed: Vec<(Candidate, SealedEnd)>,
        active: &Segment,
    ) -> Result<Vec<Arc<Segment>>, OpenError> {
        let segments = sealed.into_iter().map(|(candidate, end)| {
            let path = segment_path(self.dir, candidate.header.base_offset);
            let header_len = candidate.header_len;
            let segment = Segment::sealed(path, candidate.header, header_len, end);
            Arc::new(segment)
        });
        let segments: Vec<_> = segments.collect();
        let first = segments.first().map_or(active, |segment| segment);
        let first = first.header.base_offset;
        for entry in self.disk.list(self.dir)? {
            let base =
                base_offset_of(&entry.name, "log").or_else(|| base_offset_of(&entry.name, "index"));
            let is_half = [CLEANED, UNFINISHED]
                .iter()
                .any(|end| base_offset_of(&entry.name, end).is_some());
            if (is_half || base.is_some_and(|base| base < first))
                && let Err(e) = remove_if_there(&**self.disk, &self.dir.join(&entry.name))
            {
                tracing::warn!(error = %e, "a file that is not needed was not removed");
            }
        }
        Ok(segments)
    }

    /// The epoch table: from its file, completed from the segments.
    ///
    /// What is in the file is true, but its end may be missing. `in_tail` are the epochs that began
    /// past `walked_from`, up to the end.
    fn epochs(
        &self,
        segments: &[Arc<Segment>],
        end: &LogEnd,
        walked_from: &LogEnd,
        in_tail: Vec<EpochStart>,
    ) -> Result<EpochTable, OpenError> {
        let path = epochs_path(self.dir);
        let mut table = EpochTable::load(&**self.disk, &path);
        table.cut(end.index);
        if table.knows(walked_from.index, walked_from.epoch) {
            for start in in_tail {
                table.push(start);
            }
            let knows_all = table.knows(end.index, end.epoch)
                && segments
                    .iter()
                    .all(|s| table.knows(s.header.base_index, s.header.epoch));
            if knows_all {
                return Ok(table);
            }
        }

        // Also after a stop in order: what a leader has begun and nobody committed is not in the file.
        tracing::info!(file = %path.display(), "the epoch table ends early; it is built again");
        table.clear();
        let ends = segments
            .iter()
            .skip(1)
            .map(|next| next.header.epoch)
            .chain([end.epoch]);
        for (segment, last_epoch) in segments.iter().zip(ends) {
            if segment.header.epoch > INITIAL_EPOCH {
                // Known already, unless the segments that held its beginning are gone.
                table.push(EpochStart {
                    epoch: segment.header.epoch,
                    offset: segment.header.base_offset,
                    index: segment.header.base_index,
                });
            }
            if last_epoch != segment.header.epoch {
                let limit = segment.sealed_end().map_or(end.position, |end| end.len);
                self.add_epochs(segment, limit, &mut table)?;
            }
        }
        Ok(table)
    }

    fn add_epochs(
        &self,
        segment: &Segment,
        limit: u32,
        table: &mut EpochTable,
    ) -> Result<(), OpenError> {
        let file = self.disk.open(&segment.path, OpenHow::Read)?;
        let limit = u64::from(limit);
        let mut walk = Walk::new(&*file, segment, start_of(segment));
        while u64::from(walk.end.position) < limit {
            let before = walk.end;
            walk.step(limit, Look::Headers)
                .map_err(|e| e.at::<OpenError>(&segment.path, &before))?;
        }
        for start in walk.epochs {
            table.push(start);
        }
        Ok(())
    }

    pub(crate) fn missing(&self, sequence: u64, offset: Offset) -> Corruption {
        Corruption {
            path: self.dir.to_owned(),
            position: 0,
            offset,
            what: Damage::MissingSegment { sequence },
        }
    }

    pub(crate) fn corrupt(&self, base: Offset, position: u64, what: Damage) -> Corruption {
        Corruption {
            path: segment_path(self.dir, base),
            position,
            offset: base,
            what,
        }
    }
}
