//! One log against a bare loop of the same system calls on the same bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use tidelog_disk::{Disk, OpenHow, OsDisk};
use tidelog_record::{Timestamp, crc32c};

use crate::figure::{Figure, Goal, in_turns};
use crate::fixtures::{Bench, MIB, batch_of, float, new_log, produced, timed};

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (records, sync) in [(16, false), (64, false), (16, true), (64, true)] {
        let bytes = batch_of(records)?;
        let count = if sync {
            bench.size(400, 50)
        } else {
            bench.size(256 << 20, 32 << 20) / bytes.len()
        };
        let ours = || append_to_log(bench, &bytes, count, sync);
        let limit = || append_bare(bench, &bytes, count, sync);
        // Short and wavering: more turns than the others get.
        let (values, baselines) = in_turns(bench.turns * 2 + 1, ours, limit)?;
        let (what, baseline, least) = if sync {
            ("synced-each", "bare loop of write + fdatasync", 1.0)
        } else {
            ("not-synced", "bare loop of CRC-32C + write", 0.9)
        };
        figures.push(Figure {
            name: format!("append.{what}.{records}x1KiB"),
            unit: "MiB/s",
            values,
            baseline,
            baselines,
            goal: Goal::RatioAtLeast(least),
        });
    }
    Ok(figures)
}

fn append_to_log(bench: &Bench, bytes: &Bytes, count: usize, sync: bool) -> anyhow::Result<f64> {
    let dir = bench.dir()?;
    let mut log = new_log(dir.path())?;
    let mut batch = [produced(bytes)?];
    let (seconds, ()) = timed(|| {
        for _ in 0..count {
            // The check of the CRC belongs to the append of a broker.
            anyhow::ensure!(crc32c(&[&bytes[21..]]) == batch[0].header().crc);
            log.append(&mut batch, Timestamp::from_millis(0))?;
            if sync {
                log.sync()?;
            }
        }
        Ok(())
    })?;
    Ok(float(count * bytes.len()) / MIB / seconds)
}

fn append_bare(bench: &Bench, bytes: &Bytes, count: usize, sync: bool) -> anyhow::Result<f64> {
    let dir = bench.dir()?;
    let file = reserved_file(&dir.path().join("bare"), (count * bytes.len()) as u64)?;
    let stored = produced(bytes)?.header().crc;
    let (seconds, ()) = timed(|| {
        for at in 0..count {
            if !sync {
                anyhow::ensure!(crc32c(&[&bytes[21..]]) == stored);
            }
            file.write_all_at(bytes, (at * bytes.len()) as u64)?;
            if sync {
                file.sync_data()?;
            }
        }
        Ok(())
    })?;
    Ok(float(count * bytes.len()) / MIB / seconds)
}

/// What a bare loop writes to: a file with its space taken, as a log has it.
pub(crate) fn reserved_file(path: &Path, len: u64) -> anyhow::Result<File> {
    OsDisk.open(path, OpenHow::CreateNew)?.reserve(len)?;
    Ok(File::options().write(true).open(path)?)
}
