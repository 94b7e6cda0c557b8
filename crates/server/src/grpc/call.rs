//! What surrounds every call: the bytes it may send, its deadline, and a reason for every error.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tidelog_broker::Broker;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use super::sending::{Outgoing, Sending};
use super::status::{Failure, RequestError, sort_foreign};
use crate::metrics::ListenerMetrics;
use crate::room::Room;

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
}

impl Around {
    pub(crate) fn new(broker: Broker, metrics: ListenerMetrics, receiving_max: usize) -> Self {
        let receiving = Receiving {
            bytes: AtomicUsize::new(0),
            max: receiving_max,
            metrics,
        };
        Self {
            broker,
            receiving: Arc::new(receiving),
        }
    }

    pub(crate) fn around<S>(self, inner: S) -> Calls<S> {
        Calls {
            inner,
            around: self,
        }
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
        response.map(|inner| Body::new(Sending::new(inner, outgoing)))
    }
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let around = self.around.clone();
        let path = request.uri().path().to_owned();
        let timeout = timeout(request.headers());
        let meter = Meter(Arc::new(Metered {
            own: AtomicUsize::new(0),
            all: around.receiving.clone(),
        }));
        let mut request = request.map({
            let (meter, broker) = (meter.clone(), around.broker.clone());
            |inner| {
                Body::new(MeteredBody {
                    inner,
                    meter,
                    broker,
                })
            }
        });
        let outgoing = Outgoing::default();
        request.extensions_mut().insert(meter);
        request.extensions_mut().insert(outgoing.clone());
        let call = self.inner.call(request);
        Box::pin(async move {
            let Some(timeout) = timeout else {
                let Ok(response) = call.await;
                return Ok(around.finish(response, &path, outgoing));
            };
            // A little early: at the deadline itself the client has given up, and tonic answers
            // in words of its own.
            let patience = timeout - (timeout / 10).min(Duration::from_millis(10));
            match tokio::time::timeout(patience, call).await {
                Ok(Ok(response)) => Ok(around.finish(response, &path, outgoing)),
                Err(_elapsed) => {
                    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                    Ok(around.answer(RequestError::DeadlinePassed { timeout_ms }.into()))
                }
            }
        })
    }
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
    all: Arc<Receiving>,
}

impl Meter {
    /// Counts bytes that came; `Err` with the limit when they are too many.
    fn add(&self, len: usize) -> Result<(), usize> {
        let Metered { own, all } = &*self.0;
        own.fetch_add(len, Ordering::Relaxed);
        let before = all.bytes.fetch_add(len, Ordering::Relaxed);
        all.metrics
            .receiving_bytes
            .add(i64::try_from(len).unwrap_or(i64::MAX));
        if before.saturating_add(len) > all.max {
            Err(all.max)
        } else {
            Ok(())
        }
    }

    /// Counts what a message takes beside its bytes once it is decoded.
    pub(crate) fn decoded(&self, len: usize) -> Result<(), RequestError> {
        self.add(len)
            .map_err(|limit| RequestError::Receiving { limit })
    }

    /// What the message took is counted elsewhere from now on, or no more. What came of the next
    /// one already, less than a frame, is let go too.
    pub(crate) fn message_is_taken(&self) {
        self.0.clear();
    }
}

impl Metered {
    fn clear(&self) {
        let own = self.own.swap(0, Ordering::Relaxed);
        self.all.bytes.fetch_sub(own, Ordering::Relaxed);
        self.all
            .metrics
            .receiving_bytes
            .sub(i64::try_from(own).unwrap_or(i64::MAX));
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.clear();
    }
}

struct MeteredBody {
    inner: Body,
    meter: Meter,
    broker: Broker,
}

impl http_body::Body for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(limit) = self.meter.add(data.len())
        {
            let failure = Failure::from(RequestError::Receiving { limit });
            return Poll::Ready(Some(Err(failure.status(self.broker.metrics()))));
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

#[cfg(test)]
mod tests {
    use std::future::{Pending, pending};

    use tidelog_broker::{BrokerConfig, Seams};
    use tidelog_sim::SimDisk;
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("3S"), Some(Duration::from_secs(3)));
        assert_eq!(read("40m"), Some(Duration::from_millis(40)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "m", "1", "123456789S", "-1S", "1s", "1.5S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    /// A service that never answers.
    struct Silent;

    impl Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pending<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            pending()
        }
    }

    #[tokio::test]
    async fn a_deadline_that_passes_is_answered_with_a_reason() {
        let disk = Arc::new(SimDisk::new(1));
        let config = BrokerConfig {
            data_dir: "/data".into(),
            ..BrokerConfig::default()
        };
        let opened = move || {
            Broker::open(
                config,
                Seams {
                    disk,
                    ..Seams::os()
                },
            )
        };
        let broker = tokio::task::spawn_blocking(opened).await.unwrap().unwrap();
        let metrics = ListenerMetrics::new(broker.metrics().registry());
        let mut calls = Around::new(broker.clone(), metrics, 1000).around(Silent);
        let mut request = Request::new(Body::empty());
        request
            .headers_mut()
            .insert("grpc-timeout", "5m".parse().unwrap());
        let Ok(response) = calls.call(request).await;
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.metadata["timeout_ms"].as_str()),
            ("DEADLINE_EXCEEDED", "5",)
        );
        assert!(
            status.get_details_retry_info().is_none(),
            "it may have been done"
        );
        assert!(broker.metrics_text().contains("DEADLINE_EXCEEDED"));
        broker.stop().await.unwrap();
    }
}
