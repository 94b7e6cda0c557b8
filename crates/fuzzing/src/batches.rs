//! Record batches as clients send them.

use bytes::Bytes;
use tidelog_record::{
    Attributes, BATCH_HEADER_LEN, BATCH_PREFIX_LEN, Batch, BatchBuilder, BatchHeader, BatchLimits,
    Compression, ProducedBatch, Timestamp, check_batch, split_batches, validate_produced,
};

/// Small, so that their edges are met.
const LIMITS: BatchLimits = BatchLimits {
    batch_bytes_max: 256 << 10,
    decompressed_bytes_max: 64 << 10,
    records_max: 1000,
    record_headers_max: 20,
    keys_required: false,
};

/// A batch that a client wants appended: as it is, and with the framing and checksum that belong to
/// its bytes, so that what lies behind those checks is met too.
pub fn batch(data: &[u8]) {
    check_one(data);
    for batch in split_batches(Bytes::copy_from_slice(data), LIMITS.batch_bytes_max).flatten() {
        check_one(batch.bytes());
    }
    check_one(&framed(data));
}

/// The same bytes with a right length, magic and checksum.
fn framed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if bytes.len() < BATCH_HEADER_LEN || bytes.len() > LIMITS.batch_bytes_max {
        return bytes;
    }
    let len = i32::try_from(bytes.len() - BATCH_PREFIX_LEN).unwrap_or(i32::MAX);
    bytes[8..12].copy_from_slice(&len.to_be_bytes());
    bytes[16] = 2;
    let crc = tidelog_record::crc32c(&[&bytes[21..]]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn check_one(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let checked = Batch::check(bytes.clone(), LIMITS.batch_bytes_max);
    let Ok(produced) = validate_produced(bytes, &LIMITS) else {
        // Whatever is refused may still be looked into.
        if let Ok(batch) = checked
            && let Ok(records) = batch.records(&LIMITS)
        {
            assert!(records.count() <= LIMITS.records_max + 1);
        }
        return;
    };
    let batch = checked.expect("what may be appended is a batch");
    let stored = stored(&produced);
    assert_eq!(stored.len(), data.len());
    assert_eq!(produced.body(), &data[BATCH_HEADER_LEN..]);
    // Only what is a client's claim may have been put right.
    let (mut sent, mut kept) = (batch.header().clone(), produced.header().clone());
    for header in [&mut sent, &mut kept] {
        header.attributes = Attributes::default();
        header.max_timestamp = 0;
        header.crc = 0;
    }
    assert_eq!(sent, kept);
    check_batch(&stored, LIMITS.batch_bytes_max).expect("what is stored is a batch");
    let again = validate_produced(stored.clone(), &LIMITS).expect("it may be appended again");
    assert_eq!(self::stored(&again), stored, "and is the same");

    let batch = Batch::check(stored, LIMITS.batch_bytes_max).expect("checked above");
    let records = batch.records(&LIMITS).expect("its records can be read");
    assert!(records.len_bytes() <= LIMITS.decompressed_bytes_max.max(data.len()));
    let mut count = 0;
    let mut max_timestamp = Timestamp::MIN;
    for record in records {
        let record = record.expect("every record was looked at");
        assert_eq!(record.offset_delta.unsigned_abs(), count);
        max_timestamp = max_timestamp.max(record.timestamp);
        count += 1;
    }
    assert_eq!(count, produced.record_count());
    assert_eq!(max_timestamp, produced.max_timestamp());
}

fn stored(batch: &ProducedBatch) -> Bytes {
    let (header, body) = batch.parts();
    [&header[..], &body[..]].concat().into()
}

/// Compressed records: the first byte says how, the second how many they claim to be. What can be
/// decompressed stays within the limit. And what is compressed comes back.
pub fn decompression(data: &[u8]) {
    let [kind, count, body @ ..] = data else {
        return;
    };
    let compression = Compression::ALL[usize::from(*kind) % Compression::ALL.len()];
    let record_count = i32::from(*count);
    let mut header = BatchHeader {
        base_offset: 0,
        batch_length: i32::try_from(BATCH_HEADER_LEN - BATCH_PREFIX_LEN + body.len())
            .unwrap_or(i32::MAX),
        leader_epoch: -1,
        crc: 0,
        attributes: Attributes::default().with_compression(compression),
        last_offset_delta: record_count - 1,
        base_timestamp: 0,
        max_timestamp: 0,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count,
    };
    header.crc = header.compute_crc(body);
    let bytes = Bytes::from([&header.encode()[..], body].concat());
    check_one(&bytes);
    let Ok(batch) = Batch::check(bytes, LIMITS.batch_bytes_max) else {
        return;
    };
    if let Ok(records) = batch.records(&LIMITS) {
        assert!(
            compression == Compression::None
                || records.len_bytes() <= LIMITS.decompressed_bytes_max
        );
        assert!(records.count() <= usize::from(*count) + 1);
    }
    comes_back(compression, body);
}

fn comes_back(compression: Compression, value: &[u8]) {
    let value = &value[..value.len().min(32 << 10)];
    let mut builder = BatchBuilder::new(compression);
    let (key, rest) = value.split_at(value.len() / 3);
    let pushed = builder.push(
        Timestamp::from_millis(7),
        Some(key),
        Some(rest),
        &[("h", Some(key))],
    );
    pushed.expect("it is small");
    let bytes = builder.build().expect("one record makes a batch");
    let produced = validate_produced(bytes, &LIMITS).expect("what was built is good");
    let batch = Batch::check(stored(&produced), LIMITS.batch_bytes_max).expect("so is this");
    let records: Result<Vec<_>, _> = batch.records(&LIMITS).expect("and this").collect();
    let records = records.expect("and each record");
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].key.as_deref(), Some(key));
    assert_eq!(records[0].value.as_deref(), Some(rest));
}
