//! The indexes of sealed segments: read from the file beside when they are needed, and built again
//! from the segment where that does not lead to the segment's known end. Also where walks begin.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tidelog_disk::DiskFile;
use tidelog_record::{LeaderEpoch, Timestamp};

use crate::error::{Corruption, Damage, ReadError};
use crate::index::{IndexEntry, SegmentIndex};
use crate::options::LogOptions;
use crate::roll::encode_header;
use crate::segment::{LogEnd, SealedEnd, Segment, index_path};
use crate::shared::Shared;
use crate::walk::{Look, Walk, WalkError, corruption};

/// The indexes of the cold segments that were read last; the rest stays on the disk.
#[derive(Debug, Default)]
pub(crate) struct ColdIndexes {
    recent: Mutex<VecDeque<(SealedKey, Arc<SegmentIndex>)>>,
}

/// Which segment an index is of: a compacted one has the sequence number of one before it.
type SealedKey = (u64, SealedEnd);

/// How many cold indexes stay in memory for one log: at most some MiB each.
const COLD_INDEXES_MAX: usize = 4;

impl ColdIndexes {
    fn get(&self, key: SealedKey) -> Option<Arc<SegmentIndex>> {
        let mut recent = self.recent.lock();
        let at = recent.iter().position(|(have, _)| *have == key)?;
        let found = recent.remove(at)?;
        let index = found.1.clone();
        recent.push_front(found);
        Some(index)
    }

    fn put(&self, key: SealedKey, index: Arc<SegmentIndex>) {
        let mut recent = self.recent.lock();
        recent.retain(|(have, _)| *have != key);
        recent.push_front((key, index));
        recent.truncate(COLD_INDEXES_MAX);
    }
}

impl Shared {
    /// Looks something up in a segment's index, reading it from the file beside when it is cold,
    /// and building it again when that file is missing or broken.
    pub(crate) fn with_index<T>(
        &self,
        segment: &Segment,
        look: impl FnOnce(&SegmentIndex) -> T,
    ) -> Result<T, ReadError> {
        if let Some(index) = &*segment.index.read() {
            return Ok(look(index));
        }
        let sealed = segment.sealed_end().expect("only sealed segments are cold");
        let key = (segment.header.sequence, sealed);
        if let Some(index) = self.cold_indexes.get(key) {
            return Ok(look(&index));
        }
        let index = Arc::new(self.load_sealed_index(segment, sealed)?);
        self.cold_indexes.put(key, index.clone());
        Ok(look(&index))
    }

    fn load_sealed_index(
        &self,
        segment: &Segment,
        sealed: SealedEnd,
    ) -> Result<SegmentIndex, ReadError> {
        let path = index_path(&self.dir, segment.header.base_offset);
        let base = Segment::index_base(&segment.header);
        let index = SegmentIndex::load(&*self.disk, &path, base, u64::from(sealed.len));
        if index
            .entries()
            .last()
            .is_some_and(|last| last.is_end && is_end_of(last, &sealed))
        {
            return Ok(index);
        }
        tracing::warn!(index = %path.display(), "index is incomplete; building it again");
        let mut index = self.rebuild_index(segment, index, sealed)?;
        if let Err(e) = index.write(&*self.disk, &path) {
            tracing::warn!(error = %e, "index not written; it is built again");
        }
        Ok(index)
    }

    /// Completes `index`, or builds it from nothing where it leads to another end.
    fn rebuild_index(
        &self,
        segment: &Segment,
        mut index: SegmentIndex,
        sealed: SealedEnd,
    ) -> Result<SegmentIndex, ReadError> {
        let file = segment.file(&*self.disk)?;
        loop {
            let is_empty = index.entries().is_empty();
            let start_epoch = |entry: &IndexEntry| Some(self.epoch_before(segment, entry));
            let limit = u64::from(sealed.len);
            let interval = LogOptions::default().index_interval_bytes;
            let mut walk = start_walk(&*file, segment, &mut index, start_epoch);
            let walked = index_while_walking(&mut walk, &mut index, segment, limit, interval);
            let end = IndexEntry::at(&walk.end);
            match walked {
                Ok(()) if is_end_of(&end, &sealed) => {
                    index.push_end(end);
                    return Ok(index);
                }
                Err(e @ WalkError::Disk(_)) => return Err(e.at(&segment.path, &walk.end)),
                _ if !is_empty => index.clear(),
                Err(WalkError::Damage(what)) => {
                    return Err(find_damage(&*file, segment, limit, &walk.end, what).into());
                }
                Ok(()) => {
                    let (found, expected) = (end.chain, sealed.chain);
                    let what = Damage::WrongChain { found, expected };
                    return Err(find_damage(&*file, segment, limit, &walk.end, what).into());
                }
            }
        }
    }

    /// Where a walk begins at an index entry, or behind the segment header.
    pub(crate) fn start_of_walk(&self, segment: &Segment, entry: Option<IndexEntry>) -> LogEnd {
        entry.map_or_else(
            || start_of(segment),
            |entry| start_at(segment, &entry, self.epoch_before(segment, &entry)),
        )
    }

    /// Walks on to the next index entry of a compacted segment, whose chain tells whether the base
    /// offsets on the way are what was written. In other segments each follows from the one before.
    pub(crate) fn check_passed(
        &self,
        segment: &Segment,
        mut walk: Walk<'_>,
    ) -> Result<(), ReadError> {
        if segment.header.compacted.is_none() {
            return Ok(());
        }
        let at = u64::from(walk.end.position);
        let stop = self.with_index(segment, |index| index.at_or_after(at))?;
        let stop = stop.expect("the index of a sealed segment has its end");
        while walk.end.position < stop.position {
            let before = walk.end;
            walk.step(u64::from(stop.position), Look::Headers)
                .map_err(|e| e.at::<ReadError>(&segment.path, &before))?;
        }
        if walk.end.chain != stop.chain {
            let (found, expected) = (walk.end.chain, stop.chain);
            let what = Damage::WrongChain { found, expected };
            return Err(corruption(&segment.path, &walk.start, what).into());
        }
        Ok(())
    }

    /// The leader epoch in force just before an index entry.
    pub(crate) fn epoch_before(&self, segment: &Segment, entry: &IndexEntry) -> LeaderEpoch {
        let known = self.epochs.read().before_index(entry.index);
        known
            .unwrap_or(segment.header.epoch)
            .max(segment.header.epoch)
    }

    /// The largest record timestamp in a sealed segment.
    pub(crate) fn sealed_max_timestamp(&self, segment: &Segment) -> Result<Timestamp, ReadError> {
        self.with_index(segment, |index| {
            index
                .last()
                .map_or(Timestamp::MIN, |last| last.max_timestamp)
        })
    }
}

fn is_end_of(entry: &IndexEntry, sealed: &SealedEnd) -> bool {
    let SealedEnd {
        len,
        offset,
        index,
        chain,
    } = *sealed;
    (entry.position, entry.offset, entry.index, entry.chain) == (len, offset, index, chain)
}

/// Where a walk begins that has no index: behind the segment header.
pub(crate) fn start_of(segment: &Segment) -> LogEnd {
    LogEnd::after_header(&segment.header, &encode_header(&segment.header))
}

/// Where a walk begins at an index entry.
pub(crate) fn start_at(segment: &Segment, entry: &IndexEntry, epoch: LeaderEpoch) -> LogEnd {
    LogEnd {
        position: entry.position,
        offset: entry.offset,
        index: entry.index,
        epoch,
        chain: entry.chain,
        max_timestamp: entry.max_timestamp,
        ..start_of(segment)
    }
}

/// Starts at the last entry of `index` where `epoch` knows the leader epoch in force, which entries
/// do not tell; forgets the entries behind it.
pub(crate) fn start_walk<'a>(
    file: &'a dyn DiskFile,
    segment: &Segment,
    index: &mut SegmentIndex,
    epoch: impl Fn(&IndexEntry) -> Option<LeaderEpoch>,
) -> Walk<'a> {
    let start = index
        .entries()
        .iter()
        .rev()
        .find_map(|entry| Some(start_at(segment, entry, epoch(entry)?)))
        .unwrap_or_else(|| start_of(segment));
    index.cut(start.position);
    Walk::new(file, segment, start)
}

/// Walks to `limit` by headers, adding index entries on the way.
pub(crate) fn index_while_walking(
    walk: &mut Walk<'_>,
    index: &mut SegmentIndex,
    segment: &Segment,
    limit: u64,
    interval: u32,
) -> Result<(), WalkError> {
    while u64::from(walk.end.position) < limit {
        index.push_if_due(&walk.end, segment.header_len, interval);
        walk.step(limit, Look::Headers)?;
    }
    Ok(())
}

/// The first damaged batch below `limit`, after a walk by headers was led astray and ended at `end`
/// with `what`; that itself when every batch looks good.
pub(crate) fn find_damage(
    file: &dyn DiskFile,
    segment: &Segment,
    limit: u64,
    end: &LogEnd,
    what: Damage,
) -> Corruption {
    let mut walk = Walk::new(file, segment, start_of(segment));
    while u64::from(walk.end.position) < limit {
        match walk.step(limit, Look::Everything) {
            Ok(_) => {}
            Err(WalkError::Damage(what)) => return corruption(&segment.path, &walk.end, what),
            // What is known is enough to refuse the file.
            Err(WalkError::Disk(_)) => break,
        }
    }
    corruption(&segment.path, end, what)
}
