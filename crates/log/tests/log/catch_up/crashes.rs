//! Power fails, the process ends, or one call fails, at each place of a catch-up in turn.

use tidelog_log::LogEnd;
use tidelog_log::catch_up::{AdoptError, Swap, recover_swap};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use super::swap::poisoned;
use super::*;
use crate::replica::next_batch;

/// A replica that lags behind: its disk, its log's end, and what is in it.
struct Lagging {
    disk: SimDisk,
    recorded: Recorded,
    bytes: Vec<Bytes>,
}

impl Lagging {
    /// With entries of its own, which were never committed, and more segments than the original has: its
    /// checkpoint is none of the copy's.
    fn new() -> Self {
        let disk = SimDisk::new(9);
        let mut log = create_replica(&disk, with_segments(700));
        begin(&mut log, 6);
        for _ in 0..20 {
            let entry = next_batch(&log, 6);
            log.append_entries(&[entry], at(0)).unwrap();
        }
        log.sync().unwrap();
        log.commit_to(at_index(20));
        let recorded = Recorded {
            checkpoint: log.end(),
            commit: 20,
        };
        let bytes = committed_bytes(&log);
        drop(log);
        disk.sync_all();
        disk.kill();
        Self {
            disk,
            recorded,
            bytes,
        }
    }
}

/// How far a catch-up came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Copying,
    Adopting,
    Done,
}

/// One machine's memory of it: what lasts is on the disk and in `recorded`.
struct Machine<'a> {
    source: &'a CatchUpSource,
    disk: SimDisk,
    /// The state file, which is another device's.
    recorded: Recorded,
    reached: Reached,
    /// Whether the state file fails, once.
    state_fails: bool,
}

impl Machine<'_> {
    /// From the start of the process to the end of the swap.
    fn run(&mut self) -> Result<(), String> {
        self.recover()?;
        let mut log = self.open()?;
        if log.end() == self.source.manifest().end() {
            self.reached = Reached::Done;
            return Ok(());
        }
        let mut staging = stage(&self.disk, self.source.manifest()).map_err(text)?;
        pump(self.source, &mut staging, 900, usize::MAX).map_err(text)?;
        let staged = staging.finish().map_err(text)?;
        self.reached = Reached::Adopting;
        let (recorded, state_fails) = (&mut self.recorded, &mut self.state_fails);
        let record = |manifest: &Manifest| {
            if std::mem::take(state_fails) {
                return Err(poisoned());
            }
            *recorded = Recorded::of(manifest);
            Ok(())
        };
        staged.adopt(Old::Open(&mut log), record).map_err(text)?;
        self.reached = Reached::Done;
        Ok(())
    }

    fn recover(&mut self) -> Result<Swap, String> {
        let recorded = &mut self.recorded;
        let record = |manifest: &Manifest| {
            *recorded = Recorded::of(manifest);
            Ok(())
        };
        recover_swap(&self.disk, &dir(), identity(), record).map_err(text)
    }

    fn open(&self) -> Result<Log, String> {
        let Recorded { checkpoint, commit } = self.recorded;
        let disk = dynamic(&self.disk);
        let opened = Log::open_replica(
            disk,
            &dir(),
            identity(),
            small(),
            Some(checkpoint),
            at_index(commit),
        );
        Ok(opened.map_err(text)?.0)
    }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

struct Seen {
    old: usize,
    new: usize,
}

/// The log is the old one or the new one, and then the catch-up goes on to its end.
fn check(original: &Original, lagging: &Lagging, machine: &mut Machine<'_>, seen: &mut Seen) {
    let reached = machine.reached;
    machine.recover().unwrap();
    let log = machine.open().unwrap();
    let end: LogEnd = machine.source.manifest().end();
    if log.end() == end {
        assert!(reached > Reached::Copying, "adopted by nobody");
        check_copy(original, &log, machine.source.manifest());
        seen.new += 1;
    } else {
        assert!(reached < Reached::Done, "the copy that was adopted is gone");
        assert_eq!(log.end(), lagging.recorded.checkpoint);
        assert_eq!(log.commit().get(), lagging.recorded.commit);
        assert_eq!(committed_bytes(&log), lagging.bytes);
        assert_eq!(machine.recorded, lagging.recorded);
        seen.old += 1;
    }
    drop(log);
    machine.run().unwrap();
    let log = machine.open().unwrap();
    check_copy(original, &log, machine.source.manifest());
    let beside = machine.disk.list("/data".as_ref()).unwrap();
    assert_eq!(beside.len(), 1, "{beside:?}");
}

/// How often each place is tried, with other decisions of the disk.
const TRIES: u64 = 12;

#[test]
fn wherever_a_machine_stops_its_log_is_the_old_one_or_the_new_one() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let lagging = Lagging::new();
    let mut seen = Seen { old: 0, new: 0 };
    for nth in 1.. {
        let mut has_failed = false;
        for seed in 0..TRIES {
            let mut machine = Machine {
                source: &source,
                disk: lagging.disk.fork(nth * TRIES + seed),
                recorded: lagging.recorded,
                reached: Reached::Copying,
                state_fails: false,
            };
            let (filter, io) = (OpFilter::mutating(), InjectedError::Io);
            machine.disk.fail_nth(filter, nth, io, FailMode::Forever);
            let ran = machine.run();
            has_failed |= machine.disk.failures() > 0;
            if seed % 3 == 2 {
                machine.disk.kill();
            } else {
                machine.disk.crash();
            }
            if ran.is_err() {
                // Again, at the start that puts it right.
                let nth = 1 + seed / 2;
                let (filter, io) = (OpFilter::mutating(), InjectedError::Io);
                machine.disk.fail_nth(filter, nth, io, FailMode::Forever);
                if let Ok(Swap::Adopted(_)) = machine.recover() {
                    machine.reached = Reached::Done;
                }
                machine.disk.crash();
            }
            check(&original, &lagging, &mut machine, &mut seen);
        }
        if !has_failed {
            break;
        }
    }
    assert!(
        seen.old > 300 && seen.new > 30,
        "{} old, {} new",
        seen.old,
        seen.new
    );
}

/// One call fails and the process goes on: as it should after an error, with the same staging directory.
#[test]
fn whichever_call_fails_the_next_try_comes_to_the_end() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let lagging = Lagging::new();
    for error in [InjectedError::Io, InjectedError::Full] {
        let mut failed = 0;
        for nth in 1.. {
            let mut machine = Machine {
                source: &source,
                disk: lagging.disk.fork(nth),
                recorded: lagging.recorded,
                reached: Reached::Copying,
                state_fails: false,
            };
            let before = machine.disk.failures();
            machine
                .disk
                .fail_nth(OpFilter::any(), nth, error, FailMode::Once);
            let ran = machine.run();
            let has_failed = machine.disk.failures() > before;
            failed += u32::from(ran.is_err());
            machine.disk.stop_failing();
            if ran.is_err() {
                machine.run().unwrap();
            }
            // Of what the failed call may have lost, nothing was.
            machine.disk.crash();
            machine.recover().unwrap();
            let log = machine.open().unwrap();
            check_copy(&original, &log, source.manifest());
            if !has_failed {
                break;
            }
        }
        assert!(failed > 100, "{failed}");
    }
}

/// A staging that a write failed of goes on itself.
#[test]
fn a_staging_goes_on_after_a_call_that_failed() {
    let original = Original::of_all_kinds();
    let source = original.source();
    for error in [InjectedError::Io, InjectedError::Full, InjectedError::Short] {
        for nth in 1.. {
            let disk = fresh(nth);
            let mut staging = stage(&disk, source.manifest()).unwrap();
            disk.fail_nth(OpFilter::mutating(), nth, error, FailMode::Once);
            let mut errors = 0;
            let staged = loop {
                let pumped = pump(&source, &mut staging, 900, usize::MAX);
                match pumped.and_then(|_| staging.finish()) {
                    Ok(staged) => break staged,
                    Err(StagingError::Unfit(what)) => panic!("{what}"),
                    Err(_) => errors += 1,
                }
                assert!(errors < 3);
            };
            if disk.failures() == 0 {
                break;
            }
            staged.adopt(Old::Nothing, |_| Ok(())).unwrap();
            disk.crash();
            let log = Recorded::of(source.manifest()).open(&disk);
            check_copy(&original, &log, source.manifest());
        }
    }
}

/// A sync that somebody else made of it has failed, which leaves its pages clean and lost: they are
/// shown until power fails.
#[test]
fn what_an_earlier_process_left_is_durable_in_the_end() {
    let original = Original::of_all_kinds();
    let source = original.source();
    for seed in 0..20 {
        let disk = fresh(seed);
        let mut staging = stage(&disk, source.manifest()).unwrap();
        // Up to the middle of a segment.
        while staging.have_bytes() < source.manifest().file_len(0) + 1200 {
            pump(&source, &mut staging, 300, 1).unwrap();
        }
        let part = staged_files(&disk);
        let part = part
            .iter()
            .find(|path| path.extension().is_some_and(|e| e == "part"));
        let file = disk
            .open(part.unwrap(), tidelog_disk::OpenHow::Write)
            .unwrap();
        let sync = OpFilter::op(tidelog_disk::DiskOp::Sync);
        disk.fail_nth(sync, 1, InjectedError::Io, FailMode::Once);
        assert!(file.sync_data().is_err());
        disk.kill();
        let mut staging = stage(&disk, source.manifest()).unwrap();
        pump(&source, &mut staging, 900, usize::MAX).unwrap();
        let staged = staging.finish().unwrap();
        staged.adopt(Old::Nothing, |_| Ok(())).unwrap();
        disk.crash();
        let log = Recorded::of(source.manifest()).open(&disk);
        check_copy(&original, &log, source.manifest());
    }
}

/// The state file fails, or its machine does right behind it.
#[test]
fn a_checkpoint_that_was_not_recorded_is_recorded_by_the_next_start() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let lagging = Lagging::new();
    for seed in 0..50 {
        let mut machine = Machine {
            source: &source,
            disk: lagging.disk.fork(seed),
            recorded: lagging.recorded,
            reached: Reached::Copying,
            state_fails: true,
        };
        let failed = machine.run().unwrap_err();
        assert!(failed.contains("state file"), "{failed}");
        machine.disk.crash();
        let refused = machine.open();
        assert!(refused.is_err(), "the checkpoint is that of the other log");
        assert!(matches!(machine.recover(), Ok(Swap::Adopted(_))));
        let log = machine.open().unwrap();
        check_copy(&original, &log, source.manifest());
    }
}

/// A copy that was made and never adopted is no log.
#[test]
fn a_copy_that_was_not_adopted_is_not_taken() {
    let original = Original::of_all_kinds();
    let source = original.source();
    let lagging = Lagging::new();
    let disk = lagging.disk.fork(1);
    let mut staging = stage(&disk, source.manifest()).unwrap();
    pump(&source, &mut staging, 900, usize::MAX).unwrap();
    staging.finish().unwrap();
    disk.crash();
    let swap: Result<_, AdoptError> =
        recover_swap(&disk, &dir(), identity(), |_| panic!("nothing was adopted"));
    assert_eq!(swap.unwrap(), Swap::None);
    assert_eq!(
        lagging.recorded.open(&disk).end(),
        lagging.recorded.checkpoint
    );
}
