//! Saying where the broker listens: one JSON line on stdout, and a file in the data directory.

use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;
use tidelog_disk::{Disk, DiskError, OpenHow};

/// The file's name in the data directory.
const FILE: &str = "addresses.json";

/// What is said once the broker takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where gRPC listens.
    pub grpc_addr: SocketAddr,
    /// Where HTTP listens.
    pub http_addr: SocketAddr,
    /// Where others are told that the cluster port is, if there is one.
    pub cluster_addr: Option<String>,
    /// Where the data is, as an absolute path if it can be told.
    pub data_dir: PathBuf,
}

impl Ready {
    /// One line of JSON, with the line's end.
    pub fn line(&self) -> String {
        let mut line = json!({
            "grpc_addr": self.grpc_addr.to_string(),
            "http_addr": self.http_addr.to_string(),
            "data_dir": self.data_dir.display().to_string(),
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let Some(addr) = &self.cluster_addr {
            line["cluster_addr"] = addr.as_str().into();
        }
        format!("{line}\n")
    }

    /// Writes the line to stdout. Whoever started the broker and closed its stdout gets no line,
    /// and that is no reason to end.
    pub(crate) fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(self.line().as_bytes())?;
        out.flush()
    }

    /// Writes the line to `addresses.json` in the data directory: whole or not at all, replacing
    /// what a killed broker left. On a full disk there is no file, and the broker serves all the
    /// same: its help is needed to make space.
    pub(crate) fn write(&self, disk: &dyn Disk) -> Result<(), DiskError> {
        let (path, new) = paths(&self.data_dir);
        match self.try_write(disk, &path, &new) {
            Err(e) if e.is_full() => {
                tracing::warn!(error = %e, "the disk is full: addresses.json is not written");
                // What an earlier broker wrote is wrong now.
                for path in [new, path] {
                    match disk.remove_file(&path) {
                        Err(e) if !e.is_not_found() => return Err(e),
                        _ => {}
                    }
                }
                Ok(())
            }
            other => other,
        }
    }

    fn try_write(&self, disk: &dyn Disk, path: &Path, new: &Path) -> Result<(), DiskError> {
        let file = disk.open(new, OpenHow::Create)?;
        let line = self.line();
        file.write_at(0, &[IoSlice::new(line.as_bytes())])?;
        // Left from a stop in the middle of this, the file may be longer.
        file.set_len(line.len() as u64)?;
        disk.rename(new, path)
    }

    /// Removes `addresses.json`: nobody listens there any more.
    pub(crate) fn remove(&self, disk: &dyn Disk) -> Result<(), DiskError> {
        match disk.remove_file(&paths(&self.data_dir).0) {
            // There was no space for it.
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }
}

fn paths(data_dir: &Path) -> (PathBuf, PathBuf) {
    (data_dir.join(FILE), data_dir.join(format!("{FILE}.new")))
}

#[cfg(test)]
mod tests {
    use tidelog_disk::OsDisk;

    use super::*;

    #[test]
    fn the_file_replaces_a_longer_one_and_is_one_line_of_json() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("addresses.json.new"), "x".repeat(4096)).unwrap();
        let ready = Ready {
            grpc_addr: "127.0.0.1:1".parse().unwrap(),
            http_addr: "[::1]:2".parse().unwrap(),
            cluster_addr: Some("127.0.0.1:3".to_owned()),
            data_dir: dir.path().to_owned(),
        };
        ready.write(&OsDisk).unwrap();
        let text = std::fs::read_to_string(dir.path().join("addresses.json")).unwrap();
        assert_eq!(text, ready.line());
        assert_eq!(text.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["grpc_addr"], "127.0.0.1:1");
        assert_eq!(json["http_addr"], "[::1]:2");
        assert_eq!(json["cluster_addr"], "127.0.0.1:3");
        assert_eq!(json["pid"], std::process::id());
        ready.remove(&OsDisk).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn on_a_full_disk_there_is_no_file_and_no_wrong_one() {
        let disk = tidelog_sim::SimDisk::new(1);
        let data_dir = PathBuf::from("/data");
        disk.create_dir_all(&data_dir).unwrap();
        let ready = |port| Ready {
            grpc_addr: SocketAddr::from(([127, 0, 0, 1], port)),
            http_addr: SocketAddr::from(([127, 0, 0, 1], port)),
            cluster_addr: None,
            data_dir: data_dir.clone(),
        };
        ready(1).write(&disk).unwrap();
        let path = data_dir.join(FILE);
        assert_eq!(disk.contents(&path), ready(1).line().as_bytes());
        disk.set_free_bytes(Some(0));
        ready(2).write(&disk).unwrap();
        assert_eq!(disk.files(), Vec::<PathBuf>::new());
        ready(2).remove(&disk).unwrap();
        disk.set_free_bytes(None);
        ready(2).write(&disk).unwrap();
        assert_eq!(disk.contents(&path), ready(2).line().as_bytes());
    }
}
