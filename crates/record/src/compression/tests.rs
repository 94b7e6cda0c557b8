use proptest::prelude::*;

use super::*;

const MIB: usize = 1024 * 1024;

fn compressed(compression: Compression, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    compress(compression, plain, &mut out).unwrap();
    out
}

fn decompressed(
    compression: Compression,
    data: &[u8],
    bytes_max: usize,
) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    decompress(compression, data, &mut out, bytes_max)?;
    Ok(out)
}

fn all() -> impl Iterator<Item = Compression> {
    Compression::ALL.into_iter()
}

#[test]
fn the_limit_is_inclusive() {
    // Around the borders of blocks and of steps.
    for len in [
        0, 1, 4095, 4096, 32_767, 32_768, 65_535, 65_536, 65_537, 131_072, 300_000,
    ] {
        let plain = vec![7; len];
        for compression in all() {
            let data = compressed(compression, &plain);
            assert_eq!(
                decompressed(compression, &data, len).as_deref(),
                Ok(&plain[..]),
                "{compression}, {len} bytes"
            );
            if let Some(max) = len.checked_sub(1) {
                assert_eq!(
                    decompressed(compression, &data, max),
                    Err(BatchError::DecompressedTooLarge { max }),
                    "{compression}, {len} bytes"
                );
            }
        }
    }
}

/// Output stops at the limit, and so does memory.
#[test]
fn bombs_are_defused() {
    let zeros = vec![0; 32 * MIB];
    for compression in all().skip(1) {
        let bomb = compressed(compression, &zeros);
        assert!(bomb.len() < 2 * MIB, "{compression}: {} bytes", bomb.len());
        let mut out = Vec::new();
        assert_eq!(
            decompress(compression, &bomb, &mut out, MIB),
            Err(BatchError::DecompressedTooLarge { max: MIB }),
            "{compression}"
        );
        assert!(
            out.capacity() <= 4 * MIB,
            "{compression}: {} bytes",
            out.capacity()
        );
    }
    let raw = snap::raw::Encoder::new().compress_vec(&zeros).unwrap();
    let mut out = Vec::new();
    assert_eq!(
        decompress(Compression::Snappy, &raw, &mut out, MIB),
        Err(BatchError::DecompressedTooLarge { max: MIB })
    );
    assert_eq!(out.capacity(), 0, "raw Snappy says its size first");
}

#[test]
fn snappy_that_declares_more_than_it_can_hold_costs_no_memory() {
    // 60 MiB, in four bytes of raw Snappy.
    let lie = [0x80, 0x80, 0x80, 0x1e, 0];
    assert_eq!(snap::raw::decompress_len(&lie), Ok(60 * MIB));
    let framed = [&XERIAL_HEADER[..], &[0, 0, 0, 5], &lie].concat();
    for data in [&lie[..], &framed] {
        let mut out = Vec::new();
        assert_eq!(
            decompress(Compression::Snappy, data, &mut out, 64 * MIB),
            Err(BatchError::Malformed {
                compression: Compression::Snappy
            })
        );
        assert_eq!(out.capacity(), 0);
    }
}

/// The most that Snappy can make of its bytes must not be taken for a lie.
#[test]
fn the_best_snappy_is_believed() {
    for len in [1, 10, 60, 64, 65, 1000, 65_536, MIB] {
        let plain = vec![0; len];
        let raw = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
        assert_eq!(
            decompressed(Compression::Snappy, &raw, MIB).as_deref(),
            Ok(&plain[..])
        );
    }
}

#[test]
fn snappy_blocks_end_where_they_say() {
    let malformed = Err(BatchError::Malformed {
        compression: Compression::Snappy,
    });
    let data = compressed(Compression::Snappy, &[1; 40_000]);
    let decode = |data: &[u8]| decompressed(Compression::Snappy, data, MIB);
    for cut in 8..16 {
        assert_eq!(decode(&data[..cut]), malformed, "a header cut to {cut}");
    }
    assert_eq!(decode(&data[..18]), malformed, "half a length");
    assert_eq!(decode(&data[..data.len() - 1]), malformed, "half a block");
    let mut negative = data.clone();
    negative[16..20].copy_from_slice(&(-1_i32).to_be_bytes());
    assert_eq!(decode(&negative), malformed, "a negative length");
    let mut other_versions = data;
    other_versions[8..16].copy_from_slice(&[0, 0, 0, 2, 0, 0, 0, 2]);
    assert_eq!(decode(&other_versions).as_deref(), Ok(&[1; 40_000][..]));
}

#[test]
fn lz4_frames_of_every_form_are_measured_and_read() {
    let plain: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for bits in 0..16 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let frame = FrameInfo::new()
            .block_size(if has(0) {
                BlockSize::Max4MB
            } else {
                BlockSize::Max64KB
            })
            .block_mode(if has(1) {
                BlockMode::Linked
            } else {
                BlockMode::Independent
            })
            .block_checksums(has(2))
            .content_checksum(has(3))
            .content_size(has(2).then_some(300_000));
        let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
        encoder.write_all(&plain).unwrap();
        let data = encoder.finish().unwrap();
        assert_eq!(lz4_frame_len(&data), Some(data.len()), "{bits:#b}");
        assert_eq!(
            decompressed(Compression::Lz4, &data, MIB).as_deref(),
            Ok(&plain[..])
        );
        for cut in (0..data.len()).rev().take(10).chain(0..20) {
            assert_eq!(lz4_frame_len(&data[..cut]), None, "{bits:#b} cut to {cut}");
        }
    }
}

#[test]
fn checksums_of_lz4_and_gzip_are_checked() {
    let mut encoder =
        FrameEncoder::with_frame_info(FrameInfo::new().content_checksum(true), Vec::new());
    encoder.write_all(b"content").unwrap();
    let lz4 = encoder.finish().unwrap();
    let gzip = compressed(Compression::Gzip, b"content");
    for (compression, data, from_end) in [(Compression::Lz4, lz4, 1), (Compression::Gzip, gzip, 5)]
    {
        let mut damaged = data.clone();
        let at = damaged.len() - from_end;
        damaged[at] ^= 1;
        assert_eq!(
            decompressed(compression, &data, MIB).as_deref(),
            Ok(&b"content"[..])
        );
        assert_eq!(
            decompressed(compression, &damaged, MIB),
            Err(BatchError::Malformed { compression })
        );
    }
}

#[test]
fn large_zstd_windows_are_refused() {
    let plain: Vec<u8> = (0..9 * MIB).map(|i| (i / 1000).to_le_bytes()[0]).collect();
    let with_window = |log| {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let allowed = decompressed(Compression::Zstd, &with_window(23), 16 * MIB).unwrap();
    assert!(allowed == plain);
    assert_eq!(
        decompressed(Compression::Zstd, &with_window(24), 16 * MIB),
        Err(BatchError::Malformed {
            compression: Compression::Zstd
        })
    );
}

/// A decoder that met an error must not spoil what the same thread decodes next.
#[test]
fn threads_recover_from_errors() {
    let plain = vec![3; 50_000];
    for compression in all().skip(1) {
        let data = compressed(compression, &plain);
        for _ in 0..3 {
            for bad in [&data[..data.len() - 1], &[0xff; 50]] {
                assert!(with_decompressed(compression, bad, MIB, |_| Ok(())).is_err());
            }
            let len = with_decompressed(compression, &data, MIB, |found| {
                assert!(found == plain);
                Ok(found.len())
            });
            assert_eq!(len, Ok(plain.len()), "{compression}");
        }
    }
}

#[test]
fn threads_keep_no_large_buffers() {
    let data = compressed(Compression::Zstd, &vec![0; 8 * MIB]);
    with_decompressed(Compression::Zstd, &data, 8 * MIB, |_| Ok(())).unwrap();
    assert_eq!(SCRATCH.take().capacity(), 0);
    let data = compressed(Compression::Zstd, &[0; 1000]);
    with_decompressed(Compression::Zstd, &data, MIB, |_| Ok(())).unwrap();
    assert!((1000..=SCRATCH_BYTES_KEPT).contains(&SCRATCH.take().capacity()));
}

proptest! {
    #[test]
    fn bytes_round_trip(
        pieces in prop::collection::vec((any::<u8>(), 1..20_000_usize), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..5000),
    ) {
        let runs = pieces.iter().flat_map(|&(byte, len)| std::iter::repeat_n(byte, len));
        let plain: Vec<u8> = runs.chain(noise).collect();
        for compression in all() {
            let data = compressed(compression, &plain);
            let found = decompressed(compression, &data, plain.len());
            prop_assert!(found.as_deref() == Ok(&plain[..]), "{}", compression);
        }
    }
}
