//! The process as scripts see it: its line on stdout, its file, its signals, its exit codes.
//!
//! Each broker is this very test binary, started again to run only [`serve`].

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use clap::{Args, FromArgMatches};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidelog_proto::v1;
use tidelog_proto::v1::topics_client::TopicsClient;
use tidelog_server::{ServeArgs, run};

/// The flags of the broker, one a line, for the process that runs [`serve`].
const FLAGS: &str = "TEST_SERVE_FLAGS";

/// Not a test: the broker's process.
#[test]
#[ignore = "started by the other tests"]
fn serve() {
    let Ok(flags) = std::env::var(FLAGS) else {
        return;
    };
    let flags = std::iter::once("serve").chain(flags.lines());
    let command = ServeArgs::augment_args(clap::Command::new("serve"));
    let args = ServeArgs::from_arg_matches(&command.get_matches_from(flags)).unwrap();
    let resolved = tidelog_server::config::resolve(&args, [], Path::new("/nowhere")).unwrap();
    let exit = run(&resolved);
    std::process::exit(exit.code().into());
}

struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(data_dir: &Path, more: &[&str]) -> Self {
        let mut flags = format!(
            "--data-dir\n{}\n--log-format\njson\n--grpc-addr\n127.0.0.1:0\n",
            data_dir.display()
        );
        if !more.contains(&"--http-addr") {
            flags.push_str("--http-addr\n127.0.0.1:0\n");
        }
        flags.push_str(&more.join("\n"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "serve", "--nocapture", "--quiet"])
            .env(FLAGS, flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// The line that says where the broker listens. The test runner says things before it.
    fn ready(&mut self) -> Value {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
            line.clear();
        }
        panic!("it ended before it was ready: {}", self.stderr());
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    /// Waits for its end: its exit code and its logs.
    fn end(mut self) -> (Option<i32>, String) {
        let text = self.stderr();
        let status: ExitStatus = self.child.wait().unwrap();
        (status.code(), text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has ended, as it should have.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn addr(ready: &Value, key: &str) -> SocketAddr {
    ready[key].as_str().unwrap().parse().unwrap()
}

fn create_topic(ready: &Value, name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let to = format!("http://{}", addr(ready, "grpc_addr"));
        let mut topics = TopicsClient::connect(to).await.unwrap();
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        topics.create_topic(request).await.unwrap();
    });
}

#[test]
fn it_says_where_it_listens_and_stops_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    for (signal, name) in [(Signal::TERM, "a"), (Signal::INT, "b")] {
        let mut process = Process::start(dir.path(), &[]);
        let ready = process.ready();
        assert_ne!(addr(&ready, "grpc_addr").port(), 0);
        assert_ne!(addr(&ready, "http_addr").port(), 0);
        assert_eq!(ready["pid"], process.child.id());
        assert_eq!(Path::new(ready["data_dir"].as_str().unwrap()), dir.path());
        assert_eq!(ready["version"], env!("CARGO_PKG_VERSION"));
        let file = fs::read_to_string(dir.path().join("addresses.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&file).unwrap(), ready);
        create_topic(&ready, name);
        process.signal(signal);
        let (code, logs) = process.end();
        assert_eq!(code, Some(0), "{logs}");
        assert!(!dir.path().join("addresses.json").exists());
        let mut messages = Vec::new();
        for line in logs.lines().filter(|line| line.starts_with('{')) {
            let event: Value = serde_json::from_str(line).unwrap();
            messages.push(event["message"].as_str().unwrap().to_owned());
        }
        assert!(messages.contains(&"ready".to_owned()), "{messages:?}");
        assert_eq!(messages.last().unwrap(), "stopped");
    }
}

#[test]
fn it_starts_again_after_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), &[]);
    let ready = process.ready();
    create_topic(&ready, "t");
    process.signal(Signal::KILL);
    let (code, _) = process.end();
    assert_eq!(code, None);
    let stale = fs::read_to_string(dir.path().join("addresses.json")).unwrap();
    let mut process = Process::start(dir.path(), &[]);
    let ready = process.ready();
    let fresh = fs::read_to_string(dir.path().join("addresses.json")).unwrap();
    assert_ne!(fresh, stale);
    assert_eq!(serde_json::from_str::<Value>(&fresh).unwrap(), ready);
    process.signal(Signal::TERM);
    assert_eq!(process.end().0, Some(0));
    assert!(dir.path().join("t-0").is_dir());
}

#[test]
fn it_waits_for_other_brokers_until_it_is_told_to_stop() {
    // Nobody ever answers there.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = format!("1@localhost:1,2@{}", other.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let more = ["--peers", &peers, "--cluster-addr", "127.0.0.1:0"];
    let mut process = Process::start(dir.path(), &more);
    let mut logs = BufReader::new(process.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting for other brokers") {
        line.clear();
        assert!(logs.read_line(&mut line).unwrap() > 0, "it ended");
    }
    assert!(line.contains("2@127.0.0.1"), "{line}");
    process.signal(Signal::TERM);
    let mut rest = String::new();
    logs.read_to_string(&mut rest).unwrap();
    assert_eq!(process.child.wait().unwrap().code(), Some(1));
    assert!(rest.contains("stopped before the start"), "{rest}");
}

#[test]
fn a_second_broker_on_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Process::start(dir.path(), &[]);
    let ready = first.ready();
    let (code, logs) = Process::start(dir.path(), &[]).end();
    assert_eq!(code, Some(3), "{logs}");
    assert!(logs.contains("in use"), "{logs}");
    assert!(
        logs.contains("its pid is in addresses.json there"),
        "{logs}"
    );
    // The first goes on, and so does its file.
    create_topic(&ready, "t");
    assert!(dir.path().join("addresses.json").exists());
    first.signal(Signal::TERM);
    assert_eq!(first.end().0, Some(0));
}

#[test]
fn a_port_in_use_is_told_with_its_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let (code, logs) = Process::start(dir.path(), &["--http-addr", &addr]).end();
    assert_eq!(code, Some(1), "{logs}");
    assert!(
        logs.contains(&format!("cannot listen on {addr} (http_addr)")),
        "{logs}"
    );
    assert!(logs.contains("in use by another program"), "{logs}");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing was touched"
    );
}

#[test]
fn a_directory_that_cannot_be_written_is_told() {
    // Not even root can make a directory there.
    let (code, logs) = Process::start(Path::new("/proc/tidelog-data"), &[]).end();
    assert_eq!(code, Some(1), "{logs}");
    assert!(logs.contains("/proc/tidelog-data"), "{logs}");
    assert!(logs.contains("a --data-dir that can be created"), "{logs}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let (code, logs) = Process::start(&file, &[]).end();
    assert_eq!(code, Some(1), "{logs}");
    assert!(logs.contains(&file.display().to_string()), "{logs}");
    assert!(
        logs.contains("data_dir is a file; it must be a directory"),
        "{logs}"
    );
}

#[test]
fn damaged_metadata_is_told_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), &[]);
    let ready = process.ready();
    for i in 0..20 {
        create_topic(&ready, &format!("t{i}"));
    }
    process.signal(Signal::TERM);
    assert_eq!(process.end().0, Some(0));
    let log = dir
        .path()
        .join("__cluster_metadata-0/00000000000000000000.log");
    let mut bytes = fs::read(&log).unwrap();
    // Behind the last command there is room for more.
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let middle = used / 2;
    bytes[middle] ^= 0x10;
    fs::write(&log, &bytes).unwrap();
    let (code, logs) = Process::start(dir.path(), &[]).end();
    assert_eq!(code, Some(5), "{logs}");
    assert!(logs.contains("__cluster_metadata"), "{logs}");
    assert!(
        fs::read(&log).unwrap().starts_with(&bytes[..=used]),
        "what was there is as it was"
    );
}

#[test]
fn being_open_to_the_network_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), &["--http-addr", "0.0.0.0:0"]);
    process.ready();
    process.signal(Signal::TERM);
    let (code, logs) = process.end();
    assert_eq!(code, Some(0));
    let warning = logs
        .lines()
        .find(|line| line.contains("\"WARN\""))
        .expect("there is one");
    assert!(
        warning.contains("http_addr is open to the network"),
        "{warning}"
    );
    assert!(warning.contains("no authentication"), "{warning}");
}
