//! Raft over partition logs: a [`Group`] is one replica of one partition.
//!
//! The log is the Raft log; there is no other. An entry is a record batch, or one of the internal
//! entries of the log: the empty one that begins a leader epoch, a configuration change, a new log
//! start. Leader epoch and term are the same number.
//!
//! # How data flows
//!
//! *Propose*: [`Group::propose`] (`propose.rs`) checks a leader's batches against what is known of their producers,
//! gives them their offsets and epoch, and hands Raft a stub for each: zeros of the same length, so
//! that Raft's own limits count what will be sent. The batch itself waits beside, shared and not
//! copied (`payload.rs`).
//!
//! *Turn*: [`Group::turn`] (`turn.rs`) does what Raft asks for: writes entries to the log, after taking
//! back what they replace; records term, vote and commit; applies what is committed; and gives the
//! messages for others, the batches of their entries beside them, from memory or from the log.
//!
//! *Sync*: what must not leave before it is durable is held back. Each turn sees how far the log is by
//! now, and [`Group::state_synced`] tells that the state is; what waited for no more than that goes.
//!
//! *Step*: [`Group::step`] (`step.rs`) takes a message from another replica, each batch checked before Raft hears
//! of it.
//!
//! *Shard*: a broker runs many groups on a thread, a [`Shard`], with those who wait for them and one
//! list of messages for each other broker (`shard/`).
//!
//! *Recover*: where a majority is lost for good, a replica goes on alone when people say so
//! (`recover.rs`).
//!
//! *Catch up*: a replica whose log ends before the first entry of its leader's copies the files of
//! another log (`catch_up/`).
//!
//! A group reads no clock, opens no socket and starts no thread. It is told of time by
//! [`Group::tick`], draws its election timeouts from a seed, and reaches files through the log's disk
//! and a [`GroupStore`]; the same code runs in a broker and in a simulation.

mod adopt;
pub mod catch_up;
mod config;
mod error;
mod group;
mod message;
mod payload;
mod planted;
mod propose;
mod receipts;
mod recover;
mod shard;
mod step;
mod storage;
mod store;
mod turn;

pub use adopt::AdoptFailed;
pub use config::{GroupConfig, ReplicaId};
pub use error::{GroupError, ProposeError, StepError};
pub use group::{Group, GroupStore, MemberProgress, Proposed, Role};
pub use message::{Outgoing, Payload};
pub use payload::stub_of;
#[cfg(feature = "planted")]
pub use planted::Planted;
pub use propose::{members_change, single};
pub use raft::eraftpb;
pub use recover::{RecoverError, first_term};
pub use shard::{
    Answer, Delivery, Done, Effects, Letter, NodeId, Position, Post, Proposal, Received, Recovery,
    Refusal, Shard, Until, node_of, replica_of,
};
pub use storage::Members;
pub use store::StateStore;
pub use turn::Turn;
