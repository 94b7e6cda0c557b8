//! The random numbers of a simulation.

/// A small, fast generator (xoshiro256**, state filled by SplitMix64), the same on every machine
/// and in every release, so that a seed in a bug report replays for ever. Not for secrets.
#[derive(Clone, Debug)]
pub struct SimRng {
    state: [u64; 4],
}

impl SimRng {
    /// The generator of `seed`. Every seed is good, 0 too.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self {
            state: std::array::from_fn(|_| split_mix(&mut state)),
        }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let out = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        out
    }

    /// A number in `0..end`. The bias is below `end` / 2^64.
    ///
    /// # Panics
    /// When `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is no number below 0");
        let wide = u128::from(self.next_u64()) * u128::from(end);
        u64::try_from(wide >> 64).expect("the product of two 64-bit numbers has 128 bits")
    }

    /// An index into something `len` long.
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("less than a usize")
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Fills `buf` with random bytes.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    /// A generator of its own for one part of a simulation, so that what the part draws does not
    /// shift what the others draw.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

/// One step of SplitMix64.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How much of a set of pending changes survives. Drawn once a set, so that "all of it" and
/// "nothing" come up as often as a mixture, however large the set is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survival {
    All,
    Nothing,
    /// Each by itself, in so many of 100 cases.
    Each(u64),
}

impl Survival {
    pub(crate) fn draw(rng: &mut SimRng) -> Self {
        match rng.below(8) {
            0 | 1 => Self::All,
            2 | 3 => Self::Nothing,
            4 => Self::Each(90),
            5 => Self::Each(10),
            _ => Self::Each(50),
        }
    }

    pub(crate) fn keeps(self, rng: &mut SimRng) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Each(percent) => rng.chance(percent),
        }
    }

    /// How many of `count` ordered changes, the first ones, survive.
    pub(crate) fn prefix(self, rng: &mut SimRng, count: usize) -> usize {
        if count == 0 {
            0
        } else if self.keeps(rng) {
            count
        } else if matches!(self, Self::Nothing) {
            0
        } else {
            rng.index(count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published outputs of both algorithms.
    #[test]
    fn the_sequences_are_the_published_ones() {
        let mut state = 1_234_567;
        let mixed: Vec<u64> = (0..3).map(|_| split_mix(&mut state)).collect();
        assert_eq!(
            mixed,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );

        let mut rng = SimRng {
            state: [1, 2, 3, 4],
        };
        let drawn: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
        assert_eq!(drawn, [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn below_reaches_every_number_and_no_other() {
        let mut rng = SimRng::new(0);
        let mut seen = [0_u32; 7];
        for _ in 0..7000 {
            seen[rng.index(7)] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }

    #[test]
    fn forks_differ_from_each_other() {
        let mut rng = SimRng::new(1);
        assert_ne!(rng.fork().next_u64(), rng.fork().next_u64());
    }
}
