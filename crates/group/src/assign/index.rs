//! Members, topics and partitions by number, so that assignors index lists instead of comparing names.
//!
//! Topics that the same members subscribe to are one pool: whoever may have one of its partitions may
//! have any. A group whose members all want the same has one pool, whatever the number of topics,
//! and what is decided for each topic's subscribers is decided once.
//!
//! Members that subscribe to the same are looked at once, which takes `O(s log m)` for `s` subscriptions
//! of `m` members at worst, and two passes over all subscriptions in the usual case.

use std::collections::BTreeMap;

use tidelog_record::TopicId;

use super::{Assignment, Subscription, TopicPartitions};
use crate::MemberId;

/// What there is to assign, and to whom.
#[derive(Debug)]
pub(super) struct Index<'a> {
    /// In order: static members by instance, then the others by member id. A member's number is its
    /// place in here.
    pub(super) members: Vec<(&'a MemberId, &'a Subscription<'a>)>,
    /// Those that have partitions and subscribers, by id.
    pub(super) topics: Vec<Topic>,
    /// In order of the first topic of each.
    pub(super) pools: Vec<Pool>,
}

/// A topic that is to be assigned.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) id: TopicId,
    /// How many it has, never 0.
    pub(super) partitions: u32,
    /// The number of its pool.
    pub(super) pool: usize,
    /// Where the topic's partition 0 is among the partitions of the pool, which are in order of topics
    /// and then of partitions.
    pub(super) first_slot: usize,
}

/// The partitions of all topics that exactly the same members subscribe to.
#[derive(Debug)]
pub(super) struct Pool {
    /// The numbers of these members, ascending; never empty.
    pub(super) subscribers: Vec<usize>,
    /// How many partitions its topics have together.
    pub(super) partitions: usize,
}

impl<'a> Index<'a> {
    pub(super) fn new(
        members: &'a BTreeMap<MemberId, Subscription<'a>>,
        topics: &BTreeMap<TopicId, u32>,
    ) -> Self {
        let mut members: Vec<_> = members.iter().collect();
        members.sort_by_key(|(id, member)| (member.instance_id.is_none(), member.instance_id, *id));

        // Members who want the same, as one class.
        let mut classes: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (number, (_, member)) in members.iter().enumerate() {
            classes.entry(member.topics).or_default().push(number);
        }
        let mut wanted: Vec<_> = topics
            .iter()
            .filter(|(_, partitions)| **partitions > 0)
            .map(|(id, partitions)| (*id, *partitions, Vec::new()))
            .collect();
        for (class, ids) in classes.keys().enumerate() {
            for id in *ids {
                if let Ok(at) = wanted.binary_search_by_key(id, |topic| topic.0) {
                    wanted[at].2.push(class);
                }
            }
        }

        let classes: Vec<_> = classes.into_values().collect();
        let mut index = Self {
            members,
            topics: Vec::new(),
            pools: Vec::new(),
        };
        let mut pools_by_classes = BTreeMap::new();
        for (id, partitions, wanted_by) in wanted {
            if wanted_by.is_empty() {
                continue;
            }
            let pool = *pools_by_classes.entry(wanted_by).or_insert_with_key(|by| {
                let mut subscribers: Vec<_> =
                    by.iter().flat_map(|c| &classes[*c]).copied().collect();
                subscribers.sort_unstable();
                index.pools.push(Pool {
                    subscribers,
                    partitions: 0,
                });
                index.pools.len() - 1
            });
            index.topics.push(Topic {
                id,
                partitions,
                pool,
                first_slot: index.pools[pool].partitions,
            });
            index.pools[pool].partitions += length(partitions);
        }
        index
    }

    /// The topic `id`, if there is something of it to assign.
    pub(super) fn topic(&self, id: &TopicId) -> Option<&Topic> {
        let at = self.topics.binary_search_by_key(id, |topic| topic.id);
        at.ok().map(|at| &self.topics[at])
    }
}

impl Topic {
    /// Where `partition` is among those of the topic's pool, if there is such a partition.
    pub(super) fn slot(&self, partition: u32) -> Option<usize> {
        (partition < self.partitions).then(|| self.first_slot + length(partition))
    }
}

/// A number of partitions as one of memory.
pub(super) fn length(partitions: u32) -> usize {
    usize::try_from(partitions).expect("lists can be as long as 32 bits count")
}

/// What members are given, as it is decided.
#[derive(Debug)]
pub(super) struct Given {
    /// By number of the member: topics in order, each with its partitions in order.
    by_member: Vec<Vec<(TopicId, Vec<u32>)>>,
}

impl Given {
    pub(super) fn new(index: &Index<'_>) -> Self {
        Self {
            by_member: vec![Vec::new(); index.members.len()],
        }
    }

    /// Gives `partition` of `topic` to `member`. A member is given its topics in order, and the
    /// partitions of each likewise.
    pub(super) fn give(&mut self, member: usize, topic: TopicId, partition: u32) {
        let topics = &mut self.by_member[member];
        match topics.last_mut() {
            Some((last, partitions)) if *last == topic => partitions.push(partition),
            _ => topics.push((topic, vec![partition])),
        }
    }

    /// Under the names of members.
    pub(super) fn into_assignment(self, index: &Index<'_>) -> Assignment {
        let ids = index.members.iter().map(|(id, _)| (*id).clone());
        let given = self.by_member.into_iter().map(TopicPartitions::from_iter);
        ids.zip(given).collect()
    }
}
