//! A server over a directory of its own, and words to talk to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidelog_broker::{Broker, BrokerConfig, Seams};
use tidelog_proto::v1;
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::topics_client::TopicsClient;
use tidelog_record::{BatchBuilder, Compression, Timestamp};
use tidelog_server::{Config, Listeners, Server};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// How long anything may take before a test gives up. Nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, and clients connected to it.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) log: LogClient<Channel>,
    pub(crate) topics: TopicsClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) dir: TempDir,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A server whose configuration `change` made different.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::on(dir, Seams::os(), change).await
    }

    /// A server over what is in `dir`, or on the disk of `seams`.
    pub(crate) async fn on(dir: TempDir, seams: Seams, change: impl FnOnce(&mut Config)) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = Config {
            data_dir: dir.path().to_owned(),
            grpc_addr: any,
            http_addr: any,
            ..Config::default()
        };
        change(&mut config);
        let broker_config = BrokerConfig {
            data_dir: config.data_dir.clone(),
            in_flight_bytes_max: config.limits.in_flight_bytes_max,
            topics_max: config.limits.topics_max,
            partitions_max: config.limits.partitions_max,
            compaction_check_interval: config.limits.compaction_check_interval,
            ..BrokerConfig::default()
        };
        let opened = tokio::task::spawn_blocking(move || Broker::open(broker_config, seams));
        let broker = opened.await.unwrap().unwrap();
        let listeners = Listeners::bind(&config).unwrap();
        let server = Server::start(&config, listeners, broker).await;
        let channel = connect(server.grpc_addr()).await;
        Self {
            log: log_client(channel.clone()),
            topics: TopicsClient::new(channel.clone()),
            channel,
            server,
            dir,
        }
    }

    /// A client over a connection of its own.
    pub(crate) async fn another(&self) -> LogClient<Channel> {
        log_client(connect(self.server.grpc_addr()).await)
    }

    pub(crate) async fn create(&mut self, name: &str, partitions: u32) {
        self.create_with(name, partitions, &[]).await;
    }

    pub(crate) async fn create_with(
        &mut self,
        name: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) {
        let settings = settings
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            settings,
            validate_only: false,
            ..v1::CreateTopicRequest::default()
        };
        self.topics.create_topic(request).await.unwrap();
    }

    /// Appends one batch with these values to a partition; gives its base offset.
    pub(crate) async fn append(&mut self, topic: &str, partition: u32, values: &[&str]) -> u64 {
        let request = append_batch(topic, partition, batch(values));
        let response = self.log.append(request).await.unwrap().into_inner();
        response.results[0].base_offset.unwrap()
    }

    /// The values of a partition, from an offset on, by single fetches.
    pub(crate) async fn values(&mut self, topic: &str, partition: u32, from: u64) -> Vec<String> {
        let mut values = Vec::new();
        let mut offset = from;
        loop {
            let mut request = fetch(topic, partition, offset);
            request.format = v1::Format::Records.into();
            let fetched = self.log.fetch(request).await.unwrap().into_inner();
            let one = &fetched.partitions[0];
            assert_eq!(one.error, None);
            if one.records.is_empty() {
                return values;
            }
            for record in &one.records {
                assert_eq!(record.offset, offset);
                offset += 1;
                values.push(text(record.value.as_ref().unwrap()));
            }
            assert_eq!(one.next_offset, offset);
        }
    }

    /// What HTTP answers to a GET: the code, the head and the body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String, String) {
        http_get(self.server.http_addr(), path).await
    }

    /// The value of a metric without labels, or with exactly these.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (code, _, body) = self.get("/metrics").await;
        assert_eq!(code, 200);
        let line = body.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        line.map_or(0.0, |line| {
            line.rsplit(' ').next().unwrap().parse().unwrap()
        })
    }

    /// Waits until a metric has a value.
    pub(crate) async fn until_metric_at_least(&self, name: &str, value: f64) {
        until(async || self.metric(name).await >= value).await;
    }

    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        until(async || (self.metric(name).await - value).abs() < f64::EPSILON).await;
    }
}

pub(crate) async fn connect(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn log_client(channel: Channel) -> LogClient<Channel> {
    LogClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// Waits for a condition, asking again and again; gives up after [`PATIENCE`].
pub(crate) async fn until(condition: impl AsyncFn() -> bool) {
    in_time(async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What `work` gives, unless it hangs.
pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it comes to an end")
}

/// One plain batch with these values.
pub(crate) fn batch(values: &[&str]) -> Bytes {
    batch_of(values, Compression::None)
}

pub(crate) fn batch_of(values: &[&str], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    for (i, value) in values.iter().enumerate() {
        let at = Timestamp::from_millis(1_000 + i64::try_from(i).unwrap());
        builder.push(at, None, Some(value.as_bytes()), &[]).unwrap();
    }
    builder.build().unwrap()
}

pub(crate) fn append_batch(topic: &str, partition: u32, batch: Bytes) -> v1::AppendRequest {
    v1::AppendRequest {
        topic: topic.to_owned(),
        partition: Some(partition),
        acks: v1::Acks::All.into(),
        payload: Some(v1::append_request::Payload::Batch(batch)),
    }
}

/// A request to append records with these keys and values, to partitions chosen by the broker.
pub(crate) fn append_records(topic: &str, records: &[(Option<&str>, &str)]) -> v1::AppendRequest {
    let record = |(key, value): &(Option<&str>, &str)| v1::NewRecord {
        key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..v1::NewRecord::default()
    };
    v1::AppendRequest {
        topic: topic.to_owned(),
        partition: None,
        acks: v1::Acks::All.into(),
        payload: Some(v1::append_request::Payload::Records(v1::NewRecords {
            records: records.iter().map(record).collect(),
            compression: v1::Compression::None.into(),
            ..v1::NewRecords::default()
        })),
    }
}

/// A request to fetch what there is in a partition, at once.
pub(crate) fn fetch(topic: &str, partition: u32, offset: u64) -> v1::FetchRequest {
    v1::FetchRequest {
        partitions: vec![v1::FetchPartition {
            topic: topic.to_owned(),
            partition,
            offset,
            max_bytes: 0,
        }],
        ..v1::FetchRequest::default()
    }
}

pub(crate) fn at(at: v1::offset_spec::At) -> Option<v1::OffsetSpec> {
    Some(v1::OffsetSpec { at: Some(at) })
}

pub(crate) fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What an error tells, checked for what every error must have.
pub(crate) struct Told {
    pub(crate) facts: BTreeMap<String, String>,
    pub(crate) status: Status,
}

/// Checks code and reason of an error.
#[track_caller]
pub(crate) fn told(status: Status, code: Code, reason: &str) -> Told {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no reason: {status:?}"));
    assert_eq!(
        (status.code(), info.reason.as_str()),
        (code, reason),
        "{status:?}"
    );
    assert_eq!(info.domain, "tidelog");
    assert!(!status.message().is_empty());
    Told {
        facts: info.metadata.into_iter().collect(),
        status,
    }
}

/// The same of an error inside of an answer.
#[track_caller]
pub(crate) fn told_within(error: Option<tonic_types::Status>, code: Code, reason: &str) -> Told {
    let error = error.expect("there is an error");
    use prost::Message;
    let bytes = Bytes::from(error.encode_to_vec());
    let status = Status::with_details(Code::from(error.code), error.message, bytes);
    told(status, code, reason)
}

impl Told {
    #[track_caller]
    pub(crate) fn fact(&self, name: &str, value: impl ToString) -> &Self {
        assert_eq!(
            self.facts.get(name),
            Some(&value.to_string()),
            "{:?}",
            self.facts
        );
        self
    }

    #[track_caller]
    pub(crate) fn says(&self, words: &str) -> &Self {
        assert!(
            self.status.message().contains(words),
            "{}",
            self.status.message()
        );
        self
    }

    #[track_caller]
    pub(crate) fn field(&self, field: &str) -> &Self {
        let bad = self
            .status
            .get_details_bad_request()
            .expect("it is about a field");
        assert_eq!(bad.field_violations[0].field, field);
        self
    }

    #[track_caller]
    pub(crate) fn quota(&self, limit: &str) -> &Self {
        let met = self
            .status
            .get_details_quota_failure()
            .expect("it is about a limit");
        assert_eq!(met.violations[0].subject, limit);
        self
    }

    #[track_caller]
    pub(crate) fn can_be_retried(&self) -> &Self {
        let retry = self
            .status
            .get_details_retry_info()
            .expect("it may pass by itself");
        assert!(retry.retry_delay.is_some());
        self
    }

    #[track_caller]
    pub(crate) fn cannot_be_retried(&self) -> &Self {
        assert!(self.status.get_details_retry_info().is_none());
        self
    }
}

/// GET over a connection of its own.
pub(crate) async fn http_get(addr: SocketAddr, path: &str) -> (u16, String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = raw(addr, request.as_bytes()).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_ascii_lowercase(), body.to_owned())
}

/// Sends bytes and gives everything that comes back until the other side closes.
pub(crate) async fn raw(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    in_time(async {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let mut answer = Vec::new();
        // The other side may close before it has read everything, with a reset.
        if stream.write_all(bytes).await.is_ok() {
            let mut part = vec![0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut part).await {
                answer.extend_from_slice(&part[..len]);
            }
        }
        answer
    })
    .await
}
