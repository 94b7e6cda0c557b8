//! What a broker is told: [`Config`], a plain struct, and where each value came from.
//!
//! Every setting has one entry in the table of `settings.rs`: its key, default, what is allowed and
//! how it is read. Flags (`args.rs`), environment and file are only four sources of the same texts,
//! merged in `resolve.rs`; `explain.rs` shows the result.

mod args;
mod explain;
mod peers;
mod resolve;
mod settings;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use args::ServeArgs;
pub use explain::{explain_json, explain_table};
pub use peers::{AdvertisedAddresses, PeerAddress};
pub use resolve::{ConfigError, Explained, Resolved, Source, resolve};

/// The name of the configuration file that is read when none is named and it is there.
pub const CONFIG_FILE: &str = "tidelog.toml";

/// Everything a broker is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where all data is kept. Made if it is not there.
    pub data_dir: PathBuf,
    /// Where gRPC listens; port 0 takes any free one.
    pub grpc_addr: SocketAddr,
    /// Where HTTP (metrics, health) listens; port 0 takes any free one.
    pub http_addr: SocketAddr,
    /// The number of this broker in its cluster. A data directory keeps the number it was made with.
    pub node_id: u32,
    /// Where the cluster port listens; `None` where `peers` says so, or there is none.
    pub cluster_addr: Option<SocketAddr>,
    /// The brokers that found a cluster together, this one among them; the same at each. Empty where
    /// there are none.
    pub peers: Vec<PeerAddress>,
    /// The cluster port of any broker of a cluster that this one joins.
    pub join: Option<String>,
    /// Where the broker stands: replicas of a partition are spread over racks. Empty where that is all
    /// the same.
    pub rack: String,
    /// Where others are told that gRPC is, as host:port; `None` for where it listens.
    pub advertised_grpc_addr: Option<String>,
    /// The same for HTTP.
    pub advertised_http_addr: Option<String>,
    /// The same for the cluster port.
    pub advertised_cluster_addr: Option<String>,
    /// In which form logs go to stderr.
    pub log_format: LogFormat,
    /// Which events are logged: a level, or levels by module, such as `info,tidelog_log=debug`.
    pub log_level: String,
    /// Threads that serve connections; 0 means one a core.
    pub threads: usize,
    /// Event loops that own partitions; 0 means one a core.
    pub shards: usize,
    /// Threads that sync files at a time; 0 means what the broker chooses.
    pub sync_threads: usize,
    /// What bounds memory and waiting.
    pub limits: Limits,
}

/// In which form logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What bounds the memory one client, and all of them, can take, and how long things may last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request, in bytes.
    pub request_bytes_max: usize,
    /// gRPC connections at a time. One more is closed at once.
    pub connections_max: usize,
    /// Calls at a time on one connection.
    pub streams_max: u32,
    /// Bytes of appends of one connection that are not answered yet. Above it the connection's
    /// requests are not read.
    pub connection_in_flight_bytes_max: usize,
    /// Bytes of appends of all connections that are not answered yet.
    pub in_flight_bytes_max: usize,
    /// Bytes of requests of one connection that are not complete yet, or whose records wait decoded
    /// for room in flight. A request that would pass it is refused.
    pub connection_receiving_bytes_max: usize,
    /// Bytes of requests of all connections that are not complete yet, or whose records wait
    /// decoded for room in flight. A request that would pass it is refused.
    pub receiving_bytes_max: usize,
    /// The most bytes one fetch is answered with, but for a first batch that is larger.
    pub fetch_bytes_max: usize,
    /// Bytes of fetch and read answers of one connection that the client has not taken yet. Above
    /// it answers wait.
    pub connection_unsent_bytes_max: usize,
    /// The same for all connections together. Above it each connection has one message of at most
    /// 1 MiB on its way, or one batch if that is larger, so that those that take theirs go on.
    /// Larger records wait.
    pub unsent_bytes_max: usize,
    /// Topics at a time.
    pub topics_max: usize,
    /// Partitions of all topics.
    pub partitions_max: usize,
    /// Partitions that the topic of committed offsets gets when it is made.
    pub offsets_partitions: u32,
    /// How long a committed offset is kept in a group without members.
    pub offsets_retention: Duration,
    /// Groups of one partition of that topic.
    pub groups_max: usize,
    /// After how long of silence an idempotent producer is forgotten.
    pub producer_id_expiration: Duration,
    /// How often old segments are looked for.
    pub retention_check_interval: Duration,
    /// How fast the space of removed segments is given back, in bytes a second.
    pub removal_bytes_per_second: usize,
    /// How often logs to be compacted are looked for.
    pub compaction_check_interval: Duration,
    /// How fast compaction reads and writes, together, in bytes a second.
    pub compaction_bytes_per_second: usize,
    /// How much memory compaction takes for keys at most.
    pub compaction_key_bytes_max: usize,
    /// How long clients get in a graceful stop. Closing the logs may take as long again.
    pub shutdown_deadline: Duration,
    /// After how long without a sign of life a client is asked for one.
    pub keepalive_interval: Duration,
    /// How long it has to answer.
    pub keepalive_timeout: Duration,
    /// How long a new connection has to say that it speaks HTTP/2.
    pub handshake_timeout: Duration,
    /// How long a message that is incomplete may stand still, before its call is ended.
    pub receive_timeout: Duration,
    /// After how long without anything new a reader gets a heartbeat.
    pub read_heartbeat: Duration,
}

impl Default for Config {
    /// The defaults of all settings.
    fn default() -> Self {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut config = Self {
            data_dir: PathBuf::new(),
            grpc_addr: SocketAddr::new(loopback, 0),
            http_addr: SocketAddr::new(loopback, 0),
            node_id: 0,
            cluster_addr: None,
            peers: Vec::new(),
            join: None,
            rack: String::new(),
            advertised_grpc_addr: None,
            advertised_http_addr: None,
            advertised_cluster_addr: None,
            log_format: LogFormat::Text,
            log_level: String::new(),
            threads: 0,
            shards: 0,
            sync_threads: 0,
            limits: Limits {
                request_bytes_max: 0,
                connections_max: 0,
                streams_max: 0,
                connection_in_flight_bytes_max: 0,
                in_flight_bytes_max: 0,
                connection_receiving_bytes_max: 0,
                receiving_bytes_max: 0,
                fetch_bytes_max: 0,
                connection_unsent_bytes_max: 0,
                unsent_bytes_max: 0,
                topics_max: 0,
                partitions_max: 0,
                offsets_partitions: 0,
                offsets_retention: Duration::ZERO,
                groups_max: 0,
                producer_id_expiration: Duration::ZERO,
                retention_check_interval: Duration::ZERO,
                removal_bytes_per_second: 0,
                compaction_check_interval: Duration::ZERO,
                compaction_bytes_per_second: 0,
                compaction_key_bytes_max: 0,
                shutdown_deadline: Duration::ZERO,
                keepalive_interval: Duration::ZERO,
                keepalive_timeout: Duration::ZERO,
                handshake_timeout: Duration::ZERO,
                receive_timeout: Duration::ZERO,
                read_heartbeat: Duration::ZERO,
            },
        };
        // The table is the one place where a default is written down.
        for setting in settings::SETTINGS {
            (setting.read)(setting.default, &mut config).expect("a default is an allowed value");
        }
        config
    }
}

impl Config {
    /// Checks what no single value shows: settings that do not go together.
    ///
    /// # Errors
    /// [`ConfigError::TooSmall`] when a limit that must hold one request, or one fetch, cannot;
    /// [`ConfigError::Apart`] for what is said about other brokers.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_cluster()?;
        let limits = &self.limits;
        let request = ("request_bytes_max", limits.request_bytes_max);
        let fetch = ("fetch_bytes_max", limits.fetch_bytes_max);
        for (key, value, (than, least)) in [
            (
                "connection_in_flight_bytes_max",
                limits.connection_in_flight_bytes_max,
                request,
            ),
            ("in_flight_bytes_max", limits.in_flight_bytes_max, request),
            (
                "connection_receiving_bytes_max",
                limits.connection_receiving_bytes_max,
                request,
            ),
            ("receiving_bytes_max", limits.receiving_bytes_max, request),
            (
                "connection_unsent_bytes_max",
                limits.connection_unsent_bytes_max,
                fetch,
            ),
            ("unsent_bytes_max", limits.unsent_bytes_max, fetch),
        ] {
            if value < least {
                return Err(ConfigError::TooSmall {
                    key,
                    value,
                    than,
                    least,
                });
            }
        }
        Ok(())
    }

    /// The addresses that others than this machine can reach, with the name of the setting.
    pub fn open_to_network(&self) -> Vec<(&'static str, SocketAddr)> {
        let cluster = self.cluster_listen_addr();
        [("grpc_addr", self.grpc_addr), ("http_addr", self.http_addr)]
            .into_iter()
            .chain(cluster.map(|addr| ("cluster_addr", addr)))
            .filter(|(_, addr)| !addr.ip().is_loopback())
            .collect()
    }
}
