//! Lines of the input, read by a thread of its own: reading a terminal or a pipe blocks.

use std::io::{self, BufRead, BufReader, Read};

use tokio::sync::mpsc;

use crate::failure::{Exit, Failure};

/// The longest line that is taken. What can be stored is decided by the topic.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Lines go over in chunks of about so many bytes, so that handing over costs little.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that wait.
const CHUNKS_MAX: usize = 4;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: u64,
    /// Without its newline.
    pub(super) bytes: Vec<u8>,
}

/// Some lines, or why there are no more.
pub(super) type Chunk = Result<Vec<Line>, Failure>;

/// Reads all lines of `input`.
pub(super) fn spawn(input: impl Read + Send + 'static) -> io::Result<mpsc::Receiver<Chunk>> {
    let (chunks, chunks_out) = mpsc::channel(CHUNKS_MAX);
    std::thread::Builder::new()
        .name("tidelog-input".to_owned())
        .spawn(move || {
            let mut lines = Lines::new(input, LINE_BYTES_MAX);
            while let Some(chunk) = lines.next_chunk().transpose() {
                let is_last = chunk.is_err();
                if chunks.blocking_send(chunk).is_err() || is_last {
                    return;
                }
            }
        })?;
    Ok(chunks_out)
}

struct Lines<R> {
    input: BufReader<R>,
    line_bytes_max: usize,
    number: u64,
    /// Told after the lines before it.
    failure: Option<Failure>,
}

impl<R: Read> Lines<R> {
    fn new(input: R, line_bytes_max: usize) -> Self {
        let input = BufReader::with_capacity(CHUNK_BYTES, input);
        Self {
            input,
            line_bytes_max,
            number: 0,
            failure: None,
        }
    }

    /// The lines that are at hand, at least one, waiting for it if need be; `None` at the end.
    fn next_chunk(&mut self) -> Result<Option<Vec<Line>>, Failure> {
        let mut lines = Vec::new();
        let mut len = 0;
        loop {
            if let Some(failure) = self.failure.take() {
                if lines.is_empty() {
                    return Err(failure);
                }
                self.failure = Some(failure);
                return Ok(Some(lines));
            }
            // Nobody shall wait for a line that is here because another one is not.
            let is_at_hand = self.input.buffer().contains(&b'\n');
            if !lines.is_empty() && (len >= CHUNK_BYTES || !is_at_hand) {
                return Ok(Some(lines));
            }
            match self.next_line() {
                Ok(Some(line)) => {
                    len += line.bytes.len();
                    lines.push(line);
                }
                Ok(None) => return Ok((!lines.is_empty()).then_some(lines)),
                Err(failure) => self.failure = Some(failure),
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<Line>, Failure> {
        let number = self.number + 1;
        let mut bytes = Vec::new();
        // The newline does not count.
        let bytes_max = u64::try_from(self.line_bytes_max)
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        let read = (&mut self.input)
            .take(bytes_max)
            .read_until(b'\n', &mut bytes);
        let len = read.map_err(|error| {
            Failure::failed(format!("line {number}: cannot read the input: {error}"))
        })?;
        if len == 0 {
            return Ok(None);
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        } else if bytes.len() > self.line_bytes_max {
            let max = self.line_bytes_max;
            let message =
                format!("line {number}: it is longer than {max} bytes, the most there is");
            return Err(Failure::new(Exit::Refused, message));
        }
        self.number = number;
        Ok(Some(Line { number, bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8], line_bytes_max: usize) -> (Vec<(u64, Vec<u8>)>, Option<Failure>) {
        let mut lines = Lines::new(input, line_bytes_max);
        let mut all = Vec::new();
        loop {
            match lines.next_chunk() {
                Ok(Some(chunk)) => all.extend(chunk.into_iter().map(|l| (l.number, l.bytes))),
                Ok(None) => return (all, None),
                Err(failure) => return (all, Some(failure)),
            }
        }
    }

    #[test]
    fn only_the_newline_goes() {
        let (lines, failure) = read(b"a\nb\r\n\n\xff\0c", 100);
        let expected: Vec<(u64, Vec<u8>)> = vec![
            (1, b"a".to_vec()),
            (2, b"b\r".to_vec()),
            (3, b"".to_vec()),
            (4, b"\xff\0c".to_vec()),
        ];
        assert_eq!(lines, expected);
        assert_eq!(failure, None);
        assert_eq!(read(b"", 100), (Vec::new(), None));
        assert_eq!(
            read(b"x\n", 100).0.len(),
            1,
            "no empty line behind the last newline"
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_named_after_those_before_it() {
        let (lines, failure) = read(b"12345\n12345\n123456\nx\n", 5);
        assert_eq!(lines.len(), 2);
        let failure = failure.unwrap();
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.message.starts_with("line 3:") && failure.message.contains("5 bytes"));
        assert!(read(b"123456", 5).1.is_some(), "also without a newline");
    }

    #[test]
    fn lines_at_hand_do_not_wait_for_others() {
        /// Gives one piece at a time, like a pipe.
        struct Pieces(Vec<&'static [u8]>);
        impl Read for Pieces {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Ok(0);
                }
                let piece = self.0.remove(0);
                out[..piece.len()].copy_from_slice(piece);
                Ok(piece.len())
            }
        }
        let mut lines = Lines::new(Pieces(vec![b"a\nb\nc", b"c\n", b"d"]), 100);
        let mut chunk = || {
            let chunk = lines.next_chunk().unwrap()?;
            Some(chunk.into_iter().map(|line| line.bytes).collect::<Vec<_>>())
        };
        assert_eq!(chunk(), Some(vec![b"a".to_vec(), b"b".to_vec()]));
        assert_eq!(chunk(), Some(vec![b"cc".to_vec()]));
        assert_eq!(chunk(), Some(vec![b"d".to_vec()]));
        assert_eq!(chunk(), None);
    }
}
