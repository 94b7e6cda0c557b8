//! Accepting connections of clients and of brokers: each has a deadline for its beginning, is not delayed,
//! and can be cut.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

/// How long no connection is accepted after the system had no more files to give.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes with which HTTP/2 begins: the preface and the header of the first frame. A connection
/// that sent them is kept alive, or not, by HTTP/2's own pings.
const HANDSHAKE_LEN: usize = 24 + 9;

/// After so long without anything that could be written a connection is given up: HTTP/2 does not read while
/// its answers are stuck, so that its own pings do not find that out.
const STALL_MAX: Duration = Duration::from_secs(30);

/// That no connections can be accepted is said so often at most.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// Who may connect to a port.
pub(crate) trait Admit {
    /// What a connection holds as long as it is open.
    type Held: Held;

    /// What one more connection holds; `None` when there are too many already.
    fn admit(&mut self) -> Option<Self::Held>;

    /// How long a new connection has to begin HTTP/2.
    fn handshake_timeout(&self) -> Duration;
}

/// What a connection holds as long as it is open.
pub(crate) trait Held: Connected + Unpin {
    /// Whether the connection is cut. If not, `cx` is woken when it is.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The stream of accepted connections.
#[derive(Debug)]
pub(crate) struct Accepting<A> {
    listener: TcpListener,
    /// Those that were accepted before.
    waiting: VecDeque<TcpStream>,
    admission: A,
    pause: Option<Pin<Box<Sleep>>>,
    /// When it was said last that no connections can be accepted.
    said_at: Option<Instant>,
}

impl<A: Admit> Accepting<A> {
    pub(crate) fn new(listener: TcpListener, admission: A) -> Self {
        Self {
            listener,
            waiting: VecDeque::new(),
            admission,
            pause: None,
            said_at: None,
        }
    }

    /// The same, with connections of the listener that were accepted before, and not read.
    pub(crate) fn after(self, waiting: VecDeque<TcpStream>) -> Self {
        Self { waiting, ..self }
    }

    /// `None` when there are too many already, or it is dead.
    fn admit(&mut self, io: TcpStream) -> Option<Connection<A::Held>> {
        let held = self.admission.admit()?;
        // Small answers would wait for the peer's delayed acknowledgement, 40 ms.
        io.set_nodelay(true).ok()?;
        Some(Connection {
            io,
            held,
            stall: None,
            handshake: Some(Handshake {
                left: HANDSHAKE_LEN,
                deadline: Box::pin(tokio::time::sleep(self.admission.handshake_timeout())),
            }),
        })
    }
}

impl<A: Admit + Unpin> Stream for Accepting<A> {
    type Item = io::Result<Connection<A::Held>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Some(io) = self.waiting.pop_front() {
            if let Some(connection) = self.admit(io) {
                return Poll::Ready(Some(Ok(connection)));
            }
        }
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
                    if self.said_at.is_none_or(|at| at.elapsed() >= SAY_INTERVAL) {
                        self.said_at = Some(Instant::now());
                        let at = self.listener.local_addr().ok();
                        tracing::warn!(%error, ?at, "cannot accept connections");
                    }
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Connection<H> {
    io: TcpStream,
    handshake: Option<Handshake>,
    /// While something waits to be written: until when that is waited for.
    stall: Option<Pin<Box<Sleep>>>,
    held: H,
}

/// The beginning of a connection, for which it has a deadline.
#[derive(Debug)]
struct Handshake {
    /// Bytes still to come.
    left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<H: Held> Connection<H> {
    /// The first byte that comes, which stays where it is; `None` when the connection ends, is cut, or its
    /// deadline passes before.
    pub(crate) async fn first_byte(&mut self) -> Option<u8> {
        let mut first = [0];
        let deadline = self.handshake.as_mut().map(|shake| &mut shake.deadline);
        let held = &mut self.held;
        let cut = std::future::poll_fn(|cx| held.poll_cut(cx));
        let late = async {
            match deadline {
                Some(deadline) => deadline.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            peeked = self.io.peek(&mut first) => match peeked {
                Ok(1) => Some(first[0]),
                _ => None,
            },
            () = cut => None,
            () = late => None,
        }
    }

    /// What comes of a write: an error where it waits and the connection is cut, or has waited for too long.
    fn written<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stall = None;
            return polled;
        }
        if self.held.poll_cut(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_MAX)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// What is below, for who does not speak HTTP/2.
    pub(crate) fn into_parts(self) -> (TcpStream, H) {
        (self.io, self.held)
    }
}

impl<H: Held> Connected for Connection<H> {
    type ConnectInfo = H::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.held.connect_info()
    }
}

impl<H: Held> AsyncRead for Connection<H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 reads all the time but while a write waits, so this is where a connection hears that it
        // is cut, and there.
        if self.held.poll_cut(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        let Some(handshake) = &mut self.handshake else {
            return polled;
        };
        if polled.is_pending() {
            ready!(handshake.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        handshake.left = handshake.left.saturating_sub(read);
        if handshake.left == 0 {
            self.handshake = None;
        }
        polled
    }
}

impl<H: Held> AsyncWrite for Connection<H> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.written(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use futures_util::StreamExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Admits everybody, and cuts nobody.
    struct Everybody;

    impl Connected for Everybody {
        type ConnectInfo = ();

        fn connect_info(&self) {}
    }

    impl Held for Everybody {
        fn poll_cut(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    impl Admit for Everybody {
        type Held = Self;

        fn admit(&mut self) -> Option<Self> {
            Some(Self)
        }

        fn handshake_timeout(&self) -> Duration {
            Duration::from_secs(5)
        }
    }

    /// Whose time passes by itself as soon as nothing else can go on.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepting = Accepting::new(listener, Everybody);
        let silent = TcpStream::connect(address).await.unwrap();
        let mut connection = accepting.next().await.unwrap().unwrap();
        let part = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = connection.write(&part).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(silent);
    }
}
