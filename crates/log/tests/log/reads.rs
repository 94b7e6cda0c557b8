//! What a log reads and writes, counted.

use std::io::IoSlice;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tidelog_disk::{DirEntry, DirLock, Disk, DiskError, DiskFile, LockError, OpenHow};
use tidelog_log::{
    Found, Log, LogEnd, LogOptions, LogSync, Poisoned, ReadTurns, SyncConfig, SyncCoordinator,
    SyncTarget,
};
use tidelog_record::Offset;
use tidelog_sim::SimDisk;

use crate::common::*;

/// A disk that notes which bytes are read, and which calls change something.
#[derive(Clone, Debug)]
struct CountedDisk {
    disk: SimDisk,
    calls: Arc<Mutex<Calls>>,
}

#[derive(Debug, Default)]
struct Calls {
    reads: Vec<(PathBuf, Range<u64>)>,
    writes: Vec<(PathBuf, Range<u64>)>,
    /// Opened files that were asked to read nothing ahead.
    exact: Vec<PathBuf>,
    changes: Vec<(&'static str, PathBuf)>,
}

#[derive(Debug)]
struct CountedFile {
    file: Arc<dyn DiskFile>,
    calls: Arc<Mutex<Calls>>,
}

impl CountedFile {
    fn changes(&self, call: &'static str) {
        let path = self.file.path().to_owned();
        self.calls.lock().changes.push((call, path));
    }
}

impl Disk for CountedDisk {
    fn open(&self, path: &Path, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.disk.open(path, how)?;
        let calls = self.calls.clone();
        Ok(Arc::new(CountedFile { file, calls }))
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

impl DiskFile for CountedFile {
    fn path(&self) -> &Path {
        self.file.path()
    }
    fn len(&self) -> Result<u64, DiskError> {
        self.file.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        let read = self.file.read_at(at, buf)?;
        let path = self.file.path().to_owned();
        self.calls.lock().reads.push((path, at..at + read as u64));
        Ok(read)
    }
    fn write_at(&self, at: u64, parts: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.changes("write");
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let path = self.file.path().to_owned();
        self.calls.lock().writes.push((path, at..at + len as u64));
        self.file.write_at(at, parts)
    }
    fn read_nothing_ahead(&self) {
        self.calls.lock().exact.push(self.file.path().to_owned());
    }
    fn sync_data(&self) -> Result<(), DiskError> {
        self.changes("sync");
        self.file.sync_data()
    }
    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.changes("set_len");
        self.file.set_len(len)
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

/// What an open after a kill did.
struct Opened {
    log: Log,
    checkpoint: LogEnd,
    end: LogEnd,
    newest: PathBuf,
    calls: Calls,
}

impl Opened {
    /// Bytes of segments that were read below the checkpoint.
    fn read_below(&self) -> u64 {
        let position = u64::from(self.checkpoint.position);
        let of_segments = self
            .calls
            .reads
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "log"));
        let below = of_segments.map(|(path, read)| {
            let end = if *path == self.newest {
                read.end.min(position)
            } else {
                read.end
            };
            end.saturating_sub(read.start)
        });
        below.sum()
    }

    fn changed_segments(&self) -> Vec<&'static str> {
        let of_segments = self
            .calls
            .changes
            .iter()
            .filter(|(_, path)| path.extension().is_some_and(|e| e == "log"));
        of_segments.map(|(call, _)| *call).collect()
    }
}

/// What an open may read again below the checkpoint: what the index had not been told yet, 256 entries
/// of `index_interval_bytes`; what came since the last snapshot of the producers, 8 MiB; and the
/// header of each segment.
const BELOW_MAX: u64 = (256 * INTERVAL as u64) + (8 << 20) + (1 << 17);
const INTERVAL: u32 = 16 << 10;
const BATCH: usize = 60_000;

/// Writes `synced` batches and syncs them, then `unsynced` more; kills the process, and opens the log.
fn open_after_kill(synced: usize, unsynced: usize) -> Opened {
    let disk = disk();
    let options = LogOptions {
        segment_bytes: 16 << 20,
        index_interval_bytes: INTERVAL,
        ..large()
    };
    let mut log = create(&disk, options);
    for _ in 0..synced {
        append(&mut log, batch(1, BATCH));
    }
    let checkpoint = log.sync().unwrap();
    for _ in 0..unsynced {
        append(&mut log, batch(1, BATCH));
    }
    let end = log.end();
    let newest = log.reader().segments().pop().unwrap().path;
    disk.kill();
    let calls = Arc::default();
    let counted = CountedDisk {
        disk,
        calls: Arc::clone(&calls),
    };
    let opened = Log::open(
        Arc::new(counted),
        &dir(),
        identity(),
        options,
        Some(checkpoint),
    );
    let (log, recovery) = opened.unwrap();
    assert_eq!(recovery.torn_bytes, 0);
    let calls: Calls = std::mem::take(&mut *calls.lock());
    Opened {
        log,
        checkpoint,
        end,
        newest,
        calls,
    }
}

#[test]
fn after_a_kill_what_lies_past_the_checkpoint_is_read_and_little_else() {
    for synced in [100, 250, 800] {
        let opened = open_after_kill(synced, 20);
        assert_eq!(opened.log.end(), opened.end);
        let below = opened.read_below();
        assert!(
            below <= BELOW_MAX,
            "{below} bytes were read below the checkpoint, of {synced} batches"
        );
        // What lies past it is read in whole: each byte of it could be torn.
        let position = u64::from(opened.checkpoint.position);
        let past = opened.calls.reads.iter();
        let past = past.filter(|(path, _)| *path == opened.newest);
        let past: u64 = past
            .map(|(_, read)| read.end.saturating_sub(read.start.max(position)))
            .sum();
        assert!(past >= u64::from(opened.end.position) - position);
    }
}

#[test]
fn after_a_kill_without_unsynced_appends_no_segment_is_changed_or_synced() {
    let opened = open_after_kill(50, 0);
    assert_eq!(opened.log.end(), opened.checkpoint);
    assert_eq!(opened.changed_segments(), Vec::<&str>::new());

    // What may not have reached the device is written again.
    let mut opened = open_after_kill(50, 1);
    assert_eq!(opened.changed_segments(), ["write", "sync"]);
    append(&mut opened.log, batch(1, BATCH));
    opened.log.sync().unwrap();
    let all = read_all(&opened.log.reader(), Offset::ZERO).unwrap();
    assert_eq!(all.len(), 52);
}

/// How long the writes of zeros ahead were, of `appends` appends of 1,000 bytes.
fn filled(appends: usize, synced_every: usize) -> Vec<u64> {
    let disk = disk();
    let calls: Arc<Mutex<Calls>> = Arc::default();
    let counted = CountedDisk {
        disk: disk.clone(),
        calls: Arc::clone(&calls),
    };
    let mut log = Log::create(Arc::new(counted), &dir(), identity(), large(), at(0)).unwrap();
    let mut ahead = Vec::new();
    for number in 1..=appends {
        let before = u64::from(log.end().position);
        append(&mut log, batch(1, 1000));
        if number % synced_every == 0 {
            log.sync().unwrap();
        }
        let end = u64::from(log.end().position);
        for (path, range) in std::mem::take(&mut calls.lock().writes) {
            if range.end > end && path.extension().is_some_and(|e| e == "log") {
                assert!(range.start >= before, "{range:?} after {before}");
                ahead.push(range.end - range.start);
            }
        }
    }
    let checkpoint = log.sync().unwrap();
    drop(log);
    disk.crash();
    let (log, recovery) = open(&disk, large(), Some(checkpoint)).unwrap();
    assert_eq!(recovery.torn_bytes, 0);
    let records = read_all(&log.reader(), Offset::ZERO).unwrap().len();
    assert_eq!(records, appends);
    ahead
}

#[test]
fn space_ahead_is_filled_where_each_sync_covers_little() {
    let ahead = filled(1000, 1);
    assert!(!ahead.is_empty());
    assert!(
        ahead.iter().all(|len| (60_000..=140_000).contains(len)),
        "{ahead:?}"
    );
    // Steps of 128 syncs each, and the first one, of which nothing was known.
    assert!(ahead.len() >= 5, "{ahead:?}");
}

#[test]
fn space_ahead_is_left_where_each_sync_covers_much() {
    assert_eq!(filled(1000, 250), []);
    assert_eq!(filled(300, usize::MAX), []);
}

/// Reads from the beginning, after a sync when there is a coordinator; gives what was read, and the
/// reads of the segment.
fn read_cold(turns: Option<&ReadTurns>) -> (Vec<Bytes>, Vec<u64>, bool) {
    let disk = disk();
    let mut log = create(&disk, large());
    for _ in 0..20 {
        append(&mut log, batch(1, 50_000));
    }
    let checkpoint = log.close().unwrap();
    let calls: Arc<Mutex<Calls>> = Arc::default();
    let counted = CountedDisk {
        disk,
        calls: Arc::clone(&calls),
    };
    let mut log = Log::open(
        Arc::new(counted),
        &dir(),
        identity(),
        large(),
        Some(checkpoint),
    )
    .unwrap()
    .0;
    // So that the first segment is read from a file that is opened for it.
    for _ in 0..2 {
        append(&mut log, batch(1, 10));
        log.sync().unwrap();
        log.roll(at(0)).unwrap();
    }
    let reader = log.reader();
    let Found::Cold(cold) = reader.read(Offset::ZERO, offset(20), 1 << 20).unwrap() else {
        panic!("old data is read from the disk");
    };
    *calls.lock() = Calls::default();
    let batches = match turns {
        Some(turns) => cold.run_beside(turns).unwrap(),
        None => cold.run().unwrap(),
    };
    assert_eq!(batches.next_offset, offset(20));
    let calls = std::mem::take(&mut *calls.lock());
    let of_segment = calls.reads.iter().filter(|(path, _)| *path == segment(0));
    let lengths = of_segment
        .map(|(_, range)| range.end - range.start)
        .collect();
    (batches.parts, lengths, !calls.exact.is_empty())
}

#[test]
fn old_data_is_read_little_by_little_beside_syncs() {
    let (parts, lengths, is_exact) = read_cold(None);
    assert!(lengths.iter().any(|len| *len > 1_000_000), "{lengths:?}");
    assert!(!is_exact);

    // Nothing is synced through this coordinator.
    let coordinator = coordinator();
    let quiet = coordinator.read_turns();
    assert_eq!(read_cold(Some(&quiet)), (parts.clone(), lengths, false));

    let disk = disk();
    let mut other = create(&disk, large());
    append(&mut other, batch(1, 10));
    let owner: Arc<dyn SyncTarget> = Arc::new(Nobody(other.sync_handle()));
    coordinator.sync(vec![owner]);
    let (same, lengths, is_exact) = read_cold(Some(&quiet));
    assert_eq!(same, parts);
    assert!(lengths.iter().all(|len| *len < 200_000), "{lengths:?}");
    assert_eq!(lengths.iter().filter(|len| **len == 32 << 10).count(), 9);
    assert!(is_exact, "what is read ahead is as long as ever");
}

/// As for a replica that catches up: long batches are read once, and little beside them.
#[test]
fn entries_are_read_once_to_be_sent() {
    let disk = disk();
    let mut log = create(&disk, large());
    let mut bodies = 0;
    for _ in 0..64 {
        let before = log.end().position;
        append(&mut log, batch(1, 50_000));
        bodies += u64::from(log.end().position - before);
    }
    let checkpoint = log.close().unwrap();
    let calls: Arc<Mutex<Calls>> = Arc::default();
    let counted = CountedDisk {
        disk,
        calls: Arc::clone(&calls),
    };
    let checkpoint = Some(checkpoint);
    let opened = Log::open(Arc::new(counted), &dir(), identity(), large(), checkpoint);
    let log = opened.unwrap().0;
    *calls.lock() = Calls::default();
    let all = log.read_entries(log.first_index(), log.end_index(), u64::MAX);
    assert!(all.unwrap().len() >= 64);
    let reads = std::mem::take(&mut calls.lock().reads);
    let read: u64 = reads.iter().map(|(_, range)| range.end - range.start).sum();
    assert!(
        (bodies..bodies + bodies / 8).contains(&read),
        "{read} of {bodies}"
    );
}

/// The owner of a log who has nobody to tell.
#[derive(Debug)]
struct Nobody(LogSync);

impl SyncTarget for Nobody {
    fn log(&self) -> &LogSync {
        &self.0
    }
    fn synced(&self, result: &Result<LogEnd, Poisoned>) {
        result.as_ref().unwrap();
    }
}

fn coordinator() -> SyncCoordinator {
    SyncCoordinator::start(Arc::new(Unrecorded), SyncConfig::default()).unwrap()
}
