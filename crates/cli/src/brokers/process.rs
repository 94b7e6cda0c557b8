//! A real broker in a process of its own: this same binary, as `serve`.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;

use super::plan::Plan;
use crate::failure::Failure;

/// How long a start, or the end after SIGKILL, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lines of the broker's log that are shown when it fails.
const LOG_LINES: usize = 20;

/// A process that is not ready yet. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Starting {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    plan: Plan,
    began_at: Instant,
}

/// A running broker. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    /// Kept open: the broker may write to it.
    _lines: Lines<BufReader<ChildStdout>>,
    pub(crate) plan: Plan,
    pub(crate) pid: u32,
    /// From its start until it said that it is ready.
    pub(crate) ready_after: Duration,
}

impl Starting {
    /// Starts a broker as planned, in a process group of its own: what the terminal sends to this
    /// program alone does not reach it.
    pub(crate) fn spawn(plan: &Plan) -> Result<Self, Failure> {
        let node = plan.node_id;
        let cannot =
            |what: &str, error: std::io::Error| Failure::failed(format!("cannot {what}: {error}"));
        let program = std::env::current_exe().map_err(|e| cannot("find this program", e))?;
        let log_file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&plan.log)
            .map_err(|e| cannot(&format!("write the log {}", plan.log.display()), e))?;
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
        if let Some(dir) = plan.log.parent() {
            command.current_dir(dir);
        }
        let began_at = Instant::now();
        let mut child = command
            .args(plan.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| cannot(&format!("start broker {node}"), e))?;
        let stdout = child.stdout.take().expect("it is piped");
        Ok(Self {
            child,
            lines: BufReader::new(stdout).lines(),
            plan: plan.clone(),
            began_at,
        })
    }

    /// Waits until the broker says that it is ready.
    pub(crate) async fn ready(mut self) -> Result<Broker, Failure> {
        let node = self.plan.node_id;
        let log = &self.plan.log;
        let line = match tokio::time::timeout(PATIENCE, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => {
                let what = format!("broker {node} ended before it was ready");
                return Err(broken(&what, log));
            }
            Ok(Err(error)) => {
                return Err(Failure::failed(format!(
                    "cannot read from broker {node}: {error}"
                )));
            }
            Err(_) => {
                let what = format!("broker {node} was not ready within {PATIENCE:?}");
                return Err(broken(&what, log));
            }
        };
        let ready_after = self.began_at.elapsed();
        let pid = read_ready(&line).ok_or_else(|| {
            broken(
                &format!("the first line of broker {node} is unknown: {line}"),
                log,
            )
        })?;
        Ok(Broker {
            child: self.child,
            _lines: self.lines,
            plan: self.plan,
            pid,
            ready_after,
        })
    }
}

impl Broker {
    /// SIGKILL: the process gets no chance to write anything.
    pub(crate) async fn kill(mut self) -> Result<(), Failure> {
        let killed = self.killed().await;
        killed.map(|_status| ()).map_err(|error| {
            let node = self.plan.node_id;
            Failure::failed(format!("cannot kill broker {node}: {error}"))
        })
    }

    /// The same, and how it ended.
    pub(crate) async fn killed(&mut self) -> std::io::Result<ExitStatus> {
        self.child.start_kill()?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// Asks it to come to an end, with SIGTERM.
    pub(crate) fn terminate(&self) {
        // Without an id it has ended already, and been waited for.
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            say!("cannot stop broker {}: {error}", self.plan.node_id);
        }
    }

    /// Waits until it has ended. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }
}

/// The process id in the line that a broker prints once it is ready.
fn read_ready(line: &str) -> Option<u32> {
    let ready: Value = serde_json::from_str(line).ok()?;
    ready["grpc_addr"].as_str()?;
    ready["pid"].as_u64()?.try_into().ok()
}

fn broken(what: &str, log: &Path) -> Failure {
    Failure::failed(format!("{what}; its log:\n{}", last_lines(log)))
}

/// The end of what a broker has said.
pub(crate) fn last_lines(log: &Path) -> String {
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
        assert_eq!(read_ready(line), Some(7));
        assert_eq!(read_ready("starting"), None);
        assert_eq!(read_ready("{}"), None);
    }
}
