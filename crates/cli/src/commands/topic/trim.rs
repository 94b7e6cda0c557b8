//! `tidelog topic trim`.

use serde_json::json;
use tidelog_client::{Client, OffsetSpec, TopicName};

use crate::args::{OutputArgs, OutputForm};
use crate::commands::confirm::confirm;
use crate::commands::partitions::partitions_of;
use crate::failure::Failure;
use crate::output::numbers::{counted, grouped};
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::offset_spec::offset_spec_arg;

#[derive(Debug, clap::Args)]
pub(crate) struct TrimArgs {
    /// The topic.
    #[arg(value_name = "NAME")]
    pub(super) name: TopicName,
    /// The first record to stay: an offset, latest, -N (so many stay), @TIME.
    #[arg(long, value_name = "OFFSET", value_parser = offset_spec_arg, allow_hyphen_values = true)]
    before: OffsetSpec,
    /// Only this partition; can be given several times.
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u32>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Show what would be dropped, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &TrimArgs) -> Result<(), Failure> {
    let partitions = partitions_of(client, &args.name, &args.partitions).await?;
    let at = |spec| partitions.iter().map(|&p| (p, spec)).collect::<Vec<_>>();
    let starts = client
        .list_offsets(&args.name, &at(OffsetSpec::Earliest))
        .await?;
    let mut wanted = client.list_offsets(&args.name, &at(args.before)).await?;
    let ends = client
        .list_offsets(&args.name, &at(OffsetSpec::Latest))
        .await?;
    for (wanted, end) in wanted.iter_mut().zip(&ends) {
        // A partition that has less than that loses what it has.
        wanted.offset = wanted.offset.min(end.offset);
    }
    let drops: Vec<u64> = starts
        .iter()
        .zip(&wanted)
        .map(|(start, wanted)| wanted.offset.records_since(start.offset))
        .collect();
    // Compaction leaves gaps: that many records at most.
    let dropped: u64 = drops.iter().sum();

    let after: Vec<_> = if args.dry_run {
        // Trimming never brings records back.
        starts
            .iter()
            .zip(&wanted)
            .map(|(start, wanted)| (start.partition, start.offset.max(wanted.offset)))
            .collect()
    } else {
        let what = format!(
            "drops {} of topic {}",
            counted(dropped, "offset"),
            args.name
        );
        confirm(&what, args.name.as_str(), args.yes)?;
        // What was shown is what is dropped, whatever comes in meanwhile.
        let before: Vec<_> = starts
            .iter()
            .zip(&wanted)
            .filter(|(start, wanted)| wanted.offset > start.offset)
            .map(|(_, wanted)| (wanted.partition, OffsetSpec::Offset(wanted.offset)))
            .collect();
        if !before.is_empty() {
            client.delete_records(&args.name, &before).await?;
        }
        client
            .list_offsets(&args.name, &at(OffsetSpec::Earliest))
            .await?
            .into_iter()
            .map(|start| (start.partition, start.offset))
            .collect()
    };

    let mut table = Table::new(&["PARTITION", "START BEFORE", "START AFTER", "DROPPED"]);
    let mut lines = String::new();
    for ((start, (partition, now)), dropped) in starts.iter().zip(&after).zip(&drops) {
        table.row([
            partition.to_string(),
            start.offset.to_string(),
            now.to_string(),
            grouped(*dropped),
        ]);
        let line = json!({
            "topic": args.name.as_str(),
            "partition": partition.get(),
            "log_start_offset_before": start.offset.get(),
            "log_start_offset": now.get(),
            "dropped": dropped,
            "dry_run": args.dry_run,
        });
        lines.push_str(&format!("{line}\n"));
    }
    let verb = if args.dry_run {
        "would be dropped"
    } else {
        "dropped"
    };
    say!(
        "{} of topic {} {verb}",
        counted(dropped, "offset"),
        args.name
    );
    print(&match args.output.form {
        OutputForm::Table => table.text(),
        OutputForm::Json => lines,
    })
}
