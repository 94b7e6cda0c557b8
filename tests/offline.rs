//! `tidelog log`: real data directories, with and without a broker, and their exit codes.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use support::{Broker, code, run, stderr};

fn tidelog(args: &[&str], dir: &Path) -> Output {
    let args = [&["log"], args, &[dir.to_str().unwrap()]].concat();
    run(&args, &[], b"")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    let text = stdout(output);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Every file below `dir` but the lock, and its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    paths.sort();
    paths
}

fn flip(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Some segments in `big-0`, a little in `small-0`.
fn filled(data_dir: &Path) -> Broker {
    let broker = Broker::start(data_dir);
    broker.ok(&["topic", "create", "big", "-c", "segment.bytes=1048576"]);
    broker.ok(&["topic", "create", "small"]);
    let mut lines = Vec::new();
    for n in 0..4000_u64 {
        let mut state = n;
        for _ in 0..64 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            lines.extend_from_slice(format!("{state:016x}").as_bytes());
        }
        lines.push(b'\n');
    }
    broker.ok_with_input(&["produce", "big"], &lines);
    broker.ok_with_input(
        &["produce", "small", "--key", "k", "--header", "h=1"],
        b"one\n\xff\n",
    );
    broker
}

#[test]
fn a_healthy_directory_is_verified_beside_a_broker_and_after_every_stop() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = filled(&data_dir);
    let output = tidelog(&["verify"], &data_dir);
    assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
    assert!(
        stderr(&output).contains("a broker runs on it"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("data directory with 3 partitions"));
    let output = tidelog(&["repair", "--yes"], &data_dir);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("in use"), "{}", stderr(&output));
    let output = tidelog(&["repair"], &data_dir.join("big-0"));
    assert_eq!(code(&output), 3, "{}", stderr(&output));

    broker.kill();
    let output = tidelog(&["verify", "-o", "json"], &data_dir);
    assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
    assert!(
        json_lines(&output)
            .iter()
            .all(|line| line["severity"] != "damage")
    );

    assert!(Broker::start(&data_dir).terminate().success());
    let before = contents(&data_dir);
    let output = tidelog(&["verify", "-o", "json"], &data_dir);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let lines = json_lines(&output);
    assert!(
        lines.iter().all(|line| line["kind"] == "partition"),
        "{lines:?}"
    );
    let big = lines
        .iter()
        .find(|line| line["partition"] == "big-0")
        .unwrap();
    assert_eq!(
        (&big["records"], &big["damaged"]),
        (&4000.into(), &0.into())
    );
    for args in [
        &["inspect"][..],
        &["inspect", "-o", "json"],
        &["repair"],
        &["repair", "--yes"],
    ] {
        let output = tidelog(args, &data_dir);
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
    }
    assert_eq!(contents(&data_dir), before, "nothing was changed");
}

#[test]
fn damage_is_named_and_cut_only_when_asked_and_every_byte_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    filled(&data_dir).kill();
    let big = data_dir.join("big-0");
    let segments = files(&big, "log");
    assert!(segments.len() >= 4, "{segments:?}");
    flip(&segments[1], 300_000);
    flip(&segments[2], 500_000);
    flip(&files(&big, "index")[0], 40);
    let before = contents(&data_dir);

    let output = tidelog(&["verify", "-o", "json"], &data_dir);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let lines = json_lines(&output);
    let of = |severity: &str| -> Vec<&Value> {
        lines
            .iter()
            .filter(|line| line["severity"] == severity)
            .collect()
    };
    let damage = of("damage");
    assert_eq!(damage.len(), 2, "{lines:?}");
    for (line, path) in damage.iter().zip(&segments[1..]) {
        let canonical = path.canonicalize().unwrap();
        assert_eq!(line["file"], canonical.to_str().unwrap());
        assert!(
            line["position"].as_u64().unwrap() > 0 && line["offset"].is_u64(),
            "{line}"
        );
    }
    assert!(damage[0]["position"].as_u64().unwrap() <= 300_000);
    assert_eq!(of("warning").len(), 1, "{lines:?}");
    let output = tidelog(&["inspect"], &big);
    assert_eq!(
        code(&output),
        0,
        "a look at headers alone finds none: {}",
        stderr(&output)
    );

    // A dump ends there, with what is wrong.
    let cut_at = damage[0]["offset"].as_u64().unwrap();
    let output = tidelog(&["dump", "--records", "-o", "json"], &big);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("position"), "{}", stderr(&output));
    assert_eq!(json_lines(&output).len() as u64, cut_at);

    // What costs nothing is offered at once; the cut only by its name.
    let output = tidelog(&["repair"], &data_dir);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("--cut-at-damage"),
        "{}",
        stderr(&output)
    );
    let output = tidelog(&["repair", "--cut-at-damage"], &data_dir);
    assert_eq!(code(&output), 5, "it is only said: {}", stderr(&output));
    assert!(
        stderr(&output).contains("2 damaged places of"),
        "{}",
        stderr(&output)
    );
    let said = stdout(&output);
    assert!(
        said.replace(',', "").contains(&format!(
            "is cut at offset {cut_at}: {} offsets up to offset 4000",
            4000 - cut_at
        )),
        "{said}"
    );
    assert!(stderr(&output).contains("add --yes"), "{}", stderr(&output));
    assert_eq!(contents(&data_dir), before, "only said");

    let output = tidelog(&["repair", "--cut-at-damage", "--yes"], &data_dir);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let output = tidelog(&["verify"], &data_dir);
    assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
    let after = contents(&data_dir);
    let kept = data_dir.join("big-0.1.cut");
    for segment in &segments {
        let name = segment.file_name().unwrap().to_str().unwrap();
        let here = after.get(segment).cloned().unwrap_or_default();
        let moved = after.get(&kept.join(name)).cloned().unwrap_or_default();
        let end = format!("{name}.from-{}", here.len());
        let end = after.get(&kept.join(end)).cloned().unwrap_or_default();
        assert_eq!([here, moved, end].concat(), before[segment], "{name}");
    }

    let broker = Broker::start(&data_dir);
    let served = broker.ok(&["consume", "big"]);
    assert_eq!(served.lines().count() as u64, cut_at);
    broker.ok_with_input(&["produce", "big"], b"goes on\n");
    let last = broker.ok(&["consume", "big", "--from", "-1", "-f", "%o %s"]);
    assert_eq!(last, format!("{cut_at} goes on"));
    assert_eq!(broker.run(&["consume", "small"]).stdout, b"one\n\xff\n");
    assert!(broker.terminate().success());
    assert_eq!(code(&tidelog(&["verify"], &data_dir)), 0);
}

#[test]
fn a_torn_tail_is_no_damage_and_is_kept_whole() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    assert!(filled(&data_dir).terminate().success());
    let small = data_dir.join("small-0");
    let newest = files(&small, "log").pop().unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&newest).unwrap();
    file.write_all(b"half of a batch that nobody was promised")
        .unwrap();
    let output = tidelog(&["verify"], &small);
    assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).contains("torn tail"), "{}", stdout(&output));
    let before = fs::read(&newest).unwrap();
    let output = tidelog(&["repair", "--yes"], &small);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let kept = files(&data_dir.join("small-0.1.cut"), "log").len();
    assert_eq!(kept, 0, "no whole segment was moved");
    let here = fs::read(&newest).unwrap();
    let name = newest.file_name().unwrap().to_str().unwrap();
    let end = data_dir.join(format!("small-0.1.cut/{name}.from-{}", here.len()));
    assert_eq!([here, fs::read(end).unwrap()].concat(), before);
    assert_eq!(code(&tidelog(&["verify"], &data_dir)), 0);
    let broker = Broker::start(&data_dir);
    assert_eq!(broker.run(&["consume", "small"]).stdout, b"one\n\xff\n");
}

#[test]
fn a_dump_shows_what_a_consumer_gets() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = filled(&data_dir);
    let small = data_dir.join("small-0");
    for (topic, args) in [
        ("small", &["--from", "1"][..]),
        ("big", &["--from", "3990"]),
    ] {
        let consumed = broker.ok(&[&["consume", topic, "-o", "json"], args].concat());
        let dir = data_dir.join(format!("{topic}-0"));
        let dumped = tidelog(&[&["dump", "--records", "-o", "json"], args].concat(), &dir);
        assert_eq!(code(&dumped), 0, "{}", stderr(&dumped));
        assert_eq!(stdout(&dumped), consumed);
    }
    let text = stdout(&tidelog(&["dump", "--records"], &small));
    assert!(
        text.contains("key=\"k\" value=\"\\xff\" header \"h\"=\"1\""),
        "{text}"
    );
    let batches = json_lines(&tidelog(&["dump", "-o", "json"], &small));
    assert_eq!(batches[0]["internal"], "leader epoch");
    assert_eq!(
        (&batches[1]["offset"], &batches[1]["last_offset"]),
        (&0.into(), &1.into())
    );
    let text = stdout(&tidelog(&["dump", "--max", "1"], &small));
    assert_eq!(text.lines().count(), 1, "{text}");
    let inspected = stdout(&tidelog(&["inspect"], &small));
    assert!(inspected.contains(" not written yet\n"), "{inspected}");
    // When it was made, and its largest timestamp.
    let row = inspected.lines().find(|line| line.contains(" active "));
    let is_time =
        |cell: &&str| cell.len() == "2018-02-04T00:00:00.000Z".len() && cell.ends_with('Z');
    let times = row.unwrap().split_whitespace().filter(is_time);
    assert_eq!(times.count(), 2, "{inspected}");
    let inspected = json_lines(&tidelog(&["inspect", "-o", "json"], &small));
    assert_eq!(inspected[0]["segments"][0]["records"], 2);
    assert_eq!(inspected[0]["log_end"]["offset"], 2);
    assert_eq!(inspected[0]["checkpoint"]["offset"], 2);
}

#[test]
fn directories_that_are_none_and_damaged_state_files_have_their_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["inspect", "verify", "dump", "repair"] {
        let file = dir.path().join("file");
        fs::write(&file, "no directory").unwrap();
        for no_log in [
            dir.path(),
            &dir.path().join("nothing"),
            &file,
            &file.join("below"),
        ] {
            let output = tidelog(&[command], no_log);
            assert_eq!(code(&output), 3, "{command}: {}", stderr(&output));
            let hint = "give it the directory of tidelog serve --data-dir";
            assert!(stderr(&output).contains(hint), "{}", stderr(&output));
        }
    }
    let data_dir = dir.path().join("data");
    assert!(filled(&data_dir).terminate().success());
    let output = tidelog(&["dump"], &data_dir);
    assert_eq!(code(&output), 2);
    let inspect = format!(
        "tidelog log inspect {}\n",
        data_dir.canonicalize().unwrap().display()
    );
    assert!(stderr(&output).contains(&inspect), "{}", stderr(&output));
    // Neither generation can be read.
    for snapshot in files(&data_dir.join("state"), "snapshot") {
        flip(&snapshot, 20);
    }
    let segment = files(&data_dir.join("big-0"), "log").remove(1);
    flip(&segment, 1000);
    let before = contents(&data_dir);
    let output = tidelog(&["verify"], &data_dir);
    assert_eq!(code(&output), 5);
    assert!(stdout(&output).contains(".snapshot"), "{}", stdout(&output));
    assert!(stdout(&output).contains("big-0/"), "{}", stdout(&output));
    let output = tidelog(&["repair", "--cut-at-damage"], &data_dir);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(
        stdout(&output).contains("the state file is damaged"),
        "{}",
        stdout(&output)
    );
    assert_eq!(contents(&data_dir), before);
}

#[test]
fn compacted_segments_are_verified_dumped_and_cut_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start_with(&data_dir, &["--compaction-check-interval-ms", "1"]);
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
    let mut lines = Vec::new();
    for n in 0..4000_u64 {
        // Some keys come again and again.
        let key = if n % 3 == 0 { n % 30 } else { n };
        lines.extend_from_slice(format!("key {key}\t{n} ").as_bytes());
        let mut state = n;
        for _ in 0..64 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            lines.extend_from_slice(format!("{state:016x}").as_bytes());
        }
        lines.push(b'\n');
    }
    broker.ok_with_input(&["produce", "t", "--key-delimiter", "\t"], &lines);
    let topic = data_dir.join("t-0");
    let compacted = || {
        // Beside the broker, which compacts meanwhile: that is no damage.
        let output = tidelog(&["inspect", "-o", "json"], &topic);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let segments = json_lines(&output)[0]["segments"].clone();
        let segments = segments.as_array().unwrap();
        let of = |segment: &&Value| segment["compacted"] == true;
        segments.iter().filter(of).count()
    };
    while compacted() < 3 {}
    assert!(broker.terminate().success());

    let output = tidelog(&["verify"], &data_dir);
    assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
    let inspected = stdout(&tidelog(&["inspect"], &topic));
    assert!(inspected.contains(" compacted "), "{inspected}");
    let broker = Broker::start(&data_dir);
    let all = broker.ok(&["consume", "t", "-o", "json"]);
    assert!(broker.terminate().success());
    let dumped = tidelog(&["dump", "--records", "-o", "json"], &topic);
    assert_eq!(code(&dumped), 0, "{}", stderr(&dumped));
    assert_eq!(stdout(&dumped), all);

    let segments = files(&topic, "log");
    flip(&segments[1], 300_000);
    let output = tidelog(&["verify", "-o", "json"], &data_dir);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let lines = json_lines(&output);
    let damage: Vec<&Value> = lines.iter().filter(|l| l["severity"] == "damage").collect();
    assert_eq!(damage.len(), 1, "{lines:?}");
    let canonical = segments[1].canonicalize().unwrap();
    assert_eq!(damage[0]["file"], canonical.to_str().unwrap());
    let position = damage[0]["position"].as_u64().unwrap();
    assert!(position > 0 && position <= 300_000, "{position}");

    let before = contents(&data_dir);
    let output = tidelog(&["repair", "--yes"], &data_dir);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let output = tidelog(&["repair", "--cut-at-damage", "--yes"], &data_dir);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("is begun, empty"), "{said}");
    let output = tidelog(&["verify"], &data_dir);
    assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
    let after = contents(&data_dir);
    for segment in &segments[1..] {
        let kept = data_dir
            .join("t-0.1.cut")
            .join(segment.file_name().unwrap());
        assert_eq!(after[&kept], before[segment], "{}", kept.display());
    }

    let cut_at: u64 = segments[1]
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let offset_of = |line: &str| -> u64 {
        let record: Value = serde_json::from_str(line).unwrap();
        record["offset"].as_u64().unwrap()
    };
    let kept: Vec<&str> = all
        .lines()
        .filter(|line| offset_of(line) < cut_at)
        .collect();
    assert!(!kept.is_empty());
    let broker = Broker::start(&data_dir);
    let served = broker.ok(&["consume", "t", "-o", "json"]);
    assert_eq!(served.lines().collect::<Vec<_>>(), kept);
    broker.ok_with_input(&["produce", "t", "--key-delimiter", ":"], b"k:goes on\n");
    let last = broker.ok(&["consume", "t", "--from", "-1", "-f", "%o %s"]);
    assert_eq!(last, format!("{cut_at} goes on"));
    assert!(broker.terminate().success());
    assert_eq!(code(&tidelog(&["verify"], &data_dir)), 0);
}
