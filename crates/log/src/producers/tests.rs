use proptest::prelude::*;
use tidelog_record::{Attributes, BatchHeader, LeaderEpoch, RaftIndex};

use super::snapshot::{MAGIC, Snapshot, encode};
use super::*;
use crate::golden::golden;
use crate::segment::LogEnd;

fn header(id: i64, epoch: i16, sequence: i32, records: i32) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        batch_length: 100,
        leader_epoch: 6,
        crc: 0,
        attributes: Attributes::default(),
        last_offset_delta: records - 1,
        base_timestamp: 0,
        max_timestamp: 5,
        producer_id: id,
        producer_epoch: epoch,
        base_sequence: sequence,
        record_count: records,
    }
}

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// A table, and the offset that the next record gets.
#[derive(Default)]
struct Model {
    table: ProducerTable,
    next: u64,
}

impl Model {
    fn send(&mut self, header: &BatchHeader) -> Result<Verdict, ProducerError> {
        let verdict = self.table.check(header)?;
        if verdict == Verdict::Next {
            self.table.note(header, offset(self.next), Some(at(1)));
            self.next += u64::from(header.record_count.unsigned_abs());
        }
        Ok(verdict)
    }

    fn stored_at(&mut self, header: &BatchHeader) -> u64 {
        match self.send(header) {
            Ok(Verdict::Stored(stored)) => stored.base_offset.get(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn five_batches_are_known_again_and_older_ones_are_told() {
    let mut model = Model::default();
    for batch in 0..7 {
        assert_eq!(model.send(&header(9, 0, batch * 10, 10)), Ok(Verdict::Next));
    }
    for batch in 2..7 {
        assert_eq!(
            model.stored_at(&header(9, 0, batch * 10, 10)),
            u64::try_from(batch * 10).unwrap()
        );
    }
    for found in [0, 10] {
        assert_eq!(
            model.send(&header(9, 0, found, 10)),
            Err(ProducerError::Duplicate {
                producer_id: 9,
                epoch: 0,
                expected: 70,
                found
            })
        );
    }
    // Not the same batch, though it begins where one did.
    assert!(matches!(
        model.send(&header(9, 0, 60, 9)),
        Err(ProducerError::Duplicate { .. })
    ));
    assert_eq!(model.next, 70);
}

#[test]
fn gaps_old_epochs_and_strangers_are_refused() {
    let mut model = Model::default();
    assert_eq!(
        model.send(&header(9, 3, 1, 1)),
        Err(ProducerError::Unknown {
            producer_id: 9,
            epoch: 3,
            found: 1
        })
    );
    assert_eq!(model.send(&header(9, 3, 0, 2)), Ok(Verdict::Next));
    assert_eq!(
        model.send(&header(9, 3, 3, 1)),
        Err(ProducerError::OutOfOrder {
            producer_id: 9,
            epoch: 3,
            expected: 2,
            found: 3
        })
    );
    assert_eq!(
        model.send(&header(9, 2, 2, 1)),
        Err(ProducerError::Fenced {
            producer_id: 9,
            epoch: 2,
            current: 3
        })
    );
    assert_eq!(
        model.send(&header(9, 4, 2, 1)),
        Err(ProducerError::OutOfOrder {
            producer_id: 9,
            epoch: 4,
            expected: 0,
            found: 2
        })
    );
    assert_eq!(model.send(&header(9, 4, 0, 1)), Ok(Verdict::Next));
    // What the old epoch sent is fenced even where it was stored.
    assert!(matches!(
        model.send(&header(9, 3, 0, 2)),
        Err(ProducerError::Fenced { .. })
    ));
    // Others are not concerned, and those without an id never.
    assert_eq!(model.send(&header(10, 0, 0, 1)), Ok(Verdict::Next));
    for _ in 0..3 {
        assert_eq!(model.send(&header(-1, -1, -1, 1)), Ok(Verdict::Next));
    }
    assert_eq!(model.table.len(), 2);
}

#[test]
fn sequence_numbers_go_round() {
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX - 2, 5), 2);
    let mut table = ProducerTable::default();
    table.note(&header(9, 0, i32::MAX - 2, 5), offset(100), Some(at(1)));
    assert_eq!(table.check(&header(9, 0, 2, 1)), Ok(Verdict::Next));
    assert!(matches!(
        table.check(&header(9, 0, i32::MAX - 2, 5)),
        Ok(Verdict::Stored(_))
    ));
    assert!(matches!(
        table.check(&header(9, 0, i32::MAX - 3, 1)),
        Err(ProducerError::Duplicate { expected: 2, .. })
    ));
    assert!(matches!(
        table.check(&header(9, 0, 3, 1)),
        Err(ProducerError::OutOfOrder { expected: 2, .. })
    ));
}

#[test]
fn silent_producers_are_forgotten() {
    let mut table = ProducerTable::default();
    table.note(&header(1, 0, 0, 1), offset(0), Some(at(100)));
    table.note(&header(2, 0, 0, 1), offset(1), Some(at(200)));
    // Found in the log: as if heard of when the time is first known.
    table.note(&header(3, 0, 0, 1), offset(2), None);
    assert_eq!(table.expire(at(150), at(1000)), 1);
    assert!(table.check(&header(1, 0, 1, 1)).is_err());
    assert_eq!(table.expire(at(1000), at(2000)), 1);
    assert_eq!(table.check(&header(3, 0, 1, 1)), Ok(Verdict::Next));
    assert_eq!(table.expire(at(1001), at(2000)), 1);
    assert_eq!(table.len(), 0);
}

#[test]
fn their_number_is_bounded() {
    let mut table = ProducerTable::default();
    for id in 0..80 {
        table.note(&header(id, 0, 0, 1), offset(0), Some(at(id)));
        table.bound(64);
        assert!(table.len() <= 64);
        assert!(
            table.check(&header(id, 0, 1, 1)).is_ok(),
            "the newest stays"
        );
    }
    assert!(table.check(&header(0, 0, 1, 1)).is_err());
}

fn end() -> LogEnd {
    LogEnd {
        sequence: 3,
        position: 12_345,
        offset: offset(1000),
        index: RaftIndex::new(77),
        epoch: LeaderEpoch::new(9).unwrap(),
        chain: 0xdead_beef,
        max_timestamp: at(1_517_443_200_000),
        log_start: offset(10),
    }
}

fn two_producers() -> ProducerTable {
    let mut table = ProducerTable::default();
    table.note(
        &header(7, 1, 40, 10),
        offset(900),
        Some(at(1_700_000_000_000)),
    );
    table.note(
        &header(7, 1, 50, 3),
        offset(950),
        Some(at(1_700_000_000_001)),
    );
    let mut stamped = header(1 << 40, 0, 0, 47);
    stamped.attributes = stamped
        .attributes
        .with_timestamp_type(TimestampType::LogAppendTime);
    table.note(&stamped, offset(953), None);
    table
}

#[test]
fn a_snapshot_is_as_the_golden_file_says() {
    let bytes = golden("producers_v1_two");
    let snapshot = Snapshot::decode(&bytes).unwrap();
    assert_eq!(snapshot.end, end());
    assert_eq!(snapshot.producers, two_producers());
    assert_eq!(encode(&end(), &two_producers()), bytes);
    assert_eq!(
        Snapshot::decode(&golden("producers_v1_corrupt_sequence")),
        None
    );
}

#[test]
fn no_flipped_bit_passes() {
    let bytes = encode(&end(), &two_producers());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Snapshot::decode(&flipped), None, "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert_eq!(Snapshot::decode(&bytes[..len]), None, "{len} bytes");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        with_magic: bool,
        with_crc: bool,
    ) {
        if with_magic && bytes.len() >= MAGIC.len() {
            bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        }
        if with_crc {
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_be_bytes());
        }
        if let Some(snapshot) = Snapshot::decode(&bytes) {
            prop_assert_eq!(snapshot.producers.len(), Snapshot::decode(&encode(&snapshot.end, &snapshot.producers)).unwrap().producers.len());
        }
    }

    /// Producers that retry at random: every batch is stored exactly once, in order.
    #[test]
    fn whatever_is_sent_again_is_stored_once(sends in proptest::collection::vec((0..3i64, 0..8i32), 0..200)) {
        let mut model = Model::default();
        let mut stored: HashMap<i64, i32> = HashMap::new();
        for (id, batch) in sends {
            let next = stored.entry(id).or_default();
            match model.send(&header(id, 0, batch * 4, 4)) {
                Ok(Verdict::Next) => {
                    prop_assert_eq!(batch, *next);
                    *next += 1;
                }
                Ok(Verdict::Stored(at)) => {
                    prop_assert!(batch < *next && batch + 5 >= *next);
                    prop_assert_eq!(at.base_sequence, batch * 4);
                }
                Err(ProducerError::Duplicate { .. }) => prop_assert!(batch + 5 < *next),
                Err(ProducerError::OutOfOrder { .. }) => prop_assert!(*next > 0 && batch > *next),
                Err(ProducerError::Unknown { .. }) => prop_assert!(*next == 0 && batch > 0),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
