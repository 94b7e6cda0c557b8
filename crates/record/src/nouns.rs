//! The numbers and names every crate speaks of, one type a meaning.
//!
//! Offsets and Raft indexes count different things, so there is no conversion between them: both
//! are found from the same batch. Ranges are half-open; `base_`, `start_` and `last_` are
//! inclusive, `end_` and `next_` exclusive.

use std::fmt;

/// A record's dense, zero-based place in its partition, as clients see it.
///
/// At most [`Offset::MAX`], so that it always fits the signed 64 bits of the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(u64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);
    /// The largest offset: 2^63 - 1.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// The offset `value`, or `None` above [`Offset::MAX`].
    pub const fn new(value: u64) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The offset held in a signed field of the wire, or `None` when it is negative.
    pub const fn from_wire(value: i64) -> Option<Self> {
        if value >= 0 {
            Some(Self(value.cast_unsigned()))
        } else {
            None
        }
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as a signed field of the wire holds it.
    pub const fn to_wire(self) -> i64 {
        self.0.cast_signed()
    }

    /// The offset `records` later, or `None` past [`Offset::MAX`].
    pub const fn checked_add(self, records: u64) -> Option<Self> {
        match self.0.checked_add(records) {
            Some(sum) => Self::new(sum),
            None => None,
        }
    }

    /// The offset `records` earlier, but never below zero.
    pub const fn saturating_sub(self, records: u64) -> Self {
        Self(self.0.saturating_sub(records))
    }

    /// How many records lie from `earlier` (inclusive) to here (exclusive); 0 when `earlier` is
    /// not earlier.
    pub const fn records_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The number of a Raft entry, internal entries included. Never shown to clients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RaftIndex(u64);

impl RaftIndex {
    /// No entry: real entries start at 1.
    pub const ZERO: Self = Self(0);

    /// The index `value`.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The index `entries` later, or `None` on overflow.
    pub const fn checked_add(self, entries: u64) -> Option<Self> {
        match self.0.checked_add(entries) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// Which leadership wrote a batch; fences the stale. Equal to the Raft term of the partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LeaderEpoch(u32);

impl LeaderEpoch {
    /// Before any leader.
    pub const ZERO: Self = Self(0);
    /// The largest epoch: 2^31 - 1, since the wire's field is signed.
    pub const MAX: Self = Self(i32::MAX as u32);

    /// The epoch `value`, or `None` above [`LeaderEpoch::MAX`].
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The epoch held in a signed field of the wire, or `None` when it is negative.
    pub const fn from_wire(value: i32) -> Option<Self> {
        if value >= 0 {
            Some(Self(value.cast_unsigned()))
        } else {
            None
        }
    }

    /// The plain number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number as a signed field of the wire holds it.
    pub const fn to_wire(self) -> i32 {
        self.0.cast_signed()
    }

    /// The epoch after this one, or `None` past [`LeaderEpoch::MAX`].
    pub const fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }
}

/// Which partition of its topic, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PartitionId(u32);

impl PartitionId {
    /// The partition `value`.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The plain number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What a topic is, for as long as it exists: a deleted topic's name can come back, its id cannot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(uuid::Uuid);

impl TopicId {
    /// The topic id of these 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Uuid::from_bytes(bytes))
    }

    /// The 16 bytes, as files hold them.
    pub const fn to_bytes(self) -> [u8; 16] {
        *self.0.as_bytes()
    }
}

/// Milliseconds since the Unix epoch; negative before 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The smallest timestamp.
    pub const MIN: Self = Self(i64::MIN);
    /// What the wire holds where there is no timestamp.
    pub const NONE: Self = Self(-1);

    /// The timestamp `millis` after the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }
}

macro_rules! show_as_number {
    ($($noun:ident),*) => {$(
        impl fmt::Display for $noun {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $noun {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($noun), "({})"), self.0)
            }
        }
    )*};
}
show_as_number!(
    Offset,
    RaftIndex,
    LeaderEpoch,
    PartitionId,
    TopicId,
    Timestamp
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_stay_within_the_wire() {
        let largest = i64::MAX.unsigned_abs();
        assert_eq!(Offset::new(largest), Some(Offset::MAX));
        assert_eq!(Offset::new(largest + 1), None);
        assert_eq!(Offset::MAX.to_wire(), i64::MAX);
        assert_eq!(Offset::from_wire(i64::MAX), Some(Offset::MAX));
        assert_eq!(Offset::from_wire(-1), None);
        assert_eq!(Offset::MAX.checked_add(0), Some(Offset::MAX));
        assert_eq!(Offset::MAX.checked_add(1), None);
        assert_eq!(Offset::ZERO.checked_add(u64::MAX), None);
        assert_eq!(Offset::MAX.checked_add(u64::MAX), None);
    }

    #[test]
    fn offsets_count_records_between_them() {
        let ten = Offset::new(10).unwrap();
        assert_eq!(ten.records_since(Offset::ZERO), 10);
        assert_eq!(Offset::ZERO.records_since(ten), 0);
        assert_eq!(ten.saturating_sub(3), Offset::new(7).unwrap());
        assert_eq!(ten.saturating_sub(11), Offset::ZERO);
    }

    #[test]
    fn epochs_stay_within_the_wire() {
        let largest = i32::MAX.unsigned_abs();
        assert_eq!(LeaderEpoch::new(largest), Some(LeaderEpoch::MAX));
        assert_eq!(LeaderEpoch::new(largest + 1), None);
        assert_eq!(LeaderEpoch::from_wire(-1), None);
        assert_eq!(LeaderEpoch::MAX.to_wire(), i32::MAX);
        assert_eq!(LeaderEpoch::MAX.next(), None);
        assert_eq!(LeaderEpoch::ZERO.next(), LeaderEpoch::new(1));
    }

    #[test]
    fn indexes_do_not_wrap() {
        assert_eq!(RaftIndex::new(u64::MAX).checked_add(1), None);
        assert_eq!(RaftIndex::ZERO.checked_add(1), Some(RaftIndex::new(1)));
    }

    #[test]
    fn numbers_are_shown_plain_and_named_for_debugging() {
        assert_eq!(Offset::new(42).unwrap().to_string(), "42");
        assert_eq!(format!("{:?}", LeaderEpoch::ZERO), "LeaderEpoch(0)");
        assert_eq!(format!("{:>4}", PartitionId::new(7)), "   7");
        let id = TopicId::from_bytes([0x11; 16]);
        assert_eq!(id.to_string(), "11111111-1111-1111-1111-111111111111");
        assert_eq!(TopicId::from_bytes(id.to_bytes()), id);
    }
}
