//! Where partitions are: `tidelog topic reassign` and `tidelog topic set-leader`.

use std::time::Duration;

use serde_json::json;
use tidelog_client::proto::{PartitionPlace, ReassignmentState};
use tidelog_client::{Client, PartitionId, TopicName};
use tokio::time::sleep;

use crate::args::{OutputArgs, OutputForm};
use crate::commands::cluster::partitions::nodes;
use crate::connect::waiting_aloud;
use crate::failure::{Exit, Failure};
use crate::output::sink::print;
use crate::parse::nodes::{Nodes, parse_nodes};
use crate::parse::units::parse_duration;

/// How often it is looked whether a change is done.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").args(["to", "cancel"]).required(true))]
pub(crate) struct ReassignArgs {
    /// The topic.
    #[arg(value_name = "TOPIC")]
    pub(super) name: TopicName,
    /// The partition.
    #[arg(long, value_name = "P")]
    partition: u32,
    /// The brokers that are to have it, the preferred leader first.
    #[arg(long, value_name = "NODE,...", value_parser = parse_nodes)]
    to: Option<Nodes>,
    /// Turn the change under way back.
    #[arg(long)]
    cancel: bool,
    /// Wait until it is done.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetLeaderArgs {
    /// The topic.
    #[arg(value_name = "TOPIC")]
    pub(super) name: TopicName,
    /// The partition.
    #[arg(long, value_name = "P")]
    partition: u32,
    /// The broker that is to lead it; it must have a replica.
    #[arg(long, value_name = "NODE")]
    node: u32,
    /// Wait until it leads.
    #[arg(long)]
    wait: bool,
    /// For how long to wait at most.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration, requires = "wait")]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn reassign(client: &Client, args: &ReassignArgs) -> Result<(), Failure> {
    let (topic, partition) = (&args.name, PartitionId::new(args.partition));
    let to = args.to.as_ref().map(|nodes| nodes.0.as_slice());
    match to {
        Some(to) => client.reassign_partition(topic, partition, to).await?,
        None => client.cancel_reassignment(topic, partition).await?,
    }
    let place = format!("partition {partition} of topic {topic}");
    let is_table = args.output.form == OutputForm::Table;
    if args.wait {
        let waiting = settled(client, args, to);
        waiting_aloud(
            || format!("{place}, whose replicas are being changed"),
            waiting,
        )
        .await?;
    }
    if is_table {
        let see = format!("see how far it is with: tidelog cluster partitions {topic}");
        match (to, args.wait) {
            (Some(to), true) => say!("{place} is on brokers {} now", nodes(to)),
            (Some(to), false) => say!("{place} is going to brokers {}; {see}", nodes(to)),
            (None, true) => say!("{place} is where it was"),
            (None, false) => say!("{place} is going back; {see}"),
        }
        return Ok(());
    }
    let line = json!({
        "topic": topic.as_str(),
        "partition": args.partition,
        "to": to,
        "cancelled": args.cancel,
        "done": args.wait,
    });
    print(&format!("{line}\n"))
}

/// Waits until a partition is where it was to go, or back where it was.
async fn settled(client: &Client, args: &ReassignArgs, to: Option<&[u32]>) -> Result<(), Failure> {
    loop {
        match client.list_partitions(Some(&args.name)).await {
            Ok(partitions) => {
                let mut partitions = partitions.iter();
                let place = partitions.find(|place| place.partition == args.partition);
                let Some(place) = place else {
                    return Err(Failure::new(Exit::Refused, "the partition is gone"));
                };
                if is_settled(place, to) {
                    return Ok(());
                }
            }
            // An election may go on: what was begun goes on too.
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(error.into()),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Whether nothing is being changed any more, and all its replicas are caught up. The broker that
/// answers may not have heard of the change yet.
fn is_settled(place: &PartitionPlace, to: Option<&[u32]>) -> bool {
    let is_there = to.is_none_or(|to| same(&place.replicas, to));
    let is_caught_up = || same(&place.replicas, &place.in_sync);
    place.reassignment() == ReassignmentState::None && is_there && (to.is_none() || is_caught_up())
}

fn same(some: &[u32], others: &[u32]) -> bool {
    let sorted = |nodes: &[u32]| {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        nodes
    };
    sorted(some) == sorted(others)
}

pub(super) async fn set_leader(client: &Client, args: &SetLeaderArgs) -> Result<(), Failure> {
    let (topic, node) = (&args.name, args.node);
    let partition = PartitionId::new(args.partition);
    let before = leader(client, args).await?;
    client.set_leader(topic, partition, node).await?;
    let place = format!("partition {partition} of topic {topic}");
    let mut now = before;
    if args.wait && before != Some(node) {
        let waiting = tokio::time::timeout(args.timeout, led(client, args));
        let waited = waiting_aloud(|| format!("broker {node} to lead {place}"), waiting).await;
        waited.unwrap_or_else(|_elapsed| {
            let what = format!("broker {node} does not lead {place} after {:?}", args.timeout);
            Err(Failure::new(Exit::Unavailable, what).hint(format!(
                "it leads once it is heard and in sync; see both with: tidelog cluster brokers, and: \
                 tidelog cluster partitions {topic}"
            )))
        })?;
        now = Some(node);
    }
    if args.output.form == OutputForm::Table {
        match (before == Some(node), now == Some(node)) {
            (true, _) => say!("broker {node} leads {place} already"),
            (false, true) => say!("broker {node} leads {place} now"),
            (false, false) => say!("broker {node} is to lead {place}; the leadership follows"),
        }
        return Ok(());
    }
    let line = json!({
        "topic": topic.as_str(),
        "partition": args.partition,
        "preferred_leader": node,
        "leader": now,
    });
    print(&format!("{line}\n"))
}

/// The broker that leads a partition, as far as is known. Whether there is the partition whoever decides says.
async fn leader(client: &Client, args: &SetLeaderArgs) -> Result<Option<u32>, Failure> {
    let places = client.list_partitions(Some(&args.name)).await?;
    let mut places = places.iter();
    let place = places.find(|place| place.partition == args.partition);
    Ok(place.and_then(|place| place.leader))
}

/// Waits until the broker leads that is to.
async fn led(client: &Client, args: &SetLeaderArgs) -> Result<(), Failure> {
    while leader(client, args).await? != Some(args.node) {
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_done_when_all_are_there_and_caught_up() {
        let place = |replicas: &[u32], in_sync: &[u32], state: ReassignmentState| PartitionPlace {
            replicas: replicas.to_vec(),
            in_sync: in_sync.to_vec(),
            reassignment: state.into(),
            ..PartitionPlace::default()
        };
        let none = ReassignmentState::None;
        let to = Some([3, 2].as_slice());
        assert!(is_settled(&place(&[2, 3], &[3, 2], none), to));
        assert!(!is_settled(&place(&[2, 3], &[2], none), to));
        assert!(
            !is_settled(&place(&[2, 1], &[2, 1], none), to),
            "not heard of yet"
        );
        let adding = place(&[3, 2], &[3, 2], ReassignmentState::Adding);
        assert!(!is_settled(&adding, to));
        assert!(!is_settled(&adding, None));
        assert!(is_settled(&place(&[2, 1], &[2], none), None));
    }
}
