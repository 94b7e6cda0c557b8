//! The commands, each in a module of its own.

pub(crate) mod bench;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod confirm;
pub(crate) mod consume;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod group;
pub(crate) mod log;
pub(crate) mod offsets;
pub(crate) mod partitions;
pub(crate) mod produce;
pub(crate) mod serve;
pub(crate) mod topic;

use std::process::ExitCode;

use serde_json::json;

use crate::args::{Cli, Command, OutputForm};
use crate::failure::Failure;
use crate::output::sink::print;

/// Runs the command that was asked for.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Serve(args) => return serve::run(&args),
        Command::Dev(args) => dev::run(&args)?,
        Command::Demo => demo::run()?,
        Command::Cluster(on) => cluster::run(&on.broker.addresses, on.command)?,
        Command::Topic(on) => topic::run(&on.broker.addresses, on.command)?,
        Command::Group(on) => group::run(&on.broker.addresses, on.command)?,
        Command::Produce(on) => produce::run(&on.broker.addresses, on.args)?,
        Command::Consume(on) => consume::run(&on.broker.addresses, on.args)?,
        Command::Offsets(on) => offsets::run(&on.broker.addresses, on.args)?,
        Command::Bench(on) => bench::run(&on.broker.addresses, on.command)?,
        Command::Log(command) => log::run(command)?,
        Command::Config(command) => config::run(command)?,
        Command::Completion { shell } => completion::run(shell)?,
        Command::Version(output) => print(&version(output.form))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn version(form: OutputForm) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match form {
        OutputForm::Table => format!("tidelog {version}\n"),
        OutputForm::Json => format!("{}\n", json!({ "version": version })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_told_to_people_and_to_programs() {
        let number = env!("CARGO_PKG_VERSION");
        assert_eq!(version(OutputForm::Table), format!("tidelog {number}\n"));
        let json = format!("{{\"version\":\"{number}\"}}\n");
        assert_eq!(version(OutputForm::Json), json);
    }
}
