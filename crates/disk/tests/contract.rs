//! The operating system's disk keeps the contract of `Disk`.

use tidelog_disk::OsDisk;
use tidelog_sim::contract::check_disk;

#[test]
fn the_operating_systems_disk_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    check_disk(&OsDisk, dir.path());
}
