//! Directories, logs, batches, time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::Bytes;
use tempfile::TempDir;
use tidelog_disk::OsDisk;
use tidelog_log::{Log, LogIdentity, LogOptions};
use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, PartitionId, ProducedBatch, Timestamp, TopicId,
    validate_produced,
};

pub(crate) const RECORD_BYTES: usize = 1024;
pub(crate) const MIB: f64 = 1_048_576.0;

/// How it is measured, and where.
pub(crate) struct Bench {
    dir: PathBuf,
    pub(crate) quick: bool,
    pub(crate) turns: usize,
    pub(crate) file_system: String,
}

impl Bench {
    pub(crate) fn new(
        dir: Option<PathBuf>,
        quick: bool,
        turns: Option<usize>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let dir = match dir {
            Some(dir) => dir,
            None => program
                .parent()
                .context("a program is in a directory")?
                .to_owned(),
        };
        let file_system = file_system_of(&dir)?;
        if file_system == "tmpfs" || file_system == "ramfs" {
            bail!(
                "{} is in memory, where a sync costs nothing; give another --dir",
                dir.display()
            );
        }
        let turns = turns.unwrap_or(if quick { 1 } else { 5 }).max(1);
        Ok(Self {
            dir,
            quick,
            turns,
            file_system,
        })
    }

    /// A new directory on the disk, removed when dropped.
    pub(crate) fn dir(&self) -> anyhow::Result<TempDir> {
        Ok(tempfile::Builder::new()
            .prefix("tidelog-bench-")
            .tempdir_in(&self.dir)?)
    }

    /// The first in a real run, the second in a quick one.
    pub(crate) fn size(&self, real: usize, quick: usize) -> usize {
        if self.quick { quick } else { real }
    }
}

/// The type of the file system that holds `dir`, as the kernel's table of mounts has it.
fn file_system_of(dir: &Path) -> anyhow::Result<String> {
    let dir = dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let holds = mounted.filter(|(point, _)| dir.starts_with(point));
    let nearest = holds.max_by_key(|(point, _)| point.len());
    let (_, kind) = nearest.context("the directory is on no mounted file system")?;
    Ok(kind.to_owned())
}

/// How long `work` took, in seconds.
pub(crate) fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let began = now();
    let done = work()?;
    Ok((began.elapsed().as_secs_f64(), done))
}

pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "this is a benchmark")]
    Instant::now()
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn float(count: usize) -> f64 {
    count as f64
}

/// A batch of so many records of 1 KiB, as a client sends it.
pub(crate) fn batch_of(records: usize) -> anyhow::Result<Bytes> {
    let value = vec![7; RECORD_BYTES];
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        builder.push(Timestamp::from_millis(0), None, Some(&value), &[])?;
    }
    Ok(builder.build()?)
}

pub(crate) fn produced(bytes: &Bytes) -> anyhow::Result<ProducedBatch> {
    let limits = BatchLimits {
        batch_bytes_max: 4 << 20,
        ..BatchLimits::default()
    };
    Ok(validate_produced(bytes.clone(), &limits)?)
}

pub(crate) fn identity() -> LogIdentity {
    LogIdentity {
        cluster_id: [1; 16],
        topic_id: TopicId::from_bytes([2; 16]),
        partition: PartitionId::new(0),
        incarnation: 1,
    }
}

pub(crate) fn new_log(dir: &Path) -> anyhow::Result<Log> {
    let now = Timestamp::from_millis(0);
    let options = LogOptions::default();
    Ok(Log::create(
        Arc::new(OsDisk),
        dir,
        identity(),
        options,
        now,
    )?)
}

/// Fills a log with batches of 64 records, without a sync, until it has so many bytes.
pub(crate) fn fill(log: &mut Log, bytes: usize) -> anyhow::Result<()> {
    let batch = batch_of(64)?;
    let mut batches = [produced(&batch)?];
    let mut written = 0;
    while written < bytes {
        log.append(&mut batches, Timestamp::from_millis(0))?;
        written += batch.len();
    }
    Ok(())
}
