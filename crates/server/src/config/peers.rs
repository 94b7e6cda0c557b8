//! What a broker is told about others: who founds a cluster with it, whom it joins, and where it is
//! reached itself.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Config, ConfigError};

/// So many brokers found a cluster at most: all of them vote on what becomes of it.
const PEERS_MAX: usize = 9;
/// The longest name of a host, by the rules of DNS.
const HOST_LEN_MAX: usize = 253;

/// A broker that founds a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its number there.
    pub node_id: u32,
    /// Its cluster port, as host:port.
    pub address: String,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node_id, self.address)
    }
}

/// Where others are told that a broker is, each as host:port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdvertisedAddresses {
    /// For clients.
    pub grpc: String,
    /// For metrics and health.
    pub http: String,
    /// For other brokers.
    pub cluster: String,
}

pub(super) fn read(text: &str) -> Option<Vec<PeerAddress>> {
    let mut peers: Vec<PeerAddress> = Vec::new();
    for entry in text.split(',').filter(|_| !text.is_empty()) {
        let (node_id, address) = entry.trim().split_once('@')?;
        let node_id = node_id.parse().ok().filter(|id| *id > 0)?;
        let address = host_port(address)?;
        let is_known = |peer: &PeerAddress| peer.node_id == node_id || peer.address == address;
        if peers.len() == PEERS_MAX || peers.iter().any(is_known) {
            return None;
        }
        peers.push(PeerAddress { node_id, address });
    }
    Some(peers)
}

pub(super) fn show(peers: &[PeerAddress]) -> String {
    let peers: Vec<_> = peers.iter().map(PeerAddress::to_string).collect();
    peers.join(",")
}

/// A host and a port, other than 0, as they were written.
pub(super) fn host_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port > 0)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_host = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= HOST_LEN_MAX && host.chars().all(is_name),
    };
    is_host.then(|| text.to_owned())
}

impl Config {
    /// What `peers` says of this broker.
    pub(crate) fn own_peer(&self) -> Option<&PeerAddress> {
        self.peers.iter().find(|peer| peer.node_id == self.node_id)
    }

    /// Where the cluster port listens, if there is to be one.
    pub fn cluster_listen_addr(&self) -> Option<SocketAddr> {
        let listed = || self.own_peer()?.address.parse().ok();
        self.cluster_addr.or_else(listed)
    }

    pub(super) fn validate_cluster(&self) -> Result<(), ConfigError> {
        let apart = |key, with: &str, allowed| {
            let with = with.to_owned();
            Err(ConfigError::Apart { key, with, allowed })
        };
        if self.join.is_some() && !self.peers.is_empty() {
            return apart(
                "join",
                "peers",
                "peers at the brokers that found a cluster, and join at those that come later",
            );
        }
        if !self.peers.is_empty() && self.own_peer().is_none() {
            let with = format!("node_id ({})", self.node_id);
            return apart(
                "peers",
                &with,
                "a list with this broker in it, the same at each broker",
            );
        }
        let listens = self.cluster_listen_addr();
        if listens.is_none() && (self.join.is_some() || !self.peers.is_empty()) {
            let with = match self.join {
                Some(_) => "join",
                None => "a name in peers",
            };
            return apart(
                "cluster_addr",
                with,
                "an IP address and a port, not nothing",
            );
        }
        if listens.is_none() {
            return Ok(());
        }
        for (key, addr, advertised) in [
            (
                "advertised_grpc_addr",
                Some(self.grpc_addr),
                &self.advertised_grpc_addr,
            ),
            (
                "advertised_http_addr",
                Some(self.http_addr),
                &self.advertised_http_addr,
            ),
            (
                "advertised_cluster_addr",
                listens,
                &self.advertised_cluster_addr,
            ),
        ] {
            let is_open = addr.is_some_and(|addr| addr.ip().is_unspecified());
            if is_open && advertised.is_none() && self.own_host().is_none() {
                let with = "an address that is no certain one, such as 0.0.0.0";
                return apart(
                    key,
                    with,
                    "the host and port under which others reach the broker",
                );
            }
        }
        Ok(())
    }

    /// The host of this broker in `peers`, with the brackets that IPv6 has.
    fn own_host(&self) -> Option<&str> {
        let host = self.own_peer()?.address.rsplit_once(':')?.0;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_open = bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        (!is_open).then_some(host)
    }

    /// Where others are told that the broker is, which listens at these addresses.
    pub(crate) fn advertised(
        &self,
        grpc: SocketAddr,
        http: SocketAddr,
        cluster: SocketAddr,
    ) -> AdvertisedAddresses {
        let of = |told: &Option<String>, addr: SocketAddr| {
            if let Some(told) = told {
                return told.clone();
            }
            match self.own_host().filter(|_| addr.ip().is_unspecified()) {
                Some(host) => format!("{host}:{}", addr.port()),
                None => addr.to_string(),
            }
        };
        AdvertisedAddresses {
            grpc: of(&self.advertised_grpc_addr, grpc),
            http: of(&self.advertised_http_addr, http),
            cluster: of(&self.advertised_cluster_addr, cluster),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(node_id: u32, text: &str) -> Config {
        Config {
            node_id,
            peers: read(text).unwrap(),
            ..Config::default()
        }
    }

    #[test]
    fn a_list_of_peers_is_read_and_shown() {
        let text = "1@10.0.0.1:9402,2@broker-2.example.org:9402,30@[::1]:1";
        let peers = read(text).unwrap();
        assert_eq!(peers[2].node_id, 30);
        assert_eq!(peers[1].address, "broker-2.example.org:9402");
        assert_eq!(show(&peers), text);
        assert_eq!(read("").unwrap(), []);
        let ten: Vec<_> = (1..=10).map(|id| format!("{id}@h{id}:1")).collect();
        assert!(read(&ten[..9].join(",")).is_some());
        for bad in [
            "1",
            "0@a:1",
            "1@a",
            "1@a:0",
            "1@a:65536",
            "1@:1",
            "1@a b:1",
            "1@a/b:1",
            "1@::1:1",
            "1@[a]:1",
            "4294967296@a:1",
            "1@a:1,1@b:1",
            "1@a:1,2@a:1",
            "1@a:1,",
            &ten.join(","),
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_own_entry_says_where_to_listen() {
        let config = config(2, "1@10.0.0.1:1,2@10.0.0.2:2");
        config.validate().unwrap();
        assert_eq!(
            config.cluster_listen_addr().unwrap().to_string(),
            "10.0.0.2:2"
        );
        assert_eq!(
            config.open_to_network(),
            [("cluster_addr", "10.0.0.2:2".parse().unwrap())]
        );
        assert_eq!(Config::default().cluster_listen_addr(), None);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let any = "0.0.0.0:9402".parse().ok();
        let join = Some("a:1".to_owned());
        let local = "127.0.0.1:1".parse().ok();
        for (config, key) in [
            (config(3, "1@10.0.0.1:1,2@10.0.0.2:2"), "peers"),
            (config(1, "1@host:1"), "cluster_addr"),
            (
                Config {
                    join: join.clone(),
                    ..Config::default()
                },
                "cluster_addr",
            ),
            (
                Config {
                    join: join.clone(),
                    cluster_addr: local,
                    ..config(1, "1@10.0.0.1:1")
                },
                "join",
            ),
            (
                Config {
                    cluster_addr: any,
                    join: join.clone(),
                    ..Config::default()
                },
                "advertised_cluster_addr",
            ),
            (
                Config {
                    grpc_addr: "0.0.0.0:1".parse().unwrap(),
                    cluster_addr: local,
                    ..Config::default()
                },
                "advertised_grpc_addr",
            ),
        ] {
            match config.validate().unwrap_err() {
                ConfigError::Apart { key: found, .. } => assert_eq!(found, key),
                other => panic!("{other}"),
            }
        }
        Config {
            join,
            cluster_addr: local,
            ..Config::default()
        }
        .validate()
        .unwrap();
        Config {
            cluster_addr: any,
            ..config(1, "1@host:1")
        }
        .validate()
        .unwrap();
    }

    #[test]
    fn others_are_told_where_it_listens_or_what_the_list_says() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut config = config(1, "1@host:9402");
        config.advertised_http_addr = Some("else:1".to_owned());
        let told = config.advertised(addr("0.0.0.0:1"), addr("0.0.0.0:2"), addr("10.0.0.1:3"));
        assert_eq!(told.grpc, "host:1");
        assert_eq!(told.http, "else:1");
        assert_eq!(told.cluster, "10.0.0.1:3");
    }
}
