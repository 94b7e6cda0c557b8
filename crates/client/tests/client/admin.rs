//! Calls on topics and offsets.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::Duration;

use tidelog_client::{
    AdminOptions, Client, ClientConfig, ClientError, ErrorClass, OffsetSpec, PartitionId, Producer,
    ProducerConfig, Reader, ReaderConfig, TopicName,
};

use crate::fake::Fake;

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

#[tokio::test]
async fn topics_come_and_go() {
    let client = Fake::start(1).await.client();
    let settings = HashMap::from([("retention.ms".to_owned(), "-1".to_owned())]);
    let try_only = AdminOptions {
        validate_only: true,
    };
    client
        .create_topic(&topic("b"), 3, settings.clone(), try_only)
        .await
        .unwrap();
    let options = AdminOptions::default();
    let made = client
        .create_topic(&topic("b"), 3, settings.clone(), options)
        .await
        .unwrap();
    assert_eq!((made.partitions, made.settings), (3, settings));
    let again = client
        .create_topic(&topic("b"), 3, HashMap::new(), options)
        .await
        .unwrap_err();
    assert_eq!(again.broker().unwrap().reason, "TOPIC_EXISTS");
    assert_eq!(again.broker().unwrap().facts["topic"], "t");
    assert_eq!(again.class(), ErrorClass::Refused);

    let names: Vec<_> = client
        .list_topics(false)
        .await
        .unwrap()
        .into_iter()
        .map(|topic| topic.name)
        .collect();
    assert_eq!(names, ["b", "t"], "all pages");
    client.delete_topic(&topic("b")).await.unwrap();
    assert!(
        client
            .delete_topic(&topic("b"))
            .await
            .unwrap_err()
            .is_not_found()
    );
    let broken = client.add_partitions(&topic("t"), 5).await.unwrap_err();
    assert!(matches!(broken, ClientError::Protocol { .. }), "{broken:?}");
}

#[tokio::test]
async fn offsets_name_the_partition_that_failed() {
    let client = Fake::start(2).await.client();
    let at = |partition| (PartitionId::new(partition), OffsetSpec::Latest);
    let found = client
        .list_offsets(&topic("t"), &[at(1), at(0)])
        .await
        .unwrap();
    assert_eq!(
        found
            .iter()
            .map(|found| found.partition.get())
            .collect::<Vec<_>>(),
        [1, 0]
    );
    let error = client
        .list_offsets(&topic("t"), &[at(0), at(2)])
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot look up offsets of partition 2: no such partition (PARTITION_NOT_FOUND)"
    );
    assert!(error.is_not_found());
    let ClientError::NotLookedUp { partition, .. } = error else {
        panic!("unexpected {error:?}");
    };
    assert_eq!(partition, PartitionId::new(2));
}

#[tokio::test]
async fn what_was_not_deleted_is_told() {
    let client = Fake::start(2).await.client();
    let before = [(PartitionId::new(1), OffsetSpec::BeforeLatest(3))];
    let error = client
        .delete_records(&topic("t"), &before)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot delete records of partition 1: 0 to 10 (OFFSET_OUT_OF_RANGE)"
    );
    assert_eq!(error.class(), ErrorClass::Refused);
    assert!(!error.is_retryable());
    let ClientError::NotDeleted { partition, .. } = error else {
        panic!("unexpected {error:?}");
    };
    assert_eq!(partition, PartitionId::new(1));
}

#[tokio::test]
async fn the_next_broker_of_the_list_answers() {
    let fake = Fake::start(1).await;
    // Bound and dropped: nobody listens there now.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let brokers = format!("{free},{}", fake.address);
    let client = Client::connect(&brokers).await.unwrap();
    assert_eq!(client.list_topics(false).await.unwrap().len(), 1);

    let config = ClientConfig::new(brokers.parse().unwrap());
    let client = Client::lazy(config).unwrap();
    assert_eq!(client.list_topics(false).await.unwrap().len(), 1);
}

/// Something that is no broker: to the preface of HTTP/2 it says `to_http_2`, to anything else
/// `to_http_1`, and closes the connection.
fn no_broker(to_http_2: &'static [u8], to_http_1: &'static [u8]) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut begins = [0; 3];
            if stream.read_exact(&mut begins).is_ok() {
                let answer = if &begins == b"PRI" {
                    to_http_2
                } else {
                    to_http_1
                };
                // Who asked may be gone.
                drop(stream.write_all(answer));
            }
        }
    });
    address
}

#[tokio::test]
async fn what_is_no_broker_is_told_at_once() {
    let bad: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    for (to_http_2, to_http_1, spoken) in [
        (bad, bad, "HTTP/1"),
        (b"", bad, "HTTP/1"),
        (
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"",
            "something that is not HTTP/2",
        ),
    ] {
        let wrong = no_broker(to_http_2, to_http_1);
        let client = Client::connect(&wrong).await.unwrap();
        let error = client.list_topics(false).await.unwrap_err();
        let ClientError::NotGrpc { address, found } = &error else {
            panic!("unexpected {error:?}");
        };
        assert_eq!((address, *found), (&wrong, spoken));
        assert!(!error.is_retryable() && !error.is_outcome_unknown());
        assert_eq!(error.class(), ErrorClass::Unavailable);
        for partitions in [vec![], vec![PartitionId::new(0).into()]] {
            let config = ReaderConfig {
                partitions,
                ..ReaderConfig::new(topic("t"))
            };
            let error = Reader::open(client.clone(), config).await.unwrap_err();
            assert!(matches!(error, ClientError::NotGrpc { .. }), "{error:?}");
        }
        let producer = Producer::new(client, ProducerConfig::default());
        let error = producer.topic_facts(&topic("t")).await.unwrap_err();
        assert!(matches!(error, ClientError::NotGrpc { .. }), "{error:?}");

        let fake = Fake::start(1).await;
        let client = Client::connect(&format!("{wrong},{}", fake.address)).await;
        let topics = client.unwrap().list_topics(false).await.unwrap();
        assert_eq!(topics.len(), 1, "the next of the list answers");
    }
    // A broker that is stopping closes connections too, and may come back.
    let client = Client::connect(&no_broker(b"", b"")).await.unwrap();
    let error = client.list_topics(false).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Disconnected { .. }),
        "{error:?}"
    );
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_change_of_topics_may_take_longer_than_other_calls() {
    let fake = Fake::start(1).await;
    let config = |change_timeout| ClientConfig {
        request_timeout: Duration::from_millis(20),
        change_timeout,
        ..ClientConfig::new(fake.address.parse().unwrap())
    };
    fake.state().is_held = true;
    let short = Client::lazy(config(Duration::from_millis(20))).unwrap();
    let long = Client::lazy(config(Duration::from_secs(20))).unwrap();
    let create = |client: Client, name| async move {
        let options = AdminOptions::default();
        client
            .create_topic(&topic(name), 3, HashMap::new(), options)
            .await
    };
    let waiting = tokio::spawn(create(long, "patient"));
    // As long as another client waits in vain, and as its calls may take.
    let error = create(short, "hasty").await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    fake.release();
    waiting.await.unwrap().unwrap();
}
