//! Service `tidelog.v1.Topics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidelog_broker::{Broker, NewTopic, Replication, setting_specs};
use tidelog_proto::v1::topics_client::TopicsClient;
use tidelog_proto::v1::topics_server::Topics;
use tidelog_proto::v1::{
    AddPartitionsRequest, AddPartitionsResponse, AlterTopicRequest, AlterTopicResponse,
    CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DescribeTopicRequest, DescribeTopicResponse, ListTopicsRequest, ListTopicsResponse,
    ReplicaAssignment,
};
use tidelog_record::TopicName;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::convert::{topic_description, topic_summary};
use super::status::RequestError;
use super::{Shared, elsewhere};
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

    /// Waits for a moment until what another broker has decided is seen here too.
    async fn carried_out(&self, is_so: impl Fn(&Broker) -> bool) {
        let broker = &self.shared.broker;
        let mut changes = broker.metadata_changes();
        let seen = changes.wait_for(|_| is_so(broker));
        // Whoever asks later than that finds it.
        drop(tokio::time::timeout(CARRIED_OUT_MAX, seen).await);
    }
}

/// How long a change that was made elsewhere is waited for here.
const CARRIED_OUT_MAX: Duration = Duration::from_secs(2);

#[tonic::async_trait]
impl Topics for TopicsService {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let create = || async {
            let request = request.clone();
            let assignment = assignment(&request.assignment);
            let new = NewTopic {
                name: request.name,
                // As many as are assigned, where that is said instead.
                partitions: match assignment.len() {
                    0 => request.partitions.max(1),
                    _ => request.partitions,
                },
                settings: request.settings.into_iter().collect(),
                validate_only: request.validate_only,
            };
            let factor = Some(request.replication_factor).filter(|factor| *factor > 0);
            let replication = Replication { factor, assignment };
            let topic = broker.create_replicated(new, replication).await?;
            Ok(CreateTopicResponse {
                topic: Some(topic_summary(topic)),
            })
        };
        let passed_on = |channel, request| async move {
            TopicsClient::new(channel).create_topic(request).await
        };
        let created = self
            .shared
            .decided(is_passed_on, None, &request, create, passed_on)
            .await?;
        if !request.validate_only {
            self.carried_out(|broker| broker.partitions_of(&request.name).is_ok())
                .await;
            if !is_passed_on {
                broker.await_settled(&request.name).await;
            }
        }
        Ok(Response::new(created))
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
        let known = self.shared.broker.known_brokers();
        Ok(held(topic_description(description, &known), room))
    }

    async fn alter_topic(
        &self,
        request: Request<AlterTopicRequest>,
    ) -> Result<Response<AlterTopicResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let set: BTreeMap<_, _> = request.set.clone().into_iter().collect();
        // Resets are looked at first, and nothing is wrong with a known one but what it leaves.
        let unknown = |name: &String| setting_specs().iter().all(|spec| spec.name != name);
        let field = if set.is_empty() || request.reset.iter().any(unknown) {
            "reset"
        } else {
            "set"
        };
        let broker = &self.shared.broker;
        let alter = || async {
            let (set, reset) = (set.clone(), request.reset.clone());
            let altered = broker.alter_topic(&request.name, set, reset, request.validate_only);
            Ok(AlterTopicResponse {
                topic: Some(topic_summary(altered.await?)),
            })
        };
        let passed_on =
            |channel, request| async move { TopicsClient::new(channel).alter_topic(request).await };
        let altered = self
            .shared
            .decided(is_passed_on, Some(field), &request, alter, passed_on)
            .await?;
        Ok(Response::new(altered))
    }

    async fn add_partitions(
        &self,
        request: Request<AddPartitionsRequest>,
    ) -> Result<Response<AddPartitionsResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let add = || async {
            let assignment = assignment(&request.assignment);
            let added = broker.add_assigned(&request.name, request.total, assignment);
            Ok(AddPartitionsResponse {
                topic: Some(topic_summary(added.await?)),
            })
        };
        let passed_on = |channel, request| async move {
            TopicsClient::new(channel).add_partitions(request).await
        };
        let added = self
            .shared
            .decided(is_passed_on, Some("total"), &request, add, passed_on)
            .await?;
        self.carried_out(|broker| {
            let count = broker.partitions_of(&request.name);
            count.is_ok_and(|count| count >= request.total)
        })
        .await;
        if !is_passed_on {
            broker.await_settled(&request.name).await;
        }
        Ok(Response::new(added))
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let broker = &self.shared.broker;
        let delete = || async {
            broker.delete_topic(&request.name).await?;
            Ok(DeleteTopicResponse {})
        };
        let passed_on = |channel, request| async move {
            TopicsClient::new(channel).delete_topic(request).await
        };
        let deleted = self
            .shared
            .decided(is_passed_on, None, &request, delete, passed_on)
            .await?;
        self.carried_out(|broker| broker.partitions_of(&request.name).is_err())
            .await;
        Ok(Response::new(deleted))
    }
}

fn assignment(assignment: &[ReplicaAssignment]) -> Vec<Vec<u32>> {
    assignment.iter().map(|one| one.node_ids.clone()).collect()
}
