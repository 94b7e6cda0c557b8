//! Log.Read.

use std::collections::BTreeMap;
use std::time::Duration;

use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::offset_spec::At;
use tidelog_proto::v1::read_response::Response;
use tidelog_proto::v1::{self, ReadStart, read_request};
use tidelog_record::Compression;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::support::{Fixture, append_batch, at, batch_of, in_time, text, told, told_within};

/// A read under way.
pub(crate) struct Reading {
    pub(crate) requests: mpsc::Sender<v1::ReadRequest>,
    pub(crate) responses: Streaming<v1::ReadResponse>,
}

impl Reading {
    pub(crate) async fn start(f: &Fixture, start: ReadStart) -> Self {
        Self::with(f, read_request::Request::Start(start)).await
    }

    pub(crate) async fn over(mut log: LogClient<Channel>, start: ReadStart) -> Self {
        Self::by(&mut log, read_request::Request::Start(start)).await
    }

    async fn with(f: &Fixture, first: read_request::Request) -> Self {
        Self::by(&mut f.another().await, first).await
    }

    async fn by(log: &mut LogClient<Channel>, first: read_request::Request) -> Self {
        let (requests, stream) = mpsc::channel(16);
        requests
            .send(v1::ReadRequest {
                request: Some(first),
            })
            .await
            .unwrap();
        let responses = log
            .read(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            responses,
        }
    }

    async fn grant(&self, bytes: u64) {
        let request = Some(read_request::Request::AddCreditBytes(bytes));
        self.requests
            .send(v1::ReadRequest { request })
            .await
            .unwrap();
    }

    pub(crate) async fn try_next(&mut self) -> Result<Option<Response>, Status> {
        let message = in_time(self.responses.message()).await?;
        Ok(message.map(|message| message.response.expect("it says something")))
    }

    /// The next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Response> {
        self.try_next().await.unwrap()
    }

    pub(crate) async fn started(&mut self) -> Vec<v1::ReadRange> {
        match self.next().await {
            Some(Response::Started(started)) => started.partitions,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn data(&mut self) -> v1::ReadData {
        match self.next().await {
            Some(Response::Data(data)) => data,
            other => panic!("{other:?}"),
        }
    }

    /// The values of all that comes, by partition, and where each partition ended.
    pub(crate) async fn all(mut self) -> (BTreeMap<u32, Vec<String>>, BTreeMap<u32, u64>) {
        self.started().await;
        let (mut values, mut ends) = (BTreeMap::<u32, Vec<String>>::new(), BTreeMap::new());
        loop {
            match self.next().await {
                Some(Response::Data(data)) => values
                    .entry(data.partition)
                    .or_default()
                    .extend(data.records.iter().map(|r| text(r.value.as_ref().unwrap()))),
                Some(Response::PartitionEnd(end)) => {
                    assert_eq!(ends.insert(end.partition, end.next_offset), None);
                }
                None => return (values, ends),
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn records(topic: &str) -> ReadStart {
    ReadStart {
        topic: topic.to_owned(),
        format: v1::Format::Records.into(),
        ..ReadStart::default()
    }
}

fn followed(topic: &str) -> ReadStart {
    ReadStart {
        follow: true,
        ..records(topic)
    }
}

/// A topic with the values `0..count` in each of its partitions, one a batch.
async fn filled(f: &mut Fixture, partitions: u32, count: usize) {
    f.create("t", partitions).await;
    for partition in 0..partitions {
        for i in 0..count {
            f.append("t", partition, &[&i.to_string()]).await;
        }
    }
}

fn strings(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

#[tokio::test]
async fn a_bounded_read_gives_what_was_there_and_ends() {
    let mut f = Fixture::start().await;
    filled(&mut f, 3, 10).await;
    let (values, ends) = Reading::start(&f, records("t")).await.all().await;
    assert_eq!(values.len(), 3);
    assert!(values.values().all(|values| *values == strings(0..10)));
    assert_eq!(ends, BTreeMap::from([(0, 10), (1, 10), (2, 10)]));
    f.until_metric("tidelog_grpc_streams{method=\"Read\"}", 0.0)
        .await;
}

#[tokio::test]
async fn batches_are_given_as_they_are_stored() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    for compression in Compression::ALL {
        let request = append_batch("t", 0, batch_of(&["a", "b"], compression));
        f.log.append(request).await.unwrap();
    }
    let fetched = f
        .log
        .fetch(crate::support::fetch("t", 0, 0))
        .await
        .unwrap()
        .into_inner();
    let start = ReadStart {
        format: v1::Format::Batches.into(),
        ..records("t")
    };
    let mut reading = Reading::start(&f, start).await;
    reading.started().await;
    let data = reading.data().await;
    assert_eq!(data.batches, fetched.partitions[0].batches);
    assert!(data.records.is_empty());
    assert_eq!((data.next_offset, data.high_watermark), (10, 10));
}

#[tokio::test]
async fn ranges_are_kept_exactly() {
    let mut f = Fixture::start().await;
    f.create("t", 3).await;
    for partition in 0..3 {
        // Timestamps 1000 to 1009; offsets 0 to 9, in one batch, compressed.
        let values: Vec<String> = strings(0..10);
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let batch = batch_of(&values, Compression::Lz4);
        f.log
            .append(append_batch("t", partition, batch))
            .await
            .unwrap();
    }
    let range = |partition, from, to| v1::ReadPartition {
        partition,
        from: at(from),
        to: at(to),
    };
    let start = ReadStart {
        partitions: vec![
            range(2, At::Offset(3), At::Offset(7)),
            range(0, At::TimestampMs(1002), At::TimestampMs(1004)),
            v1::ReadPartition {
                partition: 1,
                from: None,
                to: None,
            },
        ],
        from: at(At::BeforeLatest(2)),
        to: at(At::Offset(100)),
        ..records("t")
    };
    let mut reading = Reading::start(&f, start.clone()).await;
    let ranges: Vec<_> = reading
        .started()
        .await
        .into_iter()
        .map(|r| (r.partition, r.from, r.to))
        .collect();
    // An end beyond what there is means: all there is.
    assert_eq!(ranges, [(2, 3, Some(7)), (0, 2, Some(4)), (1, 8, Some(10))]);
    let (values, ends) = Reading::start(&f, start).await.all().await;
    let expected = [(0, strings(2..4)), (1, strings(8..10)), (2, strings(3..7))]
        .into_iter()
        .collect();
    assert_eq!(values, expected);
    assert_eq!(ends, BTreeMap::from([(0, 4), (1, 10), (2, 7)]));

    // With batches, those that lie wholly beyond the end are left out.
    f.create("u", 1).await;
    for i in 0..10 {
        f.append("u", 0, &[&i.to_string()]).await;
    }
    let start = ReadStart {
        format: v1::Format::Batches.into(),
        to: at(At::Offset(4)),
        ..records("u")
    };
    let mut reading = Reading::start(&f, start).await;
    reading.started().await;
    let data = reading.data().await;
    assert_eq!(data.next_offset, 4);
    let batches = tidelog_record::split_batches(data.batches, usize::MAX).count();
    assert_eq!(batches, 4);

    // An empty range ends at once, also where from is behind to.
    let start = ReadStart {
        from: at(At::Offset(6)),
        to: at(At::Offset(4)),
        ..records("u")
    };
    let (values, ends) = Reading::start(&f, start).await.all().await;
    assert_eq!((values.len(), ends), (0, BTreeMap::from([(0, 6)])));
}

#[tokio::test]
async fn a_following_read_gets_what_comes() {
    let mut f = Fixture::start().await;
    filled(&mut f, 2, 1).await;
    let mut reading = Reading::start(&f, followed("t")).await;
    let ranges = reading.started().await;
    assert!(
        ranges
            .iter()
            .all(|range| range.to.is_none() && range.high_watermark == 1)
    );
    let mut seen = BTreeMap::new();
    for _ in 0..2 {
        let data = reading.data().await;
        seen.insert(data.partition, data.next_offset);
    }
    assert_eq!(seen, BTreeMap::from([(0, 1), (1, 1)]));
    for i in 1..50 {
        let partition = i % 2;
        let offset = f.append("t", partition, &["more"]).await;
        let data = reading.data().await;
        assert_eq!(
            (data.partition, data.records[0].offset),
            (partition, offset)
        );
        assert_eq!(data.next_offset, offset + 1);
    }

    // With an end, also one that is not there yet, it ends.
    let start = ReadStart {
        partitions: vec![v1::ReadPartition {
            partition: 0,
            from: None,
            to: at(At::Offset(40)),
        }],
        from: at(At::Latest(true)),
        ..followed("t")
    };
    let reading = Reading::start(&f, start).await;
    let appends = async {
        for _ in 0..30 {
            f.append("t", 0, &["end"]).await;
        }
    };
    let ((values, ends), ()) = in_time(async { tokio::join!(reading.all(), appends) }).await;
    assert_eq!(ends, BTreeMap::from([(0, 40)]));
    assert!(values[&0].iter().all(|value| value == "end"));
}

#[tokio::test]
async fn without_credit_nothing_is_delivered() {
    let mut f = Fixture::with(|config| {
        config.limits.read_heartbeat = Duration::from_millis(5);
    })
    .await;
    filled(&mut f, 1, 20).await;
    let start = ReadStart {
        credit_is_limited: true,
        message_bytes: 1,
        ..records("t")
    };
    let mut reading = Reading::start(&f, start).await;
    reading.started().await;
    let mut next_offset = 0;
    for _ in 0..5 {
        // Three heartbeats in a row: it lives, and it does not deliver.
        for _ in 0..3 {
            let message = reading.next().await;
            assert!(
                matches!(message, Some(Response::Heartbeat(_))),
                "{message:?}"
            );
        }
        // Any credit, however little, is one message; what it takes more is owed.
        reading.grant(1).await;
        let data = loop {
            match reading.next().await {
                Some(Response::Data(data)) => break data,
                Some(Response::Heartbeat(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            (data.records.len(), data.records[0].offset),
            (1, next_offset)
        );
        next_offset = data.next_offset;
        let len: usize = data.records.iter().map(prost::Message::encoded_len).sum();
        // One byte was granted, and each record counts as a few bytes more than it has.
        reading.grant(u64::try_from(len).unwrap() + 3).await;
    }
    // Enough for all.
    reading.grant(1 << 20).await;
    let mut rest = 0;
    loop {
        match reading.next().await {
            Some(Response::Data(data)) => rest += data.records.len(),
            Some(Response::Heartbeat(_) | Response::PartitionEnd(_)) => {}
            None => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rest, 15);
}

#[tokio::test]
async fn credit_from_the_start_bounds_what_is_sent() {
    let mut f = Fixture::with(|config| {
        config.limits.read_heartbeat = Duration::from_millis(5);
    })
    .await;
    f.create("t", 1).await;
    let value = "x".repeat(10_000);
    for _ in 0..20 {
        f.append("t", 0, &[&value]).await;
    }
    let start = ReadStart {
        credit_is_limited: true,
        credit_bytes: 35_000,
        format: v1::Format::Batches.into(),
        message_bytes: 15_000,
        ..records("t")
    };
    let mut reading = Reading::start(&f, start).await;
    reading.started().await;
    let mut sent = 0;
    while let Some(Response::Data(data)) = reading.next().await {
        assert!(data.batches.len() <= 15_000);
        sent += data.batches.len();
    }
    // At most one batch more than was granted.
    assert!((35_000..45_200).contains(&sent), "{sent}");
}

#[tokio::test]
async fn an_idle_read_gets_heartbeats() {
    let mut f = Fixture::with(|config| {
        config.limits.read_heartbeat = Duration::from_millis(1);
    })
    .await;
    f.create("t", 1).await;
    let mut reading = Reading::start(&f, followed("t")).await;
    reading.started().await;
    for _ in 0..3 {
        assert!(matches!(reading.next().await, Some(Response::Heartbeat(_))));
    }
}

#[tokio::test]
async fn a_partition_that_fails_leaves_the_others_alone() {
    let mut f = Fixture::start().await;
    filled(&mut f, 2, 3).await;
    let one = |partition, from| v1::ReadPartition {
        partition,
        from: at(from),
        to: None,
    };
    let start = ReadStart {
        partitions: vec![
            one(0, At::Offset(4)),
            one(1, At::Offset(1)),
            one(7, At::Earliest(true)),
        ],
        ..records("t")
    };
    let mut reading = Reading::start(&f, start).await;
    assert_eq!(reading.started().await.len(), 1);
    let mut failed = BTreeMap::new();
    let mut values = Vec::new();
    loop {
        match reading.next().await {
            Some(Response::PartitionError(error)) => {
                failed.insert(error.partition, (error.next_offset, error.error));
            }
            Some(Response::Data(data)) => values.extend(data.records.into_iter().map(|r| r.offset)),
            Some(Response::PartitionEnd(end)) => assert_eq!(end.partition, 1),
            None => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(values, [1, 2]);
    let (next_offset, error) = failed.remove(&0).unwrap();
    assert_eq!(next_offset, 4);
    told_within(error, Code::OutOfRange, "OFFSET_OUT_OF_RANGE")
        .fact("requested", 4)
        .fact("log_start_offset", 0)
        .fact("high_watermark", 3);
    let (_, error) = failed.remove(&7).unwrap();
    told_within(error, Code::NotFound, "PARTITION_NOT_FOUND");
    assert!(failed.is_empty());
}

#[tokio::test]
async fn a_deleted_topic_ends_its_readers() {
    let mut f = Fixture::start().await;
    filled(&mut f, 1, 1).await;
    let mut reading = Reading::start(&f, followed("t")).await;
    reading.started().await;
    reading.data().await;
    f.topics
        .delete_topic(v1::DeleteTopicRequest {
            name: "t".to_owned(),
        })
        .await
        .unwrap();
    match reading.next().await {
        Some(Response::PartitionError(error)) => {
            assert_eq!(error.next_offset, 1);
            told_within(error.error, Code::NotFound, "TOPIC_NOT_FOUND");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reading.next().await, None);
}

#[tokio::test]
async fn reads_that_break_the_rules_are_ended() {
    let mut f = Fixture::start().await;
    filled(&mut f, 1, 1).await;
    let ended = async |start: ReadStart| {
        Reading::start(&f, start)
            .await
            .try_next()
            .await
            .unwrap_err()
    };
    told(ended(records("u")).await, Code::NotFound, "TOPIC_NOT_FOUND").fact("topic", "u");
    let invalid = |status| told(status, Code::InvalidArgument, "INVALID_REQUEST");
    let format = ReadStart {
        format: 5,
        ..records("t")
    };
    invalid(ended(format).await).field("format");
    let nowhere = ReadStart {
        from: Some(v1::OffsetSpec { at: None }),
        ..records("t")
    };
    invalid(ended(nowhere).await).field("start.from");
    let twice = v1::ReadPartition {
        partition: 0,
        ..Default::default()
    };
    let twice = ReadStart {
        partitions: vec![twice, twice],
        ..records("t")
    };
    invalid(ended(twice).await).field("start.partitions");

    let mut credit_first = Reading::with(&f, read_request::Request::AddCreditBytes(1)).await;
    invalid(credit_first.try_next().await.unwrap_err()).field("start");
    let mut twice = Reading::start(&f, followed("t")).await;
    twice.started().await;
    let again = v1::ReadRequest {
        request: Some(read_request::Request::Start(records("t"))),
    };
    twice.requests.send(again).await.unwrap();
    let status = loop {
        match twice.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(status) => break status,
        }
    };
    invalid(status).field("start");
}

#[tokio::test]
async fn large_records_come_one_by_one_and_small_ones_together() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let small: Vec<&str> = vec!["s"; 1000];
    f.append("t", 0, &small).await;
    let large = "l".repeat(50_000);
    f.append("t", 0, &[&large, &large]).await;
    let start = ReadStart {
        message_bytes: 4000,
        ..records("t")
    };
    let mut reading = Reading::start(&f, start).await;
    reading.started().await;
    let mut sizes = Vec::new();
    let mut next_offset = 0;
    while let Some(Response::Data(data)) = reading.next().await {
        for record in &data.records {
            assert_eq!(record.offset, next_offset);
            next_offset += 1;
        }
        assert_eq!(data.next_offset, next_offset);
        sizes.push(data.records.len());
    }
    assert_eq!(sizes.iter().sum::<usize>(), 1002);
    assert_eq!(sizes[sizes.len() - 2..], [1, 1]);
    assert!(sizes[0] > 100);
}

#[tokio::test]
async fn a_slow_reader_holds_back_only_itself() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let value = "x".repeat(500_000);
    for _ in 0..40 {
        f.append("t", 0, &[&value]).await;
    }
    // Takes its first message and no more, while 20 MB wait for it.
    let start = ReadStart {
        format: v1::Format::Batches.into(),
        ..records("t")
    };
    let mut slow = Reading::start(&f, start.clone()).await;
    slow.started().await;
    let mut fast = Reading::start(&f, start).await;
    fast.started().await;
    let mut bytes = 0;
    while let Some(Response::Data(data)) = fast.next().await {
        bytes += data.batches.len();
    }
    assert!(bytes > 20_000_000);
    assert_eq!(f.append("t", 0, &["more"]).await, 40);
    let mut slow_bytes = 0;
    while let Some(Response::Data(data)) = slow.next().await {
        slow_bytes += data.batches.len();
    }
    assert_eq!(slow_bytes, bytes);
}

#[tokio::test]
async fn a_reader_that_vanishes_leaves_nothing_behind() {
    let mut f = Fixture::start().await;
    filled(&mut f, 3, 1).await;
    let mut reading = Reading::start(&f, followed("t")).await;
    reading.started().await;
    f.until_metric("tidelog_grpc_streams{method=\"Read\"}", 1.0)
        .await;
    drop(reading);
    f.until_metric("tidelog_grpc_streams{method=\"Read\"}", 0.0)
        .await;
}

#[tokio::test]
async fn a_place_that_is_missing_is_told_by_its_path() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let nowhere = v1::ReadPartition {
        from: Some(v1::OffsetSpec { at: None }),
        ..v1::ReadPartition::default()
    };
    let start = ReadStart {
        partitions: vec![nowhere],
        ..records("t")
    };
    let mut reading = Reading::start(&f, start).await;
    let status = reading.try_next().await.unwrap_err();
    told(status, Code::InvalidArgument, "INVALID_REQUEST")
        .field("start.partitions[0].from")
        .says("start.partitions[0].from is missing: ");
}
