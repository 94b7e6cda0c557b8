//! What only the operating system's disk does: maps without copies, blocks, foreign names.

use std::ffi::OsStr;
use std::io::{ErrorKind, IoSlice};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, DiskOp, LockError, OpenHow, OsDisk};

fn new_file(dir: &tempfile::TempDir) -> Arc<dyn DiskFile> {
    let path = dir.path().join("file");
    OsDisk
        .open(&path, OpenHow::CreateNew)
        .expect("a new file can be made")
}

fn write(file: &dyn DiskFile, at: u64, bytes: &[u8]) {
    file.write_at(at, &[IoSlice::new(bytes)])
        .expect("a write goes well");
}

#[test]
fn slices_share_the_one_map() {
    let dir = tempfile::tempdir().unwrap();
    let file = new_file(&dir);
    file.map(1 << 30).unwrap();
    write(&*file, 0, &[1; 5000]);
    file.freeze(5000);
    let one = file.slice(0, 5000).unwrap();
    write(&*file, 5000, &[2; 1 << 20]);
    file.freeze(5000 + (1 << 20));
    let two = file.slice(4096, 2000).unwrap();
    assert_eq!(one[4096..].as_ptr(), two.as_ptr(), "no copy is made");
    assert_eq!((one[4999], two[904]), (1, 2));
}

#[test]
fn concurrent_maps_end_up_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = new_file(&dir);
    write(&*file, 0, &[7; 4096]);
    file.freeze(4096);
    let start = std::sync::Barrier::new(8);
    let addresses: Vec<usize> = std::thread::scope(|scope| {
        let mapper = || {
            start.wait();
            file.map(4096).unwrap();
            file.slice(0, 4096).unwrap().as_ptr().addr()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(mapper)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        addresses.iter().all(|address| *address == addresses[0]),
        "{addresses:?}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn reserving_takes_blocks_below_the_present_length_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = new_file(&dir);
    let taken = || std::fs::metadata(file.path()).unwrap().blocks() * 512;
    file.set_len(1 << 20).unwrap();
    assert!(taken() < 1 << 19, "a mere length is a hole");
    file.reserve(1 << 20).unwrap();
    assert!(taken() >= 1 << 20, "{}", taken());
    file.reserve(3 << 20).unwrap();
    assert!(taken() >= 3 << 20, "{}", taken());
    assert_eq!(file.len().unwrap(), 3 << 20);
}

#[cfg(target_os = "linux")]
#[test]
fn foreign_names_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(OsStr::from_bytes(b"not\xffutf8")), b"").unwrap();
    new_file(&dir);
    let names: Vec<_> = OsDisk
        .list(dir.path())
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(names, ["file"]);
}

#[test]
fn a_lock_is_seen_by_other_programs_and_ours_sees_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let held = OsDisk.lock(&path).unwrap();
    let theirs = std::fs::File::open(&path).unwrap();
    assert!(theirs.try_lock().is_err());
    drop(held);
    theirs.try_lock().unwrap();
    let refused = OsDisk.lock(&path).unwrap_err();
    assert!(matches!(refused, LockError::Held { .. }));
    assert_eq!(
        refused.to_string(),
        format!("{} is locked by another process", path.display())
    );
}

#[test]
fn errors_are_sorted_by_what_to_do() {
    let error = |source: std::io::Error| DiskError::new(DiskOp::Write, "/x".as_ref(), source);
    let raw = |number| error(std::io::Error::from_raw_os_error(number));
    assert!(raw(28).is_full(), "ENOSPC");
    assert!(error(ErrorKind::QuotaExceeded.into()).is_full());
    assert!(
        raw(23).is_out_of_files() && raw(24).is_out_of_files(),
        "ENFILE, EMFILE"
    );
    assert!(raw(2).is_not_found(), "ENOENT");
    let eio = raw(5);
    assert!(!eio.is_full() && !eio.is_out_of_files() && !eio.is_not_found());
    assert!(eio.to_string().starts_with("write /x: "), "{eio}");
}

#[test]
fn a_directory_stays_locked_when_its_lock_file_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("LOCK");
    let lock = OsDisk.lock(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(OsDisk.lock(&path), Err(LockError::Held { .. })));
    drop(lock);
    OsDisk.lock(&path).unwrap();
}

#[test]
fn what_the_process_may_not_write_counts_as_full() {
    let too_large = std::io::Error::from_raw_os_error(27);
    let error = DiskError::new(DiskOp::Reserve, std::path::Path::new("f"), too_large);
    assert!(error.is_full(), "EFBIG");
}
