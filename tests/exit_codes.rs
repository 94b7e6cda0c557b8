//! Every exit code of docs/cli.md, met by real commands against real brokers.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use std::io::{BufRead, BufReader, Write};

use serde_json::Value;
use support::{Broker, TIDELOG, code, run, serve, stderr};

fn started() -> (tempfile::TempDir, Broker) {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("data"));
    (dir, broker)
}

/// Runs a command, and compares its exit code and a part of what it says on stderr.
#[track_caller]
fn ends(broker: &Broker, args: &[&str], input: &[u8], expected: i32, part: &str) {
    let output = broker.run_with_input(args, input);
    let said = stderr(&output);
    assert_eq!(code(&output), expected, "{args:?}: {said}");
    assert!(said.contains(part), "{args:?}: {part:?} is not in {said}");
    if expected != 0 {
        assert_eq!(output.stdout, b"", "{args:?} printed data");
    }
}

/// An address where nobody listens: it was free a moment ago.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn the_codes_are_those_of_the_manual() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
    let manual = std::fs::read_to_string(path).unwrap();
    for row in [
        "| 0 | ok |",
        "| 1 | failed |",
        "| 2 | usage:",
        "| 3 | not found, or refused |",
        "| 4 | no broker reachable, or timed out |",
        "| 5 | stored data is damaged |",
    ] {
        assert!(manual.contains(row), "{row} is not in the manual");
    }
}

#[test]
fn code_0_is_for_what_went_well() {
    let (_dir, broker) = started();
    ends(&broker, &["topic", "create", "t"], b"", 0, "created");
    ends(
        &broker,
        &["produce", "t"],
        b"x\n",
        0,
        "1 record acknowledged",
    );
    ends(&broker, &["consume", "t"], b"", 0, "");
    ends(&broker, &["consume", "t", "--from", "latest"], b"", 0, "");
    ends(&broker, &["offsets", "t", "--at", "@-1h"], b"", 0, "");
    ends(&broker, &["topic", "delete", "t", "--dry-run"], b"", 0, "");
    ends(&broker, &["config", "explain"], b"", 0, "");
    assert!(
        broker.terminate().success(),
        "a graceful stop is no failure"
    );
}

#[test]
fn code_1_is_for_what_has_no_other() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    let args = ["produce", "t", "--input", "there/is/no/such/file"];
    ends(&broker, &args, b"", 1, "there/is/no/such/file");
    let args = ["produce", "t", "--key-field", "k"];
    ends(&broker, &args, b"{\"k\":1}\nno json\n", 1, "line 2");
    broker.ok(&["topic", "create", "empty"]);
    let args = ["bench", "consume", "--topic", "empty"];
    ends(&broker, &args, b"", 1, "topic empty has no records");
    // What it prints goes to a disk that is full.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let output = std::process::Command::new(TIDELOG)
        .args(["version"])
        .stdout(full.unwrap())
        .output()
        .unwrap();
    assert_eq!(code(&output), 1, "{}", stderr(&output));
}

/// What was done is done, whether or not people can be told.
#[test]
fn the_codes_hold_where_stderr_cannot_be_written() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    let code_of = |args: &[&str], input: &str| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let mut command = std::process::Command::new(TIDELOG);
        command.args(args).stderr(full.unwrap());
        let input_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(input_file.path(), input).unwrap();
        command.stdin(std::fs::File::open(input_file.path()).unwrap());
        command.env("TIDELOG_BROKER", &broker.grpc);
        code(&command.output().unwrap())
    };
    assert_eq!(code_of(&["produce", "t"], "one\ntwo\n"), 0);
    assert_eq!(code_of(&["topic", "delete", "t", "--dry-run"], ""), 0);
    assert_eq!(code_of(&["consume", "nope"], ""), 3);
    assert_eq!(code_of(&["serve", "--data-dir", "/dev/null"], ""), 1);
}

#[test]
fn code_2_is_for_a_wrong_command_line() {
    for args in [
        &[][..],
        &["nonsense"],
        &["consume"],
        &["consume", "t", "--from", "@yesterday-ish"],
        &["topic", "create", "not allowed"],
        &["topic", "add-partitions", "t"],
        &["produce", "t", "--key", "a", "--key-field", "b"],
        &["serve", "--grpc-addr", "nowhere"],
        &["serve", "--log-level", "loud"],
        &["config", "explain", "--threads", "many"],
    ] {
        // Seen before any broker is asked.
        let output = run(args, &[("TIDELOG_BROKER", &nobody())], b"");
        assert_eq!(code(&output), 2, "{args:?}: {}", stderr(&output));
    }
    // What is wrong for `serve` is wrong for `config explain`, which is no help then.
    for command in [&["serve"][..], &["config", "explain"]] {
        let output = run(&[command, &["--grpc-addr", "nowhere"]].concat(), &[], b"");
        let said = stderr(&output);
        let hint = "\n  see what is allowed with: tidelog serve --help\n";
        assert!(said.contains(hint), "{said}");
    }
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    let args = ["bench", "latency", "--size", "15"];
    ends(&broker, &args, b"", 2, "--size 15 is too small");
    let args = [
        "topic",
        "alter",
        "t",
        "-c",
        "retention.ms=1",
        "-c",
        "retention.ms=2",
    ];
    ends(&broker, &args, b"", 2, "retention.ms is given twice");
    // Nobody can be asked.
    ends(&broker, &["topic", "delete", "t"], b"t\n", 2, "--yes");
    let args = ["topic", "trim", "t", "--before", "latest"];
    ends(&broker, &args, b"t\n", 2, "--yes");
    broker.ok(&["topic", "describe", "t"]);
}

#[test]
fn code_3_is_for_what_is_not_there_or_refused() {
    let (_dir, broker) = started();
    let missing = "TOPIC_NOT_FOUND";
    for args in [
        &["produce", "nothing"][..],
        &["consume", "nothing"],
        &["offsets", "nothing"],
        &["topic", "describe", "nothing"],
        &["topic", "alter", "nothing", "-c", "retention.ms=1000"],
        &["topic", "add-partitions", "nothing", "--partitions", "2"],
        &["topic", "trim", "nothing", "--before", "latest", "--yes"],
        &["topic", "delete", "nothing", "--yes"],
    ] {
        ends(&broker, args, b"x\n", 3, missing);
    }

    broker.ok(&["topic", "create", "t", "-c", "max.message.bytes=2000"]);
    broker.ok_with_input(&["produce", "t"], b"one\ntwo\n");
    ends(&broker, &["topic", "create", "t"], b"", 3, "TOPIC_EXISTS");
    let wrong = "INVALID_SETTING";
    for setting in ["retention_ms=1", "retention.ms=soon", "max.message.bytes=0"] {
        let args = ["topic", "create", "u", "-c", setting];
        ends(&broker, &args, b"", 3, wrong);
        ends(
            &broker,
            &["topic", "alter", "t", "-c", setting],
            b"",
            3,
            wrong,
        );
    }
    let args = ["topic", "alter", "t", "--reset", "retention_ms"];
    ends(&broker, &args, b"", 3, wrong);
    let args = ["topic", "add-partitions", "t", "--partitions", "1"];
    ends(&broker, &args, b"", 3, "INVALID_PARTITIONS");

    let range = "OFFSET_OUT_OF_RANGE";
    ends(&broker, &["consume", "t", "--from", "3"], b"", 3, range);
    broker.ok(&["topic", "trim", "t", "--before", "1", "--yes"]);
    ends(&broker, &["consume", "t", "--from", "0"], b"", 3, range);
    let args = ["consume", "t", "--partition", "7"];
    ends(&broker, &args, b"", 3, "PARTITION_NOT_FOUND");
    let args = ["offsets", "t", "--partition", "7"];
    ends(
        &broker,
        &args,
        b"",
        3,
        "cannot look up offsets of partition 7",
    );

    ends(&broker, &["offsets", "t", "--at", "2"], b"", 0, "");
    for (offset, part) in [
        (
            "0",
            "offset 0 is not in partition 0 of topic t, which has 1 to 2",
        ),
        ("3", "see what there is with: tidelog offsets t\n"),
    ] {
        ends(&broker, &["offsets", "t", "--at", offset], b"", 3, part);
    }

    let mut lines = b"fits\n".to_vec();
    lines.resize(5000, b'x');
    ends(&broker, &["produce", "t"], &lines, 3, "line 2: record of");
    // What only the broker can tell: bytes of which compression makes more.
    let mut state = 1_u64;
    let noise = (0..3000).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        b'0' + (state >> 59) as u8
    });
    let args = ["produce", "t", "--compression", "lz4"];
    ends(
        &broker,
        &args,
        &noise.collect::<Vec<_>>(),
        3,
        "BATCH_TOO_LARGE",
    );
    assert_eq!(broker.ok(&["consume", "t"]), "two\nfits\n");

    let args = ["produce", "__cluster_metadata"];
    ends(&broker, &args, b"x\n", 3, "INTERNAL_TOPIC");
    let args = ["topic", "delete", "__cluster_metadata", "--yes"];
    ends(&broker, &args, b"", 3, "INTERNAL_TOPIC");

    let second = serve(&broker.data_dir, &[])
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    let said = stderr(&second);
    assert_eq!(code(&second), 3, "{said}");
    // As every other command says it, and nothing else.
    assert!(
        said.starts_with("error: the data directory is in use"),
        "{said}"
    );
    assert!(
        said.contains("\n  stop that broker (its pid is in addresses.json"),
        "{said}"
    );
}

#[test]
fn code_4_is_for_brokers_that_are_not_there() {
    let address = nobody();
    for args in [
        &["topic", "list"][..],
        &["topic", "describe", "t"],
        &["produce", "t"],
        &["consume", "t"],
        &["offsets", "t"],
        &["bench", "produce"],
    ] {
        let output = run(args, &[("TIDELOG_BROKER", &address)], b"x\n");
        let said = stderr(&output);
        assert_eq!(code(&output), 4, "{args:?}: {said}");
        assert!(said.contains(&address), "{args:?}: {said}");
        assert!(said.contains("tidelog serve"), "{args:?}: {said}");
    }
}

#[test]
fn code_4_is_for_the_wrong_port_of_a_broker_at_once() {
    let (_dir, broker) = started();
    for args in [
        &["topic", "list"][..],
        &["produce", "t"],
        &["consume", "t"],
        &["consume", "t", "--partition", "0"],
        &["offsets", "t"],
    ] {
        let output = run(args, &[("TIDELOG_BROKER", &broker.http)], b"x\n");
        let said = stderr(&output);
        assert_eq!(code(&output), 4, "{args:?}: {said}");
        for part in [
            broker.http.as_str(),
            "is this the gRPC address (grpc_addr, 9400",
        ] {
            assert!(said.contains(part), "{args:?}: {part:?} is not in {said}");
        }
    }
}

#[test]
fn code_4_is_for_the_cluster_port_of_a_broker_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start_with(&data_dir, &["--cluster-addr", "127.0.0.1:0"]);
    let addresses = std::fs::read(data_dir.join("addresses.json")).unwrap();
    let addresses: Value = serde_json::from_slice(&addresses).unwrap();
    let cluster = addresses["cluster_addr"].as_str().unwrap();
    for args in [
        &["topic", "list"][..],
        &["topic", "create", "t"],
        &["cluster", "status"],
        &["produce", "t"],
        &["consume", "t"],
        &["consume", "t", "--partition", "0"],
        &["offsets", "t"],
    ] {
        let output = run(args, &[("TIDELOG_BROKER", cluster)], b"x\n");
        let said = stderr(&output);
        assert_eq!(code(&output), 4, "{args:?}: {said}");
        let expected = format!("what listens at {cluster} is the cluster port of a broker");
        for part in [expected.as_str(), "grpc_addr, port 9400 by default"] {
            assert!(said.contains(part), "{args:?}: {part:?} is not in {said}");
        }
    }
    let both = format!("{cluster},{}", broker.grpc);
    let output = run(&["topic", "create", "t"], &[("TIDELOG_BROKER", &both)], b"");
    assert_eq!(code(&output), 0, "the next one of the list answers");
}

#[test]
fn whoever_waits_for_a_broker_is_told_so() {
    // As a broker that stops and starts again: nobody can tell.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for (command, until) in [("consume", 60), ("produce", 120)] {
        let mut child = std::process::Command::new(TIDELOG)
            .args([command, "t", "--broker", &address])
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        lines.read_line(&mut said).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let expected = format!("waiting for an answer from {address}, for up to {until} s\n");
        assert_eq!(said, expected);
    }
}

#[test]
fn whoever_waits_for_acknowledgements_is_told_so() {
    use std::process::Stdio;
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    let mut child = std::process::Command::new(TIDELOG)
        .args(["produce", "t", "--broker", &broker.grpc])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    while broker.ok(&["consume", "t"]).is_empty() {}
    broker.kill();
    stdin.write_all(b"two\n").unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    lines.read_line(&mut said).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        said.starts_with("waiting for acknowledgements: the broker is gone or slow;"),
        "{said}"
    );
}

#[test]
fn code_5_is_for_damaged_data() {
    let (dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    broker.ok(&["topic", "create", "sound"]);
    broker.ok_with_input(&["produce", "t"], b"one\ntwo\n");
    broker.ok_with_input(&["produce", "sound"], b"here\n");
    broker.kill();
    let data_dir = dir.path().join("data");
    let segment = data_dir.join("t-0/00000000000000000000.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(3).position(|text| text == b"two").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();

    let broker = Broker::start(&data_dir);
    ends(
        &broker,
        &["consume", "t"],
        b"",
        5,
        "00000000000000000000.log",
    );
    ends(&broker, &["consume", "sound"], b"", 0, "");
    ends(&broker, &["topic", "list"], b"", 0, "");
}

#[test]
fn records_get_the_brokers_time_where_the_topic_says_so() {
    let (_dir, broker) = started();
    let log_append = "message.timestamp.type=LogAppendTime";
    broker.ok(&["topic", "create", "stamped", "-c", log_append]);
    broker.ok(&["topic", "create", "kept"]);
    let own = 1_517_702_400_000_i64;
    let input = format!("{{\"time\":{own}}}\n{{\"time\":{}}}\n", own + 1);
    for compression in ["none", "zstd"] {
        for topic in ["stamped", "kept"] {
            let args = [
                "produce",
                topic,
                "--timestamp-field",
                "time",
                "--compression",
            ];
            let args = [&args[..], &[compression]].concat();
            broker.ok_with_input(&args, input.as_bytes());
        }
    }
    let times = |topic| -> Vec<i64> {
        let shown = broker.ok(&["consume", topic, "-o", "json"]);
        let records = shown
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        records
            .map(|record: Value| record["timestamp"].as_i64().unwrap())
            .collect()
    };
    assert_eq!(times("kept"), [own, own + 1, own, own + 1]);
    let stamped = times("stamped");
    assert_eq!(stamped.len(), 4);
    // Far from the records' own times, however the clock of this machine is set.
    let years: i64 = 6 * 365 * 24 * 3600 * 1000;
    assert!(
        stamped.iter().all(|time| *time > own + years),
        "{stamped:?}"
    );

    // Look-ups and text output go by the same time.
    let at = format!("@{}", stamped.iter().min().unwrap());
    assert_eq!(
        broker.ok(&["consume", "stamped", "--from", &at, "-f", "%o "]),
        "0 1 2 3 "
    );
    let last = stamped[3].to_string();
    let shown = broker.ok(&["consume", "stamped", "--from", "-1", "-f", "%T"]);
    assert_eq!(shown, last);
    let behind = format!("@{}", stamped.iter().max().unwrap() + 1);
    assert_eq!(broker.ok(&["consume", "stamped", "--from", &behind]), "");
}
