//! What connections of clients may hold: a place, and so many bytes each and all together.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::transport::server::Connected;

use crate::accepting::{Admit, Held};
use crate::config::Limits;
use crate::connections::{Added, Caller, Connections, Open, UnderWay};
use crate::grpc::HeldBytes;
use crate::metrics::{Counted, ListenerMetrics};
use crate::room::{Alone, Budget, Room, Total};

/// It is said so often at most that connections are refused.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// Which connections of clients are admitted.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    metrics: ListenerMetrics,
    unsent: Arc<Total>,
    asked: Arc<Total>,
    open: Connections,
    /// When it was said last that no more are let in.
    said_full_at: Option<Instant>,
}

impl Admission {
    pub(crate) fn new(
        limits: &Limits,
        metrics: ListenerMetrics,
        unsent: Arc<Total>,
        asked: Arc<Total>,
    ) -> Self {
        Self {
            unsent,
            asked,
            open: Connections::new(limits.connections_max),
            said_full_at: None,
            limits: limits.clone(),
            metrics,
        }
    }

    /// Whoever is refused sees a connection that breaks, and no reason.
    fn say_full(&mut self) {
        let is_due = |at: Instant| at.elapsed() >= SAY_INTERVAL;
        if self.said_full_at.is_none_or(is_due) {
            self.said_full_at = Some(Instant::now());
            tracing::warn!(
                connections_max = self.limits.connections_max,
                "clients are refused: each of the connections that there may be has a call under way"
            );
        }
    }

    /// Those that were accepted and are open.
    pub(crate) fn connections(&self) -> Connections {
        self.open.clone()
    }
}

impl Admit for Admission {
    type Held = Admitted;

    fn admit(&mut self) -> Option<Admitted> {
        let open = match self.open.add() {
            Added::Free(open) => open,
            Added::InPlaceOfAnother(open) => {
                self.metrics.made_room.inc();
                open
            }
            Added::Refused => {
                self.metrics.refused.inc();
                self.say_full();
                return None;
            }
        };
        let (unsent, asked) = (self.unsent.clone(), self.asked.clone());
        Some(Admitted {
            peer: Peer::new(&self.limits, unsent, asked, Some(open.caller())),
            open,
            _counted: Counted::new(self.metrics.connections.clone()),
        })
    }

    fn handshake_timeout(&self) -> Duration {
        self.limits.handshake_timeout
    }
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
    /// The connection, where it came through our transport.
    caller: Option<Caller>,
}

impl Peer {
    /// `unsent` and `asked` are what all connections share.
    pub(crate) fn new(
        limits: &Limits,
        unsent: Arc<Total>,
        asked: Arc<Total>,
        caller: Option<Caller>,
    ) -> Self {
        let in_flight_max = limits.connection_in_flight_bytes_max;
        Self(Arc::new(PeerState {
            in_flight: Arc::new(Semaphore::new(in_flight_max)),
            in_flight_max,
            unsent: Budget::new(limits.connection_unsent_bytes_max, unsent),
            asked: Budget::new(limits.connection_unsent_bytes_max, asked),
            receiving: Arc::default(),
            caller,
        }))
    }

    /// A call is under way until what is returned is dropped.
    pub(crate) fn call(&self) -> Option<UnderWay> {
        self.0.caller.as_ref().map(Caller::call)
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

/// What a connection of a client holds.
#[derive(Debug)]
pub(crate) struct Admitted {
    peer: Peer,
    open: Open,
    _counted: Counted,
}

impl Connected for Admitted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Held for Admitted {
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.open.poll_cut(cx)
    }
}
