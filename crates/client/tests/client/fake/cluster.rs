//! Several fake brokers that share a state, as if it were copied between them at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tidelog_client::{Client, ClientConfig};
use tidelog_proto::v1;
use tidelog_proto::v1::cluster_server::Cluster as ClusterService;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Fake, State, error};

/// Brokers 1, 2 and so on, each on a runtime of its own, which dies with it.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: BTreeMap<u32, (Fake, Runtime)>,
    /// Sees what all of them share.
    any: Fake,
}

impl Cluster {
    /// So many brokers with topic `t`, of which partition 0 is led by broker 1, and so on in turns.
    pub(crate) async fn start(brokers: u32, partitions: u32) -> Self {
        let state = State {
            partitions: HashMap::from([("t".to_owned(), partitions)]),
            has_hints: true,
            leaders: (0..partitions)
                .map(|partition| (partition, (Some(partition % brokers + 1), 1)))
                .collect(),
            ..State::default()
        };
        let any = Fake {
            state: Arc::new(Mutex::new(state)),
            changes: watch::Sender::new(0),
            address: String::new(),
            node: 0,
        };
        let mut nodes = BTreeMap::new();
        for node in 1..=brokers {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let mut fake = any.clone();
            fake.node = node;
            let bound = runtime.spawn(TcpListener::bind("127.0.0.1:0"));
            let listener = bound.await.unwrap().unwrap();
            fake.address = listener.local_addr().unwrap().to_string();
            any.state().nodes.insert(node, fake.address.clone());
            runtime.spawn(fake.clone().serve(listener));
            nodes.insert(node, (fake, runtime));
        }
        Self { nodes, any }
    }

    /// What all brokers share.
    pub(crate) fn fake(&self) -> &Fake {
        &self.any
    }

    /// A client that was told of these brokers.
    pub(crate) fn client(&self, brokers: &[u32]) -> Client {
        let list: Vec<_> = brokers.iter().map(|node| self.address(*node)).collect();
        Client::lazy(ClientConfig::new(list.join(",").parse().unwrap())).unwrap()
    }

    pub(crate) fn address(&self, node: u32) -> String {
        self.any.state().nodes[&node].clone()
    }

    /// Another broker leads a partition from now on, or none.
    pub(crate) fn lead(&self, partition: u32, node: Option<u32>) {
        let mut state = self.any.state();
        let leader = state.leaders.get_mut(&partition).unwrap();
        *leader = (node, leader.1 + 1);
    }

    /// Ends a broker: its connections break, and nobody listens any more.
    pub(crate) async fn kill(&mut self, node: u32) {
        let (_, runtime) = self.nodes.remove(&node).unwrap();
        let ended = tokio::task::spawn_blocking(move || drop(runtime));
        ended.await.unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Within a runtime another one must not be waited for.
        for (_, (_, runtime)) in std::mem::take(&mut self.nodes) {
            runtime.shutdown_background();
        }
    }
}

impl Fake {
    /// The partitions of the topic, where they are led.
    pub(super) fn described(&self, partitions: u32) -> Vec<v1::PartitionDescription> {
        let state = self.state();
        let numbers = (0..partitions).filter(|_| !state.nodes.is_empty());
        numbers
            .map(|partition| {
                let (leader, leader_epoch) = state.leaders[&partition];
                let is_led = leader == Some(self.node);
                v1::PartitionDescription {
                    partition,
                    leader,
                    leader_epoch,
                    replicas: state.nodes.keys().copied().collect(),
                    is_elsewhere: !is_led,
                    high_watermark: if is_led {
                        state.end_offset(partition)
                    } else {
                        0
                    },
                    ..Default::default()
                }
            })
            .collect()
    }

    pub(super) fn addresses(&self) -> Vec<v1::BrokerAddress> {
        let state = self.state();
        let nodes = state.nodes.iter();
        nodes
            .map(|(&node_id, address)| v1::BrokerAddress {
                node_id,
                grpc_address: address.clone(),
            })
            .collect()
    }

    fn note(&self, change: String) {
        self.state().cluster_changes.push(change);
    }
}

#[tonic::async_trait]
impl ClusterService for Fake {
    async fn describe_cluster(
        &self,
        _: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        self.speak().await;
        Ok(Response::new(v1::DescribeClusterResponse {
            answered_by: self.node,
            ..Default::default()
        }))
    }

    async fn list_partitions(
        &self,
        request: Request<v1::ListPartitionsRequest>,
    ) -> Result<Response<v1::ListPartitionsResponse>, Status> {
        // One a page.
        let token = request.into_inner().page_token;
        let at: u32 = token.parse().unwrap_or(0);
        let state = self.state();
        let (leader, leader_epoch) = state.leaders[&at];
        let has_more = state.leaders.contains_key(&(at + 1));
        Ok(Response::new(v1::ListPartitionsResponse {
            partitions: vec![v1::PartitionPlace {
                topic: "t".to_owned(),
                partition: at,
                leader,
                leader_epoch,
                ..Default::default()
            }],
            next_page_token: if has_more {
                (at + 1).to_string()
            } else {
                String::new()
            },
        }))
    }

    async fn reassign_partition(
        &self,
        request: Request<v1::ReassignPartitionRequest>,
    ) -> Result<Response<v1::ReassignPartitionResponse>, Status> {
        let request = request.into_inner();
        if request.node_ids.is_empty() {
            let code = tonic::Code::FailedPrecondition;
            return Err(error(code, "REASSIGNMENT_REFUSED", "to nobody", None));
        }
        self.note(format!(
            "reassign {} {:?}",
            request.partition, request.node_ids
        ));
        Ok(Response::new(v1::ReassignPartitionResponse {}))
    }

    async fn cancel_reassignment(
        &self,
        request: Request<v1::CancelReassignmentRequest>,
    ) -> Result<Response<v1::CancelReassignmentResponse>, Status> {
        self.note(format!("cancel {}", request.into_inner().partition));
        Ok(Response::new(v1::CancelReassignmentResponse {}))
    }

    async fn set_leader(
        &self,
        request: Request<v1::SetLeaderRequest>,
    ) -> Result<Response<v1::SetLeaderResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("lead {} {}", request.partition, request.node_id));
        Ok(Response::new(v1::SetLeaderResponse {}))
    }

    async fn drain_broker(
        &self,
        request: Request<v1::DrainBrokerRequest>,
    ) -> Result<Response<v1::DrainBrokerResponse>, Status> {
        self.note(format!("drain {}", request.into_inner().node_id));
        Ok(Response::new(v1::DrainBrokerResponse {
            replicas: 7,
            ..Default::default()
        }))
    }

    async fn add_broker(
        &self,
        request: Request<v1::AddBrokerRequest>,
    ) -> Result<Response<v1::AddBrokerResponse>, Status> {
        self.note(format!("add {}", request.into_inner().node_id));
        Ok(Response::new(v1::AddBrokerResponse {}))
    }

    async fn remove_broker(
        &self,
        request: Request<v1::RemoveBrokerRequest>,
    ) -> Result<Response<v1::RemoveBrokerResponse>, Status> {
        self.note(format!("remove {}", request.into_inner().node_id));
        Ok(Response::new(v1::RemoveBrokerResponse {}))
    }

    async fn replace_broker(
        &self,
        request: Request<v1::ReplaceBrokerRequest>,
    ) -> Result<Response<v1::ReplaceBrokerResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.directory_id.len();
        self.note(format!("replace {} {bytes}", request.node_id));
        Ok(Response::new(v1::ReplaceBrokerResponse { replicas: 8 }))
    }

    async fn recover_cluster(
        &self,
        request: Request<v1::RecoverClusterRequest>,
    ) -> Result<Response<v1::RecoverClusterResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(v1::RecoverClusterResponse {
            lost: request.lost,
            done: request.accept_loss,
            ..v1::RecoverClusterResponse::default()
        }))
    }
}
