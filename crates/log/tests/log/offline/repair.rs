//! Cuts at damage: what comes before is served, and every byte is kept.

use super::*;

#[test]
fn a_cut_at_damage_keeps_what_comes_before_and_loses_no_byte() {
    for close in [true, false] {
        let (disk, bases) = filled(close);
        for base in &bases[1..] {
            let path = file(*base, "log");
            let borders = borders(&disk, &path);
            let len = borders.last().unwrap() + 61;
            for position in (0..len).step_by(131) {
                let disk = disk.fork(1);
                disk.flip_bit(&path, position, 5);
                if of_severity(&check(&disk), Severity::Damage).is_empty() {
                    continue;
                }
                let before = snapshot(&disk);
                assert!(plan(&disk, false).remaining > 0);
                let plan = plan(&disk, true);
                assert_eq!((plan.remaining, plan.refused), (0, None));
                let cut = plan.cut.unwrap();
                assert_eq!(snapshot(&disk), before, "a plan changes nothing");
                apply(&disk, &plan);
                assert_nothing_is_lost(&before, &disk);
                let problems = check(&disk);
                assert!(
                    of_severity(&problems, Severity::Damage).is_empty(),
                    "{problems:?}"
                );
                let offsets = served(&disk);
                assert_eq!(offsets.len() as u64, cut.from.get() / 2, "at {position}");
                let batch = borders
                    .iter()
                    .rposition(|border| *border <= position)
                    .unwrap();
                let internal_or_header = batch == 0;
                if internal_or_header {
                    assert_eq!(cut.from.get(), *base);
                }
            }
        }
    }
}

#[test]
fn a_log_without_a_usable_beginning_is_not_cut_to_nothing() {
    let (disk, _) = filled(true);
    disk.flip_bit(&file(0, "log"), 100, 1);
    let before = snapshot(&disk);
    let plan = plan(&disk, true);
    assert!(plan.refused.unwrap().contains("would leave nothing"));
    assert!(plan.remaining > 0 && plan.cut.is_none());
    apply(&disk, &plan);
    assert_eq!(snapshot(&disk), before);
}

#[test]
fn a_trimmed_log_is_cut_and_still_knows_where_it_starts() {
    let (disk, bases) = filled(true);
    let checkpoint = state(&disk).unwrap().groups[&key()].checkpoint;
    let mut log = open_here(&disk, checkpoint);
    log.trim(offset(bases[1] + 2), offset(80)).unwrap();
    let end = log.close().unwrap();
    let state_file = StateFile::open(dynamic(&disk), &data_dir().join("state")).unwrap();
    state_file
        .record(&[StateRecord::Checkpoint(key(), end)], true)
        .unwrap();
    drop(state_file);
    disk.kill();
    let problems = check(&disk);
    assert!(problems.is_empty(), "{problems:?}");
    // The entry that says where the log starts is behind the damage.
    disk.flip_bit(&file(bases[2], "log"), HEADER + 90, 1);
    let before = snapshot(&disk);
    let plan = plan(&disk, true);
    apply(&disk, &plan);
    assert_nothing_is_lost(&before, &disk);
    let problems = check(&disk);
    assert!(
        of_severity(&problems, Severity::Damage).is_empty(),
        "{problems:?}"
    );
    let offsets = served(&disk);
    assert_eq!(offsets.first(), Some(&offset(bases[1] + 2)));
    assert_eq!(offsets.last(), Some(&offset(bases[2] - 2)));
}

#[test]
fn a_cut_below_the_log_start_counts_only_what_was_served() {
    let (disk, _) = filled(true);
    let checkpoint = state(&disk).unwrap().groups[&key()].checkpoint;
    let mut log = open_here(&disk, checkpoint);
    // Still in the first segment, whose beginning is damaged below.
    log.trim(offset(4), offset(80)).unwrap();
    let end = log.close().unwrap();
    let state_file = StateFile::open(dynamic(&disk), &data_dir().join("state")).unwrap();
    state_file
        .record(&[StateRecord::Checkpoint(key(), end)], true)
        .unwrap();
    drop(state_file);
    disk.kill();
    disk.flip_bit(&file(0, "log"), borders(&disk, &file(0, "log"))[1] + 30, 1);
    let plan = plan(&disk, true);
    let cut = plan.cut.unwrap();
    assert_eq!((cut.from, cut.log_start), (offset(0), offset(4)));
    assert_eq!((cut.to, cut.offsets()), (offset(80), 76));
    assert_eq!(cut.damaged, 1);
    apply(&disk, &plan);
    let checkpoint = state(&disk).unwrap().groups[&key()].checkpoint;
    assert_eq!(checkpoint.unwrap().log_start, offset(0));
}

#[test]
fn a_repair_that_is_cut_off_anywhere_can_be_done_again() {
    let (disk, bases) = filled(true);
    disk.sync_all();
    disk.flip_bit(&file(bases[1], "log"), HEADER + 90, 1);
    disk.flip_bit(&file(bases[0], "index"), 40, 1);
    let before = snapshot(&disk);
    let plan_of_all = plan(&disk, true);
    let whole = disk.fork(1);
    let calls = whole.io_count();
    apply(&whole, &plan_of_all);
    let calls = whole.io_count() - calls;
    assert!(calls > 20, "{calls}");
    let expected = served(&whole);
    for nth in 1..=calls {
        for seed in 0..4 {
            let disk = disk.fork(seed);
            let filter = OpFilter::mutating();
            disk.fail_nth(filter, nth, InjectedError::Io, FailMode::Forever);
            let shared: Arc<dyn Disk> = dynamic(&disk);
            apply_repair(&shared, &plan_of_all, Some(data_dir())).unwrap_err();
            disk.crash();
            assert_nothing_is_lost(&before, &disk);
            // A broker that starts now refuses the log or serves what is whole; the repair goes on.
            let plan = plan(&disk, true);
            assert_eq!(
                (plan.remaining, plan.refused),
                (0, None),
                "call {nth}, seed {seed}"
            );
            apply(&disk, &plan);
            assert_nothing_is_lost(&before, &disk);
            let problems = check(&disk);
            assert!(
                of_severity(&problems, Severity::Damage).is_empty(),
                "{problems:?}"
            );
            assert_eq!(served(&disk), expected, "call {nth}, seed {seed}");
        }
    }
}
