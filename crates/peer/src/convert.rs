//! Letters as frames have them, and back.

use bytes::{Buf, Bytes};
use tidelog_log::state::GroupKey;
use tidelog_proto::internal::v1 as wire;
use tidelog_record::{PartitionId, TopicId};
use tidelog_replica::catch_up::{CatchUp, CatchUpLetter};
use tidelog_replica::eraftpb::{Entry, EntryType, Message};
use tidelog_replica::{Delivery, Letter, NodeId, Payload, Post, Received, node_of, stub_of};
use wire::files_letter::What;

use crate::frame::{
    Frame, FrameError, LEN_LEN, LETTERS_MAX, NOTE_BYTES_MAX, NOTES_MAX, payload_len,
};
use crate::unsent::Unsent;
use crate::{Identity, PROTOCOL_VERSION};

fn len_of(len: usize) -> u32 {
    u32::try_from(len).expect("batches and parts are far below 4 GiB")
}

/// The first frame of a direction.
pub(crate) fn hello(own: &Identity, to: NodeId) -> Frame {
    Frame {
        meta: wire::PeerFrame {
            hello: Some(wire::PeerHello {
                version: PROTOCOL_VERSION,
                cluster_id: Bytes::copy_from_slice(&own.cluster_id),
                directory_id: Bytes::copy_from_slice(&own.directory_id),
                node_id: own.node_id,
                to_node_id: to,
                process_id: Bytes::copy_from_slice(&own.process_id),
            }),
            ..wire::PeerFrame::default()
        },
        payloads: Vec::new(),
    }
}

impl Frame {
    /// Whether more may be put into the frame, as what it says of payloads is bounded too.
    pub(crate) fn takes_more(&self) -> bool {
        self.meta.raft.len() + self.meta.files.len() < LETTERS_MAX
            && self.meta.notes.len() < NOTES_MAX
    }
}

/// What arrives of a post at the broker `to`: as a link sends it and the other side reads it, for those
/// who have a network of their own.
///
/// # Errors
/// [`FrameError`]: the other side would end the connection.
pub fn carried(post: Post, from: NodeId, to: NodeId) -> Result<Delivery, FrameError> {
    let mut unsent = Unsent::from(post);
    let mut all = Delivery {
        from,
        raft: Vec::new(),
        files: Vec::new(),
        notes: Vec::new(),
    };
    while !unsent.is_empty() {
        let mut frame = Frame::default();
        unsent.fill(&mut frame, CARRIED_BYTES);
        let mut pieces = frame.pieces();
        pieces.advance(LEN_LEN);
        let bytes = pieces.copy_to_bytes(pieces.remaining());
        let one = delivery(Frame::decode(bytes)?, from, to)?;
        all.raft.extend(one.raft);
        all.files.extend(one.files);
        all.notes.extend(one.notes);
    }
    Ok(all)
}

/// As a link does it by default.
const CARRIED_BYTES: usize = 1 << 20;

/// Who says so; `None` where it makes no sense.
pub(crate) fn identity_of(hello: &wire::PeerHello) -> Option<Identity> {
    Some(Identity {
        cluster_id: hello.cluster_id[..].try_into().ok()?,
        node_id: hello.node_id,
        directory_id: hello.directory_id[..].try_into().ok()?,
        // Brokers of before say none.
        process_id: hello.process_id[..].try_into().unwrap_or_default(),
    })
}

/// Puts a message of Raft behind what is in the frame.
pub(crate) fn push_raft(frame: &mut Frame, letter: Letter) {
    let Letter {
        key,
        incarnation,
        message,
        payloads,
        receipt,
    } = letter;
    let mut lens = payloads.iter().map(|payload| len_of(payload_len(payload)));
    let entries = message.entries.into_iter().map(|entry| {
        let is_change = entry.entry_type != EntryType::EntryNormal as i32;
        let has_payload = !is_change && !entry.data.is_empty();
        wire::RaftEntry {
            term: entry.term,
            payload_len: if has_payload {
                lens.next().expect("each stub has its payload")
            } else {
                0
            },
            change: is_change.then_some(entry.data),
        }
    });
    let entries = entries.collect();
    frame.meta.raft.push(wire::RaftLetter {
        topic_id: Bytes::copy_from_slice(&key.topic_id.to_bytes()),
        partition: key.partition.get(),
        incarnation,
        kind: message.msg_type.cast_unsigned(),
        from: message.from,
        to: message.to,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
        entries,
        receipt,
    });
    frame.payloads.extend(payloads);
}

/// Puts what is said about files behind what is in the frame.
pub(crate) fn push_files(frame: &mut Frame, letter: CatchUpLetter) {
    let what = match letter.what {
        CatchUp::Needed { first_index } => What::Needed(first_index),
        CatchUp::Ask => What::Ask(wire::FilesAsk {}),
        CatchUp::Manifest(bytes) => {
            let payload_len = len_of(bytes.len());
            frame.payloads.push(Payload::Bytes(bytes));
            What::Manifest(wire::FilesManifest { payload_len })
        }
        CatchUp::AskPart {
            manifest,
            file,
            position,
            len,
        } => What::AskPart(wire::FilesAskPart {
            manifest,
            file,
            position,
            len,
        }),
        CatchUp::Part {
            manifest,
            file,
            position,
            bytes,
        } => {
            let payload_len = len_of(bytes.len());
            frame.payloads.push(Payload::Bytes(bytes));
            What::Part(wire::FilesPart {
                manifest,
                file,
                position,
                payload_len,
            })
        }
        CatchUp::Gone => What::Gone(wire::FilesGone {}),
    };
    frame.meta.files.push(wire::FilesLetter {
        topic_id: Bytes::copy_from_slice(&letter.key.topic_id.to_bytes()),
        partition: letter.key.partition.get(),
        incarnation: letter.incarnation,
        from: letter.from,
        to: letter.to,
        what: Some(what),
    });
}

/// What a frame of the broker `from` has for the broker `own`.
pub(crate) fn delivery(
    frame: Frame<Bytes>,
    from: NodeId,
    own: NodeId,
) -> Result<Delivery, FrameError> {
    let mut payloads = frame.payloads.into_iter();
    let check = |letter_from: u64, letter_to: u64| {
        if node_of(letter_from) != from {
            return Err(FrameError::Senseless("a letter comes from another broker"));
        }
        if node_of(letter_to) != own {
            return Err(FrameError::Senseless("a letter is for another broker"));
        }
        Ok(())
    };
    let notes = frame.meta.notes;
    if notes.iter().any(|note| note.len() > NOTE_BYTES_MAX) {
        return Err(FrameError::Senseless("a note is too long"));
    }
    let mut raft = Vec::with_capacity(frame.meta.raft.len());
    for letter in frame.meta.raft {
        check(letter.from, letter.to)?;
        raft.push(received(letter, &mut payloads)?);
    }
    let mut files = Vec::with_capacity(frame.meta.files.len());
    for letter in frame.meta.files {
        check(letter.from, letter.to)?;
        files.push(about_files(letter, &mut payloads)?);
    }
    Ok(Delivery {
        from,
        raft,
        files,
        notes,
    })
}

fn key_of(topic_id: &[u8], partition: u32) -> Result<GroupKey, FrameError> {
    let id = topic_id.try_into();
    let id: [u8; 16] = id.map_err(|_| FrameError::Senseless("a topic id has 16 bytes"))?;
    Ok(GroupKey {
        topic_id: TopicId::from_bytes(id),
        partition: PartitionId::new(partition),
    })
}

fn received(
    letter: wire::RaftLetter,
    payloads: &mut impl Iterator<Item = Bytes>,
) -> Result<Received, FrameError> {
    let has_batch = |entry: &&wire::RaftEntry| entry.payload_len > 0;
    let count = letter.entries.iter().filter(has_batch).count();
    let mut batches = Vec::with_capacity(count);
    let mut entries = Vec::with_capacity(letter.entries.len());
    let mut index = letter.index;
    for entry in letter.entries {
        index = index.saturating_add(1);
        let is_change = entry.change.is_some();
        if is_change && entry.payload_len > 0 {
            return Err(FrameError::Senseless("an entry is a batch and a change"));
        }
        let data = if entry.payload_len > 0 {
            let batch = payloads.next();
            let batch = batch.ok_or(FrameError::Senseless("a batch is missing"))?;
            let stub = stub_of(batch.len()).ok_or(FrameError::Senseless("a batch is too long"))?;
            batches.push(batch);
            stub
        } else {
            entry.change.unwrap_or_default()
        };
        let kind = if is_change {
            EntryType::EntryConfChangeV2
        } else {
            EntryType::EntryNormal
        };
        entries.push(Entry {
            entry_type: kind as i32,
            term: entry.term,
            index,
            data,
            ..Entry::default()
        });
    }
    let message = Message {
        msg_type: letter.kind.cast_signed(),
        from: letter.from,
        to: letter.to,
        term: letter.term,
        log_term: letter.log_term,
        index: letter.index,
        commit: letter.commit,
        commit_term: letter.commit_term,
        reject: letter.reject,
        reject_hint: letter.reject_hint,
        context: letter.context,
        priority: letter.priority,
        entries,
        ..Message::default()
    };
    Ok(Received {
        key: key_of(&letter.topic_id, letter.partition)?,
        incarnation: letter.incarnation,
        message,
        payloads: batches,
        receipt: letter.receipt,
    })
}

fn about_files(
    letter: wire::FilesLetter,
    payloads: &mut impl Iterator<Item = Bytes>,
) -> Result<CatchUpLetter, FrameError> {
    let mut payload = || {
        let bytes = payloads.next();
        bytes.ok_or(FrameError::Senseless("a part of a file is missing"))
    };
    let what = match letter.what {
        Some(What::Needed(first_index)) => CatchUp::Needed { first_index },
        Some(What::Ask(_)) => CatchUp::Ask,
        Some(What::Manifest(_)) => CatchUp::Manifest(payload()?),
        Some(What::AskPart(part)) => CatchUp::AskPart {
            manifest: part.manifest,
            file: part.file,
            position: part.position,
            len: part.len,
        },
        Some(What::Part(part)) => CatchUp::Part {
            manifest: part.manifest,
            file: part.file,
            position: part.position,
            bytes: payload()?,
        },
        Some(What::Gone(_)) => CatchUp::Gone,
        None => return Err(FrameError::Senseless("a letter says nothing that is known")),
    };
    Ok(CatchUpLetter {
        key: key_of(&letter.topic_id, letter.partition)?,
        incarnation: letter.incarnation,
        from: letter.from,
        to: letter.to,
        what,
    })
}
