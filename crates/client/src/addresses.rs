//! Where brokers are, as people write it.

use std::fmt;
use std::str::FromStr;

/// The port of `host` without one.
const PORT_DEFAULT: u16 = 9400;

/// Where brokers are: `host:port[,host:port…]`, the port 9400 where it is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddresses(pub(crate) Vec<String>);

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

/// The address of one broker, with a port in any case.
pub(crate) fn parse_address(address: &str) -> Result<String, BrokerAddressesError> {
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
}
