//! What a producer has to know of topics before it can choose partitions.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use parking_lot::Mutex;
use tidelog_proto::v1;
use tidelog_record::{PartitionId, TopicName, partition_for_key};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{ProducerConfig, ProducerRecord};
use crate::{Client, ClientError};

/// What was learned about a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// How many partitions it has.
    pub partitions: NonZeroU32,
    /// Its `max.message.bytes`: the most bytes of one batch, as it is stored.
    pub batch_bytes_max: Option<usize>,
}

/// The topics that a producer has met.
#[derive(Debug)]
pub(crate) struct Topics {
    known: Mutex<HashMap<TopicName, Known>>,
    /// One question at a time: many senders start at once with the same topic.
    asking: Semaphore,
}

#[derive(Debug)]
struct Known {
    facts: TopicFacts,
    learned_at: Instant,
    /// Where records without a key go for now.
    sticky: PartitionId,
}

impl Topics {
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::new(HashMap::new()),
            asking: Semaphore::new(1),
        }
    }

    /// What is known of the topic, asking the broker if it is not, or no longer.
    pub(crate) async fn facts(
        &self,
        client: &Client,
        topic: &TopicName,
        config: &ProducerConfig,
    ) -> Result<TopicFacts, ClientError> {
        let age_max = config.topic_facts_age_max;
        if let Some(facts) = self.fresh(topic, age_max) {
            return Ok(facts);
        }
        let asking = self.ask(client, topic, config);
        tokio::time::timeout(config.delivery_timeout, asking)
            .await
            .unwrap_or(Err(ClientError::TimedOut {
                operation: "DescribeTopic",
                after: config.delivery_timeout,
            }))
    }

    async fn ask(
        &self,
        client: &Client,
        topic: &TopicName,
        config: &ProducerConfig,
    ) -> Result<TopicFacts, ClientError> {
        let _one_at_a_time = self
            .asking
            .acquire()
            .await
            .map_err(|_| ClientError::Closed)?;
        if let Some(facts) = self.fresh(topic, config.topic_facts_age_max) {
            return Ok(facts);
        }
        let began_at = Instant::now();
        let mut retry = 0;
        loop {
            let error = match client.ask_topic(topic, false).await {
                Ok(described) => {
                    let facts = facts_of(&described)?;
                    self.learn(topic, facts);
                    return Ok(facts);
                }
                Err(error) => error,
            };
            retry += 1;
            let wait = config.backoff.wait(retry, error.retry_after());
            if !error.is_retryable() || began_at.elapsed() + wait >= config.delivery_timeout {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn fresh(&self, topic: &TopicName, age_max: Duration) -> Option<TopicFacts> {
        let known = self.known.lock();
        let topic = known.get(topic)?;
        (topic.learned_at.elapsed() < age_max).then_some(topic.facts)
    }

    pub(super) fn learn(&self, topic: &TopicName, facts: TopicFacts) {
        let sticky = random_partition(facts.partitions);
        let known = Known {
            facts,
            learned_at: Instant::now(),
            sticky,
        };
        self.known.lock().insert(topic.clone(), known);
    }

    /// Asks again before the next record: the topic may have been deleted or made anew.
    pub(crate) fn forget(&self, topic: &TopicName) {
        self.known.lock().remove(topic);
    }

    /// The partition for a record: its own, or that of its key, or else the same as before as long
    /// as `goes_on` says that records are being gathered there, and then any other.
    pub(crate) fn partition(
        &self,
        record: &ProducerRecord,
        facts: TopicFacts,
        goes_on: impl FnOnce(PartitionId) -> bool,
    ) -> PartitionId {
        if let Some(partition) = record.partition {
            return partition;
        }
        if let Some(key) = &record.key {
            return partition_for_key(key, facts.partitions);
        }
        let mut known = self.known.lock();
        let Some(known) = known.get_mut(&record.topic) else {
            return random_partition(facts.partitions);
        };
        if !goes_on(known.sticky) {
            known.sticky = other_partition(known.sticky, known.facts.partitions);
        }
        known.sticky
    }
}

/// Any partition but this one, if there is another.
fn other_partition(partition: PartitionId, partitions: NonZeroU32) -> PartitionId {
    let count = partitions.get();
    if count == 1 {
        return partition;
    }
    let next = u64::from(partition.get()) + u64::from(fastrand::u32(1..count));
    let next = next % u64::from(count);
    PartitionId::new(u32::try_from(next).expect("below the partition count"))
}

fn random_partition(partitions: NonZeroU32) -> PartitionId {
    PartitionId::new(fastrand::u32(..partitions.get()))
}

fn facts_of(described: &v1::DescribeTopicResponse) -> Result<TopicFacts, ClientError> {
    let partitions = described.topic.as_ref().map_or(0, |topic| topic.partitions);
    let partitions = NonZeroU32::new(partitions).ok_or_else(|| ClientError::Protocol {
        what: "DescribeTopic names no partitions".to_owned(),
    })?;
    let limit = described
        .settings
        .iter()
        .find(|setting| setting.name == "max.message.bytes");
    let batch_bytes_max = limit.and_then(|setting| setting.value.parse().ok());
    Ok(TopicFacts {
        partitions,
        batch_bytes_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(partitions: u32) -> TopicFacts {
        TopicFacts {
            partitions: NonZeroU32::new(partitions).unwrap(),
            batch_bytes_max: None,
        }
    }

    #[test]
    fn partitions_are_given_hashed_or_sticky() {
        let topics = Topics::new();
        let topic = TopicName::new("t").unwrap();
        topics.learn(&topic, facts(6));
        let record = ProducerRecord::new(topic.clone());
        let partition = |record, goes_on| topics.partition(record, facts(6), |_| goes_on);
        let given = record.clone().key("uw").partition(PartitionId::new(9));
        assert_eq!(partition(&given, true), PartitionId::new(9));
        let keyed = record.clone().key("foobar");
        // murmur2("foobar") is -790332482, as Kafka's own tests have it.
        let expected = (-790_332_482_i32).cast_unsigned() & 0x7fff_ffff;
        assert_eq!(partition(&keyed, false).get(), expected % 6);

        for _ in 0..50 {
            let before = partition(&record, true);
            assert_eq!(partition(&record, true), before);
            let after = partition(&record, false);
            assert!(after != before && after.get() < 6);
        }
    }

    #[test]
    fn a_single_partition_stays() {
        let topics = Topics::new();
        let topic = TopicName::new("t").unwrap();
        topics.learn(&topic, facts(1));
        let record = ProducerRecord::new(topic);
        assert_eq!(
            topics.partition(&record, facts(1), |_| false),
            PartitionId::new(0)
        );
    }
}
