//! What comes for groups that are not here yet, as when each broker makes its replica of a new partition in its own
//! time: without it, whoever comes last hears nothing of the leader until that speaks again.

use std::collections::BTreeMap;

use raft::eraftpb::MessageType;
use tidelog_log::state::GroupKey;
use tidelog_record::Timestamp;

use super::Received;

/// For so many groups at most.
const GROUPS_MAX: usize = 4096;
/// All is forgotten every so many ticks: most of what waits for longer is for groups that are no more.
const TICKS_MAX: u32 = 20;

/// The last letter for each group that is not here.
#[derive(Debug, Default)]
pub(super) struct Early {
    letters: BTreeMap<GroupKey, (Received, Timestamp)>,
    ticks: u32,
}

impl Early {
    pub(super) fn keep(&mut self, received: Received, now: Timestamp) {
        let has_room = self.letters.len() < GROUPS_MAX || self.letters.contains_key(&received.key);
        if has_room && is_bare(&received) {
            self.letters.insert(received.key, (received, now));
        }
    }

    pub(super) fn take(&mut self, key: GroupKey) -> Option<(Received, Timestamp)> {
        self.letters.remove(&key)
    }

    /// Time has passed.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks >= TICKS_MAX {
            *self = Self::default();
        }
    }
}

/// Whether a letter is of a leader, and has no part of the frame that it came in, which would be kept with it: so are
/// heartbeats, and the first entry of a leader. What elections are about is never kept: a replica that was here before
/// may have answered to it already, and does not know that any more.
fn is_bare(received: &Received) -> bool {
    let message = &received.message;
    if ![MessageType::MsgHeartbeat, MessageType::MsgAppend].contains(&message.msg_type()) {
        return false;
    }
    let mut entries = message.entries.iter();
    let has_parts = !received.payloads.is_empty() || !message.context.is_empty();
    !has_parts && entries.all(|entry| entry.data.is_empty() && entry.context.is_empty())
}
