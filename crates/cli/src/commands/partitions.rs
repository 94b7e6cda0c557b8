//! Which partitions a command is about.

use tidelog_client::{Client, PartitionId, TopicName};

use crate::failure::Failure;

/// Those given, each once and in order, or all of the topic.
pub(crate) async fn partitions_of(
    client: &Client,
    topic: &TopicName,
    given: &[u32],
) -> Result<Vec<PartitionId>, Failure> {
    let mut numbers = given.to_vec();
    if numbers.is_empty() {
        let described = client.describe_topic(topic, false).await?;
        numbers = described
            .partitions
            .iter()
            .map(|partition| partition.partition)
            .collect();
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers.into_iter().map(PartitionId::new).collect())
}
