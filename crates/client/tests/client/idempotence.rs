//! Sent again, stored once: whatever breaks on the way.

use std::time::Duration;

use tidelog_client::{
    Acks, Backoff, ClientError, Producer, ProducerConfig, ProducerRecord, TopicName,
};
use tidelog_record::{BatchHeader, Offset};

use crate::fake::{Fake, Step};

fn record(value: impl ToString) -> ProducerRecord {
    ProducerRecord::new(TopicName::new("t").unwrap()).value(value.to_string().into_bytes())
}

/// Small batches, several on their way, quick retries.
fn config() -> ProducerConfig {
    ProducerConfig {
        linger: Duration::ZERO,
        batch_bytes_max: 100,
        backoff: Backoff {
            min: Duration::from_millis(1),
            max: Duration::from_millis(5),
        },
        ..ProducerConfig::default()
    }
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|value| value.to_string()).collect()
}

/// Sends so many records and gives what became of each.
async fn send(producer: &Producer, count: usize) -> Vec<Result<Option<Offset>, ClientError>> {
    let mut futures = Vec::new();
    for value in 0..count {
        futures.push(producer.send(record(value)).await.unwrap());
    }
    let mut results = Vec::new();
    for future in futures {
        results.push(future.await.map(|delivered| delivered.offset));
    }
    results
}

/// The producer ids and epochs of what is stored in partition 0, without repetitions.
fn identities(fake: &Fake) -> Vec<(i64, i16)> {
    let state = fake.state();
    let mut all: Vec<_> = state.log[&0]
        .iter()
        .map(|stored| {
            let header = BatchHeader::decode(&stored.bytes, usize::MAX).unwrap();
            (header.producer_id, header.producer_epoch)
        })
        .collect();
    all.dedup();
    all
}

#[tokio::test]
async fn what_is_sent_again_is_stored_once_and_in_order() {
    let steps = [
        Step::StoreAndBreak,
        Step::Break,
        Step::RefuseForNow,
        Step::Store,
        Step::Ignore,
    ];
    // Every sequence of five of these steps, with five batches on their way.
    for number in 0..steps.len().pow(4) {
        let fake = Fake::start(1).await;
        let pick = |place: u32| steps[number / steps.len().pow(place) % steps.len()];
        let mut script: Vec<Step> = (0..4).map(pick).collect();
        // What is ignored is only missed when the stream ends.
        if script.contains(&Step::Ignore) {
            script.push(Step::Break);
        }
        fake.state().steps = script.clone().into();
        fake.state().is_held = true;
        let producer = Producer::new(fake.client(), config());
        let sending = tokio::spawn(async move { send(&producer, 40).await });
        fake.release();
        let results = tokio::time::timeout(Duration::from_secs(20), sending)
            .await
            .unwrap_or_else(|_| panic!("{script:?} never ends"))
            .unwrap();
        for (offset, result) in (0..).zip(results) {
            assert_eq!(result.unwrap(), Offset::new(offset), "{script:?}");
        }
        assert_eq!(fake.values(0), numbers(40), "{script:?}");
    }
}

#[tokio::test]
async fn a_batch_that_came_through_is_known_again() {
    let fake = Fake::start(1).await;
    fake.state().steps = [Step::Store, Step::StoreAndBreak].into();
    let producer = Producer::new(fake.client(), config());
    for result in send(&producer, 30).await {
        result.unwrap();
    }
    assert!(fake.state().duplicates > 0);
    assert_eq!(fake.values(0), numbers(30));
    assert_eq!(identities(&fake), [(0, 0)]);
}

#[tokio::test]
async fn behind_a_refused_batch_the_partition_begins_anew() {
    let fake = Fake::start(1).await;
    fake.state().steps = [Step::Store, Step::Refuse].into();
    fake.state().is_held = true;
    let producer = Producer::new(fake.client(), config());
    let sending = tokio::spawn(async move { send(&producer, 40).await });
    fake.release();
    let results = sending.await.unwrap();
    let refused: Vec<usize> = (0..40).filter(|at| results[*at].is_err()).collect();
    assert!(!refused.is_empty(), "one batch was refused");
    let expected: Vec<String> = numbers(40)
        .into_iter()
        .enumerate()
        .filter(|(at, _)| !refused.contains(at))
        .map(|(_, value)| value)
        .collect();
    assert_eq!(
        fake.values(0),
        expected,
        "in order, nothing twice, all others there"
    );
    assert_eq!(identities(&fake), [(0, 0), (0, 1)]);
}

#[tokio::test]
async fn behind_a_batch_that_was_given_up_nothing_is_stored_twice() {
    // Stored, but the answer never comes, nor to any try until it is given up; those behind it are
    // stored under its numbers.
    for first in [Step::StoreAndBreak, Step::Ignore, Step::Break] {
        let fake = Fake::start(1).await;
        fake.state().steps = [first].into();
        fake.state().after_steps = Some(Step::Ignore);
        let config = ProducerConfig {
            delivery_timeout: Duration::from_millis(300),
            request_timeout: Duration::from_millis(100),
            ..config()
        };
        let producer = Producer::new(fake.client(), config);
        let given_up = send(&producer, 3).await;
        assert!(given_up.iter().any(Result::is_err));
        fake.state().after_steps = None;
        for result in send(&producer, 20).await {
            result.unwrap();
        }
        let stored = fake.values(0);
        let later = &stored[stored.len() - 20..];
        assert_eq!(later, numbers(20), "{first:?}");
        let mut before = stored[..stored.len() - 20].to_vec();
        before.dedup();
        assert_eq!(before.len(), stored.len() - 20, "{first:?}: {stored:?}");
    }
}

#[tokio::test]
async fn a_producer_that_the_broker_forgot_takes_another_id() {
    let fake = Fake::start(1).await;
    let producer = Producer::new(fake.client(), config());
    for result in send(&producer, 10).await {
        result.unwrap();
    }
    fake.state().forgotten.push(0);
    for result in send(&producer, 10).await {
        result.unwrap();
    }
    assert_eq!(fake.values(0).len(), 20);
    assert_eq!(identities(&fake), [(0, 0), (1, 0)]);
}

#[tokio::test]
async fn no_id_for_the_moment_only_delays() {
    let fake = Fake::start(1).await;
    fake.state().identity_failures = 3;
    let producer = Producer::new(fake.client(), config());
    for result in send(&producer, 10).await {
        result.unwrap();
    }
    assert_eq!(fake.values(0), numbers(10));

    // And is told when it lasts.
    fake.state().identity_failures = usize::MAX;
    let config = ProducerConfig {
        delivery_timeout: Duration::from_millis(100),
        ..config()
    };
    let producer = Producer::new(fake.client(), config);
    let error = send(&producer, 1).await.remove(0).unwrap_err();
    assert!(matches!(error, ClientError::NotDelivered { .. }), "{error}");
    assert!(
        error.to_string().contains("no ids for the moment"),
        "{error}"
    );
}

#[tokio::test]
async fn other_acks_go_without() {
    for acks in [Acks::Leader, Acks::None] {
        let fake = Fake::start(1).await;
        let producer = Producer::new(fake.client(), ProducerConfig { acks, ..config() });
        for result in send(&producer, 10).await {
            result.unwrap();
        }
        producer.close().await;
        fake.until(|state| state.log.get(&0).map_or(0, Vec::len) > 0)
            .await;
        assert_eq!(identities(&fake), [(-1, -1)]);
    }
}
