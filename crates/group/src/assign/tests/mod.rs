//! Tests of assignors: small tables, and what holds whatever the members and topics.

mod moves;
mod properties;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use tidelog_record::TopicId;

use super::*;
use crate::{InstanceId, MemberId};

/// The members of a group, as a group would have them.
#[derive(Clone, Debug, Default)]
struct Group {
    members: BTreeMap<MemberId, Member>,
    topics: BTreeMap<TopicId, u32>,
}

#[derive(Clone, Debug, Default)]
struct Member {
    instance_id: Option<InstanceId>,
    topics: BTreeSet<TopicId>,
    previous: TopicPartitions,
}

impl Group {
    /// Topics 0, 1, 2 and so on, with as many partitions as are given.
    fn new(partitions: &[u32]) -> Self {
        let topics = partitions.iter().enumerate();
        Self {
            members: BTreeMap::new(),
            topics: topics.map(|(n, count)| (topic(n), *count)).collect(),
        }
    }

    fn with(mut self, id: &str, topics: &[usize]) -> Self {
        self.join(id, topics);
        self
    }

    fn with_static(mut self, id: &str, instance: &str, topics: &[usize]) -> Self {
        self.join(id, topics).instance_id = Some(InstanceId::new(instance).unwrap());
        self
    }

    fn join(&mut self, id: &str, topics: &[usize]) -> &mut Member {
        let member = self.members.entry(member(id)).or_default();
        member.topics = topics.iter().copied().map(topic).collect();
        member
    }

    /// Says that the member had these partitions of the topic before.
    fn had(mut self, id: &str, number: usize, partitions: &[u32]) -> Self {
        let previous = &mut self.members.get_mut(&member(id)).unwrap().previous;
        previous.insert(topic(number), partitions.to_vec());
        self
    }

    /// Every partition that somebody subscribes to, with who does.
    fn wanted(&self) -> BTreeMap<(TopicId, u32), Vec<&MemberId>> {
        let mut wanted = BTreeMap::new();
        for (topic, count) in &self.topics {
            let members = self.members.iter();
            let members = members.filter(|(_, member)| member.topics.contains(topic));
            let subscribers: Vec<_> = members.map(|(id, _)| id).collect();
            if !subscribers.is_empty() {
                wanted.extend((0..*count).map(|n| ((*topic, n), subscribers.clone())));
            }
        }
        wanted
    }

    /// Who had each partition and may still have it. Of two that claim one, the first in order.
    fn previous(&self) -> BTreeMap<(TopicId, u32), MemberId> {
        let mut in_order: Vec<_> = self.members.iter().collect();
        in_order.sort_by_key(|(_, member)| {
            member
                .instance_id
                .clone()
                .map_or((1, None), |i| (0, Some(i)))
        });
        let wanted = self.wanted();
        let mut previous = BTreeMap::new();
        for (id, member) in in_order {
            for (topic, partitions) in &member.previous {
                for partition in partitions {
                    let key = (*topic, *partition);
                    if wanted.get(&key).is_some_and(|by| by.contains(&id)) {
                        previous.entry(key).or_insert_with(|| id.clone());
                    }
                }
            }
        }
        previous
    }

    fn subscriptions(&self) -> BTreeMap<MemberId, Subscription<'_>> {
        let members = self.members.iter().map(|(id, member)| {
            let subscription = Subscription {
                instance_id: member.instance_id.as_ref(),
                topics: &member.topics,
                previous: &member.previous,
            };
            (id.clone(), subscription)
        });
        members.collect()
    }

    fn assign(&self, assignor: Assignor) -> Assignment {
        assignor.assign(&self.subscriptions(), &self.topics)
    }

    /// Assigns, and has the result as what was assigned before.
    fn reassign(&mut self) -> Assignment {
        let assignment = self.assign(Assignor::Sticky);
        for (id, partitions) in &assignment {
            self.members.get_mut(id).unwrap().previous = partitions.clone();
        }
        assignment
    }
}

fn topic(number: usize) -> TopicId {
    let number = u128::try_from(number).unwrap();
    TopicId::from_bytes(number.to_be_bytes())
}

fn member(id: &str) -> MemberId {
    MemberId::new(id).unwrap()
}

/// How many partitions each member has.
fn totals(assignment: &Assignment) -> BTreeMap<&MemberId, usize> {
    let total = |topics: &TopicPartitions| topics.values().map(Vec::len).sum();
    let members = assignment.iter();
    members.map(|(id, topics)| (id, total(topics))).collect()
}

/// Who has each partition.
fn owners(assignment: &Assignment) -> BTreeMap<(TopicId, u32), MemberId> {
    let mut owners = BTreeMap::new();
    for (id, topics) in assignment {
        for (topic, partitions) in topics {
            for partition in partitions {
                let other = owners.insert((*topic, *partition), id.clone());
                assert_eq!(other, None, "{topic} {partition} has one owner");
            }
        }
    }
    owners
}
