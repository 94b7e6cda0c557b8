//! How frames follow on each other over a connection.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `TIDELINK`, from whoever connects and not from the other side: what the connection is for |
//! | 4 | the length of the frame that follows, little-endian |
//! | | the frame, as `frame.rs` has it; then the next length, and so on |
//!
//! The first frame of each direction has a hello. Whoever does not listen any more says why in a last one,
//! if that can still be said.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tidelog_proto::internal::v1::PeerEnd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use crate::frame::{Frame, FrameError, LEN_LEN};

/// What a link begins with.
pub(crate) const PREFACE: &[u8; 8] = b"TIDELINK";
/// What is read at once of frames that are short.
const BUFFER_BYTES: usize = 16 << 10;
/// So much memory is taken because a length says so, and then as much again as has come.
const AHEAD_BYTES: usize = 4 << 20;

/// Why there is no frame.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    #[error("the connection is lost: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads frames. What is written goes to the other side of the same connection.
pub(crate) type Reader<R> = BufReader<R>;

pub(crate) fn reader<R: AsyncRead>(io: R) -> Reader<R> {
    BufReader::with_capacity(BUFFER_BYTES, io)
}

/// The next frame, of no more bytes than these; `None` at the end. Its payloads are slices of a buffer of its
/// own, into which the system copies a long frame; a short one is copied once more, and one above 4 MiB may be,
/// as its buffer grows.
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    bytes_max: usize,
) -> Result<Option<Frame<Bytes>>, ReadError> {
    let mut len = [0; LEN_LEN];
    if reader.read(&mut len[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut len[1..]).await?;
    let len = u32::from_le_bytes(len) as usize;
    if len > bytes_max {
        return Err(FrameError::Length { len }.into());
    }
    let bytes = read_exactly(reader, len).await?;
    Ok(Some(Frame::decode(bytes)?))
}

async fn read_exactly<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    len: usize,
) -> io::Result<Bytes> {
    let mut bytes = BytesMut::new();
    let mut reader = reader.take(len as u64);
    while bytes.len() < len {
        if bytes.len() == bytes.capacity() {
            bytes.reserve((len - bytes.len()).min(AHEAD_BYTES.max(bytes.len())));
        }
        if reader.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes.freeze())
}

/// Sends a frame.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(
    io: &mut W,
    frame: &Frame,
) -> io::Result<()> {
    io.write_all_buf(&mut frame.pieces()).await
}

/// Sends the reason why nothing more is listened to, and ends this direction; gives up after a while.
pub(crate) async fn write_end<W: AsyncWrite + Unpin>(io: &mut W, end: PeerEnd, within: Duration) {
    let mut frame = Frame::default();
    frame.meta.end = Some(end);
    let written = async {
        write_frame(io, &frame).await?;
        io.shutdown().await
    };
    // The other side learns from the end of the connection that it is over, if not why.
    drop(tokio::time::timeout(within, written).await);
}
