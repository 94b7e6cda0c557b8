//! Between the messages of the API and what coordinators are asked and answer.

use tidelog_broker::CoordinatorPlace;
use tidelog_group::{
    CommitOffsets, Committer, GroupId, GroupKind, GroupSummary, InstanceId, MemberId, NewOffset,
    PartitionOffset,
};
use tidelog_proto::v1;
use tidelog_record::{LeaderEpoch, Offset, TopicId, TopicName};

use super::id_bytes;
use crate::grpc::status::{Failure, RequestError, failure};

/// The topic of this name, if it can be one.
fn topic(name: &str, field: String) -> Result<TopicName, Failure> {
    TopicName::new(name).map_err(|e| {
        let e = tidelog_broker::TopicError::from(tidelog_controller::TopicError::Name(e));
        failure(&e).in_field(field)
    })
}

/// The partitions that a request names.
pub(super) fn partitions(named: &[v1::TopicPartition]) -> Result<Vec<(TopicName, u32)>, Failure> {
    let named = named.iter().enumerate().map(|(at, one)| {
        let topic = topic(&one.topic, format!("partitions[{at}].topic"))?;
        Ok((topic, one.partition))
    });
    named.collect()
}

/// What is to be committed.
pub(super) fn commit(
    group: GroupId,
    request: &v1::CommitOffsetsRequest,
) -> Result<CommitOffsets, Failure> {
    let committer = match &request.member {
        None => Committer::Alone,
        Some(member) => committer(member)?,
    };
    let offsets = request.offsets.iter().enumerate();
    let offsets = offsets.map(|(at, offset)| new_offset(at, offset));
    Ok(CommitOffsets {
        group,
        committer,
        allow_backwards: request.allow_backwards,
        offsets: offsets.collect::<Result<_, _>>()?,
    })
}

fn committer(member: &v1::Member) -> Result<Committer, Failure> {
    let id = MemberId::new(&member.member_id);
    let id = id.map_err(|e| failure(&e).in_field("member.member_id"))?;
    let instance = match member.instance_id.as_str() {
        "" => None,
        instance => {
            let instance = InstanceId::new(instance);
            Some(instance.map_err(|e| failure(&e).in_field("member.instance_id"))?)
        }
    };
    Ok(Committer::Member {
        id,
        instance,
        generation: member.generation,
    })
}

fn new_offset(at: usize, offset: &v1::OffsetCommit) -> Result<NewOffset, Failure> {
    let field = |name: &str| format!("offsets[{at}].{name}");
    let refused = |name, value: String, allowed| {
        let error = RequestError::Value {
            field: name,
            value,
            allowed,
        };
        Failure::from(error).in_field(field(name))
    };
    let value = Offset::new(offset.offset);
    let value = value.ok_or_else(|| {
        refused(
            "offset",
            offset.offset.to_string(),
            "0 to 9223372036854775807",
        )
    })?;
    let leader_epoch = match offset.leader_epoch {
        None => None,
        Some(epoch) => Some(
            LeaderEpoch::new(epoch)
                .ok_or_else(|| refused("leader_epoch", epoch.to_string(), "0 to 2147483647"))?,
        ),
    };
    let topic_id = match offset.topic_id.len() {
        0 => None,
        _ => Some(topic_id(&offset.topic_id).ok_or_else(|| {
            let len = format!("{} bytes", offset.topic_id.len());
            refused("topic_id", len, "the 16 bytes of a topic's id, or nothing")
        })?),
    };
    Ok(NewOffset {
        topic: topic(&offset.topic, field("topic"))?,
        topic_id,
        partition: offset.partition,
        offset: value,
        leader_epoch,
        metadata: offset.metadata.clone(),
        end: None,
    })
}

fn topic_id(bytes: &[u8]) -> Option<TopicId> {
    Some(TopicId::from_bytes(bytes.try_into().ok()?))
}

/// What is committed for a partition.
pub(super) fn group_offset(offset: PartitionOffset) -> v1::GroupOffset {
    let PartitionOffset {
        topic,
        partition,
        committed,
    } = offset;
    let mut told = v1::GroupOffset {
        topic: topic.to_string(),
        partition,
        ..v1::GroupOffset::default()
    };
    if let Some(committed) = committed {
        told.offset = Some(committed.offset.get());
        told.leader_epoch = committed.leader_epoch.map(LeaderEpoch::get);
        told.metadata = committed.metadata;
        told.committed_at_ms = committed.committed_at.millis();
        told.topic_id = committed.topic_id.map_or_else(Default::default, id_bytes);
    }
    told
}

/// A group in short.
pub(super) fn summary(summary: GroupSummary) -> v1::GroupSummary {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    v1::GroupSummary {
        group: summary.group.to_string(),
        kind: match summary.kind {
            GroupKind::Offsets => v1::GroupKind::Offsets,
            GroupKind::Stream => v1::GroupKind::Stream,
        }
        .into(),
        members: count(summary.members),
        offsets: count(summary.offsets),
    }
}

/// Where a coordinator is.
pub(super) fn coordinator(place: CoordinatorPlace) -> v1::FindCoordinatorResponse {
    v1::FindCoordinatorResponse {
        node_id: place.broker.node_id,
        grpc_address: place.broker.grpc_address,
        partition: place.partition,
    }
}
