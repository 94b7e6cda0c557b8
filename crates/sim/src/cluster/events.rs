//! What happens next.

use std::collections::BTreeMap;

use tidelog_log::state::GroupKey;
use tidelog_replica::NodeId;
use tidelog_replica::catch_up::CatchUpLetter;

use super::clients::{Reply, Request};
use super::controlled::Request as Asked;
use super::frames::Frame;

#[derive(Debug)]
pub(super) enum Event {
    /// A node is told that time has passed.
    Tick { node: NodeId },
    /// What a node sent to another in one turn arrives.
    Deliver { to: NodeId, frame: Box<Frame> },
    /// What a replica says that catches up by files, or that it copies from.
    Files {
        from: NodeId,
        to: NodeId,
        letter: Box<CatchUpLetter>,
    },
    /// A round of syncs that a node asked for in this life of it comes to its end.
    LogSync {
        node: NodeId,
        life: u64,
        keys: Vec<GroupKey>,
    },
    /// The same of what it keeps beside its logs.
    StateSync {
        node: NodeId,
        life: u64,
        recorded: Vec<(GroupKey, u64)>,
    },
    /// What a producer sent arrives.
    Request { to: NodeId, request: Request },
    /// What a producer is told arrives.
    Answer { producer: usize, reply: Reply },
    /// A producer sends, or sends again, unless it has sent since this was planned.
    Send { producer: usize, plan: u64 },
    /// Somebody reads, trims or rolls.
    Admin,
    /// Whoever runs a cluster that decides for itself asks for something.
    Operate,
    /// What is asked of whoever leads the metadata log arrives.
    Ask { to: NodeId, request: Box<Asked> },
    /// A node on an empty disk asks to be let into the cluster.
    Enter { node: NodeId },
    /// A broker goes on with what was decided and is not carried out.
    Carry { node: NodeId, life: u64 },
    /// A node of which something failed in this life is stopped.
    Stop { node: NodeId, life: u64 },
    /// A node loses power, if it is still in this life.
    PowerLoss { node: NodeId, life: u64 },
    /// More than one replica of a partition stand for election.
    Contest { number: usize },
    /// A node that stopped starts again.
    Restart { node: NodeId },
    /// A node that was paused goes on.
    Resume { node: NodeId, life: u64 },
    /// There is space again on this node's disk, and there are files to open.
    Space { node: NodeId },
    /// These hear each other again.
    Heal { cuts: Vec<(NodeId, NodeId)> },
    /// Something goes wrong.
    Fault,
}

impl Event {
    /// The node whose process must run for this to happen; what is on its way to one that is stopped
    /// for a while waits.
    pub(super) fn waits_for(&self) -> Option<NodeId> {
        match self {
            Self::Deliver { to, .. }
            | Self::Files { to, .. }
            | Self::Request { to, .. }
            | Self::Ask { to, .. } => Some(*to),
            Self::LogSync { node, .. } | Self::StateSync { node, .. } => Some(*node),
            _ => None,
        }
    }

    /// Whether it came over the network, where only so much waits.
    pub(super) fn is_mail(&self) -> bool {
        matches!(
            self,
            Self::Deliver { .. } | Self::Files { .. } | Self::Request { .. } | Self::Ask { .. }
        )
    }
}

/// Events by their time; those of one time in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Events {
    by_time: BTreeMap<(u64, u64), Event>,
    count: u64,
}

impl Events {
    pub(super) fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.by_time.insert((time, self.count), event);
    }

    pub(super) fn next_before(&mut self, deadline: u64) -> Option<(u64, Event)> {
        let ((time, count), event) = self.by_time.pop_first()?;
        if time > deadline {
            self.by_time.insert((time, count), event);
            return None;
        }
        Some((time, event))
    }
}
