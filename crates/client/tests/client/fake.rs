//! A broker in memory behind a real gRPC server, which fails on demand.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tidelog_client::{Client, ClientConfig, Compression};
use tidelog_proto::v1::log_server::{Log, LogServer};
use tidelog_proto::v1::topics_server::{Topics, TopicsServer};
use tidelog_proto::v1::{self, read_response};
use tidelog_record::{BatchBuilder, BatchLimits, Timestamp, split_batches};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// What becomes of one request of the produce stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Stored and acknowledged.
    Store,
    /// Answered with an error that passes by itself.
    RefuseForNow,
    /// Answered with an error that stays.
    Refuse,
    /// Not stored, and the stream breaks.
    Break,
    /// Stored, and the stream breaks before the answer.
    StoreAndBreak,
    /// Neither stored nor answered.
    Ignore,
}

/// A stored batch.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) base_offset: u64,
    pub(crate) bytes: Bytes,
    pub(crate) acks: v1::Acks,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) partitions: HashMap<String, u32>,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) log: BTreeMap<u32, Vec<Stored>>,
    /// For the next requests; afterwards `after_steps`, or else they are stored.
    pub(crate) steps: VecDeque<Step>,
    pub(crate) after_steps: Option<Step>,
    /// Requests that came, by partition.
    pub(crate) requests: Vec<u32>,
    pub(crate) streams_opened: usize,
    /// While it is set, requests wait.
    pub(crate) is_held: bool,
    /// After so many messages of data a read stream breaks, once for each number.
    pub(crate) read_breaks: VecDeque<usize>,
    /// Told instead of data, once.
    pub(crate) read_partition_errors: HashMap<u32, Status>,
    /// The most bytes that were sent beyond what was granted.
    pub(crate) credit_exceeded_by: u64,
    pub(crate) describes: usize,
    pub(crate) describe_failures: usize,
    /// One batch a message.
    pub(crate) starts: Vec<v1::ReadStart>,
}

#[derive(Clone, Debug)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    released: Arc<Notify>,
    pub(crate) address: String,
}

impl Fake {
    /// A broker with topic `t` of so many partitions.
    pub(crate) async fn start(partitions: u32) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = State {
            partitions: HashMap::from([("t".to_owned(), partitions)]),
            ..State::default()
        };
        let released = Arc::new(Notify::new());
        let fake = Self {
            state: Arc::new(Mutex::new(state)),
            released,
            address,
        };
        let incoming = TcpListenerStream::new(listener)
            .map(|stream| stream.inspect(|stream| stream.set_nodelay(true).unwrap()));
        let server = tonic::transport::Server::builder()
            .add_service(LogServer::new(fake.clone()))
            .add_service(TopicsServer::new(fake.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        fake
    }

    pub(crate) fn client(&self) -> Client {
        Client::lazy(ClientConfig::new(self.address.parse().unwrap())).unwrap()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn release(&self) {
        self.state().is_held = false;
        self.released.notify_waiters();
    }

    /// Waits until the state is as wanted.
    pub(crate) async fn until(&self, mut wanted: impl FnMut(&mut State) -> bool) {
        let look = async {
            while !wanted(&mut self.state()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look)
            .await
            .expect("it never came to that");
    }

    /// The values stored in a partition, in order.
    pub(crate) fn values(&self, partition: u32) -> Vec<String> {
        let state = self.state();
        let stored = state
            .log
            .get(&partition)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut values = Vec::new();
        for stored in stored {
            for batch in split_batches(stored.bytes.clone(), usize::MAX) {
                for record in batch.unwrap().records(&BatchLimits::default()).unwrap() {
                    let value = record.unwrap().value.unwrap();
                    values.push(String::from_utf8(value.to_vec()).unwrap());
                }
            }
        }
        values
    }

    /// Puts records with these values into a partition, `batch_len` a batch.
    pub(crate) fn fill(
        &self,
        partition: u32,
        count: u64,
        batch_len: usize,
        compression: Compression,
    ) {
        let mut state = self.state();
        let values: Vec<u64> = (0..count).collect();
        for values in values.chunks(batch_len) {
            let mut builder = BatchBuilder::new(compression);
            for value in values {
                let (key, value) = (b"k".as_slice(), format!("{partition}/{value}"));
                let time = Timestamp::from_millis(i64::try_from(values[0]).unwrap());
                builder
                    .push(time, Some(key), Some(value.as_bytes()), &[])
                    .unwrap();
            }
            state.store(partition, &builder.build().unwrap(), v1::Acks::All);
        }
    }

    fn topic_partitions(&self, topic: &str) -> Result<u32, Status> {
        let found = self.state().partitions.get(topic).copied();
        found.ok_or_else(|| {
            let message = format!("topic {topic:?} does not exist");
            error(Code::NotFound, "TOPIC_NOT_FOUND", &message, None)
        })
    }

    /// What becomes of a request, and its offset where it was stored.
    fn take(&self, append: &v1::AppendRequest) -> (Step, u64) {
        let partition = append.partition.expect("the producer chooses");
        let mut state = self.state();
        state.requests.push(partition);
        let next = state
            .steps
            .pop_front()
            .or(state.after_steps)
            .unwrap_or(Step::Store);
        let mut base_offset = 0;
        if matches!(next, Step::Store | Step::StoreAndBreak) {
            let Some(v1::append_request::Payload::Batch(bytes)) = &append.payload else {
                panic!("the producer sends batches");
            };
            base_offset = state.store(partition, bytes, append.acks());
        }
        (next, base_offset)
    }
}

impl State {
    fn store(&mut self, partition: u32, bytes: &[u8], acks: v1::Acks) -> u64 {
        let header = tidelog_record::check_batch(bytes, usize::MAX).expect("a sound batch");
        let stored = self.log.entry(partition).or_default();
        let base_offset = stored.last().map_or(0, |last| {
            let header = tidelog_record::check_batch(&last.bytes, usize::MAX).unwrap();
            last.base_offset + u64::try_from(header.record_count).unwrap()
        });
        let mut bytes = bytes.to_vec();
        assert_eq!(header.total_len(), bytes.len());
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        stored.push(Stored {
            base_offset,
            bytes: bytes.into(),
            acks,
        });
        base_offset
    }

    fn end_offset(&self, partition: u32) -> u64 {
        self.log
            .get(&partition)
            .and_then(|stored| stored.last())
            .map_or(0, |last| {
                let header = tidelog_record::check_batch(&last.bytes, usize::MAX).unwrap();
                last.base_offset + u64::try_from(header.record_count).unwrap()
            })
    }
}

pub(crate) fn error(code: Code, reason: &str, message: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "tidelog", [("topic".to_owned(), "t".to_owned())]);
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, message, details)
}

pub(crate) fn in_band(status: &Status) -> tonic_types::Status {
    prost::Message::decode(status.details()).expect("it was encoded")
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Log for Fake {
    async fn append(
        &self,
        _: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        Err(Status::unimplemented("append"))
    }

    type ProduceStream = BoxStream<v1::ProduceResponse>;

    async fn produce(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        self.state().streams_opened += 1;
        let mut requests = request.into_inner();
        let (answers, answers_out) = mpsc::channel(1000);
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let append = request.append.expect("there is one");
                loop {
                    let released = fake.released.notified();
                    if !fake.state().is_held {
                        break;
                    }
                    released.await;
                }
                let (step, base_offset) = fake.take(&append);
                let outcome = match step {
                    Step::Store => v1::produce_response::Outcome::Appended(v1::AppendResponse {
                        results: vec![v1::AppendResult {
                            partition: append.partition.unwrap(),
                            base_offset: Some(base_offset),
                            record_count: 1,
                            ..Default::default()
                        }],
                    }),
                    Step::RefuseForNow => {
                        let retry = Some(Duration::from_millis(1));
                        let status = error(Code::ResourceExhausted, "OVERLOADED", "full", retry);
                        v1::produce_response::Outcome::Error(in_band(&status))
                    }
                    Step::Refuse => {
                        let status = error(Code::InvalidArgument, "INVALID_BATCH", "no", None);
                        v1::produce_response::Outcome::Error(in_band(&status))
                    }
                    Step::Break | Step::StoreAndBreak => {
                        let broken = Err(Status::unavailable("broken on demand"));
                        drop(answers.send(broken).await);
                        return;
                    }
                    Step::Ignore => continue,
                };
                if append.acks() == v1::Acks::None {
                    continue;
                }
                let correlation_id = request.correlation_id;
                let answer = v1::ProduceResponse {
                    correlation_id,
                    outcome: Some(outcome),
                };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers_out))))
    }

    async fn fetch(
        &self,
        _: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        Err(Status::unimplemented("fetch"))
    }

    type ReadStream = BoxStream<v1::ReadResponse>;

    async fn read(
        &self,
        request: Request<Streaming<v1::ReadRequest>>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests
            .message()
            .await?
            .expect("the first request")
            .request;
        let Some(v1::read_request::Request::Start(start)) = first else {
            return Err(Status::invalid_argument("the first request must start"));
        };
        let partitions = self.topic_partitions(&start.topic)?;
        let (answers, answers_out) = mpsc::channel(1);
        let fake = self.clone();
        tokio::spawn(async move {
            let reading = Reading {
                fake,
                start,
                requests,
                partitions,
            };
            if let Err(status) = reading.run(&answers).await {
                drop(answers.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers_out))))
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        let partitions = request.into_inner().partitions.into_iter().map(|asked| {
            let count = self.topic_partitions(&asked.topic)?;
            let missing = error(
                Code::NotFound,
                "PARTITION_NOT_FOUND",
                "no such partition",
                None,
            );
            Ok(v1::ListedOffset {
                offset: self.state().end_offset(asked.partition),
                error: (asked.partition >= count).then(|| in_band(&missing)),
                topic: asked.topic,
                partition: asked.partition,
                ..Default::default()
            })
        });
        let partitions = partitions.collect::<Result<_, Status>>()?;
        Ok(Response::new(v1::ListOffsetsResponse { partitions }))
    }

    async fn delete_records(
        &self,
        request: Request<v1::DeleteRecordsRequest>,
    ) -> Result<Response<v1::DeleteRecordsResponse>, Status> {
        // Nothing can be deleted here.
        let beyond = error(Code::OutOfRange, "OFFSET_OUT_OF_RANGE", "0 to 10", None);
        let partitions = request.into_inner().partitions;
        let partitions = partitions.into_iter().map(|asked| v1::DeletedRecords {
            partition: asked.partition,
            error: Some(in_band(&beyond)),
            ..Default::default()
        });
        let partitions = partitions.collect();
        Ok(Response::new(v1::DeleteRecordsResponse { partitions }))
    }
}

/// One read stream: a batch a message, first all of one partition, then the next.
struct Reading {
    fake: Fake,
    start: v1::ReadStart,
    requests: Streaming<v1::ReadRequest>,
    partitions: u32,
}

type Answers = mpsc::Sender<Result<v1::ReadResponse, Status>>;

impl Reading {
    async fn run(mut self, answers: &Answers) -> Result<(), Status> {
        let send = async |response: read_response::Response| {
            drop(
                answers
                    .send(Ok(v1::ReadResponse {
                        response: Some(response),
                    }))
                    .await,
            );
        };
        let (ranges, failed) = self.ranges();
        let mut breaks_after = {
            let mut state = self.fake.state();
            state.starts.push(self.start.clone());
            state.read_breaks.pop_front().unwrap_or(usize::MAX)
        };
        send(read_response::Response::Started(v1::ReadStarted {
            partitions: ranges.clone(),
        }))
        .await;

        for failed in failed {
            send(read_response::Response::PartitionError(failed)).await;
        }

        let mut credit = self.start.credit_bytes;
        for range in &ranges {
            let partition = range.partition;
            let failure = self.fake.state().read_partition_errors.remove(&partition);
            if let Some(status) = failure {
                send(read_response::Response::PartitionError(
                    v1::ReadPartitionError {
                        partition,
                        next_offset: range.from,
                        error: Some(in_band(&status)),
                    },
                ))
                .await;
                continue;
            }
            let mut next_offset = range.from;
            while range.to.is_none_or(|to| next_offset < to) {
                let Some((bytes, end)) = self.batch_at(partition, next_offset) else {
                    // Following: the test closes the stream.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if answers.is_closed() {
                        return Ok(());
                    }
                    continue;
                };
                let len = u64::try_from(bytes.len()).unwrap();
                // With some credit left one batch may pass it, so that reading always gets on.
                while credit == 0 {
                    match self.requests.message().await? {
                        Some(v1::ReadRequest {
                            request: Some(v1::read_request::Request::AddCreditBytes(more)),
                        }) => credit += more,
                        _ => return Ok(()),
                    }
                }
                if breaks_after == 0 {
                    return Err(Status::unavailable("broken on demand"));
                }
                breaks_after -= 1;
                {
                    let mut state = self.fake.state();
                    let over = len.saturating_sub(credit);
                    state.credit_exceeded_by = state.credit_exceeded_by.max(over);
                }
                credit = credit.saturating_sub(len);
                next_offset = end;
                send(read_response::Response::Data(v1::ReadData {
                    partition,
                    batches: bytes,
                    next_offset,
                    high_watermark: range.high_watermark,
                    ..Default::default()
                }))
                .await;
            }
            send(read_response::Response::PartitionEnd(
                v1::ReadPartitionEnd {
                    partition,
                    next_offset,
                },
            ))
            .await;
        }
        Ok(())
    }

    /// What can be read, and what cannot.
    fn ranges(&self) -> (Vec<v1::ReadRange>, Vec<v1::ReadPartitionError>) {
        let state = self.fake.state();
        let look_up = |position: &v1::Position, end: u64| match position.at {
            Some(v1::position::At::Offset(offset)) => offset,
            Some(v1::position::At::BeforeLatest(records)) => end.saturating_sub(records),
            Some(v1::position::At::Latest(_)) => end,
            _ => 0,
        };
        let (mut ranges, mut failed) = (Vec::new(), Vec::new());
        for asked in &self.start.partitions {
            let end = state.end_offset(asked.partition);
            let from = asked
                .from
                .or(self.start.from)
                .map_or(0, |from| look_up(&from, end));
            let to = asked
                .to
                .or(self.start.to)
                .map(|to| look_up(&to, end).min(end));
            let refusal = if asked.partition >= self.partitions {
                Some((Code::NotFound, "PARTITION_NOT_FOUND"))
            } else if from > end {
                Some((Code::OutOfRange, "OFFSET_OUT_OF_RANGE"))
            } else {
                None
            };
            match refusal {
                Some((code, reason)) => failed.push(v1::ReadPartitionError {
                    partition: asked.partition,
                    next_offset: from,
                    error: Some(in_band(&error(code, reason, "no", None))),
                }),
                None => ranges.push(v1::ReadRange {
                    partition: asked.partition,
                    from,
                    to: to.or((!self.start.follow).then_some(end)),
                    high_watermark: end,
                    log_start_offset: 0,
                }),
            }
        }
        (ranges, failed)
    }

    /// The batch that holds an offset, and its end.
    fn batch_at(&self, partition: u32, offset: u64) -> Option<(Bytes, u64)> {
        let state = self.fake.state();
        let stored = state.log.get(&partition)?;
        let at = stored
            .partition_point(|batch| batch.base_offset <= offset)
            .checked_sub(1)?;
        let end = stored
            .get(at + 1)
            .map_or(state.end_offset(partition), |next| next.base_offset);
        (offset < end).then(|| (stored[at].bytes.clone(), end))
    }
}

#[tonic::async_trait]
impl Topics for Fake {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        if state.partitions.contains_key(&request.name) {
            let message = format!("topic {:?} exists", request.name);
            return Err(error(Code::AlreadyExists, "TOPIC_EXISTS", &message, None));
        }
        if !request.validate_only {
            state
                .partitions
                .insert(request.name.clone(), request.partitions);
        }
        let topic = v1::TopicSummary {
            name: request.name,
            partitions: request.partitions,
            settings: request.settings,
            ..Default::default()
        };
        Ok(Response::new(v1::CreateTopicResponse {
            topic: Some(topic),
        }))
    }

    async fn list_topics(
        &self,
        request: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        // One a page.
        let after = request.into_inner().page_token;
        let state = self.state();
        let names: std::collections::BTreeSet<_> = state.partitions.keys().collect();
        let mut rest = names.into_iter().filter(|name| **name > after);
        let topics: Vec<_> = rest
            .by_ref()
            .take(1)
            .map(|name| v1::TopicSummary {
                name: name.clone(),
                ..Default::default()
            })
            .collect();
        let has_more = rest.next().is_some();
        let next_page_token = topics
            .first()
            .filter(|_| has_more)
            .map(|topic| topic.name.clone())
            .unwrap_or_default();
        Ok(Response::new(v1::ListTopicsResponse {
            topics,
            next_page_token,
        }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let name = request.into_inner().name;
        {
            let mut state = self.state();
            state.describes += 1;
            if state.describe_failures > 0 {
                state.describe_failures -= 1;
                let retry = Some(Duration::from_millis(1));
                return Err(error(Code::Unavailable, "NOT_READY", "starting", retry));
            }
        }
        let partitions = self.topic_partitions(&name)?;
        let settings = self.state().settings.clone();
        Ok(Response::new(v1::DescribeTopicResponse {
            topic: Some(v1::TopicSummary {
                name,
                partitions,
                ..Default::default()
            }),
            settings: settings
                .into_iter()
                .map(|(name, value)| v1::Setting {
                    name,
                    value,
                    is_default: false,
                })
                .collect(),
            partitions: Vec::new(),
        }))
    }

    async fn alter_topic(
        &self,
        _: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        Err(Status::unimplemented("alter_topic"))
    }

    async fn add_partitions(
        &self,
        _: Request<v1::AddPartitionsRequest>,
    ) -> Result<Response<v1::AddPartitionsResponse>, Status> {
        // An answer that breaks the protocol.
        Ok(Response::new(v1::AddPartitionsResponse { topic: None }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        self.topic_partitions(&name)?;
        self.state().partitions.remove(&name);
        Ok(Response::new(v1::DeleteTopicResponse {}))
    }
}
