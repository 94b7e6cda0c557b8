//! `Log` of the fake broker.

use std::pin::Pin;
use std::time::Duration;

use tidelog_proto::v1;
use tidelog_proto::v1::log_server::Log;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::reading::Reading;
use super::{Fake, Step, error, in_band};

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
                fake.wait_until(|state| !state.is_held).await;
                fake.speak().await;
                let partition = append.partition.expect("the producer chooses");
                if let Err(status) = fake.check_leader(partition) {
                    let outcome = v1::produce_response::Outcome::Error(in_band(&status));
                    let answer = v1::ProduceResponse {
                        correlation_id: request.correlation_id,
                        outcome: Some(outcome),
                    };
                    drop(answers.send(Ok(answer)).await);
                    continue;
                }
                let (step, stored) = fake.take(&append);
                let (base_offset, duplicate) = *stored.as_ref().unwrap_or(&(0, false));
                let outcome = match step {
                    Step::Store if stored.is_err() => {
                        v1::produce_response::Outcome::Error(in_band(&stored.unwrap_err()))
                    }
                    Step::Store => v1::produce_response::Outcome::Appended(v1::AppendResponse {
                        results: vec![v1::AppendResult {
                            partition: append.partition.unwrap(),
                            base_offset: Some(base_offset),
                            record_count: 1,
                            duplicate,
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

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        self.speak().await;
        let mut state = self.state();
        if state.identity_failures > 0 {
            state.identity_failures -= 1;
            return Err(Status::unavailable("no ids for the moment"));
        }
        let producer_id = state.next_producer_id;
        state.next_producer_id += 1;
        Ok(Response::new(v1::InitProducerResponse {
            producer_id,
            producer_epoch: 0,
        }))
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
        self.speak().await;
        let numbers = start.partitions.iter().map(|asked| asked.partition);
        self.state().reads.push((self.node, numbers.collect()));
        let (answers, answers_out) = mpsc::channel(1);
        let fake = self.clone();
        tokio::spawn(async move {
            let reading = Reading::new(fake, start, requests, partitions);
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
        self.speak().await;
        let asked = request.into_inner().partitions;
        let numbers = asked.iter().map(|asked| asked.partition);
        self.state().look_ups.push((self.node, numbers.collect()));
        let partitions = asked.into_iter().map(|asked| {
            if let Err(status) = self.check_leader(asked.partition) {
                return Ok(v1::ListedOffset {
                    error: Some(in_band(&status)),
                    topic: asked.topic,
                    partition: asked.partition,
                    ..Default::default()
                });
            }
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
