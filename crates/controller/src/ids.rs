//! The numbers and names of brokers, their disks, and replicas.
//!
//! How a replica's number is made is shared with the crate that runs replicas, which this one does not
//! know.

use std::fmt;

/// The number of a broker in its cluster; never 0.
pub type NodeId = u32;

/// The number of a replica in its partition: see [`replica_of`].
pub type ReplicaId = u64;

/// The broker that has a replica: the lower half of the replica's number.
pub const fn node_of(replica: ReplicaId) -> NodeId {
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let node = replica as NodeId;
    node
}

/// The life of a replica: the upper half of its number. It tells apart the replicas that a broker has
/// had of one partition, one after the other, and none of them ever comes back under the number of an
/// earlier one, whose votes and entries it does not have.
pub const fn life_of(replica: ReplicaId) -> u32 {
    (replica >> 32) as u32
}

/// The number of a replica at a node, of this life.
pub const fn replica_of(node: NodeId, life: u32) -> ReplicaId {
    (life as ReplicaId) << 32 | node as ReplicaId
}

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id of these 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

sixteen_bytes! {
    /// Names a cluster: 16 random bytes.
    ClusterId
}
sixteen_bytes! {
    /// Names a data directory: 16 random bytes, made with it. A wiped disk has another one.
    DirectoryId
}
