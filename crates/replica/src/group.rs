//! One replica of one group: what is asked of it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, Message, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, StateRole};
use tidelog_disk::Disk;
use tidelog_log::catch_up::{AdoptError, CatchUpSource, Old, SourceError, Staged};
use tidelog_log::state::{GROUP_MEMBERS_MAX, GroupState};
use tidelog_log::{
    Compacted, InstallError, InternalKind, Log, LogEnd, LogEntry, LogOptions, Poisoned, RemovedFile,
};
use tidelog_record::{LeaderEpoch, Offset, ProducedBatch, RaftIndex, Timestamp, TimestampType};

use crate::catch_up::{members_of, note_of};
use crate::config::{GroupConfig, ReplicaId};
use crate::error::{GroupError, ProposeError, StepError};
use crate::message;
use crate::payload::{Placed, Recent, stub};
use crate::planted::Planted;
use crate::storage::{LogStorage, Members};
use crate::turn::Stalled;

/// Where a group keeps what it must remember beside its log.
pub trait GroupStore {
    /// Records term, vote, commit and members. Not durable yet.
    ///
    /// # Errors
    /// When nothing more can be recorded.
    fn record(&mut self, state: &GroupState, members: &Members) -> Result<(), Poisoned>;

    /// Makes durable what was recorded.
    ///
    /// # Errors
    /// When it is not known to be.
    fn sync(&mut self) -> Result<(), Poisoned>;

    /// Records that another log has taken the place of this one, durable up to `end`. Not durable yet.
    ///
    /// # Errors
    /// When nothing more can be recorded.
    fn replace(&mut self, end: LogEnd) -> Result<(), Poisoned>;

    /// Records, durably, that the log is known to be durable up to `end` only: it will be cut there.
    ///
    /// # Errors
    /// When it is not known to be.
    fn set_back(&mut self, end: LogEnd) -> Result<(), Poisoned>;
}

/// Why a copy was not put into the place of a log.
#[derive(Debug)]
pub enum AdoptFailed {
    /// The log has all that the copy has. Here is the group, as it was.
    Unchanged(Box<Group>, AdoptError),
    /// The replica has to be opened again.
    Broken(GroupError),
}

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Raft's term, which is the leader epoch.
    pub term: u64,
    /// The leader in it, if it is known here.
    pub leader: Option<ReplicaId>,
    /// Whether that is this replica.
    pub is_leader: bool,
}

/// A batch that was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// It is stored when the high watermark is here, and `term` is the leader epoch still.
    pub end_offset: Offset,
    /// The term it was proposed in.
    pub term: u64,
    /// The timestamp its records get, where that is the broker's.
    pub log_append_time: Option<Timestamp>,
    /// It was there before, at `base_offset`: it waits for what was proposed then.
    pub is_duplicate: bool,
}

/// What was handled and is not known to be durable, and what waits for that.
#[derive(Debug)]
pub(crate) struct Held {
    /// Raft's number for it.
    pub(crate) number: u64,
    /// The log must be durable up to this entry.
    pub(crate) index: u64,
    /// So many votes and terms must be.
    pub(crate) states: u64,
    pub(crate) messages: Vec<Message>,
}

/// One replica of one partition.
pub struct Group {
    pub(crate) node: RawNode<LogStorage>,
    pub(crate) config: GroupConfig,
    /// Entries that were proposed or received, and not written yet, by index and term.
    pub(crate) fresh: HashMap<(u64, u64), LogEntry>,
    /// The bytes of these.
    pub(crate) fresh_bytes: u64,
    /// What could not be written for want of space; until it is, the group does nothing else.
    pub(crate) stalled: Option<Stalled>,
    /// Where the next batch begins, when some are proposed that are not written.
    pub(crate) next_offset: Option<Offset>,
    /// Batches that were proposed here and are not committed: their indexes and lengths.
    pub(crate) uncommitted: VecDeque<(u64, u64)>,
    pub(crate) uncommitted_bytes: u64,
    pub(crate) recent: Recent,
    pub(crate) held: VecDeque<Held>,
    /// The term and the vote that were recorded last, and the commit.
    pub(crate) voted: (u64, u64),
    pub(crate) recorded_commit: LogEnd,
    /// How many times these were recorded, and how many of these are durable.
    pub(crate) states: u64,
    pub(crate) states_synced: u64,
    pub(crate) told_role: Option<Role>,
    /// Numbers of reads that wait, and the last one that was given.
    pub(crate) reads: BTreeSet<u64>,
    last_read: u64,
    /// Whether the leader is to be told how far the log is, though it did not ask.
    pub(crate) announces: bool,
    /// The term, role and leader for which the election timeout was drawn.
    drawn_for: Option<(u64, StateRole, u64)>,
    rng: fastrand::Rng,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.config.id)
            .field("role", &self.role())
            .field("last", &(self.log().end_index().get() - 1))
            .field("durable", &self.durable())
            .field("commit", &self.log().commit().get())
            .field("members", self.members())
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// Bytes of entries kept for those that follow, after they were written.
const RECENT_BYTES_MAX: usize = 4 << 20;

impl Group {
    /// The replica whose log, state and members these are, as they were at its last stop.
    ///
    /// The log of a sole voter is committed as far as it is there: nobody else has a say in it.
    ///
    /// # Errors
    /// [`GroupError::Invariant`] when Raft does not take the configuration.
    pub fn open(
        config: GroupConfig,
        mut log: Log,
        mut state: GroupState,
        members: Members,
    ) -> Result<Self, GroupError> {
        // A stop may have come between the log and the state.
        state.raise_term(&log.end());
        // A change of members is taken as committed by Raft alone, which applies it.
        if members.is_sole_voter(config.id) && !log.has_uncommitted_change() {
            log.commit_to(at(log.end_index().get() - 1));
        }
        let recorded_commit = log.committed_end();
        let applied = log.commit().get();
        let raft = Config {
            id: config.id,
            election_tick: config.election_ticks as usize,
            heartbeat_tick: config.heartbeat_ticks as usize,
            applied,
            max_size_per_msg: config.message_bytes_max,
            max_inflight_msgs: config.messages_in_flight_max,
            max_committed_size_per_ready: 64 << 20,
            check_quorum: true,
            pre_vote: true,
            read_only_option: if config.has(Planted::ReadUnasked) {
                ReadOnlyOption::LeaseBased
            } else {
                ReadOnlyOption::Safe
            },
            ..Config::default()
        };
        let storage = LogStorage {
            log,
            state,
            members,
            behind: RefCell::default(),
        };
        let nowhere = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft, storage, &nowhere);
        let node = node.map_err(|e| GroupError::Invariant(e.to_string()))?;
        let mut group = Self {
            node,
            config,
            fresh: HashMap::new(),
            fresh_bytes: 0,
            stalled: None,
            next_offset: None,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            recent: Recent::new(RECENT_BYTES_MAX),
            held: VecDeque::new(),
            voted: (state.term, state.vote),
            recorded_commit,
            states: 0,
            states_synced: 0,
            told_role: None,
            reads: BTreeSet::new(),
            last_read: 0,
            announces: false,
            drawn_for: None,
            rng: fastrand::Rng::with_seed(config.seed),
        };
        group.draw();
        Ok(group)
    }

    /// The number of this replica.
    pub fn id(&self) -> ReplicaId {
        self.config.id
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.node.store().log
    }

    pub(crate) fn log_mut(&mut self) -> &mut Log {
        &mut self.node.mut_store().log
    }

    /// Who is in the group, as far as it is committed here.
    pub fn members(&self) -> &Members {
        &self.node.store().members
    }

    /// What a state file is to say of the group: its checkpoint is not set.
    pub fn to_record(&self) -> (GroupState, &Members) {
        let storage = self.node.store();
        let state = GroupState {
            commit: storage.log.commit().get(),
            checkpoint: None,
            ..storage.state
        };
        (state, &storage.members)
    }

    /// What this replica is.
    pub fn role(&self) -> Role {
        let raft = &self.node.raft;
        Role {
            term: raft.term,
            leader: Some(raft.leader_id).filter(|id| *id != 0),
            is_leader: raft.state == StateRole::Leader,
        }
    }

    /// Whether this replica leads, and knows how far the log is committed.
    pub fn is_ready(&self) -> bool {
        let raft = &self.node.raft;
        // One that was removed leads until it hears of another, and takes nothing.
        let is_leader = raft.state == StateRole::Leader && raft.prs().get(self.config.id).is_some();
        is_leader && raft.commit_to_current_term() && raft.lead_transferee.is_none()
    }

    /// Whether this replica votes, and nobody else does.
    pub fn is_sole_voter(&self) -> bool {
        self.members().is_sole_voter(self.config.id)
    }

    /// Whether there are others in the group, voters or not.
    pub fn has_others(&self) -> bool {
        self.members().has_others(self.config.id)
    }

    /// The last entry that a member is known to have durable; `None` where this replica does not lead,
    /// or that one is no member. A leader has no way to send entries that its own log has no more: its
    /// log start is not to be raised past what it knows others to have.
    pub fn known_of(&self, id: ReplicaId) -> Option<RaftIndex> {
        let raft = &self.node.raft;
        let progress = raft.prs().get(id).filter(|_| self.role().is_leader);
        progress.map(|progress| at(progress.matched))
    }

    /// So many bytes of batches may be proposed for one turn, the first of which is so long: what fits
    /// one segment, and is not too much beside what is under way. At least the first where nothing is.
    pub fn room(&self, first: u64) -> u64 {
        let max = self.config.uncommitted_bytes_max;
        let left = max.saturating_sub(self.uncommitted_bytes);
        let left = if self.uncommitted_bytes == 0 {
            left.max(first)
        } else {
            left
        };
        left.min(self.log().room_in_segment(first))
    }

    /// Why entries that were decided on cannot be written now; they will be when there is space.
    pub fn stalled(&self) -> Option<&tidelog_log::AppendError> {
        self.stalled.as_ref().map(|stalled| &stalled.cause)
    }

    /// Whether entries before `first_index` are lacking here, which the leader does not have any more. If
    /// not, the next turn tells it so.
    pub fn lacks_before(&mut self, first_index: u64) -> bool {
        let is_lacking = self.durable().min(self.log().commit().get()) + 1 < first_index;
        self.announces |= !is_lacking;
        is_lacking
    }

    /// What a replica that lacks entries copies of this one: see [`tidelog_log::catch_up`].
    ///
    /// # Errors
    /// See [`CatchUpSource::of`].
    pub fn catch_up_source(&self) -> Result<CatchUpSource, SourceError> {
        CatchUpSource::of(&self.log().reader(), note_of(self.members()))
    }

    /// Puts a complete copy of another replica's log into the place of the log, and opens the replica
    /// anew. The term and the vote stay.
    ///
    /// # Errors
    /// [`AdoptError::Behind`] comes with the group, of which nothing has changed. After any other the
    /// replica has to be opened again, with [`tidelog_log::catch_up::recover_swap`] before.
    ///
    /// # Panics
    /// When the copy is of another log, or its note is none of [`note_of`].
    pub fn adopt(
        mut self,
        disk: Arc<dyn Disk>,
        staged: Staged,
        store: &mut dyn GroupStore,
    ) -> Result<Self, AdoptFailed> {
        let commit = staged.manifest().commit();
        let members = members_of(staged.manifest().note());
        let members = members.expect("what is copied has members in its note");
        let LogStorage { log, state, .. } = &mut self.node.raft.r.raft_log.store;
        let (dir, identity, options) = (log.dir().to_owned(), log.identity(), log.options());
        // As it was recorded: what was not is not said to anybody, and is forgotten.
        let mut state = GroupState {
            commit: staged.manifest().commit().get(),
            ..*state
        };
        state.raise_term(&staged.manifest().end());
        let adopted = staged.adopt(Old::Open(log), |manifest| {
            store.record(&state, &members)?;
            store.replace(manifest.end())?;
            store.sync()
        });
        let manifest = match adopted {
            Ok(manifest) => manifest,
            Err(e @ AdoptError::Behind { .. }) => {
                // What is committed elsewhere is here too, then.
                let commit = commit.get().min(self.durable());
                self.node.raft.raft_log.commit_to(commit);
                self.announces = true;
                return Err(AdoptFailed::Unchanged(Box::new(self), e));
            }
            Err(e) => return Err(AdoptFailed::Broken(GroupError::Adopt(e.to_string()))),
        };
        let (config, states) = (self.config, self.states);
        drop(self);
        let (end, commit) = (Some(manifest.end()), manifest.commit());
        let opened = Log::open_replica(disk, &dir, identity, options, end, commit);
        let broken = |e: &dyn std::fmt::Display| GroupError::Adopt(e.to_string());
        let (log, _) = opened.map_err(|e| AdoptFailed::Broken(broken(&e)))?;
        let opened = Self::open(config, log, state, members);
        let mut group = opened.map_err(AdoptFailed::Broken)?;
        group.announces = true;
        // A sync of the state that is under way tells of those before.
        (group.states, group.states_synced) = (states, states);
        Ok(group)
    }

    /// Whether there is something to do for a [turn](Self::turn).
    pub fn has_work(&self) -> bool {
        self.stalled.is_some() || self.node.has_ready() || self.could_release()
    }

    /// While entries wait for space Raft must not hear of more: it takes what it asked for last to be
    /// the end of its log.
    fn check_not_stalled(&self) -> Result<(), tidelog_log::AppendError> {
        let stalled = self.stalled.as_ref();
        let stalled = stalled.filter(|_| !self.config.has(Planted::StalledSteps));
        stalled.map_or(Ok(()), |stalled| Err(stalled.cause.clone()))
    }

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
        let mut entries = Vec::new();
        let results = batches
            .into_iter()
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
        // Longer than this no replica takes one.
        let change = ConfChangeV2 {
            context: Bytes::new(),
            ..change.clone()
        };
        let proposed = self.node.propose_conf_change(Vec::new(), change);
        proposed.map_err(|_| ProposeError::NotReady)
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
        self.reads.insert(self.last_read);
        self.node.read_index(self.last_read.to_be_bytes().to_vec());
        Ok(self.last_read)
    }

    /// Hands the leadership over, as soon as `to` has all of the log.
    pub fn transfer_leader(&mut self, to: ReplicaId) {
        self.node.transfer_leader(to);
        self.draw();
    }

    /// Stands for election now.
    pub fn campaign(&mut self) {
        if self.must_wait() {
            return;
        }
        // Raft says no where this replica is no voter; it stays what it is.
        self.node.campaign().ok();
        self.draw();
    }

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

    /// Whether time stands still: entries wait for space, or this replica is the only one that votes
    /// and would lead at once, before all it has is durable, which Raft does not allow.
    fn must_wait(&self) -> bool {
        let raft = &self.node.raft;
        let is_behind = raft.raft_log.persisted < raft.raft_log.last_index();
        let would_lead = raft.state != StateRole::Leader && self.is_sole_voter();
        self.stalled.is_some() || would_lead && is_behind
    }

    /// Time passed.
    pub fn tick(&mut self) {
        if self.must_wait() {
            return;
        }
        self.node.tick();
        self.draw();
    }

    /// A replica cannot be reached: it is asked where its log ends before more is sent.
    pub fn unreachable(&mut self, id: ReplicaId) {
        self.node.report_unreachable(id);
    }

    /// How many votes and terms were recorded: to be asked before a sync of the state begins.
    pub fn recorded(&self) -> u64 {
        self.states
    }

    /// A sync of the state has ended well that began when so many were [recorded](Self::recorded).
    pub fn state_synced(&mut self, recorded: u64) {
        self.states_synced = self.states_synced.max(recorded);
    }

    /// Raft draws its election timeouts from the thread's own randomness, at every change of its role:
    /// each is replaced by one from the seed.
    pub(crate) fn draw(&mut self) {
        let raft = &mut self.node.raft;
        let now = (raft.term, raft.state, raft.leader_id);
        if self.drawn_for != Some(now) {
            self.drawn_for = Some(now);
            let least = self.config.election_ticks as usize;
            raft.set_randomized_election_timeout(self.rng.usize(least..2 * least));
        }
    }

    pub(crate) fn committed(&mut self, index: u64) {
        while let Some((first, len)) = self.uncommitted.front().copied()
            && first <= index
        {
            self.uncommitted.pop_front();
            self.uncommitted_bytes -= len;
        }
    }

    /// Forgets producers of which nothing was heard since `before`.
    pub fn expire_producers(&mut self, before: Timestamp, now: Timestamp) {
        self.log_mut().expire_producers(before, now);
    }

    /// Takes other options for the log.
    pub fn set_log_options(&mut self, options: LogOptions) {
        self.log_mut().set_options(options);
    }

    /// As [`Log::roll_if_aged`].
    ///
    /// # Errors
    /// Those of [`Log::roll`].
    pub fn roll_if_aged(
        &mut self,
        now: Timestamp,
        age_ms: u64,
    ) -> Result<(), tidelog_log::AppendError> {
        self.log_mut().roll_if_aged(now, age_ms)
    }

    /// As [`Log::install`].
    ///
    /// # Errors
    /// Those of [`Log::install`].
    pub fn install(&mut self, compacted: Compacted) -> Result<(), InstallError> {
        self.log_mut().install(compacted)
    }

    /// Removes again what could not be removed below the log start.
    pub fn remove_below_start(&mut self) {
        self.log_mut().remove_below_start();
    }

    /// As [`Log::take_removed`].
    pub fn take_removed(&mut self) -> Vec<RemovedFile> {
        self.log_mut().take_removed()
    }

    /// Closes the log; gives what is to be recorded of the group, with the end of the log as its
    /// checkpoint.
    ///
    /// # Errors
    /// [`Poisoned`] when a write or sync failed.
    pub fn close(self) -> Result<GroupState, Poisoned> {
        let LogStorage { log, mut state, .. } = self.node.raft.r.raft_log.store;
        state.commit = log.commit().get();
        state.checkpoint = Some(log.close()?);
        Ok(state)
    }

    /// The last entry that is durable here.
    pub(crate) fn durable(&self) -> u64 {
        let durable = self.log().reader().durable();
        durable.index.get() - 1
    }
}

/// The leader epoch of a term, which was checked to be one.
pub(crate) fn epoch(term: u64) -> LeaderEpoch {
    let term = u32::try_from(term).ok().and_then(LeaderEpoch::new);
    term.expect("terms are leader epochs")
}

pub(crate) fn at(index: u64) -> RaftIndex {
    RaftIndex::new(index)
}
