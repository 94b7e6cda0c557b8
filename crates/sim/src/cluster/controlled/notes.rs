//! What a broker tells the others, a few times a second, and what it makes of what they say.

use bytes::Bytes;
use tidelog_controller::{Admission, KnownOf, Note, PartitionKey, Report, Resigning, node_of};
use tidelog_replica::NodeId;

use super::act::{carry_out, report_of};
use super::broker::{Deciding, Job, Stage};
use super::{METADATA, cluster_id, directory, group_key, partition_key};
use crate::cluster::Cluster;
use crate::cluster::frames::Frame;
use crate::cluster::node::{Node, Running};

/// A broker says that it is there at least so often.
const HEARTBEAT_MILLIS: u64 = 500;
/// New groups stand for election again and again for so long.
pub(super) const BEGINNING_MILLIS: u64 = 5000;

impl Node {
    /// What is to be told of the partitions that are led here.
    fn reports(&self) -> Vec<(PartitionKey, Report)> {
        let Some(shard) = self.shard() else {
            return Vec::new();
        };
        let mut keys: Vec<_> = shard.keys().collect();
        keys.sort_unstable();
        let groups = keys.into_iter().filter_map(|key| {
            let report = report_of(shard.group(key)?)?;
            Some((partition_key(key), report))
        });
        groups.collect()
    }

    /// Whether its broker leads the metadata log, as far as it knows.
    pub(super) fn leads_metadata(&self) -> bool {
        let group = self.shard().and_then(|shard| shard.group(METADATA));
        group.is_some_and(|group| group.role().is_leader)
    }

    /// Stands for election again in new groups that have no leader yet.
    fn begin(&mut self, now: u64) {
        let Some(Running { shard, broker, .. }) = &mut self.running else {
            return;
        };
        let Some(broker) = broker else { return };
        broker.beginning.retain(|key, until| {
            let has_leader = |group: &mut tidelog_replica::Group| group.role().leader.is_some();
            let is_over = shard.with(*key, has_leader).unwrap_or(true);
            if !is_over {
                shard.with(*key, tidelog_replica::Group::campaign);
            }
            !is_over && now < *until
        });
    }

    /// Takes what another broker says.
    pub(in crate::cluster) fn take_note(&mut self, from: NodeId, bytes: &Bytes, now: u64) {
        let note = Note::decode(bytes).expect("what one broker says another understands");
        let Some(Running { shard, broker, .. }) = &mut self.running else {
            return;
        };
        let Some(broker) = broker else { return };
        match note {
            Note::Heartbeat {
                epoch,
                reports,
                resigning,
                ..
            } => {
                let is_current = broker.cluster.is_current(from, epoch);
                broker.observed.resigns(from, resigning);
                broker.observed.heartbeat(from, is_current, reports, now);
            }
            Note::Act(order) => {
                shard.with(group_key(order.key), |group| carry_out(&order, group));
            }
            Note::Register {
                registration,
                epoch_before,
                ..
            } => {
                if registration.node == from {
                    let said = (registration, epoch_before);
                    broker.registrations.insert(from, said);
                    broker.turn_at = now;
                }
            }
            Note::RegisterRefused { .. } => broker.is_refused = true,
        }
    }

    /// Whether what comes from a disk of another node is listened to.
    pub(in crate::cluster) fn lets_in(&self, from: NodeId, disk: u32) -> bool {
        let Some(broker) = self.broker() else {
            return true;
        };
        let cluster = &broker.cluster;
        let registered = cluster.broker(from);
        let known = KnownOf {
            registered: registered.map(|known| known.registration.directory),
            founded: broker.founders.contains(&from).then(|| directory(from, 0)),
            removed: cluster.removed_directory(from),
        };
        let leader = self.shard().and_then(|shard| shard.group(METADATA));
        let leader = leader.and_then(|group| group.role().leader);
        let may_be_behind = || cluster.may_lack(leader, &broker.founders);
        known.admits(directory(from, disk), may_be_behind) == Admission::Admitted
    }
}

impl Cluster {
    /// Time has passed for a broker: mostly nothing is to be done.
    pub(in crate::cluster) fn tick_broker(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.node(id);
        let Some(broker) = node.broker().filter(|_| node.is_running()) else {
            return;
        };
        let is_due = broker.turn_at <= now;
        if !broker.beginning.is_empty() {
            self.with(id, |node| node.begin(now));
        }
        if is_due {
            self.turn_of(id);
        }
    }

    /// The controller's turn at a broker.
    fn turn_of(&mut self, id: NodeId) {
        let now = self.now;
        let node = &mut self.nodes[id as usize - 1];
        let reports = node.reports();
        let resigning = node.is_full.then_some(Resigning::NoSpace);
        let leads = node.leads_metadata();
        let leader = node
            .shard()
            .and_then(|shard| shard.group(METADATA)?.role().leader);
        let Some(broker) = node.broker_mut() else {
            return;
        };
        broker.turn_at = now + HEARTBEAT_MILLIS;
        broker.observed.heartbeat(id, true, reports.clone(), now);
        broker.observed.resigns(id, resigning);
        let epoch = broker.cluster.broker(id).map_or(0, |known| known.epoch);
        let heartbeats = broker.teller.notes(epoch, reports, Vec::new(), resigning);
        let others = broker.cluster.others(id, &broker.founders);
        let register = (!broker.is_registered()).then(|| Note::Register {
            cluster: cluster_id(),
            registration: broker.registration.clone(),
            epoch_before: broker.epoch_before,
        });
        if leads {
            let is_deciding = matches!(
                broker.deciding,
                Deciding::Asking(Job::Turn(_))
                    | Deciding::Writing {
                        job: Job::Turn(_),
                        ..
                    }
            );
            let waits = broker.jobs.iter().any(|job| matches!(job, Job::Turn(_)));
            if !is_deciding && !waits {
                broker.jobs.push_back(Job::Turn(Stage::Register));
            }
        } else {
            broker.leads_since = None;
            broker.registrations.clear();
        }
        let key = partition_key(METADATA);
        broker.observed.forget_gone(&broker.cluster, key);
        let leader = leader.map(node_of);
        let registrars = broker.observed.registrars(id, leader, &others, key);
        for other in others {
            self.post_notes(id, other, &heartbeats);
        }
        if let Some(register) = register {
            for other in registrars {
                self.post_notes(id, other, std::slice::from_ref(&register));
            }
        }
        self.with(id, |_| {});
    }

    pub(super) fn post_notes(&mut self, from: NodeId, to: NodeId, notes: &[Note]) {
        let notes = notes.iter().map(|note| note.encode().into()).collect();
        let mut frame = Frame::of_notes(from, to, notes);
        frame.disk = self.node(from).disk_number();
        self.post(from, to, frame);
    }
}
