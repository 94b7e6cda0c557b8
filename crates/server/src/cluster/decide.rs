//! What a fresh broker does, by what others answer. Knows neither network nor disk.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::{Founder, KnownBroker, hex, with_another_directory};

#[cfg(test)]
mod tests;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) node_id: u32,
    pub(crate) directory_id: [u8; 16],
}

/// What a broker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) node_id: u32,
    pub(crate) directory_id: [u8; 16],
    /// `None`: it is fresh.
    pub(crate) cluster_id: Option<[u8; 16]>,
    pub(crate) brokers: Vec<KnownBroker>,
    pub(crate) founders: Vec<Founder>,
    /// The cluster port of whoever decides, if it is known.
    pub(crate) leader_address: Option<String>,
    /// With whom it wants to found a cluster.
    pub(crate) wanted: BTreeSet<u32>,
    /// Brokers that were removed, and have not come again.
    pub(crate) removed: BTreeSet<u32>,
    /// That of the metadata group; 0 is 1.
    pub(crate) metadata_incarnation: u32,
}

/// A broker that was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Who it should be, where that is known.
    pub(crate) node_id: Option<u32>,
    pub(crate) address: String,
    /// What it says, or why nothing is known.
    pub(crate) answer: Result<Here, String>,
}

/// What a broker is told of the cluster that it goes into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InCluster {
    pub(crate) founders: Vec<Founder>,
    /// How many data directories it has lost.
    pub(crate) generation: u32,
    pub(crate) metadata_incarnation: u32,
    pub(crate) brokers: Vec<KnownBroker>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Ask again: for these nothing can be decided yet.
    Wait(Vec<String>),
    /// Found a cluster.
    Found {
        cluster_id: [u8; 16],
        founders: Vec<Founder>,
    },
    /// Go into the cluster to which the broker belongs.
    Return {
        cluster_id: [u8; 16],
        known: InCluster,
    },
    /// Ask whoever decides, at this address, to be let in.
    Join {
        cluster_id: [u8; 16],
        address: String,
    },
    /// Nothing: somebody has to see to this.
    Refuse(String),
}

/// The id of the cluster of these founders, in any order: all come to the same.
pub(crate) fn cluster_id_of(founders: &[Founder]) -> [u8; 16] {
    let mut sorted = founders.to_vec();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(b"tidelog cluster 1\0");
    for founder in sorted {
        hash.update(founder.node_id.to_be_bytes());
        hash.update(founder.directory_id);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

/// What is to be done by a broker with an empty disk that is to found a cluster with all that were asked.
pub(crate) fn decide(own: &Own, asked: &[Asked]) -> Decision {
    let wanted = asked.iter().filter_map(|one| one.node_id);
    let wanted: BTreeSet<u32> = wanted.chain([own.node_id]).collect();
    let answered: Vec<_> = asked
        .iter()
        .filter_map(|one| Some((one, one.answer.as_ref().ok()?)))
        .collect();
    for (one, here) in &answered {
        if let Some(refusal) = not_meant(own, one, here) {
            return Decision::Refuse(refusal);
        }
    }
    if let Some(decision) = by_clusters(own, &answered, Some(&wanted)) {
        return decision;
    }
    for (one, here) in &answered {
        if here.cluster_id.is_none() && here.wanted != wanted {
            return Decision::Refuse(format!(
                "broker {} at {} was started with other peers ({}) than this one ({}): the list must \
                 be the same at each",
                here.node_id,
                one.address,
                listed(&here.wanted),
                listed(&wanted)
            ));
        }
    }
    let missing: Vec<_> = asked.iter().filter_map(missing).collect();
    if !missing.is_empty() {
        return Decision::Wait(missing);
    }
    let others = answered.iter().map(|(_, here)| Founder {
        node_id: here.node_id,
        directory_id: here.directory_id,
    });
    let mut founders: Vec<_> = others.chain([own_founder(own)]).collect();
    founders.sort_unstable();
    Decision::Found {
        cluster_id: cluster_id_of(&founders),
        founders,
    }
}

/// What is to be done by a broker with an empty disk that is to join the cluster of the one that was asked.
pub(crate) fn decide_join(own: &Own, asked: &Asked) -> Decision {
    let here = match &asked.answer {
        Ok(here) => here,
        Err(_) => return Decision::Wait(missing(asked).into_iter().collect()),
    };
    if here.node_id == own.node_id && here.directory_id == own.directory_id {
        let what = format!("join names this broker itself: {}", asked.address);
        return Decision::Refuse(what);
    }
    if let Some(refusal) = not_meant(own, asked, here) {
        return Decision::Refuse(refusal);
    }
    let Some(cluster_id) = here.cluster_id else {
        let what = format!("{} (it belongs to no cluster yet)", asked.address);
        return Decision::Wait(vec![what]);
    };
    match belongs(own, here) {
        Belongs::Here { .. } | Belongs::ElseWhere(_) => {
            by_clusters(own, &[(asked, here)], None).expect("it has a cluster")
        }
        Belongs::Unknown => Decision::Join {
            cluster_id,
            address: here
                .leader_address
                .clone()
                .unwrap_or_else(|| asked.address.clone()),
        },
    }
}

fn own_founder(own: &Own) -> Founder {
    Founder {
        node_id: own.node_id,
        directory_id: own.directory_id,
    }
}

fn missing(asked: &Asked) -> Option<String> {
    let why = asked.answer.as_ref().err()?;
    let who = asked
        .node_id
        .map_or_else(String::new, |id| format!("{id}@"));
    Some(format!("{who}{} ({why})", asked.address))
}

fn listed(ids: &BTreeSet<u32>) -> String {
    if ids.is_empty() {
        return "none".to_owned();
    }
    let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
    ids.join(", ")
}

/// Why whoever answers is not whom the list means.
fn not_meant(own: &Own, asked: &Asked, here: &Here) -> Option<String> {
    let address = &asked.address;
    if asked.node_id.is_some_and(|meant| meant != here.node_id) {
        let meant = asked.node_id.unwrap_or_default();
        return Some(format!(
            "broker {} answers at {address}, where peers has broker {meant}",
            here.node_id
        ));
    }
    (here.directory_id == own.directory_id).then(|| {
        format!(
            "broker {} at {address} has the same data directory as this one ({}): it was copied",
            here.node_id,
            hex(&own.directory_id)
        )
    })
}

/// Whether a broker belongs to the cluster of whoever answers.
enum Belongs {
    /// With this data directory.
    Here {
        is_founding: bool,
        generation: u32,
    },
    /// With another one.
    ElseWhere([u8; 16]),
    Unknown,
}

/// What was registered counts more than what was founded: a data directory may have been replaced since.
fn belongs(own: &Own, here: &Here) -> Belongs {
    let registered = here.brokers.iter().find(|one| one.node_id == own.node_id);
    let founder = here.founders.iter().find(|one| one.node_id == own.node_id);
    let founder = founder.filter(|one| !here.removed.contains(&one.node_id));
    let known = registered
        .map(|one| (one.directory_id, one.generation))
        .or_else(|| founder.map(|one| (one.directory_id, 0)));
    match known {
        None => Belongs::Unknown,
        Some((directory_id, generation)) if directory_id == own.directory_id => Belongs::Here {
            is_founding: founder.is_some_and(|one| one.directory_id == directory_id),
            generation,
        },
        Some((directory_id, _)) => Belongs::ElseWhere(directory_id),
    }
}

/// What is to be done as some know a cluster; `None` where nobody does.
fn by_clusters(
    own: &Own,
    answered: &[(&Asked, &Here)],
    wanted: Option<&BTreeSet<u32>>,
) -> Option<Decision> {
    let mut first: Option<([u8; 16], &Asked)> = None;
    let mut best: Option<(u32, Decision)> = None;
    let mut refusal = None;
    for (asked, here) in answered {
        let Some(cluster_id) = here.cluster_id else {
            continue;
        };
        let (known, at) = *first.get_or_insert((cluster_id, asked));
        if known != cluster_id {
            return Some(Decision::Refuse(format!(
                "{} belongs to cluster {}, and {} to cluster {}",
                at.address,
                hex(&known),
                asked.address,
                hex(&cluster_id)
            )));
        }
        match going_into(own, asked, here, cluster_id, wanted) {
            Ok((generation, decision)) => {
                if best.as_ref().is_none_or(|(than, _)| generation > *than) {
                    best = Some((generation, decision));
                }
            }
            // Another one may have heard of a replaced directory already.
            Err(why) => {
                refusal.get_or_insert(Decision::Refuse(why));
            }
        }
    }
    best.map(|(_, decision)| decision).or(refusal)
}

fn going_into(
    own: &Own,
    asked: &Asked,
    here: &Here,
    cluster_id: [u8; 16],
    wanted: Option<&BTreeSet<u32>>,
) -> Result<(u32, Decision), String> {
    let (node_id, address) = (own.node_id, &asked.address);
    let cluster = hex(&cluster_id);
    match belongs(own, here) {
        Belongs::Unknown => Err(format!(
            "{address} belongs to cluster {cluster}, which does not know broker {node_id}: to join it, \
             start with --join {address} instead of --peers"
        )),
        Belongs::ElseWhere(known) => Err(format!(
            "cluster {cluster} knows broker {node_id} with the data directory {}, and this one is {}: {}",
            hex(&known),
            hex(&own.directory_id),
            with_another_directory(node_id, &own.directory_id)
        )),
        Belongs::Here {
            is_founding,
            generation,
        } => {
            let founders: BTreeSet<u32> = here.founders.iter().map(|one| one.node_id).collect();
            // A broker that comes with another directory may have another list than that of the founding.
            if let Some(wanted) = wanted.filter(|wanted| is_founding && **wanted != founders) {
                return Err(format!(
                    "{address} founds cluster {cluster} with brokers {}, and peers has {} here: the \
                     list must be the same at each",
                    listed(&founders),
                    listed(wanted)
                ));
            }
            let decision = Decision::Return {
                cluster_id,
                known: InCluster {
                    founders: here.founders.clone(),
                    generation,
                    metadata_incarnation: here.metadata_incarnation.max(1),
                    brokers: here.brokers.clone(),
                },
            };
            Ok((generation, decision))
        }
    }
}
