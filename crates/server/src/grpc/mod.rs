//! gRPC: services `tidelog.v1.Topics`, `tidelog.v1.Log`, `tidelog.v1.Groups` and `tidelog.v1.Cluster`, health and reflection.
//!
//! A call comes in through `call.rs` (budget for its bytes, deadline), is translated by
//! `convert.rs` into a call of the [`Broker`], and the answer back. The streaming calls are
//! `produce.rs` and `read/`; what another broker decides is passed on to it by `elsewhere.rs`; `records.rs` decodes batches for those that want records. Every error
//! leaves through `status.rs`; what answers hold until they are sent goes through `sending.rs`.

mod call;
mod cluster;
mod convert;
mod elsewhere;
mod fetch;
mod groups;
mod log;
mod produce;
mod read;
mod records;
mod sending;
mod status;
mod task;
mod topics;

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request as HttpRequest, Response as HttpResponse};
use tidelog_broker::{Broker, Facts};
use tidelog_proto::FILE_DESCRIPTOR_SET;
use tidelog_proto::v1::cluster_server::ClusterServer;
use tidelog_proto::v1::groups_server::GroupsServer;
use tidelog_proto::v1::log_server::LogServer;
use tidelog_proto::v1::topics_server::TopicsServer;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Status};
use tonic_health::pb::FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTOR_SET;
use tonic_health::server::HealthReporter;

pub(crate) use self::call::HeldBytes;
use self::call::{Around, Meter};
pub(crate) use self::elsewhere::Elsewhere;
pub(crate) use self::status::RequestError;
use self::status::{Failure, failure, sort_foreign};
use crate::cluster::Links;
use crate::config::Limits;
use crate::metrics::ListenerMetrics;
use crate::opened::OpenedBatches;
use crate::room::{Room, Total};
use crate::transport::Peer;

/// Below this what a call holds for the partitions it names is not counted, in bytes.
const ASKED_SMALL: usize = 32 * 1024;

/// What all services share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) broker: Broker,
    pub(crate) limits: Limits,
    /// Set when the server begins to stop: calls that wait or go on and on end.
    pub(crate) stopping: CancellationToken,
    pub(crate) metrics: ListenerMetrics,
    /// Bytes of answers that no client has taken yet.
    pub(crate) unsent: Arc<Total>,
    /// What reads and look-ups of many partitions hold.
    pub(crate) asked: Arc<Total>,
    /// What decompressed batches take.
    pub(crate) opened: OpenedBatches,
    /// Connections to the brokers that decide.
    pub(crate) elsewhere: Elsewhere,
    /// The way to the other brokers, where there are others.
    pub(crate) links: Option<Links>,
}

impl Shared {
    /// The status of an error of the broker.
    fn refuse(&self, error: &impl Facts) -> Status {
        failure(error).status(self.broker.metrics())
    }

    /// The status of an error of the request.
    fn reject(&self, error: RequestError) -> Status {
        Failure::from(error).status(self.broker.metrics())
    }

    /// The same inside of an answer.
    fn refuse_within(&self, error: &impl Facts) -> tonic_types::Status {
        failure(error).message(self.broker.metrics())
    }

    /// The status that a stream of requests broke with, as it is or with a reason.
    fn broken(&self, status: Status, path: &str) -> Status {
        match sort_foreign(&status, path) {
            Some(failure) => failure.status(self.broker.metrics()),
            None => status,
        }
    }

    /// What the calls of the connection share.
    fn peer<T>(&self, request: &Request<T>) -> Peer {
        match request.extensions().get::<Peer>() {
            Some(peer) => peer.clone(),
            // Only a call that did not come through our transport.
            None => Peer::new(&self.limits, self.unsent.clone(), self.asked.clone(), None),
        }
    }

    /// Counts what a call holds for the partitions it names, until what is returned is dropped.
    /// It may last as long as the client likes, so it is not counted where requests are that arrive:
    /// readers must not hold up those who append.
    fn asked(&self, peer: &Peer, len: usize) -> Result<Option<Room>, Status> {
        if len <= ASKED_SMALL {
            return Ok(None);
        }
        let limit = self.limits.connection_unsent_bytes_max;
        let room = peer.asked(len);
        room.map(Some)
            .ok_or_else(|| self.reject(RequestError::Asked { limit }))
    }
}

/// That a message of a stream was taken is told to the meter that `call.rs` put there.
fn message_is_taken(meter: Option<&Meter>) {
    if let Some(meter) = meter {
        meter.message_is_taken();
    }
}

/// All services, with what surrounds every call.
pub(crate) async fn services(
    shared: Arc<Shared>,
) -> (
    impl tower::Service<
        HttpRequest<Body>,
        Response = HttpResponse<Body>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static,
    HealthReporter,
) {
    let request_max = shared.limits.request_bytes_max;
    // What the broker answers is bounded where it is made.
    let log = LogServer::new(log::LogService::new(shared.clone()))
        .max_decoding_message_size(request_max)
        .max_encoding_message_size(usize::MAX);
    let topics = TopicsServer::new(topics::TopicsService::new(shared.clone()))
        .max_decoding_message_size(request_max)
        .max_encoding_message_size(usize::MAX);
    let cluster = ClusterServer::new(cluster::ClusterService::new(shared.clone()))
        .max_decoding_message_size(request_max)
        .max_encoding_message_size(usize::MAX);
    let groups = GroupsServer::new(groups::GroupsService::new(shared.clone()))
        .max_decoding_message_size(request_max)
        .max_encoding_message_size(usize::MAX);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<LogServer<log::LogService>>().await;
    health
        .set_serving::<TopicsServer<topics::TopicsService>>()
        .await;
    health
        .set_serving::<ClusterServer<cluster::ClusterService>>()
        .await;
    health
        .set_serving::<GroupsServer<groups::GroupsService>>()
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(HEALTH_DESCRIPTOR_SET)
    };
    let reflection_v1 = reflection()
        .build_v1()
        .expect("our own descriptors are whole");
    let reflection_v1alpha = reflection()
        .build_v1alpha()
        .expect("our own descriptors are whole");

    let around = Around::new(
        shared.broker.clone(),
        shared.metrics.clone(),
        &shared.limits,
    );
    let routes = Routes::new(log)
        .add_service(topics)
        .add_service(cluster)
        .add_service(groups)
        .add_service(health_service)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .prepare();
    (around.around(routes), health)
}

/// Tells everyone who asks for health that the broker stops.
pub(crate) async fn not_serving(health: &HealthReporter) {
    health.set_not_serving::<LogServer<log::LogService>>().await;
    health
        .set_not_serving::<TopicsServer<topics::TopicsService>>()
        .await;
    health
        .set_not_serving::<ClusterServer<cluster::ClusterService>>()
        .await;
    health
        .set_not_serving::<GroupsServer<groups::GroupsService>>()
        .await;
    health
        .set_service_status("", tonic_health::ServingStatus::NotServing)
        .await;
}
