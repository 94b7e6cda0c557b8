//! The whole state in one command, so that the log before it can be trimmed.
//!
//! A long one is cut into parts, each small enough for a batch. They are one whole only if they come one
//! right after the other: whoever takes the lead in the middle begins again, or goes on without.

use crate::cluster::Cluster;
use crate::command::ClusterCommand;
use crate::topics::ReplayError;
use crate::wire::state;

/// The longest part, in bytes: well below the longest batch.
pub(crate) const PART_BYTES_MAX: usize = 512 << 10;

/// The most parts that are believed: 2 GiB.
const PARTS_MAX: u32 = 4096;

/// The parts of a snapshot so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    next: u32,
    parts: u32,
    data: Vec<u8>,
}

impl Parts {
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Cluster {
    /// The commands that stand for the whole state, to be written one right after the other. Once they
    /// are committed, everything before the first of them can be trimmed. Empty for a broker that is
    /// alone: level 0 has no snapshots.
    pub fn snapshot(&self) -> Vec<ClusterCommand> {
        self.snapshot_in(PART_BYTES_MAX)
    }

    pub(crate) fn snapshot_in(&self, part_bytes_max: usize) -> Vec<ClusterCommand> {
        if self.id.is_none() {
            return Vec::new();
        }
        let data = state::encode(self);
        let chunks: Vec<&[u8]> = data.chunks(part_bytes_max).collect();
        let parts = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        (0..)
            .zip(chunks)
            .map(|(part, data)| ClusterCommand::Snapshot {
                part,
                parts,
                data: data.to_vec(),
            })
            .collect()
    }

    /// Folding that starts here takes the state from the snapshot; otherwise both must be the same.
    pub(crate) fn apply_part(
        &mut self,
        part: u32,
        parts: u32,
        data: &[u8],
    ) -> Result<(), ReplayError> {
        if part == 0 {
            self.parts = Parts {
                next: 0,
                parts,
                data: Vec::new(),
            };
        }
        let fits = part == self.parts.next && parts == self.parts.parts && part < parts;
        if !fits || parts > PARTS_MAX {
            return Err(ReplayError("a part of a snapshot is not the next one"));
        }
        self.parts.data.extend_from_slice(data);
        self.parts.next += 1;
        if self.parts.next < parts {
            return Ok(());
        }
        let data = std::mem::take(&mut self.parts).data;
        let state = state::decode(&data)
            .map_err(|_| ReplayError("a snapshot is damaged, or of a newer version"))?;
        if *self != Self::default() && *self != state {
            return Err(ReplayError("a snapshot differs from what was folded"));
        }
        *self = state;
        Ok(())
    }
}
