//! What must hold for any bytes in the files of a log, whoever wrote them. Each function panics
//! where it does not. For fuzz targets only.

use tidelog_record::{BATCH_HEADER_LEN, LeaderEpoch, Offset, RaftIndex, check_batch};

use crate::epochs::EpochTable;
use crate::header::SegmentHeader;
use crate::index::{ENTRY_LEN, IndexBase, IndexEntry, SegmentIndex};
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry, InternalKind};
use crate::producers::Snapshot;
use crate::state::frame_any;
use crate::wire::Fields;

/// An index file. The first 8 bytes say how long the segment is.
pub fn index(data: &[u8]) {
    let Some((limit, bytes)) = data.split_first_chunk() else {
        return;
    };
    let limit = u64::from_be_bytes(*limit);
    // Whatever segment the file says it is of.
    let mut fields = Fields::new(bytes.get(8..).unwrap_or_default());
    let base = IndexBase {
        sequence: fields.u64().unwrap_or(0),
        offset: fields.u64().and_then(Offset::new).unwrap_or(Offset::ZERO),
        index: RaftIndex::new(6),
    };
    let index = SegmentIndex::parse(bytes, base, limit);
    let entries = index.entries();
    for pair in entries.windows(2) {
        assert!(pair[0].position < pair[1].position, "{pair:?}");
        assert!(pair[0].offset <= pair[1].offset, "{pair:?}");
        assert!(pair[0].index <= pair[1].index, "{pair:?}");
        assert!(pair[0].max_timestamp <= pair[1].max_timestamp, "{pair:?}");
    }
    for entry in entries {
        assert!(u64::from(entry.position) <= limit, "{entry:?}");
        let before = index.before_offset(entry.offset);
        assert!(before.is_some_and(|before| before.offset <= entry.offset));
    }
    // What is believed is what would be written.
    let mut again = SegmentIndex::new(base);
    for entry in entries {
        match entry.is_end {
            true => again.push_end(IndexEntry { ..*entry }),
            false => again.push(*entry),
        }
    }
    if let Some(pending) = again.pending() {
        assert_eq!(pending.at, 0);
        assert_eq!(pending.bytes, bytes[..(entries.len() + 1) * ENTRY_LEN]);
    }
}

/// An epoch table's file.
pub fn epochs(data: &[u8]) {
    let table = EpochTable::parse(data);
    for pair in table.entries().windows(2) {
        assert!(pair[0].epoch < pair[1].epoch, "{pair:?}");
        assert!(pair[0].offset <= pair[1].offset, "{pair:?}");
        assert!(pair[0].index < pair[1].index, "{pair:?}");
    }
    let mut again = EpochTable::default();
    for entry in table.entries() {
        again.push(*entry);
        assert!(table.epoch_at(entry.offset) >= Some(entry.epoch));
    }
    if let Some(pending) = again.pending(RaftIndex::new(u64::MAX)) {
        assert!(data.starts_with(&pending.bytes), "it is written as it was");
    }
}

/// A snapshot of producers.
pub fn producers(data: &[u8]) {
    for bytes in [data.to_vec(), with_crc32(data)] {
        let Some(snapshot) = Snapshot::decode(&bytes) else {
            continue;
        };
        let again = snapshot.encode();
        assert!(again == bytes, "it is written as it was");
        assert_eq!(Snapshot::decode(&again), Some(snapshot));
    }
}

/// The same with the checksum at its end that it should have, so that what lies behind the check is
/// met too.
fn with_crc32(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if let Some((content, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(content).to_be_bytes();
    }
    bytes
}

/// The first entry of a segment, or another internal entry.
pub fn internal_entry(data: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(data) {
        assert_eq!(
            SegmentHeader::decode(&header.encode()).as_ref(),
            Ok(&header)
        );
    }
    let Ok(header) = check_batch(data, INTERNAL_LEN_MAX) else {
        return;
    };
    let body = &data[BATCH_HEADER_LEN..header.total_len()];
    let Ok(entry) = InternalEntry::decode(&header, body) else {
        return;
    };
    assert!(entry.epoch <= LeaderEpoch::MAX);
    if !matches!(entry.kind, InternalKind::Skippable(_)) {
        let bytes = entry.encode();
        let header = check_batch(&bytes, INTERNAL_LEN_MAX).expect("what was written is a batch");
        let again = InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..]);
        assert_eq!(again, Ok(entry));
    }
}

/// A file of the state directory with the records that `data` holds, each with a good frame: kind,
/// length, content.
pub fn state_file(data: &[u8], generation: u64) -> Vec<u8> {
    let mut bytes = crate::state::FILE_HEADER.to_vec();
    let mut rest = data;
    while let [kind, len, following @ ..] = rest {
        let (content, following) = following.split_at(usize::from(*len).min(following.len()));
        frame_any(generation, *kind, content, &mut bytes);
        rest = following;
    }
    bytes
}
