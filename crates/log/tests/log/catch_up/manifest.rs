//! A manifest that is not what was sent never becomes a log.

use tidelog_log::catch_up::{MANIFEST_BYTES_MAX, Manifest, ManifestError};

use super::*;

fn decode_with_crc(bytes: &mut [u8]) -> Result<Manifest, ManifestError> {
    let (content, crc) = bytes.split_last_chunk_mut::<4>().unwrap();
    *crc = crc32fast::hash(content).to_be_bytes();
    Manifest::decode(bytes)
}

#[test]
fn a_manifest_survives_its_way() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let bytes = source.manifest().encode();
    assert_eq!(&Manifest::decode(&bytes).unwrap(), source.manifest());
    for len in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "cut at {len}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Manifest::decode(&longer).is_err());
    assert!(decode_with_crc(&mut longer).is_err());
    let huge = vec![0; MANIFEST_BYTES_MAX + 1];
    assert!(matches!(
        Manifest::decode(&huge),
        Err(ManifestError::Length { .. })
    ));
}

/// Each byte in turn is another one. With its checksum as it was, it is refused; with a new one, it is
/// refused too, or no copy that is made by it is ever finished.
#[test]
fn no_byte_of_a_manifest_can_be_another_one() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let good = source.manifest().encode();
    let note = good.len() - 4 - "members".len()..good.len() - 4;
    let mut decoded = 0;
    for at in 0..good.len() {
        for flip in [1, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            assert!(Manifest::decode(&bytes).is_err(), "byte {at}");
            if at >= good.len() - 4 || note.contains(&at) {
                continue;
            }
            let Ok(manifest) = decode_with_crc(&mut bytes) else {
                continue;
            };
            decoded += 1;
            assert_eq!(manifest.encode(), bytes);
            let disk = fresh(1);
            let Ok(mut staging) = stage(&disk, &manifest) else {
                continue;
            };
            let is_finished = try_copy(&source, &mut staging);
            assert!(!is_finished, "byte {at} is {:02x}", bytes[at]);
        }
    }
    assert!(decoded > 100, "only {decoded} came through the decoder");
}

fn try_copy(source: &CatchUpSource, staging: &mut Staging) -> bool {
    while let Some(wanted) = staging.next() {
        let Ok(bytes) = source.read(wanted.file, wanted.position, wanted.len_max) else {
            return false;
        };
        let len = bytes.len().min(wanted.len_max as usize);
        if staging
            .write(wanted.file, wanted.position, &bytes[..len])
            .is_err()
        {
            return false;
        }
    }
    staging.finish().is_ok()
}
