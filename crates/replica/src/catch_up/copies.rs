//! Both sides of a broker: what it copies, and what others copy of it.

use std::sync::Arc;

use tidelog_disk::Disk;
use tidelog_log::catch_up::{CatchUpSource, SourceError};

use super::{CatchUp, CatchUpLetter, PullConfig, PullTarget, Pulled, Pulls, Sources};
use crate::shard::Shard;

/// The logs that are copied, and replaced by copies: those of the shards of a broker.
pub trait Logs {
    /// See [`Shard::target_of`].
    fn target_of(&mut self, letter: &CatchUpLetter) -> Option<PullTarget>;

    /// See [`Shard::source_of`].
    fn source_of(&mut self, letter: &CatchUpLetter) -> Option<Result<CatchUpSource, SourceError>>;

    /// See [`Shard::adopt`].
    fn adopt(&mut self, pulled: Pulled) -> bool;
}

/// One shard, and the disk of its logs.
#[derive(Debug)]
pub struct LogsOf<'a, W> {
    /// The shard.
    pub shard: &'a mut Shard<W>,
    /// Where its logs lie.
    pub disk: Arc<dyn Disk>,
}

impl<W> Logs for LogsOf<'_, W> {
    fn target_of(&mut self, letter: &CatchUpLetter) -> Option<PullTarget> {
        self.shard.target_of(letter)
    }

    fn source_of(&mut self, letter: &CatchUpLetter) -> Option<Result<CatchUpSource, SourceError>> {
        self.shard.source_of(letter)
    }

    fn adopt(&mut self, pulled: Pulled) -> bool {
        self.shard.adopt(pulled, self.disk.clone())
    }
}

/// All copies under way at a broker.
#[derive(Debug)]
pub struct Copies {
    pulls: Pulls,
    sources: Sources,
    adopted: u64,
}

impl Copies {
    /// None yet; those that are made go to `disk`.
    pub fn new(disk: Arc<dyn Disk>, config: PullConfig) -> Self {
        Self {
            pulls: Pulls::new(disk, config),
            sources: Sources::default(),
            adopted: 0,
        }
    }

    /// Takes a letter. Gives those that are to be sent for it; one that is lost is sent again in time.
    ///
    /// Reads and writes files.
    pub fn take(
        &mut self,
        letter: CatchUpLetter,
        logs: &mut impl Logs,
        now: u64,
    ) -> Vec<CatchUpLetter> {
        match letter.what {
            CatchUp::Needed { .. } => {
                let target = logs.target_of(&letter);
                let ask = target.and_then(|target| self.pulls.begin(target, letter, now));
                ask.into_iter().collect()
            }
            CatchUp::Ask | CatchUp::AskPart { .. } => {
                let make = || logs.source_of(&letter);
                let answer = self.sources.take(&letter, make, now);
                answer.into_iter().collect()
            }
            CatchUp::Manifest(_) | CatchUp::Part { .. } | CatchUp::Gone => {
                let (letters, pulled) = self.pulls.take(letter, now);
                self.adopt(pulled, logs);
                letters
            }
        }
    }

    /// Time has passed: goes on with what waited, and lets go of what nobody asks for. Gives letters
    /// that are to be sent.
    pub fn tick(&mut self, logs: &mut impl Logs, now: u64) -> Vec<CatchUpLetter> {
        self.sources.forget_idle(now);
        let is_needed = |needed: &CatchUpLetter| logs.target_of(needed).is_some();
        let (letters, pulled) = self.pulls.tick(now, is_needed);
        self.adopt(pulled, logs);
        letters
    }

    fn adopt(&mut self, pulled: impl IntoIterator<Item = Pulled>, logs: &mut impl Logs) {
        for pulled in pulled {
            self.adopted += u64::from(logs.adopt(pulled));
        }
    }

    /// Whether nothing is copied, here or from here: then no time has to be told.
    pub fn is_idle(&self) -> bool {
        self.pulls.is_empty() && self.sources.is_empty()
    }

    /// How many copies have taken the place of a log.
    pub fn adopted(&self) -> u64 {
        self.adopted
    }
}
