//! What a group is asked for: how it is begun, and how those who wait hear that it is committed.

use tidelog_record::{Offset, Timestamp};

use super::{Hosted, LEADERLESS_TICKS_MAX, Waiting};
use crate::error::ProposeError;
use crate::group::Proposed;
use crate::planted::Planted;
use crate::shard::effects::{Done, Effects, Proposal, Refusal, Until};

impl<W> Hosted<W> {
    /// Proposes as much of the queue as the group takes now. Gives those who are to be answered when it
    /// is written.
    pub(super) fn propose_queue(
        &mut self,
        now: Timestamp,
        effects: &mut Effects<W>,
    ) -> Vec<(Done, W)> {
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
            let is_next_awaited = leader.is_none() && self.led_last;
            if is_next_awaited && self.leaderless_ticks < LEADERLESS_TICKS_MAX {
                return Vec::new();
            }
            self.led_last = false;
            self.leaderless_ticks = 0;
            self.refuse_queue(|| ProposeError::NotLeader { leader }, effects);
            return Vec::new();
        }
        if !self.is_taking() {
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
            if proposal.term.is_some_and(|term| term != role.term) {
                let leader = role.leader;
                let refused = Refusal::Refused(ProposeError::NotLeader { leader });
                effects.answer(self.key, proposal.waiter, Err(refused));
                continue;
            }
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
                        self.waiting.push_back(Waiting {
                            until,
                            end,
                            done,
                            waiter,
                        });
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

    pub(super) fn propose_starts(&mut self, effects: &mut Effects<W>) {
        let is_put_off = self.is_put_off();
        for (to, waiter) in std::mem::take(&mut self.starts_asked) {
            let start = self.group.log().reader().log_start();
            if to <= start {
                self.group.remove_below_start();
                effects.answer(self.key, waiter, Ok(Done::LogStart(start)));
                continue;
            }
            if is_put_off {
                self.starts_asked.push((to, waiter));
                continue;
            }
            if let Some(cause) = self.group.stalled().cloned() {
                let refused = Refusal::Refused(cause.into());
                effects.answer(self.key, waiter, Err(refused));
                continue;
            }
            match self.group.propose_log_start(to) {
                Ok(()) => self.starts.push((to, waiter)),
                Err(e) => effects.answer(self.key, waiter, Err(Refusal::Refused(e))),
            }
        }
    }

    /// Whether what is asked for has to wait until the leader knows how far the log is committed. One
    /// without space may never: then it is refused.
    pub(super) fn is_put_off(&self) -> bool {
        let is_leader = self.group.role().is_leader;
        is_leader && !self.is_taking() && self.group.stalled().is_none()
    }

    pub(super) fn ask_reads(&mut self, effects: &mut Effects<W>) {
        if self.is_put_off() {
            return;
        }
        for waiter in std::mem::take(&mut self.reads_asked) {
            if let Some(cause) = self.group.stalled().cloned() {
                let refused = Refusal::Refused(cause.into());
                effects.answer(self.key, waiter, Err(refused));
                continue;
            }
            match self.group.read_index() {
                Ok(number) => drop(self.reads.insert(number, waiter)),
                Err(e) => effects.answer(self.key, waiter, Err(Refusal::Refused(e))),
            }
        }
    }

    /// Answers those whose batches are committed, or written where they are content with that. When the term has
    /// `ended`, another leader may have put others into their places and committed these, all in one turn.
    pub(super) fn answer_committed(&mut self, ended: bool, effects: &mut Effects<W>) {
        let reader = self.group.log().reader();
        let committed = reader.committed_offset();
        let is_own = |end: Offset| {
            let epoch = reader.epoch_at(end.saturating_sub(1));
            epoch.map(|epoch| u64::from(epoch.get())) == Some(self.term)
        };
        let is_content = |waiting: &Waiting<W>| waiting.until == Until::Received;
        let written = if !ended && self.waiting.back().is_some_and(is_content) {
            self.group.written_by_majority()
        } else {
            committed
        };
        let is_there = |waiting: &Waiting<W>| {
            let upto = if is_content(waiting) {
                written
            } else {
                committed
            };
            waiting.end <= upto && (!ended || is_own(waiting.end))
        };
        while self.waiting.front().is_some_and(is_there)
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
