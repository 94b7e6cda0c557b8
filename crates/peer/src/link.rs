//! The side that speaks: one link to one other broker, which comes back by itself.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use thiserror::Error;
use tidelog_replica::{NodeId, Post};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use crate::convert::{hello, identity_of};
use crate::frame::{
    FRAME_BYTES_MAX, Frame, FrameError, NOTE_BYTES_MAX, POST_NOTE_BYTES_MAX, POST_NOTES_MAX,
};
use crate::service::Sink;
use crate::unsent::{Unsent, bytes_of};
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

/// A link to one other broker. The task behind it ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    posts: mpsc::Sender<Post>,
    stats: Arc<LinkStats>,
    bytes_max: u64,
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
    /// `sink` is told each time the broker cannot be reached any more.
    pub fn start(
        own: Identity,
        to: NodeId,
        address: String,
        sink: Arc<dyn Sink>,
        config: LinkConfig,
    ) -> Self {
        let (posts, queue) = mpsc::channel(config.queue_len);
        let stats = Arc::<LinkStats>::default();
        let bytes_max = config.queue_bytes_max;
        let run = Run {
            own,
            to,
            address,
            sink,
            config,
            stats: stats.clone(),
            queue,
            begun: Unsent::default(),
        };
        Self {
            posts,
            stats,
            bytes_max,
            task: tokio::spawn(run.run()),
        }
    }

    /// Sends something, if there is a connection and room for it; never waits.
    ///
    /// # Errors
    /// What surely does not arrive comes back: the replicas it is for have to be told. So do notes that
    /// are longer than [`NOTE_BYTES_MAX`], or more than a frame takes.
    pub fn send(&self, post: Post) -> Result<(), Post> {
        let bytes = bytes_of(&post);
        let stats = &self.stats;
        let waiting = stats.queued_bytes.load(Ordering::Relaxed);
        let is_room = waiting + bytes <= self.bytes_max.max(bytes);
        let is_connected = stats.state.borrow().is_connected;
        let place = self.posts.try_reserve().ok();
        let is_allowed = is_room && is_connected && are_notes_allowed(&post.notes);
        let Some(place) = place.filter(|_| is_allowed) else {
            stats.lost.fetch_add(1, Ordering::Relaxed);
            return Err(post);
        };
        stats.queued.fetch_add(1, Ordering::Relaxed);
        stats.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        place.send(post);
        Ok(())
    }

    /// How the link is, and each change of that.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.stats.state.subscribe()
    }

    /// What the link has seen.
    pub fn stats(&self) -> &LinkStats {
        &self.stats
    }
}

fn are_notes_allowed(notes: &[Bytes]) -> bool {
    let bytes = notes.iter().map(Bytes::len).sum::<usize>();
    let longest = notes.iter().map(Bytes::len).max().unwrap_or(0);
    notes.len() <= POST_NOTES_MAX && bytes <= POST_NOTE_BYTES_MAX && longest <= NOTE_BYTES_MAX
}

struct Run {
    own: Identity,
    to: NodeId,
    address: String,
    sink: Arc<dyn Sink>,
    config: LinkConfig,
    stats: Arc<LinkStats>,
    queue: mpsc::Receiver<Post>,
    /// What no frame has taken yet of the post that came last.
    begun: Unsent,
}

impl Run {
    async fn run(mut self) {
        let (first, most) = self.config.pauses;
        let mut pause = first;
        let mut refused: Option<String> = None;
        loop {
            let began = Instant::now();
            let ended = self.connect_and_send().await;
            let was_connected = self.stats.state.borrow().is_connected;
            self.stats.state.send_modify(|state| {
                state.is_connected = false;
                state.failures += u64::from(!was_connected);
            });
            if was_connected {
                tracing::warn!(broker = self.to, address = %self.address, why = %ended,
                    "the link to a broker is lost");
                self.sink.unreachable(self.to);
            } else if let Ended::Refused(why) = ended {
                // Once for each reason: it is refused again and again.
                if refused.as_ref() != Some(&why) {
                    tracing::error!(broker = self.to, address = %self.address, why,
                        "a broker does not listen to this one");
                    refused = Some(why);
                }
            } else {
                tracing::debug!(broker = self.to, address = %self.address, why = %ended,
                    "a broker cannot be reached");
            }
            self.forget_queue();
            if began.elapsed() > most {
                pause = first;
            }
            // Half of it by chance, so that brokers do not come all at once to one that is back.
            let half = pause / 2;
            sleep(half + half.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(most);
        }
    }

    /// What waits was for a connection that is not there any more.
    fn forget_queue(&mut self) {
        let mut left = std::mem::take(&mut self.begun);
        let mut lost = u64::from(!left.is_empty());
        loop {
            self.taken(left.bytes());
            let Ok(post) = self.queue.try_recv() else {
                break;
            };
            self.stats.queued.fetch_sub(1, Ordering::Relaxed);
            lost += 1;
            left = post.into();
        }
        self.stats.lost.fetch_add(lost, Ordering::Relaxed);
    }

    /// So many bytes of payload wait no more.
    fn taken(&self, bytes: u64) {
        self.stats.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    async fn connect_and_send(&mut self) -> Ended {
        let connected = timeout(self.config.connect_timeout, self.connect()).await;
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
        self.stats.state.send_modify(|state| {
            state.is_connected = true;
            state.connections += 1;
        });
        Ok((reader, io))
    }

    /// Sends what there is until the connection ends, and says why it did.
    async fn send_on(
        &mut self,
        mut reader: Reader<OwnedReadHalf>,
        mut io: OwnedWriteHalf,
    ) -> Ended {
        let began = Instant::now();
        let mut pings = interval(self.config.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stats = self.stats.clone();
        let ping_timeout = self.config.ping_timeout;
        let mut heard = pin!(hear(&mut reader, &stats, began, ping_timeout));
        loop {
            let mut frame = Frame::default();
            tokio::select! {
                ended = &mut heard => return ended,
                // Behind what is under way: where nothing moves, no ping does. 0 would be none.
                _ = pings.tick() => frame.meta.ping = micros_since(began) + 1,
                is_more = self.wait_for_more() => if !is_more {
                    return Ended::Unneeded;
                },
            }
            self.fill(&mut frame);
            let mut pieces = frame.pieces();
            let len = pieces.remaining() as u64;
            tokio::select! {
                ended = &mut heard => return ended,
                written = io.write_all_buf(&mut pieces) => if let Err(e) = written {
                    return e.into();
                },
            }
            self.stats.sent_bytes.fetch_add(len, Ordering::Relaxed);
        }
    }

    /// Waits until something is to be sent; says whether there will ever be.
    async fn wait_for_more(&mut self) -> bool {
        if self.begun.is_empty() {
            match self.queue.recv().await {
                Some(post) => self.begin(post),
                None => return false,
            }
        }
        true
    }

    fn begin(&mut self, post: Post) {
        self.stats.queued.fetch_sub(1, Ordering::Relaxed);
        self.begun = post.into();
    }

    /// Puts what waits into a frame, as far as it fits: the receiver has nothing of a frame before it has all
    /// of it.
    fn fill(&mut self, frame: &mut Frame) {
        let mut bytes = 0;
        loop {
            let moved = self.begun.fill(frame, self.config.frame_bytes - bytes);
            self.taken(moved as u64);
            bytes += moved;
            if bytes >= self.config.frame_bytes || !frame.takes_more() {
                return;
            }
            match self.queue.try_recv() {
                Ok(post) => self.begin(post),
                Err(_) => return,
            }
        }
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
    #[error("it does not answer")]
    Silent,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the link is not needed any more")]
    Unneeded,
}

impl From<std::io::Error> for Ended {
    fn from(e: std::io::Error) -> Self {
        Self::Read(e.into())
    }
}

/// The next frame of the other side, which listens.
async fn answer(reader: &mut Reader<OwnedReadHalf>) -> Result<Frame, Ended> {
    let frame = read_frame(reader, ANSWER_BYTES_MAX).await;
    let frame = frame.map_err(|e| match e {
        // No frame begins so: something else speaks there.
        ReadError::Frame(FrameError::Length { .. }) => Ended::NoBroker,
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
