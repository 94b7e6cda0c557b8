//! Every figure of Tidelog beside its limit, measured in the same run and in turns with it.
//!
//! `figures` prints one JSON object; what it does meanwhile goes to standard error. `scripts/bench`
//! builds and calls it. A figure (`figure.rs`) is made by one of the modules: `append.rs` and
//! `read.rs` drive a log, `concurrent.rs` and `cold.rs` a broker inside this process, `reopen.rs`
//! and `restart.rs` open what was written, `grpc.rs` a broker of its own process beside a bare
//! server (`bare.rs`) that gets the same messages from the same client, `cluster.rs` three brokers
//! (`brokers.rs`) beside one, and `kafka` three beside three of Kafka. `groups.rs` has groups commit offsets. In
//! `catch_up.rs` one of three comes back, in `transfer.rs` leaderships are handed over.

mod append;
mod bare;
mod broker;
mod brokers;
mod catch_up;
mod cluster;
mod cold;
mod concurrent;
mod figure;
mod fixtures;
mod groups;
mod grpc;
mod kafka;
mod process;
mod read;
mod reopen;
mod restart;
mod transfer;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::figure::Figure;
use crate::fixtures::Bench;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Measure only the groups of figures whose names begin with one of these.
    names: Vec<String>,
    /// Less data and fewer turns: to see that it works, not to compare.
    #[arg(long)]
    quick: bool,
    /// Turns of each side; the medians count.
    #[arg(long)]
    turns: Option<usize>,
    /// Where the files go, each in a directory that is removed. Not a file system in memory.
    /// By default beside this program.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// End with 1 when a goal is missed.
    #[arg(long)]
    check: bool,
    /// List what can be measured, and end.
    #[arg(long)]
    list: bool,
}

#[derive(Subcommand)]
enum Command {
    /// The bare server; started by the benches.
    #[command(hide = true)]
    Serve {
        /// Where its file goes.
        dir: PathBuf,
    },
}

/// Makes the figures of a group, whose names all begin with the group's.
type Measure = fn(&Bench) -> anyhow::Result<Vec<Figure>>;

const GROUPS: &[(&str, Measure)] = &[
    ("append", append::measure),
    ("read", read::measure),
    ("appenders", concurrent::appenders),
    ("leader-acks", concurrent::leader_acks),
    ("partitions", concurrent::partitions),
    ("cold-reader", cold::measure),
    ("reopen", reopen::measure),
    ("restart", restart::measure),
    ("start", restart::start),
    ("unary", grpc::unary),
    ("produce-stream", grpc::produce_stream),
    ("read-stream", grpc::read_stream),
    ("group-commits", groups::measure),
    ("cluster", cluster::load),
    ("failover", cluster::failover),
    ("replicated-partitions", cluster::partitions),
    ("catch-up", catch_up::measure),
    ("unapplied", catch_up::unapplied),
    ("transfer", transfer::measure),
    ("kafka", kafka::measure),
];

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(Command::Serve { dir }) = args.command {
        return bare::serve(&dir);
    }
    if args.list {
        for (name, _) in GROUPS {
            println!("{name}");
        }
        return Ok(());
    }
    let chosen: Vec<_> = GROUPS
        .iter()
        .filter(|(group, _)| {
            let wants = |name: &String| {
                let of_group = name.split('.').next() == Some(*group);
                of_group || group.starts_with(name.as_str())
            };
            args.names.is_empty() || args.names.iter().any(wants)
        })
        .collect();
    if chosen.is_empty() {
        bail!("there is no such figure; see --list");
    }
    let bench = Bench::new(args.dir, args.quick, args.turns)?;
    let mut figures = Vec::new();
    for (group, measure) in chosen {
        eprintln!("measuring {group}");
        let measured = measure(&bench).with_context(|| format!("measuring {group}"))?;
        for figure in measured {
            eprintln!("  {figure}");
            figures.push(figure);
        }
    }
    let missed: Vec<_> = figures
        .iter()
        .filter(|figure| figure.met() == Some(false))
        .map(|figure| figure.name.clone())
        .collect();
    let is_missed = !missed.is_empty();
    let document = serde_json::json!({
        "quick": args.quick,
        "turns": bench.turns,
        "file_system": bench.file_system,
        "figures": figures.iter().map(Figure::to_json).collect::<Vec<_>>(),
        "missed": missed,
    });
    println!("{document:#}");
    if args.check && is_missed {
        std::process::exit(1);
    }
    Ok(())
}
