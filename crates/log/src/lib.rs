//! One partition's log: what Tidelog exists for.
//!
//! A log is a directory of segment files that hold nothing but record batches, back to back, as
//! clients sent them: the broker stamps base offset and leader epoch into the batch header (the
//! batch's CRC leaves these out) and the rest passes from socket to disk to socket unchanged. What
//! Raft and the log itself have to write are internal entries, batches without records.
//!
//! # How data flows
//!
//! *Append*: [`Log::append`] (`append.rs`) stamps validated batches, rolls to a new segment when the
//! active one is full (`roll.rs`), reserves space (`ahead.rs`), and writes with one vectored call.
//! [`SyncCoordinator`] (`sync.rs`) makes the logs that wait durable, round by round, records the new
//! ends in the [state file](state), and tells the owners.
//!
//! *Read*: [`LogReader::read`] (`reader.rs`) finds the segment and, through its sparse index
//! (`index.rs`), the position; recent batches are slices of the segment's map, older ones are
//! fetched and verified by a [`ColdRead`] (`cold.rs`, `lookup.rs`), by turns with the syncs
//! (`turns.rs`). [`LogReader::find_timestamp`] (`time.rs`) looks up times.
//!
//! *Open*: [`Log::open`] (`open.rs`, `found.rs`, `recover.rs`) starts at the last sync checkpoint,
//! keeps what verifies, cuts a torn tail, refuses damage.
//!
//! *Replicate*: where Raft decides what goes in, a log is made by [`Log::create_replica`]; entries go in
//! by [`Log::append_entries`] (`replicate.rs`), become readable by [`Log::commit_to`], and those that
//! are not committed (`tail.rs`) go out again by [`Log::truncate`]; [`Log::entries`] reads them by
//! Raft index (`entries.rs`).
//!
//! *Catch up*: where another replica lacks entries that are gone, it copies this one's files, up to the
//! commit, and puts them into the place of its log ([`catch_up`]).
//!
//! *Compact*: a [`Compaction`] (`compaction/`) writes beside sealed segments one with what is left
//! of them, on any thread; [`Log::install`] puts it into their place.
//!
//! *Look and repair*: [`offline`] walks all files of a log without opening it, names every problem,
//! and puts right what can be.
//!
//! One owner writes: [`Log`] takes `&mut self`. [`LogReader`]s and [`LogSync`]s may be used from
//! any thread. Everything blocks, [`LogReader::read`] only where the system has dropped a page
//! that was written lately; nothing here knows an async runtime or a random number. Of a clock only
//! `sync.rs` and `turns.rs` know, and only how long to wait: a log that is driven without them is
//! replayed by a simulated disk and a seed.
//!
//! # Formats
#![doc = include_str!("../FORMAT.md")]

mod ahead;
mod append;
pub mod catch_up;
mod cold;
mod compaction;
mod entries;
mod entry;
mod epochs;
mod error;
mod found;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod header;
mod helpers;
mod index;
mod internal;
mod log;
mod lookup;
pub mod offline;
mod open;
mod options;
mod producers;
mod reader;
mod recover;
mod replicate;
mod retention;
mod roll;
mod segment;
mod shared;
mod sidecar;
pub mod state;
mod sync;
mod tail;
mod threads;
mod time;
mod together;
mod turns;
mod walk;
mod wire;

pub use append::Appended;
pub use cold::ColdRead;
pub use compaction::{
    Compactable, Compacted, Compaction, CompactionError, CompactionOptions, CompactionStats,
    InstallError, Pace, Stopped,
};
pub use entries::EntriesError;
pub use entry::{EntryError, EntryInfo, EntryKind, LogEntry};
pub use epochs::{EpochStart, EpochTable};
pub use error::{
    AppendError, Corruption, CreateError, Damage, OpenError, Poisoned, ReadError, TrimError,
};
pub use header::{CompactedSegment, FORMAT_VERSION, LogIdentity, PreviousSegment, SegmentHeader};
pub use index::IndexEntry;
pub use internal::{InternalEntry, InternalError, InternalKind};
pub use log::{Log, RemovedFile};
pub use open::{INITIAL_EPOCH, INITIAL_INDEX, Recovery};
pub use options::LogOptions;
pub use producers::{PRODUCER_BATCHES, PRODUCERS_MAX, ProducerError, StoredBatch, sequence_after};
pub use reader::{Batches, Found, LogReader, SegmentInfo};
pub use replicate::{ReplicateError, TruncateError};
pub use segment::{LogEnd, SEGMENT_BYTES_LIMIT};
pub use sync::{LogSync, RoundObserver, SyncConfig, SyncCoordinator, SyncTarget, SyncWatch};
pub use threads::share_out;
pub use turns::ReadTurns;
pub use walk::BATCH_BYTES_LIMIT;
