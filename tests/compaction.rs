//! Compaction in a real broker: killed while it compacts, over and over, under producers and
//! consumers.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use support::{Broker, code, stderr};

const KEYS: usize = 40;

fn start(data_dir: &Path) -> Broker {
    let often = ["--compaction-check-interval-ms", "1"];
    let small = ["--compaction-key-bytes-max", "64KiB"];
    Broker::start_with(data_dir, &[often, small].concat())
}

/// `key`, a tab, the round and enough to fill segments with.
fn lines(round: usize) -> Vec<u8> {
    (0..KEYS)
        // Each round leaves some keys alone.
        .filter(|key| !(round + key).is_multiple_of(5))
        .map(|key| format!("key {key}\t{round} {}\n", "x".repeat(20_000)))
        .collect::<String>()
        .into_bytes()
}

/// Each key's values, by rounds, in the order in which they are read.
fn table(broker: &Broker) -> BTreeMap<String, Vec<usize>> {
    let mut table: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let text = broker.ok(&["consume", "t", "--format", "%k\t%s\n"]);
    for line in text.lines() {
        let (key, value) = line.split_once('\t').unwrap();
        let (round, _) = value.split_once(' ').unwrap();
        table
            .entry(key.to_owned())
            .or_default()
            .push(round.parse().unwrap());
    }
    table
}

#[test]
fn the_newest_of_each_key_outlives_kills_in_the_middle_of_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let mut broker = start(&data_dir);
    broker.ok(&[
        "topic",
        "create",
        "t",
        "-c",
        "cleanup.policy=compact",
        "-c",
        "segment.bytes=1048576",
        "-c",
        "min.cleanable.dirty.ratio=0",
    ]);
    let mut newest = BTreeMap::new();
    for round in 0..12 {
        let input = lines(round);
        for line in String::from_utf8(input.clone()).unwrap().lines() {
            newest.insert(line.split_once('\t').unwrap().0.to_owned(), round);
        }
        broker.ok_with_input(&["produce", "t", "--key-delimiter", "\t"], &input);
        let table = table(&broker);
        for (key, round) in &newest {
            let rounds = &table[key];
            assert_eq!(rounds.last(), Some(round), "{key}");
            assert!(rounds.is_sorted_by(|a, b| a < b), "{key}: {rounds:?}");
        }
        assert_eq!(table.len(), newest.len());
        // Wherever it is by now.
        broker.kill();
        broker = start(&data_dir);
    }
    // The active segment holds a round and a half; below it each key is there once.
    let mut records = usize::MAX;
    while records > KEYS + 2 * 52 {
        records = table(&broker).values().map(Vec::len).sum();
    }
    assert!(broker.terminate().success());
    let broker = start(&data_dir);
    let table = table(&broker);
    for (key, round) in &newest {
        assert_eq!(table[key].last(), Some(round), "{key}");
    }
}

#[test]
fn a_compacted_topic_says_what_it_takes_and_what_not() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(&dir.path().join("data"));
    broker.ok(&["topic", "create", "t", "-c", "cleanup.policy=compact"]);
    let keyless = broker.run_with_input(&["produce", "t"], b"no key\n");
    assert_eq!(code(&keyless), 3, "{}", stderr(&keyless));
    assert!(
        stderr(&keyless).contains("it has no key"),
        "{}",
        stderr(&keyless)
    );
    assert!(
        stderr(&keyless).contains("--key-delimiter, --key-field or --key\n"),
        "{}",
        stderr(&keyless)
    );
    broker.ok_with_input(&["produce", "t", "--key-delimiter", ":"], b"a:1\n");
    let trim = broker.run(&["topic", "trim", "t", "--before", "latest", "--yes"]);
    assert_eq!(code(&trim), 3, "{}", stderr(&trim));
    assert!(
        stderr(&trim).contains("cleanup.policy"),
        "{}",
        stderr(&trim)
    );
    let bad = broker.run(&["topic", "alter", "t", "-c", "cleanup.policy=shrink"]);
    assert_eq!(code(&bad), 3, "{}", stderr(&bad));
    assert!(stderr(&bad).contains("compact,delete"), "{}", stderr(&bad));
}
