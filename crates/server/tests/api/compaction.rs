//! Reading where compaction has left gaps.

use std::collections::BTreeMap;
use std::time::Duration;

use tidelog_proto::v1::offset_spec::At;
use tidelog_proto::v1::{self, ReadStart};
use tidelog_record::{BatchBuilder, Compression, Timestamp, split_batches};
use tonic::Code;

use crate::read::{Reading, records};
use crate::support::{Fixture, append_batch, at, fetch, told};

/// Eleven records of one key, two in each segment, of which compaction leaves the last two: that of
/// the active segment, and the newest before it.
async fn compacted() -> Fixture {
    let mut f = Fixture::with(|config| {
        config.limits.compaction_check_interval = Duration::from_millis(1);
    })
    .await;
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0"),
        ("segment.bytes", "1048576"),
    ];
    f.create_with("t", 1, &settings).await;
    for n in 0..11 {
        let value = format!("{n} {}", "x".repeat(500_000));
        let batch = batch(Some(b"key"), &value);
        f.log.append(append_batch("t", 0, batch)).await.unwrap();
    }
    f.until_metric_at_least("tidelog_compaction_records_removed_total", 9.0)
        .await;
    f
}

fn batch(key: Option<&[u8]>, value: &str) -> bytes::Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    let time = Timestamp::from_millis(1000);
    builder
        .push(time, key, Some(value.as_bytes()), &[])
        .unwrap();
    builder.build().unwrap()
}

fn range(from: u64, to: u64) -> ReadStart {
    ReadStart {
        from: at(At::Offset(from)),
        to: at(At::Offset(to)),
        ..records("t")
    }
}

#[tokio::test]
async fn reads_pass_gaps_and_end_in_them() {
    let f = compacted().await;
    let cases: [(u64, u64, &[&str]); 5] = [
        (0, 11, &["9", "10"]),
        (3, 6, &[]),
        (0, 9, &[]),
        (2, 10, &["9"]),
        (10, 11, &["10"]),
    ];
    for (from, to, expected) in cases {
        let (values, ends) = Reading::start(&f, range(from, to)).await.all().await;
        let values = values.into_values().flatten();
        let found: Vec<_> = values
            .map(|value| value.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(found, expected, "{from} to {to}");
        assert_eq!(ends, BTreeMap::from([(0, to)]));
    }
    let batches = ReadStart {
        format: v1::Format::Batches.into(),
        follow: true,
        ..records("t")
    };
    let mut reading = Reading::start(&f, batches).await;
    reading.started().await;
    let mut bases = Vec::new();
    while bases.len() < 2 {
        let data = reading.data().await;
        for batch in split_batches(data.batches, usize::MAX) {
            bases.push(batch.unwrap().header().base_offset);
        }
    }
    assert_eq!(bases, [9, 10]);
}

#[tokio::test]
async fn fetches_pass_gaps() {
    let mut f = compacted().await;
    for format in [v1::Format::Batches, v1::Format::Records] {
        for from in 0..10 {
            let mut request = fetch("t", 0, from);
            request.format = format.into();
            let fetched = f.log.fetch(request).await.unwrap().into_inner();
            let one = &fetched.partitions[0];
            assert_eq!(one.error, None);
            assert!(one.next_offset >= 10, "from {from}: {}", one.next_offset);
            assert!(!one.batches.is_empty() || !one.records.is_empty());
        }
    }
}

#[tokio::test]
async fn what_has_no_key_and_trims_are_refused_with_their_reasons() {
    let mut f = compacted().await;
    let keyless = append_batch("t", 0, batch(None, "x"));
    let refused = f.log.append(keyless).await.unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_BATCH");
    let request = v1::DeleteRecordsRequest {
        topic: "t".to_owned(),
        partitions: vec![v1::DeleteRecordsPartition {
            partition: 0,
            before: at(At::Offset(10)),
        }],
    };
    let answer = f.log.delete_records(request).await.unwrap().into_inner();
    let error = answer.partitions[0].error.as_ref().unwrap();
    assert_eq!(error.code, i32::from(Code::InvalidArgument));
    assert!(
        error.message.contains("cleanup.policy"),
        "{}",
        error.message
    );
}
