//! Many appends at a time that share their syncs: appenders of one partition against one of them,
//! and a thousand partitions against one sync for each file.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use tidelog_broker::Broker;
use tokio::runtime::Runtime;

use crate::append::reserved_file;
use crate::broker::{TOPIC, append, create, open, runtime};
use crate::figure::{Figure, Goal, in_turns};
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
    let mut written = 0;
    // Each appender goes round its own partitions; all together they are written round-robin.
    let in_flight = PARTITIONS as usize;
    let robin = |appender: usize, _: usize| u32::try_from(appender).unwrap_or_default();
    let (values, baselines) = in_turns(
        bench.turns,
        || rate(&runtime, &broker, in_flight, time, robin),
        || {
            let began = now();
            let mut count = 0;
            while began.elapsed() < time {
                let file = &files[count % files.len()];
                file.write_all_at(&bytes, (written / files.len() * bytes.len()) as u64)?;
                file.sync_data()?;
                count += 1;
                written += 1;
            }
            Ok(float(count) / began.elapsed().as_secs_f64())
        },
    )?;
    runtime.block_on(broker.stop())?;
    Ok(vec![Figure {
        name: "partitions.1000-round-robin-synced".to_owned(),
        unit: "appends/s",
        values,
        baseline: "bare loop of write + fdatasync, a file each",
        baselines,
        goal: Goal::RatioAtLeast(10.0),
    }])
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
