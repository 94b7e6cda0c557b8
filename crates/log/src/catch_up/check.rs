//! Whether what was copied is what it must be.

use std::path::{Path, PathBuf};

use thiserror::Error;
use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow, read_up_to};
use tidelog_record::{BATCH_HEADER_LEN, check_batch};

use super::manifest::{Manifest, SegmentCopy, SideFile};
use crate::epochs::EpochStart;
use crate::error::{Corruption, Damage};
use crate::header::SegmentHeader;
use crate::index::{IndexEntry, SegmentIndex};
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry, InternalKind};
use crate::lookup::start_of;
use crate::options::LogOptions;
use crate::segment::{SealedEnd, Segment};
use crate::walk::{Look, Walk, WalkError, corruption};

/// What is wrong with a file that was copied.
#[derive(Debug, Error)]
pub enum Flaw {
    /// A segment is not what the manifest says, or no segment at all.
    #[error(transparent)]
    Segment(#[from] Corruption),
    /// A file beside the segments is another one.
    #[error("{} has the checksum {found:08x}, not {expected:08x}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// That of its bytes.
        found: u32,
        /// What the manifest says.
        expected: u32,
    },
}

/// Why a file does not count.
#[derive(Debug)]
pub(super) enum Unfit {
    Flaw(Flaw),
    Disk(DiskError),
}

impl From<Corruption> for Unfit {
    fn from(corruption: Corruption) -> Self {
        Self::Flaw(corruption.into())
    }
}

impl From<DiskError> for Unfit {
    fn from(e: DiskError) -> Self {
        Self::Disk(e)
    }
}

/// The segment in `file`, if it begins with the header that the manifest means.
pub(super) fn segment_in(
    file: &dyn DiskFile,
    manifest: &Manifest,
    copy: &SegmentCopy,
) -> Result<Option<Segment>, DiskError> {
    let bytes = read_up_to(file, 0, INTERNAL_LEN_MAX)?;
    Ok(header_in(&bytes, manifest, copy).map(|(header, len)| {
        let len = u32::try_from(len).expect("at most a few KiB");
        Segment::unopened(file.path().to_owned(), header, len)
    }))
}

fn header_in(
    bytes: &[u8],
    manifest: &Manifest,
    copy: &SegmentCopy,
) -> Option<(SegmentHeader, usize)> {
    let batch = check_batch(bytes, INTERNAL_LEN_MAX).ok()?;
    let len = batch.total_len();
    let entry = InternalEntry::decode(&batch, &bytes[BATCH_HEADER_LEN..len]).ok()?;
    let InternalKind::SegmentHeader(header) = entry.kind else {
        return None;
    };
    let is_meant = crc32fast::hash(&bytes[..len]) == copy.header_crc
        && header.identity == manifest.identity
        && header.sequence == copy.sequence
        && (header.base_offset, header.base_index) == (copy.base_offset, copy.base_index);
    is_meant.then_some((*header, len))
}

/// How much from the front of `file` is good, in bytes, to a border between batches.
pub(super) fn good_len(
    file: &dyn DiskFile,
    manifest: &Manifest,
    copy: &SegmentCopy,
) -> Result<u64, DiskError> {
    let Some(segment) = segment_in(file, manifest, copy)? else {
        return Ok(0);
    };
    let limit = file.len()?.min(u64::from(copy.end.len));
    let mut walk = Walk::new(file, &segment, start_of(&segment));
    while u64::from(walk.end.position) < limit {
        match walk.step(limit, Look::Everything) {
            Ok(_) => {}
            Err(WalkError::Damage(_)) => break,
            Err(WalkError::Disk(e)) => return Err(e),
        }
    }
    Ok(u64::from(walk.end.position))
}

/// Checks every byte of the segment in the file at `path`. Gives the leader epochs that begin in it,
/// and its index.
pub(super) fn check_segment(
    disk: &dyn Disk,
    path: &Path,
    manifest: &Manifest,
    copy: &SegmentCopy,
) -> Result<(Vec<EpochStart>, SegmentIndex), Unfit> {
    let file = disk.open(path, OpenHow::Read)?;
    let flaw = |position, what| Corruption {
        path: path.to_owned(),
        position,
        offset: copy.base_offset,
        what,
    };
    let len = file.len()?;
    if len != u64::from(copy.end.len) {
        let durable = u64::from(copy.end.len);
        return Err(flaw(len, Damage::Short { len, durable }).into());
    }
    let Some(segment) = segment_in(&*file, manifest, copy)? else {
        let what = Damage::Foreign("it does not begin with the header that was meant");
        return Err(flaw(0, what).into());
    };
    let mut index = SegmentIndex::new(Segment::index_base(&segment.header));
    let interval = LogOptions::default().index_interval_bytes;
    let mut walk = Walk::new(&*file, &segment, start_of(&segment));
    while u64::from(walk.end.position) < len {
        let before = walk.end;
        index.push_if_due(&before, segment.header_len, interval);
        walk.step(len, Look::Everything).map_err(|e| match e {
            WalkError::Damage(what) => Unfit::from(corruption(path, &before, what)),
            WalkError::Disk(e) => Unfit::Disk(e),
        })?;
    }
    index.push_end(IndexEntry::at(&walk.end));
    let is_last = copy.sequence == manifest.end.sequence;
    let is_right = SealedEnd::of(&walk.end) == copy.end && (!is_last || walk.end == manifest.end);
    if !is_right {
        let (found, expected) = (walk.end.chain, copy.end.chain);
        let what = if found == expected {
            Damage::NotContinued("it leads to another end")
        } else {
            Damage::WrongChain { found, expected }
        };
        return Err(corruption(path, &walk.end, what).into());
    }
    Ok((walk.epochs, index))
}

/// The bytes of a file beside the segments, checked.
pub(super) fn check_side_file(
    disk: &dyn Disk,
    path: &Path,
    side: SideFile,
) -> Result<Vec<u8>, Unfit> {
    let file = disk.open(path, OpenHow::Read)?;
    let bytes = read_up_to(&*file, 0, side.len as usize)?;
    let found = SideFile::of(&bytes);
    if found != side || file.len()? != u64::from(side.len) {
        return Err(Unfit::Flaw(Flaw::Checksum {
            path: path.to_owned(),
            found: found.crc,
            expected: side.crc,
        }));
    }
    Ok(bytes)
}
