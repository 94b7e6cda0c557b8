//! What a reader of old data does to an appender of another partition.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidelog_broker::Broker;
use tokio::runtime::Runtime;

use crate::broker::{append, create, open, runtime};
use crate::figure::{Figure, Goal, in_turns, percentile};
use crate::fixtures::{Bench, batch_of, now};

const WRITTEN: &str = "written";
const OLD: &str = "old";

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let dir = bench.dir()?;
    let runtime = runtime()?;
    let broker = open(dir.path())?;
    let bytes = bench.size(1 << 30, 128 << 20);
    runtime.block_on(async {
        create(&broker, WRITTEN, 1, &[]).await?;
        create(&broker, OLD, 1, &[("segment.bytes", "16777216")]).await?;
        let batch = batch_of(512)?;
        for _ in 0..bytes / batch.len() {
            append(&broker, OLD, 0, batch.clone()).await?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let count = bench.size(4000, 400);
    let (values, baselines) = in_turns(
        bench.turns,
        || with_cold_reader(&runtime, &broker, dir.path(), count),
        || p99(&runtime, &broker, count),
    )?;
    runtime.block_on(broker.stop())?;
    Ok(vec![Figure {
        name: "cold-reader.append-p99".to_owned(),
        unit: "ms",
        values,
        baseline: "the same appender without a reader",
        baselines,
        goal: Goal::RatioAtMost(1.5),
    }])
}

fn p99(runtime: &Runtime, broker: &Broker, count: usize) -> anyhow::Result<f64> {
    let batch = batch_of(1)?;
    runtime.block_on(async {
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            let began = now();
            append(broker, WRITTEN, 0, batch.clone()).await?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(percentile(&mut took, 0.99))
    })
}

fn with_cold_reader(
    runtime: &Runtime,
    broker: &Broker,
    dir: &Path,
    count: usize,
) -> anyhow::Result<f64> {
    drop_from_cache(&dir.join("data").join(format!("{OLD}-0")))?;
    let stop = Arc::new(AtomicBool::new(false));
    let (told, dir) = (stop.clone(), dir.join("data").join(format!("{OLD}-0")));
    let handle = broker.partition(OLD, 0)?;
    let reader = runtime.spawn(async move {
        let mut read = 0;
        let mut from = handle.ends().log_start;
        while !told.load(Ordering::Relaxed) {
            let data = handle.read(from, 1 << 20).await?;
            read += data.batches.len_bytes();
            if data.batches.is_empty() {
                // Once more, from the disk.
                let dir = dir.clone();
                tokio::task::spawn_blocking(move || drop_from_cache(&dir)).await??;
                from = handle.ends().log_start;
            } else {
                from = data.batches.next_offset;
            }
            // About as fast as a client takes it.
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Ok::<_, anyhow::Error>(read)
    });
    let p99 = p99(runtime, broker, count);
    stop.store(true, Ordering::Relaxed);
    let read = runtime.block_on(reader)??;
    anyhow::ensure!(read > 0, "the reader read nothing meanwhile");
    p99
}

/// Makes the system forget the pages of the files in `dir`, as far as they are on the disk.
fn drop_from_cache(dir: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let file = File::open(path)?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}
