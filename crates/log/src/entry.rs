//! Entries of a replicated log: what goes in, and what is told of those that are there.

use bytes::Bytes;
use tidelog_record::{
    BATCH_HEADER_LEN, BatchError, BatchHeader, LeaderEpoch, ProducedBatch, RaftIndex, check_batch,
};

use crate::internal::{InternalEntry, InternalError, InternalKind};

/// What an entry is to Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A record batch.
    Batch,
    /// The empty entry that begins a leader epoch.
    Empty,
    /// A change of the group's members.
    ConfChange,
    /// Another internal entry, such as a new log start.
    Internal,
}

impl EntryKind {
    fn of(kind: &InternalKind) -> Self {
        match kind {
            InternalKind::RaftEmpty => Self::Empty,
            InternalKind::RaftConfChange(_) => Self::ConfChange,
            _ => Self::Internal,
        }
    }
}

/// What is told of an entry in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// Its Raft index.
    pub index: RaftIndex,
    /// The leader epoch that wrote it.
    pub epoch: LeaderEpoch,
    /// What it is.
    pub kind: EntryKind,
    /// Its length in the log, in bytes.
    pub len: u32,
}

/// Why bytes are no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// They are no sound batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// They are an internal entry that cannot be used.
    #[error(transparent)]
    Internal(#[from] InternalError),
    /// A segment header is each replica's own.
    #[error("a segment header is not replicated")]
    Header,
}

/// An entry on its way into a log, with its base offset and its leader epoch.
#[derive(Clone, Debug)]
pub struct LogEntry {
    pub(crate) header: BatchHeader,
    pub(crate) encoded: [u8; BATCH_HEADER_LEN],
    pub(crate) body: Bytes,
    kind: EntryKind,
    /// Whether its producer is known by it already.
    pub(crate) is_noted: bool,
}

impl LogEntry {
    /// A batch that was validated and stamped. Shares its body.
    pub fn batch(batch: &ProducedBatch) -> Self {
        let (encoded, body) = batch.parts();
        Self {
            header: batch.header().clone(),
            encoded,
            body,
            kind: EntryKind::Batch,
            is_noted: false,
        }
    }

    /// An internal entry.
    ///
    /// # Panics
    /// When it is a segment header.
    pub fn internal(entry: &InternalEntry) -> Self {
        Self::check(entry.encode().into(), usize::MAX).expect("just encoded, and no segment header")
    }

    /// The entry in bytes from elsewhere: their checksum is checked, down to the internal entry, and
    /// that they are one whole entry of at most `len_max` bytes. Shares them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(bytes: Bytes, len_max: usize) -> Result<Self, EntryError> {
        let header = check_batch(&bytes, len_max)?;
        if header.total_len() != bytes.len() {
            return Err(BatchError::Truncated {
                needed: header.total_len(),
                have: bytes.len(),
            }
            .into());
        }
        let body = bytes.slice(BATCH_HEADER_LEN..);
        let kind = if header.attributes.is_control() {
            match InternalEntry::decode(&header, &body)?.kind {
                InternalKind::SegmentHeader(_) => return Err(EntryError::Header),
                kind => EntryKind::of(&kind),
            }
        } else {
            EntryKind::Batch
        };
        Ok(Self {
            header,
            encoded: *bytes.first_chunk().expect("a batch begins with its header"),
            body,
            kind,
            is_noted: false,
        })
    }

    /// Whether its producer is known by it already: see [`crate::Log::note_proposed`].
    pub fn is_noted(&self) -> bool {
        self.is_noted
    }

    /// What it is.
    pub fn kind(&self) -> EntryKind {
        self.kind
    }

    /// Its length in the log, in bytes.
    pub fn len_bytes(&self) -> usize {
        BATCH_HEADER_LEN + self.body.len()
    }

    /// The batch header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The header as it stands in the log, and what follows it.
    pub fn parts(&self) -> (&[u8; BATCH_HEADER_LEN], &Bytes) {
        (&self.encoded, &self.body)
    }
}

/// What a batch header, with the body of an internal entry, is to Raft.
pub(crate) fn kind_of(header: &BatchHeader, body: &[u8]) -> Result<EntryKind, InternalError> {
    if !header.attributes.is_control() {
        return Ok(EntryKind::Batch);
    }
    Ok(EntryKind::of(&InternalEntry::decode(header, body)?.kind))
}
