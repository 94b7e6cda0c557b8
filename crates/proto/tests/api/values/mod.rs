//! A filled value of every message.
//!
//! Each value names all of its fields, so that a new one is missed when this is compiled. The
//! messages inside of it have only one, so that what they get some day changes nothing here.

mod cluster;
mod groups;
mod log;

use std::collections::HashMap;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_proto::v1::offset_spec::At;

use crate::wire::Case;

/// Takes all the bytes that a number can have.
const BIG: u64 = u64::MAX;

/// Before 1970: a sign that is lost shows.
const TIME: i64 = -2;

fn b(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn header() -> v1::Header {
    v1::Header {
        key: "trace".to_owned(),
        ..Default::default()
    }
}

fn topic() -> v1::TopicSummary {
    v1::TopicSummary {
        name: "t".to_owned(),
        ..Default::default()
    }
}

fn assigned() -> v1::ReplicaAssignment {
    v1::ReplicaAssignment { node_ids: vec![3] }
}

fn settings() -> HashMap<String, String> {
    HashMap::from([("retention.ms".to_owned(), "-1".to_owned())])
}

fn offset(offset: u64) -> v1::OffsetSpec {
    v1::OffsetSpec {
        at: Some(At::Offset(offset)),
    }
}

fn error() -> tonic_types::Status {
    tonic_types::Status {
        code: 11,
        message: "no".to_owned(),
        details: Vec::new(),
    }
}

pub(crate) fn all() -> Vec<Case> {
    [
        topics(),
        cluster::all(),
        groups::all(),
        records(),
        log::appends(),
        log::reads(),
        log::offsets(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Of `record.proto`.
fn records() -> Vec<Case> {
    vec![
        Case::new(
            "Header",
            "",
            &v1::Header {
                key: "trace".to_owned(),
                value: Some(b("id")),
            },
        ),
        Case::new(
            "NewRecord",
            "",
            &v1::NewRecord {
                key: Some(b("key")),
                value: Some(b("value")),
                headers: vec![header()],
                timestamp_ms: Some(TIME),
            },
        ),
        Case::new(
            "Record",
            "",
            &v1::Record {
                offset: BIG,
                timestamp_ms: TIME,
                key: Some(b("key")),
                value: Some(b("value")),
                headers: vec![header()],
            },
        ),
        Case::new(
            "OffsetSpec",
            "/offset",
            &v1::OffsetSpec {
                at: Some(At::Offset(BIG)),
            },
        ),
        Case::new(
            "OffsetSpec",
            "/earliest",
            &v1::OffsetSpec {
                at: Some(At::Earliest(true)),
            },
        ),
        Case::new(
            "OffsetSpec",
            "/latest",
            &v1::OffsetSpec {
                at: Some(At::Latest(true)),
            },
        ),
        Case::new(
            "OffsetSpec",
            "/timestamp_ms",
            &v1::OffsetSpec {
                at: Some(At::TimestampMs(TIME)),
            },
        ),
        Case::new(
            "OffsetSpec",
            "/before_latest",
            &v1::OffsetSpec {
                at: Some(At::BeforeLatest(300)),
            },
        ),
    ]
}

/// Of `topics.proto`.
fn topics() -> Vec<Case> {
    vec![
        Case::new(
            "CreateTopicRequest",
            "",
            &v1::CreateTopicRequest {
                name: "t".to_owned(),
                partitions: 300,
                settings: settings(),
                validate_only: true,
                replication_factor: 301,
                assignment: vec![assigned()],
            },
        ),
        Case::new(
            "ReplicaAssignment",
            "",
            &v1::ReplicaAssignment {
                node_ids: vec![3, 300],
            },
        ),
        Case::new(
            "CreateTopicResponse",
            "",
            &v1::CreateTopicResponse {
                topic: Some(topic()),
            },
        ),
        Case::new(
            "ListTopicsRequest",
            "",
            &v1::ListTopicsRequest {
                include_internal: true,
                page_size: 300,
                page_token: "next".to_owned(),
            },
        ),
        Case::new(
            "ListTopicsResponse",
            "",
            &v1::ListTopicsResponse {
                topics: vec![topic()],
                next_page_token: "next".to_owned(),
            },
        ),
        Case::new(
            "TopicSummary",
            "",
            &v1::TopicSummary {
                name: "t".to_owned(),
                topic_id: b("0123456789abcdef"),
                partitions: 300,
                settings: settings(),
                internal: true,
                replication_factor: 301,
            },
        ),
        Case::new(
            "DescribeTopicRequest",
            "",
            &v1::DescribeTopicRequest {
                name: "t".to_owned(),
                include_segments: true,
            },
        ),
        Case::new(
            "DescribeTopicResponse",
            "",
            &v1::DescribeTopicResponse {
                topic: Some(topic()),
                settings: vec![v1::Setting {
                    name: "retention.ms".to_owned(),
                    ..Default::default()
                }],
                partitions: vec![v1::PartitionDescription {
                    partition: 3,
                    ..Default::default()
                }],
                brokers: vec![v1::BrokerAddress {
                    node_id: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "BrokerAddress",
            "",
            &v1::BrokerAddress {
                node_id: 300,
                grpc_address: "a:9400".to_owned(),
            },
        ),
        Case::new(
            "Setting",
            "",
            &v1::Setting {
                name: "retention.ms".to_owned(),
                value: "-1".to_owned(),
                is_default: true,
            },
        ),
        Case::new(
            "PartitionDescription",
            "",
            &v1::PartitionDescription {
                partition: 300,
                log_start_offset: 301,
                high_watermark: 302,
                log_end_offset: BIG,
                leader_epoch: u32::MAX,
                size_bytes: 303,
                segment_count: 304,
                segments: vec![v1::SegmentDescription {
                    end_offset: 3,
                    ..Default::default()
                }],
                fault: "EIO".to_owned(),
                leader: Some(305),
                replicas: vec![305, 306],
                in_sync: vec![306],
                is_elsewhere: true,
            },
        ),
        Case::new(
            "SegmentDescription",
            "",
            &v1::SegmentDescription {
                base_offset: 300,
                end_offset: BIG,
                size_bytes: 301,
                sealed: true,
                file: "0.log".to_owned(),
            },
        ),
        Case::new(
            "AlterTopicRequest",
            "",
            &v1::AlterTopicRequest {
                name: "t".to_owned(),
                set: settings(),
                reset: vec!["segment.ms".to_owned()],
                validate_only: true,
            },
        ),
        Case::new(
            "AlterTopicResponse",
            "",
            &v1::AlterTopicResponse {
                topic: Some(topic()),
            },
        ),
        Case::new(
            "AddPartitionsRequest",
            "",
            &v1::AddPartitionsRequest {
                name: "t".to_owned(),
                total: 300,
                assignment: vec![assigned()],
            },
        ),
        Case::new(
            "AddPartitionsResponse",
            "",
            &v1::AddPartitionsResponse {
                topic: Some(topic()),
            },
        ),
        Case::new(
            "DeleteTopicRequest",
            "",
            &v1::DeleteTopicRequest {
                name: "t".to_owned(),
            },
        ),
        Case::new("DeleteTopicResponse", "", &v1::DeleteTopicResponse {}),
    ]
}
