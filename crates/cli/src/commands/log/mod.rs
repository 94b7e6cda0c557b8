//! `tidelog log`: the files of a data directory, without a broker.

mod dump;
mod inspect;
mod repair;
mod verify;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskError, OsDisk};
use tidelog_log::offline::{self, LOCK_FILE, Observer, Problem, STATE_DIR, Severity};
use tidelog_log::state::BrokerState;

use crate::failure::{Exit, Failure};
use crate::output::numbers::counted;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum LogCommand {
    /// Show the segments of logs, and what is kept beside them.
    ///
    /// Only reads; a broker may run on the directory meanwhile.
    Inspect(inspect::InspectArgs),
    /// Check every byte, and name every problem with file, position and offset.
    ///
    /// Only reads; a broker may run on the directory meanwhile. Exits with 5 when data is damaged.
    Verify(verify::VerifyArgs),
    /// Print the batches or records of a partition.
    ///
    /// Only reads; a broker may run on the directory meanwhile.
    Dump(dump::DumpArgs),
    /// Put right what can be, and keep every byte that is cut beside. Without --yes, only say what
    /// would be done.
    ///
    /// No broker may run on the directory.
    Repair(repair::RepairArgs),
}

pub(crate) fn run(command: LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Inspect(args) => inspect::run(&args),
        LogCommand::Verify(args) => verify::run(&args),
        LogCommand::Dump(args) => dump::run(&args),
        LogCommand::Repair(args) => repair::run(&args),
    }
}

/// What a directory was taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Taken {
    /// A data directory with these partitions.
    DataDir { partitions: Vec<PathBuf> },
    /// The directory of one partition, in this data directory, if it is in one.
    Partition { data_dir: Option<PathBuf> },
}

/// What directory commands want.
const WHAT_DIR: &str = "give it the directory of tidelog serve --data-dir, or one below it";

/// A directory that commands work on.
#[derive(Debug)]
struct Target {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    taken: Taken,
}

impl Target {
    /// Finds out what `dir` is, and says so on stderr.
    fn open(dir: &Path) -> Result<Self, Failure> {
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        // So that the directory above is known also for `.`.
        let dir = dir.canonicalize().map_err(|error| {
            let what = format!("{}: {error}", dir.display());
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => {
                    Failure::new(Exit::Refused, what).hint(WHAT_DIR)
                }
                _ => Failure::failed(what),
            }
        })?;
        if !dir.is_dir() {
            let what = format!("{} is a file and no directory", dir.display());
            return Err(Failure::new(Exit::Refused, what).hint(WHAT_DIR));
        }
        let taken = if offline::is_partition_dir(&*disk, &dir).map_err(disk_failed)? {
            let above = dir.parent().filter(|above| is_data_dir(&*disk, above));
            let data_dir = above.map(Path::to_owned);
            Taken::Partition { data_dir }
        } else if offline::is_data_dir(&*disk, &dir).map_err(disk_failed)? {
            let partitions = offline::partitions_of(&*disk, &dir).map_err(disk_failed)?;
            Taken::DataDir { partitions }
        } else {
            let what = format!("{} is no data directory and no partition's", dir.display());
            return Err(Failure::new(Exit::Refused, what).hint(WHAT_DIR));
        };
        let target = Self { disk, dir, taken };
        target.say();
        Ok(target)
    }

    fn say(&self) {
        let dir = self.dir.display();
        match &self.taken {
            Taken::DataDir { partitions } => {
                let partitions = counted(partitions.len() as u64, "partition");
                say!("{dir} is a data directory with {partitions}");
            }
            Taken::Partition { data_dir: Some(_) } => {
                say!("{dir} is a partition of the data directory above it");
            }
            Taken::Partition { data_dir: None } => say!(
                "{dir} is a partition without a data directory around it: it is not known what of \
                 its end was durable"
            ),
        }
    }

    /// Says so when the end of logs may be moving.
    fn say_if_in_use(&self) {
        let in_use = self
            .data_dir()
            .is_some_and(|data_dir| data_dir.join("addresses.json").exists());
        if in_use {
            say!(
                "a broker runs on it, or was killed: while one runs, what it is just writing at \
                 the ends of logs may be told as torn"
            );
        }
    }

    fn data_dir(&self) -> Option<&Path> {
        match &self.taken {
            Taken::DataDir { .. } => Some(&self.dir),
            Taken::Partition { data_dir } => data_dir.as_deref(),
        }
    }

    fn partitions(&self) -> Vec<PathBuf> {
        match &self.taken {
            Taken::DataDir { partitions } => partitions.clone(),
            Taken::Partition { .. } => vec![self.dir.clone()],
        }
    }

    /// What the state file says, where there is one.
    fn state(&self, observer: &mut dyn Observer) -> Result<Option<BrokerState>, Failure> {
        let Some(data_dir) = self.data_dir() else {
            return Ok(None);
        };
        offline::read_state(&*self.disk, data_dir, observer).map_err(disk_failed)
    }

    /// How long all segments are together.
    fn segment_bytes(&self) -> u64 {
        let len_of = |path: PathBuf| {
            let is_segment = path.extension().is_some_and(|extension| extension == "log");
            let len = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            if is_segment { len } else { 0 }
        };
        let files = self.partitions().into_iter().flat_map(|dir| {
            let entries = self.disk.list(&dir).unwrap_or_default().into_iter();
            entries.map(move |entry| dir.join(entry.name))
        });
        files.map(len_of).sum()
    }
}

fn is_data_dir(disk: &dyn Disk, dir: &Path) -> bool {
    let entries = disk.list(dir).unwrap_or_default();
    entries.iter().any(|entry| {
        (entry.is_dir && entry.name == STATE_DIR) || (!entry.is_dir && entry.name == LOCK_FILE)
    })
}

fn disk_failed(error: DiskError) -> Failure {
    Failure::failed(error.to_string())
}

/// A problem as JSON.
fn problem_json(problem: &Problem) -> serde_json::Value {
    serde_json::json!({
        "kind": "problem",
        "severity": problem.severity.name(),
        "file": problem.path.display().to_string(),
        "position": problem.position,
        "offset": problem.offset.map(|offset| offset.get()),
        "what": problem.what.to_string(),
    })
}

/// Counts problems by how bad they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    damaged: u64,
    derived: u64,
    notes: u64,
}

impl Counts {
    fn add(&mut self, problem: &Problem) {
        match problem.severity {
            Severity::Damage => self.damaged += 1,
            Severity::Derived => self.derived += 1,
            Severity::Note => self.notes += 1,
        }
    }

    /// Exit code 5 where data is damaged.
    fn result(self, dir: &Path) -> Result<(), Failure> {
        if self.damaged == 0 {
            return Ok(());
        }
        let places = counted(self.damaged, "damaged place");
        let dir = dir.display();
        Err(
            Failure::new(Exit::Damaged, format!("{places} in {dir}")).hint(format!(
                "see what can be done with: tidelog log repair {dir}"
            )),
        )
    }
}

/// The name of a partition's directory.
fn name_of(dir: &Path) -> String {
    dir.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
