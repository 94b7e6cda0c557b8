//! Taking the files of another replica in the place of the log.

use std::sync::Arc;

use tidelog_disk::Disk;
use tidelog_log::Log;
use tidelog_log::catch_up::{AdoptError, CatchUpSource, Old, SourceError, Staged};
use tidelog_log::state::GroupState;

use crate::catch_up::{members_of, note_of};
use crate::error::GroupError;
use crate::group::{Group, GroupStore};
use crate::storage::LogStorage;

/// Why a copy was not put into the place of a log.
#[derive(Debug)]
pub enum AdoptFailed {
    /// The log has all that the copy has. Here is the group, as it was.
    Unchanged(Box<Group>, AdoptError),
    /// The replica has to be opened again.
    Broken(GroupError),
}

impl Group {
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
}
