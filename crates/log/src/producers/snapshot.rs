//! The files beside a log that hold its producers as they were at some place.
//!
//! Like an index a snapshot is derived: written without a sync, believed when its checksum holds
//! and the headers behind it lead to the end of the log, and else built again.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use tidelog_disk::{Disk, DiskError, OpenHow, read_up_to};
use tidelog_record::{Offset, Timestamp};

use super::{PRODUCER_BATCHES, PRODUCERS_MAX, Producer, ProducerTable, StoredBatch};
use crate::segment::{LogEnd, base_offset_of};
use crate::wire::Fields;

pub(super) const MAGIC: [u8; 8] = *b"TPRS\0\x01\0\0";
const PRODUCER_LEN: usize = 20;
const BATCH_LEN: usize = 24;
/// A file longer than this is not ours.
pub(crate) const SNAPSHOT_LEN_MAX: usize = MAGIC.len()
    + LogEnd::WIRE_LEN
    + 4
    + PRODUCERS_MAX * (PRODUCER_LEN + PRODUCER_BATCHES * BATCH_LEN)
    + 4;
/// What the name of one ends in that is being written, to take the place of another; the next open
/// removes it.
pub(crate) const UNFINISHED: &str = "producers-new";
/// In place of a time that nobody knows.
const NO_TIME: i64 = i64::MIN;

/// The file's name: the offset of the place it stands for.
pub(crate) fn snapshot_path(dir: &Path, offset: Offset) -> PathBuf {
    dir.join(format!("{:020}.producers", offset.get()))
}

/// Producers as they were at `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) end: LogEnd,
    pub(crate) producers: ProducerTable,
}

impl Snapshot {
    /// The bytes of its file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(&self.end, &self.producers)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_be_bytes(*crc) != crc32fast::hash(content) {
            return None;
        }
        let mut fields = Fields::new(content.strip_prefix(&MAGIC)?);
        let end = LogEnd::take(&mut fields)?;
        let count = usize::try_from(fields.u32()?).ok()?;
        if count > PRODUCERS_MAX {
            return None;
        }
        let mut producers = ProducerTable::default();
        let mut last = None;
        for _ in 0..count {
            let id = i64::try_from(fields.u64()?).ok()?;
            if last.replace(id) >= Some(id) {
                return None;
            }
            let producer = decode_producer(&mut fields)?;
            producers.producers.insert(id, producer);
        }
        fields.rest().is_empty().then_some(Self { end, producers })
    }
}

/// The snapshot file of `producers` at `end`: producers in the order of their ids.
pub(super) fn encode(end: &LogEnd, producers: &ProducerTable) -> Vec<u8> {
    let mut sorted: Vec<_> = producers.producers.iter().collect();
    sorted.sort_unstable_by_key(|(id, _)| **id);
    let mut bytes = Vec::with_capacity(
        MAGIC.len()
            + LogEnd::WIRE_LEN
            + 8
            + sorted.len() * (PRODUCER_LEN + PRODUCER_BATCHES * BATCH_LEN),
    );
    bytes.extend_from_slice(&MAGIC);
    end.put(&mut bytes);
    let count = u32::try_from(sorted.len()).expect("their number is bounded");
    bytes.extend_from_slice(&count.to_be_bytes());
    for (id, producer) in sorted {
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(&producer.epoch.to_be_bytes());
        let batches = u8::try_from(producer.batches.len()).expect("at most five");
        bytes.extend_from_slice(&[batches, 0]);
        bytes.extend_from_slice(&time_to_wire(producer.last_seen).to_be_bytes());
        for batch in &producer.batches {
            bytes.extend_from_slice(&batch.base_sequence.to_be_bytes());
            bytes.extend_from_slice(&batch.records.to_be_bytes());
            bytes.extend_from_slice(&batch.base_offset.get().to_be_bytes());
            bytes.extend_from_slice(&time_to_wire(batch.log_append_time).to_be_bytes());
        }
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes
}

fn decode_producer(fields: &mut Fields<'_>) -> Option<Producer> {
    let epoch = i16::try_from(fields.u16()?).ok()?;
    let count = usize::from(fields.u8()?);
    if fields.u8()? != 0 || !(1..=PRODUCER_BATCHES).contains(&count) {
        return None;
    }
    let last_seen = time_from_wire(fields.i64()?);
    let batch = |fields: &mut Fields<'_>| {
        Some(StoredBatch {
            base_sequence: i32::try_from(fields.u32()?).ok()?,
            records: Some(fields.u32()?).filter(|records| *records > 0)?,
            base_offset: Offset::new(fields.u64()?)?,
            log_append_time: time_from_wire(fields.i64()?),
        })
    };
    let batches = (0..count).map(|_| batch(fields)).collect::<Option<_>>()?;
    Some(Producer {
        epoch,
        last_seen,
        batches,
    })
}

fn time_to_wire(time: Option<Timestamp>) -> i64 {
    time.map_or(NO_TIME, Timestamp::millis)
}

fn time_from_wire(millis: i64) -> Option<Timestamp> {
    (millis != NO_TIME).then(|| Timestamp::from_millis(millis))
}

/// Writes the snapshot of `producers` at `end`, if there is none at its offset: that one may be
/// durable, which nothing but a whole one may follow. Returns its length in bytes.
pub(crate) fn write(
    disk: &dyn Disk,
    dir: &Path,
    end: &LogEnd,
    producers: &ProducerTable,
) -> Result<u64, DiskError> {
    let bytes = encode(end, producers);
    match disk.open(&snapshot_path(dir, end.offset), OpenHow::CreateNew) {
        Err(e) if e.is_already_there() => {}
        file => file?.write_at(0, &[IoSlice::new(&bytes)])?,
    }
    Ok(bytes.len() as u64)
}

/// As [`write`], in place of any that is there, and durably.
pub(crate) fn write_durably(
    disk: &dyn Disk,
    dir: &Path,
    end: &LogEnd,
    producers: &ProducerTable,
) -> Result<u64, DiskError> {
    let bytes = encode(end, producers);
    let path = snapshot_path(dir, end.offset);
    let unfinished = path.with_extension(UNFINISHED);
    let file = disk.open(&unfinished, OpenHow::Create)?;
    file.set_len(0)?;
    file.write_at(0, &[IoSlice::new(&bytes)])?;
    file.sync_data()?;
    disk.rename(&unfinished, &path)?;
    disk.sync_dir(dir)?;
    Ok(bytes.len() as u64)
}

/// Makes the snapshot at `offset`, which is there, and its name durable.
pub(crate) fn sync(disk: &dyn Disk, dir: &Path, offset: Offset) -> Result<(), DiskError> {
    disk.open(&snapshot_path(dir, offset), OpenHow::Write)?
        .sync_data()?;
    disk.sync_dir(dir)
}

/// All snapshots that hold, newest first, and why others could not be read.
pub(crate) fn load_all<'a>(
    disk: &'a dyn Disk,
    dir: &'a Path,
) -> Result<impl Iterator<Item = Result<Snapshot, DiskError>> + 'a, DiskError> {
    let offsets = offsets(disk, dir)?;
    Ok(offsets.into_iter().rev().filter_map(move |offset| {
        let path = snapshot_path(dir, offset);
        match load(disk, &path) {
            Ok(Some(snapshot)) if snapshot.end.offset == offset => Some(Ok(snapshot)),
            Ok(_) => {
                tracing::warn!(snapshot = %path.display(), "a snapshot of producers is broken");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a snapshot of producers cannot be read");
                Some(Err(error))
            }
        }
    }))
}

/// The offsets of all snapshots, rising.
fn offsets(disk: &dyn Disk, dir: &Path) -> Result<Vec<Offset>, DiskError> {
    let entries = disk.list(dir)?;
    let offsets = entries
        .iter()
        .filter_map(|entry| base_offset_of(&entry.name, "producers"));
    let mut offsets: Vec<Offset> = offsets.collect();
    offsets.sort_unstable();
    Ok(offsets)
}

/// The snapshot in the file at `path`; `None` when it is broken.
pub(crate) fn load(disk: &dyn Disk, path: &Path) -> Result<Option<Snapshot>, DiskError> {
    let file = disk.open(path, OpenHow::Read)?;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    if len > SNAPSHOT_LEN_MAX {
        return Ok(None);
    }
    Ok(Snapshot::decode(&read_up_to(&*file, 0, len)?))
}

/// Removes the snapshots that no start will want: all but the oldest in each segment, the two newest, and those
/// that have to be `kept`; and those past `end`, which a cut left behind. `segment_of` gives where the segment
/// begins that an offset lies in, if that one tells of producers.
///
/// The oldest in a segment is mostly its beginning's, and may be the only one in it that is durable.
pub(crate) fn remove_stale(
    disk: &dyn Disk,
    dir: &Path,
    end: Offset,
    segment_of: impl Fn(Offset) -> Option<Offset>,
    kept: &[Offset],
) -> Result<(), DiskError> {
    let offsets = offsets(disk, dir)?;
    let present = offsets.partition_point(|offset| *offset <= end);
    let mut last = None;
    for (at, offset) in offsets.iter().enumerate() {
        let segment = segment_of(*offset);
        let is_oldest = segment.is_some() && last.replace(segment) != Some(segment);
        let is_new = at < present && at + 2 >= present;
        let is_kept = is_new || at < present && (is_oldest || kept.contains(offset));
        if !is_kept {
            disk.remove_file(&snapshot_path(dir, *offset))?;
        }
    }
    Ok(())
}
