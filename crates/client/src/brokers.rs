//! The brokers that are known: where each is reached, and one connection to each.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::transport::{Channel, Endpoint};

use crate::addresses::parse_address;
use crate::{BrokerAddressesError, ClientConfig, ClientError};

/// So many brokers are learned of; a cluster has fewer.
const BROKERS_MAX: usize = 256;

/// The window that a broker may fill before we read: HTTP/2's own 64 KiB would hold a stream back
/// to one batch a round trip.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The longest frame a broker may send: fewer and longer ones take less to read.
const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// A channel, and the address of the broker it leads to.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) channel: Channel,
    pub(crate) address: Arc<str>,
}

/// Those that were given, and those that a broker told of.
#[derive(Debug)]
pub(crate) struct Brokers {
    config: ClientConfig,
    /// Whom to ask what any broker can answer: first those that were given, then the learned ones.
    candidates: Vec<Arc<str>>,
    /// How many of the candidates were given; they stay.
    given: usize,
    /// The candidate that is asked first.
    current: Arc<str>,
    /// The one that was asked last who leads a topic, if it did not know.
    unsure: Option<Arc<str>>,
    /// By node id.
    nodes: HashMap<u32, Arc<str>>,
    connections: HashMap<Arc<str>, Connection>,
}

#[derive(Debug)]
struct Connection {
    endpoint: Endpoint,
    /// Made when it is first needed; connects again by itself.
    channel: Option<Channel>,
}

impl Connection {
    fn channel(&mut self) -> Channel {
        self.channel
            .get_or_insert_with(|| self.endpoint.connect_lazy())
            .clone()
    }
}

impl Brokers {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ClientError> {
        let mut brokers = Self {
            config: config.clone(),
            candidates: Vec::new(),
            given: 0,
            current: config.brokers.0[0].as_str().into(),
            unsure: None,
            nodes: HashMap::new(),
            connections: HashMap::new(),
        };
        for address in &config.brokers.0 {
            brokers.add(&Arc::from(address.as_str()))?;
        }
        brokers.given = brokers.candidates.len();
        Ok(brokers)
    }

    fn add(&mut self, address: &Arc<str>) -> Result<(), ClientError> {
        if !self.connections.contains_key(address) {
            let endpoint = endpoint(address, &self.config)?;
            let connection = Connection {
                endpoint,
                channel: None,
            };
            self.connections.insert(Arc::clone(address), connection);
            self.candidates.push(Arc::clone(address));
        }
        Ok(())
    }

    /// The broker that is asked what any can answer.
    pub(crate) fn current(&mut self) -> Route {
        let current = Arc::clone(&self.current);
        self.route(&current).expect("the current one is known")
    }

    /// The way to an address that is known.
    pub(crate) fn route(&mut self, address: &Arc<str>) -> Option<Route> {
        Some(Route {
            channel: self.connections.get_mut(address)?.channel(),
            address: Arc::clone(address),
        })
    }

    /// The way to a node that is known.
    pub(crate) fn route_to(&mut self, node: u32) -> Option<Route> {
        let address = Arc::clone(self.nodes.get(&node)?);
        self.route(&address)
    }

    /// The endpoint of an address, to connect to it at once.
    pub(crate) fn endpoint(&self, address: &Arc<str>) -> Option<Endpoint> {
        let connection = self.connections.get(address)?;
        Some(connection.endpoint.clone())
    }

    /// Takes a connection that was made, and asks there first from now on.
    pub(crate) fn connected(&mut self, address: &Arc<str>, channel: Channel) {
        if let Some(connection) = self.connections.get_mut(address) {
            connection.channel = Some(channel);
            self.prefer(address);
        }
    }

    /// All that can be asked, the current one first.
    pub(crate) fn candidates(&self) -> Vec<Arc<str>> {
        let mut candidates = self.candidates.clone();
        candidates.rotate_left(self.position(&self.current));
        candidates
    }

    /// All that can be asked who leads, beginning behind one that did not know: if it is cut off from
    /// the others it answers, and never hears. It stays the current one, as nobody else may answer.
    pub(crate) fn candidates_for_leaders(&self) -> Vec<Arc<str>> {
        let Some(unsure) = &self.unsure else {
            return self.candidates();
        };
        let mut candidates = self.candidates.clone();
        let behind = (self.position(unsure) + 1) % candidates.len();
        candidates.rotate_left(behind);
        candidates
    }

    /// Notes whether the current one knew who leads.
    pub(crate) fn was_unsure(&mut self, is_unsure: bool) {
        self.unsure = is_unsure.then(|| Arc::clone(&self.current));
    }

    /// Asks there first from now on.
    pub(crate) fn prefer(&mut self, address: &Arc<str>) {
        if self.connections.contains_key(address) {
            self.current = Arc::clone(address);
        }
    }

    /// Does not ask there first any more. Others may have noticed before.
    pub(crate) fn leave(&mut self, address: &Arc<str>) {
        if self.current == *address {
            let next = (self.position(&self.current) + 1) % self.candidates.len();
            self.current = Arc::clone(&self.candidates[next]);
        }
    }

    fn position(&self, address: &Arc<str>) -> usize {
        let found = self.candidates.iter().position(|other| other == address);
        found.unwrap_or(0)
    }

    /// Where a node is reached, as a broker says. Gives whether that is new.
    pub(crate) fn learn(&mut self, node: u32, address: &str) -> bool {
        let known = self.nodes.get(&node);
        if known.is_some_and(|known| **known == *address) || address.is_empty() {
            return false;
        }
        let is_full = known.is_none() && self.nodes.len() >= BROKERS_MAX;
        let Ok(address) = parse_address(address) else {
            tracing::debug!(node, address, "a broker's address cannot be read");
            return false;
        };
        let address: Arc<str> = address.into();
        if is_full || self.add(&address).is_err() {
            return false;
        }
        let before = self.nodes.insert(node, Arc::clone(&address));
        match before {
            Some(before) if before == address => return false,
            Some(before) => self.forget(&before),
            None => {}
        }
        true
    }

    /// Drops an address that was learned, unless another node is reached there.
    fn forget(&mut self, address: &Arc<str>) {
        let at = self.position(address);
        if at < self.given || self.nodes.values().any(|other| other == address) {
            return;
        }
        self.leave(address);
        self.candidates.remove(at);
        self.connections.remove(address);
    }
}

fn endpoint(address: &str, config: &ClientConfig) -> Result<Endpoint, ClientError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
        BrokerAddressesError::Invalid {
            address: address.to_owned(),
        }
    })?;
    Ok(endpoint
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(list: &str) -> Brokers {
        Brokers::new(&ClientConfig::new(list.parse().unwrap())).unwrap()
    }

    fn names(brokers: &Brokers) -> Vec<String> {
        brokers.candidates().iter().map(|a| a.to_string()).collect()
    }

    #[tokio::test]
    async fn learned_brokers_come_behind_those_given() {
        let mut brokers = brokers("a:1,b:1");
        assert!(brokers.learn(7, "c:1"));
        assert!(!brokers.learn(7, "c:1"), "nothing new");
        assert!(brokers.learn(1, "a:1"), "now it is known which node it is");
        assert!(!brokers.learn(8, ""));
        assert!(!brokers.learn(8, "no address"));
        assert_eq!(names(&brokers), ["a:1", "b:1", "c:1"]);
        assert_eq!(&*brokers.route_to(7).unwrap().address, "c:1");
        assert!(brokers.route_to(9).is_none());

        brokers.leave(&"b:1".into());
        assert_eq!(&*brokers.current().address, "a:1", "it was not asked first");
        brokers.leave(&"a:1".into());
        brokers.leave(&"a:1".into());
        assert_eq!(names(&brokers), ["b:1", "c:1", "a:1"]);
    }

    #[tokio::test]
    async fn one_that_does_not_know_who_leads_is_asked_last_and_stays_the_current_one() {
        let mut brokers = brokers("a:1,b:1,c:1");
        let for_leaders = |brokers: &Brokers| {
            let all = brokers.candidates_for_leaders();
            all.iter().map(|a| a.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(for_leaders(&brokers), ["a:1", "b:1", "c:1"]);
        // The others are dead: it alone answers, each time.
        for _ in 0..3 {
            brokers.was_unsure(true);
            assert_eq!(for_leaders(&brokers), ["b:1", "c:1", "a:1"]);
            brokers.leave(&"b:1".into());
            brokers.leave(&"c:1".into());
            assert_eq!(&*brokers.current().address, "a:1");
        }
        brokers.prefer(&"c:1".into());
        brokers.was_unsure(true);
        assert_eq!(for_leaders(&brokers), ["a:1", "b:1", "c:1"]);
        brokers.was_unsure(false);
        assert_eq!(for_leaders(&brokers), ["c:1", "a:1", "b:1"]);
    }

    #[tokio::test]
    async fn a_node_that_moved_leaves_nothing_behind() {
        let mut brokers = brokers("a:1");
        brokers.learn(7, "c:1");
        brokers.prefer(&"c:1".into());
        assert!(brokers.learn(7, "d:1"));
        assert_eq!(names(&brokers), ["d:1", "a:1"]);
        assert!(brokers.route(&"c:1".into()).is_none());
        brokers.learn(7, "a:1");
        brokers.learn(7, "e:1");
        assert_eq!(names(&brokers), ["a:1", "e:1"], "what was given stays");
    }

    #[tokio::test]
    async fn only_so_many_are_learned() {
        let mut brokers = brokers("a:1");
        for node in 0..1000 {
            brokers.learn(node, &format!("b{node}:1"));
        }
        assert_eq!(brokers.candidates.len(), 1 + BROKERS_MAX);
        assert!(brokers.learn(3, "elsewhere:1"), "of those known, changes");
    }
}
