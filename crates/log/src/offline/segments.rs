//! What is in a partition's directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, OpenHow, read_up_to};
use tidelog_record::{BATCH_HEADER_LEN, Offset, check_batch};

use crate::error::Corruption;
use crate::header::LogIdentity;
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry, InternalKind};
use crate::open::{Candidate, Opening};
use crate::segment::{base_offset_of, epochs_path, segment_path};

/// A segment file.
pub(super) struct SegmentFile {
    pub(super) base: Offset,
    pub(super) path: PathBuf,
    pub(super) len: u64,
    /// Its header, checked, or what is wrong with it.
    pub(super) header: Result<Candidate, Arc<Corruption>>,
}

/// The files of a partition's directory, each kind by rising offset.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) identity: Option<LogIdentity>,
    pub(super) segments: Vec<SegmentFile>,
    pub(super) indexes: Vec<Offset>,
    pub(super) producers: Vec<Offset>,
    pub(super) has_epochs: bool,
    /// Torn tails that were kept.
    pub(super) torn: Vec<PathBuf>,
    /// Names that no log gives.
    pub(super) others: Vec<PathBuf>,
}

/// Lists the directory and reads the headers of its segments.
pub(super) fn list(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Listing, DiskError> {
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
        } else if path == epochs_path(dir) {
            found.has_epochs = true;
        } else {
            found.others.push(path);
        }
    }
    found.identity = identity(&**disk, dir, &bases)?;
    let Some(identity) = found.identity.or_else(|| any_identity(&bases)) else {
        return Ok(found);
    };
    let opening = Opening::to_look(disk, dir, identity);
    for base in bases {
        let path = segment_path(dir, base);
        let read = disk
            .open(&path, OpenHow::Read)
            .and_then(|file| Ok((file.len()?, opening.read_header(base)?)));
        let (len, header) = match read {
            Ok(read) => read,
            // Retention took it since the directory was listed.
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e),
        };
        found.segments.push(SegmentFile {
            base,
            path,
            len,
            header: header.map_err(Arc::new),
        });
    }
    Ok(found)
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

/// Whose log it is, as most of the headers say that can be read.
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
