//! `tidelog topic describe`.

use serde_json::{Map, Value, json};
use tidelog_client::proto::{DescribeTopicResponse, PartitionDescription};
use tidelog_client::{Client, TopicName};

use super::summary;
use crate::args::{OutputArgs, OutputForm};
use crate::commands::cluster::partitions::nodes;
use crate::failure::Failure;
use crate::output::numbers::{counted, grouped};
use crate::output::sink::print;
use crate::output::table::Table;

#[derive(Debug, clap::Args)]
pub(crate) struct DescribeArgs {
    /// The topic.
    #[arg(value_name = "NAME")]
    pub(super) name: TopicName,
    /// Also list the segments of each partition.
    #[arg(long)]
    segments: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &DescribeArgs) -> Result<(), Failure> {
    let described = client.describe_topic(&args.name, args.segments).await?;
    print(&match args.output.form {
        OutputForm::Json => format!("{}\n", as_json(&described, args.segments)),
        OutputForm::Table => as_tables(&described, args.segments),
    })
}

fn as_tables(described: &DescribeTopicResponse, with_segments: bool) -> String {
    let mut text = String::new();
    if let Some(topic) = &described.topic {
        let partitions = counted(topic.partitions.into(), "partition");
        let replicas = counted(topic.replication_factor.into(), "replica");
        text.push_str(&format!(
            "topic {}, {partitions}, {replicas} each\n\n",
            topic.name
        ));
    }
    let mut table = Table::new(&[
        "PARTITION",
        "LEADER",
        "REPLICAS",
        "IN SYNC",
        "START",
        "END",
        "OFFSETS",
        "BYTES",
        "SEGMENTS",
        "FAULT",
    ]);
    for partition in &described.partitions {
        let known = |text: String| {
            if partition.is_elsewhere {
                "-".into()
            } else {
                text
            }
        };
        let (start, end) = (partition.log_start_offset, partition.high_watermark);
        table.row([
            partition.partition.to_string(),
            partition.leader.map_or("-".into(), |node| node.to_string()),
            nodes(&partition.replicas),
            nodes(&partition.in_sync),
            known(start.to_string()),
            known(end.to_string()),
            known(grouped(end.saturating_sub(start))),
            known(grouped(partition.size_bytes)),
            known(partition.segment_count.to_string()),
            partition.fault.clone(),
        ]);
    }
    text.push_str(&table.text());
    if with_segments {
        let mut table = Table::new(&["PARTITION", "FILE", "BASE", "END", "BYTES", "SEALED"]);
        for partition in &described.partitions {
            for segment in &partition.segments {
                table.row([
                    partition.partition.to_string(),
                    segment.file.clone(),
                    segment.base_offset.to_string(),
                    segment.end_offset.to_string(),
                    grouped(segment.size_bytes),
                    if segment.sealed { "yes" } else { "no" }.to_owned(),
                ]);
            }
        }
        text.push('\n');
        text.push_str(&table.text());
    }
    let mut table = Table::new(&["SETTING", "VALUE", "ORIGIN"]);
    for setting in &described.settings {
        let origin = if setting.is_default { "default" } else { "set" };
        table.row([
            setting.name.clone(),
            setting.value.clone(),
            origin.to_owned(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.text());
    text
}

fn as_json(described: &DescribeTopicResponse, with_segments: bool) -> Value {
    let mut json = described
        .topic
        .as_ref()
        .map(summary)
        .unwrap_or_else(|| json!({}));
    let settings: Map<String, Value> = described
        .settings
        .iter()
        .map(|setting| {
            let value = json!({ "value": setting.value, "default": setting.is_default });
            (setting.name.clone(), value)
        })
        .collect();
    // Every setting, in the place of those that were set.
    json["settings"] = Value::Object(settings);
    // "partitions" is a count wherever a topic is shown; these are its partitions themselves.
    json["partition_details"] = described
        .partitions
        .iter()
        .map(|partition| partition_json(partition, with_segments))
        .collect();
    json
}

fn partition_json(partition: &PartitionDescription, with_segments: bool) -> Value {
    // What only a broker with a replica knows is null where none of these answered.
    let known = |number: u64| (!partition.is_elsewhere).then_some(number);
    let mut json = json!({
        "partition": partition.partition,
        "leader": partition.leader,
        "replicas": partition.replicas,
        "in_sync": partition.in_sync,
        "log_start_offset": known(partition.log_start_offset),
        "high_watermark": known(partition.high_watermark),
        "log_end_offset": known(partition.log_end_offset),
        "leader_epoch": partition.leader_epoch,
        "size_bytes": known(partition.size_bytes),
        "segment_count": known(partition.segment_count.into()),
        "fault": (!partition.fault.is_empty()).then_some(&partition.fault),
    });
    if with_segments {
        json["segments"] = partition
            .segments
            .iter()
            .map(|segment| {
                json!({
                    "file": segment.file,
                    "base_offset": segment.base_offset,
                    "end_offset": segment.end_offset,
                    "size_bytes": segment.size_bytes,
                    "sealed": segment.sealed,
                })
            })
            .collect();
    }
    json
}

#[cfg(test)]
mod tests {
    use tidelog_client::proto::{SegmentDescription, Setting, TopicSummary};

    use super::*;

    fn described() -> DescribeTopicResponse {
        DescribeTopicResponse {
            topic: Some(TopicSummary {
                name: "t".to_owned(),
                partitions: 1,
                replication_factor: 3,
                ..TopicSummary::default()
            }),
            settings: vec![Setting {
                name: "retention.ms".to_owned(),
                value: "-1".to_owned(),
                is_default: false,
            }],
            partitions: vec![PartitionDescription {
                log_start_offset: 5,
                high_watermark: 1005,
                log_end_offset: 1005,
                size_bytes: 123_456,
                segment_count: 1,
                leader: Some(2),
                replicas: vec![2, 3, 1],
                in_sync: vec![2, 1],
                segments: vec![SegmentDescription {
                    file: "00000000000000000005.log".to_owned(),
                    base_offset: 5,
                    end_offset: 1005,
                    size_bytes: 123_456,
                    sealed: false,
                }],
                ..PartitionDescription::default()
            }],
            brokers: Vec::new(),
        }
    }

    #[test]
    fn tables_name_what_matters() {
        let text = as_tables(&described(), true);
        for part in [
            "topic t, 1 partition, 3 replicas each\n",
            "2,3,1      2,1",
            // Compaction leaves gaps: there may be fewer records.
            "OFFSETS",
            "1,000",
            "123,456",
            "00000000000000000005.log",
            "set",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("RECORDS"), "{text}");
        assert!(!as_tables(&described(), false).contains(".log"));
    }

    #[test]
    fn what_nobody_knows_is_no_zero() {
        let mut described = described();
        let partition = &mut described.partitions[0];
        partition.is_elsewhere = true;
        partition.leader = None;
        let json = as_json(&described, false);
        let partition = &json["partition_details"][0];
        for field in ["leader", "log_start_offset", "high_watermark", "size_bytes"] {
            assert_eq!(partition[field], Value::Null, "{field}");
        }
        let text = as_tables(&described, false);
        assert!(!text.contains("1,000"), "{text}");
    }

    #[test]
    fn json_is_one_object() {
        let json = as_json(&described(), true);
        assert_eq!(json["partitions"], 1);
        assert_eq!(
            json["settings"]["retention.ms"],
            json!({ "value": "-1", "default": false })
        );
        let partition = &json["partition_details"][0];
        assert_eq!(partition["high_watermark"], 1005);
        assert_eq!(partition["fault"], Value::Null);
        assert_eq!(json["replication_factor"], 3);
        assert_eq!(partition["leader"], 2);
        assert_eq!(partition["replicas"], json!([2, 3, 1]));
        assert_eq!(partition["in_sync"], json!([2, 1]));
        assert_eq!(partition["segments"][0]["sealed"], false);
        assert_eq!(
            as_json(&described(), false)["partition_details"][0].get("segments"),
            None
        );
        assert_eq!(json.to_string().lines().count(), 1);
    }
}
