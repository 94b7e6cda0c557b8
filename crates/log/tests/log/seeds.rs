//! Runs of many seeds, each of which can be replayed by itself.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// So many seeds each seeded suite runs.
pub(crate) const SEEDS: u64 = 2000;

/// Runs seeds 0 to [`SEEDS`], or as many as `TIDELOG_SEEDS` says, or the one that `TIDELOG_SEED`
/// says; gives what each run gave. A seed that fails is printed, with how to replay it.
pub(crate) fn each_seed<T>(test: &str, run: impl Fn(u64) -> T) -> Vec<T> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|value| value.parse::<u64>().unwrap())
    };
    let seeds = match number("TIDELOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDELOG_SEEDS").unwrap_or(SEEDS),
    };
    let run_one = |seed| match catch_unwind(AssertUnwindSafe(|| run(seed))) {
        Ok(ran) => ran,
        Err(panic) => {
            eprintln!(
                "seed {seed}; replay: \
                 TIDELOG_SEED={seed} cargo test -p tidelog-log --test log {test}"
            );
            resume_unwind(panic);
        }
    };
    seeds.map(run_one).collect()
}
