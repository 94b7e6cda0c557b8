#![doc = include_str!("../../FORMAT.md")]
//!
//! # Where things are
//!
//! [`GroupRecord`] (`record.rs`) is a record with all that it says; [`GroupRecord::encode`] and
//! [`GroupRecord::decode`] are the way in and out. Which kinds there are says [`RecordKind`]
//! (`kinds.rs`). Keys are in `keys.rs`; values in `offsets.rs`, `classic.rs`, `consumer.rs`, `share.rs`
//! and `assignment.rs`, each of which writes and reads its fields in the order of the tables above.
//! What strings, arrays and tagged fields look like is known to `wire/` alone.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod assignment;
mod classic;
mod consumer;
mod error;
mod keys;
mod kinds;
mod offsets;
mod record;
mod share;
#[cfg(test)]
mod tests;
mod wire;

pub use assignment::{AssignedPartitions, MemberState, TopicPartitions};
pub use classic::{ClassicMember, GroupMetadata};
pub use consumer::{
    ClassicMemberMetadata, ClassicProtocol, ConsumerGroupCurrentMemberAssignment,
    ConsumerGroupMemberMetadata, ConsumerGroupMetadata, ConsumerGroupTargetAssignmentMember,
    ConsumerGroupTargetAssignmentMetadata,
};
pub use error::FormatError;
pub use keys::{GroupKey, MemberKey, OffsetKey};
pub use kinds::RecordKind;
pub use offsets::OffsetCommit;
pub use record::{Decoded, GroupRecord};
pub use share::{
    ShareGroupCurrentMemberAssignment, ShareGroupMemberMetadata, ShareGroupMetadata,
    ShareGroupStatePartitionMetadata, ShareGroupTargetAssignmentMember,
    ShareGroupTargetAssignmentMetadata, ShareTopic, ShareTopicPartitions,
};
