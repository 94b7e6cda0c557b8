//! The manifest against the golden files, which were computed by hand, and its decoder against
//! everything else.

use bytes::Bytes;
use proptest::prelude::*;
use tidelog_record::{LeaderEpoch, Offset, PartitionId, RaftIndex, Timestamp, TopicId};

use super::manifest::{Manifest, ManifestError, SegmentCopy, SideFile};
use crate::golden::golden;
use crate::header::LogIdentity;
use crate::segment::{LogEnd, SealedEnd};

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn two_segments() -> Manifest {
    let bytes_from = |first| std::array::from_fn(|n| first + u8::try_from(n).unwrap());
    let end = LogEnd {
        sequence: 4,
        position: 600,
        offset: offset(30),
        index: RaftIndex::new(40),
        epoch: LeaderEpoch::new(7).unwrap(),
        chain: 0x0102_0304,
        max_timestamp: Timestamp::from_millis(1_700_000_000_123),
        log_start: offset(12),
    };
    Manifest {
        identity: LogIdentity {
            cluster_id: bytes_from(0),
            topic_id: TopicId::from_bytes(bytes_from(16)),
            partition: PartitionId::new(3),
            incarnation: 1,
        },
        end,
        segments: vec![
            SegmentCopy {
                sequence: 2,
                base_offset: offset(10),
                base_index: RaftIndex::new(16),
                end: SealedEnd {
                    len: 1999,
                    offset: offset(25),
                    index: RaftIndex::new(33),
                    chain: 0x1112_1314,
                },
                header_crc: 0x1516_1718,
            },
            SegmentCopy {
                sequence: 4,
                base_offset: offset(25),
                base_index: RaftIndex::new(33),
                end: SealedEnd::of(&end),
                header_crc: 0x191a_1b1c,
            },
        ],
        epochs: SideFile {
            len: 56,
            crc: 0x0a0b_0c0d,
        },
        producers: SideFile {
            len: 72,
            crc: 0x0e0f_1011,
        },
        note: Bytes::from_static(b"note"),
    }
}

#[test]
fn a_manifest_is_what_it_was() {
    let bytes = golden("manifest_v1_two-segments");
    assert_eq!(two_segments().encode(), bytes);
    let manifest = Manifest::decode(&bytes).unwrap();
    assert_eq!(manifest, two_segments());
    assert_eq!(manifest.commit().get(), 39);
    assert_eq!(manifest.files(), 4);
    assert_eq!(manifest.len_bytes(), 1999 + 600 + 56 + 72);
}

#[test]
fn a_manifest_that_makes_no_sense_is_refused() {
    for name in ["gap", "count", "reserved", "end", "log-start"] {
        let bytes = golden(&format!("manifest_v1_corrupt_{name}"));
        let refused = Manifest::decode(&bytes);
        assert!(
            matches!(refused, Err(ManifestError::Senseless(_))),
            "{name}: {refused:?}"
        );
    }
}

proptest! {
    #[test]
    fn whatever_decodes_encodes_to_the_same(
        at in 6_usize..229, value in any::<[u8; 4]>(), len in 1_usize..5
    ) {
        let mut bytes = two_segments().encode();
        bytes.truncate(bytes.len() - 4);
        bytes[at..at + len.min(4)].copy_from_slice(&value[..len.min(4)]);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = bytes;
        if bytes.len() > 8 {
            bytes[..8].copy_from_slice(b"TCUM\0\x01\0\0");
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_be_bytes());
        }
        Manifest::decode(&bytes).ok();
    }
}
