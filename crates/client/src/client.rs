//! A connection to one of several brokers.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::topics_client::TopicsClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::ClientError;
use crate::error::{is_connect_failure, root_cause};
use crate::probe::not_http_2;

/// The port of `host` without one.
const PORT_DEFAULT: u16 = 9400;

/// The window that a broker may fill before we read: HTTP/2's own 64 KiB would hold a stream back
/// to one batch a round trip.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The longest frame a broker may send: fewer and longer ones take less to read.
const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// How long to find out what listens where the connection broke.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where brokers are: `host:port[,host:port…]`, the port 9400 where it is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddresses(Vec<String>);

/// Why a text is no list of brokers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerAddressesError {
    /// There is no address in it.
    #[error("no broker address given; expected host:port[,host:port...]")]
    Empty,
    /// One of the addresses cannot be read.
    #[error("{address:?} is no broker address; expected host:port, such as 127.0.0.1:9400")]
    Invalid {
        /// What was given.
        address: String,
    },
}

impl FromStr for BrokerAddresses {
    type Err = BrokerAddressesError;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let addresses = list
            .split(',')
            .map(str::trim)
            .filter(|address| !address.is_empty())
            .map(parse_address)
            .collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(BrokerAddressesError::Empty);
        }
        Ok(Self(addresses))
    }
}

impl fmt::Display for BrokerAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

fn parse_address(address: &str) -> Result<String, BrokerAddressesError> {
    let invalid = || BrokerAddressesError::Invalid {
        address: address.to_owned(),
    };
    // An IPv6 address has colons of its own: only in brackets can a port follow.
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| invalid())?)
        }
        Some(_) if !address.ends_with(']') => return Err(invalid()),
        _ => (address, PORT_DEFAULT),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let is_allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if bare.is_empty() || !bare.chars().all(is_allowed) || port == 0 {
        return Err(invalid());
    }
    Ok(format!("{host}:{port}"))
}

/// How a [`Client`] connects.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where brokers are. One that answers is enough.
    pub brokers: BrokerAddresses,
    /// How long to wait for a connection. 5 s by default.
    pub connect_timeout: Duration,
    /// How long to wait for the answer of one call. 10 s by default. Streams have no end of time.
    pub request_timeout: Duration,
    /// The same for calls that make, change or delete topics: each partition has files of its own to
    /// be made durable. 2 minutes by default.
    pub change_timeout: Duration,
    /// After how long without traffic the broker is asked whether it is there. 15 s by default.
    pub keep_alive_interval: Duration,
    /// How long it may take to answer that. 10 s by default.
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
            keep_alive_interval: Duration::from_secs(15),
            keep_alive_timeout: Duration::from_secs(10),
            message_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// A connection to one of several brokers. Clones share it; it is made again when it breaks, to the
/// next broker of the list when the last does not answer.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    endpoints: Vec<Endpoint>,
    current: Mutex<Current>,
    /// Whether a broker ever answered.
    has_answered: AtomicBool,
}

#[derive(Debug)]
struct Current {
    /// Index into the endpoints.
    broker: usize,
    channel: Channel,
}

/// A channel, and which of the brokers it leads to.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) channel: Channel,
    broker: usize,
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
        for (broker, endpoint) in inner.endpoints.iter().enumerate() {
            // The timeout of the endpoint does not cover the handshake of HTTP/2.
            let connecting = tokio::time::timeout(inner.config.connect_timeout, endpoint.connect());
            match connecting.await {
                Ok(Ok(channel)) => {
                    *inner.current.lock() = Current { broker, channel };
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
        let endpoints = config
            .brokers
            .0
            .iter()
            .map(|address| endpoint(address, &config))
            .collect::<Result<Vec<_>, _>>()?;
        let channel = endpoints[0].connect_lazy();
        let current = Mutex::new(Current { broker: 0, channel });
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                endpoints,
                current,
                has_answered: AtomicBool::new(false),
            }),
        })
    }

    /// How it connects.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// Where calls go now.
    pub(crate) fn route(&self) -> Route {
        let current = self.inner.current.lock();
        Route {
            channel: current.channel.clone(),
            broker: current.broker,
        }
    }

    /// Tells that no connection could be made over this route: later calls go to the next broker.
    pub(crate) fn route_failed(&self, route: &Route) {
        let mut current = self.inner.current.lock();
        let endpoints = &self.inner.endpoints;
        // Others may have noticed before us.
        if current.broker == route.broker && endpoints.len() > 1 {
            let broker = (route.broker + 1) % endpoints.len();
            *current = Current {
                broker,
                channel: endpoints[broker].connect_lazy(),
            };
        }
    }

    pub(crate) fn log_of(&self, route: &Route) -> LogClient<Channel> {
        LogClient::new(route.channel.clone())
            .max_decoding_message_size(self.inner.config.message_bytes_max)
    }

    /// Makes a call on the service `Log`, at the next broker too where one cannot be reached.
    pub(crate) async fn call_log<T, F>(
        &self,
        operation: &'static str,
        call: impl Fn(LogClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(operation, |route| call(self.log_of(route))).await
    }

    /// Makes a call on the service `Topics`, at the next broker too where one cannot be reached.
    pub(crate) async fn call_topics<T, F>(
        &self,
        operation: &'static str,
        call: impl Fn(TopicsClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let bytes_max = self.inner.config.message_bytes_max;
        self.call(operation, |route| {
            let client = TopicsClient::new(route.channel.clone());
            call(client.max_decoding_message_size(bytes_max))
        })
        .await
    }

    async fn call<T, F>(
        &self,
        operation: &'static str,
        call: impl Fn(&Route) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let config = &self.inner.config;
        let after = match operation {
            "CreateTopic" | "AlterTopic" | "AddPartitions" | "DeleteTopic" => config.change_timeout,
            _ => config.request_timeout,
        };
        let mut tries_left = self.inner.endpoints.len();
        loop {
            tries_left -= 1;
            let route = self.route();
            let status = match tokio::time::timeout(after, call(&route)).await {
                Ok(Ok(response)) => {
                    self.answered();
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_) => return Err(ClientError::TimedOut { operation, after }),
            };
            let error = self.error_over(&route, &status);
            let error = self.explained(&route, error).await;
            // No broker got it, so that trying elsewhere cannot do it twice.
            let is_elsewhere = matches!(
                error,
                ClientError::Unreachable { .. } | ClientError::NotGrpc { .. }
            );
            if !is_elsewhere || tries_left == 0 {
                return Err(error);
            }
        }
    }

    /// The error of a call or stream over `route`, which is noted as broken if it is.
    pub(crate) fn error_over(&self, route: &Route, status: &Status) -> ClientError {
        let error = ClientError::from_status(status);
        match error {
            ClientError::Disconnected { cause } if is_connect_failure(status) => {
                self.route_failed(route);
                self.unreachable(cause)
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
        let address = &self.inner.config.brokers.0[route.broker];
        match tokio::time::timeout(PROBE_TIMEOUT, not_http_2(address)).await {
            Ok(Some(found)) => {
                self.route_failed(route);
                ClientError::NotGrpc {
                    address: address.clone(),
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

    #[test]
    fn addresses_are_read() {
        let read = |list: &str| list.parse::<BrokerAddresses>().map(|list| list.to_string());
        assert_eq!(read("127.0.0.1:9400"), Ok("127.0.0.1:9400".to_owned()));
        assert_eq!(read("a:1, b.example:2,"), Ok("a:1,b.example:2".to_owned()));
        assert_eq!(read("localhost"), Ok("localhost:9400".to_owned()));
        assert_eq!(read("[::1]:9400"), Ok("[::1]:9400".to_owned()));
        assert_eq!(read("[::1]"), Ok("[::1]:9400".to_owned()));
        assert_eq!(read(" , "), Err(BrokerAddressesError::Empty));
        for bad in [
            "::1",
            "a:b",
            "a:0",
            ":9400",
            "a:70000",
            "http://a:1",
            "a b:1",
            "a:1/x",
        ] {
            let error = BrokerAddressesError::Invalid {
                address: bad.to_owned(),
            };
            assert_eq!(read(bad), Err(error), "{bad}");
        }
    }

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
}
