//! Looking up offsets, and trimming.

use tidelog_proto::v1;
use tidelog_record::{BatchLimits, Offset, PartitionId, Timestamp, TopicName, split_batches};

use crate::split::Question;
use crate::{Client, ClientError, OffsetSpec};

/// A place that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// In which partition.
    pub partition: PartitionId,
    /// The offset.
    pub offset: Offset,
    /// Of the record found, in look-ups by time; `None` when no record is late enough: then the
    /// offset is the high watermark.
    pub timestamp: Option<Timestamp>,
}

impl Client {
    /// Looks up an offset in each of the partitions; the answers are in the same order.
    ///
    /// # Errors
    /// [`ClientError::NotLookedUp`] for the first partition that failed, and what any call meets.
    pub async fn list_offsets(
        &self,
        topic: &TopicName,
        specs: &[(PartitionId, OffsetSpec)],
    ) -> Result<Vec<ListedOffset>, ClientError> {
        let partitions: Vec<_> = specs.iter().map(|&(partition, _)| partition).collect();
        let question = Question {
            operation: "ListOffsets",
            topic,
            partitions: &partitions,
            is_repeatable: true,
        };
        let answers = self.ask_leaders(question, |mut log, places| {
            let asked = places.iter().map(|&place| v1::ListOffsetsPartition {
                topic: topic.to_string(),
                partition: specs[place].0.get(),
                at: Some(specs[place].1.into()),
            });
            let partitions = asked.collect();
            async move {
                let request = v1::ListOffsetsRequest { partitions };
                let response = log.list_offsets(request).await?.into_inner();
                Ok(response.partitions.into_iter().map(listed).collect())
            }
        });
        partitions
            .iter()
            .zip(answers.await?)
            .map(|(&partition, answer)| {
                answer.map_err(|source| ClientError::NotLookedUp {
                    partition,
                    source: Box::new(source),
                })
            })
            .collect()
    }

    /// The timestamp of the first record at or after an offset, of each of the partitions, in their order; `None` where
    /// there is none yet. Each costs the reading of one batch.
    ///
    /// # Errors
    /// [`ClientError::NotLookedUp`] for the first partition that failed, and what any call meets.
    pub async fn timestamps_at(
        &self,
        topic: &TopicName,
        offsets: &[(PartitionId, Offset)],
    ) -> Result<Vec<Option<Timestamp>>, ClientError> {
        let partitions: Vec<_> = offsets.iter().map(|&(partition, _)| partition).collect();
        let question = Question {
            operation: "Fetch",
            topic,
            partitions: &partitions,
            is_repeatable: true,
        };
        let answers = self.ask_leaders(question, |mut log, places| {
            let asked = places.iter().map(|&place| v1::FetchPartition {
                topic: topic.to_string(),
                partition: offsets[place].0.get(),
                offset: offsets[place].1.get(),
                // The first batch comes whatever its length.
                max_bytes: 1,
            });
            let request = v1::FetchRequest {
                partitions: asked.collect(),
                format: v1::Format::Batches.into(),
                ..v1::FetchRequest::default()
            };
            let from: Vec<_> = places.iter().map(|&place| offsets[place].1).collect();
            async move {
                let response = log.fetch(request).await?.into_inner();
                let fetched = response.partitions.into_iter().zip(from);
                Ok(fetched
                    .map(|(one, from)| first_timestamp(one, from))
                    .collect())
            }
        });
        partitions
            .iter()
            .zip(answers.await?)
            .map(|(&partition, answer)| {
                answer.map_err(|source| ClientError::NotLookedUp {
                    partition,
                    source: Box::new(source),
                })
            })
            .collect()
    }

    /// Drops all records before an offset in each of the partitions, for good. Gives the log start
    /// offsets they have then, in the same order.
    ///
    /// # Errors
    /// [`ClientError::NotDeleted`] for the first partition that failed (others may be done), and
    /// what any call meets.
    pub async fn delete_records(
        &self,
        topic: &TopicName,
        before: &[(PartitionId, OffsetSpec)],
    ) -> Result<Vec<(PartitionId, Offset)>, ClientError> {
        let partitions: Vec<_> = before.iter().map(|&(partition, _)| partition).collect();
        let question = Question {
            operation: "DeleteRecords",
            topic,
            partitions: &partitions,
            is_repeatable: false,
        };
        let answers = self.ask_leaders(question, |mut log, places| {
            let asked = places.iter().map(|&place| v1::DeleteRecordsPartition {
                partition: before[place].0.get(),
                before: Some(before[place].1.into()),
            });
            let request = v1::DeleteRecordsRequest {
                topic: topic.to_string(),
                partitions: asked.collect(),
            };
            async move {
                let response = log.delete_records(request).await?.into_inner();
                Ok(response.partitions.into_iter().map(deleted).collect())
            }
        });
        partitions
            .iter()
            .zip(answers.await?)
            .map(|(&partition, answer)| {
                answer.map_err(|source| ClientError::NotDeleted {
                    partition,
                    source: Box::new(source),
                })
            })
            .collect()
    }
}

fn listed(found: v1::ListedOffset) -> Result<ListedOffset, ClientError> {
    if let Some(error) = &found.error {
        return Err(ClientError::from_message(error));
    }
    Ok(ListedOffset {
        partition: PartitionId::new(found.partition),
        offset: offset(found.offset)?,
        timestamp: found.timestamp_ms.map(Timestamp::from_millis),
    })
}

fn first_timestamp(
    fetched: v1::FetchedPartition,
    from: Offset,
) -> Result<Option<Timestamp>, ClientError> {
    if let Some(error) = &fetched.error {
        return Err(ClientError::from_message(error));
    }
    let damaged = |e: &dyn std::fmt::Display| ClientError::Protocol {
        what: e.to_string(),
    };
    for batch in split_batches(fetched.batches, usize::MAX) {
        let batch = batch.map_err(|e| damaged(&e))?;
        let base = u64::try_from(batch.header().base_offset).ok();
        let base = base.and_then(Offset::new);
        let records = batch.records(&BatchLimits::default());
        for record in records.map_err(|e| damaged(&e))? {
            let record = record.map_err(|e| damaged(&e))?;
            let at = base.and_then(|base| record.offset(base));
            if at.is_some_and(|at| at >= from) {
                return Ok(Some(record.timestamp));
            }
        }
    }
    Ok(None)
}

fn deleted(deleted: v1::DeletedRecords) -> Result<(PartitionId, Offset), ClientError> {
    if let Some(error) = &deleted.error {
        return Err(ClientError::from_message(error));
    }
    let partition = PartitionId::new(deleted.partition);
    Ok((partition, offset(deleted.log_start_offset)?))
}

/// The offset in a field of the API.
pub(crate) fn offset(value: u64) -> Result<Offset, ClientError> {
    Offset::new(value).ok_or_else(|| ClientError::Protocol {
        what: format!("{value} is no offset"),
    })
}
