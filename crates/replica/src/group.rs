//! One replica of one group: what is asked of it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};

use raft::eraftpb::Message;
use raft::{Config, RawNode, ReadOnlyOption, StateRole};
use tidelog_log::state::GroupState;
use tidelog_log::{
    Compacted, InstallError, Log, LogEnd, LogEntry, LogOptions, Poisoned, RemovedFile,
};
use tidelog_record::{LeaderEpoch, Offset, RaftIndex, Timestamp};

use crate::config::{GroupConfig, ReplicaId};
use crate::error::GroupError;
use crate::payload::Recent;
use crate::planted::Planted;
use crate::recover::Recovering;
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

/// How far a member of a group is, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberProgress {
    /// The member.
    pub id: ReplicaId,
    /// Whether it lacks nothing, or so little of what is being written that it keeps up.
    pub is_caught_up: bool,
    /// Entries that it is not known to have durable.
    pub lag: u64,
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
    /// What is committed cannot be read for want of open files: with each tick it is tried again.
    pub(crate) waits_for_files: bool,
    /// Where the next batch begins, when some are proposed that are not written.
    pub(crate) next_offset: Option<Offset>,
    /// Batches that were proposed here and are not committed: their indexes and lengths.
    pub(crate) uncommitted: VecDeque<(u64, u64)>,
    pub(crate) uncommitted_bytes: u64,
    pub(crate) recent: Recent,
    pub(crate) held: VecDeque<Held>,
    /// Somebody waits only until a majority has written what is proposed: see [`crate::receipts`].
    pub(crate) asks_for_receipts: bool,
    /// Which leader, in which term, has asked for one, and has not got it.
    pub(crate) owes_receipt: Option<(ReplicaId, u64)>,
    /// The leader asked for one with the entries that came last.
    pub(crate) serves_content: bool,
    /// The term in which receipts came, and the last entry that each of the others has written.
    pub(crate) receipts: (u64, BTreeMap<ReplicaId, u64>),
    /// The term and the vote that were recorded last, and the commit.
    pub(crate) voted: (u64, u64),
    pub(crate) recorded_commit: LogEnd,
    /// How many times these were recorded, and how many of these are durable.
    pub(crate) states: u64,
    pub(crate) states_synced: u64,
    pub(crate) told_role: Option<Role>,
    /// The number that was given to a read last.
    pub(crate) last_read: u64,
    /// How many ticks there were, and at which of them a leader heard each of the others last.
    pub(crate) ticks: u64,
    pub(crate) heard: Vec<(ReplicaId, u64)>,
    /// Times since the last tick that something was proposed here.
    pub(crate) proposals: u32,
    /// Whether there were many of these before the last tick.
    is_busy: bool,
    /// The term in which this replica hands its leadership over, since its broker stops.
    handed_over_in: Option<u64>,
    /// Whether the leader is to be told how far the log is, though it did not ask.
    pub(crate) announces: bool,
    /// Going on alone has begun: see [`Group::begin_recovery`].
    pub(crate) recovering: Option<Recovering>,
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

/// A replica that takes entries as they come keeps up when it lacks no more of them: so many may be on
/// their way.
const KEEPS_UP_ENTRIES_MAX: u64 = 256;
/// With so many proposals from one tick to the next a group is busy: at 100 ms a tick, the next message is 25 ms away.
const BUSY_PROPOSALS: u32 = 4;
/// Bytes of entries kept for those that follow, after they were written.
const RECENT_BYTES_MAX: usize = 4 << 20;

impl Group {
    /// The replica whose log, state and members these are, as they were at its last stop.
    ///
    /// The log of a sole voter is committed as far as it is there, or up to where it may not have been one any more:
    /// nobody else has a say in it.
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
        if members.is_sole_voter(config.id) {
            // A change of members is taken as committed by Raft alone, which applies it.
            let change = log.uncommitted_change_after(at(members.index));
            let end = change.unwrap_or(log.end_index()).get();
            log.commit_to(at(end - 1));
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
            unapplied: Vec::new(),
            read_along: RefCell::default(),
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
            waits_for_files: false,
            next_offset: None,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            recent: Recent::new(RECENT_BYTES_MAX),
            held: VecDeque::new(),
            asks_for_receipts: false,
            owes_receipt: None,
            serves_content: false,
            receipts: (0, BTreeMap::new()),
            voted: (state.term, state.vote),
            recorded_commit,
            states: 0,
            states_synced: 0,
            told_role: None,
            last_read: 0,
            ticks: 0,
            heard: Vec::new(),
            proposals: 0,
            is_busy: false,
            handed_over_in: None,
            announces: false,
            recovering: None,
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
    /// or that one is no member. Whoever lacks entries that the leader has no more copies its files:
    /// raising the log start no further than this spares them that.
    pub fn known_of(&self, id: ReplicaId) -> Option<RaftIndex> {
        let raft = &self.node.raft;
        let progress = raft.prs().get(id).filter(|_| self.role().is_leader);
        progress.map(|progress| at(progress.matched))
    }

    /// How far each member is; empty where this replica does not lead.
    pub fn progress(&self) -> Vec<MemberProgress> {
        let raft = &self.node.raft;
        if !self.role().is_leader {
            return Vec::new();
        }
        let last = raft.raft_log.last_index();
        let members = raft.prs().iter().map(|(id, progress)| {
            let lag = last.saturating_sub(progress.matched);
            let keeps_up =
                progress.state == raft::ProgressState::Replicate && lag <= KEEPS_UP_ENTRIES_MAX;
            MemberProgress {
                id: *id,
                is_caught_up: lag == 0 || keeps_up || *id == self.config.id,
                lag,
            }
        });
        members.collect()
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

    /// Whether it tries with each tick to go on, for want of space or of open files.
    pub fn is_held_up(&self) -> bool {
        self.stalled.is_some() || self.waits_for_files
    }

    /// Whether there is something to do for a [turn](Self::turn).
    pub fn has_work(&self) -> bool {
        self.stalled.is_some() || self.node.has_ready() || self.could_release()
    }

    /// While entries wait for space Raft must not hear of more: it takes what it asked for last to be
    /// the end of its log.
    pub(crate) fn check_not_stalled(&self) -> Result<(), tidelog_log::AppendError> {
        let stalled = self.stalled.as_ref();
        let stalled = stalled.filter(|_| !self.config.has(Planted::StalledSteps));
        stalled.map_or(Ok(()), |stalled| Err(stalled.cause.clone()))
    }

    /// Hands the leadership over, as soon as `to` has all of the log.
    pub fn transfer_leader(&mut self, to: ReplicaId) {
        self.node.transfer_leader(to);
        self.draw();
    }

    /// Stands for election now, if this replica votes: Raft does not look.
    pub fn campaign(&mut self) {
        if self.must_wait() || !self.node.raft.promotable() {
            return;
        }
        self.node.campaign().ok();
        self.draw();
    }

    /// Whether time stands still: entries wait for space, this replica is becoming the only one, or it is
    /// the only one that votes and would lead at once, before all it has is durable, which Raft does not
    /// allow.
    pub(crate) fn must_wait(&self) -> bool {
        let raft = &self.node.raft;
        let is_behind = raft.raft_log.persisted < raft.raft_log.last_index();
        let would_lead = raft.state != StateRole::Leader && self.is_sole_voter();
        self.stalled.is_some() || self.is_recovering() || would_lead && is_behind
    }

    /// Time passed. Says whether there may be something to do for a [turn](Self::turn) because of that.
    pub fn tick(&mut self) -> bool {
        // Followers learn with the next message how far the log is committed, and messages of their own about that
        // are for times when the next is not about to come.
        self.ticks += 1;
        let was_busy = self.is_busy;
        self.is_busy = std::mem::take(&mut self.proposals) >= BUSY_PROPOSALS;
        self.node.skip_bcast_commit(self.is_busy);
        if self.must_wait() {
            return self.is_held_up();
        }
        let has_news = self.node.tick() | self.forget_leader();
        let is_calm = was_busy && !self.is_busy;
        if is_calm {
            // Nobody may have heard of the last commits.
            self.node.ping();
        }
        self.draw();
        has_news || is_calm || self.waits_for_files
    }

    /// A replica that does not vote forgets a leader that it has not heard for as long as one that votes would
    /// have waited at most. Raft leaves it to elections, in which this one has no part, and it may
    /// know none of those that vote now. Says whether it did.
    fn forget_leader(&mut self) -> bool {
        let raft = &mut self.node.raft;
        let is_over = raft.election_elapsed >= 2 * raft.election_timeout();
        let forgets = is_over && raft.leader_id != 0 && !raft.promotable();
        let forgets = forgets && raft.state == StateRole::Follower;
        if forgets {
            let term = raft.term;
            raft.become_follower(term, 0);
        }
        forgets
    }

    /// A replica cannot be reached: it is asked where its log ends before more is sent.
    pub fn unreachable(&mut self, id: ReplicaId) {
        self.node.report_unreachable(id);
    }

    /// Others can be reached that could not be: a leader is heard of at once, and what they answer tells it what
    /// they lack. Says whether there is something to do for a [turn](Self::turn).
    pub fn reachable(&mut self) -> bool {
        if self.must_wait() || !self.role().is_leader {
            return false;
        }
        self.node.ping();
        true
    }

    /// The leader is known to be gone, as by a broken connection: this replica stands for election after
    /// `delay` ticks if it hears nothing of a leader, and votes for another that does at once.
    pub fn leader_lost(&mut self, delay: u32) {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Follower {
            return;
        }
        let least = raft.election_timeout();
        let timeout = (least + delay as usize).min(2 * least - 1);
        raft.set_randomized_election_timeout(timeout);
        raft.election_elapsed = raft.election_elapsed.max(least);
    }

    /// Hands the leadership over to whoever lacks the least, if anybody is caught up. Says whether this
    /// replica leads others still, and there is somebody to wait for.
    ///
    /// It does so in one term only: a leadership that comes back is one that others hand over too, since they
    /// stop as well, and would go round among them, an election each time.
    pub fn hand_over(&mut self) -> bool {
        let id = self.config.id;
        let role = self.role();
        if !role.is_leader || !self.has_others() {
            return false;
        }
        if *self.handed_over_in.get_or_insert(role.term) != role.term {
            return false;
        }
        let voters = self.members().state.voters.clone();
        let progress = self.progress();
        let able = progress
            .iter()
            .filter(|member| member.is_caught_up && member.id != id)
            .filter(|member| voters.contains(&member.id));
        let Some(heir) = able.min_by_key(|member| member.lag).map(|member| member.id) else {
            return false;
        };
        if self.node.raft.lead_transferee.is_none() {
            self.transfer_leader(heir);
        }
        true
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
