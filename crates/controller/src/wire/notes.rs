//! Notes of one broker for another: see `proto/tidelog/internal/v1/broker.proto`.

use prost::Message;
use tidelog_proto::internal::v1 as wire;
use wire::ResigningCause as Cause;
use wire::act::Action as ActionKind;
use wire::broker_note::Note as Kind;

use super::CommandError;
use super::cluster::{cluster_id, key, registration_of_wire, registration_to_wire, topic_bytes};
use crate::cluster::{PartitionKey, REPLICAS_MAX};
use crate::notes::{Note, ReplicaFault, Resigning};
use crate::plan::{Action, Order, Report, Seen};

/// The most members of a group that are believed, of each kind.
const MEMBERS_MAX: usize = 4 * REPLICAS_MAX;

impl Note {
    /// The note as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let note = match self {
            Self::Heartbeat {
                epoch,
                reports,
                faults,
                resigning,
            } => Kind::Heartbeat(wire::Heartbeat {
                resigning: resigning.is_some(),
                resigning_cause: resigning.map_or(0, resigning_to_wire),
                epoch: *epoch,
                reports: reports.iter().map(report_to_wire).collect(),
                faults: faults.iter().map(fault_to_wire).collect(),
            }),
            Self::Act(order) => Kind::Act(wire::Act {
                topic_id: topic_bytes(order.key),
                partition: order.key.partition,
                leader: order.leader,
                epoch: order.epoch,
                members_index: order.members_index,
                action: Some(action_to_wire(&order.action)),
            }),
            Self::Register {
                cluster,
                registration,
                epoch_before,
            } => Kind::Register(wire::Register {
                cluster_id: cluster.to_bytes().to_vec().into(),
                registration: Some(registration_to_wire(registration, 0)),
                epoch_before: *epoch_before,
            }),
            Self::RegisterRefused { cause } => Kind::RegisterRefused(wire::RegisterRefused {
                cause: cause.clone(),
            }),
        };
        wire::BrokerNote { note: Some(note) }.encode_to_vec()
    }

    /// The note in these bytes.
    ///
    /// # Errors
    /// [`CommandError`] when they say nothing that is known, or something that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let note = wire::BrokerNote::decode(bytes).map_err(|_| CommandError::Unknown)?;
        Ok(match note.note.ok_or(CommandError::Unknown)? {
            Kind::Heartbeat(heartbeat) => Self::Heartbeat {
                epoch: heartbeat.epoch,
                reports: all(heartbeat.reports, report_of_wire)?,
                faults: all(heartbeat.faults, fault_of_wire)?,
                resigning: heartbeat
                    .resigning
                    .then(|| resigning_of_wire(heartbeat.resigning_cause)),
            },
            Kind::Act(act) => Self::Act(Order {
                key: key(&act.topic_id, act.partition)?,
                leader: act.leader,
                epoch: act.epoch,
                members_index: act.members_index,
                action: action_of_wire(act.action.ok_or(CommandError::Unknown)?)?,
            }),
            Kind::Register(register) => {
                let registration = register.registration;
                let registration = registration.ok_or(CommandError::Field("registration"))?;
                let (registration, _) = registration_of_wire(registration)?;
                Self::Register {
                    cluster: cluster_id(&register.cluster_id)?,
                    registration,
                    epoch_before: register.epoch_before,
                }
            }
            Kind::RegisterRefused(refused) => Self::RegisterRefused {
                cause: refused.cause,
            },
        })
    }
}

fn resigning_to_wire(why: Resigning) -> i32 {
    let cause = match why {
        Resigning::Stopping => Cause::Stopping,
        Resigning::NoSpace => Cause::NoSpace,
        Resigning::DiskHangs => Cause::DiskHangs,
        Resigning::Other => Cause::Unspecified,
    };
    cause.into()
}

fn resigning_of_wire(cause: i32) -> Resigning {
    match Cause::try_from(cause) {
        Ok(Cause::Stopping) => Resigning::Stopping,
        Ok(Cause::NoSpace) => Resigning::NoSpace,
        Ok(Cause::DiskHangs) => Resigning::DiskHangs,
        Ok(Cause::Unspecified) | Err(_) => Resigning::Other,
    }
}

fn all<W, T>(
    wire: Vec<W>,
    read: impl Fn(W) -> Result<T, CommandError>,
) -> Result<Vec<T>, CommandError> {
    wire.into_iter().map(read).collect()
}

fn report_to_wire((key, report): &(PartitionKey, Report)) -> wire::PartitionReport {
    let members = report.members.clone();
    let ids = report.caught_up.iter().chain(report.lag.keys());
    let ids: std::collections::BTreeSet<_> = ids.copied().collect();
    let progress = ids.into_iter().map(|replica| wire::ReplicaProgress {
        replica,
        caught_up: report.caught_up.contains(&replica),
        lag: report.lag.get(&replica).copied().unwrap_or_default(),
    });
    wire::PartitionReport {
        topic_id: topic_bytes(*key),
        partition: key.partition,
        leader: report.leader,
        epoch: report.epoch,
        voters: members.voters,
        voters_outgoing: members.voters_outgoing,
        learners: members.learners,
        members_index: members.index,
        replicas: progress.collect(),
    }
}

fn report_of_wire(report: wire::PartitionReport) -> Result<(PartitionKey, Report), CommandError> {
    let lists = [
        report.voters.len(),
        report.voters_outgoing.len(),
        report.learners.len(),
        report.replicas.len(),
    ];
    if lists.iter().any(|len| *len > MEMBERS_MAX) {
        return Err(CommandError::Field("members"));
    }
    let caught_up = report.replicas.iter().filter(|one| one.caught_up);
    let key = key(&report.topic_id, report.partition)?;
    let report = Report {
        at_ms: 0,
        leader: report.leader,
        epoch: report.epoch,
        caught_up: caught_up.map(|one| one.replica).collect(),
        lag: report
            .replicas
            .iter()
            .map(|one| (one.replica, one.lag))
            .collect(),
        members: Seen {
            voters: report.voters,
            voters_outgoing: report.voters_outgoing,
            learners: report.learners,
            index: report.members_index,
        },
    };
    Ok((key, report))
}

fn fault_to_wire(fault: &ReplicaFault) -> wire::ReplicaFault {
    wire::ReplicaFault {
        topic_id: topic_bytes(fault.key),
        partition: fault.key.partition,
        cause: fault.cause.clone(),
    }
}

fn fault_of_wire(fault: wire::ReplicaFault) -> Result<ReplicaFault, CommandError> {
    Ok(ReplicaFault {
        key: key(&fault.topic_id, fault.partition)?,
        cause: fault.cause,
    })
}

fn action_to_wire(action: &Action) -> ActionKind {
    match action {
        Action::AddLearner(replica) => ActionKind::AddLearner(*replica),
        Action::RemoveLearner(replica) => ActionKind::RemoveLearner(*replica),
        Action::EnterJoint(replicas) => ActionKind::EnterJoint(wire::Replicas {
            replicas: replicas.clone(),
        }),
        Action::LeaveJoint => ActionKind::LeaveJoint(true),
        Action::ConfirmMembers => ActionKind::ConfirmMembers(true),
        Action::TransferLeadership(replica) => ActionKind::TransferLeadership(*replica),
    }
}

fn action_of_wire(action: ActionKind) -> Result<Action, CommandError> {
    Ok(match action {
        ActionKind::AddLearner(replica) => Action::AddLearner(replica),
        ActionKind::RemoveLearner(replica) => Action::RemoveLearner(replica),
        ActionKind::EnterJoint(target) => {
            if !(1..=MEMBERS_MAX).contains(&target.replicas.len()) {
                return Err(CommandError::Field("members"));
            }
            Action::EnterJoint(target.replicas)
        }
        ActionKind::LeaveJoint(_) => Action::LeaveJoint,
        ActionKind::ConfirmMembers(_) => Action::ConfirmMembers,
        ActionKind::TransferLeadership(replica) => Action::TransferLeadership(replica),
    })
}
