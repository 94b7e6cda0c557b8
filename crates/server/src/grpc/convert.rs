//! Between the messages of the API and the broker's types.

use tidelog_broker::{self as broker, OffsetSpec};
use tidelog_proto::v1;
use tidelog_record::{self as record, Offset, Timestamp};

use super::call::Meter;
use super::status::RequestError;

/// Records in one request at most: decoded, each takes far more memory than the two bytes that an
/// empty one takes in the request.
const RECORDS_MAX: usize = 200_000;
/// What a request costs beside its payload when bytes in flight are counted: what is kept for it
/// until it is answered.
pub(super) const REQUEST_OVERHEAD: usize = 1024;

pub(super) fn format(format: i32) -> Result<v1::Format, RequestError> {
    v1::Format::try_from(format).map_err(|_| RequestError::Value {
        field: "format",
        value: format.to_string(),
        allowed: "FORMAT_BATCHES (0) or FORMAT_RECORDS (1)",
    })
}

/// The place in a partition that `field` of a request names.
pub(super) fn offset_spec(
    spec: Option<&v1::OffsetSpec>,
    field: &'static str,
) -> Result<OffsetSpec, RequestError> {
    use v1::offset_spec::At;
    let at = spec.and_then(|spec| spec.at.as_ref());
    let must_be_true = |name: &str| RequestError::Value {
        field,
        value: format!("{name}: false"),
        allowed: "true, or another kind of offset",
    };
    match at {
        Some(At::Offset(offset)) => {
            Offset::new(*offset)
                .map(OffsetSpec::Offset)
                .ok_or_else(|| RequestError::Value {
                    field,
                    value: offset.to_string(),
                    allowed: "an offset up to 9223372036854775807",
                })
        }
        Some(At::Earliest(true)) => Ok(OffsetSpec::Earliest),
        Some(At::Earliest(false)) => Err(must_be_true("earliest")),
        Some(At::Latest(true)) => Ok(OffsetSpec::Latest),
        Some(At::Latest(false)) => Err(must_be_true("latest")),
        Some(At::TimestampMs(millis)) => Ok(OffsetSpec::Timestamp(Timestamp::from_millis(*millis))),
        Some(At::BeforeLatest(records)) => Ok(OffsetSpec::BeforeLatest(*records)),
        None => Err(RequestError::Missing {
            field,
            what: "one of offset, earliest, latest, timestamp_ms or before_latest must be given",
        }),
    }
}

/// An append as the broker takes it.
pub(super) struct Append {
    pub(super) request: broker::AppendRequest,
    /// The bytes it counts as while it is in flight.
    pub(super) len: usize,
    /// The field that what is to be appended came in.
    pub(super) field: &'static str,
}

/// The append that a request asks for. What its records take now that they are decoded is counted
/// by `meter` until there is room for it.
pub(super) fn append(
    request: v1::AppendRequest,
    meter: Option<&Meter>,
) -> Result<Append, RequestError> {
    use v1::append_request::Payload;
    let acks = match v1::Acks::try_from(request.acks) {
        Ok(v1::Acks::All) => broker::Acks::All,
        Ok(v1::Acks::Leader) => broker::Acks::Leader,
        Ok(v1::Acks::None) => broker::Acks::None,
        Err(_) => {
            return Err(RequestError::Value {
                field: "acks",
                value: request.acks.to_string(),
                allowed: "ACKS_ALL (0), ACKS_LEADER (1) or ACKS_NONE (2)",
            });
        }
    };
    let (payload, field) = match request.payload {
        Some(Payload::Batch(batch)) => (broker::Payload::Batch(batch), "batch"),
        Some(Payload::Records(records)) => {
            let compression = compression(records.compression)?;
            if records.records.len() > RECORDS_MAX {
                return Err(RequestError::TooMany {
                    field: "records.records",
                    found: records.records.len(),
                    max: RECORDS_MAX,
                });
            }
            let producer = records.producer.map(producer).transpose()?;
            let records = records.records.into_iter().map(new_record).collect();
            (
                broker::Payload::Records {
                    records,
                    compression,
                    producer,
                },
                "records",
            )
        }
        None => {
            return Err(RequestError::Missing {
                field: "batch",
                what: "a record batch, or records, must be given",
            });
        }
    };
    if let Some(meter) = meter {
        meter.decoded(payload.overhead_bytes())?;
    }
    let len = payload.len_bytes() + REQUEST_OVERHEAD;
    let request = broker::AppendRequest {
        topic: request.topic,
        partition: request.partition,
        acks,
        payload,
    };
    Ok(Append {
        request,
        len,
        field,
    })
}

fn producer(producer: v1::Producer) -> Result<broker::ProducerStamp, RequestError> {
    let v1::Producer {
        producer_id,
        producer_epoch,
        base_sequence,
    } = producer;
    let value = |field, value: String, allowed| RequestError::Value {
        field,
        value,
        allowed,
    };
    if producer_id < 0 {
        let allowed = "an id from InitProducer";
        return Err(value(
            "records.producer.producer_id",
            producer_id.to_string(),
            allowed,
        ));
    }
    let epoch = i16::try_from(producer_epoch)
        .ok()
        .filter(|epoch| *epoch >= 0);
    let epoch = epoch.ok_or_else(|| {
        let field = "records.producer.producer_epoch";
        value(field, producer_epoch.to_string(), "0 to 32767")
    })?;
    if base_sequence < 0 {
        let field = "records.producer.base_sequence";
        return Err(value(field, base_sequence.to_string(), "0 to 2147483647"));
    }
    Ok(broker::ProducerStamp {
        id: producer_id,
        epoch,
        base_sequence,
    })
}

fn compression(compression: i32) -> Result<record::Compression, RequestError> {
    Ok(match v1::Compression::try_from(compression) {
        Ok(v1::Compression::None) => record::Compression::None,
        Ok(v1::Compression::Gzip) => record::Compression::Gzip,
        Ok(v1::Compression::Snappy) => record::Compression::Snappy,
        Ok(v1::Compression::Lz4) => record::Compression::Lz4,
        Ok(v1::Compression::Zstd) => record::Compression::Zstd,
        Err(_) => {
            return Err(RequestError::Value {
                field: "records.compression",
                value: compression.to_string(),
                allowed: "COMPRESSION_NONE (0), _GZIP (1), _SNAPPY (2), _LZ4 (3) or _ZSTD (4)",
            });
        }
    })
}

fn new_record(record: v1::NewRecord) -> broker::NewRecord {
    broker::NewRecord {
        timestamp: record.timestamp_ms.map(Timestamp::from_millis),
        key: record.key,
        value: record.value,
        headers: record
            .headers
            .into_iter()
            .map(|header| (header.key, header.value))
            .collect(),
    }
}

/// A stored record as the API shows it.
pub(super) fn stored_record(offset: Offset, stored: record::Record) -> v1::Record {
    v1::Record {
        offset: offset.get(),
        timestamp_ms: stored.timestamp.millis(),
        key: stored.key,
        value: stored.value,
        headers: stored
            .headers
            .into_iter()
            .map(|header| v1::Header {
                key: header.key.as_str().to_owned(),
                value: header.value,
            })
            .collect(),
    }
}

pub(super) fn topic_summary(summary: broker::TopicSummary) -> v1::TopicSummary {
    v1::TopicSummary {
        name: summary.name,
        topic_id: bytes::Bytes::copy_from_slice(&summary.topic_id.to_bytes()),
        partitions: summary.partitions,
        settings: summary.settings.into_iter().collect(),
        internal: summary.internal,
        replication_factor: summary.replication_factor,
    }
}

pub(super) fn topic_description(
    description: broker::TopicDescription,
    known: &[broker::KnownBroker],
) -> v1::DescribeTopicResponse {
    let setting = |setting: broker::EffectiveSetting| v1::Setting {
        name: setting.name.to_owned(),
        value: setting.value,
        is_default: setting.is_default,
    };
    v1::DescribeTopicResponse {
        topic: Some(topic_summary(description.summary)),
        settings: description.settings.into_iter().map(setting).collect(),
        partitions: description
            .partitions
            .into_iter()
            .map(partition_description)
            .collect(),
        brokers: known
            .iter()
            .filter(|broker| !broker.grpc_address.is_empty())
            .map(|broker| v1::BrokerAddress {
                node_id: broker.node_id,
                grpc_address: broker.grpc_address.clone(),
            })
            .collect(),
    }
}

fn partition_description(partition: broker::PartitionDescription) -> v1::PartitionDescription {
    let segment = |segment: tidelog_log::SegmentInfo| v1::SegmentDescription {
        base_offset: segment.base_offset.get(),
        end_offset: segment.end_offset.get(),
        size_bytes: segment.len,
        sealed: segment.sealed,
        file: segment
            .path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    v1::PartitionDescription {
        partition: partition.partition,
        log_start_offset: partition.log_start.get(),
        high_watermark: partition.high_watermark.get(),
        log_end_offset: partition.log_end.get(),
        leader_epoch: partition.leader_epoch.get(),
        size_bytes: partition.size_bytes,
        segment_count: u32::try_from(partition.segment_count).unwrap_or(u32::MAX),
        segments: partition.segments.into_iter().map(segment).collect(),
        fault: partition.fault.unwrap_or_default(),
        leader: partition.leader,
        replicas: partition.replicas,
        in_sync: partition.in_sync,
        is_elsewhere: partition.is_elsewhere,
    }
}
