//! The flags of `tidelog serve`.

use std::path::PathBuf;

/// The flags of `tidelog serve`. Each wins over `TIDELOG_<NAME>` in the environment, that over
/// the configuration file, and that over the default; `tidelog config explain` shows them all.
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "the fields are documented by what the help says, defaults in brackets"
)]
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// Configuration file (TOML) [default: ./tidelog.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of all data, made if it is not there [default: ./tidelog-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Address of gRPC; port 0 takes any free one [default: 127.0.0.1:9400]
    #[arg(long, value_name = "ADDR")]
    pub grpc_addr: Option<String>,
    /// Address of HTTP (metrics, health); port 0 takes any free one [default: 127.0.0.1:9401]
    #[arg(long, value_name = "ADDR")]
    pub http_addr: Option<String>,
    /// Number of this broker in its cluster [default: 1]
    #[arg(long, value_name = "ID", help_heading = "Cluster")]
    pub node_id: Option<String>,
    /// Address of the cluster port; empty: as peers has it, or none [default: ]
    #[arg(long, value_name = "ADDR", help_heading = "Cluster")]
    pub cluster_addr: Option<String>,
    /// Brokers that found a cluster together, the same at each: 1@host:port,2@host:port,...
    /// [default: ]
    #[arg(long, value_name = "PEERS", help_heading = "Cluster")]
    pub peers: Option<String>,
    /// Cluster port of any broker of a cluster that is to be joined [default: ]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    pub join: Option<String>,
    /// Where this broker stands: replicas are spread over racks [default: ]
    #[arg(long, value_name = "RACK", help_heading = "Cluster")]
    pub rack: Option<String>,
    /// Where others reach gRPC; empty: where it listens [default: ]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    pub advertised_grpc_addr: Option<String>,
    /// Where others reach HTTP; empty: where it listens [default: ]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    pub advertised_http_addr: Option<String>,
    /// Where others reach the cluster port; empty: where it listens [default: ]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    pub advertised_cluster_addr: Option<String>,
    /// Form of the logs on stderr: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What is logged: off, error, warn, info, debug, trace, or by module, as in
    /// info,tidelog_log=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Threads that serve connections; 0: one a core [default: 0]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    pub threads: Option<String>,
    /// Event loops that own partitions; 0: one a core [default: 0]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    pub shards: Option<String>,
    /// Threads that sync files at a time; 0: one a core, 4 at most [default: 0]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    pub sync_threads: Option<String>,
    /// The largest request [default: 16MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub request_bytes_max: Option<String>,
    /// gRPC connections at a time [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub connections_max: Option<String>,
    /// Calls at a time on one connection [default: 256]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub streams_max: Option<String>,
    /// Unanswered appends of one connection [default: 64MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub connection_in_flight_bytes_max: Option<String>,
    /// Unanswered appends of all connections [default: 256MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub in_flight_bytes_max: Option<String>,
    /// Requests of one connection that arrive, or wait decoded for room [default: 64MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub connection_receiving_bytes_max: Option<String>,
    /// Requests of all connections that arrive, or wait decoded for room [default: 256MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub receiving_bytes_max: Option<String>,
    /// The most one fetch is answered with [default: 50MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub fetch_bytes_max: Option<String>,
    /// Fetch and read answers that one connection has not taken yet [default: 64MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub connection_unsent_bytes_max: Option<String>,
    /// Fetch and read answers that all connections have not taken yet [default: 512MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub unsent_bytes_max: Option<String>,
    /// Topics; one more is refused [default: 10000]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub topics_max: Option<String>,
    /// Partitions of all topics; each holds an open file [default: 100000]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub partitions_max: Option<String>,
    /// Partitions of the topic of committed offsets, when it is made [default: 50]
    #[arg(long, value_name = "N", help_heading = "Groups")]
    pub offsets_partitions: Option<String>,
    /// How long an offset is kept in a group without members [default: 604800000]
    #[arg(long, value_name = "MS", help_heading = "Groups")]
    pub offsets_retention_ms: Option<String>,
    /// Groups of one partition of that topic; one more is refused [default: 100000]
    #[arg(long, value_name = "N", help_heading = "Groups")]
    pub groups_max: Option<String>,
    /// After how long of silence an idempotent producer is forgotten [default: 86400000]
    #[arg(long, value_name = "MS", help_heading = "Limits")]
    pub producer_id_expiration_ms: Option<String>,
    /// How often old segments are looked for [default: 300000]
    #[arg(long, value_name = "MS", help_heading = "Background")]
    pub retention_check_interval_ms: Option<String>,
    /// How fast the space of removed segments is given back [default: 1GiB]
    #[arg(long, value_name = "BYTES", help_heading = "Background")]
    pub removal_bytes_per_second: Option<String>,
    /// How often logs to be compacted are looked for [default: 15000]
    #[arg(long, value_name = "MS", help_heading = "Background")]
    pub compaction_check_interval_ms: Option<String>,
    /// How fast compaction reads and writes, together [default: 64MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Background")]
    pub compaction_bytes_per_second: Option<String>,
    /// How much memory compaction takes for keys [default: 128MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Background")]
    pub compaction_key_bytes_max: Option<String>,
    /// How long clients get in a graceful stop [default: 30000]
    #[arg(long, value_name = "MS", help_heading = "Limits")]
    pub shutdown_deadline_ms: Option<String>,
    /// After how long of silence a client is asked for a sign of life [default: 30000]
    #[arg(long, value_name = "MS", help_heading = "Limits")]
    pub keepalive_interval_ms: Option<String>,
    /// How long it has to give one [default: 10000]
    #[arg(long, value_name = "MS", help_heading = "Limits")]
    pub keepalive_timeout_ms: Option<String>,
    /// How long a new connection has to begin HTTP/2 [default: 10000]
    #[arg(long, value_name = "MS", help_heading = "Limits")]
    pub handshake_timeout_ms: Option<String>,
    /// How long an incomplete request may stand still [default: 30000]
    #[arg(long, value_name = "MS", help_heading = "Limits")]
    pub receive_timeout_ms: Option<String>,
    /// After how long without anything new a reader gets a heartbeat [default: 15000]
    #[arg(long, value_name = "MS", help_heading = "Limits")]
    pub read_heartbeat_ms: Option<String>,
}

impl ServeArgs {
    /// The text given for the setting `key`, if its flag was.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let value = match key {
            "data_dir" => &self.data_dir,
            "grpc_addr" => &self.grpc_addr,
            "http_addr" => &self.http_addr,
            "node_id" => &self.node_id,
            "cluster_addr" => &self.cluster_addr,
            "peers" => &self.peers,
            "join" => &self.join,
            "rack" => &self.rack,
            "advertised_grpc_addr" => &self.advertised_grpc_addr,
            "advertised_http_addr" => &self.advertised_http_addr,
            "advertised_cluster_addr" => &self.advertised_cluster_addr,
            "log_format" => &self.log_format,
            "log_level" => &self.log_level,
            "threads" => &self.threads,
            "shards" => &self.shards,
            "sync_threads" => &self.sync_threads,
            "request_bytes_max" => &self.request_bytes_max,
            "connections_max" => &self.connections_max,
            "streams_max" => &self.streams_max,
            "connection_in_flight_bytes_max" => &self.connection_in_flight_bytes_max,
            "in_flight_bytes_max" => &self.in_flight_bytes_max,
            "connection_receiving_bytes_max" => &self.connection_receiving_bytes_max,
            "receiving_bytes_max" => &self.receiving_bytes_max,
            "fetch_bytes_max" => &self.fetch_bytes_max,
            "connection_unsent_bytes_max" => &self.connection_unsent_bytes_max,
            "unsent_bytes_max" => &self.unsent_bytes_max,
            "topics_max" => &self.topics_max,
            "partitions_max" => &self.partitions_max,
            "offsets_partitions" => &self.offsets_partitions,
            "offsets_retention_ms" => &self.offsets_retention_ms,
            "groups_max" => &self.groups_max,
            "producer_id_expiration_ms" => &self.producer_id_expiration_ms,
            "retention_check_interval_ms" => &self.retention_check_interval_ms,
            "removal_bytes_per_second" => &self.removal_bytes_per_second,
            "compaction_check_interval_ms" => &self.compaction_check_interval_ms,
            "compaction_bytes_per_second" => &self.compaction_bytes_per_second,
            "compaction_key_bytes_max" => &self.compaction_key_bytes_max,
            "shutdown_deadline_ms" => &self.shutdown_deadline_ms,
            "keepalive_interval_ms" => &self.keepalive_interval_ms,
            "keepalive_timeout_ms" => &self.keepalive_timeout_ms,
            "handshake_timeout_ms" => &self.handshake_timeout_ms,
            "receive_timeout_ms" => &self.receive_timeout_ms,
            "read_heartbeat_ms" => &self.read_heartbeat_ms,
            other => unreachable!("the setting {other} has no flag"),
        };
        value.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;
    use crate::config::settings::{LOG_LEVELS, SETTINGS};

    #[test]
    fn every_setting_has_its_flag_and_tells_its_default() {
        let mut command = ServeArgs::augment_args(Command::new("serve"));
        let help = command
            .render_long_help()
            .to_string()
            .replace("\n          ", " ");
        for setting in SETTINGS {
            assert_eq!(ServeArgs::default().get(setting.key), None);
            let flag = setting.flag();
            let at = help
                .find(&format!("{flag} <"))
                .unwrap_or_else(|| panic!("{flag} in {help}"));
            let own = help[at..].split("\n\n").next().unwrap();
            let shown = format!("[default: {}]", setting.default);
            assert!(own.contains(&shown), "{own}");
            if setting.key == "log_level" {
                let levels = LOG_LEVELS.join(", ");
                assert!(own.contains(&levels), "{own}");
                assert!(setting.allowed.contains(&levels), "{}", setting.allowed);
            }
        }
        let flags = command
            .get_arguments()
            .filter(|arg| arg.get_id() != "config" && arg.get_id() != "help")
            .count();
        assert_eq!(flags, SETTINGS.len());
    }
}
