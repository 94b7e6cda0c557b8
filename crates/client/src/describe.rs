//! A topic as the leaders of its partitions see it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tidelog_proto::v1;
use tidelog_record::{PartitionId, TopicName};

use crate::Client;
use crate::brokers::Route;

/// How long a leader may take to describe its partitions. Without it the description is good enough.
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// How many leaders are asked at the same time.
const ASKED_AT_ONCE_MAX: usize = 8;

impl Client {
    /// Puts in place of what one broker knows of the partitions what their leaders say, as far as
    /// they answer.
    pub(crate) async fn ask_leaders_to_describe(
        &self,
        topic: &TopicName,
        include_segments: bool,
        described: &mut v1::DescribeTopicResponse,
    ) {
        let asked = self.route().address;
        let mut leaders = BTreeMap::<Arc<str>, Route>::new();
        for partition in described.partitions.iter().filter(|p| p.leader.is_some()) {
            let route = self.route_of(topic, PartitionId::new(partition.partition));
            if route.address != asked || partition.is_elsewhere {
                leaders.insert(Arc::clone(&route.address), route);
            }
        }
        let (mut theirs, mut brokers) = (HashMap::new(), BTreeMap::new());
        let leaders: Vec<_> = leaders.into_values().collect();
        for leaders in leaders.chunks(ASKED_AT_ONCE_MAX) {
            let asking = leaders
                .iter()
                .map(|route| self.describe_at(route, topic, include_segments));
            for (route, answer) in leaders.iter().zip(join_all(asking).await) {
                if let Some(answer) = answer.filter(|answer| is_same(answer, described)) {
                    brokers.extend(answer.brokers.into_iter().map(|it| (it.node_id, it)));
                    for partition in answer.partitions {
                        let place = PartitionId::new(partition.partition);
                        let is_led = self.route_of(topic, place).address == route.address;
                        if is_led && !partition.is_elsewhere {
                            theirs.insert(partition.partition, partition);
                        }
                    }
                }
            }
        }
        for partition in &mut described.partitions {
            if let Some(led) = theirs.remove(&partition.partition) {
                *partition = led;
            }
        }
        for broker in &described.brokers {
            brokers.remove(&broker.node_id);
        }
        described.brokers.extend(brokers.into_values());
    }

    async fn describe_at(
        &self,
        route: &Route,
        topic: &TopicName,
        include_segments: bool,
    ) -> Option<v1::DescribeTopicResponse> {
        let request = v1::DescribeTopicRequest {
            name: topic.to_string(),
            include_segments,
        };
        let after = LEADER_TIMEOUT.min(self.config().request_timeout);
        let mut topics = self.topics_of(route);
        let asking = tokio::time::timeout(after, topics.describe_topic(request));
        match asking.await {
            Ok(Ok(response)) => Some(response.into_inner()),
            Ok(Err(error)) => {
                tracing::debug!(%error, address = %route.address, "a leader does not describe");
                None
            }
            Err(_) => {
                tracing::debug!(address = %route.address, "a leader does not answer");
                None
            }
        }
    }
}

/// Whether both are of the same topic, and not of one that was made anew in between.
fn is_same(one: &v1::DescribeTopicResponse, other: &v1::DescribeTopicResponse) -> bool {
    let id = |described: &v1::DescribeTopicResponse| {
        let topic = described.topic.as_ref();
        topic.map(|topic| topic.topic_id.clone())
    };
    id(one) == id(other)
}
