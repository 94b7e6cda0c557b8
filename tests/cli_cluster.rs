//! Several brokers from the command line: `tidelog dev`, `tidelog cluster` and where partitions are.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::{Value, json};
use support::{Broker, TIDELOG, code, run, serve, stderr};

/// `tidelog dev` on free ports; stopped when dropped.
struct Dev {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    ready: Value,
}

impl Dev {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(TIDELOG)
            .args(["dev", "-o", "json", "--base-port", "0", "--data-dir"])
            .arg(dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        if line.is_empty() {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            panic!("the brokers did not become ready: {said}");
        }
        let ready = serde_json::from_str(&line).unwrap();
        Self {
            child,
            stderr,
            ready,
        }
    }

    fn addresses(&self) -> &str {
        self.ready["broker"].as_str().unwrap()
    }

    fn broker(&self, node: usize) -> &Value {
        &self.ready["brokers"][node - 1]
    }

    fn kill(&self, node: usize) {
        signal(self.broker(node)["pid"].as_u64().unwrap(), true);
    }

    fn run(&self, args: &[&str]) -> Output {
        run(args, &[("TIDELOG_BROKER", self.addresses())], b"")
    }

    /// What a command prints as JSON, a value a line.
    #[track_caller]
    fn json(&self, args: &[&str], expected: i32) -> Vec<Value> {
        let output = self.run(&[args, &["-o", "json"]].concat());
        assert_eq!(code(&output), expected, "{args:?}: {}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[track_caller]
    fn ends(&self, args: &[&str], expected: i32, part: &str) {
        let output = self.run(args);
        let said = stderr(&output);
        assert_eq!(code(&output), expected, "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {part:?} is not in {said}");
    }

    /// The next line that it says, containing `part`.
    fn says(&mut self, part: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "it ended");
            if line.contains(part) {
                return line;
            }
        }
    }

    fn terminate(mut self) -> ExitStatus {
        signal(self.child.id().into(), false);
        self.child.wait().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // With SIGKILL it could not end its brokers.
        if self.child.try_wait().unwrap().is_none() {
            signal(self.child.id().into(), false);
            self.child.wait().unwrap();
        }
    }
}

fn signal(pid: u64, is_kill: bool) {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let signal = if is_kill { Signal::KILL } else { Signal::TERM };
    kill_process(pid, signal).unwrap();
}

/// Looks again and again until something is so.
#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) {
    assert!((0..2000).any(|_| is_so()), "it does not become so");
}

/// An address where nobody listens: it was free a moment ago.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn three_brokers_with_one_command() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    assert_eq!(dev.ready["brokers"].as_array().unwrap().len(), 3);
    let status = dev.json(&["cluster", "status"], 0).remove(0);
    assert_eq!(status["metadata_voters"], json!([1, 2, 3]), "{status}");
    assert!(status["metadata_leader"].is_u64(), "{status}");
    assert_eq!(status["problems"], json!([]), "{status}");

    dev.ends(
        &["topic", "create", "t", "--partitions", "3"],
        0,
        "3 replicas each",
    );
    let described = dev.json(&["topic", "describe", "t"], 0).remove(0);
    assert_eq!(described["replication_factor"], 3, "{described}");
    for partition in described["partition_details"].as_array().unwrap() {
        assert_eq!(
            partition["replicas"].as_array().unwrap().len(),
            3,
            "{partition}"
        );
        assert!(partition["log_start_offset"].is_u64(), "{partition}");
    }
    // It is led, and all have it, once it is made.
    dev.ends(&["cluster", "health"], 0, "");
    let more = ["topic", "add-partitions", "t", "--partitions", "6"];
    dev.ends(&more, 0, "6 partitions");
    dev.ends(&["cluster", "health"], 0, "");

    let placed = ["topic", "create", "placed", "--assignment", "1,2/2,3"];
    dev.ends(&placed, 0, "2 partitions, 2 replicas each");
    let places = dev.json(&["cluster", "partitions", "placed"], 0);
    assert_eq!(places[0]["replicas"], json!([1, 2]));
    assert_eq!(places[1]["replicas"], json!([2, 3]));
    let reassign = ["topic", "reassign", "placed", "--partition", "1"];
    let to = [&reassign[..], &["--to", "3,1", "--wait"]].concat();
    let done = dev.json(&to, 0).remove(0);
    assert_eq!(done["done"], true, "{done}");
    let places = dev.json(&["cluster", "partitions", "placed"], 0);
    assert_eq!(places[1]["replicas"], json!([3, 1]));
    let cancel = [&reassign[..], &["--cancel"]].concat();
    dev.ends(&cancel, 3, "tidelog cluster partitions placed");
    let lead = [
        "topic",
        "set-leader",
        "placed",
        "--partition",
        "0",
        "--node",
    ];
    let led = [&lead[..], &["2", "--wait"]].concat();
    dev.ends(&led, 0, "broker 2 leads partition 0 of topic placed now");
    // Once more is no error.
    let already = "broker 2 leads partition 0 of topic placed already";
    dev.ends(&led, 0, already);
    dev.ends(&led[..led.len() - 1], 0, already);
    let line = dev.json(&led, 0).remove(0);
    assert_eq!(line["leader"], 2, "{line}");
    dev.ends(&[&lead[..], &["1"]].concat(), 0, "broker 1 is to lead");
    dev.ends(&[&lead[..], &["3"]].concat(), 3, "REASSIGNMENT_REFUSED");

    assert!(dev.terminate().success());
    // As many as there were, and where they were.
    let dev = Dev::start(dir.path(), &[]);
    let topics = dev.json(&["topic", "list"], 0);
    assert_eq!(topics.len(), 2, "{topics:?}");
    let other = [
        "dev",
        "--brokers",
        "2",
        "--data-dir",
        dir.path().to_str().unwrap(),
    ];
    let refused = run(&other, &[], b"");
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("has the data of 3 brokers, not 2"));
}

#[test]
fn a_broker_that_dies_is_told_of_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), &[]);
    dev.ends(&["topic", "create", "t", "--partitions", "3"], 0, "created");
    dev.kill(1);
    let said = dev.says("has ended");
    assert!(said.contains("broker 1 has ended: signal: 9"), "{said}");
    assert!(dev.says("tidelog serve").contains("--node-id 1 "));
    // The first address is the one of the broker that is gone.
    let status = dev.json(&["cluster", "status"], 0).remove(0);
    assert_ne!(status["answered_by"], 1, "{status}");
    // Soon it is not heard any more; each look asks anew.
    until(|| dev.json(&["cluster", "brokers"], 0)[0]["state"] != "alive");
    let health = dev.json(&["cluster", "health"], 1).remove(0);
    assert_eq!(health["healthy"], false, "{health}");
    let output = run(
        &["produce", "t", "--key", "k"],
        &[("TIDELOG_BROKER", dev.addresses())],
        b"after\n",
    );
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let consumed = dev.run(&["consume", "t"]);
    assert_eq!(consumed.stdout, b"after\n");
    // A broker that is gone can be chosen, and does not lead.
    let lead = [
        "topic",
        "set-leader",
        "t",
        "--partition",
        "0",
        "--node",
        "1",
    ];
    let wait = ["--wait", "--timeout", "500ms"];
    let said = "broker 1 does not lead partition 0 of topic t after 500ms";
    dev.ends(&[&lead[..], &wait].concat(), 4, said);
    // What would be done is said as it is, and nothing is done.
    let deleted = dev
        .json(&["topic", "delete", "t", "--dry-run"], 0)
        .remove(0);
    assert_eq!(deleted["deleted"], false, "{deleted}");
    assert_eq!(deleted["offsets"], 1, "{deleted}");
    let remove = ["cluster", "remove", "2", "--dry-run"];
    dev.ends(&remove, 3, "tidelog cluster drain 2 --wait");
    assert!(dev.terminate().success());
}

#[test]
fn what_cannot_be_is_refused_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    dev.ends(&["topic", "create", "t"], 0, "3 replicas each");
    let too_many = ["topic", "create", "u", "--replicas", "4"];
    dev.ends(&too_many, 3, "TOO_FEW_BROKERS");
    let unknown = ["topic", "create", "u", "--assignment", "1,9"];
    dev.ends(&unknown, 3, "tidelog cluster brokers");

    let cluster_addr = dev.broker(1)["cluster_addr"].as_str().unwrap();
    let join = format!("--node-id 9 --data-dir DIR --cluster-addr HOST:PORT --join {cluster_addr}");
    dev.ends(&["cluster", "add", "9"], 3, &join);
    dev.ends(&["cluster", "drain", "9"], 3, "there is no broker 9");
    // Three replicas need three brokers.
    dev.ends(&["cluster", "drain", "3"], 3, "--node-id 4 ");
    let dry_run = ["cluster", "drain", "3", "--dry-run"];
    dev.ends(
        &dry_run,
        3,
        "no other broker can take 1 of 1 replica of broker 3",
    );
    dev.ends(&dry_run, 3, "--node-id 4 ");
    let plan = dev.json(&dry_run, 3).remove(0);
    assert_eq!(plan["stuck"], 1, "{plan}");
    assert_eq!(plan["moves"][0]["target"], Value::Null, "{plan}");
    dev.ends(
        &["cluster", "drain", "9", "--dry-run"],
        3,
        "there is no broker 9",
    );
    dev.ends(&["cluster", "remove", "3"], 2, "--yes");
    let drain = "tidelog cluster drain 3 --wait";
    dev.ends(&["cluster", "remove", "3", "--yes"], 3, drain);
    let directory = "000102030405060708090a0b0c0d0e0f";
    let replace = ["cluster", "replace", "3", "--directory", directory];
    dev.ends(&replace, 2, "--yes");
    let dry_run = dev
        .json(&[&replace[..], &["--dry-run"]].concat(), 0)
        .remove(0);
    assert_eq!(dry_run["replaced"], false);
    assert_eq!(dry_run["replicas"], 1);
    dev.ends(
        &[&replace[..], &["--yes"]].concat(),
        3,
        "until it is fenced",
    );
}

#[test]
fn a_broker_without_replicas_can_go() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    dev.ends(
        &["topic", "create", "t", "--assignment", "3,1"],
        0,
        "created",
    );
    let dry_run = ["cluster", "drain", "3", "--dry-run"];
    dev.ends(&dry_run, 0, "1 replica of broker 3 would go elsewhere");
    let plan = dev.json(&dry_run, 0).remove(0);
    assert_eq!(plan["moves"][0]["target"], json!([2, 1]), "{plan}");
    assert_eq!(dev.json(&["cluster", "brokers"], 0)[2]["draining"], false);
    let drained = dev.json(&["cluster", "drain", "3", "--wait"], 0).remove(0);
    assert_eq!(drained["left"], 0, "{drained}");
    let places = dev.json(&["cluster", "partitions", "t"], 0);
    assert_eq!(places[0]["replicas"], json!([2, 1]), "as it was told");
    let added = dev.json(&["cluster", "add", "3"], 0).remove(0);
    assert_eq!(added["draining"], false, "{added}");
    dev.ends(&["cluster", "drain", "3"], 0, "tidelog cluster remove 3");
}

#[test]
fn a_broker_that_was_removed_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--brokers", "4"]);
    dev.ends(&["topic", "create", "t"], 0, "3 replicas each");
    dev.ends(&["cluster", "drain", "4", "--wait"], 0, "has no replicas");
    dev.ends(&["cluster", "remove", "4", "--yes"], 0, "removed");
    let at_4 = dev.broker(4)["grpc_addr"].as_str().unwrap();
    let status = ["cluster", "status", "--broker", at_4];
    // It hears of it a moment later.
    until(|| dev.json(&status, 0)[0]["refused"].is_string());
    let output = dev.run(&status);
    assert_eq!(code(&output), 0);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // By what it has carried out, or by what the others tell it.
    assert!(said.contains(" 4 was removed "), "{said}");
    assert!(said.contains("start it with --join"), "{said}");
    assert!(!said.contains("leaderless"), "{said}");
    assert!(stderr(&output).contains("ask another broker"));
    let health = ["cluster", "health", "--broker", at_4];
    let health = dev.json(&health, 1).remove(0);
    assert_eq!(health["problems"][0]["problem"], "refused", "{health}");
    assert_eq!(health["problem_count"], 1, "{health}");
    assert_eq!(
        dev.json(&["cluster", "status"], 0)[0]["refused"],
        Value::Null
    );
}

#[test]
fn one_broker_needs_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--brokers", "1"]);
    assert_eq!(dev.broker(1)["cluster_addr"], Value::Null);
    dev.ends(&["topic", "create", "t"], 0, "1 replica each");
    dev.ends(&["cluster", "status"], 0, "");
    dev.ends(&["cluster", "health"], 0, "");
    assert!(dev.terminate().success());
}

#[test]
fn a_broker_that_joins_at_a_port_that_is_no_cluster_port_warns_of_that() {
    let dir = tempfile::tempdir().unwrap();
    let other = Broker::start(&dir.path().join("other"));
    for (at, speaks) in [(&other.grpc, "gRPC"), (&other.http, "HTTP/1")] {
        let args = [
            "--node-id",
            "2",
            "--cluster-addr",
            "127.0.0.1:0",
            "--join",
            at,
        ];
        let mut child = serve(&dir.path().join("new"), &args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut lines = lines.map(|line| line.unwrap());
        let said = lines.find(|line| line.contains("WARN")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        for part in [
            "join must name the cluster port of a broker (its cluster_addr)",
            &format!("a port for {speaks}"),
            at,
        ] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
    }
}

#[test]
fn nobody_answers_with_4_and_what_to_do() {
    let addresses = format!("{},{}", nobody(), nobody());
    for command in ["status", "health", "brokers", "partitions"] {
        let output = run(&["cluster", command, "--broker", &addresses], &[], b"");
        assert_eq!(code(&output), 4, "{}", stderr(&output));
        assert_eq!(output.stdout, b"");
        assert!(stderr(&output).contains("one that answers is enough"));
    }
}
