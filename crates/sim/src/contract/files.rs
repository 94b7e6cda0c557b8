//! One file: open, read, write, length.

use std::io::{ErrorKind, IoSlice};
use std::path::Path;

use tidelog_disk::{Disk, DiskOp, OpenHow};

use super::{contents, contents_at, create, create_with, error, len, write};

pub(super) fn open_modes(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("file");
    for how in [OpenHow::Read, OpenHow::Write] {
        assert!(error(disk.open(&path, how), "opening what is not there").is_not_found());
    }
    let new = disk
        .open(&path, OpenHow::CreateNew)
        .expect("nothing is there yet");
    assert_eq!(new.path(), path);
    assert!(new.is_empty().expect("a length is there"));
    write(&*new, 0, b"abc");

    let again = error(
        disk.open(&path, OpenHow::CreateNew),
        "creating what is there",
    );
    assert_eq!(again.source.kind(), ErrorKind::AlreadyExists);
    for how in [OpenHow::Read, OpenHow::Write, OpenHow::Create] {
        let file = disk.open(&path, how).expect("the file is there");
        assert_eq!(contents(&*file), b"abc", "opening changes nothing");
        assert!(!file.is_empty().expect("a length is there"));
        if how != OpenHow::Read {
            write(&*file, 0, b"abc");
        }
    }
    let other = disk
        .open(&dir.join("other"), OpenHow::Create)
        .expect("a new file can be made");
    assert_eq!(len(&*other), 0);
}

pub(super) fn reads_end_at_the_end(disk: &dyn Disk, dir: &Path) {
    let file = create_with(disk, &dir.join("file"), b"0123456789");
    let mut buf = [b'x'; 6];
    assert_eq!(file.read_at(0, &mut buf).expect("a read goes well"), 6);
    assert_eq!(&buf, b"012345");
    assert_eq!(file.read_at(7, &mut buf).expect("a read goes well"), 3);
    assert_eq!(&buf[..3], b"789");
    assert_eq!(
        &buf[3..],
        b"345",
        "beyond what was read the buffer is as it was"
    );
    for at in [10, 11, 1 << 40] {
        assert_eq!(file.read_at(at, &mut buf).expect("a read goes well"), 0);
    }
    assert_eq!(file.read_at(3, &mut []).expect("a read goes well"), 0);
    let short = tidelog_disk::read_up_to(&*file, 8, 100).expect("a read goes well");
    assert_eq!(short, b"89");
}

pub(super) fn vectored_writes(disk: &dyn Disk, dir: &Path) {
    let file = create(disk, &dir.join("empty"));
    file.write_at(100, &[]).expect("no part at all is fine");
    file.write_at(100, &[IoSlice::new(b""), IoSlice::new(b"")])
        .expect("empty parts are fine");
    let many_empty = vec![IoSlice::new(b""); 3000];
    file.write_at(100, &many_empty)
        .expect("many empty parts are fine");
    assert_eq!(len(&*file), 0, "writing nothing extends nothing");

    let parts: [&[u8]; 6] = [b"", b"ab", b"", b"", b"cde", b""];
    file.write_at(2, &parts.map(IoSlice::new))
        .expect("a write goes well");
    assert_eq!(contents(&*file), b"\0\0abcde");

    // More parts than one call of the operating system takes, with empty ones at its borders.
    let file = create(disk, &dir.join("many"));
    let mut parts: Vec<Vec<u8>> = (0..2500_u32)
        .map(|n| n.to_be_bytes()[..(n % 5).min(4) as usize].to_vec())
        .collect();
    for border in [1023, 1024, 2047, 2048] {
        parts[border].clear();
    }
    parts[2499] = vec![7; 300_000];
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    file.write_at(5, &slices).expect("a write goes well");
    let expected: Vec<u8> = [0; 5].into_iter().chain(parts.concat()).collect();
    assert!(
        contents(&*file) == expected,
        "many parts arrive one after the other"
    );
}

pub(super) fn writes_extend(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("file");
    let file = create_with(disk, &path, b"abc");
    write(&*file, 3, b"def");
    write(&*file, 1, b"BC");
    assert_eq!(contents(&*file), b"aBCdef");
    write(&*file, 5000, b"z");
    let mut expected = b"aBCdef".to_vec();
    expected.resize(5000, 0);
    expected.push(b'z');
    assert_eq!(contents(&*file), expected, "the gap reads as zeros");
    file.sync_data().expect("a sync goes well");
    assert_eq!(contents_at(disk, &path), expected);
}

pub(super) fn set_len(disk: &dyn Disk, dir: &Path) {
    let file = create_with(disk, &dir.join("file"), &[1; 3000]);
    file.set_len(1000).expect("a cut goes well");
    assert_eq!(contents(&*file), vec![1; 1000]);
    file.set_len(4000).expect("an extension goes well");
    let mut expected = vec![1; 1000];
    expected.resize(4000, 0);
    assert_eq!(
        contents(&*file),
        expected,
        "what was cut off does not come back"
    );
    file.set_len(4000).expect("the present length is fine");
    file.set_len(0).expect("a cut to nothing goes well");
    assert_eq!(len(&*file), 0);
}

pub(super) fn reserve(disk: &dyn Disk, dir: &Path) {
    let file = create_with(disk, &dir.join("file"), b"abc");
    file.reserve(10_000).expect("there is space");
    let mut expected = b"abc".to_vec();
    expected.resize(10_000, 0);
    assert_eq!(
        contents(&*file),
        expected,
        "reserved space is part of the file and zeros"
    );
    for len in [0, 3, 10_000] {
        file.reserve(len).expect("less than there is is fine");
        assert_eq!(
            contents(&*file),
            expected,
            "reserving never cuts or changes"
        );
    }
    write(&*file, 3, b"def");
    assert_eq!(len(&*file), 10_000);
    file.set_len(6).expect("reserved space can be cut off");
    assert_eq!(contents(&*file), b"abcdef");
    file.reserve(8).expect("there is space");
    assert_eq!(contents(&*file), b"abcdef\0\0");
}

pub(super) fn handles_share_the_file(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("file");
    let one = create_with(disk, &path, b"abc");
    let two = disk.open(&path, OpenHow::Write).expect("the file is there");
    let reader = disk.open(&path, OpenHow::Read).expect("the file is there");
    write(&*two, 3, b"def");
    write(&*one, 0, b"X");
    for file in [&one, &two, &reader] {
        assert_eq!(contents(&**file), b"Xbcdef");
    }
    std::thread::scope(|scope| {
        for n in 0..4_u8 {
            let file = &one;
            scope.spawn(move || write(&**file, 1000 * u64::from(n), &[n; 1000]));
        }
    });
    let expected: Vec<u8> = (0..4_u8).flat_map(|n| [n; 1000]).collect();
    assert!(contents(&*two) == expected, "threads write side by side");
}

pub(super) fn a_reading_handle_writes_nothing(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("file");
    create_with(disk, &path, b"abc");
    let file = disk.open(&path, OpenHow::Read).expect("the file is there");
    let failed = error(
        file.write_at(0, &[IoSlice::new(b"X")]),
        "writing to a reading handle",
    );
    assert_eq!(failed.op, DiskOp::Write);
    let failed = error(file.set_len(0), "cutting a reading handle");
    assert_eq!(failed.op, DiskOp::SetLen);
    let failed = error(file.reserve(100), "reserving on a reading handle");
    assert_eq!(failed.op, DiskOp::Reserve);
    assert_eq!(contents(&*file), b"abc");
}

pub(super) fn absurd_lengths(disk: &dyn Disk, dir: &Path) {
    let file = create_with(disk, &dir.join("file"), b"abc");
    error(
        file.write_at(u64::MAX - 1, &[IoSlice::new(b"X")]),
        "writing at the end of numbers",
    );
    error(file.set_len(u64::MAX), "extending to the end of numbers");
    error(file.reserve(u64::MAX), "reserving to the end of numbers");
    assert_eq!(contents(&*file), b"abc");
}
