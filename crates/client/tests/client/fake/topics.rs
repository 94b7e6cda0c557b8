//! The topics of the fake broker.

use std::time::Duration;

use tidelog_proto::v1;
use tidelog_proto::v1::topics_server::Topics;
use tonic::{Code, Request, Response, Status};

use super::{Fake, error};

#[tonic::async_trait]
impl Topics for Fake {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        self.wait_until(|state| !state.is_held).await;
        let mut state = self.state();
        if state.partitions.contains_key(&request.name) {
            let message = format!("topic {:?} exists", request.name);
            return Err(error(Code::AlreadyExists, "TOPIC_EXISTS", &message, None));
        }
        if !request.validate_only {
            state
                .partitions
                .insert(request.name.clone(), request.partitions);
        }
        let topic = v1::TopicSummary {
            name: request.name,
            partitions: request.partitions,
            settings: request.settings,
            ..Default::default()
        };
        Ok(Response::new(v1::CreateTopicResponse {
            topic: Some(topic),
        }))
    }

    async fn list_topics(
        &self,
        request: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        // One a page.
        let after = request.into_inner().page_token;
        let state = self.state();
        let names: std::collections::BTreeSet<_> = state.partitions.keys().collect();
        let mut rest = names.into_iter().filter(|name| **name > after);
        let topics: Vec<_> = rest
            .by_ref()
            .take(1)
            .map(|name| v1::TopicSummary {
                name: name.clone(),
                ..Default::default()
            })
            .collect();
        let has_more = rest.next().is_some();
        let next_page_token = topics
            .first()
            .filter(|_| has_more)
            .map(|topic| topic.name.clone())
            .unwrap_or_default();
        Ok(Response::new(v1::ListTopicsResponse {
            topics,
            next_page_token,
        }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let name = request.into_inner().name;
        self.speak().await;
        {
            let mut state = self.state();
            state.describes += 1;
            if state.describe_failures > 0 {
                state.describe_failures -= 1;
                let retry = Some(Duration::from_millis(1));
                return Err(error(Code::Unavailable, "NOT_READY", "starting", retry));
            }
        }
        let partitions = self.topic_partitions(&name)?;
        let settings = self.state().settings.clone();
        Ok(Response::new(v1::DescribeTopicResponse {
            topic: Some(v1::TopicSummary {
                name,
                partitions,
                ..Default::default()
            }),
            settings: settings
                .into_iter()
                .map(|(name, value)| v1::Setting {
                    name,
                    value,
                    is_default: false,
                })
                .collect(),
            partitions: self.described(partitions),
            brokers: self.addresses(),
        }))
    }

    async fn alter_topic(
        &self,
        _: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        Err(Status::unimplemented("alter_topic"))
    }

    async fn add_partitions(
        &self,
        _: Request<v1::AddPartitionsRequest>,
    ) -> Result<Response<v1::AddPartitionsResponse>, Status> {
        // An answer that breaks the protocol.
        Ok(Response::new(v1::AddPartitionsResponse { topic: None }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        self.topic_partitions(&name)?;
        self.state().partitions.remove(&name);
        Ok(Response::new(v1::DeleteTopicResponse {}))
    }
}
