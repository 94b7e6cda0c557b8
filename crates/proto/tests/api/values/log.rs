//! The messages of `log.proto`.

use tidelog_proto::v1::append_request::Payload;
use tidelog_proto::v1::produce_response::Outcome;
use tidelog_proto::v1::{self, read_request, read_response};

use super::{BIG, TIME, b, error, offset};
use crate::wire::Case;

/// Of `log.proto`, writing.
pub(super) fn appends() -> Vec<Case> {
    vec![
        Case::new(
            "AppendRequest",
            "/batch",
            &v1::AppendRequest {
                topic: "t".to_owned(),
                partition: Some(300),
                acks: v1::Acks::None.into(),
                payload: Some(Payload::Batch(b("batch"))),
            },
        ),
        Case::new(
            "AppendRequest",
            "/records",
            &v1::AppendRequest {
                topic: "t".to_owned(),
                partition: Some(0),
                acks: v1::Acks::Leader.into(),
                payload: Some(Payload::Records(v1::NewRecords {
                    compression: 4,
                    ..Default::default()
                })),
            },
        ),
        Case::new(
            "NewRecords",
            "",
            &v1::NewRecords {
                records: vec![v1::NewRecord {
                    key: Some(b("key")),
                    ..Default::default()
                }],
                compression: v1::Compression::Zstd.into(),
                producer: Some(v1::Producer {
                    producer_id: 7,
                    ..Default::default()
                }),
            },
        ),
        Case::new(
            "Producer",
            "",
            &v1::Producer {
                producer_id: 1 << 40,
                producer_epoch: 300,
                base_sequence: i32::MAX,
            },
        ),
        Case::new("InitProducerRequest", "", &v1::InitProducerRequest {}),
        Case::new(
            "InitProducerResponse",
            "",
            &v1::InitProducerResponse {
                producer_id: 1 << 40,
                producer_epoch: 300,
            },
        ),
        Case::new(
            "AppendResponse",
            "",
            &v1::AppendResponse {
                results: vec![v1::AppendResult {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "AppendResult",
            "",
            &v1::AppendResult {
                partition: 300,
                base_offset: Some(BIG),
                record_count: 301,
                log_append_time_ms: Some(TIME),
                record_indexes: vec![0, 300],
                error: Some(error()),
                duplicate: true,
            },
        ),
        Case::new(
            "ProduceRequest",
            "",
            &v1::ProduceRequest {
                correlation_id: BIG,
                append: Some(v1::AppendRequest {
                    topic: "t".to_owned(),
                    ..Default::default()
                }),
            },
        ),
        Case::new(
            "ProduceResponse",
            "/appended",
            &v1::ProduceResponse {
                correlation_id: BIG,
                outcome: Some(Outcome::Appended(v1::AppendResponse {
                    results: vec![v1::AppendResult {
                        partition: 3,
                        ..Default::default()
                    }],
                })),
            },
        ),
        Case::new(
            "ProduceResponse",
            "/error",
            &v1::ProduceResponse {
                correlation_id: BIG,
                outcome: Some(Outcome::Error(error())),
            },
        ),
    ]
}

/// Of `log.proto`, reading.
pub(super) fn reads() -> Vec<Case> {
    vec![
        Case::new(
            "FetchRequest",
            "",
            &v1::FetchRequest {
                partitions: vec![v1::FetchPartition {
                    partition: 3,
                    ..Default::default()
                }],
                min_bytes: 300,
                max_bytes: u32::MAX,
                max_wait_ms: 301,
                format: v1::Format::Records.into(),
                read_replica: true,
            },
        ),
        Case::new(
            "FetchPartition",
            "",
            &v1::FetchPartition {
                topic: "t".to_owned(),
                partition: 300,
                offset: BIG,
                max_bytes: 301,
            },
        ),
        Case::new(
            "FetchResponse",
            "",
            &v1::FetchResponse {
                partitions: vec![v1::FetchedPartition {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "FetchedPartition",
            "",
            &v1::FetchedPartition {
                topic: "t".to_owned(),
                partition: 300,
                error: Some(error()),
                batches: b("batches"),
                records: vec![v1::Record {
                    offset: 3,
                    ..Default::default()
                }],
                next_offset: 301,
                high_watermark: BIG,
                log_start_offset: 302,
            },
        ),
        Case::new(
            "ReadRequest",
            "/start",
            &v1::ReadRequest {
                request: Some(read_request::Request::Start(v1::ReadStart {
                    topic: "t".to_owned(),
                    ..Default::default()
                })),
            },
        ),
        Case::new(
            "ReadRequest",
            "/add_credit_bytes",
            &v1::ReadRequest {
                request: Some(read_request::Request::AddCreditBytes(BIG)),
            },
        ),
        Case::new(
            "ReadStart",
            "",
            &v1::ReadStart {
                topic: "t".to_owned(),
                partitions: vec![v1::ReadPartition {
                    partition: 3,
                    ..Default::default()
                }],
                from: Some(offset(4)),
                to: Some(offset(5)),
                follow: true,
                credit_bytes: BIG,
                credit_is_limited: true,
                format: v1::Format::Records.into(),
                message_bytes: 300,
                read_replica: true,
            },
        ),
        Case::new(
            "ReadPartition",
            "",
            &v1::ReadPartition {
                partition: 300,
                from: Some(offset(4)),
                to: Some(offset(5)),
            },
        ),
        Case::new(
            "ReadResponse",
            "/started",
            &v1::ReadResponse {
                response: Some(read_response::Response::Started(v1::ReadStarted {
                    partitions: vec![v1::ReadRange {
                        partition: 3,
                        ..Default::default()
                    }],
                })),
            },
        ),
        Case::new(
            "ReadResponse",
            "/data",
            &v1::ReadResponse {
                response: Some(read_response::Response::Data(v1::ReadData {
                    partition: 3,
                    ..Default::default()
                })),
            },
        ),
        Case::new(
            "ReadResponse",
            "/partition_end",
            &v1::ReadResponse {
                response: Some(read_response::Response::PartitionEnd(
                    v1::ReadPartitionEnd {
                        partition: 3,
                        ..Default::default()
                    },
                )),
            },
        ),
        Case::new(
            "ReadResponse",
            "/partition_error",
            &v1::ReadResponse {
                response: Some(read_response::Response::PartitionError(
                    v1::ReadPartitionError {
                        partition: 3,
                        ..Default::default()
                    },
                )),
            },
        ),
        Case::new(
            "ReadResponse",
            "/heartbeat",
            &v1::ReadResponse {
                response: Some(read_response::Response::Heartbeat(v1::ReadHeartbeat {})),
            },
        ),
        Case::new(
            "ReadResponse",
            "/going_away",
            &v1::ReadResponse {
                response: Some(read_response::Response::GoingAway(v1::GoingAway {
                    drain_ms: 3,
                })),
            },
        ),
        Case::new(
            "ReadStarted",
            "",
            &v1::ReadStarted {
                partitions: vec![v1::ReadRange {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "ReadRange",
            "",
            &v1::ReadRange {
                partition: 300,
                from: 301,
                to: Some(BIG),
                high_watermark: 302,
                log_start_offset: 303,
            },
        ),
        Case::new(
            "ReadData",
            "",
            &v1::ReadData {
                partition: 300,
                batches: b("batches"),
                records: vec![v1::Record {
                    offset: 3,
                    ..Default::default()
                }],
                next_offset: BIG,
                high_watermark: 301,
            },
        ),
        Case::new(
            "ReadPartitionEnd",
            "",
            &v1::ReadPartitionEnd {
                partition: 300,
                next_offset: BIG,
            },
        ),
        Case::new(
            "ReadPartitionError",
            "",
            &v1::ReadPartitionError {
                partition: 300,
                next_offset: BIG,
                error: Some(error()),
            },
        ),
        Case::new("ReadHeartbeat", "", &v1::ReadHeartbeat {}),
        Case::new("GoingAway", "", &v1::GoingAway { drain_ms: 300 }),
    ]
}

/// Of `log.proto`, looking up and deleting.
pub(super) fn offsets() -> Vec<Case> {
    vec![
        Case::new(
            "ListOffsetsRequest",
            "",
            &v1::ListOffsetsRequest {
                partitions: vec![v1::ListOffsetsPartition {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "ListOffsetsPartition",
            "",
            &v1::ListOffsetsPartition {
                topic: "t".to_owned(),
                partition: 300,
                at: Some(offset(4)),
            },
        ),
        Case::new(
            "ListOffsetsResponse",
            "",
            &v1::ListOffsetsResponse {
                partitions: vec![v1::ListedOffset {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "ListedOffset",
            "",
            &v1::ListedOffset {
                topic: "t".to_owned(),
                partition: 300,
                offset: BIG,
                timestamp_ms: Some(TIME),
                leader_epoch: u32::MAX,
                error: Some(error()),
            },
        ),
        Case::new(
            "DeleteRecordsRequest",
            "",
            &v1::DeleteRecordsRequest {
                topic: "t".to_owned(),
                partitions: vec![v1::DeleteRecordsPartition {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "DeleteRecordsPartition",
            "",
            &v1::DeleteRecordsPartition {
                partition: 300,
                before: Some(offset(4)),
            },
        ),
        Case::new(
            "DeleteRecordsResponse",
            "",
            &v1::DeleteRecordsResponse {
                partitions: vec![v1::DeletedRecords {
                    partition: 3,
                    ..Default::default()
                }],
            },
        ),
        Case::new(
            "DeletedRecords",
            "",
            &v1::DeletedRecords {
                partition: 300,
                log_start_offset: BIG,
                error: Some(error()),
            },
        ),
    ]
}
