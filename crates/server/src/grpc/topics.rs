//! Service `tidelog.v1.Topics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidelog_broker::{NewTopic, setting_specs};
use tidelog_proto::v1::topics_server::Topics;
use tidelog_proto::v1::{
    AddPartitionsRequest, AddPartitionsResponse, AlterTopicRequest, AlterTopicResponse,
    CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DescribeTopicRequest, DescribeTopicResponse, ListTopicsRequest, ListTopicsResponse,
};
use tidelog_record::TopicName;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::Shared;
use super::convert::{topic_description, topic_summary};
use super::status::{RequestError, failure};
use crate::room::Alone;
use crate::transport::held;

/// How many topics a page of the list has at most.
const PAGE_SIZE_MAX: u32 = 1000;

/// What the parts of a topic's description take at most, but for a fault's words.
const DESCRIPTION: usize = 16 * 1024;
const PARTITION_DESCRIPTION: usize = 256;
const SEGMENT_DESCRIPTION: usize = 128;

/// How many topics are described at the same time: others need threads too.
const DESCRIBING_MAX: usize = 2;

/// What a topic takes in a list, with a few settings.
const TOPIC_SUMMARY: usize = 1024;

#[derive(Debug)]
pub(crate) struct TopicsService {
    shared: Arc<Shared>,
    /// Turns to describe a topic.
    describing: Semaphore,
}

impl TopicsService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            describing: Semaphore::new(DESCRIBING_MAX),
        }
    }
}

#[tonic::async_trait]
impl Topics for TopicsService {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let new = NewTopic {
            name: request.name,
            partitions: request.partitions.max(1),
            settings: request.settings.into_iter().collect(),
            validate_only: request.validate_only,
        };
        let topic = self.shared.broker.create_topic(new).await;
        let topic = topic.map_err(|e| self.shared.refuse(&e))?;
        Ok(Response::new(CreateTopicResponse {
            topic: Some(topic_summary(topic)),
        }))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let peer = self.shared.peer(&request);
        let request = request.into_inner();
        let page_size = match request.page_size {
            0 => PAGE_SIZE_MAX,
            size => size.min(PAGE_SIZE_MAX),
        };
        // A token is the last name of the page before: topics made or deleted in between neither
        // repeat nor hide others.
        let after = request.page_token;
        if !after.is_empty() && TopicName::new(&after).is_err() {
            return Err(self.shared.reject(RequestError::Value {
                field: "page_token",
                value: format!("{:?}", after.chars().take(32).collect::<String>()),
                allowed: "the next_page_token of the page before, or nothing",
            }));
        }
        let page_len = usize::try_from(page_size).expect("at most 1000");
        let room = peer
            .unsent_whole(page_len * TOPIC_SUMMARY, Alone::Goes)
            .await;
        let mut rest = self
            .shared
            .broker
            .topics()
            .into_iter()
            .filter(|topic| request.include_internal || !topic.internal)
            .filter(|topic| after.is_empty() || topic.name > after);
        let topics: Vec<_> = rest.by_ref().take(page_len).map(topic_summary).collect();
        let next_page_token = match (rest.next(), topics.last()) {
            (Some(_), Some(last)) => last.name.clone(),
            _ => String::new(),
        };
        let response = ListTopicsResponse {
            topics,
            next_page_token,
        };
        Ok(held(response, room))
    }

    async fn describe_topic(
        &self,
        request: Request<DescribeTopicRequest>,
    ) -> Result<Response<DescribeTopicResponse>, Status> {
        let peer = self.shared.peer(&request);
        let request = request.into_inner();
        // Every partition is asked, and every segment may be told.
        let describe = async |include_segments| {
            let turn = self.describing.acquire().await;
            let _turn = turn.expect("the turns are never closed");
            let (broker, name) = (self.shared.broker.clone(), request.name.clone());
            tokio::task::spawn_blocking(move || broker.describe_topic(&name, include_segments))
                .await
                .expect("it does not panic, and is not cancelled")
                .map_err(|e| self.shared.refuse(&e))
        };
        let partitions = self.shared.broker.partitions_of(&request.name);
        let partitions = partitions.map_err(|e| self.shared.refuse(&e))?;
        let mut len = DESCRIPTION + partitions as usize * PARTITION_DESCRIPTION;
        if request.include_segments {
            let _turn = peer.unsent_whole(len, Alone::Goes).await;
            let counted = describe(false).await?.partitions;
            let segments: usize = counted.iter().map(|one| one.segment_count).sum();
            len += segments * SEGMENT_DESCRIPTION;
        }
        let room = peer.unsent_whole(len, Alone::Goes).await;
        let description = describe(request.include_segments).await?;
        Ok(held(topic_description(description), room))
    }

    async fn alter_topic(
        &self,
        request: Request<AlterTopicRequest>,
    ) -> Result<Response<AlterTopicResponse>, Status> {
        let request = request.into_inner();
        let set: BTreeMap<_, _> = request.set.into_iter().collect();
        // Resets are looked at first, and nothing is wrong with a known one but what it leaves.
        let unknown = |name: &String| setting_specs().iter().all(|spec| spec.name != name);
        let field = if set.is_empty() || request.reset.iter().any(unknown) {
            "reset"
        } else {
            "set"
        };
        let altered = self
            .shared
            .broker
            .alter_topic(&request.name, set, request.reset, request.validate_only)
            .await;
        let topic = altered.map_err(|e| {
            failure(&e)
                .in_field(field)
                .status(self.shared.broker.metrics())
        })?;
        Ok(Response::new(AlterTopicResponse {
            topic: Some(topic_summary(topic)),
        }))
    }

    async fn add_partitions(
        &self,
        request: Request<AddPartitionsRequest>,
    ) -> Result<Response<AddPartitionsResponse>, Status> {
        let request = request.into_inner();
        let added = self
            .shared
            .broker
            .add_partitions(&request.name, request.total)
            .await;
        let topic = added.map_err(|e| {
            failure(&e)
                .in_field("total")
                .status(self.shared.broker.metrics())
        })?;
        Ok(Response::new(AddPartitionsResponse {
            topic: Some(topic_summary(topic)),
        }))
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        let deleted = self.shared.broker.delete_topic(&name).await;
        deleted.map_err(|e| self.shared.refuse(&e))?;
        Ok(Response::new(DeleteTopicResponse {}))
    }
}
