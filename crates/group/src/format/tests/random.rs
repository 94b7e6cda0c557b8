use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tidelog_record::{LeaderEpoch, Offset, PartitionId, Timestamp, TopicId};

use super::{golden, golden_names};
use crate::format::*;

fn text() -> impl Strategy<Value = String> {
    // Some need two bytes for their compact length.
    prop_oneof![9 => "\\PC{0,8}", 1 => "\\PC{60,200}"]
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::from_millis)
}

/// Any but the one that stands for none.
fn some_timestamp() -> impl Strategy<Value = Timestamp> {
    timestamp().prop_filter("none", |&at| at != Timestamp::NONE)
}

fn topic_id() -> impl Strategy<Value = TopicId> {
    any::<[u8; 16]>().prop_map(TopicId::from_bytes)
}

fn partition() -> impl Strategy<Value = PartitionId> {
    (0..=i32::MAX.unsigned_abs()).prop_map(PartitionId::new)
}

fn offset_key() -> impl Strategy<Value = OffsetKey> {
    (text(), text(), partition()).prop_map(|(group, topic, partition)| OffsetKey {
        group,
        topic,
        partition,
    })
}

fn group_key() -> impl Strategy<Value = GroupKey> {
    text().prop_map(|group| GroupKey { group })
}

fn member_key() -> impl Strategy<Value = MemberKey> {
    (text(), text()).prop_map(|(group, member)| MemberKey { group, member })
}

fn offset_commit() -> impl Strategy<Value = OffsetCommit> {
    let offset = (0..=i64::MAX).prop_map(|offset| Offset::from_wire(offset).unwrap());
    let epoch = (0..=i32::MAX).prop_map(|epoch| LeaderEpoch::from_wire(epoch).unwrap());
    let topic_id = topic_id().prop_filter("none", |id| id.to_bytes() != [0; 16]);
    let version_4 = (option::of(epoch), option::of(topic_id)).prop_map(|(e, t)| (e, t, None));
    let version_1 = some_timestamp().prop_map(|expires| (None, None, Some(expires)));
    let by_version = prop_oneof![version_4, version_1];
    (offset, text(), timestamp(), by_version).prop_map(
        |(offset, metadata, commit_timestamp, (leader_epoch, topic_id, expire_timestamp))| {
            OffsetCommit {
                offset,
                leader_epoch,
                metadata,
                commit_timestamp,
                expire_timestamp,
                topic_id,
            }
        },
    )
}

fn classic_member() -> impl Strategy<Value = ClassicMember> {
    let names = (text(), option::of(text()), text(), text());
    // -1 stands for the session timeout.
    (names, 0..=i32::MAX, any::<i32>(), bytes(), bytes()).prop_map(
        |((member_id, group_instance_id, client_id, client_host), rebalance, session, s, a)| {
            ClassicMember {
                member_id,
                group_instance_id,
                client_id,
                client_host,
                rebalance_timeout_ms: rebalance,
                session_timeout_ms: session,
                subscription: s,
                assignment: a,
            }
        },
    )
}

fn group_metadata() -> impl Strategy<Value = GroupMetadata> {
    (
        (text(), any::<i32>(), option::of(text()), option::of(text())),
        option::of(some_timestamp()),
        vec(classic_member(), 0..4),
    )
        .prop_map(
            |((protocol_type, generation, protocol, leader), since, members)| GroupMetadata {
                protocol_type,
                generation,
                protocol,
                leader,
                current_state_timestamp: since,
                members,
            },
        )
}

fn classic_member_metadata() -> impl Strategy<Value = ClassicMemberMetadata> {
    let protocol =
        (text(), bytes()).prop_map(|(name, metadata)| ClassicProtocol { name, metadata });
    (-1..3, vec(protocol, 0..3)).prop_map(|(session_timeout_ms, supported_protocols)| {
        ClassicMemberMetadata {
            session_timeout_ms,
            supported_protocols,
        }
    })
}

fn consumer_member() -> impl Strategy<Value = ConsumerGroupMemberMetadata> {
    let options = (
        option::of(text()),
        option::of(text()),
        option::of(text()),
        option::of(text()),
    );
    (
        options,
        (text(), text()),
        vec(text(), 0..3),
        any::<i32>(),
        option::of(classic_member_metadata()),
    )
        .prop_map(
            |((instance, rack, regex, assignor), (client_id, host), names, rebalance, classic)| {
                ConsumerGroupMemberMetadata {
                    instance_id: instance,
                    rack_id: rack,
                    client_id,
                    client_host: host,
                    subscribed_topic_names: names,
                    subscribed_topic_regex: regex,
                    rebalance_timeout_ms: rebalance,
                    server_assignor: assignor,
                    classic_member_metadata: classic,
                }
            },
        )
}

fn topic_partitions() -> impl Strategy<Value = Vec<TopicPartitions>> {
    let topic =
        (topic_id(), vec(partition(), 0..4)).prop_map(|(topic_id, partitions)| TopicPartitions {
            topic_id,
            partitions,
        });
    vec(topic, 0..4)
}

fn assigned_partitions() -> impl Strategy<Value = Vec<AssignedPartitions>> {
    let topic = (
        topic_id(),
        vec((partition(), any::<i32>()), 0..4),
        any::<bool>(),
    )
        .prop_map(|(topic_id, all, has_epochs)| {
            let (partitions, epochs): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            AssignedPartitions {
                topic_id,
                partitions,
                assignment_epochs: if has_epochs { epochs } else { Vec::new() },
            }
        });
    vec(topic, 0..4)
}

fn state() -> impl Strategy<Value = MemberState> {
    prop_oneof![
        Just(MemberState::Stable),
        Just(MemberState::UnrevokedPartitions),
        Just(MemberState::UnreleasedPartitions),
        Just(MemberState::Unknown),
    ]
}

fn consumer_group() -> impl Strategy<Value = GroupRecord> {
    let metadata =
        (any::<i32>(), -1_i64..2).prop_map(|(epoch, metadata_hash)| ConsumerGroupMetadata {
            epoch,
            metadata_hash,
        });
    let target = (any::<i32>(), -1_i64..2).prop_map(|(assignment_epoch, millis)| {
        ConsumerGroupTargetAssignmentMetadata {
            assignment_epoch,
            assignment_timestamp: Timestamp::from_millis(millis),
        }
    });
    let target_member = topic_partitions()
        .prop_map(|topic_partitions| ConsumerGroupTargetAssignmentMember { topic_partitions });
    let epochs = (any::<i32>(), any::<i32>());
    let current = (
        epochs,
        state(),
        assigned_partitions(),
        assigned_partitions(),
    )
        .prop_map(|((epoch, previous), state, assigned, pending)| {
            ConsumerGroupCurrentMemberAssignment {
                member_epoch: epoch,
                previous_member_epoch: previous,
                state,
                assigned_partitions: assigned,
                partitions_pending_revocation: pending,
            }
        });
    use GroupRecord as R;
    prop_oneof![
        (group_key(), option::of(metadata)).prop_map(|(k, v)| R::ConsumerGroupMetadata(k, v)),
        (member_key(), option::of(consumer_member()))
            .prop_map(|(k, v)| R::ConsumerGroupMemberMetadata(k, v)),
        (group_key(), option::of(target))
            .prop_map(|(k, v)| R::ConsumerGroupTargetAssignmentMetadata(k, v)),
        (member_key(), option::of(target_member))
            .prop_map(|(k, v)| R::ConsumerGroupTargetAssignmentMember(k, v)),
        (member_key(), option::of(current))
            .prop_map(|(k, v)| R::ConsumerGroupCurrentMemberAssignment(k, v)),
    ]
}

fn share_topics() -> impl Strategy<Value = Vec<ShareTopicPartitions>> {
    let topic = (topic_id(), text(), vec(partition(), 0..3)).prop_map(
        |(topic_id, topic_name, partitions)| ShareTopicPartitions {
            topic_id,
            topic_name,
            partitions,
        },
    );
    vec(topic, 0..3)
}

fn share_group() -> impl Strategy<Value = GroupRecord> {
    let member = (option::of(text()), text(), text(), vec(text(), 0..3)).prop_map(
        |(rack_id, client_id, client_host, subscribed_topic_names)| ShareGroupMemberMetadata {
            rack_id,
            client_id,
            client_host,
            subscribed_topic_names,
        },
    );
    let metadata =
        (any::<i32>(), any::<i64>()).prop_map(|(epoch, metadata_hash)| ShareGroupMetadata {
            epoch,
            metadata_hash,
        });
    let target = (any::<i32>(), -1_i64..2).prop_map(|(assignment_epoch, millis)| {
        ShareGroupTargetAssignmentMetadata {
            assignment_epoch,
            assignment_timestamp: Timestamp::from_millis(millis),
        }
    });
    let target_member = topic_partitions()
        .prop_map(|topic_partitions| ShareGroupTargetAssignmentMember { topic_partitions });
    let current = (any::<i32>(), any::<i32>(), state(), topic_partitions()).prop_map(
        |(member_epoch, previous_member_epoch, state, assigned_partitions)| {
            ShareGroupCurrentMemberAssignment {
                member_epoch,
                previous_member_epoch,
                state,
                assigned_partitions,
            }
        },
    );
    let deleted = (topic_id(), text()).prop_map(|(topic_id, topic_name)| ShareTopic {
        topic_id,
        topic_name,
    });
    let partitions = (share_topics(), share_topics(), vec(deleted, 0..3)).prop_map(
        |(initializing_topics, initialized_topics, deleting_topics)| {
            ShareGroupStatePartitionMetadata {
                initializing_topics,
                initialized_topics,
                deleting_topics,
            }
        },
    );
    use GroupRecord as R;
    prop_oneof![
        (member_key(), option::of(member)).prop_map(|(k, v)| R::ShareGroupMemberMetadata(k, v)),
        (group_key(), option::of(metadata)).prop_map(|(k, v)| R::ShareGroupMetadata(k, v)),
        (group_key(), option::of(target))
            .prop_map(|(k, v)| R::ShareGroupTargetAssignmentMetadata(k, v)),
        (member_key(), option::of(target_member))
            .prop_map(|(k, v)| R::ShareGroupTargetAssignmentMember(k, v)),
        (member_key(), option::of(current))
            .prop_map(|(k, v)| R::ShareGroupCurrentMemberAssignment(k, v)),
        (group_key(), option::of(partitions))
            .prop_map(|(k, v)| R::ShareGroupStatePartitionMetadata(k, v)),
    ]
}

fn record() -> impl Strategy<Value = GroupRecord> {
    prop_oneof![
        2 => (offset_key(), option::of(offset_commit()))
            .prop_map(|(k, v)| GroupRecord::OffsetCommit(k, v)),
        1 => (group_key(), option::of(group_metadata()))
            .prop_map(|(k, v)| GroupRecord::GroupMetadata(k, v)),
        5 => consumer_group(),
        6 => share_group(),
    ]
}

/// Keys and values that go far into the decoder: golden ones with a few bytes changed, or cut.
fn nearly() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let name = prop::sample::select(golden_names());
    (name, changes, option::of(0..200_usize)).prop_map(|(name, changes, cut)| {
        let (key, value) = golden(&name);
        let mut value = value.unwrap_or_default();
        for (at, byte) in changes {
            if !value.is_empty() {
                let at = at.index(value.len());
                value[at] = byte;
            }
        }
        value.truncate(cut.unwrap_or(usize::MAX));
        (key, Some(value))
    })
}

/// Any bytes, behind any kind and version.
fn anything() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
    let key = (-1..20_i16, vec(any::<u8>(), 0..20))
        .prop_map(|(kind, bytes)| [&kind.to_be_bytes()[..], &bytes].concat());
    let short = (0..20_i16, vec(0..4_u8, 0..20)).prop_map(|(kind, mut bytes)| {
        // Keys of short texts that are often whole.
        bytes.insert(0, 0);
        [&kind.to_be_bytes()[..], &bytes].concat()
    });
    let value = (-1..6_i16, vec(any::<u8>(), 0..200))
        .prop_map(|(version, bytes)| [&version.to_be_bytes()[..], &bytes].concat());
    (prop_oneof![key, short], option::of(value))
}

proptest! {
    #[test]
    fn records_come_back_as_they_went(record in record()) {
        let (key, value) = record.encode().unwrap();
        let decoded = GroupRecord::decode(&key, value.as_deref());
        prop_assert_eq!(decoded, Ok(Decoded::Record(record)));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        (key, value) in prop_oneof![3 => nearly(), 1 => anything()],
    ) {
        if let Ok(Decoded::Record(record)) = GroupRecord::decode(&key, value.as_deref()) {
            let (key, value) = record.encode().unwrap();
            let again = GroupRecord::decode(&key, value.as_deref());
            prop_assert_eq!(again, Ok(Decoded::Record(record)));
        }
    }

    #[test]
    fn a_record_that_is_cut_is_an_error(record in record(), cut: prop::sample::Index) {
        let (key, value) = record.encode().unwrap();
        let cut_key = &key[..cut.index(key.len())];
        prop_assert!(GroupRecord::decode(cut_key, value.as_deref()).is_err());
        if let Some(value) = value {
            let cut_value = &value[..cut.index(value.len())];
            prop_assert!(GroupRecord::decode(&key, Some(cut_value)).is_err());
        }
    }
}
