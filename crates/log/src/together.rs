//! One sync of the file system for the many logs of a round.
//!
//! Hundreds of files synced one by one make the device flush its cache hundreds of times; a sync of
//! the file system flushes it once. But it says only that *something* failed, and says so once:
//! whoever was not told could take a later success for its own. So there is one such call at a time,
//! and after the first failure of any sync of a round no log is synced this way any more: each
//! file's own sync still tells what was lost of that file. Nor is a log that lies on another file
//! system, because one is mounted at its directory or that is a link.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tidelog_disk::FileSystem;

use crate::error::Poisoned;
use crate::segment::LogEnd;
use crate::shared::{Begun, Shared, SyncError};

/// Rounds of fewer logs sync each file by itself: that is about as quick, and leaves what other
/// programs have written alone.
const LOGS_MIN: usize = 16;

/// The file system that holds all logs, as long as its syncs can be relied on.
#[derive(Debug)]
pub(crate) struct Together {
    file_system: Option<Box<dyn FileSystem>>,
    has_failed: AtomicBool,
    /// Held over the call and the note of its failure: of two calls at a time one would be told of
    /// what the other has lost, and the other of nothing.
    calling: Mutex<()>,
}

impl Together {
    /// `None` when each log is always synced by itself.
    pub(crate) fn new(file_system: Option<Box<dyn FileSystem>>) -> Self {
        Self {
            file_system,
            has_failed: AtomicBool::new(false),
            calling: Mutex::default(),
        }
    }

    /// A sync of a round failed: from now on each log is synced by itself.
    pub(crate) fn distrust(&self) {
        self.has_failed.store(true, Ordering::Release);
    }

    /// Syncs the logs with one call, in the order of the results; `None` when they are too few, or
    /// have to be synced by themselves.
    pub(crate) fn sync(&self, logs: &[&Shared]) -> Option<Vec<Result<LogEnd, SyncError>>> {
        let file_system = self.file_system.as_deref()?;
        if logs.len() < LOGS_MIN {
            return None;
        }
        let is_held: Vec<_> = logs.iter().map(|log| log.is_on(file_system)).collect();
        if is_held.iter().filter(|is_held| **is_held).count() < LOGS_MIN {
            return None;
        }
        // Beside a round whose call hangs.
        let calling = self.calling.try_lock()?;
        if self.has_failed.load(Ordering::Acquire) {
            return None;
        }
        // Where each log ends is noted before the call, which covers what was written before it. No
        // other sync and no roll of these logs gets in between.
        let begun: Vec<_> = logs
            .iter()
            .zip(&is_held)
            .map(|(log, is_held)| is_held.then(|| log.begin_sync()).flatten())
            .collect();
        let is_any_dirty = begun
            .iter()
            .any(|begun| matches!(begun, Some(Begun::Dirty(_))));
        let synced = if is_any_dirty {
            file_system.sync().map_err(|e| {
                self.distrust();
                Poisoned { cause: Arc::new(e) }
            })
        } else {
            Ok(())
        };
        drop(calling);
        let finished: Vec<_> = begun
            .into_iter()
            .map(|begun| {
                Some(match begun? {
                    Begun::Done(result) => result,
                    Begun::Dirty(dirty) => dirty.finish(synced.clone()),
                })
            })
            .collect();
        // Those that somebody else was just syncing, and those that lie elsewhere, now that nothing of
        // the others is held.
        let results = finished
            .into_iter()
            .zip(logs)
            .map(|(result, log)| result.unwrap_or_else(|| log.sync()));
        Some(results.collect())
    }
}
