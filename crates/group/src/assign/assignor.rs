//! The choice of an assignor, and what all of them take and give.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use tidelog_record::TopicId;

use super::index::Index;
use super::{range, round_robin, sticky};
use crate::{InstanceId, MemberId};

/// Partitions by topic. What an assignor gives has them in ascending order, and no topic without any.
pub type TopicPartitions = BTreeMap<TopicId, Vec<u32>>;

/// What each member is to read. Every member is in it, also one that gets nothing.
pub type Assignment = BTreeMap<MemberId, TopicPartitions>;

/// What an assignor knows of a member.
#[derive(Clone, Copy, Debug)]
pub struct Subscription<'a> {
    /// The name a static member keeps when it comes back as another member. Those who have one are
    /// ordered by it, before all others, who are ordered by their member ids: as Kafka does.
    pub instance_id: Option<&'a InstanceId>,
    /// What it wants to read. Topics that do not exist are ignored.
    pub topics: &'a BTreeSet<TopicId>,
    /// What it was assigned last, in any order; a static member that came back under a new member id
    /// has what was assigned to the old one. Topics and partitions that are gone, or that the member
    /// does not subscribe to any more, are ignored; of two members that both claim a partition,
    /// the first in order has it. Only [`Assignor::Sticky`] looks at it.
    pub previous: &'a TopicPartitions,
}

/// How the partitions of a group's topics are divided among its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Assignor {
    /// Each topic in contiguous ranges, over its subscribers in order; the first of them get one more
    /// where it does not come out even. Partitions of the same number meet at one member, for topics
    /// with as many partitions and the same subscribers.
    Range,
    /// All partitions in order, dealt out one by one, each to the next member in turn that subscribes
    /// to its topic.
    RoundRobin,
    /// As equal in number as the subscriptions allow by moving single partitions, and within that
    /// as few partitions as possible taken from those who had them.
    ///
    /// Where all members subscribe to the same topics, numbers differ by at most one, and no balanced
    /// assignment moves fewer. Where they differ, no partition could go to a subscriber that has
    /// at least two fewer than its owner; that so few are moved is then an aim, not a promise.
    #[default]
    Sticky,
}

/// A text names no assignor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no assignor {name:?}; allowed are \"range\", \"round-robin\", \"sticky\", \
     and \"uniform\" for the last"
)]
pub struct UnknownAssignor {
    /// The text.
    pub name: String,
}

impl Assignor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Range, Self::RoundRobin, Self::Sticky];

    /// Its name, which [`FromStr`] reads.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::RoundRobin => "round-robin",
            Self::Sticky => "sticky",
        }
    }

    /// Divides the partitions of `topics`, given with how many each has, among `members`.
    ///
    /// Each partition of a topic that has a subscriber is assigned to exactly one; no other is. It
    /// takes memory in proportion to all partitions and subscriptions: the caller limits them.
    pub fn assign(
        self,
        members: &BTreeMap<MemberId, Subscription<'_>>,
        topics: &BTreeMap<TopicId, u32>,
    ) -> Assignment {
        let index = Index::new(members, topics);
        match self {
            Self::Range => range::assign(&index),
            Self::RoundRobin => round_robin::assign(&index),
            Self::Sticky => sticky::assign(&index),
        }
    }
}

impl fmt::Display for Assignor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Assignor {
    type Err = UnknownAssignor;

    /// Reads "range", "round-robin" or "sticky"; also "uniform", as Kafka calls its counterpart of the
    /// last.
    fn from_str(name: &str) -> Result<Self, UnknownAssignor> {
        match name {
            "range" => Ok(Self::Range),
            "round-robin" => Ok(Self::RoundRobin),
            "sticky" | "uniform" => Ok(Self::Sticky),
            _ => Err(UnknownAssignor {
                name: name.to_owned(),
            }),
        }
    }
}
