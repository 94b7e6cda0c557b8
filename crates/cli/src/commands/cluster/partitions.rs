//! `tidelog cluster partitions`.

use serde_json::{Map, Value, json};
use tidelog_client::proto::{PartitionPlace, ReassignmentState};
use tidelog_client::{Client, TopicName};

use super::unanswered;
use crate::args::{OutputArgs, OutputForm};
use crate::failure::Failure;
use crate::output::sink::print;
use crate::output::table::Table;

#[derive(Debug, clap::Args)]
pub(crate) struct PartitionsArgs {
    /// Only those of this topic.
    #[arg(value_name = "TOPIC")]
    topic: Option<TopicName>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &PartitionsArgs) -> Result<(), Failure> {
    let listed = client.list_partitions(args.topic.as_ref()).await;
    let partitions = listed.map_err(|error| {
        let failure = unanswered(error);
        match &args.topic {
            Some(topic) => failure.of_topic(topic),
            None => failure,
        }
    })?;
    print(&match args.output.form {
        OutputForm::Table => as_table(&partitions).text(),
        OutputForm::Json => partitions
            .iter()
            .map(|place| format!("{}\n", as_json(place)))
            .collect(),
    })
}

fn as_table(partitions: &[PartitionPlace]) -> Table {
    let mut table = Table::new(&[
        "TOPIC",
        "PARTITION",
        "LEADER",
        "EPOCH",
        "REPLICAS",
        "IN SYNC",
        "REASSIGNMENT",
    ]);
    for place in partitions {
        table.row([
            place.topic.clone(),
            place.partition.to_string(),
            place.leader.map_or("-".to_owned(), |node| node.to_string()),
            place.leader_epoch.to_string(),
            nodes(&place.replicas),
            nodes(&place.in_sync),
            reassignment(place),
        ]);
    }
    table
}

/// `1,2,3`; `-` without any.
pub(crate) fn nodes(nodes: &[u32]) -> String {
    if nodes.is_empty() {
        return "-".to_owned();
    }
    let nodes: Vec<_> = nodes.iter().map(u32::to_string).collect();
    nodes.join(",")
}

/// `adding, to 2,3,4, which lack 1,200 entries`; empty where nothing is being changed.
fn reassignment(place: &PartitionPlace) -> String {
    let Some(name) = state_name(place.reassignment()) else {
        return String::new();
    };
    let to = nodes(&place.target);
    let lag = place.target.iter().filter_map(|node| place.lag.get(node));
    match lag.max() {
        Some(&lag) if lag > 0 => format!("{name}, to {to}, up to {lag} entries behind"),
        _ => format!("{name}, to {to}"),
    }
}

fn state_name(state: ReassignmentState) -> Option<&'static str> {
    match state {
        ReassignmentState::None => None,
        ReassignmentState::Adding => Some("adding"),
        ReassignmentState::Joint => Some("joint"),
        ReassignmentState::Leaving => Some("leaving"),
        ReassignmentState::Cancelling => Some("cancelling"),
    }
}

fn as_json(place: &PartitionPlace) -> Value {
    let mut lag: Vec<_> = place.lag.iter().collect();
    lag.sort();
    let lag: Map<String, Value> = lag
        .into_iter()
        .map(|(node, entries)| (node.to_string(), json!(entries)))
        .collect();
    json!({
        "topic": place.topic,
        "partition": place.partition,
        "leader": place.leader,
        "leader_epoch": place.leader_epoch,
        "replicas": place.replicas,
        "in_sync": place.in_sync,
        "reassignment": state_name(place.reassignment()),
        "target": place.target,
        "lag": lag,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> PartitionPlace {
        PartitionPlace {
            topic: "t".to_owned(),
            partition: 4,
            leader: None,
            leader_epoch: 7,
            replicas: vec![2, 3, 1],
            in_sync: vec![2, 1],
            target: vec![2, 3, 4],
            reassignment: ReassignmentState::Adding.into(),
            lag: [(4, 1200), (1, 9000)].into(),
        }
    }

    #[test]
    fn tables_say_who_has_it_and_where_it_goes() {
        let text = as_table(&[place()]).text();
        for part in [
            "t              4       -",
            "2,3,1",
            "adding, to 2,3,4, up to 1200 entries behind",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let at_rest = PartitionPlace {
            reassignment: ReassignmentState::None.into(),
            target: Vec::new(),
            ..place()
        };
        assert!(!as_table(&[at_rest]).text().contains("to"));
    }

    #[test]
    fn json_has_null_for_nobody_and_nothing() {
        let json = as_json(&place());
        assert_eq!(json["leader"], Value::Null);
        assert_eq!(json["reassignment"], "adding");
        assert_eq!(json["lag"]["4"], 1200);
        assert_eq!(
            as_json(&PartitionPlace::default())["reassignment"],
            Value::Null
        );
    }
}
