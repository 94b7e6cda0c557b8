//! What a broker has of topics: made, changed and removed until it is what was decided.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tidelog_controller::{Fate, Here, LocalBroker, ReplicaId, Topic, Wanted};
use tidelog_log::state::GroupKey;
use tidelog_record::{PartitionId, TopicId};
use tidelog_replica::{Recovery, StateStore};
use tokio::sync::oneshot;

use crate::append::StickyBytes;
use crate::error::TopicError;
use crate::files::{FIRST_INCARNATION, log_options};
use crate::groups::OFFSETS_TOPIC;
use crate::mailbox::Command;
use crate::metadata::Folded;
use crate::partition::Partition;
use crate::{Broker, Route, Slot};

/// For how long it is waited until groups that are told to have gone on.
const KEEP_UP_WAIT_MAX: Duration = Duration::from_secs(5);

impl Broker {
    /// This broker, as far as it matters for what it is to have.
    fn local(&self) -> LocalBroker {
        let node = self.inner().identity.node_id;
        LocalBroker::new(node, self.inner().config.generation)
    }

    /// Makes what is here of a topic what was decided. `before` is the topic as it was, if it was.
    pub(crate) async fn reconcile(
        &self,
        folded: &mut Folded,
        id: TopicId,
        before: Option<Arc<Topic>>,
    ) {
        let topic = self.inner().cluster.read().topics().by_id(id).cloned();
        let Some(topic) = topic else {
            if let Some(before) = before {
                self.remove_topic(&before).await;
            }
            return;
        };
        let route = self.inner().routes.read().get(topic.name.as_str()).cloned();
        let route = route.filter(|route| route.topic.id == id);
        let mut slots = route
            .as_ref()
            .map_or(Vec::new(), |route| route.slots.clone());
        let local = self.local();
        let (wanted, may_make) = {
            let cluster = self.inner().cluster.read();
            let wanted = local.wanted(&cluster, id, 0..topic.partitions);
            (wanted, local.may_make(&cluster))
        };
        let mut missing = Vec::new();
        let mut told = Vec::new();
        for number in 0..topic.partitions {
            let want = wanted.iter().find(|want| want.number == number);
            let slot = slots.get(number as usize);
            let here = match slot {
                Some(Slot::Serving(partition)) => Here::Serving(partition.replica),
                Some(Slot::Faulted(_)) => {
                    let partition = PartitionId::new(number);
                    Here::Faulted(self.known_replica(GroupKey {
                        topic_id: id,
                        partition,
                    }))
                }
                Some(Slot::Elsewhere | Slot::Unmade(_)) | None => Here::Nothing,
            };
            let is_there = match (local.fate(here, want), slot) {
                (Fate::Stays, Some(Slot::Serving(partition))) => {
                    if let Some(want) = want {
                        told.extend(self.keep_up(partition, want).await);
                    }
                    true
                }
                (Fate::Stays, _) => true,
                (Fate::Removed, Some(Slot::Serving(partition))) => {
                    let gone = [Slot::Serving(partition.clone())];
                    self.remove_partitions(&topic, number..number + 1, &gone)
                        .await;
                    false
                }
                (Fate::Removed, _) => {
                    self.remove_files(&topic, number..number + 1).await;
                    false
                }
                (Fate::Absent, _) => false,
            };
            if is_there {
                continue;
            }
            let at = number as usize;
            slots.resize(slots.len().max(at + 1), Slot::Elsewhere);
            slots[at] = Slot::Elsewhere;
            missing.extend(want.filter(|_| may_make).cloned());
        }
        if !Self::kept_up(told).await {
            // It is tried again.
            folded.unmade.push(id);
        }
        if !missing.is_empty() {
            self.make(folded, &topic, &missing, &mut slots).await;
        }
        self.change_settings(&topic, &slots).await;
        self.put_route(&topic, slots);
    }

    /// Has a replica go on that has missed that its group was recovered. Where one was told, it says how that
    /// went.
    async fn keep_up(
        &self,
        partition: &Partition,
        want: &Wanted,
    ) -> Option<oneshot::Receiver<Result<(), String>>> {
        if want.incarnation == FIRST_INCARNATION {
            return None;
        }
        let how = if want.is_alone {
            Recovery::Alone
        } else {
            Recovery::Follows
        };
        // One that does already says so.
        let (reply, replied) = oneshot::channel();
        let recover = Command::Recover {
            key: partition.key,
            incarnation: want.incarnation,
            how,
            reply,
        };
        // Without its thread the partition is faulted, and goes on at the next start.
        partition.shard.send(recover).await.ok()?;
        Some(replied)
    }

    /// Waits for a moment until all that were told to have gone on; says whether they have.
    async fn kept_up(told: Vec<oneshot::Receiver<Result<(), String>>>) -> bool {
        let all = tokio::time::timeout(KEEP_UP_WAIT_MAX, join_all(told)).await;
        all.is_ok_and(|all| all.iter().all(|one| matches!(one, Ok(Ok(())))))
    }

    /// The number of the replica that is here of a partition, as far as the state file knows.
    pub(crate) fn known_replica(&self, key: GroupKey) -> Option<ReplicaId> {
        let known = StateStore::new(self.inner().state.clone(), key).load();
        known.map(|(known, _)| known.replica_id)
    }

    async fn remove_topic(&self, topic: &Topic) {
        let route = {
            let mut routes = self.inner().routes.write();
            let is_it = routes
                .get(topic.name.as_str())
                .is_some_and(|route| route.topic.id == topic.id);
            is_it.then(|| routes.remove(topic.name.as_str())).flatten()
        };
        if let Some(route) = route {
            let numbers = 0..topic.partitions;
            self.remove_partitions(topic, numbers, &route.slots).await;
        }
    }

    /// Makes replicas, unless they were made before, and puts them into their slots.
    async fn make(
        &self,
        folded: &mut Folded,
        topic: &Arc<Topic>,
        missing: &[Wanted],
        slots: &mut [Slot],
    ) {
        let made = match folded.made.take() {
            Some((id, made)) if id == topic.id && made.len() == missing.len() => Ok(made),
            _ => match self.clear_the_way(topic, missing.to_vec()).await {
                Ok(()) => self.make_partitions(topic, missing.to_vec()).await,
                Err(e) => Err(e),
            },
        };
        match made {
            Ok(made) => {
                let serving = self.serve(made).await;
                for (want, slot) in missing.iter().zip(serving) {
                    slots[want.number as usize] = slot;
                }
            }
            Err(e) => {
                // It is tried again; until then they say why they do not serve.
                tracing::error!(topic = %topic.name, error = %e, "partitions cannot be made");
                let fault = e.to_string();
                for want in missing {
                    slots[want.number as usize] = Slot::Unmade(fault.clone());
                }
                folded.failed = Some((topic.id, e));
                folded.unmade.push(topic.id);
            }
        }
    }

    async fn change_settings(&self, topic: &Arc<Topic>, slots: &[Slot]) {
        let settings = Arc::new(topic.settings.clone());
        for slot in slots {
            if let Slot::Serving(partition) = slot
                && partition.settings() != settings
            {
                *partition.settings.write() = settings.clone();
                let change = Command::SetOptions {
                    key: partition.key,
                    options: log_options(&settings),
                };
                // Without its thread the partition is faulted, and gets them at the next start.
                drop(partition.shard.send(change).await);
            }
        }
    }

    /// Puts a topic where requests find it.
    fn put_route(&self, topic: &Arc<Topic>, slots: Vec<Slot>) {
        let mut routes = self.inner().routes.write();
        let before = routes.get(topic.name.as_str());
        let before = before.filter(|route| route.topic.id == topic.id);
        let sticky_bytes =
            before.map_or_else(StickyBytes::default, |route| route.sticky_bytes.clone());
        let route = Arc::new(Route {
            topic: topic.clone(),
            slots,
            sticky_bytes,
        });
        routes.insert(topic.name.to_string(), route);
        drop(routes);
        if topic.name.as_str() == OFFSETS_TOPIC {
            self.inner().groups.look();
        }
    }

    /// Whether all that was decided could be made here.
    pub(crate) fn made_error(folded: &mut Folded, id: TopicId) -> Option<TopicError> {
        let failed = folded.failed.take_if(|(failed, _)| *failed == id);
        failed.map(|(_, e)| e)
    }
}
