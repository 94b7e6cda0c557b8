//! Decisions: a request becomes a command that fits the state, or is refused.
//!
//! Brokers come and go in `brokers.rs`, topics get their partitions in `topics.rs`, and partitions other
//! replicas in `moves.rs`, or go on with what is left in `recovery.rs`. What draining a broker would come to is
//! in `drain.rs`. What only concerns a topic itself is decided by [`Topics`](crate::Topics).

mod brokers;
mod drain;
mod moves;
mod recovery;
mod topics;

pub use brokers::{BROKERS_MAX, BrokerError};
pub use drain::PlannedMove;
pub use moves::MoveError;
pub use recovery::{Left, Recovery};
pub use topics::{PlaceError, Replication, Unusable};
