//! What a leader is asked for: batches, a new log start, other members, and how far the log is committed.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, Message,
    MessageType,
};
use tidelog_log::state::GROUP_MEMBERS_MAX;
use tidelog_log::{InternalKind, LogEntry};
use tidelog_record::{Offset, ProducedBatch, Timestamp, TimestampType};

use crate::config::ReplicaId;
use crate::error::ProposeError;
use crate::group::{Group, Proposed, epoch};
use crate::payload::stub;
use crate::planted::Planted;

impl Group {
    fn check_leads(&self) -> Result<(), ProposeError> {
        let role = self.role();
        if !role.is_leader {
            let leader = role.leader;
            return Err(ProposeError::NotLeader { leader });
        }
        if !self.is_ready() {
            return Err(ProposeError::NotReady);
        }
        Ok(())
    }

    /// Proposes batches, each by itself: one that is refused does not keep those behind it from being
    /// taken, as the next one of its own producer.
    pub fn propose(
        &mut self,
        batches: impl IntoIterator<Item = ProducedBatch>,
        now: Timestamp,
    ) -> Vec<Result<Proposed, ProposeError>> {
        let batches = batches.into_iter();
        let mut entries = Vec::with_capacity(batches.size_hint().0);
        let results = batches
            .map(|batch| self.stage(batch, &mut entries, now))
            .collect();
        if !entries.is_empty() {
            let proposed = self.step_proposal(entries);
            // Everything that Raft refuses a proposal for was asked before.
            proposed.expect("a leader that is ready takes proposals");
        }
        results
    }

    /// Gives a batch its place, if it may have one.
    fn stage(
        &mut self,
        mut batch: ProducedBatch,
        entries: &mut Vec<Entry>,
        now: Timestamp,
    ) -> Result<Proposed, ProposeError> {
        self.check_leads()?;
        let term = self.node.raft.term;
        let stored = self.log().check_producer(&batch)?;
        let stored = stored.filter(|_| !self.config.has(Planted::DuplicateStored));
        if let Some(stored) = stored {
            let end_offset = stored.base_offset.checked_add(u64::from(stored.records));
            return Ok(Proposed {
                base_offset: stored.base_offset,
                end_offset: end_offset.ok_or(tidelog_log::AppendError::Exhausted)?,
                term,
                log_append_time: stored.log_append_time,
                is_duplicate: true,
            });
        }
        let len = batch.total_len() as u64;
        let max = self.config.uncommitted_bytes_max;
        if self.uncommitted_bytes > 0 && self.uncommitted_bytes + len > max {
            let bytes = self.uncommitted_bytes;
            return Err(ProposeError::Busy { bytes, max });
        }
        self.log().check_len(len)?;
        self.check_not_stalled()?;
        let staged = self.fresh_bytes;
        self.log_mut().make_room(staged, len, len, now)?;

        let base_offset = self.next_offset.unwrap_or(self.log().end().offset);
        let end_offset = base_offset
            .checked_add(u64::from(batch.record_count()))
            .ok_or(tidelog_log::AppendError::Exhausted)?;
        batch.stamp(base_offset, epoch(term));
        let header = batch.header();
        let is_stamped = header.attributes.timestamp_type() == TimestampType::LogAppendTime;
        let log_append_time = is_stamped.then(|| batch.max_timestamp());
        let entry = self.log_mut().note_proposed(&batch, base_offset, now);
        let index = self.node.raft.raft_log.last_index() + 1 + entries.len() as u64;
        entries.push(Entry {
            data: stub(entry.len_bytes()),
            ..Entry::default()
        });
        self.put_fresh(index, term, entry);
        self.uncommitted.push_back((index, len));
        self.uncommitted_bytes += len;
        self.next_offset = Some(end_offset);
        Ok(Proposed {
            base_offset,
            end_offset,
            term,
            log_append_time,
            is_duplicate: false,
        })
    }

    pub(crate) fn put_fresh(&mut self, index: u64, term: u64, entry: LogEntry) {
        self.fresh_bytes += entry.len_bytes() as u64;
        if let Some(before) = self.fresh.insert((index, term), entry) {
            self.fresh_bytes -= before.len_bytes() as u64;
        }
    }

    pub(crate) fn take_fresh(&mut self, index: u64, term: u64) -> Option<LogEntry> {
        let entry = self.fresh.remove(&(index, term))?;
        self.fresh_bytes -= entry.len_bytes() as u64;
        Some(entry)
    }

    /// Proposes that nothing below `to` is read again.
    ///
    /// # Errors
    /// When this replica does not lead, or is not ready; [`ProposeError::PastEnd`] when `to` is not
    /// committed yet.
    pub fn propose_log_start(&mut self, to: Offset) -> Result<(), ProposeError> {
        self.check_leads()?;
        let end = self.log().reader().committed_offset();
        if to > end {
            return Err(ProposeError::PastEnd { to, end });
        }
        let term = self.node.raft.term;
        let index = self.node.raft.raft_log.last_index() + 1;
        let end = self.log().end();
        let next_offset = self.next_offset.unwrap_or(end.offset);
        let records = next_offset.records_since(end.offset);
        let ahead = index - end.index.get();
        let kind = InternalKind::LogStart(to);
        let entry = self
            .log()
            .next_internal(kind, epoch(term), ahead, records)?;
        let entry = LogEntry::internal(&entry);
        self.check_not_stalled()?;
        let needed = self.fresh_bytes + entry.len_bytes() as u64;
        self.log_mut().make_internal_room(needed)?;
        let data = stub(entry.len_bytes());
        self.put_fresh(index, term, entry);
        let proposal = Entry {
            data,
            ..Entry::default()
        };
        self.step_proposal(vec![proposal])
            .expect("a leader that is ready takes proposals");
        Ok(())
    }

    /// Proposes other members. The context of the change is left out.
    ///
    /// # Errors
    /// When this replica does not lead, is not ready, or another change is under way; and
    /// [`ProposeError::LeaderLeaves`] when this one would be no voter any more,
    /// [`ProposeError::VotersAway`] when too few of those that would vote answer, by which the group would lose its
    /// majority for as long as they are away,
    /// [`ProposeError::TooManyMembers`] when they would be too many to be remembered.
    pub fn propose_members(&mut self, change: &ConfChangeV2) -> Result<(), ProposeError> {
        self.check_leads()?;
        self.check_not_stalled()?;
        if self.node.raft.has_pending_conf() {
            return Err(ProposeError::NotReady);
        }
        let state = &self.members().state;
        let lists = [&state.voters, &state.learners, &state.voters_outgoing];
        let count: usize = lists.iter().map(|list| list.len()).sum();
        // A change may put every voter among the outgoing ones as well, and those it is about.
        if !change.leave_joint() && 2 * count + change.changes.len() > GROUP_MEMBERS_MAX {
            return Err(ProposeError::TooManyMembers {
                max: GROUP_MEMBERS_MAX,
            });
        }
        let id = self.config.id;
        let stays = if change.leave_joint() {
            self.members().state.voters.contains(&id)
        } else {
            let is_kept = |single: &ConfChangeSingle| {
                single.node_id != id || single.change_type == ConfChangeType::AddNode as i32
            };
            change.changes.iter().all(is_kept)
        };
        if !stays {
            return Err(ProposeError::LeaderLeaves);
        }
        if !change.leave_joint() && !self.hears_majority_after(change) {
            return Err(ProposeError::VotersAway);
        }
        // Longer than this no replica takes one.
        let change = ConfChangeV2 {
            context: Bytes::new(),
            ..change.clone()
        };
        let proposed = self.node.propose_conf_change(Vec::new(), change);
        proposed.map_err(|_| ProposeError::NotReady)
    }

    /// Whether a majority of those that vote after the change was heard within the time of an election. Raft's own
    /// knowledge of that is gone each time that it counts who is there.
    fn hears_majority_after(&self, change: &ConfChangeV2) -> bool {
        let mut voters: BTreeSet<ReplicaId> = self.members().state.voters.iter().copied().collect();
        for single in &change.changes {
            if single.change_type == ConfChangeType::AddNode as i32 {
                voters.insert(single.node_id);
            } else {
                voters.remove(&single.node_id);
            }
        }
        let since = self
            .ticks
            .saturating_sub(u64::from(self.config.election_ticks));
        let is_heard = |id: &&ReplicaId| {
            let mut heard = self.heard.iter();
            **id == self.config.id || heard.any(|(from, at)| from == *id && *at >= since)
        };
        2 * voters.iter().filter(is_heard).count() > voters.len()
    }

    fn step_proposal(&mut self, entries: Vec<Entry>) -> raft::Result<()> {
        let mut message = Message {
            from: self.config.id,
            entries,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgPropose);
        let stepped = self.node.raft.step(message);
        self.draw();
        self.proposals = self.proposals.saturating_add(1);
        stepped
    }

    /// Asks for the place up to which the log was committed when this was asked, which a leader knows
    /// only once a majority has said that it leads still. Gives the number under which it comes with a
    /// later turn.
    ///
    /// # Errors
    /// When this replica does not lead, or is not ready.
    pub fn read_index(&mut self) -> Result<u64, ProposeError> {
        self.check_leads()?;
        self.last_read += 1;
        self.node.read_index(self.last_read.to_be_bytes().to_vec());
        Ok(self.last_read)
    }
}

/// A change after which these vote, these learn, and these are members no more. By a joint configuration it is left
/// only when that is asked for, which the empty change does.
pub fn members_change(
    voters: &[ReplicaId],
    learners: &[ReplicaId],
    removed: &[ReplicaId],
    is_joint: bool,
) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    for (kind, ids) in [
        (ConfChangeType::AddNode, voters),
        (ConfChangeType::AddLearnerNode, learners),
        (ConfChangeType::RemoveNode, removed),
    ] {
        let each = ids.iter().map(|id| single(kind, *id));
        change.changes.extend(each);
    }
    if is_joint {
        change.set_transition(ConfChangeTransition::Explicit);
    }
    change
}

/// One member that a change of them is about.
pub fn single(change: ConfChangeType, id: ReplicaId) -> ConfChangeSingle {
    ConfChangeSingle {
        change_type: change as i32,
        node_id: id,
    }
}
