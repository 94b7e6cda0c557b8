//! Frozen bytes and slices of the map.

use std::path::Path;

use tidelog_disk::{Disk, OpenHow};

use super::{contents, contents_at, create, create_with, panics, write};

pub(super) fn freezing(disk: &dyn Disk, dir: &Path) {
    let file = create_with(disk, &dir.join("file"), &[1; 100]);
    assert_eq!(file.frozen(), 0);
    file.freeze(60);
    assert_eq!(file.frozen(), 60);
    file.freeze(20);
    assert_eq!(file.frozen(), 60, "freezing never goes back");
    file.freeze(70);
    assert_eq!(file.frozen(), 70);
}

pub(super) fn frozen_bytes_cannot_change(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("file");
    let file = create_with(disk, &path, &[1; 100]);
    file.freeze(60);
    for at in [0, 59] {
        assert!(
            panics(|| write(&*file, at, b"x")),
            "a write at {at} below 60 must panic"
        );
    }
    for len in [0, 59] {
        assert!(
            panics(|| file.set_len(len).unwrap_or(())),
            "a cut to {len} below 60 must panic"
        );
    }
    assert_eq!(
        contents_at(disk, &path),
        vec![1; 100],
        "what panicked changed nothing"
    );

    write(&*file, 60, b"x");
    file.set_len(60)
        .expect("the frozen end itself is no cut below it");
    file.reserve(10).expect("reserving cuts nothing");
    assert_eq!(contents(&*file), vec![1; 60]);
}

pub(super) fn slices(disk: &dyn Disk, dir: &Path) {
    let bytes: Vec<u8> = (0..200).collect();
    let file = create_with(disk, &dir.join("file"), &bytes);
    assert_eq!(file.slice(0, 1), None, "nothing is frozen or mapped");
    file.freeze(150);
    assert_eq!(file.slice(0, 1), None, "nothing is mapped");
    file.map(100).expect("a map can be made");
    let all = file.slice(0, 100).expect("all of it is frozen and mapped");
    assert_eq!(all, bytes[..100]);
    let middle = file.slice(20, 30).expect("all of it is frozen and mapped");
    assert_eq!(middle, bytes[20..50]);
    assert_eq!(
        file.slice(100, 0)
            .expect("nothing at the end is there")
            .len(),
        0
    );
    assert_eq!(file.slice(99, 2), None, "frozen, but past the map");
    assert_eq!(file.slice(u64::MAX, 2), None, "no number overflows");

    file.map(200).expect("a second map is no error");
    assert_eq!(file.slice(99, 2), None, "and does nothing");

    let file = create_with(disk, &dir.join("other"), &bytes);
    file.map(1000).expect("a map can be made");
    assert_eq!(file.slice(0, 1), None, "mapped, but not frozen");
    file.freeze(10);
    assert_eq!(file.slice(0, 10).expect("frozen and mapped"), bytes[..10]);
    assert_eq!(file.slice(9, 2), None, "one byte above the frozen");
    assert_eq!(file.slice(500, 1), None, "far above the frozen");

    let reader = disk
        .open(&dir.join("other"), OpenHow::Read)
        .expect("the file is there");
    reader.map(200).expect("a reading handle can be mapped");
    reader.freeze(200);
    assert_eq!(reader.slice(0, 200).expect("frozen and mapped"), bytes);
}

pub(super) fn a_map_is_longer_than_the_file(disk: &dyn Disk, dir: &Path) {
    let file = create(disk, &dir.join("file"));
    file.map(1 << 20)
        .expect("an empty file can be mapped at its later length");
    let mut held = Vec::new();
    for n in 0..50_u8 {
        // Parts that are no whole number of pages or sectors, with space taken ahead of them.
        let at = u64::from(n) * 3001;
        if n % 10 == 0 {
            file.reserve(at + 40_000).expect("there is space");
        }
        write(&*file, at, &[n; 3001]);
        file.freeze(at + 3001);
        held.push(file.slice(at, 3001).expect("frozen and mapped"));
    }
    for (n, slice) in held.iter().enumerate() {
        assert!(
            slice.iter().all(|b| usize::from(*b) == n),
            "slice {n} shows what was written"
        );
    }
    let all = file.slice(0, 50 * 3001).expect("frozen and mapped");
    assert_eq!(all, held.concat());
}

pub(super) fn slices_outlive_the_file(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("file");
    let bytes: Vec<u8> = (0..10_000_u32).flat_map(u32::to_be_bytes).collect();
    let file = create_with(disk, &path, &bytes);
    file.map(1 << 20).expect("a map can be made");
    file.freeze(40_000);
    let slice = file.slice(0, 40_000).expect("frozen and mapped");
    let part = slice.slice(4..8);

    write(&*file, 40_000, &[9; 100_000]);
    assert_eq!(slice, bytes, "growth changes nothing below");
    disk.rename(&path, &dir.join("renamed"))
        .expect("a file can be renamed");
    disk.remove_file(&dir.join("renamed"))
        .expect("a file can be removed");
    assert_eq!(contents(&*file).len(), 140_000, "handles outlive the name");
    file.freeze(140_000);
    assert_eq!(file.slice(139_999, 1).expect("frozen and mapped"), [9][..]);
    drop(file);
    create_with(disk, &path, &[0; 40_000]);
    assert_eq!(slice, bytes, "the slice outlives name and handle");
    drop(slice);
    assert_eq!(part, [0, 0, 0, 1][..], "a part of it keeps it too");
}
