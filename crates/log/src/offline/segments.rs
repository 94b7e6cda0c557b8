//! What is in a partition's directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow, read_up_to};
use tidelog_record::{BATCH_HEADER_LEN, Offset, check_batch};

use crate::error::Corruption;
use crate::found::Candidate;
use crate::header::{CompactedSegment, LogIdentity};
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry, InternalKind};
use crate::open::Opening;
use crate::producers::UNFINISHED;
use crate::roll::encode_header;
use crate::segment::{CLEANED, base_offset_of, epochs_path, segment_path};

/// A segment file.
pub(super) struct SegmentFile {
    pub(super) base: Offset,
    pub(super) path: PathBuf,
    pub(super) len: u64,
    /// Its header, checked, or what is wrong with it.
    pub(super) header: Result<Candidate, Arc<Corruption>>,
}

impl SegmentFile {
    /// Opens it. `None` when it is gone, or when a compacted segment took its place, since the
    /// directory was listed.
    pub(super) fn open(&self, disk: &dyn Disk) -> Result<Option<Arc<dyn DiskFile>>, DiskError> {
        let file = match disk.open(&self.path, OpenHow::Read) {
            Ok(file) => file,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        if let Ok(candidate) = &self.header {
            let encoded = encode_header(&candidate.header);
            let is_same = read_up_to(&*file, 0, encoded.len())? == encoded;
            return Ok(is_same.then_some(file));
        }
        Ok(Some(file))
    }

    /// What it says of itself, if it is a compacted segment.
    pub(super) fn compacted(&self) -> Option<CompactedSegment> {
        self.header.as_ref().ok()?.header.compacted
    }
}

/// The files of a partition's directory, each kind by rising offset.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) identity: Option<LogIdentity>,
    pub(super) segments: Vec<SegmentFile>,
    /// Segments that a compacted one before them stands for; no part of the log any more.
    pub(super) replaced: Vec<Offset>,
    /// Compacted segments, and snapshots of producers, in the making.
    pub(super) unfinished: Vec<PathBuf>,
    pub(super) indexes: Vec<Offset>,
    pub(super) producers: Vec<Offset>,
    pub(super) has_epochs: bool,
    /// Torn tails that were kept.
    pub(super) torn: Vec<PathBuf>,
    /// Names that no log gives.
    pub(super) others: Vec<PathBuf>,
}

/// How often a directory is listed again whose segments a broker compacts meanwhile.
const LISTED_MAX: usize = 16;

/// Lists the directory and reads the headers of its segments.
pub(super) fn list(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Listing, DiskError> {
    let mut tries = 1;
    loop {
        let (found, has_changed) = list_once(disk, dir)?;
        if !has_changed || tries == LISTED_MAX {
            return Ok(found);
        }
        tries += 1;
    }
}

/// The files, and whether a compaction seems to have changed them since the directory was listed.
fn list_once(disk: &Arc<dyn Disk>, dir: &Path) -> Result<(Listing, bool), DiskError> {
    let mut found = Listing::default();
    let mut bases = Vec::new();
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            found.others.push(path);
        } else if let Some(base) = base_offset_of(&entry.name, "log") {
            bases.push(base);
        } else if let Some(base) = base_offset_of(&entry.name, "index") {
            found.indexes.push(base);
        } else if let Some(offset) = base_offset_of(&entry.name, "producers") {
            found.producers.push(offset);
        } else if base_offset_of(&entry.name, "torn").is_some() {
            found.torn.push(path);
        } else if [CLEANED, UNFINISHED]
            .iter()
            .any(|end| base_offset_of(&entry.name, end).is_some())
        {
            found.unfinished.push(path);
        } else if path == epochs_path(dir) {
            found.has_epochs = true;
        } else {
            found.others.push(path);
        }
    }
    found.identity = identity(&**disk, dir, &bases)?;
    let Some(identity) = found.identity.or_else(|| any_identity(&bases)) else {
        return Ok((found, false));
    };
    let mut has_changed = false;
    let opening = Opening::to_look(disk, dir, identity);
    for base in bases {
        let before = found.segments.last().and_then(SegmentFile::compacted);
        if before.is_some_and(|compacted| base < compacted.end_offset) {
            found.replaced.push(base);
            continue;
        }
        let path = segment_path(dir, base);
        let len = match disk.open(&path, OpenHow::Read) {
            Ok(file) => file.len()?,
            // Retention took it since the directory was listed, or compaction.
            Err(e) if e.is_not_found() => {
                has_changed |= !found.segments.is_empty();
                continue;
            }
            Err(e) => return Err(e),
        };
        let header = match opening.read_header(base) {
            Ok(header) => header.map_err(Arc::new),
            Err(e) if e.is_not_found() => {
                has_changed = true;
                continue;
            }
            Err(e) => return Err(e),
        };
        found.segments.push(SegmentFile {
            base,
            path,
            // Of the same file as the header.
            len: header.as_ref().map_or(len, |candidate| candidate.len),
            header,
        });
    }
    // The one that is appended to was another when the directory was listed.
    has_changed |= found
        .segments
        .last()
        .is_some_and(|newest| newest.compacted().is_some());
    Ok((found, has_changed))
}

/// Where no header can be read, each file is told to be damaged, whoever it belonged to.
fn any_identity(bases: &[Offset]) -> Option<LogIdentity> {
    (!bases.is_empty()).then_some(LogIdentity {
        cluster_id: [0; 16],
        topic_id: tidelog_record::TopicId::from_bytes([0; 16]),
        partition: tidelog_record::PartitionId::new(0),
        incarnation: 0,
    })
}

/// Whose log is in `dir`, as most of its segments' headers say that can be read: `None` where none can.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn log_identity(disk: &dyn Disk, dir: &Path) -> Result<Option<LogIdentity>, DiskError> {
    let entries = disk.list(dir)?;
    let bases = entries.iter();
    let bases = bases.filter_map(|entry| base_offset_of(&entry.name, "log"));
    let bases: Vec<Offset> = bases.collect();
    identity(disk, dir, &bases)
}

fn identity(
    disk: &dyn Disk,
    dir: &Path,
    bases: &[Offset],
) -> Result<Option<LogIdentity>, DiskError> {
    let mut counts: Vec<(LogIdentity, usize)> = Vec::new();
    for base in bases {
        let file = match disk.open(&segment_path(dir, *base), OpenHow::Read) {
            Ok(file) => file,
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e),
        };
        let bytes = read_up_to(&*file, 0, INTERNAL_LEN_MAX)?;
        let Some(identity) = identity_in(&bytes) else {
            continue;
        };
        match counts.iter_mut().find(|(known, _)| *known == identity) {
            Some((_, count)) => *count += 1,
            None => counts.push((identity, 1)),
        }
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    Ok(most.map(|(identity, _)| identity))
}

fn identity_in(bytes: &[u8]) -> Option<LogIdentity> {
    let header = check_batch(bytes, INTERNAL_LEN_MAX).ok()?;
    let entry =
        InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..header.total_len()]).ok()?;
    match entry.kind {
        InternalKind::SegmentHeader(header) => Some(header.identity),
        _ => None,
    }
}
