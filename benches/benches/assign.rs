//! How long it takes to divide partitions among the members of a group.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tidelog_group::{Assignment, Assignor, MemberId, Subscription, TopicPartitions};
use tidelog_record::TopicId;

/// Of each topic.
const PARTITIONS: u32 = 100;

struct Group {
    members: BTreeMap<MemberId, BTreeSet<TopicId>>,
    topics: BTreeMap<TopicId, u32>,
}

#[derive(Clone, Copy)]
enum Wants {
    /// Every member all topics.
    Equal,
    /// Every member about half of the topics, and hardly two the same.
    Mixed,
}

impl Group {
    fn new(members: usize, topics: u128, wants: Wants) -> Self {
        let topic = |number: u128| TopicId::from_bytes(number.to_be_bytes());
        let mut random = 0x2545_F491_4F6C_DD1D_u64;
        let mut wanted = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            matches!(wants, Wants::Equal) || random.is_multiple_of(2)
        };
        let members = (0..members).map(|number| {
            let id = MemberId::new(&format!("consumer-{number:05}")).expect("a valid name");
            (id, (0..topics).filter(|_| wanted()).map(topic).collect())
        });
        Self {
            members: members.collect(),
            topics: (0..topics).map(|n| (topic(n), PARTITIONS)).collect(),
        }
    }

    /// The members that `previous` is of, with what they had.
    fn subscriptions<'a>(&'a self, previous: &'a Assignment) -> Subscriptions<'a> {
        let members = previous.iter().map(|(id, previous)| {
            let subscription = Subscription {
                instance_id: None,
                topics: &self.members[id],
                previous,
            };
            (id.clone(), subscription)
        });
        members.collect()
    }

    /// Nobody had anything.
    fn fresh(&self) -> Assignment {
        let ids = self.members.keys().cloned();
        ids.map(|id| (id, TopicPartitions::new())).collect()
    }
}

type Subscriptions<'a> = BTreeMap<MemberId, Subscription<'a>>;

fn assign(c: &mut Criterion) {
    for (members, topics, all) in [(100, 10, true), (1000, 100, false), (10_000, 100, false)] {
        let partitions = topics * u128::from(PARTITIONS);
        let mut criterion = c.benchmark_group(format!("assign {members} x {partitions}"));
        criterion.sample_size(20);
        for (wants, name) in [(Wants::Equal, "equal"), (Wants::Mixed, "mixed")] {
            let group = Group::new(members, topics, wants);
            for assignor in Assignor::ALL {
                if !all && assignor != Assignor::Sticky {
                    continue;
                }
                let fresh = group.fresh();
                let settled = assignor.assign(&group.subscriptions(&fresh), &group.topics);

                let mut one_left = settled.clone();
                one_left.pop_last();
                // The others join one that was alone: nearly all of what it had has to move.
                let mut all_joined = fresh.clone();
                let had = group
                    .topics
                    .keys()
                    .map(|id| (*id, (0..PARTITIONS).collect()));
                all_joined
                    .first_entry()
                    .expect("a member")
                    .insert(had.collect());

                let mut cases = vec![("fresh", fresh), ("one left", one_left)];
                if assignor == Assignor::Sticky {
                    cases.extend([("unchanged", settled), ("all joined one", all_joined)]);
                }
                for (case, previous) in cases {
                    let subscriptions = group.subscriptions(&previous);
                    criterion.bench_function(format!("{assignor}, {name}, {case}"), |b| {
                        b.iter(|| assignor.assign(black_box(&subscriptions), &group.topics));
                    });
                }
            }
        }
        criterion.finish();
    }
}

criterion_group!(benches, assign);
criterion_main!(benches);
