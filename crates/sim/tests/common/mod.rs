//! Shortcuts over the traits.
#![allow(dead_code, reason = "each test program uses some of them")]

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, DiskFile, OpenHow};
use tidelog_sim::SimDisk;

/// A disk with the durable, empty directory `/d`.
pub(crate) fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(Path::new("/d"))
        .expect("nothing fails here");
    disk.sync_all();
    disk
}

pub(crate) fn create(disk: &SimDisk, path: &str) -> Arc<dyn DiskFile> {
    disk.open(Path::new(path), OpenHow::CreateNew)
        .expect("nothing fails here")
}

/// A file that is durable, name and all.
pub(crate) fn create_durable(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = create(disk, path);
    write(&*file, 0, bytes).expect("nothing fails here");
    file.sync_data().expect("nothing fails here");
    disk.sync_dir(Path::new(path).parent().expect("nothing fails here"))
        .expect("nothing fails here");
    file
}

pub(crate) fn write(file: &dyn DiskFile, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
    file.write_at(at, &[IoSlice::new(bytes)])
}

pub(crate) fn contents(disk: &SimDisk, path: &str) -> Vec<u8> {
    disk.contents(Path::new(path))
}

pub(crate) fn names(disk: &SimDisk) -> Vec<String> {
    let name = |path: &Path| path.to_str().expect("nothing fails here").to_owned();
    disk.files().iter().map(|path| name(path)).collect()
}

/// Everything that can be seen of a disk.
pub(crate) fn image(disk: &SimDisk) -> Vec<(std::path::PathBuf, Vec<u8>, Vec<u8>)> {
    let look = |path: std::path::PathBuf| {
        let (seen, durable) = (disk.contents(&path), disk.durable_contents(&path));
        (path, seen, durable)
    };
    disk.files().into_iter().map(look).collect()
}
