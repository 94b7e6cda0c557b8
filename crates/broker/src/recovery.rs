//! Going on where brokers are lost for good, and with them a majority of the metadata or of partitions. People
//! decide on that, never the broker.
//!
//! First the metadata, if they have lost their majority: of the replicas that are left the one goes on that
//! has most ([`recover_metadata`]), and the others follow it. Then whoever decides gives the lost brokers up,
//! so that none of them is heard again with the directory that it had, and has the partitions go on that
//! have lost their majority; the brokers carry that out as everything that is decided
//! ([`Broker::reconcile`]). How one group goes on is in `tidelog_replica`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use tidelog_controller::{
    ClusterCommand, Left, NodeId, PartitionKey, RecoveredPartition, Recovery as Plan,
};
use tidelog_replica::{Position, Recovery, ReplicaId};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::Broker;
use crate::act::{group_key, partition_key};
use crate::controller::METADATA_KEY;
use crate::error::TopicError;
use crate::mailbox::Command;
use crate::topics::detached;

/// How long the shards may take to tell where they are: less than another broker waits for that.
const POSITIONS_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long the metadata group may take to go on.
const RECOVERY_WAIT_MAX: Duration = Duration::from_secs(10);
/// So many partitions are recovered with one command.
const PARTITIONS_AT_ONCE: usize = 1_000;

impl Broker {
    /// How far all replicas are that run here, the one of the metadata among them, in order.
    ///
    /// # Errors
    /// When a shard does not answer: then nothing is known of what it has.
    pub async fn positions(&self) -> Result<Vec<Position>, String> {
        let asked = self.inner().shards.iter().map(|shard| async move {
            let (reply, replied) = oneshot::channel();
            shard.send(Command::Positions { reply }).await.ok()?;
            replied.await.ok()
        });
        let told = timeout(POSITIONS_WAIT_MAX, join_all(asked)).await;
        let told: Option<Vec<Vec<Position>>> =
            told.ok().and_then(|told| told.into_iter().collect());
        let hangs = "its disk hangs: it cannot tell what it has";
        let mut all: Vec<Position> = told.ok_or(hangs)?.into_iter().flatten().collect();
        all.sort_by_key(|position| position.key);
        Ok(all)
    }

    /// The brokers of which something was heard just now, this one among them.
    pub fn heard(&self) -> BTreeSet<NodeId> {
        let known = self
            .known_brokers()
            .into_iter()
            .map(|broker| broker.node_id);
        known.filter(|node| self.inner().is_heard(*node)).collect()
    }

    /// Has the metadata go on, in this incarnation, without those of its replicas that are lost.
    ///
    /// # Errors
    /// Why they do not.
    pub async fn recover_metadata(&self, incarnation: u32, how: Recovery) -> Result<(), String> {
        let (reply, replied) = oneshot::channel();
        let recover = Command::Recover {
            key: group_key(METADATA_KEY),
            incarnation,
            how,
            reply,
        };
        let asked = async {
            let sent = self.inner().metadata.shard.send(recover).await;
            sent.map_err(|_| "the broker is stopping".to_owned())?;
            let stops = |_| "the broker is stopping".to_owned();
            replied.await.map_err(stops)?
        };
        let recovered = timeout(RECOVERY_WAIT_MAX, asked).await;
        recovered.unwrap_or_else(|_| Err("the disk did not answer in time".to_owned()))
    }

    /// What there is to do for partitions that have lost their majority with these brokers, as far as is
    /// known here. `left` is what all other brokers say of their replicas.
    pub fn plan_recovery(&self, lost: &BTreeSet<NodeId>, left: &[Position]) -> Plan {
        let cluster = self.inner().cluster.read();
        cluster.plan_recovery(lost, &by_partition(left))
    }

    /// Gives these brokers up and has all partitions go on that have lost their majority with them, where this
    /// broker decides.
    ///
    /// # Errors
    /// Another broker decides, or what is decided cannot be written.
    pub async fn recover(
        &self,
        lost: BTreeSet<NodeId>,
        left: Vec<Position>,
    ) -> Result<Plan, TopicError> {
        let broker = self.clone();
        detached(async move {
            let mut folded = broker.begin_change().await?;
            for node in &lost {
                let decided = {
                    let cluster = broker.inner().cluster.read();
                    let is_known = cluster.broker(*node).is_some();
                    is_known.then(|| cluster.decide_give_up(*node))
                };
                if let Some(command) = decided.transpose().map_err(TopicError::Broker)? {
                    broker.commit(&mut folded, &command).await?;
                }
            }
            let plan = broker.plan_recovery(&lost, &left);
            for some in plan.partitions.chunks(PARTITIONS_AT_ONCE) {
                let command = ClusterCommand::RecoverPartitions {
                    partitions: some.to_vec(),
                };
                broker.commit(&mut folded, &command).await?;
            }
            broker.inner().asked.wake();
            Ok(plan)
        })
        .await
    }

    /// The topic of a partition, by name.
    pub fn topic_of(&self, key: PartitionKey) -> Option<String> {
        let cluster = self.inner().cluster.read();
        let topic = cluster.topics().by_id(key.topic)?;
        Some(topic.name.to_string())
    }

    /// The brokers that have a partition, as it is placed now.
    pub fn placed_at(&self, key: PartitionKey) -> Vec<NodeId> {
        let cluster = self.inner().cluster.read();
        let placement = cluster.placement(key.topic, key.partition);
        placement.map_or(Vec::new(), |placement| {
            let all = placement.all().map(tidelog_controller::node_of);
            all.collect()
        })
    }
}

/// How the metadata go on when only these are left of their replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataRecovery {
    /// As before: one leads, or can be elected.
    NotNeeded,
    /// With this replica alone, in this incarnation.
    Alone(ReplicaId, u32),
    /// Not at all: this one has most, and cannot go on alone.
    Stuck(ReplicaId),
}

/// How the metadata go on. `left` is what the brokers say that are not lost.
pub fn recover_metadata(left: &[Position]) -> MetadataRecovery {
    let of_metadata = left.iter().filter(|one| is_of_metadata(one));
    let all: Vec<&Position> = of_metadata.clone().collect();
    let alike = |one: &Position| -> Vec<&Position> {
        let same = all
            .iter()
            .filter(|other| other.incarnation == one.incarnation);
        same.copied().collect()
    };
    if all
        .iter()
        .any(|one| one.leads && has_majority(one, &alike(one)))
    {
        return MetadataRecovery::NotNeeded;
    }
    // Where it was begun before, those that have not heard of it have no say any more.
    let newest = of_metadata.clone().map(|one| one.incarnation).max();
    let members: Vec<&Position> = of_metadata
        .filter(|one| Some(one.incarnation) == newest)
        .collect();
    let best = members
        .iter()
        .max_by_key(|one| (one.last_term, one.last_index, one.is_able));
    let (Some(best), Some(newest)) = (best, newest) else {
        return MetadataRecovery::NotNeeded;
    };
    if has_majority(best, &members) {
        return MetadataRecovery::NotNeeded;
    }
    if best.is_able {
        MetadataRecovery::Alone(best.replica, newest.saturating_add(1))
    } else {
        MetadataRecovery::Stuck(best.replica)
    }
}

/// Whether a majority of those that vote, as this one knows, is there: one that leads does not notice for
/// a while that it is not.
fn has_majority(of: &Position, members: &[&Position]) -> bool {
    let is_there = |replica: &ReplicaId| members.iter().any(|one| one.replica == *replica);
    let mut halves = of.voters.iter().filter(|half| !half.is_empty());
    halves.all(|half| 2 * half.iter().filter(|one| is_there(one)).count() > half.len())
}

/// Whether it is the replica of the metadata.
pub fn is_of_metadata(position: &Position) -> bool {
    position.key == group_key(METADATA_KEY)
}

fn by_partition(left: &[Position]) -> BTreeMap<PartitionKey, Vec<Left>> {
    let mut all: BTreeMap<PartitionKey, Vec<&Position>> = BTreeMap::new();
    for position in left.iter().filter(|one| !is_of_metadata(one)) {
        let of_partition = all.entry(partition_key(position.key)).or_default();
        of_partition.push(position);
    }
    let left_of = |members: Vec<&Position>| {
        let left = members.iter().map(|position| Left {
            replica: position.replica,
            last_term: position.last_term,
            last_index: position.last_index,
            is_able: position.is_able,
            has_majority: has_majority(position, &members),
            leads: position.leads && has_majority(position, &members),
        });
        left.collect()
    };
    let all = all.into_iter();
    all.map(|(key, members)| (key, left_of(members))).collect()
}

/// What is left of a partition that goes on: the position of its keeper, if that is not new.
pub fn position_of<'a>(
    recovered: &RecoveredPartition,
    left: &'a [Position],
) -> Option<&'a Position> {
    left.iter()
        .find(|one| partition_key(one.key) == recovered.key && one.replica == recovered.keeper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_record::Offset;

    /// Of replica `replica`, of three.
    fn position(replica: ReplicaId, last: (u64, u64)) -> Position {
        Position {
            key: group_key(METADATA_KEY),
            incarnation: 1,
            replica,
            term: last.0,
            last_term: last.0,
            last_index: last.1,
            end: Offset::ZERO,
            committed: Offset::ZERO,
            leads: false,
            is_able: true,
            voters: [Vec::new(), vec![1, 2, 3]],
        }
    }

    use MetadataRecovery::{Alone, NotNeeded, Stuck};

    #[test]
    fn the_one_that_has_most_goes_on_where_a_majority_is_lost() {
        assert_eq!(recover_metadata(&[]), NotNeeded);
        let one = position(1, (7, 50));
        let alone = recover_metadata(std::slice::from_ref(&one));
        assert_eq!(alone, Alone(1, 2));
        let two = position(2, (6, 90));
        let both = recover_metadata(&[one.clone(), two.clone()]);
        assert_eq!(both, NotNeeded, "two of three");
        let five = [one, two].map(|one| Position {
            voters: [Vec::new(), vec![1, 2, 3, 4, 5]],
            ..one
        });
        assert_eq!(recover_metadata(&five), Alone(1, 2));
        // A learner may have what no voter has that is left: then it goes on.
        let learner = Position {
            voters: [Vec::new(), vec![1, 2, 3, 4, 5]],
            ..position(9, (8, 100))
        };
        let [one, two] = five;
        assert_eq!(recover_metadata(&[one, learner, two]), Alone(9, 2));
    }

    #[test]
    fn both_halves_of_a_joint_configuration_need_their_majority() {
        let joint = |replica| Position {
            voters: [vec![1, 2, 3], vec![1, 4, 5]],
            is_able: [1, 4, 5].contains(&replica),
            ..position(replica, (7, 50))
        };
        assert_eq!(recover_metadata(&[joint(1), joint(2), joint(4)]), NotNeeded);
        let kept = recover_metadata(&[joint(1), joint(2), joint(3)]);
        assert_eq!(kept, Alone(1, 2), "the one of these that could leave it");
        assert_eq!(recover_metadata(&[joint(2)]), Stuck(2));
    }

    #[test]
    fn what_was_begun_before_is_gone_on_with() {
        let keeper = Position {
            incarnation: 2,
            leads: true,
            voters: [Vec::new(), vec![1]],
            ..position(1, (100_006, 60))
        };
        let led = recover_metadata(&[keeper.clone(), position(2, (7, 50))]);
        assert_eq!(led, NotNeeded);
        // A majority that leads is one, whatever another replica was told.
        let leads = Position {
            leads: true,
            ..position(1, (7, 50))
        };
        let strayed = Position {
            incarnation: 2,
            ..position(3, (7, 50))
        };
        let led = recover_metadata(&[leads, position(2, (7, 50)), strayed]);
        assert_eq!(led, NotNeeded);
        let cut_off = Position {
            leads: true,
            ..position(1, (7, 50))
        };
        let kept = recover_metadata(&[cut_off]);
        assert_eq!(kept, Alone(1, 2), "it has not noticed yet");
        let stopped = Position {
            leads: false,
            voters: [Vec::new(), vec![1, 2, 3]],
            ..keeper
        };
        let kept = recover_metadata(&[stopped, position(2, (7, 50))]);
        assert_eq!(kept, Alone(1, 3), "it had not come to its end");
    }
}
