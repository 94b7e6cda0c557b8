//! The `tidelog` binary: commands, output, exit codes.
//!
//! `args.rs` is the command line; each command is a module of `commands/`. What they read from it is
//! in `parse/`, what they print in `output/`. Every command gives a `Failure` (`failure.rs`) or
//! nothing, which becomes the exit code here.

/// Tells people something on stderr. Where that cannot be written nobody is told, and the exit code
/// says what it always says.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stderr(), $($text)*).ok();
    }};
}

mod args;
mod brokers;
mod clock;
mod commands;
mod connect;
mod failure;
mod fields;
mod output;
mod parse;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Clap itself ends the process with 2 where the command line is wrong.
    let cli = args::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            failure.exit.into()
        }
    }
}
