//! What becomes of the metadata outside of the broker: links to all brokers that there are, and the way in
//! for others.

use std::collections::BTreeSet;
use std::pin::Pin;

use tidelog_broker::{Broker, ClusterId, ErrorKind, Facts, Recovery};
use tidelog_controller::Registration;
use tidelog_proto::internal::v1::RegisterBroker;
use tokio::task::JoinHandle;

use super::known::{Host, JoinAnswer, Positions};
use super::{KnownBroker, Links};

/// Keeps the links as the metadata say, until the broker stops. `first` are those that are known before
/// the metadata say more.
pub(super) fn follow(broker: Broker, links: Links, first: Vec<KnownBroker>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut changes = broker.metadata_changes();
        let mut linked: Vec<KnownBroker> = Vec::new();
        let before = broker.known_brokers();
        loop {
            changes.mark_unchanged();
            let known = brokers(&broker, &first, &before);
            if known != linked {
                links.update(&known);
                linked = known;
            }
            tokio::select! {
                // The sender lives in the broker.
                _changed = changes.changed() => {}
                () = broker.stopping() => return,
            }
        }
    })
}

/// All that are registered, and those that are to be. `before` are those that were registered at the start:
/// one that has not registered since may have moved, and is then where `first` says.
fn brokers(broker: &Broker, first: &[KnownBroker], before: &[KnownBroker]) -> Vec<KnownBroker> {
    let mut known = broker.known_brokers();
    for one in &mut known {
        let is_it = |other: &&KnownBroker| other.node_id == one.node_id;
        let (first, before) = (first.iter().find(is_it), before.iter().find(is_it));
        if let (Some(first), Some(before)) = (first, before)
            && before.cluster_address == one.cluster_address
        {
            one.cluster_address.clone_from(&first.cluster_address);
        }
    }
    for one in first {
        let node = one.node_id;
        let is_known = known.iter().any(|known| known.node_id == node);
        if !is_known && !broker.was_removed(node) {
            known.push(one.clone());
        }
    }
    known.sort_by_key(|broker| broker.node_id);
    known
}

/// Lets brokers in, where the metadata are decided.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) broker: WeakBroker,
}

/// A broker that is not kept open by this.
pub(super) type WeakBroker = std::sync::Arc<parking_lot::Mutex<Option<Broker>>>;

impl Door {
    fn broker(&self) -> Option<Broker> {
        self.broker.lock().clone()
    }
}

impl Host for Door {
    fn leader_address(&self) -> Option<String> {
        let leader = self.broker()?.metadata_leader()?;
        Some(leader.cluster_address).filter(|address| !address.is_empty())
    }

    fn join(
        &self,
        registration: RegisterBroker,
    ) -> Pin<Box<dyn Future<Output = JoinAnswer> + Send + '_>> {
        Box::pin(async move {
            let Some(broker) = self.broker() else {
                return JoinAnswer::Refused("the broker is stopping".to_owned());
            };
            let registration = match Registration::from_wire(registration) {
                Ok(registration) => registration,
                Err(e) => return JoinAnswer::Refused(e.to_string()),
            };
            let cluster = ClusterId::from_bytes(broker.cluster_id());
            match broker.join(cluster, registration).await {
                Ok(generation) => JoinAnswer::Joined {
                    generation,
                    brokers: broker.known_brokers(),
                    metadata_incarnation: broker.metadata_incarnation(),
                },
                // Another one decides, or nobody does at the moment: it is asked again.
                Err(e) if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Unknown) => {
                    JoinAnswer::NotLeader {
                        leader_address: self.leader_address(),
                    }
                }
                Err(e) => JoinAnswer::Refused(e.to_string()),
            }
        })
    }

    fn removed(&self) -> BTreeSet<u32> {
        let broker = self.broker();
        broker.map_or(BTreeSet::new(), |broker| {
            broker.removed_brokers().into_iter().collect()
        })
    }

    fn removed_directory(&self, node: u32) -> Option<[u8; 16]> {
        self.broker()?.removed_directory(node)
    }

    fn may_lack_metadata(&self) -> bool {
        let broker = self.broker();
        broker.is_some_and(|broker| broker.may_lack_metadata())
    }

    fn metadata_incarnation(&self) -> u32 {
        self.broker()
            .map_or(1, |broker| broker.metadata_incarnation())
    }

    fn positions(&self) -> Pin<Box<dyn Future<Output = Result<Positions, String>> + Send + '_>> {
        Box::pin(async move {
            let broker = self.broker().ok_or("the broker is stopping")?;
            Ok(Positions {
                replicas: broker.positions().await?,
                heard: broker.heard(),
            })
        })
    }

    fn recover(
        &self,
        incarnation: u32,
        how: Recovery,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let broker = self.broker().ok_or("the broker is stopping")?;
            broker.recover_metadata(incarnation, how).await
        })
    }
}
