//! Hunts: clusters of seeds that nobody has tried, until one fails or time is over.
//!
//! `cargo run --release -p tidelog-sim -- --seeds 10000` or `-- --hours 2`; `--from N` begins at another seed
//! than one drawn from the clock, `--replay N` runs one seed. With `--cached` producers wait until a majority has
//! written a batch, and no disk loses what was written. With `--controlled` the nodes of each cluster decide
//! for themselves which topics there are and who has what. Ends with 1 when a seed fails, which it prints.
//!
//! `-- --idle 10000` finds nothing: it tells what so many partitions with three replicas and nothing to do
//! take of memory and of the processor.

mod idle;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidelog_sim::{ClusterOptions, ClusterStats, run_cluster};

struct Hunt {
    from: u64,
    seeds: u64,
    time: Option<Duration>,
    /// Whether the nodes decide for themselves who has what.
    is_controlled: bool,
    /// Whether producers wait for no sync.
    is_cached: bool,
}

const USAGE: &str = "usage: tidelog-sim [--controlled | --cached] [--seeds N] [--hours H] [--from SEED] | \
                     [--controlled | --cached] --replay SEED | --idle PARTITIONS";

fn parse(arguments: impl Iterator<Item = String>) -> Option<Hunt> {
    let mut hunt = Hunt {
        from: drawn(),
        seeds: u64::MAX,
        time: None,
        is_controlled: false,
        is_cached: false,
    };
    let mut arguments = arguments.peekable();
    arguments.peek()?;
    while let Some(name) = arguments.next() {
        if name == "--controlled" {
            hunt.is_controlled = true;
            continue;
        }
        if name == "--cached" {
            hunt.is_cached = true;
            continue;
        }
        let value = arguments.next()?;
        match name.as_str() {
            "--seeds" => hunt.seeds = value.parse().ok()?,
            "--from" => hunt.from = value.parse().ok()?,
            "--replay" => (hunt.from, hunt.seeds) = (value.parse().ok()?, 1),
            "--hours" => {
                let hours: f64 = value.parse().ok()?;
                hunt.time = Some(Duration::try_from_secs_f64(hours * 3600.0).ok()?);
            }
            _ => return None,
        }
    }
    Some(hunt)
}

/// A seed of now, far from those of the tests.
fn drawn() -> u64 {
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() << 20
}

fn now() -> SystemTime {
    #[expect(
        clippy::disallowed_methods,
        reason = "a hunt is for people, what it runs knows no clock"
    )]
    SystemTime::now()
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let (Some("--idle"), Some(partitions)) = (arguments.next().as_deref(), arguments.next()) {
        let Some(partitions) = partitions.parse().ok().filter(|count| *count > 0) else {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        };
        return idle::report(partitions);
    }
    let Some(hunt) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let began = now();
    let is_over = || {
        let passed = began.elapsed().unwrap_or_default();
        hunt.time.is_some_and(|time| passed >= time)
    };
    let mut sum = ClusterStats::default();
    let mut runs = 0;
    for seed in (hunt.from..).take(usize::try_from(hunt.seeds).unwrap_or(usize::MAX)) {
        if is_over() {
            break;
        }
        let options = if hunt.is_controlled {
            ClusterOptions::controlled(seed)
        } else if hunt.is_cached {
            ClusterOptions::cached(seed)
        } else {
            ClusterOptions::of_seed(seed)
        };
        match catch_unwind(|| run_cluster(seed, options)) {
            Ok(stats) => sum.add(&stats),
            Err(_) => {
                eprintln!("seed {seed} failed after {runs} good ones; --replay {seed}");
                return ExitCode::FAILURE;
            }
        }
        runs += 1;
        if runs % 1000 == 0 {
            eprintln!("{runs} seeds, up to {seed}");
        }
    }
    println!("{runs} seeds from {} on, none failed: {sum:?}", hunt.from);
    ExitCode::SUCCESS
}
