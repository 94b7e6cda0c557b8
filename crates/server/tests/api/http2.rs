//! What other gRPC implementations do with HTTP/2 and ours does not: frames of their own sizes,
//! and deadlines that they leave to the server.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use tidelog_broker::Seams;
use tidelog_disk::DiskOp;
use tidelog_proto::v1;
use tidelog_sim::{OpFilter, SimDisk};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::support::{Fixture, append_batch, append_records, batch, fetch, in_time, told};

/// A connection whose frames the test makes.
async fn connect(f: &Fixture) -> SendRequest<Bytes> {
    let io = TcpStream::connect(f.server.grpc_addr()).await.unwrap();
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(8 << 20)
        .initial_connection_window_size(64 << 20)
        .handshake(io)
        .await
        .unwrap();
    tokio::spawn(connection);
    requests
}

/// Begins a call.
async fn call(
    requests: &mut SendRequest<Bytes>,
    method: &str,
    timeout: Option<&str>,
) -> (
    impl Future<Output = Result<http::Response<RecvStream>, h2::Error>> + use<>,
    SendStream<Bytes>,
) {
    let mut request = Request::post(format!("http://tidelog/tidelog.v1.Log/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let mut ready = requests.clone().ready().await.unwrap();
    ready
        .send_request(request.body(()).unwrap(), false)
        .unwrap()
}

/// A message as gRPC frames it.
fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Sends bytes as one frame, when the peer's window lets it.
async fn send(stream: &mut SendStream<Bytes>, bytes: Bytes) {
    stream.reserve_capacity(bytes.len());
    while stream.capacity() < bytes.len() {
        std::future::poll_fn(|cx| stream.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
    }
    stream.send_data(bytes, false).unwrap();
}

/// The messages of an answer, until it ends or there are `count`.
async fn messages<M: Message + Default>(body: &mut RecvStream, count: usize) -> Vec<M> {
    let (mut bytes, mut messages) = (BytesMut::new(), Vec::new());
    while messages.len() < count {
        let Some(data) = body.data().await else {
            break;
        };
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
        while bytes.len() >= 5 {
            let len = 5 + u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            if bytes.len() < len {
                break;
            }
            messages.push(M::decode(&bytes.split_to(len)[5..]).unwrap());
        }
    }
    messages
}

/// The status with which a call without an answer ended.
async fn refused(
    response: impl Future<Output = Result<http::Response<RecvStream>, h2::Error>>,
) -> Status {
    let response = in_time(response).await.unwrap();
    Status::from_header_map(response.headers()).expect("no answer but a status")
}

#[tokio::test]
async fn many_requests_of_one_small_frame_each_are_all_answered() {
    // So little may be in flight that the stream is held back nearly all the time, with as many
    // frames waiting as the window lets in.
    let mut f = Fixture::with(|config| {
        config.limits.request_bytes_max = 64 * 1024;
        config.limits.connection_in_flight_bytes_max = 64 * 1024;
    })
    .await;
    f.create("t", 1).await;
    let mut requests = connect(&f).await;
    let (response, mut stream) = call(&mut requests, "Produce", None).await;
    const COUNT: usize = 60_000;
    let sending = tokio::spawn(async move {
        for id in 0..COUNT {
            let mut append = append_records("t", &[(None, "v")]);
            append.acks = v1::Acks::Leader.into();
            let request = v1::ProduceRequest {
                correlation_id: id as u64,
                append: Some(append),
            };
            let frame = framed(&request);
            assert!(frame.len() < 40, "{}", frame.len());
            send(&mut stream, frame).await;
        }
        stream.send_data(Bytes::new(), true).unwrap();
    });
    let mut body = in_time(response).await.unwrap().into_body();
    let mut answers = in_time(messages::<v1::ProduceResponse>(&mut body, COUNT)).await;
    in_time(sending).await.unwrap();
    // Answers come as they are ready.
    answers.sort_by_key(|answer| answer.correlation_id);
    let mut offsets: Vec<u64> = Vec::new();
    for (id, answer) in answers.iter().enumerate() {
        assert_eq!(answer.correlation_id, id as u64);
        let Some(v1::produce_response::Outcome::Appended(appended)) = &answer.outcome else {
            panic!("{answer:?}");
        };
        offsets.extend(appended.results[0].base_offset);
    }
    assert_eq!(offsets, (0..COUNT as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_request_may_come_in_frames_of_any_size() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let request = framed(&append_batch("t", 0, batch(&["x".repeat(2000).as_str()])));
    for (at, size) in [1, 2, 3, 5, 100, 16_384].into_iter().enumerate() {
        let mut requests = connect(&f).await;
        let (response, mut stream) = call(&mut requests, "Append", None).await;
        for part in request.chunks(size) {
            send(&mut stream, Bytes::copy_from_slice(part)).await;
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let mut body = in_time(response).await.unwrap().into_body();
        let answers = in_time(messages::<v1::AppendResponse>(&mut body, 1)).await;
        assert_eq!(answers[0].results[0].base_offset, Some(at as u64), "{size}");
    }
}

#[tokio::test]
async fn a_fetch_that_waits_past_its_deadline_is_told_so() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let mut requests = connect(&f).await;
    let (response, mut stream) = call(&mut requests, "Fetch", Some("50m")).await;
    let wait = v1::FetchRequest {
        min_bytes: 1,
        max_wait_ms: 60_000,
        ..fetch("t", 0, 0)
    };
    stream.send_data(framed(&wait), true).unwrap();
    told(
        refused(response).await,
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
    )
    .fact("timeout_ms", 50)
    .cannot_be_retried();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_is_nearly_none_is_told_as_any_other() {
    let f = Fixture::start().await;
    let mut requests = connect(&f).await;
    for timeout in ["1n", "1u", "20u"].into_iter().cycle().take(300) {
        let (response, _stream) = call(&mut requests, "Fetch", Some(timeout)).await;
        told(
            refused(response).await,
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
        );
    }
}

#[tokio::test]
async fn an_append_past_its_deadline_is_told_so_and_goes_on() {
    let disk = Arc::new(SimDisk::new(7));
    let seams = Seams {
        disk: disk.clone(),
        ..Seams::os()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut f = Fixture::on(dir, seams, |_| {}).await;
    f.create("t", 1).await;
    let hung = disk.hang(OpFilter::op(DiskOp::Sync).on("t-0"));
    let mut requests = connect(&f).await;
    let (response, mut stream) = call(&mut requests, "Append", Some("50m")).await;
    let append = append_batch("t", 0, batch(&["v"]));
    stream.send_data(framed(&append), true).unwrap();
    told(
        refused(response).await,
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
    )
    .fact("timeout_ms", 50)
    .cannot_be_retried();
    assert_eq!(
        f.values("t", 0, 0).await,
        [""; 0],
        "not durable, not readable"
    );
    drop(hung);
    let appended = v1::FetchRequest {
        min_bytes: 1,
        max_wait_ms: 60_000,
        ..fetch("t", 0, 0)
    };
    in_time(f.log.fetch(appended)).await.unwrap();
    assert_eq!(f.values("t", 0, 0).await, ["v"]);
}

#[tokio::test]
async fn a_deadline_far_away_changes_nothing() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let mut requests = connect(&f).await;
    let (response, mut stream) = call(&mut requests, "Append", Some("60S")).await;
    let append = append_batch("t", 0, batch(&["v"]));
    stream.send_data(framed(&append), true).unwrap();
    let mut body = in_time(response).await.unwrap().into_body();
    let answers = in_time(messages::<v1::AppendResponse>(&mut body, 1)).await;
    assert_eq!(answers[0].results[0].base_offset, Some(0));
}

#[tokio::test]
async fn who_takes_no_answers_is_not_read() {
    // All connections together may have a hundred answers waiting.
    let mut f = Fixture::with(|config| {
        config.limits.request_bytes_max = 64 * 1024;
        config.limits.fetch_bytes_max = 100_000;
        config.limits.connection_unsent_bytes_max = 100_000;
        config.limits.unsent_bytes_max = 100_000;
    })
    .await;
    f.create("t", 1).await;
    let mut hogs = Vec::new();
    for _ in 0..3 {
        let io = TcpStream::connect(f.server.grpc_addr()).await.unwrap();
        let (mut requests, connection) = h2::client::Builder::new()
            .initial_window_size(0)
            .handshake::<_, Bytes>(io)
            .await
            .unwrap();
        tokio::spawn(connection);
        let (response, mut stream) = call(&mut requests, "Produce", None).await;
        let sending = tokio::spawn(async move {
            // Each is refused. In frames that are not so small that the HTTP/2 library minds.
            let nothing = v1::ProduceRequest {
                correlation_id: 1,
                append: Some(append_batch(&"no-such-topic-".repeat(10), 0, Bytes::new())),
            };
            loop {
                send(&mut stream, framed(&nothing)).await;
            }
        });
        hogs.push((requests, response, sending));
    }
    f.until_metric_at_least("tidelog_grpc_unsent_bytes", 98_000.0)
        .await;
    // Others are answered all the same.
    for offset in 0..5 {
        assert_eq!(f.append("t", 0, &["v"]).await, offset);
    }
    assert!(f.metric("tidelog_grpc_unsent_bytes").await <= 100_000.0 + 4.0 * 1024.0);
    for (_, _, sending) in &hogs {
        sending.abort();
    }
    drop(hogs);
    f.until_metric("tidelog_grpc_unsent_bytes", 0.0).await;
}

/// The beginning of a request of `len` bytes of which the last do not come.
fn incomplete(len: usize) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).unwrap());
    bytes.put_bytes(0, len - 1);
    bytes.freeze()
}

#[tokio::test]
async fn a_connection_has_a_share_of_what_may_be_received() {
    let mut f = Fixture::with(|config| {
        config.limits.request_bytes_max = 40_000;
        config.limits.connection_receiving_bytes_max = 50_000;
        config.limits.receiving_bytes_max = 200_000;
    })
    .await;
    f.create("t", 1).await;
    let mut requests = connect(&f).await;
    let (first, mut stream) = call(&mut requests, "Append", None).await;
    send(&mut stream, incomplete(30_000)).await;
    f.until_metric_at_least("tidelog_grpc_receiving_bytes", 30_000.0)
        .await;
    let (second, mut other) = call(&mut requests, "Append", None).await;
    send(&mut other, incomplete(30_000)).await;
    told(refused(second).await, Code::ResourceExhausted, "OVERLOADED")
        .fact("limit", 50_000)
        .quota("connection_receiving_bytes_max")
        .can_be_retried();
    let value = "x".repeat(30_000);
    assert_eq!(f.append("t", 0, &[&value]).await, 0, "over another one");
    drop((first, stream, other, requests));
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
}

#[tokio::test]
async fn a_request_that_stands_still_is_ended_and_one_that_is_whole_is_not() {
    let mut f = Fixture::with(|config| {
        config.limits.receive_timeout = Duration::from_millis(20);
    })
    .await;
    f.create("t", 1).await;
    let mut requests = connect(&f).await;
    let (reading, mut reads) = call(&mut requests, "Read", None).await;
    let start = v1::ReadStart {
        topic: "t".to_owned(),
        follow: true,
        ..v1::ReadStart::default()
    };
    let request = Some(v1::read_request::Request::Start(start));
    send(&mut reads, framed(&v1::ReadRequest { request })).await;
    let mut reading = in_time(reading).await.unwrap().into_body();
    let started = in_time(messages::<v1::ReadResponse>(&mut reading, 1)).await;
    assert_eq!(started.len(), 1);
    for part in [1, 4, 5, 100] {
        let (response, mut stream) = call(&mut requests, "Append", None).await;
        send(&mut stream, incomplete(1000).slice(..part)).await;
        told(
            refused(response).await,
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
        )
        .fact("timeout_ms", 20)
        .says("receive_timeout_ms");
    }
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
    // Nothing of it was missing for all that time.
    f.append("t", 0, &["v"]).await;
    let data = in_time(messages::<v1::ReadResponse>(&mut reading, 1)).await;
    assert_eq!(data.len(), 1);
}

/// Calls that send their headers and nothing else, of these methods in turn.
async fn headers_alone(
    requests: &SendRequest<Bytes>,
    paths: &[&str],
    count: usize,
) -> Vec<(
    impl Future<Output = Result<http::Response<RecvStream>, h2::Error>> + use<>,
    SendStream<Bytes>,
)> {
    let mut calls = Vec::new();
    for path in paths.iter().cycle().take(count) {
        let request = Request::post(format!("http://tidelog/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let mut ready = requests.clone().ready().await.unwrap();
        let request = request.body(()).unwrap();
        calls.push(ready.send_request(request, false).unwrap());
    }
    calls
}

/// Those whose first message has no reason to be late.
const PROMPT: [&str; 5] = [
    "tidelog.v1.Log/Append",
    "tidelog.v1.Log/Read",
    "tidelog.v1.Topics/ListTopics",
    "tidelog.v1.Cluster/DescribeCluster",
    "grpc.health.v1.Health/Check",
];

#[tokio::test]
async fn calls_of_headers_alone_count_and_are_refused_above_the_bound() {
    // Each counts 4 KiB and what is kept of its headers.
    let mut f = Fixture::with(|config| {
        config.limits.connection_receiving_bytes_max = 16 * 4300;
        config.limits.receiving_bytes_max = 24 * 4300;
        config.limits.receive_timeout = Duration::from_secs(3600);
    })
    .await;
    f.create("t", 1).await;
    let streams = [
        "tidelog.v1.Log/Produce",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ];
    let paths = [&PROMPT[..], &streams].concat();
    let connections = [connect(&f).await, connect(&f).await];
    let mut first = headers_alone(&connections[0], &paths, 17).await;
    told(
        refused(first.pop().unwrap().0).await,
        Code::ResourceExhausted,
        "OVERLOADED",
    )
    .quota("connection_receiving_bytes_max")
    .can_be_retried();
    let mut second = headers_alone(&connections[1], &paths, 9).await;
    told(
        refused(second.pop().unwrap().0).await,
        Code::ResourceExhausted,
        "OVERLOADED",
    )
    .quota("receiving_bytes_max")
    .can_be_retried();
    let counted = f.metric("tidelog_grpc_receiving_bytes").await;
    assert!(
        (24.0 * 4096.0..=24.0 * 4300.0).contains(&counted),
        "{counted}"
    );
    drop((first, second, connections));
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
    assert_eq!(f.append("t", 0, &["v"]).await, 0);
}

#[tokio::test]
async fn calls_of_headers_alone_are_ended() {
    let f = Fixture::with(|config| {
        config.limits.receive_timeout = Duration::from_millis(20);
    })
    .await;
    let requests = connect(&f).await;
    let calls = headers_alone(&requests, &PROMPT, 50).await;
    for (response, _stream) in calls {
        let response = in_time(response).await.unwrap();
        let status = match Status::from_header_map(response.headers()) {
            Some(status) => status,
            // A stream has begun to answer.
            None => {
                let mut body = response.into_body();
                while let Some(data) = in_time(body.data()).await {
                    data.unwrap();
                }
                let trailers = in_time(body.trailers()).await.unwrap().unwrap();
                Status::from_header_map(&trailers).unwrap()
            }
        };
        told(status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
            .fact("timeout_ms", 20)
            .says("receive_timeout_ms");
    }
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
}

#[tokio::test]
async fn a_second_message_is_refused_where_one_is_taken() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let request = framed(&append_batch("t", 0, batch(&["v"])));
    let twice = [&request[..], &request[..]].concat();
    for parts in [
        vec![twice.clone()],
        twice.chunks(request.len()).map(<[u8]>::to_vec).collect(),
    ] {
        let mut requests = connect(&f).await;
        let (response, mut stream) = call(&mut requests, "Append", None).await;
        for part in parts {
            send(&mut stream, part.into()).await;
        }
        told(
            refused(response).await,
            Code::InvalidArgument,
            "INVALID_REQUEST",
        )
        .says("second");
    }
    assert_eq!(f.append("t", 0, &["v"]).await, 0, "nothing was appended");
}

#[tokio::test]
async fn what_is_not_grpc_is_refused_as_http_has_it() {
    let f = Fixture::start().await;
    let requests = connect(&f).await;
    let answer = async |method: &str, content_type: Option<&str>| {
        let mut request = Request::builder()
            .method(method)
            .uri("http://tidelog/tidelog.v1.Log/InitProducer");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let mut ready = requests.clone().ready().await.unwrap();
        let request = request.body(()).unwrap();
        let (response, mut stream) = ready.send_request(request, false).unwrap();
        stream
            .send_data(framed(&v1::InitProducerRequest {}), true)
            .unwrap();
        in_time(response).await.unwrap()
    };
    for wrong in [None, Some("application/json"), Some("application/grpcx")] {
        assert_eq!(answer("POST", wrong).await.status(), 415, "{wrong:?}");
    }
    let get = answer("GET", Some("application/grpc")).await;
    assert_eq!(
        (get.status().as_u16(), &get.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    for right in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;x=1",
    ] {
        let response = answer("POST", Some(right)).await;
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("grpc-status"), "{right}");
    }
}
