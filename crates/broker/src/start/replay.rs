//! Folding the metadata log at the start.

use tidelog_controller::{Cluster, ClusterCommand, Command as TopicCommand};
use tidelog_log::LogReader;
use tidelog_record::{Offset, TopicId, TopicName};

use super::StartError;
use crate::own::{WalkError, walk};
use crate::partition::Partition;

/// A topic that was deleted: its name, id and number of partitions.
pub(super) type Deleted = (TopicName, TopicId, u32);

/// What the metadata log says.
pub(super) struct Replayed {
    pub(super) cluster: Cluster,
    /// The topics that were deleted.
    pub(super) deleted: Vec<Deleted>,
    /// Up to where it is folded.
    pub(super) applied: Offset,
    /// Where the newest snapshot begins, or the log does.
    pub(super) snapshot_at: Offset,
}

/// Folds the metadata log, as far as it is known to be committed.
pub(super) fn replay(metadata: &Partition) -> Result<Replayed, StartError> {
    let reader = metadata.reader();
    let end = reader.committed_offset();
    let mut replayed = Replayed {
        cluster: Cluster::default(),
        deleted: Vec::new(),
        applied: end,
        snapshot_at: reader.log_start(),
    };
    let cluster = &mut replayed.cluster;
    for (offset, command) in commands(&reader, reader.log_start(), end)? {
        match &command {
            ClusterCommand::Topics(TopicCommand::Delete { id }) => {
                if let Some(topic) = cluster.topics().by_id(*id) {
                    let deleted = (topic.name.clone(), *id, topic.partitions);
                    replayed.deleted.push(deleted);
                }
            }
            ClusterCommand::Snapshot { part: 0, .. } => replayed.snapshot_at = offset,
            _ => {}
        }
        cluster.apply(&command).map_err(StartError::damaged)?;
    }
    Ok(replayed)
}

/// The commands of the metadata log from one offset to another, both of which are at the border of a
/// batch. Blocks.
pub(crate) fn commands(
    reader: &LogReader,
    from: Offset,
    end: Offset,
) -> Result<Vec<(Offset, ClusterCommand)>, StartError> {
    let mut commands = Vec::new();
    let walked = walk(reader, from, end, |offset, record| {
        let value = record.value.as_deref().unwrap_or_default();
        let command = ClusterCommand::decode(value).map_err(WalkError::damaged)?;
        commands.push((offset, command));
        Ok(())
    });
    walked.map_err(|e| match e {
        WalkError::Read(e) => StartError::reading(e),
        WalkError::Damaged(what) => StartError::Damaged(format!("the metadata log: {what}")),
    })?;
    Ok(commands)
}
