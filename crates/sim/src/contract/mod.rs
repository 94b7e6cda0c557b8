//! What every [`Disk`] must do, checked in one place for all of them.
//!
//! Only what any program can see while nothing fails is checked here; what survives power loss is
//! the simulated disk's own affair.

mod files;
mod names;
mod slices;

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow};

/// One part of the suite, with a directory of its own.
type Check = fn(&dyn Disk, &Path);

/// Checks that `disk` keeps the documented contract of [`Disk`] and [`DiskFile`]. Works in new
/// directories below `dir`, which it creates if need be and leaves behind.
///
/// # Panics
/// When it does not; the message says in what.
pub fn check_disk(disk: &dyn Disk, dir: &Path) {
    let checks: [(&str, Check); 21] = [
        ("open_modes", files::open_modes),
        ("reads_end_at_the_end", files::reads_end_at_the_end),
        ("vectored_writes", files::vectored_writes),
        ("writes_extend", files::writes_extend),
        ("set_len", files::set_len),
        ("reserve", files::reserve),
        ("handles_share_the_file", files::handles_share_the_file),
        (
            "a_reading_handle_writes_nothing",
            files::a_reading_handle_writes_nothing,
        ),
        ("absurd_lengths", files::absurd_lengths),
        ("freezing", slices::freezing),
        (
            "frozen_bytes_cannot_change",
            slices::frozen_bytes_cannot_change,
        ),
        ("slices", slices::slices),
        (
            "a_map_is_longer_than_the_file",
            slices::a_map_is_longer_than_the_file,
        ),
        ("slices_outlive_the_file", slices::slices_outlive_the_file),
        ("directories", names::directories),
        ("rename", names::rename),
        ("remove", names::remove),
        ("list", names::list),
        ("locks", names::locks),
        ("file_systems", names::file_systems),
        (
            "errors_say_what_and_where",
            names::errors_say_what_and_where,
        ),
    ];
    for (name, check) in checks {
        let dir = dir.join(name);
        disk.create_dir_all(&dir).expect("a directory can be made");
        check(disk, &dir);
    }
}

/// A new file.
fn create(disk: &dyn Disk, path: &Path) -> Arc<dyn DiskFile> {
    disk.open(path, OpenHow::CreateNew)
        .expect("a new file can be made")
}

/// A new file that holds `bytes`.
fn create_with(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = create(disk, path);
    write(&*file, 0, bytes);
    file
}

fn write(file: &dyn DiskFile, at: u64, bytes: &[u8]) {
    file.write_at(at, &[IoSlice::new(bytes)])
        .expect("a write goes well");
}

fn len(file: &dyn DiskFile) -> u64 {
    file.len().expect("a length is there")
}

/// All bytes of the file.
fn contents(file: &dyn DiskFile) -> Vec<u8> {
    let len = usize::try_from(len(file)).expect("the file is small");
    let bytes = tidelog_disk::read_up_to(file, 0, len).expect("a read goes well");
    assert_eq!(bytes.len(), len, "a read ends only at the end of the file");
    bytes
}

/// What is at `path`.
fn contents_at(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    contents(&*disk.open(path, OpenHow::Read).expect("the file is there"))
}

/// The error, which must be there.
fn error<T>(result: Result<T, DiskError>, of: &str) -> DiskError {
    match result {
        Ok(_) => panic!("{of} must fail"),
        Err(error) => error,
    }
}

/// Whether `act` panics.
fn panics(act: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err()
}
