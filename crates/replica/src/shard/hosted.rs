//! One group of a shard, and who waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tidelog_disk::Disk;
use tidelog_log::Poisoned;
use tidelog_log::catch_up::Staged;
use tidelog_log::state::GroupKey;
use tidelog_record::{Offset, Timestamp};

use super::effects::{Done, Effects, Letter, Position, Proposal, Recovery, Refusal, Until};
use crate::adopt::AdoptFailed;
use crate::catch_up::{CatchUp, CatchUpLetter};
use crate::error::{GroupError, ProposeError};
use crate::group::{Group, GroupStore, Role};
use crate::message::push_lean;
use crate::planted::Planted;
use crate::recover::RecoverError;
use crate::store::StateStore;
use crate::turn::Turn;

mod asked;

/// Somebody who waits until everything before `end` is committed, or written on a majority.
#[derive(Debug)]
struct Waiting<W> {
    until: Until,
    end: Offset,
    done: Done,
    waiter: W,
}

#[derive(Debug)]
pub(super) struct Hosted<W> {
    pub(super) key: GroupKey,
    pub(super) group: Group,
    pub(super) store: StateStore,
    pub(super) incarnation: u32,
    /// Batches that are not proposed yet: the group does not know how far its log is committed, or who
    /// leads, or too much is under way. Bounded by what the broker takes from clients.
    queue: VecDeque<Proposal<W>>,
    /// This replica led last, as far as it knows.
    led_last: bool,
    /// For how many ticks the queue has waited to hear who leads next.
    leaderless_ticks: u32,
    /// In the order of their ends, but for duplicates.
    waiting: VecDeque<Waiting<W>>,
    /// New log starts that are proposed.
    starts: Vec<(Offset, W)>,
    /// Log starts that are to be.
    starts_asked: Vec<(Offset, W)>,
    reads: BTreeMap<u64, W>,
    reads_asked: Vec<W>,
    /// Those who wait until the log is committed here up to an entry.
    reads_known: Vec<(u64, W)>,
    /// Who waits until the group goes on in which incarnation.
    recovering: Option<(u32, W)>,
    /// The term in which all that waits was proposed.
    term: u64,
    pub(super) failed: Option<GroupError>,
}

/// For so many ticks batches wait, where this replica led, to hear who leads next: when it has handed over that is
/// known soon, and then their senders go there at once, where otherwise they would have to ask again and again.
const LEADERLESS_TICKS_MAX: u32 = 3;
/// A group that has missed more of them than so many is another one.
const INCARNATIONS_AT_ONCE: u32 = 16;

impl<W> Hosted<W> {
    pub(super) fn new(key: GroupKey, group: Group, store: StateStore, incarnation: u32) -> Self {
        Self {
            key,
            group,
            store,
            incarnation,
            queue: VecDeque::new(),
            led_last: false,
            leaderless_ticks: 0,
            waiting: VecDeque::new(),
            starts: Vec::new(),
            starts_asked: Vec::new(),
            reads: BTreeMap::new(),
            reads_asked: Vec::new(),
            reads_known: Vec::new(),
            recovering: None,
            term: 0,
            failed: None,
        }
    }

    /// Puts a complete copy into the place of the log; says whether it was taken.
    ///
    /// Whoever waits was told before that it is not known what becomes of what was begun.
    pub(super) fn adopt(
        mut self,
        staged: Staged,
        disk: Arc<dyn Disk>,
        effects: &mut Effects<W>,
    ) -> Result<(Self, bool), GroupError> {
        let adopted = self.group.adopt(disk, staged, &mut self.store);
        let group = match adopted {
            Ok(group) => group,
            Err(AdoptFailed::Unchanged(group, e)) => {
                tracing::info!(key = ?self.key, reason = %e, "a copy was not needed any more");
                self.group = *group;
                return Ok((self, false));
            }
            Err(AdoptFailed::Broken(e)) => return Err(e),
        };
        self.group = group;
        let committed = self.group.log().committed_end();
        effects.committed.push((self.key, committed));
        let members = self.group.members().clone();
        effects.members.push((self.key, members));
        Ok((self, true))
    }

    /// See [`Shard::take_queued`](super::Shard::take_queued).
    pub(super) fn take_queued(&mut self) -> Vec<W> {
        let queued = self.queue.drain(..).map(|proposal| proposal.waiter);
        queued.collect()
    }

    pub(super) fn propose(&mut self, proposal: Proposal<W>) {
        self.queue.push_back(proposal);
    }

    /// Time passed: see [`Group::tick`].
    pub(super) fn tick(&mut self) -> bool {
        let is_waiting = !self.queue.is_empty() && self.group.role().leader.is_none();
        self.leaderless_ticks = if is_waiting {
            self.leaderless_ticks + 1
        } else {
            0
        };
        self.group.tick() || self.leaderless_ticks >= LEADERLESS_TICKS_MAX
    }

    pub(super) fn ask_log_start(&mut self, to: Offset, waiter: W) {
        self.starts_asked.push((to, waiter));
    }

    pub(super) fn ask_read_index(&mut self, waiter: W) {
        self.reads_asked.push(waiter);
    }

    /// See [`Shard::recover`](super::Shard::recover).
    pub(super) fn recover(
        &mut self,
        incarnation: u32,
        how: Recovery,
        waiter: W,
        effects: &mut Effects<W>,
    ) {
        if self.incarnation >= incarnation {
            return effects.answer(self.key, waiter, Ok(Done::Recovered));
        }
        let has = self.incarnation;
        let refused = if self.recovering.is_some() {
            Some(RecoverError::UnderWay)
        } else if incarnation.saturating_sub(has) > INCARNATIONS_AT_ONCE {
            let asked = incarnation;
            Some(RecoverError::Incarnation { has, asked })
        } else if self.group.is_led() && !self.group.is_sole_voter() {
            Some(RecoverError::IsLed)
        } else {
            None
        };
        if let Some(e) = refused {
            return effects.answer(self.key, waiter, Err(Refusal::NotRecovered(e)));
        }
        tracing::warn!(key = ?self.key, incarnation, ?how, "a group goes on without a majority");
        match how {
            Recovery::Follows => self.raise_incarnation(incarnation, waiter, effects),
            Recovery::Alone => match self.group.begin_recovery(incarnation) {
                Ok(()) => self.recovering = Some((incarnation, waiter)),
                Err(e) => effects.answer(self.key, waiter, Err(Refusal::NotRecovered(e))),
            },
        }
    }

    fn raise_incarnation(&mut self, incarnation: u32, waiter: W, effects: &mut Effects<W>) {
        self.group.set_incarnation(incarnation);
        self.incarnation = incarnation;
        match self.record_commit() {
            Ok(()) => effects.answer(self.key, waiter, Ok(Done::Recovered)),
            Err(poisoned) => {
                let e = GroupError::from(poisoned);
                effects.answer(self.key, waiter, Err(Refusal::Failed(e.clone())));
                self.fail(e, effects);
            }
        }
    }

    /// Ends a recovery that is over, well or not.
    fn end_recovery(&mut self, effects: &mut Effects<W>) {
        if self.group.is_recovering() {
            return;
        }
        let Some((incarnation, waiter)) = self.recovering.take() else {
            return;
        };
        if self.group.role().is_leader {
            self.raise_incarnation(incarnation, waiter, effects);
        } else {
            let e = Refusal::NotRecovered(RecoverError::NoMember);
            effects.answer(self.key, waiter, Err(e));
        }
    }

    /// How far the replica is.
    pub(super) fn position(&self) -> Position {
        let log = self.group.log();
        let role = self.group.role();
        let end = log.end();
        let state = &self.group.members().state;
        Position {
            key: self.key,
            incarnation: self.incarnation,
            replica: self.group.id(),
            term: role.term,
            last_term: end.epoch.get().into(),
            last_index: end.index.get() - 1,
            end: end.offset,
            committed: log.reader().committed_offset(),
            leads: self.is_taking(),
            is_able: self.group.could_go_on_alone(),
            voters: [state.voters_outgoing.clone(), state.voters.clone()],
        }
    }

    /// Whether another turn would begin something that was asked for.
    pub(super) fn could_begin(&self) -> bool {
        let is_asked = !self.starts_asked.is_empty() || !self.reads_asked.is_empty();
        is_asked && !self.is_put_off() || self.could_propose()
    }

    fn could_propose(&self) -> bool {
        let fits = self.queue.front().is_some_and(|first| {
            let len = first.batch.total_len() as u64;
            len <= self.group.room(len)
        });
        fits && self.is_taking() && self.group.stalled().is_none()
    }

    /// Whether the group takes what is asked of its leader.
    fn is_taking(&self) -> bool {
        self.group.is_ready() && !self.group.is_recovering()
    }

    /// Records, durably, how far the log is committed.
    pub(super) fn record_commit(&mut self) -> Result<(), Poisoned> {
        let (state, members) = self.group.to_record();
        self.store.record(&state, members)?;
        self.store.sync()
    }

    /// Whether anybody waits for something of it.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
            || !self.queue.is_empty()
            || !self.starts.is_empty()
            || !self.group.is_ready()
    }

    /// Whether anybody waits for its log to be durable.
    fn is_sync_awaited(&self) -> bool {
        // Those between are like these, but where the setting has just changed.
        let mut ends = self.waiting.front().into_iter().chain(self.waiting.back());
        ends.any(|waiting| waiting.until != Until::Received)
            || !self.queue.is_empty()
            || !self.starts.is_empty()
            || !self.group.is_ready() && !self.group.serves_content()
    }

    /// Does something to the group; a panic in it stops that group alone.
    pub(super) fn guarded<R>(
        &mut self,
        effects: &mut Effects<W>,
        act: impl FnOnce(&mut Self, &mut Effects<W>) -> R,
    ) -> Option<R> {
        if self.failed.is_some() {
            return None;
        }
        let acted = catch_unwind(AssertUnwindSafe(|| act(self, effects)));
        if acted.is_err() {
            let what = "the code that runs it panicked".to_owned();
            self.fail(GroupError::Invariant(what), effects);
        }
        acted.ok()
    }

    /// The group does no more. Whoever waits is told.
    pub(super) fn fail(&mut self, error: GroupError, effects: &mut Effects<W>) {
        self.failed = Some(error.clone());
        let begun = || Refusal::Failed(error.clone());
        let new = || Refusal::Down(error.clone());
        self.drop_all(&begun, &new, effects);
        if let Some((_, waiter)) = self.recovering.take() {
            effects.answer(self.key, waiter, Err(begun()));
        }
        effects.failed.push((self.key, error));
    }

    /// Tells all who wait: `begun` those whose request is under way, `new` the others.
    pub(super) fn drop_all(
        &mut self,
        begun: &dyn Fn() -> Refusal,
        new: &dyn Fn() -> Refusal,
        effects: &mut Effects<W>,
    ) {
        let waiting = self.waiting.drain(..).map(|waiting| waiting.waiter);
        let starts = self.starts.drain(..).map(|(_, waiter)| waiter);
        for waiter in waiting.chain(starts) {
            effects.answer(self.key, waiter, Err(begun()));
        }
        let queue = self.queue.drain(..).map(|proposal| proposal.waiter);
        let asked = self.starts_asked.drain(..).map(|(_, waiter)| waiter);
        let reads = std::mem::take(&mut self.reads).into_values();
        let reads = reads.chain(self.reads_asked.drain(..));
        let known = self.reads_known.drain(..).map(|(_, waiter)| waiter);
        let reads = reads.chain(known);
        for waiter in queue.chain(asked).chain(reads) {
            effects.answer(self.key, waiter, Err(new()));
        }
    }

    pub(super) fn turn(&mut self, now: Timestamp, effects: &mut Effects<W>) {
        let is_asked =
            !self.queue.is_empty() || !self.starts_asked.is_empty() || !self.reads_asked.is_empty();
        if self.group.stalled().is_some() && is_asked {
            // There may be space by now, and what is asked for need not be refused.
            self.turn_with(Vec::new(), now, effects);
            if self.failed.is_some() {
                return;
            }
        }
        let written = self.propose_queue(now, effects);
        self.propose_starts(effects);
        self.ask_reads(effects);
        self.turn_with(written, now, effects);
        self.end_recovery(effects);
    }

    /// A turn of the group; `written` are answered when it has gone well.
    fn turn_with(&mut self, written: Vec<(Done, W)>, now: Timestamp, effects: &mut Effects<W>) {
        let last = self.waiting.back();
        let is_content = last.is_some_and(|waiting| waiting.until == Until::Received);
        self.group.ask_for_receipts(is_content);
        let turn = match self.group.turn(&mut self.store, now) {
            Ok(turn) => turn,
            Err(e) => {
                answer_written(self.key, written, Err(&e), effects);
                return self.fail(e, effects);
            }
        };
        if let Some(poisoned) = self.group.log().reader().poisoned() {
            let e = GroupError::from(poisoned);
            answer_written(self.key, written, Err(&e), effects);
            return self.fail(e, effects);
        }
        if let Some(cause) = self.group.stalled().cloned() {
            // In memory only, and it is not known for how long.
            for (_, waiter) in written {
                effects.answer(self.key, waiter, Err(Refusal::Stalled(cause.clone())));
            }
            for (_, waiter) in std::mem::take(&mut self.starts) {
                effects.answer(self.key, waiter, Err(Refusal::Stalled(cause.clone())));
            }
        } else {
            answer_written(self.key, written, Ok(()), effects);
        }
        self.take(turn, effects);
    }

    fn take(&mut self, turn: Turn, effects: &mut Effects<W>) {
        for outgoing in turn.messages {
            let post = effects.post_to(outgoing.message.to);
            let letter = Letter {
                key: self.key,
                incarnation: self.incarnation,
                message: outgoing.message,
                payloads: outgoing.payloads,
                receipt: outgoing.receipt,
            };
            push_lean(&mut post.raft, letter);
        }
        for to in turn.behind {
            let first_index = self.group.log().first_index().get();
            effects.post_to(to).files.push(CatchUpLetter {
                key: self.key,
                incarnation: self.incarnation,
                from: self.group.id(),
                to,
                what: CatchUp::Needed { first_index },
            });
        }
        if turn.is_state_dirty {
            effects
                .state_to_sync
                .push((self.key, self.group.recorded()));
        }
        if let Some(end) = turn.committed {
            push_lean(&mut effects.committed, (self.key, end));
        }
        for (number, index) in turn.reads {
            let waiter = self.reads.remove(&number);
            self.reads_known
                .extend(waiter.map(|waiter| (index, waiter)));
        }
        let committed = self.group.log().commit().get();
        for (index, waiter) in std::mem::take(&mut self.reads_known) {
            if index <= committed {
                effects.answer(self.key, waiter, Ok(Done::ReadIndex(index)));
            } else {
                self.reads_known.push((index, waiter));
            }
        }
        if let Some(members) = turn.members {
            effects.members.push((self.key, members));
        }
        // First what was committed in the term that ends, as far as it was.
        let ended = |role: Role| !role.is_leader || role.term != self.term;
        self.answer_committed(turn.role.is_some_and(ended), effects);
        if let Some(role) = turn.role {
            effects.roles.push((self.key, role));
            self.led_last = role.is_leader || self.led_last && role.leader.is_none();
            if !role.is_leader || role.term != self.term {
                let leader = role.leader;
                let begun = || Refusal::Lost { leader };
                let new = || Refusal::Refused(ProposeError::NotLeader { leader });
                if role.is_leader || self.led_last {
                    // What is not proposed yet is proposed in the new term, or waits for who leads next.
                    let queue = std::mem::take(&mut self.queue);
                    self.drop_all(&begun, &new, effects);
                    self.queue = queue;
                } else if self.group.config.has(Planted::WaitersKept) {
                    let waiting = std::mem::take(&mut self.waiting);
                    self.drop_all(&begun, &new, effects);
                    self.waiting = waiting;
                } else {
                    if self.group.config.has(Planted::ReadersForgotten) {
                        self.reads.clear();
                    }
                    self.drop_all(&begun, &new, effects);
                }
                self.term = role.term;
            }
        }
        if turn.is_log_dirty {
            push_lean(&mut effects.logs_to_sync, self.key);
            effects.is_sync_awaited |= self.is_sync_awaited();
        }
    }
}

fn answer_written<W>(
    key: GroupKey,
    written: Vec<(Done, W)>,
    result: Result<(), &GroupError>,
    effects: &mut Effects<W>,
) {
    for (done, waiter) in written {
        let result = result.map(|()| done);
        effects.answer(key, waiter, result.map_err(|e| Refusal::Failed(e.clone())));
    }
}
