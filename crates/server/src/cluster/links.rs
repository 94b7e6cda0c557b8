//! The links to all other brokers of the cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tidelog_broker::{Broker, Delivery, NodeId, Peers, Post};
use tidelog_peer::{Identity, Link, LinkConfig, LinkState, Sink};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::known::{Host, Known};
use super::metrics::{LinkSeen, PeerMetrics};
use super::{KnownBroker, lock};

/// A broker's way to the others. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    own: Arc<OnceLock<Identity>>,
    known: Arc<Known>,
    inbox: Arc<Inbox>,
    config: LinkConfig,
    runtime: Handle,
    links: Mutex<Linked>,
}

#[derive(Default)]
struct Linked {
    by_node: BTreeMap<NodeId, (String, Arc<Link>)>,
    is_stopped: bool,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links = lock(&self.inner.links);
        f.debug_map()
            .entries(
                links
                    .by_node
                    .iter()
                    .map(|(node, (address, _))| (node, address)),
            )
            .finish()
    }
}

impl Links {
    /// None yet. Must be called within a runtime, whose tasks the links are.
    pub(crate) fn new(own: Arc<OnceLock<Identity>>, known: Arc<Known>, config: LinkConfig) -> Self {
        let inner = Arc::new_cyclic(|links| Inner {
            own,
            known,
            inbox: Arc::new(Inbox {
                broker: Mutex::default(),
                links: links.clone(),
            }),
            config,
            runtime: Handle::current(),
            links: Mutex::default(),
        });
        Self { inner }
    }

    /// What the cluster port hands deliveries to.
    pub(crate) fn inbox(&self) -> Arc<Inbox> {
        self.inner.inbox.clone()
    }

    /// The broker is open: what comes of others is for it, and others are let in from now on.
    pub(crate) fn opened(&self, own: Identity, broker: Broker) {
        *lock(&self.inner.inbox.broker) = Some(broker);
        self.inner.own.set(own).ok();
    }

    /// These brokers belong to the cluster, and no others: links are begun, ended, and begun anew where
    /// an address has changed. The own broker among them is passed over. Others that speak with another
    /// data directory are refused from now on.
    pub fn update(&self, brokers: &[KnownBroker]) {
        let inner = &*self.inner;
        inner.known.update(brokers);
        let Some(own) = inner.own.get() else {
            return;
        };
        let mut links = lock(&inner.links);
        if links.is_stopped {
            return;
        }
        let others = brokers
            .iter()
            .filter(|broker| broker.node_id != own.node_id);
        let others: BTreeMap<_, _> = others
            .map(|broker| (broker.node_id, broker.cluster_address.as_str()))
            .collect();
        let mut ended = Vec::new();
        links.by_node.retain(|node, (address, _)| {
            let stays = others.get(node) == Some(&address.as_str());
            if !stays {
                ended.push(*node);
            }
            stays
        });
        let _runtime = inner.runtime.enter();
        for (node, address) in others {
            links.by_node.entry(node).or_insert_with(|| {
                let sink = inner.inbox.clone();
                let config = inner.config.clone();
                let link = Link::start(*own, node, address.to_owned(), sink, config);
                (address.to_owned(), Arc::new(link))
            });
        }
        drop(links);
        // What waited in these links is lost.
        for node in ended {
            inner.inbox.unreachable(node);
        }
    }

    /// From now on brokers that ask for it can be let into the cluster. To be called once.
    pub fn set_host(&self, host: Arc<dyn Host>) {
        self.inner.known.set_host(host);
    }

    /// How the link to a broker is, and each change of that; `None` where there is none.
    pub fn state(&self, node: NodeId) -> Option<watch::Receiver<LinkState>> {
        let links = lock(&self.inner.links);
        links.by_node.get(&node).map(|(_, link)| link.state())
    }

    /// The brokers that belong to the cluster, this one among them, with where they were reached last.
    pub(crate) fn brokers(&self) -> Vec<KnownBroker> {
        self.inner.known.brokers()
    }

    /// The brokers to which there are links.
    pub fn nodes(&self) -> Vec<NodeId> {
        lock(&self.inner.links).by_node.keys().copied().collect()
    }

    /// Puts what the links see into a broker's metrics.
    pub(crate) fn register(&self, registry: &prometheus::Registry) {
        let links = Arc::downgrade(&self.inner);
        let seen = move || {
            let Some(inner) = links.upgrade() else {
                return Vec::new();
            };
            let links = lock(&inner.links);
            let seen = links
                .by_node
                .iter()
                .map(|(node, (_, link))| LinkSeen::of(*node, link));
            seen.collect()
        };
        PeerMetrics::register(registry, Box::new(seen));
    }

    /// Ends all links, and lets go of the broker. There are none after.
    pub(crate) fn stop(&self) {
        let mut links = lock(&self.inner.links);
        links.is_stopped = true;
        links.by_node.clear();
        *lock(&self.inner.inbox.broker) = None;
    }
}

impl Peers for Links {
    fn send(&self, to: NodeId, post: Post) -> Result<(), Post> {
        let links = lock(&self.inner.links);
        let Some(link) = links.by_node.get(&to).map(|(_, link)| link.clone()) else {
            return Err(post);
        };
        // It may write to the connection: others that send are not to wait for that.
        drop(links);
        link.send(post)
    }
}

/// Where what comes of others goes: to the broker, while it is open.
#[derive(Debug)]
pub(crate) struct Inbox {
    broker: Mutex<Option<Broker>>,
    /// The links whose inbox it is.
    links: Weak<Inner>,
}

impl Inbox {
    fn broker(&self) -> Option<Broker> {
        lock(&self.broker).clone()
    }
}

impl Sink for Inbox {
    fn deliver(&self, delivery: Delivery) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        // Before it is open, what comes is lost, as on the network, and sent again.
        let broker = self.broker();
        let left = broker.and_then(|broker| Some((broker.try_deliver(delivery)?, broker)));
        match left {
            // Mostly there is room for all of it, and no future of a thousand bytes is needed to wait for that.
            None => Box::pin(std::future::ready(())),
            Some((left, broker)) => Box::pin(async move { broker.deliver(left).await }),
        }
    }

    fn unreachable(&self, node: NodeId) {
        if let Some(broker) = self.broker() {
            broker.unreachable(node);
        }
    }

    fn greeted(&self, node: NodeId) {
        if let Some(links) = self.links.upgrade()
            && let Some((_, link)) = lock(&links.links).by_node.get(&node)
        {
            link.hurry();
        }
    }

    fn connected(&self, node: NodeId) {
        if let Some(broker) = self.broker() {
            broker.reachable(node);
        }
    }

    fn refused(&self, node: NodeId, why: &str) {
        if let Some(broker) = self.broker() {
            broker.refused(node, why);
        }
    }
}
