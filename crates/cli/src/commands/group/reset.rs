//! `tidelog group reset-offsets`.

use std::collections::BTreeMap;

use serde_json::json;
use tidelog_client::{
    Client, CommitOptions, Committed, NewCommit, Offset, OffsetSpec, PartitionId, TopicName,
};

use crate::args::{OutputArgs, OutputForm};
use crate::commands::confirm::confirm;
use crate::commands::partitions::partitions_of;
use crate::failure::{Exit, Failure};
use crate::output::numbers::counted;
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::offset_spec::offset_spec_arg;

#[derive(Debug, clap::Args)]
pub(crate) struct ResetArgs {
    /// The group.
    #[arg(value_name = "GROUP")]
    group: String,
    /// The topic; can be given several times. Without it: all topics that the group has committed for.
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<TopicName>,
    /// Only this partition of the topic; can be given several times.
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u32>,
    /// Where to go on: earliest, latest, an offset, -N (so many before the end), @TIME.
    #[arg(
        long,
        value_name = "OFFSET",
        value_parser = offset_spec_arg,
        allow_hyphen_values = true,
        required_unless_present = "shift"
    )]
    to: Option<OffsetSpec>,
    /// So many records further on than now, or back: -100.
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        conflicts_with = "to"
    )]
    shift: Option<i64>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Show what would be committed, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Where a group goes on in a partition, before and after.
struct Reset {
    topic: TopicName,
    partition: PartitionId,
    before: Option<Offset>,
    after: Offset,
}

pub(super) async fn run(client: &Client, args: &ResetArgs) -> Result<(), Failure> {
    if !args.partitions.is_empty() && args.topics.len() != 1 {
        let what = "--partition needs one --topic: which topic's partition is meant?";
        return Err(Failure::new(Exit::Usage, what));
    }
    let group = client.group(&args.group);
    let committed = group.committed().await?;
    let mut topics = args.topics.clone();
    if topics.is_empty() {
        topics = committed.iter().map(|one| one.topic.clone()).collect();
        topics.sort_unstable();
        topics.dedup();
    }
    if topics.is_empty() {
        let what = format!("group {} has committed nothing", args.group);
        return Err(Failure::new(Exit::Refused, what).hint(
            "name the topic with --topic to have the group begin there, or see: tidelog group list",
        ));
    }
    let mut resets = Vec::new();
    for topic in &topics {
        let of_topic = plan(client, args, topic, &committed).await;
        resets.extend(of_topic.map_err(|failure| failure.of_topic(topic))?);
    }
    if !args.dry_run && !resets.is_empty() {
        let what = format!(
            "changes where group {} goes on in {}",
            args.group,
            counted(resets.len() as u64, "partition")
        );
        confirm(&what, &args.group, args.yes)?;
        let commits: Vec<_> = resets
            .iter()
            .map(|one| NewCommit::new(one.topic.clone(), one.partition, one.after))
            .collect();
        let options = CommitOptions {
            allow_backwards: true,
        };
        for (result, one) in group
            .commit(&commits, options)
            .await?
            .into_iter()
            .zip(&resets)
        {
            result.map_err(|e| {
                let what = format!("partition {} of topic {}", one.partition, one.topic);
                Failure::from(e).about(&what)
            })?;
        }
    }
    let verb = if args.dry_run { "would go" } else { "goes" };
    say!(
        "group {} {verb} on elsewhere in {}",
        args.group,
        counted(resets.len() as u64, "partition")
    );
    print(&shown(args, &resets))
}

/// Where the group would go on in a topic: within what there is of each partition.
async fn plan(
    client: &Client,
    args: &ResetArgs,
    topic: &TopicName,
    committed: &[Committed],
) -> Result<Vec<Reset>, Failure> {
    let mut partitions = partitions_of(client, topic, &args.partitions).await?;
    let described = client.describe_topic(topic, false).await?;
    let id = described.topic.map(|topic| topic.topic_id);
    let of_topic = committed.iter().filter(|one| one.topic == *topic);
    let before: BTreeMap<PartitionId, Offset> = of_topic
        .filter(|one| Some(&one.topic_id) == id.as_ref())
        .map(|one| (one.partition, one.offset))
        .collect();
    if args.shift.is_some() {
        // Only what there is can be shifted.
        partitions.retain(|partition| before.contains_key(partition));
    }
    let look = |spec| partitions.iter().map(|&p| (p, spec)).collect::<Vec<_>>();
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let starts = client
        .list_offsets(topic, &look(OffsetSpec::Earliest))
        .await?;
    let ends = client
        .list_offsets(topic, &look(OffsetSpec::Latest))
        .await?;
    let wanted: Vec<Offset> = match (args.to, args.shift) {
        (Some(spec), _) => {
            let listed = client.list_offsets(topic, &look(spec)).await?;
            listed.iter().map(|one| one.offset).collect()
        }
        (None, shift) => {
            let shift = shift.unwrap_or(0);
            let shifted = partitions.iter().map(|partition| {
                let moved = before[partition].get().saturating_add_signed(shift);
                Offset::new(moved).unwrap_or(Offset::MAX)
            });
            shifted.collect()
        }
    };
    let places = partitions
        .into_iter()
        .zip(wanted)
        .zip(starts.iter().zip(&ends));
    Ok(places
        .map(|((partition, wanted), (start, end))| Reset {
            topic: topic.clone(),
            partition,
            before: before.get(&partition).copied(),
            after: wanted.clamp(start.offset, end.offset),
        })
        .collect())
}

fn shown(args: &ResetArgs, resets: &[Reset]) -> String {
    let mut table = Table::new(&["TOPIC", "PARTITION", "BEFORE", "AFTER"]);
    let mut lines = String::new();
    for one in resets {
        let before = one
            .before
            .map_or_else(|| "-".to_owned(), |before| before.to_string());
        table.row([
            one.topic.to_string(),
            one.partition.to_string(),
            before,
            one.after.to_string(),
        ]);
        let line = json!({
            "group": args.group,
            "topic": one.topic.as_str(),
            "partition": one.partition.get(),
            "before": one.before.map(Offset::get),
            "after": one.after.get(),
            "dry_run": args.dry_run,
        });
        lines.push_str(&format!("{line}\n"));
    }
    match args.output.form {
        OutputForm::Table => table.text(),
        OutputForm::Json => lines,
    }
}
