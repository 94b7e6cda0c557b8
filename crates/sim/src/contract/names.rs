//! Directories, names and locks.

use std::io::{ErrorKind, IoSlice};
use std::path::Path;

use tidelog_disk::{DirEntry, Disk, DiskOp, LockError, OpenHow};

use super::{contents, contents_at, create, create_with, error, write};

fn names(disk: &dyn Disk, dir: &Path) -> Vec<String> {
    let entries = disk.list(dir).expect("the directory is there");
    entries.into_iter().map(|entry| entry.name).collect()
}

pub(super) fn directories(disk: &dyn Disk, dir: &Path) {
    let deep = dir.join("a/b/c");
    disk.create_dir_all(&deep)
        .expect("missing parents are made");
    disk.create_dir_all(&deep).expect("one that exists is fine");
    create_with(disk, &deep.join("file"), b"x");
    let taken = error(
        disk.create_dir_all(&deep.join("file")),
        "a directory over a file",
    );
    assert_eq!(taken.op, DiskOp::CreateDir);
    error(
        disk.create_dir_all(&deep.join("file/below")),
        "a directory below a file",
    );
    let below = error(
        disk.open(&deep.join("file/x"), OpenHow::Create),
        "a file below a file",
    );
    assert_eq!(below.source.kind(), ErrorKind::NotADirectory);
    let lost = error(
        disk.open(&dir.join("no/x"), OpenHow::Create),
        "a file in no directory",
    );
    assert!(lost.is_not_found());

    for synced in [dir, &dir.join("a"), &deep] {
        disk.sync_dir(synced).expect("a directory can be synced");
    }
    assert!(disk.free_bytes(&deep).expect("free space is known") > 0);
    assert!(error(disk.sync_dir(&dir.join("no")), "syncing no directory").is_not_found());
    assert!(error(disk.free_bytes(&dir.join("no")), "free space of nothing").is_not_found());

    disk.remove_dir_all(&dir.join("a"))
        .expect("a directory goes with all it holds");
    assert_eq!(names(disk, dir), Vec::<String>::new());
}

pub(super) fn rename(disk: &dyn Disk, dir: &Path) {
    let (one, two) = (dir.join("one"), dir.join("two"));
    let moved = create_with(disk, &one, b"new");
    let replaced = create_with(disk, &two, b"old");
    disk.rename(&one, &two).expect("a file can be renamed");
    assert_eq!(names(disk, dir), ["two"]);
    assert_eq!(contents_at(disk, &two), b"new");
    assert_eq!(
        contents(&*replaced),
        b"old",
        "handles to the replaced file go on"
    );
    write(&*moved, 3, b"er");
    assert_eq!(
        contents_at(disk, &two),
        b"newer",
        "handles follow the renamed file"
    );
    disk.rename(&two, &two)
        .expect("a rename to itself does nothing");
    assert_eq!(contents_at(disk, &two), b"newer");

    disk.create_dir_all(&dir.join("from/deep"))
        .expect("directories can be made");
    create_with(disk, &dir.join("from/deep/file"), b"x");
    disk.rename(&dir.join("from"), &dir.join("to"))
        .expect("a directory can be renamed");
    assert_eq!(contents_at(disk, &dir.join("to/deep/file")), b"x");
    disk.rename(&dir.join("to/deep/file"), &dir.join("file"))
        .expect("a file can move up");
    assert_eq!(names(disk, dir), ["file", "to", "two"]);
    assert_eq!(names(disk, &dir.join("to/deep")), Vec::<String>::new());

    assert!(error(disk.rename(&one, &two), "renaming nothing").is_not_found());
    assert_eq!(
        contents_at(disk, &two),
        b"newer",
        "a failed rename replaces nothing"
    );
    error(
        disk.rename(&dir.join("to"), &two),
        "renaming a directory over a file",
    );
    error(
        disk.rename(&two, &dir.join("to")),
        "renaming a file over a directory",
    );
    error(
        disk.rename(&dir.join("to"), &dir.join("to/deep/to")),
        "a directory into itself",
    );
}

pub(super) fn remove(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("file");
    let held = create_with(disk, &path, b"abc");
    disk.remove_file(&path).expect("a file can be removed");
    assert!(error(disk.open(&path, OpenHow::Read), "opening what was removed").is_not_found());
    assert_eq!(contents(&*held), b"abc", "handles outlive the name");
    let new = create(disk, &path);
    assert_eq!(
        contents(&*new),
        b"",
        "a new file under the old name is another"
    );
    assert!(error(disk.remove_file(&dir.join("no")), "removing nothing").is_not_found());

    disk.create_dir_all(&dir.join("sub/deep"))
        .expect("directories can be made");
    create(disk, &dir.join("sub/file"));
    create(disk, &dir.join("sub/deep/file"));
    error(
        disk.remove_file(&dir.join("sub")),
        "removing a directory as a file",
    );
    disk.remove_dir_all(&dir.join("sub"))
        .expect("a directory goes with all it holds");
    assert!(error(disk.list(&dir.join("sub")), "listing what was removed").is_not_found());
    assert!(error(disk.remove_dir_all(&dir.join("sub")), "removing nothing").is_not_found());
    assert_eq!(names(disk, dir), ["file"]);
}

pub(super) fn list(disk: &dyn Disk, dir: &Path) {
    for name in ["b.log", "a.log", "10", "9", "B", "ä"] {
        create(disk, &dir.join(name));
    }
    disk.create_dir_all(&dir.join("aa/inner"))
        .expect("directories can be made");
    let entry = |(name, is_dir): (&str, bool)| DirEntry {
        name: name.to_owned(),
        is_dir,
    };
    let expected = [
        ("10", false),
        ("9", false),
        ("B", false),
        ("a.log", false),
        ("aa", true),
        ("b.log", false),
        ("ä", false),
    ];
    assert_eq!(
        disk.list(dir).expect("the directory is there"),
        expected.map(entry)
    );
    error(disk.list(&dir.join("9")), "listing a file");
}

pub(super) fn locks(disk: &dyn Disk, dir: &Path) {
    let (path, other) = (dir.join("lock"), dir.join("other"));
    let held = disk.lock(&path).expect("nobody holds it");
    assert_eq!(names(disk, dir), ["lock"], "the file is made");
    match disk.lock(&path) {
        Err(LockError::Held { path: named }) => assert_eq!(named, path),
        other => panic!("a held lock must be refused as such, not {other:?}"),
    }
    assert!(disk.lock(&other).is_err(), "the directory is locked");
    disk.remove_file(&path).expect("the file is no lock");
    assert!(disk.lock(&path).is_err(), "nor does removing it help");
    let below = dir.join("below");
    disk.create_dir_all(&below)
        .expect("a directory can be made");
    let second = disk.lock(&below.join("lock")).expect("another directory");
    drop(held);
    let held = disk.lock(&path).expect("it was given back");
    assert!(disk.lock(&path).is_err());
    drop(second);
    assert!(
        disk.lock(&path).is_err(),
        "giving back one gives back no other"
    );
    drop(held);
    drop(disk.lock(&path).expect("it was given back"));
    match disk.lock(&dir.join("no/lock")) {
        Err(LockError::Disk(failed)) => {
            assert_eq!(failed.op, DiskOp::Lock);
            assert!(failed.is_not_found());
        }
        other => panic!("a lock in no directory must fail as such, not {other:?}"),
    }
}

pub(super) fn errors_say_what_and_where(disk: &dyn Disk, dir: &Path) {
    let no = dir.join("no");
    let to = dir.join("to");
    let failures = [
        (
            DiskOp::Open,
            error(disk.open(&no, OpenHow::Read), "opening nothing"),
        ),
        (
            DiskOp::Rename,
            error(disk.rename(&no, &to), "renaming nothing"),
        ),
        (
            DiskOp::Remove,
            error(disk.remove_file(&no), "removing nothing"),
        ),
        (
            DiskOp::Remove,
            error(disk.remove_dir_all(&no), "removing nothing"),
        ),
        (DiskOp::List, error(disk.list(&no), "listing nothing")),
        (
            DiskOp::SyncDir,
            error(disk.sync_dir(&no), "syncing nothing"),
        ),
        (
            DiskOp::Stat,
            error(disk.free_bytes(&no), "free space of nothing"),
        ),
    ];
    for (op, failed) in failures {
        assert_eq!(failed.op, op);
        assert_eq!(failed.path, no, "{op}");
        assert!(
            failed.is_not_found() && !failed.is_full() && !failed.is_out_of_files(),
            "{op}"
        );
        let text = failed.to_string();
        let start = format!("{op} {}: ", no.display());
        assert!(
            text.starts_with(&start),
            "{text:?} must start with {start:?}"
        );
    }

    let path = dir.join("file");
    create_with(disk, &path, b"abc");
    let file = disk.open(&path, OpenHow::Read).expect("the file is there");
    let failed = error(
        file.write_at(0, &[IoSlice::new(b"x")]),
        "writing to a reading handle",
    );
    assert_eq!((failed.op, failed.path), (DiskOp::Write, path));
}

pub(super) fn file_systems(disk: &dyn Disk, dir: &Path) {
    let file = create_with(disk, &dir.join("one"), b"abc");
    // Not every disk has one to be synced.
    let Some(file_system) = disk.file_system(dir).expect("the directory is there") else {
        return;
    };
    write(&*file, 3, b"def");
    create_with(disk, &dir.join("two"), b"ghi");
    for _ in 0..2 {
        file_system.sync().expect("a sync goes well");
    }
    assert_eq!(contents_at(disk, &dir.join("one")), b"abcdef");
    assert_eq!(contents_at(disk, &dir.join("two")), b"ghi");
    let failed = disk.file_system(&dir.join("no")).map(|_| ());
    assert!(error(failed, "the file system of nothing").is_not_found());
}
