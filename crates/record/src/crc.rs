//! The checksum of batches: CRC-32C (Castagnoli), as in iSCSI.

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};

/// The CRC-32C of `parts` as if they were one piece.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    if let [one] = parts {
        return crc32_iscsi(one);
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    u32::try_from(digest.finalize()).expect("a checksum of 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the CRC catalogues.
    #[test]
    fn known_sums() {
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[&ascending]), 0x46dd_794e);
        assert_eq!(crc32c(&[]), 0);
    }

    #[test]
    fn parts_are_as_one() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let whole = crc32c(&[&bytes]);
        for cut in [0, 1, 15, 16, 40, 255, 256, 2999, 3000] {
            assert_eq!(
                crc32c(&[&bytes[..cut], &bytes[cut..]]),
                whole,
                "cut at {cut}"
            );
        }
    }
}
