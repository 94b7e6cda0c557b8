//! How brokers of a cluster talk to each other.
//!
//! # How data flows
//!
//! Each broker has one [`Link`] to each other one: a connection over which it sends what its replicas
//! have to say ([`Post`](tidelog_replica::Post)), and over which nothing comes back but answers to pings. What the other has to
//! say comes over a connection of its own, to the [`PeerService`]. So a broker that is slow to read, or to
//! answer, holds back what goes to itself alone.
//!
//! *Out*: [`Link::send`] puts letters into the link's queue, which is bounded; what does not fit is lost,
//! as a network loses it, and Raft is told so. Frames are made of them (`frame.rs`), and each is sent with
//! one call of the system, from where its payloads lie: they are not copied. Whoever sends does that itself
//! (`outgoing.rs`) where it is short and nothing waits before it, which saves waking up another thread, and otherwise
//! the link's task. That connects again and again, with growing pauses, and gives a connection up over which no
//! answer to a ping has come for a while.
//!
//! *In*: a frame is read into a buffer of its own (`wire.rs`), which is all that is allocated for its
//! payloads: they stay slices of it. It is taken when its checksum is right and it comes from a broker
//! that the [`Gate`] lets in, for this one. It is handed to the [`Sink`], and as long as that waits,
//! nothing more is read.
//!
//! *Before there is a link*, while a cluster is founded or joined, a broker [`ask`]s others by gRPC, on the
//! same port, and they answer ([`Answers`]).
//!
//! Nothing here knows what a letter or a note means.

mod ask;
mod convert;
mod frame;
mod link;
mod outgoing;
mod pieces;
mod service;
#[cfg(test)]
mod tests;
mod unsent;
mod wire;

pub use ask::{ASK_BYTES_MAX, AskError, ask};
pub use convert::carried;
pub use frame::{FRAME_BYTES_MAX, FrameError, NOTE_BYTES_MAX};
pub use generated::questions_server::QuestionsServer;
pub use link::{Link, LinkConfig, LinkState, LinkStats};
pub use service::{Answers, Gate, Greeted, LinkEnded, PeerService, Refused, Sink, begins_link};

use tidelog_replica::NodeId;

#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod generated {
    include!(concat!(
        env!("OUT_DIR"),
        "/tidelog.internal.v1.Questions.rs"
    ));
}

/// The version of what is said here.
pub const PROTOCOL_VERSION: u32 = 1;

/// Who a broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster.
    pub cluster_id: [u8; 16],
    /// Its number there.
    pub node_id: NodeId,
    /// Its data directory, whatever broker opens it.
    pub directory_id: [u8; 16],
    /// Drawn at the start of the process: two of them with one directory have a copy of it. Zeros where it
    /// is not known.
    pub process_id: [u8; 16],
}
