//! `tidelog group`: looking at consumer groups, and changing what they have committed.

mod delete;
mod lag;
mod list;
mod reset;

use tidelog_client::BrokerAddresses;

use crate::args::OutputArgs;
use crate::connect::with_client;
use crate::failure::Failure;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum GroupCommand {
    /// List the groups.
    #[command(visible_alias = "ls")]
    List(OutputArgs),
    /// Describe a group: who coordinates it, and what it has committed.
    Describe(NamedArgs),
    /// Show how far a group is behind, in records and in time.
    Lag(NamedArgs),
    /// Have a group go on somewhere else: from its earliest or latest record, an offset, a moment, or some records on.
    ///
    /// The group must have no members. What is shown with --dry-run is what would be committed.
    ResetOffsets(reset::ResetArgs),
    /// Delete a group and all that it has committed.
    Delete(delete::DeleteArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct NamedArgs {
    /// The group.
    #[arg(value_name = "GROUP")]
    group: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(brokers: &BrokerAddresses, command: GroupCommand) -> Result<(), Failure> {
    with_client(brokers, async |client| match command {
        GroupCommand::List(output) => list::run(&client, output.form).await,
        GroupCommand::Describe(args) => lag::describe(&client, &args).await,
        GroupCommand::Lag(args) => lag::run(&client, &args).await,
        GroupCommand::ResetOffsets(args) => reset::run(&client, &args).await,
        GroupCommand::Delete(args) => delete::run(&client, &args).await,
    })
}

/// What to do next when there is no such group.
fn hinted(failure: Failure) -> Failure {
    match &failure.hint {
        Some(_) => failure,
        None => failure.hint("see which groups there are with: tidelog group list"),
    }
}
