//! The cluster port: gRPC for other brokers, on a listener of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tidelog_peer::{PeerServer, PeerService, QuestionsServer};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::accepting::{Accepting, Admit, Held};

/// Connections at a time; one more is closed at once. A broker has one link, and asks now and then.
const CONNECTIONS_MAX: usize = 64;
/// Calls at a time on one connection.
const STREAMS_MAX: u32 = 16;
/// What may be on its way without having been read, of one call and of a connection.
const WINDOW: u32 = 16 << 20;
/// The longest HTTP/2 frame. A connection buffers one.
const FRAME_MAX: u32 = 256 << 10;
/// The headers of one call, in bytes.
const HEADERS_MAX: u32 = 16 << 10;
/// How long a new connection has to begin HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After how long of silence a connection is asked for a sign of life, and how long it has to give one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// How long a question may take to come and be answered, and a link until it is greeted.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);
/// That connections are refused is said so often at most.
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// How long connections that are cut get to end.
const CUT: Duration = Duration::from_secs(1);

/// The port, serving. Dropping it cuts all connections.
#[derive(Debug)]
pub(crate) struct Port {
    end: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Port {
    pub(crate) fn start(
        listener: TcpListener,
        (peer, questions): (PeerServer<PeerService>, QuestionsServer<PeerService>),
    ) -> Self {
        let end = CancellationToken::new();
        let admission = Admission {
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            end: end.clone(),
            said_at: None,
        };
        let incoming = Accepting::new(listener, admission);
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADERS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .timeout(CALL_TIMEOUT)
            .add_service(peer)
            .add_service(questions);
        let ended = end.clone().cancelled_owned();
        let task = tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended));
        Self { end, task }
    }

    /// Accepts no more, and cuts what there is.
    pub(crate) async fn stop(mut self) {
        self.end.cancel();
        if tokio::time::timeout(CUT, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// Which connections of brokers are admitted.
#[derive(Debug)]
struct Admission {
    places: Arc<Semaphore>,
    end: CancellationToken,
    /// When it was said last that there are too many.
    said_at: Option<Instant>,
}

impl Admit for Admission {
    type Held = Admitted;

    fn admit(&mut self) -> Option<Admitted> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            if self.said_at.is_none_or(|at| at.elapsed() >= SAY_INTERVAL) {
                self.said_at = Some(Instant::now());
                tracing::warn!(
                    "the cluster port has {CONNECTIONS_MAX} connections and takes no more"
                );
            }
            return None;
        };
        Some(Admitted {
            cut: Box::pin(self.end.clone().cancelled_owned()),
            _place: place,
        })
    }

    fn handshake_timeout(&self) -> Duration {
        HANDSHAKE_TIMEOUT
    }
}

/// What a connection of a broker holds.
#[derive(Debug)]
struct Admitted {
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Admitted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl Held for Admitted {
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.cut.as_mut().poll(cx)
    }
}
