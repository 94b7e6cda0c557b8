//! The cluster port: links of other brokers, and questions by gRPC, on a listener of its own.
//!
//! Nobody is known when a connection begins, so that those which have not said who they are hold few places,
//! and not for long: where all are taken, whoever has had one longest gives it up. A link that was greeted
//! holds none any more; of these there is one for each broker of the cluster.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use tidelog_peer::{PeerService, QuestionsServer, begins_link};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::server::Connected;

use super::lock;
use crate::accepting::{Accepting, Admit, Connection, Held};
use crate::grpc::RequestError;

/// Connections of those who are not greeted, at a time. A broker asks now and then, over one of its own.
const PLACES: usize = 64;
/// Calls at a time on one connection.
const STREAMS_MAX: u32 = 4;
/// What may be on its way without having been read, of one call and of a connection.
const WINDOW: u32 = 512 << 10;
/// The headers of one call, in bytes.
const HEADERS_MAX: u32 = 16 << 10;
/// How long a new connection has to say what it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After how long of silence a connection is asked for a sign of life, and how long it has to give one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// How long a question may take to come and be answered.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);
/// That places are taken away is said so often at most.
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// How long connections that are cut get to end.
const CUT: Duration = Duration::from_secs(1);

/// The port, serving. Dropping it cuts all connections.
#[derive(Debug)]
pub(crate) struct Port {
    end: CancellationToken,
    links: TaskTracker,
    tasks: Vec<JoinHandle<()>>,
}

impl Port {
    pub(crate) fn start(listener: TcpListener, service: PeerService) -> Self {
        let end = CancellationToken::new();
        let links = TaskTracker::new();
        let questions = service.questions();
        let (asking, asked) = mpsc::channel(PLACES);
        let sorting = Sorting {
            service,
            links: links.clone(),
            asking,
            end: end.clone(),
        };
        let admission = Admission {
            places: Arc::default(),
            end: end.clone(),
            said_at: None,
        };
        let accepting = Accepting::new(listener, admission);
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADERS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .timeout(CALL_TIMEOUT)
            .add_routes(routes(questions));
        let ended = end.clone().cancelled_owned();
        let served = async move {
            let incoming = ReceiverStream::new(asked);
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, ended).await {
                tracing::error!(%error, "questions of brokers are not answered any more");
            }
        };
        let tasks = vec![
            tokio::spawn(sorting.accept(accepting)),
            tokio::spawn(served),
        ];
        Self { end, links, tasks }
    }

    /// Accepts no more, and cuts what there is.
    pub(crate) async fn stop(mut self) {
        self.end.cancel();
        self.links.close();
        let ended = async {
            self.links.wait().await;
            for task in &mut self.tasks {
                task.await.ok();
            }
        };
        if tokio::time::timeout(CUT, ended).await.is_err() {
            for task in &self.tasks {
                task.abort();
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// What is called here: questions. Whoever calls anything else has taken the port for another one.
fn routes(questions: QuestionsServer<PeerService>) -> Routes {
    let other = async || RequestError::ClusterPort.uncounted().into_http::<Body>();
    let router = Routes::new(questions).into_axum_router();
    router.fallback(other).into()
}

/// Tells links from questions.
#[derive(Clone, Debug)]
struct Sorting {
    service: PeerService,
    links: TaskTracker,
    asking: mpsc::Sender<std::io::Result<Connection<Admitted>>>,
    end: CancellationToken,
}

impl Sorting {
    async fn accept(self, mut accepting: Accepting<Admission>) {
        let end = self.end.clone();
        let accept = async {
            // An error of one connection is not handed out, and the listener has no end.
            while let Some(Ok(connection)) = accepting.next().await {
                let end = self.end.clone();
                let sort = self.clone().sort(connection);
                self.links.spawn(async move {
                    end.run_until_cancelled(sort).await;
                });
            }
        };
        end.run_until_cancelled(accept).await;
    }

    async fn sort(self, mut connection: Connection<Admitted>) {
        let Some(first) = connection.first_byte().await else {
            return;
        };
        if !begins_link(first) {
            // There is room for as many as there are places.
            self.asking.try_send(Ok(connection)).ok();
            return;
        }
        let (io, mut place) = connection.into_parts();
        let greeted = tokio::select! {
            greeted = self.service.greet(io) => greeted,
            () = std::future::poll_fn(|cx| place.poll_cut(cx)) => return,
        };
        drop(place);
        match greeted {
            Ok(greeted) => greeted.listen().await,
            Err(why) => tracing::debug!(%why, "a link was not let in"),
        }
    }
}

/// Which connections are admitted: all, at the cost of the oldest.
#[derive(Debug)]
struct Admission {
    places: Places,
    end: CancellationToken,
    /// When it was said last that there are too many.
    said_at: Option<Instant>,
}

/// What cuts those who hold a place, oldest first.
type Places = Arc<Mutex<VecDeque<CancellationToken>>>;

impl Admit for Admission {
    type Held = Admitted;

    fn admit(&mut self) -> Option<Admitted> {
        let own = self.end.child_token();
        let mut places = lock(&self.places);
        let given_up = if places.len() >= PLACES {
            places.pop_front()
        } else {
            None
        };
        places.push_back(own.clone());
        drop(places);
        if let Some(oldest) = given_up {
            oldest.cancel();
            if self.said_at.is_none_or(|at| at.elapsed() >= SAY_INTERVAL) {
                self.said_at = Some(Instant::now());
                tracing::warn!(
                    "the cluster port has {PLACES} connections that are no links: the oldest are cut"
                );
            }
        }
        Some(Admitted {
            cut: Box::pin(own.clone().cancelled_owned()),
            own,
            places: self.places.clone(),
        })
    }

    fn handshake_timeout(&self) -> Duration {
        HANDSHAKE_TIMEOUT
    }
}

/// The place of a connection.
#[derive(Debug)]
struct Admitted {
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    own: CancellationToken,
    places: Places,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        // Only this place's is cancelled, or all are.
        self.own.cancel();
        lock(&self.places).retain(|token| !token.is_cancelled());
    }
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
