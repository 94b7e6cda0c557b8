//! `tidelog cluster`.
//!
//! What is looked at is in `status.rs`, `brokers.rs` and `partitions.rs`, what is changed in
//! `change.rs`, and what is done when a majority is lost in `recover.rs`.

mod brokers;
mod change;
pub(crate) mod partitions;
mod recover;
mod status;

use tidelog_client::{BrokerAddresses, Client, ClientConfig, ClientError};

use crate::args::OutputArgs;
use crate::connect;
use crate::failure::{Exit, Failure};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show on one screen how the cluster is: brokers, metadata, and which partitions are not well.
    Status(LookArgs),
    /// Say whether the cluster is well: exit code 0 when it is, 1 with a list of problems when not.
    Health(LookArgs),
    /// List the brokers.
    Brokers(LookArgs),
    /// List partitions with their leaders and replicas.
    Partitions(partitions::PartitionsArgs),
    /// Have all replicas and leaderships of a broker go elsewhere.
    Drain(change::DrainArgs),
    /// Let a broker that was draining have replicas again.
    Add(change::AddArgs),
    /// Take a broker without replicas out of the cluster, for good.
    Remove(change::RemoveArgs),
    /// Take note that a broker has lost its disk, and has another one.
    Replace(change::ReplaceArgs),
    /// Go on without brokers that are lost for good, where a majority is lost with them.
    ///
    /// Says first what is lost. Changes nothing without --accept-loss.
    Recover(recover::RecoverArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct LookArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(brokers: &BrokerAddresses, command: ClusterCommand) -> Result<(), Failure> {
    connect::run(async {
        // Connects when it is first used: the first question goes on to the next address when one is
        // silent for a moment, and what is changed then goes to the one that answered.
        let client = Client::lazy(ClientConfig::new(brokers.clone()))?;
        match command {
            ClusterCommand::Status(args) => status::status(&client, args.output).await,
            ClusterCommand::Health(args) => status::health(&client, args.output).await,
            ClusterCommand::Brokers(args) => brokers::run(&client, args.output).await,
            ClusterCommand::Partitions(args) => partitions::run(&client, &args).await,
            ClusterCommand::Drain(args) => change::drain(&client, &args).await,
            ClusterCommand::Add(args) => change::add(&client, &args).await,
            ClusterCommand::Remove(args) => change::remove(&client, &args).await,
            ClusterCommand::Replace(args) => change::replace(&client, &args).await,
            ClusterCommand::Recover(args) => recover::run(&client, &args).await,
        }
    })
}

/// The failure of looking at the cluster, with what to do where nobody answers.
fn unanswered(error: ClientError) -> Failure {
    let is_other_port = matches!(
        error,
        ClientError::NotGrpc { .. } | ClientError::ClusterPort { .. }
    );
    let failure = Failure::from(error);
    if failure.exit != Exit::Unavailable || is_other_port {
        return failure;
    }
    failure.hint(
        "see whether brokers run, and name the gRPC addresses of several with --broker A,B,C or \
         TIDELOG_BROKER: one that answers is enough",
    )
}
