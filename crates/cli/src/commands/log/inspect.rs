//! `tidelog log inspect`.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;
use tidelog_log::LogEnd;
use tidelog_log::offline::{
    Depth, PartitionReport, Problem, SegmentReport, SidecarReport, check_partition,
};

use super::{Counts, Target, disk_failed, name_of, problem_json};
use crate::args::{OutputArgs, OutputForm};
use crate::failure::Failure;
use crate::output::numbers::grouped;
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::time::show_time;

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// A data directory, or the directory of one partition.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let target = Target::open(&args.dir)?;
    target.say_if_in_use();
    let mut problems: Vec<Problem> = Vec::new();
    let state = target.state(&mut problems)?;
    let mut counts = Counts::default();
    let mut text = String::new();
    if let (Some(state), OutputForm::Table) = (&state, args.output.form) {
        let stop = if state.clean {
            "clean"
        } else {
            "not clean, or a broker runs"
        };
        let _written = writeln!(text, "starts: {}; last stop: {stop}\n", state.boots);
    }
    for dir in target.partitions() {
        let mut found = std::mem::take(&mut problems);
        let depth = Depth::Headers;
        let report = check_partition(&target.disk, &dir, state.as_ref(), depth, &mut found);
        let report = report.map_err(disk_failed)?;
        for problem in &found {
            counts.add(problem);
            say!("{}: {problem}", problem.severity.name());
        }
        match args.output.form {
            OutputForm::Table => text.push_str(&table(&report)),
            OutputForm::Json => {
                let _written = writeln!(text, "{}", json_of(&report, &found));
            }
        }
    }
    print(&text)?;
    counts.result(&target.dir)
}

fn table(report: &PartitionReport) -> String {
    let mut text = format!("{}\n", name_of(&report.dir));
    let mut line = |name: &str, value: String| {
        let _written = writeln!(text, "  {name}: {value}");
    };
    if let Some(identity) = report.identity {
        line("topic id", identity.topic_id.to_string());
    }
    let end = report
        .end
        .map_or("?".to_owned(), |end| end.offset.to_string());
    line("offsets", format!("{} to {end}", report.log_start));
    let checkpoint = match report.known {
        None => "no state file knows it".to_owned(),
        Some(known) => known.checkpoint.map_or("none".to_owned(), |at| {
            format!(
                "offset {}, segment {}, position {}",
                at.offset, at.sequence, at.position
            )
        }),
    };
    line("durable up to", checkpoint);
    let epochs = report.epochs.iter();
    let epochs: Vec<_> = epochs
        .map(|e| format!("{} from {}", e.epoch, e.offset))
        .collect();
    line("leader epochs", epochs.join(", "));
    let snapshots = report.snapshots.iter().map(|(offset, holds)| {
        let note = if *holds { "" } else { " (not used)" };
        format!("{offset}{note}")
    });
    let snapshots: Vec<_> = snapshots.collect();
    line("producers", grouped(report.producers as u64));
    line("snapshots of producers", snapshots.join(", "));

    let mut table = Table::new(&[
        "SEGMENT",
        "END",
        "BYTES",
        "BATCHES",
        "RECORDS",
        "STATE",
        "EPOCHS",
        "CREATED AT",
        "MAX TIMESTAMP",
        "INDEX",
    ]);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for segment in &report.segments {
        table.row([
            segment.base_offset.to_string(),
            or_dash(segment.end.map(|end| end.offset.to_string())),
            grouped(segment.len),
            grouped(segment.batches),
            grouped(segment.records),
            state_of(segment),
            or_dash(segment.first_epoch.map(|first| {
                let last = segment.end.map_or(first, |end| end.epoch);
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            })),
            or_dash(
                segment
                    .header
                    .as_ref()
                    .map(|header| show_time(header.created_at)),
            ),
            or_dash(segment.max_timestamp.map(show_time)),
            index_of(segment),
        ]);
    }
    text.push_str(&table.text());
    text.push('\n');
    text
}

/// The index of the segment that is appended to is written a piece at a time: as long as nothing is
/// due, none of it is missing.
fn index_of(segment: &SegmentReport) -> String {
    if segment.index == SidecarReport::Missing && !segment.sealed {
        return "not written yet".to_owned();
    }
    let entries = grouped(segment.index_entries as u64);
    format!("{} ({entries})", segment.index.name())
}

/// With the clean end of a compacted one, where that is not its end.
fn state_of(segment: &SegmentReport) -> String {
    let compacted = segment.header.as_ref().and_then(|header| header.compacted);
    match (segment.damaged > 0, compacted, segment.sealed) {
        (true, ..) => "damaged".to_owned(),
        (false, Some(it), _) if it.clean_end < it.end_offset => {
            format!("compacted, clean to {}", it.clean_end)
        }
        (false, Some(_), _) => "compacted".to_owned(),
        (false, None, true) => "sealed".to_owned(),
        (false, None, false) => "active".to_owned(),
    }
}

fn json_of(report: &PartitionReport, problems: &[Problem]) -> serde_json::Value {
    let place = |end: LogEnd| {
        json!({
            "segment": end.sequence,
            "position": end.position,
            "offset": end.offset.get(),
            "raft_index": end.index.get(),
            "leader_epoch": end.epoch.get(),
        })
    };
    let segments = report.segments.iter().map(|segment| {
        let header = segment.header.as_ref();
        let compacted = header.and_then(|header| header.compacted);
        json!({
            "file": segment.path.display().to_string(),
            "sequence": header.map(|header| header.sequence),
            "base_offset": segment.base_offset.get(),
            "end_offset": segment.end.map(|end| end.offset.get()),
            "size_bytes": segment.len,
            "used_bytes": segment.end.map(|end| end.position),
            "batches": segment.batches,
            "records": segment.records,
            "internal_entries": segment.internal_entries,
            "created_at": header.map(|header| header.created_at.millis()),
            "first_epoch": segment.first_epoch.map(|epoch| epoch.get()),
            "last_epoch": segment.end.map(|end| end.epoch.get()),
            "sealed": segment.sealed,
            "compacted": compacted.is_some(),
            "clean_end_offset": compacted.map(|it| it.clean_end.get()),
            "last_sequence": header.map(|header| {
                compacted.map_or(header.sequence, |it| it.last_sequence)
            }),
            "damaged": segment.damaged,
            "max_timestamp": segment.max_timestamp.map(|time| time.millis()),
            "index": segment.index.name(),
            "index_entries": segment.index_entries,
        })
    });
    let epochs = report.epochs.iter().map(|epoch| {
        json!({
            "epoch": epoch.epoch.get(),
            "offset": epoch.offset.get(),
            "raft_index": epoch.index.get(),
        })
    });
    let snapshots = report
        .snapshots
        .iter()
        .map(|(offset, holds)| json!({ "offset": offset.get(), "good": holds }));
    json!({
        "partition": name_of(&report.dir),
        "dir": report.dir.display().to_string(),
        "topic_id": report.identity.map(|identity| identity.topic_id.to_string()),
        "log_start_offset": report.log_start.get(),
        "log_end": report.end.map(place),
        "checkpoint": report.known.and_then(|known| known.checkpoint).map(place),
        "clean_stop": report.known.map(|known| known.closed),
        "leader_epochs": epochs.collect::<Vec<_>>(),
        "producers": report.producers,
        "producer_snapshots": snapshots.collect::<Vec<_>>(),
        "segments": segments.collect::<Vec<_>>(),
        "problems": problems.iter().map(problem_json).collect::<Vec<_>>(),
    })
}
