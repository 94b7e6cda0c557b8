//! Stdout, buffered. That its reader went away is no error: it had enough.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

use crate::failure::Failure;

/// Stdout, and whether anybody still reads it.
#[derive(Debug)]
pub(crate) struct Sink {
    out: BufWriter<StdoutLock<'static>>,
}

/// Whether to go on writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Reader {
    Listens,
    Gone,
}

impl Sink {
    pub(crate) fn stdout() -> Self {
        Self {
            out: BufWriter::with_capacity(256 * 1024, io::stdout().lock()),
        }
    }

    /// Writes with `write`.
    pub(crate) fn write(
        &mut self,
        write: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> io::Result<()>,
    ) -> Result<Reader, Failure> {
        whether_read(write(&mut self.out))
    }

    /// Makes everything written so far visible.
    pub(crate) fn flush(&mut self) -> Result<Reader, Failure> {
        whether_read(self.out.flush())
    }
}

/// Writes a whole text to stdout.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut sink = Sink::stdout();
    if sink.write(|out| out.write_all(text.as_bytes()))? == Reader::Listens {
        let _gone_or_not: Reader = sink.flush()?;
    }
    Ok(())
}

fn whether_read(result: io::Result<()>) -> Result<Reader, Failure> {
    match result {
        Ok(()) => Ok(Reader::Listens),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_went_away_is_no_failure() {
        assert_eq!(whether_read(Ok(())), Ok(Reader::Listens));
        assert_eq!(
            whether_read(Err(ErrorKind::BrokenPipe.into())),
            Ok(Reader::Gone)
        );
        assert!(whether_read(Err(ErrorKind::StorageFull.into())).is_err());
    }
}
