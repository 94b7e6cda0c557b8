//! A log under Raft's hands, beside a list of what must be in it: appended to, committed, taken back,
//! crashed, failing, and read by index and by offset.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tidelog_disk::{Disk, DiskOp};
use tidelog_log::{
    EntriesError, EntryError, EntryInfo, EntryKind, InternalKind, Log, LogEnd, LogEntry,
    LogOptions, LogSync, Poisoned, ReadError, ReplicateError, RoundObserver, SyncConfig,
    SyncCoordinator, SyncTarget, TruncateError,
};
use tidelog_record::{LeaderEpoch, RaftIndex};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

use crate::common::*;
use crate::producers::batch_by;
use crate::seeds::each_seed;

pub(crate) fn at_index(index: u64) -> RaftIndex {
    RaftIndex::new(index)
}

pub(crate) fn epoch(value: u32) -> LeaderEpoch {
    LeaderEpoch::new(value).unwrap()
}

pub(crate) fn create_replica(disk: &SimDisk, options: LogOptions) -> Log {
    disk.create_dir_all(Path::new("/data")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    Log::create_replica(dynamic(disk), &dir(), identity(), options, at(0)).unwrap()
}

pub(crate) fn reopen(disk: &SimDisk, options: LogOptions, checkpoint: LogEnd, commit: u64) -> Log {
    let commit = at_index(commit);
    let disk: Arc<dyn Disk> = dynamic(disk);
    Log::open_replica(disk, &dir(), identity(), options, Some(checkpoint), commit)
        .unwrap()
        .0
}

/// An entry of the list: as it stands in the log.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    epoch: u32,
    kind: EntryKind,
    bytes: Bytes,
    records: u64,
    /// Of a log start.
    log_start: u64,
}

impl Entry {
    fn new(entry: &LogEntry, epoch: u32, records: u64, log_start: u64) -> Self {
        let (header, body) = entry.parts();
        let bytes = [&header[..], &body[..]].concat().into();
        Self {
            epoch,
            kind: entry.kind(),
            bytes,
            records,
            log_start,
        }
    }
}

/// A list of entries; the first has the index 6.
#[derive(Clone, Debug, Default)]
struct List {
    entries: Vec<Entry>,
}

const FIRST: u64 = 6;

impl List {
    fn end(&self) -> u64 {
        FIRST + self.entries.len() as u64
    }

    fn offset_at(&self, index: u64) -> u64 {
        self.before(index).map(|entry| entry.records).sum()
    }

    fn epoch_before(&self, index: u64) -> u32 {
        self.before(index).last().map_or(5, |entry| entry.epoch)
    }

    fn log_start_at(&self, index: u64) -> u64 {
        self.before(index)
            .map(|entry| entry.log_start)
            .max()
            .unwrap_or(0)
    }

    fn before(&self, index: u64) -> impl Iterator<Item = &Entry> {
        self.entries[..usize::try_from(index - FIRST).unwrap()].iter()
    }
}

struct Run {
    rng: SimRng,
    disk: SimDisk,
    options: LogOptions,
    log: Log,
    list: List,
    /// What the log may hold after a write that failed: one of these from its front on.
    maybe: List,
    commit: u64,
    /// The largest commit there was: nothing up to it is ever taken back.
    ever_committed: u64,
    /// The commit that raised the log start: remembered across every stop.
    kept_commit: u64,
    durable: u64,
    checkpoint: LogEnd,
    /// Slices that were handed out, and what they were then.
    held: Vec<(Bytes, Vec<u8>)>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let options = small();
        let log = create_replica(&disk, options);
        Self {
            rng: SimRng::new(seed),
            checkpoint: log.end(),
            disk,
            options,
            log,
            list: List::default(),
            maybe: List::default(),
            commit: FIRST - 1,
            ever_committed: FIRST - 1,
            kept_commit: FIRST - 1,
            durable: FIRST - 1,
            held: Vec::new(),
        }
    }

    fn one_of(&mut self, from: u64, to: u64) -> u64 {
        from + self.rng.below(to - from)
    }

    /// What a leader of `epoch` would append now.
    fn make(&mut self, epoch_now: u32, count: u64) -> Vec<(LogEntry, Entry)> {
        let mut made = Vec::new();
        let mut records = 0;
        for ahead in 0..count {
            let before = made.last().map_or(
                self.list.epoch_before(self.list.end()),
                |(_, e): &(_, Entry)| e.epoch,
            );
            let internal = |kind| {
                let entry = self
                    .log
                    .next_internal(kind, epoch(epoch_now), ahead, records);
                LogEntry::internal(&entry.unwrap())
            };
            let committed = self.list.offset_at(self.commit + 1);
            let roll = self.rng.below(10);
            let (entry, count, log_start) = if epoch_now > before {
                (internal(InternalKind::RaftEmpty), 0, 0)
            } else if roll == 0 {
                let change = Bytes::from(vec![7; 1 + usize::try_from(ahead).unwrap()]);
                (internal(InternalKind::RaftConfChange(change)), 0, 0)
            } else if roll == 1 {
                let to = self.rng.below(committed + 1);
                (internal(InternalKind::LogStart(offset(to))), 0, to)
            } else {
                let count = 1 + self.rng.below(3);
                let len = usize::try_from(self.rng.below(300)).unwrap();
                let mut batch = batch(usize::try_from(count).unwrap(), len);
                let base = self.list.offset_at(self.list.end()) + records;
                batch.stamp(offset(base), epoch(epoch_now));
                (LogEntry::batch(&batch), count, 0)
            };
            records += count;
            let listed = Entry::new(&entry, epoch_now, count, log_start);
            made.push((entry, listed));
        }
        made
    }

    fn append(&mut self) -> Result<(), String> {
        let epoch_now = self.list.epoch_before(self.list.end());
        let epoch_now =
            epoch_now + u32::from(self.rng.chance(15)) * (1 + u32::from(self.rng.chance(30)));
        let count = 1 + self.rng.below(6);
        let made = self.make(epoch_now, count);
        let (entries, listed): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        self.maybe = self.list.clone();
        self.maybe.entries.extend(listed.iter().cloned());
        let mut done = 0;
        while done < entries.len() {
            let taken = self.log.append_entries(&entries[done..], at(0));
            let taken = taken.map_err(|e| e.to_string())?;
            assert!(taken > 0);
            self.list
                .entries
                .extend_from_slice(&listed[done..done + taken]);
            done += taken;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), String> {
        let end = self.log.sync().map_err(|e| e.to_string())?;
        assert_eq!(end.index.get(), self.list.end());
        self.durable = self.list.end() - 1;
        if self.rng.chance(70) {
            self.checkpoint = end;
        }
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), String> {
        let from = self.one_of(self.ever_committed + 1, self.list.end() + 1);
        let end = self.log.end_before(at_index(from)).unwrap();
        self.maybe = self.list.clone();
        let checkpoint = &mut self.checkpoint;
        let set_back = |end: LogEnd| {
            if end.index < checkpoint.index {
                *checkpoint = end;
            }
            Ok(())
        };
        let cut = self.log.truncate(at_index(from), set_back);
        assert_eq!(cut.map_err(|e| e.to_string())?, end);
        let is_cut = from < self.list.end();
        self.list
            .entries
            .truncate(usize::try_from(from - FIRST).unwrap());
        self.maybe = self.list.clone();
        if is_cut {
            self.durable = from - 1;
        }
        assert_eq!(self.log.end().index.get(), self.list.end());
        Ok(())
    }

    fn commit(&mut self) {
        let before = self.list.log_start_at(self.commit + 1);
        self.commit = self.one_of(self.commit, self.durable.max(self.commit) + 1);
        if self.list.log_start_at(self.commit + 1) > before {
            self.kept_commit = self.commit;
        }
        self.ever_committed = self.ever_committed.max(self.commit);
        let end = self.log.commit_to(at_index(self.commit));
        assert_eq!(end.index.get(), self.commit + 1);
        assert_eq!(end.offset.get(), self.list.offset_at(self.commit + 1));
    }

    /// Opens the log after a stop; what was not durable may be there or not.
    fn reopen(&mut self, crashes: bool) {
        if crashes {
            self.disk.crash();
        } else {
            self.disk.kill();
        }
        let known = self.one_of(FIRST - 1, self.commit + 1);
        let known = known.max(self.kept_commit);
        self.log = reopen(&self.disk, self.options, self.checkpoint, known);
        let end = self.log.end().index.get();
        assert!(
            end > self.durable.min(self.checkpoint.index.get() - 1),
            "durable entries are gone"
        );
        assert!(end >= self.checkpoint.index.get());
        let mut list = if end <= self.maybe.end() {
            self.maybe.clone()
        } else {
            self.list.clone()
        };
        assert!(end <= list.end());
        list.entries.truncate(usize::try_from(end - FIRST).unwrap());
        self.list = list;
        self.maybe = self.list.clone();
        self.durable = end - 1;
        self.checkpoint = self.log.end();
        // What was committed was durable here, or the others have it.
        self.commit = known.min(end - 1);
        assert_eq!(
            self.log.commit().get(),
            self.commit.max(self.log.first_index().get() - 1)
        );
        self.commit = self.log.commit().get();
    }

    fn check(&mut self) {
        let first = self.log.first_index().get();
        let end = self.list.end();
        assert_eq!(self.log.end_index().get(), end);
        assert!(
            first <= self.commit + 1,
            "nothing is removed that is not committed"
        );
        for index in [first - 1, self.one_of(first - 1, end)] {
            let known = self.log.epoch_of(at_index(index)).unwrap();
            assert_eq!(known.get(), self.list.epoch_before(index + 1), "of {index}");
        }
        if first < end {
            let from = self.one_of(first, end);
            let to = self.one_of(from, end) + 1;
            self.check_entries(from, to);
        }
        if first > FIRST {
            let gone = self.log.entries(at_index(first - 1), at_index(end), 1);
            assert!(matches!(gone, Err(EntriesError::Gone { .. })), "{gone:?}");
        }
        let reader = self.log.reader();
        let committed = self.list.offset_at(self.commit + 1);
        assert_eq!(reader.committed_offset().get(), committed);
        let start = self.list.log_start_at(self.commit + 1);
        assert_eq!(reader.log_start().get(), start);
        let from = self.one_of(start, committed + 1);
        let mut next = offset(from);
        let mut read_bytes = Vec::new();
        // Asked for more than may be read.
        let past = offset(self.list.offset_at(end).max(from));
        while next.get() < committed {
            let (batches, _) = read(&reader, next, past, 400).unwrap();
            assert!(!batches.is_empty(), "nothing at {next} below {committed}");
            for part in &batches.parts {
                read_bytes.extend_from_slice(part);
                if self.rng.chance(10) {
                    self.held.push((part.clone(), part.to_vec()));
                }
            }
            next = batches.next_offset;
        }
        assert_eq!(
            next.get(),
            committed.max(from),
            "no further than what is committed"
        );
        let mut at = 0;
        let mut expected = Vec::new();
        for entry in self.list.before(self.commit + 1) {
            at += entry.records;
            if entry.records > 0 && at > from {
                expected.extend_from_slice(&entry.bytes);
            }
        }
        assert_eq!(read_bytes, expected);
        for (slice, was) in &self.held {
            assert_eq!(slice, was, "a slice that was handed out changed");
        }
    }

    fn check_entries(&mut self, from: u64, to: u64) {
        let of = |index: u64| &self.list.entries[usize::try_from(index - FIRST).unwrap()];
        let bytes_max = self.rng.below(1500);
        let range = (at_index(from), at_index(to));
        let infos = self.log.entries(range.0, range.1, bytes_max).unwrap();
        let read = self.log.read_entries(range.0, range.1, bytes_max).unwrap();
        let mut bytes = 0;
        let mut count = 0;
        for index in from..to {
            let len = of(index).bytes.len() as u64;
            if index > from && bytes + len > bytes_max {
                break;
            }
            bytes += len;
            count += 1;
        }
        assert_eq!((infos.len(), read.len()), (count, count));
        for (index, (info, (same, bytes))) in (from..).zip(infos.iter().zip(&read)) {
            let entry = of(index);
            let expected = EntryInfo {
                index: at_index(index),
                epoch: epoch(entry.epoch),
                kind: entry.kind,
                len: u32::try_from(entry.bytes.len()).unwrap(),
            };
            assert_eq!((*info, *same), (expected, expected));
            assert_eq!(*bytes, entry.bytes);
            let change = self.log.conf_change(at_index(index)).unwrap();
            assert_eq!(change.is_some(), entry.kind == EntryKind::ConfChange);
        }
    }

    fn step(&mut self) {
        let fails = self.rng.chance(4);
        if fails {
            let nth = 1 + self.rng.below(8);
            let error = InjectedError::Io;
            self.disk
                .fail_nth(OpFilter::any(), nth, error, FailMode::Once);
        }
        let done = match self.rng.below(10) {
            0..4 => self.append(),
            4..6 => self.sync(),
            6 => self.take_back(),
            7 => {
                self.commit();
                Ok(())
            }
            8 => {
                if self.rng.chance(30) {
                    let crashes = self.rng.chance(60);
                    self.disk.stop_failing();
                    self.reopen(crashes);
                }
                Ok(())
            }
            _ => {
                self.disk.stop_failing();
                self.check();
                Ok(())
            }
        };
        self.disk.stop_failing();
        if done.is_err() || self.log.reader().poisoned().is_some() {
            let crashes = self.rng.chance(70);
            self.reopen(crashes);
            self.check();
        }
    }
}

#[test]
fn whatever_raft_does_the_log_holds_what_it_must() {
    let runs = each_seed("replica::whatever", |seed| {
        let mut run = Run::new(seed);
        for _ in 0..60 {
            run.step();
        }
        run.reopen(true);
        run.check();
        (run.list.end(), run.commit)
    });
    let furthest = runs.iter().map(|(end, _)| end).max();
    if runs.len() > 100 {
        assert!(furthest > Some(&40), "the runs hardly append: {furthest:?}");
    }
}

/// A batch that follows on the end of `log`, in `epoch_now`.
pub(crate) fn next_batch(log: &Log, epoch_now: u32) -> LogEntry {
    let mut batch = batch(2, 100);
    batch.stamp(log.end().offset, epoch(epoch_now));
    LogEntry::batch(&batch)
}

pub(crate) fn next_internal(log: &Log, kind: InternalKind, epoch_now: u32) -> LogEntry {
    LogEntry::internal(&log.next_internal(kind, epoch(epoch_now), 0, 0).unwrap())
}

pub(crate) fn begin(log: &mut Log, epoch_now: u32) {
    let entry = next_internal(log, InternalKind::RaftEmpty, epoch_now);
    assert_eq!(log.append_entries(&[entry], at(0)).unwrap(), 1);
}

#[test]
fn entries_that_do_not_follow_on_the_log_change_nothing() {
    let disk = disk();
    let mut log = create_replica(&disk, small());
    begin(&mut log, 6);
    let right = next_batch(&log, 6);
    assert_eq!(log.append_entries(&[right], at(0)).unwrap(), 1);
    let end = log.end();
    let mut elsewhere = batch(1, 10);
    elsewhere.stamp(offset(7), epoch(6));
    let ahead = log
        .next_internal(InternalKind::RaftEmpty, epoch(7), 1, 0)
        .unwrap();
    let wrong = [
        ("its offset", LogEntry::batch(&elsewhere)),
        ("its epoch", next_batch(&log, 7)),
        (
            "an epoch that is over",
            next_internal(&log, InternalKind::RaftEmpty, 5),
        ),
        ("its Raft index", LogEntry::internal(&ahead)),
    ];
    for (what, entry) in wrong {
        let refused = log.append_entries(std::slice::from_ref(&entry), at(0));
        assert!(
            matches!(refused, Err(ReplicateError::NotNext(_))),
            "{what}: {refused:?}"
        );
        // Behind one that does, it is left for the next call.
        let taken = log.append_entries(&[next_batch(&log, 6), entry], at(0));
        assert_eq!(taken.unwrap(), 1, "{what}");
        log.truncate(end.index, |_| Ok(())).unwrap();
        assert_eq!(log.end(), end);
    }
}

#[test]
fn what_is_committed_is_never_taken_back() {
    let disk = disk();
    let mut log = create_replica(&disk, small());
    begin(&mut log, 6);
    for _ in 0..30 {
        let entry = next_batch(&log, 6);
        log.append_entries(&[entry], at(0)).unwrap();
    }
    log.sync().unwrap();
    log.commit_to(at_index(20));
    for from in [0, 6, 20, 38] {
        let refused = log.truncate(at_index(from), |_| Ok(()));
        assert!(
            matches!(refused, Err(TruncateError::OutOfRange { .. })),
            "from {from}: {refused:?}"
        );
    }
    assert_eq!(
        log.truncate(at_index(21), |_| Ok(())).unwrap().index.get(),
        21
    );
    assert_eq!(log.reader().end_offset(), log.reader().committed_offset());
}

#[test]
fn bytes_that_are_no_entry_are_refused() {
    let disk = disk();
    let log = create_replica(&disk, small());
    let entry = next_batch(&log, 6);
    let (header, body) = entry.parts();
    let good = [&header[..], &body[..]].concat();
    let check = |bytes: &[u8], max| LogEntry::check(Bytes::copy_from_slice(bytes), max);
    assert_eq!(check(&good, good.len()).unwrap().kind(), EntryKind::Batch);
    assert!(
        matches!(check(&good, good.len() - 1), Err(EntryError::Batch(_))),
        "too long"
    );
    for at in [0, 17, 40, good.len() - 1] {
        assert!(
            matches!(check(&good[..at], 1 << 20), Err(EntryError::Batch(_))),
            "cut at {at}"
        );
    }
    let two = [&good[..], &good[..]].concat();
    assert!(
        matches!(check(&two, 1 << 20), Err(EntryError::Batch(_))),
        "two of them"
    );
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(
        matches!(check(&flipped, 1 << 20), Err(EntryError::Batch(_))),
        "a flipped bit"
    );
    let file = disk.contents(&segment(0));
    let header = &file[..usize::try_from(HEADER).unwrap()];
    assert!(matches!(check(header, 1 << 20), Err(EntryError::Header)));
}

/// Whichever bit of an entry is another one, it is not given out to be sent, and its place is named.
#[test]
fn entries_that_are_damaged_are_not_read() {
    let disk = disk();
    let mut log = create_replica(&disk, small());
    begin(&mut log, 6);
    for _ in 0..2 {
        let entry = next_batch(&log, 6);
        log.append_entries(&[entry], at(0)).unwrap();
    }
    let end = log.sync().unwrap();
    let before = log.end_before(at_index(end.index.get() - 1)).unwrap();
    let (from, to) = (log.first_index(), end.index);
    let whole = log.read_entries(from, to, u64::MAX).unwrap();
    for position in before.position..end.position {
        let position = u64::from(position);
        disk.flip_bit(&segment(0), position, 3);
        let read = log.read_entries(from, to, u64::MAX);
        let Err(EntriesError::Read(ReadError::Corrupt(corruption))) = read else {
            panic!("a flipped bit at {position} gives {read:?}");
        };
        assert_eq!(corruption.path, segment(0));
        assert_eq!(corruption.position, u64::from(before.position));
        disk.flip_bit(&segment(0), position, 3);
    }
    assert_eq!(log.read_entries(from, to, u64::MAX).unwrap(), whole);
}

/// The producer sends its batch again to whoever is the leader then.
#[test]
fn a_batch_that_was_taken_back_may_be_stored_again() {
    let disk = disk();
    let mut log = create_replica(&disk, small());
    begin(&mut log, 6);
    let mut sent = Vec::new();
    for sequence in 0..3 {
        let mut batch = batch_by(7, 0, sequence, &[(1000, b"value")]);
        batch.stamp(log.end().offset, epoch(6));
        log.append_entries(&[LogEntry::batch(&batch)], at(0))
            .unwrap();
        sent.push(batch);
    }
    assert!(
        log.check_producer(&sent[2]).unwrap().is_some(),
        "it is known as stored"
    );
    log.commit_to(at_index(7));
    log.truncate(at_index(8), |_| Ok(())).unwrap();
    assert!(log.check_producer(&sent[0]).unwrap().is_some());
    assert_eq!(
        log.check_producer(&sent[1]).unwrap(),
        None,
        "it is the next one again"
    );
    assert!(
        log.check_producer(&sent[2]).is_err(),
        "one is missing before it"
    );
}

#[derive(Debug)]
struct Owner {
    log: LogSync,
    told: mpsc::SyncSender<()>,
}

impl SyncTarget for Owner {
    fn log(&self) -> &LogSync {
        &self.log
    }
    fn synced(&self, _result: &Result<LogEnd, Poisoned>) {
        self.told.send(()).ok();
    }
}

/// What the state file would say, in the order in which it is told.
#[derive(Clone, Debug, Default)]
struct Checkpoints(Arc<Mutex<Vec<LogEnd>>>);

impl RoundObserver for Checkpoints {
    fn record(&self, ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned> {
        self.0.lock().extend(ends.iter().map(|(_, end)| *end));
        Ok(())
    }
    fn finished(&self, _logs: usize, _took: Duration) {}
}

/// A round may have synced what is then taken back, while another log of it is not done: its checkpoint
/// must not be the last word.
#[test]
fn no_round_records_a_checkpoint_past_what_was_taken_back() {
    let disk = disk();
    let mut log = create_replica(&disk, large());
    let mut slow = Log::create(
        dynamic(&disk),
        Path::new("/data/slow"),
        identity(),
        large(),
        at(0),
    )
    .unwrap();
    let checkpoints = Checkpoints::default();
    let observer = Arc::new(checkpoints.clone());
    let coordinator = SyncCoordinator::start(observer, SyncConfig::default()).unwrap();
    let (told, rounds) = mpsc::sync_channel(8);
    let targets: Vec<Arc<dyn SyncTarget>> = [&log, &slow]
        .map(|log| {
            let (log, told) = (log.sync_handle(), told.clone());
            Arc::new(Owner { log, told }) as Arc<dyn SyncTarget>
        })
        .into();
    begin(&mut log, 6);
    let start = log.end();
    let entry = next_batch(&log, 6);
    log.append_entries(&[entry], at(0)).unwrap();
    append(&mut slow, batch(1, 10));
    let hang = disk.hang(OpFilter::op(DiskOp::Sync).on("/data/slow"));
    let asking = std::thread::spawn(move || coordinator.sync(targets));
    // One log after the other: the first one is synced.
    hang.wait_until_one_hangs();
    let set_back = |end| {
        checkpoints.0.lock().push(end);
        Ok(())
    };
    log.truncate(start.index, set_back).unwrap();
    drop(hang);
    asking.join().unwrap();
    rounds.iter().take(2).for_each(drop);
    let recorded = checkpoints.0.lock().clone();
    assert!(
        recorded.contains(&slow.end()),
        "the other one's is recorded"
    );
    let of_log: Vec<_> = recorded
        .into_iter()
        .filter(|end| *end != slow.end())
        .collect();
    assert_eq!(of_log, [start], "the log ends there");
}
