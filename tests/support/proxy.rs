//! A network between brokers that a test can cut, in one direction or both.
//!
//! Each broker is reached through a proxy. Which broker a connection comes from is told by the process that
//! holds its other end. What is cut is not closed: bytes stop, as they do when a cable is pulled.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Pairs of brokers: nothing gets from the first to the second.
type Cuts = HashSet<(u32, u32)>;

/// The proxies of all brokers.
#[derive(Debug)]
pub struct Net {
    cuts: watch::Sender<Cuts>,
    pids: Mutex<BTreeMap<u32, u32>>,
    ports: Mutex<BTreeMap<u32, u16>>,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            cuts: watch::Sender::new(Cuts::new()),
            pids: Mutex::default(),
            ports: Mutex::default(),
        }
    }
}

impl Net {
    /// Opens the way to a broker that listens, or will listen, on a port of loopback. Gives the port to
    /// be used instead.
    pub async fn proxy(self: &Arc<Self>, to: u32, target: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        self.ports.lock().insert(to, port);
        let net = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(net.clone().carry(stream, to, target));
            }
        });
        port
    }

    /// The way to any broker but this one.
    pub fn any_proxy(&self, but: u32) -> u16 {
        let ports = self.ports.lock();
        *ports.iter().find(|(id, _)| **id != but).unwrap().1
    }

    /// The process of a broker.
    pub fn set_pid(&self, id: u32, pid: u32) {
        self.pids.lock().insert(id, pid);
    }

    /// Nothing gets from one broker to another any more.
    pub fn cut(&self, from: u32, to: u32) {
        self.cuts.send_modify(|cuts| {
            cuts.insert((from, to));
        });
    }

    /// Nothing gets to a broker or from it any more.
    pub fn isolate(&self, id: u32) {
        let others: Vec<u32> = self.ports.lock().keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != id) {
            self.cut(id, other);
            self.cut(other, id);
        }
    }

    /// Everything gets through again.
    pub fn heal(&self) {
        self.cuts.send_modify(HashSet::clear);
    }

    async fn carry(self: Arc<Self>, stream: TcpStream, to: u32, target: u16) {
        let peer = stream.peer_addr().unwrap();
        let pids = self.pids.lock().clone();
        let from = tokio::task::spawn_blocking(move || owner(peer.port(), &pids));
        // One that is gone already, or a test that asks by itself.
        let from = from.await.unwrap().unwrap_or(0);
        let mut cuts = self.cuts.subscribe();
        // A connection is made only where both ways are open, as with real ones.
        let open = cuts.wait_for(|cuts| !cuts.contains(&(from, to)) && !cuts.contains(&(to, from)));
        if tokio::time::timeout(Duration::from_secs(20), open)
            .await
            .is_err()
        {
            return;
        }
        let Ok(there) = TcpStream::connect(("127.0.0.1", target)).await else {
            return;
        };
        stream.set_nodelay(true).ok();
        there.set_nodelay(true).ok();
        let (here_in, here_out) = stream.into_split();
        let (there_in, there_out) = there.into_split();
        tokio::join!(
            pump(here_in, there_out, self.cuts.subscribe(), (from, to)),
            pump(there_in, here_out, self.cuts.subscribe(), (to, from)),
        );
    }
}

/// Carries bytes one way, while that is not cut.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cuts: watch::Receiver<Cuts>,
    way: (u32, u32),
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len) = from.read(&mut buffer).await {
        if cuts.wait_for(|cuts| !cuts.contains(&way)).await.is_err() {
            break;
        }
        if len == 0 || to.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
    to.shutdown().await.ok();
}

/// Which of these processes has a socket of loopback with this local port.
fn owner(port: u16, pids: &BTreeMap<u32, u32>) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!(":{port:04X}");
    let line = table.lines().find(|line| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|at| at.ends_with(&local))
    })?;
    let inode = line.split_whitespace().nth(9)?;
    let wanted = format!("socket:[{inode}]");
    let holds = |pid: u32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        fds.flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|link| link.as_os_str() == wanted.as_str())
    };
    pids.iter().find(|(_, pid)| holds(**pid)).map(|(id, _)| *id)
}
