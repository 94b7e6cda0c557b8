//! What an earlier broker did not come to an end with: deletions, and partitions never decided on.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use tidelog_controller::{Cluster, LocalBroker};
use tidelog_log::offline::log_identity;
use tidelog_log::state::{GroupKey, StateRecord};
use tidelog_record::{PartitionId, TopicId};

use super::replay::Deleted;
use super::{Groups, Start, StartError};
use crate::METADATA_TOPIC_ID;
use crate::files::deleted_dir;

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
        let leftovers = self.leftovers(&names, &dirs, groups);
        for (from, to) in &leftovers {
            disk.rename(from, to)?;
        }
        disk.sync_dir(data_dir)?;
        let removed = names.removed.iter().copied();
        let removed: Vec<StateRecord> = removed.map(StateRecord::GroupRemoved).collect();
        self.state.record(&removed, false)?;
        for (_, aside) in &leftovers {
            disk.remove_dir_all(aside)?;
        }
        Ok(())
    }

    /// The directories that are not to be here any more, each with the name that it gets first.
    ///
    /// It goes by what each log says of itself: a topic of the same name may have been made since.
    fn leftovers(
        &self,
        names: &Names,
        dirs: &[String],
        groups: &Groups,
    ) -> Vec<(PathBuf, PathBuf)> {
        let data_dir = &self.config.data_dir;
        let mut found: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for name in dirs.iter().filter(|name| is_of_partition(name)) {
            let taken_by = names.wanted.get(name);
            if taken_by.is_some_and(|key| groups.contains_key(key)) {
                continue;
            }
            let dir = data_dir.join(name);
            let key = match log_identity(&*self.seams.disk, &dir) {
                Ok(Some(log)) => group_key(log.topic_id, log.partition.get()),
                // What a stop has left half made of a partition is known by its name alone.
                Ok(None) if taken_by.is_none() => match names.of_gone(name) {
                    Some(key) => key,
                    None => continue,
                },
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "it is not known whose log this is");
                    continue;
                }
            };
            if names.is_gone(key, name) {
                let aside = deleted_dir(data_dir, key.topic_id, key.partition.get());
                found.entry(aside).or_default().push(dir);
            }
        }
        // Which of several it is that nobody knows the name of is not for a broker to say.
        found.retain(|_, dirs| dirs.len() == 1);
        let of_each = |(aside, dirs): (PathBuf, Vec<PathBuf>)| dirs.into_iter().zip([aside]);
        found.into_iter().flat_map(of_each).collect()
    }
}

/// Which directory is whose.
struct Names {
    /// The partitions that are to be here, by the names of their directories.
    wanted: HashMap<String, GroupKey>,
    /// Those that are not, with the names of theirs, as far as they are known.
    gone: HashMap<GroupKey, String>,
    /// Those that the state file knows, and are not to be here.
    removed: Vec<GroupKey>,
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
        let removed = groups.keys().copied();
        let removed = removed.filter(|key| key.topic_id != METADATA_TOPIC_ID && !is_wanted(key));
        let mut names = Self {
            wanted: HashMap::new(),
            gone: HashMap::new(),
            removed: removed.collect(),
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
                } else {
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

    /// Whether the log of `key` in a directory of this name is not to be here.
    fn is_gone(&self, key: GroupKey, name: &str) -> bool {
        match self.gone.get(&key) {
            Some(dir) => dir == name,
            // The metadata log has forgotten its name.
            None => self.removed.contains(&key),
        }
    }
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
