//! Random appends, runs of compaction that are cut off anywhere, kills, power losses and failing
//! calls, against the list of what was appended.
//!
//! The law: what is read was appended, at that offset; from the end of the clean part on nothing
//! durable is missing; below it no key is there twice; of each key the newest durable record is
//! there, but for a tombstone whose time is over, and then nothing older is either.
//!
//! `TIDELOG_SEED=n cargo test -p tidelog-log --test log compaction::model` replays one run;
//! `TIDELOG_SEEDS=n` runs so many.

use std::collections::{BTreeMap, HashMap};

use tidelog_disk::DiskOp;
use tidelog_log::{AppendError, LogEnd, LogOptions};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

use super::*;
use crate::seeds::{SEEDS, each_seed};

const STEPS: u64 = 50;
const DELETE_RETENTION: i64 = 60;

#[test]
fn random_runs_keep_the_newest_of_each_key() {
    let runs = each_seed("compaction::model", |seed| World::new(seed).run());
    let mut happened = Happened::default();
    for run in &runs {
        happened.add(run);
    }
    // What the runs are for did happen.
    if runs.len() as u64 >= SEEDS {
        let Happened {
            installed,
            cut_off,
            crashed_within,
            removed,
            tombstones,
            failed,
            poisoned,
            held,
        } = happened;
        let least = [
            installed,
            cut_off,
            crashed_within,
            removed,
            tombstones,
            failed,
            poisoned,
            held,
        ];
        assert!(least.iter().all(|count| *count > 100), "{happened:?}");
    }
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default)]
struct Happened {
    installed: u64,
    cut_off: u64,
    crashed_within: u64,
    removed: u64,
    tombstones: u64,
    failed: u64,
    poisoned: u64,
    held: u64,
}

impl Happened {
    fn add(&mut self, other: &Self) {
        self.installed += other.installed;
        self.cut_off += other.cut_off;
        self.crashed_within += other.crashed_within;
        self.removed += other.removed;
        self.tombstones += other.tombstones;
        self.failed += other.failed;
        self.poisoned += other.poisoned;
        self.held += other.held;
    }
}

struct World {
    rng: SimRng,
    disk: SimDisk,
    options: LogOptions,
    log: Option<Log>,
    /// All that may be in the log, by offset.
    appended: Vec<Seen>,
    recorded: Vec<LogEnd>,
    durable: usize,
    log_start: u64,
    now: i64,
    /// When the clean part first reached past the tombstone at an offset.
    clean_since: HashMap<u64, i64>,
    happened: Happened,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng::new(seed);
        let disk = SimDisk::new(rng.next_u64());
        let options = LogOptions {
            segment_bytes: u32::try_from(700 + rng.below(2500)).unwrap(),
            segment_ms: 1 + rng.below(300),
            index_interval_bytes: u32::try_from(1 + rng.below(600)).unwrap(),
            ..LogOptions::default()
        };
        let log = create(&disk, options);
        let recorded = vec![log.end()];
        Self {
            rng,
            disk,
            options,
            log: Some(log),
            appended: Vec::new(),
            recorded,
            durable: 0,
            log_start: 0,
            now: 0,
            clean_since: HashMap::new(),
            happened: Happened::default(),
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("a log is open between steps")
    }

    fn run(mut self) -> Happened {
        for _ in 0..STEPS {
            self.now += i64::try_from(self.rng.below(20)).unwrap();
            if self.rng.chance(5) {
                self.arm();
            }
            match self.rng.below(100) {
                0..40 => self.append(),
                40..50 => self.sync(),
                50..53 => self.begin_epoch(),
                53..56 => self.trim(),
                56..80 => self.compact(),
                80..86 => self.reopen(Stop::Close),
                86..91 => self.reopen(Stop::Kill),
                91..95 => self.reopen(Stop::Crash),
                _ => self.check(),
            }
            if self.rng.chance(5) {
                self.disk.sync_all();
            }
            self.note_durable();
            if self.log().reader().poisoned().is_some() {
                self.happened.poisoned += 1;
                self.disk.stop_failing();
                let stop = if self.rng.chance(50) {
                    Stop::Kill
                } else {
                    Stop::Crash
                };
                self.reopen(stop);
            }
        }
        self.disk.stop_failing();
        self.reopen(Stop::Crash);
        self.happened
    }

    /// One of the next calls on the log's files fails.
    fn arm(&mut self) {
        let ops = [
            DiskOp::Write,
            DiskOp::Sync,
            DiskOp::SyncDir,
            DiskOp::Rename,
            DiskOp::Remove,
            DiskOp::Open,
        ];
        let op = ops[self.rng.index(ops.len())];
        let nth = 1 + self.rng.below(4);
        let error = if self.rng.chance(50) {
            InjectedError::Io
        } else {
            InjectedError::Full
        };
        self.disk
            .fail_nth(OpFilter::op(op), nth, error, FailMode::Once);
    }

    fn append(&mut self) {
        if self.log().reader().poisoned().is_some() {
            return;
        }
        let count = 1 + self.rng.below(6);
        let mut builder = BatchBuilder::new(Compression::ALL[self.rng.index(5)]);
        let mut given = Vec::new();
        for _ in 0..count {
            let key = format!("key {}", self.rng.below(12));
            let value = format!(
                "value {} {}",
                self.rng.next_u64(),
                "x".repeat(self.rng.index(60))
            );
            let value = (!self.rng.chance(25)).then_some(value);
            let time = self.now + i64::try_from(self.rng.below(50)).unwrap() - 25;
            let value_bytes = value.as_ref().map(String::as_bytes);
            let headers = [("h", Some(key.as_bytes()))];
            builder
                .push(at(time), Some(key.as_bytes()), value_bytes, &headers)
                .unwrap();
            given.push((key, value, time));
        }
        let batch = validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap();
        let now = at(self.now);
        let base = self.log().end().offset.get();
        let result = self.log().append(&mut [batch], now);
        // After a failed write any of them may be there.
        if !matches!(result, Ok(_) | Err(AppendError::WriteFailed(_))) {
            return;
        }
        let epoch = self.log().end().epoch.get();
        for (n, (key, value, time)) in given.into_iter().enumerate() {
            self.appended.push(Seen {
                offset: base + n as u64,
                time,
                header: Some(key.clone().into()),
                key: Some(key.into()),
                value: value.map(Bytes::from),
                epoch,
                producer: (-1, -1),
            });
        }
    }

    fn sync(&mut self) {
        if let Ok(end) = self.log().sync() {
            self.recorded.push(end);
        }
    }

    fn begin_epoch(&mut self) {
        let epoch = self.log().end().epoch.next().unwrap();
        // One that waits for space begins with the next append.
        drop(self.log().begin_epoch(epoch));
    }

    fn trim(&mut self) {
        let end = self.log().reader().durable_offset();
        let start = self.log().end().log_start.get();
        let to = start + self.rng.below((end.get() - start) / 3 + 1);
        if self.log().trim(offset(to), end).is_ok() {
            self.log_start = to;
        }
    }

    /// A run, which may be stopped, fail, or be cut off by any kind of stop.
    fn compact(&mut self) {
        let now = self.now;
        let options = CompactionOptions {
            delete_retention_ms: DELETE_RETENTION.unsigned_abs(),
            min_lag_ms: self.rng.below(2) * self.rng.below(50),
            key_bytes_max: if self.rng.chance(30) {
                self.rng.index(600)
            } else {
                1 << 20
            },
            ..options(self.log(), now)
        };
        let mut pace = Steps {
            left: self.rng.chance(15).then(|| self.rng.below(60)),
            ..Steps::default()
        };
        let reader = self.log().reader();
        let mut run = match Compaction::begin(&reader, options, &mut pace) {
            Ok(Some(run)) => run,
            Ok(None) => return,
            Err(e) => return self.note_failure(&e),
        };
        loop {
            // A call may be armed to fail.
            let before = try_records(&reader, reader.log_start().get());
            let compacted = match run.next(&mut pace) {
                Ok(Some(compacted)) => compacted,
                Ok(None) => break,
                Err(e) => {
                    self.note_failure(&e);
                    break;
                }
            };
            if self.rng.chance(6) {
                self.happened.crashed_within += 1;
                let stop = if self.rng.chance(50) {
                    Stop::Kill
                } else {
                    Stop::Crash
                };
                drop(run);
                return self.reopen(stop);
            }
            if self.rng.chance(20) {
                self.append();
            }
            let from = self.some_offsets();
            let held = Held::begin(&reader, from.into_iter());
            if let Err(e) = self.log().install(compacted) {
                assert!(!matches!(e, InstallError::Outdated), "{e}");
                self.happened.failed += 1;
                break;
            }
            self.happened.installed += 1;
            if let Ok(before) = before {
                self.check_held(held, &before);
            }
            if self.rng.chance(6) {
                self.happened.crashed_within += 1;
                let stop = if self.rng.chance(50) {
                    Stop::Kill
                } else {
                    Stop::Crash
                };
                drop(run);
                return self.reopen(stop);
            }
        }
        self.happened.removed += run.stats().records_removed;
        self.happened.tombstones += run.stats().tombstones_removed;
        drop(run);
        self.check();
    }

    fn note_failure(&mut self, e: &CompactionError) {
        match e {
            CompactionError::Stopped(_) => self.happened.cut_off += 1,
            CompactionError::Disk(_) => self.happened.failed += 1,
            e => panic!("{e}"),
        }
    }

    fn some_offsets(&mut self) -> Vec<u64> {
        let (start, end) = (self.log_start, self.durable as u64);
        (0..3)
            .filter(|_| start < end)
            .map(|_| start + self.rng.below(end - start))
            .collect()
    }

    /// Reads that began before an installation give what was there before it, or after.
    fn check_held(&mut self, held: Held, before: &[Seen]) {
        let log_start = self.log_start;
        let Ok(after) = try_records(&self.log().reader(), log_start) else {
            return;
        };
        for (from, cold) in held.0 {
            let Ok(batches) = cold.run() else { continue };
            self.happened.held += 1;
            let range = from.get()..batches.next_offset.get();
            let seen: Vec<_> = decode(&batches.parts)
                .into_iter()
                .filter(|r| range.contains(&r.offset))
                .collect();
            let within = |all: &[Seen]| -> Vec<Seen> {
                all.iter()
                    .filter(|r| range.contains(&r.offset))
                    .cloned()
                    .collect()
            };
            assert!(batches.next_offset > from);
            assert!(
                seen == within(before) || seen == within(&after),
                "{range:?}: {seen:?}"
            );
        }
    }

    fn note_durable(&mut self) {
        let durable = self.log().reader().durable_offset().get() as usize;
        assert!(durable >= self.durable, "durable went back");
        self.durable = durable;
    }

    fn reopen(&mut self, stop: Stop) {
        let log = self.log.take().expect("open");
        let end = log.end();
        let poisoned = log.reader().poisoned().is_some();
        match stop {
            Stop::Close => {
                if let Ok(end) = log.close() {
                    self.recorded.push(end);
                    self.durable = self.appended.len();
                } else {
                    self.disk.crash();
                }
            }
            Stop::Kill => {
                drop(log);
                self.disk.kill();
            }
            Stop::Crash => {
                drop(log);
                self.disk.crash();
                if self.rng.chance(50) {
                    let keep = self.rng.index(self.recorded.len() + 1);
                    self.recorded.truncate(keep);
                }
            }
        }
        self.disk.stop_failing();
        if self.rng.chance(10) {
            self.spoil_derived_files();
        }
        let opened = open(&self.disk, self.options, self.recorded.last().copied());
        let (log, _) = opened.unwrap_or_else(|e| panic!("{e}; files: {:?}", self.disk.files()));
        let found = log.end();
        if stop == Stop::Kill && !poisoned {
            assert_eq!(found, end, "a kill loses nothing");
        }
        assert!(
            found.offset.get() >= self.durable as u64,
            "durable is there"
        );
        self.appended.truncate(found.offset.get() as usize);
        assert_eq!(self.appended.len() as u64, found.offset.get());
        self.durable = self.appended.len();
        assert!(found.log_start.get() >= self.log_start);
        self.log_start = found.log_start.get();
        self.recorded
            .retain(|recorded| recorded.index <= found.index);
        self.recorded.push(found);
        self.log = Some(log);
        let left = self.disk.files();
        assert!(
            !left
                .iter()
                .any(|path| path.extension().is_some_and(|e| e == "cleaned")),
            "{left:?}"
        );
        self.check();
    }

    /// Loses or breaks files that can be built again.
    fn spoil_derived_files(&mut self) {
        for path in self.disk.files() {
            if path.extension().is_some_and(|e| e == "log") || !self.rng.chance(40) {
                continue;
            }
            let len = self.disk.contents(&path).len();
            match self.rng.below(2) {
                0 => self.disk.remove(&path),
                _ if len > 0 => {
                    let at = self.rng.below(len as u64);
                    self.disk.flip_bit(&path, at, 5);
                }
                _ => {}
            }
        }
    }

    fn check(&mut self) {
        // An armed failure is not what is looked for here.
        self.disk.stop_failing();
        self.note_durable();
        let reader = self.log().reader();
        let (start, durable) = (self.log_start, self.durable as u64);
        let end = self.log().end().offset;
        let dirty_from = reader
            .compactable(at(i64::MAX), 0, end)
            .dirty_from
            .get()
            .max(start);
        let seen = records(&reader, start);
        let there: BTreeMap<u64, &Seen> = seen.iter().map(|r| (r.offset, r)).collect();
        for record in &seen {
            assert_eq!(record, &self.appended[record.offset as usize]);
        }
        for n in dirty_from..durable {
            assert!(
                there.contains_key(&n),
                "{n} is gone, clean is below {dirty_from}"
            );
        }
        let clean: Vec<_> = seen.iter().filter(|r| r.offset < dirty_from).collect();
        let mut keys: Vec<_> = clean.iter().map(|r| &r.key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), clean.len(), "each key once below {dirty_from}");

        let mut newest: HashMap<&Option<Bytes>, &Seen> = HashMap::new();
        for record in &self.appended[start as usize..self.durable] {
            newest.insert(&record.key, record);
        }
        for record in newest.values() {
            let is_there = there.contains_key(&record.offset);
            if record.value.is_some() {
                assert!(is_there, "the newest of its key is gone: {record:?}");
                continue;
            }
            if record.offset < dirty_from {
                self.clean_since.entry(record.offset).or_insert(self.now);
            }
            if !is_there {
                let older = seen.iter().find(|r| r.key == record.key);
                assert_eq!(older, None, "its tombstone {record:?} is gone");
                let since = self.clean_since.get(&record.offset);
                let is_over = since.is_some_and(|since| self.now >= since + DELETE_RETENTION);
                assert!(
                    is_over,
                    "{record:?} is gone at {}, clean since {since:?}",
                    self.now
                );
            }
        }
        for n in self.some_offsets() {
            let epoch = reader.epoch_at(offset(n));
            let epoch = epoch.map_or(5, LeaderEpoch::get);
            assert_eq!(epoch, self.appended[n as usize].epoch);
        }
        for _ in 0..4 {
            let wanted = i64::try_from(self.rng.below(self.now.unsigned_abs() + 60)).unwrap() - 30;
            let expected = seen.iter().find(|r| r.time >= wanted);
            let expected = expected.map(|r| (offset(r.offset), at(r.time)));
            let found = reader.find_timestamp(at(wanted), offset(durable)).unwrap();
            assert_eq!(found, expected, "time {wanted}");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Close,
    Kill,
    Crash,
}
