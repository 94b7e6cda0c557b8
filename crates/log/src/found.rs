//! The segment files that an open finds: their headers, and whether they lead up to the newest one.

use std::path::PathBuf;

use tidelog_disk::{DiskError, OpenHow, read_up_to};
use tidelog_record::{BATCH_HEADER_LEN, Offset, check_batch};

use crate::error::{Corruption, Damage, OpenError};
use crate::header::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry, InternalError, InternalKind};
use crate::open::Opening;
use crate::roll::encode_header;
use crate::segment::{SEGMENT_BYTES_LIMIT, SealedEnd, base_offset_of, segment_path};

/// A segment file whose header was read and checked.
pub(crate) struct Candidate {
    pub(crate) header: SegmentHeader,
    pub(crate) header_len: u32,
    pub(crate) len: u64,
}

/// The segment files found.
#[derive(Default)]
pub(crate) struct Found {
    /// Oldest first.
    pub(crate) candidates: Vec<Candidate>,
    /// The newest file, when it is the torn beginning of a segment.
    pub(crate) unfinished: Option<PathBuf>,
    /// Segments that a compacted one before them stands for: a crash kept them from being removed.
    pub(crate) replaced: Vec<Offset>,
}

impl Opening<'_> {
    /// The segment files with a good header. A newest file without one is what a roll that was
    /// interrupted leaves behind, if nothing durable is known to be in it.
    pub(crate) fn find(&self) -> Result<Found, OpenError> {
        let entries = match self.disk.list(self.dir) {
            Ok(entries) => entries,
            Err(e) if e.is_not_found() => Vec::new(),
            Err(e) => return Err(e.into()),
        };
        let bases: Vec<Offset> = entries
            .iter()
            .filter(|entry| !entry.is_dir)
            .filter_map(|entry| base_offset_of(&entry.name, "log"))
            .collect();
        let mut found = Found::default();
        for (at, base) in bases.iter().enumerate() {
            let before = found.candidates.last();
            let before = before.and_then(|candidate| candidate.header.compacted);
            if before.is_some_and(|compacted| *base < compacted.end_offset) {
                found.replaced.push(*base);
                continue;
            }
            match self.read_header(*base)? {
                Ok(candidate) => found.candidates.push(candidate),
                Err(corruption) => {
                    let is_newest = at + 1 == bases.len();
                    let older = found.candidates.last();
                    if !is_newest || !self.is_unfinished(&corruption, older)? {
                        return Err(corruption.into());
                    }
                    tracing::warn!(%corruption, "a segment that was never finished is removed");
                    found.unfinished = Some(corruption.path);
                }
            }
        }
        Ok(found)
    }

    /// Whether the newest file, whose header is bad, may be the torn beginning of a segment:
    /// nothing in it is known to have been durable, nothing was ever put behind the header, and
    /// what is there is no header that another version or another log wrote.
    fn is_unfinished(
        &self,
        corruption: &Corruption,
        older: Option<&Candidate>,
    ) -> Result<bool, DiskError> {
        if !matches!(corruption.what, Damage::Batch(_)) {
            return Ok(false);
        }
        let durable_elsewhere = match (&self.checkpoint, older) {
            (None, _) => true,
            (Some(checkpoint), Some(older)) => older.header.sequence >= checkpoint.sequence,
            (Some(_), None) => false,
        };
        let len = self.disk.open(&corruption.path, OpenHow::Read)?.len()?;
        Ok(durable_elsewhere && len <= SEGMENT_HEADER_LEN as u64)
    }

    pub(crate) fn remove_unfinished(&self, unfinished: Option<PathBuf>) -> Result<(), DiskError> {
        unfinished.map_or(Ok(()), |path| self.disk.remove_file(&path))
    }

    /// Reads and checks the header of the segment with this base offset.
    pub(crate) fn read_header(
        &self,
        base: Offset,
    ) -> Result<Result<Candidate, Corruption>, DiskError> {
        let path = segment_path(self.dir, base);
        let file = self.disk.open(&path, OpenHow::Read)?;
        let len = file.len()?;
        let bytes = read_up_to(&*file, 0, INTERNAL_LEN_MAX)?;
        let corrupt = |what| Corruption {
            path: path.clone(),
            position: 0,
            offset: base,
            what,
        };
        Ok(self.parse_header(base, &bytes, len).map_err(corrupt))
    }

    fn parse_header(&self, base: Offset, bytes: &[u8], len: u64) -> Result<Candidate, Damage> {
        let header = check_batch(bytes, INTERNAL_LEN_MAX)?;
        if !header.attributes.is_control() {
            return Err(Damage::NoHeader);
        }
        let total = header.total_len();
        let entry = InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..total])?;
        let InternalKind::SegmentHeader(segment) = entry.kind else {
            return Err(Damage::NoHeader);
        };
        let expected = self.identity;
        let found = segment.identity;
        if found.cluster_id != expected.cluster_id {
            return Err(Damage::Foreign("another cluster's"));
        }
        if (found.topic_id, found.partition) != (expected.topic_id, expected.partition) {
            return Err(Damage::Foreign("another topic's or partition's"));
        }
        if found.incarnation != expected.incarnation {
            return Err(Damage::Foreign("another incarnation's"));
        }
        // The chain checksum begins with this entry as it is written.
        if bytes[..total] != encode_header(&segment) {
            return Err(InternalError::Malformed("segment header and its batch differ").into());
        }
        if segment.base_offset != base {
            return Err(Damage::Foreign(
                "its base offset is not the one in its name",
            ));
        }
        if len > u64::from(SEGMENT_BYTES_LIMIT) {
            return Err(Damage::NotContinued(
                "the file is longer than a segment can be",
            ));
        }
        if let Some(compacted) = &segment.compacted
            && len != compacted.len
        {
            let durable = compacted.len;
            return Err(Damage::Short { len, durable });
        }
        let header_len = u32::try_from(total).expect("at most a few KiB");
        Ok(Candidate {
            header: *segment,
            header_len,
            len,
        })
    }

    /// Checks that the sealed segments lead up to the newest one without a gap, back to the log
    /// start. What lies before a gap must be below the log start: a trim was interrupted.
    pub(crate) fn check_chain(
        &self,
        candidates: Vec<Candidate>,
        newest: &Candidate,
        log_start: Offset,
    ) -> Result<Vec<(Candidate, SealedEnd)>, OpenError> {
        let mut chain = Vec::with_capacity(candidates.len());
        let mut next = newest.header.clone();
        for candidate in candidates.into_iter().rev() {
            let Some(previous) = next.previous else {
                let what =
                    Damage::NotContinued("it says it is the first, and there are older ones");
                return Err(self.corrupt(next.base_offset, 0, what).into());
            };
            let compacted = candidate.header.compacted;
            let last_sequence = compacted.map_or(candidate.header.sequence, |compacted| {
                compacted.last_sequence
            });
            if last_sequence != previous.sequence {
                if next.base_offset <= log_start {
                    break;
                }
                return Err(self
                    .missing(previous.sequence, candidate.header.base_offset)
                    .into());
            }
            let base = candidate.header.base_offset;
            if compacted.is_none() && candidate.len != previous.len {
                let what = Damage::Short {
                    len: candidate.len,
                    durable: previous.len,
                };
                return Err(self
                    .corrupt(base, candidate.len.min(previous.len), what)
                    .into());
            }
            let meets = compacted.is_none_or(|it| {
                (it.end_offset, it.end_index) == (previous.end_offset, previous.end_index)
            });
            let meets_next =
                previous.end_offset == next.base_offset && previous.end_index == next.base_index;
            if !meets || !meets_next {
                let what = Damage::NotContinued("offsets or Raft indexes do not meet");
                return Err(self.corrupt(next.base_offset, 0, what).into());
            }
            next = candidate.header.clone();
            let len = u32::try_from(candidate.len).expect("checked with the header");
            let end = match &compacted {
                Some(compacted) => SealedEnd::of_compacted(compacted, len),
                None => SealedEnd::of_previous(&previous, len),
            };
            chain.push((candidate, end));
        }
        if next.base_offset > log_start {
            let sequence = next
                .previous
                .map_or(next.sequence, |previous| previous.sequence);
            return Err(self.missing(sequence, log_start).into());
        }
        chain.reverse();
        Ok(chain)
    }
}
