//! Ports for brokers that have to know each other's before they start.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use super::plan::Ports;
use crate::failure::Failure;

/// Below those that systems give to outgoing connections: a broker that is down for a while would
/// find its own port taken by one of them.
const FROM: u16 = 10_000;
const TO: u16 = 32_000;

/// How often a port is tried.
const TRIES: usize = 1000;

/// From one broker's gRPC port to the next one's.
const STEP: u16 = 10;

/// Ports of `count` brokers from `base` on, ten apart; `None` where there are not so many ports.
pub(crate) fn from_base(base: u16, count: usize) -> Option<Vec<Ports>> {
    (0..count)
        .map(|nth| {
            let grpc = base.checked_add(STEP.checked_mul(u16::try_from(nth).ok()?)?)?;
            Some(Ports {
                grpc,
                http: grpc.checked_add(1)?,
                cluster: grpc.checked_add(2)?,
            })
        })
        .collect()
}

/// Ports that nobody listens on now: each is bound, and all are released together. Another program
/// may take one before a broker does; then that broker says so.
pub(crate) fn free(count: usize) -> Result<Vec<Ports>, Failure> {
    let cannot = |error: io::Error| {
        Failure::failed(format!("cannot find ports for {count} brokers: {error}"))
    };
    let mut held = Vec::new();
    let mut one = || -> io::Result<u16> {
        let listener = bind_any()?;
        let port = listener.local_addr()?.port();
        held.push(listener);
        Ok(port)
    };
    (0..count)
        .map(|_| {
            Ok(Ports {
                grpc: one()?,
                http: one()?,
                cluster: one()?,
            })
        })
        .collect::<io::Result<_>>()
        .map_err(cannot)
}

fn bind_any() -> io::Result<TcpListener> {
    for _ in 0..TRIES {
        let port = fastrand::u16(FROM..TO);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn free_ports_differ() {
        let ports = free(5).unwrap();
        let all: BTreeSet<_> = ports
            .iter()
            .flat_map(|one| [one.grpc, one.http, one.cluster])
            .collect();
        assert_eq!(all.len(), 15);
    }

    #[test]
    fn ports_from_a_base_are_ten_apart() {
        let ports = from_base(9400, 3).unwrap();
        let third = Ports {
            grpc: 9420,
            http: 9421,
            cluster: 9422,
        };
        assert_eq!(ports[2], third);
        assert_eq!(from_base(65_530, 2), None);
        assert!(from_base(65_533, 1).is_some());
        assert_eq!(from_base(65_534, 1), None);
    }
}
