//! Service `tidelog.v1.Cluster`.

use std::sync::Arc;

use bytes::Bytes;
use tidelog_broker::{self as broker, BrokerState, PartitionPlace, ProblemKind, TopicError};
use tidelog_controller::{
    Change, PartitionKey, Phase, PlannedMove, RecoveredPartition, Recovery, Resigning, node_of,
};
use tidelog_proto::v1;
use tidelog_proto::v1::cluster_client::ClusterClient;
use tidelog_proto::v1::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::status::RequestError;
use super::{Shared, elsewhere};
use crate::cluster::Survey;
use crate::room::Alone;
use crate::transport::held;

/// How many partitions a page of the list has at most.
const PAGE_SIZE_MAX: u32 = 1000;
/// Whatever is not well has other reasons.
const NOTHING_LOST: &str = "neither the metadata nor a partition has lost its majority: there is nothing to go on \
     without. A broker that has lost its disk is replaced, with: tidelog cluster replace; one that is not to \
     come back is drained and removed";
/// Partitions that are told of at most when a cluster is recovered, or a broker would be drained.
const TOLD_MAX: usize = 1000;
/// What a broker, a partition or a problem takes in an answer, about.
const ENTRY: usize = 512;

#[derive(Debug)]
pub(crate) struct ClusterService {
    shared: Arc<Shared>,
}

impl ClusterService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Asks the broker on a thread that may be busy: it looks at every partition.
    async fn looked<T: Send + 'static>(
        &self,
        look: impl FnOnce(&broker::Broker) -> T + Send + 'static,
    ) -> T {
        let broker = self.shared.broker.clone();
        tokio::task::spawn_blocking(move || look(&broker))
            .await
            .expect("it does not panic, and is not cancelled")
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn describe_cluster(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let peer = self.shared.peer(&request);
        let described = self.looked(broker::Broker::describe_cluster).await;
        let len = (described.brokers.len() + described.problems.len() + 1) * ENTRY;
        let room = peer.unsent_whole(len, Alone::Goes).await;
        Ok(held(description(described), room))
    }

    async fn list_partitions(
        &self,
        request: Request<v1::ListPartitionsRequest>,
    ) -> Result<Response<v1::ListPartitionsResponse>, Status> {
        let peer = self.shared.peer(&request);
        let request = request.into_inner();
        let page_size = match request.page_size {
            0 => PAGE_SIZE_MAX,
            size => size.min(PAGE_SIZE_MAX),
        } as usize;
        // A token is the last partition of the page before: its number, and its topic.
        let after = match request.page_token.split_once(' ') {
            None if request.page_token.is_empty() => None,
            Some((number, topic)) if number.parse::<u32>().is_ok() => {
                Some((topic.to_owned(), number.parse::<u32>().unwrap_or(u32::MAX)))
            }
            _ => {
                return Err(self.shared.reject(RequestError::Value {
                    field: "page_token",
                    value: format!(
                        "{:?}",
                        request.page_token.chars().take(32).collect::<String>()
                    ),
                    allowed: "the next_page_token of the page before, or nothing",
                }));
            }
        };
        if !request.topic.is_empty() {
            let known = self.shared.broker.partitions_of(&request.topic);
            known.map_err(|e| self.shared.refuse(&e))?;
        }
        let room = peer.unsent_whole(page_size * ENTRY, Alone::Goes).await;
        let topic = Some(request.topic).filter(|topic| !topic.is_empty());
        let mut places = self
            .looked(move |broker| broker.partition_places(topic.as_deref()))
            .await
            .into_iter()
            .filter(|place| match &after {
                None => true,
                Some((topic, number)) => {
                    (place.topic.as_str(), place.partition) > (topic.as_str(), *number)
                }
            });
        let partitions: Vec<_> = places.by_ref().take(page_size).map(place).collect();
        let next_page_token = match (places.next(), partitions.last()) {
            (Some(_), Some(last)) => format!("{} {}", last.partition, last.topic),
            _ => String::new(),
        };
        let response = v1::ListPartitionsResponse {
            partitions,
            next_page_token,
        };
        Ok(held(response, room))
    }

    async fn reassign_partition(
        &self,
        request: Request<v1::ReassignPartitionRequest>,
    ) -> Result<Response<v1::ReassignPartitionResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let reassign = || async {
            let nodes = request.node_ids.clone();
            broker
                .reassign(&request.topic, request.partition, nodes)
                .await?;
            Ok(v1::ReassignPartitionResponse {})
        };
        let passed_on = |channel, request| async move {
            ClusterClient::new(channel)
                .reassign_partition(request)
                .await
        };
        let field = Some("node_ids");
        let done = self
            .shared
            .decided(is_passed_on, field, &request, reassign, passed_on);
        done.await.map(Response::new)
    }

    async fn cancel_reassignment(
        &self,
        request: Request<v1::CancelReassignmentRequest>,
    ) -> Result<Response<v1::CancelReassignmentResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let cancel = || async {
            broker
                .cancel_reassignment(&request.topic, request.partition)
                .await?;
            Ok(v1::CancelReassignmentResponse {})
        };
        let passed_on = |channel, request| async move {
            ClusterClient::new(channel)
                .cancel_reassignment(request)
                .await
        };
        let done = self
            .shared
            .decided(is_passed_on, None, &request, cancel, passed_on);
        done.await.map(Response::new)
    }

    async fn set_leader(
        &self,
        request: Request<v1::SetLeaderRequest>,
    ) -> Result<Response<v1::SetLeaderResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let set = || async {
            broker
                .set_leader(&request.topic, request.partition, request.node_id)
                .await?;
            Ok(v1::SetLeaderResponse {})
        };
        let passed_on =
            |channel, request| async move { ClusterClient::new(channel).set_leader(request).await };
        let done = self
            .shared
            .decided(is_passed_on, None, &request, set, passed_on);
        done.await.map(Response::new)
    }

    async fn drain_broker(
        &self,
        request: Request<v1::DrainBrokerRequest>,
    ) -> Result<Response<v1::DrainBrokerResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        if request.validate_only {
            let node = request.node_id;
            let planned = self.looked(move |broker| broker.planned_drain(node)).await;
            let planned = planned.map_err(|e| self.shared.refuse(&e))?;
            return Ok(Response::new(planned_drain(planned)));
        }
        let drain = || async {
            let replicas = count(broker.drain(request.node_id).await?);
            Ok(v1::DrainBrokerResponse {
                replicas,
                ..v1::DrainBrokerResponse::default()
            })
        };
        let passed_on = |channel, request| async move {
            ClusterClient::new(channel).drain_broker(request).await
        };
        let done = self
            .shared
            .decided(is_passed_on, None, &request, drain, passed_on);
        done.await.map(Response::new)
    }

    async fn add_broker(
        &self,
        request: Request<v1::AddBrokerRequest>,
    ) -> Result<Response<v1::AddBrokerResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let add = || async {
            broker.undrain(request.node_id).await?;
            Ok(v1::AddBrokerResponse {})
        };
        let passed_on =
            |channel, request| async move { ClusterClient::new(channel).add_broker(request).await };
        let done = self
            .shared
            .decided(is_passed_on, None, &request, add, passed_on);
        done.await.map(Response::new)
    }

    async fn remove_broker(
        &self,
        request: Request<v1::RemoveBrokerRequest>,
    ) -> Result<Response<v1::RemoveBrokerResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let remove = || async {
            broker.remove_broker(request.node_id).await?;
            Ok(v1::RemoveBrokerResponse {})
        };
        let passed_on = |channel, request| async move {
            ClusterClient::new(channel).remove_broker(request).await
        };
        let done = self
            .shared
            .decided(is_passed_on, None, &request, remove, passed_on);
        done.await.map(Response::new)
    }

    async fn replace_broker(
        &self,
        request: Request<v1::ReplaceBrokerRequest>,
    ) -> Result<Response<v1::ReplaceBrokerResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let directory: Result<[u8; 16], _> = request.directory_id.as_ref().try_into();
        let directory = directory.map_err(|_| {
            self.shared.reject(RequestError::Value {
                field: "directory_id",
                value: format!("{} bytes", request.directory_id.len()),
                allowed: "the 16 bytes that the broker with the new disk names",
            })
        })?;
        let broker = &self.shared.broker;
        let replace = || async {
            let replicas = count(broker.replace_broker(request.node_id, directory).await?);
            Ok(v1::ReplaceBrokerResponse { replicas })
        };
        let passed_on = |channel, request| async move {
            ClusterClient::new(channel).replace_broker(request).await
        };
        let done = self
            .shared
            .decided(is_passed_on, None, &request, replace, passed_on);
        done.await.map(Response::new)
    }

    async fn recover_cluster(
        &self,
        request: Request<v1::RecoverClusterRequest>,
    ) -> Result<Response<v1::RecoverClusterResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let refused = |why: String| self.shared.refuse(&TopicError::Recovery(why));
        let alone = "this broker is alone: there are no others to go on without";
        let links = self.shared.links.as_ref();
        let links = links.ok_or_else(|| refused(alone.to_owned()))?;
        let is_named = request.exactly || !request.lost.is_empty();
        let named = is_named.then_some(&request.lost[..]);
        let survey = Survey::make(broker, links, named).await;
        let survey = survey.map_err(refused)?;
        let keeper = survey.keeper().map_err(refused)?;
        let plan = broker.plan_recovery(&survey.lost, &survey.positions);
        let told = told(broker, &survey, keeper, &plan);
        let changes = told.partition_count + told.stuck_count;
        if keeper.is_none() && changes == 0 && !survey.is_half_done() {
            return Err(refused(NOTHING_LOST.to_owned()));
        }
        if !request.accept_loss {
            return Ok(Response::new(told));
        }
        let recovered = survey.recover_metadata(broker).await;
        recovered.map_err(refused)?;
        // Those that are lost are named from now on, so that nobody else is given up on the way.
        let named = v1::RecoverClusterRequest {
            lost: survey.lost.iter().copied().collect(),
            exactly: true,
            ..request
        };
        let recover = || async {
            let (lost, positions) = (survey.lost.clone(), survey.positions.clone());
            let done = broker.recover(lost, positions).await?;
            // What has gone on may know of more than what this broker knew when it told.
            Ok(v1::RecoverClusterResponse {
                partition_count: count(done.partitions.len()),
                stuck_count: count(done.stuck.len()),
                done: true,
                ..told.clone()
            })
        };
        let passed_on = |channel, request| async move {
            ClusterClient::new(channel).recover_cluster(request).await
        };
        let done = self
            .shared
            .decided(is_passed_on, None, &named, recover, passed_on);
        done.await.map(Response::new)
    }
}

fn planned_drain(planned: Vec<(String, PlannedMove)>) -> v1::DrainBrokerResponse {
    let stuck = planned.iter().filter(|(_, one)| one.target.is_none());
    let (replicas, stuck) = (count(planned.len()), count(stuck.count()));
    let moves = planned.into_iter().take(TOLD_MAX);
    let moves = moves.map(|(topic, planned)| v1::PlannedMove {
        topic,
        partition: planned.key.partition,
        replicas: planned.nodes,
        target: planned.target.unwrap_or_default(),
    });
    v1::DrainBrokerResponse {
        replicas,
        moves: moves.collect(),
        stuck,
    }
}

/// What becomes of one partition, as it is told.
fn recovered(
    broker: &broker::Broker,
    survey: &Survey,
    key: PartitionKey,
    going_on: Option<&RecoveredPartition>,
) -> v1::RecoveredPartition {
    let kept = going_on.and_then(|one| broker::position_of(one, &survey.positions));
    let others = going_on.map_or(Vec::new(), |one| one.others.clone());
    let placed = broker.placed_at(key).into_iter();
    v1::RecoveredPartition {
        topic: broker.topic_of(key).unwrap_or_default(),
        partition: key.partition,
        keeper: kept.map(|one| node_of(one.replica)),
        end_offset: kept.map_or(0, |one| one.end.get()),
        high_watermark: kept.map_or(0, |one| one.committed.get()),
        lost: placed.filter(|node| survey.lost.contains(node)).collect(),
        others: others.into_iter().map(node_of).collect(),
    }
}

/// What is lost, as it is told.
fn told(
    broker: &broker::Broker,
    survey: &Survey,
    keeper: Option<(u32, u32)>,
    plan: &Recovery,
) -> v1::RecoverClusterResponse {
    let partitions = plan.partitions.iter().take(TOLD_MAX);
    let stuck = plan.stuck.iter().take(TOLD_MAX);
    v1::RecoverClusterResponse {
        lost: survey.lost.iter().copied().collect(),
        metadata_keeper: keeper.map(|(node, _)| node),
        partitions: partitions
            .map(|one| recovered(broker, survey, one.key, Some(one)))
            .collect(),
        partition_count: count(plan.partitions.len()),
        stuck: stuck
            .map(|key| recovered(broker, survey, *key, None))
            .collect(),
        stuck_count: count(plan.stuck.len()),
        done: false,
    }
}

fn description(described: broker::ClusterDescription) -> v1::DescribeClusterResponse {
    v1::DescribeClusterResponse {
        cluster_id: Bytes::copy_from_slice(&described.cluster_id),
        answered_by: described.answered_by,
        metadata_leader: described.metadata_leader,
        metadata_voters: described.metadata_voters,
        feature_level: described.feature_level,
        brokers: described.brokers.into_iter().map(one_broker).collect(),
        problems: described.problems.into_iter().map(problem).collect(),
        partitions: count(described.partitions),
        problem_count: count(described.problem_count),
        refused: described.refused.unwrap_or_default(),
    }
}

fn one_broker(described: broker::BrokerDescription) -> v1::BrokerDescription {
    let state = match described.state {
        BrokerState::Alive => v1::BrokerState::Alive,
        BrokerState::Silent => v1::BrokerState::Silent,
        BrokerState::Fenced => v1::BrokerState::Fenced,
    };
    let resigning = match described.resigning {
        None => v1::ResigningCause::Unspecified,
        Some(Resigning::Stopping) => v1::ResigningCause::Stopping,
        Some(Resigning::NoSpace) => v1::ResigningCause::NoSpace,
        Some(Resigning::DiskHangs) => v1::ResigningCause::DiskHangs,
        Some(Resigning::Other) => v1::ResigningCause::Other,
    };
    v1::BrokerDescription {
        node_id: described.known.node_id,
        grpc_address: described.known.grpc_address,
        http_address: described.http_address,
        cluster_address: described.known.cluster_address,
        rack: described.rack.unwrap_or_default(),
        version: described.version,
        state: state.into(),
        draining: described.is_draining,
        replicas: count(described.replicas),
        leaders: count(described.leaders),
        directory_id: Bytes::copy_from_slice(&described.known.directory_id),
        silent_ms: described.silent_ms.unwrap_or(u64::MAX),
        resigning: resigning.into(),
    }
}

fn problem(problem: broker::PartitionProblem) -> v1::PartitionProblem {
    let kind = match problem.kind {
        ProblemKind::Leaderless => v1::ProblemKind::Leaderless,
        ProblemKind::UnderReplicated => v1::ProblemKind::UnderReplicated,
        ProblemKind::Faulted => v1::ProblemKind::Faulted,
    };
    v1::PartitionProblem {
        topic: problem.topic,
        partition: problem.partition,
        kind: kind.into(),
        cause: problem.cause,
    }
}

fn place(place: PartitionPlace) -> v1::PartitionPlace {
    let state = |change: &Change| match (change.is_cancelling, change.phase) {
        (true, _) => v1::ReassignmentState::Cancelling,
        (false, Phase::Adding) => v1::ReassignmentState::Adding,
        (false, Phase::Joint) => v1::ReassignmentState::Joint,
        (false, Phase::Leaving) => v1::ReassignmentState::Leaving,
    };
    let change = place.change.as_ref();
    v1::PartitionPlace {
        topic: place.topic,
        partition: place.partition,
        leader: place.leader,
        leader_epoch: place.leader_epoch,
        replicas: place.replicas,
        in_sync: place.in_sync,
        target: change.map_or(Vec::new(), |change| {
            change.target.iter().copied().map(node_of).collect()
        }),
        reassignment: change.map_or(v1::ReassignmentState::None, state).into(),
        lag: place.lag.into_iter().collect(),
    }
}
