//! What a producer may send, what is put right, and what an append then writes.

use bytes::Bytes;
use tidelog_record::{
    Attributes, BATCH_HEADER_LEN, Batch, BatchBuilder, BatchError, BatchHeader, BatchLimits,
    Compression, LeaderEpoch, Offset, ProduceError, ProducedBatch, RecordFault, Timestamp,
    TimestampType, validate_produced,
};

use crate::support::{BYTES_MAX, NO_PRODUCER, Plain, build, decode, with_body, with_header};

fn two() -> Bytes {
    two_with(Compression::None)
}

fn two_with(compression: Compression) -> Bytes {
    let records = [Plain::new(1000, "a", "one"), Plain::new(3000, "b", "two")];
    build(&records, compression, NO_PRODUCER)
}

fn validate(bytes: Bytes) -> Result<ProducedBatch, ProduceError> {
    validate_produced(bytes, &BatchLimits::default())
}

fn refusal(batch: &Bytes, change: impl FnOnce(&mut BatchHeader)) -> ProduceError {
    validate(with_header(batch, change)).unwrap_err()
}

fn written(produced: &ProducedBatch) -> Bytes {
    let (header, body) = produced.parts();
    [&header, &body[..]].concat().into()
}

#[test]
fn stamping_changes_only_what_the_crc_leaves_out() {
    for compression in Compression::ALL {
        let sent = two_with(compression);
        let mut produced = validate(sent.clone()).unwrap();
        assert_eq!(produced.record_count(), 2);
        assert_eq!(produced.total_len(), sent.len());
        produced.stamp(Offset::new(77).unwrap(), LeaderEpoch::new(5).unwrap());

        let written = written(&produced);
        assert_eq!(written[8..12], sent[8..12]);
        assert_eq!(written[16..], sent[16..]);
        let batch = Batch::check(written.clone(), BYTES_MAX).unwrap();
        assert_eq!(batch.header().base_offset, 77);
        assert_eq!(batch.header().leader_epoch, 5);
        assert_eq!(decode(&written), decode(&sent));
    }
}

#[test]
fn the_body_is_the_request_itself() {
    let sent = two();
    let produced = validate(sent.clone()).unwrap();
    assert_eq!(
        produced.parts().1.as_ptr(),
        sent[BATCH_HEADER_LEN..].as_ptr()
    );
}

#[test]
fn a_wrong_max_timestamp_is_made_true() {
    for claimed in [-1, 0, 2999, 3001, i64::MAX] {
        let sent = with_header(&two(), |header| header.max_timestamp = claimed);
        let produced = validate(sent).unwrap();
        assert_eq!(produced.max_timestamp(), Timestamp::from_millis(3000));
        assert_eq!(written(&produced), two(), "its CRC holds again");
    }
}

#[test]
fn a_claim_of_log_append_time_is_not_believed() {
    let sent = with_header(&two(), |header| {
        header.attributes = header
            .attributes
            .with_timestamp_type(TimestampType::LogAppendTime);
        header.max_timestamp = 999_999;
    });
    assert_eq!(written(&validate(sent).unwrap()), two());
}

#[test]
fn log_append_time_counts_for_every_record() {
    for compression in Compression::ALL {
        let mut produced = validate(two_with(compression)).unwrap();
        produced.set_log_append_time(Timestamp::from_millis(5000));
        assert_eq!(produced.max_timestamp(), Timestamp::from_millis(5000));
        let stored = written(&produced);
        let timestamps: Vec<i64> = decode(&stored)
            .iter()
            .map(|record| record.timestamp)
            .collect();
        assert_eq!(timestamps, [5000, 5000]);
        let (judged, _) = crate::support::judge_decode(&stored);
        assert_eq!(judged.len(), 2, "the CRC is right for others too");
    }
}

#[test]
fn broker_only_attributes_are_refused() {
    let with_bits = |bits| {
        refusal(&two(), |header| {
            header.attributes = Attributes::from_bits(bits);
        })
    };
    assert_eq!(with_bits(1 << 5), ProduceError::Control);
    assert_eq!(with_bits(1 << 4), ProduceError::Transactional);
    assert_eq!(with_bits(1 << 6), ProduceError::Attributes { bits: 1 << 6 });
    for bit in 7..16 {
        assert_eq!(
            with_bits(1 << bit),
            ProduceError::Attributes { bits: 1 << bit }
        );
    }
    for id in 5..=7 {
        assert_eq!(
            with_bits(u16::from(id)),
            BatchError::UnknownCompression { id }.into()
        );
    }
    assert_eq!(
        ProduceError::Attributes { bits: 1 << 7 }.to_string(),
        "record batch has attribute bits 0x0080; a client may set only bits 0 to 4"
    );
}

/// What would pass for a broker's own entry, were it appended.
#[test]
fn a_forged_internal_entry_is_refused_but_a_stored_one_is_a_batch() {
    let forged = with_header(&with_body(&two(), b"kind 1, version 1"), |header| {
        header.attributes = header.attributes.with_control(true);
        header.record_count = 0;
        header.last_offset_delta = -1;
    });
    assert_eq!(validate(forged.clone()).unwrap_err(), ProduceError::Control);
    let stored = Batch::check(forged, BYTES_MAX).unwrap();
    assert_eq!(&stored.body()[..], b"kind 1, version 1");
    assert_eq!(stored.records(&BatchLimits::default()).unwrap().count(), 0);
}

#[test]
fn producer_fields_go_together() {
    let sent = two();
    let with = |id, epoch, sequence| {
        validate(with_header(&sent, |header| {
            header.producer_id = id;
            header.producer_epoch = epoch;
            header.base_sequence = sequence;
        }))
    };
    for (id, epoch, sequence) in [(-1, -1, -1), (0, 0, 0), (i64::MAX, i16::MAX, i32::MAX)] {
        assert!(with(id, epoch, sequence).is_ok(), "{id} {epoch} {sequence}");
    }
    for (producer_id, producer_epoch, base_sequence) in [
        (-1, 0, -1),
        (-1, -1, 0),
        (0, -1, 0),
        (0, 0, -1),
        (-2, -1, -1),
        (1, -2, 0),
        (1, 0, -2),
    ] {
        assert_eq!(
            with(producer_id, producer_epoch, base_sequence).unwrap_err(),
            ProduceError::Producer {
                producer_id,
                producer_epoch,
                base_sequence
            }
        );
    }
}

#[test]
fn the_record_count_is_within_limits_and_true() {
    let counted = |record_count: i32| {
        refusal(&two(), |header| {
            header.record_count = record_count;
            header.last_offset_delta = record_count - 1;
        })
    };
    assert_eq!(counted(0), ProduceError::Empty);
    for found in [-1, 1_000_001, i32::MAX] {
        assert_eq!(
            counted(found),
            BatchError::RecordCount {
                found,
                max: 1_000_000
            }
            .into()
        );
    }
    let first_len = 61 + (two().len() - 61) / 2;
    assert_eq!(
        counted(1),
        BatchError::AfterRecords {
            len: two().len() - first_len,
            record_count: 1
        }
        .into()
    );
    assert_eq!(
        counted(3),
        BatchError::Record {
            index: 2,
            fault: RecordFault::Truncated
        }
        .into()
    );
    for last_offset_delta in [-1, 0, 2] {
        assert_eq!(
            refusal(&two(), |header| header.last_offset_delta =
                last_offset_delta),
            ProduceError::LastOffsetDelta {
                last_offset_delta,
                record_count: 2
            }
        );
    }

    let limits = BatchLimits {
        records_max: 1,
        ..BatchLimits::default()
    };
    assert_eq!(
        validate_produced(two(), &limits).unwrap_err(),
        BatchError::RecordCount { found: 2, max: 1 }.into()
    );
}

/// `body` in place of the one record of a batch, plain and compressed, gives `fault`.
fn assert_record_fault(body: &[u8], fault: RecordFault) {
    let one = build(&[Plain::new(0, "", "")], Compression::None, NO_PRODUCER);
    let plain = with_body(&one, body);
    let compressed = with_header(
        &with_body(&one, &snap::raw::Encoder::new().compress_vec(body).unwrap()),
        |header| header.attributes = header.attributes.with_compression(Compression::Snappy),
    );
    let expected = BatchError::Record { index: 0, fault };
    for batch in [plain, compressed] {
        assert_eq!(
            validate(batch.clone()).unwrap_err(),
            expected.into(),
            "{body:x?}"
        );
        let batch = Batch::check(batch, BYTES_MAX).unwrap();
        let mut records = batch.records(&BatchLimits::default()).unwrap();
        assert_eq!(records.next(), Some(Err(expected)), "{body:x?}");
        assert_eq!(records.next(), None, "{body:x?}");
    }
}

#[test]
fn malformed_records_are_refused() {
    // Length, attributes, timestamp delta, offset delta, key, value, headers.
    let good = [12, 0, 0, 0, 1, 1, 0];
    let edited = |at: usize, byte| {
        let mut bytes = good;
        bytes[at] = byte;
        bytes
    };
    let one = build(&[Plain::new(0, "", "")], Compression::None, NO_PRODUCER);
    assert!(validate(with_body(&one, &good)).is_ok());

    assert_record_fault(&[], RecordFault::Truncated);
    assert_record_fault(&good[..6], RecordFault::Truncated);
    assert_record_fault(&edited(0, 14), RecordFault::Truncated);
    assert_record_fault(&edited(0, 10), RecordFault::Truncated);
    assert_record_fault(&edited(0, 1), RecordFault::NegativeLength { found: -1 });
    assert_record_fault(
        &edited(3, 2),
        RecordFault::OffsetDelta {
            found: 1,
            min: 0,
            max: 0,
        },
    );
    assert_record_fault(
        &edited(3, 1),
        RecordFault::OffsetDelta {
            found: -1,
            min: 0,
            max: 0,
        },
    );
    assert_record_fault(&edited(4, 3), RecordFault::NegativeLength { found: -2 });
    assert_record_fault(&edited(5, 3), RecordFault::NegativeLength { found: -2 });
    assert_record_fault(&edited(5, 4), RecordFault::Truncated);
    assert_record_fault(&edited(6, 1), RecordFault::NegativeLength { found: -1 });
    assert_record_fault(&edited(6, 2), RecordFault::Truncated);
    assert_record_fault(
        &[14, 0, 0, 0, 1, 1, 0, 0],
        RecordFault::WrongLength { length: 7, used: 6 },
    );
    assert_record_fault(
        &[20, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
        RecordFault::Truncated,
    );
    assert_record_fault(
        &[
            24, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0,
        ],
        RecordFault::NumberTooLong,
    );
    // One header: a key of two bytes that are not UTF-8; a null key; a value length of -2.
    assert_record_fault(
        &[20, 0, 0, 0, 1, 1, 2, 4, 0xc3, 0x28, 1],
        RecordFault::HeaderKeyNotUtf8,
    );
    assert_record_fault(
        &[16, 0, 0, 0, 1, 1, 2, 1, 1],
        RecordFault::NegativeLength { found: -1 },
    );
    assert_record_fault(
        &[18, 0, 0, 0, 1, 1, 2, 2, b'k', 3],
        RecordFault::NegativeLength { found: -2 },
    );
    // 2^31 - 1 headers.
    assert_record_fault(
        &[20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f],
        RecordFault::TooManyHeaders {
            found: i32::MAX,
            max: 10_000,
        },
    );
}

#[test]
fn timestamps_that_do_not_fit_are_refused() {
    let sent = with_header(&two(), |header| header.base_timestamp = i64::MAX - 1999);
    let fault = RecordFault::TimestampOverflow {
        base: i64::MAX - 1999,
        delta: 2000,
    };
    assert_eq!(
        validate(sent).unwrap_err(),
        BatchError::Record { index: 1, fault }.into()
    );
}

#[test]
fn offset_deltas_count_up_by_one_from_producers_only() {
    let mut body = two()[BATCH_HEADER_LEN..].to_vec();
    let second = body.len() / 2 + 4;
    assert_eq!(
        body[second], 2,
        "the second record's offset delta, zigzag, after a delta of 2 bytes"
    );
    body[second] = 10;
    let gap = with_header(&with_body(&two(), &body), |header| {
        header.last_offset_delta = 5
    });
    assert_eq!(
        validate(gap.clone()).unwrap_err(),
        ProduceError::LastOffsetDelta {
            last_offset_delta: 5,
            record_count: 2
        }
    );
    let hidden_gap = with_header(&gap, |header| header.last_offset_delta = 1);
    assert_eq!(
        validate(hidden_gap).unwrap_err(),
        BatchError::Record {
            index: 1,
            fault: RecordFault::OffsetDelta {
                found: 5,
                min: 1,
                max: 1
            }
        }
        .into()
    );

    let compacted = Batch::check(gap, BYTES_MAX).unwrap();
    let records: Vec<_> = compacted
        .records(&BatchLimits::default())
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let base = Offset::new(100).unwrap();
    let offsets: Vec<_> = records
        .iter()
        .map(|record| record.offset(base).unwrap().get())
        .collect();
    assert_eq!(offsets, [100, 105]);
    assert_eq!(records[1].offset(Offset::MAX), None);
}

#[test]
fn too_many_headers_are_refused() {
    let mut builder = BatchBuilder::new(Compression::None);
    let headers = [("k", None); 3];
    builder.push(Timestamp::NONE, None, None, &headers).unwrap();
    let limits = BatchLimits {
        record_headers_max: 2,
        ..BatchLimits::default()
    };
    let fault = RecordFault::TooManyHeaders { found: 3, max: 2 };
    assert_eq!(
        validate_produced(builder.build().unwrap(), &limits).unwrap_err(),
        BatchError::Record { index: 0, fault }.into()
    );
}

#[test]
fn the_limits_of_the_batch_bound_header_keys() {
    let key = "k".repeat(100_000);
    for compression in [Compression::None, Compression::Zstd] {
        let mut builder = BatchBuilder::new(compression);
        let headers = [(key.as_str(), None)];
        builder.push(Timestamp::NONE, None, None, &headers).unwrap();
        let sent = builder.build().unwrap();
        let exact = BatchLimits {
            batch_bytes_max: sent.len(),
            ..BatchLimits::default()
        };
        validate_produced(sent.clone(), &exact).unwrap();
        let batch = Batch::check(sent.clone(), BYTES_MAX).unwrap();
        let record = batch.records(&exact).unwrap().next().unwrap().unwrap();
        assert_eq!(record.headers[0].key, key.as_str());

        let stored = BatchLimits {
            batch_bytes_max: sent.len() - 1,
            ..BatchLimits::default()
        };
        validate_produced(sent.clone(), &stored).unwrap_err();
        let decompressed = BatchLimits {
            decompressed_bytes_max: key.len(),
            ..BatchLimits::default()
        };
        let is_taken = validate_produced(sent, &decompressed).is_ok();
        assert_eq!(is_taken, compression == Compression::None, "{compression}");
    }
}

#[test]
fn compressed_data_must_be_whole_and_alone() {
    for compression in Compression::ALL.into_iter().skip(1) {
        let sent = two_with(compression);
        let body = &sent[BATCH_HEADER_LEN..];
        for cut in 0..body.len() {
            let error = validate(with_body(&sent, &body[..cut])).unwrap_err();
            // Snappy's blocks do not say how many there are: a cut between them loses records.
            let is_refused = matches!(
                error,
                ProduceError::Batch(
                    BatchError::Malformed { .. }
                        | BatchError::Record {
                            index: 0,
                            fault: RecordFault::Truncated
                        }
                )
            );
            assert!(is_refused, "{compression} cut to {cut}: {error}");
        }
        let followed = with_body(&sent, &[body, b"\0\0\0\0\0\0\0"].concat());
        let error = validate(followed).unwrap_err();
        match compression {
            Compression::Snappy => {
                assert_eq!(error, BatchError::Malformed { compression }.into());
            }
            _ => assert_eq!(
                error,
                BatchError::AfterCompressed {
                    compression,
                    len: 7
                }
                .into()
            ),
        }
        // The same stream again: readers that stop at the end would not see it.
        let twice = validate(with_body(&sent, &[body, body].concat())).unwrap_err();
        if compression != Compression::Snappy {
            let len = body.len();
            assert_eq!(
                twice,
                BatchError::AfterCompressed { compression, len }.into()
            );
        }
    }
}

#[test]
fn plain_bytes_that_claim_compression_are_refused() {
    for compression in Compression::ALL.into_iter().skip(1) {
        let error = refusal(&two(), |header| {
            header.attributes = header.attributes.with_compression(compression);
        });
        assert_eq!(error, BatchError::Malformed { compression }.into());
    }
}
