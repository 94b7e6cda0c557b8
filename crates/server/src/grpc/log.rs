//! Service `tidelog.v1.Log`: the calls with one answer; the others are in `produce.rs` and
//! `read/`.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tidelog_broker::{Acks, OffsetSpec};
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::log_server::Log;
use tidelog_proto::v1::{
    AppendRequest, AppendResponse, DeleteRecordsRequest, DeleteRecordsResponse, DeletedRecords,
    FetchRequest, FetchResponse, InitProducerRequest, InitProducerResponse, ListOffsetsPartition,
    ListOffsetsRequest, ListOffsetsResponse, ListedOffset, ProduceRequest, ReadRequest,
};
use tonic::{Request, Response, Status, Streaming};

use super::call::Meter;
use super::convert;
use super::sending::Outgoing;
use super::status::{Failure, RequestError, failure};
use super::task::TaskStream;
use super::{Shared, elsewhere, fetch, produce, read};
use crate::room::{Alone, Room};
use crate::transport::{Peer, held};

/// How many partitions one request may name.
pub(super) const PARTITIONS_MAX: usize = 10_000;

/// How many partitions of one request are looked up at the same time.
pub(super) const LOOKUPS_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct LogService {
    shared: Arc<Shared>,
}

impl LogService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn list_offset(&self, wanted: ListOffsetsPartition, at: OffsetSpec) -> ListedOffset {
        let ListOffsetsPartition {
            topic, partition, ..
        } = wanted;
        let broker = &self.shared.broker;
        let resolved = match broker.partition(&topic, partition) {
            Ok(handle) => handle
                .resolve(at)
                .await
                .map_err(|e| self.shared.refuse_within(&e)),
            Err(e) => Err(self.shared.refuse_within(&e)),
        };
        match resolved {
            Ok(resolved) => ListedOffset {
                topic,
                partition,
                offset: resolved.offset.get(),
                timestamp_ms: resolved.timestamp.map(|timestamp| timestamp.millis()),
                leader_epoch: resolved.leader_epoch.get(),
                error: None,
            },
            Err(error) => ListedOffset {
                topic,
                partition,
                error: Some(error),
                ..ListedOffset::default()
            },
        }
    }

    async fn delete_in_partition(
        &self,
        topic: &str,
        partition: u32,
        before: OffsetSpec,
    ) -> DeletedRecords {
        let deleted = match self.shared.broker.partition(topic, partition) {
            Ok(handle) => handle
                .delete_records(before)
                .await
                .map_err(|e| self.shared.refuse_within(&e)),
            Err(e) => Err(self.shared.refuse_within(&e)),
        };
        match deleted {
            Ok(log_start) => DeletedRecords {
                partition,
                log_start_offset: log_start.get(),
                error: None,
            },
            Err(error) => DeletedRecords {
                partition,
                log_start_offset: 0,
                error: Some(error),
            },
        }
    }
}

/// What each partition that a look-up names takes beside its bytes until it is answered.
const LOOKUP_OVERHEAD: usize = 128;
/// What an answer about one partition takes at most, names aside: an error with its details.
const PARTITION_ANSWER: usize = 512;

/// Room for what a call holds for so many partitions, and for its answer before anything of it is made.
async fn rooms(
    shared: &Shared,
    peer: &Peer,
    partitions: usize,
    names_len: usize,
) -> Result<(Option<Room>, Room), Status> {
    let asked = shared.asked(peer, partitions * LOOKUP_OVERHEAD + names_len)?;
    // A name is told in the answer, and in an error's message and details.
    let len = partitions * PARTITION_ANSWER + 4 * names_len;
    Ok((asked, peer.unsent_whole(len, Alone::Goes).await))
}

/// Refuses a list that is empty or too long.
pub(super) fn check_partitions(found: usize) -> Result<(), RequestError> {
    match found {
        0 => Err(RequestError::Missing {
            field: "partitions",
            what: "at least one partition must be named",
        }),
        _ if found > PARTITIONS_MAX => Err(RequestError::TooMany {
            field: "partitions",
            found,
            max: PARTITIONS_MAX,
        }),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl Log for LogService {
    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let shared = &self.shared;
        let peer = shared.peer(&request);
        let meter = request.extensions().get::<Meter>().cloned();
        let convert::Append {
            request,
            len,
            field,
        } = convert::append(request.into_inner(), meter.as_ref()).map_err(|e| shared.reject(e))?;
        let wants_answer = request.acks != Acks::None;
        let room = peer.in_flight(len).await;
        drop(meter);
        let pending = shared
            .broker
            .submit(request)
            .await
            .map_err(|e| failure(&e).in_field(field).status(shared.broker.metrics()))?;
        if !wants_answer {
            return Ok(Response::new(AppendResponse::default()));
        }
        let appended = produce::appended(shared, pending.await, field);
        drop(room);
        match appended {
            Ok(response) => Ok(peer.hold(response).await),
            Err(failure) => Err(failure.status(shared.broker.metrics())),
        }
    }

    type ProduceStream = TaskStream<produce::Unsent>;

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let peer = self.shared.peer(&request);
        let meter = request.extensions().get::<Meter>().cloned();
        let outgoing = request.extensions().get::<Outgoing>().cloned();
        let requests = request.into_inner();
        let shared = self.shared.clone();
        Ok(Response::new(TaskStream::spawn(
            outgoing,
            produce::ANSWERS_AHEAD,
            |answers| produce::run(shared, peer, meter, requests, answers),
        )))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        let peer = self.shared.peer(&request);
        fetch::fetch(&self.shared, &peer, request.into_inner()).await
    }

    type ReadStream = TaskStream<read::Unsent>;

    async fn read(
        &self,
        request: Request<Streaming<ReadRequest>>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let peer = self.shared.peer(&request);
        let meter = request.extensions().get::<Meter>().cloned();
        let outgoing = request.extensions().get::<Outgoing>().cloned();
        let requests = request.into_inner();
        let shared = self.shared.clone();
        Ok(Response::new(TaskStream::spawn(
            outgoing,
            read::MESSAGES_AHEAD,
            |answers| read::run(shared, peer, meter, requests, answers),
        )))
    }

    async fn list_offsets(
        &self,
        request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        let peer = self.shared.peer(&request);
        let wanted = request.into_inner().partitions;
        let shared = &self.shared;
        check_partitions(wanted.len()).map_err(|e| shared.reject(e))?;
        let mut places = Vec::with_capacity(wanted.len());
        for (i, partition) in wanted.iter().enumerate() {
            let at = convert::offset_spec(partition.at.as_ref(), "at").map_err(|e| {
                let field = format!("partitions[{i}].at");
                Failure::from(e)
                    .in_field(field)
                    .status(shared.broker.metrics())
            })?;
            places.push(at);
        }
        let names_len = wanted.iter().map(|partition| partition.topic.len()).sum();
        let (_asked, room) = rooms(shared, &peer, wanted.len(), names_len).await?;
        let partitions = stream::iter(wanted.into_iter().zip(places))
            .map(|(partition, at)| self.list_offset(partition, at))
            .buffered(LOOKUPS_MAX)
            .collect()
            .await;
        Ok(held(ListOffsetsResponse { partitions }, room))
    }

    async fn init_producer(
        &self,
        request: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let shared = &self.shared;
        let give = || async {
            Ok(InitProducerResponse {
                producer_id: shared.broker.init_producer().await?,
                producer_epoch: 0,
            })
        };
        let passed_on =
            |channel, request| async move { LogClient::new(channel).init_producer(request).await };
        let given = shared.decided(is_passed_on, None, &request, give, passed_on);
        given.await.map(Response::new)
    }

    async fn delete_records(
        &self,
        request: Request<DeleteRecordsRequest>,
    ) -> Result<Response<DeleteRecordsResponse>, Status> {
        let peer = self.shared.peer(&request);
        let request = request.into_inner();
        let shared = &self.shared;
        check_partitions(request.partitions.len()).map_err(|e| shared.reject(e))?;
        // All is checked before anything is dropped for good.
        let mut wanted = Vec::with_capacity(request.partitions.len());
        for (i, partition) in request.partitions.iter().enumerate() {
            let before =
                convert::offset_spec(partition.before.as_ref(), "before").map_err(|e| {
                    let field = format!("partitions[{i}].before");
                    Failure::from(e)
                        .in_field(field)
                        .status(shared.broker.metrics())
                })?;
            wanted.push((partition.partition, before));
        }
        let known = shared.broker.partitions_of(&request.topic);
        known.map_err(|e| shared.refuse(&e))?;
        let names_len = wanted.len() * request.topic.len();
        let (_asked, room) = rooms(shared, &peer, wanted.len(), names_len).await?;
        let partitions = stream::iter(wanted)
            .map(|(partition, before)| self.delete_in_partition(&request.topic, partition, before))
            .buffered(LOOKUPS_MAX)
            .collect()
            .await;
        Ok(held(DeleteRecordsResponse { partitions }, room))
    }
}
