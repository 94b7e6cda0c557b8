//! What brokers tell each other beside what their replicas say. What is lost is said again.

use crate::cluster::{PartitionKey, Registration};
use crate::ids::ClusterId;
use crate::plan::{Order, Report};

/// Something that one broker tells another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It is there, and leads these partitions.
    Heartbeat {
        /// Of its registration.
        epoch: u64,
        /// What it leads; when they arrive they get the time of that.
        reports: Vec<(PartitionKey, Report)>,
        /// Replicas of its own that do not serve.
        faults: Vec<ReplicaFault>,
        /// Why it is to lead nothing, if it is.
        resigning: Option<Resigning>,
    },
    /// The leader of a partition is to do something.
    Act(Order),
    /// It has started, and wants that to be decided.
    Register {
        /// The cluster it belongs to.
        cluster: ClusterId,
        /// What it says of itself.
        registration: Registration,
        /// The epoch of its registration before, as far as it knows; 0 if it knows of none.
        epoch_before: u64,
    },
    /// It may not be registered.
    RegisterRefused {
        /// Why.
        cause: String,
    },
}

/// Why a broker is to lead nothing that others can lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resigning {
    /// It is about to stop.
    Stopping,
    /// Its disk has no space for what clients send.
    NoSpace,
    /// Its disk does not come to an end with a sync.
    DiskHangs,
    /// For a reason that this version does not know.
    Other,
}

/// A replica that does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaFault {
    /// Of which partition.
    pub key: PartitionKey,
    /// Why.
    pub cause: String,
}
