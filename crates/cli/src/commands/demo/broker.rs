//! A real broker in a process of its own: this same binary, as `serve`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::failure::{Exit, Failure};

/// How long a start, or a stop, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lines of the broker's log that are shown when it fails.
const LOG_LINES: usize = 20;

/// A running broker. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Broker {
    child: Child,
    log: PathBuf,
    pub(super) address: String,
    pub(super) pid: u32,
    /// From its start until it said that it is ready.
    pub(super) ready_after: Duration,
}

impl Broker {
    /// Starts a broker on free ports, with its data in `dir/data` and its log in `dir/broker.log`.
    pub(super) async fn start(dir: &Path) -> Result<Self, Failure> {
        let cannot =
            |what: &str, error: std::io::Error| Failure::failed(format!("cannot {what}: {error}"));
        let program = std::env::current_exe().map_err(|e| cannot("find this program", e))?;
        let log = dir.join("broker.log");
        let log_file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|e| cannot("write the broker's log", e))?;
        let began_at = Instant::now();
        let mut command = Command::new(program);
        // Nothing of the caller's settings may lead this broker to other data or ports.
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("TIDELOG_"))
            {
                command.env_remove(name);
            }
        }
        let mut child = command
            .arg("serve")
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| cannot("start a broker", e))?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines();
        let line = match tokio::time::timeout(PATIENCE, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(broken("the broker ended before it was ready", &log)),
            Ok(Err(error)) => return Err(cannot("read from the broker", error)),
            Err(_) => {
                let what = format!("the broker was not ready within {PATIENCE:?}");
                return Err(broken(&what, &log));
            }
        };
        let ready_after = began_at.elapsed();
        let (address, pid) = read_ready(&line)
            .ok_or_else(|| broken(&format!("the broker's first line is unknown: {line}"), &log))?;
        Ok(Self {
            child,
            log,
            address,
            pid,
            ready_after,
        })
    }

    /// SIGKILL: the process gets no chance to write anything.
    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        match tokio::time::timeout(PATIENCE, self.child.kill()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::failed(format!("cannot kill the broker: {error}"))),
            Err(_) => Err(broken("the broker did not die", &self.log)),
        }
    }

    /// The failure, with what the broker says about it.
    pub(super) fn explain(&self, mut failure: Failure) -> Failure {
        let log = last_lines(&self.log);
        failure.message = format!("{}\nthe broker's log:\n{log}", failure.message);
        failure
    }
}

/// The address of gRPC and the process id in the line that a broker prints once it is ready.
fn read_ready(line: &str) -> Option<(String, u32)> {
    let ready: Value = serde_json::from_str(line).ok()?;
    let pid = ready["pid"].as_u64()?.try_into().ok()?;
    Some((ready["grpc_addr"].as_str()?.to_owned(), pid))
}

fn broken(what: &str, log: &Path) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("{what}; its log:\n{}", last_lines(log)),
    )
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read() {
        let line = r#"{"grpc_addr":"127.0.0.1:5","http_addr":"127.0.0.1:6","pid":7}"#;
        assert_eq!(read_ready(line), Some(("127.0.0.1:5".to_owned(), 7)));
        assert_eq!(read_ready("starting"), None);
        assert_eq!(read_ready("{}"), None);
    }
}
