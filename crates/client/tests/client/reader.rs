//! Reading to the end, following, going on after a lost connection, credit.

use std::collections::BTreeMap;
use std::task::Poll;
use std::time::Duration;

use tidelog_client::{
    Backoff, ClientError, Compression, ErrorClass, Offset, OffsetSpec, PartitionId, Reader,
    ReaderConfig, TopicName,
};
use tonic::Code;

use crate::fake::{Fake, error};

fn config() -> ReaderConfig {
    ReaderConfig {
        backoff: Backoff {
            min: Duration::from_millis(1),
            max: Duration::from_millis(5),
        },
        ..ReaderConfig::new(TopicName::new("t").unwrap())
    }
}

/// Reads to the end; the offsets of each partition in the order they came, and the errors.
async fn read(fake: &Fake, config: ReaderConfig) -> (BTreeMap<u32, Vec<u64>>, Vec<ClientError>) {
    let mut reader = Reader::open(fake.client(), config).await.unwrap();
    let (mut offsets, mut errors) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
    while let Some(record) = reader.next().await {
        match record {
            Ok(record) => {
                let value = format!("{}/{}", record.partition, record.offset);
                assert_eq!(record.value.unwrap(), value);
                assert_eq!(record.key.unwrap(), "k");
                offsets
                    .entry(record.partition.get())
                    .or_default()
                    .push(record.offset.get());
            }
            Err(error) => errors.push(error),
        }
    }
    assert!(reader.next().await.is_none(), "the end stays the end");
    (offsets, errors)
}

#[tokio::test]
async fn all_partitions_are_read_to_their_ends() {
    let fake = Fake::start(3).await;
    fake.fill(0, 100, 7, Compression::Zstd);
    fake.fill(2, 50, 50, Compression::None);
    let (offsets, errors) = read(&fake, config()).await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(offsets[&0], (0..100).collect::<Vec<_>>());
    assert_eq!(offsets[&2], (0..50).collect::<Vec<_>>());
    assert_eq!(offsets.len(), 2);
}

#[tokio::test]
async fn ranges_are_exact_though_batches_are_not() {
    let fake = Fake::start(2).await;
    fake.fill(0, 100, 10, Compression::Lz4);
    fake.fill(1, 100, 10, Compression::Lz4);
    let offset = |offset| OffsetSpec::Offset(Offset::new(offset).unwrap());
    let (offsets, _) = read(
        &fake,
        ReaderConfig {
            partitions: vec![PartitionId::new(1).into()],
            from: offset(13),
            to: Some(offset(47)),
            ..config()
        },
    )
    .await;
    assert_eq!(offsets, BTreeMap::from([(1, (13..47).collect())]));

    let (offsets, _) = read(
        &fake,
        ReaderConfig {
            from: OffsetSpec::BeforeLatest(3),
            ..config()
        },
    )
    .await;
    assert_eq!(
        offsets,
        BTreeMap::from([(0, vec![97, 98, 99]), (1, vec![97, 98, 99])])
    );
    let (offsets, _) = read(
        &fake,
        ReaderConfig {
            from: OffsetSpec::Latest,
            ..config()
        },
    )
    .await;
    assert!(offsets.is_empty());
}

#[tokio::test]
async fn each_record_comes_once_over_lost_connections() {
    let fake = Fake::start(2).await;
    fake.fill(0, 200, 9, Compression::None);
    fake.fill(1, 100, 9, Compression::Gzip);
    fake.state().read_breaks = [0, 1, 5, 0, 3, 8, 2].into();
    let (offsets, errors) = read(
        &fake,
        ReaderConfig {
            from: OffsetSpec::BeforeLatest(150),
            ..config()
        },
    )
    .await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(offsets[&0], (50..200).collect::<Vec<_>>());
    assert_eq!(offsets[&1], (0..100).collect::<Vec<_>>());
    let state = fake.state();
    assert_eq!(state.starts.len(), 8);
    // Records that come in between must not move the end, nor the meaning of the start.
    assert!(state.starts[1..].iter().all(|start| {
        start
            .partitions
            .iter()
            .all(|partition| partition.from.is_some() && partition.to.is_some())
    }));
    // The last stream asks only for what is left.
    assert_eq!(state.starts.last().unwrap().partitions.len(), 1);
}

#[tokio::test]
async fn a_broker_that_goes_away_is_read_on_from_where_it_was() {
    let fake = Fake::start(2).await;
    fake.fill(0, 100, 9, Compression::None);
    fake.fill(1, 50, 9, Compression::Lz4);
    fake.state().read_goodbyes = [0, 1, 4, 0, 2].into();
    let (offsets, errors) = read(&fake, config()).await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(offsets[&0], (0..100).collect::<Vec<_>>());
    assert_eq!(offsets[&1], (0..50).collect::<Vec<_>>());
    let state = fake.state();
    assert_eq!(state.starts.len(), 6, "a stream for each goodbye, and one");
    let asked = |start: usize| state.starts[start].partitions[0].from.unwrap().at.unwrap();
    use tidelog_proto::v1::offset_spec::At;
    assert_eq!(asked(2), At::Offset(9), "behind the one batch that came");
    assert_eq!(asked(3), At::Offset(45), "and the next four");
}

#[tokio::test]
async fn a_follower_comes_back_after_the_broker_went_away() {
    let fake = Fake::start(1).await;
    fake.state().read_goodbyes = [1].into();
    let config = ReaderConfig {
        follow: true,
        ..config()
    };
    let mut reader = Reader::open(fake.client(), config).await.unwrap();
    fake.fill(0, 10, 5, Compression::None);
    for offset in 0..10 {
        assert_eq!(reader.next().await.unwrap().unwrap().offset.get(), offset);
    }
    assert_eq!(fake.state().starts.len(), 2);
}

#[tokio::test]
async fn a_broker_that_is_silent_is_given_up_for_a_new_stream() {
    let fake = Fake::start(1).await;
    let config = ReaderConfig {
        follow: true,
        silence_timeout: Duration::from_millis(20),
        ..config()
    };
    let mut reader = Reader::open(fake.client(), config).await.unwrap();
    let reading = tokio::spawn(async move { reader.next().await.unwrap().unwrap() });
    fake.until(|state| state.starts.len() >= 3).await;
    fake.fill(0, 1, 1, Compression::None);
    assert_eq!(reading.await.unwrap().offset, Offset::ZERO);
}

#[tokio::test]
async fn heartbeats_keep_a_stream_alive() {
    let fake = Fake::start(2).await;
    let client = fake.client();
    let silence_timeout = Duration::from_secs(1);
    let follow = async |partition| {
        let config = ReaderConfig {
            partitions: vec![PartitionId::new(partition).into()],
            follow: true,
            silence_timeout,
            ..config()
        };
        Reader::open(client.clone(), config).await.unwrap()
    };
    let (mut quiet, mut busy) = (follow(0).await, follow(1).await);

    // The clock stands, and does not go on by itself while a thread is at work.
    tokio::time::pause();
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let working = tokio::task::spawn_blocking(move || {
        let ended = released.recv_timeout(Duration::from_secs(60));
        assert!(ended.is_err(), "nothing is ever sent");
    });
    let mut next = std::pin::pin!(quiet.next());
    for turn in 0..5 {
        fake.state().heartbeats.insert(0, 1);
        fake.until(|state| state.heartbeats_sent == turn + 1).await;
        // A record that was sent behind the heartbeat on the same connection: with it, the
        // heartbeat is here too.
        fake.add(1, turn);
        let record = busy.next().await.unwrap().unwrap();
        assert_eq!(usize::try_from(record.offset.get()).unwrap(), turn);
        let is_waiting =
            std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context).is_pending()));
        assert!(is_waiting.await, "a heartbeat is no record");
        // Two of these are longer than the silence that is allowed.
        tokio::time::advance(silence_timeout * 6 / 10).await;
    }
    fake.add(0, 0);
    assert_eq!(next.await.unwrap().unwrap().offset, Offset::ZERO);
    assert_eq!(fake.state().starts.len(), 2, "the streams of the beginning");
    drop(release);
    working.await.unwrap();
}

#[tokio::test]
async fn the_broker_is_granted_no_more_than_the_credit() {
    let fake = Fake::start(1).await;
    fake.fill(0, 10_000, 10, Compression::None);
    let config = ReaderConfig {
        credit_bytes: 0,
        ..config()
    };
    let mut reader = Reader::open(fake.client(), config).await.unwrap();
    for offset in 0..10_000 {
        let record = reader.next().await.unwrap().unwrap();
        assert_eq!(record.offset.get(), offset);
    }
    assert!(reader.next().await.is_none());
    assert_eq!(
        fake.state().starts[0].credit_bytes,
        64 * 1024,
        "the least there is"
    );
    let largest = fake.state().log[&0]
        .iter()
        .map(|stored| stored.bytes.len())
        .max()
        .unwrap();
    assert!(fake.state().credit_exceeded_by < u64::try_from(largest).unwrap());
}

#[tokio::test]
async fn following_waits_for_new_records() {
    let fake = Fake::start(1).await;
    let mut reader = Reader::open(
        fake.client(),
        ReaderConfig {
            follow: true,
            ..config()
        },
    )
    .await
    .unwrap();
    assert_eq!(reader.ranges()[0].to, None);
    fake.fill(0, 5, 5, Compression::None);
    for offset in 0..5 {
        assert_eq!(reader.next().await.unwrap().unwrap().offset.get(), offset);
    }
    assert!(reader.next_buffered().is_none());
}

#[tokio::test]
async fn a_partition_that_fails_does_not_stop_the_others() {
    let fake = Fake::start(3).await;
    for partition in 0..3 {
        fake.fill(partition, 10, 5, Compression::None);
    }
    let range = error(
        Code::OutOfRange,
        "OFFSET_OUT_OF_RANGE",
        "it starts at 7",
        None,
    );
    let passing = error(
        Code::Unavailable,
        "STORAGE_ERROR",
        "again",
        Some(Duration::ZERO),
    );
    fake.state().read_partition_errors = [(0, range), (1, passing)].into();
    let (offsets, errors) = read(&fake, config()).await;
    assert_eq!(offsets.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(
        offsets
            .values()
            .all(|offsets| *offsets == (0..10).collect::<Vec<_>>())
    );
    let [
        ClientError::Partition {
            partition, source, ..
        },
    ] = errors.as_slice()
    else {
        panic!("unexpected {errors:?}");
    };
    assert_eq!(partition.get(), 0);
    assert_eq!(source.broker().unwrap().reason, "OFFSET_OUT_OF_RANGE");
}

#[tokio::test]
async fn partitions_that_cannot_be_read_at_all_are_told() {
    let fake = Fake::start(2).await;
    fake.fill(0, 10, 5, Compression::None);
    let from = OffsetSpec::Offset(Offset::new(11).unwrap());
    let (offsets, errors) = read(&fake, ReaderConfig { from, ..config() }).await;
    assert!(offsets.is_empty());
    assert_eq!(errors.len(), 2, "{errors:?}");
    for error in &errors {
        assert_eq!(error.broker().unwrap().reason, "OFFSET_OUT_OF_RANGE");
    }
    let partitions = vec![PartitionId::new(0).into(), PartitionId::new(7).into()];
    let (offsets, errors) = read(
        &fake,
        ReaderConfig {
            partitions,
            ..config()
        },
    )
    .await;
    assert_eq!(offsets[&0].len(), 10);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].broker().unwrap().reason, "PARTITION_NOT_FOUND");
}

#[tokio::test]
async fn damage_ends_its_partition() {
    let fake = Fake::start(2).await;
    fake.fill(0, 15, 5, Compression::None);
    fake.fill(1, 10, 5, Compression::None);
    {
        let mut state = fake.state();
        let stored = &mut state.log.get_mut(&0).unwrap()[1];
        let mut bytes = stored.bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 0xff;
        stored.bytes = bytes.into();
    }
    let (offsets, errors) = read(&fake, config()).await;
    assert_eq!(
        offsets,
        BTreeMap::from([(0, (0..5).collect()), (1, (0..10).collect())])
    );
    let [
        error @ ClientError::Damaged {
            partition,
            offset: 5,
            ..
        },
    ] = errors.as_slice()
    else {
        panic!("unexpected {errors:?}");
    };
    assert_eq!((partition.get(), error.class()), (0, ErrorClass::Damaged));
}

#[tokio::test]
async fn unknown_topics_and_lost_brokers_are_told() {
    let fake = Fake::start(1).await;
    let missing = ReaderConfig::new(TopicName::new("missing").unwrap());
    let failed = Reader::open(fake.client(), missing).await.unwrap_err();
    assert!(failed.is_not_found(), "{failed:?}");

    fake.fill(0, 10, 1, Compression::None);
    fake.state().read_breaks = vec![3; 1].into_iter().chain(vec![0; 10_000]).collect();
    let config = ReaderConfig {
        retry_timeout: Duration::from_millis(30),
        ..config()
    };
    let mut reader = Reader::open(fake.client(), config).await.unwrap();
    for _ in 0..3 {
        reader.next().await.unwrap().unwrap();
    }
    let failed = reader.next().await.unwrap().unwrap_err();
    assert!(failed.is_retryable(), "{failed:?}");
    assert!(reader.next().await.is_none());
}
