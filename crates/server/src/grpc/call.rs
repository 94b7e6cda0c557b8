//! What surrounds every call: the bytes it may send, its deadline, and a reason for every error.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tidelog_broker::Broker;
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use super::elsewhere::PASSED_ON;
use super::sending::{Outgoing, PREFIX, Sending};
use super::status::{Failure, RequestError, sort_foreign};
use crate::config::Limits;
use crate::connections::UnderWay;
use crate::metrics::ListenerMetrics;
use crate::room::Room;
use crate::transport::Peer;

#[cfg(test)]
mod tests;

/// The service around all others.
#[derive(Clone, Debug)]
pub(crate) struct Calls<S> {
    inner: S,
    around: Around,
}

/// What [`Calls`] needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    broker: Broker,
    receiving: Arc<Receiving>,
    /// What one connection may be sending at a time.
    share: usize,
    /// How long an incomplete message may stand still.
    patience: Duration,
}

impl Around {
    pub(crate) fn new(broker: Broker, metrics: ListenerMetrics, limits: &Limits) -> Self {
        let receiving = Receiving {
            bytes: AtomicUsize::new(0),
            max: limits.receiving_bytes_max,
            metrics,
        };
        Self {
            broker,
            receiving: Arc::new(receiving),
            share: limits.connection_receiving_bytes_max,
            patience: limits.receive_timeout,
        }
    }

    pub(crate) fn around<S>(self, inner: S) -> Calls<S> {
        Calls {
            inner,
            around: self,
        }
    }

    fn passed(&self, timeout: Duration) -> Response<Body> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.answer(RequestError::DeadlinePassed { timeout_ms }.into())
    }

    fn answer(&self, failure: Failure) -> Response<Body> {
        failure.status(self.broker.metrics()).into_http()
    }

    /// Gives a reason to an error of the transport's own, and lets a body hold what it must.
    fn finish(
        &self,
        mut response: Response<Body>,
        path: &str,
        outgoing: Outgoing,
        under_way: Option<UnderWay>,
    ) -> Response<Body> {
        if let Some(status) = failed(response.headers())
            && let Some(failure) = sort_foreign(&status, path)
        {
            return self.answer(failure);
        }
        if let Some(room) = response
            .extensions_mut()
            .remove::<HeldBytes>()
            .and_then(HeldBytes::take)
        {
            outgoing.hold(room);
        }
        response.map(|inner| Body::new(Sending::new(inner, outgoing, under_way)))
    }
}

/// The answer to a request that is none of gRPC, as HTTP has it.
fn not_grpc(request: &Request<Body>) -> Option<Response<Body>> {
    let mut response = Response::new(Body::empty());
    if request.method() != Method::POST {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(response);
    }
    let content_type = request.headers().get(CONTENT_TYPE);
    let rest = content_type.and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    if matches!(rest, Some([] | [b'+' | b';', ..])) {
        return None;
    }
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Some(response)
}

/// The error in the headers of an answer that has no body.
fn failed(headers: &HeaderMap) -> Option<Status> {
    if !headers.contains_key("grpc-status") {
        return None;
    }
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(refused) = not_grpc(&request) {
            return Box::pin(std::future::ready(Ok(refused)));
        }
        let around = self.around.clone();
        let path = request.uri().path().to_owned();
        let timeout = timeout(request.headers());
        if let Some(timeout) = timeout.filter(|timeout| *timeout < TIMEOUT_MIN) {
            return Box::pin(std::future::ready(Ok(around.passed(timeout))));
        }
        // A little early, and counted from here on: at the deadline itself the client has given up, and
        // tonic, which begins to count next, answers in words of its own.
        let until = timeout.and_then(|timeout| {
            Instant::now().checked_add(timeout - (timeout / 10).min(Duration::from_millis(10)))
        });
        let peer = request.extensions().get::<Peer>();
        let under_way = peer.and_then(Peer::call);
        let meter = Meter(Arc::new(Metered {
            own: AtomicUsize::new(0),
            connection: peer.map_or_else(Arc::default, Peer::receiving),
            share: around.share,
            all: around.receiving.clone(),
        }));
        let outgoing = Outgoing::default();
        let kept = keep_needed(&mut request);
        if let Err(error) = meter.add(CALL_BYTES + kept) {
            return Box::pin(std::future::ready(Ok(around.answer(error.into()))));
        }
        let mut request = request.map(|inner| {
            Body::new(MeteredBody {
                inner,
                meter: meter.clone(),
                broker: around.broker.clone(),
                outgoing: outgoing.clone(),
                kind: Kind::of(&path),
                framing: Framing::default(),
                patience: around.patience,
                stalled: None,
            })
        });
        request.extensions_mut().insert(meter);
        request.extensions_mut().insert(outgoing.clone());
        let call = self.inner.call(request);
        Box::pin(async move {
            let (Some(timeout), Some(until)) = (timeout, until) else {
                let Ok(response) = call.await;
                return Ok(around.finish(response, &path, outgoing, under_way));
            };
            match tokio::time::timeout_at(until, call).await {
                Ok(Ok(response)) => Ok(around.finish(response, &path, outgoing, under_way)),
                Err(_elapsed) => Ok(around.passed(timeout)),
            }
        })
    }
}

/// A deadline that was nearer than this when the call was made has passed by the time it is here.
const TIMEOUT_MIN: Duration = Duration::from_micros(100);

/// What a call takes at least while its request is awaited, in bytes, about.
const CALL_BYTES: usize = 4 << 10;

/// The headers that somebody here reads.
const NEEDED: [&str; 6] = [
    "content-type",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "te",
    PASSED_ON,
];

/// Leaves the headers that are read, in memory of their own: a call may wait long for its request, and would
/// hold all that came with it. Gives how many bytes they have.
fn keep_needed(request: &mut Request<Body>) -> usize {
    let mut kept = HeaderMap::new();
    let mut len = 0;
    for name in NEEDED {
        let values = request.headers().get_all(name);
        for value in values {
            len += name.len() + value.len();
            let copied = HeaderValue::from_bytes(value.as_bytes());
            kept.append(name, copied.expect("it was one before"));
        }
    }
    *request.headers_mut() = kept;
    // The same for its path. What has none that can be read is not found.
    let path = request.uri().path().to_owned();
    len += path.len();
    *request.uri_mut() = path.parse().unwrap_or_default();
    len
}

/// The deadline that the caller set, as the time it gave: `grpc-timeout`, at most 8 digits and a
/// unit. One that cannot be read counts as none.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The bytes of requests of all connections that are not complete, or wait to be begun.
#[derive(Debug)]
struct Receiving {
    bytes: AtomicUsize,
    max: usize,
    metrics: ListenerMetrics,
}

/// Counts the bytes of one call's request, or of the message that a stream is at, until they are
/// counted elsewhere or nobody holds this any more.
#[derive(Clone, Debug)]
pub(crate) struct Meter(Arc<Metered>);

#[derive(Debug)]
struct Metered {
    own: AtomicUsize,
    /// What all calls of the connection have.
    connection: Arc<AtomicUsize>,
    /// What they may have.
    share: usize,
    all: Arc<Receiving>,
}

impl Meter {
    /// Counts bytes that came, unless they are too many: then the call ends, and gives back what it
    /// has.
    fn add(&self, len: usize) -> Result<(), RequestError> {
        let Metered {
            own,
            connection,
            share,
            all,
        } = &*self.0;
        own.fetch_add(len, Ordering::Relaxed);
        let of_connection = connection.fetch_add(len, Ordering::Relaxed);
        let of_all = all.bytes.fetch_add(len, Ordering::Relaxed);
        all.metrics
            .receiving_bytes
            .add(i64::try_from(len).unwrap_or(i64::MAX));
        if of_connection.saturating_add(len) > *share {
            Err(RequestError::ConnectionReceiving { limit: *share })
        } else if of_all.saturating_add(len) > all.max {
            Err(RequestError::Receiving { limit: all.max })
        } else {
            Ok(())
        }
    }

    /// Counts what a message takes beside its bytes once it is decoded.
    pub(crate) fn decoded(&self, len: usize) -> Result<(), RequestError> {
        self.add(len)
    }

    /// What the message took is counted elsewhere from now on, or no more. What came of the next
    /// one already, less than a frame, is let go too.
    pub(crate) fn message_is_taken(&self) {
        self.0.give_back_above(0);
    }
}

impl Metered {
    fn give_back_above(&self, kept: usize) {
        let own = self.own.fetch_min(kept, Ordering::Relaxed);
        let excess = own.saturating_sub(kept);
        self.connection.fetch_sub(excess, Ordering::Relaxed);
        self.all.bytes.fetch_sub(excess, Ordering::Relaxed);
        self.all
            .metrics
            .receiving_bytes
            .sub(i64::try_from(excess).unwrap_or(i64::MAX));
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.give_back_above(0);
    }
}

/// Who says when a message of a request is counted no more, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One message, until the call lets go of its meter.
    Single,
    /// A stream of ours, that says so.
    Stream,
    /// The same, whose first message asks for something, and so has no reason to be late.
    Asking,
    /// A service that knows nothing of meters: it has taken a message when it asks for more.
    Foreign,
}

impl Kind {
    fn of(path: &str) -> Self {
        match path.strip_prefix("/tidelog.v1.") {
            None if path.starts_with("/grpc.health.v1.Health/") => Self::Single,
            None => Self::Foreign,
            Some("Log/Produce") => Self::Stream,
            Some("Log/Read") => Self::Asking,
            Some(_) => Self::Single,
        }
    }

    /// Whether nothing has to come for a while.
    fn may_be_silent(self, framing: &Framing) -> bool {
        let is_first_due = self == Self::Asking && framing.begun == 0;
        self != Self::Single && !is_first_due && !framing.is_within()
    }
}

/// Where in a request's messages its bytes are.
#[derive(Debug, Default)]
struct Framing {
    /// What came of the prefix of the message under way, and how much of it.
    prefix: [u8; PREFIX],
    prefix_len: usize,
    /// What is still to come of it behind its prefix.
    left: usize,
    /// What came of it.
    len: usize,
    /// How many messages were begun.
    begun: usize,
}

impl Framing {
    fn advance(&mut self, mut data: &[u8]) {
        while let Some(&first) = data.first() {
            let taken;
            if self.left > 0 {
                taken = self.left.min(data.len());
                self.left -= taken;
            } else {
                taken = 1;
                self.begun += usize::from(self.prefix_len == 0);
                self.prefix[self.prefix_len] = first;
                self.prefix_len += 1;
                if self.prefix_len == PREFIX {
                    let [_, a, b, c, d] = self.prefix;
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                }
            }
            self.len += taken;
            if self.left == 0 && self.prefix_len == PREFIX {
                self.prefix_len = 0;
                self.len = 0;
            }
            data = &data[taken..];
        }
    }

    /// Whether a message is incomplete.
    fn is_within(&self) -> bool {
        self.len > 0
    }
}

struct MeteredBody {
    inner: Body,
    meter: Meter,
    broker: Broker,
    outgoing: Outgoing,
    kind: Kind,
    framing: Framing,
    patience: Duration,
    /// Until when the next bytes of an incomplete message must come.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl MeteredBody {
    /// Ends the request.
    fn refuse(&self, error: RequestError) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let status = Failure::from(error).status(self.broker.metrics());
        self.outgoing.broke(status.clone());
        Poll::Ready(Some(Err(status)))
    }
}

impl http_body::Body for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // Until something came the call counts as others do.
        if self.kind == Kind::Foreign && self.framing.begun > 0 {
            self.meter.0.give_back_above(self.framing.len);
        }
        let Poll::Ready(polled) = Pin::new(&mut self.inner).poll_frame(cx) else {
            // One message and no more has no reason to be late, nor has its end.
            if self.kind.may_be_silent(&self.framing) {
                return Poll::Pending;
            }
            let patience = self.patience;
            let stalled = self
                .stalled
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
            ready!(stalled.as_mut().poll(cx));
            let timeout_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            return self.refuse(RequestError::Stalled { timeout_ms });
        };
        self.stalled = None;
        if let Some(Ok(frame)) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.framing.advance(data);
            if self.kind == Kind::Single && self.framing.begun > 1 {
                return self.refuse(RequestError::SecondMessage);
            }
            if let Err(error) = self.meter.add(data.len()) {
                return self.refuse(error);
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// In the extensions of a response: what is given back once its only message was sent.
#[derive(Clone, Debug)]
pub(crate) struct HeldBytes(Arc<Mutex<Option<Room>>>);

impl HeldBytes {
    pub(crate) fn new(room: Room) -> Self {
        Self(Arc::new(Mutex::new(Some(room))))
    }

    fn take(self) -> Option<Room> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
