//! What waits to be sent, and how it comes into frames.

use std::vec::IntoIter;

use bytes::Bytes;
use tidelog_replica::catch_up::{CatchUp, CatchUpLetter};
use tidelog_replica::{Letter, Post};

use crate::convert::{push_files, push_raft};
use crate::frame::{Frame, payload_len};

/// What is left of a post.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    raft: IntoIter<Letter>,
    files: IntoIter<CatchUpLetter>,
    notes: IntoIter<Bytes>,
}

impl Unsent {
    pub(crate) fn is_empty(&self) -> bool {
        self.raft.len() + self.files.len() + self.notes.len() == 0
    }

    /// Bytes of payload.
    pub(crate) fn bytes(&self) -> u64 {
        let (raft, files) = (self.raft.as_slice(), self.files.as_slice());
        payload_bytes(raft, files, self.notes.as_slice())
    }

    /// Moves what comes first into a frame, until that has so many bytes of payload more, or takes no more;
    /// gives how many it got.
    pub(crate) fn fill(&mut self, frame: &mut Frame, bytes_max: usize) -> usize {
        let mut bytes = 0;
        while bytes < bytes_max && frame.takes_more() {
            match self.move_into(frame) {
                Some(moved) => bytes += moved,
                None => break,
            }
        }
        bytes
    }

    /// Moves what comes first into a frame; gives its bytes of payload, or `None` where nothing is left.
    fn move_into(&mut self, frame: &mut Frame) -> Option<usize> {
        if let Some(letter) = self.raft.next() {
            let bytes = letter_bytes(&letter);
            push_raft(frame, letter);
            return Some(bytes);
        }
        if let Some(letter) = self.files.next() {
            let bytes = files_bytes(&letter);
            push_files(frame, letter);
            return Some(bytes);
        }
        let note = self.notes.next()?;
        let bytes = note.len();
        frame.meta.notes.push(note);
        Some(bytes)
    }
}

impl From<Post> for Unsent {
    fn from(post: Post) -> Self {
        Self {
            raft: post.raft.into_iter(),
            files: post.files.into_iter(),
            notes: post.notes.into_iter(),
        }
    }
}

/// Bytes of payload in a post.
pub(crate) fn bytes_of(post: &Post) -> u64 {
    payload_bytes(&post.raft, &post.files, &post.notes)
}

fn payload_bytes(raft: &[Letter], files: &[CatchUpLetter], notes: &[Bytes]) -> u64 {
    let raft = raft.iter().map(letter_bytes);
    let files = files.iter().map(files_bytes);
    let notes = notes.iter().map(Bytes::len);
    raft.chain(files).chain(notes).sum::<usize>() as u64
}

fn letter_bytes(letter: &Letter) -> usize {
    letter.payloads.iter().map(payload_len).sum()
}

fn files_bytes(letter: &CatchUpLetter) -> usize {
    match &letter.what {
        CatchUp::Manifest(bytes) | CatchUp::Part { bytes, .. } => bytes.len(),
        _ => 0,
    }
}
