//! Changes of the brokers: `tidelog cluster drain`, `add`, `remove` and `replace`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tidelog_client::proto::{
    BrokerDescription, BrokerState, DescribeClusterResponse, DrainBrokerResponse,
};
use tidelog_client::{Client, ClientError};
use tokio::time::{Instant, sleep};

use super::partitions::nodes;
use super::unanswered;
use crate::args::{OutputArgs, OutputForm};
use crate::commands::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::numbers::counted;
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::nodes::{hex, parse_directory};

/// How often it is looked how far a broker has been drained.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// After how long without progress that is said.
const STUCK_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// The broker's number.
    #[arg(value_name = "NODE")]
    node: u32,
    /// Wait until it has no replicas left.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Say where its replicas would go, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// The broker's number.
    #[arg(value_name = "NODE")]
    node: u32,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    /// The broker's number.
    #[arg(value_name = "NODE")]
    node: u32,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Say which broker would be removed, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReplaceArgs {
    /// The broker's number.
    #[arg(value_name = "NODE")]
    node: u32,
    /// The data directory on its new disk: 32 digits, as the broker says when it is refused.
    #[arg(long, value_name = "HEX", value_parser = parse_directory)]
    directory: [u8; 16],
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Say what would be lost, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn drain(client: &Client, args: &DrainArgs) -> Result<(), Failure> {
    let node = args.node;
    // A question first: it finds a broker that answers, and the change goes there.
    let (cluster, broker) = look(client, node).await?;
    if args.dry_run {
        return plan_drain(client, args, &cluster).await;
    }
    let replicas = if broker.draining {
        broker.replicas
    } else {
        let drained = client.drain_broker(node).await;
        drained.map_err(|error| not_drained(error, &cluster))?
    };
    let is_table = args.output.form == OutputForm::Table;
    let mut left = replicas;
    if replicas > 0 && args.wait {
        if is_table {
            say!(
                "broker {node} is draining: {} to go elsewhere",
                replicas_of(replicas)
            );
        }
        left = drained(client, node, replicas).await?;
    }
    if is_table {
        if left > 0 {
            say!(
                "broker {node} is draining: {} to go elsewhere; see how far it is with: tidelog \
                 cluster brokers",
                replicas_of(left)
            );
            say!("once it has none, take it out with: tidelog cluster remove {node}");
        } else {
            say!("broker {node} has no replicas");
            say!("take it out with: tidelog cluster remove {node}");
        }
    }
    told(
        args.output,
        &json!({ "node_id": node, "draining": true, "replicas": replicas, "left": left }),
    )
}

/// Says where the replicas of a broker would go.
async fn plan_drain(
    client: &Client,
    args: &DrainArgs,
    cluster: &DescribeClusterResponse,
) -> Result<(), Failure> {
    let node = args.node;
    let planned = client.planned_drain(node).await?;
    match args.output.form {
        OutputForm::Json => print(&format!("{}\n", planned_json(node, &planned)))?,
        OutputForm::Table => print(&planned_text(&planned))?,
    }
    let (replicas, stuck) = (replicas_of(planned.replicas), planned.stuck);
    if stuck > 0 {
        let what = format!("no other broker can take {stuck} of {replicas} of broker {node}");
        let failure = Failure::new(Exit::Refused, format!("it cannot be drained: {what}"));
        return Err(failure.hint(how_to_join(cluster, next_node(cluster))));
    }
    if args.output.form == OutputForm::Table {
        say!("{replicas} of broker {node} would go elsewhere");
    }
    Ok(())
}

fn planned_text(planned: &DrainBrokerResponse) -> String {
    if planned.moves.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["TOPIC", "PARTITION", "REPLICAS", "THEN"]);
    for one in &planned.moves {
        table.row([
            one.topic.clone(),
            one.partition.to_string(),
            nodes(&one.replicas),
            if one.target.is_empty() {
                "-".to_owned()
            } else {
                nodes(&one.target)
            },
        ]);
    }
    let mut text = table.text();
    let listed = u64::try_from(planned.moves.len()).unwrap_or(u64::MAX);
    let more = u64::from(planned.replicas).saturating_sub(listed);
    if more > 0 {
        text.push_str(&format!("and {}\n", counted(more, "more partition")));
    }
    text
}

fn planned_json(node: u32, planned: &DrainBrokerResponse) -> Value {
    let moves = planned.moves.iter().map(|one| {
        json!({
            "topic": one.topic,
            "partition": one.partition,
            "replicas": one.replicas,
            "target": (!one.target.is_empty()).then_some(&one.target),
        })
    });
    json!({
        "node_id": node,
        "draining": false,
        "replicas": planned.replicas,
        "stuck": planned.stuck,
        "moves": moves.collect::<Vec<_>>(),
    })
}

/// Without brokers that can take its replicas, another one is needed.
fn not_drained(error: ClientError, cluster: &DescribeClusterResponse) -> Failure {
    let is_refused = error.broker().is_some_and(|e| e.reason == "BROKER_REFUSED");
    let failure = Failure::from(error);
    if !is_refused {
        return failure;
    }
    failure.hint(how_to_join(cluster, next_node(cluster)))
}

/// A number that no broker has.
fn next_node(cluster: &DescribeClusterResponse) -> u32 {
    let nodes = cluster.brokers.iter().map(|broker| broker.node_id);
    nodes.max().unwrap_or(0).saturating_add(1)
}

/// Waits until a broker has no replicas, and shows on a terminal how far that is.
async fn drained(client: &Client, node: u32, replicas: u32) -> Result<u32, Failure> {
    let bar = progress(replicas);
    let mut left = replicas;
    let mut moved_at = Instant::now();
    while left > 0 {
        sleep(LOOK_EVERY).await;
        let now = match client.describe_cluster().await {
            Ok(cluster) => found(&cluster, node).map(|broker| (broker.replicas, broker.draining)),
            // An election may go on: what was begun goes on too.
            Err(error) if error.is_retryable() => continue,
            Err(error) => return Err(error.into()),
        };
        let now = match now {
            Some((replicas, true)) => replicas,
            Some((_, false)) => {
                let what = format!("broker {node} is not draining any more: it was added again");
                return Err(Failure::new(Exit::Failed, what));
            }
            // It was removed meanwhile.
            None => 0,
        };
        if now < left {
            moved_at = Instant::now();
        } else if moved_at.elapsed() >= STUCK_AFTER {
            moved_at = Instant::now();
            bar.suspend(|| {
                say!(
                    "still {} for {STUCK_AFTER:?}; see why with: tidelog cluster health, and \
                     where they go with: tidelog cluster partitions",
                    replicas_of(now)
                );
            });
        }
        left = now;
        bar.set_position(u64::from(replicas.saturating_sub(left)));
    }
    bar.finish_and_clear();
    Ok(left)
}

/// Shown only where a person looks on.
fn progress(replicas: u32) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} {pos} of {len} replicas moved";
    let style = ProgressStyle::with_template(template).expect("the template is right");
    ProgressBar::new(replicas.into()).with_style(style)
}

pub(super) async fn add(client: &Client, args: &AddArgs) -> Result<(), Failure> {
    let node = args.node;
    let cluster = client.describe_cluster().await.map_err(unanswered)?;
    client.add_broker(node).await.map_err(|error| {
        let is_unknown = error.is_not_found();
        let failure = Failure::from(error);
        if is_unknown {
            failure.hint(how_to_join(&cluster, node))
        } else {
            failure
        }
    })?;
    if args.output.form == OutputForm::Table {
        say!("broker {node} may have replicas");
    }
    told(args.output, &json!({ "node_id": node, "draining": false }))
}

/// How a broker that the cluster does not know comes into it.
fn how_to_join(cluster: &DescribeClusterResponse, node: u32) -> String {
    let mut addresses = cluster.brokers.iter().map(|b| b.cluster_address.as_str());
    let address = addresses.find(|address| !address.is_empty());
    format!(
        "a new broker adds itself when it is started with: tidelog serve --node-id {node} \
         --data-dir DIR --cluster-addr HOST:PORT --join {}",
        address.unwrap_or("HOST:PORT")
    )
}

pub(super) async fn remove(client: &Client, args: &RemoveArgs) -> Result<(), Failure> {
    let node = args.node;
    let (_, broker) = look(client, node).await?;
    let what = format!("broker {node} ({})", broker.grpc_address);
    if args.dry_run {
        if broker.replicas > 0 {
            let why = format!("broker {node} has replicas still: it would not be removed");
            return Err(drained_first(
                Failure::new(Exit::Refused, why),
                node,
                &broker,
            ));
        }
        say!("{what} would be removed from the cluster");
    } else {
        let name = node.to_string();
        confirm(&format!("removes {what} from the cluster"), &name, args.yes)?;
        let removed = client.remove_broker(node).await;
        removed.map_err(|error| not_removed(error, node, &broker))?;
        say!("{what} removed; its process can be stopped");
    }
    told(
        args.output,
        &json!({ "node_id": node, "removed": !args.dry_run }),
    )
}

/// A broker that has replicas is drained first.
fn not_removed(error: ClientError, node: u32, broker: &BrokerDescription) -> Failure {
    let failure = Failure::from(error);
    if failure.exit == Exit::Refused && broker.replicas > 0 {
        return drained_first(failure, node, broker);
    }
    failure
}

fn drained_first(failure: Failure, node: u32, broker: &BrokerDescription) -> Failure {
    failure.hint(format!(
        "it has {}; move them with: tidelog cluster drain {node} --wait",
        replicas_of(broker.replicas)
    ))
}

pub(super) async fn replace(client: &Client, args: &ReplaceArgs) -> Result<(), Failure> {
    let node = args.node;
    let (_, broker) = look(client, node).await?;
    let mut lost = broker.replicas;
    if args.dry_run {
        say!(
            "{} of broker {node} would be given up, and made anew",
            replicas_of(lost)
        );
    } else {
        let what = format!(
            "gives up {} of broker {node} on the disk it had",
            replicas_of(lost)
        );
        confirm(&what, &node.to_string(), args.yes)?;
        let replaced = client.replace_broker(node, args.directory).await;
        lost = replaced.map_err(|error| not_replaced(error, &broker))?;
        say!(
            "{} of broker {node} lost with its disk, made anew from the others",
            replicas_of(lost)
        );
        say!("start the broker again with the same command as before");
    }
    told(
        args.output,
        &json!({
            "node_id": node,
            "directory_id": hex(&args.directory),
            "replicas": lost,
            "replaced": !args.dry_run,
        }),
    )
}

/// A broker that has just gone counts as running for a while.
fn not_replaced(error: ClientError, broker: &BrokerDescription) -> Failure {
    let failure = Failure::from(error);
    if failure.exit == Exit::Refused && broker.state() != BrokerState::Fenced {
        return failure.hint(
            "it counts as running until it is fenced, some seconds after it was heard last: tidelog \
             cluster brokers",
        );
    }
    failure
}

/// The cluster, and a broker in it.
async fn look(
    client: &Client,
    node: u32,
) -> Result<(DescribeClusterResponse, BrokerDescription), Failure> {
    let cluster = client.describe_cluster().await.map_err(unanswered)?;
    match found(&cluster, node).cloned() {
        Some(broker) => Ok((cluster, broker)),
        None => Err(Failure::new(
            Exit::Refused,
            format!("there is no broker {node} in the cluster"),
        )
        .hint("see which there are with: tidelog cluster brokers")),
    }
}

fn found(cluster: &DescribeClusterResponse, node: u32) -> Option<&BrokerDescription> {
    cluster.brokers.iter().find(|broker| broker.node_id == node)
}

fn replicas_of(count: u32) -> String {
    counted(count.into(), "replica")
}

/// For programs, on stdout; people were told on stderr.
fn told(output: OutputArgs, json: &Value) -> Result<(), Failure> {
    match output.form {
        OutputForm::Json => print(&format!("{json}\n")),
        OutputForm::Table => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tidelog_client::proto::PlannedMove;

    use super::*;

    #[test]
    fn what_a_drain_comes_to_is_said_for_each_partition() {
        let one = |partition, target: &[u32]| PlannedMove {
            topic: "t".to_owned(),
            partition,
            replicas: vec![1, 2],
            target: target.to_vec(),
        };
        let planned = DrainBrokerResponse {
            replicas: 3,
            moves: vec![one(0, &[3, 2]), one(1, &[])],
            stuck: 1,
        };
        let text = planned_text(&planned);
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["t", "0", "1,2", "3,2"]);
        assert_eq!(lines[2], ["t", "1", "1,2", "-"]);
        assert!(text.ends_with("and 1 more partition\n"), "{text}");
        let json = planned_json(1, &planned);
        assert_eq!(json["moves"][0]["target"], json!([3, 2]));
        assert_eq!(json["moves"][1]["target"], Value::Null);
        assert_eq!(planned_text(&DrainBrokerResponse::default()), "");
    }

    #[test]
    fn who_is_not_known_is_told_how_to_join() {
        let broker = |address: &str| BrokerDescription {
            cluster_address: address.to_owned(),
            ..BrokerDescription::default()
        };
        let mut cluster = DescribeClusterResponse::default();
        assert!(how_to_join(&cluster, 4).ends_with("--join HOST:PORT"));
        cluster.brokers = vec![broker(""), broker("10.0.0.1:9402")];
        let said = how_to_join(&cluster, 4);
        assert!(said.contains("--node-id 4 "), "{said}");
        assert!(said.ends_with("--join 10.0.0.1:9402"), "{said}");
    }
}
