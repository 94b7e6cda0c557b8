//! `tidelog cluster recover`.

use serde_json::{Value, json};
use tidelog_client::Client;
use tidelog_client::proto::{RecoverClusterResponse, RecoveredPartition};

use super::partitions::nodes;
use super::unanswered;
use crate::args::{OutputArgs, OutputForm};
use crate::commands::confirm::confirm;
use crate::failure::Failure;
use crate::output::sink::print;
use crate::output::table::Table;

#[derive(Debug, clap::Args)]
pub(crate) struct RecoverArgs {
    /// The brokers that are lost for good, as a list with commas: it has to be all that do not answer. By
    /// default it is these.
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    lost: Vec<u32>,
    /// Do it: give these brokers up for good, and with them what only they have.
    #[arg(long)]
    accept_loss: bool,
    /// Do not ask, where --lost does not name them.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &RecoverArgs) -> Result<(), Failure> {
    let named = (!args.lost.is_empty()).then_some(&args.lost[..]);
    let looked = client.recover_cluster(named, false).await;
    let plan = looked.map_err(unanswered)?;
    let is_table = args.output.form == OutputForm::Table;
    if is_table {
        print(&described(&plan))?;
    }
    if !args.accept_loss {
        if is_table {
            let lost = match plan.lost.is_empty() {
                true => String::new(),
                false => format!(" --lost {}", nodes(&plan.lost)),
            };
            say!(
                "nothing was changed. Where they come back with their disks, start them instead; if they \
                 never will, run: tidelog cluster recover{lost} --accept-loss"
            );
        } else {
            print(&format!("{}\n", as_json(&plan)))?;
        }
        return Ok(());
    }
    if named.is_none() {
        let lost = nodes(&plan.lost);
        let confirmed = confirm(&format!("gives up broker(s) {lost}"), &lost, args.yes);
        confirmed.map_err(|failure| {
            failure.hint(format!(
                "name them, with --lost {lost}; or add --yes if you mean it"
            ))
        })?;
    }
    // Those that were told of, and nobody else.
    let done = client.recover_cluster(Some(&plan.lost), true).await?;
    if is_table {
        if done.partition_count != plan.partition_count {
            say!(
                "{} partitions went on without a majority, not {}: the metadata that went on knew of others",
                done.partition_count,
                plan.partition_count
            );
        }
        say!(
            "done. The brokers that were given up must not be started again with the disks that they had"
        );
        say!("see how the cluster is with: tidelog cluster status");
        Ok(())
    } else {
        // The plan of before says what became of the metadata; by now they have gone on.
        let done = RecoverClusterResponse {
            metadata_keeper: plan.metadata_keeper,
            ..done
        };
        print(&format!("{}\n", as_json(&done)))
    }
}

fn described(plan: &RecoverClusterResponse) -> String {
    let mut text = String::new();
    if !plan.lost.is_empty() {
        let lost = nodes(&plan.lost);
        text += &format!("To be given up, with all they have: broker(s) {lost}\n");
    }
    text += &match plan.metadata_keeper {
        Some(node) => format!(
            "Metadata: they have lost their majority, and go on with what broker {node} has\n"
        ),
        None => "Metadata: they have their majority, nothing of them is lost\n".to_owned(),
    };
    if plan.partition_count == 0 {
        text += "Partitions: all have their majority, nothing of them is lost\n";
    } else {
        let have = match plan.partition_count {
            1 => "1 has".to_owned(),
            count => format!("{count} have"),
        };
        text += &format!("Partitions: {have} lost the majority of their replicas\n\n");
        text += &table(&plan.partitions).text();
        text += &more(plan.partition_count, plan.partitions.len());
        text += "\nLost for good is what was acknowledged from END OFFSET on; everything of a partition that goes \
                 on nowhere; and changes of topics and brokers that only the lost brokers knew of.\n";
    }
    if plan.stuck_count > 0 {
        text += "\nCannot go on, since a replica that is left does not serve and may have most, or the one that has \
                 most was leaving. Repair it first: see `tidelog cluster health` and the log of its broker\n\n";
        text += &table(&plan.stuck).text();
        text += &more(plan.stuck_count, plan.stuck.len());
    }
    text
}

fn more(count: u32, listed: usize) -> String {
    match (count as usize).saturating_sub(listed) {
        0 => String::new(),
        rest => format!("and {rest} more\n"),
    }
}

fn table(partitions: &[RecoveredPartition]) -> Table {
    let mut table = Table::new(&[
        "TOPIC",
        "PARTITION",
        "LOST",
        "GOES ON AT",
        "ALSO AT",
        "HIGH WATERMARK",
        "END OFFSET",
    ]);
    for one in partitions {
        let keeper = one.keeper.map(|node| node.to_string());
        table.row([
            one.topic.clone(),
            one.partition.to_string(),
            nodes(&one.lost),
            keeper.unwrap_or_else(|| "nowhere, empty".to_owned()),
            nodes(&one.others),
            one.high_watermark.to_string(),
            one.end_offset.to_string(),
        ]);
    }
    table
}

fn as_json(response: &RecoverClusterResponse) -> Value {
    let list = |partitions: &[RecoveredPartition]| -> Vec<Value> {
        let partitions = partitions.iter().map(|one| {
            json!({
                "topic": one.topic,
                "partition": one.partition,
                "lost": one.lost,
                "keeper": one.keeper,
                "others": one.others,
                "high_watermark": one.high_watermark,
                "end_offset": one.end_offset,
            })
        });
        partitions.collect()
    };
    json!({
        "lost": response.lost,
        "metadata_keeper": response.metadata_keeper,
        "partitions": list(&response.partitions),
        "partition_count": response.partition_count,
        "stuck": list(&response.stuck),
        "stuck_count": response.stuck_count,
        "done": response.done,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_by_partition() {
        let partition = |number, keeper| RecoveredPartition {
            topic: "t".to_owned(),
            partition: number,
            keeper,
            end_offset: if keeper.is_some() { 12 } else { 0 },
            high_watermark: if keeper.is_some() { 10 } else { 0 },
            lost: vec![2, 3],
            others: Vec::new(),
        };
        let plan = RecoverClusterResponse {
            lost: vec![2, 3],
            metadata_keeper: Some(1),
            partitions: vec![partition(0, Some(1)), partition(1, None)],
            partition_count: 5,
            stuck: vec![partition(7, None)],
            stuck_count: 1,
            done: false,
        };
        let text = described(&plan);
        for part in [
            "broker(s) 2,3",
            "go on with what broker 1 has",
            "5 have lost",
            "nowhere, empty",
            "and 3 more",
            "Cannot go on",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let well = described(&RecoverClusterResponse::default());
        assert!(well.contains("have their majority"), "{well}");
    }
}
