//! Reading what was written lately, from memory, against a bare read of the same file's map.

use anyhow::{Context, bail};
use bytes::Bytes;
use tidelog_disk::{Disk, OpenHow, OsDisk};
use tidelog_log::{Found, LogReader};
use tidelog_record::Offset;

use crate::figure::{Figure, Goal, in_turns};
use crate::fixtures::{Bench, MIB, fill, float, new_log, timed};

/// What one read asks for at most.
const READ_BYTES: usize = 1 << 20;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let dir = bench.dir()?;
    let mut log = new_log(dir.path())?;
    fill(&mut log, bench.size(512 << 20, 64 << 20))?;
    log.sync()?;
    let reader = log.reader();
    let segment = reader.segments().pop().context("a log has a segment")?;
    let file = OsDisk.open(&segment.path, OpenHow::Read)?;
    file.map(segment.len)?;
    file.freeze(segment.len);
    let len = usize::try_from(segment.len)?;
    let map = file.slice(0, len).context("it is mapped and frozen")?;
    let mut buffer = vec![0; READ_BYTES + (64 << 10)];
    let mut another = buffer.clone();

    // Every byte is copied out, as for a socket. The first pass faults the pages of each map in.
    read_log(&reader, &mut buffer)?;
    read_bare(&map, &mut another);
    let (values, baselines) = in_turns(
        bench.turns * 2 + 1,
        || {
            let (seconds, read) = timed(|| read_log(&reader, &mut buffer))?;
            Ok(float(read) / MIB / seconds)
        },
        || {
            let (seconds, read) = timed(|| Ok(read_bare(&map, &mut another)))?;
            Ok(float(read) / MIB / seconds)
        },
    )?;
    Ok(vec![Figure {
        name: "read.hot-sequential".to_owned(),
        unit: "MiB/s",
        values,
        baseline: "bare read through a map",
        baselines,
        goal: Goal::RatioAtLeast(0.8),
    }])
}

fn read_log(reader: &LogReader, buffer: &mut [u8]) -> anyhow::Result<usize> {
    let end = reader.durable_offset();
    let mut from = Offset::ZERO;
    let mut read = 0;
    while from < end {
        let Found::Ready(batches) = reader.read(from, end, READ_BYTES)? else {
            bail!("offset {from} is not read from memory");
        };
        for part in &batches.parts {
            buffer[..part.len()].copy_from_slice(part);
            std::hint::black_box(&mut *buffer);
            read += part.len();
        }
        from = batches.next_offset;
    }
    Ok(read)
}

fn read_bare(map: &Bytes, buffer: &mut [u8]) -> usize {
    for part in map.chunks(READ_BYTES) {
        buffer[..part.len()].copy_from_slice(part);
        std::hint::black_box(&mut *buffer);
    }
    map.len()
}
