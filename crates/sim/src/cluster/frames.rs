//! What nodes send to each other: all that one has for another after a turn goes as one frame, which is
//! delayed, lost, repeated and damaged as a whole.

use bytes::Bytes;
use tidelog_replica::{Letter, NodeId, Post, Received, StepError};

use crate::SimRng;

/// A letter on its way.
#[derive(Clone, Debug)]
pub(super) struct Mail {
    pub(super) received: Received,
    /// It is not what was sent, and must be refused.
    pub(super) is_damaged: bool,
}

/// A frame as it goes over the network.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) from: NodeId,
    pub(super) mail: Vec<Mail>,
    /// What brokers say beside what their replicas do.
    pub(super) notes: Vec<Bytes>,
    /// Which disk of its node the sender has.
    pub(super) disk: u32,
}

/// Where the part of a batch begins that its own checksum covers.
const CHECKED_FROM: usize = 21;

impl Frame {
    /// The bytes that a link would send, as the other side reads them.
    pub(super) fn new(from: NodeId, to: NodeId, raft: Vec<Letter>) -> Self {
        let post = Post {
            raft,
            ..Post::default()
        };
        Self::carry(from, to, post)
    }

    /// The same of what a broker says beside what its replicas do.
    pub(super) fn of_notes(from: NodeId, to: NodeId, notes: Vec<Bytes>) -> Self {
        let post = Post {
            notes,
            ..Post::default()
        };
        Self::carry(from, to, post)
    }

    fn carry(from: NodeId, to: NodeId, post: Post) -> Self {
        let delivery = tidelog_peer::carried(post, from, to);
        let delivery = delivery.expect("what one node says another understands");
        let mail = delivery.raft.into_iter().map(|received| Mail {
            received,
            is_damaged: false,
        });
        Self {
            from,
            mail: mail.collect(),
            notes: delivery.notes,
            disk: 0,
        }
    }

    /// How many groups it is for.
    pub(super) fn groups(&self) -> usize {
        let mut keys: Vec<_> = self.mail.iter().map(|mail| mail.received.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.len()
    }

    /// Damages what the checks of a replica have to find by themselves: a bit of a batch, a batch that is
    /// not there, or stands in the place of another. All else is the business of the checksum over the
    /// frame, and a frame that fails it is dropped: then this says no.
    pub(super) fn damage(&mut self, rng: &mut SimRng) -> bool {
        let with_batches = |mail: &&mut Mail| !mail.received.payloads.is_empty();
        let mut mail: Vec<&mut Mail> = self.mail.iter_mut().filter(with_batches).collect();
        if mail.is_empty() || rng.chance(30) {
            return false;
        }
        let at = rng.index(mail.len());
        let Mail {
            received,
            is_damaged,
        } = &mut *mail[at];
        let payloads = &mut received.payloads;
        let at = rng.index(payloads.len());
        match rng.below(4) {
            0 => drop(payloads.remove(at)),
            1 => payloads.push(payloads[at].clone()),
            2 if at > 0 => payloads.swap(at - 1, at),
            _ => {
                let mut bytes = payloads[at].to_vec();
                let position = CHECKED_FROM + rng.index(bytes.len() - CHECKED_FROM);
                bytes[position] ^= 1 << rng.below(8);
                payloads[at] = bytes.into();
            }
        }
        *is_damaged = true;
        true
    }
}

/// Whether a replica may refuse what another has sent in good faith: it speaks of what was there before
/// this replica's log was cut or opened anew, or is for a replica that the node has lost.
pub(super) fn is_late(e: &StepError) -> bool {
    let late = [
        "what it speaks of is beyond the log",
        "it is not for this replica",
    ];
    matches!(e, StepError::Malformed { what, .. } if late.contains(what))
}
