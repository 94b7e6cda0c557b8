//! Administration: topics, offsets, trimming.

use std::collections::HashMap;

use tidelog_proto::v1;
use tidelog_record::{Offset, PartitionId, Timestamp, TopicName};

use crate::{Client, ClientError, OffsetSpec};

/// How a change shall be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdminOptions {
    /// Checks everything, changes nothing.
    pub validate_only: bool,
}

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
    /// Makes a topic of `partitions` partitions with these settings.
    ///
    /// # Errors
    /// [`ClientError::Broker`] when it exists or something is not allowed, and what any call meets.
    pub async fn create_topic(
        &self,
        topic: &TopicName,
        partitions: u32,
        settings: HashMap<String, String>,
        options: AdminOptions,
    ) -> Result<v1::TopicSummary, ClientError> {
        let request = v1::CreateTopicRequest {
            name: topic.to_string(),
            partitions,
            settings,
            validate_only: options.validate_only,
        };
        let response = self
            .call_topics("CreateTopic", |mut topics| {
                let request = request.clone();
                async move { topics.create_topic(request).await }
            })
            .await?;
        summary(response.topic)
    }

    /// Lists all topics by name; internal ones only when asked for.
    ///
    /// # Errors
    /// What any call meets.
    pub async fn list_topics(
        &self,
        include_internal: bool,
    ) -> Result<Vec<v1::TopicSummary>, ClientError> {
        let mut topics = Vec::new();
        let mut request = v1::ListTopicsRequest {
            include_internal,
            ..Default::default()
        };
        loop {
            let page = self
                .call_topics("ListTopics", |mut topics| {
                    let request = request.clone();
                    async move { topics.list_topics(request).await }
                })
                .await?;
            topics.extend(page.topics);
            if page.next_page_token.is_empty() {
                return Ok(topics);
            }
            if page.next_page_token == request.page_token {
                let what = "ListTopics gave the same page again".to_owned();
                return Err(ClientError::Protocol { what });
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Describes a topic: settings, and each partition with its offsets and sizes.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found), and what any call meets.
    pub async fn describe_topic(
        &self,
        topic: &TopicName,
        include_segments: bool,
    ) -> Result<v1::DescribeTopicResponse, ClientError> {
        let request = v1::DescribeTopicRequest {
            name: topic.to_string(),
            include_segments,
        };
        self.call_topics("DescribeTopic", |mut topics| {
            let request = request.clone();
            async move { topics.describe_topic(request).await }
        })
        .await
    }

    /// Changes settings, all or none: sets some, gives others their defaults back.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not allowed), and what any call meets.
    pub async fn alter_topic(
        &self,
        topic: &TopicName,
        set: HashMap<String, String>,
        reset: Vec<String>,
        options: AdminOptions,
    ) -> Result<v1::TopicSummary, ClientError> {
        let request = v1::AlterTopicRequest {
            name: topic.to_string(),
            set,
            reset,
            validate_only: options.validate_only,
        };
        let response = self
            .call_topics("AlterTopic", |mut topics| {
                let request = request.clone();
                async move { topics.alter_topic(request).await }
            })
            .await?;
        summary(response.topic)
    }

    /// Makes a topic have `total` partitions, more than it has. Keys may go to others from then on.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not allowed), and what any call meets.
    pub async fn add_partitions(
        &self,
        topic: &TopicName,
        total: u32,
    ) -> Result<v1::TopicSummary, ClientError> {
        let request = v1::AddPartitionsRequest {
            name: topic.to_string(),
            total,
        };
        let response = self
            .call_topics("AddPartitions", |mut topics| {
                let request = request.clone();
                async move { topics.add_partitions(request).await }
            })
            .await?;
        summary(response.topic)
    }

    /// Deletes a topic and all of its records, for good.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not allowed), and what any call meets.
    pub async fn delete_topic(&self, topic: &TopicName) -> Result<(), ClientError> {
        let request = v1::DeleteTopicRequest {
            name: topic.to_string(),
        };
        self.call_topics("DeleteTopic", |mut topics| {
            let request = request.clone();
            async move { topics.delete_topic(request).await }
        })
        .await?;
        Ok(())
    }

    /// Looks up an offset in each of the partitions; the answers are in the same order.
    ///
    /// # Errors
    /// [`ClientError::NotLookedUp`] for the first partition that failed, and what any call meets.
    pub async fn list_offsets(
        &self,
        topic: &TopicName,
        specs: &[(PartitionId, OffsetSpec)],
    ) -> Result<Vec<ListedOffset>, ClientError> {
        let request = v1::ListOffsetsRequest {
            partitions: specs
                .iter()
                .map(|&(partition, at)| v1::ListOffsetsPartition {
                    topic: topic.to_string(),
                    partition: partition.get(),
                    at: Some(at.into()),
                })
                .collect(),
        };
        let response = self
            .call_log("ListOffsets", |mut log| {
                let request = request.clone();
                async move { log.list_offsets(request).await }
            })
            .await?;
        check_count("ListOffsets", response.partitions.len(), specs.len())?;
        response
            .partitions
            .into_iter()
            .map(|found| {
                let partition = PartitionId::new(found.partition);
                if let Some(source) = in_partition(found.error) {
                    return Err(ClientError::NotLookedUp { partition, source });
                }
                Ok(ListedOffset {
                    partition,
                    offset: offset(found.offset)?,
                    timestamp: found.timestamp_ms.map(Timestamp::from_millis),
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
        let request = v1::DeleteRecordsRequest {
            topic: topic.to_string(),
            partitions: before
                .iter()
                .map(|&(partition, before)| v1::DeleteRecordsPartition {
                    partition: partition.get(),
                    before: Some(before.into()),
                })
                .collect(),
        };
        let response = self
            .call_log("DeleteRecords", |mut log| {
                let request = request.clone();
                async move { log.delete_records(request).await }
            })
            .await?;
        check_count("DeleteRecords", response.partitions.len(), before.len())?;
        response
            .partitions
            .into_iter()
            .map(|deleted| {
                let partition = PartitionId::new(deleted.partition);
                if let Some(source) = in_partition(deleted.error) {
                    return Err(ClientError::NotDeleted { partition, source });
                }
                Ok((partition, offset(deleted.log_start_offset)?))
            })
            .collect()
    }
}

fn summary(topic: Option<v1::TopicSummary>) -> Result<v1::TopicSummary, ClientError> {
    topic.ok_or_else(|| ClientError::Protocol {
        what: "the answer has no topic".to_owned(),
    })
}

fn check_count(call: &str, found: usize, asked: usize) -> Result<(), ClientError> {
    if found == asked {
        return Ok(());
    }
    let what = format!("{call} answered for {found} partitions of the {asked} asked for");
    Err(ClientError::Protocol { what })
}

/// The error that stands beside a partition of an answer.
fn in_partition(error: Option<tonic_types::Status>) -> Option<Box<ClientError>> {
    error.map(|error| Box::new(ClientError::from_message(&error)))
}

/// The offset in a field of the API.
pub(crate) fn offset(value: u64) -> Result<Offset, ClientError> {
    Offset::new(value).ok_or_else(|| ClientError::Protocol {
        what: format!("{value} is no offset"),
    })
}
