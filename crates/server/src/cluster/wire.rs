//! What is asked and answered, as the wire has it, and back. Nothing that comes is believed unchecked.

use bytes::Bytes;
use tidelog_broker::Position;
use tidelog_log::state::GroupKey;
use tidelog_proto::internal::v1::{
    PeerAskPositions, PeerBroker, PeerFounder, PeerHere, PeerJoined, PeerPosition, PeerPositions,
    PeerQuestion, PeerWho, RegisterBroker, peer_question,
};

use tidelog_record::{Offset, PartitionId, TopicId};

use super::decide::{Here, InCluster, Own};
use super::{Founder, KnownBroker, Positions};

/// So many brokers a cluster has at most, as far as anybody is believed.
const BROKERS_MAX: usize = 1_000;
/// The longest host:port.
const ADDRESS_LEN_MAX: usize = 300;
/// The longest of other texts.
const TEXT_LEN_MAX: usize = 255;

pub(crate) fn id_of(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}

fn bytes_of(id: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(id)
}

pub(crate) fn who(own: &Own) -> PeerQuestion {
    let who = PeerWho {
        node_id: own.node_id,
        directory_id: bytes_of(&own.directory_id),
    };
    PeerQuestion {
        question: Some(peer_question::Question::Who(who)),
    }
}

pub(crate) fn here_to_wire(here: &Here) -> PeerHere {
    PeerHere {
        node_id: here.node_id,
        directory_id: bytes_of(&here.directory_id),
        cluster_id: here.cluster_id.as_ref().map(bytes_of).unwrap_or_default(),
        brokers: brokers_to_wire(&here.brokers),
        founders: founders_to_wire(&here.founders),
        leader_address: here.leader_address.clone().unwrap_or_default(),
        wanted: here.wanted.iter().copied().collect(),
        removed: here.removed.iter().copied().collect(),
        metadata_incarnation: here.metadata_incarnation,
    }
}

/// `None` where it makes no sense.
pub(crate) fn here(here: PeerHere) -> Option<Here> {
    let cluster_id = match here.cluster_id.is_empty() {
        true => None,
        false => Some(id_of(&here.cluster_id)?),
    };
    let address = Some(here.leader_address).filter(|address| !address.is_empty());
    let most = here.wanted.len().max(here.removed.len());
    if most > BROKERS_MAX || here.node_id == 0 {
        return None;
    }
    Some(Here {
        node_id: here.node_id,
        directory_id: id_of(&here.directory_id)?,
        cluster_id,
        brokers: brokers(here.brokers)?,
        founders: founders(here.founders)?,
        leader_address: match address {
            Some(address) => Some(address_of(address)?),
            None => None,
        },
        wanted: here.wanted.into_iter().collect(),
        removed: here.removed.into_iter().collect(),
        metadata_incarnation: here.metadata_incarnation,
    })
}

/// What [`PeerJoined`] says.
pub(crate) fn joined(joined: PeerJoined) -> Option<InCluster> {
    let known = InCluster {
        founders: founders(joined.founders)?,
        generation: joined.generation,
        metadata_incarnation: joined.metadata_incarnation.max(1),
        brokers: brokers(joined.brokers)?,
    };
    (!known.founders.is_empty()).then_some(known)
}

pub(crate) fn address_of(address: String) -> Option<String> {
    (address.len() <= ADDRESS_LEN_MAX).then_some(address)
}

/// Whether what a broker says of itself can be handed on to those who decide.
pub(crate) fn is_sound(registration: &RegisterBroker) -> bool {
    let addresses = [
        &registration.grpc_address,
        &registration.http_address,
        &registration.cluster_address,
    ];
    let texts = [&registration.rack, &registration.version];
    registration.node_id > 0
        && registration.directory_id.len() == 16
        && !registration.cluster_address.is_empty()
        && addresses.iter().all(|text| text.len() <= ADDRESS_LEN_MAX)
        && texts.iter().all(|text| text.len() <= TEXT_LEN_MAX)
}

pub(crate) fn brokers_to_wire(brokers: &[KnownBroker]) -> Vec<PeerBroker> {
    let brokers = brokers.iter().map(|broker| PeerBroker {
        node_id: broker.node_id,
        directory_id: bytes_of(&broker.directory_id),
        cluster_address: broker.cluster_address.clone(),
        grpc_address: broker.grpc_address.clone(),
        generation: broker.generation,
    });
    brokers.collect()
}

fn brokers(brokers: Vec<PeerBroker>) -> Option<Vec<KnownBroker>> {
    if brokers.len() > BROKERS_MAX {
        return None;
    }
    let brokers = brokers.into_iter().map(|broker| {
        Some(KnownBroker {
            node_id: Some(broker.node_id).filter(|id| *id > 0)?,
            directory_id: id_of(&broker.directory_id)?,
            cluster_address: address_of(broker.cluster_address)?,
            grpc_address: address_of(broker.grpc_address)?,
            generation: broker.generation,
        })
    });
    brokers.collect()
}

pub(crate) fn founders_to_wire(founders: &[Founder]) -> Vec<PeerFounder> {
    let founders = founders.iter().map(|founder| PeerFounder {
        node_id: founder.node_id,
        directory_id: bytes_of(&founder.directory_id),
    });
    founders.collect()
}

/// So many positions are in one answer, which stays far below the longest.
const POSITIONS_MAX: usize = 1_000;
/// The most members a group has in one half.
const VOTERS_MAX: usize = 64;

/// Behind which partition to go on; `None` where what was asked makes no sense.
pub(crate) fn after(asked: &PeerAskPositions) -> Option<Option<GroupKey>> {
    if asked.after_topic_id.is_empty() {
        return Some(None);
    }
    let topic = id_of(&asked.after_topic_id)?;
    Some(Some(GroupKey {
        topic_id: TopicId::from_bytes(topic),
        partition: PartitionId::new(asked.after_partition),
    }))
}

/// What is told of one's replicas behind `after`.
pub(crate) fn positions_to_wire(
    here: &Here,
    positions: &Positions,
    after: Option<GroupKey>,
) -> PeerPositions {
    let replicas = &positions.replicas;
    let mut behind = replicas
        .iter()
        .filter(|one| after.is_none_or(|after| one.key > after));
    let these = behind.by_ref().take(POSITIONS_MAX);
    let these = these.map(|one| {
        let [voters_outgoing, voters] = one.voters.clone();
        PeerPosition {
            topic_id: bytes_of(&one.key.topic_id.to_bytes()),
            partition: one.key.partition.get(),
            incarnation: one.incarnation,
            replica: one.replica,
            term: one.term,
            last_term: one.last_term,
            last_index: one.last_index,
            end: one.end.get(),
            committed: one.committed.get(),
            leads: one.leads,
            able: one.is_able,
            voters,
            voters_outgoing,
        }
    });
    PeerPositions {
        node_id: here.node_id,
        directory_id: bytes_of(&here.directory_id),
        positions: these.collect(),
        more: behind.next().is_some(),
        heard: positions.heard.iter().copied().collect(),
    }
}

/// What a broker says of its replicas; `None` where it makes no sense.
pub(crate) fn positions(positions: Vec<PeerPosition>) -> Option<Vec<Position>> {
    let positions = positions.into_iter().map(|one| {
        if one.voters.len().max(one.voters_outgoing.len()) > VOTERS_MAX {
            return None;
        }
        Some(Position {
            key: GroupKey {
                topic_id: TopicId::from_bytes(id_of(&one.topic_id)?),
                partition: PartitionId::new(one.partition),
            },
            incarnation: one.incarnation,
            replica: one.replica,
            term: one.term,
            last_term: one.last_term,
            last_index: one.last_index,
            end: Offset::new(one.end)?,
            committed: Offset::new(one.committed)?,
            leads: one.leads,
            is_able: one.able,
            voters: [one.voters_outgoing, one.voters],
        })
    });
    positions.collect()
}

fn founders(founders: Vec<PeerFounder>) -> Option<Vec<Founder>> {
    if founders.len() > BROKERS_MAX {
        return None;
    }
    let founders = founders.into_iter().map(|founder| {
        Some(Founder {
            node_id: Some(founder.node_id).filter(|id| *id > 0)?,
            directory_id: id_of(&founder.directory_id)?,
        })
    });
    founders.collect()
}
