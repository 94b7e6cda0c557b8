//! Going on with one replica where a majority is lost for good: never by itself, only when people say so.
//!
//! A replica that is told to takes the lead without being elected, in a term far above all that there were,
//! so that nothing which the others may have written since is taken for its own. It takes all that is
//! durable here as committed, and then changes the members until it is the only one, by entries of the log
//! as any change of members: whoever gets the log later comes to the same members.
//!
//! Until that is done it hears nobody, and time stands still for it. Then the group has its next
//! incarnation ([`GroupState::incarnation`](tidelog_log::state::GroupState)): replicas that did not take
//! part, should they not be lost after all, are not heard any more, and do not hear this one.

use raft::StateRole;
use raft::eraftpb::{ConfChangeTransition, ConfChangeType, ConfChangeV2};
use thiserror::Error;

use tidelog_log::INITIAL_EPOCH;

use crate::group::Group;
use crate::propose::single;
use crate::storage::Members;

/// The terms of an incarnation begin so far above those of the one before: whoever is lost may have had later
/// ones than are known.
const TERMS_EACH: u64 = 100_000;

/// The term below those that an incarnation of a group begins with.
pub fn first_term(incarnation: u32) -> u64 {
    u64::from(INITIAL_EPOCH.get()) + u64::from(incarnation.saturating_sub(1)) * TERMS_EACH
}

/// Why a group cannot go on with a replica alone.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecoverError {
    /// It is none of those that vote, or would not be any more with a change that is under way.
    #[error("the replica is no member of its group that could lead it")]
    NoMember,
    /// Entries that were decided on wait for space.
    #[error("the disk is full: entries that were decided on could not be written")]
    Stalled,
    /// A majority may be there after all.
    #[error(
        "the replica leads its group, or has just heard of a leader; try again in a few seconds"
    )]
    IsLed,
    /// Another one is asked for than the next.
    #[error("the group has incarnation {has}, and cannot go on in {asked}")]
    Incarnation {
        /// That of the group.
        has: u32,
        /// The one that was asked for.
        asked: u32,
    },
    /// It was begun before.
    #[error("the group is just going on without a majority; try again in a few seconds")]
    UnderWay,
    /// There are no higher ones.
    #[error("the group has no leader epochs left")]
    Exhausted,
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovering {
    /// It is to lead in the term after this one, once all that the log has is durable.
    From { term: u64, incarnation: u32 },
    /// It leads.
    Leads { incarnation: u32 },
}

impl Group {
    /// Whether this replica could go on alone: it is a member, and would be one after a change that is under
    /// way. Without a vote after it, it cannot leave the joint configuration.
    pub fn could_go_on_alone(&self) -> bool {
        let id = self.config.id;
        let state = &self.members().state;
        let is_joint = !state.voters_outgoing.is_empty();
        state.voters.contains(&id) || !is_joint && state.learners.contains(&id)
    }

    /// Whether a majority may be there: this replica leads, or has heard of a leader not long ago.
    pub(crate) fn is_led(&self) -> bool {
        let raft = &self.node.raft;
        let is_recent = raft.election_elapsed < raft.election_timeout();
        self.is_ready() || raft.state == StateRole::Follower && raft.leader_id != 0 && is_recent
    }

    /// Begins to go on with this replica alone, in the next incarnation; later turns complete it.
    ///
    /// # Errors
    /// [`RecoverError`]: nothing has changed.
    pub fn begin_recovery(&mut self, incarnation: u32) -> Result<(), RecoverError> {
        if self.stalled.is_some() {
            return Err(RecoverError::Stalled);
        }
        if !self.could_go_on_alone() {
            return Err(RecoverError::NoMember);
        }
        let term = self.node.raft.term.max(first_term(incarnation));
        if i32::try_from(term + 1).is_err() {
            return Err(RecoverError::Exhausted);
        }
        self.recovering = Some(Recovering::From { term, incarnation });
        Ok(())
    }

    /// Whether a recovery goes on.
    pub fn is_recovering(&self) -> bool {
        self.recovering.is_some()
    }

    /// Does what there is to do next for a recovery. When it is over it has failed where this replica does
    /// not lead.
    pub(crate) fn go_on_recovering(&mut self) {
        let Some(recovering) = self.recovering else {
            return;
        };
        let raft = &mut self.node.raft;
        if let Recovering::From { term, incarnation } = recovering {
            // Raft allows no leader before all it has is durable.
            if raft.raft_log.persisted == raft.raft_log.last_index() {
                raft.become_follower(term, 0);
                raft.become_candidate();
                raft.become_leader();
                self.draw();
                self.recovering = Some(Recovering::Leads { incarnation });
            }
            return;
        }
        if raft.state != StateRole::Leader {
            // A change that was under way has left it out.
            self.recovering = None;
            return;
        }
        // Nobody else has a say in it.
        let durable = raft.raft_log.persisted.min(raft.raft_log.last_index());
        raft.raft_log.commit_to(durable);
        let is_behind = raft.raft_log.applied < raft.raft_log.last_index();
        if is_behind || raft.has_pending_conf() {
            return;
        }
        let id = self.config.id;
        let state = &self.members().state;
        let is_joint = !state.voters_outgoing.is_empty();
        if !is_joint && state.voters == [id] && state.learners.is_empty() {
            self.recovering = None;
            return;
        }
        let mut change = ConfChangeV2::default();
        if !is_joint {
            let others = state.voters.iter().chain(&state.learners);
            let others = others.filter(|other| **other != id);
            change.changes = others
                .map(|other| single(ConfChangeType::RemoveNode, *other))
                .collect();
            if !state.voters.contains(&id) {
                change.changes.push(single(ConfChangeType::AddNode, id));
            }
            change.set_transition(ConfChangeTransition::Explicit);
        }
        // The empty change leaves the joint configuration.
        if let Err(e) = self.propose_members(&change) {
            tracing::warn!(error = %e, "a recovery cannot go on yet");
        }
    }

    /// The incarnation that begins with these members: it is recorded together with them.
    pub(crate) fn begins_with(&self, members: &Members) -> Option<u32> {
        match self.recovering {
            Some(Recovering::Leads { incarnation })
                if members.is_sole_voter(self.config.id) && !members.has_others(self.config.id) =>
            {
                Some(incarnation)
            }
            _ => None,
        }
    }

    /// The group has this incarnation from now on.
    pub(crate) fn set_incarnation(&mut self, incarnation: u32) {
        self.node.mut_store().state.incarnation = incarnation;
    }
}
