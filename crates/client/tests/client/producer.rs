//! Batching, pushing back, retrying in order, giving up.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use tidelog_client::{
    Acks, Backoff, ClientError, Compression, Delivered, ErrorClass, Offset, PartitionId, Producer,
    ProducerConfig, ProducerRecord, Timestamp, TopicName,
};
use tidelog_proto::v1;

use crate::fake::{Fake, Step};

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

fn record(value: impl ToString) -> ProducerRecord {
    ProducerRecord::new(topic()).value(value.to_string().into_bytes())
}

/// Quick retries, and no lingering unless a test is about it.
fn config() -> ProducerConfig {
    ProducerConfig {
        linger: Duration::ZERO,
        backoff: Backoff {
            min: Duration::from_millis(1),
            max: Duration::from_millis(5),
        },
        ..ProducerConfig::default()
    }
}

async fn send_all(producer: &Producer, count: u64) -> Vec<Result<Delivered, ClientError>> {
    let mut futures = Vec::new();
    for value in 0..count {
        futures.push(producer.send(record(value)).await.unwrap());
    }
    let mut results = Vec::new();
    for future in futures {
        results.push(future.await);
    }
    results
}

fn numbers(count: u64) -> Vec<String> {
    (0..count).map(|value| value.to_string()).collect()
}

#[tokio::test]
async fn batches_are_closed_by_bytes() {
    let fake = Fake::start(1).await;
    let config = ProducerConfig {
        linger: Duration::from_secs(3600),
        batch_bytes_max: 2000,
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    let value = "x".repeat(300);
    let mut futures = Vec::new();
    for _ in 0..60 {
        futures.push(producer.send(record(&value)).await.unwrap());
    }
    // Six records of over 300 bytes fit; what is left over lingers until it is told not to.
    fake.until(|state| state.log.get(&0).is_some_and(|log| log.len() == 9))
        .await;
    producer.flush().await;
    for (offset, future) in (0..).zip(futures) {
        let delivered = future.try_get().expect("flush waits for it").unwrap();
        assert_eq!(delivered.offset, Offset::new(offset));
    }
    let state = fake.state();
    assert_eq!(state.log[&0].len(), 10);
    assert!(
        state.log[&0]
            .iter()
            .all(|stored| stored.bytes.len() <= 2000)
    );
    assert!(
        state.log[&0]
            .iter()
            .all(|stored| stored.acks == v1::Acks::All)
    );
}

#[tokio::test]
async fn batches_are_closed_by_time() {
    let fake = Fake::start(1).await;
    let config = ProducerConfig {
        linger: Duration::from_millis(50),
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    // Learned beforehand, so that asking does not take part of the linger.
    producer.topic_facts(&topic()).await.unwrap();
    let results = send_all(&producer, 20).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(fake.state().log[&0].len(), 1, "they lingered together");
}

#[tokio::test]
async fn every_compression_arrives() {
    for compression in Compression::ALL {
        let fake = Fake::start(1).await;
        let producer = Producer::new(
            fake.client(),
            ProducerConfig {
                compression,
                ..config()
            },
        );
        let results = send_all(&producer, 100).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(fake.values(0), numbers(100));
        producer.close().await;
    }
}

#[tokio::test]
async fn keys_choose_partitions_and_keyless_records_spread_by_batches() {
    let fake = Fake::start(6).await;
    let producer = Producer::new(
        fake.client(),
        ProducerConfig {
            batch_bytes_max: 200,
            ..config()
        },
    );
    // Where Kafka's clients put these keys among six partitions: see the record crate.
    for (key, expected) in [("uw", 0), ("foobar", (-790_332_482_i32).cast_unsigned())] {
        let future = producer.send(record(1).key(key)).await.unwrap();
        let partition = future.await.unwrap().partition;
        if key == "foobar" {
            assert_eq!(partition.get(), (expected & 0x7fff_ffff) % 6);
        }
        let again = producer
            .send(record(2).key(key))
            .await
            .unwrap()
            .await
            .unwrap();
        assert_eq!(again.partition, partition);
    }
    let given = producer
        .send(record(3).partition(PartitionId::new(4)).key("uw"))
        .await
        .unwrap();
    assert_eq!(given.await.unwrap().partition, PartitionId::new(4));

    send_all(&producer, 500).await;
    let state = fake.state();
    assert_eq!(
        state.log.len(),
        6,
        "hundreds of batches meet every partition"
    );
}

#[tokio::test]
async fn keyless_records_spread_when_batches_are_closed_by_time_too() {
    let fake = Fake::start(2).await;
    let config = ProducerConfig {
        linger: Duration::from_millis(1),
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    for value in 0..10 {
        producer.send(record(value)).await.unwrap().await.unwrap();
    }
    assert_eq!(
        (fake.values(0).len(), fake.values(1).len()),
        (5, 5),
        "in turns"
    );
}

#[tokio::test]
async fn a_full_buffer_pushes_back() {
    let fake = Fake::start(1).await;
    fake.state().is_held = true;
    let config = ProducerConfig {
        buffer_bytes_max: 10_000,
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    let value = "x".repeat(1000);
    let mut futures = Vec::new();
    for _ in 0..9 {
        futures.push(producer.send(record(&value)).await.unwrap());
    }
    {
        let mut blocked = pin!(producer.send(record(&value)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(blocked.as_mut().poll(&mut context).is_pending());
        fake.release();
        futures.push(blocked.await.unwrap());
    }
    for future in futures {
        future.await.unwrap();
    }
    assert_eq!(fake.values(0).len(), 10);
}

#[tokio::test]
async fn a_buffer_that_stays_full_is_told() {
    let fake = Fake::start(1).await;
    fake.state().is_held = true;
    let config = ProducerConfig {
        buffer_bytes_max: 2000,
        delivery_timeout: Duration::from_millis(50),
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    let value = "x".repeat(1500);
    let first = producer.send(record(&value)).await.unwrap();
    // Either the buffer stays full, or the first record is given up and makes room.
    match producer.send(record(&value)).await {
        Err(ClientError::BufferFull {
            buffer_bytes_max: 2000,
            ..
        })
        | Ok(_) => {}
        other => panic!("unexpected {other:?}"),
    }
    let error = first.await.unwrap_err();
    assert!(
        matches!(error, ClientError::OutcomeUnknown { .. }),
        "{error:?}"
    );
}

/// Whatever fails, records are stored in order, and those that cannot have been stored by an
/// attempt without an answer are stored once.
#[tokio::test]
async fn order_is_kept_over_retries() {
    for seed in 0..20 {
        let fake = Fake::start(1).await;
        let mut random = fastrand::Rng::with_seed(seed);
        let kinds = [Step::Store, Step::Store, Step::RefuseForNow, Step::Break];
        fake.state().steps = std::iter::repeat_with(|| *random.choice(&kinds).unwrap())
            .take(40)
            .collect();
        let config = ProducerConfig {
            batch_bytes_max: 150,
            ..config()
        };
        let producer = Producer::new(fake.client(), config);
        let results = send_all(&producer, 200).await;
        assert_eq!(fake.values(0), numbers(200), "seed {seed}");
        for (offset, result) in (0..).zip(results) {
            assert_eq!(result.unwrap().offset, Offset::new(offset), "seed {seed}");
        }
        assert!(fake.state().steps.len() < 40);
    }
}

#[tokio::test]
async fn without_idempotence_a_retry_may_store_twice_but_in_order() {
    let fake = Fake::start(1).await;
    fake.state().steps = [
        Step::Store,
        Step::StoreAndBreak,
        Step::Store,
        Step::StoreAndBreak,
    ]
    .into();
    let config = ProducerConfig {
        batch_bytes_max: 100,
        idempotence: false,
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    for result in send_all(&producer, 100).await {
        result.unwrap();
    }
    let values = fake.values(0);
    assert!(values.len() > 100, "two batches were stored twice");
    let mut seen = std::collections::HashSet::new();
    let once: Vec<_> = values
        .into_iter()
        .filter(|value| seen.insert(value.clone()))
        .collect();
    assert_eq!(once, numbers(100));
}

#[tokio::test]
async fn with_several_in_flight_a_failed_batch_holds_back_later_ones() {
    let fake = Fake::start(1).await;
    // The stream breaks on the first of them, so that none of the others is stored.
    fake.state().is_held = true;
    fake.state().steps = [Step::Break, Step::RefuseForNow].into();
    let config = ProducerConfig {
        batch_bytes_max: 100,
        in_flight_per_partition_max: Some(8),
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    let mut futures = Vec::new();
    for value in 0..50 {
        futures.push(producer.send(record(value)).await.unwrap());
    }
    fake.release();
    for future in futures {
        future.await.unwrap();
    }
    let mut values: Vec<u64> = fake.values(0).iter().map(|v| v.parse().unwrap()).collect();
    values.sort_unstable();
    assert_eq!(
        values,
        (0..50).collect::<Vec<_>>(),
        "nothing lost, nothing twice"
    );
}

#[tokio::test]
async fn other_partitions_go_on_while_one_is_refused() {
    let fake = Fake::start(2).await;
    fake.state().steps = [Step::RefuseForNow; 5].into();
    let producer = Producer::new(fake.client(), config());
    let mut futures = Vec::new();
    for value in 0..20 {
        let partition = PartitionId::new(value % 2);
        futures.push(
            producer
                .send(record(value).partition(partition))
                .await
                .unwrap(),
        );
    }
    for future in futures {
        future.await.unwrap();
    }
    let evens: Vec<_> = (0..20)
        .step_by(2)
        .map(|value: u32| value.to_string())
        .collect();
    assert_eq!(fake.values(0), evens);
}

#[tokio::test]
async fn a_refusal_is_told_and_later_records_go_on() {
    let fake = Fake::start(1).await;
    fake.state().steps = [Step::Refuse].into();
    let producer = Producer::new(fake.client(), config());
    let first = producer.send(record(0)).await.unwrap().await.unwrap_err();
    assert_eq!(first.class(), ErrorClass::Refused);
    assert_eq!(first.broker().unwrap().reason, "INVALID_BATCH");
    assert!(!first.is_outcome_unknown());
    producer.send(record(1)).await.unwrap().await.unwrap();
    assert_eq!(fake.values(0), ["1"]);
}

#[tokio::test]
async fn giving_up_says_whether_the_outcome_is_known() {
    let fake = Fake::start(1).await;
    let timeouts = ProducerConfig {
        delivery_timeout: Duration::from_millis(100),
        ..config()
    };
    for (step, is_unknown) in [
        (Step::RefuseForNow, false),
        (Step::Ignore, true),
        (Step::Break, true),
        (Step::StoreAndBreak, true),
    ] {
        fake.state().after_steps = Some(step);
        let producer = Producer::new(fake.client(), timeouts.clone());
        let error = producer.send(record(0)).await.unwrap().await.unwrap_err();
        assert_eq!(error.is_outcome_unknown(), is_unknown, "{step:?}: {error}");
        assert_eq!(error.class(), ErrorClass::Unavailable);
        assert_eq!(
            error.to_string().contains("OUTCOME UNKNOWN"),
            is_unknown,
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_request_without_an_answer_breaks_the_stream() {
    let fake = Fake::start(1).await;
    fake.state().steps = [Step::Ignore].into();
    let config = ProducerConfig {
        request_timeout: Duration::from_millis(50),
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    producer.send(record(0)).await.unwrap().await.unwrap();
    assert_eq!(fake.state().streams_opened, 2);
    assert_eq!(fake.values(0), ["0"]);
}

#[tokio::test]
async fn unknown_topics_are_told_at_once() {
    let fake = Fake::start(1).await;
    let producer = Producer::new(fake.client(), config());
    let record = ProducerRecord::new(TopicName::new("missing").unwrap()).value("x");
    let error = producer.send(record).await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    assert_eq!(error.broker().unwrap().reason, "TOPIC_NOT_FOUND");
}

#[tokio::test]
async fn topics_are_asked_for_once_and_again_while_the_broker_starts() {
    let fake = Fake::start(1).await;
    fake.state().describe_failures = 3;
    let producer = Producer::new(fake.client(), config());
    let senders: Vec<_> = (0..10)
        .map(|value| {
            let producer = producer.clone();
            tokio::spawn(async move { producer.send(record(value)).await.unwrap().await.unwrap() })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    assert_eq!(fake.state().describes, 4);
}

#[tokio::test]
async fn the_topics_limit_holds_for_records_and_batches() {
    let fake = Fake::start(1).await;
    fake.state().settings = vec![("max.message.bytes".to_owned(), "1000".to_owned())];
    let producer = Producer::new(fake.client(), config());
    let error = producer.send(record("x".repeat(2000))).await.unwrap_err();
    let ClientError::RecordTooLarge {
        size, limit: 1000, ..
    } = error
    else {
        panic!("unexpected {error:?}");
    };
    assert!((2061..2090).contains(&size), "{size}");
    send_all(&producer, 1000).await;
    assert!(
        fake.state().log[&0]
            .iter()
            .all(|stored| stored.bytes.len() <= 1000)
    );

    // The largest that fits: 61 bytes of header and 9 of the record's own fields.
    producer
        .send(record("x".repeat(930)))
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!(fake.state().log[&0].last().unwrap().bytes.len(), 1000);
    let error = producer.send(record("x".repeat(931))).await.unwrap_err();
    assert!(
        matches!(error, ClientError::RecordTooLarge { size: 1001, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn without_acknowledgements_close_still_hands_everything_over() {
    let fake = Fake::start(1).await;
    let config = ProducerConfig {
        acks: Acks::None,
        batch_bytes_max: 500,
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    for result in send_all(&producer, 1000).await {
        assert_eq!(result.unwrap().offset, None);
    }
    producer.close().await;
    fake.until(|state| {
        state
            .log
            .get(&0)
            .is_some_and(|log| log.len() == state.requests.len())
    })
    .await;
    assert_eq!(fake.values(0), numbers(1000));
    assert!(
        fake.state().log[&0]
            .iter()
            .all(|stored| stored.acks == v1::Acks::None)
    );
}

#[tokio::test]
async fn closing_ends_sending_and_dropping_does_not_lose() {
    let fake = Fake::start(1).await;
    let producer = Producer::new(fake.client(), config());
    let future = producer.send(record(0)).await.unwrap();
    producer.close().await;
    future.await.unwrap();
    let error = producer.send(record(1)).await.unwrap_err();
    assert!(matches!(error, ClientError::Closed));

    let linger = Duration::from_secs(3600);
    let producer = Producer::new(fake.client(), ProducerConfig { linger, ..config() });
    let future = producer.send(record(2)).await.unwrap();
    drop(producer);
    future.await.unwrap();
    assert_eq!(fake.values(0), ["0", "2"]);
}

#[test]
fn nobody_waits_for_ever_when_the_runtime_ends() {
    let build = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (inner, outer) = (build(), build());
    let future = inner.block_on(async {
        let fake = Fake::start(1).await;
        fake.state().is_held = true;
        let producer = Producer::new(fake.client(), config());
        let future = producer.send(record(0)).await.unwrap();
        // Not to be awaited in here.
        [future]
    });
    inner.shutdown_background();
    let [future] = future;
    let error = outer.block_on(future).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Closed | ClientError::OutcomeUnknown { .. }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn timestamps_are_the_records_own_or_now() {
    let fake = Fake::start(1).await;
    let producer = Producer::new(fake.client(), config());
    let given = producer
        .send(record(0).timestamp(Timestamp::from_millis(-5)))
        .await
        .unwrap();
    assert_eq!(given.await.unwrap().timestamp, Timestamp::from_millis(-5));
    let now = producer
        .send(record(1))
        .await
        .unwrap()
        .await
        .unwrap()
        .timestamp;
    assert!(now > Timestamp::from_millis(1_700_000_000_000), "{now}");
}
