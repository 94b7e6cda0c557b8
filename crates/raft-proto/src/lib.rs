//! The messages of the `raft` crate, as it knows them from the package of this name.
//!
//! That package has a C++ compiler generate them at build time, which is not there on every machine
//! and breaks where a newer one is installed. Here they are written down: Prost messages with
//! [`Bytes`](bytes::Bytes) where the protocol has bytes, so that a payload is shared and never
//! copied, and the accessors by which `raft` reaches them. `Cargo.toml` of the workspace puts this
//! package into the place of the other one.
//!
//! Fields and their numbers are those of `eraftpb.proto` of raft-rs 0.7. Nothing here is ever
//! decoded from the network by its own decoder: peers have messages of their own, which are checked
//! field by field. What is encoded with it is the content of configuration changes in the log.

mod change;
mod codec;
pub mod eraftpb;
mod state;

pub use change::{ConfChangeI, new_conf_change_single, parse_conf_change, stringify_conf_change};
pub use state::conf_state_eq;

/// What users of `raft` import.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
        ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}

/// Conversions.
pub mod util {
    use crate::eraftpb::ConfState;

    /// Voters and learners that are in no joint configuration.
    impl<V, L> From<(V, L)> for ConfState
    where
        V: IntoIterator<Item = u64>,
        L: IntoIterator<Item = u64>,
    {
        fn from((voters, learners): (V, L)) -> Self {
            Self {
                voters: voters.into_iter().collect(),
                learners: learners.into_iter().collect(),
                ..Self::default()
            }
        }
    }
}
