//! Damaged and missing files, and directories that cannot be used: the broker names what is wrong,
//! does not serve it, and serves the rest.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Broker, code, serve, stderr};

fn segments(data_dir: &Path, partition: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(data_dir.join(partition))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    paths.sort();
    paths
}

/// Three sealed segments or more of incompressible lines, in topic `big`, and a little in `small`.
fn filled(data_dir: &Path) -> Broker {
    let broker = Broker::start(data_dir);
    broker.ok(&["topic", "create", "big", "-c", "segment.bytes=1048576"]);
    broker.ok(&["topic", "create", "small"]);
    let mut lines = Vec::new();
    let mut state = 1_u64;
    for _ in 0..4000 {
        let mut line = String::new();
        for _ in 0..64 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            line.push_str(&format!("{:016x}", state));
        }
        lines.extend_from_slice(line.as_bytes());
        lines.push(b'\n');
    }
    broker.ok_with_input(&["produce", "big"], &lines);
    broker.ok_with_input(&["produce", "small"], b"one\ntwo\nthree\n");
    broker
}

fn flip(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_named_and_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    filled(&data_dir).kill();
    let sealed = segments(&data_dir, "big-0");
    assert!(sealed.len() >= 3, "{sealed:?}");
    flip(&sealed[1], 300_000);

    let broker = Broker::start(&data_dir);
    let output = broker.run(&["consume", "big"]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let said = stderr(&output);
    let name = sealed[1].file_name().unwrap().to_str().unwrap();
    assert!(said.contains(name) && said.contains("position"), "{said}");
    // Every line before the damage came, and none from behind it.
    let lines = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .count();
    let base: usize = name.trim_end_matches(".log").parse().unwrap();
    assert!(
        lines >= base && lines < 4000,
        "{lines} lines, damaged segment begins at {base}"
    );
    assert_eq!(broker.ok(&["consume", "small"]), "one\ntwo\nthree\n");
}

#[test]
fn a_flipped_bit_in_the_durable_tail_is_not_cut_away_as_torn() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    filled(&data_dir).kill();
    let tail = segments(&data_dir, "small-0").pop().unwrap();
    // Behind the segment header and the entry that begins the epoch stands the batch.
    flip(&tail, 420);

    let broker = Broker::start(&data_dir);
    let output = broker.run(&["consume", "small"]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert_eq!(output.stdout, b"");
    assert_eq!(broker.ok(&["consume", "big", "-n", "1"]).lines().count(), 1);
}

#[test]
fn a_missing_segment_is_noticed_and_the_other_topics_serve() {
    for missing in [0, 1, usize::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        filled(&data_dir).kill();
        let sealed = segments(&data_dir, "big-0");
        fs::remove_file(&sealed[missing.min(sealed.len() - 1)]).unwrap();

        let broker = Broker::start(&data_dir);
        let output = broker.run(&["consume", "big"]);
        assert_eq!(code(&output), 5, "{}", stderr(&output));
        assert!(stderr(&output).contains("missing"), "{}", stderr(&output));
        let output = broker.run_with_input(&["produce", "big"], b"x\n");
        assert_ne!(code(&output), 0);
        assert_eq!(broker.ok(&["consume", "small"]), "one\ntwo\nthree\n");
        assert!(
            broker
                .get("/metrics")
                .1
                .contains("tidelog_partitions_faulted 1")
        );
    }
}

#[test]
fn damage_to_what_everything_depends_on_is_refused_with_exit_5() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    filled(&data_dir).kill();
    let metadata = segments(&data_dir, "__cluster_metadata-0").pop().unwrap();
    flip(&metadata, 400);
    let output = serve(&data_dir, &[])
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains(".log"), "{}", stderr(&output));
}

#[test]
fn two_brokers_never_run_on_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start(&data_dir);
    let output = serve(&data_dir, &[])
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("in use"), "{}", stderr(&output));
    broker.ok(&["topic", "create", "still-there"]);
    broker.kill();
    // The lock goes with the process, however it ends.
    let topics = Broker::start(&data_dir).ok(&["topic", "list"]);
    assert!(topics.contains("still-there"), "{topics}");
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("one"));
    let other = dir.path().join("two");
    let output = std::process::Command::new(support::TIDELOG)
        .args([
            "serve",
            "--grpc-addr",
            &broker.grpc,
            "--http-addr",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(&other)
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains(&broker.grpc),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // A file where the directory should be fails for every user, root included.
    let data_dir = dir.path().join("data");
    fs::write(&data_dir, b"").unwrap();
    let output = serve(&data_dir, &[])
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("data"), "{}", stderr(&output));
}
