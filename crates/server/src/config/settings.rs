//! The table of all settings: the one place that knows their names, defaults and rules.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::filter::Targets;

use super::{Config, LogFormat, peers};

/// One setting.
pub(super) struct Setting {
    /// Its name in the file. The flag is `--` and the name with hyphens, the variable `TIDELOG_`
    /// and the name in capitals.
    pub(super) key: &'static str,
    /// Its value when nobody sets it.
    pub(super) default: &'static str,
    /// Which values there can be, for messages: "allowed is ...".
    pub(super) allowed: &'static str,
    /// Puts a value into the configuration; `None` when it is not allowed.
    pub(super) read: fn(&str, &mut Config) -> Option<()>,
    /// The value as it is in force.
    pub(super) show: fn(&Config) -> String,
}

impl Setting {
    /// The setting with this key.
    pub(super) fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    pub(super) fn flag(&self) -> String {
        format!("--{}", self.key.replace('_', "-"))
    }

    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.to_ascii_uppercase())
    }
}

/// What the names of all variables begin with.
pub(super) const VARIABLE_PREFIX: &str = "TIDELOG_";

const MIB: usize = 1024 * 1024;
const GIB: usize = 1024 * MIB;

const ADDRESS: &str = "an IP address or localhost, a colon and a port, such as 127.0.0.1:9400 or \
                       [::1]:9400; port 0 takes any free one";
const HOST_PORT: &str = "a host, a colon and a port, such as broker-1.example.org:9402, 10.0.0.1:9402 \
                         or [::1]:9402, or nothing";
const THREADS: &str = "a number from 0 (chosen by the program) to 1024";
const BYTES_TO_1_GIB: &str = "a number of bytes from 64KiB to 1GiB, such as 1048576 or 16MiB";
const BYTES_TO_4_GIB: &str = "a number of bytes from 64KiB to 4095MiB, such as 67108864 or 64MiB";
const MILLIS_TO_HOUR: &str = "a number of milliseconds from 1 to 3600000";

/// Whole bytes a semaphore can count with the 32 bits of one request for permits.
const BYTES_MAX: usize = 4095 * MIB;

macro_rules! bytes {
    ($key:literal, $default:literal, $max:expr, $allowed:expr, $field:ident) => {
        Setting {
            key: $key,
            default: $default,
            allowed: $allowed,
            read: |text, config| {
                config.limits.$field = bytes(text, 64 * 1024, $max)?;
                Some(())
            },
            show: |config| show_bytes(config.limits.$field),
        }
    };
}

macro_rules! millis {
    ($key:literal, $default:literal, $field:ident) => {
        Setting {
            key: $key,
            default: $default,
            allowed: MILLIS_TO_HOUR,
            read: |text, config| {
                config.limits.$field = Duration::from_millis(number(text, 1, 3_600_000)?);
                Some(())
            },
            show: |config| config.limits.$field.as_millis().to_string(),
        }
    };
}

macro_rules! host_port {
    ($key:literal, $field:ident) => {
        Setting {
            key: $key,
            default: "",
            allowed: HOST_PORT,
            read: |text, config| {
                config.$field = match text {
                    "" => None,
                    text => Some(peers::host_port(text)?),
                };
                Some(())
            },
            show: |config| config.$field.clone().unwrap_or_default(),
        }
    };
}

macro_rules! threads {
    ($key:literal, $field:ident) => {
        Setting {
            key: $key,
            default: "0",
            allowed: THREADS,
            read: |text, config| {
                config.$field = usize::try_from(number(text, 0, 1024)?).ok()?;
                Some(())
            },
            show: |config| config.$field.to_string(),
        }
    };
}

/// All settings, in the order in which they are shown.
pub(super) static SETTINGS: &[Setting] = &[
    Setting {
        key: "data_dir",
        default: "./tidelog-data",
        allowed: "the path of a directory",
        read: |text, config| {
            config.data_dir = (!text.is_empty()).then(|| PathBuf::from(text))?;
            Some(())
        },
        show: |config| config.data_dir.display().to_string(),
    },
    Setting {
        key: "grpc_addr",
        default: "127.0.0.1:9400",
        allowed: ADDRESS,
        read: |text, config| {
            config.grpc_addr = address(text)?;
            Some(())
        },
        show: |config| config.grpc_addr.to_string(),
    },
    Setting {
        key: "http_addr",
        default: "127.0.0.1:9401",
        allowed: ADDRESS,
        read: |text, config| {
            config.http_addr = address(text)?;
            Some(())
        },
        show: |config| config.http_addr.to_string(),
    },
    Setting {
        key: "node_id",
        default: "1",
        allowed: "a number from 1 to 4294967295, another one for each broker of a cluster",
        read: |text, config| {
            config.node_id = u32::try_from(number(text, 1, u32::MAX.into())?).ok()?;
            Some(())
        },
        show: |config| config.node_id.to_string(),
    },
    Setting {
        key: "cluster_addr",
        default: "",
        allowed: "an IP address or localhost, a colon and a port, such as 127.0.0.1:9402, or nothing",
        read: |text, config| {
            config.cluster_addr = match text {
                "" => None,
                text => Some(address(text)?),
            };
            Some(())
        },
        show: |config| {
            config
                .cluster_addr
                .map_or_else(String::new, |addr| addr.to_string())
        },
    },
    Setting {
        key: "peers",
        default: "",
        allowed: "up to 9 brokers, each a node id, @, a host, a colon and a port, with commas \
                  between, such as 1@10.0.0.1:9402,2@10.0.0.2:9402,3@10.0.0.3:9402; or nothing",
        read: |text, config| {
            config.peers = peers::read(text)?;
            Some(())
        },
        show: |config| peers::show(&config.peers),
    },
    host_port!("join", join),
    Setting {
        key: "rack",
        default: "",
        allowed: "up to 255 letters, digits, dots, underscores and hyphens, or nothing",
        read: |text, config| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let is_rack = text.len() <= 255 && text.chars().all(is_allowed);
            config.rack = is_rack.then(|| text.to_owned())?;
            Some(())
        },
        show: |config| config.rack.clone(),
    },
    host_port!("advertised_grpc_addr", advertised_grpc_addr),
    host_port!("advertised_http_addr", advertised_http_addr),
    host_port!("advertised_cluster_addr", advertised_cluster_addr),
    Setting {
        key: "log_format",
        default: "text",
        allowed: "text or json",
        read: |text, config| {
            config.log_format = match text {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return None,
            };
            Some(())
        },
        show: |config| {
            match config.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            }
            .to_owned()
        },
    },
    Setting {
        key: "log_level",
        default: "info",
        allowed: "off, error, warn, info, debug, trace, or such levels by module, as in \
                  info,tidelog_log=debug",
        read: |text, config| {
            config.log_level = is_log_level(text).then(|| text.to_owned())?;
            Some(())
        },
        show: |config| config.log_level.clone(),
    },
    threads!("threads", threads),
    threads!("shards", shards),
    threads!("sync_threads", sync_threads),
    bytes!(
        "request_bytes_max",
        "16MiB",
        GIB,
        BYTES_TO_1_GIB,
        request_bytes_max
    ),
    Setting {
        key: "connections_max",
        default: "4096",
        allowed: "a number from 1 to 1000000",
        read: |text, config| {
            config.limits.connections_max = usize::try_from(number(text, 1, 1_000_000)?).ok()?;
            Some(())
        },
        show: |config| config.limits.connections_max.to_string(),
    },
    Setting {
        key: "streams_max",
        default: "256",
        allowed: "a number from 1 to 65535",
        read: |text, config| {
            config.limits.streams_max = u32::try_from(number(text, 1, 65_535)?).ok()?;
            Some(())
        },
        show: |config| config.limits.streams_max.to_string(),
    },
    bytes!(
        "connection_in_flight_bytes_max",
        "64MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        connection_in_flight_bytes_max
    ),
    bytes!(
        "in_flight_bytes_max",
        "256MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        in_flight_bytes_max
    ),
    bytes!(
        "connection_receiving_bytes_max",
        "64MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        connection_receiving_bytes_max
    ),
    bytes!(
        "receiving_bytes_max",
        "256MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        receiving_bytes_max
    ),
    bytes!(
        "fetch_bytes_max",
        "50MiB",
        GIB,
        BYTES_TO_1_GIB,
        fetch_bytes_max
    ),
    bytes!(
        "connection_unsent_bytes_max",
        "64MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        connection_unsent_bytes_max
    ),
    bytes!(
        "unsent_bytes_max",
        "512MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        unsent_bytes_max
    ),
    Setting {
        key: "topics_max",
        default: "10000",
        allowed: "a number from 1 to 1000000",
        read: |text, config| {
            config.limits.topics_max = usize::try_from(number(text, 1, 1_000_000)?).ok()?;
            Some(())
        },
        show: |config| config.limits.topics_max.to_string(),
    },
    Setting {
        key: "partitions_max",
        default: "100000",
        allowed: "a number from 1 to 1000000",
        read: |text, config| {
            config.limits.partitions_max = usize::try_from(number(text, 1, 1_000_000)?).ok()?;
            Some(())
        },
        show: |config| config.limits.partitions_max.to_string(),
    },
    Setting {
        key: "offsets_partitions",
        default: "50",
        allowed: "a number from 1 to 1000",
        read: |text, config| {
            config.limits.offsets_partitions = u32::try_from(number(text, 1, 1000)?).ok()?;
            Some(())
        },
        show: |config| config.limits.offsets_partitions.to_string(),
    },
    Setting {
        key: "offsets_retention_ms",
        default: "604800000",
        allowed: "milliseconds, 1000 to 3153600000000",
        read: |text, config| {
            let millis = number(text, 1000, 3_153_600_000_000)?;
            config.limits.offsets_retention = Duration::from_millis(millis);
            Some(())
        },
        show: |config| config.limits.offsets_retention.as_millis().to_string(),
    },
    Setting {
        key: "groups_max",
        default: "100000",
        allowed: "a number from 1 to 10000000",
        read: |text, config| {
            config.limits.groups_max = usize::try_from(number(text, 1, 10_000_000)?).ok()?;
            Some(())
        },
        show: |config| config.limits.groups_max.to_string(),
    },
    Setting {
        key: "producer_id_expiration_ms",
        default: "86400000",
        allowed: "milliseconds, 1000 to 31536000000",
        read: |text, config| {
            let millis = number(text, 1000, 31_536_000_000)?;
            config.limits.producer_id_expiration = Duration::from_millis(millis);
            Some(())
        },
        show: |config| config.limits.producer_id_expiration.as_millis().to_string(),
    },
    millis!(
        "retention_check_interval_ms",
        "300000",
        retention_check_interval
    ),
    bytes!(
        "removal_bytes_per_second",
        "1GiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        removal_bytes_per_second
    ),
    millis!(
        "compaction_check_interval_ms",
        "15000",
        compaction_check_interval
    ),
    bytes!(
        "compaction_bytes_per_second",
        "64MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        compaction_bytes_per_second
    ),
    bytes!(
        "compaction_key_bytes_max",
        "128MiB",
        BYTES_MAX,
        BYTES_TO_4_GIB,
        compaction_key_bytes_max
    ),
    millis!("shutdown_deadline_ms", "30000", shutdown_deadline),
    millis!("keepalive_interval_ms", "30000", keepalive_interval),
    millis!("keepalive_timeout_ms", "10000", keepalive_timeout),
    millis!("handshake_timeout_ms", "10000", handshake_timeout),
    millis!("receive_timeout_ms", "30000", receive_timeout),
    millis!("read_heartbeat_ms", "15000", read_heartbeat),
];

/// What can be logged, from nothing to everything.
pub(super) const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Whether `text` says which events to log.
///
/// `Targets` takes any word for a module, so that a mistyped level would log everything: a word
/// without `=` must be a level.
fn is_log_level(text: &str) -> bool {
    let is_level = |word: &str| {
        LOG_LEVELS
            .iter()
            .any(|level| word.eq_ignore_ascii_case(level))
    };
    let are_known = text.split(',').all(|part| match part.split_once('=') {
        None => is_level(part),
        Some((module, level)) => !module.is_empty() && is_level(level),
    });
    are_known && text.parse::<Targets>().is_ok()
}

fn address(text: &str) -> Option<SocketAddr> {
    if let Some(port) = text.strip_prefix("localhost:") {
        return Some(SocketAddr::new(
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            port.parse().ok()?,
        ));
    }
    text.parse().ok()
}

fn number(text: &str, min: u64, max: u64) -> Option<u64> {
    text.parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
}

fn bytes(text: &str, min: usize, max: usize) -> Option<usize> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        None => (text, 1),
        Some(at) => match text[at..].trim_start() {
            "KiB" => (&text[..at], 1024),
            "MiB" => (&text[..at], MIB),
            "GiB" => (&text[..at], GIB),
            _ => return None,
        },
    };
    let bytes = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    Some(bytes).filter(|bytes| (min..=max).contains(bytes))
}

/// With the largest unit that says it whole.
fn show_bytes(bytes: usize) -> String {
    [(GIB, "GiB"), (MIB, "MiB"), (1024, "KiB")]
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(
            || bytes.to_string(),
            |(unit, name)| format!("{}{name}", bytes / unit),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_shown_as_they_are_written() {
        for text in ["64KiB", "50MiB", "1GiB", "65537", "4095MiB"] {
            let bytes = bytes(text, 0, BYTES_MAX).unwrap();
            assert_eq!(show_bytes(bytes), text);
        }
        let defaults = Config::default();
        for setting in SETTINGS.iter().filter(|s| s.key.contains("bytes")) {
            assert_eq!((setting.show)(&defaults), setting.default);
        }
    }

    #[test]
    fn byte_counts_take_units() {
        for (text, expected) in [
            ("65536", Some(65_536)),
            ("64KiB", Some(65_536)),
            ("1 MiB", Some(MIB)),
            ("1GiB", Some(GIB)),
            ("65535", None),
            ("2GiB", None),
            ("1MB", None),
            ("-1", None),
            ("", None),
            ("99999999999999999999", None),
            ("99999999999999999GiB", None),
        ] {
            assert_eq!(bytes(text, 65_536, GIB), expected, "{text}");
        }
    }

    #[test]
    fn a_mistyped_level_is_refused() {
        for good in ["info", "WARN", "warn,tidelog_log=debug", "off"] {
            assert!(is_log_level(good), "{good}");
        }
        for bad in [
            "",
            "inof",
            "tidelog_log",
            "tidelog_log=loud",
            "=info",
            "info,",
        ] {
            assert!(!is_log_level(bad), "{bad}");
        }
    }

    #[test]
    fn addresses_have_a_port() {
        assert_eq!(address("localhost:0").unwrap().to_string(), "127.0.0.1:0");
        assert_eq!(address("[::1]:9400").unwrap().port(), 9400);
        for bad in [
            "127.0.0.1",
            ":9400",
            "localhost",
            "localhost:65536",
            "example.org:1",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let config = Config::default();
        for setting in SETTINGS {
            let mut again = config.clone();
            let shown = (setting.show)(&config);
            (setting.read)(&shown, &mut again).unwrap_or_else(|| panic!("{}", setting.key));
            assert_eq!(again, config, "{}", setting.key);
        }
        config.validate().unwrap();
    }
}
