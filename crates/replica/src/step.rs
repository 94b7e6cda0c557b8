//! What other replicas say, and the checks on it that need the log.

use bytes::Bytes;
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};
use tidelog_record::{Offset, Timestamp};

use crate::error::StepError;
use crate::group::{Group, at};
use crate::message;
use crate::payload::Placed;
use crate::planted::Planted;

/// No election ever raises a term so far, and neither do hundreds of recoveries; with terms that come from
/// nowhere a group would soon have none left.
const TERMS_AHEAD_MAX: u64 = 1 << 24;

/// For how many ticks it is remembered at least that somebody was heard.
const HEARD_TICKS_MAX: u64 = 1000;

impl Group {
    /// Takes a message from another replica, with its batches as [`crate::Outgoing`] has them.
    ///
    /// # Errors
    /// [`StepError`]: nothing of the message was taken.
    pub fn step(
        &mut self,
        mut message: Message,
        payloads: Vec<Bytes>,
        now: Timestamp,
    ) -> Result<(), StepError> {
        let placed = message::check(&mut message, payloads, &self.config)?;
        if message.term > self.node.raft.term.saturating_add(TERMS_AHEAD_MAX) {
            let what = "its term is too far above that of the group";
            let from = message.from;
            return Err(StepError::Malformed { from, what });
        }
        self.check_not_stalled()?;
        let last = self.node.raft.raft_log.last_index();
        let is_beyond = match message.get_msg_type() {
            MessageType::MsgHeartbeat => message.commit > last,
            // Others of older terms Raft ignores; in its own a leader has all it sent.
            MessageType::MsgAppendResponse if message.term == self.node.raft.term => {
                message.index > last || message.reject_hint > last
            }
            _ => false,
        };
        if is_beyond {
            let what = "what it speaks of is beyond the log";
            let from = message.from;
            return Err(StepError::Malformed { from, what });
        }
        self.check_offsets(&message, &placed)?;
        self.note_heard(&message);
        if let Some(first) = placed.first() {
            let first = first.entry.len_bytes() as u64;
            let lens = placed.iter().map(|placed| placed.entry.len_bytes() as u64);
            let staged = self.fresh_bytes;
            self.log_mut()
                .make_room(staged, first, lens.sum::<u64>(), now)?;
        }
        // As if it were to stand for election by itself.
        if message.get_msg_type() == MessageType::MsgTimeoutNow && self.must_wait() {
            return Ok(());
        }
        for placed in placed {
            self.put_fresh(placed.index, placed.term, placed.entry);
        }
        // What is not for it, Raft drops; that of strangers too.
        self.node.step(message).ok();
        self.draw();
        Ok(())
    }

    /// A leader remembers when it heard each of the others last. Of strangers nothing is kept.
    fn note_heard(&mut self, message: &Message) {
        let (raft, from) = (&self.node.raft, message.from);
        let is_member = raft.prs().get(from).is_some();
        if raft.state != StateRole::Leader || message.term != raft.term || !is_member {
            return;
        }
        let now = self.ticks;
        match self.heard.iter_mut().find(|(id, _)| *id == from) {
            Some((_, at)) => *at = now,
            None => {
                // Nobody is needed any more that was not heard for long.
                self.heard.retain(|(_, at)| now - at < HEARD_TICKS_MAX);
                self.heard.push((from, now));
            }
        }
    }

    /// Checks that the batches of a message have the offsets that come next.
    fn check_offsets(&self, message: &Message, placed: &[Placed]) -> Result<(), StepError> {
        let raft_log = &self.node.raft.raft_log;
        // Raft looks at the message before it takes anything: what is older goes, and what does not
        // match this log is answered with where it does. Only then it is known where the next batch
        // begins.
        let is_known = message.index <= raft_log.committed
            || raft_log.match_term(message.index, message.log_term)
            || self.config.has(Planted::OffsetsUnmatched);
        if message.term < self.node.raft.term || !is_known {
            return Ok(());
        }
        let committed = self.log().commit().get();
        let mut placed = placed.iter().skip_while(|placed| placed.index <= committed);
        let Some(first) = placed.next() else {
            return Ok(());
        };
        // Between them are entries of Raft's own, which have no offsets.
        let before = self.place_before(message.index.max(committed) + 1);
        let mut expected = before.map(Offset::to_wire);
        for entry in std::iter::once(first).chain(placed) {
            let header = entry.entry.header();
            let base = header.base_offset;
            if expected.is_some_and(|next| next != base) {
                return Err(StepError::Malformed {
                    from: message.from,
                    what: "a batch has another offset than comes next",
                });
            }
            expected = Some(base.saturating_add(i64::from(header.record_count.max(0))));
        }
        Ok(())
    }

    /// The offset that the entry `index` of Raft's log begins at, which may have entries that are not
    /// in the log yet, or stand in the place of others that are; `None` where it is not known.
    fn place_before(&self, index: u64) -> Option<Offset> {
        let log = self.log();
        let raft_log = &self.node.raft.raft_log;
        let committed = log.commit().get();
        let mut from = index.min(log.end_index().get());
        let is_same = |index: u64| {
            let epoch = log.epoch_of(at(index)).ok();
            epoch.map(|epoch| u64::from(epoch.get())) == raft_log.term(index).ok()
        };
        while from > committed + 1 && !is_same(from - 1) {
            from -= 1;
        }
        let offset = log.end_before(at(from)).ok()?.offset;
        (from..index).try_fold(offset, |offset, index| {
            let term = raft_log.term(index).ok()?;
            let entry = self.fresh.get(&(index, term));
            let stalled = self.stalled.as_ref();
            let entry = entry.or_else(|| stalled?.entry(index));
            // Raft's own are made when they are written.
            let records = entry.map_or(0, |entry| entry.header().record_count.unsigned_abs());
            offset.checked_add(u64::from(records))
        })
    }
}
