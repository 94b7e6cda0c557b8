//! `tidelog log verify`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tidelog_log::offline::{
    Depth, Observer, PartitionReport, Problem, check_data_dir, check_partition,
};

use super::{Counts, Taken, Target, disk_failed, name_of, problem_json};
use crate::args::{OutputArgs, OutputForm};
use crate::failure::Failure;
use crate::output::numbers::{counted, grouped};
use crate::output::sink::{Reader, Sink};

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// A data directory, or the directory of one partition.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints problems as they are found.
pub(super) struct Printing {
    form: OutputForm,
    pub(super) sink: Sink,
    pub(super) counts: Counts,
    progress: ProgressBar,
    failure: Option<Failure>,
}

impl Printing {
    pub(super) fn new(form: OutputForm, progress: ProgressBar) -> Self {
        Self {
            form,
            sink: Sink::stdout(),
            counts: Counts::default(),
            progress,
            failure: None,
        }
    }

    pub(super) fn line(&mut self, line: &str) {
        let sink = &mut self.sink;
        let write = || -> Result<Reader, Failure> {
            // What was found so far is seen also if the rest takes long.
            match sink.write(|out| writeln!(out, "{line}"))? {
                Reader::Listens => sink.flush(),
                Reader::Gone => Ok(Reader::Gone),
            }
        };
        let written = self.progress.suspend(write);
        if let Err(failure) = written {
            self.failure.get_or_insert(failure);
        }
    }

    pub(super) fn finish(self) -> Result<Counts, Failure> {
        self.progress.finish_and_clear();
        self.failure.map_or(Ok(self.counts), Err)
    }
}

impl Observer for Printing {
    fn problem(&mut self, problem: Problem) {
        self.counts.add(&problem);
        let line = match self.form {
            OutputForm::Table => format!("{}: {problem}", problem.severity.name()),
            OutputForm::Json => problem_json(&problem).to_string(),
        };
        self.line(&line);
    }

    fn passed(&mut self, bytes: u64) {
        self.progress.inc(bytes);
    }
}

/// Shown only where a person looks on.
pub(super) fn progress(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is right");
    ProgressBar::new(bytes).with_style(style)
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let target = Target::open(&args.dir)?;
    target.say_if_in_use();
    let form = args.output.form;
    let mut printing = Printing::new(form, progress(target.segment_bytes()));
    let depth = Depth::Everything;
    let reports = match &target.taken {
        Taken::DataDir { .. } => {
            let report = check_data_dir(&target.disk, &target.dir, depth, &mut printing);
            report.map_err(disk_failed)?.partitions
        }
        Taken::Partition { .. } => {
            let state = target.state(&mut printing)?;
            let report = check_partition(
                &target.disk,
                &target.dir,
                state.as_ref(),
                depth,
                &mut printing,
            );
            vec![report.map_err(disk_failed)?]
        }
    };
    let sum = |of: fn(&PartitionReport) -> u64| reports.iter().map(of).sum::<u64>();
    let segments = sum(|report| report.segments.len() as u64);
    let records = sum(records_of);
    if form == OutputForm::Json {
        for report in &reports {
            printing.line(&partition_json(report).to_string());
        }
    }
    let counts = printing.finish()?;
    say!(
        "{} of {} in {} looked at; {}, {}, {}",
        counted(records, "record"),
        counted(reports.len() as u64, "partition"),
        counted(segments, "segment"),
        counted(counts.damaged, "damaged place"),
        counted(counts.derived, "warning"),
        counted(counts.notes, "note"),
    );
    if counts == Counts::default() {
        say!(
            "all {} bytes are as they were written",
            grouped(target.segment_bytes())
        );
    }
    counts.result(&target.dir)
}

fn records_of(report: &PartitionReport) -> u64 {
    report.segments.iter().map(|segment| segment.records).sum()
}

fn partition_json(report: &PartitionReport) -> serde_json::Value {
    json!({
        "kind": "partition",
        "partition": name_of(&report.dir),
        "segments": report.segments.len(),
        "batches": report.segments.iter().map(|segment| segment.batches).sum::<u64>(),
        "records": records_of(report),
        "log_start_offset": report.log_start.get(),
        "log_end_offset": report.end.map(|end| end.offset.get()),
        "damaged": report.damaged,
        "warnings": report.derived,
    })
}
