//! What a node copies of others' logs, and others of its own: as a broker's thread for that has it.

use std::sync::Arc;

use tidelog_replica::Shard;
use tidelog_replica::catch_up::{CatchUp, CatchUpLetter, PullConfig, Pulled, Pulls, Sources};

use crate::SimDisk;

pub(super) struct Copies {
    pub(super) pulls: Pulls,
    sources: Sources,
    /// To be sent.
    pub(super) letters: Vec<CatchUpLetter>,
}

impl Copies {
    pub(super) fn new(disk: &SimDisk) -> Self {
        let config = PullConfig {
            bytes_per_second: 400_000,
            parts_ahead: 3,
            patience_millis: 500,
        };
        Self {
            pulls: Pulls::new(Arc::new(disk.clone()), config),
            sources: Sources::default(),
            letters: Vec::new(),
        }
    }

    /// Takes a letter; gives a copy that is complete.
    pub(super) fn take(
        &mut self,
        letter: CatchUpLetter,
        shard: &mut Shard<u64>,
        now: u64,
    ) -> Option<Pulled> {
        match letter.what {
            CatchUp::Needed { .. } => {
                if let Some(target) = shard.target_of(&letter) {
                    self.letters
                        .extend(self.pulls.begin(target, letter.from, now));
                }
                None
            }
            CatchUp::Ask | CatchUp::AskPart { .. } => {
                let make = || shard.source_of(&letter);
                self.letters.extend(self.sources.take(&letter, make, now));
                None
            }
            CatchUp::Manifest(_) | CatchUp::Part { .. } | CatchUp::Gone => {
                let (letters, pulled) = self.pulls.take(letter, now);
                self.letters.extend(letters);
                pulled
            }
        }
    }

    /// Time has passed; gives copies that are complete by now.
    pub(super) fn tick(&mut self, now: u64) -> Vec<Pulled> {
        self.sources.forget_idle(now);
        let (letters, pulled) = self.pulls.tick(now);
        self.letters.extend(letters);
        pulled
    }
}
