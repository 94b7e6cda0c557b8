//! Messages between replicas: what leaves, and the checks on what arrives.

use bytes::Bytes;
use raft::eraftpb::{EntryType, Message, MessageType};
use tidelog_log::{EntryKind, LogEntry};

use crate::config::GroupConfig;
use crate::error::StepError;
use crate::payload::{Placed, stub};

/// A message for another replica.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// What Raft says. The data of its entries are stubs: zeros, as many as the entry has bytes.
    pub message: Message,
    /// For each entry with a stub, in their order, what it stands for: the batch as it stands in the
    /// log, in one part or two.
    pub payloads: Vec<Payload>,
    /// Of entries: whoever takes them is to say at once that they are written. Of an answer: they are written, and
    /// may not be durable yet. See `receipts.rs`.
    pub receipt: bool,
}

/// A batch on its way to another replica.
#[derive(Clone, Debug)]
pub enum Payload {
    /// As it was proposed or received: shared.
    Entry(LogEntry),
    /// As it was read from the log.
    Bytes(Bytes),
}

impl Payload {
    /// The batch in one piece; copies one that is in two.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Entry(entry) => {
                let (header, body) = entry.parts();
                [&header[..], &body[..]].concat().into()
            }
        }
    }
}

/// Appends, with room for one at first, then two, and so on: messages take hundreds of bytes, and mostly there is one
/// in a turn, while a list begins with room for four otherwise.
pub(crate) fn push_lean<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len().max(1));
    }
    list.push(item);
}

/// Whether the log keeps the entry as it is, with a stub in Raft: a batch, or an internal entry that
/// is not Raft's own.
pub(crate) fn has_payload(entry: &raft::eraftpb::Entry) -> bool {
    entry.entry_type == EntryType::EntryNormal as i32 && !entry.data.is_empty()
}

/// Checks a message from another replica, and puts stubs into the place of its batches.
pub(crate) fn check(
    message: &mut Message,
    payloads: Vec<Bytes>,
    config: &GroupConfig,
) -> Result<Vec<Placed>, StepError> {
    let from = message.from;
    let malformed = |what| StepError::Malformed { from, what };
    let Ok(kind) = MessageType::try_from(message.msg_type) else {
        return Err(malformed("its kind is not known"));
    };
    match kind {
        // Those a replica says to itself, or that are not said here: proposals go to the leader by
        // another way, and snapshots come as files. A transfer that comes to a follower makes Raft panic.
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp
        | MessageType::MsgTransferLeader
        | MessageType::MsgSnapshot => return Err(malformed("it is not for others")),
        _ => {}
    }
    if from == 0 || message.to != config.id {
        return Err(malformed("it is not for this replica"));
    }
    // Without a term Raft takes it for one of its own.
    if !(1..=u64::from(i32::MAX.unsigned_abs())).contains(&message.term) {
        return Err(malformed("its term is no leader epoch"));
    }
    let is_append = kind == MessageType::MsgAppend;
    if !is_append && !message.entries.is_empty() {
        return Err(malformed("it has entries"));
    }
    // Beyond the end of a log Raft takes the term 0 for a match.
    if is_append && message.log_term == 0 {
        return Err(malformed("the entry before its entries has no term"));
    }
    if message.request_snapshot != 0 {
        return Err(malformed("it asks for a snapshot"));
    }
    if message.snapshot.is_some() || message.index > u64::MAX / 2 || message.commit > u64::MAX / 2 {
        return Err(malformed("its fields are out of range"));
    }
    let mut payloads = payloads.into_iter();
    let mut placed = Vec::with_capacity(payloads.len());
    let mut next = message.index;
    let mut term_before = message.log_term;
    let term_max = message.term;
    for entry in &mut message.entries {
        next += 1;
        let is_normal = match EntryType::try_from(entry.entry_type) {
            Ok(EntryType::EntryNormal) => true,
            Ok(EntryType::EntryConfChangeV2) => false,
            _ => return Err(malformed("an entry's type is not known")),
        };
        if entry.index != next || entry.term < term_before || entry.term > term_max {
            return Err(malformed("its entries do not follow on each other"));
        }
        term_before = entry.term;
        if !has_payload(entry) {
            if !is_normal && entry.data.len() > CHANGE_BYTES_MAX {
                return Err(malformed("a configuration change is too long"));
            }
            continue;
        }
        let Some(bytes) = payloads.next() else {
            return Err(malformed("a batch is missing"));
        };
        if bytes.len() != entry.data.len() {
            return Err(malformed("a batch has another length than its entry"));
        }
        let checked = LogEntry::check(bytes, config.batch_bytes_max.saturating_add(BATCH_SLACK))
            .map_err(|source| StepError::Entry { from, source })?;
        if u64::try_from(checked.header().leader_epoch) != Ok(entry.term) {
            return Err(malformed("a batch has another epoch than its entry"));
        }
        if matches!(checked.kind(), EntryKind::Empty | EntryKind::ConfChange) {
            return Err(malformed("an entry of Raft's own comes as a batch"));
        }
        entry.data = stub(checked.len_bytes());
        placed.push(Placed {
            index: entry.index,
            term: entry.term,
            entry: checked,
        });
    }
    if payloads.next().is_some() {
        return Err(malformed("it has batches without entries"));
    }
    Ok(placed)
}

/// The longest configuration change, in bytes: hundreds of members.
const CHANGE_BYTES_MAX: usize = 4096;
/// What a batch was allowed to be longer when it was proposed: the limit may have been lowered since.
const BATCH_SLACK: usize = 64 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use raft::eraftpb::{Entry, Snapshot};
    use tidelog_record::{
        BatchBuilder, BatchLimits, Compression, LeaderEpoch, Offset, Timestamp, validate_produced,
    };

    use super::*;

    fn config() -> GroupConfig {
        GroupConfig {
            id: 2,
            ..GroupConfig::default()
        }
    }

    fn batch(epoch: u32) -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None);
        let now = Timestamp::from_millis(0);
        builder.push(now, None, Some(b"value"), &[]).unwrap();
        let built = builder.build().unwrap();
        let mut batch = validate_produced(built, &BatchLimits::default()).unwrap();
        batch.stamp(Offset::ZERO, LeaderEpoch::new(epoch).unwrap());
        Payload::Entry(LogEntry::batch(&batch)).to_bytes()
    }

    /// What a leader of term 7 sends behind its entry 10: its empty entry, a change and a batch.
    fn append() -> (Message, Vec<Bytes>) {
        let batch = batch(7);
        let entry = |index, entry_type: EntryType, data: Bytes| Entry {
            index,
            term: 7,
            entry_type: entry_type as i32,
            data,
            ..Entry::default()
        };
        let message = Message {
            msg_type: MessageType::MsgAppend as i32,
            from: 1,
            to: 2,
            term: 7,
            log_term: 6,
            index: 10,
            commit: 9,
            entries: vec![
                entry(11, EntryType::EntryNormal, Bytes::new()),
                entry(12, EntryType::EntryConfChangeV2, Bytes::from_static(b"x")),
                entry(13, EntryType::EntryNormal, stub(batch.len())),
            ],
            ..Message::default()
        };
        (message, vec![batch])
    }

    #[test]
    fn what_a_leader_sends_is_taken() {
        let (mut message, payloads) = append();
        let placed = check(&mut message, payloads, &config()).unwrap();
        assert_eq!(placed.len(), 1);
        assert_eq!((placed[0].index, placed[0].term), (13, 7));
        assert_eq!(placed[0].entry.kind(), EntryKind::Batch);
    }

    type Change = fn(&mut Message, &mut Vec<Bytes>);

    #[test]
    fn what_no_replica_sends_is_refused_by_name() {
        let wrong: &[(&str, Change)] = &[
            ("kind is not known", |m, _| m.msg_type = 99),
            ("not for others", |m, _| m.set_msg_type(MessageType::MsgHup)),
            ("not for others", |m, _| {
                m.set_msg_type(MessageType::MsgPropose)
            }),
            ("not for others", |m, _| {
                m.set_msg_type(MessageType::MsgSnapshot)
            }),
            ("not for others", |m, _| {
                m.set_msg_type(MessageType::MsgReadIndex)
            }),
            ("not for others", |m, _| {
                m.set_msg_type(MessageType::MsgReadIndexResp)
            }),
            ("not for others", |m, _| {
                m.set_msg_type(MessageType::MsgTransferLeader);
            }),
            ("has entries", |m, _| {
                m.set_msg_type(MessageType::MsgHeartbeat)
            }),
            ("has no term", |m, _| m.log_term = 0),
            ("asks for a snapshot", |m, _| m.request_snapshot = 1),
            ("no leader epoch", |m, _| m.term = 0),
            ("not for this replica", |m, _| m.to = 3),
            ("not for this replica", |m, _| m.from = 0),
            ("no leader epoch", |m, _| m.term = 1 << 31),
            ("out of range", |m, _| m.index = u64::MAX),
            ("out of range", |m, _| m.commit = u64::MAX),
            ("out of range", |m, _| {
                m.snapshot = Some(Snapshot::default())
            }),
            ("type is not known", |m, _| m.entries[2].entry_type = 9),
            ("type is not known", |m, _| {
                m.entries[2].set_entry_type(EntryType::EntryConfChange);
            }),
            ("do not follow", |m, _| m.entries[1].index = 14),
            ("do not follow", |m, _| m.entries[0].index = u64::MAX),
            ("do not follow", |m, _| m.entries[2].term = 8),
            ("do not follow", |m, _| m.entries[0].term = 5),
            ("too long", |m, _| m.entries[1].data = vec![0; 5000].into()),
            ("a batch is missing", |_, p| p.clear()),
            ("without entries", |_, p| p.push(batch(7))),
            ("another length", |m, _| m.entries[2].data = stub(20)),
            ("another epoch", |_, p| p[0] = batch(6)),
            ("cannot be used", |_, p| {
                let mut bytes = p[0].to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                p[0] = bytes.into();
            }),
        ];
        for (what, change) in wrong {
            let (mut message, mut payloads) = append();
            change(&mut message, &mut payloads);
            let refused = check(&mut message, payloads, &config()).unwrap_err();
            assert!(refused.to_string().contains(what), "{what}: {refused}");
        }
    }
}
