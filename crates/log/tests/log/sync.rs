//! The sync coordinator: rounds are shared, failures stay where they belong, nobody is forgotten.

use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tidelog_disk::{DirEntry, DirLock, Disk, DiskError, DiskFile, DiskOp, LockError, OpenHow};
use tidelog_log::{
    Log, LogEnd, LogSync, Poisoned, RoundObserver, SyncConfig, SyncCoordinator, SyncTarget,
};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

use crate::common::*;

/// A disk whose file syncs wait at a gate while it is shut.
#[derive(Clone, Debug)]
struct GatedDisk {
    disk: SimDisk,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    shut: bool,
    waiting: usize,
    passed: u64,
    /// Whether a sync that failed comes back only once a file's length was changed.
    holds_failures: bool,
    cuts: u64,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.shut {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        state.passed += 1;
    }

    fn shut(&self) {
        self.state.lock().shut = true;
    }

    fn open(&self) {
        self.state.lock().shut = false;
        self.changed.notify_all();
    }

    /// The kernel has told of the failure, but its caller does not know yet: meanwhile a roll cuts
    /// the file, and has time to sync it.
    fn hold_failure(&self) {
        let mut state = self.state.lock();
        if !state.holds_failures {
            return;
        }
        let before = state.cuts;
        state.waiting += 1;
        self.changed.notify_all();
        while state.cuts == before {
            self.changed.wait(&mut state);
        }
        drop(state);
        (0..5000).for_each(|_| thread::yield_now());
    }

    fn wait_until_somebody_waits(&self) {
        let mut state = self.state.lock();
        while state.waiting == 0 {
            self.changed.wait(&mut state);
        }
    }

    fn passed(&self) -> u64 {
        self.state.lock().passed
    }
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn DiskFile>,
    gate: Arc<Gate>,
}

impl Disk for GatedDisk {
    fn open(&self, path: &Path, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.disk.open(path, how)?;
        Ok(Arc::new(GatedFile {
            file,
            gate: self.gate.clone(),
        }))
    }
    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        self.disk.create_dir_all(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.disk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        self.disk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        self.disk.remove_dir_all(path)
    }
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        self.disk.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> Result<(), DiskError> {
        self.disk.sync_dir(dir)
    }
    fn free_bytes(&self, dir: &Path) -> Result<u64, DiskError> {
        self.disk.free_bytes(dir)
    }
    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError> {
        self.disk.lock(path)
    }
}

impl DiskFile for GatedFile {
    fn path(&self) -> &Path {
        self.file.path()
    }
    fn len(&self) -> Result<u64, DiskError> {
        self.file.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        self.file.read_at(at, buf)
    }
    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.file.write_at(at, parts)
    }
    fn sync_data(&self) -> Result<(), DiskError> {
        self.gate.pass();
        let result = self.file.sync_data();
        if result.is_err() {
            self.gate.hold_failure();
        }
        result
    }
    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        let result = self.file.set_len(len);
        self.gate.state.lock().cuts += 1;
        self.gate.changed.notify_all();
        result
    }
    fn reserve(&self, len: u64) -> Result<(), DiskError> {
        self.file.reserve(len)
    }
    fn freeze(&self, len: u64) {
        self.file.freeze(len);
    }
    fn frozen(&self) -> u64 {
        self.file.frozen()
    }
    fn map(&self, len: u64) -> Result<(), DiskError> {
        self.file.map(len)
    }
    fn slice(&self, at: u64, len: usize) -> Option<Bytes> {
        self.file.slice(at, len)
    }
}

/// Counts rounds; fails or panics on demand.
#[derive(Debug, Default)]
struct Rounds {
    rounds: AtomicU64,
    recorded: Mutex<Vec<Vec<LogEnd>>>,
    refuse: Mutex<Option<Poisoned>>,
}

impl RoundObserver for Rounds {
    fn record(&self, ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned> {
        self.recorded
            .lock()
            .push(ends.iter().map(|(_, end)| *end).collect());
        self.refuse.lock().clone().map_or(Ok(()), Err)
    }

    fn finished(&self, _logs: usize, _took: Duration) {
        self.rounds.fetch_add(1, Ordering::SeqCst);
    }
}

/// A log's owner that remembers what it was told, and by which thread.
#[derive(Debug)]
struct Owner {
    log: LogSync,
    told: Mutex<Vec<(Result<LogEnd, String>, thread::ThreadId)>>,
    changed: Condvar,
    panics: AtomicUsize,
}

impl Owner {
    fn new(log: &Log) -> Arc<Self> {
        Arc::new(Self {
            log: log.sync_handle(),
            told: Mutex::default(),
            changed: Condvar::new(),
            panics: AtomicUsize::new(0),
        })
    }

    fn wait(&self, times: usize) -> Vec<Result<LogEnd, String>> {
        let mut told = self.told.lock();
        while told.len() < times {
            self.changed.wait(&mut told);
        }
        told.iter().map(|(result, _)| result.clone()).collect()
    }

    /// Waits until it is told of a durable end at or past `end`.
    fn wait_for(&self, end: LogEnd) {
        let mut told = self.told.lock();
        let reached = |told: &[(Result<LogEnd, String>, _)]| {
            told.iter()
                .any(|(result, _)| result.as_ref().is_ok_and(|got| got.offset >= end.offset))
        };
        while !reached(&told) {
            self.changed.wait(&mut told);
        }
    }
}

impl SyncTarget for Owner {
    fn log(&self) -> &LogSync {
        &self.log
    }

    fn synced(&self, result: &Result<LogEnd, Poisoned>) {
        if self.panics.load(Ordering::SeqCst) > 0 {
            self.panics.fetch_sub(1, Ordering::SeqCst);
            panic!("an owner panics, as this test wants it");
        }
        let result = result.as_ref().map(|end| *end).map_err(Poisoned::to_string);
        self.told.lock().push((result, thread::current().id()));
        self.changed.notify_all();
    }
}

/// Logs on one disk, each in its own directory.
fn logs(disk: &GatedDisk, count: usize) -> Vec<Log> {
    disk.create_dir_all(Path::new("/data")).unwrap();
    (0..count)
        .map(|n| {
            let dir = Path::new("/data").join(format!("log-{n}"));
            Log::create(Arc::new(disk.clone()), &dir, identity(), large(), at(0)).unwrap()
        })
        .collect()
}

fn gated() -> GatedDisk {
    GatedDisk {
        disk: SimDisk::new(1),
        gate: Arc::default(),
    }
}

fn targets(owners: &[Arc<Owner>]) -> Vec<Arc<dyn SyncTarget>> {
    owners
        .iter()
        .map(|owner| owner.clone() as Arc<dyn SyncTarget>)
        .collect()
}

fn config(threads_max: usize, patience: Duration) -> SyncConfig {
    SyncConfig {
        threads_max,
        patience,
        ..SyncConfig::default()
    }
}

/// A coordinator that takes no round to hang, however slow the machine is.
fn patient(rounds: Arc<Rounds>, threads: usize) -> std::io::Result<SyncCoordinator> {
    SyncCoordinator::start(rounds, config(threads, Duration::MAX))
}

#[test]
fn one_log_alone_is_synced_by_the_thread_that_asks() {
    let disk = gated();
    let mut log = logs(&disk, 1).pop().unwrap();
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 4).unwrap();
    let owner = Owner::new(&log);
    append(&mut log, batch(1, 10));
    coordinator.sync(targets(std::slice::from_ref(&owner)));
    assert_eq!(
        *owner.told.lock(),
        [(Ok(log.end()), thread::current().id())]
    );
    assert_eq!(*rounds.recorded.lock(), [[log.end()]]);
    assert_eq!(log.reader().durable(), log.end());
    coordinator.sync(Vec::new());
    assert_eq!(rounds.rounds.load(Ordering::SeqCst), 1);
}

#[test]
fn a_sync_that_nobody_waits_for_holds_its_caller_up_in_nothing() {
    let disk = gated();
    let mut log = logs(&disk, 1).pop().unwrap();
    let coordinator = patient(Arc::default(), 4).unwrap();
    let owner = Owner::new(&log);
    assert_eq!(log.sync_handle().unsynced_bytes(), 0);
    let before = log.end().position;
    append(&mut log, batch(1, 10));
    let written = log.end().position - before;
    assert_eq!(log.sync_handle().unsynced_bytes(), u64::from(written));
    disk.gate.shut();
    // Comes back, though the disk does not.
    coordinator.sync_behind(targets(std::slice::from_ref(&owner)));
    disk.gate.wait_until_somebody_waits();
    disk.gate.open();
    assert_eq!(owner.wait(1), [Ok(log.end())]);
    assert_ne!(owner.told.lock()[0].1, thread::current().id());
    assert_eq!(log.sync_handle().unsynced_bytes(), 0);
}

/// For as good as ever, here: the first is synced at once, the second with whoever waits next.
#[test]
fn syncs_that_nobody_waits_for_are_put_off() {
    let disk = gated();
    let mut logs = logs(&disk, 4);
    let rounds = Arc::new(Rounds::default());
    let unawaited_interval = Duration::from_secs(1 << 20);
    let config = SyncConfig {
        unawaited_interval,
        ..config(2, Duration::MAX)
    };
    let coordinator = SyncCoordinator::start(rounds.clone(), config).unwrap();
    let owners: Vec<_> = logs.iter().map(Owner::new).collect();
    for log in &mut logs {
        append(log, batch(1, 10));
    }
    coordinator.sync_behind(targets(&owners[..1]));
    assert_eq!(owners[0].wait(1), [Ok(logs[0].end())]);
    // Owners are told before the coordinator's thread is done with their round.
    let mut told = 1;
    while owners[0].told.lock()[told - 1].1 != thread::current().id() {
        coordinator.sync(targets(&owners[..1]));
        told += 1;
        owners[0].wait(told);
    }

    coordinator.sync_behind(targets(&owners[1..2]));
    // Alone, on this thread: what is put off stays so.
    coordinator.sync(targets(&owners[2..3]));
    assert_eq!(owners[2].told.lock().len(), 1);
    assert_eq!(owners[1].told.lock().len(), 0);
    // More than one go to the coordinator's thread, and take what waits along.
    coordinator.sync(targets(&owners[2..]));
    assert_eq!(owners[1].wait(1), [Ok(logs[1].end())]);
    assert_eq!(owners[3].wait(1), [Ok(logs[3].end())]);

    append(&mut logs[0], batch(1, 10));
    coordinator.sync_behind(targets(&owners[..1]));
    assert_eq!(owners[0].told.lock().len(), told);
    drop(coordinator);
    assert_eq!(
        owners[0].wait(told + 1)[told],
        Ok(logs[0].end()),
        "not put off beyond the stop"
    );
}

/// What hangs and asks again is no work for anybody, and must not pass for it.
#[test]
fn a_sync_that_nobody_waits_for_goes_on_beside_one_that_hangs() {
    let disk = gated();
    let mut logs = logs(&disk, 3);
    let rounds = Arc::new(Rounds::default());
    let coordinator =
        SyncCoordinator::start(rounds.clone(), config(2, Duration::from_millis(1))).unwrap();
    let owners: Vec<_> = logs.iter().map(Owner::new).collect();
    append(&mut logs[0], batch(1, 10));
    let hang = disk.disk.hang(OpFilter::op(DiskOp::Sync).on("log-0/"));
    coordinator.sync_behind(targets(&owners[..1]));
    hang.wait_until_one_hangs();
    // Once this one is served, the coordinator has given up waiting for what hangs.
    append(&mut logs[1], batch(1, 10));
    coordinator.sync(targets(&owners[..2]));
    owners[1].wait_for(logs[1].end());
    for _ in 0..20 {
        append(&mut logs[2], batch(1, 10));
        coordinator.sync_behind(targets(&owners[2..]));
        owners[2].wait_for(logs[2].end());
    }
    assert_eq!(owners[0].told.lock().len(), 0, "it hangs");
    drop(hang);
    owners[0].wait_for(logs[0].end());
}

#[test]
fn several_logs_are_synced_in_one_round() {
    let disk = gated();
    let mut logs = logs(&disk, 7);
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 3).unwrap();
    let owners: Vec<_> = logs.iter().map(Owner::new).collect();
    for log in &mut logs {
        append(log, batch(1, 10));
    }
    let mut twice = targets(&owners);
    twice.extend(targets(&owners[..2]));
    coordinator.sync(twice);
    for (owner, log) in owners.iter().zip(&logs) {
        assert_eq!(owner.wait(1), [Ok(log.end())]);
    }
    drop(coordinator);
    assert_eq!(rounds.recorded.lock().len(), 1);
    let ends: Vec<_> = logs.iter().map(Log::end).collect();
    assert_eq!(rounds.recorded.lock()[0], ends, "in order, each once");
}

#[test]
fn appends_that_wait_share_the_next_round() {
    let disk = gated();
    let mut log = logs(&disk, 1).pop().unwrap();
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 1).unwrap();
    let owner = Owner::new(&log);
    append(&mut log, batch(1, 10));
    let before = disk.gate.passed();
    disk.gate.shut();
    thread::scope(|scope| {
        scope.spawn(|| coordinator.sync(targets(std::slice::from_ref(&owner))));
        disk.gate.wait_until_somebody_waits();
        // A hundred appends while the first sync is under way: none of them waits for it.
        for _ in 0..100 {
            append(&mut log, batch(1, 10));
            coordinator.sync(targets(std::slice::from_ref(&owner)));
        }
        disk.gate.open();
    });
    owner.wait_for(log.end());
    drop(coordinator);
    assert_eq!(
        disk.gate.passed() - before,
        2,
        "one sync for the first, one for all others"
    );
    assert_eq!(rounds.rounds.load(Ordering::SeqCst), 2);
    assert_eq!(log.reader().durable(), log.end());
}

#[test]
fn many_threads_appending_to_one_log_share_syncs_and_all_are_answered() {
    const THREADS: usize = 8;
    const APPENDS: usize = 50;
    let disk = gated();
    let log = logs(&disk, 1).pop().unwrap();
    let reader = log.reader();
    let owner = Owner::new(&log);
    let log = Mutex::new(log);
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 2).unwrap();
    let before = disk.gate.passed();
    disk.gate.shut();
    let (appended, all_appended) = mpsc::sync_channel(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (log, coordinator, owner, appended) =
                (&log, &coordinator, &owner, appended.clone());
            scope.spawn(move || {
                for n in 0..APPENDS {
                    let end = {
                        let mut log = log.lock();
                        append(&mut log, batch(1, 20));
                        log.end()
                    };
                    if n == 0 {
                        appended.send(()).unwrap();
                    }
                    coordinator.sync(targets(std::slice::from_ref(owner)));
                    owner.wait_for(end);
                    assert!(owner.log.sync().unwrap().offset >= end.offset);
                }
            });
        }
        // All have one append waiting before the first sync is let through.
        for _ in 0..THREADS {
            all_appended.recv().unwrap();
        }
        disk.gate.wait_until_somebody_waits();
        disk.gate.open();
    });
    drop(coordinator);
    let appends = (THREADS * APPENDS) as u64;
    let syncs = disk.gate.passed() - before;
    assert!(syncs < appends, "{syncs} syncs for {appends} appends");
    assert_eq!(reader.durable_offset(), offset(appends));
    assert_eq!(read_all(&reader, offset(0)).unwrap().len() as u64, appends);
    // Ends are recorded in order.
    let recorded: Vec<_> = rounds
        .recorded
        .lock()
        .iter()
        .flatten()
        .map(|end| end.offset)
        .collect();
    assert!(recorded.is_sorted());
}

#[test]
fn a_failed_sync_poisons_its_round_and_nothing_else() {
    for threads in [1, 4] {
        let disk = gated();
        let mut logs = logs(&disk, 6);
        let rounds = Arc::new(Rounds::default());
        let coordinator = patient(rounds.clone(), threads).unwrap();
        let owners: Vec<_> = logs.iter().map(Owner::new).collect();
        for log in &mut logs {
            append(log, batch(1, 10));
        }
        // The last two are not in the round.
        let filter = OpFilter::op(DiskOp::Sync).on("log-1/");
        disk.disk
            .fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
        coordinator.sync(targets(&owners[..4]));
        for (owner, log) in owners.iter().zip(&mut logs).take(4) {
            let told = owner.wait(1);
            let [Err(cause)] = &told[..] else {
                panic!("{told:?}")
            };
            assert!(cause.contains("log-1/"), "all are told the cause: {cause}");
            assert!(log.append(&mut [batch(1, 1)], at(0)).is_err());
        }
        coordinator.sync(targets(&owners[4..]));
        for (owner, log) in owners.iter().zip(&mut logs).skip(4) {
            assert_eq!(owner.wait(1), [Ok(log.end())]);
            append(log, batch(1, 1));
        }
        drop(coordinator);
        assert_eq!(
            rounds.recorded.lock().len(),
            1,
            "a failed round is not recorded"
        );
    }
}

#[test]
fn a_log_that_was_poisoned_before_does_not_harm_others() {
    let disk = gated();
    let mut logs = logs(&disk, 3);
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 2).unwrap();
    let owners: Vec<_> = logs.iter().map(Owner::new).collect();
    disk.disk.fail_nth(
        OpFilter::op(DiskOp::Write),
        1,
        InjectedError::Io,
        FailMode::Once,
    );
    logs[0].append(&mut [batch(1, 1)], at(0)).unwrap_err();
    for log in &mut logs[1..] {
        append(log, batch(1, 10));
    }
    for round in 1..3 {
        coordinator.sync(targets(&owners));
        assert!(owners[0].wait(round).iter().all(Result::is_err));
        assert_eq!(owners[1].wait(round)[round - 1], Ok(logs[1].end()));
        assert_eq!(owners[2].wait(round)[round - 1], Ok(logs[2].end()));
        for log in &mut logs[1..] {
            append(log, batch(1, 10));
        }
    }
    // Alone, too; and it keeps its first cause when a round of others fails around it.
    let first = owners[0].wait(1)[0].clone();
    disk.disk.fail_nth(
        OpFilter::op(DiskOp::Sync),
        1,
        InjectedError::Io,
        FailMode::Once,
    );
    coordinator.sync(targets(&owners));
    assert_eq!(owners[0].wait(3)[2], first);
    assert!(owners[1].wait(3)[2].is_err());
}

#[test]
fn a_round_that_cannot_be_recorded_poisons_its_logs() {
    let disk = gated();
    let mut log = logs(&disk, 1).pop().unwrap();
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 1).unwrap();
    let owner = Owner::new(&log);
    append(&mut log, batch(1, 10));
    let source = std::io::Error::other("the state file is full");
    let cause = Arc::new(DiskError::new(DiskOp::Write, Path::new("/state"), source));
    *rounds.refuse.lock() = Some(Poisoned { cause });
    coordinator.sync(targets(std::slice::from_ref(&owner)));
    let told = owner.wait(1);
    assert!(
        told[0]
            .as_ref()
            .is_err_and(|cause| cause.contains("state file is full"))
    );
    assert!(log.append(&mut [batch(1, 1)], at(0)).is_err());
}

#[test]
fn an_owner_that_panics_stops_no_other() {
    let disk = gated();
    let mut logs = logs(&disk, 3);
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 2).unwrap();
    let owners: Vec<_> = logs.iter().map(Owner::new).collect();
    for log in &mut logs {
        append(log, batch(1, 10));
    }
    // Inline, and on the coordinator's thread.
    owners[0].panics.store(1, Ordering::SeqCst);
    coordinator.sync(targets(&owners[..1]));
    assert!(
        owners[0].wait(1)[0].is_err(),
        "it is told again, that the round failed"
    );
    owners[1].panics.store(2, Ordering::SeqCst);
    coordinator.sync(targets(&owners[..2]));
    owners[0].wait(2);
    coordinator.sync(targets(&owners[2..]));
    assert_eq!(owners[2].wait(1), [Ok(logs[2].end())]);
    for log in &mut logs[..2] {
        assert!(
            log.append(&mut [batch(1, 1)], at(0)).is_err(),
            "its logs are poisoned"
        );
    }
}

/// One after the other hangs; as long as there are rounds left, the others go on beside them.
#[test]
fn a_sync_that_hangs_holds_up_no_other_log() {
    let disk = gated();
    let mut logs = logs(&disk, 6);
    let rounds = Arc::new(Rounds::default());
    let coordinator =
        SyncCoordinator::start(rounds.clone(), config(2, Duration::from_millis(1))).unwrap();
    let owners: Vec<_> = logs.iter().map(Owner::new).collect();
    thread::scope(|scope| {
        let mut hung = Vec::new();
        for n in 0..3 {
            append(&mut logs[n], batch(1, 10));
            let hang = disk
                .disk
                .hang(OpFilter::op(DiskOp::Sync).on(&format!("log-{n}/")));
            let (asks, owner) = (coordinator.clone(), owners[n..=n].to_vec());
            scope.spawn(move || asks.sync(targets(&owner)));
            hang.wait_until_one_hangs();
            hung.push(hang);
            for log in 3..6 {
                let end = {
                    append(&mut logs[log], batch(1, 10));
                    logs[log].end()
                };
                // Beside what hangs and asks again.
                coordinator.sync(targets(&[owners[n].clone(), owners[log].clone()]));
                owners[log].wait_for(end);
            }
            for owner in &owners[..=n] {
                assert_eq!(owner.told.lock().len(), 0, "it hangs");
            }
        }
        // It heals, and nobody was forgotten, whatever came meanwhile.
        for n in 0..3 {
            append(&mut logs[n], batch(1, 10));
            coordinator.sync(targets(&owners[n..=n]));
        }
        drop(hung);
        for (owner, log) in owners.iter().zip(&logs) {
            owner.wait_for(log.end());
        }
    });
    assert!(logs.iter().all(|log| log.reader().poisoned().is_none()));
    drop(coordinator);
    assert_eq!(Arc::strong_count(&rounds), 1, "the threads are gone");
}

#[test]
fn stopping_serves_who_waits_and_ends_the_thread() {
    let disk = gated();
    let mut logs = logs(&disk, 3);
    let rounds = Arc::new(Rounds::default());
    let coordinator = patient(rounds.clone(), 1).unwrap();
    let owners: Vec<_> = logs.iter().map(Owner::new).collect();
    for log in &mut logs {
        append(log, batch(1, 10));
    }
    disk.gate.shut();
    coordinator.sync(targets(&owners[..2]));
    disk.gate.wait_until_somebody_waits();
    coordinator.sync(targets(&owners[2..]));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Once the coordinator is being dropped, or before: either way it must come to an end.
            disk.gate.open();
        });
        drop(coordinator);
    });
    // `drop` waited for the thread: all has happened.
    for (owner, log) in owners.iter().zip(&logs) {
        let told = owner.told.lock();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, Ok(log.end()));
    }
    assert_eq!(Arc::strong_count(&rounds), 1, "the thread is gone");
}

#[test]
fn a_sync_that_fails_beside_a_roll_is_not_covered_up_by_it() {
    // The kernel tells of a failure once: whoever syncs next is told that all is well.
    for _ in 0..20 {
        let disk = gated();
        let mut log = logs(&disk, 1).pop().unwrap();
        append(&mut log, batch(1, 10));
        let handle = log.sync_handle();
        let filter = OpFilter::op(DiskOp::Sync);
        disk.disk
            .fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
        disk.gate.state.lock().holds_failures = true;
        thread::scope(|scope| {
            let other = scope.spawn(move || handle.sync());
            disk.gate.wait_until_somebody_waits();
            let rolled = log.roll(at(0));
            assert!(other.join().unwrap().is_err());
            assert!(rolled.is_err(), "the roll took lost bytes for durable");
        });
        assert_eq!(log.reader().durable_offset(), offset(0));
    }
}

#[test]
fn reads_go_on_while_others_append_roll_trim_and_sync() {
    let disk = SimDisk::new(9);
    let mut log = create(&disk, small());
    let reader = log.reader();
    let syncer = log.sync_handle();
    let total = 3000_u64;
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..3 {
            let (reader, done) = (reader.clone(), &done);
            scope.spawn(move || {
                let mut rng = tidelog_sim::SimRng::new(n);
                while done.load(Ordering::SeqCst) == 0 {
                    let start = reader.log_start();
                    let end = reader.durable_offset();
                    if start >= end {
                        continue;
                    }
                    let from = start.get() + rng.below(end.get() - start.get());
                    match read(&reader, offset(from), end, 500) {
                        Ok((batches, _)) => {
                            let mut next = from;
                            for part in batches.parts {
                                for batch in tidelog_record::split_batches(part, BATCH_MAX) {
                                    let batch = batch.unwrap();
                                    assert_eq!(batch.header().base_offset, next as i64);
                                    next += 1;
                                }
                            }
                            assert!(next > from, "something is there below the durable end");
                            assert_eq!(batches.next_offset, offset(next));
                        }
                        Err(tidelog_log::ReadError::OutOfRange { start, .. }) => {
                            assert!(start > offset(from), "it was trimmed meanwhile");
                        }
                        Err(e) => panic!("{e}"),
                    }
                    let millis = i64::try_from(from).unwrap();
                    let found = reader.find_timestamp(at(millis), end).unwrap();
                    if let Some((found, _)) = found {
                        assert!(found >= offset(from));
                    }
                    assert!(!reader.segments().is_empty());
                }
            });
        }
        scope.spawn(|| {
            while done.load(Ordering::SeqCst) == 0 {
                syncer.sync().unwrap();
            }
        });
        for n in 0..total {
            let millis = i64::try_from(n).unwrap();
            let batch = batch_of(
                &[(millis, b"some value or other")],
                tidelog_record::Compression::None,
            );
            append(&mut log, batch);
            if n % 97 == 96 {
                let durable = log.reader().durable_offset();
                let to = offset(durable.get() / 2).max(log.end().log_start);
                log.trim(to, durable).unwrap();
            }
            if n % 301 == 300 {
                log.begin_epoch(log.end().epoch.next().unwrap()).unwrap();
            }
        }
        log.sync().unwrap();
        done.store(1, Ordering::SeqCst);
    });
    assert_eq!(reader.durable_offset(), offset(total));
    let end = log.close().unwrap();
    let (log, _) = open(&disk, small(), Some(end)).unwrap();
    read_all(&log.reader(), log.reader().log_start()).unwrap();
}
