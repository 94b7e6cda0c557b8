//! The side that copies.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tidelog_disk::Disk;
use tidelog_log::LogIdentity;
use tidelog_log::catch_up::{Manifest, Staged, Staging, StagingError, Wanted};
use tidelog_log::state::GroupKey;

use super::{CatchUp, CatchUpLetter, id_of, members_of};
use crate::config::ReplicaId;

/// How copies are made.
#[derive(Clone, Copy, Debug)]
pub struct PullConfig {
    /// All copies together take so many bytes a second at most.
    pub bytes_per_second: u64,
    /// So many parts of a copy are asked for ahead.
    pub parts_ahead: usize,
    /// Without an answer for so long, the same is asked for again, in milliseconds.
    pub patience_millis: u64,
}

impl Default for PullConfig {
    fn default() -> Self {
        Self {
            bytes_per_second: 256 << 20,
            parts_ahead: 4,
            patience_millis: 2000,
        }
    }
}

/// What is to be replaced by a copy.
#[derive(Clone, Debug)]
pub struct PullTarget {
    /// The group.
    pub key: GroupKey,
    /// Its incarnation.
    pub incarnation: u32,
    /// The replica here.
    pub replica: ReplicaId,
    /// The directory of its log.
    pub dir: PathBuf,
    /// Whose log it is.
    pub identity: LogIdentity,
}

/// A copy that is complete: to be [adopted](crate::Shard::adopt).
#[derive(Debug)]
pub struct Pulled {
    /// The group.
    pub key: GroupKey,
    /// Its incarnation when the copy was begun.
    pub incarnation: u32,
    /// The copy.
    pub staged: Staged,
}

#[derive(Debug)]
struct Pull {
    target: PullTarget,
    from: ReplicaId,
    /// What it was begun for.
    needed: CatchUpLetter,
    /// What is copied, once that is known.
    copy: Option<(u32, Staging)>,
    /// Parts that are asked for, in order.
    asked: Vec<Wanted>,
    /// When something came last, or was asked for again.
    heard_at: u64,
}

/// The copies that a broker makes now.
#[derive(Debug)]
pub(super) struct Pulls {
    disk: Arc<dyn Disk>,
    config: PullConfig,
    pulls: BTreeMap<GroupKey, Pull>,
    /// Bytes that may be asked for now; below zero, after more was.
    allowed: i64,
    allowed_at: u64,
}

/// How far the allowance adds up while nothing is asked for.
const ALLOWED_MILLIS_MAX: u64 = 100;

impl Pulls {
    /// None yet.
    pub(super) fn new(disk: Arc<dyn Disk>, config: PullConfig) -> Self {
        Self {
            disk,
            config,
            pulls: BTreeMap::new(),
            allowed: 0,
            allowed_at: 0,
        }
    }

    /// Whether none is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.pulls.is_empty()
    }

    /// Begins to copy the log of the replica that says it is `needed`, unless that is under way for the same
    /// replica: one that was here before is not there any more. From another one it goes on with what is there.
    pub(super) fn begin(
        &mut self,
        target: PullTarget,
        needed: CatchUpLetter,
        now: u64,
    ) -> Option<CatchUpLetter> {
        let from = needed.from;
        let known = self.pulls.get(&target.key);
        let is_same = |pull: &Pull| {
            let before = &pull.target;
            pull.from == from
                && (before.replica, before.incarnation) == (target.replica, target.incarnation)
        };
        if known.is_some_and(is_same) {
            return None;
        }
        let pull = Pull {
            from,
            needed,
            copy: None,
            asked: Vec::new(),
            heard_at: now,
            target,
        };
        let ask = pull.letter(CatchUp::Ask);
        self.pulls.insert(pull.target.key, pull);
        Some(ask)
    }

    /// Takes a letter. Gives what is asked for next, and the copy if it is complete.
    ///
    /// Writes files.
    pub(super) fn take(
        &mut self,
        letter: CatchUpLetter,
        now: u64,
    ) -> (Vec<CatchUpLetter>, Option<Pulled>) {
        let Some(pull) = self.pulls.get_mut(&letter.key) else {
            return (Vec::new(), None);
        };
        if letter.from != pull.from || letter.to != pull.target.replica {
            return (Vec::new(), None);
        }
        let taken = match letter.what {
            CatchUp::Manifest(bytes) => pull.take_manifest(&self.disk, &bytes),
            CatchUp::Part {
                manifest,
                file,
                position,
                bytes,
            } => pull.take_part(manifest, file, position, &bytes),
            CatchUp::Gone => Taken::AskAnew,
            CatchUp::Needed { .. } | CatchUp::Ask | CatchUp::AskPart { .. } => Taken::Nothing,
        };
        self.follow_up(letter.key, taken, now)
    }

    fn follow_up(
        &mut self,
        key: GroupKey,
        taken: Taken,
        now: u64,
    ) -> (Vec<CatchUpLetter>, Option<Pulled>) {
        let Some(pull) = self.pulls.get_mut(&key) else {
            return (Vec::new(), None);
        };
        match taken {
            Taken::Nothing => return (Vec::new(), None),
            // Not before its time: what cannot be had now is asked for when patience ends.
            Taken::NotNow => {
                pull.asked.clear();
                return (Vec::new(), None);
            }
            // When patience ends, and not at once: where that does not help, not as fast as answers come.
            Taken::AskAnew => {
                pull.heard_at = now;
                pull.asked.clear();
                pull.copy = None;
                return (Vec::new(), None);
            }
            Taken::News => pull.heard_at = now,
        }
        match pull.complete() {
            Complete::Not => (self.ask_parts(key, now), None),
            Complete::Staged(staged) => {
                let incarnation = pull.target.incarnation;
                self.pulls.remove(&key);
                let pulled = Pulled {
                    key,
                    incarnation,
                    staged,
                };
                (Vec::new(), Some(pulled))
            }
            Complete::NotNow => (Vec::new(), None),
        }
    }

    /// Time has passed: asks for what may be asked for now, and again for what did not come, if that
    /// `is_needed` still, by the letter for which it was begun. Gives copies that could not be completed before.
    pub(super) fn tick(
        &mut self,
        now: u64,
        mut is_needed: impl FnMut(&CatchUpLetter) -> bool,
    ) -> (Vec<CatchUpLetter>, Vec<Pulled>) {
        let keys: Vec<GroupKey> = self.pulls.keys().copied().collect();
        let (mut letters, mut done) = (Vec::new(), Vec::new());
        for key in keys {
            let Some(pull) = self.pulls.get_mut(&key) else {
                continue;
            };
            if now.saturating_sub(pull.heard_at) >= self.config.patience_millis {
                if !is_needed(&pull.needed) {
                    // The replica is not here any more, or got what it lacked in another way.
                    self.pulls.remove(&key);
                    continue;
                }
                pull.heard_at = now;
                pull.asked.clear();
                if pull.copy.is_none() {
                    letters.push(pull.letter(CatchUp::Ask));
                    continue;
                }
                let (more, pulled) = self.follow_up(key, Taken::News, now);
                letters.extend(more);
                done.extend(pulled);
                continue;
            }
            letters.extend(self.ask_parts(key, now));
        }
        (letters, done)
    }

    /// Asks for the next parts of a copy, as far as that is allowed.
    fn ask_parts(&mut self, key: GroupKey, now: u64) -> Vec<CatchUpLetter> {
        let passed = now.saturating_sub(self.allowed_at).min(ALLOWED_MILLIS_MAX);
        self.allowed_at = now;
        let rate = i64::try_from(self.config.bytes_per_second).unwrap_or(i64::MAX);
        let per_milli = (rate / 1000).max(1);
        let passed = i64::try_from(passed).unwrap_or(0);
        let most = per_milli.saturating_mul(ALLOWED_MILLIS_MAX.cast_signed());
        self.allowed = self
            .allowed
            .saturating_add(per_milli.saturating_mul(passed))
            .min(most);
        let mut letters = Vec::new();
        let Some(pull) = self.pulls.get_mut(&key) else {
            return letters;
        };
        let Some((id, staging)) = &pull.copy else {
            return letters;
        };
        for wanted in staging.wanted().take(self.config.parts_ahead) {
            if pull.asked.contains(&wanted) {
                continue;
            }
            if self.allowed <= 0 {
                break;
            }
            self.allowed -= i64::from(wanted.len_max);
            letters.push(pull.letter(CatchUp::AskPart {
                manifest: *id,
                file: wanted.file,
                position: wanted.position,
                len: wanted.len_max,
            }));
            pull.asked.push(wanted);
        }
        letters
    }
}

/// What came of a letter.
enum Taken {
    /// It was late, or is not for us.
    Nothing,
    /// It is written, and more can be asked for.
    News,
    /// Only another manifest helps.
    AskAnew,
    /// There is no space, or the disk refused.
    NotNow,
}

enum Complete {
    Not,
    Staged(Staged),
    NotNow,
}

impl Pull {
    fn letter(&self, what: CatchUp) -> CatchUpLetter {
        CatchUpLetter {
            key: self.target.key,
            incarnation: self.target.incarnation,
            from: self.target.replica,
            to: self.from,
            what,
        }
    }

    fn take_manifest(&mut self, disk: &Arc<dyn Disk>, bytes: &Bytes) -> Taken {
        let id = id_of(bytes);
        if self.copy.as_ref().is_some_and(|(known, _)| *known == id) {
            return Taken::Nothing;
        }
        let manifest = match Manifest::decode(bytes) {
            Ok(manifest) if members_of(manifest.note()).is_some() => manifest,
            Ok(_) => return self.refuse(&"its note has no members"),
            Err(e) => return self.refuse(&e),
        };
        let PullTarget { dir, identity, .. } = &self.target;
        match Staging::open(disk.clone(), dir, *identity, manifest) {
            Ok(staging) => {
                tracing::info!(dir = %dir.display(), bytes = staging.manifest().len_bytes(),
                    there = staging.have_bytes(), "catching up by files");
                self.copy = Some((id, staging));
                self.asked.clear();
                Taken::News
            }
            Err(e @ StagingError::Foreign) => self.refuse(&e),
            Err(e) => self.put_off(&e),
        }
    }

    fn take_part(&mut self, manifest: u32, file: u32, position: u64, bytes: &[u8]) -> Taken {
        let Some((_, staging)) = self.copy.as_mut().filter(|(id, _)| *id == manifest) else {
            return Taken::Nothing;
        };
        let written = staging.write(file, position, bytes);
        if let Err(StagingError::NotWanted { .. }) = written {
            // Twice, or before one that was lost: that one is asked for again.
            return Taken::Nothing;
        }
        self.asked
            .retain(|asked| (asked.file, asked.position) > (file, position));
        match written {
            Ok(()) => Taken::News,
            Err(e @ StagingError::Damaged { .. }) => {
                self.asked.clear();
                // Its source may be what is damaged: not again and again without a pause.
                self.put_off(&e)
            }
            Err(e @ StagingError::Unfit(_)) => self.refuse(&e),
            Err(e) => self.put_off(&e),
        }
    }

    /// Completes the copy, if all of it is there.
    fn complete(&mut self) -> Complete {
        let Some((_, staging)) = &mut self.copy else {
            return Complete::Not;
        };
        if staging.next().is_some() {
            return Complete::Not;
        }
        match staging.finish() {
            Ok(staged) => Complete::Staged(staged),
            Err(e @ StagingError::Unfit(_)) => {
                self.refuse(&e);
                Complete::NotNow
            }
            Err(e) => {
                self.put_off(&e);
                Complete::NotNow
            }
        }
    }

    fn refuse(&mut self, error: &dyn std::fmt::Display) -> Taken {
        tracing::warn!(dir = %self.target.dir.display(), %error, "a copy is of no use");
        self.copy = None;
        Taken::NotNow
    }

    fn put_off(&self, error: &dyn std::fmt::Display) -> Taken {
        tracing::warn!(dir = %self.target.dir.display(), %error, "a copy does not go on now");
        Taken::NotNow
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tidelog_disk::OsDisk;
    use tidelog_record::{PartitionId, TopicId};

    use super::*;

    fn needed(to: ReplicaId) -> (PullTarget, CatchUpLetter) {
        let key = GroupKey {
            topic_id: TopicId::from_bytes([1; 16]),
            partition: PartitionId::new(0),
        };
        let target = PullTarget {
            key,
            incarnation: 1,
            replica: to,
            dir: PathBuf::from("/nowhere"),
            identity: LogIdentity {
                cluster_id: [7; 16],
                topic_id: key.topic_id,
                partition: key.partition,
                incarnation: 1,
            },
        };
        let letter = CatchUpLetter {
            key,
            incarnation: 1,
            from: 3,
            to,
            what: CatchUp::Needed { first_index: 9 },
        };
        (target, letter)
    }

    fn pulls() -> Pulls {
        Pulls::new(Arc::new(OsDisk), PullConfig::default())
    }

    #[test]
    fn the_next_replica_of_a_partition_does_not_wait_for_the_copy_for_the_one_before() {
        let mut pulls = pulls();
        let begin = |pulls: &mut Pulls, replica| {
            let (target, letter) = needed(replica);
            pulls.begin(target, letter, 0).map(|ask| ask.from)
        };
        let (first, next) = (2, (1 << 32) + 2);
        assert_eq!(begin(&mut pulls, first), Some(first));
        assert_eq!(begin(&mut pulls, first), None);
        assert_eq!(begin(&mut pulls, next), Some(next));
        assert_eq!(begin(&mut pulls, next), None);
    }

    #[test]
    fn a_copy_that_nobody_needs_is_not_asked_for_again() {
        let mut pulls = pulls();
        let (target, letter) = needed(2);
        pulls.begin(target, letter.clone(), 0).unwrap();
        let patience = PullConfig::default().patience_millis;
        let (asked, _) = pulls.tick(patience, |needed| *needed == letter);
        assert_eq!(asked[0].what, CatchUp::Ask);
        let (asked, _) = pulls.tick(2 * patience, |_| false);
        assert!(asked.is_empty() && pulls.is_empty());
    }
}
