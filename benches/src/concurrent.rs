//! Many appends at a time that share their syncs: appenders of one partition against one of them,
//! and a thousand partitions against one sync for each file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use tidelog_broker::{Acks, Broker};
use tidelog_disk::{Disk, OsDisk};
use tokio::runtime::Runtime;

use crate::append::reserved_file;
use crate::broker::{TOPIC, append, append_with, create, open, runtime};
use crate::figure::{Figure, Goal, in_turns, percentile};
use crate::fixtures::{Bench, batch_of, float, now};

const APPENDERS: usize = 64;
const PARTITIONS: u32 = 1000;

pub(crate) fn appenders(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let dir = bench.dir()?;
    let runtime = runtime()?;
    let broker = open(dir.path())?;
    runtime.block_on(create(&broker, TOPIC, 1, &[]))?;
    let time = Duration::from_millis(if bench.quick { 300 } else { 1500 });
    let same = |_: usize, _: usize| 0;
    let (values, baselines) = in_turns(
        bench.turns,
        || rate(&runtime, &broker, APPENDERS, time, same),
        || rate(&runtime, &broker, 1, time, same),
    )?;
    runtime.block_on(broker.stop())?;
    Ok(vec![Figure {
        name: "appenders.64-synced".to_owned(),
        unit: "appends/s",
        values,
        baseline: "one appender, synced",
        baselines,
        goal: Goal::RatioAtLeast(20.0),
    }])
}

/// One appender that waits for the write alone, against one that waits for the sync.
pub(crate) fn leader_acks(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let dir = bench.dir()?;
    let runtime = runtime()?;
    let broker = open(dir.path())?;
    runtime.block_on(create(&broker, TOPIC, 1, &[]))?;
    let (batch, count) = (batch_of(1)?, bench.size(4000, 400));
    let p50 = |acks| {
        runtime.block_on(async {
            let mut took = Vec::with_capacity(count);
            for _ in 0..count {
                let began = now();
                append_with(acks, &broker, TOPIC, 0, batch.clone()).await?;
                took.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok(percentile(&mut took, 0.5))
        })
    };
    let (values, baselines) = in_turns(bench.turns, || p50(Acks::Leader), || p50(Acks::All))?;
    runtime.block_on(broker.stop())?;
    Ok(vec![Figure {
        name: "leader-acks.p50".to_owned(),
        unit: "ms",
        values,
        baseline: "the same appender with acks=all",
        baselines,
        goal: Goal::RatioAtMost(0.5),
    }])
}

pub(crate) fn partitions(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let dir = bench.dir()?;
    let runtime = runtime()?;
    let broker = open(dir.path())?;
    runtime.block_on(create(&broker, TOPIC, PARTITIONS, &[]))?;
    let bytes = batch_of(1)?;
    let files: Vec<_> = (0..PARTITIONS)
        .map(|number| reserved_file(&dir.path().join(format!("bare-{number}")), 1 << 20))
        .collect::<Result<_, _>>()?;
    let time = Duration::from_millis(if bench.quick { 500 } else { 2000 });
    // Each appender goes round its own partitions; all together they are written round-robin.
    let in_flight = PARTITIONS as usize;
    let robin = |appender: usize, _: usize| u32::try_from(appender).unwrap_or_default();
    let ours = || rate(&runtime, &broker, in_flight, time, robin);
    let mut round = 0;
    let mut bare = |sync: &dyn Fn(Option<&File>) -> anyhow::Result<()>| {
        let began = now();
        let mut count = 0;
        while began.elapsed() < time {
            for file in &files {
                file.write_all_at(&bytes, (round * bytes.len()) as u64)?;
                sync(Some(file))?;
            }
            sync(None)?;
            count += files.len();
            round += 1;
        }
        Ok(float(count) / began.elapsed().as_secs_f64())
    };
    let each = |file: Option<&File>| Ok(file.map_or(Ok(()), File::sync_data)?);
    let (values, baselines) = in_turns(bench.turns, ours, || bare(&each))?;
    let mut figures = vec![Figure {
        name: "partitions.1000-round-robin-synced".to_owned(),
        unit: "appends/s",
        values,
        baseline: "bare loop of write + fdatasync, a file each",
        baselines,
        goal: Goal::RatioAtLeast(10.0),
    }];
    if let Some(file_system) = OsDisk.file_system(dir.path())? {
        let together = |file: Option<&File>| match file {
            Some(_) => Ok(()),
            None => Ok(file_system.sync()?),
        };
        let (values, baselines) = in_turns(bench.turns, ours, || bare(&together))?;
        figures.push(Figure {
            name: "partitions.1000-beside-one-sync-a-round".to_owned(),
            unit: "appends/s",
            values,
            baseline: "bare loop of a write to each file, then one syncfs",
            baselines,
            goal: Goal::None,
        });
    }
    runtime.block_on(broker.stop())?;
    Ok(figures)
}

/// Acknowledged appends of one record of 1 KiB a second, of so many appenders that each wait for
/// their answer before the next; `partition` says where an appender's next one goes.
fn rate(
    runtime: &Runtime,
    broker: &Broker,
    appenders: usize,
    time: Duration,
    partition: impl Fn(usize, usize) -> u32 + Copy + Send + 'static,
) -> anyhow::Result<f64> {
    let bytes = batch_of(1)?;
    let answered = Arc::new(AtomicUsize::new(0));
    let began = now();
    let tasks = (0..appenders).map(|appender| {
        let (broker, bytes, answered) = (broker.clone(), bytes.clone(), answered.clone());
        runtime.spawn(async move {
            let mut count = 0;
            while began.elapsed() < time {
                append(&broker, TOPIC, partition(appender, count), bytes.clone()).await?;
                count += 1;
            }
            answered.fetch_add(count, Ordering::Relaxed);
            Ok::<_, anyhow::Error>(())
        })
    });
    for ended in runtime.block_on(try_join_all(tasks))? {
        ended?;
    }
    Ok(float(answered.load(Ordering::Relaxed)) / began.elapsed().as_secs_f64())
}
