//! A broker among others: how a cluster is founded or joined, the cluster port, and the links.
//!
//! # How it goes
//!
//! 1. `standing.rs` looks at the data directory: what the state file and `founding.json` (`file.rs`) say
//!    decides whether there is anything to be founded at all.
//! 2. If so, `settle.rs` asks the others again and again, and `decide.rs`, which knows neither network nor
//!    disk, says what the answers come to. The cluster port (`port.rs`) is open meanwhile, so that the
//!    others can ask too; what they are told is in `known.rs`.
//! 3. Once it is settled who founds which cluster, the broker is opened with [`Links`] (`links.rs`) as its
//!    way to the others, and they as theirs to it.
//!
//! Where brokers are lost for good, `recover.rs` asks those that are left how far they are, and has them go
//! on.

mod decide;
mod file;
mod follow;
mod known;
mod links;
mod metrics;
mod node;
mod port;
mod recover;
mod settle;
mod standing;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt::Write as _;

pub use known::{Host, JoinAnswer, Positions};
pub use links::Links;
pub use settle::Settled;
pub use tidelog_broker::KnownBroker;

pub(crate) use node::{Node, NodeListener};
pub(crate) use recover::Survey;
pub(crate) use settle::{SettleError, Waits};
pub(crate) use standing::{Next, Standing};

/// One of those that founded the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Founder {
    /// Its number.
    pub node_id: u32,
    /// The data directory that it had then.
    pub directory_id: [u8; 16],
}

/// An id as it is shown and kept in files: 32 digits.
fn hex(id: &[u8; 16]) -> String {
    id.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

/// What [`hex`] has made; `None` for everything else.
fn unhex(text: &str) -> Option<[u8; 16]> {
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 32 || !text.as_bytes().iter().all(is_hex) {
        return None;
    }
    let id = u128::from_str_radix(text, 16).ok()?;
    Some(id.to_be_bytes())
}

/// What to do about a broker whose data directory is another one than the cluster knows: it has lost its disk, or
/// another broker has its number.
fn with_another_directory(node_id: u32, directory_id: &[u8; 16]) -> String {
    format!(
        "if its disk is lost, run: tidelog cluster replace {node_id} --directory {}; if this is another \
         broker, give it a --node-id that is free",
        hex(directory_id)
    )
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
