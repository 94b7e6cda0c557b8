//! The side that speaks: one link to one other broker, which comes back by itself.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tidelog_replica::{NodeId, Post};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::convert::{hello, identity_of};
use crate::frame::{
    FRAME_BYTES_MAX, Frame, NOTE_BYTES_MAX, NOTES_MAX, POST_NOTE_BYTES_MAX, POST_NOTES_MAX,
    payload_len,
};
use crate::generated::peer_client::PeerClient;
use crate::service::Sink;
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

fn bytes_of(post: &Post) -> u64 {
    use tidelog_replica::catch_up::CatchUp;
    let raft = post.raft.iter().flat_map(|letter| &letter.payloads);
    let raft = raft.map(payload_len).sum::<usize>();
    let files = post.files.iter().map(|letter| match &letter.what {
        CatchUp::Manifest(bytes) | CatchUp::Part { bytes, .. } => bytes.len(),
        _ => 0,
    });
    let notes = post.notes.iter().map(Bytes::len).sum::<usize>();
    (raft + files.sum::<usize>() + notes) as u64
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
            } else if ended.code() == Code::PermissionDenied {
                // Once for each reason: it is refused again and again.
                if refused.as_deref() != Some(ended.message()) {
                    refused = Some(ended.message().to_owned());
                    tracing::error!(broker = self.to, address = %self.address, why = ended.message(),
                        "a broker does not listen to this one");
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
        while let Ok(post) = self.queue.try_recv() {
            self.taken(&post);
            self.stats.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn taken(&self, post: &Post) {
        self.stats.queued.fetch_sub(1, Ordering::Relaxed);
        let bytes = bytes_of(post);
        self.stats.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    async fn connect_and_send(&mut self) -> Status {
        let connected = timeout(self.config.connect_timeout, self.connect()).await;
        match connected {
            Ok(Ok((frames, answers))) => self.send_on(frames, answers).await,
            Ok(Err(status)) => status,
            Err(_elapsed) => Status::deadline_exceeded("it does not answer"),
        }
    }

    /// Connects, says hello, and waits for the other's.
    async fn connect(&self) -> Result<(mpsc::Sender<Frame>, Streaming<Frame>), Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        let endpoint = endpoint.map_err(|e| Status::invalid_argument(e.to_string()))?;
        let endpoint = endpoint
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel: Channel = endpoint
            .connect()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let mut client = PeerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        // Only what is being sent: what waits, waits in the queue.
        let (frames, outgoing) = mpsc::channel(1);
        let first = frames.send(hello(&self.own, self.to)).await;
        first.map_err(|_| Status::internal("there is nobody to send"))?;
        let answers = client.link(ReceiverStream::new(outgoing)).await?;
        let mut answers = answers.into_inner();
        let first = answers.message().await?;
        let answered = first.and_then(|frame| frame.meta.hello);
        let answered = answered.ok_or_else(|| Status::data_loss("it does not say hello"))?;
        let who = identity_of(&answered).filter(|_| answered.version == PROTOCOL_VERSION);
        if who.is_none_or(|who| (who.cluster_id, who.node_id) != (self.own.cluster_id, self.to)) {
            let what = format!("another broker answers at {}", self.address);
            return Err(Status::failed_precondition(what));
        }
        self.stats.state.send_modify(|state| {
            state.is_connected = true;
            state.connections += 1;
        });
        Ok((frames, answers))
    }

    /// Sends what there is until the connection ends, and says why it did.
    async fn send_on(&mut self, frames: mpsc::Sender<Frame>, answers: Streaming<Frame>) -> Status {
        let began = Instant::now();
        let micros = |now: Instant| u64::try_from((now - began).as_micros()).unwrap_or(u64::MAX);
        let mut pings = interval(self.config.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answered_at = Instant::now();
        let mut answers = pin!(answers);
        let mut ready: Option<Frame> = None;
        loop {
            tokio::select! {
                answer = answers.next() => match answer {
                    Some(Ok(frame)) => {
                        answered_at = Instant::now();
                        let sent_at = frame.meta.pong.saturating_sub(1);
                        let took = micros(answered_at).saturating_sub(sent_at);
                        let took = Some(Duration::from_micros(took));
                        self.stats.state.send_modify(|state| state.round_trip = took);
                    }
                    Some(Err(status)) => return status,
                    None => return Status::unavailable("it has ended the connection"),
                },
                _ = pings.tick() => {
                    if answered_at.elapsed() > self.config.ping_timeout {
                        return Status::deadline_exceeded("it does not answer to pings");
                    }
                    let mut frame = Frame::default();
                    // 0 would be none.
                    frame.meta.ping = micros(Instant::now()) + 1;
                    // Behind what is under way: where nothing moves, no ping does.
                    drop(frames.try_send(frame));
                },
                place = frames.reserve(), if ready.is_some() => match place {
                    Ok(place) => {
                        if let Some(frame) = ready.take() {
                            let len = frame.len_bytes() as u64;
                            self.stats.sent_bytes.fetch_add(len, Ordering::Relaxed);
                            place.send(frame);
                        }
                    }
                    Err(_) => return Status::unavailable("it takes no more"),
                },
                post = self.queue.recv(), if ready.is_none() => match post {
                    Some(post) => ready = Some(self.frame_of(post)),
                    None => return Status::cancelled("the link is not needed any more"),
                },
            }
        }
    }

    /// One frame of a post and those that wait behind it, as far as they fit.
    fn frame_of(&mut self, first: Post) -> Frame {
        let mut frame = Frame::default();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(post) = next {
            self.taken(&post);
            bytes += usize::try_from(bytes_of(&post)).unwrap_or(usize::MAX);
            frame.push(post);
            let is_room = frame.meta.notes.len() < NOTES_MAX - POST_NOTES_MAX
                && frame.meta.raft.len() < LETTERS_MAX;
            next = if is_room && bytes < self.config.frame_bytes {
                self.queue.try_recv().ok()
            } else {
                None
            };
        }
        frame
    }
}

/// With so many letters of replicas no more posts join a frame: what it says of each is bounded together.
const LETTERS_MAX: usize = 8192;
/// What is on its way without having been read.
const WINDOW_BYTES: u32 = 16 << 20;
/// Answers are hellos and pongs.
const ANSWER_BYTES_MAX: usize = 4 << 10;
const _: () = assert!(ANSWER_BYTES_MAX < FRAME_BYTES_MAX);
