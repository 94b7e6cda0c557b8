//! Brokers that found a cluster over loopback, each with a disk of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidelog_broker::{Broker, Recovery, Seams};
use tidelog_disk::Disk;
use tidelog_proto::internal::v1::RegisterBroker;
use tidelog_sim::SimDisk;
use tokio::task::JoinHandle;

use super::decide::Own;
use super::file::{FoundingFile, Phase};
use super::settle::{record, write};
use super::*;
use crate::Config;
use crate::config::PeerAddress;
use crate::listen::Listeners;
use crate::opening::broker_config;

mod links;

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("it takes too long")
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A broker that is not started, or whose port is bound already.
struct Seat {
    config: Config,
    listeners: Option<Listeners>,
    disk: SimDisk,
    waits: Waits,
}

type Started = Result<Node, SettleError>;

impl Seat {
    /// Takes the ports again, after the broker was ended.
    fn bind(&mut self) {
        let config = Config {
            cluster_addr: self.config.cluster_listen_addr(),
            ..self.config.clone()
        };
        self.listeners = Some(Listeners::bind(&config).unwrap());
    }

    fn seams(&self) -> Seams {
        Seams {
            disk: Arc::new(self.disk.clone()),
            ..Seams::os()
        }
    }

    fn start(&mut self) -> JoinHandle<Started> {
        if self.listeners.is_none() {
            self.bind();
        }
        let listeners = self.listeners.take().unwrap();
        let (grpc_addr, http_addr) = (listeners.grpc_addr(), listeners.http_addr());
        let (cluster, cluster_addr) = listeners.cluster.unwrap();
        let listener = NodeListener {
            cluster,
            cluster_addr,
            grpc_addr,
            http_addr,
        };
        let (config, seams, waits) = (self.config.clone(), self.seams(), self.waits.clone());
        tokio::spawn(async move {
            let standing = Standing::look(&seams.disk, &config.data_dir).unwrap();
            let next = standing.next(&config, &*seams.random);
            Box::pin(Node::start(
                &config, listener, &standing, next, &seams, &waits,
            ))
            .await
        })
    }

    async fn started(&mut self) -> Node {
        soon(self.start()).await.unwrap().unwrap()
    }

    async fn refused(&mut self) -> String {
        match soon(self.start()).await.unwrap() {
            Err(e) => e.to_string(),
            Ok(node) => panic!("it was let in: {:?}", node.settled()),
        }
    }

    fn open(&self, node: &Node) -> Broker {
        let mut config = broker_config(&self.config);
        config.cluster_id = Some(node.settled().cluster_id);
        config.directory_id = Some(node.settled().directory_id);
        config.founders = node
            .settled()
            .founders
            .iter()
            .map(|one| one.node_id)
            .collect();
        let peers = Arc::new(node.links().clone());
        Broker::open(
            config,
            Seams {
                peers,
                ..self.seams()
            },
        )
        .unwrap()
    }

    fn address(&self) -> String {
        self.config.cluster_listen_addr().unwrap().to_string()
    }
}

/// So many brokers with the same list.
fn seats(count: u32) -> Vec<Seat> {
    let bound: Vec<_> = (1..=count)
        .map(|node_id| {
            let config = Config {
                node_id,
                data_dir: "/srv/data".into(),
                grpc_addr: any(),
                http_addr: any(),
                cluster_addr: Some(any()),
                ..Config::default()
            };
            let listeners = Listeners::bind(&config).unwrap();
            (config, listeners)
        })
        .collect();
    let peers: Vec<_> = bound
        .iter()
        .map(|(config, listeners)| PeerAddress {
            node_id: config.node_id,
            address: listeners.cluster_addr().unwrap().to_string(),
        })
        .collect();
    let seat = |(config, listeners): (Config, Listeners)| Seat {
        disk: SimDisk::new(u64::from(config.node_id)),
        config: Config {
            peers: peers.clone(),
            cluster_addr: None,
            ..config
        },
        listeners: Some(listeners),
        waits: Waits::default(),
    };
    bound.into_iter().map(seat).collect()
}

async fn all_started(seats: &mut [Seat]) -> Vec<Node> {
    let starting: Vec<_> = seats.iter_mut().map(Seat::start).collect();
    let mut nodes = Vec::new();
    for one in starting {
        nodes.push(soon(one).await.unwrap().unwrap());
    }
    nodes
}

#[tokio::test]
async fn three_found_a_cluster_once_the_last_has_come() {
    let mut seats = seats(3);
    let late = seats[2].listeners.take();
    drop(late);
    let first: Vec<_> = seats[..2].iter_mut().map(Seat::start).collect();
    let whom = format!("3@{}", seats[2].address());
    for seat in &seats[..2] {
        let mut waits = seat.waits.subscribe();
        let only_the_last =
            |waits: &Vec<String>| waits.len() == 1 && waits[0].starts_with(whom.as_str());
        soon(waits.wait_for(only_the_last)).await.unwrap();
    }
    let mut nodes = vec![seats[2].started().await];
    for one in first {
        nodes.push(soon(one).await.unwrap().unwrap());
    }
    let settled = nodes[0].settled();
    assert_eq!(settled.founders.len(), 3);
    for node in &nodes {
        assert_eq!(node.settled().cluster_id, settled.cluster_id);
        assert_eq!(node.settled().founders, settled.founders);
    }
    for seat in &seats {
        assert_eq!(seat.waits.get(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn one_that_ends_before_it_has_a_state_file_goes_on_with_what_was_agreed() {
    let mut seats = seats(3);
    let nodes = all_started(&mut seats).await;
    let settled = nodes[1].settled().clone();
    for node in nodes {
        node.stop().await;
    }
    for seat in &seats {
        seat.disk.crash();
    }
    // Nobody else is there.
    let node = seats[1].started().await;
    assert_eq!(*node.settled(), settled);
    // Another one that has lost what was agreed, but not its id, hears of it from this one.
    let own = Own {
        node_id: 3,
        directory_id: settled.founders[2].directory_id,
    };
    let disk: Arc<dyn Disk> = Arc::new(seats[2].disk.clone());
    let fresh = FoundingFile::fresh(own.node_id, own.directory_id);
    write(&disk, &seats[2].config.data_dir, fresh)
        .await
        .unwrap();
    let other = seats[2].started().await;
    assert_eq!(other.settled().cluster_id, settled.cluster_id);
    assert_eq!(other.settled().founders, settled.founders);
}

#[tokio::test]
async fn a_wiped_disk_is_refused_until_the_cluster_knows_it() {
    let mut seats = seats(3);
    let mut nodes = all_started(&mut seats).await;
    nodes.pop().unwrap().stop().await;
    seats[2].disk = SimDisk::new(99);
    let why = seats[2].refused().await;
    let file = FoundingFile::read(&seats[2].disk, &seats[2].config.data_dir);
    let new_id = file.unwrap().unwrap().directory_id;
    let old_id = nodes[0].settled().founders[2].directory_id;
    assert!(why.contains(&hex(&old_id)), "{why}");
    let command = format!("tidelog cluster replace 3 --directory {}", hex(&new_id));
    assert!(why.contains(&command), "{why}");
    // It may be another broker whose number was chosen twice.
    assert!(why.contains("a --node-id that is free"), "{why}");
    // One of them is told.
    let known = KnownBroker {
        node_id: 3,
        directory_id: new_id,
        generation: 1,
        cluster_address: seats[2].address(),
        grpc_address: String::new(),
    };
    nodes[1].links().update(&[known]);
    let node = seats[2].started().await;
    assert_eq!(node.settled().generation, 1);
    assert_eq!(node.settled().directory_id, new_id);
    assert_eq!(node.settled().founders, nodes[0].settled().founders);
}

#[tokio::test]
async fn a_directory_says_what_is_not_to_be_done_with_it() {
    let mut seats = seats(3);
    let nodes = all_started(&mut seats).await;
    let seat = &seats[0];
    let data_dir = seat.config.data_dir.clone();
    let disk: Arc<dyn Disk> = Arc::new(seat.disk.clone());
    let next = |config: &Config| {
        let standing = Standing::look(&disk, &data_dir).unwrap();
        standing.next(config, &*Seams::os().random)
    };
    let refusal = |config: &Config| match next(config) {
        Next::Refuse(why) => why,
        other => panic!("{other:?}"),
    };
    let alone = Config {
        peers: Vec::new(),
        ..seat.config.clone()
    };
    let settled = nodes[0].settled().clone();
    assert_eq!(next(&seat.config), Next::Go(settled.clone()));
    assert!(
        refusal(&alone).contains("give --peers"),
        "{}",
        refusal(&alone)
    );
    record(&disk, &data_dir, 1, &settled, Phase::Done)
        .await
        .unwrap();
    let lost = refusal(&seat.config);
    assert!(lost.contains("tidelog cluster replace 1"), "{lost}");

    let broker = seat.open(&nodes[0]);
    broker.stop().await.unwrap();
    drop(broker);
    assert_eq!(next(&seat.config), Next::Go(settled));
    assert!(refusal(&alone).contains("give --peers"));
    let renamed = Config {
        node_id: 2,
        ..seat.config.clone()
    };
    let why = refusal(&renamed);
    assert!(
        why.contains("is of broker 1") && why.contains("node_id is 2"),
        "{why}"
    );
}

/// Lets everybody in who comes to broker 1; others say that it decides.
#[derive(Debug)]
struct Lets {
    leader: String,
    is_leader: bool,
}

impl Host for Lets {
    fn leader_address(&self) -> Option<String> {
        (!self.is_leader).then(|| self.leader.clone())
    }

    fn join(
        &self,
        registration: RegisterBroker,
    ) -> Pin<Box<dyn Future<Output = JoinAnswer> + Send + '_>> {
        let answer = match (self.is_leader, &registration.rack[..]) {
            (false, _) => JoinAnswer::NotLeader {
                leader_address: Some(self.leader.clone()),
            },
            (true, "far") => JoinAnswer::Refused("there is no such rack".to_owned()),
            (true, _) => JoinAnswer::Joined {
                generation: 0,
                brokers: vec![KnownBroker {
                    node_id: registration.node_id,
                    directory_id: registration.directory_id[..].try_into().unwrap(),
                    cluster_address: registration.cluster_address,
                    ..KnownBroker::default()
                }],
                metadata_incarnation: 3,
            },
        };
        Box::pin(std::future::ready(answer))
    }

    fn removed(&self) -> BTreeSet<u32> {
        BTreeSet::new()
    }

    fn removed_directory(&self, _: u32) -> Option<[u8; 16]> {
        None
    }

    fn may_lack_metadata(&self) -> bool {
        false
    }

    fn metadata_incarnation(&self) -> u32 {
        3
    }

    fn positions(&self) -> Pin<Box<dyn Future<Output = Result<Positions, String>> + Send + '_>> {
        Box::pin(std::future::ready(Err("it has none".to_owned())))
    }

    fn recover(
        &self,
        _incarnation: u32,
        _how: Recovery,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(std::future::ready(Err("it has none".to_owned())))
    }
}

#[tokio::test]
async fn one_that_comes_later_is_let_in_by_whoever_decides() {
    let mut seats = seats(3);
    let nodes = all_started(&mut seats[..3]).await;
    let leader = seats[0].address();
    for (number, node) in nodes.iter().enumerate() {
        let lets = Lets {
            leader: leader.clone(),
            is_leader: number == 0,
        };
        node.links().set_host(Arc::new(lets));
    }
    let joins = |rack: &str| Seat {
        config: Config {
            node_id: 4,
            peers: Vec::new(),
            join: Some(seats[1].address()),
            cluster_addr: Some(any()),
            rack: rack.to_owned(),
            ..seats[0].config.clone()
        },
        listeners: None,
        disk: SimDisk::new(4),
        waits: Waits::default(),
    };
    let why = joins("far").refused().await;
    assert!(why.contains("there is no such rack"), "{why}");
    let node = joins("near").started().await;
    assert_eq!(node.settled().cluster_id, nodes[0].settled().cluster_id);
    assert_eq!(node.settled().founders, nodes[0].settled().founders);
    // With a list instead it is a stranger.
    let mut stranger = joins("near");
    stranger.config.join = None;
    stranger.config.cluster_addr = None;
    stranger.config.peers = seats[0].config.peers.clone();
    stranger.config.peers[0].node_id = 4;
    stranger.config.peers[0].address = "127.0.0.1:0".to_owned();
    let why = stranger.refused().await;
    assert!(why.contains("--join"), "{why}");
}

/// A listener that says what an HTTP/1 server says to all that is no request, which is nothing, and to one.
async fn http_1() -> String {
    let listener = tokio::net::TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = axum::Router::new();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let io = hyper_util::rt::TokioIo::new(io);
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(io, service));
        }
    });
    address
}

/// A gRPC server that knows nothing.
async fn grpc() -> String {
    let listener = tokio::net::TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_routes(tonic::service::Routes::default());
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

#[tokio::test]
async fn one_that_joins_at_another_port_says_that_it_is_no_cluster_port() {
    for (address, speaks) in [(grpc().await, "gRPC"), (http_1().await, "HTTP/1")] {
        let mut seat = seats(1).pop().unwrap();
        seat.config.cluster_addr = Some(any());
        seat.config.peers = Vec::new();
        seat.config.join = Some(address.clone());
        let mut waits = seat.waits.subscribe();
        let started = seat.start();
        let said = soon(waits.wait_for(|whom| !whom.is_empty())).await;
        let expected =
            format!("{address} (it is not the cluster port of a broker, but a port for {speaks})");
        assert_eq!(*said.unwrap(), [expected]);
        started.abort();
    }
}
