//! Looking at the files of logs without a broker: every problem is found and named, not only the
//! first; and what can be put right is, without throwing a byte away.
//!
//! [`check_partition`] walks all files of one partition, [`check_data_dir`] those of all of them and
//! the state file. Both only read. What they find they tell an [`Observer`], problem by problem.
//! After damage the walk goes on at the next batch that can be believed (`scanner.rs`). [`Dump`]
//! gives batch after batch and ends at the first problem. [`plan_repair`] says what could be done
//! about the problems, and [`apply_repair`] does it.
//!
//! Nothing is kept in memory but one batch, its records, and what the files beside a segment say of
//! places in it.

mod compacted;
mod content;
mod data_dir;
mod dump;
mod partition;
mod problem;
mod repair;
mod scanner;
mod segments;
mod sidecars;

pub use data_dir::{DataDirReport, STATE_DIR, check_data_dir, is_data_dir, is_partition_dir};
pub use dump::{Dump, DumpError, DumpedBatch};
pub use partition::{
    Known, PartitionReport, SegmentReport, SidecarReport, check_partition, checkpoint_of,
};
pub use problem::{Problem, Severity, What};
pub use repair::{
    Action, CutPlan, LOCK_FILE, RepairError, RepairPlan, apply_repair, partitions_of, plan_repair,
    read_state,
};
pub use segments::log_identity;

/// How closely files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Headers of batches, internal entries, the files beside.
    Headers,
    /// Every byte: checksums, and each record, decompressed where it is compressed.
    Everything,
}

/// Who is told what a check finds, while it goes on.
pub trait Observer {
    /// A problem was found.
    fn problem(&mut self, problem: Problem);

    /// So many more bytes were looked at.
    fn passed(&mut self, bytes: u64) {
        let _unused = bytes;
    }
}

/// Keeps all problems.
impl Observer for Vec<Problem> {
    fn problem(&mut self, problem: Problem) {
        self.push(problem);
    }
}
