//! The formats against the golden files, which were computed by hand, not by this code; and the
//! decoders against everything else.

use bytes::Bytes;
use proptest::prelude::*;
use tidelog_record::{
    BATCH_HEADER_LEN, BatchError, BatchHeader, LeaderEpoch, Offset, PartitionId, RaftIndex,
    Timestamp, TopicId, check_batch,
};

use crate::epochs::{EpochStart, EpochTable};
use crate::error::Damage;
use crate::header::{
    CompactedSegment, LogIdentity, PreviousSegment, SEGMENT_HEADER_LEN, SegmentHeader,
};
use crate::index::{IndexBase, IndexEntry, SegmentIndex};
use crate::internal::{INTERNAL_LEN_MAX, InternalEntry, InternalError, InternalKind};

/// The bytes of a golden file: hexadecimal, comments from `#` on.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.lines()
        .flat_map(|line| {
            line.split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace()
        })
        .map(|byte| u8::from_str_radix(byte, 16).unwrap_or_else(|e| panic!("{path}, {byte}: {e}")))
        .collect()
}

fn bytes_from(first: u8) -> [u8; 16] {
    std::array::from_fn(|n| first + u8::try_from(n).unwrap())
}

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn epoch(value: u32) -> LeaderEpoch {
    LeaderEpoch::new(value).unwrap()
}

fn first_header() -> SegmentHeader {
    SegmentHeader {
        compatible_features: 0,
        incompatible_features: 0,
        identity: LogIdentity {
            cluster_id: bytes_from(0),
            topic_id: TopicId::from_bytes(bytes_from(16)),
            partition: PartitionId::new(3),
            incarnation: 1,
        },
        sequence: 1,
        base_offset: Offset::ZERO,
        base_index: RaftIndex::new(6),
        epoch: epoch(5),
        log_start: Offset::ZERO,
        created_at: Timestamp::from_millis(1_700_000_000_000),
        previous: None,
        compacted: None,
    }
}

fn compacted_header() -> SegmentHeader {
    SegmentHeader {
        compacted: Some(CompactedSegment {
            last_sequence: 4,
            len: 4096,
            chain: 0x0102_0304,
            end_offset: offset(5000),
            end_index: RaftIndex::new(900),
            clean_end: offset(4500),
        }),
        ..next_header()
    }
}

fn next_header() -> SegmentHeader {
    SegmentHeader {
        sequence: 2,
        base_offset: offset(1000),
        base_index: RaftIndex::new(70),
        epoch: epoch(9),
        log_start: offset(400),
        previous: Some(PreviousSegment {
            sequence: 1,
            len: 65_536,
            end_offset: offset(1000),
            end_index: RaftIndex::new(70),
            last_epoch: epoch(9),
            chain: 0xdead_beef,
        }),
        ..first_header()
    }
}

fn header_entry(header: SegmentHeader) -> InternalEntry {
    InternalEntry {
        index: RaftIndex::ZERO,
        epoch: header.epoch,
        next_offset: header.base_offset,
        kind: InternalKind::SegmentHeader(Box::new(header)),
    }
}

fn entry(index: u64, next: u64, kind: InternalKind) -> InternalEntry {
    InternalEntry {
        index: RaftIndex::new(index),
        epoch: epoch(6),
        next_offset: offset(next),
        kind,
    }
}

fn decode(bytes: &[u8]) -> Result<InternalEntry, Damage> {
    let header = check_batch(bytes, INTERNAL_LEN_MAX)?;
    assert_eq!(header.total_len(), bytes.len());
    Ok(InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..])?)
}

#[test]
fn internal_entries_are_as_the_golden_files_say() {
    let cases = [
        ("segment-header_v1_first", header_entry(first_header())),
        ("segment-header_v1_next", header_entry(next_header())),
        (
            "segment-header_v1_compacted",
            header_entry(compacted_header()),
        ),
        (
            "raft-empty_v1_begin",
            entry(17, 42, InternalKind::RaftEmpty),
        ),
        (
            "raft-conf-change_v1_joint",
            entry(
                99,
                2000,
                InternalKind::RaftConfChange(Bytes::from_static(
                    b"\x08\x02\x12\x02\x10\x03\x12\x05\x08\x01\x10\xac\x02",
                )),
            ),
        ),
        (
            "log-start_v1_at-1000",
            entry(99, 2000, InternalKind::LogStart(offset(1000))),
        ),
        (
            "skippable_v1_kind-99",
            entry(99, 2000, InternalKind::Skippable(99)),
        ),
    ];
    for (name, entry) in cases {
        let bytes = golden(name);
        assert_eq!(entry.encode(), bytes, "{name}");
        assert_eq!(decode(&bytes).unwrap(), entry, "{name}");
    }
    assert_eq!(golden("segment-header_v1_next").len(), SEGMENT_HEADER_LEN);
}

#[test]
fn internal_entries_that_are_wrong_fail_with_the_named_error() {
    let malformed = [
        ("segment-header_v1_corrupt_version", "format version"),
        ("segment-header_v1_corrupt_feature", "features"),
        ("segment-header_v1_corrupt_reserved", "out of range"),
        ("segment-header_v1_corrupt_length", "wrong length"),
        ("segment-header_v1_corrupt_sequence", "out of range"),
        ("segment-header_v1_corrupt_clean-end", "out of range"),
        ("raft-empty_v1_corrupt_reserved", "reserved"),
        ("raft-empty_v1_corrupt_flags", "reserved"),
        ("raft-empty_v1_corrupt_term", "term and its leader epoch"),
        (
            "raft-empty_v1_corrupt_offset",
            "next offset and its base offset",
        ),
        ("raft-empty_v1_corrupt_content", "has content"),
        ("log-start_v1_corrupt_length", "8 bytes"),
    ];
    for (name, expected) in malformed {
        match decode(&golden(name)) {
            Err(Damage::Internal(InternalError::Malformed(what))) => {
                assert!(what.contains(expected), "{name}: {what}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let unknown = decode(&golden("raft-empty_v1_corrupt_must-understand"));
    let expected = InternalError::Unknown {
        kind: 2,
        version: 2,
    };
    assert!(matches!(unknown, Err(Damage::Internal(e)) if e == expected));
    let crc = decode(&golden("segment-header_v1_corrupt_crc"));
    assert!(matches!(
        crc,
        Err(Damage::Batch(BatchError::WrongCrc { .. }))
    ));
}

const BASE: IndexBase = IndexBase {
    sequence: 2,
    offset: Offset::new(1000).unwrap(),
    index: RaftIndex::new(70),
};

fn index_entries() -> [IndexEntry; 2] {
    [
        IndexEntry {
            offset: offset(1010),
            index: RaftIndex::new(74),
            position: 16_700,
            chain: 0x0102_0304,
            max_timestamp: Timestamp::from_millis(1_700_000_000_500),
            is_end: false,
        },
        IndexEntry {
            offset: offset(1025),
            index: RaftIndex::new(79),
            position: 40_000,
            chain: 0xa0b0_c0d0,
            max_timestamp: Timestamp::from_millis(1_700_000_000_900),
            is_end: true,
        },
    ]
}

#[test]
fn an_index_is_as_the_golden_file_says() {
    let bytes = golden("index_v1_two-entries");
    let [first, end] = index_entries();
    let mut index = SegmentIndex::new(BASE);
    index.push(first);
    index.push_end(end);
    let written = index.pending().unwrap();
    assert_eq!((written.at, &written.bytes), (0, &bytes));
    index.written(written);
    assert!(index.pending().is_none());

    let parsed = SegmentIndex::parse(&bytes, BASE, 40_000);
    assert_eq!(parsed.entries(), index_entries());
    assert!(parsed.pending().is_none(), "nothing is to be written again");
    // In two steps the bytes are the same.
    let mut index = SegmentIndex::new(BASE);
    index.push(first);
    let one = index.pending().unwrap();
    index.written(one);
    index.push_end(end);
    let two = index.pending().unwrap();
    assert_eq!((two.at, &two.bytes[..]), (64, &bytes[64..]));

    assert_eq!(SegmentIndex::parse(&bytes, BASE, 39_999).entries(), [first]);
    let broken = SegmentIndex::parse(&golden("index_v1_corrupt_chain"), BASE, 40_000);
    assert_eq!(broken.entries(), [first]);
    assert!(
        broken
            .pending()
            .is_some_and(|cut| cut.at == 64 && cut.bytes.is_empty())
    );
    for other in [
        IndexBase {
            sequence: 3,
            ..BASE
        },
        IndexBase {
            offset: offset(999),
            ..BASE
        },
    ] {
        assert!(
            SegmentIndex::parse(&bytes, other, 40_000)
                .entries()
                .is_empty()
        );
    }
}

#[test]
fn the_epoch_table_is_as_the_golden_file_says() {
    let bytes = golden("leader-epochs_v1_two");
    let starts = [
        EpochStart {
            epoch: epoch(6),
            offset: Offset::ZERO,
            index: RaftIndex::new(6),
        },
        EpochStart {
            epoch: epoch(8),
            offset: offset(120),
            index: RaftIndex::new(31),
        },
    ];
    let mut table = EpochTable::default();
    table.push(starts[0]);
    table.push(starts[1]);
    table.push(starts[0]);
    assert_eq!(table.entries(), starts);
    let pending = table.pending(RaftIndex::new(32)).unwrap();
    assert_eq!((pending.at, &pending.bytes), (0, &bytes));
    // What is not durable is not written.
    assert_eq!(
        table.pending(RaftIndex::new(31)).unwrap().bytes,
        bytes[..32]
    );
    assert!(table.pending(RaftIndex::new(6)).is_none());
    table.written(&pending);
    assert!(!table.has_unwritten());

    assert_eq!(EpochTable::parse(&bytes), table);
    let broken = EpochTable::parse(&golden("leader-epochs_v1_corrupt_entry"));
    assert_eq!(broken.entries(), &starts[..1]);
}

#[test]
fn an_index_that_was_cut_is_overwritten_from_there() {
    let bytes = golden("index_v1_two-entries");
    let [first, end] = index_entries();
    let mut index = SegmentIndex::parse(&bytes, BASE, 40_000);
    index.cut(39_999);
    assert!(
        index
            .pending()
            .is_some_and(|cut| cut.at == 64 && cut.bytes.is_empty())
    );
    index.push(IndexEntry {
        position: 30_000,
        ..end
    });
    let pending = index.pending().unwrap();
    assert_eq!((pending.at, pending.bytes.len()), (64, 32));
    let whole = [&bytes[..64], &pending.bytes].concat();
    index.written(pending);
    assert_eq!(
        SegmentIndex::parse(&whole, BASE, 40_000).entries(),
        index.entries()
    );
    index.clear();
    assert!(
        index
            .pending()
            .is_some_and(|cut| cut.at == 0 && cut.bytes.len() == 32)
    );
    assert_eq!(first.position, 16_700);
}

/// Bytes that go far into a decoder: good ones with a few changed, cut or longer.
fn nearly(names: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (
        prop::sample::select(names),
        changes,
        0..300_usize,
        any::<bool>(),
    )
        .prop_map(|(name, changes, cut, is_cut)| {
            let mut bytes = golden(name);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if is_cut {
                bytes.truncate(cut);
            }
            bytes
        })
}

const INTERNAL: &[&str] = &[
    "segment-header_v1_first",
    "segment-header_v1_next",
    "raft-empty_v1_begin",
    "log-start_v1_at-1000",
];

proptest! {
    #[test]
    fn no_bytes_make_the_internal_entry_decoder_panic(
        bytes in prop_oneof![nearly(INTERNAL), prop::collection::vec(any::<u8>(), 0..400)],
    ) {
        // The CRC is passed by: the decoder itself must hold.
        if let Ok(header) = BatchHeader::decode(&bytes, INTERNAL_LEN_MAX)
            && let Ok(entry) = InternalEntry::decode(&header, &bytes[BATCH_HEADER_LEN..])
        {
            let again = entry.encode();
            prop_assert_eq!(decode(&again).unwrap(), entry);
        }
        drop(SegmentHeader::decode(&bytes));
    }

    #[test]
    fn no_bytes_make_the_index_parser_panic(
        bytes in prop_oneof![
            nearly(&["index_v1_two-entries"]),
            prop::collection::vec(any::<u8>(), 0..400),
        ],
        position_max: u64,
    ) {
        let index = SegmentIndex::parse(&bytes, BASE, position_max);
        let grows = index.entries().is_sorted_by(|a, b| a.position < b.position);
        prop_assert!(grows && index.entries().len() <= bytes.len() / 32);
        prop_assert!(index.entries().iter().all(|e| u64::from(e.position) <= position_max));
    }

    #[test]
    fn no_bytes_make_the_epoch_table_parser_panic(
        bytes in prop_oneof![
            nearly(&["leader-epochs_v1_two"]),
            prop::collection::vec(any::<u8>(), 0..400),
        ],
    ) {
        let table = EpochTable::parse(&bytes);
        prop_assert!(table.entries().is_sorted_by(|a, b| a.epoch < b.epoch && a.index < b.index));
    }

    #[test]
    fn internal_entries_come_back_as_they_went(
        index: u64,
        epoch in 0..=i32::MAX.unsigned_abs(),
        next in 0..=i64::MAX.unsigned_abs(),
        start in 0..=i64::MAX.unsigned_abs(),
        kind in 0..4,
        change in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let kind = match kind {
            0 => InternalKind::RaftEmpty,
            1 => InternalKind::LogStart(offset(start)),
            2 => InternalKind::RaftConfChange(change.into()),
            _ => InternalKind::Skippable(200),
        };
        let entry = InternalEntry {
            index: RaftIndex::new(index),
            epoch: LeaderEpoch::new(epoch).unwrap(),
            next_offset: offset(next),
            kind,
        };
        prop_assert_eq!(decode(&entry.encode()).unwrap(), entry);
    }
}
