//! Catching up by files: what is between the log's part in it
//! ([`tidelog_log::catch_up`]) and the network.
//!
//! A leader that has no entry any more that follows on a replica's log says so: [`CatchUp::Needed`]. The
//! replica then asks it for a manifest and for one part after the other (`pulls.rs`), as fast as it is
//! allowed to; the leader answers from the files it had when it was asked (`sources.rs`). When all is
//! there, checked and durable, [`Shard::adopt`](crate::Shard::adopt) puts it into the place of the log
//! and opens the replica anew, which tells the leader how far it is now; what came meanwhile comes as
//! entries. Any answer may be lost, repeated or late; a part that is not the next one is not taken, and
//! after a while without any the same is asked for again.
//!
//! [`Copies`] is both sides of a broker. It is told of time in milliseconds and reads and writes files when it is told of a letter:
//! whoever has it runs it where waiting for a disk holds up nobody.

mod copies;
mod pulls;
mod sources;

use bytes::Bytes;
use tidelog_log::state::{GROUP_MEMBERS_MAX, GroupKey};

pub use copies::{Copies, Logs, LogsOf};
use pulls::Pulls;
pub use pulls::{PullConfig, PullTarget, Pulled};
use sources::Sources;

use crate::config::ReplicaId;
use crate::eraftpb::ConfState;
use crate::storage::Members;

/// What replicas tell each other to catch up by files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// To a replica: its log ends before the first entry that its leader has.
    Needed {
        /// That entry.
        first_index: u64,
    },
    /// What is there to be copied?
    Ask,
    /// This is. [`tidelog_log::catch_up::Manifest::encode`]d.
    Manifest(Bytes),
    /// A part of that.
    AskPart {
        /// Which manifest: [`id_of`].
        manifest: u32,
        /// The file's number.
        file: u32,
        /// Where in it, in bytes.
        position: u64,
        /// How many bytes at most.
        len: u32,
    },
    /// Here it is.
    Part {
        /// Which manifest.
        manifest: u32,
        /// The file's number.
        file: u32,
        /// Where in it, in bytes.
        position: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// What was asked for is not there any more: ask for another manifest.
    Gone,
}

/// That on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUpLetter {
    /// The group.
    pub key: GroupKey,
    /// Its incarnation.
    pub incarnation: u32,
    /// Who says so.
    pub from: ReplicaId,
    /// To whom.
    pub to: ReplicaId,
    /// What.
    pub what: CatchUp,
}

impl CatchUpLetter {
    fn answer(&self, what: CatchUp) -> Self {
        Self {
            from: self.to,
            to: self.from,
            what,
            ..*self
        }
    }
}

/// What a manifest is called while its parts are asked for.
pub fn id_of(manifest: &[u8]) -> u32 {
    crc32fast::hash(manifest)
}

/// A group's members, as a manifest's note carries them: the index of the change that made them so,
/// then each list as its length in a byte and the numbers, and whether the joint configuration is left
/// without being asked. All little-endian.
pub fn note_of(members: &Members) -> Bytes {
    let mut out = members.index.to_le_bytes().to_vec();
    let state = &members.state;
    let lists = [
        &state.voters,
        &state.learners,
        &state.voters_outgoing,
        &state.learners_next,
    ];
    for list in lists {
        out.push(u8::try_from(list.len()).expect("no more than are remembered"));
        list.iter().for_each(|id| out.extend(id.to_le_bytes()));
    }
    out.push(u8::from(state.auto_leave));
    out.into()
}

/// The members in a manifest's note; `None` where it makes no sense.
pub fn members_of(note: &[u8]) -> Option<Members> {
    let (index, mut rest) = note.split_first_chunk()?;
    let mut lists: [Vec<u64>; 4] = Default::default();
    for list in &mut lists {
        let (len, behind) = rest.split_first()?;
        let len = usize::from(*len);
        if len > GROUP_MEMBERS_MAX {
            return None;
        }
        let (ids, behind) = behind.split_at_checked(len * 8)?;
        let (ids, _) = ids.as_chunks();
        list.extend(ids.iter().map(|id| u64::from_le_bytes(*id)));
        rest = behind;
    }
    let [voters, learners, voters_outgoing, learners_next] = lists;
    let auto_leave = match rest {
        [0] => false,
        [1] => true,
        _ => return None,
    };
    let state = ConfState {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave,
    };
    let index = u64::from_le_bytes(*index);
    Some(Members { state, index }).filter(|members| !members.state.voters.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_from_a_note_and_nothing_else_does() {
        let members = Members {
            state: ConfState {
                voters: vec![1, 2, (7 << 32) | 3],
                learners: vec![4],
                voters_outgoing: vec![1, 2],
                learners_next: vec![2],
                auto_leave: true,
            },
            index: 77,
        };
        let note = note_of(&members);
        let golden = "4d0000000000000003010000000000000002000000000000000300000007000000010400000000000000\
                      0201000000000000000200000000000000010200000000000000\
                      01";
        let hex: String = note.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        assert_eq!(members_of(&note), Some(members));
        for len in 0..note.len() {
            assert_eq!(members_of(&note[..len]), None, "{len} bytes of it");
        }
        let longer = [&note[..], &[0]].concat();
        assert_eq!(members_of(&longer), None);
        let mut flagged = note.to_vec();
        *flagged.last_mut().unwrap() = 2;
        assert_eq!(members_of(&flagged), None);
        let mut many = note.to_vec();
        many[8] = 255;
        assert_eq!(members_of(&many), None);
        let nobody = note_of(&Members::default());
        assert_eq!(members_of(&nobody), None);
    }
}
