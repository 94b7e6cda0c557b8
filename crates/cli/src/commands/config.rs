//! `tidelog config`.

use tidelog_server::{ServeArgs, config};

use super::serve;
use crate::args::{OutputArgs, OutputForm};
use crate::failure::Failure;
use crate::output::sink::print;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting of `tidelog serve`, its value, and where that comes from.
    ///
    /// Takes the flags of serve, so that their effect can be seen.
    Explain(Box<ExplainArgs>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Explain(args) = command;
    let resolved = serve::resolve(&args.serve)?;
    for warning in &resolved.warnings {
        say!("warning: {warning}");
    }
    print(&match args.output.form {
        OutputForm::Table => config::explain_table(&resolved.explained),
        OutputForm::Json => config::explain_json(&resolved.explained),
    })
}
