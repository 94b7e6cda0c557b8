//! How a broker starts: from its disk alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tidelog_controller::{AtStart, Cluster as Folded, ClusterCommand, Command};
use tidelog_disk::{Disk, DiskError};
use tidelog_log::catch_up::{catch_up_dir, replaced_dir};
use tidelog_log::offline::log_identity;
use tidelog_log::state::{DirectoryIdentity, GroupKey, StateError, StateFile, StateRecord};
use tidelog_log::{CreateError, Log, OpenError};
use tidelog_record::{RaftIndex, Timestamp};
use tidelog_replica::{Group, Members, ReplicaId, Shard, StateStore, replica_of};

use super::broker::{Broker, Seat};
use super::files::{deleted_dir, key_of, new_group, partition_dir};
use super::{METADATA, directory, fold, group_key};
use crate::cluster::Cluster;
use crate::cluster::node::{
    CLUSTER, Node, Running, copies_on, data_dir, identity, options, state_dir,
};
use crate::cluster::process::is_full;
use crate::{SimDisk, SimRng};

impl Cluster {
    /// What a broker has by its start is noted, as that which it makes later.
    pub(in crate::cluster) fn note_started(&mut self, id: tidelog_replica::NodeId) {
        let serving = self.node(id).broker().map(|broker| broker.serving.clone());
        for (key, replica) in serving.into_iter().flatten() {
            self.note_made(id, key, replica);
        }
    }
}

impl Node {
    /// Gives the node a seat in the cluster; one that founds it starts at once.
    pub(super) fn sit(&mut self, seat: Seat, starts: bool, rng: &mut SimRng) {
        self.disk = SimDisk::new(rng.next_u64());
        self.disk
            .create_dir_all(&state_dir())
            .expect("nothing fails yet");
        for dir in ["/", "/data"] {
            let synced = self.disk.sync_dir(std::path::Path::new(dir));
            synced.expect("nothing fails yet");
        }
        let owner = DirectoryIdentity {
            cluster_id: CLUSTER,
            node_id: self.id,
            directory_id: directory(self.id, seat.disk).to_bytes(),
        };
        let file = StateFile::create(Arc::new(self.disk.clone()), &state_dir(), owner);
        drop(file.expect("nothing fails yet"));
        self.running = None;
        self.is_out = !starts;
        self.seat = Some(seat);
        if starts {
            assert!(self.start_broker(rng), "nothing fails yet");
        }
    }

    /// Starts the process; says no where its disk has no space for that.
    pub(in crate::cluster) fn start_broker(&mut self, rng: &mut SimRng) -> bool {
        self.disk.stop_failing();
        match self.try_start(rng) {
            Some(running) => {
                self.running = Some(running);
                self.may_fail = false;
                self.life += 1;
                true
            }
            None => {
                self.disk.kill();
                false
            }
        }
    }

    fn try_start(&self, rng: &mut SimRng) -> Option<Running> {
        let seat = self.seat.as_ref()?;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let file = match StateFile::open(disk, &state_dir()) {
            Err(StateError::Disk(e)) if is_full(&e) => return None,
            file => Arc::new(file.expect("what was remembered is there")),
        };
        let known = file.state();
        let boot = StateRecord::Boot(known.boots + 1);
        file.record(&[boot], true).ok()?;
        let founders = seat.founders.iter().map(|node| replica_of(*node, 0));
        let own = replica_of(self.id, seat.generation);
        let founders: Vec<ReplicaId> = founders.collect();
        let mut opened = vec![self.open(&file, METADATA, own, &founders, known.clean, rng)?];
        let (group, _) = &opened[0];
        let reader = group.log().reader();
        let end = reader.committed_offset();
        let (mut cluster, mut snapshot_at) = (Folded::default(), reader.log_start());
        let read = fold::commands(&reader, reader.log_start(), end);
        let mut deleted = Vec::new();
        for (offset, command) in read.expect("what is committed can be read") {
            if let ClusterCommand::Topics(Command::Delete { id }) = &command {
                let topic = cluster.topics().by_id(*id);
                let partitions = topic.map_or(0, |topic| topic.partitions);
                deleted.extend((0..partitions).map(|number| key_of(*id, number)));
            }
            if let ClusterCommand::Snapshot { part: 0, .. } = command {
                snapshot_at = offset;
            }
            let applied = cluster.apply(&command);
            applied.expect("what is committed in the metadata log makes sense");
        }
        let strays = self.remove_leftovers(&file, seat, &cluster, &deleted);
        let strays = strays.ok()?;
        let mut broker = Broker::new(self.id, seat, cluster, end);
        broker.snapshot_at = snapshot_at;
        broker.strays = strays;
        let mut wanted = Vec::new();
        for (key, placement) in broker.cluster.placements() {
            let here = group_key(key);
            let known = known.groups.get(&here).map(|known| known.replica_id);
            match broker.local.at_start(&broker.cluster, placement, known) {
                AtStart::Opened(replica) => {
                    wanted.push((here, replica, placement.founders.clone()));
                }
                AtStart::Later => broker.todo.push_back((key.topic, None)),
                AtStart::Unwanted => {}
            }
        }
        for (key, replica, founders) in wanted {
            opened.push(self.open(&file, key, replica, &founders, known.clean, rng)?);
            broker.serving.insert(key, replica);
        }
        let mut shard = Shard::default();
        let mut records = Vec::new();
        for (group, store) in &mut opened {
            records.extend(store.records_of(group));
        }
        file.record(&records, true).ok()?;
        for (group, store) in opened {
            let at = group.log().identity();
            let key = GroupKey {
                topic_id: at.topic_id,
                partition: at.partition,
            };
            shard.add(key, 1, group, store);
        }
        let copies = copies_on(&self.disk);
        Some(Running {
            file,
            shard,
            copies,
            broker: Some(broker),
        })
    }

    /// Opens the log of a replica, and makes it where it was never recorded. `None` where there is no space.
    pub(super) fn open(
        &self,
        file: &Arc<StateFile>,
        key: GroupKey,
        replica: ReplicaId,
        founders: &[ReplicaId],
        is_clean: bool,
        rng: &mut SimRng,
    ) -> Option<(Group, StateStore)> {
        let mut store = StateStore::new(file.clone(), key);
        let opened = self.open_log(&mut store, &partition_dir(key), key, is_clean);
        let known = store.load();
        let log = match opened {
            Err(OpenError::Disk(e)) if is_full(&e) => return None,
            Err(OpenError::Missing { .. }) if known.is_none() => {
                let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
                let now = Timestamp::from_millis(0);
                let dir = partition_dir(key);
                match Log::create_replica(disk, &dir, identity(key), options(), now) {
                    Err(CreateError::Disk(e)) if is_full(&e) => return None,
                    log => log.expect("nothing fails at a start"),
                }
            }
            opened => opened.expect("what was durable is there"),
        };
        let (state, members) = known.unwrap_or_else(|| {
            let members = Members::founded_by(founders.to_vec());
            (new_group(replica), members)
        });
        let config = self.config(state.replica_id, rng);
        let group = Group::open(config, log, state, members);
        Some((group.expect("the configuration is a good one"), store))
    }

    /// Finishes what a stop has interrupted, and takes back replicas that are not to be here. Gives those of which
    /// that is not known.
    fn remove_leftovers(
        &self,
        file: &StateFile,
        seat: &Seat,
        cluster: &Folded,
        deleted: &[GroupKey],
    ) -> Result<BTreeSet<GroupKey>, DiskError> {
        let entries = self.disk.list(&data_dir())?;
        let dirs = entries.iter().map(|entry| data_dir().join(&entry.name));
        let dirs: BTreeSet<PathBuf> = dirs.collect();
        for aside in dirs
            .iter()
            .filter(|dir| dir.extension().is_some_and(|e| e == "deleted"))
        {
            self.disk.remove_dir_all(aside)?;
        }
        let local = seat.local(self.id);
        let groups = file.state().groups;
        let placement_of = |key: &GroupKey| cluster.placement(key.topic_id, key.partition.get());
        let is_wanted = |key: &GroupKey| {
            placement_of(key).is_some_and(|placement| local.replica(placement).is_some())
        };
        let is_gone = |key: &GroupKey| {
            let known = groups.get(key).map(|known| known.replica_id);
            let was_retired = |known| placement_of(key).is_none_or(|it| it.was_retired(known));
            known.is_none_or(was_retired)
        };
        // What a stop has left half made of a partition is known to nobody else.
        let placed = cluster.placements().map(|(key, _)| group_key(key));
        let all: BTreeSet<GroupKey> = placed.chain(deleted.iter().copied()).collect();
        let (wanted, elsewhere): (Vec<_>, Vec<_>) = all.into_iter().partition(is_wanted);
        let gone: BTreeSet<GroupKey> = elsewhere.into_iter().filter(is_gone).collect();
        let unwanted = groups.keys().copied();
        let unwanted = unwanted.filter(|key| *key != METADATA && !is_wanted(key));
        // A topic of the same name may have been made since: it goes by what each log says of itself,
        // and by its name where a stop has left it half made.
        let taken: BTreeMap<PathBuf, GroupKey> = wanted
            .into_iter()
            .map(|key| (partition_dir(key), key))
            .collect();
        let mut aside: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        let mut removed = Vec::new();
        let mut strays = BTreeSet::new();
        for key in unwanted
            .chain(gone.iter().copied())
            .collect::<BTreeSet<_>>()
        {
            let from = partition_dir(key);
            let taken_by = taken.get(&from);
            let is_taken = taken_by.is_some_and(|key| groups.contains_key(key));
            let is_its = dirs.contains(&from)
                && !is_taken
                && match log_identity(&self.disk, &from)? {
                    Some(log) => (log.topic_id, log.partition) == (key.topic_id, key.partition),
                    None => taken_by.is_none() && gone.contains(&key),
                };
            if is_its && gone.contains(&key) {
                aside.insert(from, deleted_dir(key));
            } else if is_its && taken_by.is_some() {
                aside.insert(from, data_dir().join(format!("{}.stray", key.topic_id)));
            } else if is_its || !gone.contains(&key) {
                // It may be that it is not known yet.
                strays.insert(key);
                continue;
            }
            if groups.contains_key(&key) {
                removed.push(StateRecord::GroupRemoved(key));
            }
        }
        for (from, to) in &aside {
            self.disk.rename(from, to)?;
        }
        self.disk.sync_dir(&data_dir())?;
        // How it went shows when more is recorded.
        file.record(&removed, false).ok();
        for (from, to) in &aside {
            for dir in [to.clone(), catch_up_dir(from), replaced_dir(from)] {
                match self.disk.remove_dir_all(&dir) {
                    Err(e) if !e.is_not_found() => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(strays)
    }

    /// Opens a log that was recorded.
    fn open_log(
        &self,
        store: &mut StateStore,
        dir: &std::path::Path,
        key: GroupKey,
        is_clean: bool,
    ) -> Result<Log, OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let swapped = store.recover_swap(&*disk, dir, identity(key));
        match swapped {
            Err(tidelog_log::catch_up::AdoptError::Disk(e)) => return Err(OpenError::Disk(e)),
            swapped => swapped.expect("a swap comes to its end"),
        }
        let known = store.load();
        let checkpoint = known.as_ref().and_then(|(state, _)| state.checkpoint);
        let commit = RaftIndex::new(known.map_or(0, |(state, _)| state.commit));
        let opened = match checkpoint.filter(|_| is_clean) {
            Some(end) => Log::open_closed_replica(disk, dir, identity(key), options(), end, commit),
            None => Log::open_replica(disk, dir, identity(key), options(), checkpoint, commit),
        };
        opened.map(|(log, _)| log)
    }
}
