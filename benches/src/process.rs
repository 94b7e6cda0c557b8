//! Servers in processes of their own, so that their time can be told from the client's.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it serves gRPC.
    pub(crate) addr: String,
}

impl Server {
    /// A broker on `data_dir`; returns once it is ready.
    pub(crate) fn broker(data_dir: &Path) -> anyhow::Result<Self> {
        let program = beside("tidelog")?;
        let mut command = Command::new(program);
        command
            .args(["serve", "--grpc-addr", "127.0.0.1:0"])
            .args(["--http-addr", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir);
        let (child, line) = start(command)?;
        let ready: serde_json::Value = serde_json::from_str(&line)?;
        let addr = ready["grpc_addr"]
            .as_str()
            .context("a broker says where it serves")?
            .to_owned();
        Ok(Self { child, addr })
    }

    /// A broker of a cluster. It is waited for with [`Server::ready`], since none serves before all are
    /// there.
    pub(crate) fn of_cluster(
        data_dir: &Path,
        id: u32,
        ports: [u16; 3],
        peers: &str,
    ) -> anyhow::Result<Self> {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let mut command = Command::new(beside("tidelog")?);
        command
            .args(["serve", "--node-id", &id.to_string(), "--peers", peers])
            .args(["--grpc-addr", &at(ports[0]), "--http-addr", &at(ports[1])])
            .args(["--cluster-addr", &at(ports[2]), "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let addr = at(ports[0]);
        Ok(Self { child, addr })
    }

    /// Waits until a broker of a cluster serves.
    pub(crate) fn ready(&mut self) -> anyhow::Result<()> {
        let stdout = self.child.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "a broker ended before it was ready");
        Ok(())
    }

    /// The bare server, with its file in `dir`.
    pub(crate) fn bare(dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(dir);
        let (child, line) = start(command)?;
        let addr = line.trim().to_owned();
        Ok(Self { child, addr })
    }

    /// Any other server, which is not waited for.
    pub(crate) fn other(mut command: Command, addr: String) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self { child, addr })
    }

    /// User and system time so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(self.child.id())
    }

    /// The number of its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Anonymous memory it holds, in MiB.
    pub(crate) fn anonymous_mib(&self) -> anyhow::Result<f64> {
        anonymous_mib(self.child.id())
    }
}

/// Anonymous memory of a process, in MiB: files that are mapped are not counted.
fn anonymous_mib(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .context("/proc/PID/status has RssAnon")?;
    let kib = line.split_whitespace().next().context("with a number")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// Looks at the memory of processes again and again, and keeps the most that each had.
pub(crate) struct Peaks {
    is_over: Arc<AtomicBool>,
    looking: JoinHandle<Vec<f64>>,
}

impl Peaks {
    pub(crate) fn watch(processes: Vec<u32>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let looking = std::thread::spawn(move || {
            let mut peaks = vec![0.0_f64; processes.len()];
            while !over.load(Ordering::Relaxed) {
                for (peak, process) in peaks.iter_mut().zip(&processes) {
                    *peak = peak.max(anonymous_mib(*process).unwrap_or(0.0));
                }
                #[allow(clippy::disallowed_methods, reason = "it is paced")]
                std::thread::sleep(LOOK);
            }
            peaks
        });
        Self { is_over, looking }
    }

    /// In MiB.
    pub(crate) fn end(self) -> anyhow::Result<Vec<f64>> {
        self.is_over.store(true, Ordering::Relaxed);
        let peaks = self.looking.join();
        peaks.map_err(|_| anyhow::anyhow!("whoever looked at memory panicked"))
    }
}

/// User and system time of this process so far, in seconds.
pub(crate) fn own_cpu_seconds() -> anyhow::Result<f64> {
    cpu_seconds(std::process::id())
}

fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the program's name in parentheses, which may hold blanks.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("/proc/PID/stat has a name")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || -> anyhow::Result<f64> {
        let field = fields.next().context("/proc/PID/stat has 52 fields")?;
        Ok(field.parse()?)
    };
    // In hundredths of a second on every Linux.
    Ok((ticks()? + ticks()?) / 100.0)
}

impl Drop for Server {
    fn drop(&mut self) {
        // `kill -9`: it may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Starts a server and waits for the line with which it says that it is ready.
fn start(mut command: Command) -> anyhow::Result<(Child, String)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let stdout = child.stdout.take().context("its output is piped")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    anyhow::ensure!(!line.is_empty(), "{command:?} ended before it was ready");
    Ok((child, line))
}

/// A program built beside this one.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(
        program.exists(),
        "{} is not built; scripts/bench builds it",
        program.display()
    );
    Ok(program)
}
