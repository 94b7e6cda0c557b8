//! What a broker has is made what it is to have, as was decided.

use std::path::PathBuf;
use std::sync::Arc;

use tidelog_controller::{ClusterCommand, Fate, Here, Topic, Wanted};
use tidelog_disk::Disk;
use tidelog_log::catch_up::{catch_up_dir, replaced_dir};
use tidelog_log::state::{GroupKey, GroupState, StateRecord};
use tidelog_log::{INITIAL_EPOCH, Log};
use tidelog_record::{PartitionId, Timestamp, TopicId};
use tidelog_replica::{Group, Members, NodeId, ReplicaId, StateStore};

use super::fold::AGAIN_MILLIS;
use super::notes::BEGINNING_MILLIS;
use super::{METADATA, name_of};
use crate::SimRng;
use crate::cluster::Cluster;
use crate::cluster::events::Event;
use crate::cluster::node::{Node, Running, data_dir, identity, options};

/// `<topic>-<partition>`: one that was deleted gives its name to the next topic.
pub(super) fn partition_dir(key: GroupKey) -> PathBuf {
    let number = key.partition.get();
    let [first, ..] = key.topic_id.to_bytes();
    let name = if key == METADATA {
        "__cluster_metadata".to_owned()
    } else {
        name_of(first)
    };
    data_dir().join(format!("{name}-{number}"))
}

/// What a deleted partition is renamed to first.
pub(super) fn deleted_dir(key: GroupKey) -> PathBuf {
    let [first, ..] = key.topic_id.to_bytes();
    data_dir().join(format!("{first}-{}.deleted", key.partition.get()))
}

pub(super) fn key_of(topic: TopicId, number: u32) -> GroupKey {
    GroupKey {
        topic_id: topic,
        partition: PartitionId::new(number),
    }
}

impl Cluster {
    /// Makes what is here of each topic that was touched what was decided.
    pub(super) fn carry_out_todo(&mut self, id: NodeId) {
        let now = self.now;
        loop {
            let node = &mut self.nodes[id as usize - 1];
            let Some(broker) = node.broker_mut() else {
                return;
            };
            if broker.todo_at > now {
                return;
            }
            let Some((topic, before)) = broker.todo.pop_front() else {
                return;
            };
            if !self.reconcile(id, topic, before.as_deref())
                && let Some(broker) = self.node_mut(id).broker_mut()
            {
                broker.todo.push_back((topic, before));
                broker.todo_at = now + AGAIN_MILLIS;
                let life = self.node(id).life();
                let event = Event::Carry { node: id, life };
                self.events.at(now + AGAIN_MILLIS, event);
            }
        }
    }

    /// Says no where it has to be tried again.
    fn reconcile(&mut self, id: NodeId, topic: TopicId, before: Option<&Topic>) -> bool {
        let Some(broker) = self.node(id).broker() else {
            return true;
        };
        let cluster = &broker.cluster;
        let now_there = cluster.topics().by_id(topic).cloned();
        let partitions = now_there.as_deref().or(before);
        let Some(partitions) = partitions.map(|topic| topic.partitions) else {
            return true;
        };
        let local = broker.local;
        let wanted = local.wanted(cluster, topic, 0..partitions);
        let may_make = local.may_make(cluster);
        let mut is_done = true;
        let mut missing = Vec::new();
        for number in 0..partitions {
            let key = key_of(topic, number);
            let want = wanted.iter().find(|want| want.number == number);
            let serving = self.node(id).serving(key);
            let here = serving.map_or(Here::Nothing, Here::Serving);
            match local.fate(here, want) {
                Fate::Stays => continue,
                Fate::Removed => is_done &= self.remove_replica(id, key),
                Fate::Absent => {}
            }
            missing.extend(want.filter(|_| is_done && may_make));
        }
        for want in missing {
            is_done &= self.make_replica(id, key_of(topic, want.number), want);
        }
        is_done
    }

    fn make_replica(&mut self, id: NodeId, key: GroupKey, want: &Wanted) -> bool {
        let (now, time) = (self.now, self.time());
        let mut rng = self.rng.fork();
        let is_made = self.nodes[id as usize - 1].make(key, want, &mut rng, (now, time));
        if is_made {
            self.note_made(id, key, want.replica);
            self.stats.made += 1;
        } else {
            self.look_after(id);
        }
        is_made
    }

    /// A replica is there. None ever comes back under the number of an earlier one.
    pub(in crate::cluster) fn note_made(&mut self, id: NodeId, key: GroupKey, replica: ReplicaId) {
        let disk = self.node(id).disk_number();
        let partition = &mut self.partitions[self.numbers[&key]];
        partition.replicas.insert(replica);
        let made = partition.made.entry(replica).or_insert(disk);
        assert_eq!(
            *made, disk,
            "replica {replica} of {key:?} is made again, which was on a disk that is lost"
        );
        assert!(
            !partition.removed.contains(&replica),
            "replica {replica} of {key:?} is made again, which was removed"
        );
    }

    fn remove_replica(&mut self, id: NodeId, key: GroupKey) -> bool {
        let node = &mut self.nodes[id as usize - 1];
        let replica = node.serving(key);
        let is_removed = node.remove(key);
        if is_removed && let Some(replica) = replica {
            let partition = &mut self.partitions[self.numbers[&key]];
            partition.replicas.remove(&replica);
            partition.removed.insert(replica);
            self.stats.removed += 1;
        } else if !is_removed {
            self.look_after(id);
        }
        is_removed
    }

    /// Somebody starts a node anew whose state file takes no more.
    fn look_after(&mut self, id: NodeId) {
        let node = self.node(id);
        if !node.takes_changes() {
            let life = node.life();
            let time = self.now + self.rng.below(1000);
            self.events.at(time, Event::Stop { node: id, life });
        }
    }
}

impl Node {
    /// The replica that serves here.
    fn serving(&self, key: GroupKey) -> Option<ReplicaId> {
        self.broker()?.serving.get(&key).copied()
    }

    /// Makes an empty replica, unless the disk does not let it.
    fn make(
        &mut self,
        key: GroupKey,
        want: &Wanted,
        rng: &mut SimRng,
        (now, time): (u64, Timestamp),
    ) -> bool {
        let known = self.running.as_ref();
        let known = known.and_then(|running| running.file.state().groups.get(&key).copied());
        let is_known = known.is_some_and(|known| known.replica_id == want.replica);
        let group = if is_known {
            // A start that was behind has let it alone.
            let Some(running) = &self.running else {
                return false;
            };
            let file = running.file.clone();
            let opened = self.open(&file, key, want.replica, &want.founders, false, rng);
            let Some((group, _)) = opened else {
                return false;
            };
            group
        } else {
            if self.clear_the_way(key).is_err() {
                return false;
            }
            let config = self.config(want.replica, rng);
            let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
            let dir = partition_dir(key);
            let log = Log::create_replica(disk, &dir, identity(key), options(), time);
            let Ok(log) = log else { return false };
            let members = Members::founded_by(want.founders.clone());
            let group = Group::open(config, log, new_group(want.replica), members);
            group.expect("the configuration is a good one")
        };
        let Some(Running {
            file,
            shard,
            broker,
            ..
        }) = &mut self.running
        else {
            return false;
        };
        let mut store = StateStore::new(file.clone(), key);
        // A crash may have left a record of an earlier one.
        let mut records = Vec::new();
        if !is_known {
            records.push(StateRecord::GroupRemoved(key));
        }
        records.extend(store.records_of(&group));
        if file.record(&records, true).is_err() {
            return false;
        }
        shard.add(key, want.incarnation, group, store);
        if want.leads_first {
            shard.with(key, Group::campaign);
        }
        if let Some(broker) = broker {
            broker.serving.insert(key, want.replica);
            if want.leads_first {
                broker.beginning.insert(key, now + BEGINNING_MILLIS);
            }
        }
        true
    }

    /// Moves aside what an earlier replica, or another topic of the same name, has left.
    fn clear_the_way(&self, key: GroupKey) -> Result<(), tidelog_disk::DiskError> {
        let (from, to) = (partition_dir(key), deleted_dir(key));
        match self.disk.list(&from) {
            Ok(_) => {}
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        }
        match self.disk.remove_dir_all(&to) {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
        self.disk.rename(&from, &to)?;
        // Old logs must not come back under the names of new ones.
        self.disk.sync_dir(&data_dir())?;
        // What stays is removed at the next start.
        self.disk.remove_dir_all(&to).ok();
        Ok(())
    }

    /// Takes a replica out of service, and removes its files; says no where it may come back.
    fn remove(&mut self, key: GroupKey) -> bool {
        if let Some(Running { shard, broker, .. }) = &mut self.running {
            drop(shard.remove(key));
            if let Some(broker) = broker {
                broker.beginning.remove(&key);
            }
        }
        let (from, to) = (partition_dir(key), deleted_dir(key));
        match self.disk.rename(&from, &to) {
            Ok(()) => {}
            Err(e) if e.is_not_found() => {}
            Err(_) => return false,
        }
        if self.disk.sync_dir(&data_dir()).is_err() {
            return false;
        }
        let Some(Running { file, broker, .. }) = &mut self.running else {
            return false;
        };
        let removed = file.record(&[StateRecord::GroupRemoved(key)], true);
        if removed.is_err() {
            return false;
        }
        if let Some(broker) = broker {
            broker.serving.remove(&key);
        }
        for dir in [to, catch_up_dir(&from), replaced_dir(&from)] {
            // Mostly there is none; what stays is removed at the next start.
            self.disk.remove_dir_all(&dir).ok();
        }
        true
    }
}

/// What is known of a group that is new here.
pub(super) fn new_group(replica: ReplicaId) -> GroupState {
    let initial = u64::from(INITIAL_EPOCH.get());
    GroupState {
        incarnation: 1,
        replica_id: replica,
        term: initial,
        vote: 0,
        commit: initial,
        checkpoint: None,
    }
}

/// Whether a command says that there are other partitions from now on.
pub(super) fn makes_partitions(command: &ClusterCommand) -> bool {
    matches!(
        command,
        ClusterCommand::CreateTopic { .. } | ClusterCommand::AddPartitions { .. }
    )
}
