//! A sync of the file system must make the device flush its own cache, or power loss takes what was
//! acknowledged.
//!
//! Whether it does is counted by the device. So this makes file systems of their own: it needs root,
//! loop devices and `unshare`, and tests those whose `mkfs` is installed; elsewhere nothing.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidelog_disk::{Disk, OpenHow, OsDisk};

/// Where the second process finds the mounted file system, and the counters of its device.
const DIR: &str = "TIDELOG_TEST_FLUSH_DIR";
const STAT: &str = "TIDELOG_TEST_FLUSH_STAT";
/// What the script says where it cannot make a file system.
const UNABLE: i32 = 77;

/// In a mount namespace of its own, so that nothing is left behind.
const SCRIPT: &str = r#"
image=$1; mount=$2; mkfs=$3; shift 3
truncate -s 400M "$image" && loop=$(losetup --find --show "$image") || exit 77
trap 'umount "$mount" 2>/dev/null; losetup -d "$loop"' EXIT
$mkfs "$loop" >/dev/null 2>&1 && mount "$loop" "$mount" || exit 77
export TIDELOG_TEST_FLUSH_DIR=$mount
export TIDELOG_TEST_FLUSH_STAT=/sys/block/${loop##*/}/stat
"$@"
"#;

#[test]
fn every_sync_of_a_file_system_flushes_the_device() {
    if let (Ok(dir), Ok(stat)) = (std::env::var(DIR), std::env::var(STAT)) {
        return count_flushes(&PathBuf::from(dir), Path::new(&stat));
    }
    for mkfs in [
        "mkfs.xfs -q -f",
        "mkfs.ext4 -q -F",
        "mkfs.ext4 -q -F -O ^has_journal",
        "mkfs.btrfs -q -f",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        let status = Command::new("unshare")
            .args(["--mount", "bash", "-c", SCRIPT, "flush"])
            .arg(dir.path().join("image"))
            .args([mount.as_os_str(), mkfs.as_ref()])
            .arg(std::env::current_exe().unwrap())
            .arg("every_sync_of_a_file_system_flushes_the_device")
            .status();
        match status.map(|status| status.code()) {
            Ok(Some(0)) => println!("{mkfs}: every sync flushes"),
            // `unshare` itself ends with 1 where it may not, as the test does that fails.
            Ok(Some(UNABLE)) | Err(_) => println!("{mkfs}: not tested"),
            Ok(_) if !may_mount() => println!("{mkfs}: not tested, it takes root"),
            Ok(code) => panic!("{mkfs}: {code:?}"),
        }
    }
}

fn may_mount() -> bool {
    let unshared = Command::new("unshare").args(["--mount", "true"]).output();
    unshared.is_ok_and(|output| output.status.success())
}

/// Appends to blocks that were written before, many times within a tick of the kernel's clock: then
/// there is nothing for a file system to log, and some flush only what they log.
fn count_flushes(dir: &Path, stat: &Path) {
    let flushes = || -> u64 {
        let stat = std::fs::read_to_string(stat).unwrap();
        stat.split_whitespace().nth(15).unwrap().parse().unwrap()
    };
    let file_system = OsDisk.file_system(dir).unwrap().unwrap();
    assert!(file_system.holds(dir).unwrap() && !file_system.holds(Path::new("/proc")).unwrap());
    let zeros = vec![0; 1 << 20];
    let files: Vec<_> = (0..16)
        .map(|n| {
            let path = dir.join(format!("{n}.log"));
            let file = OsDisk.open(&path, OpenHow::Create).unwrap();
            file.write_at(0, &[IoSlice::new(&zeros)]).unwrap();
            file.sync_data().unwrap();
            file
        })
        .collect();
    let unflushed = (0..200_u64).filter(|round| {
        for file in &files {
            let written = file.write_at(round * 1024, &[IoSlice::new(&[7; 1024])]);
            written.unwrap();
        }
        let before = flushes();
        file_system.sync().unwrap();
        flushes() == before
    });
    assert_eq!(
        unflushed.count(),
        0,
        "of 200 syncs came back without a flush"
    );
}
