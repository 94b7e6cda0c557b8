//! The side that listens.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tidelog_proto::internal::v1::{PeerAnswer, PeerEnd, PeerQuestion};
use tidelog_replica::{Delivery, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status};

use crate::ask::ASK_BYTES_MAX;
use crate::convert::{delivery, hello, identity_of};
use crate::frame::{FRAME_BYTES_MAX, Frame};
use crate::generated::questions_server::{Questions, QuestionsServer};
use crate::wire::{PREFACE, ReadError, Reader, read_frame, reader, write_end, write_frame};
use crate::{Identity, PROTOCOL_VERSION};

#[cfg(test)]
mod tests;

/// Where what comes of other brokers goes.
pub trait Sink: std::fmt::Debug + Send + Sync + 'static {
    /// Takes a delivery. Nothing more is read from that broker until this is done.
    fn deliver(&self, delivery: Delivery) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// What was sent to a broker lately may not have arrived. Never waits.
    fn unreachable(&self, node: NodeId);

    /// A broker has said hello here, so it runs: whoever waits before it tries to connect to it again need not.
    /// Never waits.
    fn greeted(&self, node: NodeId);

    /// The link to a broker is there, from its beginning or again. Never waits.
    fn connected(&self, node: NodeId);

    /// A broker does not listen to this one, and says why; it is told each time. Never waits.
    fn refused(&self, _node: NodeId, _why: &str) {}
}

/// Why a broker is not listened to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Who may speak here, beyond being of this cluster.
pub trait Gate: std::fmt::Debug + Send + Sync + 'static {
    /// Whether the broker is one of the cluster, with the data directory it is known by.
    ///
    /// # Errors
    /// [`Refused`], with what it is to be told.
    fn admit(&self, who: &Identity) -> Result<(), Refused>;
}

/// What is asked of this broker before there is a link.
pub trait Answers: std::fmt::Debug + Send + Sync + 'static {
    /// Answers. What is in the question was not checked, but for its length.
    fn answer(
        &self,
        question: PeerQuestion,
    ) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send + '_>>;
}

/// How long whoever connects may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest frame with a hello.
const HELLO_BYTES_MAX: usize = 4 << 10;
/// A link over which nothing has come for so long is given up: its pings come much more often.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Whoever was heard within this time runs: its pings come much more often.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// How often, and how many times, it is looked whether a process has ended before another one is refused that
/// speaks for the same broker: of one that was killed it takes a moment to hear.
const ENDED_CHECK: (Duration, u32) = (Duration::from_millis(50), 20);
/// How long an answer to a question may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the other side may take to make room for what it is told: a few bytes.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);

/// That the link of a broker ended is said so often at most.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// Listens to other brokers.
#[derive(Clone, Debug)]
pub struct PeerService {
    own: Arc<OnceLock<Identity>>,
    gate: Arc<dyn Gate>,
    sink: Arc<dyn Sink>,
    answers: Arc<dyn Answers>,
    /// Of each broker that was greeted its last link.
    links: Arc<Mutex<BTreeMap<NodeId, LastLink>>>,
    /// How many were begun to be greeted.
    connections: Arc<AtomicU64>,
    /// When it was said last of each broker that its link ended.
    said_at: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
}

/// The link over the last connection of a broker that was greeted.
#[derive(Debug)]
struct LastLink {
    /// The number of its connection.
    number: u64,
    who: Identity,
    /// When something came over it last; gone with it.
    heard: Weak<Mutex<Instant>>,
    /// Ends it when it is dropped.
    _end: oneshot::Sender<()>,
}

impl LastLink {
    /// Whether another process than that of `who` speaks over it, from the same directory: one of them
    /// has a copy.
    fn is_of_another(&self, who: &Identity) -> bool {
        let is_known = ![self.who.process_id, who.process_id].contains(&[0; 16]);
        let is_other = self.who.process_id != who.process_id;
        let is_copy = is_known && is_other && self.who.directory_id == who.directory_id;
        is_copy && self.heard.upgrade().is_some_and(|heard| is_lately(&heard))
    }
}

fn is_lately(heard: &Mutex<Instant>) -> bool {
    let at = *heard.lock().unwrap_or_else(PoisonError::into_inner);
    at.elapsed() < HEARD_WITHIN
}

/// Whether a connection is a link, by the first byte that comes over it; otherwise it begins HTTP/2, for
/// [questions](PeerService::questions).
pub const fn begins_link(first: u8) -> bool {
    first == PREFACE[0]
}

/// Why a link is not listened to any more.
#[derive(Debug, Error)]
#[error("{cause}")]
pub struct LinkEnded {
    cause: String,
    /// It is because of who it is.
    is_refused: bool,
}

impl LinkEnded {
    fn of(cause: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            is_refused: false,
        }
    }

    fn refused(cause: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            is_refused: true,
        }
    }
}

impl From<ReadError> for LinkEnded {
    fn from(e: ReadError) -> Self {
        Self::of(e.to_string())
    }
}

impl From<std::io::Error> for LinkEnded {
    fn from(e: std::io::Error) -> Self {
        ReadError::from(e).into()
    }
}

/// A link that was let in.
#[derive(Debug)]
pub struct Greeted<T> {
    service: PeerService,
    own: NodeId,
    who: Identity,
    io: Reader<T>,
    superseded: oneshot::Receiver<()>,
    heard: Arc<Mutex<Instant>>,
}

impl PeerService {
    /// Listens for the broker `own`. As long as it does not know its cluster, it answers to questions, and
    /// nobody is linked to it.
    pub fn new(
        own: Arc<OnceLock<Identity>>,
        gate: Arc<dyn Gate>,
        sink: Arc<dyn Sink>,
        answers: Arc<dyn Answers>,
    ) -> Self {
        Self {
            own,
            gate,
            sink,
            answers,
            links: Arc::default(),
            connections: Arc::default(),
            said_at: Arc::default(),
        }
    }

    /// Whether something is to be said of a broker now, as of one whose links end again and again not always.
    fn may_say(&self, node: NodeId) -> bool {
        let mut said_at = self.said_at.lock().unwrap_or_else(PoisonError::into_inner);
        let before = said_at.get(&node);
        let may = before.is_none_or(|at| at.elapsed() >= SAY_INTERVAL);
        if may {
            said_at.insert(node, Instant::now());
        }
        may
    }

    /// What answers to questions, to be put behind a listener.
    pub fn questions(&self) -> QuestionsServer<Self> {
        QuestionsServer::new(self.clone()).max_decoding_message_size(ASK_BYTES_MAX)
    }

    /// Takes the hello of a link, within a few seconds, and answers to it. A link that the same broker has
    /// ends, unless it was begun to be greeted later: it is of before. As long as another process is heard that
    /// speaks for the same broker from the same data directory, this one is refused.
    ///
    /// # Errors
    /// [`LinkEnded`], which the other side was told if it takes what it is told.
    pub async fn greet<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: T,
    ) -> Result<Greeted<T>, LinkEnded> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut io = reader(io);
        let greeted = timeout(HELLO_TIMEOUT, self.hear_hello(&mut io)).await;
        let greeted = greeted.unwrap_or_else(|_| Err(LinkEnded::of("no hello came")));
        let (own, who) = match greeted {
            Ok(known) => known,
            Err(ended) => {
                tell_end(&mut io, &ended).await;
                return Err(ended);
            }
        };
        let answer = hello(&own, who.node_id);
        let told = timeout(TELL_TIMEOUT, write_frame(&mut io, &answer)).await;
        told.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
        let (every, times) = ENDED_CHECK;
        for _ in 0..times {
            if !self.is_of_another(&who) {
                break;
            }
            tokio::time::sleep(every).await;
        }
        let heard = Arc::new(Mutex::new(Instant::now()));
        let begun = self.supersede(&who, number, &heard);
        let superseded = match begun {
            Ok(superseded) => superseded,
            Err(ended) => {
                tell_end(&mut io, &ended).await;
                return Err(ended);
            }
        };
        self.sink.greeted(who.node_id);
        Ok(Greeted {
            service: self.clone(),
            own: own.node_id,
            who,
            io,
            superseded,
            heard,
        })
    }

    fn is_of_another(&self, who: &Identity) -> bool {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let last = links.get(&who.node_id);
        last.is_some_and(|last| last.is_of_another(who))
    }

    /// Ends the link that a broker has over an earlier connection; gives what tells of the end of this one.
    fn supersede(
        &self,
        who: &Identity,
        number: u64,
        heard: &Arc<Mutex<Instant>>,
    ) -> Result<oneshot::Receiver<()>, LinkEnded> {
        let node = who.node_id;
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        match links.get(&node) {
            Some(last) if last.is_of_another(who) => {
                return Err(LinkEnded::refused(format!(
                    "another process runs as broker {node} with the same data directory: it was copied, or is \
                     still in use elsewhere; stop one of the two"
                )));
            }
            Some(last) if last.number > number => return Err(LinkEnded::of(SUPERSEDED)),
            _ => {}
        }
        let (end, ended) = oneshot::channel();
        let link = LastLink {
            number,
            who: *who,
            heard: Arc::downgrade(heard),
            _end: end,
        };
        // The receiver of the one before hears that its sender is gone.
        links.insert(node, link);
        Ok(ended)
    }

    async fn hear_hello<T: AsyncRead + Unpin>(
        &self,
        io: &mut Reader<T>,
    ) -> Result<(Identity, Identity), LinkEnded> {
        let mut preface = [0; PREFACE.len()];
        io.read_exact(&mut preface).await?;
        if preface != *PREFACE {
            let what = "this port is for brokers of the cluster";
            return Err(LinkEnded::refused(what));
        }
        let first = read_frame(io, HELLO_BYTES_MAX).await?;
        let first = first.ok_or_else(|| LinkEnded::of("no hello came"))?;
        let own = self.own.get().copied();
        let own =
            own.ok_or_else(|| LinkEnded::of("this broker does not belong to a cluster yet"))?;
        Ok((own, self.admit(&own, &first)?))
    }

    fn admit(&self, own: &Identity, frame: &Frame<Bytes>) -> Result<Identity, LinkEnded> {
        let Some(said) = &frame.meta.hello else {
            return Err(LinkEnded::of("the first frame has no hello"));
        };
        if said.version != PROTOCOL_VERSION {
            let what = format!(
                "version {PROTOCOL_VERSION} of the peer protocol is spoken here, not {}",
                said.version
            );
            return Err(LinkEnded::refused(what));
        }
        let who = identity_of(said);
        let who = who.ok_or_else(|| LinkEnded::of("ids have 16 bytes"))?;
        if who.cluster_id != own.cluster_id {
            return Err(LinkEnded::refused("this is another cluster"));
        }
        if said.to_node_id != own.node_id {
            let what = format!("this is broker {}", own.node_id);
            return Err(LinkEnded::of(what));
        }
        let admitted = self.gate.admit(&who);
        admitted.map_err(|refused| LinkEnded::refused(refused.0))?;
        Ok(who)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Greeted<T> {
    /// Takes what comes until it ends.
    pub async fn listen(mut self) {
        let ended = loop {
            match self.hear().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(ended) => break ended,
            }
        };
        if self.service.may_say(self.who.node_id) {
            tracing::warn!(broker = self.who.node_id, why = %ended,
                "a broker is not listened to any more");
        }
        tell_end(&mut self.io, &ended).await;
    }

    /// Takes one frame; says whether there was one.
    async fn hear(&mut self) -> Result<bool, LinkEnded> {
        let read = timeout(SILENCE_MAX, read_frame(&mut self.io, FRAME_BYTES_MAX));
        let read = tokio::select! {
            read = read => read.map_err(|_| LinkEnded::of("nothing comes any more"))?,
            _ = &mut self.superseded => return Err(LinkEnded::of(SUPERSEDED)),
        };
        let Some(frame) = read? else {
            return Ok(false);
        };
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if frame.meta.ping != 0 {
            let mut pong = Frame::default();
            pong.meta.pong = frame.meta.ping;
            // To its end: what is written next is a frame of its own.
            let told = timeout(TELL_TIMEOUT, write_frame(&mut self.io, &pong)).await;
            told.map_err(|_| LinkEnded::of("it does not read what it is told"))??;
        }
        // It may have been replaced or removed since it said hello.
        let admitted = self.service.gate.admit(&self.who);
        admitted.map_err(|refused| LinkEnded::refused(refused.0))?;
        let delivery = delivery(frame, self.who.node_id, self.own).map_err(ReadError::from)?;
        if !is_empty(&delivery) {
            tokio::select! {
                () = self.service.sink.deliver(delivery) => {}
                _ = &mut self.superseded => return Err(LinkEnded::of(SUPERSEDED)),
            }
        }
        Ok(true)
    }
}

/// Why a link ends whose broker has connected again.
const SUPERSEDED: &str = "another connection of the same broker has come";

async fn tell_end<T: AsyncRead + AsyncWrite + Unpin>(io: &mut Reader<T>, ended: &LinkEnded) {
    let end = PeerEnd {
        cause: ended.cause.clone(),
        refused: ended.is_refused,
    };
    write_end(io, end, TELL_TIMEOUT).await;
}

fn is_empty(delivery: &Delivery) -> bool {
    delivery.raft.is_empty() && delivery.files.is_empty() && delivery.notes.is_empty()
}

#[tonic::async_trait]
impl Questions for PeerService {
    async fn ask(&self, request: Request<PeerQuestion>) -> Result<Response<PeerAnswer>, Status> {
        let answer = timeout(ANSWER_TIMEOUT, self.answers.answer(request.into_inner())).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("the answer takes too long"))?;
        Ok(Response::new(answer))
    }
}
