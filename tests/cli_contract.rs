//! What scripts rely on: commands, their output and their exit codes.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use serde_json::Value;
use support::{Broker, code, run, stderr};

fn started() -> (tempfile::TempDir, Broker) {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("data"));
    (dir, broker)
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_ready_line_and_the_addresses_file_say_the_same() {
    let (_dir, broker) = started();
    let file = std::fs::read_to_string(broker.data_dir.join("addresses.json")).unwrap();
    let addresses: Value = serde_json::from_str(&file).unwrap();
    assert_eq!(addresses["grpc_addr"], broker.grpc.as_str());
    assert_eq!(addresses["http_addr"], broker.http.as_str());
    assert!(!broker.grpc.ends_with(":0"));
}

#[test]
fn a_first_message() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "greetings"]);
    broker.ok_with_input(&["produce", "greetings"], b"hello\n");
    assert_eq!(broker.ok(&["consume", "greetings"]), "hello\n");
}

#[test]
fn lines_become_records_byte_for_byte() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    let input = b"plain\r\n\n  spaced \xff\xfe\nlast";
    let output = broker.run_with_input(&["produce", "t"], input);
    assert_eq!(code(&output), 0);
    assert!(
        stderr(&output).contains('4'),
        "says how many: {}",
        stderr(&output)
    );
    let output = broker.run(&["consume", "t"]);
    assert_eq!(output.stdout, b"plain\r\n\n  spaced \xff\xfe\nlast\n");

    let records = json_lines(&broker.ok(&["consume", "t", "-o", "json"]));
    assert_eq!(records[0]["value"], "plain\r");
    assert_eq!(records[1]["value"], "");
    assert_eq!(records[2]["value_base64"], "ICBzcGFjZWQg//4=");
    assert_eq!(records[2].get("value"), None);
    assert_eq!(records[3]["key"], Value::Null);
    let keys: Vec<_> = records[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        [
            "topic",
            "partition",
            "offset",
            "timestamp",
            "key",
            "value",
            "headers"
        ]
    );
}

#[test]
fn keys_times_headers_and_partitions() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t", "--partitions", "3"]);
    let input =
        b"{\"k\":\"us\",\"time\":1517363399650}\n{\"k\":17,\"time\":\"2018-02-04T00:00:00Z\"}\n";
    let args = [
        "produce",
        "t",
        "--key-field",
        "k",
        "--timestamp-field",
        "time",
        "--header",
        "a=1",
        "--header",
        "a=2",
    ];
    broker.ok_with_input(&args, input);
    let mut records = json_lines(&broker.ok(&["consume", "t", "-o", "json"]));
    records.sort_by_key(|record| record["timestamp"].as_i64());
    assert_eq!(records[0]["key"], "us");
    assert_eq!(records[0]["timestamp"], 1_517_363_399_650_i64);
    assert_eq!(records[1]["key"], "17");
    assert_eq!(records[1]["timestamp"], 1_517_702_400_000_i64);
    assert_eq!(
        records[0]["headers"],
        serde_json::json!([["a", "1"], ["a", "2"]])
    );

    broker.ok_with_input(
        &["produce", "t", "--partition", "2", "--key", "fixed"],
        b"x\n",
    );
    let args = [
        "consume",
        "t",
        "--partition",
        "2",
        "--from",
        "-1",
        "-f",
        "%t/%p/%k/%s\\t%h\\n",
    ];
    assert_eq!(broker.ok(&args), "t/2/fixed/x\t\n");
}

#[test]
fn ranges_and_offsets() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    let lines: String = (0..10)
        .map(|n| format!("{{\"n\":{n},\"at\":{}}}\n", 1000 * (n + 1)))
        .collect();
    broker.ok_with_input(
        &["produce", "t", "--timestamp-field", "at"],
        lines.as_bytes(),
    );
    let consumed = |args: &[&str]| {
        let args = [&["consume", "t", "-f", "%o "], args].concat();
        broker.ok(&args)
    };
    assert_eq!(consumed(&[]), "0 1 2 3 4 5 6 7 8 9 ");
    assert_eq!(consumed(&["--from", "7"]), "7 8 9 ");
    assert_eq!(consumed(&["--from", "-3"]), "7 8 9 ");
    assert_eq!(consumed(&["--from", "3", "--to", "5"]), "3 4 ");
    assert_eq!(consumed(&["--from", "@5000", "--to", "@7000"]), "4 5 ");
    assert_eq!(consumed(&["--from", "@1970-01-01T00:00:09Z"]), "8 9 ");
    assert_eq!(consumed(&["--from", "latest"]), "");
    assert_eq!(consumed(&["-n", "2"]), "0 1 ");
    assert_eq!(consumed(&["--from", "@-1h"]), "");

    let offsets: Value =
        serde_json::from_str(&broker.ok(&["offsets", "t", "--at", "@5000", "-o", "json"])).unwrap();
    assert!(offsets.to_string().contains("\"offset\":4"), "{offsets}");

    broker.ok(&["topic", "trim", "t", "--before", "6", "--yes"]);
    assert_eq!(consumed(&[]), "6 7 8 9 ");
    let output = broker.run(&["consume", "t", "--from", "2"]);
    assert_eq!(code(&output), 3);
    let said = stderr(&output);
    assert!(
        said.contains('6') && said.contains("10"),
        "both ends are named: {said}"
    );
    broker.ok(&["topic", "trim", "t", "--before", "1000", "--yes"]);
    assert_eq!(consumed(&[]), "", "all there was");
}

#[test]
fn topics_from_birth_to_death() {
    let (_dir, broker) = started();
    broker.ok(&[
        "topic",
        "create",
        "t",
        "--partitions",
        "2",
        "-c",
        "retention.ms=60000",
    ]);
    let output = broker.run(&["topic", "create", "t"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let output = broker.run(&["topic", "create", "u", "-c", "retention_ms=1"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("retention.ms"),
        "{}",
        stderr(&output)
    );
    let output = broker.run(&["topic", "create", "not allowed"]);
    assert_eq!(code(&output), 2, "no topic can have that name");
    assert!(stderr(&output).contains("a-z"), "{}", stderr(&output));

    broker.ok(&["topic", "alter", "t", "-c", "segment.ms=1000"]);
    broker.ok(&["topic", "add-partitions", "t", "--partitions", "4"]);
    let described: Value =
        serde_json::from_str(&broker.ok(&["topic", "describe", "t", "-o", "json"])).unwrap();
    assert_eq!(
        described["partition_details"].as_array().unwrap().len(),
        4,
        "{described}"
    );
    assert!(broker.ok(&["topic", "list"]).contains('t'));

    let output = broker.run(&["topic", "delete", "t"]);
    assert_eq!(
        code(&output),
        2,
        "asks for --yes when nobody can be asked: {}",
        stderr(&output)
    );
    broker.ok(&["topic", "delete", "t", "--yes"]);
    let output = broker.run(&["consume", "t"]);
    assert_eq!(code(&output), 3);
    let output = broker.run(&["topic", "describe", "t"]);
    assert_eq!(code(&output), 3);
    let left: Vec<_> = std::fs::read_dir(&broker.data_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("t-") || name.ends_with(".deleted"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn offsets_are_not_called_records_for_compaction_leaves_gaps() {
    let (_dir, broker) = started();
    broker.ok(&[
        "topic",
        "create",
        "t",
        "-c",
        "cleanup.policy=compact,delete",
    ]);
    broker.ok_with_input(&["produce", "t", "--key", "k"], b"a\nb\nc\n");
    for args in [&["offsets", "t"][..], &["topic", "describe", "t"]] {
        let table = broker.ok(args);
        assert!(table.contains("OFFSETS"), "{table}");
        assert!(!table.contains("RECORDS"), "{table}");
    }
    let dry_run = |args: &[&str]| stderr(&broker.run(&[args, &["--dry-run"]].concat()));
    let said = dry_run(&["topic", "delete", "t"]);
    assert!(said.contains("with 1 partition, 3 offsets and "), "{said}");
    let said = dry_run(&["topic", "trim", "t", "--before", "2"]);
    assert!(
        said.contains("2 offsets of topic t would be dropped"),
        "{said}"
    );
}

#[test]
fn everything_is_there_after_a_clean_stop() {
    let (dir, broker) = started();
    broker.ok(&["topic", "create", "t", "--partitions", "2"]);
    broker.ok_with_input(&["produce", "t", "--compression", "zstd"], b"a\nb\nc\n");
    let before = broker.ok(&["consume", "t", "-o", "json"]);
    assert!(broker.terminate().success());
    let broker = Broker::start(&dir.path().join("data"));
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(
        sorted(&broker.ok(&["consume", "t", "-o", "json"])),
        sorted(&before)
    );
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    assert_eq!(code(&run(&["nonsense"], &[], b"")), 2);
    assert_eq!(code(&run(&["consume"], &[], b"")), 2);
    assert_eq!(
        code(&run(
            &["consume", "t", "--from", "@yesterday-ish"],
            &[],
            b""
        )),
        2
    );
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let output = run(&["topic", "list", "--broker", &address], &[], b"");
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
    assert_eq!(code(&run(&["version"], &[], b"")), 0);
    assert_eq!(code(&run(&["help"], &[], b"")), 0);
    assert_eq!(code(&run(&["completion", "bash"], &[], b"")), 0);
}

#[test]
fn measurements_say_what_was_asked_for() {
    let (_dir, broker) = started();
    let bench = |args: &[&str]| {
        let args = [&["bench"], args, &["--records", "20", "-o", "json"]].concat();
        json_lines(&broker.ok(&args)).remove(0)
    };
    for name in ["produce", "latency"] {
        let report = bench(&[name]);
        assert_eq!(report["records"], 20, "{report}");
        assert_eq!(report.get("rate"), None, "{report}");
        let report = bench(&[name, "--rate", "100000"]);
        assert_eq!(report["rate"], 100_000, "{report}");
    }
    let report = bench(&["consume"]);
    assert_eq!(report["records"], 20, "{report}");
    // What is to be read must be there.
    let output = broker.run(&["bench", "consume", "--topic", "nothing"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("TOPIC_NOT_FOUND"));
    assert!(!broker.ok(&["topic", "list"]).contains("nothing"));
}

#[test]
fn measurements_refuse_values_that_cannot_be_stored() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t", "-c", "max.message.bytes=2000"]);
    for name in ["produce", "latency"] {
        let args = |size| {
            [
                "bench",
                name,
                "--topic",
                "t",
                "--records",
                "3",
                "--size",
                size,
            ]
        };
        let output = broker.run(&args("2000"));
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        let said = stderr(&output);
        for part in [
            "--size 2000 is too large",
            "max.message.bytes of topic t is 2000",
            "tidelog topic alter t -c max.message.bytes=20",
        ] {
            assert!(said.contains(part), "{part:?} in {said}");
        }
        assert_eq!(broker.ok(&["consume", "t"]), "", "nothing was sent");
    }
    let said = stderr(&broker.run(&["bench", "produce", "--topic", "t", "--size", "2000"]));
    let enough = said.rsplit('=').next().unwrap().trim();
    let setting = format!("max.message.bytes={enough}");
    broker.ok(&["topic", "alter", "t", "-c", &setting]);
    let args = [
        "bench",
        "produce",
        "--topic",
        "t",
        "--records",
        "3",
        "--size",
        "2000",
    ];
    broker.ok(&args);
    let less: u64 = enough.parse().unwrap();
    let setting = format!("max.message.bytes={}", less - 1);
    broker.ok(&["topic", "alter", "t", "-c", &setting]);
    assert_eq!(code(&broker.run(&args)), 3, "one byte less is too little");
}

#[test]
fn next_steps_name_the_topic() {
    let (_dir, broker) = started();
    let name = "MY_TOPIC";
    let says = |args: &[&str], input: &[u8], part: &str| {
        let output = broker.run_with_input(args, input);
        assert_eq!(code(&output), 3, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    };
    let create = "tidelog topic create MY_TOPIC\n";
    says(&["produce", name], b"x\n", create);
    says(&["consume", name], b"", create);
    says(&["offsets", name], b"", create);
    says(&["topic", "describe", name], b"", create);
    broker.ok(&["topic", "create", name, "-c", "max.message.bytes=2000"]);
    let describe = "tidelog topic describe MY_TOPIC\n";
    says(&["topic", "create", name], b"", describe);
    let offsets = "tidelog offsets MY_TOPIC\n";
    says(&["consume", name, "--from", "5"], b"", offsets);
    let add = "tidelog topic add-partitions MY_TOPIC --partitions N\n";
    says(&["offsets", name, "--partition", "7"], b"", add);
    let args = ["topic", "trim", name, "--before", "1", "--partition", "7"];
    says(&args, b"", add);
    let alter = "tidelog topic alter MY_TOPIC -c max.message.bytes=N";
    says(&["produce", name], &[b'x'; 5000], alter);
}

#[test]
fn what_was_not_made_has_no_id() {
    let (_dir, broker) = started();
    let create = ["topic", "create", "t", "-o", "json"];
    let dry = [&create[..], &["--dry-run"]].concat();
    let would_be = json_lines(&broker.ok(&dry)).remove(0);
    assert_eq!(would_be["id"], Value::Null, "{would_be}");
    let made = json_lines(&broker.ok(&create)).remove(0);
    // The same form wherever it is shown.
    let dir = broker.data_dir.join("t-0");
    let inspect = ["log", "inspect", dir.to_str().unwrap(), "-o", "json"];
    let inspected = json_lines(&broker.ok(&inspect)).remove(0);
    assert!(made["id"].is_string(), "{made}");
    assert_eq!(made["id"], inspected["topic_id"]);
}

#[test]
fn limits_say_which_one_to_raise() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_with(dir.path(), &["--topics-max", "1"]);
    broker.ok(&["topic", "create", "t"]);
    let refused = |name| {
        let output = broker.run(&["topic", "create", name]);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        stderr(&output)
    };
    let said = refused("u");
    assert!(said.contains("LIMIT_REACHED"), "{said}");
    assert!(said.contains("a larger topics_max\n"), "{said}");
    let said = refused("__mine");
    assert!(said.contains("it can be read\n"), "{said}");
}

#[test]
fn only_commands_that_talk_to_a_broker_take_its_address() {
    // What is wrong with it concerns nobody else.
    let env = [("TIDELOG_BROKER", "http://not/an/address")];
    assert_eq!(code(&run(&["version"], &env, b"")), 0);
    assert_eq!(code(&run(&["completion", "bash"], &env, b"")), 0);
    let output = run(&["topic", "list"], &env, b"");
    assert_eq!(code(&output), 2);
    let said = stderr(&output);
    assert!(said.contains("http://not/an/address"), "{said}");

    let help = |args: &[&str]| String::from_utf8(run(args, &[], b"").stdout).unwrap();
    for command in ["cluster", "topic", "produce", "consume", "offsets", "bench"] {
        let help = help(&[command, "--help"]);
        assert!(help.contains("--broker <"), "{command}: {help}");
    }
    for command in ["serve", "dev", "demo", "config", "completion", "version"] {
        let help = help(&[command, "--help"]);
        assert!(!help.contains("--broker <"), "{command}: {help}");
    }
    assert!(help(&["topic", "list", "--help"]).contains("--broker"));
    assert!(!help(&["--help"]).contains("--broker"));

    let (_dir, broker) = started();
    let env = [("TIDELOG_BROKER", "nobody.invalid:9400")];
    let list = ["topic", "list", "--broker", &broker.grpc];
    assert_eq!(code(&run(&list, &env, b"")), 0, "the flag wins");
}

#[test]
fn health_and_metrics() {
    let (_dir, broker) = started();
    broker.ok(&["topic", "create", "t"]);
    broker.ok_with_input(&["produce", "t"], b"one\n");
    assert_eq!(broker.get("/health/live").0, 200);
    assert_eq!(broker.get("/health/ready").0, 200);
    assert_eq!(broker.get("/nothing").0, 404);
    let (status, metrics) = broker.get("/metrics");
    assert_eq!(status, 200);
    for line in [
        "tidelog_high_watermark{partition=\"0\",topic=\"t\"} 1",
        "tidelog_log_segments{partition=\"0\",topic=\"t\"} 1",
        "# TYPE tidelog_append_seconds histogram",
        "# TYPE tidelog_sync_seconds histogram",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn the_demo_passes() {
    let output = run(&["demo"], &[], b"");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
    assert_eq!(code(&output), 0, "{said}");
    assert!(said.contains("1707") || said.contains("1,707"), "{said}");
    assert!(said.contains("777"), "{said}");
    assert!(said.contains("all replicas are the same"), "{said}");
}
