//! Arbitrary records through every compression, and arbitrary bytes.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tidelog_record::{
    BATCH_HEADER_LEN, Batch, BatchError, BatchHeader, BatchLimits, Compression, LeaderEpoch,
    Offset, Timestamp, check_batch, split_batches, validate_produced,
};

use crate::support::{
    BYTES_MAX, NO_PRODUCER, Plain, Producer, build, decode, judge_build, judge_decode, with_body,
    with_header,
};

fn compressions() -> impl Strategy<Value = Compression> {
    prop::sample::select(Compression::ALL.to_vec())
}

fn producers() -> impl Strategy<Value = Producer> {
    prop_oneof![Just(NO_PRODUCER), (0..i64::MAX, 0..i16::MAX, 0..i32::MAX)]
}

fn bytes_fields() -> impl Strategy<Value = Option<Vec<u8>>> {
    option::of(prop_oneof![
        vec(any::<u8>(), 0..100),
        // Compressible, and long enough for several blocks of every format.
        (any::<u8>(), 0..100_000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ])
}

/// Header keys of one record are made to differ: the second implementation keeps them in a map.
fn headers() -> impl Strategy<Value = Vec<(String, Option<Vec<u8>>)>> {
    vec((".{0,10}", option::of(vec(any::<u8>(), 0..80))), 0..4).prop_map(|headers| {
        let numbered = |(index, (key, value))| (format!("{key}{index}"), value);
        headers.into_iter().enumerate().map(numbered).collect()
    })
}

fn records() -> impl Strategy<Value = Vec<Plain>> {
    let record = (
        any::<i64>(),
        0..62,
        bytes_fields(),
        bytes_fields(),
        headers(),
    )
        .prop_map(|(timestamp, shift, key, value, headers)| Plain {
            // Differences between any two must fit 64 bits.
            timestamp: timestamp >> 1 >> shift,
            key,
            value,
            headers,
        });
    vec(record, 1..20)
}

fn limits() -> BatchLimits {
    BatchLimits {
        batch_bytes_max: BYTES_MAX,
        ..BatchLimits::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn records_survive_everything(
        records in records(),
        compression in compressions(),
        producer in producers(),
        base_offset in 0..i64::MAX.unsigned_abs(),
        epoch in 0..i32::MAX.unsigned_abs(),
    ) {
        let sent = build(&records, compression, producer);
        let mut produced = validate_produced(sent.clone(), &limits()).unwrap();
        let max_timestamp = records.iter().map(|record| record.timestamp).max().unwrap();
        prop_assert_eq!(produced.max_timestamp(), Timestamp::from_millis(max_timestamp));
        prop_assert_eq!(usize::try_from(produced.record_count()).unwrap(), records.len());
        let checked = Batch::check(sent, BYTES_MAX).unwrap();
        prop_assert_eq!(produced.header(), checked.header());
        prop_assert_eq!(judge_decode(&produced_bytes(&produced)), (records.clone(), compression));

        produced.stamp(Offset::new(base_offset).unwrap(), LeaderEpoch::new(epoch).unwrap());
        let stored = produced_bytes(&produced);
        let header = check_batch(&stored, BYTES_MAX).unwrap();
        prop_assert_eq!(Offset::from_wire(header.base_offset), Offset::new(base_offset));
        prop_assert_eq!(LeaderEpoch::from_wire(header.leader_epoch), LeaderEpoch::new(epoch));
        prop_assert_eq!(header.producer_id, producer.0);
        prop_assert_eq!(decode(&stored), records);
    }

    #[test]
    fn batches_of_the_second_implementation_are_accepted(
        records in records(),
        compression in compressions(),
        producer in producers(),
    ) {
        let sent = judge_build(&records, compression, producer);
        let produced = validate_produced(sent.clone(), &limits()).unwrap();
        prop_assert_eq!(produced_bytes(&produced), sent.clone());
        prop_assert_eq!(decode(&sent), records);
    }

    #[test]
    fn batches_back_to_back_come_apart_again(
        batches in vec((records(), compressions()), 0..5),
        tail in vec(any::<u8>(), 0..60),
    ) {
        let built: Vec<Bytes> = batches
            .iter()
            .map(|(records, compression)| build(records, *compression, NO_PRODUCER))
            .collect();
        let joined = Bytes::from(built.concat());
        let split: Vec<Bytes> = split_batches(joined.clone(), BYTES_MAX)
            .map(|batch| batch.unwrap().bytes().clone())
            .collect();
        prop_assert_eq!(&split, &built);

        // A fetched range often ends inside a batch.
        let mut torn = joined.to_vec();
        torn.extend_from_slice(built.first().map_or(&tail[..], |batch| &batch[..tail.len()]));
        let mut split = split_batches(torn.into(), BYTES_MAX);
        for expected in &built {
            let batch = split.next().unwrap().unwrap();
            prop_assert_eq!(batch.bytes(), expected);
        }
        match split.next() {
            None => prop_assert!(tail.is_empty()),
            Some(last) => {
                prop_assert!(last.is_err() && !tail.is_empty());
                prop_assert!(split.next().is_none());
                prop_assert!(split.rest().is_empty());
            }
        }
    }
}

fn produced_bytes(produced: &tidelog_record::ProducedBatch) -> Bytes {
    let (header, body) = produced.parts();
    [&header, &body[..]].concat().into()
}

/// Everything that reads a batch reads `bytes`; nothing may panic.
fn read_all(bytes: &Bytes, limits: &BatchLimits) {
    BatchHeader::decode(bytes, limits.batch_bytes_max).ok();
    let produced = validate_produced(bytes.clone(), limits);
    for batch in split_batches(bytes.clone(), limits.batch_bytes_max).flatten() {
        let read = batch
            .records(limits)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>);
        if let Ok(produced) = &produced {
            let read = read.expect("what a producer may send, a consumer can read");
            assert_eq!(
                read.len(),
                usize::try_from(produced.record_count()).unwrap()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn arbitrary_bytes_are_answered(bytes in vec(any::<u8>(), 0..300)) {
        read_all(&bytes.into(), &limits());
    }

    /// A header that holds together, over a body that need not.
    #[test]
    fn arbitrary_bodies_are_answered(
        body in vec(any::<u8>(), 0..300),
        bits in 0..16_u16,
        record_count in prop_oneof![0..20, any::<i32>()],
    ) {
        let batch = with_body(&build(&[Plain::new(0, "", "")], Compression::None, NO_PRODUCER), &body);
        let batch = with_header(&batch, |header| {
            header.attributes = tidelog_record::Attributes::from_bits(bits);
            header.record_count = record_count;
            header.last_offset_delta = record_count.wrapping_sub(1);
        });
        read_all(&batch, &limits());
    }

    /// A good batch, damaged in a few places and then sealed under a CRC that holds: what a broken
    /// client would send, deep inside of the formats.
    #[test]
    fn damaged_bodies_are_answered(
        compression in compressions(),
        repeats in 1..400_usize,
        damages in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let value = "all work and no play ".repeat(repeats);
        let records = [Plain::new(5, "k", &value).header("h", Some(b"v")), Plain::new(9, "l", "w")];
        let sent = build(&records, compression, NO_PRODUCER);
        let mut body = sent[BATCH_HEADER_LEN..].to_vec();
        for (at, byte) in damages {
            let at = at.index(body.len());
            body[at] = byte;
        }
        read_all(&with_body(&sent, &body), &limits());
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for compression in Compression::ALL {
        let records = [
            Plain::new(5, "key", "value").header("h", None),
            Plain::new(9, "l", "w"),
        ];
        let whole = build(&records, compression, NO_PRODUCER);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let checked = Batch::check(bytes.into(), BYTES_MAX).map(|_| ());
            match bit / 8 {
                // What a broker assigns is checked by the log, against what it expects.
                0..8 | 12..16 => assert_eq!(checked, Ok(()), "bit {bit}"),
                8..12 => assert!(checked.is_err(), "bit {bit} of the length"),
                16 => assert!(
                    matches!(checked, Err(BatchError::WrongMagic { .. })),
                    "bit {bit}"
                ),
                _ => assert!(
                    matches!(checked, Err(BatchError::WrongCrc { .. })),
                    "bit {bit}"
                ),
            }
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    for compression in Compression::ALL {
        let whole = build(&[Plain::new(5, "key", "value")], compression, NO_PRODUCER);
        for have in 0..whole.len() {
            let needed = if have < BATCH_HEADER_LEN {
                BATCH_HEADER_LEN
            } else {
                whole.len()
            };
            let expected = BatchError::Truncated { needed, have };
            let cut = whole.slice(..have);
            assert_eq!(check_batch(&cut, BYTES_MAX), Err(expected));
            assert_eq!(
                validate_produced(cut, &limits()).unwrap_err(),
                expected.into()
            );
        }
    }
}
