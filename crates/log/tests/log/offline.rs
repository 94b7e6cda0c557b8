//! Checks, dumps and repairs without a broker: every problem is named, and no byte is lost.

mod compacted;
mod repair;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, DiskOp};
use tidelog_log::offline::{
    Action, Depth, Dump, Problem, RepairPlan, Severity, What, apply_repair, check_data_dir,
    check_partition, plan_repair, read_state,
};
use tidelog_log::state::{
    BrokerState, DirectoryIdentity, GroupKey, GroupState, StateFile, StateRecord,
};
use tidelog_log::{Log, LogEnd};
use tidelog_record::{Compression, LeaderEpoch, Offset};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use crate::common::*;
use crate::replica::{at_index, begin, next_batch};

fn data_dir() -> &'static Path {
    Path::new("/data")
}

fn key() -> GroupKey {
    GroupKey {
        topic_id: identity().topic_id,
        partition: identity().partition,
    }
}

/// The partition's directory: its number is the one of the identity.
fn partition() -> PathBuf {
    data_dir().join("topic-3")
}

fn file(base: u64, extension: &str) -> PathBuf {
    partition().join(format!("{base:020}.{extension}"))
}

fn open_here(disk: &SimDisk, checkpoint: Option<LogEnd>) -> Log {
    let log = Log::open(dynamic(disk), &partition(), identity(), small(), checkpoint);
    log.unwrap().0
}

fn state_file(disk: &SimDisk) -> StateFile {
    disk.create_dir_all(data_dir()).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let directory = DirectoryIdentity {
        cluster_id: identity().cluster_id,
        node_id: 1,
        directory_id: [3; 16],
    };
    let state = StateFile::create(dynamic(disk), &data_dir().join("state"), directory).unwrap();
    state.record(&[StateRecord::Boot(1)], true).unwrap();
    state
}

fn group(term: u64, commit: u64) -> StateRecord {
    let group = GroupState {
        incarnation: 1,
        replica_id: 1,
        term,
        vote: 1,
        commit,
        checkpoint: None,
    };
    StateRecord::Group(key(), group)
}

/// A data directory with a log of several segments and a state file that knows it. With `close`
/// both were closed; else the last appends were not synced, and the process was killed.
fn filled(close: bool) -> (SimDisk, Vec<u64>) {
    let disk = disk();
    let state = state_file(&disk);
    state.record(&[group(6, 5)], true).unwrap();
    let mut log = Log::create(dynamic(&disk), &partition(), identity(), small(), at(0)).unwrap();
    log.begin_epoch(LeaderEpoch::new(6).unwrap()).unwrap();
    for n in 0..40_i64 {
        let compression = if n % 5 == 0 {
            Compression::Zstd
        } else {
            Compression::None
        };
        let value = [u8::try_from(n).unwrap(); 110];
        append(
            &mut log,
            batch_of(&[(n, &value), (n + 1, b"")], compression),
        );
        if n == 20 {
            log.begin_epoch(LeaderEpoch::new(8).unwrap()).unwrap();
        }
    }
    let mut end = log.sync().unwrap();
    let bases: Vec<u64> = log
        .reader()
        .segments()
        .iter()
        .map(|s| s.base_offset.get())
        .collect();
    assert!(bases.len() >= 4);
    let mut records = vec![StateRecord::Checkpoint(key(), end)];
    if close {
        end = log.close().unwrap();
        let group = group(8, end.index.get() - 1);
        records = vec![
            group,
            StateRecord::Checkpoint(key(), end),
            StateRecord::Clean,
        ];
    } else {
        append(
            &mut log,
            batch_of(&[(50, b"not synced")], Compression::None),
        );
        append(&mut log, batch_of(&[(51, b"nor this")], Compression::None));
    }
    state.record(&records, true).unwrap();
    disk.kill();
    (disk, bases)
}

fn check(disk: &SimDisk) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_data_dir(&dynamic(disk), data_dir(), Depth::Everything, &mut problems).unwrap();
    problems
}

fn of_severity(problems: &[Problem], severity: Severity) -> Vec<&Problem> {
    problems
        .iter()
        .filter(|problem| problem.severity == severity)
        .collect()
}

fn state(disk: &SimDisk) -> Option<BrokerState> {
    read_state(disk, data_dir(), &mut Vec::new()).unwrap()
}

fn plan(disk: &SimDisk, cut_at_damage: bool) -> RepairPlan {
    let state = state(disk);
    let (disk, mut problems) = (dynamic(disk), Vec::new());
    plan_repair(
        &disk,
        &partition(),
        state.as_ref(),
        cut_at_damage,
        at(0),
        &mut problems,
    )
    .unwrap()
}

fn apply(disk: &SimDisk, plan: &RepairPlan) {
    apply_repair(&dynamic(disk), plan, Some(data_dir())).unwrap();
}

/// Every file and its bytes.
fn snapshot(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk.files().into_iter();
    files
        .map(|path| (path.clone(), disk.contents(&path)))
        .collect()
}

/// All values of the log, as a start after the repair serves them.
fn served(disk: &SimDisk) -> Vec<Offset> {
    let checkpoint = state(disk).unwrap().groups[&key()].checkpoint;
    let log = open_here(disk, checkpoint);
    let reader = log.reader();
    let batches = read_all(&reader, reader.log_start()).unwrap();
    let offsets = batches
        .iter()
        .map(|batch| Offset::from_wire(batch.header().base_offset));
    offsets.map(Option::unwrap).collect()
}

/// Each byte of `before` in the partition is where it was, or in a directory beside.
fn assert_nothing_is_lost(before: &BTreeMap<PathBuf, Vec<u8>>, disk: &SimDisk) {
    let after = snapshot(disk);
    let kept: Vec<(&PathBuf, &Vec<u8>)> = after
        .iter()
        .filter(|(path, _)| {
            path.parent()
                .unwrap()
                .extension()
                .is_some_and(|e| e == "cut")
        })
        .collect();
    for (path, bytes) in before
        .iter()
        .filter(|(path, _)| path.parent() == Some(&partition()))
    {
        let name = path.file_name().unwrap().to_str().unwrap();
        let here = after.get(path).cloned().unwrap_or_default();
        let is_there = here.starts_with(bytes)
            || kept.iter().any(|(path, kept)| {
                let kept_name = path.file_name().unwrap().to_str().unwrap();
                match kept_name.strip_prefix(name) {
                    Some("") => *kept == bytes,
                    Some(from) => from.strip_prefix(".from-").is_some_and(|at| {
                        let at: usize = at.parse().unwrap();
                        kept[..] == bytes[at..]
                    }),
                    None => false,
                }
            });
        assert!(is_there, "bytes of {} are gone", path.display());
    }
}

#[test]
fn a_healthy_log_has_no_problems_and_is_not_touched() {
    let (disk, bases) = filled(true);
    let calls = disk.io_count();
    let mut problems: Vec<Problem> = Vec::new();
    let report = check_data_dir(
        &dynamic(&disk),
        data_dir(),
        Depth::Everything,
        &mut problems,
    );
    let report = report.unwrap();
    assert_eq!(
        problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [""; 0]
    );
    let partition = &report.partitions[0];
    assert_eq!(partition.segments.len(), bases.len());
    assert_eq!(
        partition.segments.iter().map(|s| s.records).sum::<u64>(),
        80
    );
    assert_eq!(partition.end, partition.known.unwrap().checkpoint);
    assert_eq!(partition.epochs.len(), 2);
    assert!(partition.segments.iter().all(|s| s.index.name() == "whole"));
    for cut_at_damage in [false, true] {
        let plan = plan(&disk, cut_at_damage);
        assert_eq!((plan.actions.len(), plan.cut), (0, None));
        apply(&disk, &plan);
    }
    assert_eq!(disk.io_count(), calls, "reading changes nothing");
}

/// What a leader has begun and no majority has taken may be taken back: the table does not tell of it yet.
#[test]
fn an_epoch_that_is_not_committed_is_not_missed_in_the_table() {
    let disk = disk();
    let state = state_file(&disk);
    let mut log =
        Log::create_replica(dynamic(&disk), &partition(), identity(), small(), at(0)).unwrap();
    begin(&mut log, 6);
    let entry = next_batch(&log, 6);
    log.append_entries(&[entry], at(0)).unwrap();
    let end = log.sync().unwrap();
    let committed = end.index.get() - 1;
    log.commit_to(at_index(committed));
    begin(&mut log, 7);
    let end = log.close().unwrap();
    for (commit, is_missed) in [(committed, false), (committed + 1, true)] {
        let checkpoint = StateRecord::Checkpoint(key(), end);
        let records = [group(7, commit), checkpoint, StateRecord::Clean];
        state.record(&records, true).unwrap();
        let problems: Vec<String> = check(&disk).iter().map(ToString::to_string).collect();
        let tells = problems.iter().any(|told| told.contains("ends early"));
        assert_eq!(
            (tells, problems.len()),
            (is_missed, is_missed.into()),
            "{problems:?}"
        );
    }
}

#[test]
fn what_a_kill_leaves_is_no_damage() {
    let (disk, _) = filled(false);
    let problems = check(&disk);
    assert!(problems.is_empty(), "{problems:?}");
    let newest = disk
        .files()
        .into_iter()
        .rfind(|path| path.extension().is_some_and(|e| e == "log"));
    let newest = newest.unwrap();
    let borders = borders(&disk, &newest);
    // The last batch, not known to be durable, is torn.
    let last = *borders.last().unwrap();
    disk.flip_bit(&newest, last + 40, 3);
    let before = snapshot(&disk);
    let problems = check(&disk);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = &problems[0];
    assert_eq!((problem.severity, &problem.path), (Severity::Note, &newest));
    assert_eq!((problem.position, problem.offset), (last, Some(offset(81))));
    let What::TornTail { bytes } = problem.what else {
        panic!("{problem}")
    };
    let used = before[&newest].iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert_eq!(bytes, used as u64 - last);

    let plan = plan(&disk, false);
    let len = before[&newest].len() as u64;
    let cut = Action::Cut {
        path: newest.clone(),
        at: last,
        bytes: len - last,
    };
    assert_eq!(plan.actions, [cut]);
    assert_eq!(snapshot(&disk), before, "a plan changes nothing");
    apply(&disk, &plan);
    assert_nothing_is_lost(&before, &disk);
    let problems = check(&disk);
    assert!(of_severity(&problems, Severity::Damage).is_empty());
    assert_eq!(served(&disk).len(), 41, "what was whole is kept");
}

#[test]
fn every_flipped_bit_in_a_sealed_segment_is_named_and_the_rest_is_looked_at() {
    let (disk, bases) = filled(true);
    let path = file(bases[1], "log");
    let borders = borders(&disk, &path);
    for position in (0..disk.contents(&path).len() as u64).step_by(5) {
        let disk = disk.fork(1);
        disk.flip_bit(&path, position, u8::try_from(position % 8).unwrap());
        // A second one elsewhere is not hidden by the first.
        let other = file(bases[3], "log");
        disk.flip_bit(&other, HEADER + 80, 1);
        let problems = check(&disk);
        let damage = of_severity(&problems, Severity::Damage);
        let border = *borders.iter().rfind(|border| **border <= position).unwrap();
        assert_eq!(
            (&damage[0].path, damage[0].position),
            (&path, border),
            "{}",
            damage[0]
        );
        let last = damage.last().unwrap();
        assert_eq!(
            (&last.path, last.position),
            (&other, HEADER),
            "at {position}: {last}"
        );
        assert!(
            damage.iter().all(|d| d.path == path || d.path == other),
            "at {position}: {damage:?}"
        );
        assert!(damage.len() <= 3, "at {position}: {damage:?}");
    }
}

#[test]
fn every_flipped_bit_below_the_checkpoint_of_the_newest_segment_is_named() {
    let (disk, bases) = filled(false);
    let path = file(*bases.last().unwrap(), "log");
    let borders = borders(&disk, &path);
    let checkpoint = state(&disk).unwrap().groups[&key()].checkpoint.unwrap();
    for position in (0..u64::from(checkpoint.position)).step_by(3) {
        let disk = disk.fork(1);
        disk.flip_bit(&path, position, u8::try_from(position % 8).unwrap());
        let problems = check(&disk);
        let damage = of_severity(&problems, Severity::Damage);
        let border = *borders.iter().rfind(|border| **border <= position).unwrap();
        assert_eq!(
            (&damage[0].path, damage[0].position),
            (&path, border),
            "at {position}"
        );
    }
}

#[test]
fn flipped_bits_beside_the_segments_are_warnings_that_name_the_place() {
    let (disk, bases) = filled(true);
    let names = disk.files();
    let beside = |path: &&PathBuf| {
        path.parent() == Some(&partition()) && path.extension().is_none_or(|e| e != "log")
    };
    let mut kinds = std::collections::BTreeSet::new();
    for path in names.iter().filter(beside) {
        let kind = path
            .extension()
            .map_or("epochs", |e| e.to_str().unwrap())
            .to_owned();
        for position in (0..disk.contents(path).len() as u64).step_by(7) {
            let disk = disk.fork(1);
            disk.flip_bit(path, position, u8::try_from(position % 8).unwrap());
            let before = snapshot(&disk);
            let problems = check(&disk);
            assert!(of_severity(&problems, Severity::Damage).is_empty());
            let derived = of_severity(&problems, Severity::Derived);
            assert_eq!(
                derived.len(),
                1,
                "{} at {position}: {problems:?}",
                path.display()
            );
            assert_eq!(&derived[0].path, path);
            let expected = match kind.as_str() {
                "index" => position / 32 * 32,
                "epochs" if position >= 8 => (position - 8) / 24 * 24 + 8,
                _ => 0,
            };
            // Without a first entry nothing of an index is believed.
            let expected = if kind == "index" && expected == 32 {
                0
            } else {
                expected
            };
            assert_eq!(
                derived[0].position,
                expected,
                "{} at {position}",
                path.display()
            );
            kinds.insert(kind.clone());
            if position % 4 == 0 {
                let plan = plan(&disk, false);
                assert_eq!(plan.actions.len(), 1);
                apply(&disk, &plan);
                assert_nothing_is_lost(&before, &disk);
                let problems = check(&disk);
                assert!(of_severity(&problems, Severity::Damage).is_empty());
                assert_eq!(served(&disk).len(), 40);
            }
        }
    }
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["epochs", "index", "producers"]
    );
    assert!(bases.len() > 1);
}

#[test]
fn a_damaged_state_file_is_told_from_one_that_another_stands_in_for() {
    let (disk, _) = filled(true);
    let newest = |extension: &str, disk: &SimDisk| {
        let files = disk.files().into_iter();
        let mut files = files.filter(|path| {
            path.parent() == Some(&data_dir().join("state"))
                && path.extension().is_some_and(|e| e == extension)
                && !path.to_str().unwrap().contains("spare")
        });
        files.next_back().unwrap()
    };
    let journal = newest("journal", &disk);
    let one = disk.fork(1);
    one.flip_bit(&journal, 20, 1);
    let problems = check(&one);
    let damage = of_severity(&problems, Severity::Damage);
    assert_eq!(
        (&damage[0].path, damage[0].position),
        (&journal, 8),
        "{problems:?}"
    );
    let only = newest("snapshot", &disk);
    let one = disk.fork(1);
    one.flip_bit(&only, 30, 1);
    let problems = check(&one);
    assert_eq!(of_severity(&problems, Severity::Damage)[0].path, only);

    // A second generation.
    drop(StateFile::open(dynamic(&disk), &data_dir().join("state")).unwrap());
    disk.kill();
    for snapshot in [newest("snapshot", &disk), only] {
        let one = disk.fork(1);
        one.flip_bit(&snapshot, 30, 1);
        let problems = check(&one);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(
            (problems[0].severity, &problems[0].path),
            (Severity::Derived, &snapshot)
        );
    }
}

#[test]
fn missing_files_and_unknown_ones_are_named() {
    let (disk, bases) = filled(true);
    for (number, base) in bases.iter().enumerate() {
        let disk = disk.fork(1);
        disk.remove(&file(*base, "log"));
        let problems = check(&disk);
        let damage = of_severity(&problems, Severity::Damage);
        let missing = format!("sequence number {} is missing", number + 1);
        assert_eq!(damage.len(), 1, "{problems:?}");
        assert!(damage[0].to_string().contains(&missing), "{}", damage[0]);
    }
    disk.open(
        &partition().join("notes.txt"),
        tidelog_disk::OpenHow::Create,
    )
    .unwrap();
    disk.create_dir_all(&data_dir().join("old-7.deleted"))
        .unwrap();
    let problems = check(&disk);
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(
        problems
            .iter()
            .all(|problem| problem.severity == Severity::Note),
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.contains("notes.txt")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.contains("old-7.deleted")),
        "{said:?}"
    );
    for path in disk.files() {
        if path.parent() == Some(&partition()) {
            disk.remove(&path);
        }
    }
    let problems = check(&disk);
    let damage = of_severity(&problems, Severity::Damage);
    assert!(
        damage[0].to_string().contains("no directory of it"),
        "{damage:?}"
    );
}

#[test]
fn a_dump_gives_all_batches_and_ends_at_the_first_problem() {
    let (disk, bases) = filled(true);
    let dump = |disk: &SimDisk, from: u64| {
        let checkpoint = state(disk).unwrap().groups[&key()].checkpoint;
        let dump = Dump::open(&dynamic(disk), &partition(), offset(from), checkpoint).unwrap();
        let mut good = Vec::new();
        for batch in dump {
            match batch {
                Ok(batch) if batch.internal.is_none() => good.push(batch.offset.get()),
                Ok(_) => {}
                Err(e) => return (good, Some(e.to_string())),
            }
        }
        (good, None)
    };
    let all: Vec<u64> = (0..40).map(|n| n * 2).collect();
    assert_eq!(dump(&disk, 0), (all.clone(), None));
    assert_eq!(dump(&disk, 33), (all[16..].to_vec(), None));
    disk.flip_bit(&file(bases[1], "log"), HEADER + 90, 1);
    let (good, problem) = dump(&disk, 3);
    assert_eq!(good, all[1..usize::try_from(bases[1] / 2).unwrap()]);
    let problem = problem.unwrap();
    let place = format!("position {HEADER}, offset {}", bases[1]);
    assert!(problem.contains(&place), "{problem}");
    assert_eq!(dump(&disk, bases[2]).1, None);
}

#[test]
fn without_a_state_file_whole_batches_behind_tell_damage_from_a_torn_tail() {
    let (disk, bases) = filled(true);
    let newest = file(*bases.last().unwrap(), "log");
    let borders = borders(&disk, &newest);
    let verdict = |position: u64| {
        let disk = disk.fork(1);
        disk.flip_bit(&newest, position + 70, 1);
        let mut problems: Vec<Problem> = Vec::new();
        let all = Depth::Everything;
        check_partition(&dynamic(&disk), &partition(), None, all, &mut problems).unwrap();
        problems.iter().map(|p| p.severity).max()
    };
    assert!(borders.len() > 2);
    assert_eq!(verdict(borders[1]), Some(Severity::Damage));
    assert_ne!(verdict(*borders.last().unwrap()), Some(Severity::Damage));
}

#[test]
fn a_file_that_the_device_cannot_read_is_damage_and_the_others_are_looked_at() {
    let (disk, bases) = filled(true);
    let path = file(bases[1], "log");
    let name = path.file_name().unwrap().to_str().unwrap();
    // The first three reads are of the header.
    let reads = OpFilter::op(DiskOp::Read).on(name);
    disk.fail_nth(reads, 4, InjectedError::Io, FailMode::Forever);
    disk.flip_bit(&file(bases[2], "log"), HEADER + 80, 1);
    let problems = check(&disk);
    let damage = of_severity(&problems, Severity::Damage);
    assert_eq!(damage.len(), 2, "{problems:?}");
    assert!(matches!(damage[0].what, What::Disk(_)), "{}", damage[0]);
    assert_eq!((&damage[0].path, damage[0].position), (&path, HEADER));
    assert_eq!(damage[1].path, file(bases[2], "log"));
}

#[test]
fn a_checkpoint_that_names_no_place_in_the_log_is_damage_and_is_taken_back() {
    let (disk, _) = filled(true);
    let truth = state(&disk).unwrap().groups[&key()].checkpoint.unwrap();
    for untrue in [
        LogEnd {
            chain: truth.chain ^ 1,
            ..truth
        },
        LogEnd {
            position: truth.position - 1,
            ..truth
        },
        LogEnd {
            position: truth.position + 1,
            ..truth
        },
        LogEnd {
            sequence: truth.sequence + 1,
            ..truth
        },
    ] {
        let disk = disk.fork(1);
        let state_file = StateFile::open(dynamic(&disk), &data_dir().join("state")).unwrap();
        let record = StateRecord::Checkpoint(key(), untrue);
        state_file.record(&[record], true).unwrap();
        drop(state_file);
        disk.kill();
        let before = snapshot(&disk);
        let problems = check(&disk);
        assert_eq!(
            of_severity(&problems, Severity::Damage).len(),
            1,
            "{problems:?}"
        );
        let plan = plan(&disk, true);
        assert_eq!((plan.remaining, plan.refused), (0, None));
        apply(&disk, &plan);
        assert_nothing_is_lost(&before, &disk);
        let problems = check(&disk);
        assert!(
            of_severity(&problems, Severity::Damage).is_empty(),
            "{problems:?}"
        );
        assert!(served(&disk).len() >= 39);
    }
}
