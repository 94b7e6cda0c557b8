use bytes::Bytes;
use tidelog_record::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId};

use super::golden;
use crate::format::*;

const TIME: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn topic(first: u8) -> TopicId {
    TopicId::from_bytes(std::array::from_fn(|n| first + u8::try_from(n).unwrap()))
}

fn partitions(numbers: &[u32]) -> Vec<PartitionId> {
    numbers.iter().copied().map(PartitionId::new).collect()
}

fn topic_partitions(first: u8, numbers: &[u32]) -> TopicPartitions {
    TopicPartitions {
        topic_id: topic(first),
        partitions: partitions(numbers),
    }
}

fn assigned(first: u8, numbers: &[u32], epochs: &[i32]) -> AssignedPartitions {
    AssignedPartitions {
        topic_id: topic(first),
        partitions: partitions(numbers),
        assignment_epochs: epochs.to_vec(),
    }
}

fn group(name: &str) -> GroupKey {
    GroupKey { group: name.into() }
}

fn member(group: &str) -> MemberKey {
    MemberKey {
        group: group.into(),
        member: "m-1".into(),
    }
}

fn offset_key() -> OffsetKey {
    OffsetKey {
        group: "orders".into(),
        topic: "events".into(),
        partition: PartitionId::new(3),
    }
}

fn offset_commit() -> OffsetCommit {
    OffsetCommit {
        offset: Offset::new(4242).unwrap(),
        leader_epoch: None,
        metadata: "from ü".into(),
        commit_timestamp: TIME,
        expire_timestamp: None,
        topic_id: None,
    }
}

fn offset_commit_v4() -> OffsetCommit {
    OffsetCommit {
        leader_epoch: LeaderEpoch::new(7),
        topic_id: Some(topic(0x10)),
        ..offset_commit()
    }
}

fn commit(value: OffsetCommit) -> GroupRecord {
    GroupRecord::OffsetCommit(offset_key(), Some(value))
}

fn classic_members() -> Vec<ClassicMember> {
    vec![
        ClassicMember {
            member_id: "consumer-1-a".into(),
            group_instance_id: None,
            client_id: "consumer-1".into(),
            client_host: "/127.0.0.1".into(),
            rebalance_timeout_ms: 300_000,
            session_timeout_ms: 45_000,
            subscription: Bytes::from_static(&[0, 1, 2]),
            assignment: Bytes::from_static(&[0, 9]),
        },
        ClassicMember {
            member_id: "consumer-2-b".into(),
            group_instance_id: Some("i-2".into()),
            client_id: "consumer-2".into(),
            client_host: "/::1".into(),
            rebalance_timeout_ms: 60_000,
            session_timeout_ms: 30_000,
            subscription: Bytes::new(),
            assignment: Bytes::new(),
        },
    ]
}

fn classic_group() -> GroupMetadata {
    GroupMetadata {
        protocol_type: "consumer".into(),
        generation: 5,
        protocol: Some("range".into()),
        leader: Some("consumer-1-a".into()),
        current_state_timestamp: Some(TIME),
        members: classic_members(),
    }
}

fn classic(value: GroupMetadata) -> GroupRecord {
    GroupRecord::GroupMetadata(group("orders"), Some(value))
}

fn consumer_member() -> ConsumerGroupMemberMetadata {
    ConsumerGroupMemberMetadata {
        instance_id: None,
        rack_id: None,
        client_id: "consumer-1".into(),
        client_host: "/127.0.0.1".into(),
        subscribed_topic_names: vec!["events".into(), "logs".into()],
        subscribed_topic_regex: None,
        rebalance_timeout_ms: 300_000,
        server_assignor: None,
        classic_member_metadata: None,
    }
}

fn with_classic(metadata: ClassicMemberMetadata) -> GroupRecord {
    let value = ConsumerGroupMemberMetadata {
        classic_member_metadata: Some(metadata),
        ..consumer_member()
    };
    GroupRecord::ConsumerGroupMemberMetadata(member("orders"), Some(value))
}

fn current(
    state: MemberState,
    assigned: AssignedPartitions,
    pending: Vec<AssignedPartitions>,
) -> GroupRecord {
    let value = ConsumerGroupCurrentMemberAssignment {
        member_epoch: 12,
        previous_member_epoch: 11,
        state,
        assigned_partitions: vec![assigned],
        partitions_pending_revocation: pending,
    };
    GroupRecord::ConsumerGroupCurrentMemberAssignment(member("orders"), Some(value))
}

/// What we write as Kafka does.
fn offsets_and_classic_groups() -> Vec<(&'static str, GroupRecord)> {
    let smallest = OffsetKey {
        group: String::new(),
        topic: "t".into(),
        partition: PartitionId::new(0),
    };
    let zero = OffsetCommit {
        offset: Offset::ZERO,
        metadata: String::new(),
        commit_timestamp: Timestamp::from_millis(0),
        ..offset_commit()
    };
    vec![
        ("offset-commit_v4_topic-id", commit(offset_commit_v4())),
        (
            "offset-commit_v4_long-metadata",
            commit(OffsetCommit {
                metadata: "0123456789".repeat(13),
                ..offset_commit_v4()
            }),
        ),
        (
            "offset-commit_v4_smallest",
            GroupRecord::OffsetCommit(smallest, Some(zero)),
        ),
        (
            "offset-commit_v1_expires",
            commit(OffsetCommit {
                expire_timestamp: Some(Timestamp::from_millis(TIME.millis() + 86_400_000)),
                ..offset_commit()
            }),
        ),
        (
            "offset-commit_tombstone",
            GroupRecord::OffsetCommit(offset_key(), None),
        ),
        ("group-metadata_v3_two-members", classic(classic_group())),
        (
            "group-metadata_v3_empty",
            classic(GroupMetadata {
                protocol_type: String::new(),
                generation: 0,
                protocol: None,
                leader: None,
                current_state_timestamp: None,
                members: Vec::new(),
            }),
        ),
        (
            "group-metadata_tombstone",
            GroupRecord::GroupMetadata(group("orders"), None),
        ),
    ]
}

fn consumer_groups() -> Vec<(&'static str, GroupRecord)> {
    let metadata = |metadata_hash| {
        let value = ConsumerGroupMetadata {
            epoch: 12,
            metadata_hash,
        };
        GroupRecord::ConsumerGroupMetadata(group("orders"), Some(value))
    };
    let target_metadata = |millis| {
        let value = ConsumerGroupTargetAssignmentMetadata {
            assignment_epoch: 12,
            assignment_timestamp: Timestamp::from_millis(millis),
        };
        GroupRecord::ConsumerGroupTargetAssignmentMetadata(group("orders"), Some(value))
    };
    let member_record =
        |value| GroupRecord::ConsumerGroupMemberMetadata(member("orders"), Some(value));
    vec![
        (
            "consumer-group-metadata_v0_hash",
            metadata(0x0123_4567_89ab_cdef),
        ),
        ("consumer-group-metadata_v0_no-hash", metadata(0)),
        (
            "consumer-group-member-metadata_v0_names",
            member_record(consumer_member()),
        ),
        (
            "consumer-group-member-metadata_v0_all",
            member_record(ConsumerGroupMemberMetadata {
                instance_id: Some("i-1".into()),
                rack_id: Some("rack-a".into()),
                subscribed_topic_names: Vec::new(),
                subscribed_topic_regex: Some("ev.*".into()),
                server_assignor: Some("uniform".into()),
                ..consumer_member()
            }),
        ),
        (
            "consumer-group-member-metadata_v0_classic",
            with_classic(ClassicMemberMetadata {
                session_timeout_ms: 45_000,
                supported_protocols: vec![ClassicProtocol {
                    name: "range".into(),
                    metadata: Bytes::from_static(&[0, 3, 1]),
                }],
            }),
        ),
        (
            "consumer-group-member-metadata_v0_classic-default",
            with_classic(ClassicMemberMetadata::default()),
        ),
        (
            "consumer-group-member-metadata_tombstone",
            GroupRecord::ConsumerGroupMemberMetadata(member("orders"), None),
        ),
        (
            "consumer-group-target-assignment-metadata_v0_timestamp",
            target_metadata(TIME.millis()),
        ),
        (
            "consumer-group-target-assignment-metadata_v0_no-timestamp",
            target_metadata(0),
        ),
        (
            "consumer-group-target-assignment-member_v0_two-topics",
            GroupRecord::ConsumerGroupTargetAssignmentMember(
                member("orders"),
                Some(ConsumerGroupTargetAssignmentMember {
                    topic_partitions: vec![
                        topic_partitions(0x10, &[0, 2]),
                        topic_partitions(0x20, &[1]),
                    ],
                }),
            ),
        ),
        (
            "consumer-group-current-member-assignment_v0_epochs",
            current(
                MemberState::UnrevokedPartitions,
                assigned(0x10, &[0, 2], &[9, 12]),
                vec![assigned(0x20, &[1], &[10])],
            ),
        ),
        (
            "consumer-group-current-member-assignment_v0_no-epochs",
            current(
                MemberState::Stable,
                assigned(0x10, &[0, 2], &[]),
                Vec::new(),
            ),
        ),
    ]
}

fn share_groups() -> Vec<(&'static str, GroupRecord)> {
    let of_topic = |numbers: &[u32]| ShareTopicPartitions {
        topic_id: topic(0x10),
        topic_name: "events".into(),
        partitions: partitions(numbers),
    };
    vec![
        (
            "share-group-member-metadata_v0_rack",
            GroupRecord::ShareGroupMemberMetadata(
                member("jobs"),
                Some(ShareGroupMemberMetadata {
                    rack_id: Some("rack-a".into()),
                    client_id: "worker".into(),
                    client_host: "/127.0.0.1".into(),
                    subscribed_topic_names: vec!["events".into()],
                }),
            ),
        ),
        (
            "share-group-metadata_v0_hash",
            GroupRecord::ShareGroupMetadata(
                group("jobs"),
                Some(ShareGroupMetadata {
                    epoch: 3,
                    metadata_hash: -2,
                }),
            ),
        ),
        (
            "share-group-target-assignment-metadata_v0_timestamp",
            GroupRecord::ShareGroupTargetAssignmentMetadata(
                group("jobs"),
                Some(ShareGroupTargetAssignmentMetadata {
                    assignment_epoch: 3,
                    assignment_timestamp: TIME,
                }),
            ),
        ),
        (
            "share-group-target-assignment-member_v0_one-topic",
            GroupRecord::ShareGroupTargetAssignmentMember(
                member("jobs"),
                Some(ShareGroupTargetAssignmentMember {
                    topic_partitions: vec![topic_partitions(0x10, &[0, 1])],
                }),
            ),
        ),
        (
            "share-group-current-member-assignment_v0_one-topic",
            GroupRecord::ShareGroupCurrentMemberAssignment(
                member("jobs"),
                Some(ShareGroupCurrentMemberAssignment {
                    member_epoch: 3,
                    previous_member_epoch: 2,
                    state: MemberState::Stable,
                    assigned_partitions: vec![topic_partitions(0x10, &[0, 1])],
                }),
            ),
        ),
        (
            "share-group-state-partition-metadata_v0_all",
            GroupRecord::ShareGroupStatePartitionMetadata(
                group("jobs"),
                Some(ShareGroupStatePartitionMetadata {
                    initializing_topics: vec![of_topic(&[2])],
                    initialized_topics: vec![of_topic(&[0, 1])],
                    deleting_topics: vec![ShareTopic {
                        topic_id: topic(0x20),
                        topic_name: "old".into(),
                    }],
                }),
            ),
        ),
    ]
}

/// What we read, but write in another way.
fn older_and_newer() -> Vec<(&'static str, GroupRecord)> {
    let classic_with = |change: fn(&mut ClassicMember)| {
        let mut value = classic_group();
        value.members.iter_mut().for_each(change);
        value
    };
    let dynamic = classic_with(|m| m.group_instance_id = None);
    let stateless = GroupMetadata {
        current_state_timestamp: None,
        ..dynamic.clone()
    };
    let mut oldest = stateless.clone();
    for member in &mut oldest.members {
        member.rebalance_timeout_ms = member.session_timeout_ms;
    }
    vec![
        ("offset-commit_v0_all", commit(offset_commit())),
        ("offset-commit_v0_kind-0", commit(offset_commit())),
        ("offset-commit_v2_all", commit(offset_commit())),
        (
            "offset-commit_v3_all",
            commit(OffsetCommit {
                topic_id: None,
                ..offset_commit_v4()
            }),
        ),
        ("offset-commit_v4_unknown-tags", commit(offset_commit_v4())),
        ("group-metadata_v0_two-members", classic(oldest)),
        ("group-metadata_v1_two-members", classic(stateless)),
        ("group-metadata_v2_two-members", classic(dynamic)),
        ("group-metadata_v4_two-members", classic(classic_group())),
        (
            "consumer-group-current-member-assignment_v0_null-epochs",
            current(
                MemberState::Stable,
                assigned(0x10, &[0, 2], &[]),
                Vec::new(),
            ),
        ),
    ]
}

fn decode(name: &str) -> Result<Decoded, FormatError> {
    let (key, value) = golden(name);
    GroupRecord::decode(&key, value.as_deref())
}

#[test]
fn records_are_written_and_read_as_kafka_does() {
    let written = [
        offsets_and_classic_groups(),
        consumer_groups(),
        share_groups(),
    ];
    for (name, record) in written.concat() {
        let (key, value) = golden(name);
        let (written_key, written_value) = record.encode().unwrap();
        assert_eq!(written_key, key, "{name}");
        assert_eq!(written_value.as_deref(), value.as_deref(), "{name}");
        assert_eq!(decode(name), Ok(Decoded::Record(record)), "{name}");
    }
}

#[test]
fn other_versions_are_read() {
    for (name, record) in older_and_newer() {
        assert_eq!(decode(name), Ok(Decoded::Record(record)), "{name}");
    }
}

#[test]
fn other_kinds_are_passed_over() {
    let partition_metadata = decode("consumer-group-partition-metadata_tombstone");
    let regular_expression = decode("consumer-group-regular-expression_v0_one-topic");
    assert_eq!(
        partition_metadata,
        Ok(Decoded::NotRead(RecordKind::ConsumerGroupPartitionMetadata))
    );
    assert_eq!(
        regular_expression,
        Ok(Decoded::NotRead(RecordKind::ConsumerGroupRegularExpression))
    );
    assert_eq!(
        decode("streams-group-metadata_v0_unknown"),
        Ok(Decoded::Unknown { kind: 17 })
    );
    for kind in [i16::MIN, -1, 9, 18, 24, i16::MAX] {
        let key = kind.to_be_bytes();
        let unknown = Ok(Decoded::Unknown { kind });
        assert_eq!(GroupRecord::decode(&key, Some(b"anything")), unknown);
    }
}

#[test]
fn the_number_of_a_kind_names_it() {
    let known = (0..100).filter_map(|number| Some((number, RecordKind::from_number(number)?)));
    let known: Vec<_> = known.collect();
    assert_eq!(known.len(), 16);
    for (number, kind) in known {
        assert_eq!(kind.number(), number.max(1));
    }
    assert_eq!(RecordKind::OffsetCommit.to_string(), "OffsetCommit");
}

#[test]
fn records_that_are_wrong_fail_with_the_named_error() {
    use FormatError::*;
    let kind = RecordKind::OffsetCommit;
    let truncated = |kind, field, needed, left| Truncated {
        kind,
        field,
        needed,
        left,
    };
    let trailing = |kind, field| TrailingBytes {
        kind,
        field,
        left: 1,
    };
    let out_of_range = |field, found, allowed| OutOfRange {
        kind,
        field,
        found,
        allowed,
    };
    let classic = RecordKind::GroupMetadata;
    let cases = [
        ("any_corrupt_no-kind", NoKind { len: 1 }),
        (
            "offset-commit_corrupt_no-version",
            truncated(kind, "version", 2, 1),
        ),
        (
            "offset-commit_v5_corrupt_version",
            UnknownVersion {
                kind,
                found: 5,
                highest: 4,
            },
        ),
        (
            "offset-commit_v4_corrupt_cut",
            truncated(kind, "tagged_fields.content", 16, 15),
        ),
        (
            "offset-commit_v4_corrupt_after-value",
            trailing(kind, "value"),
        ),
        ("offset-commit_v4_corrupt_after-key", trailing(kind, "key")),
        (
            "offset-commit_v4_corrupt_tag-length",
            trailing(kind, "tagged_fields.content"),
        ),
        (
            "offset-commit_v4_corrupt_tag-twice",
            TagOrder {
                kind,
                found: 0,
                after: 0,
            },
        ),
        (
            "offset-commit_v4_corrupt_tag-order",
            TagOrder {
                kind,
                found: 300,
                after: 301,
            },
        ),
        (
            "offset-commit_v4_corrupt_varint-length",
            Varint {
                kind,
                field: "metadata",
            },
        ),
        (
            "offset-commit_v4_corrupt_varint-value",
            Varint {
                kind,
                field: "metadata",
            },
        ),
        (
            "offset-commit_v4_corrupt_utf-8",
            NotUtf8 {
                kind,
                field: "metadata",
                valid_up_to: 5,
            },
        ),
        (
            "offset-commit_v4_corrupt_long-text",
            TooLong {
                kind,
                field: "metadata",
                found: 32_768,
                max: 32_767,
            },
        ),
        (
            "offset-commit_v4_corrupt_null",
            Null {
                kind,
                field: "metadata",
            },
        ),
        (
            "offset-commit_v3_corrupt_length",
            NegativeLength {
                kind,
                field: "metadata",
                found: -2,
            },
        ),
        (
            "offset-commit_v3_corrupt_offset",
            out_of_range("offset", -1, "0 to 2^63 - 1"),
        ),
        (
            "offset-commit_v3_corrupt_leader-epoch",
            out_of_range("leader_epoch", -2, "-1 for none to 2^31 - 1"),
        ),
        (
            "offset-commit_v3_corrupt_partition",
            out_of_range("partition", -1, "0 to 2^31 - 1"),
        ),
        (
            "group-metadata_v3_corrupt_count",
            truncated(classic, "members", 0x7fff_ffff, 114),
        ),
        (
            "group-metadata_v3_corrupt_count-1",
            TrailingBytes {
                kind: classic,
                field: "value",
                left: 53,
            },
        ),
        (
            "group-metadata_v3_corrupt_bytes",
            truncated(classic, "members.subscription", 0x7fff_ffff, 62),
        ),
        (
            "group-metadata_v3_corrupt_bytes-length",
            NegativeLength {
                kind: classic,
                field: "members.subscription",
                found: -2,
            },
        ),
        (
            "consumer-group-current-member-assignment_v0_corrupt_epochs",
            OutOfRange {
                kind: RecordKind::ConsumerGroupCurrentMemberAssignment,
                field: "topics.assignment_epochs",
                found: 1,
                allowed: "one for each partition, or none",
            },
        ),
        (
            "consumer-group-member-metadata_v0_corrupt_presence",
            OutOfRange {
                kind: RecordKind::ConsumerGroupMemberMetadata,
                field: "classic_member_metadata",
                found: 2,
                allowed: "0 for null, or 1",
            },
        ),
    ];
    for (name, error) in cases {
        assert_eq!(decode(name), Err(error), "{name}");
    }
}

#[test]
fn what_kafka_could_not_read_is_not_written() {
    let kind = RecordKind::OffsetCommit;
    let with_metadata = |len| {
        commit(OffsetCommit {
            metadata: "x".repeat(len),
            ..offset_commit()
        })
    };
    let (key, value) = with_metadata(32_767).encode().unwrap();
    assert!(matches!(
        GroupRecord::decode(&key, value.as_deref()),
        Ok(Decoded::Record(_))
    ));
    let too_long = FormatError::TooLong {
        kind,
        field: "metadata",
        found: 32_768,
        max: 32_767,
    };
    assert_eq!(with_metadata(32_768).encode(), Err(too_long));

    let key = OffsetKey {
        partition: PartitionId::new(1 << 31),
        ..offset_key()
    };
    let too_large = FormatError::OutOfRange {
        kind,
        field: "partition",
        found: 1 << 31,
        allowed: "0 to 2^31 - 1",
    };
    assert_eq!(
        GroupRecord::OffsetCommit(key, None).encode(),
        Err(too_large)
    );

    let too_few = current(
        MemberState::Stable,
        assigned(0x10, &[0, 2], &[1]),
        Vec::new(),
    );
    assert!(matches!(
        too_few.encode(),
        Err(FormatError::OutOfRange { found: 1, .. })
    ));
}

#[test]
fn an_offset_that_expires_loses_leader_epoch_and_topic_id() {
    let expires = Some(Timestamp::from_millis(TIME.millis() + 86_400_000));
    let record = commit(OffsetCommit {
        expire_timestamp: expires,
        ..offset_commit_v4()
    });
    let (_, value) = record.encode().unwrap();
    assert_eq!(value.map(Vec::from), golden("offset-commit_v1_expires").1);
}

#[test]
fn errors_name_kind_field_and_what_is_allowed() {
    let error = decode("offset-commit_v3_corrupt_offset").unwrap_err();
    assert_eq!(
        error.to_string(),
        "OffsetCommit: offset is -1; allowed are 0 to 2^63 - 1"
    );
}

#[test]
fn every_corrupt_file_is_an_error_and_every_other_is_none() {
    for name in super::golden_names() {
        assert_eq!(decode(&name).is_err(), name.contains("_corrupt_"), "{name}");
    }
}
