//! A broker's part in its cluster, from the open port to the end of its links.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use tidelog_broker::{Broker, LEVEL_MAX, Seams};
use tidelog_peer::{Identity, LinkConfig, PeerService};
use tidelog_proto::internal::v1::RegisterBroker;
use tokio::net::TcpListener;

use super::decide::Own;
use super::file::{FoundingFile, Phase};
use super::follow::{Door, WeakBroker, follow};
use super::known::Known;
use super::port::Port;
use super::settle::{Asking, SettleError, Settled, Waits, record, write};
use super::{KnownBroker, Links, Next, Standing};
use crate::Config;
use crate::config::AdvertisedAddresses;

/// The port and the links. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Node {
    links: Links,
    port: Option<Port>,
    settled: Settled,
    /// Those that are known before the metadata say more.
    brokers: Vec<KnownBroker>,
    addresses: AdvertisedAddresses,
    /// The broker, while it lets others in.
    door: WeakBroker,
    following: parking_lot::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// Where a node listens.
#[derive(Debug)]
pub(crate) struct NodeListener {
    pub(crate) cluster: TcpListener,
    pub(crate) cluster_addr: SocketAddr,
    pub(crate) grpc_addr: SocketAddr,
    pub(crate) http_addr: SocketAddr,
}

impl Node {
    /// Opens the port and waits until it is settled to which cluster the broker belongs. May be dropped
    /// at any time.
    pub(crate) async fn start(
        config: &Config,
        listener: NodeListener,
        standing: &Standing,
        next: Next,
        seams: &Seams,
        waits: &Waits,
    ) -> Result<Self, SettleError> {
        let (own, settled) = match next {
            Next::Go(settled) => {
                let directory_id = settled.directory_id;
                let node_id = config.node_id;
                let own = Own {
                    node_id,
                    directory_id,
                };
                (own, Some(settled))
            }
            Next::Ask(own) => (own, None),
            Next::Refuse(why) => return Err(SettleError::Refused(why)),
            Next::Alone => {
                let why = "a broker without a cluster port is alone".to_owned();
                return Err(SettleError::Refused(why));
            }
        };
        if settled.is_none() && !standing.is_written(&own) {
            // Before anybody is told the directory's id: it must not be another one after a crash.
            let fresh = FoundingFile::fresh(own.node_id, own.directory_id);
            write(&seams.disk, &standing.data_dir, fresh).await?;
        }
        let wanted = config.peers.iter().map(|peer| peer.node_id);
        let known = Arc::new(Known::fresh(own, wanted));
        if let Some(settled) = &settled {
            known.settle(settled);
        }
        let identity = Arc::<OnceLock<Identity>>::default();
        let links = Links::new(identity.clone(), known.clone(), LinkConfig::default());
        let addresses = config.advertised(
            listener.grpc_addr,
            listener.http_addr,
            listener.cluster_addr,
        );
        let service = PeerService::new(identity, known.clone(), links.inbox(), known.clone());
        let port = Port::start(listener.cluster, service);
        let (settled, brokers) = match settled {
            Some(settled) => (settled, Vec::new()),
            None => {
                let asking = Asking {
                    config,
                    own,
                    registration: registration(config, &own, &addresses),
                    known: &known,
                    waits,
                    disk: seams.disk.clone(),
                    data_dir: &standing.data_dir,
                    said_wrong: Mutex::default(),
                };
                asking.settle().await?
            }
        };
        Ok(Self {
            brokers: known_first(config, &settled, brokers, &addresses),
            links,
            port: Some(port),
            settled,
            addresses,
            door: WeakBroker::default(),
            following: parking_lot::Mutex::default(),
        })
    }

    /// The broker is open: others are listened to, and there are links to all that are known.
    pub(crate) async fn opened(
        &self,
        config: &Config,
        broker: Broker,
        seams: &Seams,
        data_dir: &std::path::Path,
    ) -> Result<(), SettleError> {
        let settled = &self.settled;
        record(&seams.disk, data_dir, config.node_id, settled, Phase::Done).await?;
        self.links.register(broker.metrics().registry());
        let own = Identity {
            cluster_id: settled.cluster_id,
            node_id: config.node_id,
            directory_id: settled.directory_id,
            process_id: seams.random.id(),
        };
        self.links.opened(own, broker.clone());
        *self.door.lock() = Some(broker.clone());
        let door = Door {
            broker: self.door.clone(),
        };
        self.links.set_host(Arc::new(door));
        let task = follow(broker, self.links.clone(), self.brokers.clone());
        *self.following.lock() = Some(task);
        Ok(())
    }

    /// From now on links are as they are told to be, whatever is decided.
    #[cfg(test)]
    pub(crate) async fn unfollow(&self) {
        let following = self.following.lock().take();
        if let Some(following) = following {
            following.abort();
            following.await.ok();
        }
    }

    pub(crate) fn settled(&self) -> &Settled {
        &self.settled
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn addresses(&self) -> &AdvertisedAddresses {
        &self.addresses
    }

    /// Ends the links and closes the port. To be called once the broker has stopped.
    pub(crate) async fn stop(mut self) {
        self.end();
        if let Some(port) = self.port.take() {
            port.stop().await;
        }
    }
}

impl Node {
    fn end(&self) {
        self.links.stop();
        *self.door.lock() = None;
        if let Some(following) = self.following.lock().take() {
            following.abort();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a broker says of itself where it joins.
fn registration(config: &Config, own: &Own, addresses: &AdvertisedAddresses) -> RegisterBroker {
    RegisterBroker {
        node_id: own.node_id,
        directory_id: own.directory_id.to_vec().into(),
        grpc_address: addresses.grpc.clone(),
        http_address: addresses.http.clone(),
        cluster_address: addresses.cluster.clone(),
        rack: config.rack.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level_min: 0,
        level_max: LEVEL_MAX,
        epoch: 0,
    }
}

/// Who is known at first: whom the others know, and the founders, where `peers` says that they are.
fn known_first(
    config: &Config,
    settled: &Settled,
    mut brokers: Vec<KnownBroker>,
    addresses: &AdvertisedAddresses,
) -> Vec<KnownBroker> {
    let own = KnownBroker {
        node_id: config.node_id,
        directory_id: settled.directory_id,
        cluster_address: addresses.cluster.clone(),
        grpc_address: addresses.grpc.clone(),
        generation: settled.generation,
    };
    brokers.retain(|broker| broker.node_id != own.node_id);
    brokers.push(own);
    for peer in &config.peers {
        if brokers.iter().any(|broker| broker.node_id == peer.node_id) {
            continue;
        }
        let mut founders = settled.founders.iter();
        let Some(founder) = founders.find(|founder| founder.node_id == peer.node_id) else {
            tracing::warn!(
                broker = peer.node_id,
                "a broker in peers did not found this cluster; it belongs to it once it has joined"
            );
            continue;
        };
        brokers.push(KnownBroker {
            node_id: peer.node_id,
            directory_id: founder.directory_id,
            cluster_address: peer.address.clone(),
            ..KnownBroker::default()
        });
    }
    brokers.sort_by_key(|broker| broker.node_id);
    brokers
}
