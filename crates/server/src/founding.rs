//! The gRPC port of a broker that is not open yet.
//!
//! Connections wait, unread, for the broker to open, and are served by it then as if they had come later: most
//! brokers are open in a moment. One that waits for other brokers may not be for long, or never; whoever has
//! waited for it for some seconds is answered, with whom it waits for.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;

use crate::accepting::ACCEPT_PAUSE;
use crate::cluster::Waits;
use crate::grpc::RequestError;

/// How long a connection waits before it is answered: less than clients wait for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Connections at a time that wait here or are answered. More wait in the system, in vain.
const PLACES: usize = 64;
/// How long one is answered, before it has to come again.
const ANSWERED_MAX: Duration = Duration::from_secs(10);
/// How long it then has to end.
const GRACE: Duration = Duration::from_secs(1);
/// Calls at a time on one connection.
const STREAMS_MAX: u32 = 16;
/// The headers of one call, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;

/// The port, until the broker is open.
#[derive(Debug)]
pub(crate) struct Founding {
    end: DropGuard,
    task: JoinHandle<(TcpListener, VecDeque<TcpStream>)>,
}

impl Founding {
    pub(crate) fn start(listener: TcpListener, node_id: u32, waits: Waits) -> Self {
        let end = CancellationToken::new();
        let port = Port {
            node_id,
            waits,
            end: end.clone(),
        };
        Self {
            end: end.drop_guard(),
            task: tokio::spawn(port.accept(listener)),
        }
    }

    /// The port, and the connections that were made to it meanwhile and are not read.
    pub(crate) async fn end(self) -> (TcpListener, VecDeque<TcpStream>) {
        drop(self.end);
        self.task.await.expect("nothing in it panics")
    }
}

#[derive(Clone, Debug)]
struct Port {
    node_id: u32,
    waits: Waits,
    end: CancellationToken,
}

/// A connection that waits.
struct Waiting {
    io: TcpStream,
    until: Instant,
}

impl Port {
    async fn accept(self, listener: TcpListener) -> (TcpListener, VecDeque<TcpStream>) {
        let mut waiting = VecDeque::<Waiting>::new();
        let mut answered = JoinSet::new();
        loop {
            let next = waiting.front().map(|first| first.until);
            let patience = async {
                match next {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.end.cancelled() => break,
                Some(_) = answered.join_next() => {}
                () = patience => {
                    let Some(first) = waiting.pop_front() else {
                        continue;
                    };
                    match self.said() {
                        Some(said) => {
                            answered.spawn(self.clone().answer(first.io, said));
                        }
                        // It opens, which takes as long as its logs are long.
                        None => waiting.push_back(from_now(first.io)),
                    }
                }
                accepted = listener.accept(), if waiting.len() + answered.len() < PLACES => {
                    match accepted {
                        Ok((io, _)) => waiting.push_back(from_now(io)),
                        Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                    }
                }
            }
        }
        // They end by themselves: what they are to be told, they are told.
        answered.detach_all();
        let waiting = waiting.into_iter().map(|one| one.io).collect();
        (listener, waiting)
    }

    /// What the broker waits for, if it waits for others.
    fn said(&self) -> Option<RequestError> {
        let whom = self.waits.get();
        (!whom.is_empty()).then(|| RequestError::Founding {
            node_id: self.node_id,
            waits_for: whom.join(", "),
        })
    }

    /// Answers every call of a connection.
    async fn answer(self, io: TcpStream, first: RequestError) {
        let service = service_fn(|_| {
            // Where it waits for nobody any more, it opens just now, and serves the next connection.
            let said = self.said().unwrap_or_else(|| first.clone());
            std::future::ready(Ok::<_, Infallible>(said.uncounted().into_http::<Body>()))
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_MAX)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.end.cancelled() => {}
            () = tokio::time::sleep(ANSWERED_MAX) => {}
        }
        connection.as_mut().graceful_shutdown();
        // Whoever does not end now is cut.
        tokio::time::timeout(GRACE, connection).await.ok();
    }
}

fn from_now(io: TcpStream) -> Waiting {
    Waiting {
        io,
        until: Instant::now() + PATIENCE,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tidelog_proto::v1::ListTopicsRequest;
    use tidelog_proto::v1::topics_client::TopicsClient;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    async fn port(waits: &Waits) -> (Founding, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (Founding::start(listener, 1, waits.clone()), address)
    }

    /// Time passes by itself as soon as nothing else can go on.
    #[tokio::test(start_paused = true)]
    async fn a_client_is_told_whom_the_broker_waits_for() {
        let waits = Waits::default();
        waits.set(&["2@b:1 (it does not answer)".to_owned(), "3@c:1".to_owned()]);
        let (founding, address) = port(&waits).await;
        let mut client = TopicsClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        for _ in 0..2 {
            let request = ListTopicsRequest::default();
            let status = client.list_topics(request).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert_eq!(
                status.message(),
                "broker 1 waits for other brokers, without which there is no cluster: 2@b:1 (it does \
                 not answer), 3@c:1"
            );
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.reason, "FOUNDING");
            assert!(status.get_details_retry_info().is_some());
        }
        founding.end().await;
    }

    #[tokio::test]
    async fn whoever_came_before_the_broker_was_open_is_served_by_it() {
        let (founding, address) = port(&Waits::default()).await;
        let mut early = TcpStream::connect(&address).await.unwrap();
        early.write_all(b"hello").await.unwrap();
        let (listener, mut waiting) = founding.end().await;
        let mut served = match waiting.pop_front() {
            Some(served) => served,
            // The system had it still.
            None => listener.accept().await.unwrap().0,
        };
        let mut said = [0; 5];
        served.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"hello");
    }
}
