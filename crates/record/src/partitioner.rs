//! Which partition a key belongs to: as Kafka's Java clients decide it, so that records with equal
//! keys meet in one partition whichever client wrote them.

use std::num::NonZeroU32;

use crate::PartitionId;

const SEED: u32 = 0x9747_b28c;
const MIX: u32 = 0x5bd1_e995;

/// The 32-bit Murmur 2 hash of `key`, with the seed of Kafka's Java clients.
pub fn murmur2(key: &[u8]) -> u32 {
    // Murmur 2 takes the length modulo 2^32; no key is that long.
    let mut hash = SEED ^ u32::try_from(key.len()).unwrap_or(u32::MAX);
    let (words, tail) = key.as_chunks::<4>();
    for &word in words {
        let mut word = u32::from_le_bytes(word).wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    if !tail.is_empty() {
        let mut word = [0; 4];
        word[..tail.len()].copy_from_slice(tail);
        hash = (hash ^ u32::from_le_bytes(word)).wrapping_mul(MIX);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(MIX);
    hash ^ (hash >> 15)
}

/// The partition of `key` in a topic of this many partitions.
pub fn partition_for_key(key: &[u8], partitions: NonZeroU32) -> PartitionId {
    let positive = murmur2(key) & 0x7fff_ffff;
    PartitionId::new(positive % partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that Kafka's own tests expect, and those of other clients for every length of
    /// the tail.
    #[test]
    fn hashes_as_kafka_does() {
        for (key, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
            ("", 275_646_681),
            ("1", -1_993_445_489),
            ("12", 126_087_238),
            ("123", -267_702_483),
            ("1234", -1_614_185_708),
            ("12345", -1_188_365_604),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), expected, "{key:?}");
        }
    }

    /// Seismic networks and how many events each reported in a year of a public catalogue.
    #[test]
    fn spreads_keys_as_kafka_does() {
        let mut counts = [0; 6];
        let partitions = NonZeroU32::new(6).expect("not zero");
        for (network, events) in [
            ("ak", 297),
            ("ci", 386),
            ("hv", 46),
            ("mb", 28),
            ("nc", 370),
            ("nm", 5),
            ("nn", 260),
            ("pr", 62),
            ("se", 1),
            ("us", 168),
            ("uu", 33),
            ("uw", 51),
        ] {
            let partition = partition_for_key(network.as_bytes(), partitions);
            counts[usize::try_from(partition.get()).unwrap()] += events;
        }
        assert_eq!(counts, [630, 173, 348, 63, 493, 0]);
    }

    #[test]
    fn one_partition_takes_every_key() {
        for key in ["", "a", "foobar"] {
            assert_eq!(
                partition_for_key(key.as_bytes(), NonZeroU32::MIN),
                PartitionId::new(0)
            );
        }
    }
}
