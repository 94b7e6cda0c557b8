//! Frames: what goes over a link.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of all that follows, little-endian |
//! | 4 | 4 | the length of what comes next, little-endian |
//! | 8 | | `tidelog.internal.v1.PeerFrame`, protobuf |
//! | | | payloads, one behind the other: their lengths are in the `PeerFrame` |
//!
//! A payload is a batch as it stands in the log, a manifest, or a part of a file. How frames follow on each
//! other is in `wire.rs`.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost::encoding::decode_varint;
use thiserror::Error;
use tidelog_proto::internal::v1 as wire;
use tidelog_record::{BATCH_HEADER_LEN, crc32c};
use tidelog_replica::Payload;

use crate::pieces::{Gathering, Pieces};

/// The longest frame: one batch of the greatest length there is, and some.
pub const FRAME_BYTES_MAX: usize = (64 << 20) + (1 << 20);
/// The longest `PeerFrame` in one, so that decoding it takes no more memory than is reasonable.
const META_BYTES_MAX: usize = 4 << 20;
/// What goes before each frame on a link: its length.
pub(crate) const LEN_LEN: usize = 4;
const SUM_LEN: usize = 4;
const HEAD_LEN: usize = 8;
/// The longest note.
pub const NOTE_BYTES_MAX: usize = 1 << 20;
/// So many notes a frame has at most.
pub(crate) const NOTES_MAX: usize = 10_000;
/// So many letters: with these no more join a frame, as they take a hundred bytes each.
pub(crate) const LETTERS_MAX: usize = 8192;
/// So many entries all messages of Raft in a frame have at most: no link sends more.
pub(crate) const ENTRIES_MAX: usize = 100_000;
/// So many notes a post has at most, and so many bytes they have together. A frame has up to 1 MiB of them and one
/// more.
pub(crate) const POST_NOTES_MAX: usize = NOTES_MAX / 2;
pub(crate) const POST_NOTE_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(POST_NOTE_BYTES_MAX + (1 << 20) < META_BYTES_MAX);

/// What goes over a link at once; as it arrives, with payloads in one piece each.
#[derive(Debug)]
pub(crate) struct Frame<P = Payload> {
    pub(crate) meta: wire::PeerFrame,
    pub(crate) payloads: Vec<P>,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            meta: wire::PeerFrame::default(),
            payloads: Vec::new(),
        }
    }
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

impl Frame {
    /// Its length and the frame, as they go over a link. Copies no payload, but short ones.
    pub(crate) fn pieces(&self) -> Pieces {
        let meta_len = self.meta.encoded_len();
        let is_copied = |payload: &&Payload| matches!(payload, Payload::Entry(_));
        let copied = self.payloads.iter().filter(is_copied).count() * BATCH_HEADER_LEN;
        let mut head = Vec::with_capacity(LEN_LEN + HEAD_LEN + meta_len + copied);
        head.put_bytes(0, LEN_LEN + SUM_LEN);
        head.put_u32_le(u32::try_from(meta_len).expect("bounded"));
        self.meta.encode_raw(&mut head);
        let mut gathering = Gathering::new(head, self.payloads.len());
        for payload in &self.payloads {
            match payload {
                Payload::Bytes(bytes) => gathering.share(bytes),
                Payload::Entry(entry) => {
                    let (header, body) = entry.parts();
                    gathering.copy(header);
                    gathering.share(body);
                }
            }
        }
        let summed = gathering.behind(LEN_LEN + SUM_LEN);
        let len = SUM_LEN + summed.iter().map(|part| part.len()).sum::<usize>();
        let sum = crc32c(&summed);
        let (len_at, rest) = gathering.short_mut().split_at_mut(LEN_LEN);
        let len = u32::try_from(len).expect("bounded");
        len_at.copy_from_slice(&len.to_le_bytes());
        rest[..SUM_LEN].copy_from_slice(&sum.to_le_bytes());
        gathering.finish()
    }

    /// Takes out all that is in it, and keeps room for at most so many letters.
    pub(crate) fn clear(&mut self, letters: usize) {
        let Self { meta, payloads } = self;
        let mut raft = std::mem::take(&mut meta.raft);
        raft.clear();
        raft.shrink_to(letters);
        *meta = wire::PeerFrame {
            raft,
            ..wire::PeerFrame::default()
        };
        payloads.clear();
        payloads.shrink_to(letters);
    }
}

impl Frame<Bytes> {
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
        let encoded = bytes.split_to(meta_len);
        let no_frame = FrameError::Senseless("it is no PeerFrame");
        let said = Said::of(&encoded).ok_or(no_frame)?;
        if !said.is_reasonable() {
            return Err(FrameError::Senseless("it says too much at once"));
        }
        let mut meta = wire::PeerFrame {
            raft: Vec::with_capacity(said.raft),
            ..wire::PeerFrame::default()
        };
        meta.merge(encoded).map_err(|_| no_frame)?;
        let mut payloads = Vec::with_capacity(said.entries);
        for len in payload_lens(&meta) {
            let len = len as usize;
            if len > bytes.len() {
                return Err(FrameError::Senseless("a payload is missing"));
            }
            payloads.push(bytes.split_to(len));
        }
        if !bytes.is_empty() {
            return Err(FrameError::Senseless("there is more than its payloads"));
        }
        Ok(Self { meta, payloads })
    }
}

/// How much a `PeerFrame` says.
#[derive(Default)]
struct Said {
    raft: usize,
    entries: usize,
    files: usize,
    notes: usize,
}

impl Said {
    /// `None` where it is no protobuf.
    fn of(meta: &[u8]) -> Option<Self> {
        let mut said = Self::default();
        let mut rest = meta;
        while !rest.is_empty() {
            let (number, mut content) = next_field(&mut rest)?;
            match number {
                RAFT_FIELD => {
                    said.raft += 1;
                    while !content.is_empty() {
                        let (number, _) = next_field(&mut content)?;
                        said.entries += usize::from(number == ENTRIES_FIELD);
                    }
                }
                FILES_FIELD => said.files += 1,
                NOTES_FIELD => said.notes += 1,
                _ => {}
            }
        }
        Some(said)
    }

    /// Whether there are no more letters, entries and notes than a link sends: decoded, an empty one takes a
    /// hundred times as many bytes.
    fn is_reasonable(&self) -> bool {
        self.raft + self.files <= LETTERS_MAX
            && self.entries <= ENTRIES_MAX
            && self.notes <= NOTES_MAX
    }
}

/// The numbers of fields in `peer.proto`: of a frame, and of a letter.
const RAFT_FIELD: u64 = 2;
const FILES_FIELD: u64 = 3;
const NOTES_FIELD: u64 = 6;
const ENTRIES_FIELD: u64 = 16;

/// The number of the next field of a message, and its content where that has a length.
fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = decode_varint(rest).ok()?;
    let len = match key & 7 {
        0 => {
            decode_varint(rest).ok()?;
            0
        }
        1 => 8,
        2 => usize::try_from(decode_varint(rest).ok()?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    Some((key >> 3, content))
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
