//! What a program has of a cluster: the brokers it knows, and who leads what.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidelog_proto::v1;
use tidelog_proto::v1::log_client::LogClient;
use tidelog_record::{PartitionId, TopicName};
use tonic::Status;
use tonic::transport::Channel;

use crate::brokers::{Brokers, Route};
use crate::error::{NotLeader, is_connect_failure, root_cause};
use crate::leaders::Leaders;
use crate::probe::not_http_2;
use crate::{BrokerAddresses, ClientError};

/// How long to find out what listens where the connection broke.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How a [`Client`] connects.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where brokers are. One that answers is enough: it tells of the others.
    pub brokers: BrokerAddresses,
    /// How long to wait for a connection. 5 s by default.
    pub connect_timeout: Duration,
    /// How long to wait for the answer of one call. 10 s by default. Streams have no end of time.
    pub request_timeout: Duration,
    /// The same for calls that make, change or delete topics: each partition has files of its own to
    /// be made durable. 2 minutes by default.
    pub change_timeout: Duration,
    /// After how long without traffic a broker is asked whether it is there. 5 s by default.
    pub keep_alive_interval: Duration,
    /// How long it may take to answer that. 5 s by default. Then the connection is given up, and what
    /// was on its way goes to the broker that leads by then.
    pub keep_alive_timeout: Duration,
    /// The largest answer or message of a stream that is taken. 64 MiB by default.
    pub message_bytes_max: usize,
}

impl ClientConfig {
    /// The defaults, for these brokers.
    pub fn new(brokers: BrokerAddresses) -> Self {
        Self {
            brokers,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            change_timeout: Duration::from_secs(120),
            keep_alive_interval: Duration::from_secs(5),
            keep_alive_timeout: Duration::from_secs(5),
            message_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// Connections to the brokers of a cluster. Clones share them; each is made when it is first needed,
/// and again when it breaks.
///
/// What any broker can answer is asked of one of them, and of the next one when it does not answer.
/// What only the leader of a partition can do is asked of that: who leads is learned from
/// descriptions of topics, and from brokers that refuse because another one leads.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    routing: Mutex<Routing>,
    /// Counts the changes of where partitions are led.
    version: AtomicU64,
    /// Whether a broker ever answered.
    has_answered: AtomicBool,
}

#[derive(Debug)]
struct Routing {
    brokers: Brokers,
    leaders: Leaders,
}

/// To whom to turn with what another broker refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Successor {
    /// Somebody else leads, as far as is known.
    Known {
        /// In a later epoch than was known before, or it was known before that another broker leads than the one
        /// that refused. Whoever follows these need not wait: of brokers that point at each other one names an
        /// epoch that is not later than that of another, and itself was thought to lead.
        is_newer: bool,
    },
    /// Nobody is known to.
    Nobody,
}

impl Successor {
    /// Whether there is somebody.
    pub(crate) fn is_known(self) -> bool {
        self != Self::Nobody
    }
}

impl Client {
    /// Connects to the first broker of `brokers` (`host:port[,host:port…]`) that answers, with the
    /// defaults of [`ClientConfig`].
    ///
    /// # Errors
    /// [`ClientError::Addresses`], [`ClientError::Unreachable`].
    pub async fn connect(brokers: &str) -> Result<Self, ClientError> {
        Self::connect_with(ClientConfig::new(brokers.parse()?)).await
    }

    /// Connects to the first broker that answers.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when none does; [`ClientError::Addresses`].
    pub async fn connect_with(config: ClientConfig) -> Result<Self, ClientError> {
        let client = Self::lazy(config)?;
        let inner = &client.inner;
        let mut cause = String::new();
        for address in client.candidates() {
            let Some(endpoint) = inner.routing.lock().brokers.endpoint(&address) else {
                continue;
            };
            // The timeout of the endpoint does not cover the handshake of HTTP/2.
            let connecting = tokio::time::timeout(inner.config.connect_timeout, endpoint.connect());
            match connecting.await {
                Ok(Ok(channel)) => {
                    inner.routing.lock().brokers.connected(&address, channel);
                    return Ok(client);
                }
                Ok(Err(error)) => cause = root_cause(&error),
                Err(_) => cause = format!("no answer within {:?}", inner.config.connect_timeout),
            }
        }
        Err(client.unreachable(cause))
    }

    /// A client that connects when it is first used. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`ClientError::Addresses`].
    pub fn lazy(config: ClientConfig) -> Result<Self, ClientError> {
        let routing = Routing {
            brokers: Brokers::new(&config)?,
            leaders: Leaders::default(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                routing: Mutex::new(routing),
                version: AtomicU64::new(0),
                has_answered: AtomicBool::new(false),
            }),
        })
    }

    /// How it connects.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// Where calls go now that any broker can answer.
    pub(crate) fn route(&self) -> Route {
        self.inner.routing.lock().brokers.current()
    }

    /// Where a partition is led; where nobody is known to, the broker that calls go to, which knows
    /// better.
    pub(crate) fn route_of(&self, topic: &TopicName, partition: PartitionId) -> Route {
        let leader = self.leader_of(topic, partition);
        leader.unwrap_or_else(|| self.route())
    }

    /// Where a partition is led, if that is known.
    pub(crate) fn leader_of(&self, topic: &TopicName, partition: PartitionId) -> Option<Route> {
        let routing = &mut *self.inner.routing.lock();
        let leader = routing.leaders.leader(topic, partition)?;
        routing.brokers.route_to(leader)
    }

    /// The way to an address, as long as it is known.
    pub(crate) fn route_to(&self, address: &Arc<str>) -> Option<Route> {
        self.inner.routing.lock().brokers.route(address)
    }

    /// Brokers that can be asked, the best first.
    pub(crate) fn candidates(&self) -> Vec<Arc<str>> {
        self.inner.routing.lock().brokers.candidates()
    }

    /// Brokers that can be asked who leads, those first that may know.
    pub(crate) fn candidates_for_leaders(&self) -> Vec<Arc<str>> {
        self.inner.routing.lock().brokers.candidates_for_leaders()
    }

    /// Counts up whenever [`route_of`](Self::route_of) may give another answer for a partition whose
    /// leader is known.
    pub(crate) fn routing_version(&self) -> u64 {
        self.inner.version.load(Ordering::Acquire)
    }

    /// Whether a broker ever told who leads partitions of the topic.
    pub(crate) fn knows(&self, topic: &TopicName) -> bool {
        self.inner.routing.lock().leaders.is_known(topic)
    }

    /// Takes from the description of a topic who leads, and where.
    pub(crate) fn learn(&self, topic: &TopicName, described: &v1::DescribeTopicResponse) {
        let routing = &mut *self.inner.routing.lock();
        let mut is_changed = false;
        for broker in &described.brokers {
            is_changed |= routing.brokers.learn(broker.node_id, &broker.grpc_address);
        }
        is_changed |= routing.leaders.learn(topic, described);
        let is_unsure = routing.leaders.is_unsure(topic);
        routing.brokers.was_unsure(is_unsure);
        self.note_change(is_changed);
    }

    /// Takes from a refusal of the broker at `from` who leads a partition instead. Gives to whom to turn.
    pub(crate) fn learn_not_leader(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        not_leader: &NotLeader,
        from: &Arc<str>,
    ) -> Successor {
        let routing = &mut *self.inner.routing.lock();
        let leads = |routing: &mut Routing| {
            let node = routing.leaders.leader(topic, partition)?;
            Some(routing.brokers.route_to(node)?.address)
        };
        let mut is_changed = false;
        let epoch_before = routing.leaders.epoch(topic, partition);
        let was_known = leads(routing).is_some_and(|address| address != *from);
        // Others may know better by now than when this was asked.
        if leads(routing).is_none_or(|address| address == *from) {
            routing.leaders.doubt(topic, partition);
        }
        if let Some(node) = not_leader.leader {
            if let Some(address) = &not_leader.address {
                is_changed |= routing.brokers.learn(node, address);
            }
            let epoch = not_leader.epoch;
            is_changed |= routing.leaders.learn_one(topic, partition, node, epoch);
        }
        self.note_change(is_changed);
        match leads(routing) {
            Some(address) if address != *from => Successor::Known {
                is_newer: was_known || routing.leaders.epoch(topic, partition) > epoch_before,
            },
            _ => Successor::Nobody,
        }
    }

    /// The leader of a partition did not answer: what is told next of it is believed.
    pub(crate) fn doubt(&self, topic: &TopicName, partition: PartitionId) {
        self.inner.routing.lock().leaders.doubt(topic, partition);
    }

    fn note_change(&self, is_changed: bool) {
        if is_changed {
            self.inner.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Tells that the broker answers: it is asked first from now on.
    pub(crate) fn route_answered(&self, route: &Route) {
        self.answered();
        self.inner.routing.lock().brokers.prefer(&route.address);
    }

    /// Tells that no connection could be made over this route, or no answer came: later calls go to
    /// the next broker.
    pub(crate) fn route_failed(&self, route: &Route) {
        self.inner.routing.lock().brokers.leave(&route.address);
    }

    pub(crate) fn log_of(&self, route: &Route) -> LogClient<Channel> {
        LogClient::new(route.channel.clone())
            .max_decoding_message_size(self.inner.config.message_bytes_max)
    }

    /// The error of a call or stream over `route`, which is noted as broken if it is.
    pub(crate) fn error_over(&self, route: &Route, status: &Status) -> ClientError {
        let error = ClientError::from_status(status);
        match error {
            ClientError::Disconnected { cause } if is_connect_failure(status) => {
                self.route_failed(route);
                self.unreachable(cause)
            }
            error if error.is_of_cluster_port() => {
                self.route_failed(route);
                ClientError::ClusterPort {
                    address: route.address.to_string(),
                }
            }
            ClientError::Broker(error) => {
                self.answered();
                ClientError::Broker(error)
            }
            error => error,
        }
    }

    /// Notes that a broker answered: there is one at the address, whatever breaks later.
    pub(crate) fn answered(&self) {
        self.inner.has_answered.store(true, Ordering::Relaxed);
    }

    /// The error of a call or stream over `route`, with what is wrong instead where no broker ever
    /// answered and none is there: trying again is no help then.
    pub(crate) async fn explained(&self, route: &Route, error: ClientError) -> ClientError {
        let is_new = !self.inner.has_answered.load(Ordering::Relaxed);
        if !is_new || !matches!(error, ClientError::Disconnected { .. }) {
            return error;
        }
        match tokio::time::timeout(PROBE_TIMEOUT, not_http_2(&route.address)).await {
            Ok(Some(found)) => {
                self.route_failed(route);
                ClientError::NotGrpc {
                    address: route.address.to_string(),
                    found,
                }
            }
            Ok(None) | Err(_) => error,
        }
    }

    fn unreachable(&self, cause: String) -> ClientError {
        ClientError::Unreachable {
            brokers: self.inner.config.brokers.to_string(),
            cause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_listening_is_unreachable() {
        // Bound and dropped: nobody listens there now.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = Client::connect(&free.to_string()).await.unwrap_err();
        let ClientError::Unreachable { brokers, cause } = error else {
            panic!("unexpected {error:?}");
        };
        assert_eq!(brokers, free.to_string());
        assert!(cause.contains("refused"), "{cause}");

        let client = Client::lazy(ClientConfig::new(free.to_string().parse().unwrap())).unwrap();
        let error = client.list_topics(false).await.unwrap_err();
        assert!(
            matches!(error, ClientError::Unreachable { .. }),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn of_brokers_that_point_at_each_other_one_is_waited_for() {
        let config = ClientConfig::new("127.0.0.1:1,127.0.0.1:2".parse().unwrap());
        let client = Client::lazy(config).unwrap();
        let (topic, partition) = (TopicName::new("t").unwrap(), PartitionId::new(0));
        let addresses: [Arc<str>; 2] = ["127.0.0.1:1".into(), "127.0.0.1:2".into()];
        let told = |leader: Option<usize>, epoch: u32, from: usize| {
            let not_leader = NotLeader {
                leader: leader.map(|at| u32::try_from(at + 1).unwrap()),
                address: leader.map(|at| addresses[at].to_string()),
                epoch,
            };
            client.learn_not_leader(&topic, partition, &not_leader, &addresses[from])
        };
        let known = |is_newer| Successor::Known { is_newer };
        assert_eq!(told(None, 0, 0), Successor::Nobody);
        assert_eq!(told(Some(1), 3, 0), known(true));
        // As another batch that was sent to the same broker.
        assert_eq!(told(Some(1), 3, 0), known(true));
        assert_eq!(told(None, 0, 0), known(true));
        // Two that point at each other.
        assert_eq!(told(Some(0), 3, 1), known(false));
        assert_eq!(told(Some(1), 3, 0), known(false));
        assert_eq!(told(Some(0), 4, 1), known(true));
        assert_eq!(
            told(Some(0), 5, 0),
            Successor::Nobody,
            "it says so of itself"
        );
    }
}
