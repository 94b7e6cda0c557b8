//! `tidelog produce`.
//!
//! A thread reads lines (`lines.rs`), the main task makes records of them and sends them, another
//! task waits for the acknowledgements in the same order (`acks.rs`).

mod acks;
mod lines;

use std::fs::File;
use std::io::{self, IsTerminal};

use bytes::{Buf, Bytes};
use indicatif::{ProgressBar, ProgressStyle};
use tidelog_client::{
    BrokerAddresses, Client, ClientError, Compression, PartitionId, Producer, ProducerConfig,
    ProducerRecord, TopicName,
};

use self::acks::Collector;
use self::lines::Line;
use crate::args::AcksArg;
use crate::connect::{first_answer, with_client};
use crate::failure::Failure;
use crate::fields::Wanted;
use crate::output::numbers::{counted, grouped};
use crate::parse::pairs::parse_pair;

#[derive(Debug, clap::Args)]
pub(crate) struct ProduceArgs {
    /// The topic.
    #[arg(value_name = "TOPIC")]
    topic: TopicName,
    /// Where lines come from; - is stdin.
    #[arg(long, value_name = "FILE", default_value = "-")]
    input: String,
    /// Take the key from this field of each line, which must be a JSON object then: a string
    /// without its quotes, a number as it is written, null for no key.
    #[arg(long, value_name = "FIELD", conflicts_with = "key")]
    key_field: Option<String>,
    /// The key of every record.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Each line is a key, this text, and the value.
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with_all = ["key", "key_field", "timestamp_field"],
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    key_delimiter: Option<String>,
    /// An empty value is none: where a topic is compacted, such a record deletes its key.
    #[arg(long)]
    tombstones: bool,
    /// Take the timestamp from this field of each line, which must be a JSON object then:
    /// milliseconds since 1970 as a number, or RFC 3339 as a string.
    #[arg(long, value_name = "FIELD")]
    timestamp_field: Option<String>,
    /// A header of every record; can be given several times.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_pair)]
    headers: Vec<(String, String)>,
    /// The partition of every record [default: by the key, as Kafka's clients do; without a key one
    /// after the other, a batch each].
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
    /// What an acknowledgement promises.
    #[arg(long, value_enum, default_value_t, allow_hyphen_values = true)]
    acks: AcksArg,
    /// How batches are compressed: none, gzip, snappy, lz4 or zstd.
    #[arg(long, value_name = "KIND", default_value_t = Compression::None)]
    compression: Compression,
}

pub(crate) fn run(brokers: &BrokerAddresses, args: ProduceArgs) -> Result<(), Failure> {
    let input: Box<dyn io::Read + Send> = if args.input == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&args.input).map_err(|error| {
            Failure::failed(format!("cannot open the input {}: {error}", args.input))
        })?)
    };
    let topic = args.topic.clone();
    with_client(brokers, async |client| produce(client, args, input).await)
        .map_err(|failure| failure.of_topic(&topic))
}

async fn produce(
    client: Client,
    args: ProduceArgs,
    input: Box<dyn io::Read + Send>,
) -> Result<(), Failure> {
    let config = ProducerConfig {
        acks: args.acks.into(),
        compression: args.compression,
        ..ProducerConfig::default()
    };
    let until = config.delivery_timeout;
    let producer = Producer::new(client.clone(), config);
    // A topic that does not exist is told before any line is read.
    let facts = producer.topic_facts(&args.topic);
    first_answer(&client, &args.topic, until, facts).await?;
    let mut chunks = lines::spawn(input)
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    let maker = RecordMaker::new(&args);
    let mut collector = Collector::start(client, args.topic.clone(), progress(&args.input), until);
    let mut failed = collector.failed();

    let sending = async {
        while let Some(chunk) = chunks.recv().await {
            for line in chunk? {
                let number = line.number;
                let record = maker.record(line)?;
                let future = producer
                    .send(record)
                    .await
                    .map_err(|error| at_line(number, error))?;
                collector.add(number, future).await;
            }
            collector.hand_over().await;
        }
        Ok(())
    };
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let sent = tokio::select! {
        sent = sending => sent,
        () = interrupted => Err(Failure::failed("interrupted; the rest of the input was not sent")),
        // What failed is told below; sending on would only leave a hole.
        _ = failed.wait_for(|has_failed| *has_failed) => Ok(()),
    };
    collector.hand_over().await;
    producer.close().await;
    let outcome = collector.finish().await;

    let stored = counted(outcome.acknowledged, "record");
    match args.acks {
        AcksArg::None => say!("{stored} sent; with --acks 0 none is acknowledged"),
        AcksArg::All | AcksArg::Leader => say!("{stored} acknowledged"),
    }
    match outcome.first_failure {
        None => sent,
        Some((number, error)) => {
            if outcome.failed > 1 {
                let failed = counted(outcome.failed, "record");
                say!("{failed} not acknowledged; the first of them:");
            }
            Err(at_line(number, error))
        }
    }
}

fn at_line(number: u64, error: ClientError) -> Failure {
    Failure::from(error).about(&format!("line {}", grouped(number)))
}

/// Shown only where a person looks on and does not type the input there.
fn progress(input: &str) -> ProgressBar {
    let is_typed = input == "-" && io::stdin().is_terminal();
    if is_typed || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {human_pos} records acknowledged, {per_sec}")
            .expect("the template is right");
    ProgressBar::new_spinner().with_style(style)
}

/// Makes records of lines.
#[derive(Debug)]
struct RecordMaker {
    wanted: Wanted,
    key_delimiter: Option<String>,
    tombstones: bool,
    /// All that is the same for every record.
    template: ProducerRecord,
}

impl RecordMaker {
    fn new(args: &ProduceArgs) -> Self {
        let mut template = ProducerRecord::new(args.topic.clone());
        template.partition = args.partition.map(PartitionId::new);
        template.key = args.key.clone().map(Bytes::from);
        template.headers = args
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), Some(Bytes::from(value.clone()))))
            .collect();
        let wanted = Wanted {
            key: args.key_field.clone(),
            timestamp: args.timestamp_field.clone(),
        };
        Self {
            wanted,
            key_delimiter: args.key_delimiter.clone(),
            tombstones: args.tombstones,
            template,
        }
    }

    fn record(&self, line: Line) -> Result<ProducerRecord, Failure> {
        let picked = self
            .wanted
            .pick(&line.bytes)
            .map_err(|error| Failure::failed(format!("line {}: {error}", grouped(line.number))))?;
        let mut record = self.template.clone();
        if self.wanted.key.is_some() {
            record.key = picked.key.map(Bytes::from);
        }
        record.timestamp = picked.timestamp;
        let mut value = Bytes::from(line.bytes);
        if let Some(delimiter) = &self.key_delimiter {
            let at = find(&value, delimiter.as_bytes()).ok_or_else(|| {
                let number = grouped(line.number);
                Failure::failed(format!(
                    "line {number}: it has no {delimiter:?} behind a key"
                ))
            })?;
            record.key = Some(value.split_to(at));
            value.advance(delimiter.len());
        }
        record.value = (!self.tombstones || !value.is_empty()).then_some(value);
        Ok(record)
    }
}

/// Where `what` begins first.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tidelog_client::Timestamp;

    use super::*;
    use crate::args::{Cli, Command};

    fn maker(options: &str) -> RecordMaker {
        let line = format!("tidelog produce t {options}");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Produce(on) = cli.command else {
            panic!("it says produce");
        };
        RecordMaker::new(&on.args)
    }

    fn line(text: &str) -> Line {
        Line {
            number: 7,
            bytes: text.as_bytes().to_vec(),
        }
    }

    #[test]
    fn values_are_untouched_and_options_apply() {
        let record = maker("--key k --header a=1 --header a=2 --partition 3")
            .record(line("{\"x\": 1}\r"))
            .unwrap();
        assert_eq!(record.value.unwrap(), "{\"x\": 1}\r");
        assert_eq!(record.key.unwrap(), "k");
        assert_eq!(record.partition, Some(PartitionId::new(3)));
        assert_eq!(record.timestamp, None);
        let header = |value: &str| ("a".to_owned(), Some(Bytes::from(value.to_owned())));
        assert_eq!(record.headers, [header("1"), header("2")]);
    }

    #[test]
    fn keys_may_stand_before_a_delimiter_and_values_may_be_missing() {
        let cut = |options: &str, text: &str| {
            let record = maker(options).record(line(text)).unwrap();
            (record.key.unwrap(), record.value)
        };
        let some = |text: &'static str| Some(Bytes::from(text));
        let delimited = "--key-delimiter ::";
        assert_eq!(cut(delimited, "a::b::c"), ("a".into(), some("b::c")));
        assert_eq!(cut(delimited, "::"), ("".into(), some("")));
        let deleting = "--key-delimiter : --tombstones";
        assert_eq!(cut(deleting, "a:"), ("a".into(), None));
        assert_eq!(cut(deleting, "a:1"), ("a".into(), some("1")));
        assert_eq!(cut("--key k --tombstones", ""), ("k".into(), None));
        let failure = maker(delimited).record(line("a:b")).unwrap_err();
        assert_eq!(failure.message, "line 7: it has no \"::\" behind a key");
    }

    #[test]
    fn fields_become_key_and_timestamp() {
        let maker = maker("--key-field network --timestamp-field time");
        let text = r#"{"time":1517363399650,"network":"uw"}"#;
        let record = maker.record(line(text)).unwrap();
        assert_eq!(record.key.unwrap(), "uw");
        assert_eq!(
            record.timestamp,
            Some(Timestamp::from_millis(1_517_363_399_650))
        );
        assert_eq!(record.value.unwrap(), text);
        let failure = maker.record(line("{}")).unwrap_err();
        assert_eq!(failure.message, "line 7: it has no field \"network\"");
    }
}
