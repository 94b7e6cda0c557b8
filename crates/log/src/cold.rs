//! Reading what is probably not in memory: through `read`, on a thread that may wait, and with
//! every checksum verified, so that damage is found here and never served.

use std::sync::Arc;

use bytes::Bytes;
use tidelog_disk::{DiskError, DiskFile, read_up_to};
use tidelog_record::{BATCH_HEADER_LEN, BatchError, BatchHeader, Offset, check_batch};

use crate::epochs::EpochTable;
use crate::error::{Corruption, Damage, ReadError};
use crate::header::CompactedSegment;
use crate::index::IndexEntry;
use crate::internal::InternalEntry;
use crate::reader::{Batches, collect, next_offset};
use crate::segment::{LogEnd, Segment};
use crate::shared::Shared;
use crate::turns::ReadTurns;
use crate::walk::{BATCH_BYTES_LIMIT, corruption, pass};

/// Bytes one cold read fetches at most, unless the first batch alone is longer.
const COLD_BYTES_MAX: usize = 4 << 20;

/// A read that has to go to the disk. Run it where waiting is allowed.
#[derive(Debug)]
pub struct ColdRead {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    from: Offset,
    end: Offset,
    bytes_max: usize,
}

impl ColdRead {
    pub(crate) fn new(
        shared: Arc<Shared>,
        segment: Arc<Segment>,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Self {
        Self {
            shared,
            segment,
            from,
            end,
            bytes_max: bytes_max.min(COLD_BYTES_MAX),
        }
    }

    /// Fetches and verifies the batches: one buffer, filled by the read and then sliced.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when a batch is not what was written, [`ReadError::OutOfRange`] when
    /// a trim came in between, [`ReadError::Disk`] when the disk refused.
    pub fn run(self) -> Result<Batches, ReadError> {
        self.run_how(None)
    }

    /// As [`ColdRead::run`], by turns with the syncs that go on meanwhile on the same device.
    ///
    /// # Errors
    /// As for [`ColdRead::run`].
    pub fn run_beside(self, turns: &ReadTurns) -> Result<Batches, ReadError> {
        self.run_how(Some(turns))
    }

    fn run_how(mut self, turns: Option<&ReadTurns>) -> Result<Batches, ReadError> {
        let mut result = self.fetch(turns);
        // A segment that was compacted meanwhile has another file in its place, with the same
        // offsets. Once is enough but for a reader that sleeps from one compaction to the next.
        for _ in 0..REPLACED_MAX {
            if result.is_ok() || self.shared.is_current(&self.segment) {
                break;
            }
            let Some(segment) = self.shared.segment_at(self.from) else {
                break;
            };
            self.segment = segment;
            result = self.fetch(turns);
        }
        if let Err(ReadError::Corrupt(corruption)) = &result {
            tracing::error!(%corruption, "damaged data was not served");
        }
        // The file of a segment that was trimmed meanwhile is gone: that is no fault of the disk.
        let start = self.shared.log_start();
        if result.is_err() && self.from < start {
            let (requested, end) = (self.from, self.end);
            return Err(ReadError::OutOfRange {
                requested,
                start,
                end,
            });
        }
        result
    }

    fn fetch(&self, turns: Option<&ReadTurns>) -> Result<Batches, ReadError> {
        if let Some(compacted) = &self.segment.header.compacted {
            return self.fetch_compacted(compacted, turns);
        }
        let mut position = u64::from(self.find()?);
        let file = self.open(turns)?;
        let limit = u64::from(self.shared.readable_len(&self.segment));
        // The first batch may begin up to an index interval before what is wanted.
        let mut len = self.bytes_max + COLD_SLACK;
        let mut expected = None;
        loop {
            let room = limit.saturating_sub(position);
            let fetched = usize::try_from(room).unwrap_or(usize::MAX).min(len);
            let window = read(&*file, position, fetched, turns)?;
            if window.len() < fetched {
                let what = Damage::Short {
                    len: position + window.len() as u64,
                    durable: limit,
                };
                return Err(self
                    .corrupt_at(position + window.len() as u64, expected, what)
                    .into());
            }
            let window = Bytes::from(window);
            let verified = self.verify(&window, position, expected)?;
            let found = collect(
                &window.slice(..verified.len),
                self.from,
                self.end,
                self.bytes_max,
            );
            if let Some(batches) = found {
                return Ok(batches);
            }
            // The first wanted batch lies further on, or is longer than what was fetched.
            position += verified.len as u64;
            expected = verified.next_offset;
            if fetched as u64 == room {
                let what = verified.cut_off.map_or(
                    Damage::NotContinued("the segment ends before its last offset"),
                    Damage::Batch,
                );
                return Err(self.corrupt_at(position, expected, what).into());
            }
            if let Some(BatchError::Truncated { needed, .. }) = verified.cut_off {
                len = len.max(needed.saturating_add(COLD_SLACK));
            }
        }
    }

    fn open(&self, turns: Option<&ReadTurns>) -> Result<Arc<dyn DiskFile>, ReadError> {
        let wanted = self.bytes_max + COLD_SLACK;
        let reads_ahead = turns.is_none_or(|turns| turns.is_quiet_for(wanted));
        Ok(self.segment.file_how(&*self.shared.disk, reads_ahead)?)
    }

    /// Checks the whole batches from the front of `window`, up to the end of what is wanted. Damage
    /// is an error where nothing wanted lies before it: what does is good, and is served.
    fn verify(
        &self,
        window: &[u8],
        position: u64,
        expected: Option<Offset>,
    ) -> Result<Verified, Corruption> {
        let epochs = self.shared.epochs.read();
        let mut verified = Verified {
            len: 0,
            next_offset: expected,
            cut_off: None,
        };
        let mut taken = 0_usize;
        while verified.len < window.len() {
            let rest = &window[verified.len..];
            let header = match self.verify_one(rest, verified.next_offset, &epochs) {
                Ok(header) => header,
                Err(Damage::Batch(e @ BatchError::Truncated { .. })) => {
                    verified.cut_off = Some(e);
                    break;
                }
                Err(_) if taken > 0 => break,
                Err(what) => {
                    let here = position + verified.len as u64;
                    return Err(self.corrupt_at(here, verified.next_offset, what));
                }
            };
            verified.next_offset = next_offset(&header);
            verified.len += header.total_len();
            if !header.attributes.is_control() && verified.next_offset > Some(self.from) {
                taken += header.total_len();
            }
            if verified.next_offset >= Some(self.end) || taken >= self.bytes_max.max(1) {
                break;
            }
        }
        Ok(verified)
    }

    /// Checks the batch at the start of `bytes`, which must have the offset `expected`.
    fn verify_one(
        &self,
        bytes: &[u8],
        expected: Option<Offset>,
        epochs: &EpochTable,
    ) -> Result<BatchHeader, Damage> {
        let header = check_batch(bytes, BATCH_BYTES_LIMIT)?;
        let found = header.base_offset;
        // An index entry may lie before what is wanted, never behind it.
        let base = Offset::from_wire(found)
            .filter(|base| expected.map_or(*base <= self.from, |expected| *base == expected))
            .ok_or(Damage::WrongOffset { found })?;
        next_offset(&header).ok_or(Damage::WrongOffset { found })?;
        if header.attributes.is_control() {
            InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..header.total_len()])?;
            return Ok(header);
        }
        let epoch = epochs.epoch_at(base).unwrap_or(self.segment.header.epoch);
        let epoch = epoch.max(self.segment.header.epoch);
        if header.leader_epoch != epoch.to_wire() {
            let found = header.leader_epoch;
            return Err(Damage::WrongEpoch {
                found,
                expected: epoch.get(),
            });
        }
        Ok(header)
    }

    fn corrupt_at(&self, position: u64, offset: Option<Offset>, what: Damage) -> Corruption {
        Corruption {
            path: self.segment.path.clone(),
            position,
            offset: offset.unwrap_or(self.from),
            what,
        }
    }

    /// The position of a batch border at or before the wanted offset.
    fn find(&self) -> Result<u32, ReadError> {
        let entry = self
            .shared
            .with_index(&self.segment, |index| index.before_offset(self.from))?;
        Ok(entry.map_or(self.segment.header_len, |entry| entry.position))
    }

    /// As [`ColdRead::fetch`] from a compacted segment. There the offset that comes next says
    /// nothing of the base offset of a batch, so what is read reaches from one index entry to
    /// another, and the chain of batch headers must lead from that of the one to that of the other.
    fn fetch_compacted(
        &self,
        compacted: &CompactedSegment,
        turns: Option<&ReadTurns>,
    ) -> Result<Batches, ReadError> {
        let segment = &*self.segment;
        let start = self
            .shared
            .with_index(segment, |index| index.before_offset(self.from))?;
        let mut end = self.shared.start_of_walk(segment, start);
        let file = self.open(turns)?;
        while u64::from(end.position) < compacted.len {
            let wanted = u64::from(end.position) + self.bytes_max.max(1) as u64;
            let stop = self
                .shared
                .with_index(segment, |index| index.at_or_after(wanted))?;
            let stop = stop.expect("the index of a sealed segment has its end");
            let len = (stop.position - end.position) as usize;
            let window = Bytes::from(read(&*file, u64::from(end.position), len, turns)?);
            if window.len() < len {
                let what = Damage::Short {
                    len: u64::from(end.position) + window.len() as u64,
                    durable: compacted.len,
                };
                return Err(corruption(&segment.path, &end, what).into());
            }
            end = pass_all(end, &window, compacted, &stop)
                .map_err(|(at, what)| corruption(&segment.path, &at, what))?;
            if let Some(batches) = collect(&window, self.from, self.end, self.bytes_max) {
                return Ok(batches);
            }
        }
        Ok(Batches::empty(compacted.end_offset.min(self.end)))
    }
}

/// The `len` bytes at `at`, or fewer where the file ends before. In one call where the device has
/// nothing else to do.
fn read(
    file: &dyn DiskFile,
    at: u64,
    len: usize,
    turns: Option<&ReadTurns>,
) -> Result<Vec<u8>, DiskError> {
    let Some(turns) = turns else {
        return read_up_to(file, at, len);
    };
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        let read = turns.read(len - done, |chunk| {
            let got = file.read_at(at + done as u64, &mut bytes[done..done + chunk]);
            got.map(|got| (got, chunk))
        });
        let (got, chunk) = read?;
        done += got;
        if got < chunk {
            bytes.truncate(done);
            break;
        }
    }
    Ok(bytes)
}

/// Checks every batch of `window`, which begins at `end` and must lead to `stop`; gives that place,
/// or the one where it goes wrong.
fn pass_all(
    mut end: LogEnd,
    window: &[u8],
    compacted: &CompactedSegment,
    stop: &IndexEntry,
) -> Result<LogEnd, (LogEnd, Damage)> {
    let start = end;
    let mut rest = window;
    while !rest.is_empty() {
        let before = end;
        let header = check_batch(rest, BATCH_BYTES_LIMIT).map_err(|e| (before, e.into()))?;
        let (batch, behind) = rest.split_at(header.total_len());
        let body = &batch[BATCH_HEADER_LEN..];
        pass(&mut end, &header, Some(body), Some(compacted)).map_err(|what| (before, what))?;
        rest = behind;
    }
    if end.chain != stop.chain {
        let (found, expected) = (end.chain, stop.chain);
        return Err((start, Damage::WrongChain { found, expected }));
    }
    Ok(end)
}

/// How often a read looks for its segment again when that was replaced by a compacted one.
const REPLACED_MAX: usize = 8;

const COLD_SLACK: usize = 64 << 10;

/// What [`ColdRead::verify`] saw.
struct Verified {
    /// The length of the whole batches.
    len: usize,
    /// The offset after them.
    next_offset: Option<Offset>,
    /// A batch behind them is not all there.
    cut_off: Option<BatchError>,
}
