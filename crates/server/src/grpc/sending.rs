//! What a call's answer holds until it was sent.
//!
//! The layers below take a message as soon as there is one, and keep its encoded form for as long as
//! the client's window is closed. So the room that a message takes goes with those bytes
//! ([`Sending`]), and is given back when HTTP/2 lets go of them.
//!
//! The gRPC library encodes all messages of a stream into one buffer that it keeps, as large as the
//! largest of them was. A large message is therefore encoded here, into memory of its own; the library
//! is given an empty one, whose place the encoded one takes.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

use crate::connections::UnderWay;
use crate::room::Room;

/// Messages above this many bytes are encoded into memory of their own.
const LARGE: usize = 64 * 1024;

/// The bytes before each message: whether it is compressed, and its length.
pub(super) const PREFIX: usize = 5;

/// What the messages of one call hold between the call and [`Sending`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    /// Large messages whose places empty ones hold.
    large: VecDeque<Bytes>,
    /// What the other messages hold that were given to the library since its last bytes.
    rooms: Vec<Room>,
    /// Why the request broke off.
    broken: Option<Status>,
}

/// Bytes that hold room.
struct Held {
    bytes: Bytes,
    _rooms: Vec<Room>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn held(bytes: Bytes, rooms: Vec<Room>) -> Bytes {
    if rooms.is_empty() {
        return bytes;
    }
    Bytes::from_owner(Held {
        bytes,
        _rooms: rooms,
    })
}

impl Outgoing {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message as the library is to encode it.
    pub(super) fn pass<M: prost::Message + Default>(&self, message: M, room: Option<Room>) -> M {
        let len = message.encoded_len();
        let Some(len_sent) = u32::try_from(len).ok().filter(|_| len > LARGE) else {
            self.queue().rooms.extend(room);
            return message;
        };
        let mut bytes = Vec::with_capacity(PREFIX + len);
        bytes.put_u8(0);
        bytes.put_u32(len_sent);
        message
            .encode(&mut bytes)
            .expect("a vector has room for everything");
        drop(message);
        let bytes = held(bytes.into(), room.into_iter().collect());
        self.queue().large.push_back(bytes);
        M::default()
    }

    /// Whether a large message waits for the library to send the empty one in its place.
    pub(super) fn has_large(&self) -> bool {
        !self.queue().large.is_empty()
    }

    /// Takes the room of the only answer.
    pub(super) fn hold(&self, room: Room) {
        self.queue().rooms.push(room);
    }

    /// Says why the request broke off, for services that do not.
    pub(super) fn broke(&self, status: Status) {
        self.queue().broken = Some(status);
    }
}

/// The body of an answer, whose bytes hold what their messages held.
pub(super) struct Sending {
    inner: Body,
    outgoing: Outgoing,
    ready: VecDeque<Bytes>,
    _under_way: Option<UnderWay>,
}

impl Sending {
    pub(super) fn new(inner: Body, outgoing: Outgoing, under_way: Option<UnderWay>) -> Self {
        Self {
            inner,
            outgoing,
            ready: VecDeque::new(),
            _under_way: under_way,
        }
    }

    /// Puts large messages in their places among what the library encoded.
    fn prepare(&mut self, data: &Bytes) {
        let mut queue = self.outgoing.queue();
        let mut rooms = mem::take(&mut queue.rooms);
        let (mut from, mut at) = (0, 0);
        while let Some(prefix) = data
            .get(at..at + PREFIX)
            .filter(|_| !queue.large.is_empty())
        {
            let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
            if len == 0
                && let Some(large) = queue.large.pop_front()
            {
                if at > from {
                    let before = data.slice(from..at);
                    self.ready.push_back(held(before, mem::take(&mut rooms)));
                }
                self.ready.push_back(large);
                from = at + PREFIX;
            }
            at = at.saturating_add(PREFIX).saturating_add(len as usize);
        }
        if from < data.len() {
            self.ready.push_back(held(data.slice(from..), rooms));
        }
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.prepare(&data),
                Err(frame) => {
                    let ended_well = |trailers: &http::HeaderMap| {
                        trailers.get("grpc-status").is_some_and(|code| code == "0")
                    };
                    let broken = self.outgoing.queue().broken.take();
                    return Poll::Ready(Some(Ok(match broken {
                        Some(status) if frame.trailers_ref().is_some_and(ended_well) => {
                            let mut trailers = http::HeaderMap::new();
                            match status.add_header(&mut trailers) {
                                Ok(()) => Frame::trailers(trailers),
                                Err(_) => frame,
                            }
                        }
                        _ => frame,
                    })));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.inner.is_end_stream()
    }
}
