//! The side that is copied from.

use std::collections::BTreeMap;

use tidelog_log::catch_up::{CatchUpSource, SourceError};
use tidelog_log::state::GroupKey;

use super::{CatchUp, CatchUpLetter, id_of};
use crate::config::ReplicaId;

/// So many copies are made of a broker's logs at a time at most; who asks for another one is told by
/// silence, and asks again.
const SOURCES_MAX: usize = 16;
/// A source that nobody asked for so long is let go of, with its files.
const IDLE_MILLIS_MAX: u64 = 60_000;
/// A source is given again to who asks for one within this time.
const FRESH_MILLIS: u64 = 10_000;

#[derive(Debug)]
struct Source {
    id: u32,
    source: CatchUpSource,
    made_at: u64,
    asked_at: u64,
}

/// The copies that are made of a broker's logs now.
#[derive(Debug, Default)]
pub(super) struct Sources {
    sources: BTreeMap<(GroupKey, ReplicaId), Source>,
}

impl Sources {
    /// Takes a letter, and gives what is to be answered. `make` makes a source of the log of the group
    /// as it is now; `None` where there is none.
    ///
    /// Reads files.
    pub(super) fn take(
        &mut self,
        letter: &CatchUpLetter,
        make: impl FnOnce() -> Option<Result<CatchUpSource, SourceError>>,
        now: u64,
    ) -> Option<CatchUpLetter> {
        self.forget_idle(now);
        let who = (letter.key, letter.from);
        match letter.what {
            CatchUp::Ask => {
                // Asked for again soon, the answer was lost, or slow: it is the same.
                if let Some(source) = self.sources.get(&who)
                    && now.saturating_sub(source.made_at) < FRESH_MILLIS
                {
                    let manifest = source.source.manifest().encode();
                    return Some(letter.answer(CatchUp::Manifest(manifest.into())));
                }
                self.sources.remove(&who);
                if self.sources.len() >= SOURCES_MAX {
                    return None;
                }
                let source = make()?;
                let source = source.map_err(|e| not_read(letter, &e)).ok()?;
                let manifest = source.manifest().encode();
                let id = id_of(&manifest);
                let made = Source {
                    id,
                    source,
                    made_at: now,
                    asked_at: now,
                };
                self.sources.insert(who, made);
                Some(letter.answer(CatchUp::Manifest(manifest.into())))
            }
            CatchUp::AskPart {
                manifest,
                file,
                position,
                len,
            } => {
                let source = self.sources.get_mut(&who);
                let Some(source) = source.filter(|source| source.id == manifest) else {
                    return Some(letter.answer(CatchUp::Gone));
                };
                source.asked_at = now;
                match source.source.read(file, position, len) {
                    Ok(bytes) => Some(letter.answer(CatchUp::Part {
                        manifest,
                        file,
                        position,
                        bytes,
                    })),
                    Err(SourceError::OutOfRange { .. }) => None,
                    Err(e) => {
                        not_read(letter, &e);
                        self.sources.remove(&who);
                        Some(letter.answer(CatchUp::Gone))
                    }
                }
            }
            CatchUp::Needed { .. }
            | CatchUp::Manifest(_)
            | CatchUp::Part { .. }
            | CatchUp::Gone => None,
        }
    }

    /// Lets go of what nobody asked for in a long time: to be called now and then, also where no letter
    /// comes.
    pub(super) fn forget_idle(&mut self, now: u64) {
        self.sources
            .retain(|_, source| now.saturating_sub(source.asked_at) < IDLE_MILLIS_MAX);
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}

fn not_read(letter: &CatchUpLetter, error: &SourceError) {
    tracing::warn!(key = ?letter.key, to = letter.from, %error,
        "a log cannot be copied from here now");
}
