//! The files of a log that goes on, up to its commit, for another replica to copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use thiserror::Error;
use tidelog_disk::{DiskError, DiskFile, read_up_to};

use super::manifest::{MANIFEST_SEGMENTS_MAX, Manifest, NOTE_BYTES_MAX, SegmentCopy, SideFile};
use crate::error::{Corruption, Damage};
use crate::lookup::start_of;
use crate::producers::{Snapshot, rebuild};
use crate::reader::LogReader;
use crate::roll::encode_header;
use crate::segment::{LogEnd, SealedEnd, Segment};
use crate::shared::Shared;

/// The most that one read gives, in bytes.
pub const CATCH_UP_READ_MAX: u32 = 1 << 20;

/// So many files are held open, so that what retention and compaction remove meanwhile is there until
/// it was read. Of a longer log the rest may be gone when its turn comes.
const FILES_HELD_MAX: usize = 64;

/// Why a part of a copy cannot be read.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The segment was removed or compacted meanwhile, and nobody held it: make another source. What
    /// was copied stays of use.
    #[error("segment file {file} of the copy is gone")]
    Gone {
        /// The file's number.
        file: u32,
    },
    /// There are no such bytes in the copy.
    #[error("file {file} of the copy has no {len} bytes at {position}")]
    OutOfRange {
        /// The file's number.
        file: u32,
        /// Where in it, in bytes.
        position: u64,
        /// How many.
        len: u32,
    },
    /// The log has more segments than a manifest: it cannot be copied.
    #[error("{segments} segments are too many to be copied")]
    TooMany {
        /// Their number.
        segments: usize,
    },
    /// The file is not what it was.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What another replica copies of a log, as it was committed when this was made. The log goes on
/// meanwhile.
///
/// Everything here may wait for the disk. Bytes are given as they are in the files: who gets them
/// checks them.
#[derive(Debug)]
pub struct CatchUpSource {
    shared: Arc<Shared>,
    segments: Vec<Arc<Segment>>,
    manifest: Manifest,
    epochs: Bytes,
    producers: Bytes,
    held: Mutex<BTreeMap<usize, Arc<dyn DiskFile>>>,
}

impl CatchUpSource {
    /// Of the log of `reader`, up to its present commit. `note` goes along in the manifest.
    ///
    /// Reads what is needed to know the producers there: as much as an open of the log does.
    ///
    /// # Errors
    /// [`SourceError::TooMany`]; [`SourceError::Disk`] when what is known of producers cannot be read.
    ///
    /// # Panics
    /// When `note` is longer than [`NOTE_BYTES_MAX`].
    pub fn of(reader: &LogReader, note: Bytes) -> Result<Self, SourceError> {
        assert!(note.len() <= NOTE_BYTES_MAX, "a note that is too long");
        let shared = reader.shared().clone();
        let (segments, end) = committed_segments(&shared)?;
        if segments.len() > MANIFEST_SEGMENTS_MAX {
            let segments = segments.len();
            return Err(SourceError::TooMany { segments });
        }
        let epochs = Bytes::from(shared.epochs.read().file_before(end.index));
        let producers = Bytes::from(producers_at(&shared, &segments, end)?);
        let copies = segments.iter().map(|segment| copy_of(segment, &end));
        let manifest = Manifest {
            identity: shared.identity,
            end,
            segments: copies.collect(),
            epochs: SideFile::of(&epochs),
            producers: SideFile::of(&producers),
            note,
        };
        let source = Self {
            shared,
            segments,
            manifest,
            epochs,
            producers,
            held: Mutex::default(),
        };
        source.hold_from(0);
        Ok(source)
    }

    /// What there is to be copied.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of the file with this number, from `position` on: `len` of them, or as many as there are,
    /// and at most [`CATCH_UP_READ_MAX`].
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn read(&self, file: u32, position: u64, len: u32) -> Result<Bytes, SourceError> {
        let file_len = self.manifest.file_len(file);
        let room = file_len.checked_sub(position).filter(|room| *room > 0);
        let Some(room) = room.filter(|_| len > 0) else {
            return Err(SourceError::OutOfRange {
                file,
                position,
                len,
            });
        };
        let len = len.min(CATCH_UP_READ_MAX);
        let len = u32::try_from(room).map_or(len, |room| len.min(room)) as usize;
        let at = file as usize;
        let Some(segment) = self.segments.get(at) else {
            let is_epochs = at == self.segments.len();
            let bytes = if is_epochs {
                &self.epochs
            } else {
                &self.producers
            };
            let from = usize::try_from(position).expect("within the file");
            return Ok(bytes.slice(from..from + len));
        };
        self.hold_from(at);
        let held = self.held.lock().get(&at).cloned();
        let open = match held {
            Some(open) => open,
            None => open_file(&self.shared, segment).map_err(|e| {
                if e.is_not_found() {
                    SourceError::Gone { file }
                } else {
                    e.into()
                }
            })?,
        };
        let bytes = read_up_to(&*open, position, len)?;
        if bytes.len() < len {
            return Err(SourceError::Corrupt(Corruption {
                path: segment.path.clone(),
                position: position + bytes.len() as u64,
                offset: segment.header.base_offset,
                what: Damage::Short {
                    len: position + bytes.len() as u64,
                    durable: file_len,
                },
            }));
        }
        Ok(bytes.into())
    }

    /// Holds the file of the segment `at` and of those that are read next, and lets go of others.
    fn hold_from(&self, at: usize) {
        let wanted = at..self.segments.len().min(at + FILES_HELD_MAX);
        let mut held = self.held.lock();
        held.retain(|at, _| wanted.contains(at));
        for at in wanted {
            if held.contains_key(&at) {
                continue;
            }
            // Whoever reads it is told why it cannot be opened.
            match open_file(&self.shared, &self.segments[at]) {
                Ok(file) => held.insert(at, file),
                Err(_) => continue,
            };
        }
    }
}

fn open_file(shared: &Shared, segment: &Segment) -> Result<Arc<dyn DiskFile>, DiskError> {
    segment.file(&*shared.disk)
}

/// The segments that hold what is committed above the log start, and the place where that ends, in
/// the last of them.
fn committed_segments(shared: &Shared) -> Result<(Vec<Arc<Segment>>, LogEnd), SourceError> {
    let (segments, committed) = loop {
        let segments = shared.segments();
        let committed = shared.committed();
        // What was committed while these were the segments lies in them.
        if Arc::ptr_eq(&segments, &shared.segments()) {
            break (segments, committed);
        }
    };
    let after = segments.partition_point(|s| s.header.sequence <= committed.sequence);
    let last = after.saturating_sub(1);
    let is_all_committed = segments[last]
        .sealed_end()
        .is_some_and(|sealed| sealed.index <= committed.index);
    let (last, end) = match segments.get(last + 1) {
        // The same place. The segment before may be compacted by now, and a log never ends in one
        // that is.
        Some(next) if is_all_committed => (last + 1, start_of(next)),
        _ => (last, committed),
    };
    if segments[last].header.compacted.is_some() || end.index != committed.index {
        let file = u32::try_from(last).unwrap_or(u32::MAX);
        return Err(SourceError::Gone { file });
    }
    let below_start = segments[1..=last]
        .iter()
        .take_while(|next| next.header.base_offset <= end.log_start);
    let first = below_start.count();
    Ok((segments[first..=last].to_vec(), end))
}

fn copy_of(segment: &Segment, end: &LogEnd) -> SegmentCopy {
    let header = &segment.header;
    let is_last = header.sequence == end.sequence;
    let sealed = segment.sealed_end().filter(|_| !is_last);
    SegmentCopy {
        sequence: header.sequence,
        base_offset: header.base_offset,
        base_index: header.base_index,
        end: sealed.unwrap_or_else(|| SealedEnd::of(end)),
        header_crc: crc32fast::hash(&encode_header(header)),
    }
}

/// The snapshot of the producers at `end`, which lies in the last of `segments`.
fn producers_at(
    shared: &Shared,
    segments: &[Arc<Segment>],
    end: LogEnd,
) -> Result<Vec<u8>, DiskError> {
    let mut cut = segments.to_vec();
    if let Some(last) = cut.last_mut() {
        // As if the log ended there: it may be sealed, further on.
        let (path, header) = (last.path.clone(), last.header.clone());
        *last = Arc::new(Segment::unopened(path, header, last.header_len));
    }
    let known = rebuild(&*shared.disk, &shared.dir, &cut, &end);
    // Without all of them, what a producer has sent already would be taken from it again.
    if let Some(e) = known.failed {
        return Err(e);
    }
    let producers = known.producers;
    Ok(Snapshot { end, producers }.encode())
}
