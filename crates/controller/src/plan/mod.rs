//! What is to be done next, from what was decided and what is seen.
//!
//! The leader of the metadata group calls [`plan`] again and again, commits the commands in the order
//! they come in, deciding nothing else in between, and sends the actions to the leaders of the partitions.
//! Nothing is remembered from one call to the next: what was lost on the way, or was under way at a
//! leader that is gone, is planned again. An action says which members, or which leadership, it was
//! planned for, and whoever carries it out refuses it when these are not the ones it has: so what comes
//! late, or twice, does nothing.
//!
//! Who is fenced and what begins is in this file, the way of a change of replicas in `change.rs`, and who
//! is to lead in `lead.rs`.

mod change;
mod lead;

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{Cluster, PartitionKey, is_same_set};
use crate::command::ClusterCommand;
use crate::ids::{NodeId, ReplicaId, node_of};
use crate::notes::Resigning;
use crate::place::{Load, elsewhere, with_more};
#[cfg(feature = "planted")]
use crate::planted::Planted;

/// Limits and waits of [`plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// A broker that was not heard of for longer is fenced, and a report that is older is not believed,
    /// in milliseconds.
    pub session_ms: u64,
    /// How many changes of replicas may be under way before one more is begun for a broker that is
    /// draining or was replaced. Those that wait for a broker are not counted.
    pub reassignments_max: usize,
    /// How many leaderships are handed over at a time.
    pub transfers_max: usize,
    /// For how long a hand-over counts as being under way, and is not asked for again, in milliseconds.
    pub transfer_wait_ms: u64,
    /// What is wrong.
    #[cfg(feature = "planted")]
    pub planted: Option<Planted>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            session_ms: 9_000,
            reassignments_max: 8,
            transfers_max: 16,
            transfer_wait_ms: 3_000,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }
}

/// What the leader of the metadata group sees of the cluster. It is not kept when that leader changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Since when it looks, in milliseconds: nobody is fenced for not being heard before.
    pub since_ms: u64,
    /// When each broker was last heard, with a request of its present registration.
    pub heard: BTreeMap<NodeId, u64>,
    /// Brokers that are to lead nothing, and why.
    pub resigning: BTreeMap<NodeId, Resigning>,
    /// The newest report for each partition: of the highest epoch, and of that the last one.
    pub partitions: BTreeMap<PartitionKey, Report>,
    /// When each partition was last asked to hand its leadership over, in milliseconds.
    pub transfers_asked: BTreeMap<PartitionKey, u64>,
}

/// What the leader of a partition says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// When it came, in milliseconds.
    pub at_ms: u64,
    /// The replica that leads.
    pub leader: ReplicaId,
    /// Since which epoch.
    pub epoch: u32,
    /// Who is in the group.
    pub members: Seen,
    /// The replicas that are caught up.
    pub caught_up: BTreeSet<ReplicaId>,
    /// How many records each replica lacks, where that is known.
    pub lag: BTreeMap<ReplicaId, u64>,
}

impl Report {
    /// What the replica `leader` says, which leads in this term: `progress` has of each member whether it is caught
    /// up, and what it lacks. `None` where the term is no epoch.
    pub fn of_leader(
        leader: ReplicaId,
        term: u64,
        members: Seen,
        progress: impl IntoIterator<Item = (ReplicaId, bool, u64)>,
    ) -> Option<Self> {
        let mut report = Self {
            leader,
            epoch: u32::try_from(term).ok()?,
            members,
            ..Self::default()
        };
        for (id, is_caught_up, lag) in progress {
            if is_caught_up {
                report.caught_up.insert(id);
            }
            report.lag.insert(id, lag);
        }
        Some(report)
    }
}

/// The members of a group as of the last committed change of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Who votes.
    pub voters: Vec<ReplicaId>,
    /// Who voted before the joint configuration, in which they still do; empty outside of it.
    pub voters_outgoing: Vec<ReplicaId>,
    /// Who gets everything and does not vote.
    pub learners: Vec<ReplicaId>,
    /// Raft index of the last change.
    pub index: u64,
}

impl Seen {
    /// Whether both the voters of before and those of afterwards are needed.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To be committed.
    Commit(ClusterCommand),
    /// To be sent to the leader of a partition.
    Act(Order),
}

/// What the leader of a partition is asked for. It does it if it is the one that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The partition.
    pub key: PartitionKey,
    /// The replica that is to do it.
    pub leader: ReplicaId,
    /// If it leads in this epoch.
    pub epoch: u32,
    /// And, unless it hands over, has the members of this Raft index.
    pub members_index: u64,
    /// What to do.
    pub action: Action,
}

impl Report {
    /// Asks the leader that says this, as it is then.
    pub fn order(&self, key: PartitionKey, action: Action) -> Order {
        Order {
            key,
            leader: self.leader,
            epoch: self.epoch,
            members_index: self.members.index,
            action,
        }
    }
}

/// What the leader of a partition is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have a new replica catch up.
    AddLearner(ReplicaId),
    /// Leave it again.
    RemoveLearner(ReplicaId),
    /// Enter the joint configuration whose incoming voters are these. It is left only when asked for.
    EnterJoint(Vec<ReplicaId>),
    /// Leave it.
    LeaveJoint,
    /// Propose the members as they are, so that they get another Raft index, and what was planned for
    /// the present one is refused.
    ConfirmMembers,
    /// Hand the leadership over.
    TransferLeadership(ReplicaId),
}

/// What a step is decided on.
struct Planner<'a> {
    cluster: &'a Cluster,
    observed: &'a Observed,
    options: &'a PlanOptions,
    now_ms: u64,
    transfers_left: usize,
    steps: Vec<Step>,
}

/// What is to be done at `now_ms`, in the order it is to be done in. `now_ms` never goes back while one
/// broker leads the metadata group.
pub fn plan(
    cluster: &Cluster,
    observed: &Observed,
    options: &PlanOptions,
    now_ms: u64,
) -> Vec<Step> {
    if cluster.id().is_none() {
        return Vec::new();
    }
    let asked = observed.transfers_asked.values();
    let under_way = asked.filter(|asked| now_ms.saturating_sub(**asked) < options.transfer_wait_ms);
    let mut planner = Planner {
        cluster,
        observed,
        options,
        now_ms,
        transfers_left: options.transfers_max.saturating_sub(under_way.count()),
        steps: Vec::new(),
    };
    planner.fence();
    // All else depends on who is fenced, and is planned with the next call.
    if !planner.steps.is_empty() {
        return planner.steps;
    }
    planner.go_on();
    planner.begin();
    planner.steps
}

impl<'a> Planner<'a> {
    fn fence(&mut self) {
        for broker in self.cluster.brokers() {
            let node = broker.registration.node;
            let heard = self.observed.heard.get(&node).copied();
            let last = heard.unwrap_or(0).max(self.observed.since_ms);
            let is_silent = self.now_ms.saturating_sub(last) > self.options.session_ms;
            let is_fenced = match (broker.is_fenced, is_silent) {
                (false, true) => true,
                (true, false) if heard.is_some() => false,
                _ => continue,
            };
            let epoch = broker.epoch;
            self.steps.push(Step::Commit(ClusterCommand::SetFenced {
                node,
                epoch,
                is_fenced,
            }));
        }
    }

    fn go_on(&mut self) {
        let cluster = self.cluster;
        for (key, placement) in cluster.placements() {
            let report = self.report(key);
            match (&placement.change, report) {
                (Some(change), report) => self.change(key, placement, change, report),
                (None, Some(report)) => self.keep(key, placement, report),
                (None, None) => {}
            }
        }
    }

    /// The report on a partition, unless it is too old.
    fn report(&self, key: PartitionKey) -> Option<&'a Report> {
        let report = self.observed.partitions.get(&key)?;
        let placement = self.cluster.placement(key.topic, key.partition)?;
        let is_new = self.now_ms.saturating_sub(report.at_ms) <= self.options.session_ms
            && report.members.index >= placement.members_index;
        is_new.then_some(report)
    }

    /// Begins what draining and replaced brokers need, and partitions that lost replicas for good, as long as not too much is under way. A partition
    /// without a leader waits: its change would not come further, and keep others from being begun.
    fn begin(&mut self) {
        let cluster = self.cluster;
        let is_moving = |key, change: &crate::cluster::Change| {
            let is_led = self.report(key).is_some();
            is_led
                && change
                    .target
                    .iter()
                    .all(|replica| cluster.is_live(*replica))
        };
        let under_way = cluster.placements().filter(|(key, placement)| {
            let change = placement.change.as_ref();
            change.is_some_and(|change| is_moving(*key, change))
        });
        let mut left = self
            .options
            .reassignments_max
            .saturating_sub(under_way.count());
        let mut load = None;
        for (key, placement) in cluster.placements() {
            if left == 0 {
                return;
            }
            let must_change = |replica: &ReplicaId| {
                let broker = cluster.broker(node_of(*replica));
                let is_draining = broker.is_some_and(|broker| broker.is_draining);
                #[cfg(feature = "planted")]
                let is_draining =
                    is_draining && self.options.planted != Some(Planted::DrainForgotten);
                is_draining || cluster.is_lost(*replica)
            };
            let moves = placement.replicas.iter().any(must_change);
            if placement.change.is_some() || !moves && placement.lacking == 0 {
                continue;
            }
            let is_at_rest = self.report(key).is_some_and(|report| {
                !report.members.is_joint()
                    && is_same_set(&report.members.voters, &placement.replicas)
            });
            let load = load.get_or_insert_with(|| Load::new(cluster, None));
            let mut target = || match moves {
                true => elsewhere(cluster, placement, load, None),
                false => with_more(cluster, placement, load),
            };
            if is_at_rest && let Some(target) = target() {
                left -= 1;
                let begin = ClusterCommand::BeginReassignment {
                    key,
                    target,
                    is_automatic: true,
                };
                self.steps.push(Step::Commit(begin));
            }
        }
    }

    fn commit(&mut self, command: ClusterCommand) {
        self.steps.push(Step::Commit(command));
    }

    fn act(&mut self, key: PartitionKey, report: &Report, action: Action) {
        self.steps.push(Step::Act(report.order(key, action)));
    }
}
