//! Mutations of good inputs, drawn from a seed: what libFuzzer does, only blind.

/// A source of numbers that is the same for the same seed.
#[derive(Clone, Debug)]
pub struct Source(u64);

impl Source {
    /// One for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (SplitMix64).
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        usize::try_from(self.number() % end).unwrap_or(0)
    }
}

/// Numbers at which fields change their meaning.
const EDGES: [u64; 10] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// An input near those of `corpus`, which has one at least. No longer than `len_max`.
pub fn mutated(source: &mut Source, corpus: &[Vec<u8>], len_max: usize) -> Vec<u8> {
    let mut bytes = corpus[source.below(corpus.len())].clone();
    for _ in 0..=source.below(6) {
        step(source, corpus, &mut bytes);
    }
    bytes.truncate(len_max);
    bytes
}

fn step(source: &mut Source, corpus: &[Vec<u8>], bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = source.below(bytes.len());
    let len = 1 + source.below((bytes.len() - at).min(64));
    match source.below(9) {
        0 | 1 => bytes[at] ^= 1 << source.below(8),
        2 => bytes[at] = source.number().to_be_bytes()[0],
        // A field of 1, 2, 4 or 8 bytes.
        3 | 4 => {
            let width = 1 << source.below(4);
            let edge = EDGES[source.below(EDGES.len())].to_be_bytes();
            let room = bytes.len() - at;
            let width = room.min(width);
            bytes[at..at + width].copy_from_slice(&edge[8 - width..]);
        }
        5 => bytes.truncate(at),
        6 => {
            bytes.drain(at..at + len);
        }
        7 => {
            let copy = bytes[at..at + len].to_vec();
            let to = source.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        _ => {
            let other = &corpus[source.below(corpus.len())];
            let from = source.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}
