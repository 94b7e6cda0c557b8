//! Every file of the corpora and of the regressions, and mutations of them.

#![allow(
    clippy::unwrap_used,
    reason = "a test program, which fails by panicking"
)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use tidelog_fuzzing::mutate::{Source, mutated};
use tidelog_fuzzing::{TARGETS, Target, fuzz_dir};

/// The files of `fuzz/<kind>/<target>`, by name.
fn files(kind: &str, target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = fuzz_dir().join(kind).join(target.name);
    let Ok(entries) = fs::read_dir(&dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

/// Runs the target and says, when it panics, with what.
fn run(target: &Target, input: &[u8], name: impl FnOnce() -> String) {
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    if let Err(panic) = result {
        eprintln!("{}: {}", target.name, name());
        resume_unwind(panic);
    }
}

#[test]
fn the_seeds_hold() {
    for target in &TARGETS {
        let files = files("corpus", target);
        assert!(!files.is_empty(), "{} has no seeds", target.name);
        for (path, bytes) in files {
            run(target, &bytes, || path.display().to_string());
        }
    }
}

#[test]
fn what_was_found_once_holds() {
    for target in &TARGETS {
        for (path, bytes) in files("regressions", target) {
            run(target, &bytes, || path.display().to_string());
        }
    }
}

#[test]
fn every_target_has_its_program_and_every_directory_its_target() {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).map(|entries| {
            let stems = entries.map(|entry| entry.unwrap().path());
            let stems = stems.filter(|path| path.file_name().unwrap() != "README.md");
            stems
                .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                .collect()
        });
        let mut names: Vec<String> = entries.unwrap_or_default();
        names.sort();
        names
    };
    let mut known: Vec<String> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    known.sort();
    assert_eq!(names(&fuzz_dir().join("fuzz_targets")), known);
    assert_eq!(names(&fuzz_dir().join("corpus")), known);
    for name in names(&fuzz_dir().join("regressions")) {
        assert!(known.contains(&name), "{name} is no target");
    }
    let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
    for name in known {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

/// An hour of this is `TIDELOG_FUZZ_ROUNDS=10000000 nice cargo test --release -p tidelog-fuzzing`.
/// What fails is left in `fuzz/artifacts`.
#[test]
fn mutations_hold() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    let rounds = number("TIDELOG_FUZZ_ROUNDS", 3000);
    let seed = number("TIDELOG_FUZZ_SEED", 1);
    let only = std::env::var("TIDELOG_FUZZ_TARGET").ok();
    println!("{rounds} rounds for each target from seed {seed}");
    for target in TARGETS {
        if only.as_ref().is_some_and(|only| only != target.name) {
            continue;
        }
        let known = files("corpus", &target)
            .into_iter()
            .chain(files("regressions", &target));
        let corpus: Vec<Vec<u8>> = known.map(|(_, bytes)| bytes).collect();
        for round in 0..rounds {
            let seed = seed.wrapping_mul(1 << 40).wrapping_add(round);
            let input = mutated(&mut Source::new(seed), &corpus, 16 << 10);
            run(&target, &input, || {
                let dir = fuzz_dir().join("artifacts").join(target.name);
                fs::create_dir_all(&dir).unwrap();
                let path = dir.join(format!("mutation-{seed}"));
                fs::write(&path, &input).unwrap();
                format!("round {round}, {}", path.display())
            });
        }
    }
}
