//! Accepting gRPC connections: a bound on their number, no delay, a deadline for their beginning.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::config::Limits;
use crate::grpc::HeldBytes;
use crate::metrics::{Counted, ListenerMetrics};
use crate::room::{Alone, Budget, Room, Total};

/// How long no connection is accepted after the system had no more files to give.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes with which HTTP/2 begins: the preface and the header of the first frame. A connection
/// that sent them is kept alive, or not, by HTTP/2's own pings.
const HANDSHAKE_LEN: usize = 24 + 9;

/// The stream of accepted connections.
#[derive(Debug)]
pub(crate) struct Incoming {
    listener: TcpListener,
    places: Arc<Semaphore>,
    limits: Limits,
    metrics: ListenerMetrics,
    unsent: Arc<Total>,
    asked: Arc<Total>,
    open: Connections,
    /// The number of the next connection.
    next: u64,
    pause: Option<Pin<Box<Sleep>>>,
}

/// The connections that are open, so that they can be cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections(Arc<Mutex<HashMap<u64, Peer>>>);

impl Connections {
    /// Ends every connection now, whatever it does.
    pub(crate) fn cut(&self) {
        let open = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for peer in open.into_values() {
            peer.0.is_cut.store(true, Ordering::Release);
            peer.0.reader.wake();
        }
    }

    fn add(&self, number: u64, peer: Peer) -> Open {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, peer);
        Open {
            connections: self.clone(),
            number,
        }
    }
}

/// An entry in [`Connections`], until it is dropped.
#[derive(Debug)]
struct Open {
    connections: Connections,
    number: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.number);
    }
}

impl Incoming {
    pub(crate) fn new(
        listener: TcpListener,
        limits: &Limits,
        metrics: ListenerMetrics,
        unsent: Arc<Total>,
        asked: Arc<Total>,
    ) -> Self {
        Self {
            listener,
            unsent,
            asked,
            places: Arc::new(Semaphore::new(limits.connections_max)),
            limits: limits.clone(),
            metrics,
            open: Connections::default(),
            next: 0,
            pause: None,
        }
    }

    /// Those that were accepted and are open.
    pub(crate) fn connections(&self) -> Connections {
        self.open.clone()
    }

    /// Makes a connection of a socket; `None` when there are too many already, or it is dead.
    fn admit(&mut self, io: TcpStream) -> Option<Connection> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.metrics.refused.inc();
            return None;
        };
        // Small answers would wait for the peer's delayed acknowledgement, 40 ms.
        io.set_nodelay(true).ok()?;
        let peer = Peer::new(&self.limits, self.unsent.clone(), self.asked.clone());
        self.next += 1;
        Some(Connection {
            io,
            _open: self.open.add(self.next, peer.clone()),
            peer,
            handshake: Some(Handshake::new(self.limits.handshake_timeout)),
            _place: place,
            _counted: Counted::new(self.metrics.connections.clone()),
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
                    tracing::warn!(%error, "cannot accept connections");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

pub(crate) fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// What all calls of one connection share.
#[derive(Clone, Debug)]
pub(crate) struct Peer(Arc<PeerState>);

#[derive(Debug)]
struct PeerState {
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
    unsent: Arc<Budget>,
    asked: Arc<Budget>,
    receiving: Arc<AtomicUsize>,
    is_cut: AtomicBool,
    reader: AtomicWaker,
}

impl Peer {
    /// `unsent` and `asked` are what all connections share.
    pub(crate) fn new(limits: &Limits, unsent: Arc<Total>, asked: Arc<Total>) -> Self {
        let in_flight_max = limits.connection_in_flight_bytes_max;
        Self(Arc::new(PeerState {
            in_flight: Arc::new(Semaphore::new(in_flight_max)),
            in_flight_max,
            unsent: Budget::new(limits.connection_unsent_bytes_max, unsent),
            asked: Budget::new(limits.connection_unsent_bytes_max, asked),
            receiving: Arc::default(),
            is_cut: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        }))
    }

    /// How many bytes of requests of the connection are not complete, or wait to be begun.
    pub(crate) fn receiving(&self) -> Arc<AtomicUsize> {
        self.0.receiving.clone()
    }

    /// Waits until the connection has `len` bytes less than it may have in appends that are not
    /// answered. What is returned holds them. What is larger than the whole budget takes all of
    /// it, and so goes alone.
    pub(crate) async fn in_flight(&self, len: usize) -> OwnedSemaphorePermit {
        let len = u32::try_from(len.min(self.0.in_flight_max)).unwrap_or(u32::MAX);
        self.0
            .in_flight
            .clone()
            .acquire_many_owned(len)
            .await
            .expect("the budget is never closed")
    }

    /// Waits until there is room for `len` bytes of answers that the client has not taken, or for
    /// some of them. What is returned holds them, and tells how many.
    pub(crate) async fn unsent(&self, len: usize) -> Room {
        self.0.unsent.take(len).await
    }

    /// Waits until there is room for all of `len` bytes. To be called by who holds none.
    pub(crate) async fn unsent_whole(&self, len: usize, alone: Alone) -> Room {
        self.0.unsent.take_whole(len, alone).await
    }

    /// Room for what a call holds for the partitions it names, if there is any.
    pub(crate) fn asked(&self, len: usize) -> Option<Room> {
        self.0.asked.try_take_whole(len, Alone::Waits)
    }

    /// An answer that holds its room until the client has taken it. It waits while the client does
    /// not take earlier ones.
    pub(crate) async fn hold<M: prost::Message>(&self, message: M) -> tonic::Response<M> {
        let room = self.unsent_whole(message.encoded_len(), Alone::Goes).await;
        held(message, room)
    }
}

/// An answer that holds its room until the client has taken it.
pub(crate) fn held<M: prost::Message>(message: M, mut room: Room) -> tonic::Response<M> {
    room.shrink(message.encoded_len());
    let mut response = tonic::Response::new(message);
    response.extensions_mut().insert(HeldBytes::new(room));
    response
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    io: TcpStream,
    peer: Peer,
    handshake: Option<Handshake>,
    _open: Open,
    _place: OwnedSemaphorePermit,
    _counted: Counted,
}

/// The beginning of a connection, for which it has a deadline.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// Bytes still to come.
    left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Handshake {
    pub(crate) fn new(within: Duration) -> Self {
        Self {
            left: HANDSHAKE_LEN,
            deadline: Box::pin(tokio::time::sleep(within)),
        }
    }

    /// What becomes of a read of so many bytes: it fails where the handshake takes too long.
    pub(crate) fn after_read(
        of: &mut Option<Self>,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<()>>,
        read: usize,
    ) -> Poll<io::Result<()>> {
        let Some(handshake) = of else {
            return polled;
        };
        if polled.is_pending() {
            ready!(handshake.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        handshake.left = handshake.left.saturating_sub(read);
        if handshake.left == 0 {
            *of = None;
        }
        polled
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 reads all the time, so this is where a connection hears that it is cut.
        self.peer.0.reader.register(cx.waker());
        if self.peer.0.is_cut.load(Ordering::Acquire) {
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
