//! Real broker processes for tests: started on free ports, killed, started again.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::topics_client::TopicsClient;
use tonic::transport::Channel;

/// The binary under test.
pub const TIDELOG: &str = env!("CARGO_BIN_EXE_tidelog");

/// A broker process; killed when dropped.
pub struct Broker {
    child: Child,
    /// host:port of the gRPC API.
    pub grpc: String,
    /// host:port of metrics and health.
    pub http: String,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
}

impl Broker {
    /// Starts a broker on `data_dir` and waits until it is ready.
    pub fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[])
    }

    pub fn start_with(data_dir: &Path, args: &[&str]) -> Self {
        let mut child = serve(data_dir, args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        if line.is_empty() {
            let status = child.wait().unwrap();
            panic!("the broker did not become ready: {status}");
        }
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self {
            grpc: address("grpc_addr"),
            http: address("http_addr"),
            child,
            data_dir: data_dir.to_owned(),
        }
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.grpc))
            .unwrap()
            .connect_timeout(Duration::from_secs(10))
            .connect()
            .await
            .unwrap()
    }

    pub async fn log(&self) -> LogClient<Channel> {
        LogClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub async fn topics(&self) -> TopicsClient<Channel> {
        TopicsClient::new(self.channel().await)
    }

    /// Runs a client command against this broker.
    pub fn run(&self, args: &[&str]) -> Output {
        self.run_with_input(args, b"")
    }

    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        run(args, &[("TIDELOG_BROKER", &self.grpc)], input)
    }

    /// As [`Broker::run`], expecting success; gives stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        succeeded(args, self.run(args))
    }

    pub fn ok_with_input(&self, args: &[&str], input: &[u8]) -> String {
        succeeded(args, self.run_with_input(args, input))
    }

    /// A plain HTTP/1.1 GET: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(&self.http).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: tidelog\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Already gone after `kill` or `terminate`.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `tidelog serve` on free ports, not yet started.
pub fn serve(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TIDELOG);
    if !args.contains(&"--grpc-addr") {
        command.env("TIDELOG_GRPC_ADDR", "127.0.0.1:0");
    }
    if !args.contains(&"--http-addr") {
        command.env("TIDELOG_HTTP_ADDR", "127.0.0.1:0");
    }
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(data_dir)
        .args(args)
        .current_dir(data_dir.parent().unwrap())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

/// Runs the binary with these arguments.
pub fn run(args: &[&str], env: &[(&str, &str)], input: &[u8]) -> Output {
    use std::io::Write;
    let mut child = Command::new(TIDELOG)
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that does not read its input closes it: no fault of the test.
        drop(stdin.write_all(&input));
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn succeeded(args: &[&str], output: Output) -> String {
    assert!(
        output.status.success(),
        "tidelog {args:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code of a command.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// Stderr as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
