//! Receipts: how a leader knows what a majority has written, before it is durable there.
//!
//! Raft counts what is durable, and nothing else. Whoever waits for no more than that a majority has the batch in
//! its log ([`Until::Received`](crate::Until::Received)) would wait for syncs all the same, so the leader asks for
//! receipts with its entries, and followers send one as soon as these are written: a copy of the answer that Raft
//! holds back until they are durable. What is read stops at Raft's commit, as ever.
//!
//! A receipt is about one term, and for the leader of it who asked. Its entries are those of the leader up to there,
//! so that no replica which lacks one of them gets a majority's votes as long as whoever has them keeps them: the end
//! of a process takes nothing, that of the system or its power takes what was not synced.
//!
//! What a follower has written makes room for more on its way to it, as if it were durable: otherwise a leader would
//! wait for the sync after so many messages. It does for [`AHEAD_ENTRIES_MAX`] entries beyond what is durable there: a
//! follower whose disk hangs gets no more.

use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, StateRole};
use tidelog_record::Offset;

use crate::config::ReplicaId;
use crate::error::StepError;
use crate::group::{Group, at};
use crate::message::Outgoing;
use crate::planted::Planted;
use crate::storage::LogStorage;
use crate::turn::Turn;

/// So many entries that a follower has written, and not durable, make room for more.
const AHEAD_ENTRIES_MAX: u64 = 256;

impl Group {
    /// Has followers told to send receipts, or not any more.
    pub(crate) fn ask_for_receipts(&mut self, asks: bool) {
        self.asks_for_receipts = asks;
    }

    /// Whether a leader asks for one, with entries that were just [taken](Group::step), or passed over.
    pub(crate) fn leader_asks(&mut self, leader: ReplicaId, term: u64, asks: bool) {
        let raft = &self.node.raft;
        if (raft.leader_id, raft.term) == (leader, term) {
            self.serves_content = asks;
            self.owes_receipt = asks.then_some((leader, term)).or(self.owes_receipt);
        }
    }

    /// Whether this replica follows a leader of whom nobody waits for syncs, as far as is known here.
    pub(crate) fn serves_content(&self) -> bool {
        self.serves_content && self.node.raft.state == StateRole::Follower
    }

    /// Takes a follower's word that it has written entries.
    ///
    /// # Errors
    /// [`StepError::Malformed`] where no replica would say so.
    pub(crate) fn take_receipt(&mut self, message: &Message) -> Result<(), StepError> {
        let Message {
            from, term, index, ..
        } = *message;
        let malformed = |what| Err(StepError::Malformed { from, what });
        // As a number: that of a kind that is not known is none.
        if message.msg_type != MessageType::MsgAppendResponse as i32 || message.reject {
            return malformed("it is no receipt");
        }
        if [0, self.config.id].contains(&from) || message.to != self.config.id {
            return malformed("it is not for this replica");
        }
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader || term != raft.term || raft.prs().get(from).is_none() {
            return Ok(());
        }
        if index > raft.raft_log.last_index() {
            return malformed("what it speaks of is beyond the log");
        }
        let (of_term, receipts) = &mut self.receipts;
        if *of_term != term {
            *of_term = term;
            receipts.clear();
        }
        let known = receipts.entry(from).or_default();
        *known = index.max(*known);
        self.send_on(from, index);
        Ok(())
    }

    /// Sends a follower as many entries more as may be on their way to it.
    fn send_on(&mut self, to: ReplicaId, written: u64) {
        let raft = &mut self.node.raft;
        let last = raft.raft_log.last_index();
        let Some(progress) = raft.mut_prs().get_mut(to) else {
            return;
        };
        let is_near = written <= progress.matched + AHEAD_ENTRIES_MAX;
        if progress.state != ProgressState::Replicate || !is_near {
            return;
        }
        // It has them already, whatever was to be sent next. If that is not so it says no.
        if progress.next_idx <= written {
            progress.optimistic_update(written);
        }
        progress.ins.free_to(written);
        let next_of = |raft: &raft::Raft<LogStorage>| {
            let progress = raft.prs().get(to)?;
            let sends = progress.state == ProgressState::Replicate && !progress.is_paused();
            sends.then_some(progress.next_idx)
        };
        while let Some(next) = next_of(raft).filter(|next| *next <= last) {
            raft.send_append(to);
            if next_of(raft) == Some(next) {
                break;
            }
        }
    }

    /// Of what Raft holds back, the answer that tells the leader who asked of most entries, which are written by
    /// now: within a term nothing is taken back.
    pub(crate) fn send_receipt(&mut self, held_back: &[Message], turn: &mut Turn) {
        let Some(asked_by) = self.owes_receipt else {
            return;
        };
        let is_answer = |message: &&Message| {
            let is_taken = !message.reject;
            let kind = message.get_msg_type();
            let is_for_it = (message.to, message.term) == asked_by;
            kind == MessageType::MsgAppendResponse && is_taken && is_for_it
        };
        let answers = held_back.iter().filter(is_answer);
        let Some(answer) = answers.max_by_key(|message| message.index) else {
            return;
        };
        self.owes_receipt = None;
        turn.messages.push(Outgoing {
            message: answer.clone(),
            payloads: Vec::new(),
            receipt: true,
        });
    }

    /// Where the records end that a majority has written, of what was proposed in this term; at least where
    /// those end that are committed.
    pub(crate) fn written_by_majority(&self) -> Offset {
        let committed = self.log().reader().committed_offset();
        if !self.is_ready() {
            return committed;
        }
        let raft = &self.node.raft;
        let own = self.log().end_index().get() - 1;
        let (of_term, receipts) = &self.receipts;
        let written = |id: &ReplicaId| {
            if *id == self.config.id {
                return own;
            }
            let durable = raft.prs().get(*id).map_or(0, |progress| progress.matched);
            let receipt = receipts.get(id).filter(|_| *of_term == raft.term);
            receipt.map_or(durable, |index| durable.max(*index))
        };
        let is_alone = self.config.has(Planted::WrittenByOne);
        let of_majority = |voters: &[ReplicaId]| {
            if voters.is_empty() || is_alone {
                return own;
            }
            let mut all: Vec<u64> = voters.iter().map(written).collect();
            all.sort_unstable_by(|a, b| b.cmp(a));
            all[voters.len() / 2]
        };
        let members = &self.members().state;
        let index = of_majority(&members.voters).min(of_majority(&members.voters_outgoing));
        let end = self.log().end_before(at(index.min(own) + 1));
        end.map_or(committed, |end| committed.max(end.offset))
    }
}
