//! Commands of a cluster.

use prost::Message;
use tidelog_proto::internal::v1 as wire;
use tidelog_record::TopicName;
use wire::metadata_command::Command as Kind;

use super::CommandError;
use super::topics::{partitions, settings, topic_id};
use crate::cluster::{PartitionKey, Phase, Registration};
use crate::command::{ClusterCommand, RecoveredPartition};
use crate::ids::{ClusterId, DirectoryId, ReplicaId};
use crate::topics::{Command, PARTITIONS_MAX, Topic};

impl ClusterCommand {
    /// The command as the value of a record.
    pub fn encode(&self) -> Vec<u8> {
        wire::MetadataCommand {
            command: Some(self.to_kind()),
        }
        .encode_to_vec()
    }

    fn to_kind(&self) -> Kind {
        match self {
            Self::Topics(command) => command.to_kind(),
            Self::CreateTopic {
                topic,
                replication_factor,
                placement,
            } => Kind::CreateTopic(create_to_wire(topic, *replication_factor, placement)),
            Self::AddPartitions {
                id,
                total,
                placement,
            } => Kind::AddPartitions(wire::AddPartitions {
                topic_id: id.to_bytes().to_vec().into(),
                total: *total,
                placement: lists_to_wire(placement),
            }),
            Self::Found { id } => Kind::FoundCluster(wire::FoundCluster {
                cluster_id: id.to_bytes().to_vec().into(),
            }),
            Self::RegisterBroker {
                registration,
                epoch,
            } => Kind::RegisterBroker(registration_to_wire(registration, *epoch)),
            &Self::SetFenced {
                node,
                epoch,
                is_fenced,
            } => Kind::SetFenced(wire::SetFenced {
                node_id: node,
                epoch,
                fenced: is_fenced,
            }),
            &Self::SetDraining { node, is_draining } => Kind::SetDraining(wire::SetDraining {
                node_id: node,
                draining: is_draining,
            }),
            &Self::UnregisterBroker { node, is_lost } => {
                Kind::UnregisterBroker(wire::UnregisterBroker {
                    node_id: node,
                    lost: is_lost,
                })
            }
            Self::ReplaceBroker {
                node,
                directory,
                generation,
                epoch,
            } => Kind::ReplaceBroker(wire::ReplaceBroker {
                node_id: *node,
                directory_id: directory.to_bytes().to_vec().into(),
                generation: *generation,
                epoch: *epoch,
            }),
            &Self::RaiseFeatureLevel { level } => {
                Kind::RaiseFeatureLevel(wire::RaiseFeatureLevel { level })
            }
            Self::Snapshot { part, parts, data } => Kind::Snapshot(wire::Snapshot {
                part: *part,
                parts: *parts,
                data: data.clone().into(),
            }),
            _ => self.placement_to_kind(),
        }
    }

    fn placement_to_kind(&self) -> Kind {
        let id = |key: &PartitionKey| key.topic.to_bytes().to_vec().into();
        match self {
            Self::BeginReassignment {
                key,
                target,
                is_automatic,
            } => Kind::BeginReassignment(wire::BeginReassignment {
                topic_id: id(key),
                partition: key.partition,
                target: target.clone(),
                automatic: *is_automatic,
            }),
            Self::AdvanceReassignment {
                key,
                phase,
                members_index,
            } => Kind::AdvanceReassignment(wire::AdvanceReassignment {
                topic_id: id(key),
                partition: key.partition,
                phase: phase_to_wire(*phase).into(),
                members_index: *members_index,
            }),
            Self::CancelReassignment { key } => {
                Kind::CancelReassignment(wire::CancelReassignment {
                    topic_id: id(key),
                    partition: key.partition,
                })
            }
            Self::FinishReassignment {
                key,
                is_cancelled,
                members_index,
            } => Kind::FinishReassignment(wire::FinishReassignment {
                topic_id: id(key),
                partition: key.partition,
                cancelled: *is_cancelled,
                members_index: *members_index,
            }),
            Self::SetReplicaOrder { key, replicas } => {
                Kind::SetReplicaOrder(wire::SetReplicaOrder {
                    topic_id: id(key),
                    partition: key.partition,
                    replicas: replicas.clone(),
                })
            }
            Self::RecoverPartitions { partitions } => {
                let partitions = partitions.iter().map(|one| wire::RecoveredPartition {
                    topic_id: id(&one.key),
                    partition: one.key.partition,
                    keeper: one.keeper,
                    others: one.others.clone(),
                    recoveries: one.recoveries,
                });
                Kind::RecoverPartitions(wire::RecoverPartitions {
                    partitions: partitions.collect(),
                })
            }
            _ => unreachable!("all others are encoded elsewhere"),
        }
    }

    /// The command in a record's value.
    ///
    /// # Errors
    /// [`CommandError`]: the log was damaged, or written by a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let message = wire::MetadataCommand::decode(bytes).map_err(|_| CommandError::Unknown)?;
        Ok(match message.command.ok_or(CommandError::Unknown)? {
            Kind::CreateTopic(create) => {
                let (topic, replication_factor, placement) = create_of_wire(create)?;
                if replication_factor == 0 && placement.is_empty() {
                    Self::Topics(Command::Create(topic))
                } else {
                    Self::CreateTopic {
                        topic,
                        replication_factor,
                        placement,
                    }
                }
            }
            Kind::AlterTopic(alter) => Self::Topics(Command::Alter {
                id: topic_id(&alter.topic_id)?,
                settings: settings(alter.settings)?,
            }),
            Kind::AddPartitions(add) => {
                let (id, total) = (topic_id(&add.topic_id)?, partitions(add.total)?);
                match lists_of_wire(add.placement) {
                    placement if placement.is_empty() => {
                        Self::Topics(Command::AddPartitions { id, total })
                    }
                    placement => Self::AddPartitions {
                        id,
                        total,
                        placement,
                    },
                }
            }
            Kind::DeleteTopic(delete) => Self::Topics(Command::Delete {
                id: topic_id(&delete.topic_id)?,
            }),
            Kind::ReserveProducerIds(reserve) => Self::Topics(Command::ReserveProducerIds {
                next: i64::try_from(reserve.next)
                    .map_err(|_| CommandError::Field("producer id"))?,
            }),
            Kind::FoundCluster(found) => Self::Found {
                id: cluster_id(&found.cluster_id)?,
            },
            Kind::RegisterBroker(register) => {
                let (registration, epoch) = registration_of_wire(register)?;
                Self::RegisterBroker {
                    registration,
                    epoch,
                }
            }
            Kind::SetFenced(set) => Self::SetFenced {
                node: set.node_id,
                epoch: set.epoch,
                is_fenced: set.fenced,
            },
            Kind::SetDraining(set) => Self::SetDraining {
                node: set.node_id,
                is_draining: set.draining,
            },
            Kind::UnregisterBroker(remove) => Self::UnregisterBroker {
                node: remove.node_id,
                is_lost: remove.lost,
            },
            Kind::ReplaceBroker(replace) => Self::ReplaceBroker {
                node: replace.node_id,
                directory: directory_id(&replace.directory_id)?,
                generation: replace.generation,
                epoch: replace.epoch,
            },
            Kind::BeginReassignment(begin) => Self::BeginReassignment {
                key: key(&begin.topic_id, begin.partition)?,
                target: begin.target,
                is_automatic: begin.automatic,
            },
            Kind::AdvanceReassignment(advance) => Self::AdvanceReassignment {
                key: key(&advance.topic_id, advance.partition)?,
                phase: phase_of_wire(advance.phase())?,
                members_index: advance.members_index,
            },
            Kind::CancelReassignment(cancel) => Self::CancelReassignment {
                key: key(&cancel.topic_id, cancel.partition)?,
            },
            Kind::FinishReassignment(finish) => Self::FinishReassignment {
                key: key(&finish.topic_id, finish.partition)?,
                is_cancelled: finish.cancelled,
                members_index: finish.members_index,
            },
            Kind::SetReplicaOrder(order) => Self::SetReplicaOrder {
                key: key(&order.topic_id, order.partition)?,
                replicas: order.replicas,
            },
            Kind::RecoverPartitions(recover) => Self::RecoverPartitions {
                partitions: recovered_of_wire(recover)?,
            },
            Kind::RaiseFeatureLevel(raise) => Self::RaiseFeatureLevel { level: raise.level },
            Kind::Snapshot(snapshot) => Self::Snapshot {
                part: snapshot.part,
                parts: snapshot.parts,
                data: snapshot.data.to_vec(),
            },
        })
    }
}

fn recovered_of_wire(
    recover: wire::RecoverPartitions,
) -> Result<Vec<RecoveredPartition>, CommandError> {
    let partitions = recover.partitions.into_iter().map(|one| {
        if one.recoveries == 0 {
            return Err(CommandError::Field("recoveries"));
        }
        Ok(RecoveredPartition {
            key: key(&one.topic_id, one.partition)?,
            keeper: one.keeper,
            others: one.others,
            recoveries: one.recoveries,
        })
    });
    partitions.collect()
}

pub(super) fn create_to_wire(
    topic: &Topic,
    replication_factor: u32,
    placement: &[Vec<ReplicaId>],
) -> wire::CreateTopic {
    wire::CreateTopic {
        name: topic.name.to_string(),
        topic_id: topic.id.to_bytes().to_vec().into(),
        partitions: topic.partitions,
        settings: topic.settings.set().clone(),
        replication_factor,
        placement: lists_to_wire(placement),
    }
}

type Created = (Topic, u32, Vec<Vec<ReplicaId>>);

pub(super) fn create_of_wire(create: wire::CreateTopic) -> Result<Created, CommandError> {
    let topic = Topic {
        name: TopicName::new(&create.name).map_err(|_| CommandError::Field("name"))?,
        id: topic_id(&create.topic_id)?,
        partitions: partitions(create.partitions)?,
        settings: settings(create.settings)?,
    };
    let placement = lists_of_wire(create.placement);
    Ok((topic, create.replication_factor, placement))
}

pub(super) fn registration_to_wire(
    registration: &Registration,
    epoch: u64,
) -> wire::RegisterBroker {
    let registration = registration.clone();
    wire::RegisterBroker {
        node_id: registration.node,
        directory_id: registration.directory.to_bytes().to_vec().into(),
        grpc_address: registration.grpc_address,
        http_address: registration.http_address,
        cluster_address: registration.cluster_address,
        rack: registration.rack.unwrap_or_default(),
        version: registration.version,
        level_min: registration.level_min,
        level_max: registration.level_max,
        epoch,
    }
}

impl Registration {
    /// What a broker says of itself, as it comes from another one.
    ///
    /// # Errors
    /// [`CommandError`] when it says something that cannot be.
    pub fn from_wire(register: wire::RegisterBroker) -> Result<Self, CommandError> {
        registration_of_wire(register).map(|(registration, _)| registration)
    }
}

pub(super) fn registration_of_wire(
    register: wire::RegisterBroker,
) -> Result<(Registration, u64), CommandError> {
    let registration = Registration {
        node: register.node_id,
        directory: directory_id(&register.directory_id)?,
        grpc_address: register.grpc_address,
        http_address: register.http_address,
        cluster_address: register.cluster_address,
        rack: Some(register.rack).filter(|rack| !rack.is_empty()),
        version: register.version,
        level_min: register.level_min,
        level_max: register.level_max,
    };
    Ok((registration, register.epoch))
}

pub(super) fn cluster_id(bytes: &[u8]) -> Result<ClusterId, CommandError> {
    let id = bytes.try_into().map(ClusterId::from_bytes);
    id.map_err(|_| CommandError::Field("cluster id"))
}

pub(super) fn directory_id(bytes: &[u8]) -> Result<DirectoryId, CommandError> {
    let id = bytes.try_into().map(DirectoryId::from_bytes);
    id.map_err(|_| CommandError::Field("directory id"))
}

/// The topic of a partition, as bytes.
pub(super) fn topic_bytes(key: PartitionKey) -> bytes::Bytes {
    key.topic.to_bytes().to_vec().into()
}

pub(super) fn key(topic: &[u8], partition: u32) -> Result<PartitionKey, CommandError> {
    if partition >= PARTITIONS_MAX {
        return Err(CommandError::Field("partition"));
    }
    Ok(PartitionKey {
        topic: topic_id(topic)?,
        partition,
    })
}

pub(super) fn phase_to_wire(phase: Phase) -> wire::ReassignmentPhase {
    match phase {
        Phase::Adding => wire::ReassignmentPhase::Adding,
        Phase::Joint => wire::ReassignmentPhase::Joint,
        Phase::Leaving => wire::ReassignmentPhase::Leaving,
    }
}

pub(super) fn phase_of_wire(phase: wire::ReassignmentPhase) -> Result<Phase, CommandError> {
    Ok(match phase {
        wire::ReassignmentPhase::Adding => Phase::Adding,
        wire::ReassignmentPhase::Joint => Phase::Joint,
        wire::ReassignmentPhase::Leaving => Phase::Leaving,
        wire::ReassignmentPhase::Unspecified => return Err(CommandError::Field("phase")),
    })
}

fn lists_to_wire(lists: &[Vec<ReplicaId>]) -> Vec<wire::Replicas> {
    let lists = lists.iter().cloned();
    lists.map(|replicas| wire::Replicas { replicas }).collect()
}

fn lists_of_wire(lists: Vec<wire::Replicas>) -> Vec<Vec<ReplicaId>> {
    lists.into_iter().map(|list| list.replicas).collect()
}
