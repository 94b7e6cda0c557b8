//! Of `cluster.proto`.

use std::collections::HashMap;

use tidelog_proto::v1;

use super::{BIG, b};
use crate::wire::Case;

pub(super) fn all() -> Vec<Case> {
    [descriptions(), partitions(), brokers(), recovery()]
        .into_iter()
        .flatten()
        .collect()
}

fn descriptions() -> Vec<Case> {
    vec![
        Case::new("DescribeClusterRequest", "", &v1::DescribeClusterRequest {}),
        Case::new(
            "DescribeClusterResponse",
            "",
            &v1::DescribeClusterResponse {
                cluster_id: b("0123456789abcdef"),
                answered_by: 300,
                metadata_leader: Some(0),
                feature_level: 301,
                brokers: vec![v1::BrokerDescription {
                    node_id: 3,
                    ..Default::default()
                }],
                problems: vec![v1::PartitionProblem {
                    partition: 3,
                    ..Default::default()
                }],
                partitions: 302,
                problem_count: u32::MAX,
                metadata_voters: vec![3, 300],
                ..Default::default()
            },
        ),
        Case::new(
            "DescribeClusterResponse",
            "/refused",
            &v1::DescribeClusterResponse {
                refused: "removed".to_owned(),
                ..Default::default()
            },
        ),
        Case::new(
            "BrokerDescription",
            "",
            &v1::BrokerDescription {
                node_id: 300,
                grpc_address: "a:9400".to_owned(),
                http_address: "a:9401".to_owned(),
                cluster_address: "a:9402".to_owned(),
                rack: "r".to_owned(),
                version: "0.1.0".to_owned(),
                state: v1::BrokerState::Fenced.into(),
                draining: true,
                replicas: 301,
                leaders: 302,
                directory_id: b("0123456789abcdef"),
                silent_ms: BIG,
                resigning: v1::ResigningCause::Other.into(),
            },
        ),
        Case::new(
            "PartitionProblem",
            "",
            &v1::PartitionProblem {
                topic: "t".to_owned(),
                partition: 300,
                kind: v1::ProblemKind::Faulted.into(),
                cause: "EIO".to_owned(),
            },
        ),
    ]
}

fn partitions() -> Vec<Case> {
    vec![
        Case::new(
            "ListPartitionsRequest",
            "",
            &v1::ListPartitionsRequest {
                topic: "t".to_owned(),
                page_size: 300,
                page_token: "next".to_owned(),
            },
        ),
        Case::new(
            "ListPartitionsResponse",
            "",
            &v1::ListPartitionsResponse {
                partitions: vec![v1::PartitionPlace {
                    partition: 3,
                    ..Default::default()
                }],
                next_page_token: "next".to_owned(),
            },
        ),
        Case::new(
            "PartitionPlace",
            "",
            &v1::PartitionPlace {
                topic: "t".to_owned(),
                partition: 300,
                leader: Some(0),
                leader_epoch: u32::MAX,
                replicas: vec![301, 302],
                in_sync: vec![301],
                target: vec![303],
                reassignment: v1::ReassignmentState::Joint.into(),
                lag: HashMap::from([(302, BIG)]),
            },
        ),
        Case::new(
            "ReassignPartitionRequest",
            "",
            &v1::ReassignPartitionRequest {
                topic: "t".to_owned(),
                partition: 300,
                node_ids: vec![3, 301],
            },
        ),
        Case::new(
            "ReassignPartitionResponse",
            "",
            &v1::ReassignPartitionResponse {},
        ),
        Case::new(
            "CancelReassignmentRequest",
            "",
            &v1::CancelReassignmentRequest {
                topic: "t".to_owned(),
                partition: 300,
            },
        ),
        Case::new(
            "CancelReassignmentResponse",
            "",
            &v1::CancelReassignmentResponse {},
        ),
        Case::new(
            "SetLeaderRequest",
            "",
            &v1::SetLeaderRequest {
                topic: "t".to_owned(),
                partition: 300,
                node_id: 301,
            },
        ),
        Case::new("SetLeaderResponse", "", &v1::SetLeaderResponse {}),
    ]
}

fn brokers() -> Vec<Case> {
    vec![
        Case::new(
            "DrainBrokerRequest",
            "",
            &v1::DrainBrokerRequest {
                node_id: 300,
                ..Default::default()
            },
        ),
        Case::new(
            "DrainBrokerResponse",
            "",
            &v1::DrainBrokerResponse {
                replicas: 300,
                ..Default::default()
            },
        ),
        Case::new(
            "DrainBrokerRequest",
            "/validate_only",
            &v1::DrainBrokerRequest {
                node_id: 300,
                validate_only: true,
            },
        ),
        Case::new(
            "DrainBrokerResponse",
            "/moves",
            &v1::DrainBrokerResponse {
                replicas: 300,
                moves: vec![v1::PlannedMove {
                    partition: 3,
                    ..Default::default()
                }],
                stuck: 301,
            },
        ),
        Case::new(
            "PlannedMove",
            "",
            &v1::PlannedMove {
                topic: "t".to_owned(),
                partition: 300,
                replicas: vec![301, 302],
                target: vec![303, 302],
            },
        ),
        Case::new(
            "AddBrokerRequest",
            "",
            &v1::AddBrokerRequest { node_id: 300 },
        ),
        Case::new("AddBrokerResponse", "", &v1::AddBrokerResponse {}),
        Case::new(
            "RemoveBrokerRequest",
            "",
            &v1::RemoveBrokerRequest { node_id: 300 },
        ),
        Case::new("RemoveBrokerResponse", "", &v1::RemoveBrokerResponse {}),
        Case::new(
            "ReplaceBrokerRequest",
            "",
            &v1::ReplaceBrokerRequest {
                node_id: 300,
                directory_id: b("0123456789abcdef"),
            },
        ),
        Case::new(
            "ReplaceBrokerResponse",
            "",
            &v1::ReplaceBrokerResponse { replicas: 300 },
        ),
    ]
}

fn recovery() -> Vec<Case> {
    vec![
        Case::new(
            "RecoverClusterRequest",
            "",
            &v1::RecoverClusterRequest {
                lost: vec![3, 300],
                accept_loss: true,
                exactly: true,
            },
        ),
        Case::new(
            "RecoverClusterResponse",
            "",
            &v1::RecoverClusterResponse {
                lost: vec![3, 300],
                metadata_keeper: Some(0),
                partitions: vec![v1::RecoveredPartition {
                    partition: 3,
                    ..Default::default()
                }],
                partition_count: 300,
                stuck: vec![v1::RecoveredPartition {
                    partition: 4,
                    ..Default::default()
                }],
                stuck_count: 301,
                done: true,
            },
        ),
        Case::new(
            "RecoveredPartition",
            "",
            &v1::RecoveredPartition {
                topic: "t".to_owned(),
                partition: 300,
                keeper: Some(0),
                end_offset: BIG,
                high_watermark: BIG,
                lost: vec![3, 300],
                others: vec![4, 301],
            },
        ),
    ]
}
