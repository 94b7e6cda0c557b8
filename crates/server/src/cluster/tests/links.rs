//! The port and the links, once there is a cluster.

use std::path::Path;
use std::time::Duration;

use tidelog_peer::ask;
use tidelog_proto::internal::v1::{
    PeerJoin, PeerQuestion, peer_answer::Answer, peer_question::Question,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let mut seats = seats(1);
    let node = seats[0].started().await;
    let address = seats[0].address();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 5000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",
        b"TIDELOG?",
        // Frames that are longer than a hello, shorter than they say, or none.
        b"TIDELINK\xff\xff\xff\xff",
        b"TIDELINK\x40\0\0\0 is not what comes",
        b"TIDELINK\x10\0\0\0no frame at all!",
    ] {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        socket.shutdown().await.unwrap();
        // It is closed, whatever it says first.
        let mut said = Vec::new();
        soon(socket.read_to_end(&mut said)).await.ok();
    }
    let own = Own {
        node_id: 2,
        directory_id: [2; 16],
    };
    let answer = ask(&address, wire::who(&own), Duration::from_secs(30)).await;
    let Some(Answer::Here(here)) = answer.unwrap().answer else {
        panic!("another answer");
    };
    assert_eq!(here.node_id, 1);
    // What is meant for another cluster, or says nothing of a broker, is refused.
    let join = |cluster_id: &[u8]| PeerJoin {
        cluster_id: cluster_id.to_vec().into(),
        registration: None,
    };
    for (join, expected) in [
        (join(b"short"), "another cluster"),
        (join(&[9; 16]), "another cluster"),
        (join(&node.settled().cluster_id), "makes no sense"),
    ] {
        let question = PeerQuestion {
            question: Some(Question::Join(join)),
        };
        let answer = ask(&address, question, Duration::from_secs(30)).await;
        let Some(Answer::Refused(refused)) = answer.unwrap().answer else {
            panic!("another answer");
        };
        assert!(refused.cause.contains(expected), "{}", refused.cause);
    }
    assert_eq!(wire::here(here).unwrap().founders, node.settled().founders);
}

/// A broker and questions get in while somebody holds more connections than there are places, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_kept_out_by_connections_that_say_nothing() {
    let mut seats = seats(2);
    let nodes = all_started(&mut seats).await;
    let crowded = seats[0].address();
    let mut idle = Vec::new();
    for number in 0..100 {
        let mut socket = TcpStream::connect(&crowded).await.unwrap();
        // Some begin something, as a link or as a question.
        let begun: &[u8] = [&b""[..], b"TIDE", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"][number % 3];
        socket.write_all(begun).await.unwrap();
        idle.push(socket);
    }
    let own = Own {
        node_id: 3,
        directory_id: [3; 16],
    };
    let answer = ask(&crowded, wire::who(&own), Duration::from_secs(30)).await;
    assert!(matches!(answer.unwrap().answer, Some(Answer::Here(_))));
    // The oldest were cut.
    let mut said = Vec::new();
    soon(idle[0].read_to_end(&mut said)).await.ok();

    let brokers = all_opened(&seats, &nodes).await;
    // A link has no place that could be taken.
    for _ in 0..100 {
        idle.push(TcpStream::connect(&crowded).await.unwrap());
    }
    let answer = ask(&crowded, wire::who(&own), Duration::from_secs(30)).await;
    assert!(matches!(answer.unwrap().answer, Some(Answer::Here(_))));
    let state = *nodes[1].links().state(1).unwrap().borrow();
    assert!(state.is_connected);
    assert_eq!(state.connections, 1);
    all_stopped(nodes, brokers).await;
}

/// Fills a connection with pings of HTTP/2 and reads none of the answers, until no more can be written.
async fn stuck(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(begin).await.unwrap();
    let pings = b"\0\0\x08\x06\0\0\0\0\0 a ping!".repeat(1000);
    // It takes no more, and was not ended.
    while let Ok(written) = timeout(Duration::from_millis(500), stream.write_all(&pings)).await {
        written.unwrap();
    }
    stream
}

/// HTTP/2 reads nothing while its answers are stuck, and hears that it is cut nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_taken_from_connections_that_read_nothing_too() {
    let mut seats = seats(1);
    let node = seats[0].started().await;
    let address = seats[0].address();
    let streams = (0..64).map(|_| {
        let address = address.clone();
        tokio::spawn(async move { stuck(&address).await })
    });
    let (ended, mut ends) = tokio::sync::mpsc::channel(100);
    for stream in streams.collect::<Vec<_>>() {
        let (stream, ended) = (stream.await.unwrap(), ended.clone());
        tokio::spawn(async move {
            while matches!(stream.ready(Interest::ERROR).await, Ok(ready) if !ready.is_error()) {}
            ended.send(()).await.ok();
        });
    }
    let mut newer = Vec::new();
    for _ in 0..16 {
        newer.push(TcpStream::connect(&address).await.unwrap());
        // Before they are given up for not taking anything.
        let end = timeout(Duration::from_secs(20), ends.recv()).await;
        end.expect("the oldest is cut").unwrap();
    }
    let own = Own {
        node_id: 2,
        directory_id: [2; 16],
    };
    let answer = ask(&address, wire::who(&own), Duration::from_secs(30)).await;
    assert!(matches!(answer.unwrap().answer, Some(Answer::Here(_))));
    node.stop().await;
}

/// The brokers of these nodes, which are linked from then on.
async fn all_opened(seats: &[Seat], nodes: &[Node]) -> Vec<Broker> {
    let mut brokers = Vec::new();
    for (seat, node) in seats.iter().zip(nodes) {
        let broker = seat.open(node);
        let data_dir = Path::new("/srv/data");
        node.opened(&seat.config, broker.clone(), &seat.seams(), data_dir)
            .await
            .unwrap();
        brokers.push(broker);
    }
    until_connected(nodes[0].links(), 2).await;
    until_connected(nodes[1].links(), 1).await;
    brokers
}

async fn all_stopped(nodes: Vec<Node>, brokers: Vec<Broker>) {
    for (node, broker) in nodes.into_iter().zip(brokers) {
        broker.stop().await.unwrap();
        node.stop().await;
    }
}

async fn until_connected(links: &Links, to: u32) {
    let mut state = links.state(to).expect("there is a link");
    soon(state.wait_for(|state| state.is_connected))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_follow_what_is_known_and_those_who_are_not_are_refused() {
    let mut seats = seats(2);
    let nodes = all_started(&mut seats).await;
    let brokers = all_opened(&seats, &nodes).await;
    for node in &nodes {
        node.unfollow().await;
    }
    let links = nodes[0].links();
    assert_eq!(links.nodes(), [2]);
    // It may have been made anew meanwhile.
    until_connected(links, 2).await;
    let metric = "tidelog_peer_connected{peer=\"2\"} 1";
    assert!(brokers[0].metrics_text().contains(metric));

    let known = |address: &str, directory_id| KnownBroker {
        node_id: 2,
        directory_id,
        cluster_address: address.to_owned(),
        ..KnownBroker::default()
    };
    let directory_id = nodes[1].settled().directory_id;
    // Where nobody is, and back: a link of its own each time.
    let nowhere = std::net::TcpListener::bind(any()).unwrap();
    let nowhere_address = nowhere.local_addr().unwrap().to_string();
    links.update(&[known(&nowhere_address, directory_id)]);
    assert!(!links.state(2).unwrap().borrow().is_connected);
    links.update(&[known(&seats[1].address(), directory_id)]);
    until_connected(links, 2).await;
    let before = links.state(2).unwrap().borrow().connections;
    links.update(&[known(&seats[1].address(), directory_id)]);
    assert_eq!(
        links.state(2).unwrap().borrow().connections,
        before,
        "it stays"
    );

    // With another directory the other is not listened to any more, once it comes anew: not by one that hears who
    // leads the metadata, and so has not missed that the other has it.
    let mut changes = brokers[0].metadata_changes();
    soon(changes.wait_for(|_| !brokers[0].may_lack_metadata()))
        .await
        .unwrap();
    links.update(&[known(&seats[1].address(), [9; 16])]);
    let own = |address: &str| KnownBroker {
        node_id: 1,
        directory_id: nodes[0].settled().directory_id,
        cluster_address: address.to_owned(),
        ..KnownBroker::default()
    };
    nodes[1].links().update(&[own(&nowhere_address)]);
    nodes[1].links().update(&[own(&seats[0].address())]);
    let mut state = nodes[1].links().state(1).unwrap();
    let refused = soon(state.wait_for(|state| state.failures > 1))
        .await
        .unwrap();
    assert_eq!(refused.connections, 0);
    drop(refused);

    links.update(&[]);
    assert_eq!(links.nodes(), [0_u32; 0]);
    assert!(!brokers[0].metrics_text().contains("peer=\"2\""));
    all_stopped(nodes, brokers).await;
}
