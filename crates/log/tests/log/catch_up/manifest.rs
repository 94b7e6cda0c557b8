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

/// Positions of fields, as they are in the encoding.
const EPOCHS_AT: usize = 100;
const PRODUCERS_AT: usize = 108;
const SEGMENTS_AT: usize = 124;
const SEGMENT_LEN: usize = 52;

/// Copies by a manifest that differs from that of `source`, where file `file` is `other`.
fn copy_with(source: &CatchUpSource, mut bytes: Vec<u8>, file: u32, other: &[u8]) -> String {
    let manifest = decode_with_crc(&mut bytes).unwrap();
    let disk = fresh(1);
    let mut staging = stage(&disk, &manifest).unwrap();
    while let Some(wanted) = staging.next() {
        let bytes = if wanted.file == file {
            Bytes::copy_from_slice(&other[wanted.position as usize..])
        } else {
            let read = source.read(wanted.file, wanted.position, wanted.len_max);
            read.unwrap()
        };
        staging.write(wanted.file, wanted.position, &bytes).unwrap();
    }
    match staging.finish() {
        Err(StagingError::Unfit(what)) => what,
        other => panic!("{other:?}"),
    }
}

/// The fields of a file beside the segments: its length and its checksum.
fn side(bytes: &[u8]) -> Vec<u8> {
    let (len, crc) = (bytes.len() as u32, crc32fast::hash(bytes));
    [len.to_be_bytes(), crc.to_be_bytes()].concat()
}

/// Each file is what the manifest says, and sound by itself.
#[test]
fn files_that_make_no_log_together_are_refused() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let manifest = source.manifest();
    let good = manifest.encode();
    let all_of = |source: &CatchUpSource, file| source.read(file, 0, u32::MAX).unwrap();
    let epochs_file = manifest.files() - 2;

    let epochs = all_of(&source, epochs_file);
    let fewer = &epochs[..epochs.len() - 24];
    let mut bytes = good.clone();
    bytes[EPOCHS_AT..EPOCHS_AT + 8].copy_from_slice(&side(fewer));
    let what = copy_with(&source, bytes, epochs_file, fewer);
    assert!(what.contains("others than those in the segments"), "{what}");

    let mut broken = epochs.to_vec();
    *broken.last_mut().unwrap() ^= 1;
    let mut bytes = good.clone();
    bytes[EPOCHS_AT..EPOCHS_AT + 8].copy_from_slice(&side(&broken));
    let what = copy_with(&source, bytes, epochs_file, &broken);
    assert!(what.contains("cannot be read"), "{what}");

    let mut earlier = Original::new(small());
    earlier.append(3);
    earlier.commit();
    let earlier = earlier.source();
    let producers = all_of(&earlier, earlier.manifest().files() - 1);
    let mut bytes = good.clone();
    bytes[PRODUCERS_AT..PRODUCERS_AT + 8].copy_from_slice(&side(&producers));
    let what = copy_with(&source, bytes, epochs_file + 1, &producers);
    assert!(what.contains("producers"), "{what}");
}

/// Of two histories that have the same borders, no segment of the one follows on one of the other.
#[test]
fn a_segment_of_another_history_is_refused() {
    let of_key = |value| {
        let mut original = Original::new(small());
        original.value = value;
        original.append(30);
        original.commit();
        original
    };
    let (one, other) = (of_key(b'1'), of_key(b'2'));
    let (source, strange) = (one.source(), other.source());
    assert_eq!(
        source.manifest().end().position,
        strange.manifest().end().position
    );
    // Sound by itself, with the header that was meant.
    let mut staging = stage(&fresh(1), source.manifest()).unwrap();
    let refused = pump(&strange, &mut staging, u32::MAX, 1);
    assert!(
        matches!(refused, Err(StagingError::Damaged { file: 0, .. })),
        "{refused:?}"
    );

    let mut bytes = source.manifest().encode();
    let others = strange.manifest().encode();
    for file in 0..source.manifest().files() - 3 {
        let at = SEGMENTS_AT + file as usize * SEGMENT_LEN;
        let before = bytes[at..at + SEGMENT_LEN].to_vec();
        let fields = &others[at..at + SEGMENT_LEN];
        assert_ne!(before, fields);
        bytes[at..at + SEGMENT_LEN].copy_from_slice(fields);
        let segment = strange.read(file, 0, u32::MAX).unwrap();
        let what = copy_with(&source, bytes.clone(), file, &segment);
        assert!(what.contains("tells of"), "{what}");
        bytes[at..at + SEGMENT_LEN].copy_from_slice(&before);
    }
}
