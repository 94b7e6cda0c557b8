#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{Buf, Bytes};
use proptest::prelude::*;
use prost::Message as _;
use prost::encoding::encode_varint;
use tidelog_log::state::GroupKey;
use tidelog_proto::internal::v1::{self as wire, PeerEnd, PeerFrame};
use tidelog_record::{PartitionId, TopicId, crc32c};
use tidelog_replica::catch_up::{CatchUp, CatchUpLetter};
use tidelog_replica::eraftpb::{Entry, EntryType, Message};
use tidelog_replica::{Letter, Payload, Received, replica_of, stub_of};

use crate::Identity;
use crate::convert::{delivery, hello, push_files, push_raft};
use crate::frame::{ENTRIES_MAX, Frame, FrameError, LETTERS_MAX, NOTE_BYTES_MAX, NOTES_MAX};
use crate::wire::PREFACE;

fn key(partition: u32) -> GroupKey {
    GroupKey {
        topic_id: TopicId::from_bytes([9; 16]),
        partition: PartitionId::new(partition),
    }
}

/// From broker 1 to broker 2.
fn letter(message: Message, payloads: &[Bytes]) -> Letter {
    Letter {
        key: key(3),
        incarnation: 1,
        message: Message {
            from: replica_of(1, 0),
            to: replica_of(2, 7),
            ..message
        },
        payloads: payloads.iter().cloned().map(Payload::Bytes).collect(),
        receipt: false,
    }
}

fn files(what: CatchUp) -> CatchUpLetter {
    CatchUpLetter {
        key: key(4),
        incarnation: 2,
        from: replica_of(1, 3),
        to: replica_of(2, 0),
        what,
    }
}

fn entry(index: u64, kind: EntryType, data: Bytes) -> Entry {
    Entry {
        index,
        term: 7,
        entry_type: kind as i32,
        data,
        ..Entry::default()
    }
}

/// An empty entry, a batch and a change of members.
fn append(batch: &Bytes) -> Letter {
    let message = Message {
        msg_type: 3,
        term: 7,
        log_term: 6,
        index: 10,
        commit: 9,
        entries: vec![
            entry(11, EntryType::EntryNormal, Bytes::new()),
            entry(12, EntryType::EntryNormal, stub_of(batch.len()).unwrap()),
            entry(
                13,
                EntryType::EntryConfChangeV2,
                Bytes::from_static(b"change"),
            ),
        ],
        ..Message::default()
    };
    letter(message, std::slice::from_ref(batch))
}

/// A frame without the length that goes before it.
fn encoded(frame: &Frame) -> Bytes {
    let mut pieces = frame.pieces();
    let len = pieces.get_u32_le() as usize;
    assert_eq!(len, pieces.remaining());
    pieces.copy_to_bytes(len)
}

/// What arrives of these.
fn sent(raft: Vec<Letter>, about_files: Vec<CatchUpLetter>) -> (Vec<Received>, Vec<CatchUpLetter>) {
    let mut frame = Frame::default();
    for letter in raft {
        push_raft(&mut frame, letter);
    }
    for letter in about_files {
        push_files(&mut frame, letter);
    }
    let decoded = Frame::decode(encoded(&frame)).unwrap();
    let delivery = delivery(decoded, 1, 2).unwrap();
    (delivery.raft, delivery.files)
}

/// The change that leaves a joint configuration has no content.
#[test]
fn an_empty_change_of_members_stays_one() {
    let entries = vec![
        entry(11, EntryType::EntryConfChangeV2, Bytes::new()),
        entry(12, EntryType::EntryNormal, Bytes::new()),
    ];
    let message = Message {
        msg_type: 3,
        term: 7,
        index: 10,
        entries: entries.clone(),
        ..Message::default()
    };
    let (raft, _) = sent(vec![letter(message, &[])], Vec::new());
    assert_eq!(raft[0].message.entries, entries);
}

#[test]
fn what_is_said_arrives_as_it_was() {
    let batch = Bytes::from_static(b"not really a batch");
    let said = append(&batch);
    let heartbeat = letter(
        Message {
            msg_type: 8,
            term: 9,
            commit: 4,
            context: Bytes::from_static(b"ctx"),
            reject: true,
            reject_hint: 5,
            commit_term: 3,
            priority: -1,
            ..Message::default()
        },
        &[],
    );
    let whats = [
        CatchUp::Needed { first_index: 77 },
        CatchUp::Ask,
        CatchUp::Manifest(Bytes::from_static(b"manifest")),
        CatchUp::AskPart {
            manifest: 1,
            file: 2,
            position: 3,
            len: 4,
        },
        CatchUp::Part {
            manifest: 5,
            file: 6,
            position: 7,
            bytes: Bytes::from_static(b"bytes"),
        },
        CatchUp::Gone,
    ];
    let about_files: Vec<_> = whats.into_iter().map(files).collect();
    let asking = Letter {
        receipt: true,
        ..said.clone()
    };
    let letters = vec![said.clone(), heartbeat.clone(), asking];
    let (raft, arrived) = sent(letters, about_files.clone());
    assert_eq!(arrived, about_files);
    let receipts: Vec<bool> = raft.iter().map(|one| one.receipt).collect();
    assert_eq!(receipts, [false, false, true]);
    assert_eq!(raft[0].message, said.message);
    assert_eq!(raft[0].payloads, [batch]);
    assert_eq!((raft[0].key, raft[0].incarnation), (key(3), 1));
    assert_eq!(raft[1].message, heartbeat.message);
    assert!(raft[1].payloads.is_empty());
}

#[test]
fn the_bytes_of_a_frame_are_these() {
    let mut frame = Frame::default();
    push_raft(&mut frame, append(&Bytes::from_static(b"BATCH")));
    push_files(
        &mut frame,
        files(CatchUp::Part {
            manifest: 0x0102_0304,
            file: 1,
            position: 2,
            bytes: Bytes::from_static(b"PART"),
        }),
    );
    frame.meta.ping = 300;
    let hex: String = encoded(&frame)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, include_str!("golden_frame.hex").trim());
}

/// A field behind all others of its letter.
#[test]
fn the_bytes_of_a_receipt_are_these() {
    let of = |receipt| {
        let mut frame = Frame::default();
        let said = letter(Message::default(), &[]);
        push_raft(&mut frame, Letter { receipt, ..said });
        frame.meta.raft[0].encode_to_vec()
    };
    assert_eq!(of(true), [&of(false)[..], &[0x88, 1, 1]].concat());
}

/// Two versions in one cluster: the older one does without what it does not know.
#[test]
fn what_a_newer_version_adds_is_passed_over() {
    let batch = Bytes::from_static(b"not really a batch");
    let said = append(&batch);
    let mut frame = Frame::default();
    push_raft(&mut frame, said.clone());
    // Fields 500 and 501, a number and two bytes.
    let added: [u8; 8] = [0xa0, 0x1f, 7, 0xaa, 0x1f, 2, b'h', b'i'];
    let mut of_raft = frame.meta.raft[0].encode_to_vec();
    of_raft.extend(added);
    let mut meta = vec![2 << 3 | 2];
    encode_varint(of_raft.len() as u64, &mut meta);
    meta.extend([&of_raft[..], &added].concat());
    let mut bytes = u32::try_from(meta.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend([&meta[..], &batch].concat());
    let sum = crc32c(&[&bytes]).to_le_bytes();
    let decoded = Frame::decode([&sum[..], &bytes].concat().into()).unwrap();
    let arrived = delivery(decoded, 1, 2).unwrap();
    assert_eq!(arrived.raft[0].message, said.message);
    assert_eq!(arrived.raft[0].payloads, [batch]);
}

/// What a link begins with, and the last frame of a side that refuses.
#[test]
fn the_bytes_of_a_link_are_these() {
    let own = Identity {
        process_id: [4; 16],
        cluster_id: *b"cluster-of-tests",
        node_id: 1,
        directory_id: *b"directory-of-one",
    };
    let mut refusal = Frame::default();
    refusal.meta.end = Some(PeerEnd {
        cause: "NO".to_owned(),
        refused: true,
    });
    let mut bytes = PREFACE.to_vec();
    for frame in [hello(&own, 2), refusal] {
        let mut pieces = frame.pieces();
        bytes.extend(pieces.copy_to_bytes(pieces.remaining()));
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden_link.hex").trim());
}

#[test]
fn the_bytes_of_a_frame_with_notes_are_these() {
    let mut frame = Frame::default();
    frame.meta.notes = vec![Bytes::from_static(b"NOTE"), Bytes::new()];
    push_raft(&mut frame, append(&Bytes::from_static(b"BATCH")));
    let hex: String = encoded(&frame)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, include_str!("golden_frame_notes.hex").trim());
}

#[test]
fn notes_arrive_in_order_and_too_many_or_too_long_ones_are_refused() {
    let with = |notes: Vec<Bytes>| {
        let mut frame = Frame::default();
        frame.meta.notes = notes;
        delivery(Frame::decode(encoded(&frame))?, 1, 2)
    };
    let notes = vec![
        Bytes::from_static(b"first"),
        Bytes::new(),
        Bytes::from(vec![7; NOTE_BYTES_MAX]),
    ];
    assert_eq!(with(notes.clone()).unwrap().notes, notes);
    let most = vec![Bytes::from_static(b"x"); NOTES_MAX];
    assert_eq!(with(most.clone()).unwrap().notes, most);
    let refused = [
        vec![Bytes::from_static(b"x"); NOTES_MAX + 1],
        vec![Bytes::from(vec![7; NOTE_BYTES_MAX + 1])],
    ];
    for notes in refused {
        let error = with(notes).unwrap_err();
        assert!(matches!(error, FrameError::Senseless(_)), "{error}");
    }
}

/// What is decoded takes much more memory than what is not.
#[test]
fn frames_that_say_too_much_are_refused_before_they_are_decoded() {
    let empty = wire::RaftLetter::default;
    let of_letters = |raft: usize, files: usize| PeerFrame {
        raft: (0..raft).map(|_| empty()).collect(),
        files: (0..files).map(|_| wire::FilesLetter::default()).collect(),
        ..PeerFrame::default()
    };
    let of_entries = |counts: &[usize]| PeerFrame {
        raft: counts
            .iter()
            .map(|count| wire::RaftLetter {
                entries: vec![wire::RaftEntry::default(); *count],
                ..empty()
            })
            .collect(),
        ..PeerFrame::default()
    };
    let decoded = |meta| {
        let payloads = Vec::new();
        Frame::decode(encoded(&Frame { meta, payloads }))
    };
    for most in [
        of_letters(LETTERS_MAX - 1, 1),
        of_entries(&[ENTRIES_MAX / 2; 2]),
    ] {
        decoded(most).unwrap();
    }
    for too_many in [
        of_letters(LETTERS_MAX, 1),
        of_letters(LETTERS_MAX + 1, 0),
        of_entries(&[ENTRIES_MAX / 2 + 1; 2]),
        of_entries(&[0, ENTRIES_MAX + 1]),
    ] {
        let refused = decoded(too_many).unwrap_err();
        assert_eq!(refused, FrameError::Senseless("it says too much at once"));
    }
}

#[test]
fn every_damaged_bit_and_every_cut_is_found() {
    let mut frame = Frame::default();
    push_raft(&mut frame, append(&Bytes::from_static(b"BATCH")));
    let good = encoded(&frame);
    for bit in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Frame::decode(bad.into()).unwrap_err(), FrameError::Checksum);
    }
    for len in 0..good.len() {
        assert!(Frame::decode(good.slice(..len)).is_err(), "{len} bytes");
    }
}

#[test]
fn letters_of_others_and_for_others_are_refused() {
    for (from, to) in [(3, 2), (1, 3)] {
        let mut about_raft = Frame::default();
        push_raft(&mut about_raft, append(&Bytes::from_static(b"BATCH")));
        let mut about_files = Frame::default();
        push_files(&mut about_files, files(CatchUp::Ask));
        for frame in [about_raft, about_files] {
            let arrived = Frame::decode(encoded(&frame)).unwrap();
            assert!(delivery(arrived, from, to).is_err());
        }
    }
}

#[test]
fn frames_whose_payloads_do_not_fit_what_they_say_are_refused() {
    let batch = Bytes::from_static(b"BATCH");
    let change: [fn(&mut Frame); 4] = [
        |frame| frame.meta.raft[0].entries[1].payload_len += 1,
        |frame| frame.meta.raft[0].entries[1].payload_len -= 1,
        |frame| frame.payloads.clear(),
        |frame| {
            frame
                .payloads
                .push(Payload::Bytes(Bytes::from_static(b"more")))
        },
    ];
    for change in change {
        let mut frame = Frame::default();
        push_raft(&mut frame, append(&batch));
        change(&mut frame);
        let refused = Frame::decode(encoded(&frame)).unwrap_err();
        assert!(matches!(refused, FrameError::Senseless(_)), "{refused}");
    }
    // An entry cannot be two things, and ids have their length.
    let change: [fn(&mut Frame); 3] = [
        |frame| frame.meta.raft[0].entries[1].change = Some(Bytes::from_static(b"x")),
        |frame| frame.meta.raft[0].topic_id = Bytes::from_static(b"short"),
        |frame| frame.meta.files[0].what = None,
    ];
    for change in change {
        let mut frame = Frame::default();
        push_raft(&mut frame, append(&batch));
        push_files(&mut frame, files(CatchUp::Ask));
        change(&mut frame);
        let decoded = Frame::decode(encoded(&frame)).unwrap();
        assert!(delivery(decoded, 1, 2).is_err());
    }
}

proptest! {
    /// Whatever bytes come, with a right checksum: no panic, and nothing believed that is not there.
    #[test]
    fn any_bytes_are_taken_or_refused(rest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = crc32c(&[&rest]).to_le_bytes().to_vec();
        bytes.extend(rest);
        if let Ok(frame) = Frame::decode(bytes.into()) {
            drop(delivery(frame, 1, 2));
        }
    }

    #[test]
    fn any_batches_arrive(lens in proptest::collection::vec(1_usize..2000, 0..20)) {
        let batches: Vec<Bytes> = lens.iter().map(|len| Bytes::from(vec![7; *len])).collect();
        let entries = batches.iter().zip(11..);
        let entries = entries.map(|(batch, index)| {
            entry(index, EntryType::EntryNormal, stub_of(batch.len()).unwrap())
        });
        let message = Message { index: 10, entries: entries.collect(), ..Message::default() };
        let (raft, _) = sent(vec![letter(message, &batches)], Vec::new());
        prop_assert_eq!(&raft[0].payloads, &batches);
    }
}
