//! Consumer groups and their committed offsets: a deterministic state machine without I/O, clock or
//! randomness.
//!
//! Every group belongs to one partition of the internal topic `__consumer_offsets` ([`partition_of`], `place.rs`). The
//! leader of that partition is the group's coordinator:
//!
//! 1. It folds the partition's log into a [`Coordinator`] (`coordinator.rs`). The records are Kafka's own, byte for byte
//!    ([`mod@format`]); the log is compacted, so the last one of each key is all that counts.
//! 2. A [`Request`] (`request.rs`) is decided on at once: `(state, request, now)` gives an [`Answer`] and records, and
//!    these take effect right away. Errors are in `error.rs`.
//! 3. [`Turns`] (`turns.rs`) gather what is decided while the batch before it is written, and keep every answer back until
//!    everything that it rests on is committed.
//!
//! Who gets which partitions is decided by an [`Assignor`] (`assign/`).
//!
//! Where the log cannot be written any more, the state goes, and whoever leads next folds it anew. Replicas that do not
//! lead keep no state at all.

mod assign;
mod coordinator;
mod error;
pub mod format;
mod names;
mod offsets;
mod place;
mod request;
mod turns;

pub use assign::{Assignment, Assignor, Subscription, TopicPartitions, UnknownAssignor};
pub use coordinator::{
    Coordinator, FoldError, GroupOptions, KnownTopic, KnownTopics, METADATA_LEN_MAX, Now,
    REQUEST_LEN_MAX,
};
pub use error::{GroupError, OffsetError};
pub use names::{GroupId, InstanceId, MemberId, NameError};
pub use offsets::{CommittedOffset, GroupOffset};
pub use place::partition_of;
pub use request::{
    Answer, CommitOffsets, Committer, DeleteOffsets, FetchOffsets, GroupDescription, GroupKind,
    GroupSummary, NewOffset, PartitionOffset, Request,
};
pub use turns::{Encoded, Turns};
