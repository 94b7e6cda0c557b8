//! The side that speaks: one link to one other broker, which comes back by itself.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tidelog_replica::{NodeId, Post};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use crate::convert::{hello, identity_of};
use crate::frame::{FRAME_BYTES_MAX, Frame, FrameError};
use crate::outgoing::{Outgoing, Written};
use crate::service::Sink;
use crate::wire::{PREFACE, ReadError, Reader, read_frame, reader, write_frame};
use crate::{Identity, PROTOCOL_VERSION};

/// How a link works.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Posts that wait to be sent at most; more are lost.
    pub queue_len: usize,
    /// Bytes of payloads that wait to be sent at most; more are lost.
    pub queue_bytes_max: u64,
    /// A frame is not made longer than this, unless by one letter.
    pub frame_bytes: usize,
    /// A post with no more bytes of payloads is written by whoever sends it, where nothing is in the way; a longer
    /// one by the link's task, as the system takes a while to copy it.
    pub direct_bytes_max: u64,
    /// How long a connection may take to be made, and to say hello.
    pub connect_timeout: Duration,
    /// The pause after a connection that could not be made doubles from the first of these to the
    /// second, and a part of it is chance.
    pub pauses: (Duration, Duration),
    /// A ping is sent this often.
    pub ping_interval: Duration,
    /// A connection is given up when no ping was answered for so long.
    pub ping_timeout: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            queue_len: 1024,
            queue_bytes_max: 64 << 20,
            frame_bytes: 1 << 20,
            direct_bytes_max: 64 << 10,
            connect_timeout: Duration::from_secs(1),
            pauses: (Duration::from_millis(50), Duration::from_secs(1)),
            ping_interval: Duration::from_millis(500),
            ping_timeout: Duration::from_secs(3),
        }
    }
}

/// How a link is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Whether the other broker has answered to hello, and the connection was not lost since.
    pub is_connected: bool,
    /// Times that a connection was made.
    pub connections: u64,
    /// Times that none could be made: there was no answer, or a refusal.
    pub failures: u64,
    /// How long the last ping took to be answered, once one was.
    pub round_trip: Option<Duration>,
}

/// What a link has seen.
#[derive(Debug, Default)]
pub struct LinkStats {
    state: watch::Sender<LinkState>,
    /// Posts that wait to be sent.
    pub queued: AtomicU64,
    /// Bytes of payloads in them.
    pub queued_bytes: AtomicU64,
    /// Posts that were lost: they did not fit the queue, or there was no connection.
    pub lost: AtomicU64,
    /// Bytes of frames that were sent.
    pub sent_bytes: AtomicU64,
}

impl LinkStats {
    pub(crate) fn is_connected(&self) -> bool {
        self.state.borrow().is_connected
    }

    pub(crate) fn connected(&self) {
        self.state.send_modify(|state| {
            state.is_connected = true;
            state.connections += 1;
        });
    }

    /// There is no connection, or none any more; says whether there was one.
    pub(crate) fn disconnected(&self) -> bool {
        let was_connected = self.is_connected();
        self.state.send_modify(|state| {
            state.is_connected = false;
            state.failures += u64::from(!was_connected);
        });
        was_connected
    }
}

/// A link to one other broker. The task behind it ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    out: Arc<Outgoing>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Begins to connect, from `own` to the broker `to` at `address`: a host and a port. Must be called
    /// within a runtime.
    ///
    /// `sink` is told each time that the broker is connected to, and that it cannot be reached any more.
    pub fn start(
        own: Identity,
        to: NodeId,
        address: String,
        sink: Arc<dyn Sink>,
        config: LinkConfig,
    ) -> Self {
        let out = Arc::new(Outgoing::new(config));
        let run = Run {
            own,
            to,
            address,
            sink,
            out: out.clone(),
        };
        Self {
            out,
            task: tokio::spawn(run.run()),
        }
    }

    /// Sends something, if there is a connection and room for it; never waits. Where it is short and nothing else
    /// is on its way, it is written to the connection here.
    ///
    /// # Errors
    /// What surely does not arrive comes back: the replicas it is for have to be told. So do notes that
    /// are longer than [`NOTE_BYTES_MAX`](crate::NOTE_BYTES_MAX), or more than a frame takes.
    pub fn send(&self, post: Post) -> Result<(), Post> {
        self.out.send(post)
    }

    /// The other broker is there, as whoever was heard from: where there is no connection, one is tried now and
    /// not after a pause. Never waits.
    pub fn hurry(&self) {
        self.out.hurry();
    }

    /// How the link is, and each change of that.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.out.stats.state.subscribe()
    }

    /// What the link has seen.
    pub fn stats(&self) -> &LinkStats {
        &self.out.stats
    }
}

struct Run {
    own: Identity,
    to: NodeId,
    address: String,
    sink: Arc<dyn Sink>,
    out: Arc<Outgoing>,
}

impl Run {
    async fn run(self) {
        let (first, most) = self.out.config.pauses;
        let mut pause = first;
        let mut refused: Option<String> = None;
        let mut is_other_port_said = false;
        loop {
            let began = Instant::now();
            let ended = self.connect_and_send().await;
            let was_connected = self.out.disconnected();
            if was_connected {
                self.sink.unreachable(self.to);
            }
            // It may be refused after its hello was answered, as is the other one of two processes.
            if let Ended::Refused(why) = ended {
                self.sink.refused(self.to, &why);
                // Once for each reason: it is refused again and again.
                if refused.as_ref() != Some(&why) {
                    tracing::error!(broker = self.to, address = %self.address, why,
                        "a broker does not listen to this one");
                    refused = Some(why);
                }
            } else if was_connected {
                tracing::warn!(broker = self.to, address = %self.address, why = %ended,
                    "the link to a broker is lost");
            } else if matches!(ended, Ended::NotClusterPort) && !is_other_port_said {
                is_other_port_said = true;
                tracing::warn!(broker = self.to, address = %self.address, why = %ended,
                    "a broker cannot be reached: its address must be that of its cluster port");
            } else {
                tracing::debug!(broker = self.to, address = %self.address, why = %ended,
                    "a broker cannot be reached");
            }
            if began.elapsed() > most {
                pause = first;
            }
            // Half of it by chance, so that brokers do not come all at once to one that is back.
            let half = pause / 2;
            let waits = sleep(half + half.mul_f64(fastrand::f64()));
            tokio::select! {
                () = waits => {}
                () = self.out.hurried() => {}
            }
            pause = (pause * 2).min(most);
        }
    }

    async fn connect_and_send(&self) -> Ended {
        let connected = timeout(self.out.config.connect_timeout, self.connect()).await;
        match connected {
            Ok(Ok((reader, io))) => self.send_on(reader, io).await,
            Ok(Err(ended)) => ended,
            Err(_elapsed) => Ended::Silent,
        }
    }

    /// Connects, says hello, and waits for the other's.
    async fn connect(&self) -> Result<(Reader<OwnedReadHalf>, OwnedWriteHalf), Ended> {
        let io = TcpStream::connect(&self.address).await?;
        io.set_nodelay(true)?;
        let (reading, mut io) = io.into_split();
        let mut reader = reader(reading);
        io.write_all(PREFACE).await?;
        write_frame(&mut io, &hello(&self.own, self.to)).await?;
        let answer = answer(&mut reader).await?;
        let hello = answer.meta.hello.ok_or(Ended::NoBroker)?;
        let who = identity_of(&hello).filter(|_| hello.version == PROTOCOL_VERSION);
        if who.is_none_or(|who| (who.cluster_id, who.node_id) != (self.own.cluster_id, self.to)) {
            return Err(Ended::NoBroker);
        }
        Ok((reader, io))
    }

    /// Sends what there is until the connection ends, and says why it did.
    async fn send_on(&self, mut reader: Reader<OwnedReadHalf>, io: OwnedWriteHalf) -> Ended {
        let began = Instant::now();
        let (out, io) = (&*self.out, Arc::new(io));
        out.connected(io.clone());
        self.sink.connected(self.to);
        let mut pings = interval(out.config.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ping_timeout = out.config.ping_timeout;
        let mut heard = pin!(hear(&mut reader, &out.stats, began, ping_timeout));
        loop {
            let written = match out.write() {
                Ok(written) => written,
                Err(e) => return e.into(),
            };
            tokio::select! {
                ended = &mut heard => return ended,
                // With the next frame, also where frames never end: without an answer the link is given up. 0 would
                // be none.
                _ = pings.tick() => out.set_ping(micros_since(began) + 1),
                waited = self.wait(written, &io) => if let Err(e) = waited {
                    return e.into();
                },
            }
        }
    }

    /// Waits until more can be written, where there is more, and otherwise until there is.
    async fn wait(&self, written: Written, io: &OwnedWriteHalf) -> std::io::Result<()> {
        match written {
            Written::Full => io.writable().await?,
            Written::Some => tokio::task::yield_now().await,
            Written::All | Written::Nothing => self.out.woken().await,
        }
        Ok(())
    }
}

/// Why there is no connection, or none any more.
#[derive(Debug, Error)]
enum Ended {
    /// Because of who this broker is.
    #[error("it does not listen to this broker: {0}")]
    Refused(String),
    #[error("it has ended the connection: {0}")]
    Told(String),
    #[error("it has ended the connection")]
    Closed,
    #[error("what answers there is not that broker")]
    NoBroker,
    #[error("what answers there is not the cluster port of a broker")]
    NotClusterPort,
    #[error("it does not answer")]
    Silent,
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<std::io::Error> for Ended {
    fn from(e: std::io::Error) -> Self {
        Self::Read(e.into())
    }
}

/// The next frame of the other side, which listens.
async fn answer(reader: &mut Reader<OwnedReadHalf>) -> Result<Frame<Bytes>, Ended> {
    let frame = read_frame(reader, ANSWER_BYTES_MAX).await;
    let frame = frame.map_err(|e| match e {
        // No frame begins so: something else speaks there.
        ReadError::Frame(FrameError::Length { .. }) => Ended::NotClusterPort,
        e => e.into(),
    })?;
    let mut frame = frame.ok_or(Ended::Closed)?;
    match frame.meta.end.take() {
        Some(end) if end.refused => Err(Ended::Refused(end.cause)),
        Some(end) => Err(Ended::Told(end.cause)),
        None => Ok(frame),
    }
}

fn micros_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Takes what the other side answers to pings, until nothing comes any more.
async fn hear(
    reader: &mut Reader<OwnedReadHalf>,
    stats: &LinkStats,
    began: Instant,
    ping_timeout: Duration,
) -> Ended {
    let (mut last, mut until) = (0, Instant::now() + ping_timeout);
    loop {
        match timeout_at(until, answer(reader)).await {
            Ok(Ok(frame)) if frame.meta.pong > last => {
                last = frame.meta.pong;
                until = Instant::now() + ping_timeout;
                let took = micros_since(began).saturating_sub(last - 1);
                let took = Some(Duration::from_micros(took));
                stats.state.send_modify(|state| state.round_trip = took);
            }
            // It answers to no ping.
            Ok(Ok(_)) => {}
            Ok(Err(ended)) => return ended,
            Err(_elapsed) => return Ended::Silent,
        }
    }
}

/// Answers are hellos, pongs, and why there are no more.
const ANSWER_BYTES_MAX: usize = 4 << 10;
const _: () = assert!(ANSWER_BYTES_MAX < FRAME_BYTES_MAX);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::pin::Pin;

    use tidelog_replica::Delivery;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Debug)]
    struct Nowhere;

    impl Sink for Nowhere {
        fn deliver(&self, _: Delivery) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            Box::pin(std::future::ready(()))
        }

        fn unreachable(&self, _: NodeId) {}

        fn greeted(&self, _: NodeId) {}

        fn connected(&self, _: NodeId) {}
    }

    /// How a link ends to whom `says` this.
    async fn ended(says: &'static [u8]) -> Ended {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut preface = [0; PREFACE.len()];
            io.read_exact(&mut preface).await.unwrap();
            io.write_all(says).await.unwrap();
            // Until the other side has gone.
            io.read_to_end(&mut Vec::new()).await.ok();
        });
        let run = Run {
            own: Identity {
                cluster_id: [1; 16],
                node_id: 1,
                directory_id: [2; 16],
                process_id: [3; 16],
            },
            to: 2,
            address,
            sink: Arc::new(Nowhere),
            out: Arc::new(Outgoing::new(LinkConfig::default())),
        };
        let ended = run.connect_and_send().await;
        answers.await.unwrap();
        ended
    }

    #[tokio::test]
    async fn what_answers_in_another_protocol_is_told_from_a_broker() {
        let http_2 = b"\0\0\x12\x04\0\0\0\0\0";
        for other in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], http_2] {
            let ended = ended(other).await;
            assert!(matches!(ended, Ended::NotClusterPort), "{ended}");
        }
        // A frame without anything in it.
        let ended = ended(b"\x08\0\0\0").await;
        assert!(!matches!(ended, Ended::NotClusterPort), "{ended}");
    }
}
