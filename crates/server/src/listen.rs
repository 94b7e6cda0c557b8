//! Taking the ports.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use crate::Config;

/// Connections that the kernel holds until they are accepted. Those above it wait a second for
/// their next try: many clients come at once after a restart.
const BACKLOG: u32 = 1024;

/// The bound ports of a server that does not serve yet.
#[derive(Debug)]
pub struct Listeners {
    pub(crate) grpc: TcpListener,
    pub(crate) http: TcpListener,
    pub(crate) cluster: Option<(TcpListener, SocketAddr)>,
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
}

/// A port that could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({key}): {}", Why(source))]
pub struct BindError {
    /// The setting that names it.
    pub key: &'static str,
    /// The address.
    pub addr: SocketAddr,
    /// Why.
    pub source: io::Error,
}

struct Why<'a>(&'a io::Error);

impl std::fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.kind() {
            io::ErrorKind::AddrInUse => f.write_str(
                "the address is in use by another program, perhaps another broker; port 0 takes \
                 any free port",
            ),
            _ => self.0.fmt(f),
        }
    }
}

impl Listeners {
    /// Takes the ports that `config` names. Clients can connect from now on, and are served once
    /// the server starts.
    ///
    /// # Errors
    /// [`BindError`], most often because a port is in use.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(config: &Config) -> Result<Self, BindError> {
        let (grpc, grpc_addr) = bind("grpc_addr", config.grpc_addr)?;
        let (http, http_addr) = bind("http_addr", config.http_addr)?;
        let cluster = config.cluster_listen_addr();
        let cluster = cluster.map(|addr| bind("cluster_addr", addr)).transpose()?;
        Ok(Self {
            grpc,
            http,
            cluster,
            grpc_addr,
            http_addr,
        })
    }

    /// Where gRPC listens, with the port that was really taken.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where HTTP listens, with the port that was really taken.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where the cluster port listens, if there is one, with the port that was really taken.
    pub fn cluster_addr(&self) -> Option<SocketAddr> {
        self.cluster.as_ref().map(|(_, addr)| *addr)
    }
}

fn bind(key: &'static str, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |source| BindError { key, addr, source };
    let listener = listen(addr).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // A port whose last connections are only waiting to be forgotten can be taken again.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}
