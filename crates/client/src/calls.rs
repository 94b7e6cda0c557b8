//! Calls that any broker can answer: one that does not is passed over.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tidelog_proto::v1;
use tidelog_proto::v1::cluster_client::ClusterClient;
use tidelog_proto::v1::groups_client::GroupsClient;
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::topics_client::TopicsClient;
use tidelog_record::TopicName;
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::brokers::Route;
use crate::{Client, ClientError};

/// How long a broker may take to answer a question before another one is asked too.
const ASK_ANOTHER_AFTER: Duration = Duration::from_millis(300);

/// How many brokers are asked the same at the same time.
const ASKED_AT_ONCE_MAX: usize = 3;

/// What a call does, and so how it may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing: another broker may be asked too.
    Question,
    /// Something that must not be done twice. It goes to another broker only if no connection
    /// could be made to the first.
    Action,
    /// The same, but takes long.
    Change,
}

fn kind_of(operation: &str) -> Kind {
    match operation {
        "DescribeTopic" | "ListTopics" | "DescribeCluster" | "ListPartitions" | "InitProducer"
        | "ListGroups" | "FindCoordinator" => Kind::Question,
        "CreateTopic" | "AlterTopic" | "AddPartitions" | "DeleteTopic" | "ReassignPartition"
        | "CancelReassignment" | "SetLeader" | "DrainBroker" | "AddBroker" | "RemoveBroker"
        | "ReplaceBroker" | "RecoverCluster" => Kind::Change,
        _ => Kind::Action,
    }
}

/// A call under way.
struct Attempt<F> {
    route: Route,
    answer: Pin<Box<F>>,
}

impl Client {
    /// Makes a call on the service `Log`.
    pub(crate) async fn call_log<T, F>(
        &self,
        operation: &'static str,
        call: impl Fn(LogClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let candidates = self.candidates();
        self.call(operation, candidates, |route| call(self.log_of(route)))
            .await
    }

    /// Makes a call on the service `Topics`.
    pub(crate) async fn call_topics<T, F>(
        &self,
        operation: &'static str,
        call: impl Fn(TopicsClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let candidates = self.candidates();
        self.call(operation, candidates, |route| call(self.topics_of(route)))
            .await
    }

    /// Makes a call on the service `Cluster`.
    pub(crate) async fn call_cluster<T, F>(
        &self,
        operation: &'static str,
        call: impl Fn(ClusterClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let bytes_max = self.config().message_bytes_max;
        self.call(operation, self.candidates(), |route| {
            let client = ClusterClient::new(route.channel.clone());
            call(client.max_decoding_message_size(bytes_max))
        })
        .await
    }

    /// Makes a call on the service `Groups` that any broker answers.
    pub(crate) async fn call_groups<T, F>(
        &self,
        operation: &'static str,
        call: impl Fn(GroupsClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let candidates = self.candidates();
        self.call(operation, candidates, |route| call(self.groups_of(route)))
            .await
    }

    pub(crate) fn groups_of(&self, route: &Route) -> GroupsClient<Channel> {
        GroupsClient::new(route.channel.clone())
            .max_decoding_message_size(self.config().message_bytes_max)
    }

    pub(crate) fn topics_of(&self, route: &Route) -> TopicsClient<Channel> {
        TopicsClient::new(route.channel.clone())
            .max_decoding_message_size(self.config().message_bytes_max)
    }

    /// Describes a topic as one broker sees it, and learns from that who leads.
    pub(crate) async fn ask_topic(
        &self,
        topic: &TopicName,
        include_segments: bool,
    ) -> Result<v1::DescribeTopicResponse, ClientError> {
        let request = v1::DescribeTopicRequest {
            name: topic.to_string(),
            include_segments,
        };
        let described = self
            .call("DescribeTopic", self.candidates_for_leaders(), |route| {
                let mut topics = self.topics_of(route);
                let request = request.clone();
                async move { topics.describe_topic(request).await }
            })
            .await?;
        self.learn(topic, &described);
        Ok(described)
    }

    /// Makes a call on the first of `candidates` that answers.
    async fn call<T, F>(
        &self,
        operation: &'static str,
        candidates: Vec<Arc<str>>,
        call: impl Fn(&Route) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let kind = kind_of(operation);
        let after = match kind {
            Kind::Change => self.config().change_timeout,
            Kind::Question | Kind::Action => self.config().request_timeout,
        };
        let mut candidates = candidates.into_iter();
        let mut next_attempt = || {
            let route = candidates.by_ref().find_map(|at| self.route_to(&at))?;
            let answer = Box::pin(call(&route));
            Some(Attempt { route, answer })
        };
        let mut attempts: Vec<Attempt<F>> = Vec::new();
        let mut deadline = Instant::now() + after;
        let mut last = ClientError::TimedOut { operation, after };
        loop {
            attempts.extend(next_attempt());
            if attempts.is_empty() {
                return Err(last);
            }
            let now = Instant::now();
            if kind != Kind::Question {
                deadline = now + after;
            }
            let mut ask_another_at = (kind == Kind::Question).then(|| now + ASK_ANOTHER_AFTER);
            // Until one of them has its end.
            let (route, answer) = loop {
                let another = async {
                    match ask_another_at {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    ended = first_of(&mut attempts) => break ended,
                    () = another => {
                        attempts.extend(next_attempt());
                        let is_enough = attempts.len() >= ASKED_AT_ONCE_MAX;
                        ask_another_at = ask_another_at
                            .filter(|_| !is_enough)
                            .map(|at| at + ASK_ANOTHER_AFTER);
                    }
                    () = sleep_until(deadline) => {
                        for attempt in &attempts {
                            self.route_failed(&attempt.route);
                        }
                        return Err(ClientError::TimedOut { operation, after });
                    }
                }
            };
            let status = match answer {
                Ok(response) => {
                    self.route_answered(&route);
                    return Ok(response.into_inner());
                }
                Err(status) => status,
            };
            let error = self.error_over(&route, &status);
            let error = self.explained(&route, error).await;
            let may_go_on = match &error {
                // No broker got it, so that trying elsewhere cannot do it twice.
                error if error.is_wrong_address() => true,
                error => kind == Kind::Question && error.is_retryable(),
            };
            if !may_go_on {
                return Err(error);
            }
            last = error;
        }
    }
}

/// Waits until one of them has its end, and takes that out.
async fn first_of<T, F>(attempts: &mut Vec<Attempt<F>>) -> (Route, F::Output)
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    std::future::poll_fn(|context| {
        for at in 0..attempts.len() {
            if let Poll::Ready(output) = attempts[at].answer.as_mut().poll(context) {
                return Poll::Ready((attempts.swap_remove(at).route, output));
            }
        }
        Poll::Pending
    })
    .await
}
