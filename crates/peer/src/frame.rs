//! Frames: what goes over a link.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of all that follows, little-endian |
//! | 4 | 4 | the length of what comes next, little-endian |
//! | 8 | | `tidelog.internal.v1.PeerFrame`, protobuf |
//! | | | payloads, one behind the other: their lengths are in the `PeerFrame` |
//!
//! A payload is a batch as it stands in the log, a manifest, or a part of a file.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use thiserror::Error;
use tidelog_proto::internal::v1 as wire;
use tidelog_record::crc32c;
use tidelog_replica::Payload;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// The longest frame: one batch of the greatest length there is, and some.
pub const FRAME_BYTES_MAX: usize = (64 << 20) + (1 << 20);
/// The longest `PeerFrame` in one, so that decoding it takes no more memory than is reasonable.
const META_BYTES_MAX: usize = 4 << 20;
const HEAD_LEN: usize = 8;
/// The longest note.
pub const NOTE_BYTES_MAX: usize = 1 << 20;
/// So many notes a frame has at most.
pub(crate) const NOTES_MAX: usize = 10_000;
/// So many notes a post has at most, and so many bytes they have together: a frame takes no more than one
/// post above what is left of these.
pub(crate) const POST_NOTES_MAX: usize = NOTES_MAX / 2;
pub(crate) const POST_NOTE_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(POST_NOTE_BYTES_MAX + (1 << 20) < META_BYTES_MAX);

/// What goes over a link at once.
#[derive(Debug, Default)]
pub struct Frame {
    pub(crate) meta: wire::PeerFrame,
    pub(crate) payloads: Vec<Payload>,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Shorter than it says, or longer than is believed.
    #[error("a frame of {len} bytes is not believed")]
    Length {
        /// Its length.
        len: usize,
    },
    /// Damaged on the way.
    #[error("a frame's checksum is wrong")]
    Checksum,
    /// What is in it makes no sense.
    #[error("a frame makes no sense: {0}")]
    Senseless(&'static str),
}

impl From<FrameError> for Status {
    fn from(e: FrameError) -> Self {
        Self::data_loss(e.to_string())
    }
}

impl Frame {
    /// How many bytes it takes on the way.
    pub(crate) fn len_bytes(&self) -> usize {
        let payloads: usize = self.payloads.iter().map(payload_len).sum();
        HEAD_LEN + self.meta.encoded_len() + payloads
    }

    /// Writes it. Copies each payload once.
    pub(crate) fn encode_to(&self, out: &mut impl BufMut) {
        let meta = self.meta.encode_to_vec();
        let meta_len = u32::try_from(meta.len()).expect("bounded").to_le_bytes();
        let mut parts: Vec<&[u8]> = vec![&meta_len, &meta];
        for payload in &self.payloads {
            match payload {
                Payload::Bytes(bytes) => parts.push(bytes),
                Payload::Entry(entry) => {
                    let (header, body) = entry.parts();
                    parts.extend([&header[..], &body[..]]);
                }
            }
        }
        out.put_u32_le(crc32c(&parts));
        for part in parts {
            out.put_slice(part);
        }
    }

    /// Reads it; payloads are slices of `bytes`.
    ///
    /// # Errors
    /// [`FrameError`].
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, FrameError> {
        let len = bytes.len();
        if !(HEAD_LEN..=FRAME_BYTES_MAX).contains(&len) {
            return Err(FrameError::Length { len });
        }
        let sum = bytes.get_u32_le();
        if crc32c(&[&bytes]) != sum {
            return Err(FrameError::Checksum);
        }
        let meta_len = bytes.get_u32_le() as usize;
        if meta_len > bytes.len().min(META_BYTES_MAX) {
            return Err(FrameError::Length { len });
        }
        let meta = wire::PeerFrame::decode(bytes.split_to(meta_len));
        let meta = meta.map_err(|_| FrameError::Senseless("it is no PeerFrame"))?;
        let mut payloads = Vec::new();
        for len in payload_lens(&meta) {
            let len = len as usize;
            if len > bytes.len() {
                return Err(FrameError::Senseless("a payload is missing"));
            }
            payloads.push(Payload::Bytes(bytes.split_to(len)));
        }
        if !bytes.is_empty() {
            return Err(FrameError::Senseless("there is more than its payloads"));
        }
        Ok(Self { meta, payloads })
    }
}

pub(crate) fn payload_len(payload: &Payload) -> usize {
    match payload {
        Payload::Bytes(bytes) => bytes.len(),
        Payload::Entry(entry) => entry.len_bytes(),
    }
}

/// The lengths of a frame's payloads, in their order.
fn payload_lens(meta: &wire::PeerFrame) -> impl Iterator<Item = u32> {
    use wire::files_letter::What;
    let entries = meta.raft.iter().flat_map(|letter| &letter.entries);
    let batches = entries
        .map(|entry| entry.payload_len)
        .filter(|len| *len > 0);
    let parts = meta.files.iter().filter_map(|letter| match &letter.what {
        Some(What::Manifest(manifest)) => Some(manifest.payload_len),
        Some(What::Part(part)) => Some(part.payload_len),
        _ => None,
    });
    batches.chain(parts)
}

/// [`Frame`]s as gRPC messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Frame;
    type Decode = Frame;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

/// What is sent is gathered up to 256 KiB.
fn buffer_settings() -> BufferSettings {
    BufferSettings::new(64 << 10, 256 << 10)
}

impl Encoder for FrameCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(frame.len_bytes());
        frame.encode_to(out);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        // A slice of what was received: tonic collects a message in one piece.
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        Ok(Some(Frame::decode(bytes)?))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }
}
