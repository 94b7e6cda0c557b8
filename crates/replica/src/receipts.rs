//! Receipts: how a leader knows what a majority has written, before it is durable there.
//!
//! Raft counts what is durable, and nothing else. Whoever waits for no more than that a majority has the batch in
//! its log ([`Until::Received`](crate::Until::Received)) would wait for syncs all the same, so the leader asks for
//! receipts with its entries, and followers send one as soon as these are written: a copy of the answer that Raft
//! holds back until they are durable. What is read stops at Raft's commit, as ever.
//!
//! A receipt is about one term. Its entries are those of the leader up to there, so that no replica which lacks
//! one of them gets a majority's votes as long as all who sent one have what they had: a stop of the process takes
//! nothing of it, a loss of power what was not synced.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};
use tidelog_record::Offset;

use crate::config::ReplicaId;
use crate::error::StepError;
use crate::group::{Group, at};
use crate::message::Outgoing;
use crate::planted::Planted;
use crate::turn::Turn;

impl Group {
    /// Has followers told to send receipts, or not any more.
    pub fn ask_for_receipts(&mut self, asks: bool) {
        self.asks_for_receipts = asks;
    }

    /// Whether the leader asks for one, with the entries that were just [taken](Group::step).
    pub(crate) fn leader_asks(&mut self, asks: bool) {
        self.owes_receipt |= asks;
        self.serves_content = asks;
    }

    /// Whether this replica follows a leader of whom nobody waits for syncs, as far as is known here.
    pub(crate) fn serves_content(&self) -> bool {
        self.serves_content && self.node.raft.state == StateRole::Follower
    }

    /// Takes a follower's word that it has written entries.
    ///
    /// # Errors
    /// [`StepError::Malformed`] where no replica would say so.
    pub fn take_receipt(&mut self, message: &Message) -> Result<(), StepError> {
        let Message {
            from, term, index, ..
        } = *message;
        let malformed = |what| Err(StepError::Malformed { from, what });
        if message.get_msg_type() != MessageType::MsgAppendResponse || message.reject {
            return malformed("it is no receipt");
        }
        if from == 0 || message.to != self.config.id {
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
        Ok(())
    }

    /// Of what Raft holds back, the last answer that tells the leader of entries, which are written by now.
    pub(crate) fn send_receipt(&mut self, held_back: &[Message], turn: &mut Turn) {
        let is_answer = |message: &&Message| {
            message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject
        };
        let answer = held_back.iter().rfind(is_answer);
        let Some(answer) = answer.filter(|_| self.owes_receipt) else {
            return;
        };
        self.owes_receipt = false;
        turn.messages.push(Outgoing {
            message: answer.clone(),
            payloads: Vec::new(),
            receipt: true,
        });
    }

    /// Where the records end that a majority has written, of what was proposed in this term; at least where
    /// those end that are committed.
    pub fn written_by_majority(&self) -> Offset {
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
        let of_majority = |voters: &[ReplicaId]| {
            if voters.is_empty() {
                return own;
            }
            let mut all: Vec<u64> = voters.iter().map(written).collect();
            all.sort_unstable_by(|a, b| b.cmp(a));
            all[voters.len() / 2]
        };
        let members = &self.members().state;
        let mut index = of_majority(&members.voters).min(of_majority(&members.voters_outgoing));
        if self.config.has(Planted::WrittenByOne) {
            index = own;
        }
        let end = self.log().end_before(at(index.min(own) + 1));
        end.map_or(committed, |end| committed.max(end.offset))
    }
}
