//! `tidelog consume`.

use std::io::{self, IsTerminal, Write};

use tidelog_client::{
    BrokerAddresses, Client, ConsumedRecord, OffsetSpec, PartitionId, Reader, ReaderConfig,
    TopicName,
};
use tokio::sync::watch;

use crate::connect::{first_answer, waiting_aloud, with_client};
use crate::failure::{Exit, Failure};
use crate::output::record_json::write_record;
use crate::output::sink::{self, Sink};
use crate::parse::format::Format;
use crate::parse::offset_spec::offset_spec_arg;

#[derive(Debug, clap::Args)]
pub(crate) struct ConsumeArgs {
    /// The topic.
    #[arg(value_name = "TOPIC")]
    topic: TopicName,
    /// Where to begin: earliest, latest, an offset, -N (so many before the end of each partition),
    /// @TIME (RFC 3339, a date, milliseconds, or @-1h).
    #[arg(long, value_name = "OFFSET", default_value = "earliest", value_parser = offset_spec_arg,
        allow_hyphen_values = true)]
    from: OffsetSpec,
    /// Where to end, exclusive; the same forms [default: the end there is now].
    #[arg(long, value_name = "OFFSET", value_parser = offset_spec_arg, allow_hyphen_values = true)]
    to: Option<OffsetSpec>,
    /// Only this partition; can be given several times.
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u32>,
    /// Stop after so many records in all.
    #[arg(short = 'n', long = "count", value_name = "N")]
    count: Option<u64>,
    /// Wait for new records at the end.
    #[arg(long)]
    follow: bool,
    /// Read from the first broker that answers where it has a replica, though it may not lead: up to the high
    /// watermark that it knows. What was acknowledged is read so also without a majority.
    #[arg(long)]
    read_replica: bool,
    /// Print each record like this: %t topic, %p partition, %o offset, %k key, %s value,
    /// %T timestamp, %h headers, %% percent; \n, \t, \r, \0, \\.
    #[arg(short = 'f', long, value_name = "FORMAT", conflicts_with = "output")]
    format: Option<Format>,
    /// In which form records are printed.
    #[arg(short = 'o', long, value_enum, default_value_t, value_name = "FORM")]
    output: RecordForm,
}

/// In which form records are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum RecordForm {
    /// The value and a newline; on a terminal, what could disturb it is escaped.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// The value and a newline, always as it is.
    Raw,
}

pub(crate) fn run(brokers: &BrokerAddresses, args: ConsumeArgs) -> Result<(), Failure> {
    let topic = args.topic.clone();
    with_client(brokers, async |client| consume(client, args).await)
        .map_err(|failure| failure.of_topic(&topic))
}

async fn consume(client: Client, args: ConsumeArgs) -> Result<(), Failure> {
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut interrupted = interrupts();
    let reader = ReaderConfig {
        partitions: args
            .partitions
            .iter()
            .map(|&p| PartitionId::new(p).into())
            .collect(),
        from: args.from,
        to: args.to,
        follow: args.follow,
        read_replica: args.read_replica,
        ..ReaderConfig::new(args.topic.clone())
    };
    let until = reader.retry_timeout;
    let opening = Reader::open(client.clone(), reader);
    let mut reader = first_answer(&client, &args.topic, until, opening).await?;
    let printer = Printer::new(&args);
    let mut sink = Sink::stdout();
    let mut failure = None;
    while left > 0 {
        let record = match reader.next_buffered() {
            Some(record) => record,
            None => {
                // Nothing more at hand: show what there is before waiting.
                if sink.flush()? == sink::Reader::Gone {
                    return Ok(());
                }
                let next = async {
                    if args.follow {
                        // Nothing to come is as usual there.
                        return reader.next().await;
                    }
                    let until = until.as_secs();
                    let for_what = || format!("the broker, which may be gone, for up to {until} s");
                    waiting_aloud(for_what, reader.next()).await
                };
                tokio::select! {
                    biased;
                    _ = interrupted.wait_for(|it_is| *it_is) => break,
                    record = next => match record {
                        Some(record) => record,
                        None => break,
                    },
                }
            }
        };
        match record {
            Ok(record) => {
                left -= 1;
                if sink.write(|out| printer.print(out, &record))? == sink::Reader::Gone {
                    return Ok(());
                }
            }
            // The other partitions go on; the worst is told at the end.
            Err(error) => {
                let next = Failure::from(error).of_topic(&args.topic);
                next.print();
                failure = Some(worse(failure, next.exit));
            }
        }
    }
    let _gone_or_not: sink::Reader = sink.flush()?;
    match failure {
        None => Ok(()),
        Some(exit) => Err(Failure::new(exit, "not everything could be read")),
    }
}

/// Damaged data outweighs everything else.
fn worse(before: Option<Exit>, next: Exit) -> Exit {
    match before {
        Some(Exit::Damaged) => Exit::Damaged,
        Some(before) if next != Exit::Damaged => before,
        _ => next,
    }
}

/// Becomes true with the first Ctrl-C; the second ends the process, whatever it waits for.
fn interrupts() -> watch::Receiver<bool> {
    let (interrupted, seen) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without signals the process ends as the system has it.
            std::future::pending::<()>().await;
        }
        interrupted.send_replace(true);
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    seen
}

/// Writes records in the form that was asked for.
#[derive(Debug)]
struct Printer<'a> {
    topic: &'a TopicName,
    form: PrintAs<'a>,
}

#[derive(Debug)]
enum PrintAs<'a> {
    Format(&'a Format),
    Json,
    Value,
    /// The value, for a terminal.
    Shown,
}

impl<'a> Printer<'a> {
    fn new(args: &'a ConsumeArgs) -> Self {
        let form = match (&args.format, args.output) {
            (Some(format), _) => PrintAs::Format(format),
            (None, RecordForm::Json) => PrintAs::Json,
            (None, RecordForm::Text) if io::stdout().is_terminal() => PrintAs::Shown,
            (None, RecordForm::Text | RecordForm::Raw) => PrintAs::Value,
        };
        Self {
            topic: &args.topic,
            form,
        }
    }

    fn print(&self, out: &mut impl Write, record: &ConsumedRecord) -> io::Result<()> {
        let value = record.value.as_deref().unwrap_or_default();
        match self.form {
            PrintAs::Format(format) => format.write(out, self.topic, record),
            PrintAs::Json => write_record(out, self.topic, record),
            PrintAs::Value => {
                out.write_all(value)?;
                out.write_all(b"\n")
            }
            PrintAs::Shown => {
                write_shown(out, value)?;
                out.write_all(b"\n")
            }
        }
    }
}

/// Writes text as it is, and control characters and bytes that are no text as escapes: data must
/// not be able to steer a terminal.
pub(crate) fn write_shown(out: &mut impl Write, value: &[u8]) -> io::Result<()> {
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() && !matches!(c, '\n' | '\t') {
                write!(out, "{}", c.escape_default())?;
            } else {
                write!(out, "{c}")?;
            }
        }
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_steered_by_data() {
        let mut out = Vec::new();
        write_shown(&mut out, b"a\tb\n\x1b[31m \xff\xfe caf\xc3\xa9").unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "a\tb\n\\u{1b}[31m \\xff\\xfe caf\u{e9}"
        );
    }

    #[test]
    fn damage_outweighs_other_failures() {
        assert_eq!(worse(None, Exit::Refused), Exit::Refused);
        assert_eq!(worse(Some(Exit::Refused), Exit::Unavailable), Exit::Refused);
        assert_eq!(worse(Some(Exit::Refused), Exit::Damaged), Exit::Damaged);
        assert_eq!(worse(Some(Exit::Damaged), Exit::Refused), Exit::Damaged);
    }
}
