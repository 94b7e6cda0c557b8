//! `tidelog topic`.

mod describe;
mod place;
mod trim;

use serde_json::{Map, Value, json};
use tidelog_client::proto::TopicSummary;
use tidelog_client::{AdminOptions, BrokerAddresses, Client, NewTopic, TopicName};
use tidelog_record::TopicId;

use super::confirm::confirm;
use crate::args::{OutputArgs, OutputForm, partition_count};
use crate::connect::with_client;
use crate::failure::{Exit, Failure};
use crate::output::numbers::{counted, grouped};
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::nodes::{Assignment, parse_assignment};
use crate::parse::pairs::{by_name, parse_pair};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic.
    Create(CreateArgs),
    /// List all topics.
    List(ListArgs),
    /// Show a topic: settings, partitions, who leads and has them, offsets, sizes.
    Describe(describe::DescribeArgs),
    /// Change settings of a topic.
    Alter(AlterArgs),
    /// Give a topic more partitions. Keys may go to other partitions from then on.
    AddPartitions(AddPartitionsArgs),
    /// Drop all records before an offset, for good.
    Trim(trim::TrimArgs),
    /// Have a partition on other brokers; it is copied there first.
    Reassign(place::ReassignArgs),
    /// Have a partition led by another one of the brokers that have it.
    SetLeader(place::SetLeaderArgs),
    /// Delete a topic and all of its records, for good.
    Delete(DeleteArgs),
}

impl TopicCommand {
    /// The topic it is about.
    fn topic(&self) -> Option<&TopicName> {
        match self {
            Self::Create(args) => Some(&args.name),
            Self::List(_) => None,
            Self::Describe(args) => Some(&args.name),
            Self::Alter(args) => Some(&args.name),
            Self::AddPartitions(args) => Some(&args.name),
            Self::Trim(args) => Some(&args.name),
            Self::Reassign(args) => Some(&args.name),
            Self::SetLeader(args) => Some(&args.name),
            Self::Delete(args) => Some(&args.name),
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Its name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'.
    #[arg(value_name = "NAME")]
    name: TopicName,
    /// How many partitions it shall have.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = partition_count(),
        conflicts_with = "assignment"
    )]
    partitions: u32,
    /// How many brokers shall have each partition [default: 3, or 1 where there are fewer brokers].
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with = "assignment"
    )]
    replicas: Option<u32>,
    /// The brokers of each partition, the preferred leader first, with slashes between partitions:
    /// 1,2,3/2,3,1.
    #[arg(long, value_name = "NODES/...", value_parser = parse_assignment)]
    assignment: Option<Assignment>,
    /// A setting, such as retention.ms=-1; can be given several times.
    #[arg(short = 'c', long = "config", value_name = "KEY=VALUE", value_parser = parse_pair)]
    settings: Vec<(String, String)>,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Also the topics of the cluster itself.
    #[arg(long)]
    internal: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("changes").args(["settings", "reset"]).required(true).multiple(true))]
pub(crate) struct AlterArgs {
    /// The topic.
    #[arg(value_name = "NAME")]
    name: TopicName,
    /// A setting to change, such as retention.ms=-1; can be given several times.
    #[arg(short = 'c', long = "config", value_name = "KEY=VALUE", value_parser = parse_pair)]
    settings: Vec<(String, String)>,
    /// A setting to give its default back; can be given several times.
    #[arg(long, value_name = "KEY")]
    reset: Vec<String>,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddPartitionsArgs {
    /// The topic.
    #[arg(value_name = "NAME")]
    name: TopicName,
    /// How many partitions it shall have in all.
    #[arg(long, value_name = "N", value_parser = partition_count())]
    partitions: u32,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// The topic.
    #[arg(value_name = "NAME")]
    name: TopicName,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Say what would be deleted, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(brokers: &BrokerAddresses, command: TopicCommand) -> Result<(), Failure> {
    let topic = command.topic().cloned();
    let done = with_client(brokers, async |client| match command {
        TopicCommand::Create(args) => create(&client, args).await,
        TopicCommand::List(args) => list(&client, &args).await,
        TopicCommand::Describe(args) => describe::run(&client, &args).await,
        TopicCommand::Alter(args) => alter(&client, args).await,
        TopicCommand::AddPartitions(args) => add_partitions(&client, &args).await,
        TopicCommand::Trim(args) => trim::run(&client, &args).await,
        TopicCommand::Reassign(args) => place::reassign(&client, &args).await,
        TopicCommand::SetLeader(args) => place::set_leader(&client, &args).await,
        TopicCommand::Delete(args) => delete(&client, &args).await,
    });
    done.map_err(|failure| match &topic {
        Some(topic) => failure.of_topic(topic),
        None => failure,
    })
}

async fn create(client: &Client, args: CreateArgs) -> Result<(), Failure> {
    let settings = by_name(&args.settings).map_err(|name| set_twice(&name))?;
    let options = AdminOptions {
        validate_only: args.dry_run,
    };
    let (partitions, assignment) = match args.assignment {
        Some(Assignment(brokers)) => (0, brokers),
        None => (args.partitions, Vec::new()),
    };
    let new = NewTopic {
        partitions,
        settings,
        replication_factor: args.replicas.unwrap_or(0),
        assignment,
    };
    let mut topic = client.create_topic_as(&args.name, new, options).await?;
    if args.dry_run {
        // It would get another one.
        topic.topic_id.clear();
    }
    let verb = if args.dry_run {
        "would be created"
    } else {
        "created"
    };
    let partitions = counted(topic.partitions.into(), "partition");
    let replicas = counted(topic.replication_factor.into(), "replica");
    told(
        &format!(
            "topic {} {verb} with {partitions}, {replicas} each",
            args.name
        ),
        &topic,
        args.output,
    )
}

async fn alter(client: &Client, args: AlterArgs) -> Result<(), Failure> {
    let settings = by_name(&args.settings).map_err(|name| set_twice(&name))?;
    if let Some(name) = args.reset.iter().find(|name| settings.contains_key(*name)) {
        return Err(set_twice(name));
    }
    let options = AdminOptions {
        validate_only: args.dry_run,
    };
    let topic = client
        .alter_topic(&args.name, settings, args.reset, options)
        .await?;
    let verb = if args.dry_run {
        "would be changed"
    } else {
        "changed"
    };
    told(&format!("topic {} {verb}", args.name), &topic, args.output)
}

async fn add_partitions(client: &Client, args: &AddPartitionsArgs) -> Result<(), Failure> {
    let topic = client.add_partitions(&args.name, args.partitions).await?;
    let partitions = counted(u64::from(topic.partitions), "partition");
    told(
        &format!("topic {} has {partitions} now", args.name),
        &topic,
        args.output,
    )
}

async fn list(client: &Client, args: &ListArgs) -> Result<(), Failure> {
    let topics = client.list_topics(args.internal).await?;
    print(&match args.output.form {
        OutputForm::Json => topics
            .iter()
            .map(|topic| format!("{}\n", summary(topic)))
            .collect(),
        OutputForm::Table => {
            let mut table = Table::new(&["NAME", "PARTITIONS", "REPLICAS", "SETTINGS"]);
            for topic in &topics {
                table.row([
                    topic.name.clone(),
                    topic.partitions.to_string(),
                    topic.replication_factor.to_string(),
                    settings(topic),
                ]);
            }
            table.text()
        }
    })
}

async fn delete(client: &Client, args: &DeleteArgs) -> Result<(), Failure> {
    let name = &args.name;
    // Also so that nobody is asked about a topic that does not exist.
    let described = client.describe_topic(name, false).await?;
    // Compaction leaves gaps: that many records at most.
    let offsets: u64 = described
        .partitions
        .iter()
        .map(|partition| {
            partition
                .high_watermark
                .saturating_sub(partition.log_start_offset)
        })
        .sum();
    let bytes: u64 = described
        .partitions
        .iter()
        .map(|partition| partition.size_bytes)
        .sum();
    let count = u64::try_from(described.partitions.len()).unwrap_or(u64::MAX);
    let unknown = described.partitions.iter();
    let unknown: Vec<u32> = unknown
        .filter(|partition| partition.is_elsewhere)
        .map(|partition| partition.partition)
        .collect();
    let mut what = format!(
        "topic {name} with {}, {} and {} bytes",
        counted(count, "partition"),
        counted(offsets, "offset"),
        grouped(bytes)
    );
    if !unknown.is_empty() {
        let of: Vec<String> = unknown.iter().map(u32::to_string).collect();
        what.push_str(&format!(
            ", beside what nobody tells now of partition {}",
            of.join(", ")
        ));
    }
    if args.dry_run {
        say!("{what} would be deleted");
    } else {
        confirm(&format!("deletes {what}"), name.as_str(), args.yes)?;
        client.delete_topic(name).await?;
        say!("topic {name} deleted");
    }
    match args.output.form {
        OutputForm::Table => Ok(()),
        OutputForm::Json => {
            let told = json!({
                "topic": name.as_str(),
                "deleted": !args.dry_run,
                "partitions": count,
                "offsets": offsets,
                "bytes": bytes,
                "unknown_partitions": unknown,
            });
            print(&format!("{told}\n"))
        }
    }
}

fn set_twice(name: &str) -> Failure {
    Failure::new(Exit::Usage, format!("setting {name} is given twice"))
}

/// Tells people on stderr what was done, or programs on stdout what there is now.
fn told(message: &str, topic: &TopicSummary, output: OutputArgs) -> Result<(), Failure> {
    match output.form {
        OutputForm::Json => print(&format!("{}\n", summary(topic))),
        OutputForm::Table => {
            say!("{message}");
            Ok(())
        }
    }
}

/// `{"topic","id","partitions","replication_factor","internal","settings":{…}}`, the id as `log inspect` and the names of
/// deleted directories have it. A topic that was not made has none.
fn summary(topic: &TopicSummary) -> Value {
    let id = <[u8; 16]>::try_from(&topic.topic_id[..]).ok();
    let mut names: Vec<_> = topic.settings.iter().collect();
    names.sort();
    let settings: Map<String, Value> = names
        .into_iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "topic": topic.name,
        "id": id.map(|id| TopicId::from_bytes(id).to_string()),
        "partitions": topic.partitions,
        "replication_factor": topic.replication_factor,
        "internal": topic.internal,
        "settings": settings,
    })
}

/// What was set, as one would write it.
fn settings(topic: &TopicSummary) -> String {
    let mut settings: Vec<_> = topic
        .settings
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    settings.sort();
    settings.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn alter_says_that_either_will_do() {
        let refused = Cli::try_parse_from(["tidelog", "topic", "alter", "t"]).unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains("<--config <KEY=VALUE>|--reset <KEY>>"),
            "{said}"
        );
    }

    #[test]
    fn topics_are_shown_with_sorted_settings() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let topic = TopicSummary {
            name: "t".to_owned(),
            topic_id: (0..16).collect::<Vec<u8>>().into(),
            partitions: 6,
            settings: [pair("b", "2"), pair("a", "1")].into(),
            internal: false,
            replication_factor: 3,
        };
        assert_eq!(settings(&topic), "a=1 b=2");
        assert_eq!(
            summary(&topic).to_string(),
            r#"{"topic":"t","id":"00010203-0405-0607-0809-0a0b0c0d0e0f","partitions":6,"replication_factor":3,"internal":false,"settings":{"a":"1","b":"2"}}"#
        );
    }
}
