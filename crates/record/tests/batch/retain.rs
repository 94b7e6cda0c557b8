//! What is left of a batch when records are taken out of it, told by a second implementation.

use bytes::Bytes;
use kafka_protocol::records as judge;
use proptest::collection::vec;
use proptest::prelude::*;
use tidelog_record::{
    Batch, BatchLimits, BuildError, Compression, LeaderEpoch, Offset, ProduceError, Record,
    Timestamp, retain_records, validate_produced,
};

use crate::support::{BYTES_MAX, NO_PRODUCER, Plain, build};

fn records_of(batch: &Batch) -> Vec<Record> {
    let records = batch.records(&BatchLimits::default()).unwrap();
    records.map(Result::unwrap).collect()
}

fn checked(bytes: Bytes) -> Batch {
    Batch::check(bytes, BYTES_MAX).unwrap()
}

/// As it is stored: with its place in the log.
fn stored(bytes: Bytes, log_append_time: Option<i64>) -> Batch {
    let mut produced = validate_produced(bytes, &BatchLimits::default()).unwrap();
    if let Some(now) = log_append_time {
        produced.set_log_append_time(Timestamp::from_millis(now));
    }
    let base = Offset::new(1000).unwrap();
    produced.stamp(base, LeaderEpoch::new(7).unwrap());
    let (header, body) = produced.parts();
    checked([&header[..], &body[..]].concat().into())
}

/// Offset, timestamp, key, value, and how many headers.
type Told = (i64, i64, Option<Bytes>, Option<Bytes>, usize);

fn judged(bytes: &Bytes) -> Vec<Told> {
    let mut bytes = bytes.clone();
    let set = judge::RecordBatchDecoder::decode(&mut bytes).unwrap();
    let fields = |r: judge::Record| (r.offset, r.timestamp, r.key, r.value, r.headers.len());
    set.records.into_iter().map(fields).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_left_is_what_it_was(
        kept in vec(any::<bool>(), 1..20),
        times in vec(-1_000_000_i64..2_000_000_000_000, 20),
        compression in prop::sample::select(Compression::ALL.to_vec()),
        producer in prop_oneof![Just(NO_PRODUCER), Just((4, 5, 6))],
        horizon in prop::option::of(0_i64..2_000_000_000_000),
        append_time in prop::option::of(0_i64..2_000_000_000_000),
    ) {
        let records: Vec<Plain> = kept.iter().zip(&times).enumerate().map(|(n, (_, time))| {
            let mut record = Plain::new(*time, &format!("key {n}"), &"v".repeat(n * 50));
            if n % 3 == 0 {
                record.value = None;
            }
            if n % 2 == 0 { record.header("h", None) } else { record.header("i", Some(b"x")) }
        }).collect();
        let batch = stored(build(&records, compression, producer), append_time);
        let mut left = records_of(&batch);
        let mut keep = kept.iter();
        left.retain(|_| *keep.next().unwrap());
        let horizon = horizon.map(Timestamp::from_millis);
        let retained = retain_records(batch.header(), &left, horizon);
        if left.is_empty() {
            prop_assert_eq!(retained, Err(BuildError::Empty));
            return Ok(());
        }
        let bytes = retained.unwrap();
        let again = checked(bytes.clone());
        prop_assert_eq!(&records_of(&again), &left);
        let expected: Vec<_> = left.iter().map(|r| (
            1000 + i64::from(r.offset_delta),
            r.timestamp.millis(),
            r.key.clone(),
            r.value.clone(),
            r.headers.len(),
        )).collect();
        // The second implementation gives each record its own timestamp delta.
        if append_time.is_none() {
            prop_assert_eq!(judged(&bytes), expected);
        }
        let (before, after) = (batch.header(), again.header());
        prop_assert_eq!(after.base_offset, before.base_offset);
        prop_assert_eq!(after.last_offset_delta, before.last_offset_delta);
        prop_assert_eq!(after.leader_epoch, before.leader_epoch);
        prop_assert_eq!(after.producer_id, before.producer_id);
        prop_assert_eq!(after.producer_epoch, before.producer_epoch);
        prop_assert_eq!(after.base_sequence, before.base_sequence);
        prop_assert_eq!(after.attributes.compression(), Ok(compression));
        prop_assert_eq!(after.attributes.timestamp_type(), before.attributes.timestamp_type());
        prop_assert_eq!(after.attributes.has_delete_horizon(), horizon.is_some());
        if let Some(horizon) = horizon {
            prop_assert_eq!(after.base_timestamp, horizon.millis());
        }
        let newest = left.iter().map(|r| r.timestamp.millis()).max().unwrap();
        prop_assert_eq!(after.max_timestamp, append_time.unwrap_or(newest));

        // Once more, without any of them: the horizon stays.
        let last = &left[left.len() - 1..];
        let less = checked(retain_records(after, last, None).unwrap());
        prop_assert_eq!(&records_of(&less)[..], last);
        prop_assert_eq!(less.header().attributes.has_delete_horizon(), horizon.is_some());
        prop_assert_eq!(less.header().base_timestamp, after.base_timestamp);
    }
}

#[test]
fn under_log_append_time_no_base_is_too_far() {
    let records = [
        Plain::new(i64::MIN, "a", "1"),
        Plain::new(i64::MIN, "b", "2"),
    ];
    let bytes = build(&records, Compression::None, NO_PRODUCER);
    let batch = stored(bytes, Some(1_700_000_000_000));
    let last = &records_of(&batch)[1..];
    for horizon in [None, Some(Timestamp::from_millis(1_800_000_000_000))] {
        let retained = retain_records(batch.header(), last, horizon).unwrap();
        assert_eq!(records_of(&checked(retained)), last);
    }
}

#[test]
fn a_time_too_far_from_the_horizon_is_an_error() {
    let batch = stored(
        build(
            &[Plain::new(i64::MIN, "k", "v")],
            Compression::None,
            NO_PRODUCER,
        ),
        None,
    );
    let now = Timestamp::from_millis(1_700_000_000_000);
    let retained = retain_records(batch.header(), &records_of(&batch), Some(now));
    assert!(matches!(
        retained,
        Err(BuildError::TimestampOverflow { .. })
    ));
    retain_records(batch.header(), &records_of(&batch), None).unwrap();
}

#[test]
fn only_a_broker_sets_a_horizon_and_keys_may_be_required() {
    let bytes = build(&[Plain::new(1, "k", "v")], Compression::None, NO_PRODUCER);
    let batch = stored(bytes, None);
    let now = Some(Timestamp::from_millis(5));
    let stamped = retain_records(batch.header(), &records_of(&batch), now).unwrap();
    let refused = validate_produced(stamped, &BatchLimits::default());
    assert!(matches!(
        refused,
        Err(ProduceError::Attributes { bits: 0x40 })
    ));

    let limits = BatchLimits {
        keys_required: true,
        ..BatchLimits::default()
    };
    for compression in [Compression::None, Compression::Zstd] {
        let mut records = vec![Plain::new(1, "", "v"), Plain::new(1, "k", "v")];
        validate_produced(build(&records, compression, NO_PRODUCER), &limits).unwrap();
        records[1].key = None;
        let keyless = build(&records, compression, NO_PRODUCER);
        let refused = validate_produced(keyless.clone(), &limits).unwrap_err();
        assert!(
            refused.to_string().contains("record 1") && refused.to_string().contains("no key"),
            "{refused}"
        );
        validate_produced(keyless, &BatchLimits::default()).unwrap();
    }
}
