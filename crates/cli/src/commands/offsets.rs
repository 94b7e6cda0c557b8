//! `tidelog offsets`.

use serde_json::json;
use tidelog_client::{BrokerAddresses, Client, ListedOffset, Offset, OffsetSpec, TopicName};

use super::partitions::partitions_of;
use crate::args::{OutputArgs, OutputForm};
use crate::connect::with_client;
use crate::failure::{Exit, Failure};
use crate::output::numbers::grouped;
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::offset_spec::offset_spec_arg;
use crate::parse::time::show_time;

#[derive(Debug, clap::Args)]
pub(crate) struct OffsetsArgs {
    /// The topic.
    #[arg(value_name = "TOPIC")]
    topic: TopicName,
    /// Where to look, such as @2018-02-04T00:00:00Z or @-1h: the first record of that time or later.
    ///
    /// An offset, earliest, latest and -N are taken too. Without it: the first offset and the end of each partition.
    #[arg(long, value_name = "@TIME", value_parser = offset_spec_arg, allow_hyphen_values = true)]
    at: Option<OffsetSpec>,
    /// Only this partition; can be given several times.
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(brokers: &BrokerAddresses, args: OffsetsArgs) -> Result<(), Failure> {
    let text = with_client(brokers, async |client| match args.at {
        Some(at) => show_at(&client, &args, at).await,
        None => show_ends(&client, &args).await,
    })
    .map_err(|failure| failure.of_topic(&args.topic))?;
    print(&text)
}

async fn show_ends(client: &Client, args: &OffsetsArgs) -> Result<String, Failure> {
    let partitions = partitions_of(client, &args.topic, &args.partitions).await?;
    let look = |spec| partitions.iter().map(|&p| (p, spec)).collect::<Vec<_>>();
    let earliest = client
        .list_offsets(&args.topic, &look(OffsetSpec::Earliest))
        .await?;
    let latest = client
        .list_offsets(&args.topic, &look(OffsetSpec::Latest))
        .await?;
    let mut table = Table::new(&["PARTITION", "EARLIEST", "LATEST", "OFFSETS"]);
    let mut lines = String::new();
    for (earliest, latest) in earliest.iter().zip(&latest) {
        let (first, end) = (earliest.offset, latest.offset);
        table.row([
            earliest.partition.to_string(),
            first.to_string(),
            end.to_string(),
            grouped(end.records_since(first)),
        ]);
        let line = json!({
            "topic": args.topic.as_str(),
            "partition": earliest.partition.get(),
            "earliest": first.get(),
            "latest": end.get(),
        });
        lines.push_str(&format!("{line}\n"));
    }
    Ok(in_form(args.output.form, &table, lines))
}

async fn show_at(client: &Client, args: &OffsetsArgs, at: OffsetSpec) -> Result<String, Failure> {
    let partitions = partitions_of(client, &args.topic, &args.partitions).await?;
    let asked: Vec<_> = partitions
        .into_iter()
        .map(|partition| (partition, at))
        .collect();
    let listed = client.list_offsets(&args.topic, &asked).await?;
    if let OffsetSpec::Offset(offset) = at {
        // What was asked for comes back as it is, whether or not it is there.
        refuse_outside(client, args, offset, &listed).await?;
    }
    let mut table = Table::new(&["PARTITION", "OFFSET", "TIMESTAMP"]);
    let mut lines = String::new();
    for found in listed {
        let time = found.timestamp.map_or_else(|| "-".to_owned(), show_time);
        table.row([found.partition.to_string(), found.offset.to_string(), time]);
        let line = json!({
            "topic": args.topic.as_str(),
            "partition": found.partition.get(),
            "offset": found.offset.get(),
            "timestamp": found.timestamp.map(|time| time.millis()),
        });
        lines.push_str(&format!("{line}\n"));
    }
    Ok(in_form(args.output.form, &table, lines))
}

/// Refuses an offset that a partition does not have, as reading from there would.
async fn refuse_outside(
    client: &Client,
    args: &OffsetsArgs,
    offset: Offset,
    listed: &[ListedOffset],
) -> Result<(), Failure> {
    let look = |spec| {
        listed
            .iter()
            .map(|one| (one.partition, spec))
            .collect::<Vec<_>>()
    };
    let starts = client
        .list_offsets(&args.topic, &look(OffsetSpec::Earliest))
        .await?;
    let ends = client
        .list_offsets(&args.topic, &look(OffsetSpec::Latest))
        .await?;
    for (start, end) in starts.iter().zip(&ends) {
        if offset < start.offset || end.offset < offset {
            let (topic, partition) = (&args.topic, start.partition);
            let what = format!(
                "offset {offset} is not in partition {partition} of topic {topic}, which has {} to {}",
                start.offset, end.offset
            );
            return Err(Failure::new(Exit::Refused, what)
                .hint(format!("see what there is with: tidelog offsets {topic}")));
        }
    }
    Ok(())
}

fn in_form(form: OutputForm, table: &Table, lines: String) -> String {
    match form {
        OutputForm::Table => table.text(),
        OutputForm::Json => lines,
    }
}
