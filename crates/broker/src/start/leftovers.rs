//! What an earlier broker did not come to an end with: deletions, and partitions never decided on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use tidelog_controller::{Cluster, LocalBroker};
use tidelog_log::catch_up::{catch_up_dir, replaced_dir};
use tidelog_log::offline::log_identity;
use tidelog_log::state::{GroupKey, StateRecord};
use tidelog_record::{PartitionId, TopicId};

use super::replay::Deleted;
use super::{Groups, Start, StartError};
use crate::METADATA_TOPIC_ID;
use crate::files::{deleted_dir, stray_dir};

impl Start {
    /// Finishes deletions that a crash interrupted, and takes back partitions that were made and
    /// never decided on. What cannot be removed now is left for the next start.
    pub(super) fn remove_deleted(&self, cluster: &Cluster, deleted: &[Deleted], groups: &Groups) {
        if let Err(e) = self.try_remove_deleted(cluster, deleted, groups) {
            tracing::warn!(error = %e, "files of deleted topics stay until the next start");
        }
    }

    fn try_remove_deleted(
        &self,
        cluster: &Cluster,
        deleted: &[Deleted],
        groups: &Groups,
    ) -> Result<(), StartError> {
        let disk = &self.seams.disk;
        let data_dir = &self.config.data_dir;
        let entries = disk.list(data_dir)?;
        let dirs = entries.into_iter().filter(|entry| entry.is_dir);
        let dirs: Vec<String> = dirs.map(|entry| entry.name).collect();
        for aside in dirs.iter().filter(|name| name.ends_with(".deleted")) {
            disk.remove_dir_all(&data_dir.join(aside))?;
        }
        let names = Names::new(self, cluster, deleted, groups);
        let found = self.find(&names, &dirs, groups);
        let (mut moved, mut gone) = (Vec::new(), Vec::new());
        for (key, dirs) in &found.dirs {
            for dir in dirs {
                let to = match names.fate(*key, dir) {
                    Fate::Goes => deleted_dir(data_dir, key.topic_id, key.partition.get()),
                    Fate::MakesWay => {
                        let to = stray_dir(&**disk, data_dir, *key)?;
                        tracing::warn!(from = %data_dir.join(dir).display(), to = %to.display(),
                            "a partition that the metadata do not know makes way for another");
                        to
                    }
                    Fate::Stays => {
                        tracing::warn!(dir = %data_dir.join(dir).display(),
                            "a partition that the metadata do not know of stays as it is: its topic was \
                             deleted while this broker was away, or a repair has cut that off");
                        continue;
                    }
                };
                moved.push((data_dir.join(dir), to));
                gone.push(*key);
            }
        }
        // Whose files are not found has none, or they are where nobody could look. Of what the metadata do not
        // know a stop may have come while a copy took its place.
        let is_absent = |key: &&GroupKey| !found.is_partial && !found.dirs.contains_key(*key);
        gone.extend(names.gone.keys().filter(is_absent));
        for (from, to) in &moved {
            disk.rename(from, to)?;
        }
        disk.sync_dir(data_dir)?;
        let gone = gone.into_iter().filter(|key| groups.contains_key(key));
        let gone: Vec<StateRecord> = gone.map(StateRecord::GroupRemoved).collect();
        self.state.record(&gone, false)?;
        for (from, to) in &moved {
            let copies = [catch_up_dir(from), replaced_dir(from)];
            let aside = [to.clone()].into_iter().filter(|to| is_deleted(to));
            for dir in copies.into_iter().chain(aside) {
                match disk.remove_dir_all(&dir) {
                    Err(e) if !e.is_not_found() => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Finds the logs that are not those of partitions that are to be here, and are known. It goes by what
    /// each says of itself: a topic of the same name may have been made since.
    fn find(&self, names: &Names, dirs: &[String], groups: &Groups) -> Found {
        let mut found = Found::default();
        for name in dirs.iter().filter(|name| is_of_partition(name)) {
            let taken_by = names.wanted.get(name);
            if taken_by.is_some_and(|key| groups.contains_key(key)) {
                continue;
            }
            let key = match log_identity(&*self.seams.disk, &self.config.data_dir.join(name)) {
                Ok(Some(log)) => Some(group_key(log.topic_id, log.partition.get())),
                // What a stop has left half made of a partition is known by its name alone.
                Ok(None) => names.of_gone(name).filter(|_| taken_by.is_none()),
                Err(error) => {
                    tracing::warn!(%error, "it is not known whose log this is");
                    found.is_partial = true;
                    None
                }
            };
            let is_unwanted =
                |key: &GroupKey| names.gone.contains_key(key) || names.unwanted.contains(key);
            if let Some(key) = key.filter(is_unwanted) {
                found.dirs.entry(key).or_default().push(name.clone());
            }
        }
        found
    }
}

/// The directories of partitions that are not to be here, as far as is known.
#[derive(Default)]
struct Found {
    dirs: BTreeMap<GroupKey, Vec<String>>,
    /// There may be more of them.
    is_partial: bool,
}

/// What becomes of one of them.
enum Fate {
    /// The metadata say that it was deleted, or is elsewhere.
    Goes,
    /// They say nothing of it, and another partition is to be in its place: it is kept under another name.
    MakesWay,
    /// They say nothing of it.
    Stays,
}

/// Which directory is whose.
struct Names {
    /// The partitions that are to be here, by the names of their directories.
    wanted: HashMap<String, GroupKey>,
    /// Those that are known to be gone, with the names of theirs.
    gone: HashMap<GroupKey, String>,
    /// Those that the state file knows, and that are not to be here as far as the metadata are known:
    /// a repair may have cut these off.
    unwanted: BTreeSet<GroupKey>,
}

impl Names {
    fn new(start: &Start, cluster: &Cluster, deleted: &[Deleted], groups: &Groups) -> Self {
        let topics = cluster.topics();
        let local = LocalBroker::new(start.state.identity().node_id, start.config.generation);
        // Partitions may have gone to other brokers.
        let is_wanted = |key: &GroupKey| {
            let placement = cluster.placement(key.topic_id, key.partition.get());
            placement.is_some_and(|placement| local.replica(placement).is_some())
        };
        // Not those that will have come back, as far as is known.
        let is_gone = |key: &GroupKey| {
            let placement = cluster.placement(key.topic_id, key.partition.get());
            let known = groups.get(key).map(|known| known.replica_id);
            known.is_none_or(|known| placement.is_none_or(|placement| placement.was_retired(known)))
        };
        let unwanted = groups.keys().copied();
        let unwanted = unwanted.filter(|key| key.topic_id != METADATA_TOPIC_ID && !is_wanted(key));
        let mut names = Self {
            wanted: HashMap::new(),
            gone: HashMap::new(),
            unwanted: unwanted.collect(),
        };
        let deleted = deleted.iter().map(|(name, id, count)| (name, *id, *count));
        let there = topics.iter();
        let there = there.map(|topic| (&topic.name, topic.id, topic.partitions));
        for (name, id, partitions) in deleted.chain(there) {
            for number in 0..partitions {
                let key = group_key(id, number);
                // As `partition_dir` names it.
                let dir = format!("{name}-{number}");
                if is_wanted(&key) {
                    names.wanted.insert(dir, key);
                } else if is_gone(&key) {
                    names.gone.insert(key, dir);
                }
            }
        }
        names
    }

    /// Whose the directory is, as one that is not to be here.
    fn of_gone(&self, name: &str) -> Option<GroupKey> {
        let mut gone = self.gone.iter();
        gone.find(|(_, dir)| *dir == name).map(|(key, _)| *key)
    }

    /// What becomes of the log of `key` in a directory of this name.
    fn fate(&self, key: GroupKey, name: &str) -> Fate {
        match self.gone.get(&key) {
            Some(dir) if dir == name => Fate::Goes,
            _ if self.wanted.contains_key(name) => Fate::MakesWay,
            _ => Fate::Stays,
        }
    }
}

fn is_deleted(dir: &Path) -> bool {
    dir.extension().is_some_and(|ending| ending == "deleted")
}

fn group_key(topic_id: TopicId, number: u32) -> GroupKey {
    GroupKey {
        topic_id,
        partition: PartitionId::new(number),
    }
}

fn is_of_partition(dir: &str) -> bool {
    let number = dir.rsplit_once('-').map(|(_, number)| number);
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}
