//! Log.InitProducer, and what idempotent producers are answered.

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_record::{BatchBuilder, Compression, Timestamp};
use tonic::Code;

use crate::support::{Fixture, append_batch, told};

fn batch_of(id: i64, epoch: i16, sequence: i32, value: &str) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None).producer(id, epoch, sequence);
    let at = Timestamp::from_millis(1);
    builder.push(at, None, Some(value.as_bytes()), &[]).unwrap();
    builder.build().unwrap()
}

fn records_of(producer: v1::Producer, partition: Option<u32>) -> v1::AppendRequest {
    v1::AppendRequest {
        partition,
        payload: Some(v1::append_request::Payload::Records(v1::NewRecords {
            records: vec![v1::NewRecord {
                value: Some(Bytes::from_static(b"b")),
                ..v1::NewRecord::default()
            }],
            producer: Some(producer),
            ..v1::NewRecords::default()
        })),
        ..append_batch("t", 0, Bytes::new())
    }
}

async fn init(f: &mut Fixture) -> i64 {
    let given = f.log.init_producer(v1::InitProducerRequest {}).await;
    let given = given.unwrap().into_inner();
    assert_eq!(given.producer_epoch, 0);
    given.producer_id
}

#[tokio::test]
async fn batches_and_records_that_come_again_are_stored_once() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let id = init(&mut f).await;
    assert_ne!(init(&mut f).await, id);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let batch = append_batch("t", 0, batch_of(id, 0, 0, "a"));
        let result = f
            .log
            .append(batch)
            .await
            .unwrap()
            .into_inner()
            .results
            .remove(0);
        answers.push((result.base_offset, result.duplicate));
        let producer = v1::Producer {
            producer_id: id,
            producer_epoch: 0,
            base_sequence: 1,
        };
        let records = records_of(producer, Some(0));
        let result = f
            .log
            .append(records)
            .await
            .unwrap()
            .into_inner()
            .results
            .remove(0);
        answers.push((result.base_offset, result.duplicate));
    }
    assert_eq!(
        answers,
        [
            (Some(0), false),
            (Some(1), false),
            (Some(0), true),
            (Some(1), true)
        ]
    );
    assert_eq!(f.values("t", 0, 0).await.len(), 2);
    f.until_metric("tidelog_append_duplicates_total", 2.0).await;
}

#[tokio::test]
async fn what_is_out_of_order_is_told_with_what_must_come() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let id = init(&mut f).await;
    let mut send = async |id, epoch, sequence| {
        let batch = append_batch("t", 0, batch_of(id, epoch, sequence, "v"));
        f.log.append(batch).await
    };
    let refused = send(id, 0, 1).await.unwrap_err();
    told(refused, Code::FailedPrecondition, "UNKNOWN_PRODUCER")
        .fact("producer_id", id)
        .fact("sequence", 1)
        .cannot_be_retried();
    for sequence in 0..7 {
        send(id, 2, sequence).await.unwrap();
    }
    let refused = send(id, 2, 9).await.unwrap_err();
    told(refused, Code::FailedPrecondition, "OUT_OF_ORDER_SEQUENCE")
        .fact("topic", "t")
        .fact("partition", 0)
        .fact("expected_sequence", 7)
        .fact("sequence", 9)
        .cannot_be_retried();
    let refused = send(id, 1, 7).await.unwrap_err();
    told(refused, Code::FailedPrecondition, "PRODUCER_FENCED")
        .fact("epoch", 1)
        .fact("current_epoch", 2)
        .cannot_be_retried();
    // Stored, but more than five batches ago.
    let refused = send(id, 2, 0).await.unwrap_err();
    told(refused, Code::AlreadyExists, "DUPLICATE_SEQUENCE")
        .fact("expected_sequence", 7)
        .cannot_be_retried();
    let refused = send(i64::MAX, 0, 0).await.unwrap_err();
    told(refused, Code::FailedPrecondition, "UNKNOWN_PRODUCER")
        .says("never given out")
        .fact("producer_id", i64::MAX);
    assert_eq!(f.values("t", 0, 0).await.len(), 7);
}

#[tokio::test]
async fn impossible_producers_are_refused() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let good = v1::Producer {
        producer_id: init(&mut f).await,
        ..v1::Producer::default()
    };
    for (field, producer) in [
        (
            "producer_id",
            v1::Producer {
                producer_id: -1,
                ..good
            },
        ),
        (
            "producer_epoch",
            v1::Producer {
                producer_epoch: -1,
                ..good
            },
        ),
        (
            "producer_epoch",
            v1::Producer {
                producer_epoch: 32_768,
                ..good
            },
        ),
        (
            "base_sequence",
            v1::Producer {
                base_sequence: -1,
                ..good
            },
        ),
    ] {
        let refused = f
            .log
            .append(records_of(producer, Some(0)))
            .await
            .unwrap_err();
        told(refused, Code::InvalidArgument, "INVALID_REQUEST")
            .field(&format!("records.producer.{field}"));
    }
    let refused = f.log.append(records_of(good, None)).await.unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_REQUEST").says("need a partition");
    assert!(f.values("t", 0, 0).await.is_empty());
}
