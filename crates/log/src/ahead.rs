//! Space ahead of the end of a log: taken before it is needed, so that a full disk refuses an append
//! before anything of it is written, and filled with zeros where that makes syncs cheaper.
//!
//! The first sync of a block that was only reserved has the file system note, beside the block
//! itself, that it holds data now: a second write, or a commit of the journal. A sync over blocks
//! that were written before has nothing else to write. So where each sync covers little, a step of
//! space is filled with zeros at once, and the sync that follows pays for all of them together.
//! Where each covers much, that would double what goes to the device, and the step stays as it is.

use std::io::IoSlice;

use crate::error::{AppendError, Poisoned};
use crate::log::Log;
use crate::segment::SEGMENT_BYTES_LIMIT;

/// An active file is extended by at least this many bytes at a time ...
const STEP_MIN: u64 = 64 << 10;
/// ... and at most this many, doubling in between.
const STEP_MAX: u64 = 32 << 20;
/// A step is filled where no more than this was synced at a time.
const FILL_SYNC_BYTES_MAX: u64 = 128 << 10;
/// A step that is filled is about so many syncs long: fewer than one in a hundred takes longer for
/// it ...
const FILL_SYNCS: u64 = 128;
/// ... but for those that would be held up too long by more than this.
const FILL_MAX: u64 = 4 << 20;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How much each sync of a log covers, as far as that is known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SyncPace {
    /// Bytes appended since they were last counted.
    appended: u64,
    /// The syncs of the log at that time.
    syncs: u64,
}

impl SyncPace {
    /// How many bytes each sync covered since the last call; `None` when there was none.
    fn bytes_per_sync(&mut self, syncs: u64) -> Option<u64> {
        let appended = std::mem::take(&mut self.appended);
        let count = syncs - std::mem::replace(&mut self.syncs, syncs);
        appended.checked_div(count)
    }
}

/// How long a step is that is filled, where one of `ahead` bytes would be taken; `None` to leave it.
fn filled_step(bytes_per_sync: Option<u64>, ahead: u64) -> Option<u64> {
    let bytes = bytes_per_sync.filter(|bytes| *bytes <= FILL_SYNC_BYTES_MAX)?;
    Some((bytes * FILL_SYNCS).clamp(STEP_MIN, FILL_MAX).min(ahead))
}

impl Log {
    /// As [`Log::reserve`], for bytes that are written next, and counted once.
    pub(crate) fn reserve_to_write(
        &mut self,
        len: u64,
        uses_room: bool,
    ) -> Result<(), AppendError> {
        self.sync_pace.appended += len;
        self.reserve(len, uses_room)
    }

    /// Takes disk space for `len` more bytes, so that the write that follows cannot run out of it,
    /// and for the room behind them. With `uses_room` what is left of the room will do.
    pub(crate) fn reserve(&mut self, len: u64, uses_room: bool) -> Result<(), AppendError> {
        let needed = u64::from(self.end.position) + len;
        let limit = u64::from(SEGMENT_BYTES_LIMIT).max(needed);
        let wanted = (needed + u64::from(self.options.room_bytes)).min(limit);
        if wanted <= self.reserved {
            return Ok(());
        }
        let ahead = needed.clamp(STEP_MIN, STEP_MAX);
        let bytes_per_sync = self.sync_pace.bytes_per_sync(self.shared.syncs());
        let filled = filled_step(bytes_per_sync, ahead);
        let max = u64::from(self.options.segment_bytes_max()).max(wanted);
        let step = (wanted + filled.unwrap_or(ahead)).min(max);
        let least = if uses_room { needed } else { wanted };
        // On a nearly full disk the exact need may fit where a step ahead does not.
        for reserved in [step, wanted, least] {
            if reserved <= self.reserved {
                return Ok(());
            }
            match self.file.reserve(reserved) {
                Ok(()) => {
                    let before = std::mem::replace(&mut self.reserved, reserved);
                    if filled.is_some() && reserved == step {
                        self.fill(before)?;
                    }
                    return Ok(());
                }
                Err(e) if e.is_full() && reserved > least => {}
                Err(e) if e.is_full() => {
                    return Err(AppendError::Full {
                        dir: self.dir().to_owned(),
                        needed: len,
                    });
                }
                Err(e) => return Err(self.shared.poison(e).into()),
            }
        }
        unreachable!("the last of the three is tried for good")
    }

    /// Writes zeros from `from`, where there never was anything, up to the end of what is reserved.
    fn fill(&self, from: u64) -> Result<(), Poisoned> {
        let len = usize::try_from(self.reserved - from).expect("at most a step and the room");
        let mut parts = vec![IoSlice::new(&ZEROS); len / ZEROS.len()];
        parts.push(IoSlice::new(&ZEROS[..len % ZEROS.len()]));
        match self.file.write_at(from, &parts) {
            Ok(()) => Ok(()),
            // Where a reservation promises nothing: zeros are there in any case.
            Err(e) if e.is_full() => Ok(()),
            Err(e) => Err(self.shared.poison(e)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use tidelog_record::{
        BatchBuilder, BatchLimits, Compression, Offset, PartitionId, Timestamp, TopicId,
        validate_produced,
    };
    use tidelog_sim::SimDisk;

    use crate::{INITIAL_EPOCH, Log, LogEntry, LogIdentity, LogOptions};

    /// Space is taken for entries before they are written, more than once where several are staged. What
    /// each sync covers is what was written: otherwise steps would not be filled where that pays.
    #[test]
    fn what_syncs_cover_is_counted_where_it_is_written() {
        let identity = LogIdentity {
            cluster_id: [7; 16],
            topic_id: TopicId::from_bytes([9; 16]),
            partition: PartitionId::new(0),
            incarnation: 1,
        };
        let now = Timestamp::from_millis(0);
        let (disk, dir) = (Arc::new(SimDisk::new(1)), Path::new("/topic-0"));
        let options = LogOptions::default();
        let mut log = Log::create_replica(disk, dir, identity, options, now).unwrap();
        let mut staged = 0;
        let mut entries = Vec::new();
        for number in 0..8 {
            let mut builder = BatchBuilder::new(Compression::None);
            builder.push(now, None, Some(b"value"), &[]).unwrap();
            let built = builder.build().unwrap();
            let mut batch = validate_produced(built, &BatchLimits::default()).unwrap();
            batch.stamp(Offset::new(number).unwrap(), INITIAL_EPOCH);
            let entry = LogEntry::batch(&batch);
            let len = entry.len_bytes() as u64;
            log.make_room(staged, len, len, now).unwrap();
            staged += len;
            entries.push(entry);
        }
        assert_eq!(log.sync_pace.appended, 0);
        assert_eq!(log.append_entries(&entries, now).unwrap(), entries.len());
        assert_eq!(log.sync_pace.appended, staged);
    }
}
