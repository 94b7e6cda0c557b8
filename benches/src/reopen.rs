//! Opening a long log that was closed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tidelog_disk::OsDisk;
use tidelog_log::{Log, LogOptions};

use crate::figure::{Figure, Goal, in_turns};
use crate::fixtures::{Bench, fill, identity, new_log, timed};

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let dir = bench.dir()?;
    let mut log = new_log(dir.path())?;
    fill(&mut log, bench.size(4 << 30, 256 << 20))?;
    let end = log.close()?;
    let (values, baselines) = in_turns(
        bench.turns * 2 + 1,
        || {
            let (options, disk) = (LogOptions::default(), Arc::new(OsDisk));
            let (seconds, (log, _)) = timed(|| {
                Ok(Log::open_closed(
                    disk,
                    dir.path(),
                    identity(),
                    options,
                    end,
                )?)
            })?;
            anyhow::ensure!(log.end() == end, "the log ends elsewhere");
            // Without a close, the files are as they were.
            drop(log);
            Ok(seconds * 1e3)
        },
        || {
            let (seconds, ()) = timed(|| open_bare(dir.path()))?;
            Ok(seconds * 1e3)
        },
    )?;
    Ok(vec![Figure {
        name: "reopen.4GiB-after-close".to_owned(),
        unit: "ms",
        values,
        baseline: "bare open of the same files and read of their first pages",
        baselines,
        goal: Goal::Below(20.0),
    }])
}

fn open_bare(dir: &Path) -> anyhow::Result<()> {
    let mut page = vec![0; 4096];
    for entry in std::fs::read_dir(dir)? {
        let file = File::open(entry?.path())?;
        std::hint::black_box(file.read_at(&mut page, 0)?);
    }
    Ok(())
}
