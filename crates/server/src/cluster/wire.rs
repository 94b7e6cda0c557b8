//! What is asked and answered, as the wire has it, and back. Nothing that comes is believed unchecked.

use bytes::Bytes;
use tidelog_proto::internal::v1::{
    PeerBroker, PeerFounder, PeerHere, PeerJoined, PeerQuestion, PeerWho, RegisterBroker,
    peer_question,
};

use super::decide::{Here, Own};
use super::{Founder, KnownBroker};

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
    }
}

/// `None` where it makes no sense.
pub(crate) fn here(here: PeerHere) -> Option<Here> {
    let cluster_id = match here.cluster_id.is_empty() {
        true => None,
        false => Some(id_of(&here.cluster_id)?),
    };
    let address = Some(here.leader_address).filter(|address| !address.is_empty());
    if here.wanted.len() > BROKERS_MAX || here.node_id == 0 {
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
    })
}

/// What [`PeerJoined`] says.
pub(crate) fn joined(joined: PeerJoined) -> Option<(Vec<Founder>, u32, Vec<KnownBroker>)> {
    let founders = founders(joined.founders)?;
    let brokers = brokers(joined.brokers)?;
    (!founders.is_empty()).then_some((founders, joined.generation, brokers))
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
