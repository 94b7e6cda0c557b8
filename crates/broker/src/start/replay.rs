//! Folding the metadata log.

use tidelog_controller::{Command as TopicCommand, Topics};
use tidelog_log::{Found, LogReader};
use tidelog_record::{BatchLimits, Offset, TopicId, TopicName, split_batches};

use super::StartError;
use crate::partition::Partition;

/// A topic that was deleted: its name, id and number of partitions.
pub(super) type Deleted = (TopicName, TopicId, u32);

/// Folds the metadata log into the topics; also tells which topics were deleted, and up to where it is
/// folded.
pub(super) fn replay(metadata: &Partition) -> Result<(Topics, Vec<Deleted>, Offset), StartError> {
    let mut topics = Topics::default();
    let mut deleted = Vec::new();
    let reader = metadata.reader();
    let end = reader.committed_offset();
    for command in commands(&reader, reader.log_start(), end)? {
        if let TopicCommand::Delete { id } = &command
            && let Some(topic) = topics.by_id(*id)
        {
            deleted.push((topic.name.clone(), *id, topic.partitions));
        }
        topics.apply(&command).map_err(StartError::damaged)?;
    }
    Ok((topics, deleted, end))
}

/// The commands of the metadata log from one offset to another, both of which are at the border of a
/// batch. Blocks.
pub(crate) fn commands(
    reader: &LogReader,
    mut from: Offset,
    end: Offset,
) -> Result<Vec<TopicCommand>, StartError> {
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
                    let value = record.value.unwrap_or_default();
                    commands.push(TopicCommand::decode(&value).map_err(StartError::damaged)?);
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
