//! What happens next.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidelog_replica::eraftpb::Message;

use crate::SimRng;

/// A message as it goes over the network.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) message: Message,
    pub(super) payloads: Vec<Bytes>,
    pub(super) is_damaged: bool,
}

/// Where the part of a batch begins that its checksum covers.
const CHECKED_FROM: usize = 21;

impl Letter {
    /// Flips a bit of one of its batches, if it has any: of what its own checksum covers. That of the
    /// frame around it, which is the network's business, covers the rest.
    pub(super) fn damage(&mut self, rng: &mut SimRng) {
        if self.payloads.is_empty() {
            return;
        }
        let at = rng.index(self.payloads.len());
        let mut bytes = self.payloads[at].to_vec();
        let position = CHECKED_FROM + rng.index(bytes.len() - CHECKED_FROM);
        bytes[position] ^= 1 << rng.below(8);
        self.payloads[at] = bytes.into();
        self.is_damaged = true;
    }
}

#[derive(Debug)]
pub(super) enum Event {
    /// A replica is told that time has passed.
    Tick { id: u64 },
    /// A message arrives.
    Deliver {
        from: u64,
        to: u64,
        letter: Box<Letter>,
    },
    /// A sync that a replica asked for in this life of it comes to its end.
    LogSync { id: u64, life: u64 },
    /// The same of what it keeps beside its log.
    StateSync { id: u64, life: u64, recorded: u64 },
    /// A replica that stopped starts again.
    Restart { id: u64 },
    /// A replica that was paused goes on.
    Resume { id: u64 },
    /// These hear each other again.
    Heal { cuts: Vec<(u64, u64)> },
    /// Something goes wrong.
    Fault,
    /// A producer sends, or sends again, unless it has sent since this was planned.
    Send { producer: u64, plan: u64 },
}

/// Events by their time; those of one time in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Events {
    by_time: BTreeMap<(u64, u64), Event>,
    count: u64,
}

impl Events {
    pub(super) fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.by_time.insert((time, self.count), event);
    }

    pub(super) fn next_before(&mut self, deadline: u64) -> Option<(u64, Event)> {
        let ((time, count), event) = self.by_time.pop_first()?;
        if time > deadline {
            self.by_time.insert((time, count), event);
            return None;
        }
        Some((time, event))
    }
}
