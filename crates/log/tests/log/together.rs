//! Many logs synced with one call: what it covers, and that a failure is never taken for a success.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tidelog_disk::{Disk, DiskOp};
use tidelog_log::{Log, LogEnd, LogSync, Poisoned, SyncConfig, SyncCoordinator, SyncTarget};
use tidelog_record::Offset;
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use crate::common::*;

/// As many as are surely synced together.
const MANY: usize = 40;

#[derive(Debug)]
struct Owner {
    log: LogSync,
    told: Mutex<Vec<Result<LogEnd, String>>>,
    changed: Condvar,
}

impl SyncTarget for Owner {
    fn log(&self) -> &LogSync {
        &self.log
    }
    fn synced(&self, result: &Result<LogEnd, Poisoned>) {
        let result = result.as_ref().map(|end| *end).map_err(Poisoned::to_string);
        self.told.lock().push(result);
        self.changed.notify_all();
    }
}

impl Owner {
    /// What the next round told.
    fn next(&self) -> Result<LogEnd, String> {
        let mut told = self.told.lock();
        while told.is_empty() {
            self.changed.wait(&mut told);
        }
        told.remove(0)
    }
}

struct Logs {
    disk: SimDisk,
    logs: Vec<Log>,
    owners: Vec<Arc<Owner>>,
    coordinator: SyncCoordinator,
}

fn dir_of(n: usize) -> PathBuf {
    Path::new("/data").join(format!("log-{n}"))
}

impl Logs {
    fn new(count: usize) -> Self {
        Self::with_patience(count, Duration::from_secs(60))
    }

    fn with_patience(count: usize, patience: Duration) -> Self {
        Self::with(count, patience, |_| {})
    }

    /// `prepare` is done to the disk before the logs are made.
    fn with(count: usize, patience: Duration, prepare: impl Fn(&SimDisk)) -> Self {
        let disk = disk();
        disk.create_dir_all(Path::new("/data")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        prepare(&disk);
        let file_system = disk.file_system(Path::new("/data")).unwrap();
        assert!(file_system.is_some());
        let logs: Vec<_> = (0..count)
            .map(|n| {
                let dir = dir_of(n);
                Log::create(dynamic(&disk), &dir, identity(), large(), at(0)).unwrap()
            })
            .collect();
        let owner = |log: &Log| {
            Arc::new(Owner {
                log: log.sync_handle(),
                told: Mutex::default(),
                changed: Condvar::new(),
            })
        };
        let owners = logs.iter().map(owner).collect();
        let config = SyncConfig {
            threads_max: 4,
            file_system,
            patience,
            ..SyncConfig::default()
        };
        let coordinator = SyncCoordinator::start(Arc::new(Unrecorded), config).unwrap();
        Self {
            disk,
            logs,
            owners,
            coordinator,
        }
    }

    /// Appends to the first `count` logs.
    fn append(&mut self, count: usize) {
        for log in &mut self.logs[..count] {
            append(log, batch(1, 10));
        }
    }

    /// One round over these logs, and what each was told.
    fn sync(&self, which: std::ops::Range<usize>) -> Vec<Result<LogEnd, String>> {
        let owners = &self.owners[which];
        let targets = owners.iter().map(|o| o.clone() as Arc<dyn SyncTarget>);
        self.coordinator.sync(targets.collect());
        owners.iter().map(|owner| owner.next()).collect()
    }

    fn ends(&self) -> Vec<Result<LogEnd, String>> {
        self.logs.iter().map(|log| Ok(log.end())).collect()
    }
}

/// The kernel tells one of two calls of what was lost, whichever comes first: so there is one.
#[test]
fn beside_a_sync_of_the_file_system_that_hangs_each_log_is_synced_by_itself() {
    let mut all = Logs::with_patience(2 * MANY, Duration::from_millis(1));
    all.append(2 * MANY);
    let hang = all.disk.hang(OpFilter::op(DiskOp::SyncAll));
    let first: Vec<_> = all.owners[..MANY].to_vec();
    let asks = all.coordinator.clone();
    let targets = first.iter().map(|o| o.clone() as Arc<dyn SyncTarget>);
    let targets: Vec<_> = targets.collect();
    let asking = std::thread::spawn(move || asks.sync(targets));
    hang.wait_until_one_hangs();
    // With a second call these would hang too, or take the failure for themselves.
    let told = all.sync(MANY..2 * MANY);
    assert_eq!(told, all.ends()[MANY..]);
    assert!(first.iter().all(|owner| owner.told.lock().is_empty()));
    let any = OpFilter::op(DiskOp::SyncAll);
    all.disk.fail_nth(any, 1, InjectedError::Io, FailMode::Once);
    drop(hang);
    asking.join().unwrap();
    for owner in &first {
        assert!(owner.next().is_err(), "those whose call failed are told");
    }
    assert!(all.logs[MANY].reader().poisoned().is_none());
}

#[test]
fn many_logs_take_one_sync_and_survive_power_loss() {
    let mut all = Logs::new(MANY);
    for round in 1..=3 {
        all.append(MANY);
        // Neither a failing sync of a file nor a second one of the file system is met.
        let (one, any) = (OpFilter::op(DiskOp::Sync), OpFilter::op(DiskOp::SyncAll));
        all.disk.fail_nth(one, 1, InjectedError::Io, FailMode::Once);
        all.disk.fail_nth(any, 2, InjectedError::Io, FailMode::Once);
        assert_eq!(all.sync(0..MANY), all.ends(), "round {round}");
        all.disk.stop_failing();
    }
    let ends: Vec<_> = all.logs.iter().map(Log::end).collect();
    for log in &all.logs {
        assert_eq!(log.reader().durable(), log.end());
    }
    all.disk.crash();
    for (n, end) in ends.into_iter().enumerate() {
        let disk = dynamic(&all.disk);
        let opened = Log::open(disk, &dir_of(n), identity(), large(), Some(end));
        let (log, recovery) = opened.unwrap();
        assert_eq!((log.end(), recovery.torn_bytes), (end, 0));
        let read = read_all(&log.reader(), Offset::ZERO).unwrap();
        assert_eq!(read.len(), 3, "log {n}");
    }
}

#[test]
fn few_logs_are_synced_one_by_one() {
    let mut all = Logs::new(4);
    all.append(4);
    let filter = OpFilter::op(DiskOp::SyncAll);
    all.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
    assert_eq!(all.sync(0..4), all.ends());
    assert_eq!(all.disk.failures(), 0, "the file system was not synced");
}

#[test]
fn a_failure_poisons_all_logs_of_the_round() {
    let mut all = Logs::new(MANY);
    all.append(MANY);
    all.sync(0..MANY);
    let durable = all.ends();
    all.append(MANY);
    let filter = OpFilter::op(DiskOp::SyncAll);
    all.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
    for told in all.sync(0..MANY) {
        assert!(told.unwrap_err().contains("sync the file system of /data"));
    }
    for (log, durable) in all.logs.iter_mut().zip(durable) {
        assert!(log.append(&mut [batch(1, 1)], at(0)).is_err());
        assert_eq!(Ok(log.reader().durable()), durable, "as before the failure");
    }
}

/// The failure was told to the round, not to the logs that were not in it: what they lost is found
/// only by the syncs of their own files.
#[test]
fn after_a_failure_each_log_is_synced_by_itself() {
    let mut all = Logs::new(2 * MANY);
    all.append(2 * MANY);
    let filter = OpFilter::op(DiskOp::SyncAll);
    all.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
    for told in all.sync(0..MANY) {
        assert!(told.is_err());
    }
    // The kernel tells the file of its own failure once it is asked.
    let lost = OpFilter::op(DiskOp::Sync).on(&format!("log-{MANY}/"));
    all.disk
        .fail_nth(lost, 1, InjectedError::Io, FailMode::Once);
    for told in all.sync(MANY..2 * MANY) {
        assert!(told.is_err(), "a round fails as a whole");
    }
    assert_eq!(all.disk.failures(), 2, "the file was asked");
}

#[test]
fn a_failed_sync_of_one_file_ends_it_too() {
    let mut all = Logs::new(MANY + 2);
    all.append(MANY + 2);
    let filter = OpFilter::op(DiskOp::Sync);
    all.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
    for told in all.sync(MANY..MANY + 2) {
        assert!(told.is_err());
    }
    let filter = OpFilter::op(DiskOp::SyncAll);
    all.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Forever);
    assert_eq!(all.sync(0..MANY), all.ends()[..MANY]);
    assert_eq!(all.disk.failures(), 1, "the file system was not synced");
}

#[test]
fn a_log_that_was_poisoned_before_harms_no_other_and_gets_no_success() {
    let mut all = Logs::new(MANY);
    all.append(MANY);
    let filter = OpFilter::op(DiskOp::Write).on("log-3/");
    all.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
    assert!(all.logs[3].append(&mut [batch(1, 1)], at(0)).is_err());
    let before = all.logs[3].reader().durable();
    for (n, told) in all.sync(0..MANY).into_iter().enumerate() {
        assert_eq!(told.is_ok(), n != 3, "log {n}: {told:?}");
    }
    assert_eq!(all.logs[3].reader().durable(), before);
}

#[test]
fn nothing_is_synced_where_nothing_was_written() {
    let mut all = Logs::new(MANY);
    all.append(MANY);
    all.sync(0..MANY);
    let filter = OpFilter::ops(&[DiskOp::Sync, DiskOp::SyncAll]);
    all.disk
        .fail_nth(filter, 1, InjectedError::Io, FailMode::Forever);
    assert_eq!(all.sync(0..MANY), all.ends());
}

/// One partition's directory may be a mount point, or a link to another disk.
#[test]
fn a_log_on_another_file_system_is_synced_too() {
    let mut all = Logs::with(MANY, Duration::from_secs(60), |disk| disk.mount(&dir_of(3)));
    all.append(MANY);
    let told = all.sync(0..MANY);
    assert_eq!(told, all.ends());
    all.disk.crash();
    for (n, end) in all.ends().into_iter().enumerate() {
        let end = end.unwrap();
        let (log, _) = Log::open(
            dynamic(&all.disk),
            &dir_of(n),
            identity(),
            large(),
            Some(end),
        )
        .unwrap();
        assert_eq!(log.end(), end, "log {n} was acknowledged up to there");
    }
}
