//! A shard: many groups that one thread runs, and those who wait for them.
//!
//! A [`Shard`] is told what clients ask for, what other brokers say, that time has passed, and what has
//! become durable; [`Shard::turn`] then gives each group that has something to do its turn, and tells
//! what is to be done outside: [`Effects`]. Messages for the replicas of another broker come as one
//! list a turn, heartbeats of all groups among them. It does no input or output but the writes to the
//! logs and the records of the state file, so that a simulation runs it as a broker does.
//!
//! Batches wait in a queue of their group's while it does not know yet how far its log is committed,
//! or too much is under way; whoever sent one is answered when it is written or committed, or when
//! that cannot be any more. A panic or a failed write ends one group, and the others go on.

mod due;
mod early;
mod effects;
mod hosted;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tidelog_disk::Disk;
use tidelog_log::catch_up::{CatchUpSource, SourceError};
use tidelog_log::state::{GroupKey, GroupState};
use tidelog_log::{Log, Poisoned, RemovedFile};
use tidelog_record::{Offset, Timestamp};

pub use effects::{
    Answer, Delivery, Done, Effects, Letter, NodeId, Position, Post, Proposal, Received, Recovery,
    Refusal, Until, node_of, replica_of,
};

use self::due::Due;
use self::early::Early;
use self::hosted::Hosted;
use crate::catch_up::{CatchUp, CatchUpLetter, PullTarget, Pulled};
use crate::config::ReplicaId;
use crate::error::{GroupError, ProposeError, StepError};
use crate::group::Group;
use crate::planted::Planted;
use crate::store::StateStore;

/// The groups of one thread. `W` stands for somebody who waits for an answer.
#[derive(Debug)]
pub struct Shard<W> {
    groups: BTreeMap<GroupKey, Hosted<W>>,
    /// Groups that are not there any more, and have to be opened again.
    broken: BTreeMap<GroupKey, GroupError>,
    /// Groups that have to know of time.
    ticking: BTreeSet<GroupKey>,
    /// Groups that have something to do in the next turn.
    due: Due,
    /// What came for groups that are not here yet.
    early: Early,
    /// What came of calls between turns.
    effects: Effects<W>,
}

impl<W> Default for Shard<W> {
    fn default() -> Self {
        Self {
            groups: BTreeMap::new(),
            broken: BTreeMap::new(),
            ticking: BTreeSet::new(),
            due: Due::default(),
            early: Early::default(),
            effects: Effects::default(),
        }
    }
}

impl<W> Shard<W> {
    /// Takes a group, which was opened. One with a sole voter stands for election at once.
    pub fn add(&mut self, key: GroupKey, incarnation: u32, group: Group, store: StateStore) {
        let mut hosted = Hosted::new(key, group, store, incarnation);
        hosted.guarded(&mut self.effects, |hosted, _| {
            if hosted.group.is_sole_voter() {
                hosted.group.campaign();
            }
        });
        self.groups.insert(key, hosted);
        self.broken.remove(&key);
        self.due.insert(key);
        self.ticking.insert(key);
        if let Some((received, at)) = self.early.take(key)
            && let Err(e) = self.receive(received, at)
        {
            tracing::debug!(error = %e, "what came before its group was made is not taken");
        }
    }

    /// Lets go of a group. Whoever waits for it is told with the next turn.
    pub fn remove(&mut self, key: GroupKey) -> Option<Group> {
        self.due.remove(&key);
        self.ticking.remove(&key);
        self.broken.remove(&key);
        let mut hosted = self.groups.remove(&key)?;
        let leader = None;
        let begun = || Refusal::Lost { leader };
        hosted.drop_all(&begun, &|| Refusal::Gone, &mut self.effects);
        Some(hosted.group)
    }

    /// The log of a group.
    pub fn log(&self, key: GroupKey) -> Option<&Log> {
        Some(self.groups.get(&key)?.group.log())
    }

    /// A group.
    pub fn group(&self, key: GroupKey) -> Option<&Group> {
        Some(&self.groups.get(&key)?.group)
    }

    /// All groups.
    pub fn keys(&self) -> impl Iterator<Item = GroupKey> {
        self.groups.keys().copied()
    }

    /// Does something to a group; `None` where it is not there, has failed, or fails in this.
    pub fn with<R>(&mut self, key: GroupKey, act: impl FnOnce(&mut Group) -> R) -> Option<R> {
        let hosted = self.groups.get_mut(&key)?;
        self.due.insert(key);
        hosted.guarded(&mut self.effects, |hosted, _| act(&mut hosted.group))
    }

    /// A batch for the group `key`, which is proposed with the next turn or later.
    pub fn propose(&mut self, key: GroupKey, proposal: Proposal<W>) {
        if let Some(hosted) = self.running(key) {
            hosted.propose(proposal);
            self.due.insert(key);
        } else {
            let refusal = self.refusal(key);
            self.effects.answer(key, proposal.waiter, Err(refusal));
        }
    }

    /// Nothing below `to` is to be read again.
    pub fn set_log_start(&mut self, key: GroupKey, to: Offset, waiter: W) {
        if let Some(hosted) = self.running(key) {
            hosted.ask_log_start(to, waiter);
            self.due.insert(key);
        } else {
            let refusal = self.refusal(key);
            self.effects.answer(key, waiter, Err(refusal));
        }
    }

    /// Asks up to where the log of a group is committed: see [`Group::read_index`].
    pub fn read_index(&mut self, key: GroupKey, waiter: W) {
        if let Some(hosted) = self.running(key) {
            hosted.ask_read_index(waiter);
            self.due.insert(key);
        } else {
            let refusal = self.refusal(key);
            self.effects.answer(key, waiter, Err(refusal));
        }
    }

    /// What another broker sent.
    ///
    /// # Errors
    /// [`StepError`]: nothing of it was taken. A letter for a group that has another incarnation is dropped. A short
    /// one of a leader, for a group that is not here, is kept for a moment: that of a new group may speak before all
    /// have made their replica.
    pub fn receive(&mut self, received: Received, now: Timestamp) -> Result<(), StepError> {
        let Some(hosted) = self.groups.get_mut(&received.key) else {
            self.early.keep(received, now);
            return Ok(());
        };
        if hosted.incarnation != received.incarnation || hosted.group.is_recovering() {
            return Ok(());
        }
        self.due.insert(received.key);
        let stepped = hosted.guarded(&mut self.effects, |hosted, _| {
            let Received {
                message,
                payloads,
                receipt,
                ..
            } = received;
            if receipt && message.entries.is_empty() {
                return hosted.group.take_receipt(&message);
            }
            let (from, term) = (message.from, message.term);
            let has_entries = !message.entries.is_empty();
            hosted.group.step(message, payloads, now)?;
            if has_entries {
                hosted.group.leader_asks(from, term, receipt);
            }
            Ok(())
        });
        stepped.unwrap_or(Ok(()))
    }

    /// What a group's replica is to copy that a leader has told it lacks entries: its log. `None` where it
    /// lacks nothing, which the leader is then told, or is not here.
    pub fn target_of(&mut self, letter: &CatchUpLetter) -> Option<PullTarget> {
        let CatchUp::Needed { first_index } = letter.what else {
            return None;
        };
        let hosted = self.groups.get_mut(&letter.key);
        let hosted = hosted.filter(|hosted| hosted.incarnation == letter.incarnation)?;
        if hosted.failed.is_some() || hosted.group.id() != letter.to {
            return None;
        }
        self.due.insert(letter.key);
        if !hosted.group.lacks_before(first_index) {
            return None;
        }
        let log = hosted.group.log();
        Some(PullTarget {
            key: letter.key,
            incarnation: hosted.incarnation,
            replica: letter.to,
            dir: log.dir().to_owned(),
            identity: log.identity(),
        })
    }

    /// What the sender of `letter` is to copy of a group's log; `None` where that is not here.
    pub fn source_of(&self, letter: &CatchUpLetter) -> Option<Result<CatchUpSource, SourceError>> {
        let hosted = self.groups.get(&letter.key)?;
        let is_it = hosted.incarnation == letter.incarnation && hosted.group.id() == letter.to;
        (is_it && hosted.failed.is_none()).then(|| hosted.group.catch_up_source())
    }

    /// Puts a complete copy into the place of a group's log, which then is another one. Whoever waits is
    /// told that it is not known what becomes of it. Says whether the copy was taken.
    pub fn adopt(&mut self, pulled: Pulled, disk: Arc<dyn Disk>) -> bool {
        let Pulled {
            key,
            incarnation,
            staged,
        } = pulled;
        let Some(mut hosted) = self.groups.remove(&key) else {
            return false;
        };
        let is_meant = hosted.incarnation == incarnation && !hosted.group.is_recovering();
        if hosted.failed.is_some() || !is_meant {
            self.groups.insert(key, hosted);
            return false;
        }
        self.due.insert(key);
        let begun = || Refusal::Lost { leader: None };
        let new = || Refusal::Refused(ProposeError::NotLeader { leader: None });
        hosted.drop_all(&begun, &new, &mut self.effects);
        let effects = &mut self.effects;
        let adopt = AssertUnwindSafe(|| hosted.adopt(staged, disk, effects));
        let adopted = catch_unwind(adopt).unwrap_or_else(|_panic| {
            let what = "the code that replaces its log panicked".to_owned();
            Err(GroupError::Invariant(what))
        });
        match adopted {
            Ok((hosted, is_taken)) => {
                self.groups.insert(key, hosted);
                is_taken
            }
            Err(e) => {
                self.due.remove(&key);
                self.ticking.remove(&key);
                self.broken.insert(key, e.clone());
                self.effects.failed.push((key, e));
                false
            }
        }
    }

    /// A broker cannot be reached: what was sent to it may be lost.
    pub fn unreachable(&mut self, node: NodeId) {
        for hosted in self.groups.values_mut() {
            let is_there = |id: &ReplicaId| node_of(*id) == node;
            let members = &hosted.group.members().state;
            let ids = members.voters.iter().chain(&members.learners);
            let ids: Vec<ReplicaId> = ids.copied().filter(is_there).collect();
            let delay = succession(hosted, node);
            hosted.guarded(&mut self.effects, |hosted, _| {
                ids.into_iter().for_each(|id| hosted.group.unreachable(id));
                if let Some(delay) = delay {
                    hosted.group.leader_lost(delay);
                }
            });
        }
    }

    /// A broker can be reached, for the first time or again: replicas there that follow ones of these hear of them
    /// now, and not with the next heartbeat.
    pub fn reachable(&mut self, node: NodeId) {
        for (key, hosted) in &mut self.groups {
            let members = &hosted.group.members().state;
            let mut ids = members.voters.iter().chain(&members.learners);
            if !ids.any(|id| node_of(*id) == node) {
                continue;
            }
            let has_news = hosted.guarded(&mut self.effects, |hosted, _| hosted.group.reachable());
            if has_news == Some(true) {
                self.due.insert(*key);
            }
        }
    }

    /// Hands over the leaderships of all groups that have others who can take them. Says how many are
    /// led here still.
    pub fn hand_over(&mut self) -> usize {
        let mut left = 0;
        for (key, hosted) in &mut self.groups {
            let leads = hosted.guarded(&mut self.effects, |hosted, _| hosted.group.hand_over());
            if leads == Some(true) {
                left += 1;
                self.due.insert(*key);
            }
        }
        left
    }

    /// These were not sent, or may not arrive: their groups ask where the other replica's log ends before
    /// they send more.
    pub fn not_sent(&mut self, letters: &[Letter]) {
        for letter in letters {
            if let Some(hosted) = self.groups.get_mut(&letter.key) {
                let to = letter.message.to;
                hosted.guarded(&mut self.effects, |hosted, _| hosted.group.unreachable(to));
            }
        }
    }

    /// Goes on with a group of which a majority is lost for good, in the next incarnation. Whoever waits is
    /// told when that is so.
    pub fn recover(&mut self, key: GroupKey, incarnation: u32, how: Recovery, waiter: W) {
        if let Some(hosted) = self.running(key) {
            // As the borrow checker has it.
            let mut effects = Effects::default();
            hosted.recover(incarnation, how, waiter, &mut effects);
            self.effects.answers.extend(effects.answers);
            self.effects.failed.extend(effects.failed);
            self.due.insert(key);
        } else {
            let refusal = self.refusal(key);
            self.effects.answer(key, waiter, Err(refusal));
        }
    }

    /// How far the replicas are that run here.
    pub fn positions(&self) -> Vec<Position> {
        let running = self.groups.values().filter(|one| one.failed.is_none());
        running.map(Hosted::position).collect()
    }

    /// Whether time has to be told: not where every group is one replica, which leads.
    pub fn needs_ticks(&self) -> bool {
        !self.ticking.is_empty()
    }

    /// Time has passed: one tick of [`crate::GroupConfig`].
    pub fn tick(&mut self) {
        self.early.tick();
        for key in &self.ticking {
            let Some(hosted) = self.groups.get_mut(key) else {
                continue;
            };
            let ticked = hosted.guarded(&mut self.effects, |hosted, _| hosted.tick());
            if ticked == Some(true) {
                self.due.insert(*key);
            }
        }
    }

    /// Files of a group's log that were removed: see [`Log::take_removed`].
    pub fn take_removed(&mut self, key: GroupKey) -> Vec<RemovedFile> {
        let hosted = self.groups.get_mut(&key);
        hosted.map_or(Vec::new(), |hosted| hosted.group.take_removed())
    }

    /// Forgets the producers of all logs of which nothing was heard since `before`.
    pub fn expire_producers(&mut self, before: Timestamp, now: Timestamp) {
        for hosted in self.groups.values_mut() {
            hosted.guarded(&mut self.effects, |hosted, _| {
                hosted.group.expire_producers(before, now);
            });
        }
    }

    /// Whether the group has come as far as it can by itself: it leads and is ready, or others decide
    /// on that, or something is lacking.
    pub fn is_settled(&self, key: GroupKey) -> bool {
        self.groups.get(&key).is_none_or(is_settled)
    }

    /// Whether anybody waits for something of the group.
    pub fn is_awaited(&self, key: GroupKey) -> bool {
        self.groups.get(&key).is_some_and(Hosted::is_awaited)
    }

    /// A round that synced the log of a group has ended, well or not.
    pub fn log_synced(&mut self, key: GroupKey) {
        self.due.insert(key);
    }

    /// A sync of the state file has ended well that began after a turn gave this.
    pub fn state_synced(&mut self, synced: &[(GroupKey, u64)]) {
        for (key, recorded) in synced {
            if let Some(hosted) = self.groups.get_mut(key) {
                hosted.group.state_synced(*recorded);
                self.due.insert(*key);
            }
        }
    }

    /// Records, durably, how far the log of a group is committed; says whether that is so. A start knows
    /// then that all up to there was.
    pub fn record_commit(&mut self, key: GroupKey) -> bool {
        let Some(hosted) = self.running(key) else {
            return false;
        };
        match hosted.record_commit() {
            Ok(()) => true,
            Err(poisoned) => {
                self.fail(key, poisoned.into());
                false
            }
        }
    }

    /// Something that a group is for failed outside of it: it does no more.
    pub fn fail(&mut self, key: GroupKey, error: GroupError) {
        if let Some(hosted) = self.running(key) {
            // As the borrow checker has it.
            let mut effects = Effects::default();
            hosted.fail(error, &mut effects);
            self.effects.answers.extend(effects.answers);
            self.effects.failed.extend(effects.failed);
        }
    }

    /// The state file takes no more: no group can go on.
    pub fn state_failed(&mut self, poisoned: &Poisoned) {
        for hosted in self.groups.values_mut() {
            if hosted.failed.is_none() {
                hosted.fail(GroupError::Poisoned(poisoned.clone()), &mut self.effects);
            }
        }
    }

    /// How many groups are not [settled](Self::is_settled).
    pub fn unsettled(&self) -> usize {
        let groups = self.groups.values();
        groups.filter(|hosted| !is_settled(hosted)).count()
    }

    /// Gives each group that has something to do its turn.
    pub fn turn(&mut self, now: Timestamp) -> Effects<W> {
        let mut effects = std::mem::take(&mut self.effects);
        let due = self.due.take();
        for key in due.iter().copied() {
            let Some(hosted) = self.groups.get_mut(&key) else {
                continue;
            };
            hosted.guarded(&mut effects, |hosted, effects| hosted.turn(now, effects));
            if needs_ticks(hosted) {
                self.ticking.insert(key);
            } else {
                self.ticking.remove(&key);
            }
            // A commit may have made room for what waits, or the leader ready for it.
            if hosted.failed.is_none() && hosted.could_begin() {
                self.due.insert(key);
            }
        }
        self.due.give_back(due);
        effects
    }

    /// Whether a [turn](Self::turn) would do anything.
    pub fn has_work(&self) -> bool {
        !self.due.is_empty() || !self.effects.answers.is_empty() || !self.effects.failed.is_empty()
    }

    /// Takes out those who wait with batches that were not proposed: surely nothing was done for them.
    pub fn take_queued(&mut self) -> Vec<W> {
        let queued = self.groups.values_mut().flat_map(Hosted::take_queued);
        queued.collect()
    }

    /// Closes all logs, and gives what is to be recorded of each group.
    pub fn close(self) -> Vec<(GroupKey, Result<GroupState, GroupError>)> {
        let close = |hosted: Hosted<W>| match hosted.failed {
            Some(e) => Err(e),
            None => Ok(hosted.group.close()?),
        };
        let broken = self.broken.into_iter().map(|(key, e)| (key, Err(e)));
        self.groups
            .into_iter()
            .map(|(key, hosted)| (key, close(hosted)))
            .chain(broken)
            .collect()
    }

    fn running(&mut self, key: GroupKey) -> Option<&mut Hosted<W>> {
        let hosted = self.groups.get_mut(&key);
        hosted.filter(|hosted| hosted.failed.is_none())
    }

    fn refusal(&self, key: GroupKey) -> Refusal {
        let failed = self
            .groups
            .get(&key)
            .and_then(|hosted| hosted.failed.clone());
        let failed = failed.or_else(|| self.broken.get(&key).cloned());
        failed.map_or(Refusal::Gone, Refusal::Down)
    }
}

/// After how many ticks a replica stands for election when the broker of its leader is gone: one after the
/// other, so that they do not get in each other's way, and another one first in each group. `None` where
/// the leader was elsewhere.
fn succession<W>(hosted: &Hosted<W>, gone: NodeId) -> Option<u32> {
    let group = &hosted.group;
    let is_gone = |id: &ReplicaId| node_of(*id) == gone;
    group.role().leader.filter(is_gone)?;
    let voters = &group.members().state.voters;
    let rest: Vec<ReplicaId> = voters.iter().copied().filter(|id| !is_gone(id)).collect();
    let at = rest.iter().position(|id| *id == group.id())?;
    let first = hosted.key.partition.get() as usize % rest.len();
    let rank = (at + rest.len() - first) % rest.len();
    u32::try_from(1 + rank * SUCCESSION_TICKS).ok()
}

/// So many ticks lie between one replica and the next.
const SUCCESSION_TICKS: usize = 3;

fn is_settled<W>(hosted: &Hosted<W>) -> bool {
    let group = &hosted.group;
    let is_stuck = hosted.failed.is_some() || group.stalled().is_some();
    is_stuck || !group.is_sole_voter() || group.is_ready()
}

fn needs_ticks<W>(hosted: &Hosted<W>) -> bool {
    let group = &hosted.group;
    let has_others = group.has_others() && !group.config.has(Planted::LearnersForgotten);
    let is_alone = group.is_sole_voter() && !has_others;
    let is_at_rest = is_alone && group.is_ready() && !group.is_held_up();
    hosted.failed.is_none() && !is_at_rest
}
