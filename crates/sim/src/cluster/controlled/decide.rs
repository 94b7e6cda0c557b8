//! How the leader of the metadata log decides: it asks whether it leads, with all that was decided before,
//! writes a command, folds it once it is committed, and goes on with the next.

use std::collections::VecDeque;

use tidelog_controller::{Action, ClusterCommand, Note, Order, Step, node_of, plan, plan_metadata};
use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, ProducedBatch, Timestamp, validate_produced,
};
use tidelog_replica::{Done, NodeId, Proposal, Until};

use super::act::carry_out;
use super::broker::{Broker, Deciding, Job, Outcome, Stage};
use super::{METADATA, cluster_id, group_key, partition_key};
use crate::cluster::Cluster;
use crate::cluster::admin::Asked;
use crate::cluster::node::Running;

/// After so many commands the whole state is put into the log.
const SNAPSHOT_COMMANDS: u64 = 60;

impl Cluster {
    /// Goes on with what is decided at a broker; says whether its shard has more to do by that.
    pub(super) fn decide(&mut self, id: NodeId) -> bool {
        let Some(broker) = self.nodes[id as usize - 1].broker_mut() else {
            return false;
        };
        let outcome = broker.outcome.take();
        match (std::mem::take(&mut broker.deciding), outcome) {
            (Deciding::Nothing, _) => self.begin_change(id),
            (Deciding::Asking(job), Some(Outcome::Leads(term))) => {
                if self.fold(id) {
                    self.go_on(id, job, term);
                }
                true
            }
            (
                Deciding::Writing {
                    job,
                    term,
                    mut steps,
                    first,
                    registers,
                },
                Some(Outcome::Stored(offset)),
            ) => {
                steps.pop_front();
                // Otherwise it is decided, and carried out later.
                if self.fold(id) {
                    let now = self.now;
                    if let (Some(node), Some(broker)) = (registers, self.node_mut(id).broker_mut())
                    {
                        // It was just heard, and does not know yet by which epoch it is to speak.
                        broker.observed.heard.insert(node, now);
                    }
                    let first = first.or(Some(offset));
                    self.carry_on(id, job, term, steps, first);
                }
                true
            }
            (_, Some(_)) => true,
            (deciding, None) => {
                broker.deciding = deciding;
                false
            }
        }
    }

    /// Takes the next job, if there is one.
    fn begin_change(&mut self, id: NodeId) -> bool {
        let now = self.now;
        let node = &mut self.nodes[id as usize - 1];
        let term = node
            .shard()
            .and_then(|shard| shard.group(METADATA))
            .map(|group| group.role().term);
        let Some(broker) = node.broker_mut() else {
            return false;
        };
        let Some(mut job) = broker.jobs.pop_front() else {
            return false;
        };
        if let Job::Turn(stage) = &mut job {
            if broker.leads_since != term {
                broker.leads_since = term;
                broker.observed.begin(now);
            }
            if broker.cluster.was_removed(id) {
                // All that is left to be done is to have another one decide.
                self.change_metadata_members(id);
                return true;
            }
            if broker.registrations.is_empty() && broker.is_registered() {
                *stage = Stage::Plan;
                let steps = plan(&broker.cluster, &broker.observed, &broker.options, now);
                if !steps.iter().any(|step| matches!(step, Step::Commit(_))) {
                    for step in steps {
                        self.act(id, step);
                    }
                    self.change_metadata_members(id);
                    let broker = self.node_mut(id).broker_mut();
                    if !broker.is_some_and(|broker| is_snapshot_due(broker)) {
                        return true;
                    }
                    *stage = Stage::Snapshot;
                }
            }
        }
        let ticket = self.ticket(id, Asked::Decided);
        let node = &mut self.nodes[id as usize - 1];
        if let Some(Running { shard, broker, .. }) = &mut node.running
            && let Some(broker) = broker
        {
            broker.deciding = Deciding::Asking(job);
            shard.read_index(METADATA, ticket);
        }
        true
    }

    /// Decides what comes next of a job, which is found in the state that the cluster has by now.
    fn go_on(&mut self, id: NodeId, job: Job, term: u64) {
        let now = self.now;
        let Some(broker) = self.nodes[id as usize - 1].broker_mut() else {
            return;
        };
        if let Ok(found) = broker.cluster.decide_found(cluster_id()) {
            return self.write(id, job, term, [Step::Commit(found)].into(), None);
        }
        if !broker.is_registered() {
            let registration = broker.registration.clone();
            // Where it may not, it decides nothing else either.
            if let Ok(register) = broker.cluster.decide_register(cluster_id(), registration) {
                self.write(id, job, term, [Step::Commit(register)].into(), Some(id));
            }
            return;
        }
        match job {
            Job::Asked(request) => {
                let seen = broker.observed.partitions.get(&partition_key(METADATA));
                let metadata = seen.map(|seen| &seen.members);
                if let Some(command) = request.decide(&broker.cluster, metadata) {
                    self.stats.asked += 1;
                    let job = Job::Turn(Stage::Over);
                    self.write(id, job, term, [Step::Commit(command)].into(), None);
                }
            }
            Job::Turn(Stage::Register) => self.register_next(id, term),
            Job::Turn(Stage::Plan) => {
                let steps = plan(&broker.cluster, &broker.observed, &broker.options, now);
                let job = Job::Turn(Stage::Snapshot);
                self.carry_on(id, job, term, steps.into(), None);
            }
            Job::Turn(Stage::Snapshot) => {
                let is_due = is_snapshot_due(broker);
                let commands = broker.cluster.snapshot();
                self.change_metadata_members(id);
                if is_due {
                    let steps = commands.into_iter().map(Step::Commit).collect();
                    self.write(id, Job::Turn(Stage::Trim), term, steps, None);
                }
            }
            Job::Turn(Stage::Trim | Stage::Over) => {}
        }
    }

    fn register_next(&mut self, id: NodeId, term: u64) {
        let Some(broker) = self.nodes[id as usize - 1].broker_mut() else {
            return;
        };
        let mut refused = Vec::new();
        let mut register = None;
        while let Some((node, (registration, epoch_before))) = broker.registrations.pop_first() {
            let cluster = &broker.cluster;
            match cluster.decide_registration(cluster_id(), registration, epoch_before) {
                Ok(None) => {}
                Ok(Some(command)) => {
                    register = Some((node, command));
                    break;
                }
                Err(e) => refused.push((node, e.to_string())),
            }
        }
        for (node, cause) in refused {
            self.post_notes(id, node, &[Note::RegisterRefused { cause }]);
        }
        match register {
            Some((node, command)) => {
                let steps = [Step::Commit(command)].into();
                self.write(id, Job::Turn(Stage::Register), term, steps, Some(node));
            }
            None => self.go_on(id, Job::Turn(Stage::Plan), term),
        }
    }

    /// Goes on with the steps that are left, or with what comes behind them.
    fn carry_on(
        &mut self,
        id: NodeId,
        job: Job,
        term: u64,
        mut steps: VecDeque<Step>,
        first: Option<tidelog_record::Offset>,
    ) {
        while let Some(step) = steps.pop_front_if(|step| matches!(step, Step::Act(_))) {
            self.act(id, step);
        }
        if !steps.is_empty() {
            self.write(id, job, term, steps, None);
            if let Some(Deciding::Writing { first: told, .. }) =
                self.node_mut(id).broker_mut().map(|it| &mut it.deciding)
            {
                *told = first;
            }
            return;
        }
        if let (Job::Turn(Stage::Trim), Some(to)) = (&job, first) {
            let ticket = self.ticket(id, Asked::LogStart { to });
            if let Some(shard) = self.node_mut(id).shard_mut() {
                shard.set_log_start(METADATA, to, ticket);
            }
            self.stats.snapshots += 1;
            return;
        }
        self.go_on(id, job, term);
    }

    /// Writes the first of these steps, which is a command.
    fn write(
        &mut self,
        id: NodeId,
        job: Job,
        term: u64,
        steps: VecDeque<Step>,
        registers: Option<NodeId>,
    ) {
        let Some(Step::Commit(command)) = steps.front() else {
            return;
        };
        let batch = batch_of(command, self.time());
        let waiter = self.ticket(id, Asked::Decided);
        let node = &mut self.nodes[id as usize - 1];
        let Some(Running { shard, broker, .. }) = &mut node.running else {
            return;
        };
        let Some(broker) = broker else { return };
        broker.deciding = Deciding::Writing {
            job,
            term,
            steps,
            first: None,
            registers,
        };
        let proposal = Proposal {
            batch,
            until: Until::Committed,
            // Whoever led in between may have decided something else.
            term: Some(term),
            waiter,
        };
        shard.propose(METADATA, proposal);
    }

    /// What a broker is told of what it asked the metadata group for.
    pub(in crate::cluster) fn decided(
        &mut self,
        id: NodeId,
        result: &Result<Done, tidelog_replica::Refusal>,
    ) {
        let node = &mut self.nodes[id as usize - 1];
        let term = node
            .shard()
            .and_then(|shard| shard.group(METADATA))
            .map_or(0, |group| group.role().term);
        if let Some(broker) = node.broker_mut() {
            broker.outcome = Some(match result {
                Ok(Done::ReadIndex(_)) => Outcome::Leads(term),
                Ok(Done::Stored { base_offset, .. }) => Outcome::Stored(*base_offset),
                _ => Outcome::Failed,
            });
        }
    }

    /// Has the leader of a partition do something.
    fn act(&mut self, id: NodeId, step: Step) {
        let Step::Act(order) = step else {
            return;
        };
        let now = self.now;
        if matches!(order.action, Action::TransferLeadership(_))
            && let Some(broker) = self.node_mut(id).broker_mut()
        {
            broker.observed.transfers_asked.insert(order.key, now);
        }
        self.order(id, order);
    }

    fn order(&mut self, id: NodeId, order: Order) {
        self.stats.orders += 1;
        let to = node_of(order.leader);
        if to != id {
            self.post_notes(id, to, &[Note::Act(order)]);
        } else if let Some(shard) = self.node_mut(id).shard_mut() {
            shard.with(group_key(order.key), |group| carry_out(&order, group));
        }
    }

    /// Has the group of the metadata log, which is led here, get other members where that is needed.
    fn change_metadata_members(&mut self, id: NodeId) {
        let key = partition_key(METADATA);
        let Some(broker) = self.node_mut(id).broker_mut() else {
            return;
        };
        let Some(report) = broker.observed.partitions.get(&key).cloned() else {
            return;
        };
        if let Some(action) = plan_metadata(&broker.cluster, &report) {
            self.order(id, report.order(key, action));
        }
    }
}

fn is_snapshot_due(broker: &Broker) -> bool {
    let since = broker.applied.get() - broker.snapshot_at.get().min(broker.applied.get());
    since >= SNAPSHOT_COMMANDS
}

/// A command as it is written to the metadata log.
fn batch_of(command: &ClusterCommand, now: Timestamp) -> ProducedBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    let pushed = builder.push(now, None, Some(&command.encode()), &[]);
    pushed.expect("a short record");
    let built = builder.build().expect("it has a record");
    validate_produced(built, &BatchLimits::default()).expect("it was just built")
}
