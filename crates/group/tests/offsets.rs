//! Committed offsets: what is refused, and what holds whatever becomes of the turns.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;
use tidelog_group::{
    Answer, CommitOffsets, Committer, Coordinator, DeleteOffsets, FetchOffsets, GroupError,
    GroupId, GroupOptions, KnownTopic, KnownTopics, MemberId, NewOffset, Now, OffsetError,
    PartitionOffset, Request, Turns,
};
use tidelog_record::{Offset, Timestamp, TopicId, TopicName};

/// Topics by name, each with an id and a number of partitions.
#[derive(Clone, Debug, Default)]
struct Topics(HashMap<TopicName, KnownTopic>);

impl KnownTopics for Topics {
    fn topic(&self, name: &TopicName) -> Option<KnownTopic> {
        self.0.get(name).copied()
    }
}

impl Topics {
    fn set(&mut self, name: &str, id: u8) {
        let id = TopicId::from_bytes([id; 16]);
        self.0.insert(topic(name), KnownTopic { id, partitions: 3 });
    }
}

fn topics() -> Topics {
    let mut topics = Topics::default();
    topics.set("a", 1);
    topics.set("b", 2);
    topics
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

fn new_offset(name: &str, partition: u32, offset: u64) -> NewOffset {
    NewOffset {
        topic: topic(name),
        topic_id: None,
        partition,
        offset: Offset::new(offset).unwrap(),
        leader_epoch: None,
        metadata: String::new(),
        end: None,
    }
}

fn commit(of: &str, offsets: Vec<NewOffset>) -> CommitOffsets {
    CommitOffsets {
        group: group(of),
        committer: Committer::Alone,
        allow_backwards: false,
        offsets,
    }
}

fn decide(coordinator: &mut Coordinator, request: Request, now: i64) -> Answer {
    coordinator.decide(request, at(now), &topics())
}

fn at(millis: i64) -> Now {
    Now {
        wall: Timestamp::from_millis(millis),
        monotonic_ms: 0,
    }
}

fn committed(coordinator: &mut Coordinator, of: &str) -> Vec<(String, u32, u64)> {
    let fetch = FetchOffsets {
        group: group(of),
        partitions: None,
    };
    let Answer::Offsets(offsets) = decide(coordinator, Request::Committed(fetch), 0) else {
        panic!("that is how a look-up is answered")
    };
    offsets.iter().map(plain).collect()
}

fn plain(offset: &PartitionOffset) -> (String, u32, u64) {
    let next = offset.committed.as_ref().map(|committed| committed.offset);
    let next = next.expect("only committed ones are listed");
    (offset.topic.to_string(), offset.partition, next.get())
}

#[test]
fn each_offset_is_refused_by_itself() {
    let mut coordinator = Coordinator::new(GroupOptions::default());
    let mut replaced = new_offset("a", 0, 1);
    replaced.topic_id = Some(TopicId::from_bytes([9; 16]));
    let mut long = new_offset("a", 0, 1);
    long.metadata = "m".repeat(4097);
    let mut beyond = new_offset("a", 0, 11);
    beyond.end = Offset::new(10);
    let mut at_the_end = new_offset("b", 2, 10);
    at_the_end.end = Offset::new(10);
    let all = vec![
        new_offset("c", 0, 1),
        replaced,
        new_offset("a", 3, 1),
        long,
        beyond,
        at_the_end,
        new_offset("a", 1, 5),
        new_offset("a", 1, 4),
    ];
    let answer = decide(&mut coordinator, Request::Commit(commit("g", all)), 0);
    let offset = |offset| Offset::new(offset).unwrap();
    let expected = vec![
        Err(OffsetError::TopicNotFound { topic: topic("c") }),
        Err(OffsetError::TopicReplaced { topic: topic("a") }),
        Err(OffsetError::PartitionNotFound {
            topic: topic("a"),
            partition: 3,
            partitions: 3,
        }),
        Err(OffsetError::MetadataTooLong {
            len: 4097,
            max: 4096,
        }),
        Err(OffsetError::BeyondEnd {
            offset: offset(11),
            end: offset(10),
        }),
        Ok(()),
        Ok(()),
        Err(OffsetError::Behind {
            offset: offset(4),
            committed: offset(5),
        }),
    ];
    assert_eq!(answer, Answer::Committed(expected));
    let found = committed(&mut coordinator, "g");
    assert_eq!(found, [("a".to_owned(), 1, 5), ("b".to_owned(), 2, 10)]);
}

#[test]
fn an_offset_goes_back_only_on_purpose_or_with_another_topic_of_the_name() {
    let mut coordinator = Coordinator::new(GroupOptions::default());
    let first = Request::Commit(commit("g", vec![new_offset("a", 0, 50)]));
    decide(&mut coordinator, first, 0);
    let mut back = commit("g", vec![new_offset("a", 0, 7)]);
    back.allow_backwards = true;
    let answer = decide(&mut coordinator, Request::Commit(back), 0);
    assert_eq!(answer, Answer::Committed(vec![Ok(())]));
    assert_eq!(committed(&mut coordinator, "g"), [("a".to_owned(), 0, 7)]);

    let mut replaced = topics();
    replaced.set("a", 99);
    let anew = Request::Commit(commit("g", vec![new_offset("a", 0, 1)]));
    let answer = coordinator.decide(anew, at(0), &replaced);
    assert_eq!(answer, Answer::Committed(vec![Ok(())]));
    assert_eq!(committed(&mut coordinator, "g"), [("a".to_owned(), 0, 1)]);
}

#[test]
fn groups_that_are_not_there_and_members_that_are_none_are_refused() {
    let mut coordinator = Coordinator::new(GroupOptions::default());
    let not_found = Answer::Refused(GroupError::NotFound { group: group("g") });
    let describe = Request::Describe(group("g"));
    assert_eq!(decide(&mut coordinator, describe, 0), not_found);
    let delete = Request::DeleteGroup(group("g"));
    assert_eq!(decide(&mut coordinator, delete, 0), not_found);
    let delete = DeleteOffsets {
        group: group("g"),
        partitions: vec![(topic("a"), 0)],
    };
    let answer = decide(&mut coordinator, Request::DeleteOffsets(delete), 0);
    assert_eq!(answer, not_found);
    let member = MemberId::new("m").unwrap();
    let mut of_member = commit("g", vec![new_offset("a", 0, 1)]);
    of_member.committer = Committer::Member {
        id: member.clone(),
        instance: None,
        generation: 3,
    };
    let answer = decide(&mut coordinator, Request::Commit(of_member), 0);
    let group = group("g");
    assert_eq!(
        answer,
        Answer::Refused(GroupError::UnknownMember { group, member })
    );
    assert!(coordinator.take_decided().is_empty());
}

#[test]
fn there_are_no_more_groups_than_allowed_and_those_that_are_go_on() {
    let options = GroupOptions {
        groups_max: 2,
        ..GroupOptions::default()
    };
    let mut coordinator = Coordinator::new(options);
    let one = |of, offset| Request::Commit(commit(of, vec![new_offset("a", 0, offset)]));
    for of in ["g", "h", "g", "h"] {
        let answer = decide(&mut coordinator, one(of, 1), 0);
        assert_eq!(answer, Answer::Committed(vec![Ok(())]));
    }
    let too_many = Answer::Refused(GroupError::TooManyGroups { max: 2 });
    assert_eq!(decide(&mut coordinator, one("i", 1), 0), too_many);
    let delete = Request::DeleteGroup(group("g"));
    assert_eq!(decide(&mut coordinator, delete, 0), Answer::GroupDeleted);
    let answer = decide(&mut coordinator, one("i", 1), 0);
    assert_eq!(answer, Answer::Committed(vec![Ok(())]));
}

#[test]
fn a_request_above_what_is_written_at_once_is_refused_whole() {
    let mut coordinator = Coordinator::new(GroupOptions::default());
    let mut large = new_offset("a", 0, 1);
    large.metadata = "m".repeat(4096);
    let all = vec![large; 1100];
    let answer = decide(&mut coordinator, Request::Commit(commit("g", all)), 0);
    assert!(
        matches!(answer, Answer::Refused(GroupError::TooLarge { .. })),
        "{answer:?}"
    );
    assert!(coordinator.take_decided().is_empty());
}

#[test]
fn offsets_expire_after_their_time_and_groups_with_them() {
    let options = GroupOptions {
        offsets_retention_ms: 1000,
        ..GroupOptions::default()
    };
    let mut coordinator = Coordinator::new(options);
    let one = |partition| Request::Commit(commit("g", vec![new_offset("a", partition, 1)]));
    decide(&mut coordinator, one(0), 0);
    decide(&mut coordinator, one(1), 500);
    coordinator.take_decided();
    coordinator.expire(Timestamp::from_millis(1000));
    assert!(coordinator.take_decided().is_empty());
    coordinator.expire(Timestamp::from_millis(1001));
    assert_eq!(coordinator.take_decided().len(), 1);
    assert_eq!(committed(&mut coordinator, "g"), [("a".to_owned(), 1, 1)]);
    coordinator.expire(Timestamp::from_millis(1501));
    let describe = Request::Describe(group("g"));
    let answer = decide(&mut coordinator, describe, 0);
    assert!(
        matches!(answer, Answer::Refused(GroupError::NotFound { .. })),
        "{answer:?}"
    );
}

/// A step of a run.
#[derive(Clone, Debug)]
enum Step {
    Commit {
        of: u8,
        partition: u32,
        offset: u64,
        allow_backwards: bool,
    },
    Look {
        of: u8,
    },
    Delete {
        of: u8,
    },
    Expire,
    /// The turn that is under way is committed, or not; its batch may be in the log all the same.
    End {
        is_committed: bool,
        is_in_log: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3u8, 0..2u32, 0..20u64, any::<bool>()).prop_map(|(of, partition, offset, back)| {
            Step::Commit { of, partition, offset, allow_backwards: back && offset % 5 == 0 }
        }),
        4 => (0..3u8).prop_map(|of| Step::Look { of }),
        1 => (0..3u8).prop_map(|of| Step::Delete { of }),
        1 => Just(Step::Expire),
        6 => (prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(is_committed, is_in_log)| Step::End { is_committed, is_in_log }),
    ]
}

type Log = Vec<(Bytes, Option<Bytes>)>;
/// What is committed, by group and partition.
type Model = BTreeMap<(u8, u32), u64>;

/// The coordinator that the log gives; with `is_compacted` only the last record of each key counts.
fn folded(log: &Log, is_compacted: bool) -> Coordinator {
    let mut coordinator = Coordinator::new(GroupOptions::default());
    for (at, (key, value)) in log.iter().enumerate() {
        let is_last = log[at + 1..].iter().all(|(later, _)| later != key);
        if is_last || !is_compacted {
            coordinator.fold(key, value.as_deref()).unwrap();
        }
    }
    coordinator
}

/// What each request that waits is about.
#[derive(Clone, Debug)]
enum Waits {
    Commit {
        key: (u8, u32),
        offset: u64,
    },
    /// With what the model says at the time.
    Look {
        expected: Vec<(u32, u64)>,
    },
    Delete,
}

fn of_group(model: &Model, of: u8) -> Vec<(u32, u64)> {
    let own = model.iter().filter(|((group, _), _)| *group == of);
    own.map(|((_, partition), offset)| (*partition, *offset))
        .collect()
}

fn name(of: u8) -> String {
    format!("g{of}")
}

/// Ends the turn that is under way, and begins the next one.
fn end(turns: &mut Turns<Waits>, written: &mut Log, log: &mut Log) {
    log.append(written);
    for (waits, answer) in turns.committed() {
        match (waits, answer) {
            (Waits::Commit { key, offset }, Answer::Committed(results)) => match &results[..] {
                [Ok(()) | Err(OffsetError::Behind { .. })] => {}
                other => panic!("{key:?} {offset}: {other:?}"),
            },
            (Waits::Look { expected }, Answer::Offsets(found)) => {
                let found: Vec<_> = found.iter().map(plain).collect();
                let found: Vec<_> = found.into_iter().map(|(_, p, o)| (p, o)).collect();
                assert_eq!(found, expected);
            }
            (Waits::Delete, Answer::GroupDeleted | Answer::Refused(_)) => {}
            (waits, answer) => panic!("{waits:?}: {answer:?}"),
        }
    }
}

proptest! {
    /// Whatever requests come, and whatever turns are lost: what is answered is what a plain map says, and what the log
    /// gives, compacted or not.
    #[test]
    fn answers_are_those_of_a_map_and_of_the_log(steps in prop::collection::vec(step(), 1..120)) {
        let topics = topics();
        let mut log = Log::new();
        let mut turns = Turns::new(folded(&log, false));
        // What holds once all that was asked is written, and what of it is committed.
        let (mut model, mut durable) = (Model::new(), Model::new());
        let (mut written, mut at_begin) = (Log::new(), Model::new());
        let mut is_under_way = false;
        for step in steps {
            let now = at(0);
            match step {
                Step::Commit { of, partition, offset, allow_backwards } => {
                    let mut request = commit(&name(of), vec![new_offset("a", partition, offset)]);
                    request.allow_backwards = allow_backwards;
                    let key = (of, partition);
                    turns.take(Waits::Commit { key, offset }, Request::Commit(request), now, &topics);
                    let held = model.get(&key).copied().unwrap_or(0);
                    if offset >= held || allow_backwards {
                        model.insert(key, offset);
                    }
                }
                Step::Look { of } => {
                    let fetch = FetchOffsets { group: group(&name(of)), partitions: None };
                    let expected = of_group(&model, of);
                    turns.take(Waits::Look { expected }, Request::Committed(fetch), now, &topics);
                }
                Step::Delete { of } => {
                    let request = Request::DeleteGroup(group(&name(of)));
                    turns.take(Waits::Delete, request, now, &topics);
                    model.retain(|(group, _), _| *group != of);
                }
                Step::Expire => turns.expire(now.wall),
                Step::End { is_committed, is_in_log } if is_under_way => {
                    is_under_way = false;
                    if is_committed {
                        end(&mut turns, &mut written, &mut log);
                        durable = at_begin.clone();
                    } else {
                        let (lost, _) = turns.fail();
                        prop_assert!(lost.len() + written.len() > 0);
                        if is_in_log {
                            log.append(&mut written);
                            durable = at_begin.clone();
                        }
                        written.clear();
                        turns = Turns::new(folded(&log, is_in_log));
                        model = durable.clone();
                    }
                }
                Step::End { .. } => {}
            }
            if let Some(batch) = turns.begin() {
                prop_assert!(!is_under_way);
                is_under_way = true;
                written = batch;
                at_begin = model.clone();
            }
        }
        for is_compacted in [false, true] {
            let mut coordinator = folded(&log, is_compacted);
            for of in 0..3u8 {
                let found = committed(&mut coordinator, &name(of));
                let found: Vec<_> = found.into_iter().map(|(_, p, o)| (p, o)).collect();
                prop_assert_eq!(found, of_group(&durable, of));
            }
        }
    }

    /// Bytes that nobody has written give an error, and nothing else.
    #[test]
    fn any_bytes_are_folded_or_refused(
        key in prop::collection::vec(any::<u8>(), 0..80),
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..80)),
    ) {
        let mut coordinator = Coordinator::new(GroupOptions::default());
        let _either = coordinator.fold(&key, value.as_deref());
    }
}
