//! Bytes that lie in several places, to be sent one behind the other.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Shorter ones are copied: to name one to the system costs more than that.
const SHORT_MAX: usize = 512;

/// Puts pieces together: what is short lies in one buffer, and the rest is shared.
#[derive(Debug)]
pub(crate) struct Gathering {
    short: Vec<u8>,
    /// Each is behind so many bytes of the short ones.
    shared: Vec<(usize, Bytes)>,
}

impl Gathering {
    /// Begins with these; no more than so many others are to be shared.
    pub(crate) fn new(short: Vec<u8>, shared_max: usize) -> Self {
        Self {
            short,
            shared: Vec::with_capacity(shared_max),
        }
    }

    /// Appends a copy.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.short.extend_from_slice(bytes);
    }

    /// Appends the bytes themselves, where they are long enough.
    pub(crate) fn share(&mut self, bytes: &Bytes) {
        if bytes.len() <= SHORT_MAX {
            self.copy(bytes);
        } else {
            self.shared.push((self.short.len(), bytes.clone()));
        }
    }

    /// All that there is behind the first so many bytes, which are short ones.
    pub(crate) fn behind(&self, first: usize) -> Vec<&[u8]> {
        let mut parts = Vec::with_capacity(self.shared.len() * 2 + 1);
        let mut from = first;
        for (at, bytes) in &self.shared {
            parts.extend([&self.short[from..*at], &bytes[..]]);
            from = *at;
        }
        parts.push(&self.short[from..]);
        parts
    }

    /// The short bytes, to be changed where they were kept free.
    pub(crate) fn short_mut(&mut self) -> &mut [u8] {
        &mut self.short
    }

    /// The pieces in their order.
    pub(crate) fn finish(self) -> Pieces {
        let short = Bytes::from(self.short);
        let mut pieces = Pieces {
            pieces: VecDeque::with_capacity(2 * self.shared.len() + 1),
            len: 0,
        };
        let mut from = 0;
        for (at, bytes) in self.shared {
            pieces.push(short.slice(from..at));
            pieces.push(bytes);
            from = at;
        }
        pieces.push(short.slice(from..));
        pieces
    }
}

/// Bytes in several places.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// None is empty.
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Pieces {
    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.pieces.push_back(bytes);
        }
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |first| first)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut by: usize) {
        assert!(by <= self.len, "there are no more than {} bytes", self.len);
        self.len -= by;
        while let Some(first) = self.pieces.front_mut().filter(|_| by > 0) {
            if by < first.len() {
                first.advance(by);
                return;
            }
            by -= first.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_read_as_they_were_put(
            parts in proptest::collection::vec((any::<bool>(), 0..2 * SHORT_MAX), 0..10),
            steps in proptest::collection::vec(1..3 * SHORT_MAX, 1..40),
        ) {
            let mut gathering = Gathering::new(vec![9; 8], 0);
            let mut expected = vec![9; 8];
            for ((is_copied, len), fill) in parts.into_iter().zip(0..) {
                let bytes = Bytes::from(vec![fill; len]);
                expected.extend_from_slice(&bytes);
                if is_copied {
                    gathering.copy(&bytes);
                } else {
                    gathering.share(&bytes);
                }
            }
            prop_assert_eq!(gathering.behind(3).concat(), &expected[3..]);
            let mut pieces = gathering.finish();
            let mut read = Vec::new();
            for step in steps.into_iter().cycle() {
                prop_assert_eq!(pieces.remaining(), expected.len() - read.len());
                if !pieces.has_remaining() {
                    break;
                }
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = pieces.chunks_vectored(&mut slices);
                prop_assert_eq!(&*slices[0], pieces.chunk());
                let there = slices[..filled].iter().flat_map(|slice| slice.to_vec());
                let there: Vec<u8> = there.collect();
                let step = step.min(there.len());
                read.extend_from_slice(&there[..step]);
                pieces.advance(step);
            }
            prop_assert_eq!(read, expected);
        }
    }
}
