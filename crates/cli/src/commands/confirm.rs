//! Asking before something is gone for good.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::{Exit, Failure};

/// Lets a person type the name of what will be gone. Without a terminal, or with `--yes`, nobody is
/// asked.
pub(crate) fn confirm(what: &str, name: &str, is_sure: bool) -> Result<(), Failure> {
    if is_sure {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            format!("this {what}, and stdin is no terminal to confirm it on"),
        )
        .hint("add --yes if you mean it, or --dry-run to see what would happen"));
    }
    ask(&mut stdin.lock(), &mut io::stderr(), what, name)
}

fn ask(
    answers: &mut impl BufRead,
    questions: &mut impl Write,
    what: &str,
    name: &str,
) -> Result<(), Failure> {
    let io_failed = |error: io::Error| Failure::failed(format!("cannot ask: {error}"));
    write!(questions, "This {what}, for good.\nType {name} to go on: ").map_err(io_failed)?;
    questions.flush().map_err(io_failed)?;
    let mut answer = String::new();
    answers.read_line(&mut answer).map_err(io_failed)?;
    if answer.trim_end_matches(['\r', '\n']) == name {
        return Ok(());
    }
    Err(Failure::failed("not confirmed; nothing was changed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_confirms() {
        let ask = |answer: &str| {
            let mut question = Vec::new();
            let result = ask(
                &mut answer.as_bytes(),
                &mut question,
                "deletes topic t",
                "t",
            );
            assert!(
                String::from_utf8(question)
                    .unwrap()
                    .contains("deletes topic t")
            );
            result.is_ok()
        };
        assert!(ask("t\n") && ask("t\r\n") && ask("t"));
        assert!(!ask("y\n") && !ask("") && !ask("T\n") && !ask(" t\n"));
    }

    #[test]
    fn yes_asks_nobody() {
        assert_eq!(confirm("deletes topic t", "t", true), Ok(()));
    }
}
