//! Commands as the records of the metadata log hold them: see `proto/tidelog/internal/v1`.
//!
//! Those of a broker that is alone are in `topics.rs`, those of a cluster in `cluster.rs`, and what a
//! snapshot holds in `state.rs`. What brokers tell each other beside the log is in `notes.rs`.

mod cluster;
mod notes;
pub(crate) mod state;
mod topics;

pub use topics::CommandError;
