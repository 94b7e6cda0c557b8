//! The broker's state file: what was synced stays, and damage is never taken for the truth.

use std::path::{Path, PathBuf};

use tidelog_disk::{Disk, DiskOp};
use tidelog_log::state::{
    BrokerState, DirectoryIdentity, GroupKey, GroupMembers, GroupState, StateError, StateFile,
    StateRecord,
};
use tidelog_log::{LogEnd, Poisoned};
use tidelog_record::{LeaderEpoch, PartitionId, RaftIndex, TopicId};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

use crate::common::{at, dynamic, offset};

fn home() -> PathBuf {
    PathBuf::from("/data/state")
}

fn identity() -> DirectoryIdentity {
    DirectoryIdentity {
        cluster_id: [1; 16],
        node_id: 2,
        directory_id: [3; 16],
    }
}

fn create(disk: &SimDisk) -> StateFile {
    StateFile::create(dynamic(disk), &home(), identity()).unwrap()
}

fn open(disk: &SimDisk) -> Result<StateFile, StateError> {
    StateFile::open(dynamic(disk), &home())
}

fn key(n: u32) -> GroupKey {
    GroupKey {
        topic_id: TopicId::from_bytes([n as u8; 16]),
        partition: PartitionId::new(n),
    }
}

fn group(n: u64) -> GroupState {
    GroupState {
        incarnation: 1,
        replica_id: n,
        term: 5 + n,
        vote: 1,
        commit: 10 * n,
        checkpoint: None,
    }
}

fn end(n: u64) -> LogEnd {
    LogEnd {
        sequence: 1 + n,
        position: 251,
        offset: offset(n),
        index: RaftIndex::new(6 + n),
        epoch: LeaderEpoch::new(5).unwrap(),
        chain: 77,
        max_timestamp: at(-1),
        log_start: offset(n / 2),
    }
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(&home())
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .collect()
}

fn file(generation: u64, extension: &str) -> PathBuf {
    home().join(format!("{generation:020}.{extension}"))
}

/// Folds records as the state file must.
fn fold(state: &mut BrokerState, record: &StateRecord) {
    match record {
        StateRecord::Identity(identity) => state.identity = *identity,
        StateRecord::Boot(boots) => (state.boots, state.clean) = (*boots, false),
        StateRecord::Clean => state.clean = true,
        StateRecord::Group(key, group) => {
            let checkpoint = state.groups.get(key).and_then(|group| group.checkpoint);
            state.groups.insert(
                *key,
                GroupState {
                    checkpoint,
                    ..*group
                },
            );
        }
        StateRecord::Checkpoint(key, end) => {
            if let Some(group) = state.groups.get_mut(key) {
                group.checkpoint = Some(*end);
            }
        }
        StateRecord::GroupRemoved(key) => {
            state.groups.remove(key);
            state.members.remove(key);
        }
        StateRecord::Members(key, members) => {
            state.members.insert(*key, members.clone());
        }
    }
}

fn members(rng: &mut SimRng) -> GroupMembers {
    let mut list = || (0..rng.below(4)).collect();
    GroupMembers {
        voters: list(),
        learners: list(),
        voters_outgoing: list(),
        learners_next: list(),
        index: rng.below(1000),
        auto_leave: rng.chance(50),
    }
}

fn random_record(rng: &mut SimRng) -> StateRecord {
    let key = key(u32::try_from(rng.below(5)).unwrap());
    let n = rng.below(1000);
    match rng.below(14) {
        12.. => StateRecord::Members(key, members(rng)),
        0 => StateRecord::Boot(n),
        1 => StateRecord::Clean,
        2..5 => StateRecord::Group(key, group(n)),
        5 => StateRecord::GroupRemoved(key),
        _ => StateRecord::Checkpoint(key, end(n)),
    }
}

#[test]
fn what_was_recorded_is_there_after_opening() {
    let disk = SimDisk::new(1);
    let state = create(&disk);
    let made = state.state();
    assert_eq!(
        (made.identity, made.boots, made.clean),
        (identity(), 0, true)
    );
    state
        .record(
            &[StateRecord::Boot(1), StateRecord::Group(key(1), group(1))],
            true,
        )
        .unwrap();
    state
        .record(&[StateRecord::Checkpoint(key(1), end(3))], false)
        .unwrap();
    state
        .record(&[StateRecord::Checkpoint(key(9), end(3))], false)
        .unwrap();
    let expected = state.state();
    assert_eq!(expected.groups.len(), 1, "a checkpoint makes no group");
    assert_eq!(
        expected.groups[&key(1)],
        GroupState {
            checkpoint: Some(end(3)),
            ..group(1)
        }
    );
    drop(state);
    disk.kill();
    let state = open(&disk).unwrap();
    assert_eq!(state.state(), expected);
    state
        .record(&[StateRecord::Group(key(1), group(2))], true)
        .unwrap();
    let changed = state.state();
    assert_eq!(
        changed.groups[&key(1)].checkpoint,
        Some(end(3)),
        "it stays with the group"
    );
    disk.crash();
    assert_eq!(open(&disk).unwrap().state(), changed);
    assert_eq!(
        names(&disk),
        [
            "00000000000000000002.journal",
            "00000000000000000002.snapshot",
            "00000000000000000003.journal",
            "00000000000000000003.snapshot",
            "spare-1.journal",
            "spare-1.snapshot",
        ],
        "two generations and what the next is made of"
    );

    let again = StateFile::create(dynamic(&disk), &home(), identity()).unwrap_err();
    assert_eq!(again.source.kind(), std::io::ErrorKind::AlreadyExists);
    let missing = StateFile::open(dynamic(&disk), Path::new("/nowhere")).unwrap_err();
    assert!(matches!(missing, StateError::Missing { .. }));
}

#[test]
fn a_full_journal_is_folded_and_the_records_that_filled_it_are_kept() {
    let disk = SimDisk::new(1);
    let state = create(&disk);
    state
        .record(
            &[
                StateRecord::Group(key(1), group(1)),
                StateRecord::Group(key(2), group(2)),
            ],
            true,
        )
        .unwrap();
    let mut n = 0;
    // The record that does not fit any more is a removal: it must not come back by any way.
    while !names(&disk).contains(&"00000000000000000002.snapshot".to_owned()) {
        n += 1;
        let records: Vec<_> = (0..50)
            .map(|_| StateRecord::Checkpoint(key(1), end(n)))
            .chain([
                StateRecord::Group(key(2), group(n)),
                StateRecord::GroupRemoved(key(2)),
            ])
            .collect();
        state.record(&records, false).unwrap();
        assert!(n < 10_000);
    }
    let expected = state.state();
    assert_eq!(expected.groups.len(), 1);
    for seed in 0..20 {
        let disk = disk.fork(seed);
        disk.crash();
        assert_eq!(
            open(&disk).unwrap().state(),
            expected,
            "a rotation is durable"
        );
        // The newest snapshot is damaged: what is left says the same.
        let disk = disk.fork(seed);
        disk.crash();
    }
    for harm in ["flip", "cut", "remove"] {
        let disk = disk.fork(1);
        disk.crash();
        let path = file(2, "snapshot");
        match harm {
            "flip" => disk.flip_bit(&path, 40, 1),
            "cut" => disk.truncate_file(&path, 100),
            _ => disk.remove(&path),
        }
        assert_eq!(open(&disk).unwrap().state(), expected, "{harm}");
        // And what it says is a new generation, whole.
        assert_eq!(open(&disk).unwrap().state(), expected, "{harm}");
    }
}

#[test]
fn a_damaged_newest_snapshot_falls_back_only_to_what_is_complete() {
    let disk = SimDisk::new(1);
    let state = create(&disk);
    state
        .record(&[StateRecord::Group(key(1), group(1))], true)
        .unwrap();
    drop(state);
    let state = open(&disk).unwrap();
    state
        .record(&[StateRecord::Group(key(2), group(2))], true)
        .unwrap();
    let expected = state.state();
    drop(state);
    disk.kill();
    let snapshot = disk.contents(&file(2, "snapshot"));
    let len = snapshot.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    for position in 0..len {
        let disk = disk.fork(1);
        disk.flip_bit(&file(2, "snapshot"), position, 0);
        // The version bytes of another version are not damage but a refusal.
        match open(&disk) {
            Ok(state) => assert_eq!(state.state(), expected, "at {position}"),
            Err(StateError::Damaged { what, .. }) => {
                assert!(
                    (4..8).contains(&position) && what.contains("newer"),
                    "{position}: {what}"
                );
            }
            Err(e) => panic!("{e}"),
        }
    }

    // Without a complete older journal nothing is known for sure.
    let journal = disk.contents(&file(1, "journal"));
    let used = journal.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    for position in 8..used {
        let disk = disk.fork(1);
        disk.flip_bit(&file(2, "snapshot"), 40, 0);
        disk.flip_bit(&file(1, "journal"), position, 0);
        let before: Vec<_> = disk
            .files()
            .iter()
            .map(|path| disk.contents(path))
            .collect();
        let error = open(&disk).unwrap_err();
        let StateError::Damaged { path, .. } = error else {
            panic!("{error}")
        };
        assert!(path == file(2, "snapshot") || path == file(1, "journal"));
        let after: Vec<_> = disk
            .files()
            .iter()
            .map(|path| disk.contents(path))
            .collect();
        assert!(before == after, "left as they are");
        // The newest snapshot alone is enough.
        let disk = disk.fork(1);
        disk.flip_bit(&file(2, "snapshot"), 40, 0);
        assert_eq!(open(&disk).unwrap().state(), expected);
    }
    for harmed in [file(1, "snapshot"), file(1, "journal")] {
        let disk = disk.fork(1);
        disk.remove(&file(2, "snapshot"));
        disk.remove(&harmed);
        assert!(matches!(open(&disk), Err(StateError::Damaged { .. })));
    }
    let first = disk.fork(1);
    for path in [file(1, "snapshot"), file(2, "snapshot")] {
        first.flip_bit(&path, 50, 3);
    }
    assert!(matches!(open(&first), Err(StateError::Damaged { .. })));
}

#[test]
fn a_torn_journal_keeps_what_lies_before_and_a_damaged_one_is_refused() {
    let disk = SimDisk::new(1);
    let state = create(&disk);
    let mut states = vec![(8, state.state())];
    let mut position = 8;
    for n in 1..6 {
        state
            .record(&[StateRecord::Group(key(1), group(n))], n <= 3)
            .unwrap();
        let journal = disk.contents(&file(1, "journal"));
        position = journal.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
        states.push((position, state.state()));
    }
    drop(state);
    disk.kill();
    for flipped in 8..position {
        let disk = disk.fork(1);
        disk.flip_bit(&file(1, "journal"), flipped, 4);
        let (at, intact) = states.iter().rfind(|(at, _)| *at <= flipped).unwrap();
        match open(&disk) {
            Ok(state) => {
                assert!(
                    *at >= states[3].0,
                    "a synced record at {flipped} was dropped"
                );
                assert_eq!(state.state(), *intact);
            }
            Err(StateError::Damaged { path, what, .. }) => {
                assert!(*at < states[3].0, "{flipped} was never synced: {what}");
                assert_eq!(path, file(1, "journal"));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn what_a_newer_version_wrote_is_refused() {
    let disk = SimDisk::new(1);
    let state = create(&disk);
    state
        .record(&[StateRecord::Group(key(1), group(1))], true)
        .unwrap();
    drop(state);
    disk.kill();
    let journal = disk.contents(&file(1, "journal"));
    let used = journal.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&1_u64.to_be_bytes());
    crc.update(&[200, 1, 2]);
    let record = [
        &3_u32.to_be_bytes()[..],
        &crc.finalize().to_be_bytes(),
        &[200, 1, 2],
    ]
    .concat();
    let unknown = disk.fork(1);
    unknown.overwrite(&file(1, "journal"), used, &record);
    let version = disk.fork(1);
    version.overwrite(&file(1, "journal"), 5, &[2]);
    let snapshot = disk.fork(1);
    snapshot.overwrite(&file(1, "snapshot"), 5, &[2]);
    for disk in [unknown, version, snapshot] {
        let error = open(&disk).unwrap_err();
        assert!(error.to_string().contains("newer version"), "{error}");
    }
}

#[test]
fn there_may_be_very_many_groups() {
    let disk = SimDisk::new(1);
    let state = create(&disk);
    let keys = (0..12_000).map(|n| GroupKey {
        partition: PartitionId::new(n),
        ..key(1)
    });
    let records: Vec<_> = keys
        .clone()
        .flat_map(|key| {
            [
                StateRecord::Group(key, group(1)),
                StateRecord::Checkpoint(key, end(1)),
            ]
        })
        .collect();
    state.record(&records, true).unwrap();
    // On and on, so that journals fill up.
    for n in 2..6 {
        let round: Vec<_> = keys
            .clone()
            .map(|key| StateRecord::Checkpoint(key, end(n)))
            .collect();
        state.record(&round, false).unwrap();
    }
    state.sync().unwrap();
    let expected = state.state();
    assert_eq!(expected.groups.len(), 12_000);
    drop(state);
    disk.crash();
    assert_eq!(open(&disk).unwrap().state(), expected);
    assert_eq!(open(&disk).unwrap().state(), expected);
    assert_eq!(names(&disk).len(), 6);
}

/// Neither a start nor a full journal needs space that the file does not have already.
#[test]
fn on_a_full_disk_it_is_opened_again_and_again_and_takes_records() {
    let disk = SimDisk::new(1);
    drop(create(&disk));
    // Full from the first start on, and after a crash anywhere in a start.
    for crash_at in 0..60 {
        let disk = disk.fork(crash_at);
        disk.set_free_bytes(Some(0));
        let mut expected = open(&disk).unwrap().state();
        disk.fail_nth(
            OpFilter::mutating(),
            crash_at + 1,
            InjectedError::Io,
            FailMode::Forever,
        );
        drop(open(&disk));
        disk.crash();
        disk.set_free_bytes(Some(0));
        for n in 0..4 {
            let state = open(&disk).unwrap_or_else(|e| panic!("call {crash_at}, start {n}: {e}"));
            assert_eq!(state.state(), expected);
            let records = [
                StateRecord::Group(key(1), group(n)),
                StateRecord::Checkpoint(key(1), end(n)),
            ];
            state.record(&records, true).unwrap();
            expected = state.state();
        }
    }
    // A journal that gets full is folded without new space too, and so are more partitions than
    // a snapshot had room for at first.
    let state = open(&disk).unwrap();
    let groups: Vec<_> = (0..2000)
        .map(|n| GroupKey {
            partition: PartitionId::new(n),
            ..key(1)
        })
        .collect();
    for key in &groups {
        state
            .record(&[StateRecord::Group(*key, group(1))], false)
            .unwrap();
    }
    disk.set_free_bytes(Some(0));
    for n in 0..10 {
        let round: Vec<_> = groups
            .iter()
            .map(|key| StateRecord::Checkpoint(*key, end(n)))
            .collect();
        state.record(&round, true).unwrap();
    }
    let expected = state.state();
    assert!(names(&disk)[0].as_str() > "00000000000000000002");
    drop(state);
    for _ in 0..4 {
        disk.crash();
        disk.set_free_bytes(Some(0));
        assert_eq!(open(&disk).unwrap().state(), expected);
    }
}

#[test]
fn after_a_failure_nothing_more_is_recorded() {
    for op in [DiskOp::Write, DiskOp::Sync] {
        let disk = SimDisk::new(1);
        let state = create(&disk);
        state.record(&[StateRecord::Boot(1)], true).unwrap();
        disk.fail_nth(OpFilter::op(op), 1, InjectedError::Io, FailMode::Once);
        let first: Poisoned = state.record(&[StateRecord::Boot(2)], true).unwrap_err();
        for result in [
            state.record(&[StateRecord::Boot(3)], false),
            state.record(&[StateRecord::Boot(3)], true),
            state.sync(),
        ] {
            assert_eq!(result.unwrap_err().to_string(), first.to_string());
        }
        disk.crash();
        let boots = open(&disk).unwrap().state().boots;
        assert!(boots == 1 || boots == 2, "{boots}");
    }
}

/// Records at random, with rotations by reopening; the k-th call fails and power is lost, for every
/// k. What was synced is there; of the rest a prefix.
#[test]
fn synced_records_survive_power_loss_at_every_call() {
    let mut touched = true;
    let mut k = 1;
    while touched {
        let disk = SimDisk::new(k);
        disk.fail_nth(
            OpFilter::mutating(),
            k,
            InjectedError::Io,
            FailMode::Forever,
        );
        let mut rng = SimRng::new(7);
        let mut states: Vec<BrokerState> = Vec::new();
        let mut synced = None;
        let result = workload(&disk, &mut rng, &mut states, &mut synced);
        touched = disk.failures() > 0;
        assert!(
            touched || result.is_some(),
            "without a failure it runs to its end"
        );
        disk.stop_failing();
        for seed in 0..3 {
            let disk = disk.fork(seed);
            if seed == 0 {
                disk.kill()
            } else {
                disk.crash()
            }
            match open(&disk) {
                Ok(state) => {
                    let state = state.state();
                    let from = synced.unwrap_or(0);
                    assert!(
                        states[from..].contains(&state),
                        "call {k}, seed {seed}: none of the states since the last sync"
                    );
                }
                Err(StateError::Missing { .. }) => assert!(synced.is_none(), "call {k}"),
                Err(e) => panic!("call {k}, seed {seed}: {e}"),
            }
        }
        k += 1;
    }
    assert!(k > 100);
}

fn workload(
    disk: &SimDisk,
    rng: &mut SimRng,
    states: &mut Vec<BrokerState>,
    synced: &mut Option<usize>,
) -> Option<()> {
    let mut current = BrokerState {
        identity: identity(),
        boots: 0,
        clean: true,
        groups: std::collections::BTreeMap::new(),
        members: std::collections::BTreeMap::new(),
    };
    states.push(current.clone());
    let mut file = StateFile::create(dynamic(disk), &home(), identity()).ok()?;
    *synced = Some(0);
    for step in 0..24 {
        let records: Vec<_> = (0..1 + rng.below(4)).map(|_| random_record(rng)).collect();
        // Power loss may keep some records of one call.
        for record in &records {
            fold(&mut current, record);
            states.push(current.clone());
        }
        let sync = rng.chance(40);
        file.record(&records, sync).ok()?;
        assert_eq!(file.state(), current);
        if sync {
            *synced = Some(states.len() - 1);
        }
        if step % 12 == 11 {
            drop(file);
            file = StateFile::open(dynamic(disk), &home()).ok()?;
            assert_eq!(file.state(), current);
            *synced = Some(states.len() - 1);
        }
    }
    Some(())
}
