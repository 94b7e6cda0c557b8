//! HTTP/1.1 for people and their tools: metrics and health.
//!
//! It is up before the broker is open, so that a long recovery can be watched: live, not ready.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tidelog_broker::{Broker, Health};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::accepting::ACCEPT_PAUSE;
use crate::cluster::Waits;
use crate::paced::Paced;

/// How long the head of a request may take, and how long a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection lives at most, whatever its client does.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);
/// How long a request that is under way at the end of a connection may still take.
const GRACE: Duration = Duration::from_secs(5);
/// Connections at a time. One more closes the one that has been idle for longest; it is closed itself when
/// all are in the middle of a request.
const CONNECTIONS_MAX: usize = 256;

/// What the HTTP listener tells of: a broker, once there is one.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    broker: Arc<OnceLock<Broker>>,
    stopping: CancellationToken,
    metrics: Paced<Bytes>,
    health: Paced<Health>,
    waits: Waits,
}

impl Watched {
    pub(crate) fn new(stopping: CancellationToken) -> Self {
        Self {
            broker: Arc::default(),
            stopping,
            metrics: Paced::new(),
            health: Paced::new(),
            waits: Waits::default(),
        }
    }

    /// Whom the broker waits for before it can be opened.
    pub(crate) fn waits(&self) -> Waits {
        self.waits.clone()
    }

    /// The broker is open.
    pub(crate) fn opened(&self, broker: Broker) {
        let was_open = self.broker.set(broker).is_err();
        debug_assert!(!was_open, "a broker is opened once");
    }
}

/// The connections that are open.
#[derive(Clone, Debug, Default)]
struct Connections(Arc<Mutex<HashMap<u64, Entry>>>);

#[derive(Debug)]
struct Entry {
    /// Set to close it.
    close: CancellationToken,
    /// How many of its requests are being answered.
    busy: usize,
    /// Greater than that of each connection that did something earlier.
    active: u64,
}

impl Connections {
    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, closing the one that has been idle for longest where there is no place; `None` where
    /// there is none to close.
    fn add(&self, number: u64) -> Option<Open> {
        let mut entries = self.entries();
        if entries.len() >= CONNECTIONS_MAX {
            let idle = entries.iter().filter(|(_, entry)| entry.busy == 0);
            let longest = *idle.min_by_key(|(_, entry)| entry.active)?.0;
            entries.remove(&longest)?.close.cancel();
        }
        let close = CancellationToken::new();
        let entry = Entry {
            close: close.clone(),
            busy: 0,
            active: next_active(&entries),
        };
        entries.insert(number, entry);
        Some(Open {
            connections: self.clone(),
            number,
            close,
        })
    }

    /// Counts a request until what is returned is dropped.
    fn request(&self, number: u64) -> Busy {
        if let Some(entry) = self.entries().get_mut(&number) {
            entry.busy += 1;
        }
        Busy {
            connections: self.clone(),
            number,
        }
    }
}

fn next_active(entries: &HashMap<u64, Entry>) -> u64 {
    entries
        .values()
        .map(|entry| entry.active)
        .max()
        .unwrap_or(0)
        + 1
}

/// A connection's entry in [`Connections`], until it is dropped.
#[derive(Debug)]
struct Open {
    connections: Connections,
    number: u64,
    close: CancellationToken,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.entries().remove(&self.number);
    }
}

/// A request that is being answered.
struct Busy {
    connections: Connections,
    number: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut entries = self.connections.entries();
        let active = next_active(&entries);
        if let Some(entry) = entries.get_mut(&self.number) {
            entry.busy -= 1;
            entry.active = active;
        }
    }
}

/// Serves until `end` is set, then until what is under way is answered.
pub(crate) async fn serve(listener: TcpListener, watched: Watched, end: CancellationToken) {
    let router = router(watched);
    let open = Connections::default();
    let mut next = 0;
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = end.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, _)) => {
                next += 1;
                if let Some(open) = open.add(next) {
                    connections.spawn(connection(io, router.clone(), open, end.clone()));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept HTTP connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(io: TcpStream, router: Router, open: Open, end: CancellationToken) {
    let router = service_fn(|request| {
        let busy = open.connections.request(open.number);
        let answer = router.clone().call(request);
        async move {
            let answer = answer.await;
            drop(busy);
            answer
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(io), router);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = open.close.cancelled() => return,
        () = async {
            tokio::select! {
                () = end.cancelled() => {}
                () = tokio::time::sleep(CONNECTION_AGE_MAX) => {}
            }
        } => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, connection).await {
                Ok(served) => served,
                Err(_elapsed) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}

fn router(watched: Watched) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .with_state(watched)
}

async fn metrics(State(watched): State<Watched>) -> Response {
    let Some(broker) = watched.broker.get() else {
        return json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"error": "starting"}),
        );
    };
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let broker = broker.clone();
    let text = watched
        .metrics
        .get(move || Bytes::from(broker.metrics_text()));
    ([(header::CONTENT_TYPE, content_type)], text.await).into_response()
}

async fn live() -> Response {
    json_response(StatusCode::OK, &json!({"live": true}))
}

async fn ready(State(watched): State<Watched>) -> Response {
    let mut waiting_for = watched.waits.get();
    let (state, faults) = match watched.broker.get() {
        _ if watched.stopping.is_cancelled() => ("stopping", Vec::new()),
        None if !waiting_for.is_empty() => ("founding", Vec::new()),
        None => ("starting", Vec::new()),
        Some(broker) => {
            let asked = broker.clone();
            let health = watched.health.get(move || asked.health()).await;
            let state = match health.ready {
                true => "ready",
                false if broker.is_stopping() => "stopping",
                false if health.waits_for.is_some() && !health.faulted => "joining",
                false => "faulted",
            };
            waiting_for.extend(health.waits_for);
            (state, health.faults)
        }
    };
    let is_ready = state == "ready";
    let code = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut body = json!({"ready": is_ready, "state": state, "faults": faults});
    if matches!(state, "founding" | "joining") {
        body["waiting_for"] = waiting_for.into();
    }
    json_response(code, &body)
}

async fn not_found(request: Request) -> Result<Response, Infallible> {
    let body = json!({
        "error": "not found",
        "path": request.uri().path(),
        "paths": ["/metrics", "/health/live", "/health/ready"],
    });
    Ok(json_response(StatusCode::NOT_FOUND, &body))
}

async fn not_allowed() -> Response {
    json_response(
        StatusCode::METHOD_NOT_ALLOWED,
        &json!({"error": "method not allowed", "methods": ["GET", "HEAD"]}),
    )
}

fn json_response(code: StatusCode, body: &Value) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    (
        code,
        [(header::CONTENT_TYPE, content_type)],
        format!("{body}\n"),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tidelog_broker::{BrokerConfig, NewTopic, Seams};
    use tidelog_disk::DiskOp;
    use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

    use super::*;

    async fn asked(watched: &Watched) -> (StatusCode, Value) {
        let response = ready(State(watched.clone())).await;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await;
        let body = serde_json::from_slice(&body.unwrap()).unwrap();
        (status, body)
    }

    /// Nothing that a client does helps then: whoever chooses brokers by this must not choose it.
    #[tokio::test]
    async fn a_broker_whose_metadata_log_or_state_file_failed_is_not_ready() {
        for broken in ["__cluster_metadata-0", "/state/"] {
            let disk = SimDisk::new(1);
            let config = BrokerConfig {
                data_dir: "/srv/data".into(),
                ..BrokerConfig::default()
            };
            let seams = Seams {
                disk: Arc::new(disk.clone()),
                ..Seams::os()
            };
            let broker = Broker::open(config, seams).unwrap();
            let watched = Watched::new(CancellationToken::new());
            watched.opened(broker.clone());
            assert_eq!(asked(&watched).await.0, StatusCode::OK);

            let filter = OpFilter::op(DiskOp::Sync).on(broken);
            disk.fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
            let new = NewTopic {
                name: "t".to_owned(),
                ..NewTopic::default()
            };
            broker.create_topic(new).await.unwrap_err();
            let (status, body) = asked(&watched).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{broken}");
            assert_eq!(body["state"], "faulted");
            assert_eq!(body["ready"], false);
            let faults = body["faults"].to_string();
            assert!(faults.contains(broken), "{faults} lacks {broken}");
        }
    }

    /// They take long with many partitions, and gRPC has the same threads.
    #[tokio::test]
    async fn partitions_are_not_asked_on_the_thread_that_serves() {
        let config = BrokerConfig {
            data_dir: "/srv/data".into(),
            ..BrokerConfig::default()
        };
        let seams = Seams {
            disk: Arc::new(SimDisk::new(1)),
            ..Seams::os()
        };
        let watched = Watched::new(CancellationToken::new());
        watched.opened(Broker::open(config, seams).unwrap());
        assert!(metrics(State(watched.clone())).now_or_never().is_none());
        assert!(ready(State(watched.clone())).now_or_never().is_none());
        // What was begun for those who went away is in nobody's way.
        assert_eq!(
            metrics(State(watched.clone())).await.status(),
            StatusCode::OK
        );
        assert_eq!(asked(&watched).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn without_a_broker_it_lives_but_is_not_ready() {
        let watched = Watched::new(CancellationToken::new());
        assert_eq!(live().await.status(), StatusCode::OK);
        let state = || State(watched.clone());
        assert_eq!(
            ready(state()).await.status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(
            metrics(state()).await.status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
}
