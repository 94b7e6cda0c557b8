//! A file's bytes as sectors, holes left out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// What a device writes as a whole or not at all, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// [`SECTOR_BYTES`] as a length.
pub(crate) const SECTOR_LEN: usize = 512;

const _: () = assert!(SECTOR_BYTES == SECTOR_LEN as u64);

/// The bytes of one sector, shared between images and pending versions.
pub(crate) type Sector = Arc<[u8; SECTOR_LEN]>;

/// A file's contents: a length and the sectors that were ever written; the others are zeros.
///
/// Sectors at or above the length may be there while a crash is being replayed; [`Image::cut`]
/// drops them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    len: u64,
    sectors: BTreeMap<u64, Sector>,
}

impl Image {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads from `at` on; returns how many bytes there were.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> usize {
        let there = self.len.saturating_sub(at).min(buf.len() as u64);
        let there = index(there);
        for piece in pieces(at, there) {
            let out = &mut buf[piece.range.clone()];
            match self.sectors.get(&piece.sector) {
                Some(sector) => out.copy_from_slice(&sector[piece.in_sector()]),
                None => out.fill(0),
            }
        }
        there
    }

    /// All of it.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; index(self.len)];
        self.read(0, &mut all);
        all
    }

    /// Writes `bytes` at `at`, extending the image if need be.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        for piece in pieces(at, bytes.len()) {
            let new = &bytes[piece.range.clone()];
            if let Ok(whole) = <&[u8; SECTOR_LEN]>::try_from(new) {
                self.sectors.insert(piece.sector, whole_sector(whole));
                continue;
            }
            let sector = self.sectors.entry(piece.sector).or_insert_with(zeros);
            Arc::make_mut(sector)[piece.in_sector()].copy_from_slice(new);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(at + bytes.len() as u64);
        }
    }

    /// The sector, if it was ever written.
    pub(crate) fn sector(&self, number: u64) -> Option<&Sector> {
        self.sectors.get(&number)
    }

    /// Replaces a whole sector. The length stays.
    pub(crate) fn put(&mut self, number: u64, sector: Option<Sector>) {
        match sector {
            Some(sector) => self.sectors.insert(number, sector),
            None => self.sectors.remove(&number),
        };
    }

    /// How many sectors of `numbers` were ever written.
    pub(crate) fn count(&self, numbers: Range<u64>) -> u64 {
        if numbers.is_empty() {
            0
        } else {
            self.sectors.range(numbers).count() as u64
        }
    }

    /// Sets the length; what lies at or above a shorter one is gone.
    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.cut(len);
        }
        self.len = len;
    }

    /// Sets the length and drops every byte at or above it, whatever the length was.
    pub(crate) fn cut(&mut self, len: u64) {
        self.sectors.split_off(&sectors_to_hold(len));
        let inside = index(len % SECTOR_BYTES);
        if inside > 0
            && let Some(last) = self.sectors.get_mut(&(len / SECTOR_BYTES))
            && last[inside..].iter().any(|&b| b != 0)
        {
            Arc::make_mut(last)[inside..].fill(0);
        }
        self.len = len;
    }
}

/// How many sectors `len` bytes fill, the last one in part.
pub(crate) fn sectors_to_hold(len: u64) -> u64 {
    len.div_ceil(SECTOR_BYTES)
}

/// One sector's part of a range of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) sector: u64,
    start_in_sector: usize,
    /// Which bytes of the range, counted from its start.
    pub(crate) range: Range<usize>,
}

impl Piece {
    fn in_sector(&self) -> Range<usize> {
        self.start_in_sector..self.start_in_sector + self.range.len()
    }
}

/// The range `at..at + len` cut at sector borders.
pub(crate) fn pieces(at: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let position = at + done as u64;
        let start_in_sector = index(position % SECTOR_BYTES);
        let end = len.min(done + SECTOR_LEN - start_in_sector);
        let piece = Piece {
            sector: position / SECTOR_BYTES,
            start_in_sector,
            range: done..end,
        };
        done = end;
        Some(piece)
    })
}

/// A sector of zeros. All share one: most of what is written in a simulation is space kept with zeros.
pub(crate) fn zeros() -> Sector {
    static ZEROS: LazyLock<Sector> = LazyLock::new(|| Arc::new([0; SECTOR_LEN]));
    ZEROS.clone()
}

fn whole_sector(bytes: &[u8; SECTOR_LEN]) -> Sector {
    if *bytes == [0; SECTOR_LEN] {
        zeros()
    } else {
        Arc::new(*bytes)
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("a simulated file fits into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_sector_borders() {
        let cut: Vec<_> = pieces(500, 600)
            .map(|p| (p.sector, p.in_sector(), p.range))
            .collect();
        assert_eq!(
            cut,
            [
                (0, 500..512, 0..12),
                (1, 0..512, 12..524),
                (2, 0..76, 524..600)
            ]
        );
        assert_eq!(pieces(500, 0).count(), 0);
    }

    #[test]
    fn what_was_cut_off_comes_back_as_zeros() {
        let mut image = Image::default();
        image.write(300, &[7; 600]);
        image.set_len(400);
        image.set_len(1000);
        let mut expected = vec![0; 1000];
        expected[300..400].fill(7);
        assert_eq!(image.to_vec(), expected);
    }
}
