//! The newest offset of each key, in bounded memory.

use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;

use tidelog_record::Offset;

/// A key's hash in two halves, and one more than its newest offset; 0 for a free slot.
type Slot = [u64; 3];

/// What a slot takes, in bytes.
pub(crate) const SLOT_BYTES: usize = size_of::<Slot>();

/// Maps each key to its newest offset.
///
/// Keys are known by 128 bits of SipHash-2-4 under a secret key of this run: two keys with the same
/// hash would lose the records of one of them, and nobody who chooses keys can find such two.
#[derive(Debug)]
pub(crate) struct KeyMap {
    slots: Vec<Slot>,
    len: usize,
    len_max: usize,
    secret: [u8; 16],
}

impl KeyMap {
    /// A map for at most `keys` keys in at most `bytes_max` bytes; room for one key at least.
    pub(crate) fn new(keys: u64, bytes_max: usize, secret: [u8; 16]) -> Self {
        let most = (bytes_max / SLOT_BYTES).max(2);
        // A third stays free, so that a search ends soon.
        let wanted = usize::try_from(keys.saturating_mul(3) / 2).unwrap_or(usize::MAX);
        let slots = wanted.saturating_add(2).min(most);
        Self {
            slots: vec![[0; 3]; slots],
            len: 0,
            len_max: (slots * 2 / 3).max(1),
            secret,
        }
    }

    /// Notes that `key` has a record at `offset`. Says whether there was room: once there is none
    /// for a new key, nothing is noted.
    pub(crate) fn put(&mut self, key: &[u8], offset: Offset) -> bool {
        let hash = self.hash(key);
        let at = self.find(hash);
        let slot = &mut self.slots[at];
        if slot[2] == 0 {
            if self.len == self.len_max {
                return false;
            }
            self.len += 1;
        }
        *slot = [hash.0, hash.1, slot[2].max(offset.get() + 1)];
        true
    }

    /// The newest offset of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Offset> {
        let [_, _, next] = self.slots[self.find(self.hash(key))];
        Offset::new(next.checked_sub(1)?)
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(key);
        let hash = hasher.finish128();
        (hash.h1, hash.h2)
    }

    /// The slot that holds the hash, or the free one where it would be.
    fn find(&self, hash: (u64, u64)) -> usize {
        let slots = self.slots.len();
        // The upper bits of a product spread over any number of slots.
        let spread = (u128::from(hash.0) * slots as u128) >> 64;
        let mut at = usize::try_from(spread).expect("below the number of slots");
        loop {
            let [h1, h2, next] = self.slots[at];
            if next == 0 || (h1, h2) == hash {
                return at;
            }
            at = (at + 1) % slots;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(n: u64) -> Offset {
        Offset::new(n).unwrap()
    }

    #[test]
    fn the_newest_offset_of_each_key_is_kept() {
        let mut map = KeyMap::new(1000, 1 << 20, [7; 16]);
        for n in 0..3000_u64 {
            assert!(map.put(format!("key {}", n % 1000).as_bytes(), offset(n)));
        }
        for n in 0..1000_u64 {
            let newest = map.get(format!("key {n}").as_bytes());
            assert_eq!(newest, Some(offset(2000 + n)));
        }
        assert_eq!(map.get(b"another"), None);
        assert!(map.put(b"key 5", offset(1)));
        assert_eq!(map.get(b"key 5"), Some(offset(2005)), "an older one");
    }

    #[test]
    fn memory_is_bounded_and_a_full_map_says_so() {
        for bytes in [0, SLOT_BYTES, 10 * SLOT_BYTES, 1000 * SLOT_BYTES] {
            let mut map = KeyMap::new(u64::MAX, bytes, [1; 16]);
            assert!(map.slots.len() * SLOT_BYTES <= bytes.max(2 * SLOT_BYTES));
            let mut taken = 0;
            while map.put(&usize::to_be_bytes(taken), offset(taken as u64)) {
                taken += 1;
            }
            assert!(
                taken >= 1 && taken >= bytes / SLOT_BYTES / 2,
                "{taken} of {bytes} bytes"
            );
            // What was noted stays, and known keys go on.
            for n in 0..taken {
                assert_eq!(map.get(&n.to_be_bytes()), Some(offset(n as u64)));
            }
            assert_eq!(map.get(b"another"), None);
            assert!(map.put(&0_usize.to_be_bytes(), offset(99_999)));
        }
    }

    #[test]
    fn a_map_is_no_larger_than_what_may_come() {
        let map = KeyMap::new(10, 1 << 30, [1; 16]);
        assert!(map.slots.len() < 20);
    }
}
