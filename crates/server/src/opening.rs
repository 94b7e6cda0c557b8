//! Opening a broker, alone or among others, behind listeners that are bound.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidelog_broker::{Addresses, Broker, BrokerConfig, Seams, StartError};

use crate::Config;
use crate::cluster::{Next, Node, NodeListener, SettleError, Standing};
use crate::listen::Listeners;
use crate::server::{Server, Waiting};

/// Why a server was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The broker did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What it finds, or what other brokers say, does not allow it. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// A bug.
    #[error("the thread that opened the data directory panicked")]
    Panicked,
}

impl From<SettleError> for OpenError {
    fn from(e: SettleError) -> Self {
        match e {
            SettleError::Refused(why) => Self::Refused(why),
            SettleError::Disk(e) => Self::Start(e.into()),
        }
    }
}

impl Server {
    /// Opens the broker that `config` describes and serves it. With other brokers it first waits until it
    /// is settled to which cluster it belongs, for as long as that takes; HTTP is up meanwhile.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        config: &Config,
        mut listeners: Listeners,
        mut seams: Seams,
    ) -> Result<Self, OpenError> {
        let cluster = listeners.cluster.take();
        let (grpc_addr, http_addr) = (listeners.grpc_addr(), listeners.http_addr());
        let waiting = Waiting::start(config, listeners);
        let mut broker_config = broker_config(config);
        let data_dir = broker_config.data_dir.clone();

        let looked = {
            let (disk, data_dir) = (seams.disk.clone(), data_dir.clone());
            tokio::task::spawn_blocking(move || Standing::look(&disk, &data_dir)).await
        };
        let standing = looked.map_err(|_| OpenError::Panicked)??;
        let next = standing.next(config, &*seams.random);
        let node = match (next, cluster) {
            (Next::Alone, _) => None,
            (Next::Refuse(why), _) => return Err(OpenError::Refused(why)),
            (_, None) => {
                let why = "the cluster port is not bound".to_owned();
                return Err(OpenError::Refused(why));
            }
            (next, Some((cluster, cluster_addr))) => {
                let listener = NodeListener {
                    cluster,
                    cluster_addr,
                    grpc_addr,
                    http_addr,
                };
                let waits = waiting.waits();
                let started = Node::start(config, listener, &standing, next, &seams, &waits);
                Some(Box::pin(started).await?)
            }
        };
        // The broker takes the directory's lock itself.
        drop(standing);
        if let Some(node) = &node {
            let settled = node.settled();
            broker_config.cluster_id = Some(settled.cluster_id);
            broker_config.directory_id = Some(settled.directory_id);
            broker_config.generation = settled.generation;
            broker_config.metadata_incarnation = settled.metadata_incarnation;
            broker_config.founders = settled.founders.iter().map(|one| one.node_id).collect();
            seams.peers = Arc::new(node.links().clone());
            let advertised = node.addresses();
            broker_config.addresses = Addresses {
                grpc: advertised.grpc.clone(),
                http: advertised.http.clone(),
                cluster: advertised.cluster.clone(),
                rack: Some(config.rack.clone()).filter(|rack| !rack.is_empty()),
            };
        } else {
            broker_config.addresses.grpc = grpc_addr.to_string();
            broker_config.addresses.http = http_addr.to_string();
        }
        let opening = {
            let seams = seams.clone();
            tokio::task::spawn_blocking(move || Broker::open(broker_config, seams))
        };
        let broker = opening.await.map_err(|_| OpenError::Panicked)??;
        if let Some(node) = &node {
            let opened = node.opened(config, broker.clone(), &seams, &data_dir).await;
            if let Err(e) = opened {
                // It was open for a moment, and nobody was told.
                broker.stop().await.ok();
                return Err(e.into());
            }
        }
        Ok(waiting.serve(broker, node).await)
    }
}

pub(crate) fn broker_config(config: &Config) -> BrokerConfig {
    let mut broker = BrokerConfig {
        // So that what is said about files helps those who do not know where the broker was started.
        data_dir: absolute(&config.data_dir),
        in_flight_bytes_max: config.limits.in_flight_bytes_max,
        topics_max: config.limits.topics_max,
        partitions_max: config.limits.partitions_max,
        offsets_partitions: config.limits.offsets_partitions,
        offsets_retention: config.limits.offsets_retention,
        groups_max: config.limits.groups_max,
        producer_id_expiration: config.limits.producer_id_expiration,
        retention_check_interval: config.limits.retention_check_interval,
        removal_bytes_per_second: config.limits.removal_bytes_per_second as u64,
        compaction_check_interval: config.limits.compaction_check_interval,
        compaction_bytes_per_second: config.limits.compaction_bytes_per_second as u64,
        compaction_key_bytes_max: config.limits.compaction_key_bytes_max,
        node_id: config.node_id,
        founders: vec![config.node_id],
        ..BrokerConfig::default()
    };
    if config.shards > 0 {
        broker.shards = config.shards;
    }
    if config.sync_threads > 0 {
        broker.sync_threads = config.sync_threads;
    }
    broker
}

/// The path for others to use, who may be in another directory.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_names_files_by_their_whole_path() {
        let config = Config {
            data_dir: "./d".into(),
            ..Config::default()
        };
        let dir = broker_config(&config).data_dir;
        assert!(dir.is_absolute() && dir.ends_with("d"), "{dir:?}");
    }
}
