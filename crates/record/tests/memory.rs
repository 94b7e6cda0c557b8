//! How much memory hostile batches can cost. Alone in its process, since it looks at the process's
//! peak.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use bytes::Bytes;
use tidelog_record::{Attributes, BatchHeader, BatchLimits, Compression, validate_produced};

const MIB: usize = 1024 * 1024;

/// The most memory that this process has held so far.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .expect("it says its peak");
    let kib = line.split_whitespace().nth(1).expect("a number follows");
    kib.parse::<usize>().expect("it is in KiB") * 1024
}

fn batch(compression: Compression, record_count: i32, body: &[u8]) -> Bytes {
    let mut header = BatchHeader {
        base_offset: 0,
        batch_length: i32::try_from(49 + body.len()).unwrap(),
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
    [&header.encode()[..], body].concat().into()
}

#[test]
fn hostile_batches_cost_little_memory() {
    let limits = BatchLimits {
        decompressed_bytes_max: 8 * MIB,
        ..BatchLimits::default()
    };
    // Each declares far more than it holds: 512 MiB of raw Snappy; the same in a block; a Zstandard
    // window and content of 2 GiB; an LZ4 content of 2^60 bytes in blocks of 4 MiB; a record of
    // 2 GiB; a key of 2 GiB; 2^31 - 1 headers.
    let snappy = b"\x80\x80\x80\x80\x02\x00\x00\x00";
    let blocks = [&b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x08"[..], snappy].concat();
    let zstd = b"\x28\xb5\x2f\xfd\xc0\xa8\0\0\0\x80\0\0\0\0\x01\0\0";
    let lz4 = b"\x04\x22\x4d\x18\x68\x70\0\0\0\0\0\0\0\x10\x7e\0\0\0\0";
    let long_record = b"\xfe\xff\xff\xff\x0f\0\0\0";
    let long_key = b"\x14\0\0\0\xfe\xff\xff\xff\x0f\x01\0";
    let many_headers = b"\x14\0\0\0\x01\x01\xfe\xff\xff\xff\x0f";
    let before = peak_bytes();
    for (compression, body) in [
        (Compression::Snappy, &snappy[..]),
        (Compression::Snappy, &blocks),
        (Compression::Zstd, zstd),
        (Compression::Lz4, lz4),
        (Compression::None, long_record),
        (Compression::None, long_key),
        (Compression::None, many_headers),
    ] {
        for record_count in [1, 1_000_000, i32::MAX] {
            let hostile = batch(compression, record_count, body);
            assert!(
                validate_produced(hostile, &limits).is_err(),
                "{compression} {body:x?}"
            );
        }
    }
    let declared = peak_bytes() - before;
    assert!(declared < 16 * MIB, "declared sizes cost {declared} bytes");

    // Real bombs: as much as the smallest gzip and Zstandard streams can swell, 512 MiB.
    let zeros = vec![0; MIB];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zstd = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    for _ in 0..512 {
        use std::io::Write;
        gzip.write_all(&zeros).unwrap();
        zstd.write_all(&zeros).unwrap();
    }
    let bombs = [
        (
            Compression::Gzip,
            batch(Compression::Gzip, 1, &gzip.finish().unwrap()),
        ),
        (
            Compression::Zstd,
            batch(Compression::Zstd, 1, &zstd.finish().unwrap()),
        ),
    ];
    let before = peak_bytes();
    for (compression, bomb) in bombs {
        let error = validate_produced(bomb, &limits).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the records of the batch decompress to more than the limit of 8388608 bytes",
            "{compression}"
        );
    }
    let swollen = peak_bytes() - before;
    assert!(swollen < 48 * MIB, "bombs cost {swollen} bytes");
}
