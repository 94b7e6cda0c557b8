//! What can go wrong, sorted by what the caller can do about it.

use thiserror::Error;
use tidelog_log::{AppendError, EntriesError, EntryError, Poisoned, ProducerError};
use tidelog_record::Offset;

use crate::config::ReplicaId;

/// Why a batch was not proposed. Nothing happened.
#[derive(Debug, Error)]
pub enum ProposeError {
    /// Another replica leads, or none that is known here.
    #[error("this replica does not lead its group; replica {leader:?} does")]
    NotLeader {
        /// The leader, if it is known.
        leader: Option<ReplicaId>,
    },
    /// This replica leads, and does not know yet how far the log is committed, or hands over to
    /// another. Soon it will be known.
    #[error("the leader is not ready yet")]
    NotReady,
    /// This replica leads, and would be no voter any more: another has to lead first.
    #[error("the leader cannot leave its group; hand over the leadership first")]
    LeaderLeaves,
    /// Too few of those that would vote have been heard lately: with them nothing would be committed any more.
    #[error("too few of those that would vote are there")]
    VotersAway,
    /// The members would be too many to be remembered.
    #[error("a group has {max} members at most, each counted twice while they change")]
    TooManyMembers {
        /// The limit.
        max: usize,
    },
    /// A log start must be committed.
    #[error("offset {to} is not committed yet; everything below {end} is")]
    PastEnd {
        /// The offset.
        to: Offset,
        /// The end of what is committed.
        end: Offset,
    },
    /// Too much is not committed yet.
    #[error("{bytes} bytes are not committed yet; the limit is {max}")]
    Busy {
        /// How much.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The batch is not its producer's next one, as far as is known here. A leader that was replaced and
    /// has not heard of it misses what the producer has sent since: whoever answers asks first whether
    /// it leads, by [`crate::Group::read_index`].
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The log cannot take it.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why a message from another replica was not taken. Nothing happened.
#[derive(Debug, Error)]
pub enum StepError {
    /// The message says what no replica says.
    #[error("a message of replica {from} makes no sense: {what}")]
    Malformed {
        /// Who sent it.
        from: ReplicaId,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry in it is damaged or not allowed.
    #[error("an entry from replica {from} cannot be used: {source}")]
    Entry {
        /// Who sent it.
        from: ReplicaId,
        /// What is wrong with it.
        source: EntryError,
    },
    /// The log has no space for its entries now; they will be sent again.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The group has failed.
    #[error(transparent)]
    Failed(#[from] GroupError),
}

/// Why a group does no more until it is opened again.
#[derive(Clone, Debug, Error)]
pub enum GroupError {
    /// A write or sync failed.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// Its log cannot be read.
    #[error("the log cannot be read: {0}")]
    Read(String),
    /// A copy could not be put into the place of its log.
    #[error("the files of another replica could not be taken: {0}")]
    Adopt(String),
    /// Raft found something that cannot be.
    #[error("the group's state makes no sense: {0}")]
    Invariant(String),
}

impl From<EntriesError> for GroupError {
    fn from(e: EntriesError) -> Self {
        Self::Read(e.to_string())
    }
}
