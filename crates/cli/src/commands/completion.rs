//! `tidelog completion`.

use clap::CommandFactory;

use crate::args::Cli;
use crate::failure::Failure;
use crate::output::sink::print;

pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidelog", &mut script);
    print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        use clap::ValueEnum;
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tidelog", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("add-partitions"), "{shell}");
        }
    }
}
