//! Small groups, with what comes out written down.

use super::*;

/// What a member has, as "topic:partitions", for example "0:012 1:0".
fn of(assignment: &Assignment, id: &str) -> String {
    let topics = assignment[&member(id)].iter().map(|(topic, partitions)| {
        let [.., number] = topic.to_bytes();
        let partitions: String = partitions.iter().map(u32::to_string).collect();
        format!("{number}:{partitions}")
    });
    topics.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(assignment: &Assignment, expected: &[(&str, &str)]) {
    let ids: Vec<_> = assignment.keys().map(MemberId::as_str).collect();
    let found: Vec<_> = ids.iter().map(|id| (*id, of(assignment, id))).collect();
    let found: Vec<_> = found.iter().map(|(id, has)| (*id, has.as_str())).collect();
    assert_eq!(found, expected);
}

#[test]
fn names_are_read_as_they_are_written() {
    for assignor in Assignor::ALL {
        assert_eq!(assignor.to_string().parse(), Ok(assignor));
    }
    assert_eq!("uniform".parse(), Ok(Assignor::Sticky));
    assert_eq!(Assignor::default(), Assignor::Sticky);
    let error = "Range".parse::<Assignor>().unwrap_err();
    assert_eq!(error.name, "Range");
    assert_eq!(
        error.to_string(),
        "there is no assignor \"Range\"; allowed are \"range\", \"round-robin\", \"sticky\", \
         and \"uniform\" for the last"
    );
}

#[test]
fn nobody_and_nothing() {
    for assignor in Assignor::ALL {
        check(&Group::new(&[3]).assign(assignor), &[]);
        check(
            &Group::new(&[]).with("a", &[0]).assign(assignor),
            &[("a", "")],
        );
        check(
            &Group::new(&[0, 2]).with("a", &[0]).assign(assignor),
            &[("a", "")],
        );
        check(
            &Group::new(&[2]).with("a", &[]).assign(assignor),
            &[("a", "")],
        );
    }
}

#[test]
fn ranges_line_up() {
    let group = Group::new(&[5, 5, 1])
        .with("a", &[0, 1, 2])
        .with("b", &[0, 1, 2])
        .with("c", &[0, 1]);
    check(
        &group.assign(Assignor::Range),
        &[("a", "0:01 1:01 2:0"), ("b", "0:23 1:23"), ("c", "0:4 1:4")],
    );
}

#[test]
fn ranges_go_by_instance_first() {
    let group = Group::new(&[4])
        .with("a", &[0])
        .with_static("b", "2", &[0])
        .with_static("c", "1", &[0]);
    check(
        &group.assign(Assignor::Range),
        &[("a", "0:3"), ("b", "0:2"), ("c", "0:01")],
    );
}

#[test]
fn a_static_member_keeps_its_range_under_another_member_id() {
    let group = |id| {
        let group = Group::new(&[3]).with_static("m", "1", &[0]);
        group.with_static(id, "2", &[0]).with("n", &[0])
    };
    for assignor in [Assignor::Range, Assignor::RoundRobin] {
        assert_eq!(of(&group("a").assign(assignor), "a"), "0:1");
        assert_eq!(of(&group("z").assign(assignor), "z"), "0:1");
    }
}

#[test]
fn round_robin_goes_on_from_topic_to_topic() {
    let group = Group::new(&[3, 3]).with("a", &[0, 1]).with("b", &[0, 1]);
    check(
        &group.assign(Assignor::RoundRobin),
        &[("a", "0:02 1:1"), ("b", "0:1 1:02")],
    );
}

/// The example of Kafka's documentation, whose weakness it shows: "c" has what "b" could have had.
#[test]
fn round_robin_passes_over_those_who_do_not_subscribe() {
    let group = Group::new(&[1, 2, 3])
        .with("a", &[0])
        .with("b", &[0, 1])
        .with("c", &[0, 1, 2]);
    check(
        &group.assign(Assignor::RoundRobin),
        &[("a", "0:0"), ("b", "1:0"), ("c", "1:1 2:012")],
    );
    check(
        &group.assign(Assignor::Sticky),
        &[("a", "0:0"), ("b", "1:01"), ("c", "2:012")],
    );
}

#[test]
fn sticky_spreads_each_topic() {
    let group = Group::new(&[2, 2, 2])
        .with("a", &[0, 1, 2])
        .with("b", &[0, 1, 2]);
    check(
        &group.assign(Assignor::Sticky),
        &[("a", "0:0 1:0 2:0"), ("b", "0:1 1:1 2:1")],
    );
    // Who gives up half gives up half of each topic.
    let group = group
        .had("a", 0, &[0, 1])
        .had("a", 1, &[0, 1])
        .had("a", 2, &[0, 1]);
    check(
        &group.assign(Assignor::Sticky),
        &[("a", "0:1 1:1 2:1"), ("b", "0:0 1:0 2:0")],
    );
}

#[test]
fn sticky_leaves_all_in_place_when_numbers_allow_it() {
    let group = Group::new(&[3, 2])
        .with("a", &[0, 1])
        .with("b", &[0, 1])
        .had("a", 0, &[2])
        .had("a", 1, &[1])
        .had("b", 0, &[1, 0]);
    check(
        &group.assign(Assignor::Sticky),
        &[("a", "0:2 1:01"), ("b", "0:01")],
    );
}

#[test]
fn what_is_gone_is_not_kept() {
    // Topic 7 was deleted, topic 1 is not subscribed to any more, partition 9 is beyond the count.
    let group = Group::new(&[2, 2])
        .with("a", &[0])
        .with("b", &[0, 1])
        .had("a", 7, &[0, 1])
        .had("a", 1, &[0])
        .had("b", 0, &[9, 1, 1]);
    check(
        &group.assign(Assignor::Sticky),
        &[("a", "0:01"), ("b", "1:01")],
    );
}

#[test]
fn of_two_that_claim_a_partition_the_first_has_it() {
    let group = Group::new(&[2]).with("a", &[0]).with_static("b", "1", &[0]);
    let group = group.had("a", 0, &[0]).had("b", 0, &[0]);
    check(
        &group.assign(Assignor::Sticky),
        &[("a", "0:1"), ("b", "0:0")],
    );
}

#[test]
fn a_static_member_that_comes_back_has_what_it_had() {
    let mut group = Group::new(&[7, 4])
        .with("k", &[0, 1])
        .with_static("m", "1", &[0, 1])
        .with("t", &[0, 1]);
    let before = group.reassign();
    for id in ["a", "z"] {
        let mut group = group.clone();
        let back = group.members.remove(&member("m")).unwrap();
        group.members.insert(member(id), back);
        let after = group.reassign();
        assert_eq!(of(&after, id), of(&before, "m"));
        assert_eq!(of(&after, "k"), of(&before, "k"));
        assert_eq!(of(&after, "t"), of(&before, "t"));
    }
}

#[test]
fn partitions_that_are_added_go_to_who_has_the_fewest() {
    let mut group = Group::new(&[3]).with("a", &[0]).with("b", &[0]);
    check(&group.reassign(), &[("a", "0:02"), ("b", "0:1")]);
    group.topics.insert(topic(0), 6);
    check(&group.reassign(), &[("a", "0:023"), ("b", "0:145")]);
}

#[test]
fn ten_thousand_members() {
    let all: Vec<_> = (0..100).collect();
    let mut group = Group::new(&[250; 100]);
    for n in 0..10_000 {
        group.join(&format!("m{n}"), &all[n % 3..]);
    }
    let before = group.reassign();
    let numbers: BTreeSet<_> = totals(&before).into_values().collect();
    assert_eq!(numbers, BTreeSet::from([2, 3]));
    group.members.remove(&member("m17"));
    let after = owners(&group.assign(Assignor::Sticky));
    let moved = owners(&before).into_iter();
    let moved = moved.filter(|(key, id)| after[key] != *id).count();
    assert_eq!(moved, totals(&before)[&member("m17")]);
}
