//! `Read` when clients take little or nothing: what waits for them is bounded, and nobody starves.

use tidelog_proto::v1::read_response::Response;
use tidelog_proto::v1::{self, ReadStart, read_request};
use tidelog_record::Compression;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::read::{Reading, records};
use crate::support::{Fixture, append_batch, fetch, in_time, until};

#[tokio::test]
async fn reads_of_one_connection_share_a_bound_and_all_get_through() {
    // Two messages of the default size, for ten reads.
    let mut f = Fixture::with(|config| {
        config.limits.fetch_bytes_max = 2 << 20;
        config.limits.connection_unsent_bytes_max = 2 << 20;
    })
    .await;
    f.create("t", 1).await;
    let value = "x".repeat(500_000);
    for _ in 0..10 {
        f.append("t", 0, &[&value]).await;
    }
    let mut reads = Vec::new();
    for _ in 0..10 {
        let start = read_request::Request::Start(ReadStart {
            format: v1::Format::Batches.into(),
            ..records("t")
        });
        let (requests, stream) = mpsc::channel(1);
        let request = Some(start);
        requests.send(v1::ReadRequest { request }).await.unwrap();
        let responses = f.log.read(ReceiverStream::new(stream)).await.unwrap();
        reads.push(Reading {
            requests,
            responses: responses.into_inner(),
        });
    }
    // The client takes from all of them, in turns: one that it does not take from may hold back
    // the others of its connection.
    let totals = reads.into_iter().map(|mut reading| async move {
        reading.started().await;
        let mut total = 0;
        while let Some(Response::Data(data)) = reading.next().await {
            total += data.batches.len();
        }
        total
    });
    for total in futures_util::future::join_all(totals).await {
        assert!(total > 5_000_000);
    }
}

#[tokio::test]
async fn what_others_do_not_take_slows_a_reader_but_never_stops_it() {
    // All connections together may have one fetch waiting.
    let mut f = Fixture::with(|config| {
        config.limits.fetch_bytes_max = 2 << 20;
        config.limits.connection_unsent_bytes_max = 2 << 20;
        config.limits.unsent_bytes_max = 2 << 20;
    })
    .await;
    f.create("t", 1).await;
    let value = "x".repeat(900_000);
    for _ in 0..20 {
        f.append("t", 0, &[&value]).await;
    }
    let batches = || ReadStart {
        format: v1::Format::Batches.into(),
        ..records("t")
    };
    // Takes nothing: its window fills, then its connection's share.
    let hogs = [
        Reading::over(f.another().await, batches()).await,
        Reading::over(f.another().await, batches()).await,
        Reading::over(f.another().await, batches()).await,
    ];
    f.until_metric_at_least("tidelog_grpc_unsent_bytes", 1.8e6)
        .await;
    let mut quick = Reading::over(f.another().await, batches()).await;
    quick.started().await;
    let mut total = 0;
    while let Some(Response::Data(data)) = quick.next().await {
        total += data.batches.len();
    }
    assert!(total > 18_000_000);
    drop((hogs, quick));
    f.until_metric("tidelog_grpc_unsent_bytes", 0.0).await;
}

#[tokio::test]
async fn a_batch_that_is_larger_than_its_room_counts_whole() {
    let mut f = Fixture::start().await;
    f.create_with("t", 1, &[("max.message.bytes", "4000000")])
        .await;
    let value = "x".repeat(3_000_000);
    for _ in 0..4 {
        f.append("t", 0, &[&value]).await;
    }
    // Asks for little messages, and takes none.
    let start = ReadStart {
        format: v1::Format::Batches.into(),
        message_bytes: 1000,
        ..records("t")
    };
    let slow = Reading::over(f.another().await, start).await;
    f.until_metric_at_least("tidelog_grpc_unsent_bytes", 3e6)
        .await;
    drop(slow);
    f.until_metric("tidelog_grpc_unsent_bytes", 0.0).await;
}

#[tokio::test]
async fn large_decompressed_batches_share_a_bound_and_all_readers_get_through() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    // 40 MiB that compress to a few kilobytes: six of them are all that may be open.
    let value = vec![0; 1 << 20];
    let mut builder = tidelog_record::BatchBuilder::new(Compression::Zstd);
    let at = tidelog_record::Timestamp::from_millis(1);
    for _ in 0..40 {
        builder.push(at, None, Some(&value), &[]).unwrap();
    }
    let large = builder.build().unwrap();
    f.log.append(append_batch("t", 0, large)).await.unwrap();
    // Each takes one message and then nothing, with its batch open.
    let mut slow = Vec::new();
    for _ in 0..10 {
        let mut reading = Reading::over(f.another().await, records("t")).await;
        reading.started().await;
        assert!(matches!(reading.next().await, Some(Response::Data(_))));
        slow.push(reading);
    }
    for mut reading in slow {
        let mut next = 1;
        while let Some(Response::Data(data)) = reading.next().await {
            next += data.records.len();
            assert!(
                data.records
                    .iter()
                    .all(|r| r.value.as_ref().unwrap().len() == 1 << 20)
            );
        }
        assert_eq!(next, 40);
    }
}

#[tokio::test]
async fn records_that_are_large_decompressed_wait_for_room_one_after_the_other() {
    const RECORD: usize = 6 << 20;
    const LIMIT: usize = 4 << 20;
    let mut f = Fixture::with(|config| {
        config.limits.fetch_bytes_max = LIMIT;
        config.limits.connection_unsent_bytes_max = LIMIT;
    })
    .await;
    f.create("t", 1).await;
    // One record each, larger than all that a connection may have unsent, in a few kilobytes.
    for _ in 0..3 {
        let mut builder = tidelog_record::BatchBuilder::new(Compression::Zstd);
        let at = tidelog_record::Timestamp::from_millis(1);
        builder.push(at, None, Some(&vec![0; RECORD]), &[]).unwrap();
        let batch = builder.build().unwrap();
        f.log.append(append_batch("t", 0, batch)).await.unwrap();
    }
    let slow = f.another().await;
    let mut reads = Vec::new();
    for _ in 0..10 {
        reads.push(Reading::over(slow.clone(), records("t")).await);
    }
    // Each has decompressed its first record once another has got all of its own: turns to
    // decompress come in the order in which they were asked for.
    for reading in &mut reads {
        reading.started().await;
    }
    let mut quick = Reading::over(f.another().await, records("t")).await;
    quick.started().await;
    for _ in 0..3 {
        assert!(matches!(quick.next().await, Some(Response::Data(_))));
    }
    let unsent = f.metric("tidelog_grpc_unsent_bytes").await;
    let most = 2.0 * (RECORD as f64 + 1000.0);
    assert!(unsent <= most, "{unsent}: one for each connection");
    // All get theirs, and fetches beside them.
    let fetches = (0..3).map(|offset| {
        let mut log = slow.clone();
        async move {
            let mut request = fetch("t", 0, offset);
            request.format = v1::Format::Records.into();
            let fetched = log.fetch(request).await.unwrap().into_inner();
            fetched.partitions[0].records.len()
        }
    });
    let reads = reads.into_iter().map(|mut reading| async move {
        let mut found = 0;
        while let Some(Response::Data(data)) = reading.next().await {
            found += data.records.len();
        }
        found
    });
    let (fetched, read) = in_time(async {
        tokio::join!(
            futures_util::future::join_all(fetches),
            futures_util::future::join_all(reads)
        )
    })
    .await;
    assert_eq!((fetched, read), (vec![1; 3], vec![3; 10]));
    drop(quick);
    f.until_metric("tidelog_grpc_unsent_bytes", 0.0).await;
}

/// What HTTP/2 has taken and the client's window does not let it send is memory too.
#[tokio::test]
async fn what_was_handed_to_http2_counts_until_it_was_sent_and_is_little() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let value = "x".repeat(900_000);
    for _ in 0..20 {
        f.append("t", 0, &[&value]).await;
    }
    let start = || ReadStart {
        format: v1::Format::Batches.into(),
        ..records("t")
    };
    // Two messages wait in the broker, and one or two below it.
    let slow = Reading::over(f.another().await, start()).await;
    f.until_metric_at_least("tidelog_grpc_unsent_bytes", 2.6e6)
        .await;
    let mut quick = Reading::over(f.another().await, start()).await;
    quick.started().await;
    while let Some(Response::Data(_)) = quick.next().await {}
    drop(quick);
    until(async || f.metric("tidelog_grpc_streams{method=\"Read\"}").await < 1.5).await;
    let unsent = f.metric("tidelog_grpc_unsent_bytes").await;
    assert!(unsent < 5.0e6, "{unsent}");
    drop(slow);
    f.until_metric("tidelog_grpc_unsent_bytes", 0.0).await;
}
