//! Golden bytes. Files are made by a second implementation of the format and only ever added:
//! `REGENERATE=1 cargo test -p tidelog-record` writes those that are missing.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::records as judge;
use tidelog_record::{
    BATCH_HEADER_LEN, Batch, BatchError, BatchHeader, BatchLimits, Compression, ProduceError,
    RecordFault, check_batch, validate_produced,
};

use crate::support::{
    BYTES_MAX, NO_PRODUCER, Plain, Producer, build, decode, judge_build, judge_decode,
    judge_records, with_body, with_header,
};

struct Case {
    name: &'static str,
    records: Vec<Plain>,
    producer: Producer,
}

fn plain_cases() -> Vec<Case> {
    let smallest = Plain {
        timestamp: 1_517_363_399_650,
        key: None,
        value: None,
        headers: Vec::new(),
    };
    vec![
        Case {
            name: "smallest",
            records: vec![smallest],
            producer: NO_PRODUCER,
        },
        Case {
            name: "three",
            records: three(),
            producer: NO_PRODUCER,
        },
        Case {
            name: "producer",
            records: three(),
            producer: (4711, 3, 100),
        },
        Case {
            name: "before_1970",
            records: vec![
                Plain::new(-86_400_000, "old", "photo"),
                Plain::new(-1, "", ""),
            ],
            producer: NO_PRODUCER,
        },
    ]
}

/// Null and empty fields, numbers of more than one byte, text that is not ASCII.
fn three() -> Vec<Plain> {
    let first = Plain::new(1_517_363_399_650, "uw", &"Amboy, Washington. ".repeat(8))
        .header("source", Some(b"usgs"))
        .header("stra\u{df}e", None)
        .header("empty", Some(b""));
    let second = Plain {
        key: None,
        ..Plain::new(1_517_364_015_660, "", "")
    };
    let third = Plain {
        value: None,
        ..Plain::new(1_517_364_031_800, "us", "")
    };
    vec![first, second, third]
}

#[test]
fn plain_batches_are_exactly_the_golden_bytes() {
    for Case {
        name,
        records,
        producer,
    } in plain_cases()
    {
        let expected = judge_build(&records, Compression::None, producer);
        let golden = golden(name, &expected);
        assert_eq!(expected, golden, "{name}: the second implementation");
        assert_eq!(
            build(&records, Compression::None, producer),
            golden,
            "{name}: ours"
        );
        assert_eq!(decode(&golden), records, "{name}");
        let produced = validate_produced(golden.clone(), &BatchLimits::default()).unwrap();
        let (header, body) = produced.parts();
        assert_eq!(
            [&header, &body[..]].concat(),
            golden,
            "{name}: validation changes nothing"
        );
    }
}

/// The bytes of a compressor may differ from version to version; what they decompress to may not.
#[test]
fn compressed_golden_bytes_are_read_by_both() {
    let raw_snappy = judge_build_raw_snappy(&three());
    for (name, compression, made_now) in [
        ("gzip", Compression::Gzip, None),
        ("snappy_blocks", Compression::Snappy, None),
        ("snappy_raw", Compression::Snappy, Some(raw_snappy)),
        ("lz4", Compression::Lz4, None),
        ("zstd", Compression::Zstd, None),
    ] {
        let made_now = made_now.unwrap_or_else(|| judge_build(&three(), compression, NO_PRODUCER));
        let golden = golden(name, &made_now);
        let header = check_batch(&golden, BYTES_MAX).unwrap();
        assert_eq!(header.attributes.compression(), Ok(compression));
        assert_eq!(decode(&golden), three(), "{name}: ours");
        assert_eq!(
            judge_decode(&golden),
            (three(), compression),
            "{name}: theirs"
        );
        validate_produced(golden, &BatchLimits::default()).unwrap();
    }
}

fn judge_build_raw_snappy(records: &[Plain]) -> Bytes {
    let options = judge::RecordEncodeOptions {
        version: 2,
        compression: judge::Compression::Snappy,
    };
    let mut out = BytesMut::new();
    judge::RecordBatchEncoder::encode_with_custom_compression(
        &mut out,
        &judge_records(records, NO_PRODUCER),
        &options,
        Some(|plain: &mut BytesMut, out: &mut BytesMut, _| {
            out.extend_from_slice(&snap::raw::Encoder::new().compress_vec(plain)?);
            Ok(())
        }),
    )
    .unwrap();
    out.freeze()
}

/// Bytes in and the error that they must give.
#[test]
fn corrupt_golden_bytes_fail_with_the_named_error() {
    let whole = build(&three(), Compression::None, NO_PRODUCER);
    let edited = |edit: &dyn Fn(&mut BytesMut)| {
        let mut bytes = BytesMut::from(&whole[..]);
        edit(&mut bytes);
        bytes.freeze()
    };
    let body_edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut body = whole[BATCH_HEADER_LEN..].to_vec();
        edit(&mut body);
        with_body(&whole, &body)
    };
    let record = |index, fault| ProduceError::from(BatchError::Record { index, fault });
    let len = whole.len();
    let stored = BatchHeader::decode(&whole, BYTES_MAX).unwrap().crc;

    let flipped = edited(&|bytes| bytes[len - 1] ^= 0x40);
    let computed = tidelog_record::crc32c(&[&flipped[21..]]);
    let cases: Vec<(&str, Bytes, ProduceError)> = vec![
        (
            "crc",
            flipped,
            BatchError::WrongCrc { stored, computed }.into(),
        ),
        ("cut", whole.slice(..len - 1), {
            BatchError::Truncated {
                needed: len,
                have: len - 1,
            }
            .into()
        }),
        ("cut_header", whole.slice(..60), {
            BatchError::Truncated {
                needed: 61,
                have: 60,
            }
            .into()
        }),
        (
            "magic_1",
            edited(&|bytes| bytes[16] = 1),
            BatchError::WrongMagic { found: 1 }.into(),
        ),
        (
            "length_48",
            edited(&|bytes| bytes[8..12].copy_from_slice(&48_i32.to_be_bytes())),
            { BatchError::TooShort { batch_length: 48 }.into() },
        ),
        (
            "length_max",
            edited(&|bytes| bytes[8..12].copy_from_slice(&i32::MAX.to_be_bytes())),
            {
                BatchError::TooLarge {
                    len: 2_147_483_659,
                    max: 1_048_588,
                }
                .into()
            },
        ),
        ("two", [&whole[..], &whole[..]].concat().into(), {
            BatchError::NotOneBatch {
                batch_len: len,
                have: 2 * len,
            }
            .into()
        }),
        (
            "compression_5",
            with_header(&whole, |header| {
                header.attributes = tidelog_record::Attributes::from_bits(5);
            }),
            BatchError::UnknownCompression { id: 5 }.into(),
        ),
        (
            "control",
            with_header(&whole, |header| {
                header.attributes = header.attributes.with_control(true);
            }),
            ProduceError::Control,
        ),
        (
            "no_records",
            with_header(&whole, |header| {
                header.record_count = 0;
                header.last_offset_delta = -1;
            }),
            ProduceError::Empty,
        ),
        (
            "last_offset_delta",
            with_header(&whole, |header| header.last_offset_delta = 3),
            {
                ProduceError::LastOffsetDelta {
                    last_offset_delta: 3,
                    record_count: 3,
                }
            },
        ),
        // The first record's offset delta: after its length (2 bytes), attributes and time delta.
        ("offset_delta", body_edited(&|body| body[4] = 2), {
            record(
                0,
                RecordFault::OffsetDelta {
                    found: 1,
                    min: 0,
                    max: 0,
                },
            )
        }),
        ("key_length", body_edited(&|body| body[5] = 3), {
            record(0, RecordFault::NegativeLength { found: -2 })
        }),
        ("after_records", body_edited(&|body| body.push(0)), {
            BatchError::AfterRecords {
                len: 1,
                record_count: 3,
            }
            .into()
        }),
        (
            "record_cut",
            body_edited(&|body| body.truncate(body.len() - 1)),
            { record(2, RecordFault::Truncated) },
        ),
    ];
    for (name, made_now, expected) in cases {
        let name = format!("corrupt_{name}");
        let golden = golden(&name, &made_now);
        assert_eq!(golden, made_now, "{name}");
        let error = validate_produced(golden, &BatchLimits::default()).unwrap_err();
        assert_eq!(error, expected, "{name}");
    }
}

/// Kafka's own limit counts the batch without its prefix no differently than we do: whole.
#[test]
fn the_limit_is_for_the_whole_batch() {
    let whole = build(&three(), Compression::None, NO_PRODUCER);
    assert!(Batch::check(whole.clone(), whole.len()).is_ok());
    let (len, max) = (whole.len(), whole.len() - 1);
    assert_eq!(
        Batch::check(whole, max).map(|_| ()),
        Err(BatchError::TooLarge { len, max })
    );
}

/// The bytes of `golden/batch_v2_<name>.hex`. `made_now` is only used to write a file that is
/// missing, when asked to.
fn golden(name: &str, made_now: &Bytes) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(format!("batch_v2_{name}.hex"));
    if std::env::var_os("REGENERATE").is_some() && !path.exists() {
        fs::write(&path, annotated(name, made_now)).unwrap();
    }
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; REGENERATE=1 writes it", path.display()));
    let digits: Vec<u8> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or("").split_whitespace())
        .flat_map(|byte| u8::from_str_radix(byte, 16))
        .collect();
    Bytes::from(digits)
}

/// `batch` in hexadecimal, one field a line, for people.
fn annotated(name: &str, batch: &Bytes) -> String {
    let mut lines = Lines {
        rest: batch.clone(),
        text: String::new(),
    };
    lines.note(&format!(
        "Record batch, magic 2: {}",
        name.replace('_', " ")
    ));
    for (len, field) in [
        (8, "base offset"),
        (4, "batch length"),
        (4, "leader epoch"),
        (1, "magic"),
        (4, "CRC-32C"),
        (2, "attributes"),
        (4, "last offset delta"),
        (8, "base timestamp"),
        (8, "max timestamp"),
        (8, "producer id"),
        (2, "producer epoch"),
        (4, "base sequence"),
        (4, "record count"),
    ] {
        lines.field(len, field);
    }
    let is_plain = batch.get(22).is_some_and(|attributes| attributes & 7 == 0);
    // What is cut or lies goes wrong somewhere; the rest is then shown as it is.
    while is_plain && !lines.rest.is_empty() && lines.record().is_some() {}
    while !lines.rest.is_empty() {
        lines.field(16, if is_plain { "" } else { "compressed records" });
    }
    lines.text
}

struct Lines {
    rest: Bytes,
    text: String,
}

impl Lines {
    fn note(&mut self, note: &str) {
        writeln!(self.text, "# {note}").unwrap();
    }

    fn field(&mut self, len: usize, name: &str) {
        let bytes = self.rest.split_to(len.min(self.rest.len()));
        if !bytes.is_empty() {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let line = format!("{:<48} # {name}", hex.join(" "));
            writeln!(self.text, "{}", line.trim_end_matches([' ', '#'])).unwrap();
        }
    }

    fn record(&mut self) -> Option<()> {
        self.note("record");
        self.number("length")?;
        self.field(1, "attributes");
        self.number("timestamp delta")?;
        self.number("offset delta")?;
        self.bytes("key")?;
        self.bytes("value")?;
        for _ in 0..self.number("header count")? {
            self.bytes("header key")?;
            self.bytes("header value")?;
        }
        Some(())
    }

    fn bytes(&mut self, name: &str) -> Option<()> {
        let mut left = usize::try_from(self.number(&format!("{name} length"))?.max(0)).ok()?;
        while left > 0 && self.rest.has_remaining() {
            let len = left.min(16).min(self.rest.len());
            let text = self.rest[..len].escape_ascii().to_string();
            self.field(len, &format!("{name} \"{text}\""));
            left -= len;
        }
        Some(())
    }

    fn number(&mut self, name: &str) -> Option<i64> {
        let len = 1 + self.rest.iter().position(|byte| byte & 0x80 == 0)?;
        let zigzag = self.rest[..len]
            .iter()
            .rev()
            .fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
        let value = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        self.field(len, &format!("{name} {value}"));
        Some(value)
    }
}
