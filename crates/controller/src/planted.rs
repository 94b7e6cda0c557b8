//! Bugs planted on purpose, to see that the simulation finds them: with the feature `planted` one of them
//! can be chosen. No shipped build has it.

/// One line that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A broker on a new disk makes the replicas again that it had on the one that is lost.
    GenerationForgotten,
    /// A replica that was moved to another broker stays.
    RemovalForgotten,
    /// The joint configuration is never left.
    JointKept,
    /// What draining brokers have stays there.
    DrainForgotten,
    /// The leadership does not go back to the preferred replica.
    LeaderKept,
    /// A change of replicas is over with the joint configuration, which is not left yet.
    FinishedEarly,
}
