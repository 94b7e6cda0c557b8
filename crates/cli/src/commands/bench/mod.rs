//! `tidelog bench`: measures a broker through the client that applications use.

mod consume;
mod histogram;
mod latency;
mod produce;
mod report;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use tidelog_client::{
    AdminOptions, BrokerAddresses, Client, Compression, Timestamp, TopicFacts, TopicName,
};
use tidelog_record::BatchBuilder;
use tokio::time::Instant;

use crate::args::{AcksArg, OutputArgs, partition_count};
use crate::clock::cpu_time;
use crate::connect::with_client;
use crate::failure::{Exit, Failure, TOPIC};
use crate::parse::units::{UnitError, parse_size};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Send records as fast as they are taken, or at a rate.
    Produce(ProduceArgs),
    /// Read records as fast as they come.
    Consume(ConsumeArgs),
    /// Send one record at a time, and see when it is acknowledged and when a reader has it.
    Latency(LatencyArgs),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProduceArgs {
    /// How many records.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    records: u64,
    #[command(flatten)]
    sending: SendingArgs,
    /// How large batches grow, before compression.
    #[arg(long, value_name = "BYTES", default_value = "256KiB", value_parser = size_arg)]
    batch_size: usize,
    /// Batches of one partition on their way at a time. With more than 1, order is not kept when
    /// the broker refuses one of them for the moment.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    in_flight: usize,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConsumeArgs {
    /// The topic.
    #[arg(long, value_name = "TOPIC", default_value = TOPIC_DEFAULT)]
    topic: TopicName,
    /// How many records [default: all there are].
    #[arg(long, value_name = "N")]
    records: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LatencyArgs {
    /// How many records; their values have 16 bytes or more.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    records: u64,
    #[command(flatten)]
    sending: SendingArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What all that sends takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SendingArgs {
    /// The topic; it is made if it does not exist, and stays.
    #[arg(long, value_name = "TOPIC", default_value = TOPIC_DEFAULT)]
    topic: TopicName,
    /// The size of a record's value, such as 1024 or 1KiB.
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = size_arg)]
    size: usize,
    /// How many partitions the topic gets if it is made.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = partition_count())]
    partitions: u32,
    /// What an acknowledgement promises.
    #[arg(long, value_enum, default_value_t, allow_hyphen_values = true)]
    acks: AcksArg,
    /// Records a second [default: as many as are taken].
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// How batches are compressed: none, gzip, snappy, lz4 or zstd. Values are random bytes.
    #[arg(long, value_name = "KIND", default_value_t = Compression::None)]
    compression: Compression,
}

const TOPIC_DEFAULT: &str = "tidelog-bench";

impl BenchCommand {
    fn topic(&self) -> &TopicName {
        match self {
            Self::Produce(args) => &args.sending.topic,
            Self::Consume(args) => &args.topic,
            Self::Latency(args) => &args.sending.topic,
        }
    }
}

pub(crate) fn run(brokers: &BrokerAddresses, command: BenchCommand) -> Result<(), Failure> {
    let done = with_client(brokers, async |client| {
        let (report, output) = match &command {
            BenchCommand::Produce(args) => (produce::run(client, args).await?, args.output),
            BenchCommand::Consume(args) => (consume::run(client, args).await?, args.output),
            BenchCommand::Latency(args) => (latency::run(client, args).await?, args.output),
        };
        report.print(output.form)
    });
    done.map_err(|failure| failure.of_topic(command.topic()))
}

/// Makes the topic if it is not there.
async fn make_topic(client: &Client, args: &SendingArgs) -> Result<(), Failure> {
    match client.describe_topic(&args.topic, false).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => {
            let (settings, options) = (HashMap::new(), AdminOptions::default());
            client
                .create_topic(&args.topic, args.partitions, settings, options)
                .await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses values that the topic cannot take, before anything is sent. Random bytes do not get
/// smaller by compression.
fn check_size(args: &SendingArgs, facts: TopicFacts) -> Result<(), Failure> {
    let Some(max) = facts.batch_bytes_max else {
        return Ok(());
    };
    let builder = BatchBuilder::new(Compression::None);
    let value = vec![0; args.size];
    let len = builder.len_bytes()
        + builder.record_len(Timestamp::from_millis(0), None, Some(&value), &[]);
    if len <= max {
        return Ok(());
    }
    let message = format!(
        "--size {} is too large: a batch of one such record has {len} bytes, and \
         max.message.bytes of topic {} is {max}",
        args.size, args.topic
    );
    Err(Failure::new(Exit::Refused, message).hint(format!(
        "give a smaller --size, or raise it with: tidelog topic alter {TOPIC} -c \
         max.message.bytes={len}"
    )))
}

/// Values of random bytes, so that compression cannot do wonders: slices of one block, each at
/// another place.
#[derive(Debug)]
struct Payload {
    block: Bytes,
    size: usize,
    at: usize,
}

impl Payload {
    fn new(size: usize) -> Self {
        let mut block = vec![0; size + 64 * 1024];
        fastrand::Rng::with_seed(1).fill(&mut block);
        Self {
            block: Bytes::from(block),
            size,
            at: 0,
        }
    }

    fn next(&mut self) -> Bytes {
        // A prime, so that many places come before one comes again.
        self.at = (self.at + 4099) % (self.block.len() - self.size);
        self.block.slice(self.at..self.at + self.size)
    }
}

/// Waits until the record of this number is due.
#[derive(Debug)]
struct Pace {
    start: Instant,
    per_record: Option<f64>,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        #[allow(clippy::cast_precision_loss, reason = "no rate is that high")]
        let per_record = rate.map(|rate| 1.0 / rate as f64);
        Self {
            start: Instant::now(),
            per_record,
        }
    }

    /// When the record of this number was due: latency counts from then, since a system that lags
    /// behind the rate delays what comes after too.
    #[allow(clippy::cast_precision_loss, reason = "no run is that long")]
    async fn due(&self, number: u64) -> Instant {
        let Some(per_record) = self.per_record else {
            return Instant::now();
        };
        let due = self.start + Duration::from_secs_f64(per_record * number as f64);
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        due
    }
}

/// Wall clock and processor time of a run.
#[derive(Debug)]
struct Stopwatch {
    start: Instant,
    cpu: Duration,
}

impl Stopwatch {
    fn start() -> Self {
        Self {
            start: Instant::now(),
            cpu: cpu_time(),
        }
    }

    fn stop(&self) -> (Duration, Duration) {
        (self.start.elapsed(), cpu_time().saturating_sub(self.cpu))
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(records: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{wide_bar} {human_pos} of {human_len} records, {per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is right");
    match records {
        Some(records) => ProgressBar::new(records).with_style(style),
        None => ProgressBar::new_spinner(),
    }
}

fn size_arg(text: &str) -> Result<usize, UnitError> {
    let size = parse_size(text)?;
    match usize::try_from(size) {
        // What does not fit the producer's buffer cannot be sent.
        Ok(size) if (1..=32 * 1024 * 1024).contains(&size) => Ok(size),
        _ => Err(UnitError::Range {
            text: text.to_owned(),
            allowed: "1 to 32MiB",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_differ_and_have_their_size() {
        let mut payload = Payload::new(100);
        let (first, second) = (payload.next(), payload.next());
        assert_eq!((first.len(), second.len()), (100, 100));
        assert_ne!(first, second);
        for _ in 0..10_000 {
            assert_eq!(payload.next().len(), 100);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_is_kept_from_the_start() {
        let pace = Pace::new(Some(1000));
        for number in [0, 1, 10, 1000] {
            let due = pace.due(number).await;
            assert!(Instant::now() >= due);
            assert_eq!((due - pace.start).as_millis(), u128::from(number));
        }
        tokio::time::advance(Duration::from_secs(5)).await;
        let late = pace.due(1001).await;
        assert_eq!(
            (late - pace.start).as_millis(),
            1001,
            "lagging behind shows"
        );
    }

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(size_arg("1KiB"), Ok(1024));
        for text in ["0", "64MiB"] {
            let said = size_arg(text).unwrap_err().to_string();
            assert_eq!(said, format!("it cannot be {text}; allowed are 1 to 32MiB"));
        }
    }
}
