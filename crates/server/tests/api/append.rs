//! Log.Append, Log.ListOffsets and Log.DeleteRecords.

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_proto::v1::offset_spec::At;
use tidelog_record::Compression;
use tonic::Code;

use crate::support::{
    Fixture, append_batch, append_records, at, batch, batch_of, fetch, told, told_within,
};

#[tokio::test]
async fn batches_come_back_as_they_were_sent() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    for (i, compression) in Compression::ALL.into_iter().enumerate() {
        let sent = batch_of(&["one", "two"], compression);
        let appended = f
            .log
            .append(append_batch("t", 0, sent.clone()))
            .await
            .unwrap();
        let results = appended.into_inner().results;
        let base = u64::try_from(i).unwrap() * 2;
        assert_eq!(results.len(), 1);
        assert_eq!(results[0].base_offset, Some(base));
        assert_eq!((results[0].partition, results[0].record_count), (0, 2));
        assert_eq!(
            (results[0].log_append_time_ms, &results[0].error),
            (None, &None)
        );
        assert!(results[0].record_indexes.is_empty());
        let fetched = f.log.fetch(fetch("t", 0, base)).await.unwrap().into_inner();
        let stored = &fetched.partitions[0].batches;
        // All but base offset and leader epoch, which the broker stamps.
        assert_eq!(stored.len(), sent.len());
        assert_eq!(stored[..8], base.to_be_bytes());
        assert_eq!((&stored[8..12], &stored[16..]), (&sent[8..12], &sent[16..]));
    }
}

#[tokio::test]
async fn records_go_where_their_keys_belong() {
    let mut f = Fixture::start().await;
    f.create("t", 6).await;
    // Where Kafka's murmur2 puts these keys.
    let records = [
        (Some("nc"), "0"),
        (Some("us"), "1"),
        (Some("nc"), "2"),
        (Some("ak"), "3"),
    ];
    let response = f
        .log
        .append(append_records("t", &records))
        .await
        .unwrap()
        .into_inner();
    let mut spread = Vec::new();
    for result in &response.results {
        assert_eq!((result.base_offset, &result.error), (Some(0), &None));
        assert_eq!(
            usize::try_from(result.record_count).unwrap(),
            result.record_indexes.len()
        );
        for index in &result.record_indexes {
            spread.push((*index, result.partition));
        }
        let values = f.values("t", result.partition, 0).await;
        let sent: Vec<_> = result.record_indexes.iter().map(u32::to_string).collect();
        assert_eq!(values, sent);
    }
    spread.sort_unstable();
    let partition = |key: &[u8]| tidelog_record::partition_for_key(key, 6.try_into().unwrap());
    let expected = [b"nc", b"us", b"nc", b"ak"].map(|key| partition(key).get());
    assert_eq!(spread.iter().map(|(_, p)| *p).collect::<Vec<_>>(), expected);
    assert_ne!(expected[0], expected[1], "the test spreads its records");
}

#[tokio::test]
async fn records_keep_everything_they_have() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let header = |key: &str, value: Option<&'static [u8]>| v1::Header {
        key: key.to_owned(),
        value: value.map(Bytes::from_static),
    };
    let full = v1::NewRecord {
        key: Some(Bytes::new()),
        value: None,
        headers: vec![
            header("a", Some(b"1")),
            header("a", None),
            header("", Some(b"")),
        ],
        timestamp_ms: Some(-5),
    };
    let records = v1::NewRecords {
        records: vec![full.clone(), v1::NewRecord::default()],
        compression: v1::Compression::Zstd.into(),
        ..v1::NewRecords::default()
    };
    let request = v1::AppendRequest {
        payload: Some(v1::append_request::Payload::Records(records)),
        ..append_batch("t", 0, Bytes::new())
    };
    f.log.append(request).await.unwrap();
    let request = v1::FetchRequest {
        format: v1::Format::Records.into(),
        ..fetch("t", 0, 0)
    };
    let fetched = f.log.fetch(request).await.unwrap().into_inner();
    let [first, second] = fetched.partitions[0].records.as_slice() else {
        panic!("{fetched:?}");
    };
    assert_eq!((first.offset, first.timestamp_ms), (0, -5));
    assert_eq!(
        (&first.key, &first.value, &first.headers),
        (&full.key, &None, &full.headers)
    );
    assert_eq!((&second.key, &second.value), (&None, &None));
    assert!(
        second.timestamp_ms > 1_500_000_000_000,
        "when the broker got it"
    );
}

#[tokio::test]
async fn log_append_time_is_told() {
    let mut f = Fixture::start().await;
    f.create_with("t", 1, &[("message.timestamp.type", "LogAppendTime")])
        .await;
    let appended = f
        .log
        .append(append_batch("t", 0, batch(&["v"])))
        .await
        .unwrap()
        .into_inner();
    let given = appended.results[0].log_append_time_ms.unwrap();
    let request = v1::FetchRequest {
        format: v1::Format::Records.into(),
        ..fetch("t", 0, 0)
    };
    let fetched = f.log.fetch(request).await.unwrap().into_inner();
    assert_eq!(fetched.partitions[0].records[0].timestamp_ms, given);
}

#[tokio::test]
async fn weaker_acknowledgements_store_too() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let leader = v1::AppendRequest {
        acks: v1::Acks::Leader.into(),
        ..append_batch("t", 0, batch(&["a"]))
    };
    let response = f.log.append(leader).await.unwrap().into_inner();
    assert_eq!(response.results[0].base_offset, Some(0));
    let none = v1::AppendRequest {
        acks: v1::Acks::None.into(),
        ..append_batch("t", 0, batch(&["b"]))
    };
    assert!(
        f.log
            .append(none)
            .await
            .unwrap()
            .into_inner()
            .results
            .is_empty()
    );
    assert_eq!(f.append("t", 0, &["c"]).await, 2);
    assert_eq!(f.values("t", 0, 0).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn bad_appends_are_refused_and_change_nothing() {
    let mut f = Fixture::start().await;
    f.create_with("t", 2, &[("max.message.bytes", "2000")])
        .await;
    let invalid = Code::InvalidArgument;
    let refused = async |request, code, reason| {
        let mut log = f.log.clone();
        told(log.append(request).await.unwrap_err(), code, reason)
    };
    refused(
        append_batch("u", 0, batch(&["v"])),
        Code::NotFound,
        "TOPIC_NOT_FOUND",
    )
    .await
    .fact("topic", "u");
    refused(
        append_batch("t", 2, batch(&["v"])),
        Code::NotFound,
        "PARTITION_NOT_FOUND",
    )
    .await
    .fact("topic", "t")
    .fact("partition", 2)
    .fact("partitions", 2);
    let internal = append_batch("__cluster_metadata", 0, batch(&["v"]));
    refused(internal, Code::PermissionDenied, "INTERNAL_TOPIC").await;
    let large = batch(&["x".repeat(3000).as_str()]);
    refused(
        append_batch("t", 0, large.clone()),
        invalid,
        "BATCH_TOO_LARGE",
    )
    .await
    .fact("len", large.len())
    .fact("max", 2000)
    .says(&large.len().to_string())
    .says("2000");
    for garbage in [
        &b""[..],
        b"garbage",
        &[0; 61],
        &[0xff; 500],
        &batch(&["v"])[..60],
    ] {
        let garbage = append_batch("t", 0, Bytes::copy_from_slice(garbage));
        refused(garbage, invalid, "INVALID_BATCH")
            .await
            .field("batch")
            .cannot_be_retried();
    }
    let mut records = append_records("t", &[(None, &"x".repeat(3000))]);
    records.partition = Some(0);
    refused(records, invalid, "BATCH_TOO_LARGE")
        .await
        .field("records");
    let mut damaged = batch(&["v"]).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = append_batch("t", 0, Bytes::from(damaged));
    refused(damaged, invalid, "INVALID_BATCH").await.says("CRC");

    let nothing = v1::AppendRequest {
        payload: None,
        ..append_batch("t", 0, Bytes::new())
    };
    refused(nothing, invalid, "INVALID_REQUEST")
        .await
        .field("batch");
    refused(append_records("t", &[]), invalid, "INVALID_REQUEST").await;
    let acks = v1::AppendRequest {
        acks: 7,
        ..append_batch("t", 0, batch(&["v"]))
    };
    refused(acks, invalid, "INVALID_REQUEST")
        .await
        .fact("value", 7)
        .field("acks");
    let mut compression = append_records("t", &[(None, "v")]);
    if let Some(v1::append_request::Payload::Records(records)) = &mut compression.payload {
        records.compression = 9;
    }
    refused(compression, invalid, "INVALID_REQUEST")
        .await
        .field("records.compression");

    assert_eq!(f.append("t", 0, &["first"]).await, 0);
    let counted = f
        .metric("tidelog_errors_total{reason=\"INVALID_BATCH\"}")
        .await;
    assert!((counted - 6.0).abs() < f64::EPSILON, "{counted}");
}

fn list(wanted: &[(&str, u32, At)]) -> v1::ListOffsetsRequest {
    let one = |(topic, partition, place): &(&str, u32, At)| v1::ListOffsetsPartition {
        topic: (*topic).to_owned(),
        partition: *partition,
        at: at(*place),
    };
    v1::ListOffsetsRequest {
        partitions: wanted.iter().map(one).collect(),
    }
}

#[tokio::test]
async fn offsets_are_found_by_place_and_by_time() {
    let mut f = Fixture::start().await;
    f.create("t", 2).await;
    // With timestamps 1000, 1001, 1002; then the same again.
    f.append("t", 0, &["a", "b", "c"]).await;
    f.append("t", 0, &["d", "e", "f"]).await;
    let request = list(&[
        ("t", 0, At::Earliest(true)),
        ("t", 0, At::Latest(true)),
        ("t", 0, At::BeforeLatest(2)),
        ("t", 0, At::BeforeLatest(100)),
        ("t", 0, At::TimestampMs(1001)),
        ("t", 0, At::TimestampMs(2000)),
        ("t", 1, At::TimestampMs(0)),
        ("t", 9, At::Latest(true)),
        ("u", 0, At::Latest(true)),
    ]);
    let mut listed = f
        .log
        .list_offsets(request)
        .await
        .unwrap()
        .into_inner()
        .partitions;
    let missing_topic = listed.pop().unwrap();
    told_within(missing_topic.error, Code::NotFound, "TOPIC_NOT_FOUND");
    let missing_partition = listed.pop().unwrap();
    assert_eq!(
        (
            missing_partition.topic.as_str(),
            missing_partition.partition
        ),
        ("t", 9)
    );
    told_within(
        missing_partition.error,
        Code::NotFound,
        "PARTITION_NOT_FOUND",
    );
    let found: Vec<_> = listed
        .iter()
        .map(|one| (one.offset, one.timestamp_ms))
        .collect();
    let expected = [
        (0, None),
        (6, None),
        (4, None),
        (0, None),
        (1, Some(1001)),
        (6, None),
        (0, None),
    ];
    assert_eq!(found, expected);
    assert!(
        listed
            .iter()
            .all(|one| one.error.is_none() && one.leader_epoch > 0)
    );

    let empty = f.log.list_offsets(list(&[])).await.unwrap_err();
    told(empty, Code::InvalidArgument, "INVALID_REQUEST").field("partitions");
    let bad = list(&[("t", 0, At::Latest(true)), ("t", 0, At::Latest(false))]);
    let bad = f.log.list_offsets(bad).await.unwrap_err();
    told(bad, Code::InvalidArgument, "INVALID_REQUEST").field("partitions[1].at");
}

fn delete(topic: &str, wanted: &[(u32, At)]) -> v1::DeleteRecordsRequest {
    let one = |(partition, before): &(u32, At)| v1::DeleteRecordsPartition {
        partition: *partition,
        before: at(*before),
    };
    v1::DeleteRecordsRequest {
        topic: topic.to_owned(),
        partitions: wanted.iter().map(one).collect(),
    }
}

#[tokio::test]
async fn deleted_records_cannot_be_read_again() {
    let mut f = Fixture::start().await;
    f.create("t", 2).await;
    f.append("t", 0, &["a", "b", "c"]).await;
    f.append("t", 1, &["d"]).await;
    let request = delete(
        "t",
        &[
            (0, At::Offset(2)),
            (1, At::Latest(true)),
            (5, At::Latest(true)),
        ],
    );
    let deleted = f
        .log
        .delete_records(request)
        .await
        .unwrap()
        .into_inner()
        .partitions;
    assert_eq!((deleted[0].log_start_offset, &deleted[0].error), (2, &None));
    assert_eq!((deleted[1].log_start_offset, &deleted[1].error), (1, &None));
    told_within(
        deleted[2].error.clone(),
        Code::NotFound,
        "PARTITION_NOT_FOUND",
    );
    let fetched = f.log.fetch(fetch("t", 0, 1)).await.unwrap().into_inner();
    told_within(
        fetched.partitions[0].error.clone(),
        Code::OutOfRange,
        "OFFSET_OUT_OF_RANGE",
    )
    .fact("requested", 1)
    .fact("log_start_offset", 2)
    .fact("high_watermark", 3);
    assert_eq!(f.values("t", 0, 2).await, ["c"]);

    let beyond = delete("t", &[(0, At::Offset(4))]);
    let beyond = f
        .log
        .delete_records(beyond)
        .await
        .unwrap()
        .into_inner()
        .partitions;
    told_within(
        beyond[0].error.clone(),
        Code::OutOfRange,
        "OFFSET_OUT_OF_RANGE",
    )
    .says("records before offset 4 cannot be deleted")
    .says("from the log start, 2, to the high watermark, 3")
    .fact("requested", 4)
    .fact("log_start_offset", 2)
    .fact("high_watermark", 3);
    let unknown = f
        .log
        .delete_records(delete("u", &[(0, At::Latest(true))]))
        .await
        .unwrap_err();
    told(unknown, Code::NotFound, "TOPIC_NOT_FOUND");
    let internal = delete("__cluster_metadata", &[(0, At::Latest(true))]);
    let internal = f
        .log
        .delete_records(internal)
        .await
        .unwrap()
        .into_inner()
        .partitions;
    told_within(
        internal[0].error.clone(),
        Code::PermissionDenied,
        "INTERNAL_TOPIC",
    );
}

#[tokio::test]
async fn too_many_records_in_one_request_are_refused() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let records = vec![v1::NewRecord::default(); 200_001];
    let request = v1::AppendRequest {
        topic: "t".to_owned(),
        partition: Some(0),
        payload: Some(v1::append_request::Payload::Records(v1::NewRecords {
            records,
            ..v1::NewRecords::default()
        })),
        ..v1::AppendRequest::default()
    };
    let status = f.log.append(request).await.unwrap_err();
    told(status, Code::InvalidArgument, "INVALID_REQUEST")
        .fact("found", 200_001)
        .fact("max", 200_000);
}

#[tokio::test]
async fn a_request_that_would_grow_when_decoded_is_refused_before() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let request = |records, headers| {
        let record = v1::NewRecord {
            headers: vec![v1::Header::default(); headers],
            ..v1::NewRecord::default()
        };
        v1::AppendRequest {
            topic: "t".to_owned(),
            partition: Some(0),
            payload: Some(v1::append_request::Payload::Records(v1::NewRecords {
                records: vec![record; records],
                ..v1::NewRecords::default()
            })),
            ..v1::AppendRequest::default()
        }
    };
    for (records, headers) in [(3_000_000, 0), (10, 300_000)] {
        let status = f.log.append(request(records, headers)).await.unwrap_err();
        let told = told(status, Code::InvalidArgument, "INVALID_REQUEST");
        told.fact("max", 250_000).cannot_be_retried();
        let found: usize = told.facts["found"].parse().unwrap();
        assert!(
            (250_001..250_010).contains(&found),
            "counted no further: {found}"
        );
    }
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
}

#[tokio::test]
async fn what_decoded_records_take_counts_as_received() {
    // 1,000 empty records are 2,000 bytes in the request and 160,000 in memory.
    let mut f = Fixture::with(|config| {
        config.limits.request_bytes_max = 64 * 1024;
        config.limits.receiving_bytes_max = 100_000;
    })
    .await;
    f.create("t", 1).await;
    let records = |count| v1::AppendRequest {
        topic: "t".to_owned(),
        partition: Some(0),
        payload: Some(v1::append_request::Payload::Records(v1::NewRecords {
            records: vec![v1::NewRecord::default(); count],
            ..v1::NewRecords::default()
        })),
        ..v1::AppendRequest::default()
    };
    let status = f.log.append(records(1000)).await.unwrap_err();
    told(status, Code::ResourceExhausted, "OVERLOADED").can_be_retried();
    f.log.append(records(500)).await.unwrap();
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
}
