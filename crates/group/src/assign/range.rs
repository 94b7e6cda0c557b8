//! Contiguous ranges, topic by topic, as Kafka's `RangeAssignor` has them.
//!
//! Costs one step a partition and one a subscription.

use super::Assignment;
use super::index::{Given, Index, length};

pub(super) fn assign(index: &Index<'_>) -> Assignment {
    let mut given = Given::new(index);
    for topic in &index.topics {
        let subscribers = &index.pools[topic.pool].subscribers;
        let each = length(topic.partitions) / subscribers.len();
        let one_more = length(topic.partitions) % subscribers.len();
        let mut partitions = 0..topic.partitions;
        for (place, member) in subscribers.iter().enumerate() {
            let len = each + usize::from(place < one_more);
            for partition in partitions.by_ref().take(len) {
                given.give(*member, topic.id, partition);
            }
        }
    }
    given.into_assignment(index)
}
