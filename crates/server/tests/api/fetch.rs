//! Log.Fetch.

use tidelog_proto::v1;
use tidelog_record::Compression;
use tonic::Code;

use crate::support::{
    Fixture, append_batch, batch, batch_of, fetch, in_time, text, told, told_within,
};

fn from(topic: &str, partition: u32, offset: u64) -> v1::FetchPartition {
    v1::FetchPartition {
        topic: topic.to_owned(),
        partition,
        offset,
        max_bytes: 0,
    }
}

#[tokio::test]
async fn several_partitions_answer_in_the_order_of_the_request() {
    let mut f = Fixture::start().await;
    f.create("a", 2).await;
    f.create("b", 1).await;
    f.append("a", 1, &["x", "y"]).await;
    f.append("b", 0, &["z"]).await;
    let request = v1::FetchRequest {
        partitions: vec![
            from("b", 0, 0),
            from("a", 0, 0),
            from("nowhere", 0, 7),
            from("a", 7, 0),
            from("a", 1, 1),
        ],
        format: v1::Format::Records.into(),
        ..Default::default()
    };
    let fetched = f.log.fetch(request).await.unwrap().into_inner().partitions;
    let names: Vec<_> = fetched
        .iter()
        .map(|one| (one.topic.as_str(), one.partition))
        .collect();
    assert_eq!(
        names,
        [("b", 0), ("a", 0), ("nowhere", 0), ("a", 7), ("a", 1)]
    );
    assert_eq!(text(fetched[0].records[0].value.as_ref().unwrap()), "z");
    assert_eq!((fetched[0].next_offset, fetched[0].high_watermark), (1, 1));
    assert!(fetched[1].records.is_empty() && fetched[1].error.is_none());
    told_within(fetched[2].error.clone(), Code::NotFound, "TOPIC_NOT_FOUND");
    assert_eq!(fetched[2].next_offset, 7);
    told_within(
        fetched[3].error.clone(),
        Code::NotFound,
        "PARTITION_NOT_FOUND",
    );
    // Only from the offset asked for, though its batch begins before.
    assert_eq!(fetched[4].records.len(), 1);
    assert_eq!(fetched[4].records[0].offset, 1);
}

#[tokio::test]
async fn offsets_outside_of_the_log_are_told_with_its_ends() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    f.append("t", 0, &["x", "y"]).await;
    for offset in [3, u64::MAX] {
        let fetched = f
            .log
            .fetch(fetch("t", 0, offset))
            .await
            .unwrap()
            .into_inner();
        let one = &fetched.partitions[0];
        told_within(one.error.clone(), Code::OutOfRange, "OFFSET_OUT_OF_RANGE")
            .fact("requested", offset)
            .fact("log_start_offset", 0)
            .fact("high_watermark", 2)
            .cannot_be_retried();
        assert_eq!(one.next_offset, offset);
    }
    // At the end there is nothing, and nothing is wrong.
    let fetched = f.log.fetch(fetch("t", 0, 2)).await.unwrap().into_inner();
    assert_eq!(
        (
            fetched.partitions[0].next_offset,
            &fetched.partitions[0].error
        ),
        (2, &None)
    );
}

#[tokio::test]
async fn answers_stop_at_the_bytes_asked_for_but_always_get_on() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let value = "x".repeat(1000);
    for _ in 0..10 {
        f.append("t", 0, &[&value]).await;
    }
    let one_len = f
        .log
        .fetch(v1::FetchRequest {
            max_bytes: 1,
            ..fetch("t", 0, 0)
        })
        .await;
    let one = &one_len.unwrap().into_inner().partitions[0];
    assert_eq!(one.next_offset, 1, "one batch, though it is too large");
    let len = u32::try_from(one.batches.len()).unwrap();
    let request = v1::FetchRequest {
        max_bytes: 3 * len + 1,
        ..fetch("t", 0, 0)
    };
    let three = f.log.fetch(request.clone()).await.unwrap().into_inner();
    assert_eq!(three.partitions[0].next_offset, 3);
    let mut request = fetch("t", 0, 4);
    request.partitions[0].max_bytes = 2 * len;
    let two = f.log.fetch(request).await.unwrap().into_inner();
    assert_eq!(two.partitions[0].next_offset, 6);
    // Records count as what they take in the answer, also where compression made them small.
    f.log
        .append(append_batch(
            "t",
            0,
            batch_of(&[value.as_str(); 50], Compression::Zstd),
        ))
        .await
        .unwrap();
    let mut request = fetch("t", 0, 10);
    request.max_bytes = 5000;
    request.format = v1::Format::Records.into();
    let some = f.log.fetch(request).await.unwrap().into_inner();
    let records = &some.partitions[0].records;
    assert_eq!(records.len(), 4);
    assert_eq!(some.partitions[0].next_offset, 14);
}

#[tokio::test]
async fn a_waiting_fetch_is_woken_by_an_append() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let mut waiting = f.another().await;
    let request = v1::FetchRequest {
        max_wait_ms: 60_000,
        min_bytes: 1,
        format: v1::Format::Records.into(),
        ..fetch("t", 0, 0)
    };
    let woken = async move { waiting.fetch(request).await.unwrap().into_inner() };
    let (fetched, base) = in_time(async { tokio::join!(woken, f.append("t", 0, &["v"])) }).await;
    assert_eq!((base, fetched.partitions[0].records.len()), (0, 1));
}

#[tokio::test]
async fn a_waiting_fetch_gathers_the_bytes_it_wants() {
    let mut f = Fixture::start().await;
    f.create("t", 2).await;
    let one = batch(&["v"]).len();
    let mut waiting = f.another().await;
    let request = v1::FetchRequest {
        partitions: vec![from("t", 0, 0), from("t", 1, 0)],
        max_wait_ms: 60_000,
        min_bytes: u32::try_from(3 * one).unwrap(),
        ..Default::default()
    };
    let gathered = async move { waiting.fetch(request).await.unwrap().into_inner() };
    let appends = async {
        for partition in [0, 1, 0] {
            f.append("t", partition, &["v"]).await;
        }
    };
    let (fetched, ()) = in_time(async { tokio::join!(gathered, appends) }).await;
    let ends: Vec<_> = fetched
        .partitions
        .iter()
        .map(|one| one.next_offset)
        .collect();
    assert_eq!(ends, [2, 1]);
}

#[tokio::test]
async fn a_fetch_that_finds_nothing_answers_in_the_end() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let request = v1::FetchRequest {
        max_wait_ms: 20,
        min_bytes: 1,
        ..fetch("t", 0, 0)
    };
    let fetched = in_time(f.log.fetch(request)).await.unwrap().into_inner();
    assert!(fetched.partitions[0].batches.is_empty() && fetched.partitions[0].error.is_none());
}

#[tokio::test]
async fn bad_fetches_are_refused() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let refused = async |request| {
        let mut log = f.log.clone();
        told(
            log.fetch(request).await.unwrap_err(),
            Code::InvalidArgument,
            "INVALID_REQUEST",
        )
    };
    refused(v1::FetchRequest::default())
        .await
        .field("partitions");
    let many = v1::FetchRequest {
        partitions: vec![from("t", 0, 0); 10_001],
        ..Default::default()
    };
    refused(many)
        .await
        .field("partitions")
        .fact("found", 10_001)
        .fact("max", 10_000);
    let long = v1::FetchRequest {
        max_wait_ms: 60_001,
        ..fetch("t", 0, 0)
    };
    refused(long)
        .await
        .field("max_wait_ms")
        .fact("value", 60_001)
        .fact("allowed", "0 to 60000");
    let format = v1::FetchRequest {
        format: 2,
        ..fetch("t", 0, 0)
    };
    refused(format).await.field("format");
}

#[tokio::test]
async fn one_connections_answers_wait_for_each_other_when_they_are_large() {
    let mut f = Fixture::with(|config| {
        config.limits.fetch_bytes_max = 100_000;
        config.limits.connection_unsent_bytes_max = 100_000;
    })
    .await;
    f.create("t", 1).await;
    let value = "x".repeat(90_000);
    f.append("t", 0, &[&value]).await;
    let fetches = (0..20).map(|_| {
        let mut log = f.log.clone();
        async move { log.fetch(fetch("t", 0, 0)).await.unwrap().into_inner() }
    });
    for fetched in in_time(futures_util::future::join_all(fetches)).await {
        assert!(fetched.partitions[0].batches.len() > 90_000);
    }
}

#[tokio::test]
async fn a_partition_is_fetched_once_in_a_request() {
    let mut f = Fixture::start().await;
    f.create("t", 2).await;
    let mut request = fetch("t", 0, 0);
    request.partitions.extend(fetch("t", 1, 0).partitions);
    f.log.fetch(request.clone()).await.unwrap();
    request.partitions.extend(fetch("t", 0, 5).partitions);
    let status = f.log.fetch(request).await.unwrap_err();
    told(status, Code::InvalidArgument, "INVALID_REQUEST").field("partitions");
}

#[tokio::test]
async fn fetches_of_many_partitions_count_while_they_wait() {
    let mut f = Fixture::with(|config| {
        config.limits.fetch_bytes_max = 64 * 1024;
        config.limits.connection_unsent_bytes_max = 100_000;
    })
    .await;
    f.create("t", 100).await;
    let mut request = v1::FetchRequest {
        max_wait_ms: 60_000,
        ..fetch("t", 0, 0)
    };
    for partition in 1..100 {
        request
            .partitions
            .extend(fetch("t", partition, 0).partitions);
    }
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (mut log, request) = (f.log.clone(), request.clone());
            tokio::spawn(async move { log.fetch(request).await })
        })
        .collect();
    // One waits, and is answered in the end; there is no room for two.
    let mut refused = 0;
    f.until_metric("tidelog_errors_total{reason=\"OVERLOADED\"}", 2.0)
        .await;
    f.append("t", 7, &["v"]).await;
    for call in waiting {
        match in_time(call).await.unwrap() {
            Ok(_) => {}
            Err(status) => {
                told(status, Code::ResourceExhausted, "OVERLOADED").can_be_retried();
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 2);
    f.until_metric("tidelog_grpc_asked_bytes", 0.0).await;
}

#[tokio::test]
async fn records_count_by_what_they_take_in_memory() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    // 9,000 empty headers a record: two bytes each in an answer, and some fifty in memory.
    let headers = vec![("", None); 9_000];
    let mut builder = tidelog_record::BatchBuilder::new(Compression::Zstd);
    for _ in 0..100 {
        let at = tidelog_record::Timestamp::from_millis(1);
        builder.push(at, None, None, &headers).unwrap();
    }
    f.log
        .append(append_batch("t", 0, builder.build().unwrap()))
        .await
        .unwrap();
    let request = v1::FetchRequest {
        max_bytes: 4 << 20,
        format: v1::Format::Records.into(),
        partitions: vec![v1::FetchPartition {
            max_bytes: 4 << 20,
            ..fetch("t", 0, 0).partitions.remove(0)
        }],
        ..v1::FetchRequest::default()
    };
    let mut next = 0;
    while next < 100 {
        let mut request = request.clone();
        request.partitions[0].offset = next;
        let fetched = f.log.fetch(request).await.unwrap().into_inner();
        let records = &fetched.partitions[0].records;
        assert!(!records.is_empty());
        let headers: usize = records.iter().map(|record| record.headers.len()).sum();
        assert!(headers * size_of::<v1::Header>() <= 4 << 20, "{headers}");
        next = fetched.partitions[0].next_offset;
    }
}
