//! `tidelog log dump`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use tidelog_client::{ConsumedRecord, Offset, PartitionId, TopicName};
use tidelog_log::InternalKind;
use tidelog_log::offline::{self, Dump, DumpError, DumpedBatch, Problem, Severity};
use tidelog_record::BatchLimits;

use super::{Taken, Target, name_of};
use crate::args::{OutputArgs, OutputForm};
use crate::commands::consume::write_shown;
use crate::failure::{Exit, Failure};
use crate::output::record_json::write_record;
use crate::output::sink::{Reader, Sink};

#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {
    /// The directory of one partition.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The offset to begin at; the batch that holds it comes whole.
    #[arg(long, value_name = "OFFSET", default_value = "0", value_parser = offset_arg)]
    from: Offset,
    /// Stop after so many batches and internal entries, or records with --records.
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Print each record instead of each batch.
    #[arg(long)]
    records: bool,
    #[command(flatten)]
    output: OutputArgs,
}

fn offset_arg(text: &str) -> Result<Offset, String> {
    let offset = text.parse().ok().and_then(Offset::new);
    offset.ok_or_else(|| "an offset is a number from 0 to 2^63 - 1".to_owned())
}

/// What was stored once was within the limits of its day, which may have been others.
const STORED_LIMITS: BatchLimits = BatchLimits {
    batch_bytes_max: tidelog_log::BATCH_BYTES_LIMIT,
    decompressed_bytes_max: 1 << 30,
    records_max: usize::MAX,
    record_headers_max: usize::MAX,
    keys_required: false,
};

/// Whose records they are, by the name of the directory.
struct Names {
    topic: TopicName,
    partition: PartitionId,
}

pub(super) fn run(args: &DumpArgs) -> Result<(), Failure> {
    let target = Target::open(&args.dir)?;
    if let Taken::DataDir { .. } = target.taken {
        let what = "dump takes the directory of one partition";
        let dir = target.dir.display();
        return Err(Failure::new(Exit::Usage, what).hint(format!(
            "see which there are with: tidelog log inspect {dir}"
        )));
    }
    target.say_if_in_use();
    let mut ignored: Vec<Problem> = Vec::new();
    let state = target.state(&mut ignored)?;
    let checkpoint = offline::checkpoint_of(&target.disk, &target.dir, state.as_ref());
    let checkpoint = checkpoint.map_err(super::disk_failed)?;
    let dump = Dump::open(&target.disk, &target.dir, args.from, checkpoint).map_err(ended)?;
    let names = names(&target.dir);
    let mut left = args.max.unwrap_or(u64::MAX);
    let mut sink = Sink::stdout();
    for batch in dump {
        if left == 0 {
            break;
        }
        let batch = match batch {
            Ok(batch) => batch,
            Err(DumpError::Problem(problem)) if problem.severity == Severity::Note => {
                let _gone_or_not: Reader = sink.flush()?;
                say!("note: {problem}");
                return Ok(());
            }
            Err(error) => {
                let _gone_or_not: Reader = sink.flush()?;
                return Err(ended(error));
            }
        };
        let reader = if args.records {
            print_records(&mut sink, args, &names, &batch, &mut left)?
        } else {
            left -= 1;
            sink.write(|out| write_batch(out, args.output.form, &batch))?
        };
        if reader == Reader::Gone {
            return Ok(());
        }
    }
    let _gone_or_not: Reader = sink.flush()?;
    Ok(())
}

fn ended(error: DumpError) -> Failure {
    match error {
        DumpError::Problem(problem) => Failure::new(Exit::Damaged, problem.to_string())
            .hint("what lies behind it can be printed with --from"),
        DumpError::Disk(error) => super::disk_failed(error),
    }
}

fn names(dir: &Path) -> Names {
    let name = name_of(dir);
    let (topic, partition) = name.rsplit_once('-').unwrap_or((&name, "0"));
    Names {
        topic: TopicName::new(topic)
            .or_else(|_| TopicName::new("unknown"))
            .expect("\"unknown\" is a name"),
        partition: PartitionId::new(partition.parse().unwrap_or(0)),
    }
}

fn print_records(
    sink: &mut Sink,
    args: &DumpArgs,
    names: &Names,
    batch: &DumpedBatch,
    left: &mut u64,
) -> Result<Reader, Failure> {
    if batch.internal.is_some() {
        return Ok(Reader::Listens);
    }
    let damaged = |error: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Damaged,
            format!(
                "{}, position {}, offset {}: {error}",
                batch.path.display(),
                batch.position,
                batch.offset
            ),
        )
    };
    let records = batch
        .batch
        .records(&STORED_LIMITS)
        .map_err(|e| damaged(&e))?;
    for record in records {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let _gone_or_not: Reader = sink.flush()?;
                return Err(damaged(&error));
            }
        };
        let Some(offset) = record.offset(batch.offset) else {
            return Err(damaged(&"a record has an offset out of range"));
        };
        if offset < args.from {
            continue;
        }
        if *left == 0 {
            break;
        }
        *left -= 1;
        let record = ConsumedRecord {
            partition: names.partition,
            offset,
            timestamp: record.timestamp,
            key: record.key,
            value: record.value,
            headers: record.headers,
        };
        let written = sink.write(|out| match args.output.form {
            OutputForm::Json => write_record(out, &names.topic, &record),
            OutputForm::Table => write_text(out, &record),
        });
        if written? == Reader::Gone {
            return Ok(Reader::Gone);
        }
    }
    Ok(Reader::Listens)
}

/// `offset timestamp key=… value=… name=…`, control characters and bytes that are no text escaped.
fn write_text(out: &mut impl Write, record: &ConsumedRecord) -> io::Result<()> {
    write!(out, "{} {}", record.offset, record.timestamp)?;
    let mut field = |name: &str, value: Option<&[u8]>| {
        write!(out, " {name}=")?;
        match value {
            // A text has quotes.
            None => out.write_all(b"null"),
            Some(value) => {
                out.write_all(b"\"")?;
                write_shown(&mut *out, value)?;
                out.write_all(b"\"")
            }
        }
    };
    field("key", record.key.as_deref())?;
    field("value", record.value.as_deref())?;
    for header in &record.headers {
        field(
            &format!("header {:?}", header.key.as_str()),
            header.value.as_deref(),
        )?;
    }
    out.write_all(b"\n")
}

fn write_batch(out: &mut impl Write, form: OutputForm, batch: &DumpedBatch) -> io::Result<()> {
    let header = batch.batch.header();
    let compression = header.attributes.compression();
    let compression = compression.map_or("unknown", |compression| compression.name());
    let internal = batch.internal.as_ref().map(|entry| match &entry.kind {
        InternalKind::SegmentHeader(_) => "segment header".to_owned(),
        InternalKind::RaftEmpty => "leader epoch".to_owned(),
        InternalKind::RaftConfChange(change) => {
            format!("Raft configuration change, {} bytes", change.len())
        }
        InternalKind::LogStart(offset) => format!("log start {offset}"),
        InternalKind::Skippable(kind) => format!("unknown {kind}"),
    });
    match form {
        OutputForm::Json => {
            let line = json!({
                "file": name_of(&batch.path),
                "position": batch.position,
                "offset": batch.offset.get(),
                "last_offset": last_offset(batch),
                "raft_index": batch.index.map(|index| index.get()),
                "leader_epoch": header.leader_epoch,
                "size_bytes": header.total_len(),
                "records": header.record_count,
                "compression": compression,
                "base_timestamp": header.base_timestamp,
                "max_timestamp": header.max_timestamp,
                "producer_id": header.producer_id,
                "producer_epoch": header.producer_epoch,
                "base_sequence": header.base_sequence,
                "crc": header.crc,
                "internal": internal,
            });
            writeln!(out, "{line}")
        }
        OutputForm::Table => {
            write!(
                out,
                "{} position {} size {} index {} epoch {}",
                name_of(&batch.path),
                batch.position,
                header.total_len(),
                // Not known in a compacted segment.
                batch
                    .index
                    .map_or("-".to_owned(), |index| index.to_string()),
                header.leader_epoch
            )?;
            match internal {
                Some(internal) => writeln!(out, " internal: {internal}"),
                None => writeln!(
                    out,
                    " offsets {} to {} records {} compression {compression} max timestamp {} \
                     producer {}/{}/{}",
                    batch.offset,
                    last_offset(batch).unwrap_or_default(),
                    header.record_count,
                    header.max_timestamp,
                    header.producer_id,
                    header.producer_epoch,
                    header.base_sequence
                ),
            }
        }
    }
}

/// The offset of its last record.
fn last_offset(batch: &DumpedBatch) -> Option<u64> {
    let delta = u64::try_from(batch.batch.header().last_offset_delta).ok()?;
    batch.offset.get().checked_add(delta)
}
