//! What must hold for any bytes at all: one function for each kind of input. Each panics where it
//! does not hold.
//!
//! `fuzz/` calls them from libFuzzer; the tests here call them with every file of its corpora and of
//! its regressions, and with mutations of those ([`mutate`]). See `docs/fuzzing.md`.

mod batches;
mod groups;
pub mod mutate;
mod recovery;
mod state;

use std::path::PathBuf;

pub use batches::{batch, decompression};
pub use groups::group_record;
pub use recovery::{IDENTITY, recovery};
pub use state::state;
pub use tidelog_log::fuzzing::{epochs, index, internal_entry, producers};

/// A kind of input: its name, and what must hold for it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As its file in `fuzz/fuzz_targets` is called, and its directories.
    pub name: &'static str,
    /// Panics when something does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "group_record",
        run: group_record,
    },
    Target {
        name: "batch",
        run: batch,
    },
    Target {
        name: "decompression",
        run: decompression,
    },
    Target {
        name: "recovery",
        run: recovery,
    },
    Target {
        name: "index",
        run: index,
    },
    Target {
        name: "epochs",
        run: epochs,
    },
    Target {
        name: "producers",
        run: producers,
    },
    Target {
        name: "internal_entry",
        run: internal_entry,
    },
    Target {
        name: "state",
        run: state,
    },
];

/// The directory of the fuzz targets.
pub fn fuzz_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz"))
}
