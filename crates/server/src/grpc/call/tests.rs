//! Calls, and the requests in them, without a network.

use std::future::{Pending, pending};

use futures_util::FutureExt;
use tidelog_broker::{BrokerConfig, Seams};
use tidelog_sim::SimDisk;
use tonic_types::StatusExt;

use super::*;

#[test]
fn of_the_headers_only_those_stay_that_are_read() {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = "http://broker/tidelog.v1.Log/Append".parse().unwrap();
    let all = ["x-large", "cookie"].into_iter().chain(NEEDED);
    for name in all {
        request.headers_mut().append(name, "value".parse().unwrap());
    }
    let len = keep_needed(&mut request);
    let left: Vec<&str> = request.headers().keys().map(|name| name.as_str()).collect();
    assert_eq!(left, NEEDED);
    assert!(left.contains(&"tidelog-passed-on"), "or it goes round");
    let path = request.uri().path();
    assert_eq!(path, "/tidelog.v1.Log/Append");
    let names: usize = NEEDED.iter().map(|name| name.len() + "value".len()).sum();
    assert_eq!(len, names + path.len());
}

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

#[test]
fn messages_are_told_apart_wherever_their_bytes_are_cut() {
    let bytes = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0; 5], &[0, 0, 0, 0, 1, 9]].concat();
    for size in 1..=bytes.len() {
        let mut framing = Framing::default();
        let mut within = Vec::new();
        for part in bytes.chunks(size) {
            framing.advance(part);
            within.push(framing.len);
        }
        assert_eq!((framing.begun, framing.is_within()), (3, false), "{size}");
        if size == 1 {
            let expected = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0];
            assert_eq!(within, expected);
        }
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

async fn calls() -> (Broker, Calls<Silent>) {
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
    let limits = crate::Config::default().limits;
    let calls = Around::new(broker.clone(), metrics, &limits).around(Silent);
    (broker, calls)
}

fn request(timeout: &str) -> Request<Body> {
    let mut request = Request::post("/").body(Body::empty()).unwrap();
    request
        .headers_mut()
        .insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
    request
        .headers_mut()
        .insert("grpc-timeout", timeout.parse().unwrap());
    request
}

#[tokio::test]
async fn a_deadline_that_has_passed_already_is_answered_at_once() {
    let (broker, mut calls) = calls().await;
    for timeout in ["0S", "1n", "1u", "99u"] {
        // The first time that it is looked at: tonic counts too, and may be first at the second.
        let answered = calls.call(request(timeout)).now_or_never();
        let Ok(response) = answered.expect(timeout);
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout}");
    }
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_deadline_that_passes_is_answered_with_a_reason() {
    let (broker, mut calls) = calls().await;
    let Ok(response) = calls.call(request("5m")).await;
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
