//! A turn of a group: what Raft asks for is done.

use std::collections::VecDeque;

use raft::eraftpb::{ConfChangeV2, Entry, EntryType, HardState, Message, MessageType};
use raft::{ReadState, Ready, StateRole};
use tidelog_log::{
    AppendError, EntriesError, InternalKind, LogEnd, LogEntry, ReplicateError, TruncateError,
};
use tidelog_record::Timestamp;

use crate::config::ReplicaId;
use crate::error::GroupError;
use crate::group::{Group, GroupStore, Held, Role, at, epoch};
use crate::message::{Outgoing, Payload, has_payload};
use crate::payload::Placed;
use crate::planted::Planted;
use crate::storage::{Members, is_out_of_files};

/// What came of a turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// For other replicas, in this order to each.
    pub messages: Vec<Outgoing>,
    /// Whether the log was written to: it is to be synced, and the group told by a next turn.
    pub is_log_dirty: bool,
    /// Whether state was recorded that others wait for: it is to be synced, and the group told by
    /// [`Group::state_synced`].
    pub is_state_dirty: bool,
    /// Everything before this is committed now.
    pub committed: Option<LogEnd>,
    /// Answers to [`Group::read_index`]: its number, and the entry up to which the log was committed. Whoever
    /// asked gets none once the [role](Self::role) is another.
    pub reads: Vec<(u64, u64)>,
    /// Replicas that lack entries which this one, their leader, does not have any more.
    pub behind: Vec<ReplicaId>,
    /// What this replica is now, if that changed.
    pub role: Option<Role>,
    /// Who is in the group now, if that changed.
    pub members: Option<Members>,
}

/// Entries that were decided on and could not be written, and what waits behind them.
#[derive(Debug)]
pub(crate) struct Stalled {
    unwritten: Unwritten,
    /// What is lacking.
    pub(crate) cause: AppendError,
}

impl Stalled {
    /// The entry `index`, if it is one of those.
    pub(crate) fn entry(&self, index: u64) -> Option<&LogEntry> {
        let Unwritten { last, entries, .. } = &self.unwritten;
        let behind = usize::try_from(last.checked_sub(index)?).ok()?;
        entries.iter().rev().nth(behind)
    }
}

/// What Raft asked for last, and which of its entries are not in the log yet.
#[derive(Debug)]
struct Unwritten {
    ready: Ready,
    /// The last of its entries; 0 if it had none.
    last: u64,
    entries: VecDeque<LogEntry>,
}

/// Entries with batches of so many bytes together are taken as committed at once.
const UNAPPLIED_BYTES_MAX: u64 = 4 << 20;
/// The commit is recorded when it has moved by so many bytes: what lies behind is walked by the next
/// start.
const COMMIT_RECORD_BYTES: u32 = 8 << 20;

impl Group {
    /// Does what Raft asks for, until it asks for nothing more before something is durable.
    ///
    /// Where the log has no space for entries that were decided on, all that comes behind them waits;
    /// each turn tries again, and until one succeeds the group is [stalled](Self::stalled).
    ///
    /// # Errors
    /// [`GroupError`]: the group does no more, until it is opened again.
    pub fn turn(&mut self, store: &mut dyn GroupStore, now: Timestamp) -> Result<Turn, GroupError> {
        let mut turn = Turn::default();
        loop {
            let is_released = self.release(&mut turn)?;
            self.go_on_recovering();
            self.waits_for_files = !self.read_committed()?;
            if self.waits_for_files {
                break;
            }
            let unwritten = if let Some(stalled) = self.stalled.take() {
                stalled.unwritten
            } else if self.node.has_ready() {
                let ready = self.node.ready();
                self.prepare(ready, store, &mut turn)?
            } else if is_released {
                continue;
            } else {
                break;
            };
            self.handle(unwritten, store, &mut turn, now)?;
            if self.stalled.is_some() {
                break;
            }
        }
        if !self.is_held_up() {
            // What was proposed or received and did not go in: others decided otherwise.
            self.fresh_bytes = 0;
            if self.fresh.drain().any(|(_, entry)| entry.is_noted()) {
                self.log_mut().forget_noted()?;
            }
            self.next_offset = None;
            self.owes_receipt = None;
        }
        let role = self.role();
        if self.told_role != Some(role) {
            self.told_role = Some(role);
            turn.role = Some(role);
            if !role.is_leader {
                self.uncommitted.clear();
                self.uncommitted_bytes = 0;
                self.recent.clear();
            }
        }
        let storage = self.node.mut_store();
        // What Raft did not send now after all.
        storage.read_along.get_mut().clear();
        let behind = storage.behind.take();
        if role.is_leader {
            turn.behind = behind;
        } else {
            self.announce(role, &mut turn);
        }
        self.draw();
        Ok(turn)
    }

    /// Reads what is committed and was not applied yet, which may lie in a segment that is not open any more.
    /// Says whether Raft can go on: not where there are no open files left, which there will be again.
    fn read_committed(&mut self) -> Result<bool, GroupError> {
        let raft_log = &self.node.raft.raft_log;
        let low = (raft_log.applied + 1).max(self.log().first_index().get());
        let high = raft_log.committed.min(raft_log.persisted) + 1;
        let storage = self.node.store();
        let first = storage.unapplied.first().map(|entry| entry.index);
        if low >= high || first == Some(low) {
            return Ok(true);
        }
        match storage.read(low, high, UNAPPLIED_BYTES_MAX) {
            Ok(entries) => {
                self.node.mut_store().unapplied = entries;
                Ok(true)
            }
            Err(e) if is_out_of_files(&e) => {
                tracing::warn!(error = %e, "what is committed cannot be read now");
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Tells a leader how far the log is that has no entry which follows on what it knows of: as a
    /// follower does that has taken entries.
    fn announce(&mut self, role: Role, turn: &mut Turn) {
        let Some(leader) = role
            .leader
            .filter(|_| self.announces && self.stalled.is_none())
        else {
            return;
        };
        self.announces = false;
        let index = self.durable().min(self.log().commit().get());
        let mut message = Message {
            from: self.config.id,
            to: leader,
            term: role.term,
            index,
            commit: index,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgAppendResponse);
        turn.messages.push(Outgoing {
            message,
            payloads: Vec::new(),
            receipt: false,
        });
    }

    /// Takes back what the entries of `ready` replace, and finds what they stand for.
    fn prepare(
        &mut self,
        mut ready: Ready,
        store: &mut dyn GroupStore,
        turn: &mut Turn,
    ) -> Result<Unwritten, GroupError> {
        if !ready.snapshot().is_empty() {
            let what = "a snapshot was taken from a message".to_owned();
            return Err(GroupError::Invariant(what));
        }
        let raft_entries = ready.take_entries();
        let last = raft_entries.last().map_or(0, |entry| entry.index);
        if let Some(first) = raft_entries.first().map(|entry| entry.index)
            && first < self.log().end_index().get()
        {
            self.take_back(first, store, turn)?;
        }
        let mut entries = VecDeque::with_capacity(raft_entries.len());
        let mut records = 0;
        for (ahead, entry) in (0..).zip(raft_entries) {
            let in_log = self.in_log(entry, ahead, records)?;
            records += u64::from(in_log.header().record_count.unsigned_abs());
            entries.push_back(in_log);
        }
        Ok(Unwritten {
            ready,
            last,
            entries,
        })
    }

    /// Takes back the entry `first` and those behind it. Before, all that waits to be durable is made so,
    /// and told: afterwards nothing is left that speaks of an entry that is not there any more.
    fn take_back(
        &mut self,
        first: u64,
        store: &mut dyn GroupStore,
        turn: &mut Turn,
    ) -> Result<(), GroupError> {
        self.log().sync_handle().sync()?;
        store.sync()?;
        self.states_synced = self.states;
        self.release(turn)?;
        let is_kept = self.config.has(Planted::CheckpointKept);
        let set_back = |end| if is_kept { Ok(()) } else { store.set_back(end) };
        let truncated = self.log_mut().truncate(at(first), set_back);
        truncated.map_err(|e| match e {
            TruncateError::Poisoned(poisoned) => GroupError::Poisoned(poisoned),
            e @ TruncateError::OutOfRange { .. } => GroupError::Invariant(e.to_string()),
        })?;
        self.recent.clear();
        self.node.mut_store().unapplied.clear();
        Ok(())
    }

    /// An entry of Raft's as the log has it, behind `ahead` others with so many records.
    fn in_log(&mut self, entry: Entry, ahead: u64, records: u64) -> Result<LogEntry, GroupError> {
        let (index, term) = (entry.index, entry.term);
        let in_log = if has_payload(&entry) {
            self.take_fresh(index, term).ok_or_else(|| {
                GroupError::Invariant(format!("the batch of entry {index} is not there"))
            })?
        } else {
            let kind = if entry.entry_type == EntryType::EntryNormal as i32 {
                InternalKind::RaftEmpty
            } else {
                InternalKind::RaftConfChange(entry.data)
            };
            let made = self.log().next_internal(kind, epoch(term), ahead, records);
            LogEntry::internal(&made.map_err(|e| GroupError::Invariant(e.to_string()))?)
        };
        if self.node.raft.state == StateRole::Leader && self.members().has_others(self.config.id) {
            self.recent.push(Placed {
                index,
                term,
                entry: in_log.clone(),
            });
        }
        Ok(in_log)
    }

    fn handle(
        &mut self,
        mut unwritten: Unwritten,
        store: &mut dyn GroupStore,
        turn: &mut Turn,
        now: Timestamp,
    ) -> Result<(), GroupError> {
        while !unwritten.entries.is_empty() {
            let entries = unwritten.entries.make_contiguous();
            match self.log_mut().append_entries(entries, now) {
                Ok(taken) => drop(unwritten.entries.drain(..taken)),
                Err(ReplicateError::Append(AppendError::Poisoned(poisoned))) => {
                    return Err(GroupError::Poisoned(poisoned));
                }
                Err(ReplicateError::Append(
                    cause @ (AppendError::Full { .. } | AppendError::OutOfFiles { .. }),
                )) => {
                    if self.config.has(Planted::StalledDropped) {
                        break;
                    }
                    self.stalled = Some(Stalled { unwritten, cause });
                    return Ok(());
                }
                Err(e) => return Err(GroupError::Invariant(e.to_string())),
            }
            turn.is_log_dirty = true;
        }
        let Unwritten {
            mut ready, last, ..
        } = unwritten;
        if let Some(hard_state) = ready.hs().cloned() {
            self.remember(&hard_state, store, turn)?;
        }
        for read in ready.take_read_states() {
            let ReadState { index, request_ctx } = read;
            let ticket = request_ctx.try_into().map(u64::from_be_bytes);
            turn.reads.extend(ticket.map(|ticket| (ticket, index)).ok());
        }
        let messages = ready.take_messages();
        self.send_all(messages, turn)?;
        let held_back = ready.take_persisted_messages();
        self.send_receipt(&held_back, turn);
        self.held.push_back(Held {
            number: ready.number(),
            index: last,
            states: self.states,
            messages: held_back,
        });
        let committed = ready.take_committed_entries();
        self.node.advance_append_async(ready);
        self.apply(&committed, store, turn)
    }

    /// Whether the first of what waits is durable by now.
    pub(crate) fn could_release(&self) -> bool {
        self.held.front().is_some_and(|first| {
            let is_durable =
                first.index <= self.durable() || self.config.has(Planted::AckBeforeSync);
            is_durable && first.states <= self.states_synced
        })
    }

    /// Lets go of what waited and is durable by now, in order; says whether there was any.
    fn release(&mut self, turn: &mut Turn) -> Result<bool, GroupError> {
        let mut is_released = false;
        while self.could_release()
            && let Some(first) = self.held.pop_front()
        {
            self.node.on_persist_ready(first.number);
            self.send_all(first.messages, turn)?;
            is_released = true;
        }
        Ok(is_released)
    }

    fn remember(
        &mut self,
        hard_state: &HardState,
        store: &mut dyn GroupStore,
        turn: &mut Turn,
    ) -> Result<(), GroupError> {
        let storage = self.node.mut_store();
        // Not Raft's commit, which may be ahead: what lies between would count as applied after a
        // restart, and a change of members in it be lost.
        let commit = storage.log.committed_end();
        storage.state.commit = storage.log.commit().get();
        storage.state.term = hard_state.term;
        storage.state.vote = hard_state.vote;
        let mut state = storage.state;
        // A commit that is forgotten is learned again; a vote must not be.
        let voted = (state.term, state.vote);
        let is_vote = voted != self.voted;
        let known = self.recorded_commit;
        let is_far = commit.sequence != known.sequence
            || commit.position.saturating_sub(known.position) > COMMIT_RECORD_BYTES;
        if !is_vote && !is_far {
            return Ok(());
        }
        if self.config.has(Planted::VoteForgotten) {
            (state.term, state.vote) = (5, 0);
        }
        store.record(&state, &storage.members)?;
        self.recorded_commit = commit;
        if is_vote && !self.config.has(Planted::VoteBeforeSync) {
            self.voted = voted;
            self.states += 1;
            turn.is_state_dirty = true;
        }
        Ok(())
    }

    /// Takes entries as committed.
    fn apply(
        &mut self,
        committed: &[Entry],
        store: &mut dyn GroupStore,
        turn: &mut Turn,
    ) -> Result<(), GroupError> {
        let Some(last) = committed.last().map(|entry| entry.index) else {
            return Ok(());
        };
        let known = self.members().index;
        for entry in committed {
            // What was remembered of the members may be ahead of the commit that was.
            let is_change = entry.entry_type == EntryType::EntryConfChangeV2 as i32;
            if is_change && entry.index > known {
                let change = ConfChangeV2::decode_bytes(&entry.data);
                let change = change.map_err(|e| GroupError::Invariant(e.to_string()))?;
                let state = self.node.apply_conf_change(&change);
                let state = state.map_err(|e| GroupError::Invariant(e.to_string()))?;
                let index = entry.index;
                self.step_down_if_removed();
                let members = Members { state, index };
                if let Some(incarnation) = self.begins_with(&members) {
                    self.set_incarnation(incarnation);
                }
                if !self.config.has(Planted::MembersForgotten) {
                    self.node.mut_store().members = members.clone();
                }
                turn.members = Some(members);
            }
        }
        let end = self.log().end_before(at(last + 1));
        let raises_start = end.is_ok_and(|end| end.log_start > self.log().reader().log_start());
        if turn.members.is_some() || raises_start {
            // Forgotten, members would be those of before, and the log start would go back.
            let storage = self.node.mut_store();
            storage.state.commit = storage.state.commit.max(last);
            if turn.members.is_some() || !self.config.has(Planted::LogStartForgotten) {
                let storage = self.node.store();
                store.record(&storage.state, &storage.members)?;
                store.sync()?;
                self.states_synced = self.states;
            }
        }
        let upto = if self.config.has(Planted::CommitAhead) {
            self.log().end_index().get() - 1
        } else {
            last
        };
        turn.committed = Some(self.log_mut().commit_to(at(upto)));
        self.committed(last);
        self.recent.forget_to(last);
        self.node.advance_apply_to(last);
        self.node.mut_store().unapplied.clear();
        Ok(())
    }

    /// A leader that is no member any more leads on in Raft's eyes, and has no place in its own books:
    /// the next entry to become durable would end in a panic.
    fn step_down_if_removed(&mut self) {
        let id = self.config.id;
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(id).is_none() {
            raft.become_follower(raft.term, 0);
        }
    }

    /// Puts messages among those to be sent. Raft makes its next ones in their list: each has hundreds of bytes.
    fn send_all(&mut self, mut messages: Vec<Message>, turn: &mut Turn) -> Result<(), GroupError> {
        turn.messages.reserve_exact(messages.len());
        for message in messages.drain(..) {
            self.send(message, turn)?;
        }
        let next = &mut self.node.raft.msgs;
        if next.is_empty() && next.capacity() < messages.capacity() {
            *next = messages;
        }
        Ok(())
    }

    /// Puts a message among those to be sent, with the batches of its entries.
    fn send(&mut self, message: Message, turn: &mut Turn) -> Result<(), GroupError> {
        let batches = message.entries.iter().filter(|entry| has_payload(entry));
        let mut payloads = Vec::with_capacity(batches.count());
        let mut at_entry = 0;
        while let Some(entry) = message.entries.get(at_entry) {
            at_entry += 1;
            if !has_payload(entry) {
                continue;
            }
            if let Some(recent) = self.recent.get(entry.index, entry.term) {
                payloads.push(Payload::Entry(recent.clone()));
                continue;
            }
            let along = &self.node.store().read_along;
            if let Some(bytes) = along.borrow_mut().take(entry.index, entry.term) {
                payloads.push(Payload::Bytes(bytes));
                continue;
            }
            // From the log, all at once.
            let end = message
                .entries
                .last()
                .map_or(entry.index, |last| last.index)
                + 1;
            let read = self.log().read_entries(at(entry.index), at(end), u64::MAX);
            let read = match read {
                Ok(read) => read,
                // Taken back or removed since the message was made: the receiver is told anew.
                Err(EntriesError::Gone { .. } | EntriesError::NotYet { .. }) => return Ok(()),
                // As if it were lost on its way.
                Err(e) if is_out_of_files(&e) => {
                    tracing::warn!(error = %e, "batches to be sent cannot be read now");
                    return Ok(());
                }
                Err(e @ EntriesError::Read(_)) => return Err(e.into()),
            };
            for (entry, (info, bytes)) in message.entries[at_entry - 1..].iter().zip(read) {
                if u64::from(info.epoch.get()) != entry.term {
                    // Taken back since: the receiver will be told anew.
                    return Ok(());
                }
                if has_payload(entry) {
                    payloads.push(Payload::Bytes(bytes));
                }
            }
            break;
        }
        let is_asking = self.asks_for_receipts && !message.entries.is_empty();
        turn.messages.push(Outgoing {
            message,
            payloads,
            receipt: is_asking,
        });
        Ok(())
    }
}
