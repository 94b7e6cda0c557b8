//! A partition and its members, who come and go: what a controller would ask for.

use std::collections::{BTreeMap, BTreeSet};

use tidelog_log::state::GroupKey;
use tidelog_replica::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
};
use tidelog_replica::{Members, NodeId, ProposeError, ReplicaId, node_of, single};

use super::Cluster;
use super::checks::Checks;

/// One partition, as it is known outside of the nodes.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) key: GroupKey,
    pub(super) checks: Checks,
    founders: Vec<ReplicaId>,
    /// Who is in the group, by the newest change that was committed.
    pub(super) members: Members,
    /// All replicas there are, members or not.
    pub(super) replicas: BTreeSet<ReplicaId>,
    /// Who ever was in it, or was to be: none of them is added again.
    ever_members: BTreeSet<ReplicaId>,
    /// Who was in it before the newest change, and may be still.
    left: BTreeSet<ReplicaId>,
    /// Whether its log start is raised at times.
    pub(super) trims: bool,
    /// Its topic was deleted.
    pub(super) is_deleted: bool,
    /// All replicas there ever were, each with the disk of its node that it was on.
    pub(super) made: BTreeMap<ReplicaId, u32>,
    /// Those of them that were removed.
    pub(super) removed: BTreeSet<ReplicaId>,
}

/// So many replicas there ever are of one partition.
const EVER_MAX: usize = 14;
/// With more voters than that one leaves rather than one comes.
const VOTERS_MAX: usize = 5;
/// A learner that lacks no more entries may become a voter.
const BEHIND_MAX: u64 = 20;

impl Partition {
    pub(super) fn new(key: GroupKey, founders: Vec<ReplicaId>, trims: bool) -> Self {
        Self {
            key,
            checks: Checks::default(),
            members: Members::founded_by(founders.clone()),
            replicas: founders.iter().copied().collect(),
            ever_members: founders.iter().copied().collect(),
            left: BTreeSet::new(),
            founders,
            trims,
            is_deleted: false,
            made: BTreeMap::new(),
            removed: BTreeSet::new(),
        }
    }

    pub(super) fn is_member(&self, id: ReplicaId) -> bool {
        let state = &self.members.state;
        [&state.voters, &state.learners, &state.voters_outgoing]
            .iter()
            .any(|ids| ids.contains(&id))
    }

    pub(super) fn member_ids(&self) -> impl Iterator<Item = ReplicaId> {
        let ids = self.replicas.iter().copied();
        ids.filter(|id| self.is_member(*id))
    }

    /// A replica has committed a change; says whether it is news.
    pub(super) fn members_changed(&mut self, members: Members) -> bool {
        let is_news = members.index > self.members.index;
        if is_news {
            let were = self.members.state.clone();
            self.left
                .extend([were.voters, were.learners, were.voters_outgoing].concat());
            self.members = members;
        }
        is_news
    }
}

impl Cluster {
    /// Asks a leader for a change, if one makes sense now.
    pub(super) fn change_members(&mut self, number: usize) {
        let key = self.partitions[number].key;
        let Some(leader) = self.leader(key) else {
            return;
        };
        let group = self.node(leader).shard().and_then(|shard| shard.group(key));
        let Some(group) = group else { return };
        let Members { state, .. } = group.members().clone();
        let mut change = ConfChangeV2::default();
        if state.voters_outgoing.is_empty() {
            let Some((transition, changes)) = self.choose(number, &state.voters, &state.learners)
            else {
                return;
            };
            change.changes = changes;
            change.set_transition(transition);
        }
        // Otherwise the empty change leaves the joint configuration.
        let heirs = state.voters.iter().copied();
        let heir = heirs.clone().find(|id| node_of(*id) != leader);
        self.with(leader, |node| {
            if let Some(shard) = node.shard_mut() {
                shard.with(key, |group| {
                    // Where another change is under way, or the leader is not ready, it is not now.
                    let proposed = group.propose_members(&change);
                    if let (Err(ProposeError::LeaderLeaves), Some(heir)) = (proposed, heir) {
                        group.transfer_leader(heir);
                    }
                });
            }
        });
    }

    fn choose(
        &mut self,
        number: usize,
        voters: &[ReplicaId],
        learners: &[ReplicaId],
    ) -> Option<(ConfChangeTransition, Vec<ConfChangeSingle>)> {
        use ConfChangeTransition::{Auto, Explicit};
        use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
        let leaves = voters[self.rng.index(voters.len())];
        if let Some(learner) = learners.first().copied() {
            return if self.is_behind(number, learner) && self.rng.chance(80) {
                // As a controller does, it waits until the learner has caught up.
                None
            } else if self.rng.chance(50) {
                // In its place one leaves, in one step.
                Some((
                    Explicit,
                    vec![single(AddNode, learner), single(RemoveNode, leaves)],
                ))
            } else if voters.len() < VOTERS_MAX {
                Some((Auto, vec![single(AddNode, learner)]))
            } else {
                Some((Auto, vec![single(RemoveNode, learner)]))
            };
        }
        let is_many = voters.len() >= VOTERS_MAX || self.rng.chance(30);
        if voters.len() > 1 && is_many {
            return Some((Auto, vec![single(RemoveNode, leaves)]));
        }
        let partition = &self.partitions[number];
        let mut made = partition.replicas.iter().copied();
        let id = match made.find(|id| !partition.ever_members.contains(id)) {
            Some(id) => id,
            None if partition.ever_members.len() < EVER_MAX => self.create_replica(number)?,
            None => return None,
        };
        self.partitions[number].ever_members.insert(id);
        Some((Auto, vec![single(AddLearnerNode, id)]))
    }

    fn is_behind(&self, number: usize, id: ReplicaId) -> bool {
        let Partition { key, checks, .. } = &self.partitions[number];
        let node = self.node(node_of(id));
        let group = node.replica(*key, id);
        let committed = group.map_or(0, |group| group.log().commit().get());
        committed + BEHIND_MAX < checks.length()
    }

    /// An empty replica on some node that runs and has none of this partition.
    fn create_replica(&mut self, number: usize) -> Option<ReplicaId> {
        let Partition { key, replicas, .. } = &self.partitions[number];
        let (key, replicas) = (*key, replicas.clone());
        let has_one = |node: NodeId| replicas.iter().any(|id| node_of(*id) == node);
        let free: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|node| node.takes_changes() && !has_one(node.id))
            .map(|node| node.id)
            .collect();
        if free.is_empty() {
            return None;
        }
        let node = free[self.rng.index(free.len())];
        let mut rng = self.rng.fork();
        let partition = &mut self.partitions[number];
        let founders = partition.founders.clone();
        let node = &mut self.nodes[node as usize - 1];
        let id = node.next_replica(key);
        partition.replicas.insert(id);
        node.add_replica(key, &founders, &mut rng);
        Some(id)
    }

    /// Those that were members and are none any more are gone for good, once all members know it: until
    /// then they may need them to choose a leader.
    pub(super) fn retire(&mut self, number: usize) {
        let partition = &self.partitions[number];
        let key = partition.key;
        let index = partition.members.index;
        let knows = |id: ReplicaId| {
            let group = self.node(node_of(id)).replica(key, id);
            group.is_some_and(|group| group.log().commit().get() >= index)
        };
        if !partition.member_ids().all(knows) {
            return;
        }
        let is_gone = |id: &ReplicaId| {
            let is_left = partition.left.contains(id) && !partition.is_member(*id);
            is_left && self.node(node_of(*id)).takes_changes()
        };
        let gone: Vec<ReplicaId> = partition.replicas.iter().copied().filter(is_gone).collect();
        for id in gone {
            let mut is_removed = false;
            self.with(node_of(id), |node| is_removed = node.remove_replica(key));
            if is_removed {
                self.partitions[number].replicas.remove(&id);
            }
        }
    }
}
