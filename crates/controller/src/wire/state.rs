//! The whole state, as a snapshot holds it.

use prost::Message;
use tidelog_proto::internal::v1 as wire;

use super::CommandError;
use super::cluster::{
    cluster_id, create_of_wire, create_to_wire, directory_id, phase_of_wire, phase_to_wire,
    registration_of_wire, registration_to_wire,
};
use crate::cluster::{Broker, Change, Cluster, LEVEL_MAX, Placement, Removed, TopicPlacement};
use crate::ids::{NodeId, node_of};
use crate::topics::Command;

/// The bytes of a state.
pub(crate) fn encode(cluster: &Cluster) -> Vec<u8> {
    let id = cluster.id.map_or(Vec::new(), |id| id.to_bytes().to_vec());
    let brokers = cluster.brokers.values().map(|broker| wire::BrokerState {
        registration: Some(registration_to_wire(&broker.registration, broker.epoch)),
        fenced: broker.is_fenced,
        draining: broker.is_draining,
        generation: broker.generation,
    });
    let topics = cluster.topics.iter().filter_map(|topic| {
        let placement = cluster.placements.get(&topic.id)?;
        Some(wire::TopicState {
            topic: Some(create_to_wire(topic, placement.replication_factor, &[])),
            partitions: placement.partitions.iter().map(partition_to_wire).collect(),
        })
    });
    wire::ClusterState {
        cluster_id: id.into(),
        level: cluster.level,
        last_epoch: cluster.last_epoch,
        next_producer_id: cluster.topics.next_producer_id().cast_unsigned(),
        brokers: brokers.collect(),
        topics: topics.collect(),
        removed: cluster.removed.iter().map(removed_to_wire).collect(),
    }
    .encode_to_vec()
}

/// The state in these bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Cluster, CommandError> {
    let state = wire::ClusterState::decode(bytes).map_err(|_| CommandError::Unknown)?;
    // What a higher level has beside what this version knows would be lost without a word.
    if !(1..=LEVEL_MAX).contains(&state.level) {
        return Err(CommandError::Field("feature level"));
    }
    let mut cluster = Cluster {
        id: Some(cluster_id(&state.cluster_id)?),
        level: state.level,
        last_epoch: state.last_epoch,
        ..Cluster::default()
    };
    let next = i64::try_from(state.next_producer_id);
    let next = next.map_err(|_| CommandError::Field("producer id"))?;
    cluster.topics.raise_next_producer_id(next);
    for broker in state.brokers {
        let registration = broker.registration.ok_or(CommandError::Field("broker"))?;
        let (registration, epoch) = registration_of_wire(registration)?;
        let broker = Broker {
            registration,
            epoch,
            is_fenced: broker.fenced,
            is_draining: broker.draining,
            generation: broker.generation,
        };
        cluster.brokers.insert(broker.registration.node, broker);
    }
    for removed in state.removed {
        let known = Removed {
            directory: directory_id(&removed.directory_id)?,
            generation: removed.generation,
        };
        cluster.removed.insert(removed.node_id, known);
    }
    for state in state.topics {
        let create = state.topic.ok_or(CommandError::Field("topic"))?;
        let (topic, replication_factor, _) = create_of_wire(create)?;
        if usize::try_from(topic.partitions).ok() != Some(state.partitions.len()) {
            return Err(CommandError::Field("number of partitions"));
        }
        let partitions = state.partitions.into_iter().map(partition_of_wire);
        let placement = TopicPlacement {
            replication_factor,
            partitions: partitions.collect::<Result<_, _>>()?,
        };
        cluster.placements.insert(topic.id, placement);
        let created = cluster.topics.apply(&Command::Create(topic));
        created.map_err(|_| CommandError::Field("topic"))?;
    }
    Ok(cluster)
}

fn removed_to_wire((node, removed): (&NodeId, &Removed)) -> wire::RemovedBroker {
    wire::RemovedBroker {
        node_id: *node,
        directory_id: removed.directory.to_bytes().to_vec().into(),
        generation: removed.generation,
    }
}

fn partition_to_wire(placement: &Placement) -> wire::PartitionState {
    let change = placement.change.as_ref();
    wire::PartitionState {
        replicas: placement.replicas.clone(),
        past: placement.past.clone(),
        members_index: placement.members_index,
        founders: placement.founders.clone(),
        recoveries: placement.recoveries,
        lacking: placement.lacking,
        change: change.map(|change| wire::ReassignmentState {
            target: change.target.clone(),
            phase: phase_to_wire(change.phase).into(),
            cancelling: change.is_cancelling,
            automatic: change.is_automatic,
        }),
    }
}

fn partition_of_wire(state: wire::PartitionState) -> Result<Placement, CommandError> {
    let change = match state.change {
        None => None,
        Some(change) => Some(Change {
            phase: phase_of_wire(change.phase())?,
            target: change.target,
            is_cancelling: change.cancelling,
            is_automatic: change.automatic,
        }),
    };
    let placement = Placement {
        replicas: state.replicas,
        change,
        members_index: state.members_index,
        founders: state.founders,
        recoveries: state.recoveries,
        lacking: state.lacking,
        past: state.past,
    };
    let has_nodes = placement.all().all(|replica| node_of(replica) != 0);
    if !placement.is_sound() || !has_nodes {
        return Err(CommandError::Field("placement"));
    }
    Ok(placement)
}
