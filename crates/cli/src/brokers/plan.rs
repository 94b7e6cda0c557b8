//! How a broker is started.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The ports of a broker on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) grpc: u16,
    pub(crate) http: u16,
    pub(crate) cluster: u16,
}

/// Where a broker of several is, and where its data is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) node_id: u32,
    pub(crate) data_dir: PathBuf,
    /// What the broker says goes here.
    pub(crate) log: PathBuf,
    pub(crate) ports: Ports,
    /// The brokers that found the cluster, this one among them; `None`: it is alone.
    peers: Option<String>,
}

/// Plans of brokers 1, 2, … that found a cluster together, or of one that is alone. Each has its data
/// in `dir/broker-N` and its log in `dir/broker-N.log`.
pub(crate) fn plans(dir: &Path, ports: &[Ports]) -> Vec<Plan> {
    let numbered = || (1_u32..).zip(ports);
    let peers = (ports.len() > 1).then(|| {
        let peers: Vec<_> = numbered()
            .map(|(node, ports)| format!("{node}@{}", loopback(ports.cluster)))
            .collect();
        peers.join(",")
    });
    numbered()
        .map(|(node_id, &ports)| Plan {
            node_id,
            data_dir: dir.join(format!("broker-{node_id}")),
            log: dir.join(format!("broker-{node_id}.log")),
            ports,
            peers: peers.clone(),
        })
        .collect()
}

impl Plan {
    /// Where its gRPC is.
    pub(crate) fn grpc_address(&self) -> String {
        loopback(self.ports.grpc)
    }

    /// Where its metrics and health are.
    pub(crate) fn http_address(&self) -> String {
        loopback(self.ports.http)
    }

    /// Where the others reach it; `None`: it is alone.
    pub(crate) fn cluster_address(&self) -> Option<String> {
        self.peers.as_ref().map(|_| loopback(self.ports.cluster))
    }

    /// What `tidelog` is called with.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            "serve".into(),
            "--node-id".into(),
            self.node_id.to_string().into(),
            "--data-dir".into(),
            self.data_dir.clone().into(),
            "--grpc-addr".into(),
            self.grpc_address().into(),
            "--http-addr".into(),
            self.http_address().into(),
        ];
        if let Some(peers) = &self.peers {
            arguments.push("--peers".into());
            arguments.push(peers.into());
        }
        arguments
    }

    /// The same as a line for a shell.
    pub(crate) fn command_line(&self) -> String {
        let mut line = "tidelog".to_owned();
        for argument in self.arguments() {
            let argument = argument.to_string_lossy();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@,+=".contains(c);
            if argument.chars().all(is_plain) {
                write!(line, " {argument}")
            } else {
                write!(line, " '{}'", argument.replace('\'', r"'\''"))
            }
            .expect("writing to a String does not fail");
        }
        line
    }
}

fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ports(grpc: u16) -> Ports {
        Ports {
            grpc,
            http: grpc + 1,
            cluster: grpc + 2,
        }
    }

    #[test]
    fn several_brokers_name_each_other() {
        let plans = plans(Path::new("/a b"), &[ports(9400), ports(9410)]);
        assert_eq!(plans.len(), 2);
        assert_eq!(
            plans[1].command_line(),
            "tidelog serve --node-id 2 --data-dir '/a b/broker-2' --grpc-addr 127.0.0.1:9410 \
             --http-addr 127.0.0.1:9411 --peers 1@127.0.0.1:9402,2@127.0.0.1:9412"
        );
    }

    #[test]
    fn one_broker_has_no_peers() {
        let plans = plans(Path::new("d"), &[ports(9400)]);
        assert_eq!(
            plans[0].command_line(),
            "tidelog serve --node-id 1 --data-dir d/broker-1 --grpc-addr 127.0.0.1:9400 \
             --http-addr 127.0.0.1:9401"
        );
    }
}
