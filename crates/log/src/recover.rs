//! Finding the end of the newest segment after a stop of any kind.
//!
//! Recovery starts at the sync checkpoint. Bytes below it were durable: if they are not what was
//! written, that is damage, and the log is refused as it is. Above it lie appends whose sync had
//! not been recorded: whole batches that follow on are kept, and made durable before anything else
//! happens; from the first byte that does not fit, the tail is torn. It is copied beside and cut.
//! A valid batch further on proves nothing, since unsynced pages reach the disk in any order.

use std::io::IoSlice;

use tidelog_disk::{DiskError, DiskFile, OpenHow, read_up_to};
use tidelog_record::{BATCH_HEADER_LEN, BatchHeader, LeaderEpoch};

use crate::epochs::EpochStart;
use crate::error::{Corruption, Damage, OpenError};
use crate::found::Candidate;
use crate::index::{IndexEntry, SegmentIndex};
use crate::lookup::{find_damage, index_while_walking, start_of, start_walk};
use crate::open::{Opening, Recovery};
use crate::segment::{LogEnd, Segment, base_offset_of, index_path, segment_path, torn_path};
use crate::walk::{BATCH_BYTES_LIMIT, Look, Walk, WalkError};

/// What was found of the newest segment.
pub(crate) struct Recovered {
    pub(crate) end: LogEnd,
    pub(crate) index: SegmentIndex,
    /// Where the walk to the end began, and the leader epochs that began on the way.
    pub(crate) walked_from: LogEnd,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) recovery: Recovery,
    /// What lies before is known to be durable.
    durable: u64,
    /// Whether the log is as its close left it: durable, names and all.
    pub(crate) as_closed: bool,
}

impl Opening<'_> {
    /// Finds the end of the newest segment, without changing anything.
    pub(crate) fn recover(
        &self,
        file: &dyn DiskFile,
        newest: &Candidate,
    ) -> Result<Recovered, OpenError> {
        let path = segment_path(self.dir, newest.header.base_offset);
        let segment = Segment::unopened(path, newest.header.clone(), newest.header_len);
        let known = self
            .checkpoint
            .filter(|checkpoint| checkpoint.sequence == newest.header.sequence);
        let checkpoint = known.unwrap_or_else(|| start_of(&segment));
        let position = u64::from(checkpoint.position);
        if newest.len < position {
            let what = Damage::Short {
                len: newest.len,
                durable: position,
            };
            let (path, offset) = (segment.path, checkpoint.offset);
            return Err(Corruption {
                path,
                position: newest.len,
                offset,
                what,
            }
            .into());
        }
        let (mut walk, mut index) = self.walk_to(file, &segment, checkpoint)?;
        let walked_from = walk.start;

        let as_closed =
            self.closed && known.is_some() && self.rests_at(file, newest, &checkpoint)?;
        // Above it everything is looked at.
        walk.end = checkpoint;
        let interval = self.options.index_interval_bytes;
        while !as_closed && u64::from(walk.end.position) < newest.len {
            let before = walk.end;
            match walk.step(newest.len, Look::Everything) {
                Ok(_) => index.push_if_due(&before, newest.header_len, interval),
                // Whole and well, but beyond this version: that is not torn.
                Err(e) if e.is_unknown() => return Err(e.at(&segment.path, &before)),
                Err(WalkError::Damage(_)) => break,
                Err(e @ WalkError::Disk(_)) => return Err(e.at(&segment.path, &before)),
            }
        }
        let end = walk.end;
        let recovery = Recovery {
            kept_bytes: u64::from(end.position) - position,
            torn_bytes: if as_closed {
                0
            } else {
                used_bytes(file, u64::from(end.position), newest.len)?
            },
        };
        // Without a checkpoint in it, not even the segment's header is known to be durable.
        let durable = if known.is_some() { position } else { 0 };
        let epochs = walk.epochs;
        Ok(Recovered {
            end,
            index,
            walked_from,
            epochs,
            recovery,
            durable,
            as_closed,
        })
    }

    /// Whether the file is as a close at `end` leaves it: what comes next would show right there.
    fn rests_at(
        &self,
        file: &dyn DiskFile,
        newest: &Candidate,
        end: &LogEnd,
    ) -> Result<bool, DiskError> {
        let position = u64::from(end.position);
        if newest.len == position {
            return Ok(true);
        }
        let next = read_up_to(file, position, BATCH_HEADER_LEN)?;
        let is_blank = next.iter().all(|byte| *byte == 0);
        Ok(is_blank && newest.len == self.options.resting_len(end.position))
    }

    /// Walks by headers to the checkpoint, from as near to it as the index allows, and checks that
    /// they add up to what the checkpoint says.
    fn walk_to<'f>(
        &self,
        file: &'f dyn DiskFile,
        segment: &Segment,
        checkpoint: LogEnd,
    ) -> Result<(Walk<'f>, SegmentIndex), OpenError> {
        let limit = u64::from(checkpoint.position);
        let index_path = index_path(self.dir, segment.header.base_offset);
        let base = Segment::index_base(&segment.header);
        let mut index = SegmentIndex::load(&**self.disk, &index_path, base, limit);
        let epoch = |entry: &IndexEntry| {
            if entry.position == checkpoint.position {
                Some(checkpoint.epoch)
            } else {
                epoch_of_batch(file, entry.position)
            }
        };
        loop {
            let is_empty = index.entries().is_empty();
            let mut walk = start_walk(file, segment, &mut index, epoch);
            let interval = self.options.index_interval_bytes;
            let walked = index_while_walking(&mut walk, &mut index, segment, limit, interval);
            // Log starts before the walk's own start are not seen on the way.
            let found = LogEnd {
                log_start: checkpoint.log_start,
                ..walk.end
            };
            match walked {
                Ok(()) if found == checkpoint => return Ok((walk, index)),
                Err(e @ WalkError::Disk(_)) => return Err(e.at(&segment.path, &walk.end)),
                _ if !is_empty => {
                    tracing::warn!(index = %index_path.display(), "index is broken");
                    index.clear();
                }
                Err(WalkError::Damage(what)) => {
                    return Err(find_damage(file, segment, limit, &walk.end, what).into());
                }
                Ok(()) => {
                    let what = Damage::WrongChain {
                        found: found.chain,
                        expected: checkpoint.chain,
                    };
                    return Err(find_damage(file, segment, limit, &walk.end, what).into());
                }
            }
        }
    }

    /// Keeps a copy of a torn tail, cuts it, and makes what was kept durable. Returns how far space
    /// is taken: where the end is not torn, what was reserved behind it stays. The log would take as
    /// much again, and of its room the disk may have no other.
    pub(crate) fn make_durable(
        &self,
        file: &dyn DiskFile,
        newest: &Candidate,
        recovered: &Recovered,
    ) -> Result<u64, OpenError> {
        let Recovered {
            end,
            durable,
            recovery,
            ..
        } = recovered;
        let position = u64::from(end.position);
        if recovery.torn_bytes > 0 {
            tracing::warn!(segment = %file.path().display(), position, offset = %end.offset,
                bytes = recovery.torn_bytes, "a torn tail is cut");
            if let Err(e) = self.save_torn(file, newest, position) {
                tracing::warn!(error = %e, "the torn tail could not be kept");
            }
        }
        let mut len = position;
        if recovery.torn_bytes == 0 {
            let resting = newest.len.min(self.options.resting_len(end.position));
            // What is there may be a hole, with no space on the disk to fill it.
            let kept = [newest.len, resting]
                .into_iter()
                .find(|kept| *kept > position && file.reserve(*kept).is_ok());
            len = kept.unwrap_or(position);
        }
        let is_cut = newest.len != len;
        if is_cut {
            file.set_len(len)?;
        }
        // What the page cache shows is not yet durable, not even after a sync: an earlier sync may
        // have failed and left these pages marked clean. Writing the same bytes again makes them
        // dirty; each sector then holds what it held, or what it should.
        let mut at = *durable;
        while at < position {
            let len = usize::try_from((position - at).min(1 << 20)).expect("at most 1 MiB");
            let bytes = read_up_to(file, at, len)?;
            file.write_at(at, &[IoSlice::new(&bytes)])?;
            at += len as u64;
        }
        // As a cut leaves it whose own sync may not have come to an end: what was taken back would be
        // there again after power loss.
        let may_be_cut = self.is_replica && newest.len == position;
        if is_cut || may_be_cut || *durable < position {
            file.sync_data()?;
        }
        // Nor are names known to be durable: neither the newest file's, nor that an unfinished file
        // is gone, which would come back to say that the one before it ended where it no longer
        // does.
        self.disk.sync_dir(self.dir)?;
        Ok(len)
    }

    /// Keeps the torn tail for a look: the last one of the log, instead of an earlier one.
    fn save_torn(
        &self,
        file: &dyn DiskFile,
        newest: &Candidate,
        position: u64,
    ) -> Result<(), DiskError> {
        let path = torn_path(self.dir, newest.header.base_offset);
        for entry in self.disk.list(self.dir)? {
            if base_offset_of(&entry.name, "torn").is_some() {
                self.disk.remove_file(&self.dir.join(&entry.name))?;
            }
        }
        let len = usize::try_from((newest.len - position).min(TORN_BYTES_MAX)).expect("small");
        let bytes = read_up_to(file, position, len)?;
        let used = last_used(&bytes).map_or(0, |last| last + 1);
        self.disk
            .open(&path, OpenHow::Create)?
            .write_at(0, &[IoSlice::new(&bytes[..used])])
    }
}

/// A torn tail longer than this is kept in part.
const TORN_BYTES_MAX: u64 = 64 << 20;

/// The leader epoch of the data batch at `position`. At an internal entry the epoch before it is not
/// to be had.
fn epoch_of_batch(file: &dyn DiskFile, position: u32) -> Option<LeaderEpoch> {
    let bytes = read_up_to(file, u64::from(position), BATCH_HEADER_LEN).ok()?;
    let header = BatchHeader::decode(&bytes, BATCH_BYTES_LIMIT).ok()?;
    let is_data = !header.attributes.is_control();
    is_data
        .then(|| LeaderEpoch::from_wire(header.leader_epoch))
        .flatten()
}

/// Where the last byte lies that is not zero. Reserved space is megabytes of zeros in every log that
/// was not closed: blocks of them are compared a register at a time.
fn last_used(bytes: &[u8]) -> Option<usize> {
    let blocks = bytes.rchunks(4096);
    let is_zero = |block: &[u8]| block.iter().fold(0, |any, byte| any | byte) == 0;
    let mut end = bytes.len();
    for block in blocks {
        if !is_zero(block) {
            let last = block.iter().rposition(|byte| *byte != 0)?;
            return Some(end - block.len() + last);
        }
        end -= block.len();
    }
    None
}

/// How many bytes from `at` on are not just reserved space: up to the last byte that is not zero.
fn used_bytes(file: &dyn DiskFile, at: u64, len: u64) -> Result<u64, DiskError> {
    let mut used = 0;
    let mut from = at;
    while from < len {
        let step = usize::try_from((len - from).min(1 << 20)).expect("at most 1 MiB");
        let bytes = read_up_to(file, from, step)?;
        if let Some(last) = last_used(&bytes) {
            used = from - at + last as u64 + 1;
        }
        from += step as u64;
    }
    Ok(used)
}
