//! What a group needs to know of itself.

use crate::planted::Planted;

/// The number of a replica in its group; never used again once its disk is lost, and never 0.
pub type ReplicaId = u64;

/// How a group works.
#[derive(Clone, Copy, Debug)]
pub struct GroupConfig {
    /// This replica.
    pub id: ReplicaId,
    /// After so many ticks without a word of a leader an election begins; each time a number between
    /// this and its double is drawn.
    pub election_ticks: u32,
    /// A leader is heard of every so many ticks.
    pub heartbeat_ticks: u32,
    /// The longest a batch may be, in bytes.
    pub batch_bytes_max: usize,
    /// A message carries entries of so many bytes, or one.
    pub message_bytes_max: u64,
    /// So many messages with entries are on their way to one replica at most.
    pub messages_in_flight_max: usize,
    /// A leader takes no more batches when so many bytes of them are not committed.
    pub uncommitted_bytes_max: u64,
    /// What the election timeouts are drawn from.
    pub seed: u64,
    /// What is wrong.
    #[cfg(feature = "planted")]
    pub planted: Option<Planted>,
}

impl GroupConfig {
    /// Whether this is wrong, on purpose.
    #[cfg(feature = "planted")]
    pub(crate) fn has(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "as with the feature")]
    pub(crate) const fn has(&self, _bug: Planted) -> bool {
        false
    }
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            id: 1,
            election_ticks: 10,
            heartbeat_ticks: 2,
            batch_bytes_max: 1 << 20,
            message_bytes_max: 256 << 10,
            messages_in_flight_max: 8,
            uncommitted_bytes_max: 16 << 20,
            seed: 0,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }
}
