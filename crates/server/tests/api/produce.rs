//! Log.Produce.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_proto::v1::produce_response::Outcome;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{Fixture, append_batch, append_records, batch, in_time, told, told_within};

/// A produce stream under way.
struct Producing {
    requests: mpsc::Sender<v1::ProduceRequest>,
    answers: Streaming<v1::ProduceResponse>,
}

impl Producing {
    async fn start(f: &Fixture) -> Self {
        let (requests, stream) = mpsc::channel(1024);
        let mut log = f.another().await;
        let answers = log
            .produce(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self { requests, answers }
    }

    async fn send(&self, correlation_id: u64, append: v1::AppendRequest) {
        self.requests
            .send(v1::ProduceRequest {
                correlation_id,
                append: Some(append),
            })
            .await
            .unwrap();
    }

    async fn answer(&mut self) -> v1::ProduceResponse {
        in_time(self.answers.message())
            .await
            .unwrap()
            .expect("the stream goes on")
    }

    /// All answers up to the end, by correlation id.
    async fn finish(self) -> BTreeMap<u64, Outcome> {
        let Self {
            requests,
            mut answers,
        } = self;
        drop(requests);
        let mut all = BTreeMap::new();
        while let Some(answer) = in_time(answers.message()).await.unwrap() {
            let twice = all.insert(answer.correlation_id, answer.outcome.unwrap());
            assert_eq!(twice, None);
        }
        all
    }
}

fn base_offset(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Appended(response) => response.results[0].base_offset.unwrap(),
        Outcome::Error(error) => panic!("{error:?}"),
    }
}

fn error(outcome: &Outcome) -> Option<tonic_types::Status> {
    match outcome {
        Outcome::Appended(_) => None,
        Outcome::Error(error) => Some(error.clone()),
    }
}

#[tokio::test]
async fn pipelined_requests_keep_their_order_in_each_partition() {
    let mut f = Fixture::start().await;
    f.create("t", 3).await;
    let producing = Producing::start(&f).await;
    for i in 0..900_u32 {
        let partition = i % 3;
        let value = i.to_string();
        producing
            .send(i.into(), append_batch("t", partition, batch(&[&value])))
            .await;
    }
    let answers = producing.finish().await;
    assert_eq!(answers.len(), 900);
    for (id, outcome) in &answers {
        assert_eq!(base_offset(outcome), id / 3);
    }
    for partition in 0..3 {
        let values = f.values("t", partition, 0).await;
        let sent: Vec<_> = (0..300).map(|i| (i * 3 + partition).to_string()).collect();
        assert_eq!(values, sent);
    }
    f.until_metric("tidelog_grpc_streams{method=\"Produce\"}", 0.0)
        .await;
}

#[tokio::test]
async fn one_failed_request_leaves_the_others_alone() {
    let mut f = Fixture::start().await;
    f.create_with("t", 1, &[("max.message.bytes", "2000")])
        .await;
    let producing = Producing::start(&f).await;
    producing.send(1, append_batch("t", 0, batch(&["a"]))).await;
    producing.send(2, append_batch("t", 5, batch(&["b"]))).await;
    producing
        .send(3, append_batch("t", 0, Bytes::from_static(b"garbage")))
        .await;
    let empty = v1::ProduceRequest {
        correlation_id: 4,
        append: None,
    };
    producing.requests.send(empty).await.unwrap();
    let nothing = v1::AppendRequest {
        payload: None,
        ..append_batch("t", 0, Bytes::new())
    };
    producing.send(5, nothing).await;
    producing.send(6, append_batch("u", 0, batch(&["c"]))).await;
    producing
        .send(7, append_records("t", &[(Some("k"), "d"), (None, "e")]))
        .await;
    let mut compression = append_records("t", &[(None, "f")]);
    if let Some(v1::append_request::Payload::Records(records)) = &mut compression.payload {
        records.compression = 9;
    }
    producing.send(8, compression).await;
    let large = "x".repeat(3000);
    producing
        .send(9, append_records("t", &[(None, &large)]))
        .await;
    let answers = producing.finish().await;
    assert_eq!(base_offset(&answers[&1]), 0);
    let invalid = Code::InvalidArgument;
    told_within(error(&answers[&2]), Code::NotFound, "PARTITION_NOT_FOUND").fact("partition", 5);
    told_within(error(&answers[&3]), invalid, "INVALID_BATCH").field("append.batch");
    told_within(error(&answers[&4]), invalid, "INVALID_REQUEST").field("append");
    told_within(error(&answers[&5]), invalid, "INVALID_REQUEST").field("append.batch");
    told_within(error(&answers[&6]), Code::NotFound, "TOPIC_NOT_FOUND").fact("topic", "u");
    assert_eq!(base_offset(&answers[&7]), 1);
    told_within(error(&answers[&8]), invalid, "INVALID_REQUEST")
        .field("append.records.compression");
    told_within(error(&answers[&9]), invalid, "BATCH_TOO_LARGE").field("append.records");
    assert_eq!(f.values("t", 0, 0).await, ["a", "d", "e"]);
}

#[tokio::test]
async fn who_wants_no_answer_gets_none() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let producing = Producing::start(&f).await;
    let none = |request: v1::AppendRequest| v1::AppendRequest {
        acks: v1::Acks::None.into(),
        ..request
    };
    producing
        .send(1, none(append_batch("t", 0, batch(&["a"]))))
        .await;
    producing
        .send(2, none(append_batch("t", 9, batch(&["b"]))))
        .await;
    producing.send(3, append_batch("t", 0, batch(&["c"]))).await;
    let answers = producing.finish().await;
    assert_eq!(answers.keys().collect::<Vec<_>>(), [&3]);
    assert_eq!(base_offset(&answers[&3]), 1);
    assert_eq!(f.values("t", 0, 0).await, ["a", "c"]);
    // The error is not told, but counted.
    f.until_metric("tidelog_errors_total{reason=\"PARTITION_NOT_FOUND\"}", 1.0)
        .await;
}

#[tokio::test]
async fn nothing_submitted_is_lost_when_the_client_vanishes() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let mut producing = Producing::start(&f).await;
    for i in 0..200_u64 {
        producing
            .send(i, append_batch("t", 0, batch(&[&i.to_string()])))
            .await;
    }
    // Requests to one partition are submitted in order, so all up to this one were.
    let last = loop {
        let answer = producing.answer().await;
        base_offset(&answer.outcome.unwrap());
        if answer.correlation_id >= 100 {
            break answer.correlation_id;
        }
    };
    drop(producing);
    f.until_metric("tidelog_grpc_streams{method=\"Produce\"}", 0.0)
        .await;
    let stored = f.values("t", 0, 0).await;
    assert!(u64::try_from(stored.len()).unwrap() > last);
    let sent: Vec<_> = (0..stored.len()).map(|i| i.to_string()).collect();
    assert_eq!(stored, sent);
}

#[tokio::test]
async fn tight_bounds_slow_a_stream_down_and_no_more() {
    let mut f = Fixture::with(|config| {
        config.limits.request_bytes_max = 4096;
        config.limits.connection_in_flight_bytes_max = 4096;
        config.limits.in_flight_bytes_max = 4096;
        config.limits.receiving_bytes_max = 1 << 20;
    })
    .await;
    f.create("t", 2).await;
    let producing = Producing::start(&f).await;
    let value = "x".repeat(3000);
    for i in 0..100_u32 {
        producing
            .send(i.into(), append_batch("t", i % 2, batch(&[&value])))
            .await;
    }
    let answers = producing.finish().await;
    assert_eq!(answers.len(), 100);
    for (id, outcome) in answers {
        assert_eq!(base_offset(&outcome), id / 2);
    }
    f.until_metric("tidelog_in_flight_bytes", 0.0).await;
}

#[tokio::test]
async fn requests_are_not_read_while_nobody_takes_the_answers() {
    let mut f = Fixture::with(|config| {
        config.limits.request_bytes_max = 64 * 1024;
        config.limits.connection_in_flight_bytes_max = 64 * 1024;
    })
    .await;
    f.create("t", 1).await;
    let Producing {
        requests,
        mut answers,
    } = Producing::start(&f).await;
    let value = "x".repeat(1000);
    let sending = async move {
        for i in 0..3000_u64 {
            let append = Some(append_batch("t", 0, batch(&[&value])));
            requests
                .send(v1::ProduceRequest {
                    correlation_id: i,
                    append,
                })
                .await
                .unwrap();
        }
    };
    let taking = async {
        let mut count = 0;
        while answers.message().await.unwrap().is_some() {
            count += 1;
        }
        count
    };
    let ((), count) = in_time(async { tokio::join!(sending, taking) }).await;
    assert_eq!(count, 3000);
}

#[tokio::test]
async fn a_request_above_the_limit_ends_the_stream_after_the_answers_before_it() {
    let mut f = Fixture::with(|config| config.limits.request_bytes_max = 10_000).await;
    f.create("t", 1).await;
    let mut producing = Producing::start(&f).await;
    producing.send(1, append_batch("t", 0, batch(&["a"]))).await;
    producing
        .send(
            2,
            append_batch("t", 0, batch(&["x".repeat(20_000).as_str()])),
        )
        .await;
    assert_eq!(base_offset(&producing.answer().await.outcome.unwrap()), 0);
    let ended = in_time(producing.answers.message()).await.unwrap_err();
    let told = told(ended, Code::ResourceExhausted, "REQUEST_TOO_LARGE");
    told.fact("limit", 10_000).says("10000");
    assert!(told.facts["size"].parse::<usize>().unwrap() > 20_000);
    // The server goes on.
    assert_eq!(f.append("t", 0, &["b"]).await, 1);
}
