//! The command line.

use clap::builder::RangedI64ValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use tidelog_client::BrokerAddresses;
use tidelog_controller::PARTITIONS_MAX;
use tidelog_server::ServeArgs;

use crate::commands::{bench, cluster, config, consume, dev, group, log, offsets, produce, topic};

/// An append-only event log and broker in one binary.
///
/// Exit codes: 0 ok, 1 failed, 2 usage, 3 not found or refused, 4 unreachable or timed out,
/// 5 data damaged.
#[derive(Debug, Parser)]
#[command(name = "tidelog", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker.
    ///
    /// Once it is ready, it prints one line of JSON with its addresses to stdout and writes the same
    /// to addresses.json in its data directory, unless the disk is full. Logs go to stderr.
    Serve(Box<ServeArgs>),
    /// Run a cluster on this machine, to develop against: several brokers with one command.
    ///
    /// Prints where they are once all serve. Ctrl-C or SIGTERM stops them all.
    Dev(dev::DevArgs),
    /// Show what it does: three brokers, real events, kill -9, and everything is still there.
    ///
    /// Needs nothing but this binary. Runs three brokers in a temporary directory, streams 1,707
    /// earthquakes into them, kills the one that leads most partitions on the way, starts it again,
    /// replays from an offset and from a point in time, and checks that nothing is missing and that
    /// all replicas are the same.
    Demo,
    /// Look at the cluster, and drain, add, remove and replace its brokers.
    Cluster(WithBroker<cluster::ClusterCommand>),
    /// Create, look at, change and delete topics.
    Topic(WithBroker<topic::TopicCommand>),
    /// Look at consumer groups, and change or delete what they have committed.
    Group(WithBroker<group::GroupCommand>),
    /// Send records, one a line.
    Produce(OnBroker<produce::ProduceArgs>),
    /// Read records.
    Consume(OnBroker<consume::ConsumeArgs>),
    /// Show the offsets of a topic's partitions.
    Offsets(OnBroker<offsets::OffsetsArgs>),
    /// Measure a broker.
    Bench(WithBroker<bench::BenchCommand>),
    /// Look at the files of a data directory, check them and repair them, without a broker.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Look at the configuration of a broker.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print a completion script for a shell.
    ///
    /// For bash: source <(tidelog completion bash)
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version(OutputArgs),
}

/// Which broker a command talks to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BrokerArgs {
    /// Where brokers are; one that answers is enough.
    #[arg(
        long = "broker",
        global = true,
        env = "TIDELOG_BROKER",
        default_value = "127.0.0.1:9400",
        value_name = "HOST:PORT,..."
    )]
    pub(crate) addresses: BrokerAddresses,
}

/// The arguments of a command that talks to a broker.
#[derive(Debug, clap::Args)]
pub(crate) struct OnBroker<A: clap::Args> {
    #[command(flatten)]
    pub(crate) args: A,
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
}

/// Commands that talk to a broker.
#[derive(Debug, clap::Args)]
pub(crate) struct WithBroker<C: Subcommand> {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    #[command(subcommand)]
    pub(crate) command: C,
}

/// In which form results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    /// A table for people.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// In which form results are printed.
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        default_value_t,
        value_name = "FORM"
    )]
    pub(crate) form: OutputForm,
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksArg {
    /// Synced to the disks of a majority of the replicas before the answer.
    #[default]
    // Kafka's number for it.
    #[value(name = "all", alias = "-1")]
    All,
    /// Written by the leader; lost if it loses power now.
    #[value(name = "1")]
    Leader,
    /// Nothing: no answer, and errors are not told.
    #[value(name = "0")]
    None,
}

/// How many partitions a topic may have.
pub(crate) fn partition_count() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_MAX))
}

impl AcksArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Leader => "1",
            Self::None => "0",
        }
    }
}

impl From<AcksArg> for tidelog_client::Acks {
    fn from(acks: AcksArg) -> Self {
        match acks {
            AcksArg::All => Self::All,
            AcksArg::Leader => Self::Leader,
            AcksArg::None => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_form_is_taken() {
        for line in [
            "tidelog serve --config f --data-dir d --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0",
            "tidelog demo",
            "tidelog dev",
            "tidelog dev --brokers 1 --data-dir d --base-port 0 -o json",
            "tidelog cluster status --broker a:1,b:2,c:3",
            "tidelog cluster health -o json",
            "tidelog cluster brokers",
            "tidelog cluster partitions t",
            "tidelog cluster drain 3 --wait",
            "tidelog cluster add 3",
            "tidelog cluster remove 3 --yes",
            "tidelog cluster replace 3 --directory 000102030405060708090a0b0c0d0e0f --dry-run",
            "tidelog cluster recover",
            "tidelog cluster recover --lost 2,3 --accept-loss -o json",
            "tidelog cluster recover --accept-loss --yes",
            "tidelog topic create t --replicas 3",
            "tidelog topic create t --assignment 1,2,3/2,3,1",
            "tidelog topic reassign t --partition 0 --to 1,2,3 --wait",
            "tidelog topic reassign t --partition 0 --cancel",
            "tidelog topic set-leader t --partition 0 --node 2",
            "tidelog topic create t --partitions 6 -c retention.ms=-1 -c a=b",
            "tidelog topic list",
            "tidelog topic describe t -o json",
            "tidelog topic alter t -c a=b --reset c",
            "tidelog topic add-partitions t --partitions 12",
            "tidelog topic trim t --before -5 --yes",
            "tidelog topic trim t --before @-1h --partition 0 --partition 1 --dry-run",
            "tidelog topic delete t --dry-run",
            "tidelog produce t --input f --key-field k --timestamp-field time --header a=b",
            "tidelog produce t --acks -1",
            "tidelog bench produce --acks -1",
            "tidelog topic create t --partitions 10000",
            "tidelog produce t --key k --partition 1 --acks 1 --compression zstd --input -",
            "tidelog consume t --from -5 --to @2018-02-04 --partition 0 --partition 1 -n 10",
            "tidelog consume t --from earliest --to -1 --follow -o raw",
            "tidelog consume t -f %k=%s",
            "tidelog offsets t --at @-1h",
            "tidelog bench produce --topic t --records 10 --size 1KiB --batch-size 64KiB -o json",
            "tidelog bench consume --topic t --records 10",
            "tidelog bench latency --rate 100 --acks all --partitions 1",
            "tidelog config explain",
            "tidelog log inspect d -o json",
            "tidelog log verify d",
            "tidelog log dump d --from 7 --max 3 --records -o json",
            "tidelog log repair d --cut-at-damage --yes",
            "tidelog completion bash",
            "tidelog version",
            "tidelog version -o json",
            "tidelog cluster drain 3 --dry-run",
            "tidelog topic set-leader t --partition 0 --node 2 --wait --timeout 30s",
            "tidelog topic --broker a:1,b:2 list",
            "tidelog topic list --broker a:1",
            "tidelog produce t --broker a:1",
            "tidelog consume --broker a:1 t",
            "tidelog offsets t --broker a:1",
            "tidelog bench latency --broker a:1",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn kafkas_number_for_all_acks_is_taken() {
        let cli = parse("tidelog produce t --acks -1").unwrap();
        let said = format!("{:?}", cli.command);
        assert!(said.contains("acks: All"), "{said}");
    }

    #[test]
    fn refused_partition_counts_say_the_limit_there_is() {
        for line in [
            "tidelog topic create t --partitions 0",
            "tidelog topic create t --partitions 10001",
            "tidelog topic add-partitions t --partitions 10001",
            "tidelog bench produce --partitions 10001",
        ] {
            let said = parse(line).expect_err(line).to_string();
            assert!(said.contains("1..=10000"), "{said}");
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "tidelog",
            "tidelog topic create",
            "tidelog topic create a/b",
            "tidelog topic create t --partitions 0",
            "tidelog topic add-partitions t",
            "tidelog topic create t --replicas 0",
            "tidelog topic create t --partitions 2 --assignment 1,2/2,1",
            "tidelog topic create t --replicas 2 --assignment 1,2/2,1",
            "tidelog topic reassign t --partition 0",
            "tidelog topic reassign t --partition 0 --to 1 --cancel",
            "tidelog topic reassign t --to 1",
            "tidelog topic set-leader t --partition 0",
            "tidelog cluster drain",
            "tidelog cluster replace 3",
            "tidelog cluster replace 3 --directory 00",
            "tidelog dev --brokers 0",
            "tidelog dev --broker a:1",
            "tidelog topic trim t",
            "tidelog produce t --key a --key-field b",
            "tidelog produce t --acks 2",
            "tidelog produce t --compression brotli",
            "tidelog produce t --header novalue",
            "tidelog consume t --from soon",
            "tidelog consume t -f %x",
            "tidelog consume t -f %s -o json",
            "tidelog consume t -n x",
            "tidelog bench produce --size 0",
            "tidelog bench consume --acks all",
            "tidelog bench consume --rate 10",
            "tidelog bench consume --size 10",
            "tidelog bench consume --partitions 2",
            "tidelog bench consume --in-flight 2",
            "tidelog bench latency --in-flight 2",
            "tidelog bench latency --batch-size 64KiB",
            "tidelog topic list --broker http://x",
            "tidelog --broker a:1 topic list",
            "tidelog serve --broker a:1",
            "tidelog demo --broker a:1",
            "tidelog config explain --broker a:1",
            "tidelog log verify d --broker a:1",
            "tidelog log verify",
            "tidelog log dump d --from -1",
            "tidelog completion bash --broker a:1",
            "tidelog version --broker a:1",
            "tidelog cluster drain 3 --dry-run --wait",
            "tidelog topic set-leader t --partition 0 --node 2 --timeout 30s",
            "tidelog completion cmd",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
