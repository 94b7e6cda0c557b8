//! The state of a group in a broker's state file, which all groups of the broker share.

use std::path::Path;
use std::sync::Arc;

use tidelog_disk::Disk;
use tidelog_log::LogIdentity;
use tidelog_log::catch_up::{AdoptError, recover_swap};
use tidelog_log::state::{GroupKey, GroupMembers, GroupState, StateFile, StateRecord};
use tidelog_log::{LogEnd, Poisoned};

use crate::catch_up::members_of;
use crate::eraftpb::ConfState;
use crate::group::{Group, GroupStore};
use crate::storage::Members;

/// One group's part of a state file.
#[derive(Clone, Debug)]
pub struct StateStore {
    file: Arc<StateFile>,
    key: GroupKey,
    /// As they were recorded last.
    members: Option<GroupMembers>,
}

impl StateStore {
    /// The part of the group `key` in `file`.
    pub fn new(file: Arc<StateFile>, key: GroupKey) -> Self {
        let members = file.members(&key);
        Self { file, key, members }
    }

    /// What is known of the group; `None` for one that was never recorded. A group without recorded
    /// members has one, this replica, and all that is durable of its log is committed.
    pub fn load(&self) -> Option<(GroupState, Members)> {
        let mut state = self.file.group(&self.key)?;
        let members = match &self.members {
            Some(members) => Members::from(members),
            None => {
                state.commit = u64::MAX;
                Members::founded_by(vec![state.replica_id])
            }
        };
        Some((state, members))
    }

    /// The records for a group that was just opened or made, to be recorded and synced before it takes
    /// a turn: in one go with those of others.
    pub fn records_of(&mut self, group: &Group) -> [StateRecord; 3] {
        let (state, members) = group.to_record();
        let members = GroupMembers::from(members);
        self.members = Some(members.clone());
        let end = group.log().reader().durable();
        [
            StateRecord::Members(self.key, members),
            StateRecord::Group(self.key, state),
            StateRecord::Checkpoint(self.key, end),
        ]
    }

    /// Finishes, or takes back, a swap of the log in `dir` that a stop has interrupted: comes before it is
    /// opened, and before [`StateStore::load`].
    ///
    /// # Errors
    /// See [`recover_swap`]: the log must not be opened.
    pub fn recover_swap(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        identity: LogIdentity,
    ) -> Result<(), AdoptError> {
        recover_swap(disk, dir, identity, |manifest| {
            let known = self.file.group(&self.key);
            let members = members_of(manifest.note());
            // It was decided on by a replica with both.
            if let (Some(known), Some(members)) = (known, members) {
                let mut state = GroupState {
                    commit: manifest.commit().get(),
                    ..known
                };
                state.raise_term(&manifest.end());
                self.record(&state, &members)?;
            }
            self.checkpoint(manifest.end())?;
            self.sync()
        })?;
        Ok(())
    }

    /// Whether nothing is recorded any more.
    pub fn is_poisoned(&self) -> bool {
        self.file.poisoned().is_some()
    }

    /// Records that the log is durable up to `end`; not durable itself, which it need not be.
    ///
    /// # Errors
    /// When nothing more can be recorded.
    pub fn checkpoint(&self, end: LogEnd) -> Result<(), Poisoned> {
        let record = StateRecord::Checkpoint(self.key, end);
        self.file.record(&[record], false)
    }
}

impl GroupStore for StateStore {
    fn record(&mut self, state: &GroupState, members: &Members) -> Result<(), Poisoned> {
        let mut records = Vec::with_capacity(2);
        let members = GroupMembers::from(members);
        let is_news = self.members.as_ref() != Some(&members);
        if is_news {
            // First: should only one of the two survive, changes up to the commit are not lost.
            records.push(StateRecord::Members(self.key, members.clone()));
        }
        records.push(StateRecord::Group(self.key, *state));
        self.file.record(&records, false)?;
        if is_news {
            self.members = Some(members);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Poisoned> {
        self.file.sync()
    }

    fn replace(&mut self, end: LogEnd) -> Result<(), Poisoned> {
        self.checkpoint(end)
    }

    fn set_back(&mut self, end: LogEnd) -> Result<(), Poisoned> {
        let known = self
            .file
            .group(&self.key)
            .and_then(|group| group.checkpoint);
        // One that lies before is as true as it was.
        if known.is_some_and(|known| known.index > end.index) {
            self.checkpoint(end)?;
        }
        self.file.sync()
    }
}

impl From<&GroupMembers> for Members {
    fn from(members: &GroupMembers) -> Self {
        let GroupMembers {
            index,
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        } = members.clone();
        let state = ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        };
        Self { state, index }
    }
}

impl From<&Members> for GroupMembers {
    fn from(members: &Members) -> Self {
        let ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        } = members.state.clone();
        Self {
            index: members.index,
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        }
    }
}
