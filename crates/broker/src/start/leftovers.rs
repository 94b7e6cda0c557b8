//! What an earlier broker did not come to an end with: deletions, and partitions never decided on.

use std::collections::HashSet;
use std::path::PathBuf;

use tidelog_controller::{Cluster, LocalBroker, Topic};
use tidelog_log::state::StateRecord;
use tidelog_record::{TopicId, TopicName};

use super::replay::Deleted;
use super::{Groups, Start, StartError};
use crate::METADATA_TOPIC_ID;
use crate::files::{deleted_dir, partition_dir};

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
        let dirs: HashSet<String> = dirs.map(|entry| entry.name).collect();
        for aside in dirs.iter().filter(|name| name.ends_with(".deleted")) {
            disk.remove_dir_all(&data_dir.join(aside))?;
        }

        let topics = cluster.topics();
        let local = LocalBroker::new(self.state.identity().node_id, self.config.generation);
        // Partitions may have gone to other brokers.
        let is_wanted = |topic: &Topic, number: u32| {
            let placement = cluster.placement(topic.id, number);
            placement.is_some_and(|placement| local.replica(placement).is_some())
        };
        let mut leftovers: Vec<(PathBuf, PathBuf)> = Vec::new();
        let mut note = |name: &TopicName, id: TopicId, number: u32| {
            // A topic of the same name may have been made since.
            let now = topics.get(name.as_str());
            if dirs.contains(&format!("{name}-{number}"))
                && !now.is_ok_and(|topic| is_wanted(topic, number))
            {
                leftovers.push((
                    partition_dir(data_dir, name.as_str(), number),
                    deleted_dir(data_dir, id, number),
                ));
            }
        };
        for (name, id, partitions) in deleted {
            for number in 0..*partitions {
                note(name, *id, number);
            }
        }
        // What a stop has left half made of a partition is known to nobody else.
        for topic in topics.iter() {
            for number in 0..topic.partitions {
                note(&topic.name, topic.id, number);
            }
        }
        let unwanted = groups.keys().filter(|key| {
            let topic = topics.by_id(key.topic_id);
            let is_wanted = topic.is_some_and(|topic| is_wanted(topic, key.partition.get()));
            key.topic_id != METADATA_TOPIC_ID && !is_wanted
        });
        let removed: Vec<StateRecord> = unwanted
            .map(|key| StateRecord::GroupRemoved(*key))
            .collect();
        // Topics of one name, deleted one after the other, leave one directory.
        leftovers.sort();
        leftovers.dedup_by(|one, other| one.0 == other.0);
        for (from, to) in &leftovers {
            disk.rename(from, to)?;
        }
        disk.sync_dir(data_dir)?;
        self.state.record(&removed, false)?;
        for (_, aside) in &leftovers {
            disk.remove_dir_all(aside)?;
        }
        Ok(())
    }
}
