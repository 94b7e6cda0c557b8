//! `tidelog dev`: brokers on this machine, with one command.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::args::{OutputArgs, OutputForm};
use crate::brokers::plan::{Plan, Ports, plans};
use crate::brokers::process::{Broker, last_lines};
use crate::brokers::{ports, together};
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::output::numbers::{counted, millis};
use crate::output::sink::print;
use crate::output::table::Table;

/// Brokers where neither the command line nor the directory says how many.
const BROKERS: u8 = 3;

/// The first port where neither says another one.
const BASE_PORT: u16 = 9400;

/// So many can found a cluster.
const BROKERS_MAX: u8 = 9;

#[derive(Debug, clap::Args)]
pub(crate) struct DevArgs {
    /// How many brokers [default: as many as the directory has, or 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(BROKERS_MAX)))]
    brokers: Option<u8>,
    /// Where they keep their data: in DIR/broker-1 and so on.
    #[arg(long, value_name = "DIR", default_value = "./tidelog-dev")]
    data_dir: PathBuf,
    /// The port of the first one's gRPC; HTTP and the cluster port come behind, and the next broker
    /// ten further. 0: any that are free [default: the ports that the directory has, or 9400].
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What the brokers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    /// Come to an end.
    Stop,
    /// End now.
    Kill,
}

pub(crate) fn run(args: &DevArgs) -> Result<(), Failure> {
    let dir =
        std::path::absolute(&args.data_dir).map_err(|error| cannot_use(&args.data_dir, &error))?;
    std::fs::create_dir_all(&dir).map_err(|error| cannot_use(&dir, &error))?;
    let count = how_many(&dir, args.brokers)?.into();
    let ports = which_ports(&dir, args.base_port, count)?;
    let plans = plans(&dir, &ports);
    connect::run(async {
        let cannot = |error| Failure::failed(format!("cannot wait for signals: {error}"));
        let mut interrupts = signal(SignalKind::interrupt()).map_err(cannot)?;
        let mut terminations = signal(SignalKind::terminate()).map_err(cannot)?;
        let started = tokio::select! {
            started = together::start(&plans) => started,
            // Dropping those that are starting kills them; nothing was promised yet.
            () = any_of(&mut interrupts, &mut terminations) => return Ok(()),
        };
        let brokers = started.map_err(|failure| match failure.hint {
            Some(_) => failure,
            None => failure.hint(
                "is a broker running there already? Other ports: --base-port; others data: --data-dir",
            ),
        })?;
        remember(&dir, &ports)?;
        tell(&brokers, &plans, args.output)?;
        supervise(brokers, &mut interrupts, &mut terminations).await
    })
}

fn cannot_use(dir: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot use {}: {error}", dir.display()))
}

/// As many as were asked for. Those whose data is there are the cluster: they cannot be fewer or more
/// without being told so.
fn how_many(dir: &Path, asked: Option<u8>) -> Result<u8, Failure> {
    let mut there = 0;
    for node in 1..=BROKERS_MAX {
        match std::fs::metadata(dir.join(format!("broker-{node}"))) {
            Ok(_) => there = node,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(cannot_use(dir, &error)),
        }
    }
    match asked {
        Some(asked) if there > 0 && asked != there => {
            let there = counted(there.into(), "broker");
            let what = format!("{} has the data of {there}, not {asked}", dir.display());
            Err(Failure::new(Exit::Usage, what)
                .hint("leave --brokers out, or name another directory with --data-dir"))
        }
        Some(asked) => Ok(asked),
        None if there > 0 => Ok(there),
        None => Ok(BROKERS),
    }
}

/// The ports that the brokers had, or those asked for. Brokers of a cluster find each other where they
/// were: all of them somewhere else would not.
fn which_ports(dir: &Path, base: Option<u16>, count: usize) -> Result<Vec<Ports>, Failure> {
    let had = remembered(dir)?.filter(|had| had.len() == count);
    let asked = base.filter(|&base| base > 0);
    let from = |base| {
        ports::from_base(base, count).ok_or_else(|| {
            let what = format!("there are not so many ports from {base} on");
            Failure::new(Exit::Usage, what).hint("take a smaller --base-port, or 0 for any")
        })
    };
    match (had, asked) {
        (Some(had), None) => Ok(had),
        (Some(had), Some(base)) => {
            let wanted = from(base)?;
            if count > 1 && wanted != had {
                let at = had[0].grpc;
                let what = format!(
                    "the brokers of {} know each other at ports from {at} on",
                    dir.display()
                );
                return Err(Failure::new(Exit::Usage, what)
                    .hint("leave --base-port out, or name another directory with --data-dir"));
            }
            Ok(wanted)
        }
        (None, Some(base)) => from(base),
        (None, None) if base.is_some() => ports::free(count),
        (None, None) => from(BASE_PORT),
    }
}

/// The file in the directory that says which ports the brokers have: a list of `[gRPC, HTTP, cluster]`.
const PORTS_FILE: &str = "ports.json";

fn remembered(dir: &Path) -> Result<Option<Vec<Ports>>, Failure> {
    let path = dir.join(PORTS_FILE);
    match std::fs::read(&path) {
        Ok(text) => {
            let ports: Vec<(u16, u16, u16)> = serde_json::from_slice(&text).map_err(|error| {
                Failure::failed(format!("{} cannot be read: {error}", path.display()))
            })?;
            let ports = ports.into_iter().map(|(grpc, http, cluster)| Ports {
                grpc,
                http,
                cluster,
            });
            Ok(Some(ports.collect()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_use(&path, &error)),
    }
}

fn remember(dir: &Path, ports: &[Ports]) -> Result<(), Failure> {
    let path = dir.join(PORTS_FILE);
    let ports: Vec<_> = ports
        .iter()
        .map(|ports| (ports.grpc, ports.http, ports.cluster))
        .collect();
    let text = json!(ports).to_string();
    std::fs::write(&path, text).map_err(|error| cannot_use(&path, &error))
}

/// Says where the brokers are.
fn tell(brokers: &[Broker], plans: &[Plan], output: OutputArgs) -> Result<(), Failure> {
    let addresses = together::addresses(plans);
    if output.form == OutputForm::Json {
        let brokers: Vec<_> = brokers
            .iter()
            .map(|broker| {
                json!({
                    "node_id": broker.plan.node_id,
                    "grpc_addr": broker.plan.grpc_address(),
                    "http_addr": broker.plan.http_address(),
                    "cluster_addr": broker.plan.cluster_address(),
                    "data_dir": broker.plan.data_dir.display().to_string(),
                    "log": broker.plan.log.display().to_string(),
                    "pid": broker.pid,
                })
            })
            .collect();
        return print(&format!(
            "{}\n",
            json!({ "broker": addresses, "brokers": brokers })
        ));
    }
    let mut table = Table::new(&["NODE", "GRPC", "HTTP", "PROCESS", "DATA", "READY AFTER"]);
    for broker in brokers {
        table.row([
            broker.plan.node_id.to_string(),
            broker.plan.grpc_address(),
            broker.plan.http_address(),
            broker.pid.to_string(),
            broker.plan.data_dir.display().to_string(),
            millis(broker.ready_after),
        ]);
    }
    print(&format!(
        "{}\nexport TIDELOG_BROKER={addresses}\n\nCtrl-C stops {}.\n",
        table.text(),
        if brokers.len() == 1 {
            "it"
        } else {
            "all of them"
        }
    ))
}

/// Keeps the brokers until all have ended, and ends them with the first signal. A second one kills.
async fn supervise(
    brokers: Vec<Broker>,
    interrupts: &mut Signal,
    terminations: &mut Signal,
) -> Result<(), Failure> {
    let (orders, ordered) = watch::channel(Order::Run);
    let mut running = JoinSet::new();
    for broker in brokers {
        running.spawn(keep(broker, ordered.clone()));
    }
    let mut is_clean = true;
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(Ok((plan, status))) => {
                    let is_asked = *orders.borrow() != Order::Run;
                    if !is_asked {
                        report(&plan, &status, running.len());
                    } else if !matches!(&status, Ok(status) if status.success()) {
                        is_clean = false;
                        say!("broker {} did not stop cleanly: {}", plan.node_id, ending(&status));
                    }
                }
                Some(Err(error)) => return Err(Failure::failed(error.to_string())),
                None => break,
            },
            () = any_of(interrupts, terminations) => {
                let order = match *orders.borrow() {
                    Order::Run => Order::Stop,
                    Order::Stop | Order::Kill => Order::Kill,
                };
                if order == Order::Stop {
                    say!("stopping {}", counted(running.len() as u64, "broker"));
                }
                orders.send_replace(order);
            }
        }
    }
    if *orders.borrow() == Order::Run {
        return Err(Failure::failed("no broker is running any more"));
    }
    if is_clean {
        Ok(())
    } else {
        Err(Failure::failed("not all brokers stopped cleanly"))
    }
}

/// Runs a broker to its end, and ends it when that is ordered.
async fn keep(
    mut broker: Broker,
    mut orders: watch::Receiver<Order>,
) -> (Plan, std::io::Result<ExitStatus>) {
    loop {
        tokio::select! {
            status = broker.ended() => return (broker.plan, status),
            changed = orders.changed() => {
                let order = if changed.is_ok() { *orders.borrow_and_update() } else { Order::Kill };
                match order {
                    Order::Run => {}
                    Order::Stop => broker.terminate(),
                    Order::Kill => {
                        let status = broker.killed().await;
                        return (broker.plan, status);
                    }
                }
            }
        }
    }
}

/// Says that a broker has ended by itself, why, and how it is started again.
fn report(plan: &Plan, status: &std::io::Result<ExitStatus>, others: usize) {
    let node = plan.node_id;
    say!(
        "broker {node} has ended: {}; the end of its log, {}:",
        ending(status),
        plan.log.display()
    );
    say!("{}", last_lines(&plan.log));
    if others > 0 {
        say!(
            "{} on; start it again in another terminal with:",
            match others {
                1 => "the other one goes".to_owned(),
                others => format!("the other {others} go"),
            }
        );
        say!("{}", plan.command_line());
    }
}

fn ending(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("it cannot be told how: {error}"),
    }
}

async fn any_of(interrupts: &mut Signal, terminations: &mut Signal) {
    tokio::select! {
        _ = interrupts.recv() => {}
        _ = terminations.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_how_many_brokers_there_are() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(how_many(dir.path(), None), Ok(3));
        assert_eq!(how_many(dir.path(), Some(5)), Ok(5));
        for node in 1..=2 {
            std::fs::create_dir(dir.path().join(format!("broker-{node}"))).unwrap();
        }
        assert_eq!(how_many(dir.path(), None), Ok(2));
        assert_eq!(how_many(dir.path(), Some(2)), Ok(2));
        let refused = how_many(dir.path(), Some(3)).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(
            refused
                .message
                .ends_with("has the data of 2 brokers, not 3"),
            "{}",
            refused.message
        );
    }

    #[test]
    fn brokers_keep_their_ports() {
        let dir = tempfile::tempdir().unwrap();
        let ports = |base, count| which_ports(dir.path(), base, count);
        assert_eq!(ports(None, 3).unwrap(), ports(Some(9400), 3).unwrap());
        let any = ports(Some(0), 3).unwrap();
        remember(dir.path(), &any).unwrap();
        assert_eq!(ports(Some(0), 3), Ok(any.clone()));
        assert_eq!(ports(None, 3), Ok(any));
        let refused = ports(Some(9400), 3).unwrap_err();
        assert!(
            refused.message.contains("know each other at ports"),
            "{}",
            refused.message
        );
    }
}
