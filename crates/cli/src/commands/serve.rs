//! `tidelog serve`.

use std::process::ExitCode;

use tidelog_server::{ServeArgs, config};

use crate::failure::{Exit, Failure};

pub(crate) fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let resolved = resolve(args)?;
    Ok(ExitCode::from(tidelog_server::run(&resolved).code()))
}

/// Merges flags, environment and file.
pub(crate) fn resolve(args: &ServeArgs) -> Result<config::Resolved, Failure> {
    let dir = std::env::current_dir()
        .map_err(|error| Failure::failed(format!("cannot tell the working directory: {error}")))?;
    config::resolve(args, std::env::vars_os(), &dir).map_err(|error| {
        // Also `config explain` ends with this very error.
        Failure::new(Exit::Usage, error.to_string())
            .hint("see what is allowed with: tidelog serve --help")
    })
}
