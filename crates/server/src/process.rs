//! The process of `tidelog serve`: start, say so, serve, stop.

use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidelog_broker::{Seams, StartError};
use tidelog_disk::{Disk, DiskOp};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Resolved;
use crate::listen::{BindError, Listeners};
use crate::opening::{OpenError, absolute};
use crate::ready::Ready;
use crate::server::{Server, ServerError};
use crate::{Config, LogFormat, logging};

/// How long the listeners of a forced stop, and tasks that block, get to end.
const FORCED_STOP: Duration = Duration::from_millis(100);

/// How a broker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop, and stopped cleanly.
    Clean,
    /// It could not start, or did not stop cleanly.
    Failed,
    /// Another broker runs on the data directory.
    Locked,
    /// Stored data that everything depends on is damaged.
    Damaged,
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Failed => 1,
            Self::Locked => 3,
            Self::Damaged => 5,
        }
    }
}

/// Why a broker ended other than by a clean stop.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    Refused(String),
    #[error("the thread that opened the data directory panicked")]
    OpenPanicked,
    #[error("cannot tell where the broker listens: {0}")]
    Ready(#[source] tidelog_disk::DiskError),
    #[error(transparent)]
    Stop(#[from] ServerError),
    #[error("stopped at once by a second signal")]
    Forced,
    #[error("stopped before the start was complete")]
    StoppedEarly,
}

impl From<OpenError> for RunError {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Start(e) => Self::Start(e),
            OpenError::Refused(why) => Self::Refused(why),
            OpenError::Panicked => Self::OpenPanicked,
        }
    }
}

impl RunError {
    fn exit(&self) -> Exit {
        match self {
            Self::Start(StartError::Locked(_)) => Exit::Locked,
            Self::Start(error) if error.is_damage() => Exit::Damaged,
            _ => Exit::Failed,
        }
    }

    /// What to do about it, where the error alone does not say so.
    fn next_step(&self, data_dir: &Path) -> Option<&'static str> {
        let Self::Start(error) = self else {
            return None;
        };
        match error {
            StartError::Locked(_) => Some(
                "stop that broker (its pid is in addresses.json there), or give another --data-dir",
            ),
            StartError::Disk(error) if error.op == DiskOp::CreateDir && data_dir.is_file() => {
                Some("data_dir is a file; it must be a directory: give another --data-dir")
            }
            StartError::Disk(error)
                if error.op == DiskOp::CreateDir && error.path == absolute(data_dir) =>
            {
                Some("give a --data-dir that can be created")
            }
            StartError::Disk(error) if error.source.kind() == ErrorKind::PermissionDenied => {
                Some("let the user who runs the broker write there, or give another --data-dir")
            }
            _ => None,
        }
    }
}

/// Runs a broker until SIGTERM or SIGINT. Logs go to stderr; once it is ready, one JSON line to
/// stdout and to `addresses.json` in the data directory says where it listens.
///
/// A second signal, or the deadline of the stop, ends it at once. Nothing acknowledged is lost by
/// that.
pub fn run(resolved: &Resolved) -> Exit {
    logging::start(&resolved.config);
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    match serve(&resolved.config) {
        Ok(()) => Exit::Clean,
        Err(error) => {
            say_failed(&error, &resolved.config);
            error.exit()
        }
    }
}

/// Says why the broker ended: to people as every other command does, and to programs that read the
/// logs as one of these.
fn say_failed(error: &RunError, config: &Config) {
    let next_step = error.next_step(&config.data_dir);
    match (config.log_format, next_step) {
        (LogFormat::Json, _) => tracing::error!(error = %error, next_step, "the broker ended"),
        (LogFormat::Text, next_step) => {
            let next_step = next_step.map_or_else(String::new, |step| format!("\n  {step}"));
            // Where that cannot be written, the exit code tells.
            writeln!(io::stderr(), "error: {error}{next_step}").ok();
        }
    }
}

fn serve(config: &Config) -> Result<(), RunError> {
    raise_file_limit();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.threads > 0 {
        builder.worker_threads(config.threads);
    }
    let runtime = builder
        .thread_name("tidelog")
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let served = runtime.block_on(Box::pin(serve_async(config)));
    // A thread that hangs in a system call must not keep the process.
    runtime.shutdown_timeout(FORCED_STOP);
    served
}

async fn serve_async(config: &Config) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    for (key, addr) in config.open_to_network() {
        tracing::warn!(
            %addr,
            "{key} is open to the network, and there is no authentication: anyone who can reach \
             it can read, write and delete everything",
        );
    }
    let listeners = Listeners::bind(config)?;
    let seams = Seams::os();
    let disk = seams.disk.clone();
    let server = tokio::select! {
        opened = Box::pin(Server::open(config, listeners, seams)) => opened?,
        () = signals.next() => return Err(RunError::StoppedEarly),
    };
    let ready = Ready {
        grpc_addr: server.grpc_addr(),
        http_addr: server.http_addr(),
        cluster_addr: server.cluster_addr(),
        data_dir: absolute(&config.data_dir),
    };
    if let Err(error) = say_ready(&ready, disk.clone()).await {
        // Nobody was told of it, so there is nobody to wait for.
        server.stop(FORCED_STOP).await?;
        return Err(RunError::Ready(error));
    }
    tracing::info!(
        grpc_addr = %ready.grpc_addr,
        http_addr = %ready.http_addr,
        data_dir = %ready.data_dir.display(),
        version = env!("CARGO_PKG_VERSION"),
        "ready",
    );
    signals.next().await;
    stop(
        server,
        config.limits.shutdown_deadline,
        signals,
        &ready,
        disk,
    )
    .await
}

async fn stop(
    server: Server,
    deadline: Duration,
    mut signals: Signals,
    ready: &Ready,
    disk: Arc<dyn Disk>,
) -> Result<(), RunError> {
    tracing::info!(?deadline, "stopping; another signal stops at once");
    // Closing the logs takes its own time after the connections have; no stop takes longer than
    // both.
    let whole = deadline.saturating_mul(2);
    tokio::select! {
        stopped = tokio::time::timeout(whole, server.stop(deadline)) => {
            stopped.map_err(|_| ServerError::Deadline { deadline: whole })??;
        }
        () = signals.next() => return Err(RunError::Forced),
    }
    if let Err(error) = ready.remove(&*disk) {
        tracing::warn!(error = %error, "the file with the addresses stays");
    }
    tracing::info!("stopped");
    Ok(())
}

async fn say_ready(ready: &Ready, disk: Arc<dyn Disk>) -> Result<(), tidelog_disk::DiskError> {
    let written = {
        let ready = ready.clone();
        tokio::task::spawn_blocking(move || ready.write(&*disk)).await
    };
    written.expect("writing a file does not panic, and is not cancelled")?;
    if let Err(error) = ready.print() {
        tracing::warn!(%error, "nobody reads stdout");
    }
    Ok(())
}

/// Lets the process have as many files as it may: each segment and each connection is one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = ?limit.current, "the limit of open files stays low");
    }
}

/// The signals that ask for a stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Listened to, so that a file over a size limit is an error of the write and not the end of
    /// the process.
    _file_size: Signal,
}

/// SIGXFSZ; the same number on Linux and macOS on the usual processors.
const SIGXFSZ: i32 = 25;

impl Signals {
    fn new() -> Result<Self, RunError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(RunError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(RunError::Signals)?,
            _file_size: signal(SignalKind::from_raw(SIGXFSZ)).map_err(RunError::Signals)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
