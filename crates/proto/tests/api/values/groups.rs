//! Of `groups.proto`.

use tidelog_proto::v1;

use super::{BIG, TIME, b};
use crate::wire::Case;

pub(super) fn all() -> Vec<Case> {
    [coordinators(), commits(), looks(), groups()]
        .into_iter()
        .flatten()
        .collect()
}

fn status() -> Option<tonic_types::Status> {
    Some(tonic_types::Status {
        code: 5,
        ..Default::default()
    })
}

fn partition() -> v1::TopicPartition {
    v1::TopicPartition {
        topic: "t".to_owned(),
        partition: 300,
    }
}

fn coordinators() -> Vec<Case> {
    vec![
        Case::new(
            "FindCoordinatorRequest",
            "",
            &v1::FindCoordinatorRequest {
                group: "g".to_owned(),
            },
        ),
        Case::new(
            "FindCoordinatorResponse",
            "",
            &v1::FindCoordinatorResponse {
                node_id: 300,
                grpc_address: "a:9400".to_owned(),
                partition: 301,
            },
        ),
    ]
}

fn commits() -> Vec<Case> {
    vec![
        Case::new(
            "CommitOffsetsRequest",
            "",
            &v1::CommitOffsetsRequest {
                group: "g".to_owned(),
                member: Some(v1::Member {
                    generation: 3,
                    ..Default::default()
                }),
                allow_backwards: true,
                offsets: vec![v1::OffsetCommit {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "Member",
            "",
            &v1::Member {
                member_id: "m".to_owned(),
                generation: 300,
                instance_id: "i".to_owned(),
            },
        ),
        Case::new(
            "OffsetCommit",
            "",
            &v1::OffsetCommit {
                topic: "t".to_owned(),
                partition: 300,
                offset: BIG,
                leader_epoch: Some(0),
                metadata: "m".to_owned(),
                topic_id: b("0123456789abcdef"),
            },
        ),
        Case::new(
            "CommitOffsetsResponse",
            "",
            &v1::CommitOffsetsResponse {
                offsets: vec![v1::CommittedOffset {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "CommittedOffset",
            "",
            &v1::CommittedOffset {
                topic: "t".to_owned(),
                partition: 300,
                error: status(),
            },
        ),
    ]
}

fn looks() -> Vec<Case> {
    vec![
        Case::new(
            "FetchOffsetsRequest",
            "",
            &v1::FetchOffsetsRequest {
                group: "g".to_owned(),
                partitions: vec![v1::TopicPartition {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new("TopicPartition", "", &partition()),
        Case::new(
            "FetchOffsetsResponse",
            "",
            &v1::FetchOffsetsResponse {
                offsets: vec![v1::GroupOffset {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "GroupOffset",
            "",
            &v1::GroupOffset {
                topic: "t".to_owned(),
                partition: 300,
                offset: Some(0),
                leader_epoch: Some(0),
                metadata: "m".to_owned(),
                committed_at_ms: TIME,
                topic_id: b("0123456789abcdef"),
            },
        ),
        Case::new(
            "DeleteOffsetsRequest",
            "",
            &v1::DeleteOffsetsRequest {
                group: "g".to_owned(),
                partitions: vec![v1::TopicPartition {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "DeleteOffsetsResponse",
            "",
            &v1::DeleteOffsetsResponse {
                deleted: vec![true, false],
            },
        ),
    ]
}

fn groups() -> Vec<Case> {
    let named = || v1::GroupSummary {
        group: "g".to_owned(),
        ..Default::default()
    };
    let summary = || v1::GroupSummary {
        group: "g".to_owned(),
        kind: v1::GroupKind::Stream.into(),
        members: 300,
        offsets: 301,
    };
    vec![
        Case::new(
            "ListGroupsRequest",
            "",
            &v1::ListGroupsRequest {
                page_size: 300,
                page_token: "t".to_owned(),
            },
        ),
        Case::new(
            "ListGroupsResponse",
            "",
            &v1::ListGroupsResponse {
                groups: vec![named()],
                next_page_token: "t".to_owned(),
                missing: vec![v1::MissingCoordinator {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "MissingCoordinator",
            "",
            &v1::MissingCoordinator {
                partition: 300,
                error: status(),
            },
        ),
        Case::new("GroupSummary", "", &summary()),
        Case::new(
            "DescribeGroupRequest",
            "",
            &v1::DescribeGroupRequest {
                group: "g".to_owned(),
            },
        ),
        Case::new(
            "DescribeGroupResponse",
            "",
            &v1::DescribeGroupResponse {
                group: Some(named()),
                offsets: vec![v1::GroupOffset {
                    partition: 3,
                    ..Default::default()
                }],
                coordinator: Some(v1::FindCoordinatorResponse {
                    node_id: 3,
                    ..Default::default()
                }),
            },
        ),
        Case::new(
            "DeleteGroupRequest",
            "",
            &v1::DeleteGroupRequest {
                group: "g".to_owned(),
            },
        ),
        Case::new("DeleteGroupResponse", "", &v1::DeleteGroupResponse {}),
    ]
}
