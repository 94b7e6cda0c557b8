use proptest::prelude::*;
use tidelog_record::{LeaderEpoch, Offset, PartitionId, RaftIndex, Timestamp, TopicId};
use tidelog_sim::SimDisk;

use super::*;
use crate::golden::golden;
use crate::segment::LogEnd;
use crate::state::{GroupKey, GroupMembers, GroupState};

fn key(partition: u32) -> GroupKey {
    let topic_id = std::array::from_fn(|n| 16 + u8::try_from(n).unwrap());
    GroupKey {
        topic_id: TopicId::from_bytes(topic_id),
        partition: PartitionId::new(partition),
    }
}

fn end() -> LogEnd {
    LogEnd {
        sequence: 2,
        position: 4096,
        offset: Offset::new(1040).unwrap(),
        index: RaftIndex::new(80),
        epoch: LeaderEpoch::new(6).unwrap(),
        chain: 0xdead_beef,
        max_timestamp: Timestamp::from_millis(1_700_000_000_900),
        log_start: Offset::new(400).unwrap(),
    }
}

fn state() -> BrokerState {
    let group = GroupState {
        incarnation: 1,
        replica_id: 4,
        term: 6,
        vote: 4,
        commit: 70,
        checkpoint: Some(end()),
    };
    BrokerState {
        identity: identity(),
        boots: 7,
        clean: false,
        groups: BTreeMap::from([(key(3), group)]),
        members: BTreeMap::new(),
    }
}

fn identity() -> DirectoryIdentity {
    DirectoryIdentity {
        cluster_id: [1; 16],
        node_id: 2,
        directory_id: [3; 16],
    }
}

fn home() -> &'static Path {
    Path::new("/state")
}

fn disk() -> Arc<dyn Disk> {
    let disk = SimDisk::new(1);
    disk.create_dir_all(home()).unwrap();
    Arc::new(disk)
}

fn put(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, OpenHow::Create).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, &[IoSlice::new(bytes)]).unwrap();
}

fn open_golden(snapshot: &str, journal: &str) -> Result<BrokerState, StateError> {
    let disk = disk();
    put(&*disk, &snapshot_path(home(), 1), &golden(snapshot));
    put(&*disk, &journal_path(home(), 1), &golden(journal));
    StateFile::open(disk, home()).map(|file| file.state())
}

#[test]
fn a_snapshot_is_as_the_golden_file_says() {
    let disk = disk();
    write_snapshot(&*disk, home(), 1, &state()).unwrap();
    let bytes = read_file(&*disk, &snapshot_path(home(), 1)).unwrap();
    assert_eq!(bytes, golden("state-snapshot_v1_one-group"));
    let read = read_snapshot(&*disk, home(), 1).unwrap().unwrap();
    assert_eq!(read, state());
}

#[test]
fn members_are_as_the_golden_file_says() {
    let disk = disk();
    let file = StateFile::create(disk.clone(), home(), identity()).unwrap();
    let members = GroupMembers {
        index: 99,
        voters: vec![4, 5],
        learners: vec![6],
        voters_outgoing: vec![7],
        learners_next: Vec::new(),
        auto_leave: true,
    };
    let record = StateRecord::Members(key(3), members.clone());
    file.record(&[record], false).unwrap();
    let expected = golden("state-journal_v1_members");
    let bytes = read_file(&*disk, &journal_path(home(), 1)).unwrap();
    assert_eq!(bytes[..expected.len()], expected);
    let opened = open_golden("state-snapshot_v1_one-group", "state-journal_v1_members").unwrap();
    assert_eq!(opened.members, BTreeMap::from([(key(3), members)]));
}

#[test]
fn a_journal_is_as_the_golden_file_says() {
    let disk = disk();
    let file = StateFile::create(disk.clone(), home(), identity()).unwrap();
    file.record(&[StateRecord::Boot(8)], true).unwrap();
    let records = [
        StateRecord::Checkpoint(key(3), end()),
        StateRecord::GroupRemoved(key(4)),
    ];
    file.record(&records, false).unwrap();
    file.record(&[StateRecord::Clean], false).unwrap();
    let expected = golden("state-journal_v1_records");
    let bytes = read_file(&*disk, &journal_path(home(), 1)).unwrap();
    assert_eq!(bytes[..expected.len()], expected);
    assert!(bytes[expected.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(bytes.len() as u64, JOURNAL_LEN);

    let opened = open_golden("state-snapshot_v1_one-group", "state-journal_v1_records").unwrap();
    assert_eq!(
        opened,
        BrokerState {
            boots: 8,
            clean: true,
            ..state()
        }
    );
    let opened = open_golden("state-snapshot_v1_one-group", "state-journal_v1_complete").unwrap();
    assert_eq!(
        opened,
        BrokerState {
            boots: 8,
            ..state()
        }
    );
}

#[test]
fn a_journal_is_ended_as_the_golden_file_says() {
    let disk = disk();
    let file = StateFile::create(disk.clone(), home(), identity()).unwrap();
    file.record(&[StateRecord::Boot(8)], true).unwrap();
    drop(file);
    StateFile::open(disk.clone(), home()).unwrap();
    let expected = golden("state-journal_v1_complete");
    let bytes = read_file(&*disk, &journal_path(home(), 1)).unwrap();
    assert_eq!(bytes[..expected.len()], expected);
}

#[test]
fn files_that_are_wrong_fail_with_the_named_error() {
    let good = ("state-snapshot_v1_one-group", "state-journal_v1_records");
    let cases = [
        ("state-snapshot_v1_corrupt_count", good.1, "not complete"),
        ("state-snapshot_v1_corrupt_end", good.1, "not complete"),
        (
            "state-snapshot_v1_corrupt_generation",
            good.1,
            "not complete",
        ),
        ("state-snapshot_v1_corrupt_version", good.1, "newer version"),
        (good.0, "state-journal_v1_corrupt_synced", "was synced"),
        (good.0, "state-journal_v1_corrupt_kind", "newer version"),
    ];
    for (snapshot, journal, expected) in cases {
        match open_golden(snapshot, journal) {
            Err(StateError::Damaged { what, .. }) => {
                assert!(what.contains(expected), "{snapshot}, {journal}: {what}");
            }
            other => panic!("{snapshot}, {journal}: {other:?}"),
        }
    }
}

fn any_record() -> impl Strategy<Value = StateRecord> {
    let group = |n: u64| GroupState {
        incarnation: 9,
        replica_id: n,
        term: !n,
        vote: n / 3,
        commit: n,
        checkpoint: None,
    };
    (0..6, any::<u32>(), any::<u64>()).prop_map(move |(kind, partition, n)| match kind {
        0 => StateRecord::Identity(DirectoryIdentity {
            node_id: partition,
            ..identity()
        }),
        1 => StateRecord::Boot(n),
        2 => StateRecord::Clean,
        3 => StateRecord::Group(key(partition), group(n)),
        4 => StateRecord::Checkpoint(
            key(partition),
            LogEnd {
                sequence: n,
                ..end()
            },
        ),
        _ => StateRecord::GroupRemoved(key(partition)),
    })
}

proptest! {
    #[test]
    fn records_come_back_as_they_went(
        records in prop::collection::vec(any_record(), 0..20),
        generation: u64,
    ) {
        let mut bytes = FILE_HEADER.to_vec();
        for record in &records {
            record.encode(generation, &mut bytes);
        }
        let mut read = Vec::new();
        let (at, ended) = read_records(&bytes, generation, |record| read.push(record));
        prop_assert!(matches!(ended, Ended::Blank));
        prop_assert_eq!((at, read), (bytes.len(), records));
        // Of another generation none is believed.
        let (_, ended) = read_records(&bytes, generation ^ 1, |_| panic!("a foreign record"));
        prop_assert!(bytes.len() == FILE_HEADER.len() || matches!(ended, Ended::Damaged));
    }

    #[test]
    fn no_bytes_make_the_record_decoder_panic(
        mut bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..400),
            Just(golden("state-journal_v1_records")),
            Just(golden("state-snapshot_v1_one-group")),
        ],
        change: prop::sample::Index,
        value: u8,
        kind: u8,
        with_header: bool,
    ) {
        if !bytes.is_empty() {
            let at = change.index(bytes.len());
            bytes[at] = value;
        }
        if with_header && bytes.len() > 8 {
            bytes[..8].copy_from_slice(&FILE_HEADER);
        }
        let (at, _) = read_records(&bytes, 1, |_| {});
        prop_assert!(at <= bytes.len());
        was_synced_past(&bytes, at, 1);
        prop_assert!(StateRecord::decode(kind, &bytes).is_none_or(|_| bytes.len() < 100));
    }
}

#[test]
fn a_journal_whose_header_was_cut_off_at_any_byte_counts_as_empty() {
    for written in 0..FILE_HEADER.len() {
        let disk = SimDisk::new(1);
        let dir = Path::new("/state");
        let file = StateFile::create(Arc::new(disk.clone()), dir, identity()).unwrap();
        let before = file.state();
        drop(file);
        let mut header = [0; 8];
        header[..written].copy_from_slice(&FILE_HEADER[..written]);
        disk.overwrite(&journal_path(dir, 1), 0, &header);
        let file = StateFile::open(Arc::new(disk.clone()), dir).unwrap();
        assert_eq!(file.state(), before, "{written} bytes of the header");
    }
}
