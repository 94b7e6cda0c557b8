//! Rolling: sealing the active segment and beginning the next one.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, DiskOp, OpenHow};
use tidelog_record::{RaftIndex, Timestamp};

use crate::error::{AppendError, Poisoned};
use crate::header::{PreviousSegment, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::index::SegmentIndex;
use crate::internal::{InternalEntry, InternalKind};
use crate::log::{Log, remove_if_there};
use crate::options::LogOptions;
use crate::segment::{LogEnd, SealedEnd, Segment, segment_path};

/// A segment that was just begun.
#[derive(Debug)]
pub(crate) struct NewSegment {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) end: LogEnd,
    /// Space is taken for the file up to here.
    pub(crate) reserved: u64,
}

impl Log {
    pub(crate) fn roll_if_due(&mut self, len: u64, now: Timestamp) -> Result<(), AppendError> {
        let has_records = self.end.offset > self.active.header.base_offset;
        let max = u64::from(self.options.segment_bytes_max());
        let full = u64::from(self.end.position) + len > max;
        // Index entries count records from the base in 32 bits.
        let far = self
            .end
            .offset
            .records_since(self.active.header.base_offset)
            > u64::from(u32::MAX >> 1);
        if has_records && (full || far || self.is_old(now)) {
            self.roll(now)?;
        }
        Ok(())
    }

    /// Seals the active segment when it holds records and was made `age_ms` ago or more, and begins
    /// the next one: what retention does where no append comes to do it.
    ///
    /// # Errors
    /// As for [`Log::roll`].
    pub fn roll_if_aged(&mut self, now: Timestamp, age_ms: u64) -> Result<(), AppendError> {
        let has_records = self.end.offset > self.active.header.base_offset;
        if has_records && self.is_aged(now, age_ms) {
            self.begin_pending_epoch()?;
            self.roll(now)?;
        }
        Ok(())
    }

    /// Seals the active segment and begins the next one.
    ///
    /// In this order: the old file is cut to its end and synced; the new file gets its header and
    /// is synced; the directory is synced; only then does anything go to the new file. A crash in
    /// between leaves the old file whole and perhaps a new one with a torn header, which the next
    /// open removes.
    ///
    /// # Errors
    /// [`AppendError::Full`] when there is no space for the new file, and
    /// [`AppendError::OutOfFiles`] when it cannot be opened: the old one stays active.
    /// [`AppendError::Poisoned`] when this or an earlier write or sync failed.
    ///
    /// # Panics
    /// When the active segment has no records: the next one would have its name.
    pub fn roll(&mut self, now: Timestamp) -> Result<(), AppendError> {
        assert!(
            self.end.offset > self.active.header.base_offset,
            "a segment without records is never rolled: the next would have its name"
        );
        self.shared.check()?;
        self.cut_reserve()?;
        self.write_index(true);
        self.sync_file()?;
        self.write_durable_epochs();

        let header = SegmentHeader {
            compatible_features: 0,
            incompatible_features: 0,
            identity: self.shared.identity,
            sequence: self.end.sequence + 1,
            base_offset: self.end.offset,
            base_index: self.end.index,
            epoch: self.end.epoch,
            log_start: self.end.log_start,
            created_at: now,
            previous: Some(PreviousSegment {
                sequence: self.end.sequence,
                len: u64::from(self.end.position),
                end_offset: self.end.offset,
                end_index: self.end.index,
                last_epoch: self.end.epoch,
                chain: self.end.chain,
            }),
            compacted: None,
        };
        let NewSegment {
            segment,
            file,
            end,
            reserved,
        } = self.create_segment(header)?;
        self.active.seal(SealedEnd::of(&self.end));
        let mut segments = self.shared.segments().to_vec();
        // The segment before the one just sealed is no longer likely to be cached.
        if let Some(before) = segments.len().checked_sub(2) {
            segments[before].cool();
        }
        segments.push(segment.clone());
        self.active = segment;
        self.file = file;
        self.end = end;
        self.reserved = reserved;
        if let Some(tail) = &mut self.tail {
            tail.rolled(end);
        }
        // First: whoever is told of an end in it finds the segment.
        self.shared.set_segments(segments);
        self.shared.set_written(end, &self.file);
        self.shared.set_durable(end, &*self.file);
        // Durable, since the segments before tell nothing any more of their producers once they are
        // removed, and kept for as long as this segment is. Without it the log is as good.
        self.write_producers_durably();
        self.remove_stale_producers();
        Ok(())
    }

    pub(crate) fn sync_file(&mut self) -> Result<(), Poisoned> {
        self.shared.sync_cut(self.end, &*self.file)
    }

    fn create_segment(&self, header: SegmentHeader) -> Result<NewSegment, AppendError> {
        let path = segment_path(self.dir(), header.base_offset);
        let failed = match new_segment_file(self.disk(), self.dir(), &self.options, header) {
            Ok(created) => return Ok(created),
            Err(e) if e.is_full() || is_out_of_files(&e) => e,
            Err(e) => return Err(self.shared.poison(e).into()),
        };
        // The old segment grows on. A file that claims to follow it as it is now must be gone for
        // good before that, or the next open would take the old one for damaged. Where there was
        // none, nothing has to be made durable, which may need an open file that there is not.
        match self.disk().remove_file(&path) {
            Ok(()) => self.disk().sync_dir(self.dir()),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        }
        .map_err(|e| self.shared.poison(e))?;
        tracing::warn!(error = %failed, "a new segment could not be begun");
        let dir = self.dir().to_owned();
        Err(if failed.is_full() {
            let needed = SEGMENT_HEADER_LEN as u64;
            AppendError::Full { dir, needed }
        } else {
            AppendError::OutOfFiles { dir }
        })
    }
}

/// Whether a file or directory could not be opened because the process has too many open. Of any
/// other call it would say nothing good.
fn is_out_of_files(error: &DiskError) -> bool {
    error.is_out_of_files() && matches!(error.op, DiskOp::Open | DiskOp::SyncDir)
}

/// Creates the file of a new segment and makes it and its name durable.
pub(crate) fn new_segment_file(
    disk: &dyn Disk,
    dir: &Path,
    options: &LogOptions,
    header: SegmentHeader,
) -> Result<NewSegment, DiskError> {
    let path = segment_path(dir, header.base_offset);
    remove_if_there(disk, &path)?;
    let file = disk.open(&path, OpenHow::CreateNew)?;
    let encoded = encode_header(&header);
    file.write_at(0, &[IoSlice::new(&encoded)])?;
    file.sync_data()?;
    disk.sync_dir(dir)?;
    let end = LogEnd::after_header(&header, &encoded);
    // Only now: a file that is longer than its header must have a header.
    let reserved = options.resting_len(end.position);
    if reserved > u64::from(end.position) {
        file.reserve(reserved)?;
    }
    let map_len = map_or_go_without(&*file, options);
    let index = SegmentIndex::new(Segment::index_base(&header));
    let segment = Segment::active(path, header, end.position, file.clone(), index, 0, map_len);
    Ok(NewSegment {
        segment: Arc::new(segment),
        file,
        end,
        reserved,
    })
}

/// Maps an active segment; returns how long the map is. Without one, as when the process has no
/// more maps to give, every read of the segment is a cold one.
pub(crate) fn map_or_go_without(file: &dyn DiskFile, options: &LogOptions) -> u64 {
    match file.map(options.map_len()) {
        Ok(()) => options.map_len(),
        Err(e) => {
            tracing::warn!(error = %e, "a segment is read without a map");
            0
        }
    }
}

pub(crate) fn encode_header(header: &SegmentHeader) -> Vec<u8> {
    InternalEntry {
        index: RaftIndex::ZERO,
        epoch: header.epoch,
        next_offset: header.base_offset,
        kind: InternalKind::SegmentHeader(Box::new(header.clone())),
    }
    .encode()
}
