//! What holds for any members, subscriptions, topics and previous assignments.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::assign::emptiest::Emptiest;
use crate::assign::index::Index;

/// A previous assignment that is made up: member, topic and partition, some of which there are not.
type Claims = Vec<(usize, usize, u32)>;

fn claims() -> impl Strategy<Value = Claims> {
    vec((0..9_usize, 0..8_usize, 0..15_u32), 0..80)
}

/// Members that subscribe to what their bits say, or all to the same; every third has an instance.
fn group_of(subscriptions: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Group> {
    (vec(0..13_u32, 1..7), subscriptions, claims()).prop_map(|(counts, subscriptions, claims)| {
        let mut group = Group::new(&counts);
        for (n, bits) in subscriptions.iter().enumerate() {
            let topics: Vec<_> = (0..8).filter(|topic| bits & (1 << topic) != 0).collect();
            let member = group.join(&format!("m{n}"), &topics);
            if n % 3 == 2 {
                member.instance_id = Some(InstanceId::new(&format!("i{}", 9 - n)).unwrap());
            }
        }
        for (n, number, partition) in claims {
            if let Some(member) = group.members.get_mut(&*format!("m{n}")) {
                let previous = member.previous.entry(topic(number)).or_default();
                previous.push(partition);
            }
        }
        group
    })
}

/// Any subscriptions.
fn mixed() -> impl Strategy<Value = Group> {
    group_of(vec(any::<u8>(), 1..9))
}

/// All subscribe to the same.
fn equal() -> impl Strategy<Value = Group> {
    group_of((any::<u8>(), 1..9_usize).prop_map(|(bits, members)| vec![bits; members]))
}

/// The partitions that had an owner, who has another now; with the new one.
fn moved(
    previous: &BTreeMap<(TopicId, u32), MemberId>,
    assignment: &Assignment,
) -> Vec<(MemberId, MemberId)> {
    let owners = owners(assignment);
    let both = previous.iter().map(|(key, id)| (id, &owners[key]));
    let moved = both.filter(|(before, after)| before != after);
    moved.map(|(a, b)| (a.clone(), b.clone())).collect()
}

/// The fewest partitions that have to go to another member for numbers that differ by at most one.
fn fewest_moves(group: &Group) -> usize {
    let previous = group.previous();
    let mut had: BTreeMap<_, usize> = group.members.keys().map(|id| (id, 0)).collect();
    for id in previous.values() {
        *had.get_mut(id).unwrap() += 1;
    }
    let all = group.wanted().len();
    let (each, one_more) = (all / had.len(), all % had.len());
    let mut had: Vec<_> = had.into_values().collect();
    had.sort_unstable_by(|a, b| b.cmp(a));
    let quotas = (0..had.len()).map(|n| each + usize::from(n < one_more));
    let kept: usize = had
        .iter()
        .zip(quotas)
        .map(|(had, quota)| quota.min(*had))
        .sum();
    previous.len() - kept
}

/// Kafka's way: a ring of members, turned until one comes up that subscribes to the topic.
fn by_turning_a_ring(group: &Group) -> BTreeMap<(TopicId, u32), MemberId> {
    let mut ring: std::collections::VecDeque<_> = group.members.iter().collect();
    ring.make_contiguous().sort_by_key(|(id, member)| {
        let instance = member.instance_id.clone();
        (instance.is_none(), instance, (*id).clone())
    });
    let mut owners = BTreeMap::new();
    for key in group.wanted().into_keys() {
        while !ring[0].1.topics.contains(&key.0) {
            ring.rotate_left(1);
        }
        owners.insert(key, ring[0].0.clone());
        ring.rotate_left(1);
    }
    owners
}

proptest! {
    #[test]
    fn each_partition_that_is_wanted_has_one_owner(group in mixed()) {
        for assignor in Assignor::ALL {
            let assignment = group.assign(assignor);
            prop_assert!(assignment.keys().eq(group.members.keys()));
            for topics in assignment.values() {
                for partitions in topics.values() {
                    prop_assert!(!partitions.is_empty());
                    prop_assert!(partitions.is_sorted());
                }
            }
            let (owners, wanted) = (owners(&assignment), group.wanted());
            prop_assert!(owners.keys().eq(wanted.keys()));
            for (key, owner) in &owners {
                prop_assert!(wanted[key].contains(&owner));
            }
        }
    }

    #[test]
    fn no_single_move_makes_sticky_more_balanced(group in mixed()) {
        let assignment = group.assign(Assignor::Sticky);
        let (totals, wanted) = (totals(&assignment), group.wanted());
        for (key, owner) in owners(&assignment) {
            for other in &wanted[&key] {
                prop_assert!(totals[&owner] < totals[other] + 2, "{key:?} from {owner} to {other}");
            }
        }
    }

    #[test]
    fn equal_members_get_equal_numbers_with_the_fewest_moves(group in equal()) {
        let assignment = group.assign(Assignor::Sticky);
        let totals: BTreeSet<_> = totals(&assignment).into_values().collect();
        prop_assert!(totals.last().unwrap() - totals.first().unwrap() <= 1);
        prop_assert_eq!(moved(&group.previous(), &assignment).len(), fewest_moves(&group));
    }

    #[test]
    fn again_changes_nothing(mut group in mixed()) {
        let first = group.reassign();
        prop_assert_eq!(group.reassign(), first);
    }

    /// Members and topics come in order by their types; what was assigned before comes in any.
    #[test]
    fn the_order_of_what_was_before_does_not_matter(group in mixed(), turn in 0..9_usize) {
        let mut other = group.clone();
        for member in other.members.values_mut() {
            for partitions in member.previous.values_mut() {
                let len = partitions.len();
                partitions.rotate_left(turn % len);
                partitions.reverse();
            }
        }
        for assignor in Assignor::ALL {
            prop_assert_eq!(other.assign(assignor), group.assign(assignor));
        }
    }

    #[test]
    fn who_leaves_moves_only_what_it_had(mut group in equal(), which in any::<prop::sample::Index>()) {
        group.reassign();
        let ids: Vec<_> = group.members.keys().cloned().collect();
        group.members.remove(which.get(&ids));
        prop_assert_eq!(moved(&group.previous(), &group.assign(Assignor::Sticky)), []);
    }

    #[test]
    fn who_joins_moves_only_what_it_gets(mut group in equal(), id in "[a-z]") {
        group.reassign();
        let topics = group.members.values().next().unwrap().topics.clone();
        let new = member(&id);
        group.members.entry(new.clone()).or_default().topics = topics;
        for (_, to) in moved(&group.previous(), &group.assign(Assignor::Sticky)) {
            prop_assert_eq!(&to, &new);
        }
    }

    #[test]
    fn round_robin_is_what_a_ring_gives(group in mixed()) {
        prop_assert_eq!(owners(&group.assign(Assignor::RoundRobin)), by_turning_a_ring(&group));
    }

    #[test]
    fn ranges_are_contiguous_and_line_up(group in mixed()) {
        let assignment = group.assign(Assignor::Range);
        let mut sizes: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for topics in assignment.values() {
            for (topic, partitions) in topics {
                prop_assert!(partitions.windows(2).all(|pair| pair[0] + 1 == pair[1]));
                sizes.entry(*topic).or_default().insert(partitions.len());
            }
        }
        for sizes in sizes.values() {
            prop_assert!(sizes.last().unwrap() - sizes.first().unwrap() <= 1);
        }
        let (owners, wanted) = (owners(&assignment), group.wanted());
        for ((topic, partition), owner) in &owners {
            for other in group.topics.iter().filter(|(_, count)| **count == group.topics[topic]) {
                let key = (*other.0, *partition);
                if wanted.get(&key) == wanted.get(&(*topic, *partition)) {
                    prop_assert_eq!(&owners[&key], owner);
                }
            }
        }
    }

    #[test]
    fn the_emptiest_are_known(
        group in mixed(),
        changes in vec((any::<prop::sample::Index>(), 0..9_usize), 0..40),
    ) {
        let subscriptions = group.subscriptions();
        let index = Index::new(&subscriptions, &group.topics);
        let mut totals = vec![3; group.members.len()];
        let mut emptiest = Emptiest::new(&index, &totals);
        for (which, total) in changes {
            for (number, pool) in index.pools.iter().enumerate() {
                let fewest = pool.subscribers.iter().min_by_key(|member| totals[**member]);
                prop_assert_eq!(Some(&emptiest.of(number)), fewest);
            }
            let member = which.index(totals.len());
            totals[member] = total;
            emptiest.update(&index, &totals, member);
        }
    }
}
