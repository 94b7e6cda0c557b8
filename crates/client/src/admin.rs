//! Administration of topics.

use std::collections::HashMap;

use tidelog_proto::v1;
use tidelog_record::TopicName;

use crate::{Client, ClientError};

/// How a change shall be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdminOptions {
    /// Checks everything, changes nothing.
    pub validate_only: bool,
}

/// A topic to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// How many partitions it gets; 0: as many as `assignment` says, or one.
    pub partitions: u32,
    /// Settings under Kafka's names; what is not here has its default.
    pub settings: HashMap<String, String>,
    /// How many replicas each partition gets. 0, the default: 3, or 1 where there are fewer brokers.
    pub replication_factor: u32,
    /// The brokers of each partition, the preferred leader first; empty, the default: chosen.
    pub assignment: Vec<Vec<u32>>,
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
        let new = NewTopic {
            partitions,
            settings,
            ..NewTopic::default()
        };
        self.create_topic_as(topic, new, options).await
    }

    /// Makes a topic, and says how many replicas its partitions have, or where.
    ///
    /// # Errors
    /// [`ClientError::Broker`] when it exists or something is not allowed, and what any call meets.
    pub async fn create_topic_as(
        &self,
        topic: &TopicName,
        new: NewTopic,
        options: AdminOptions,
    ) -> Result<v1::TopicSummary, ClientError> {
        let request = v1::CreateTopicRequest {
            name: topic.to_string(),
            partitions: new.partitions,
            settings: new.settings,
            validate_only: options.validate_only,
            replication_factor: new.replication_factor,
            assignment: assignment(&new.assignment),
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

    /// Describes a topic: settings, and each partition with its offsets and sizes, as its leader sees
    /// them. Where that does not answer, as the broker that was asked does; a partition that it has no
    /// replica of is `is_elsewhere` then.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found), and what any call meets.
    pub async fn describe_topic(
        &self,
        topic: &TopicName,
        include_segments: bool,
    ) -> Result<v1::DescribeTopicResponse, ClientError> {
        let mut described = self.ask_topic(topic, include_segments).await?;
        self.ask_leaders_to_describe(topic, include_segments, &mut described)
            .await;
        Ok(described)
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
        self.add_partitions_on(topic, total, &[]).await
    }

    /// The same, and says which brokers each new partition has, the preferred leader first.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not allowed), and what any call meets.
    pub async fn add_partitions_on(
        &self,
        topic: &TopicName,
        total: u32,
        brokers: &[Vec<u32>],
    ) -> Result<v1::TopicSummary, ClientError> {
        let request = v1::AddPartitionsRequest {
            name: topic.to_string(),
            total,
            assignment: assignment(brokers),
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
}

fn assignment(brokers: &[Vec<u32>]) -> Vec<v1::ReplicaAssignment> {
    brokers
        .iter()
        .map(|node_ids| v1::ReplicaAssignment {
            node_ids: node_ids.clone(),
        })
        .collect()
}

fn summary(topic: Option<v1::TopicSummary>) -> Result<v1::TopicSummary, ClientError> {
    topic.ok_or_else(|| ClientError::Protocol {
        what: "the answer has no topic".to_owned(),
    })
}
