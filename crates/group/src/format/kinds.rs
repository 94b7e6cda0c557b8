//! Which kinds of records there are.

use std::fmt;

/// A kind of record that is known by name. Its number is what a key begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// 1, and 0 where very old brokers wrote it: an offset that a group has committed.
    OffsetCommit,
    /// 2: a group of the classic protocol with its members.
    GroupMetadata,
    /// 3: a consumer group's epoch.
    ConsumerGroupMetadata,
    /// 4: what partitions a consumer group's topics had. Kafka writes it no more, but for deleting
    /// it; its contents are not read here.
    ConsumerGroupPartitionMetadata,
    /// 5: a member of a consumer group, and what it subscribes to.
    ConsumerGroupMemberMetadata,
    /// 6: the epoch of a consumer group's target assignment.
    ConsumerGroupTargetAssignmentMetadata,
    /// 7: what a member of a consumer group is to have in the end.
    ConsumerGroupTargetAssignmentMember,
    /// 8: what a member of a consumer group has now.
    ConsumerGroupCurrentMemberAssignment,
    /// 10: a member of a share group, and what it subscribes to.
    ShareGroupMemberMetadata,
    /// 11: a share group's epoch.
    ShareGroupMetadata,
    /// 12: the epoch of a share group's target assignment.
    ShareGroupTargetAssignmentMetadata,
    /// 13: what a member of a share group is to have in the end.
    ShareGroupTargetAssignmentMember,
    /// 14: what a member of a share group has now.
    ShareGroupCurrentMemberAssignment,
    /// 15: for which partitions a share group has state.
    ShareGroupStatePartitionMetadata,
    /// 16: the topics that a regular expression of a consumer group stands for. Its contents are not
    /// read here.
    ConsumerGroupRegularExpression,
}

impl RecordKind {
    /// The number that a key of this kind begins with when it is written.
    pub const fn number(self) -> i16 {
        match self {
            Self::OffsetCommit => 1,
            Self::GroupMetadata => 2,
            Self::ConsumerGroupMetadata => 3,
            Self::ConsumerGroupPartitionMetadata => 4,
            Self::ConsumerGroupMemberMetadata => 5,
            Self::ConsumerGroupTargetAssignmentMetadata => 6,
            Self::ConsumerGroupTargetAssignmentMember => 7,
            Self::ConsumerGroupCurrentMemberAssignment => 8,
            Self::ShareGroupMemberMetadata => 10,
            Self::ShareGroupMetadata => 11,
            Self::ShareGroupTargetAssignmentMetadata => 12,
            Self::ShareGroupTargetAssignmentMember => 13,
            Self::ShareGroupCurrentMemberAssignment => 14,
            Self::ShareGroupStatePartitionMetadata => 15,
            Self::ConsumerGroupRegularExpression => 16,
        }
    }

    /// The kind of a key that begins with `number`, or `None` where it has no name here: kinds that
    /// came later, those of streams groups, and those that Kafka gave up.
    pub const fn from_number(number: i16) -> Option<Self> {
        Some(match number {
            0 | 1 => Self::OffsetCommit,
            2 => Self::GroupMetadata,
            3 => Self::ConsumerGroupMetadata,
            4 => Self::ConsumerGroupPartitionMetadata,
            5 => Self::ConsumerGroupMemberMetadata,
            6 => Self::ConsumerGroupTargetAssignmentMetadata,
            7 => Self::ConsumerGroupTargetAssignmentMember,
            8 => Self::ConsumerGroupCurrentMemberAssignment,
            10 => Self::ShareGroupMemberMetadata,
            11 => Self::ShareGroupMetadata,
            12 => Self::ShareGroupTargetAssignmentMetadata,
            13 => Self::ShareGroupTargetAssignmentMember,
            14 => Self::ShareGroupCurrentMemberAssignment,
            15 => Self::ShareGroupStatePartitionMetadata,
            16 => Self::ConsumerGroupRegularExpression,
            _ => return None,
        })
    }
}

impl fmt::Display for RecordKind {
    /// Kafka's name of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
