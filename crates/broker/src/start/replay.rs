//! Folding the metadata log.

use tidelog_controller::{Command as TopicCommand, Topics};
use tidelog_log::Found;
use tidelog_record::{BatchLimits, Offset, TopicId, TopicName, split_batches};

use super::StartError;
use crate::partition::Partition;

/// A topic that was deleted: its name, id and number of partitions.
pub(super) type Deleted = (TopicName, TopicId, u32);

/// Folds the metadata log into the topics; also tells which topics were deleted.
pub(super) fn replay(metadata: &Partition) -> Result<(Topics, Vec<Deleted>), StartError> {
    let mut topics = Topics::default();
    let mut deleted = Vec::new();
    let end = metadata.reader.committed_offset();
    let mut from = metadata.reader.log_start();
    while from < end {
        let found = metadata
            .reader
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
                    let command = TopicCommand::decode(&value).map_err(StartError::damaged)?;
                    if let TopicCommand::Delete { id } = &command
                        && let Some(topic) = topics.by_id(*id)
                    {
                        deleted.push((topic.name.clone(), *id, topic.partitions));
                    }
                    topics.apply(&command).map_err(StartError::damaged)?;
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
    Ok((topics, deleted))
}
