//! The simulated disk keeps the contract of `Disk`.

use std::path::Path;

use tidelog_sim::SimDisk;
use tidelog_sim::contract::check_disk;

#[test]
fn the_simulated_disk_keeps_the_contract() {
    let disk = SimDisk::new(1);
    check_disk(&disk, Path::new("/data/contract"));
    disk.crash();
    check_disk(&disk, Path::new("/data/after a crash"));
}
