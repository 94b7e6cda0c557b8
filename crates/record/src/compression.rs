//! The compressed forms of a batch's records, as Kafka's clients write and read them.
//!
//! Decompression never believes a size that the data declares: output is bounded by a limit while
//! it grows, and every stream must end exactly where the batch does.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};

use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::{BatchError, Compression};

/// What Java's clients put in front of Snappy blocks: the name, format version 1, readable by
/// version 1.
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01";

/// The part of [`XERIAL_HEADER`] that tells blocks from raw Snappy.
const XERIAL_NAME_LEN: usize = 8;

/// Plain bytes a Snappy block, as Java's clients cut them.
const XERIAL_BLOCK_LEN: usize = 32 * 1024;

/// The largest window of a Zstandard frame: 8 MiB, what RFC 8878 asks every decoder to support and
/// what compression levels up to 19 use.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A thread keeps a buffer for decompression of at most this many bytes.
const SCRATCH_BYTES_KEPT: usize = 1024 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Kept, since making one takes longer than decompressing a small batch.
    static ZSTD_DECODER: RefCell<Option<Decoder<'static>>> = const { RefCell::new(None) };
    static ZSTD_COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> =
        const { RefCell::new(None) };
}

/// Appends `plain`, compressed, to `out`.
///
/// Fails only where the library cannot get memory.
pub(crate) fn compress(
    compression: Compression,
    plain: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<()> {
    match compression {
        Compression::None => out.extend_from_slice(plain),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(out, flate2::Compression::default());
            encoder.write_all(plain)?;
            encoder.finish()?;
        }
        Compression::Snappy => compress_xerial(plain, out)?,
        Compression::Lz4 => {
            // As Java's clients do; larger blocks would cost every reader larger buffers.
            let frame = FrameInfo::new()
                .block_size(BlockSize::Max64KB)
                .block_mode(BlockMode::Independent);
            let mut encoder = FrameEncoder::with_frame_info(frame, out);
            encoder.write_all(plain)?;
            encoder.finish()?;
        }
        Compression::Zstd => compress_zstd(plain, out)?,
    }
    Ok(())
}

fn compress_xerial(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = snap::raw::Encoder::new();
    out.extend_from_slice(&XERIAL_HEADER);
    for block in plain.chunks(XERIAL_BLOCK_LEN) {
        let len_at = out.len();
        let block_at = len_at + 4;
        out.resize(block_at + snap::raw::max_compress_len(block.len()), 0);
        let len = encoder.compress(block, &mut out[block_at..])?;
        let len_field = u32::try_from(len).expect("a block of 32 KiB does not grow to 4 GiB");
        out[len_at..block_at].copy_from_slice(&len_field.to_be_bytes());
        out.truncate(block_at + len);
    }
    Ok(())
}

fn compress_zstd(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut compressor = match ZSTD_COMPRESSOR.take() {
        Some(compressor) => compressor,
        None => zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?,
    };
    let start = out.len();
    out.resize(start + zstd::zstd_safe::compress_bound(plain.len()), 0);
    let len = compressor.compress_to_buffer(plain, &mut out[start..])?;
    out.truncate(start + len);
    ZSTD_COMPRESSOR.set(Some(compressor));
    Ok(())
}

/// Calls `use_plain` with the decompressed `data`, in a buffer that the thread uses again.
pub(crate) fn with_decompressed<T>(
    compression: Compression,
    data: &[u8],
    bytes_max: usize,
    use_plain: impl FnOnce(&[u8]) -> Result<T, BatchError>,
) -> Result<T, BatchError> {
    if compression == Compression::None {
        return use_plain(data);
    }
    let mut plain = SCRATCH.take();
    plain.clear();
    let result =
        decompress(compression, data, &mut plain, bytes_max).and_then(|()| use_plain(&plain));
    if plain.capacity() <= SCRATCH_BYTES_KEPT {
        SCRATCH.set(plain);
    }
    result
}

/// Decompresses `data` into the empty `out`, which never grows much above `bytes_max`.
///
/// # Errors
/// `Malformed`, `AfterCompressed`, `DecompressedTooLarge`. What `out` then holds is of no use.
pub(crate) fn decompress(
    compression: Compression,
    data: &[u8],
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(), BatchError> {
    match compression {
        Compression::None => {
            if data.len() > bytes_max {
                return Err(BatchError::DecompressedTooLarge { max: bytes_max });
            }
            out.extend_from_slice(data);
            Ok(())
        }
        Compression::Gzip => {
            let mut decoder = GzDecoder::new(data);
            read_bounded(compression, &mut decoder, out, bytes_max)?;
            nothing_follows(compression, decoder.into_inner().len())
        }
        Compression::Snappy => decompress_snappy(data, out, bytes_max),
        Compression::Lz4 => {
            let frame_len = lz4_frame_len(data).ok_or(BatchError::Malformed { compression })?;
            let (frame, rest) = data.split_at(frame_len);
            read_bounded(compression, FrameDecoder::new(frame), out, bytes_max)?;
            nothing_follows(compression, rest.len())
        }
        Compression::Zstd => decompress_zstd(data, out, bytes_max),
    }
}

fn nothing_follows(compression: Compression, len: usize) -> Result<(), BatchError> {
    if len > 0 {
        return Err(BatchError::AfterCompressed { compression, len });
    }
    Ok(())
}

fn read_bounded(
    compression: Compression,
    from: impl Read,
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(), BatchError> {
    // One byte more than allowed tells "exactly the limit" from "above it".
    let take = u64::try_from(bytes_max)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let read = from.take(take).read_to_end(out);
    if out.len() > bytes_max {
        return Err(BatchError::DecompressedTooLarge { max: bytes_max });
    }
    read.map_err(|_| BatchError::Malformed { compression })?;
    Ok(())
}

fn decompress_snappy(data: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), BatchError> {
    const MALFORMED: BatchError = BatchError::Malformed {
        compression: Compression::Snappy,
    };
    let mut decoder = snap::raw::Decoder::new();
    if !data.starts_with(&XERIAL_HEADER[..XERIAL_NAME_LEN]) {
        return decompress_snappy_block(&mut decoder, data, out, bytes_max);
    }
    // The two version numbers are not looked at, as in other readers: there is one version.
    let mut rest = data.get(XERIAL_HEADER.len()..).ok_or(MALFORMED)?;
    while !rest.is_empty() {
        let (len, blocks) = rest.split_first_chunk().ok_or(MALFORMED)?;
        let len = usize::try_from(i32::from_be_bytes(*len)).map_err(|_| MALFORMED)?;
        let (block, following) = blocks.split_at_checked(len).ok_or(MALFORMED)?;
        decompress_snappy_block(&mut decoder, block, out, bytes_max)?;
        rest = following;
    }
    Ok(())
}

fn decompress_snappy_block(
    decoder: &mut snap::raw::Decoder,
    block: &[u8],
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(), BatchError> {
    const MALFORMED: BatchError = BatchError::Malformed {
        compression: Compression::Snappy,
    };
    let declared = snap::raw::decompress_len(block).map_err(|_| MALFORMED)?;
    if declared > bytes_max - out.len() {
        return Err(BatchError::DecompressedTooLarge { max: bytes_max });
    }
    // The best element of the format makes 64 bytes of 3. What declares more lies, and would cost
    // memory before that is found out.
    if declared > block.len().saturating_mul(22) {
        return Err(MALFORMED);
    }
    let start = out.len();
    out.resize(start + declared, 0);
    let len = decoder
        .decompress(block, &mut out[start..])
        .map_err(|_| MALFORMED)?;
    if len != declared {
        return Err(MALFORMED);
    }
    Ok(())
}

/// Bytes of the LZ4 frame at the start of `data`, found by walking its blocks, or `None` when it
/// is not a whole frame. Needed because the decoder takes a frame without its end mark for whole.
fn lz4_frame_len(data: &[u8]) -> Option<usize> {
    const MAGIC: u32 = 0x184d_2204;
    const HAS_DICTIONARY: u8 = 1;
    const HAS_CONTENT_CHECKSUM: u8 = 1 << 2;
    const HAS_CONTENT_SIZE: u8 = 1 << 3;
    const HAS_BLOCK_CHECKSUMS: u8 = 1 << 4;
    const UNCOMPRESSED_BLOCK: u32 = 1 << 31;

    let number = |at: usize| {
        let bytes = data.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    if number(0)? != MAGIC {
        return None;
    }
    let flags = *data.get(4)?;
    let optional = |flag: u8, len: usize| if flags & flag != 0 { len } else { 0 };
    // Magic, flags, block descriptor, header checksum.
    let mut at = 4 + 1 + 1 + optional(HAS_CONTENT_SIZE, 8) + optional(HAS_DICTIONARY, 4) + 1;
    loop {
        let block = number(at)?;
        at += 4;
        if block == 0 {
            break;
        }
        let len = usize::try_from(block & !UNCOMPRESSED_BLOCK).ok()?;
        at = at.checked_add(len)? + optional(HAS_BLOCK_CHECKSUMS, 4);
    }
    at += optional(HAS_CONTENT_CHECKSUM, 4);
    (at <= data.len()).then_some(at)
}

fn decompress_zstd(data: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), BatchError> {
    const MALFORMED: BatchError = BatchError::Malformed {
        compression: Compression::Zstd,
    };
    // Taken, so that one that met an error is dropped instead of used again.
    let mut decoder = match ZSTD_DECODER.take() {
        Some(decoder) => decoder,
        None => new_zstd_decoder().map_err(|_| MALFORMED)?,
    };
    // Small batches should not pay for clearing a large buffer, nor large ones for many rounds.
    let step = data.len().saturating_mul(4).clamp(4 * 1024, 128 * 1024);
    let mut input = InBuffer::around(data);
    loop {
        let start = out.len();
        if start > bytes_max {
            return Err(BatchError::DecompressedTooLarge { max: bytes_max });
        }
        // One byte more than allowed tells "exactly the limit" from "above it".
        out.resize(start + step.min((bytes_max - start).saturating_add(1)), 0);
        let mut output = OutBuffer::around(&mut out[start..]);
        let hint = decoder
            .run(&mut input, &mut output)
            .map_err(|_| MALFORMED)?;
        let written = output.pos();
        out.truncate(start + written);
        if hint == 0 {
            break;
        }
        if written == 0 && input.pos() == data.len() {
            return Err(MALFORMED);
        }
    }
    if out.len() > bytes_max {
        return Err(BatchError::DecompressedTooLarge { max: bytes_max });
    }
    nothing_follows(Compression::Zstd, data.len() - input.pos())?;
    if decoder.reinit().is_ok() {
        ZSTD_DECODER.set(Some(decoder));
    }
    Ok(())
}

fn new_zstd_decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
    Ok(decoder)
}

#[cfg(test)]
mod tests;
