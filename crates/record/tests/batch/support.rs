//! Records in a form both implementations can be given, and batches that are wrong in one place.

use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records as judge;
use tidelog_record::{
    BATCH_HEADER_LEN, BATCH_PREFIX_LEN, Batch, BatchBuilder, BatchHeader, BatchLimits, Compression,
    Record, Timestamp,
};

pub(crate) const BYTES_MAX: usize = 1 << 24;

/// A record to be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) timestamp: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Plain {
    pub(crate) fn new(timestamp: i64, key: &str, value: &str) -> Self {
        Self {
            timestamp,
            key: Some(key.as_bytes().to_vec()),
            value: Some(value.as_bytes().to_vec()),
            headers: Vec::new(),
        }
    }

    pub(crate) fn header(mut self, key: &str, value: Option<&[u8]>) -> Self {
        self.headers
            .push((key.to_owned(), value.map(<[u8]>::to_vec)));
        self
    }
}

/// Producer id, epoch, base sequence.
pub(crate) type Producer = (i64, i16, i32);
pub(crate) const NO_PRODUCER: Producer = (-1, -1, -1);

pub(crate) fn build(records: &[Plain], compression: Compression, producer: Producer) -> Bytes {
    let (id, epoch, sequence) = producer;
    let mut builder = BatchBuilder::new(compression).producer(id, epoch, sequence);
    for (index, record) in records.iter().enumerate() {
        let headers: Vec<_> = record
            .headers
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()))
            .collect();
        let timestamp = Timestamp::from_millis(record.timestamp);
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let len_expected =
            builder.len_bytes() + builder.record_len(timestamp, key, value, &headers);
        let pushed = builder.push(timestamp, key, value, &headers).unwrap();
        assert_eq!(usize::try_from(pushed).unwrap(), index);
        assert_eq!(builder.len_bytes(), len_expected);
    }
    builder.build().unwrap()
}

/// What the second implementation makes of the same records.
pub(crate) fn judge_build(
    records: &[Plain],
    compression: Compression,
    producer: Producer,
) -> Bytes {
    let records = judge_records(records, producer);
    let options = judge::RecordEncodeOptions {
        version: 2,
        compression: judge_name(compression),
    };
    let mut out = BytesMut::new();
    judge::RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
    out.freeze()
}

pub(crate) fn judge_records(
    records: &[Plain],
    (id, epoch, sequence): Producer,
) -> Vec<judge::Record> {
    let record = |(delta, record): (i32, &Plain)| judge::Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: id,
        producer_epoch: epoch,
        timestamp_type: judge::TimestampType::Creation,
        offset: i64::from(delta),
        sequence: sequence.wrapping_add(delta),
        timestamp: record.timestamp,
        key: record.key.clone().map(Bytes::from),
        value: record.value.clone().map(Bytes::from),
        headers: record
            .headers
            .iter()
            .map(|(key, value)| {
                (
                    StrBytes::from_string(key.clone()),
                    value.clone().map(Bytes::from),
                )
            })
            .collect::<IndexMap<_, _>>(),
    };
    (0..).zip(records).map(record).collect()
}

/// The records that the second implementation finds in `batch`.
pub(crate) fn judge_decode(batch: &Bytes) -> (Vec<Plain>, Compression) {
    let mut bytes = batch.clone();
    let set = judge::RecordBatchDecoder::decode(&mut bytes).unwrap();
    assert!(bytes.is_empty());
    let plain = |(delta, record): (i64, judge::Record)| {
        assert_eq!(record.offset, delta);
        Plain {
            timestamp: record.timestamp,
            key: record.key.map(Vec::from),
            value: record.value.map(Vec::from),
            headers: record
                .headers
                .into_iter()
                .map(|(key, value)| (key.to_string(), value.map(Vec::from)))
                .collect(),
        }
    };
    let compression = match set.compression {
        judge::Compression::None => Compression::None,
        judge::Compression::Gzip => Compression::Gzip,
        judge::Compression::Snappy => Compression::Snappy,
        judge::Compression::Lz4 => Compression::Lz4,
        judge::Compression::Zstd => Compression::Zstd,
    };
    ((0..).zip(set.records).map(plain).collect(), compression)
}

fn judge_name(compression: Compression) -> judge::Compression {
    match compression {
        Compression::None => judge::Compression::None,
        Compression::Gzip => judge::Compression::Gzip,
        Compression::Snappy => judge::Compression::Snappy,
        Compression::Lz4 => judge::Compression::Lz4,
        Compression::Zstd => judge::Compression::Zstd,
    }
}

/// The records that we find in `batch`.
pub(crate) fn decode(batch: &Bytes) -> Vec<Plain> {
    let batch = Batch::check(batch.clone(), BYTES_MAX).unwrap();
    let records = batch.records(&BatchLimits::default()).unwrap();
    (0..)
        .zip(records)
        .map(|(delta, record)| {
            let record = record.unwrap();
            assert_eq!(record.offset_delta, delta);
            plain(&record)
        })
        .collect()
}

fn plain(record: &Record) -> Plain {
    Plain {
        timestamp: record.timestamp.millis(),
        key: record.key.as_deref().map(<[u8]>::to_vec),
        value: record.value.as_deref().map(<[u8]>::to_vec),
        headers: record
            .headers
            .iter()
            .map(|header| {
                (
                    header.key.to_string(),
                    header.value.as_deref().map(<[u8]>::to_vec),
                )
            })
            .collect(),
    }
}

/// `batch` with another header, under a CRC that holds.
pub(crate) fn with_header(batch: &Bytes, change: impl FnOnce(&mut BatchHeader)) -> Bytes {
    let mut header = BatchHeader::decode(batch, BYTES_MAX).unwrap();
    change(&mut header);
    assemble(header, &batch[BATCH_HEADER_LEN..])
}

/// `batch` with another body, under a CRC and a length that hold.
pub(crate) fn with_body(batch: &Bytes, body: &[u8]) -> Bytes {
    let mut header = BatchHeader::decode(batch, BYTES_MAX).unwrap();
    header.batch_length = i32::try_from(BATCH_HEADER_LEN - BATCH_PREFIX_LEN + body.len()).unwrap();
    assemble(header, body)
}

fn assemble(mut header: BatchHeader, body: &[u8]) -> Bytes {
    header.crc = header.compute_crc(body);
    let mut out = BytesMut::from(header.encode().as_slice());
    out.extend_from_slice(body);
    out.freeze()
}
