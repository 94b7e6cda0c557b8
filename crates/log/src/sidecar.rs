//! The files beside the segments: derived, so never synced, and nothing is lost with them.

use std::io::IoSlice;
use std::path::Path;

use tidelog_disk::{Disk, DiskError, OpenHow, read_up_to};

/// The bytes of the file at `path`, or why there are none to be had. One longer than `len_max` is
/// not ours: it counts as empty.
pub(crate) fn read(disk: &dyn Disk, path: &Path, len_max: u64) -> Result<Vec<u8>, DiskError> {
    let file = disk.open(path, OpenHow::Read)?;
    let len = file.len()?.min(len_max.saturating_add(1));
    let bytes = read_up_to(&*file, 0, usize::try_from(len).unwrap_or(usize::MAX))?;
    Ok(if bytes.len() as u64 > len_max {
        Vec::new()
    } else {
        bytes
    })
}

/// Writes `bytes` at `at` into the file at `path`, and cuts off what lies behind. Not synced.
pub(crate) fn write(disk: &dyn Disk, path: &Path, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
    let file = disk.open(path, OpenHow::Create)?;
    file.write_at(at, &[IoSlice::new(bytes)])?;
    file.set_len(at + bytes.len() as u64)
}
