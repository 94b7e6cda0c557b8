//! How long a broker takes to be ready, and what it takes when it does nothing.

use std::path::Path;
use std::time::Duration;

use futures_util::future::try_join_all;

use crate::figure::{Figure, Goal, in_turns};
use crate::fixtures::{Bench, batch_of, timed};
use crate::grpc::{Clients, append_request};
use crate::process::Server;

const TOPIC: &str = "bench";
const PARTITIONS: u32 = 1000;

/// A broker with a thousand partitions that all hold records, killed.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let dir = bench.dir()?;
    let data = dir.path().join("data");
    let runtime = crate::broker::runtime()?;
    let write_to_all = |server: &Server, makes_topic: bool| {
        runtime.block_on(async {
            let mut clients = Clients::connect(&server.addr).await?;
            if makes_topic {
                clients.create(TOPIC, PARTITIONS).await?;
            }
            let batch = batch_of(4)?;
            let appends = (0..PARTITIONS).map(|partition| {
                let mut log = clients.log.clone();
                let request = append_request(TOPIC, partition, batch.clone());
                async move { log.append(request).await }
            });
            try_join_all(appends).await?;
            Ok::<_, anyhow::Error>(())
        })
    };
    let first = Server::broker(&data)?;
    write_to_all(&first, true)?;
    drop(first);
    let (values, baselines) = in_turns(
        bench.turns,
        || {
            let (seconds, server) = timed(|| Server::broker(&data))?;
            // So that the next start finds appends behind its checkpoints again.
            write_to_all(&server, false)?;
            Ok(seconds)
        },
        || ready_on_empty(bench),
    )?;
    Ok(vec![Figure {
        name: "restart.1000-partitions-after-kill".to_owned(),
        unit: "s",
        values,
        baseline: "start on an empty directory",
        baselines,
        goal: Goal::Below(0.7),
    }])
}

fn ready_on_empty(bench: &Bench) -> anyhow::Result<f64> {
    let dir = bench.dir()?;
    let (seconds, server) = timed(|| Server::broker(&dir.path().join("data")))?;
    drop(server);
    Ok(seconds)
}

/// A start on an empty directory and an idle broker, beside those of the bare server.
pub(crate) fn start(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let runtime = crate::broker::runtime()?;
    let pause = Duration::from_secs(if bench.quick { 1 } else { 3 });
    let side = |start: fn(&Path) -> anyhow::Result<Server>| {
        let dir = bench.dir()?;
        let (seconds, server) = timed(|| start(dir.path()))?;
        let before = server.cpu_seconds()?;
        runtime.block_on(async { tokio::time::sleep(pause).await });
        let busy = server.cpu_seconds()? - before;
        let idle = busy / pause.as_secs_f64() * 100.0;
        Ok([seconds * 1e3, idle, server.anonymous_mib()?])
    };
    let (values, baselines) = in_turns(
        bench.turns,
        || side(|dir| Server::broker(&dir.join("data"))),
        || side(Server::bare),
    )?;
    let figures = [
        ("start.empty-directory", "ms", 50.0),
        ("start.idle-core", "% of a core", 1.0),
        ("start.anonymous-memory", "MiB", 20.0),
    ];
    let figures = figures.iter().enumerate().map(|(at, (name, unit, below))| {
        let of = |turns: &[[f64; 3]]| turns.iter().map(|turn| turn[at]).collect();
        Figure {
            name: (*name).to_owned(),
            unit,
            values: of(&values),
            baseline: "bare tonic server",
            baselines: of(&baselines),
            goal: Goal::Below(*below),
        }
    });
    Ok(figures.collect())
}
