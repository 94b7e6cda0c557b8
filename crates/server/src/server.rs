//! The listeners of one broker, from their start to a graceful stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidelog_broker::{Broker, StopError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::Config;
use crate::accepting::Accepting;
use crate::cluster::{Links, Node, Settled, Waits};
use crate::connections::Connections;
use crate::founding::Founding;
use crate::grpc::{self, Elsewhere, Shared};
use crate::http::{self, Watched};
use crate::listen::Listeners;
use crate::metrics::ListenerMetrics;
use crate::opened::OpenedBatches;
use crate::room::Total;
use crate::transport::Admission;

/// How many bytes of one stream a client may have under way that were not read: with the protocol's
/// own 64 KiB a client that is 60 ms away gets 1 MB/s, with this 4.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for a connection.
///
/// Much more than a stream's, since the HTTP/2 library ends a connection on which many small frames
/// wait unread: each counts what it lacks to 256 bytes, and half of this is what they may count
/// together. A stream that is held back, full of frames of 16 bytes, must stay below that, and so must
/// five with the smallest batches.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// The longest HTTP/2 frame a client may send: a batch in the usual frames of 16 KiB is read in four
/// times as many pieces. A connection buffers one frame, before any budget counts it.
const FRAME_MAX: u32 = 64 * 1024;
/// The headers of one call, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;

/// How long connections that were cut get to end.
const CUT: Duration = Duration::from_secs(1);

/// A broker's listeners, serving.
#[derive(Debug)]
pub struct Server {
    broker: Broker,
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
    /// Set first in a stop: calls that wait or go on and on end, nothing new is accepted.
    stopping: CancellationToken,
    /// Set last: HTTP ends.
    end: CancellationToken,
    health: HealthReporter,
    connections: Connections,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    http: JoinHandle<()>,
    /// Where there are others.
    node: Option<Node>,
}

/// Why a stop was not clean.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Clients did not come to an end in time.
    #[error("connections were still open after {deadline:?} and were cut")]
    Deadline {
        /// The time that was given.
        deadline: Duration,
    },
    /// The broker could not close its logs; the next start recovers.
    #[error(transparent)]
    Broker(#[from] StopError),
}

/// HTTP, and what clients are told: what is up while the broker is opened.
#[derive(Debug)]
pub(crate) struct Waiting {
    config: Config,
    founding: Founding,
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
    watched: Watched,
    stopping: CancellationToken,
    end: CancellationToken,
    http: JoinHandle<()>,
}

impl Waiting {
    /// Starts HTTP, which says that the broker is not ready, and lets clients wait.
    pub(crate) fn start(config: &Config, listeners: Listeners) -> Self {
        let (stopping, end) = (CancellationToken::new(), CancellationToken::new());
        let watched = Watched::new(stopping.clone());
        let (grpc_addr, http_addr) = (listeners.grpc_addr(), listeners.http_addr());
        let http = tokio::spawn(http::serve(listeners.http, watched.clone(), end.clone()));
        let founding = Founding::start(listeners.grpc, config.node_id, watched.waits());
        Self {
            config: config.clone(),
            founding,
            grpc_addr,
            http_addr,
            watched,
            stopping,
            end,
            http,
        }
    }

    /// Whom the broker waits for before it can be opened, as HTTP tells it.
    pub(crate) fn waits(&self) -> Waits {
        self.watched.waits()
    }

    /// Starts everything else for a broker that is open.
    pub(crate) async fn serve(self, broker: Broker, node: Option<Node>) -> Server {
        let limits = &self.config.limits;
        let metrics = ListenerMetrics::new(broker.metrics().registry());
        let unsent = Total::new(limits.unsent_bytes_max, metrics.unsent_bytes.clone());
        let asked = Total::new(limits.unsent_bytes_max / 2, metrics.asked_bytes.clone());
        let shared = Arc::new(Shared {
            broker: broker.clone(),
            limits: limits.clone(),
            stopping: self.stopping.clone(),
            metrics: metrics.clone(),
            unsent: unsent.clone(),
            asked: asked.clone(),
            opened: OpenedBatches::new(),
            elsewhere: Elsewhere::default(),
            links: node.as_ref().map(|node| node.links().clone()),
        });
        let (services, health) = grpc::services(shared).await;
        let admission = Admission::new(limits, metrics, unsent, asked);
        let connections = admission.connections();
        let (listener, waiting) = self.founding.end().await;
        let incoming = Accepting::new(listener, admission).after(waiting);
        let transport = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_concurrent_streams(limits.streams_max)
            .http2_max_header_list_size(HEADERS_MAX)
            .http2_keepalive_interval(Some(limits.keepalive_interval))
            .http2_keepalive_timeout(Some(limits.keepalive_timeout));
        let stopped = self.stopping.clone().cancelled_owned();
        let grpc =
            tokio::spawn(transport.serve_with_incoming_shutdown(services, incoming, stopped));
        self.watched.opened(broker.clone());
        Server {
            broker,
            grpc_addr: self.grpc_addr,
            http_addr: self.http_addr,
            stopping: self.stopping,
            end: self.end,
            health,
            connections,
            grpc,
            http: self.http,
            node,
        }
    }
}

impl Server {
    /// Serves `broker` on bound ports. Returns when it does; goes on in the background.
    ///
    /// A broker is served once: its metrics hold those of its listeners.
    pub async fn start(config: &Config, listeners: Listeners, broker: Broker) -> Self {
        Waiting::start(config, listeners).serve(broker, None).await
    }

    /// Where gRPC listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where HTTP listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where others are told that the cluster port is, if there is one.
    pub fn cluster_addr(&self) -> Option<String> {
        let node = self.node.as_ref();
        node.map(|node| node.addresses().cluster.clone())
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The links to other brokers, and the cluster to which the broker belongs; `None` where it is alone.
    pub fn cluster(&self) -> Option<(&Links, &Settled)> {
        let node = self.node.as_ref()?;
        Some((node.links(), node.settled()))
    }

    /// Stops gracefully: accepts no more connections and calls, ends readers with `GoingAway`,
    /// answers what was submitted, closes the broker's logs. What is not done after `deadline` is
    /// cut; the broker is stopped in any case.
    ///
    /// # Errors
    /// [`ServerError`]: nothing acknowledged is lost, but it was not a clean stop.
    pub async fn stop(self, deadline: Duration) -> Result<(), ServerError> {
        grpc::not_serving(&self.health).await;
        self.broker.hand_over_leaderships().await;
        self.stopping.cancel();
        let mut grpc = self.grpc;
        let drained = tokio::time::timeout(deadline, &mut grpc).await.is_ok();
        if !drained {
            self.connections.cut();
            // The tasks of the connections end as soon as they run.
            if tokio::time::timeout(CUT, &mut grpc).await.is_err() {
                grpc.abort();
            }
        }
        let stopped = self.broker.stop().await;
        // Until then the others were needed: appends that were under way wait for them.
        if let Some(node) = self.node {
            node.stop().await;
        }
        self.end.cancel();
        // HTTP bounds its own end; a panic in it is no fault of the stop.
        drop(self.http.await);
        stopped?;
        if drained {
            Ok(())
        } else {
            Err(ServerError::Deadline { deadline })
        }
    }
}
