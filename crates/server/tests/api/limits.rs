//! Bounds, garbage, and what belongs to gRPC itself.

use std::time::Duration;

use tidelog_proto::v1;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1 as reflection, v1alpha};

use crate::read::{Reading, records};
use crate::support::{Fixture, append_batch, batch, in_time, raw, told};

const SERVICES: [&str; 5] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "tidelog.v1.Log",
    "tidelog.v1.Topics",
    "tidelog.v1.Log.Append",
];

#[tokio::test]
async fn reflection_lists_the_services_and_knows_their_messages() {
    use reflection::server_reflection_client::ServerReflectionClient;
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let f = Fixture::start().await;
    let mut client = ServerReflectionClient::new(f.channel.clone());
    let requests = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol(SERVICES[4].to_owned()),
        MessageRequest::FileByFilename("google/rpc/status.proto".to_owned()),
    ]
    .map(|request| reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    });
    let answers = client
        .server_reflection_info(tokio_stream::iter(requests))
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    let mut next = async || {
        in_time(answers.message())
            .await
            .unwrap()
            .unwrap()
            .message_response
    };
    let Some(MessageResponse::ListServicesResponse(list)) = next().await else {
        panic!("no list");
    };
    let names: Vec<_> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for service in &SERVICES[..4] {
        assert!(names.contains(service), "{service} in {names:?}");
    }
    for _ in 0..2 {
        let answer = next().await;
        let Some(MessageResponse::FileDescriptorResponse(file)) = answer else {
            panic!("{answer:?}");
        };
        assert!(!file.file_descriptor_proto[0].is_empty());
    }
}

#[tokio::test]
async fn reflection_answers_older_tools_too() {
    use v1alpha::server_reflection_client::ServerReflectionClient;
    use v1alpha::server_reflection_request::MessageRequest;
    let f = Fixture::start().await;
    let mut client = ServerReflectionClient::new(f.channel.clone());
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap();
    let answer = in_time(answers.into_inner().next()).await.unwrap().unwrap();
    assert!(format!("{answer:?}").contains("tidelog.v1.Log"));
}

#[tokio::test]
async fn health_knows_each_service() {
    let f = Fixture::start().await;
    let mut health = HealthClient::new(f.channel.clone());
    for service in ["", "tidelog.v1.Log", "tidelog.v1.Topics"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
}

#[tokio::test]
async fn an_unknown_method_is_told() {
    let f = Fixture::start().await;
    for (path, reason) in [
        ("/tidelog.v1.Log/Burn", "UNKNOWN_METHOD"),
        ("/no.Service/Call", "UNKNOWN_METHOD"),
    ] {
        let mut grpc = tonic::client::Grpc::new(f.channel.clone());
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::FetchRequest, v1::FetchResponse>::default();
        let request = tonic::Request::new(v1::FetchRequest::default());
        let answer = grpc.unary(request, path.parse().unwrap(), codec).await;
        told(answer.unwrap_err(), Code::Unimplemented, reason).fact("method", path);
    }
}

#[tokio::test]
async fn a_request_that_is_no_message_is_told() {
    let f = Fixture::start().await;
    let mut grpc = tonic::client::Grpc::new(f.channel.clone());
    grpc.ready().await.unwrap();
    // The same bytes read as another message: field 1 is a number there, and a text here.
    let codec = tonic_prost::ProstCodec::<v1::ReadPartitionEnd, v1::AppendResponse>::default();
    let request = tonic::Request::new(v1::ReadPartitionEnd {
        partition: 7,
        next_offset: 1,
    });
    let path = "/tidelog.v1.Log/Append".parse().unwrap();
    let answer = grpc.unary(request, path, codec).await;
    told(
        answer.unwrap_err(),
        Code::InvalidArgument,
        "INVALID_REQUEST",
    )
    .cannot_be_retried();
}

#[tokio::test]
async fn a_request_above_the_limit_is_told_with_both_sizes() {
    let mut f = Fixture::with(|config| config.limits.request_bytes_max = 10_000).await;
    f.create("t", 1).await;
    let large = append_batch("t", 0, batch(&["x".repeat(20_000).as_str()]));
    let size = prost::Message::encoded_len(&large);
    let refused = f.log.append(large).await.unwrap_err();
    told(refused, Code::ResourceExhausted, "REQUEST_TOO_LARGE")
        .fact("size", size)
        .fact("limit", 10_000)
        .says(&size.to_string())
        .says("10000")
        .cannot_be_retried();
    assert_eq!(f.append("t", 0, &["small"]).await, 0);
}

#[tokio::test]
async fn more_than_may_be_received_at_a_time_is_refused_for_now() {
    let mut f = Fixture::with(|config| config.limits.receiving_bytes_max = 10_000).await;
    f.create("t", 1).await;
    let large = append_batch("t", 0, batch(&["x".repeat(20_000).as_str()]));
    let refused = f.log.append(large).await.unwrap_err();
    told(refused, Code::ResourceExhausted, "OVERLOADED")
        .fact("limit", 10_000)
        .can_be_retried();
    for i in 0..20 {
        let value = "x".repeat(5000);
        assert_eq!(
            f.append("t", 0, &[&value]).await,
            i,
            "what was received counts no more"
        );
    }
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
}

#[tokio::test]
async fn garbage_closes_its_connection_and_no_other() {
    let mut f = Fixture::start().await;
    f.create("t", 1).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let broken_frame = [&preface[..], &[0xff; 64]].concat();
    let http1 = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let zeros = [0; 4096];
    for garbage in [
        &broken_frame[..],
        http1,
        &zeros,
        b"\x16\x03\x01 not TLS, nor anything else",
    ] {
        raw(f.server.grpc_addr(), garbage).await;
    }
    assert_eq!(f.append("t", 0, &["v"]).await, 0);
    f.until_metric("tidelog_grpc_connections", 1.0).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let f = Fixture::with(|config| {
        config.limits.handshake_timeout = Duration::from_millis(20);
    })
    .await;
    // Both return once the server has closed.
    raw(f.server.grpc_addr(), b"").await;
    raw(f.server.grpc_addr(), b"PRI * HTT").await;
    f.until_metric("tidelog_grpc_connections", 1.0).await;
    assert_eq!(f.get("/health/live").await.0, 200);
}

#[tokio::test]
async fn a_connection_that_asks_nothing_makes_room_for_one_more() {
    let mut f = Fixture::with(|config| config.limits.connections_max = 3).await;
    f.create("t", 1).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let (addr, nothing) = (f.server.grpc_addr(), &b""[..]);
    // They end once the server has closed them.
    let silent = [nothing, preface].map(|bytes| tokio::spawn(raw(addr, bytes)));
    f.until_metric("tidelog_grpc_connections", 3.0).await;
    let mut others = Vec::new();
    for silent in silent {
        let mut other = f.another().await;
        other.fetch(v1::FetchRequest::default()).await.unwrap_err();
        others.push(other);
        silent.await.unwrap();
    }
    assert_eq!(f.append("t", 0, &["v"]).await, 0);
    let made_room = "tidelog_grpc_connections_made_room_total";
    assert_eq!(f.metric(made_room).await, 2.0, "nobody who had asked");
    // Of those who have, it is the one that did so least lately.
    let mut last = f.another().await;
    last.fetch(v1::FetchRequest::default()).await.unwrap_err();
    assert_eq!(f.metric(made_room).await, 3.0);
    assert_eq!(f.append("t", 0, &["v"]).await, 1);
    assert_eq!(f.metric(made_room).await, 3.0);
    assert_eq!(
        f.metric("tidelog_grpc_connections_refused_total").await,
        0.0
    );
}

#[tokio::test]
async fn connections_with_calls_under_way_stay_and_one_more_is_closed_at_once() {
    let mut f = Fixture::with(|config| config.limits.connections_max = 2).await;
    f.create("t", 1).await;
    let start = v1::ReadStart {
        follow: true,
        ..records("t")
    };
    let mut first = Reading::over(f.log.clone(), start.clone()).await;
    first.started().await;
    let mut second = Reading::over(f.another().await, start).await;
    second.started().await;
    assert!(
        raw(f.server.grpc_addr(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .is_empty()
    );
    f.until_metric("tidelog_grpc_connections_refused_total", 1.0)
        .await;
    drop(second);
    f.until_metric("tidelog_grpc_connections", 1.0).await;
    let mut third = f.another().await;
    third.fetch(v1::FetchRequest::default()).await.unwrap_err();
    assert_eq!(f.append("t", 0, &["v"]).await, 0);
    first.next().await;
    let made_room = "tidelog_grpc_connections_made_room_total";
    assert_eq!(f.metric(made_room).await, 0.0);
}

/// Services that are not ours do not say when a message is taken.
#[tokio::test]
async fn a_long_stream_to_reflection_holds_one_message_at_a_time() {
    use reflection::server_reflection_client::ServerReflectionClient;
    use reflection::server_reflection_request::MessageRequest;
    let f = Fixture::with(|config| config.limits.receiving_bytes_max = 20_000).await;
    let mut client = ServerReflectionClient::new(f.channel.clone());
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let request = |host_len| reflection::ServerReflectionRequest {
        host: "h".repeat(host_len),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    sender.send(request(1000)).await.unwrap();
    let answers = client.server_reflection_info(requests).await.unwrap();
    let mut answers = answers.into_inner();
    for _ in 0..100 {
        assert!(in_time(answers.message()).await.unwrap().is_some());
        sender.send(request(1000)).await.unwrap();
    }
    assert!(in_time(answers.message()).await.unwrap().is_some());
    f.until_metric("tidelog_grpc_receiving_bytes", 0.0).await;
    // It does not say either why a request broke off.
    sender.send(request(30_000)).await.unwrap();
    told(
        in_time(answers.message()).await.unwrap_err(),
        Code::ResourceExhausted,
        "OVERLOADED",
    )
    .quota("receiving_bytes_max");
}

#[tokio::test]
async fn reads_of_many_partitions_count_for_as_long_as_they_go_on() {
    let mut f = Fixture::with(|config| {
        config.limits.fetch_bytes_max = 64 * 1024;
        config.limits.connection_unsent_bytes_max = 100_000;
    })
    .await;
    f.create("t", 100).await;
    let start = || v1::ReadStart {
        follow: true,
        ..records("t")
    };
    let client = f.another().await;
    let mut first = Reading::over(client.clone(), start()).await;
    first.started().await;
    // There is room for one.
    let mut second = Reading::over(client.clone(), start()).await;
    let status = second.try_next().await.unwrap_err();
    told(status, Code::ResourceExhausted, "OVERLOADED")
        .quota("connection_unsent_bytes_max")
        .can_be_retried();
    // A few are always read.
    let few = v1::ReadStart {
        partitions: vec![v1::ReadPartition::default()],
        ..start()
    };
    let mut small = Reading::over(client.clone(), few).await;
    small.started().await;
    drop(first);
    f.until_metric("tidelog_grpc_asked_bytes", 0.0).await;
    let mut third = Reading::over(client.clone(), start()).await;
    third.started().await;
}
