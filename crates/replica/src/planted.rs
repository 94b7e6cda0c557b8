//! Bugs planted on purpose, to see that the simulation finds them: with the feature `planted` one of them
//! can be chosen. No shipped build has it, and without it there is nothing to choose.

/// One line that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, unreachable_pub, reason = "nobody chooses one")
)]
pub enum Planted {
    /// The term and the vote are not remembered.
    VoteForgotten,
    /// What waits for the state to be durable does not.
    VoteBeforeSync,
    /// What waits for the log to be durable does not.
    AckBeforeSync,
    /// Everything in the log counts as committed with the first entry that is.
    CommitAhead,
    /// A batch that is sent again is not looked for.
    DuplicateStored,
    /// Members that were changed are not remembered.
    MembersForgotten,
    /// The checkpoint is not set back before entries are taken back.
    CheckpointKept,
    /// Who leads says how far the log is committed without asking whether it leads still.
    ReadUnasked,
    /// A log start is in force before the commit that it stands on is durable.
    LogStartForgotten,
    /// Those who wait for a commit are not told when another replica leads, and wait on.
    WaitersKept,
    /// A batch that is sent again is answered before it is committed.
    DuplicateUncommitted,
    /// Those who wait for a read are forgotten when another replica leads.
    ReadersForgotten,
    /// What could not be written for want of space is left out.
    StalledDropped,
    /// What comes while entries wait for space is taken.
    StalledSteps,
    /// Offsets are checked of entries that follow on others than those that are here.
    OffsetsUnmatched,
    /// What the leader has written counts as written by a majority.
    WrittenByOne,
    /// A leader that votes alone is not told of time, though others learn from it.
    LearnersForgotten,
}
