//! Folding the metadata log at the start.

use tidelog_controller::{Cluster, ClusterCommand, Command as TopicCommand};
use tidelog_log::{Found, LogReader};
use tidelog_record::{BatchLimits, Offset, TopicId, TopicName, split_batches};

use super::StartError;
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
    mut from: Offset,
    end: Offset,
) -> Result<Vec<(Offset, ClusterCommand)>, StartError> {
    let mut commands = Vec::new();
    while from < end {
        let found = reader
            .read(from, end, 1 << 20)
            .map_err(StartError::reading)?;
        let batches = match found {
            Found::Ready(batches) => batches,
            Found::Cold(cold) => cold.run().map_err(StartError::reading)?,
        };
        for part in &batches.parts {
            for batch in split_batches(part.clone(), tidelog_log::BATCH_BYTES_LIMIT) {
                let batch = batch.map_err(StartError::damaged)?;
                let records = batch.records(&BatchLimits::default());
                for record in records.map_err(StartError::damaged)? {
                    let record = record.map_err(StartError::damaged)?;
                    let base = u64::try_from(batch.header().base_offset).ok();
                    let base = base.and_then(Offset::new);
                    let offset = base.and_then(|base| record.offset(base));
                    let offset = offset.ok_or_else(|| StartError::damaged("no such offset"))?;
                    let value = record.value.unwrap_or_default();
                    let command = ClusterCommand::decode(&value).map_err(StartError::damaged)?;
                    commands.push((offset, command));
                }
            }
        }
        if batches.next_offset <= from {
            let at = Offset::get(from);
            return Err(StartError::Damaged(format!(
                "the metadata log cannot be read at {at}"
            )));
        }
        from = batches.next_offset;
    }
    Ok(commands)
}
