//! One group of a shard, and who waits for it.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tidelog_log::state::GroupKey;
use tidelog_record::{Offset, Timestamp};

use super::effects::{Done, Effects, Letter, Proposal, Refusal, Until};
use crate::error::{GroupError, ProposeError};
use crate::group::{Group, Proposed, Role};
use crate::planted::Planted;
use crate::store::StateStore;
use crate::turn::Turn;

/// Somebody who waits until everything before `end` is committed.
#[derive(Debug)]
struct Waiting<W> {
    end: Offset,
    done: Done,
    waiter: W,
}

#[derive(Debug)]
pub(super) struct Hosted<W> {
    pub(super) key: GroupKey,
    pub(super) group: Group,
    store: StateStore,
    pub(super) incarnation: u32,
    /// Batches that are not proposed yet: the group does not know how far its log is committed, or too
    /// much is under way. Bounded by what the broker takes from clients.
    queue: VecDeque<Proposal<W>>,
    /// In the order of their ends, but for duplicates.
    waiting: VecDeque<Waiting<W>>,
    /// New log starts that are proposed.
    starts: Vec<(Offset, W)>,
    /// Log starts that are to be.
    starts_asked: Vec<(Offset, W)>,
    reads: HashMap<u64, W>,
    reads_asked: Vec<W>,
    /// The term in which all that waits was proposed.
    term: u64,
    pub(super) failed: Option<GroupError>,
}

impl<W> Hosted<W> {
    pub(super) fn new(key: GroupKey, group: Group, store: StateStore, incarnation: u32) -> Self {
        Self {
            key,
            group,
            store,
            incarnation,
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            starts: Vec::new(),
            starts_asked: Vec::new(),
            reads: HashMap::new(),
            reads_asked: Vec::new(),
            term: 0,
            failed: None,
        }
    }

    pub(super) fn propose(&mut self, proposal: Proposal<W>) {
        self.queue.push_back(proposal);
    }

    pub(super) fn ask_log_start(&mut self, to: Offset, waiter: W) {
        self.starts_asked.push((to, waiter));
    }

    pub(super) fn ask_read_index(&mut self, waiter: W) {
        self.reads_asked.push(waiter);
    }

    /// Whether the first of the queue could be proposed now.
    pub(super) fn could_propose(&self) -> bool {
        let fits = self.queue.front().is_some_and(|first| {
            let len = first.batch.total_len() as u64;
            len <= self.group.room(len)
        });
        fits && self.group.is_ready() && self.group.stalled().is_none()
    }

    /// Whether anybody waits for something of it.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
            || !self.queue.is_empty()
            || !self.starts.is_empty()
            || !self.group.is_ready()
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
        let reads = self.reads.drain().map(|(_, waiter)| waiter);
        let reads = reads.chain(self.reads_asked.drain(..));
        for waiter in queue.chain(asked).chain(reads) {
            effects.answer(self.key, waiter, Err(new()));
        }
    }

    pub(super) fn turn(&mut self, now: Timestamp, effects: &mut Effects<W>) {
        if self.group.stalled().is_some() && !self.queue.is_empty() {
            // There may be space by now, and what is in the queue need not be refused.
            self.turn_with(Vec::new(), now, effects);
            if self.failed.is_some() {
                return;
            }
        }
        let written = self.propose_queue(now, effects);
        self.propose_starts(effects);
        self.ask_reads(effects);
        self.turn_with(written, now, effects);
    }

    /// A turn of the group; `written` are answered when it has gone well.
    fn turn_with(&mut self, written: Vec<(Done, W)>, now: Timestamp, effects: &mut Effects<W>) {
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
        answer_written(self.key, written, Ok(()), effects);
        self.take(turn, effects);
    }

    fn take(&mut self, turn: Turn, effects: &mut Effects<W>) {
        for outgoing in turn.messages {
            effects.send(Letter {
                key: self.key,
                incarnation: self.incarnation,
                message: outgoing.message,
                payloads: outgoing.payloads,
            });
        }
        if turn.is_state_dirty {
            effects
                .state_to_sync
                .push((self.key, self.group.recorded()));
        }
        if let Some(end) = turn.committed {
            effects.committed.push((self.key, end));
        }
        for (number, index) in turn.reads {
            if let Some(waiter) = self.reads.remove(&number) {
                effects.answer(self.key, waiter, Ok(Done::ReadIndex(index)));
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
            if !role.is_leader || role.term != self.term {
                let leader = role.leader;
                let begun = || Refusal::Lost { leader };
                let new = || Refusal::Refused(ProposeError::NotLeader { leader });
                if role.is_leader {
                    // What is not proposed yet is proposed in the new term.
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
            effects.logs_to_sync.push(self.key);
            effects.is_sync_awaited |= self.is_awaited();
        }
    }

    /// Proposes as much of the queue as the group takes now. Gives those who are to be answered when it
    /// is written.
    fn propose_queue(&mut self, now: Timestamp, effects: &mut Effects<W>) -> Vec<(Done, W)> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        let role = self.group.role();
        if let Some(cause) = self.group.stalled() {
            let cause = cause.clone();
            self.refuse_queue(|| cause.clone().into(), effects);
            return Vec::new();
        }
        if !role.is_leader {
            let leader = role.leader;
            self.refuse_queue(|| ProposeError::NotLeader { leader }, effects);
            return Vec::new();
        }
        if !self.group.is_ready() {
            return Vec::new();
        }
        let lens = self.queue.iter();
        let mut lens = lens.map(|proposal| proposal.batch.total_len() as u64);
        let mut room = self.group.room(lens.next().unwrap_or(0));
        let fits = |proposal: &Proposal<W>| {
            let len = proposal.batch.total_len() as u64;
            let fits = len <= room;
            room = room.saturating_sub(len);
            fits
        };
        let count = self.queue.iter().map(fits).take_while(|fits| *fits).count();
        let mut batches = Vec::with_capacity(count);
        let mut waiters = Vec::with_capacity(count);
        for proposal in self.queue.drain(..count) {
            batches.push(proposal.batch);
            waiters.push((proposal.until, proposal.waiter));
        }
        let committed = self.group.log().reader().committed_offset();
        let mut written = Vec::new();
        for ((until, waiter), result) in waiters.into_iter().zip(self.group.propose(batches, now)) {
            match result {
                Ok(proposed) => {
                    let done = stored(&proposed);
                    let is_committed = proposed.end_offset <= committed
                        || self.group.config.has(Planted::DuplicateUncommitted);
                    let is_there = proposed.is_duplicate && is_committed;
                    if until == Until::Written || is_there {
                        written.push((done, waiter));
                    } else {
                        let end = proposed.end_offset;
                        self.waiting.push_back(Waiting { end, done, waiter });
                    }
                }
                Err(e) => effects.answer(self.key, waiter, Err(Refusal::Refused(e))),
            }
        }
        written
    }

    fn refuse_queue(&mut self, error: impl Fn() -> ProposeError, effects: &mut Effects<W>) {
        for proposal in self.queue.drain(..) {
            effects.answer(self.key, proposal.waiter, Err(Refusal::Refused(error())));
        }
    }

    fn propose_starts(&mut self, effects: &mut Effects<W>) {
        if self.starts_asked.is_empty() || self.group.role().is_leader && !self.group.is_ready() {
            return;
        }
        for (to, waiter) in std::mem::take(&mut self.starts_asked) {
            let start = self.group.log().reader().log_start();
            if to <= start {
                self.group.remove_below_start();
                effects.answer(self.key, waiter, Ok(Done::LogStart(start)));
                continue;
            }
            match self.group.propose_log_start(to) {
                Ok(()) => self.starts.push((to, waiter)),
                Err(e) => effects.answer(self.key, waiter, Err(Refusal::Refused(e))),
            }
        }
    }

    fn ask_reads(&mut self, effects: &mut Effects<W>) {
        if self.group.role().is_leader && !self.group.is_ready() {
            return;
        }
        for waiter in std::mem::take(&mut self.reads_asked) {
            match self.group.read_index() {
                Ok(number) => drop(self.reads.insert(number, waiter)),
                Err(e) => effects.answer(self.key, waiter, Err(Refusal::Refused(e))),
            }
        }
    }

    /// Answers those whose batches are committed. When the term has `ended`, another leader may have put
    /// others into their places and committed these, all in one turn.
    fn answer_committed(&mut self, ended: bool, effects: &mut Effects<W>) {
        let reader = self.group.log().reader();
        let committed = reader.committed_offset();
        let is_own = |end: Offset| {
            let epoch = reader.epoch_at(end.saturating_sub(1));
            epoch.map(|epoch| u64::from(epoch.get())) == Some(self.term)
        };
        let is_there = |end| end <= committed && (!ended || is_own(end));
        while self
            .waiting
            .front()
            .is_some_and(|waiting| is_there(waiting.end))
            && let Some(waiting) = self.waiting.pop_front()
        {
            effects.answer(self.key, waiting.waiter, Ok(waiting.done));
        }
        let start = self.group.log().reader().log_start();
        let starts = std::mem::take(&mut self.starts);
        for (to, waiter) in starts {
            if to <= start {
                effects.answer(self.key, waiter, Ok(Done::LogStart(start)));
            } else {
                self.starts.push((to, waiter));
            }
        }
    }
}

fn stored(proposed: &Proposed) -> Done {
    Done::Stored {
        base_offset: proposed.base_offset,
        log_append_time: proposed.log_append_time,
        is_duplicate: proposed.is_duplicate,
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
