//! The side that listens.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use thiserror::Error;
use tidelog_proto::internal::v1::{PeerAnswer, PeerQuestion};
use tidelog_replica::{Delivery, NodeId};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::ask::ASK_BYTES_MAX;
use crate::convert::{delivery, hello, identity_of};
use crate::frame::{FRAME_BYTES_MAX, Frame};
use crate::generated::peer_server::{Peer, PeerServer};
use crate::generated::questions_server::{Questions, QuestionsServer};
use crate::{Identity, PROTOCOL_VERSION};

/// Where what comes of other brokers goes.
pub trait Sink: std::fmt::Debug + Send + Sync + 'static {
    /// Takes a delivery. Nothing more is read from that broker until this is done.
    fn deliver(&self, delivery: Delivery) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// What was sent to a broker lately may not have arrived. Never waits.
    fn unreachable(&self, node: NodeId);
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
/// A link over which nothing has come for so long is given up: its pings come much more often.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers that wait to be sent at most.
const ANSWERS_MAX: usize = 16;

/// Listens to other brokers.
#[derive(Clone, Debug)]
pub struct PeerService {
    own: Arc<OnceLock<Identity>>,
    gate: Arc<dyn Gate>,
    sink: Arc<dyn Sink>,
    answers: Arc<dyn Answers>,
}

impl PeerService {
    /// The services of the broker `own`, to be put behind a listener. As long as it does not know its
    /// cluster, it answers to questions, and nobody is linked to it.
    pub fn servers(
        own: Arc<OnceLock<Identity>>,
        gate: Arc<dyn Gate>,
        sink: Arc<dyn Sink>,
        answers: Arc<dyn Answers>,
    ) -> (PeerServer<Self>, QuestionsServer<Self>) {
        let service = Self {
            own,
            gate,
            sink,
            answers,
        };
        let questions = QuestionsServer::new(service.clone());
        let peer = PeerServer::new(service);
        (
            peer.max_decoding_message_size(FRAME_BYTES_MAX),
            questions.max_decoding_message_size(ASK_BYTES_MAX),
        )
    }

    fn own(&self) -> Result<Identity, Status> {
        let own = self.own.get().copied();
        own.ok_or_else(|| Status::unavailable("this broker does not belong to a cluster yet"))
    }

    fn greet(&self, own: &Identity, frame: &Frame) -> Result<Identity, Status> {
        let Some(said) = &frame.meta.hello else {
            return Err(Status::unauthenticated(
                "this port is for brokers of the cluster",
            ));
        };
        if said.version != PROTOCOL_VERSION {
            let what = format!(
                "version {PROTOCOL_VERSION} of the peer protocol is spoken here, not {}",
                said.version
            );
            return Err(Status::failed_precondition(what));
        }
        let who = identity_of(said);
        let who = who.ok_or_else(|| Status::invalid_argument("ids have 16 bytes"))?;
        if who.cluster_id != own.cluster_id {
            return Err(Status::permission_denied("this is another cluster"));
        }
        if said.to_node_id != own.node_id {
            let what = format!("this is broker {}", own.node_id);
            return Err(Status::failed_precondition(what));
        }
        let admitted = self.gate.admit(&who);
        admitted.map_err(|refused| Status::permission_denied(refused.0))?;
        Ok(who)
    }

    /// Takes what comes until it ends.
    async fn listen(
        self,
        own: NodeId,
        who: Identity,
        mut frames: Streaming<Frame>,
        answers: mpsc::Sender<Result<Frame, Status>>,
    ) {
        let from = who.node_id;
        let ended = loop {
            let frame = match timeout(SILENCE_MAX, frames.message()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => return,
                Ok(Err(status)) => break status,
                Err(_elapsed) => break Status::deadline_exceeded("nothing comes any more"),
            };
            if frame.meta.ping != 0 {
                let mut pong = Frame::default();
                pong.meta.pong = frame.meta.ping;
                // Whoever reads no answers gets none.
                drop(answers.try_send(Ok(pong)));
            }
            // It may have been replaced or removed since it said hello.
            if let Err(refused) = self.gate.admit(&who) {
                break Status::permission_denied(refused.0);
            }
            match delivery(frame, from, own) {
                Ok(delivery) if is_empty(&delivery) => {}
                Ok(delivery) => self.sink.deliver(delivery).await,
                Err(e) => break e.into(),
            }
        };
        tracing::warn!(broker = from, why = %ended, "a broker is not listened to any more");
        drop(answers.send(Err(ended)).await);
    }
}

fn is_empty(delivery: &Delivery) -> bool {
    delivery.raft.is_empty() && delivery.files.is_empty() && delivery.notes.is_empty()
}

#[tonic::async_trait]
impl Peer for PeerService {
    type LinkStream = ReceiverStream<Result<Frame, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut frames = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let first = first.ok_or_else(|| Status::unauthenticated("no hello came"))?;
        let own = self.own()?;
        let who = self.greet(&own, &first)?;
        let (answers, outgoing) = mpsc::channel(ANSWERS_MAX);
        let answered = answers.try_send(Ok(hello(&own, who.node_id)));
        answered.map_err(|_| Status::internal("there is room for one answer"))?;
        tokio::spawn(self.clone().listen(own.node_id, who, frames, answers));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl Questions for PeerService {
    async fn ask(&self, request: Request<PeerQuestion>) -> Result<Response<PeerAnswer>, Status> {
        let answer = timeout(ANSWER_TIMEOUT, self.answers.answer(request.into_inner())).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("the answer takes too long"))?;
        Ok(Response::new(answer))
    }
}
