//! One file: what reads see, what the device holds, and what lies between the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::SimRng;
use crate::image::{Image, SECTOR_BYTES, Sector, pieces, sectors_to_hold, zeros};
use crate::rng::Survival;

/// A file without its name.
#[derive(Debug, Default)]
pub(crate) struct FileState {
    /// What reads see.
    cache: Image,
    /// What power loss leaves when nothing pending arrives.
    device: Image,
    /// Sectors that changed since they were last handed to the device, each with its contents
    /// after every write, oldest first. A sector that differs from the device and is not here was
    /// lost by a failed sync.
    dirty: BTreeMap<u64, Vec<Version>>,
    /// Lengths the file had since the device's, oldest first.
    lengths: Vec<LengthChange>,
    /// Counts writes and length changes, to replay them in order.
    sequence: u64,
    /// Sectors below this hold space even if nobody wrote them.
    reserved: u64,
    /// Whether it has a name, so that its space counts as used.
    pub(crate) is_named: bool,
    /// Whether it was created on another file system than the rest.
    pub(crate) is_elsewhere: bool,
    /// Every open handle holds a clone.
    pub(crate) opened: Arc<()>,
}

#[derive(Clone, Debug)]
struct Version {
    sequence: u64,
    sector: Sector,
}

#[derive(Clone, Copy, Debug)]
struct LengthChange {
    sequence: u64,
    len: u64,
}

impl FileState {
    /// An empty file that has a name.
    pub(crate) fn new() -> Self {
        Self {
            is_named: true,
            is_elsewhere: false,
            ..Self::default()
        }
    }

    /// The same file on another disk, which has no handles to it.
    pub(crate) fn copy(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            device: self.device.clone(),
            dirty: self.dirty.clone(),
            lengths: self.lengths.clone(),
            opened: Arc::default(),
            ..*self
        }
    }

    pub(crate) fn cache(&self) -> &Image {
        &self.cache
    }

    pub(crate) fn device(&self) -> &Image {
        &self.device
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        if !bytes.is_empty() && end > self.cache.len() {
            self.change_len(end);
        }
        self.sequence += 1;
        self.cache.write(at, bytes);
        for piece in pieces(at, bytes.len()) {
            let sector = self
                .cache
                .sector(piece.sector)
                .expect("it was just written")
                .clone();
            let version = Version {
                sequence: self.sequence,
                sector,
            };
            self.dirty.entry(piece.sector).or_default().push(version);
        }
    }

    /// A write that the page cache shows and that the device put elsewhere: where it belongs the
    /// device keeps what it had.
    pub(crate) fn write_astray(&mut self, at: u64, bytes: &[u8]) {
        self.write(at, bytes);
        for piece in pieces(at, bytes.len()) {
            self.dirty.remove(&piece.sector);
        }
    }

    /// What was to go elsewhere lands on the device here, as far as the device's length reaches.
    /// The page cache does not show it.
    pub(crate) fn land(&mut self, at: u64, bytes: &[u8]) {
        let room = self.device.len().saturating_sub(at);
        let there = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.device.write(at, &bytes[..there]);
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len != self.cache.len() {
            self.change_len(len);
            self.reserved = self.reserved.min(sectors_to_hold(len));
        }
    }

    pub(crate) fn reserve(&mut self, len: u64) {
        if len > self.cache.len() {
            self.change_len(len);
        }
        self.reserved = self.reserved.max(sectors_to_hold(len));
    }

    fn change_len(&mut self, len: u64) {
        self.sequence += 1;
        self.lengths.push(LengthChange {
            sequence: self.sequence,
            len,
        });
        self.cache.set_len(len);
    }

    /// Bytes of space that a write there would newly take.
    pub(crate) fn space_to_write(&self, at: u64, len: usize) -> u64 {
        let new = |n: &u64| *n >= self.reserved && self.cache.sector(*n).is_none();
        pieces(at, len)
            .map(|piece| piece.sector)
            .filter(new)
            .count() as u64
            * SECTOR_BYTES
    }

    /// Bytes of space that [`FileState::reserve`] would newly take.
    pub(crate) fn space_to_reserve(&self, len: u64) -> u64 {
        let sectors = self.reserved..sectors_to_hold(len);
        if sectors.is_empty() {
            return 0;
        }
        let new = sectors.end - sectors.start - self.cache.count(sectors);
        new * SECTOR_BYTES
    }

    /// Bytes of space that the file takes.
    pub(crate) fn space(&self) -> u64 {
        (self.reserved + self.cache.count(self.reserved..u64::MAX)) * SECTOR_BYTES
    }

    /// Everything pending reaches the device.
    pub(crate) fn sync(&mut self) {
        self.settle(self.lengths.len(), |versions| versions);
    }

    /// Any part of what is pending reaches the device; the rest of the bytes is marked clean. A
    /// length that did not arrive stays pending: it lives in the journal, not in a page.
    pub(crate) fn fail_sync(&mut self, rng: &mut SimRng) {
        let lengths = if rng.chance(50) {
            self.lengths.len()
        } else {
            0
        };
        let survival = Survival::draw(rng);
        self.settle(lengths, |versions| survival.prefix(rng, versions));
    }

    /// Power loss: any part of what is pending has reached the device, and reads see only that.
    pub(crate) fn crash(&mut self, rng: &mut SimRng) {
        let lengths = Survival::draw(rng).prefix(rng, self.lengths.len());
        let survival = Survival::draw(rng);
        self.settle(lengths, |versions| survival.prefix(rng, versions));
        self.lengths.clear();
        self.cache = self.device.clone();
        self.reserved = self.reserved.min(sectors_to_hold(self.cache.len()));
        self.opened = Arc::default();
    }

    /// Replays onto the device the first `lengths` pending length changes and, of each dirty
    /// sector, as many versions as `pick` says of how many there are, in the order they were made.
    /// No sector is dirty then.
    fn settle(&mut self, lengths: usize, mut pick: impl FnMut(usize) -> usize) {
        let arrived = self.lengths.drain(..lengths).collect::<Vec<_>>();
        let len = arrived
            .last()
            .map_or(self.device.len(), |change| change.len);
        let mut sectors = Vec::with_capacity(self.dirty.len());
        for (number, versions) in std::mem::take(&mut self.dirty) {
            let picked = pick(versions.len());
            if let Some(version) = versions.into_iter().take(picked).last() {
                sectors.push((version.sequence, number, version.sector));
            }
        }
        sectors.sort_by_key(|(sequence, ..)| *sequence);
        let mut sectors = sectors.into_iter().peekable();
        for change in arrived {
            while let Some((_, number, sector)) =
                sectors.next_if(|(sequence, ..)| *sequence < change.sequence)
            {
                self.device.put(number, Some(sector));
            }
            self.device.set_len(change.len);
        }
        for (_, number, sector) in sectors {
            self.device.put(number, Some(sector));
        }
        // Bytes that arrived without the length that covers them.
        self.device.cut(len);
    }

    /// Clean pages are forgotten: reads see what the device holds, with the pending cuts applied,
    /// which live in the journal.
    pub(crate) fn drop_clean(&mut self) {
        let mut seen = self.device.clone();
        for change in &self.lengths {
            seen.set_len(change.len);
        }
        for number in self.dirty.keys() {
            seen.put(*number, self.cache.sector(*number).cloned());
        }
        self.cache = seen;
    }

    /// Damage: `bytes` appear at `at` everywhere, within the file's length.
    pub(crate) fn overwrite(&mut self, at: u64, bytes: &[u8]) {
        for piece in pieces(at, bytes.len()) {
            let start = at + piece.range.start as u64;
            let bytes = &bytes[piece.range.clone()];
            self.cache.write(start, bytes);
            if start + bytes.len() as u64 <= self.device.len() {
                self.device.write(start, bytes);
            }
            let damaged = self
                .cache
                .sector(piece.sector)
                .cloned()
                .unwrap_or_else(zeros);
            for version in self.dirty.get_mut(&piece.sector).into_iter().flatten() {
                version.sector = damaged.clone();
            }
        }
    }

    /// Damage: the file is cut everywhere, as a tool does that syncs what it did.
    pub(crate) fn truncate(&mut self, len: u64) {
        let len = len.min(self.cache.len());
        self.sync();
        self.cache.cut(len);
        self.device.cut(len);
        self.reserved = self.reserved.min(sectors_to_hold(len));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable(bytes: &[u8]) -> FileState {
        let mut file = FileState::default();
        file.write(0, bytes);
        file.sync();
        file
    }

    #[test]
    fn a_cut_that_arrived_hides_what_was_written_above_it_before() {
        let mut file = durable(&[1; 2048]);
        file.write(1024, &[2; 1024]);
        file.set_len(700);
        file.set_len(2048);
        file.settle(2, |versions| versions);
        let mut expected = vec![1; 700];
        expected.resize(2048, 0);
        assert_eq!(file.device.to_vec(), expected);
    }

    #[test]
    fn what_is_written_after_a_cut_brings_nothing_back() {
        let mut file = durable(&[1; 2048]);
        file.write(1024, &[2; 1024]);
        file.set_len(512);
        file.write(512, &[3; 512]);
        file.set_len(2048);
        file.sync();
        let expected = [[1; 512], [3; 512], [0; 512], [0; 512]].concat();
        assert_eq!(file.device.to_vec(), expected);
        assert_eq!(file.cache.to_vec(), expected);
    }

    #[test]
    fn a_lost_cut_leaves_the_old_bytes() {
        let mut file = durable(&[1; 2048]);
        file.set_len(700);
        file.write(700, &[2; 100]);
        file.settle(0, |_| 0);
        assert_eq!(file.device.to_vec(), vec![1; 2048]);
    }

    #[test]
    fn bytes_without_their_length_are_lost_and_a_length_without_bytes_is_zeros() {
        let mut file = durable(&[1; 100]);
        file.write(100, &[2; 1000]);
        let mut other = file.copy();
        file.settle(0, |versions| versions);
        let mut expected = vec![1; 100];
        assert_eq!(file.device.to_vec(), expected);
        other.settle(1, |_| 0);
        expected.resize(1100, 0);
        assert_eq!(other.device.to_vec(), expected);
    }

    #[test]
    fn a_sector_shows_any_one_of_its_versions_whole() {
        let mut file = durable(&[0; 512]);
        file.write(0, b"a");
        file.write(1, b"b");
        file.write(2, b"c");
        for (picked, expected) in [(0, [0, 0, 0]), (1, *b"a\0\0"), (2, *b"ab\0"), (3, *b"abc")] {
            let mut file = file.copy();
            file.settle(0, |_| picked);
            assert_eq!(file.device.to_vec()[..3], expected);
        }
    }

    #[test]
    fn dropped_caches_keep_what_is_dirty_and_what_was_cut() {
        let mut file = durable(&[1; 2048]);
        file.write(0, &[2; 512]);
        file.settle(0, |_| 0);
        file.write(512, &[3; 512]);
        file.set_len(1300);
        file.set_len(2048);
        let mut shown = file.cache.to_vec();
        assert_eq!(shown[..512], [2; 512]);
        file.drop_clean();
        shown[..512].fill(1);
        assert_eq!(file.cache.to_vec(), shown);
        file.sync();
        assert_eq!(file.device.to_vec(), shown);
    }
}
