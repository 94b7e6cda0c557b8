//! Finding out at the open of a log what is known of its producers.

use std::path::Path;
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError};

use super::{ProducerTable, Snapshot, load_all};
use crate::lookup::start_of;
use crate::segment::{LogEnd, Segment};
use crate::walk::{Look, Walk, WalkError};

/// The producers at the end of a log, and how many bytes of it were walked to know them.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    pub(crate) producers: ProducerTable,
    pub(crate) walked_bytes: u64,
    /// Nothing is missing before where the walk began.
    pub(crate) is_whole: bool,
    /// The disk refused something: there may be more of them.
    pub(crate) failed: Option<DiskError>,
}

/// Why a snapshot is not used.
enum Unfit {
    /// It is of another history of the log, or a segment does not lead to its known end.
    OtherHistory,
    Walk(WalkError),
}

/// Starts from the newest snapshot whose place leads, header by header, to `end`; from the oldest
/// segment when there is none. Compacted segments tell nothing: the last batch of a producer may be
/// one that was left out.
///
/// Producers that cannot be found out about are not known; where that is the disk's doing, it is told.
pub(crate) fn rebuild(
    disk: &dyn Disk,
    dir: &Path,
    segments: &[Arc<Segment>],
    end: &LogEnd,
) -> Rebuilt {
    let mut failed = None;
    match load_all(disk, dir) {
        Ok(snapshots) => {
            for snapshot in snapshots {
                let snapshot = match snapshot {
                    Ok(snapshot) if !end.is_before(&snapshot.end) => snapshot,
                    Ok(_) => continue,
                    Err(e) => {
                        failed = Some(e);
                        continue;
                    }
                };
                let known = Rebuilt {
                    producers: snapshot.producers,
                    is_whole: true,
                    ..Rebuilt::default()
                };
                match walk(disk, segments, snapshot.end, end, known) {
                    Ok(rebuilt) => return rebuilt,
                    Err(Unfit::Walk(WalkError::Disk(e))) => failed = Some(e),
                    Err(_unfit) => {
                        tracing::info!(dir = %dir.display(), offset = %snapshot.end.offset,
                            "a snapshot of producers is not of this history");
                    }
                }
            }
        }
        Err(error) => {
            tracing::warn!(%error, "snapshots of producers cannot be listed");
            failed = Some(error);
        }
    }
    let is_first = |segment: &Arc<Segment>| segment.header.previous.is_none();
    let mut rebuilt = Rebuilt {
        is_whole: segments.first().is_some_and(is_first),
        ..Rebuilt::default()
    };
    for (at, segment) in segments.iter().enumerate() {
        if segment.header.compacted.is_some() {
            continue;
        }
        let one = &segments[at..=at];
        // Damage in a segment is told when it is read; those after it still tell of theirs.
        match walk(
            disk,
            one,
            start_of(segment),
            end,
            std::mem::take(&mut rebuilt),
        ) {
            Ok(more) => rebuilt = more,
            Err(unfit) => {
                let error = match unfit {
                    Unfit::OtherHistory => "its headers lead elsewhere".to_owned(),
                    Unfit::Walk(error) => {
                        let what = format!("{error:?}");
                        if let WalkError::Disk(e) = error {
                            failed = Some(e);
                        }
                        what
                    }
                };
                tracing::warn!(segment = %segment.path.display(), error,
                    "the producers in a segment are not known");
            }
        }
    }
    rebuilt.failed = failed;
    rebuilt
}

/// Whether a snapshot is of this history: whether it leads to `end` through `segments`.
pub(crate) fn leads_on(
    disk: &dyn Disk,
    segments: &[Arc<Segment>],
    snapshot: &Snapshot,
    end: &LogEnd,
) -> bool {
    !end.is_before(&snapshot.end)
        && walk(disk, segments, snapshot.end, end, Rebuilt::default()).is_ok()
}

/// Walks from `start` to `end` through `segments`, noting every batch.
fn walk(
    disk: &dyn Disk,
    segments: &[Arc<Segment>],
    start: LogEnd,
    end: &LogEnd,
    mut rebuilt: Rebuilt,
) -> Result<Rebuilt, Unfit> {
    let first = segments
        .iter()
        .position(|segment| segment.header.sequence == start.sequence)
        .ok_or(Unfit::OtherHistory)?;
    for segment in &segments[first..] {
        // What was left out of it told of producers too.
        if segment.header.compacted.is_some() {
            return Err(Unfit::OtherHistory);
        }
        let (limit, chain) = match segment.sealed_end() {
            Some(sealed) => (sealed.len, sealed.chain),
            None => (end.position, end.chain),
        };
        let from = if segment.header.sequence == start.sequence {
            start
        } else {
            start_of(segment)
        };
        if from.position == limit && from.chain == chain {
            continue;
        }
        let file = segment
            .file(disk)
            .map_err(|e| Unfit::Walk(WalkError::Disk(e)))?;
        let mut walk = Walk::new(&*file, segment, from);
        while walk.end.position < limit {
            let offset = walk.end.offset;
            let header = walk
                .step(u64::from(limit), Look::Headers)
                .map_err(Unfit::Walk)?;
            if !header.attributes.is_control() {
                rebuilt.producers.note(&header, offset, None);
            }
        }
        if (walk.end.position, walk.end.chain) != (limit, chain) {
            return Err(Unfit::OtherHistory);
        }
        rebuilt.walked_bytes += u64::from(limit - from.position);
    }
    Ok(rebuilt)
}
