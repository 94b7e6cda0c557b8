//! Committed offsets: where the members of a group go on reading.

use std::collections::BTreeMap;

use tidelog_record::{LeaderEpoch, Offset, Timestamp, TopicId, TopicName};

use crate::names::GroupId;

/// Where a group goes on reading a partition, and how that came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to be read: one more than that of the last record that is done with.
    pub offset: Offset,
    /// The leadership that wrote the record before, if whoever committed said so.
    pub leader_epoch: Option<LeaderEpoch>,
    /// What whoever committed wants to find again.
    pub metadata: String,
    /// When it was committed, by the coordinator's clock.
    pub committed_at: Timestamp,
    /// The topic it is about. Offsets of a topic that was deleted mean nothing in another one of its name.
    pub topic_id: Option<TopicId>,
}

/// A committed offset, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// The group.
    pub group: GroupId,
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: u32,
    /// The next offset to be read.
    pub offset: Offset,
    /// The topic it is about.
    pub topic_id: Option<TopicId>,
}

/// The committed offsets of one group, by topic and partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offsets {
    by_topic: BTreeMap<TopicName, BTreeMap<u32, CommittedOffset>>,
}

impl Offsets {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_topic.is_empty()
    }

    /// How many partitions have one.
    pub(crate) fn len(&self) -> usize {
        self.by_topic.values().map(BTreeMap::len).sum()
    }

    pub(crate) fn get(&self, topic: &str, partition: u32) -> Option<&CommittedOffset> {
        self.by_topic.get(topic)?.get(&partition)
    }

    pub(crate) fn set(&mut self, topic: TopicName, partition: u32, committed: CommittedOffset) {
        let of_topic = self.by_topic.entry(topic).or_default();
        of_topic.insert(partition, committed);
    }

    pub(crate) fn remove(&mut self, topic: &str, partition: u32) {
        if let Some(of_topic) = self.by_topic.get_mut(topic) {
            of_topic.remove(&partition);
            if of_topic.is_empty() {
                self.by_topic.remove(topic);
            }
        }
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TopicName, u32, &CommittedOffset)> {
        self.by_topic.iter().flat_map(|(topic, of_topic)| {
            let all = of_topic.iter();
            all.map(move |(partition, committed)| (topic, *partition, committed))
        })
    }
}
