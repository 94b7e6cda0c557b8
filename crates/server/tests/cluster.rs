//! Three servers in one process found a cluster over loopback and replicate what is appended.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use support::{create_anywhere, has_until, is_passing, open, soon, three};
use tidelog_proto::v1;
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::topics_client::TopicsClient;
use tidelog_server::{Listeners, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Appends to the partition, until it is acknowledged; gives where.
async fn append_anywhere(servers: &[&Server], topic: &str, value: &str) -> u64 {
    loop {
        for server in servers {
            let to = format!("http://{}", server.grpc_addr());
            let mut log = LogClient::connect(to).await.unwrap();
            let record = v1::NewRecord {
                value: Some(Bytes::copy_from_slice(value.as_bytes())),
                ..v1::NewRecord::default()
            };
            let records = v1::NewRecords {
                records: vec![record],
                compression: v1::Compression::None.into(),
                ..v1::NewRecords::default()
            };
            let request = v1::AppendRequest {
                topic: topic.to_owned(),
                partition: Some(0),
                acks: v1::Acks::All.into(),
                payload: Some(v1::append_request::Payload::Records(records)),
            };
            match log.append(request).await {
                Ok(response) => {
                    let results = response.into_inner().results;
                    if let Some(offset) = results[0].base_offset {
                        return offset;
                    }
                }
                Err(status) => assert!(is_passing(&status), "{status:?}"),
            }
        }
    }
}

/// What HTTP says of whether a server is ready.
async fn readiness(addr: SocketAddr) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let request = "GET /health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_elect_replicate_and_survive_the_loss_of_one() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut brokers = three(&dirs);
    let configs: Vec<_> = brokers.iter().map(|(config, _)| config.clone()).collect();
    let (last_config, last_listeners) = brokers.pop().unwrap();
    let waiting_http = brokers[0].1.http_addr();
    let mut opening: Vec<_> = brokers
        .into_iter()
        .map(|(config, listeners)| open(&config, listeners))
        .collect();
    let waits = async {
        loop {
            let said = readiness(waiting_http).await;
            assert!(said.starts_with("HTTP/1.1 503"), "{said}");
            if said.contains("\"founding\"") && said.contains("3@") && !said.contains("2@") {
                return;
            }
        }
    };
    soon("waiting for the third", waits).await;
    opening.push(open(&last_config, last_listeners));
    let mut servers = Vec::new();
    for one in opening {
        servers.push(soon("the founding", one).await.unwrap().unwrap());
    }
    let all: Vec<_> = servers.iter().collect();
    let cluster_ids: Vec<_> = all
        .iter()
        .map(|server| server.cluster().unwrap().1.cluster_id)
        .collect();
    assert!(cluster_ids.iter().all(|id| *id == cluster_ids[0]));
    soon("a topic", create_anywhere(&all, "t")).await;
    let mut end = 0;
    for number in 0..20 {
        let value = number.to_string();
        let offset = soon("an append", append_anywhere(&all, "t", &value)).await;
        end = end.max(offset + 1);
    }
    for server in &all {
        soon("replication", has_until(server, "t", end)).await;
    }
    let said = readiness(all[0].http_addr()).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");

    // Each goes once, and comes back with what was appended meanwhile.
    for config in configs {
        let gone = servers.remove(0);
        soon("a stop", gone.stop(Duration::from_secs(10)))
            .await
            .unwrap();
        let left: Vec<_> = servers.iter().collect();
        let offset = soon("an append", append_anywhere(&left, "t", "more")).await;
        end = end.max(offset + 1);
        let listeners = Listeners::bind(&config).unwrap();
        let back = soon("coming back", open(&config, listeners)).await;
        let back = back.unwrap().unwrap();
        soon("catching up", has_until(&back, "t", end)).await;
        servers.push(back);
    }
    for server in servers {
        soon("a stop", server.stop(Duration::from_secs(10)))
            .await
            .unwrap();
    }
}

/// A question that says to be as long as a frame of a link is refused before any of it has come: what it takes
/// would be held.
async fn long_question(port: SocketAddr) {
    let socket = TcpStream::connect(port).await.unwrap();
    let (requests, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://tidelog/tidelog.internal.v1.Questions/Ask")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let mut ready = requests.ready().await.unwrap();
    let (response, mut body) = ready
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let mut head = vec![0];
    head.extend(60_000_000_u32.to_be_bytes());
    body.send_data(head.into(), false).unwrap();
    let response = response.await.unwrap();
    // OUT_OF_RANGE, and the stream is not closed by this side.
    assert_eq!(response.headers()["grpc-status"], "11");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_at_the_cluster_port_ends_its_connection_and_nothing_else() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let opening: Vec<_> = three(&dirs)
        .into_iter()
        .map(|(config, listeners)| open(&config, listeners))
        .collect();
    let mut servers = Vec::new();
    for one in opening {
        servers.push(soon("the founding", one).await.unwrap().unwrap());
    }
    let all: Vec<_> = servers.iter().collect();
    soon("a topic", create_anywhere(&all, "t")).await;
    let ports: Vec<SocketAddr> = all
        .iter()
        .map(|server| server.cluster_addr().unwrap().parse().unwrap())
        .collect();

    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let broken_frame = [&preface[..], &[0xff; 64]].concat();
    let endless_frame = [&preface[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat();
    for port in &ports {
        for garbage in [
            &broken_frame[..],
            &endless_frame,
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            &[0; 4096],
        ] {
            let mut socket = TcpStream::connect(port).await.unwrap();
            // It may be closed before all was read, with a reset.
            drop(socket.write_all(garbage).await);
            let mut answer = Vec::new();
            drop(soon("its end", socket.read_to_end(&mut answer)).await);
        }
        let to = format!("http://{port}");
        let mut client = TopicsClient::connect(to).await.unwrap();
        let request = v1::ListTopicsRequest::default();
        let status = client.list_topics(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
    }
    for port in &ports {
        soon("a refusal", long_question(*port)).await;
    }
    // More than there are places, and none of them says a word: the links that there are go on.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(ports[0]).await.unwrap());
    }
    let offset = soon("an append", append_anywhere(&all, "t", "v")).await;
    for server in &all {
        soon("replication", has_until(server, "t", offset + 1)).await;
    }
    for mut socket in silent {
        // HTTP/2 servers speak first; then comes the end, or a reset.
        let mut said = Vec::new();
        drop(soon("the end of silence", socket.read_to_end(&mut said)).await);
    }
    for server in servers {
        soon("a stop", server.stop(Duration::from_secs(10)))
            .await
            .unwrap();
    }
}
