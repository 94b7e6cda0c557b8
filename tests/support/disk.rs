//! Disks that are small, and syncs that fail, under real processes.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal};

/// A word on stderr that no test run hides.
#[allow(
    clippy::explicit_write,
    reason = "what the macro prints is hidden when a test passes"
)]
pub fn skip(why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").unwrap();
}

/// A small file system in memory.
pub struct Mounted {
    pub dir: PathBuf,
}

impl Mounted {
    /// `None` where this process may not mount.
    pub fn tmpfs(dir: &Path, options: &str) -> Option<Self> {
        fs::create_dir(dir).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tidelog-test"])
            .arg(dir)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self {
                dir: dir.to_owned(),
            });
        }
        skip("this process may not mount a small file system to fill it up");
        None
    }

    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.dir).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Writes to a file of nobody's until no more than this is free.
    pub fn fill_up_to(&self, free: u64) {
        let path = self.dir.join("ballast");
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        while self.free() > free {
            let len = (self.free() - free).min(1 << 20);
            if file
                .write_all(&vec![1; usize::try_from(len).unwrap()])
                .is_err()
            {
                return;
            }
        }
    }

    pub fn remove_ballast(&self) {
        fs::remove_file(self.dir.join("ballast")).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.dir).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Makes the syncs of a running process fail or hang, from outside, for as long as this lives.
pub struct BadSyncs {
    strace: Child,
    /// Held open: `strace` tells of each new thread, and dies when nobody listens.
    _said: BufReader<ChildStderr>,
}

impl BadSyncs {
    /// Each fails. `None` where there is no `strace`, or it may not.
    pub fn fail(pid: u32) -> Option<Self> {
        Self::inject(pid, "error=EIO")
    }

    /// Each takes two minutes, or until this is dropped.
    pub fn hang(pid: u32) -> Option<Self> {
        Self::inject(pid, "delay_enter=120000000")
    }

    fn inject(pid: u32, what: &str) -> Option<Self> {
        let mut strace = Command::new("strace")
            .args(["-f", "-e", "trace=fdatasync,syncfs", "-e"])
            .arg(format!("inject=fdatasync,syncfs:{what}"))
            .args(["-o", "/dev/null", "-p"])
            .arg(pid.to_string())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let mut said = String::new();
        let mut stderr = BufReader::new(strace.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        if said.contains("attached") {
            return Some(Self {
                strace,
                _said: stderr,
            });
        }
        strace.wait().unwrap();
        None
    }
}

impl Drop for BadSyncs {
    fn drop(&mut self) {
        // It lets go of the process when it is asked to end.
        let pid = Pid::from_child(&self.strace);
        let _gone = rustix::process::kill_process(pid, Signal::INT);
        drop(self.strace.wait());
    }
}
