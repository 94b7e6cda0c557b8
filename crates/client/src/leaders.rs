//! Which broker leads each partition, as far as that is known.

use std::collections::HashMap;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_record::{PartitionId, TopicName};

/// So many partitions are kept in mind. What is forgotten is learned again from the broker that is
/// asked instead.
const PARTITIONS_MAX: usize = 1_000_000;

/// The leaders of the partitions of some topics.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    topics: HashMap<TopicName, TopicLeaders>,
}

#[derive(Debug, Default)]
struct TopicLeaders {
    /// A topic that was made anew has another, and its epochs begin anew too.
    topic_id: Bytes,
    leaders: HashMap<PartitionId, Leader>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leader {
    /// `None` while nobody leads.
    node: Option<u32>,
    epoch: u32,
    /// It did not answer, or says that it does not lead: what is said next is taken even if it
    /// seems older.
    is_doubtful: bool,
}

impl Leaders {
    /// The node that leads a partition.
    pub(crate) fn leader(&self, topic: &TopicName, partition: PartitionId) -> Option<u32> {
        self.topics.get(topic)?.leaders.get(&partition)?.node
    }

    /// The epoch of the last leader of a partition that is known of.
    pub(crate) fn epoch(&self, topic: &TopicName, partition: PartitionId) -> Option<u32> {
        Some(self.topics.get(topic)?.leaders.get(&partition)?.epoch)
    }

    /// Whether a broker described the topic.
    pub(crate) fn is_known(&self, topic: &TopicName) -> bool {
        self.topics.contains_key(topic)
    }

    /// Takes what a broker says of a whole topic. Gives whether any leader changed.
    pub(crate) fn learn(
        &mut self,
        topic: &TopicName,
        described: &v1::DescribeTopicResponse,
    ) -> bool {
        let held: usize = self.topics.values().map(|topic| topic.leaders.len()).sum();
        if held + described.partitions.len() > PARTITIONS_MAX {
            self.topics.retain(|other, _| other == topic);
        }
        let id = described.topic.as_ref().map(|topic| topic.topic_id.clone());
        let id = id.unwrap_or_default();
        let known = self.topics.entry(topic.clone()).or_default();
        let mut is_changed = false;
        if known.topic_id != id {
            is_changed = !known.leaders.is_empty();
            known.leaders.clear();
            known.topic_id = id;
        }
        for partition in &described.partitions {
            let place = PartitionId::new(partition.partition);
            is_changed |= known.take(place, partition.leader, partition.leader_epoch);
        }
        is_changed
    }

    /// Takes what a broker says of one partition. Gives whether its leader changed.
    pub(crate) fn learn_one(
        &mut self,
        topic: &TopicName,
        partition: PartitionId,
        node: u32,
        epoch: u32,
    ) -> bool {
        let known = self.topics.entry(topic.clone()).or_default();
        known.take(partition, Some(node), epoch)
    }

    /// Whether it is not known, or in doubt, who leads some partition of a topic.
    pub(crate) fn is_unsure(&self, topic: &TopicName) -> bool {
        self.topics.get(topic).is_some_and(|topic| {
            let mut leaders = topic.leaders.values();
            leaders.any(|leader| leader.is_doubtful || leader.node.is_none())
        })
    }

    /// The leader did not answer, or does not lead.
    pub(crate) fn doubt(&mut self, topic: &TopicName, partition: PartitionId) {
        if let Some(topic) = self.topics.get_mut(topic)
            && let Some(leader) = topic.leaders.get_mut(&partition)
        {
            leader.is_doubtful = true;
        }
    }
}

impl TopicLeaders {
    fn take(&mut self, partition: PartitionId, node: Option<u32>, epoch: u32) -> bool {
        let known = self.leaders.get(&partition).copied();
        // A broker that lags behind must not undo what is known to be newer.
        if known.is_some_and(|known| epoch < known.epoch && !known.is_doubtful) {
            return false;
        }
        let before = known.and_then(|known| known.node);
        // Whom we doubt, we go on doubting until somebody else or a newer time is named.
        let is_doubtful = known
            .is_some_and(|known| known.is_doubtful && known.node == node && epoch <= known.epoch);
        let leader = Leader {
            node,
            epoch,
            is_doubtful,
        };
        self.leaders.insert(partition, leader);
        before != node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId::new(0);

    fn topic() -> TopicName {
        TopicName::new("t").unwrap()
    }

    fn described(id: &'static [u8], leader: Option<u32>, epoch: u32) -> v1::DescribeTopicResponse {
        v1::DescribeTopicResponse {
            topic: Some(v1::TopicSummary {
                topic_id: Bytes::from_static(id),
                ..Default::default()
            }),
            partitions: vec![v1::PartitionDescription {
                leader,
                leader_epoch: epoch,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn older_news_count_only_of_a_leader_that_is_in_doubt() {
        let (topic, mut leaders) = (topic(), Leaders::default());
        assert!(!leaders.is_known(&topic));
        assert!(leaders.learn(&topic, &described(b"1", Some(1), 5)));
        assert!(leaders.learn_one(&topic, P, 2, 6));
        assert!(
            !leaders.learn(&topic, &described(b"1", Some(1), 5)),
            "older"
        );
        assert_eq!(leaders.leader(&topic, P), Some(2));
        assert!(!leaders.is_unsure(&topic));
        leaders.doubt(&topic, P);
        assert!(!leaders.learn(&topic, &described(b"1", Some(2), 6)));
        assert!(leaders.is_unsure(&topic));
        assert!(leaders.learn(&topic, &described(b"1", Some(3), 0)));
        assert!(!leaders.is_unsure(&topic));
        assert!(leaders.learn(&topic, &described(b"1", None, 7)));
        assert_eq!(leaders.leader(&topic, P), None);
        assert!(leaders.is_unsure(&topic));
    }

    #[test]
    fn a_topic_that_is_made_anew_begins_with_its_first_epoch() {
        let (topic, mut leaders) = (topic(), Leaders::default());
        leaders.learn(&topic, &described(b"1", Some(1), 5));
        assert!(leaders.learn(&topic, &described(b"2", Some(3), 1)));
        assert_eq!(leaders.leader(&topic, P), Some(3));
    }
}
