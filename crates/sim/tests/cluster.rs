//! Clusters under faults, seed after seed; and that each kind of bug is found.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tidelog_sim::{
    ClusterOptions, ClusterStats, IdleCluster, Planted, PlantedController, run_cluster,
};

/// Runs so many seeds, or as many as `TIDELOG_SEEDS` says, or the one that `TIDELOG_SEED` says. Gives what they
/// were like, and whether they were enough to say something about that.
fn run_seeds(
    test: &str,
    count: u64,
    options: impl Fn(u64) -> ClusterOptions,
) -> (ClusterStats, bool) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    let seeds = match number("TIDELOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDELOG_SEEDS").unwrap_or(count),
    };
    let is_all = seeds.end - seeds.start >= count.min(100);
    let mut sum = ClusterStats::default();
    for seed in seeds {
        let run = catch_unwind(AssertUnwindSafe(|| run_cluster(seed, options(seed))));
        match run {
            Ok(stats) => sum.add(&stats),
            Err(panic) => {
                eprintln!(
                    "seed {seed}; replay: \
                     TIDELOG_SEED={seed} cargo test -p tidelog-sim --test cluster {test}"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{sum:?}");
    (sum, is_all)
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens() {
    let (sum, is_all) = run_seeds("nothing", 200, ClusterOptions::of_seed);
    // Runs in which nothing happens find nothing.
    let is_rough = sum.duplicates > 10_000 && sum.truncations > 150 && sum.terms > 2000;
    let is_broken = sum.restarts > 3000 && sum.stalls > 100 && sum.refused > 500;
    let is_used = sum.starts > 500 && sum.reads > 10_000 && sum.shared > 10_000;
    let is_used = is_used && sum.copies > 100;
    assert!(is_rough && is_broken && is_used || !is_all, "{sum:?}");
}

/// What was found is looked into by running its seed again.
#[test]
fn a_seed_runs_the_same_every_time() {
    for seed in 0..8 {
        let run = || run_cluster(seed, ClusterOptions::of_seed(seed));
        assert_eq!(run(), run(), "seed {seed}");
        let run = || run_cluster(seed, ClusterOptions::controlled(seed));
        assert_eq!(run(), run(), "controlled seed {seed}");
    }
}

#[test]
fn brokers_come_to_what_was_decided_whatever_happens() {
    let (sum, is_all) = run_seeds("brokers", CONTROLLED_SEEDS, ClusterOptions::controlled);
    let is_decided = sum.commands > 3000 && sum.asked > 600 && sum.orders > 2000;
    let is_moved = sum.made > 600 && sum.removed > 200;
    let is_wiped = sum.wiped > 30 && sum.retired > 4 && sum.entered > 100;
    let is_cut = sum.snapshots > 30 && sum.leaps > 30;
    let is_rough = sum.restarts > 2000 && sum.duplicates > 4000;
    let is_rough = is_rough && is_decided && is_moved && is_wiped && is_cut;
    assert!(is_rough || !is_all, "{sum:?}");
}

/// They take as long as those of the other kind.
const CONTROLLED_SEEDS: u64 = 60;

/// Seeds of hunts that have found something.
#[test]
fn what_hunts_have_found_stays_mended() {
    // A log whose oldest segment begins where an epoch does; what is committed lies in a segment that cannot
    // be opened for want of files.
    // The log of one replica that stopped in the middle of a roll, and lost what it knew of producers with its
    // old segments.
    for seed in [7_000_362, 7_202_453, 7_301_187] {
        run_cluster(seed, ClusterOptions::of_seed(seed));
    }
    // A replica that a broker gets again while it still copies files for the one that it had before; starts that
    // know of a topic's deletion and of another one of its name, and have carried out neither; a broker on a new
    // disk, whose replica of the metadata never forgot a leader that was gone; members
    // that were changed to some of which a majority had just been lost; a topic that was deleted before a disk was
    // replaced, and had a replica there under a number that is above what the new disk got; a replica
    // without a vote that stood for election, and won; a broker that had heard that the one that led the metadata was
    // removed, and not that it had joined again.
    let seeds = [
        7_280_019, 7_320_054, 7_320_183, 7_320_130, 7_420_392, 7_420_520, 7_421_018, 7_423_308,
        7_450_052, 7_425_859,
    ];
    for seed in seeds {
        run_cluster(seed, ClusterOptions::controlled(seed));
    }
}

/// These panics are no news, but for those of the test itself.
fn keep_quiet() {
    let print = std::panic::take_hook();
    let here = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        let is_own = info.location().is_some_and(|at| at.file() == file!());
        if std::thread::current().id() != here || is_own {
            print(info);
        }
    }));
}

/// The check that is there for a bug must find it, whatever else it leads to.
fn is_found(bug: impl Debug, check: &str, options: impl Fn(u64) -> ClusterOptions) {
    let is_found = |seed| {
        let run = catch_unwind(AssertUnwindSafe(|| run_cluster(seed, options(seed))));
        run.is_err_and(|panic| {
            let text = panic.downcast_ref::<String>();
            text.is_some_and(|text| text.contains(check))
        })
    };
    let seed = (0..1000).find(|seed| is_found(*seed));
    println!("{bug:?} is found at seed {seed:?}");
    assert!(seed.is_some(), "{bug:?} is not found by {check:?}");
}

/// As long as every disk has what was written, what was acknowledged before it was durable is not lost either.
#[test]
fn what_a_majority_has_written_outlives_every_process() {
    let (sum, is_all) = run_seeds("written", 60, ClusterOptions::cached);
    let is_early = sum.early > 5000 && sum.early < sum.acknowledged;
    let is_rough = sum.restarts > 800 && sum.terms > 500 && sum.truncations > 30;
    assert!(is_early && is_rough || !is_all, "{sum:?}");
}

#[test]
fn each_planted_bug_is_found_by_its_check() {
    keep_quiet();
    let found_by = [
        (Planted::VoteForgotten, "has the leaders"),
        (Planted::VoteBeforeSync, "has the leaders"),
        (Planted::AckBeforeSync, "has another entry"),
        (Planted::CommitAhead, "was committed when it asked"),
        (Planted::DuplicateStored, "and was told"),
        (Planted::CheckpointKept, "what was durable is there"),
        (Planted::MembersForgotten, "the members, as"),
        (Planted::ReadUnasked, "was committed when it asked"),
        (Planted::LogStartForgotten, "went back"),
        (Planted::WaitersKept, "and was told"),
        (Planted::DuplicateUncommitted, "and was told"),
        (Planted::ReadersForgotten, "left behind"),
        (Planted::StalledDropped, "fails by itself"),
        (Planted::StalledSteps, "fails by itself"),
        (Planted::OffsetsUnmatched, "was refused"),
        (Planted::LearnersForgotten, "is not well"),
    ];
    for (bug, check) in found_by {
        is_found(bug, check, |seed| ClusterOptions {
            planted: Some(bug),
            ..ClusterOptions::of_seed(seed)
        });
    }
    let bug = Planted::WrittenByOne;
    is_found(bug, "and was told", |seed| ClusterOptions {
        planted: Some(bug),
        ..ClusterOptions::cached(seed)
    });
}

#[test]
fn each_planted_bug_of_the_controller_is_found_by_its_check() {
    keep_quiet();
    let found_by = [
        (
            PlantedController::GenerationForgotten,
            "on a disk that is lost",
        ),
        (PlantedController::RemovalForgotten, "was moved off broker"),
        (PlantedController::JointKept, "is left hanging"),
        (PlantedController::DrainForgotten, "is drained, and has"),
        (PlantedController::LeaderKept, "the preferred leader is"),
        (PlantedController::FinishedEarly, "and it is placed on"),
    ];
    for (bug, check) in found_by {
        is_found(bug, check, |seed| ClusterOptions {
            planted_controller: Some(bug),
            ..ClusterOptions::controlled(seed)
        });
    }
}

/// What [`IdleCluster`] measures are leaderships that last, told of in few frames.
#[test]
fn partitions_with_nothing_to_do_keep_their_leaders() {
    let mut cluster = IdleCluster::new(50);
    cluster.elect(50);
    // The elections under way come to their end.
    cluster.run(10_000);
    let before = cluster.stats();
    cluster.run(60_000);
    let after = cluster.stats();
    assert_eq!(after.elections, before.elections);
    // Each leader is heard of by two followers every 0.6 s, and is answered.
    assert_eq!(after.letters - before.letters, 50 * 100 * 2 * 2);
    // A node has one frame at most for another and tick, and one of answers.
    assert!(after.frames - before.frames <= 600 * 6 * 2, "{after:?}");
}
