//! `founding.json`: how far the founding of a cluster has come here. The format is in `docs/replication.md`.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;
use tidelog_disk::{Disk, DiskError, OpenHow, read_up_to};

use super::{Founder, hex, unhex};

const FILE: &str = "founding.json";
const VERSION: u64 = 1;
/// No such file is longer.
const LEN_MAX: usize = 64 << 10;
/// So many founders there are at most.
const FOUNDERS_MAX: usize = 1_000;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The directory has its id, which others are told.
    Fresh,
    /// It is settled to which cluster the directory belongs; there may be no state file yet.
    Agreed,
    /// There is a state file. Where it is missing, it was lost.
    Done,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundingFile {
    pub(crate) node_id: u32,
    pub(crate) directory_id: [u8; 16],
    pub(crate) phase: Phase,
    /// `None` as long as it is fresh.
    pub(crate) cluster_id: Option<[u8; 16]>,
    /// Empty as long as it is fresh.
    pub(crate) founders: Vec<Founder>,
    /// How many data directories the broker had lost when this was settled.
    pub(crate) generation: u32,
    /// The incarnation of the metadata group when this was settled.
    pub(crate) metadata_incarnation: u32,
}

/// Why the file says nothing.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("{} has version {version}, which this program does not know; it knows {VERSION}",
            path.display())]
    Version { path: PathBuf, version: u64 },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl FoundingFile {
    pub(crate) fn fresh(node_id: u32, directory_id: [u8; 16]) -> Self {
        Self {
            node_id,
            directory_id,
            phase: Phase::Fresh,
            cluster_id: None,
            founders: Vec::new(),
            generation: 0,
            metadata_incarnation: 1,
        }
    }

    /// What the file in a data directory says; `None` where there is none.
    pub(crate) fn read(disk: &dyn Disk, data_dir: &Path) -> Result<Option<Self>, FileError> {
        let path = data_dir.join(FILE);
        let file = match disk.open(&path, OpenHow::Read) {
            Ok(file) => file,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let bytes = read_up_to(&*file, 0, LEN_MAX + 1)?;
        if bytes.len() > LEN_MAX {
            let what = "it is too long";
            return Err(FileError::Damaged { path, what });
        }
        let damaged = |what| FileError::Damaged {
            path: path.clone(),
            what,
        };
        let json = serde_json::from_slice(&bytes).map_err(|_| damaged("it is no JSON"))?;
        let version = number(&json, "version").ok_or_else(|| damaged("it has no version"))?;
        if version != VERSION {
            return Err(FileError::Version { path, version });
        }
        let read = Self::from_json(&json);
        read.map(Some)
            .ok_or_else(|| damaged("a field is missing or wrong"))
    }

    /// Writes it so that it survives power loss, whole or not at all.
    pub(crate) fn write(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), DiskError> {
        let path = data_dir.join(FILE);
        let new = data_dir.join(format!("{FILE}.new"));
        let file = disk.open(&new, OpenHow::Create)?;
        let text = self.to_text();
        file.write_at(0, &[IoSlice::new(text.as_bytes())])?;
        // Left from a stop in the middle of this, the file may be longer.
        file.set_len(text.len() as u64)?;
        file.sync_data()?;
        disk.rename(&new, &path)?;
        disk.sync_dir(data_dir)?;
        sync_names_above(disk, data_dir)
    }

    pub(super) fn to_text(&self) -> String {
        let phase = match self.phase {
            Phase::Fresh => "fresh",
            Phase::Agreed => "agreed",
            Phase::Done => "done",
        };
        let founders = self.founders.iter().map(|founder| {
            json!({"node_id": founder.node_id, "directory_id": hex(&founder.directory_id)})
        });
        let mut json = json!({
            "version": VERSION,
            "node_id": self.node_id,
            "directory_id": hex(&self.directory_id),
            "phase": phase,
        });
        if let Some(cluster_id) = &self.cluster_id {
            json["cluster_id"] = hex(cluster_id).into();
            json["founders"] = founders.collect();
            json["generation"] = self.generation.into();
            if self.metadata_incarnation > 1 {
                json["metadata_incarnation"] = self.metadata_incarnation.into();
            }
        }
        format!("{json}\n")
    }

    fn from_json(json: &Value) -> Option<Self> {
        let phase = match json.get("phase")?.as_str()? {
            "fresh" => Phase::Fresh,
            "agreed" => Phase::Agreed,
            "done" => Phase::Done,
            _ => return None,
        };
        let mut file = Self::fresh(node_id(json)?, id(json, "directory_id")?);
        file.phase = phase;
        if phase == Phase::Fresh {
            return Some(file);
        }
        file.cluster_id = Some(id(json, "cluster_id")?);
        file.generation = u32::try_from(number(json, "generation")?).ok()?;
        if json.get("metadata_incarnation").is_some() {
            file.metadata_incarnation =
                u32::try_from(number(json, "metadata_incarnation")?).ok()?;
            if file.metadata_incarnation == 0 {
                return None;
            }
        }
        let founders = json.get("founders")?.as_array()?;
        if founders.is_empty() || founders.len() > FOUNDERS_MAX {
            return None;
        }
        let founders = founders.iter().map(|founder| {
            Some(Founder {
                node_id: node_id(founder)?,
                directory_id: id(founder, "directory_id")?,
            })
        });
        file.founders = founders.collect::<Option<_>>()?;
        Some(file)
    }
}

/// Makes the data directory's own name survive power loss, and those of the directories above that were
/// made with it: as far up as there is nothing else in them. Without it the file could vanish with them,
/// and the directory would come back under another id.
fn sync_names_above(disk: &dyn Disk, data_dir: &Path) -> Result<(), DiskError> {
    for dir in data_dir.ancestors().skip(1) {
        disk.sync_dir(dir)?;
        if disk.list(dir).map_or(true, |entries| entries.len() > 1) {
            break;
        }
    }
    Ok(())
}

fn number(json: &Value, key: &str) -> Option<u64> {
    json.get(key)?.as_u64()
}

fn node_id(json: &Value) -> Option<u32> {
    let id = u32::try_from(number(json, "node_id")?).ok()?;
    (id > 0).then_some(id)
}

fn id(json: &Value, key: &str) -> Option<[u8; 16]> {
    unhex(json.get(key)?.as_str()?)
}

#[cfg(test)]
mod tests {
    use tidelog_sim::SimDisk;

    use super::*;

    fn agreed() -> FoundingFile {
        FoundingFile {
            phase: Phase::Agreed,
            cluster_id: Some([0xc1; 16]),
            founders: vec![
                Founder {
                    node_id: 1,
                    directory_id: [0xd1; 16],
                },
                Founder {
                    node_id: 2,
                    directory_id: [0xd2; 16],
                },
            ],
            generation: 3,
            ..FoundingFile::fresh(1, [0xd1; 16])
        }
    }

    fn dir() -> PathBuf {
        PathBuf::from("/srv/data")
    }

    fn disk_with(text: &[u8]) -> SimDisk {
        let disk = SimDisk::new(1);
        disk.create_dir_all(&dir()).unwrap();
        let file = disk.open(&dir().join(FILE), OpenHow::Create).unwrap();
        file.write_at(0, &[IoSlice::new(text)]).unwrap();
        disk
    }

    #[test]
    fn the_bytes_of_the_file_are_these() {
        let fresh = FoundingFile::fresh(1, [0xd1; 16]);
        for (file, golden) in [
            (&fresh, include_str!("golden/founding_v1_fresh.json")),
            (&agreed(), include_str!("golden/founding_v1_agreed.json")),
        ] {
            assert_eq!(file.to_text(), golden);
            let disk = disk_with(golden.as_bytes());
            assert_eq!(
                FoundingFile::read(&disk, &dir()).unwrap().as_ref(),
                Some(file)
            );
        }
    }

    #[test]
    fn what_was_written_survives_power_loss_and_replaces_what_was_there() {
        for seed in 0..20 {
            let disk = SimDisk::new(seed);
            disk.create_dir_all(&dir()).unwrap();
            assert_eq!(FoundingFile::read(&disk, &dir()).unwrap(), None);
            FoundingFile::fresh(1, [0xd1; 16])
                .write(&disk, &dir())
                .unwrap();
            agreed().write(&disk, &dir()).unwrap();
            disk.crash();
            let read = FoundingFile::read(&disk, &dir()).unwrap();
            assert_eq!(read, Some(agreed()));
        }
    }

    #[test]
    fn what_is_damaged_or_unknown_is_refused_by_name() {
        let good = agreed().to_text();
        for bad in [
            String::new(),
            "{".to_owned(),
            "[]".to_owned(),
            "x".repeat(LEN_MAX + 1),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace(
                "\"node_id\":1,\"directory_id\"",
                "\"node_id\":0,\"directory_id\"",
            ),
            good.replace("agreed", "almost"),
            good.replacen("d1d1", "D1d1", 1),
            good.replacen("c1c1", "c1", 1),
            good.replace("\"generation\":3", "\"generation\":-3"),
            good.replace("\"founders\":[", "\"others\":["),
        ] {
            let disk = disk_with(bad.as_bytes());
            let error = FoundingFile::read(&disk, &dir()).unwrap_err().to_string();
            assert!(error.contains("/srv/data/founding.json"), "{error}");
        }
    }
}
