//! The cluster port: gRPC for other brokers, on a listener of its own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tidelog_peer::PeerService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::transport::{ACCEPT_PAUSE, Handshake, is_about_one_connection};

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
        service: tidelog_peer::PeerServer<PeerService>,
    ) -> Self {
        let end = CancellationToken::new();
        let incoming = Incoming {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            end: end.clone(),
            pause: None,
        };
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADERS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .add_service(service);
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

/// The stream of accepted connections.
#[derive(Debug)]
struct Incoming {
    listener: TcpListener,
    places: Arc<Semaphore>,
    end: CancellationToken,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// `None` when there are too many already, or it is dead.
    fn admit(&self, io: TcpStream) -> Option<Connection> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("the cluster port has {CONNECTIONS_MAX} connections and takes no more");
            return None;
        };
        io.set_nodelay(true).ok()?;
        Some(Connection {
            io,
            handshake: Some(Handshake::new(HANDSHAKE_TIMEOUT)),
            cut: Box::pin(self.end.clone().cancelled_owned()),
            _place: place,
        })
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((io, _)) => {
                    if let Some(connection) = self.admit(io) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) if is_about_one_connection(&error) => {}
                // Most likely no more files. Trying again at once would take a whole core.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections of brokers");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One accepted connection.
#[derive(Debug)]
struct Connection {
    io: TcpStream,
    handshake: Option<Handshake>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 reads all the time, so this is where a connection hears that it is cut.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        Handshake::after_read(&mut self.handshake, cx, polled, read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
