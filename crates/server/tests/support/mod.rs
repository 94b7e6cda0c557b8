//! Three servers in one process, on loopback.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tidelog_broker::Seams;
use tidelog_proto::v1;
use tidelog_proto::v1::topics_client::TopicsClient;
use tidelog_server::config::PeerAddress;
use tidelog_server::{Config, Listeners, OpenError, Server};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic_types::StatusExt;

pub(crate) async fn soon<T>(what: &str, action: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), action)
        .await
        .unwrap_or_else(|_| panic!("{what} takes too long"))
}

pub(crate) fn config(node_id: u32, dir: &TempDir) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        node_id,
        data_dir: dir.path().to_owned(),
        grpc_addr: any,
        http_addr: any,
        cluster_addr: Some(any),
        shards: 2,
        ..Config::default()
    }
}

pub(crate) fn open(config: &Config, listeners: Listeners) -> JoinHandle<Result<Server, OpenError>> {
    let config = config.clone();
    tokio::spawn(async move { Box::pin(Server::open(&config, listeners, Seams::os())).await })
}

/// Three brokers that know of each other, and their bound ports.
pub(crate) fn three(dirs: &[TempDir]) -> Vec<(Config, Listeners)> {
    let ids = 1..;
    let bound: Vec<_> = ids
        .zip(dirs)
        .map(|(id, dir)| {
            let config = config(id, dir);
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
    let with_peers = |(config, listeners): (Config, Listeners)| {
        let config = Config {
            cluster_addr: listeners.cluster_addr(),
            peers: peers.clone(),
            ..config
        };
        (config, listeners)
    };
    bound.into_iter().map(with_peers).collect()
}

/// Whether another broker, or a later moment, may say something else.
pub(crate) fn is_passing(status: &Status) -> bool {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    let passing = [
        "NOT_LEADER",
        "TOPIC_NOT_FOUND",
        "OUTCOME_UNKNOWN",
        "TOPIC_ALREADY_EXISTS",
    ];
    reason.is_some_and(|reason| passing.contains(&reason))
}

pub(crate) async fn create_anywhere(servers: &[&Server], name: &str) {
    loop {
        for server in servers {
            let to = format!("http://{}", server.grpc_addr());
            let mut topics = TopicsClient::connect(to).await.unwrap();
            let request = v1::CreateTopicRequest {
                name: name.to_owned(),
                partitions: 1,
                ..Default::default()
            };
            match topics.create_topic(request).await {
                Ok(_) => return,
                Err(status) => assert!(is_passing(&status), "{status:?}"),
            }
        }
    }
}

/// Waits until a server has everything before an offset, by what it tells its readers.
pub(crate) async fn has_until(server: &Server, topic: &str, end: u64) {
    loop {
        let partition = server.broker().partition(topic, 0);
        if partition.is_ok_and(|partition| partition.ends().high_watermark.get() >= end) {
            return;
        }
        tokio::task::yield_now().await;
    }
}
