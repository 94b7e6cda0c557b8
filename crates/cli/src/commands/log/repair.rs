//! `tidelog log repair`.

use std::path::{Path, PathBuf};

use serde_json::json;
use tidelog_disk::{DirLock, LockError};
use tidelog_log::offline::{
    Action, LOCK_FILE, Observer, Problem, RepairError, RepairPlan, Severity, apply_repair,
    plan_repair,
};

use super::verify::{Printing, progress};
use super::{Taken, Target, disk_failed, name_of};
use crate::args::{OutputArgs, OutputForm};
use crate::clock::now;
use crate::failure::{Exit, Failure};
use crate::output::numbers::{counted, grouped};

#[derive(Debug, clap::Args)]
pub(crate) struct RepairArgs {
    /// A data directory, or the directory of one partition.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Cut a damaged log before its first damage; what comes behind is kept beside, and not served
    /// any more.
    #[arg(long)]
    cut_at_damage: bool,
    /// Do it; else it is only said.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The log of the topics: without it nothing is known of any.
const METADATA: &str = "__cluster_metadata-0";

pub(super) fn run(args: &RepairArgs) -> Result<(), Failure> {
    let target = Target::open(&args.dir)?;
    let _lock = lock(&target, args.yes)?;
    let mut printing = Printing::new(args.output.form, progress(target.segment_bytes()));
    let mut of_state = Remaining::default();
    let state = target.state(&mut Both(&mut printing, &mut of_state))?;
    let mut remaining = of_state.damaged;
    let mut todo = 0;
    let is_all = matches!(target.taken, Taken::DataDir { .. });
    for dir in target.partitions() {
        // Topics that are not known are deleted: such a cut is asked for by name.
        let is_metadata = is_all && name_of(&dir) == METADATA;
        let cuts = args.cut_at_damage && of_state.damaged == 0 && !is_metadata;
        let (state, disk) = (state.as_ref(), &target.disk);
        let plan = plan_repair(disk, &dir, state, cuts, now(), &mut printing);
        let mut plan = plan.map_err(disk_failed)?;
        if is_metadata && plan.remaining > 0 && args.cut_at_damage {
            plan.refused = Some("it is the log of all topics; name its own directory to cut it");
        }
        if of_state.damaged > 0 && plan.remaining > 0 && args.cut_at_damage {
            plan.refused = Some("the state file is damaged, and would refuse what is left");
        }
        say(&mut printing, args, &plan);
        remaining += plan.remaining;
        if !args.yes {
            // The log is as damaged as before, and scripts go by the exit code.
            remaining += plan.cut.map_or(0, |cut| cut.damaged);
        }
        todo += plan.actions.len();
        if args.yes && !plan.actions.is_empty() {
            apply_repair(&target.disk, &plan, target.data_dir()).map_err(failed)?;
        }
    }
    printing.finish()?;
    let dir = target.dir.display();
    if args.yes && todo > 0 {
        say!(
            "{} done; check it with: tidelog log verify {dir}",
            counted(todo as u64, "step")
        );
    } else if todo > 0 {
        say!("nothing was changed; add --yes to do it");
    } else if remaining == 0 {
        say!("there is nothing to repair");
    }
    if remaining == 0 {
        return Ok(());
    }
    let places = counted(remaining, "damaged place");
    let failure = Failure::new(Exit::Damaged, format!("{places} of {dir} not repaired"));
    Err(if args.cut_at_damage {
        failure
    } else {
        failure.hint("see what a cut would cost with --cut-at-damage")
    })
}

/// Counts the damage of the state file.
#[derive(Default)]
struct Remaining {
    damaged: u64,
}

struct Both<'a>(&'a mut Printing, &'a mut Remaining);

impl Observer for Both<'_> {
    fn problem(&mut self, problem: Problem) {
        if problem.severity == Severity::Damage {
            self.1.damaged += 1;
        }
        self.0.problem(problem);
    }
}

/// Keeps brokers off, and is refused while one runs. Only looking makes no lock file.
fn lock(target: &Target, is_sure: bool) -> Result<Option<Box<dyn DirLock>>, Failure> {
    let Some(data_dir) = target.data_dir() else {
        if is_sure {
            say!("there is no data directory to lock: nobody else may use this one meanwhile");
        }
        return Ok(None);
    };
    let path = data_dir.join(LOCK_FILE);
    if !is_sure && !path.exists() {
        return Ok(None);
    }
    match target.disk.lock(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Held { .. }) => {
            let what = format!("{} is in use: a broker runs on it", data_dir.display());
            Err(Failure::new(Exit::Refused, what).hint("stop the broker first"))
        }
        Err(LockError::Disk(error)) => Err(disk_failed(error)),
    }
}

fn failed(error: RepairError) -> Failure {
    Failure::failed(error.to_string())
        .hint("what was done so far lost nothing; run the same command again")
}

/// Says what is to be done about a partition, and what it costs.
fn say(printing: &mut Printing, args: &RepairArgs, plan: &RepairPlan) {
    if args.output.form == OutputForm::Json {
        printing.line(&plan_json(args, plan).to_string());
        return;
    }
    let name = name_of(&plan.dir);
    if let Some(cut) = &plan.cut {
        printing.line(&format!(
            "{name}: is cut at offset {}: {}, up to offset {}, in {} bytes, are not served any more",
            cut.from,
            counted(cut.offsets(), "offset"),
            cut.to,
            grouped(cut.bytes)
        ));
        if cut.from < cut.log_start {
            printing.line(&format!(
                "{name}: the log start goes back to offset {}, from {}",
                cut.from, cut.log_start
            ));
        }
    }
    for action in &plan.actions {
        let file = |path: &Path| name_of(path);
        printing.line(&match action {
            Action::Aside { path } => format!("{name}: {} is moved", file(path)),
            Action::Cut { path, at, bytes } => format!(
                "{name}: {} is cut at position {at}: {} bytes are moved",
                file(path),
                grouped(*bytes)
            ),
            Action::Begin { path, .. } => format!(
                "{name}: {} is begun, empty: nothing is appended to the compacted one before it",
                file(path)
            ),
            Action::Checkpoint { end, .. } => {
                format!(
                    "{name}: the state file takes its checkpoint back to offset {}",
                    end.offset
                )
            }
        });
    }
    let is_moved = |action: &Action| matches!(action, Action::Aside { .. } | Action::Cut { .. });
    if plan.actions.iter().any(is_moved) {
        printing.line(&format!(
            "{name}: what is moved goes to {}",
            plan.kept.display()
        ));
    }
    if let Some(why) = plan.refused {
        printing.line(&format!("{name}: is not cut: {why}"));
    }
}

fn plan_json(args: &RepairArgs, plan: &RepairPlan) -> serde_json::Value {
    let path_of = |path: &Path| path.display().to_string();
    let actions = plan.actions.iter().map(|action| match action {
        Action::Aside { path } => json!({ "action": "move", "file": path_of(path) }),
        Action::Cut { path, at, bytes } => {
            json!({ "action": "cut", "file": path_of(path), "position": at, "bytes": bytes })
        }
        Action::Begin { path, .. } => json!({ "action": "begin", "file": path_of(path) }),
        Action::Checkpoint { end, .. } => json!({
            "action": "checkpoint",
            "offset": end.offset.get(),
            "position": end.position,
        }),
    });
    let cut = plan.cut.map(|cut| {
        json!({
            "from": cut.from.get(),
            "to": cut.to.get(),
            "offsets": cut.offsets(),
            "bytes": cut.bytes,
            "log_start_offset_before": cut.log_start.get(),
            "log_start_offset": cut.log_start.min(cut.from).get(),
        })
    });
    json!({
        "kind": "plan",
        "partition": name_of(&plan.dir),
        "kept": path_of(&plan.kept),
        "actions": actions.collect::<Vec<_>>(),
        "cut": cut,
        "remaining": plan.remaining,
        "refused": plan.refused,
        "done": args.yes,
    })
}
