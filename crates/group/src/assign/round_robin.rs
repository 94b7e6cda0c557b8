//! One partition after the other to one member after the other, as Kafka's `RoundRobinAssignor` does.
//!
//! A member that does not subscribe to the topic is passed over and has lost its turn. Who is next is
//! looked up in the list of subscribers, so a partition costs a binary search, however many do not
//! subscribe.

use super::Assignment;
use super::index::{Given, Index};

pub(super) fn assign(index: &Index<'_>) -> Assignment {
    let mut given = Given::new(index);
    // Whose turn it is, or behind the last member, from where it goes round to the first.
    let mut turn = 0;
    for topic in &index.topics {
        let subscribers = &index.pools[topic.pool].subscribers;
        for partition in 0..topic.partitions {
            let at = subscribers.partition_point(|member| *member < turn);
            let member = *subscribers.get(at).unwrap_or(&subscribers[0]);
            given.give(member, topic.id, partition);
            turn = member + 1;
        }
    }
    given.into_assignment(index)
}
