//! What is different about compacted segments: nothing behind them vouches for them, and offsets
//! only rise.

use tidelog_record::{BatchHeader, Offset, RaftIndex};

use super::Problem;
use super::content::Content;
use super::partition::Check;
use super::scanner::Scanner;
use super::segments::SegmentFile;
use super::sidecars::wrong_place;
use crate::error::Damage;
use crate::header::{COMPACTED_FLAGS_AT, COMPACTED_HEADER_LEN, CompactedSegment};
use crate::walk::BATCH_BYTES_LIMIT;

impl Content<'_> {
    /// The walk through a compacted segment has ended: do its batches add up to what its header says?
    /// If they do not, a base offset is wrong, behind the last index entry that agrees.
    pub(super) fn compacted_ended(
        &mut self,
        check: &mut Check<'_>,
        file: &SegmentFile,
        number: usize,
        scanner: &Scanner,
        compacted: &CompactedSegment,
    ) {
        let disagreeing = self.disagreeing.take();
        if !scanner.is_whole {
            return;
        }
        let end = scanner.end;
        let (place, what) = if end.chain != compacted.chain {
            let (found, expected) = (end.chain, compacted.chain);
            (self.agreed, Damage::WrongChain { found, expected })
        } else if (end.offset, end.index) != (compacted.end_offset, compacted.end_index) {
            let what = "it does not end at the offset and Raft index that its header says";
            (end, Damage::NotContinued(what))
        } else {
            if let Some(mark) = disagreeing {
                wrong_place(check, number, &mark);
            }
            return;
        };
        let at = u64::from(place.position);
        let problem = Problem::damage(&file.path, at, Some(place.offset), what);
        check.damaged(number, None, problem);
    }
}

/// Whether a header that cannot be read may be that of a compacted segment: by its length, or by the
/// flag, of which damage in one place spares the other.
pub(super) fn looks_compacted(bytes: &[u8]) -> bool {
    let header = BatchHeader::decode(bytes, BATCH_BYTES_LIMIT);
    let is_as_long = header.is_ok_and(|header| header.total_len() == COMPACTED_HEADER_LEN);
    let flags = bytes.get(COMPACTED_FLAGS_AT..COMPACTED_FLAGS_AT + 4);
    is_as_long || flags == Some(&[0, 0, 0, 1])
}

/// A compacted segment of which nothing is known.
pub(super) fn any_compacted(len: u64) -> CompactedSegment {
    CompactedSegment {
        last_sequence: u64::MAX,
        // No end is known to move on to.
        len: len.saturating_add(1),
        chain: 0,
        end_offset: Offset::MAX,
        end_index: RaftIndex::new(u64::MAX),
        clean_end: Offset::ZERO,
    }
}
