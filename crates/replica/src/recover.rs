//! Going on with one replica where a majority is lost for good: never by itself, only when people say so.
//!
//! A replica that is told to takes the lead without being elected, in a term far above all that are known,
//! so that nothing which the others may have written since is taken for its own. It takes all that is
//! durable here as committed, and then changes the members until it is the only one, by entries of the log
//! as any change of members: whoever gets the log later comes to the same members.
//!
//! Until that is done it hears nobody, and time stands still for it. Then the group has its next
//! incarnation ([`GroupState::incarnation`](tidelog_log::state::GroupState)): replicas that did not take
//! part, should they not be lost after all, are not heard any more, and do not hear this one.

use raft::StateRole;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use thiserror::Error;

use crate::group::Group;

/// So far above its term the group goes on: those who are lost may have had later ones.
const TERMS_ABOVE: u64 = 1_000;

/// Why a group cannot go on with a replica alone.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecoverError {
    /// It is none of those that vote, or would not be any more with a change that is under way.
    #[error("the replica is no member of its group that could lead it")]
    NoMember,
    /// Entries that were decided on wait for space.
    #[error("the disk is full: entries that were decided on could not be written")]
    Stalled,
    /// There are no higher ones.
    #[error("the group has no leader epochs left")]
    Exhausted,
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovering {
    /// It is to lead in the term after this one, once all that the log has is durable.
    From(u64),
    /// It leads.
    Leads,
}

impl Group {
    /// Begins to go on with this replica alone; later turns complete it.
    ///
    /// # Errors
    /// [`RecoverError`]: nothing has changed.
    pub fn begin_recovery(&mut self) -> Result<(), RecoverError> {
        if self.stalled.is_some() {
            return Err(RecoverError::Stalled);
        }
        let id = self.config.id;
        let state = &self.members().state;
        // Without a vote after it, the joint configuration cannot be left by this replica.
        let is_able = if state.voters_outgoing.is_empty() {
            state.voters.contains(&id) || state.learners.contains(&id)
        } else {
            state.voters.contains(&id)
        };
        if !is_able {
            return Err(RecoverError::NoMember);
        }
        let term = self.node.raft.term.saturating_add(TERMS_ABOVE);
        if i32::try_from(term + 1).is_err() {
            return Err(RecoverError::Exhausted);
        }
        self.recovering = Some(Recovering::From(term));
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
        if let Recovering::From(term) = recovering {
            // Raft allows no leader before all it has is durable.
            if raft.raft_log.persisted == raft.raft_log.last_index() {
                raft.become_follower(term, 0);
                raft.become_candidate();
                raft.become_leader();
                self.draw();
                self.recovering = Some(Recovering::Leads);
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

    /// The group has this incarnation from now on.
    pub(crate) fn set_incarnation(&mut self, incarnation: u32) {
        self.node.mut_store().state.incarnation = incarnation;
    }
}

fn single(change: ConfChangeType, id: u64) -> ConfChangeSingle {
    ConfChangeSingle {
        change_type: change as i32,
        node_id: id,
    }
}
